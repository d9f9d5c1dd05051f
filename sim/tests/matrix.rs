//! Matrix products and `ldmatrix` against plain loops.

mod common;
use common::*;

/// Small integers, which all formats hold exactly.
fn value(i: usize) -> f32 {
    ((i * 37 + 11) % 13) as f32 - 6.0
}

fn bf16(x: f32) -> u32 {
    x.to_bits() >> 16
}

fn f16(x: f32) -> u32 {
    if x == 0.0 {
        return 0;
    }
    let bits = x.to_bits();
    (bits >> 16 & 0x8000) | ((bits >> 13 & 0x3fff_ffff) - (112 << 10)) & 0x7fff
}

/// A and B as the kernels below find them: A by rows, then B by columns.
fn operands(m: usize, n: usize, k: usize) -> (Vec<f32>, Vec<f32>) {
    ((0..m * k).map(value).collect(), (0..n * k).map(|i| value(i + 1000)).collect())
}

fn product(m: usize, n: usize, k: usize, a: &[f32], b: &[f32]) -> Vec<f32> {
    (0..m * n).map(|i| (0..k).map(|j| a[i / n * k + j] * b[i % n * k + j]).sum::<f32>() + (i % n) as f32).collect()
}

const LANE: &str = "shr.u32 %r20, %t, 2; and.b32 %r21, %t, 3; shl.b32 %r22, %r21, 1;";

/// Loads the 32-bit word at `in + 4·(row·width + col)`.
fn word(to: &str, base: usize, row: &str, add_row: usize, width: usize, col: &str, add_col: usize) -> String {
    format!(
        "add.u32 %r30, {row}, {add_row}; mad.lo.u32 %r30, %r30, {width}, {}; add.u32 %r30, %r30, {col};
        mul.wide.u32 %rd1, %r30, 4; add.s64 %rd1, %in, %rd1; ld.global.b32 {to}, [%rd1];",
        base + add_col
    )
}

/// Stores the four accumulators, which started as their column.
const STORE: &str = "shl.b32 %r30, %r20, 3; add.u32 %r30, %r30, %r22; mul.wide.u32 %rd1, %r30, 4; add.s64 %rd1, %out, %rd1;
    st.global.v2.f32 [%rd1], {%f1, %f2}; st.global.v2.f32 [%rd1+256], {%f3, %f4};";
const START: &str = "cvt.rn.f32.u32 %f1, %r22; add.f32 %f2, %f1, 1.0; mov.f32 %f3, %f1; mov.f32 %f4, %f2;";

#[test]
fn halves() {
    for (k, ty, to) in [(16, "bf16", bf16 as fn(f32) -> u32), (8, "bf16", bf16), (16, "f16", f16), (8, "f16", f16)] {
        let (a, b) = operands(16, 8, k);
        let input: Vec<u32> = a.chunks(2).chain(b.chunks(2)).map(|p| to(p[0]) | to(p[1]) << 16).collect();
        let (w, base) = (k / 2, 16 * k / 2);
        let mut body = format!("{LANE}{START}");
        for r in 0..k / 4 {
            body += &word(&format!("%r{}", 1 + r), 0, "%r20", 8 * (r % 2), w, "%r21", 4 * (r / 2));
        }
        for r in 0..k / 8 {
            body += &word(&format!("%r{}", 5 + r), base, "%r20", 0, w, "%r21", 4 * r);
        }
        let (ra, rb) = if k == 16 { ("%r1,%r2,%r3,%r4", "%r5,%r6") } else { ("%r1,%r2", "%r5") };
        let acc = "{%f1,%f2,%f3,%f4}";
        body += &format!("mma.sync.aligned.m16n8k{k}.row.col.f32.{ty}.{ty}.f32 {acc}, {{{ra}}}, {{{rb}}}, {acc}; {STORE}");
        let out = run_body(&body, 32, &input);
        let want = product(16, 8, k, &a, &b);
        assert!((0..128).all(|i| f32::from_bits(out[i]) == want[i]), "{ty} {k}");
    }
}

#[test]
fn tf32() {
    let (a, b) = operands(16, 8, 8);
    let input: Vec<u32> = a.iter().chain(&b).map(|x| x.to_bits()).collect();
    let mut body = format!("{LANE}{START}");
    for r in 0..4 {
        body += &word(&format!("%r{}", 1 + r), 0, "%r20", 8 * (r % 2), 8, "%r21", 4 * (r / 2));
    }
    for r in 0..2 {
        body += &word(&format!("%r{}", 5 + r), 128, "%r20", 0, 8, "%r21", 4 * r);
    }
    let acc = "{%f1,%f2,%f3,%f4}";
    body += &format!("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {acc}, {{%r1,%r2,%r3,%r4}}, {{%r5,%r6}}, {acc}; {STORE}");
    let out = run_body(&body, 32, &input);
    let want = product(16, 8, 8, &a, &b);
    assert!((0..128).all(|i| f32::from_bits(out[i]) == want[i]));
}

#[test]
fn doubles() {
    let (a, b) = operands(8, 8, 4);
    let input: Vec<u32> = a.iter().chain(&b).map(|x| x.to_bits()).collect();
    let mut body = String::from(LANE);
    body += &word("%f10", 0, "%r20", 0, 4, "%r21", 0);
    body += &word("%f11", 32, "%r20", 0, 4, "%r21", 0);
    body += "cvt.f64.f32 %d1, %f10; cvt.f64.f32 %d2, %f11; cvt.rn.f64.u32 %d3, %r22; add.f64 %d4, %d3, 1.0;
        mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%d3,%d4}, {%d1}, {%d2}, {%d3,%d4};
        cvt.rn.f32.f64 %f1, %d3; cvt.rn.f32.f64 %f2, %d4; shl.b32 %r30, %r20, 3; add.u32 %r30, %r30, %r22; mul.wide.u32 %rd1, %r30, 4;
        add.s64 %rd1, %out, %rd1; st.global.v2.f32 [%rd1], {%f1, %f2};";
    let out = run_body(&body, 32, &input);
    let want = product(8, 8, 4, &a, &b);
    assert!((0..64).all(|i| f32::from_bits(out[i]) == want[i]));
}

#[test]
fn matrices_load_both_ways() {
    // Four 8×8 matrices of 16-bit elements numbered from 0; row r of the block is thread r's 16 bytes.
    for trans in ["", ".trans"] {
        let mut body = String::from(
            ".shared .align 16 .b8 buf[512]; shl.b32 %r1, %t, 4; mov.u32 %r2, buf; add.u32 %r1, %r1, %r2; shl.b32 %r3, %t, 3;
            mul.lo.u32 %r4, %r3, 0x10001; add.u32 %r4, %r4, 0x10000;
            add.u32 %r5, %r4, 0x20002; add.u32 %r6, %r5, 0x20002; add.u32 %r7, %r6, 0x20002;
            st.shared.v4.b32 [%r1], {%r4,%r5,%r6,%r7}; bar.warp.sync -1;",
        );
        body += &format!("ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{%r10,%r11,%r12,%r13}}, [%r1];");
        for m in 0..4 {
            body += &format!("st.global.u32 [%o+{}], %r{};", 128 * m, 10 + m);
        }
        let out = run_body(&body, 32, &[]);
        for m in 0..4 {
            for lane in 0..32 {
                let (g, two) = (lane / 4, lane % 4 * 2);
                let at = |row: usize, col: usize| (64 * m + 8 * row + col) as u32;
                let want = if trans.is_empty() { at(g, two) | at(g, two + 1) << 16 } else { at(two, g) | at(two + 1, g) << 16 };
                assert_eq!(out[32 * m + lane], want, "{trans} {m} {lane}");
            }
        }
    }
}

//! Control flow, shared memory, barriers and exchanges in correct kernels.

mod common;
use common::*;

#[test]
fn copies_and_adds() {
    let body = "ld.global.u32 %r1, [%i]; add.u32 %r1, %r1, 5; st.global.u32 [%o], %r1;";
    let input: Vec<u32> = (0..64).map(|i| i * i).collect();
    let out = run_body(body, 64, &input);
    assert!((0..64).all(|i| out[i] == input[i] + 5));
}

#[test]
fn loops_of_different_length_join_again() {
    let body = "
        mov.u32 %r1, 0; mov.u32 %r2, 0;
    loop:
        setp.ge.u32 %p1, %r2, %t;
        @%p1 bra done;
        add.u32 %r1, %r1, %r2;
        add.u32 %r2, %r2, 1;
        bra.uni loop;
    done:
        activemask.b32 %r3;
        add.u32 %r1, %r1, %r3;
        st.global.u32 [%o], %r1;";
    let out = run_body(body, 32, &[]);
    for t in 0..32u32 {
        let sum: u32 = (0..t).sum();
        assert_eq!(out[t as usize], sum.wrapping_add(u32::MAX), "{t}");
    }
}

#[test]
fn reverses_through_shared_memory() {
    let body = "
        .shared .align 16 .b8 buf[1024];
        mov.u32 %r5, buf; shl.b32 %r1, %t, 2; add.u32 %r1, %r1, %r5;
        st.shared.u32 [%r1], %t;
        bar.sync 0;
        mov.u32 %r2, %ntid.x; sub.u32 %r2, %r2, 1; sub.u32 %r2, %r2, %t; shl.b32 %r2, %r2, 2; add.u32 %r2, %r2, %r5;
        ld.shared.u32 %r3, [%r2];
        st.global.u32 [%o], %r3;";
    let out = run_body(body, 256, &[]);
    assert!((0..256).all(|i| out[i] == 255 - i as u32));
}

#[test]
fn scans_with_shfl() {
    let mut body = String::from("ld.global.u32 %r1, [%i];\n");
    for d in [1, 2, 4, 8, 16] {
        body += &format!("shfl.sync.up.b32 %r2|%p1, %r1, {d}, 0, 0xffffffff; @%p1 add.u32 %r1, %r1, %r2;\n");
    }
    body += "st.global.u32 [%o], %r1;";
    let input: Vec<u32> = (0..32).map(|i| i * 7 + 3).collect();
    let out = run_body(&body, 32, &input);
    let mut sum = 0;
    for i in 0..32 {
        sum += input[i];
        assert_eq!(out[i], sum);
    }
}

#[test]
fn shfl_segments() {
    // Segments of eight: mask 0x18 in bits 8–12, clamp 31.
    let body = "shfl.sync.down.b32 %r1|%p1, %t, 3, 0x181f, 0xffffffff; selp.u32 %r2, 100, 0, %p1; add.u32 %r1, %r1, %r2;
        st.global.u32 [%o], %r1; shfl.sync.bfly.b32 %r1, %t, 1, 0x1f, 0xffffffff; st.global.u32 [%o+128], %r1;
        shfl.sync.idx.b32 %r1, %t, 2, 0x181f, 0xffffffff; st.global.u32 [%o+256], %r1;";
    let out = run_body(body, 32, &[]);
    for t in 0..32 {
        let want = if t % 8 + 3 < 8 { t + 103 } else { t };
        assert_eq!(out[t as usize], want);
        assert_eq!(out[32 + t as usize], t ^ 1);
        assert_eq!(out[64 + t as usize], t / 8 * 8 + 2);
    }
}

#[test]
fn vectors_and_packed_moves() {
    let body = "shl.b32 %r9, %t, 2; cvt.u64.u32 %rd1, %r9; shl.b64 %rd1, %rd1, 2; add.s64 %rd2, %in, %rd1; add.s64 %rd3, %out, %rd1;
        ld.global.v4.u32 {%r1, _, %r3, %r4}, [%rd2];
        mov.b64 %rd4, {%r1, %r3}; mov.b64 {%r5, %r6}, %rd4; mov.b32 {%h1, %h2}, %r4; mov.b32 %r7, {%h2, %h1};
        st.global.v4.b32 [%rd3], {%r6, %r5, %r7, %r4};";
    let input: Vec<u32> = (0..128).map(|i| i * 0x10203).collect();
    let out = run_body(body, 32, &input);
    for t in 0..32 {
        let x = &input[4 * t..];
        assert_eq!(out[4 * t..4 * t + 4], [x[2], x[0], x[3].rotate_left(16), x[3]]);
    }
}

#[test]
fn scopes_shadow_and_labels_repeat() {
    let body = "mov.u32 %r1, 1;
        { .reg .b32 %r1; mov.u32 %r1, 7; bra L; mov.u32 %r1, 8; L: add.u32 %r2, %r1, 0; }
        { bra L; L: add.u32 %r2, %r2, %r1; }
        st.global.u32 [%o], %r2;";
    assert_eq!(run_body(body, 1, &[])[0], 8);
}

#[test]
fn tables_and_dynamic_shared() {
    let text = format!(
        "{HEAD}.const .align 4 .f32 table[3] = {{0f3F800000, 2.0, -3.0}};\n.extern .shared .align 16 .b8 dyn[];\n{}",
        &kernel(
            ".shared .align 4 .b8 fixed[20];
            ld.const.f32 %f1, [table+8]; mov.u64 %rd1, table; ld.const.f32 %f2, [%rd1+4]; add.f32 %f1, %f1, %f2;
            mov.u32 %r1, fixed; st.shared.f32 [%r1+16], %f1; mov.u32 %r2, dyn; st.shared.u32 [dyn+12], %r2;
            ld.shared.u32 %r3, [%r2+12]; ld.shared.f32 %f3, [fixed+16];
            cvta.shared.u64 %rd2, %rd3; ",
        )[HEAD.len()..]
            .replace("cvta.shared.u64 %rd2, %rd3;", "mov.u64 %rd3, dyn; cvta.shared.u64 %rd2, %rd3; ld.u32 %r4, [%rd2+12]; add.u32 %r3, %r3, %r4; st.global.u32 [%o], %r3; st.global.f32 [%o+4], %f3;")
    );
    let (mut out, mut input) = (Buffer::zeros(64), Buffer::zeros(64));
    launch(&text, 1, 1, 64, &mut out, &mut input).unwrap();
    assert_eq!(out.u32s()[0], 64);
    assert_eq!(out.f32s()[1], -1.0);
}

#[test]
fn votes_and_reductions() {
    let body = "and.b32 %r1, %t, 1; setp.eq.u32 %p1, %r1, 1; vote.sync.ballot.b32 %r2, %p1, -1; redux.sync.add.u32 %r3, %t, -1;
        vote.sync.any.pred %p2, %p1, -1; vote.sync.all.pred %p3, %p1, -1; selp.u32 %r4, 1, 0, %p2; selp.u32 %r5, 2, 0, %p3;
        add.u32 %r3, %r3, %r4; add.u32 %r3, %r3, %r5; st.global.u32 [%o], %r2; st.global.u32 [%o+128], %r3;";
    let out = run_body(body, 32, &[]);
    assert_eq!(out[3], 0xaaaa_aaaa);
    assert_eq!(out[35], 496 + 1);
}

#[test]
fn copies_asynchronously() {
    let body = ".shared .align 16 .b8 buf[512];
        shl.b32 %r1, %t, 4; mov.u32 %r2, buf; add.u32 %r2, %r2, %r1; cvt.u64.u32 %rd1, %r1; add.s64 %rd2, %in, %rd1;
        cp.async.cg.shared.global [%r2], [%rd2], 16, 8; cp.async.commit_group; cp.async.wait_group 0; bar.sync 0;
        xor.b32 %r1, %r1, 0x1f0; mov.u32 %r2, buf; add.u32 %r2, %r2, %r1; ld.shared.v4.u32 {%r4,%r5,%r6,%r7}, [%r2];
        add.s64 %rd3, %out, %rd1; st.global.v4.u32 [%rd3], {%r4,%r5,%r6,%r7};";
    let input: Vec<u32> = (1..129).collect();
    let out = run_body(body, 32, &input);
    for t in 0..32 {
        let x = &input[4 * (31 - t)..];
        assert_eq!(out[4 * t..4 * t + 4], [x[0], x[1], 0, 0]);
    }
}

#[test]
fn atomics_count() {
    let text = kernel("atom.global.add.u32 %r1, [%out], 1; red.global.max.u32 [%out+4], %t; atom.global.cas.b32 %r2, [%out+8], 0, 9;");
    let (mut out, mut input) = (Buffer::zeros(64), Buffer::zeros(64));
    launch(&text, 3, 50, 0, &mut out, &mut input).unwrap();
    assert_eq!(out.u32s()[..3], [150, 49, 9]);
}

//! Arithmetic, conversions and predicates against values worked out by hand or by Rust.

mod common;
use common::*;

/// Runs statements that leave a 32-bit result in %r9, one thread.
fn bits(body: &str) -> u32 {
    run_body(&format!("{body} st.global.u32 [%o], %r9;"), 1, &[])[0]
}

/// Runs an f32 instruction on operands given by their bits.
fn f(op: &str, args: &[u32]) -> u32 {
    let list: String = args.iter().map(|a| format!(", 0f{a:08X}")).collect();
    bits(&format!("{op} %f1{list}; mov.b32 %r9, %f1;"))
}

/// Runs a 64-bit instruction with the result in %rd9.
fn wide(body: &str) -> u64 {
    let out = run_body(&format!("{body} st.global.u64 [%out], %rd9;"), 1, &[]);
    out[0] as u64 | (out[1] as u64) << 32
}

fn b(x: f32) -> u32 {
    x.to_bits()
}

const NAN: u32 = 0x7fc0_0000;
const TINY: u32 = 0x0000_0123;

#[test]
fn float_arithmetic() {
    assert_eq!(f("add.f32", &[b(1.0), b(0.5)]), b(1.5));
    assert_eq!(f("add.rn.f32", &[NAN, b(0.5)]), 0x7fff_ffff);
    assert_eq!(f("fma.rn.f32", &[b(1.1), b(1.3), b(-1.43)]), b(1.1f32.mul_add(1.3, -1.43)));
    assert_eq!(f("add.f32", &[TINY, TINY]), 0x246);
    assert_eq!(f("add.ftz.f32", &[TINY, TINY]), 0);
    assert_eq!(f("mul.ftz.f32", &[0x8080_0000, b(0.5)]), 0x8000_0000);
    assert_eq!(f("mul.f32", &[0x8080_0000, b(0.5)]), 0x8040_0000);
    assert_eq!(f("add.sat.f32", &[b(1.0), b(0.5)]), b(1.0));
    assert_eq!(f("neg.f32", &[b(0.0)]), b(-0.0));
    assert_eq!(f("abs.f32", &[b(-2.0)]), b(2.0));
    assert_eq!(f("copysign.f32", &[b(-1.0), b(2.0)]), b(-2.0));
    assert_eq!(f("div.rn.f32", &[b(1.0), b(3.0)]), b(1.0 / 3.0));
    assert_eq!(f("div.approx.f32", &[b(1.0), b(3e38)]), 0);
    assert_eq!(f("sqrt.rn.f32", &[b(2.0)]), b(2f32.sqrt()));
}

#[test]
fn minima() {
    assert_eq!(f("min.f32", &[NAN, b(3.0)]), b(3.0));
    assert_eq!(f("max.f32", &[b(3.0), NAN]), b(3.0));
    assert_eq!(f("max.NaN.f32", &[b(3.0), NAN]), 0x7fff_ffff);
    assert_eq!(f("min.f32", &[b(0.0), b(-0.0)]), b(-0.0));
    assert_eq!(f("max.f32", &[b(-0.0), b(0.0)]), b(0.0));
    assert_eq!(f("max.f32", &[b(-5.0), b(-7.0)]), b(-5.0));
}

#[test]
fn directed_roundings() {
    let (x, y) = (b(1.0), b(1e-10));
    assert_eq!(f("add.rz.f32", &[x, y]), x);
    assert_eq!(f("add.rp.f32", &[x, y]), x + 1);
    assert_eq!(f("sub.rz.f32", &[x, y]), x - 1);
    assert_eq!(f("sub.rp.f32", &[x, y]), x);
    assert_eq!(f("add.rm.f32", &[x, b(-1.0)]), b(-0.0));
    assert_eq!(f("mul.rp.f32", &[b(1.1), b(1.1)]) - f("mul.rm.f32", &[b(1.1), b(1.1)]), 1);
    assert_eq!(f("fma.rp.f32", &[b(1.1), b(1.1), y]) - f("fma.rz.f32", &[b(1.1), b(1.1), y]), 1);
}

#[test]
fn transcendentals() {
    assert_eq!(f("ex2.approx.f32", &[b(3.0)]), b(8.0));
    assert_eq!(f("ex2.approx.f32", &[b(-140.0)]), 1 << 9);
    assert_eq!(f("ex2.approx.ftz.f32", &[b(-140.0)]), 0);
    assert_eq!(f("ex2.approx.ftz.f32", &[b(f32::NEG_INFINITY)]), 0);
    assert_eq!(f("lg2.approx.f32", &[b(8.0)]), b(3.0));
    assert_eq!(f("lg2.approx.f32", &[0]), b(f32::NEG_INFINITY));
    assert_eq!(f("rsqrt.approx.f32", &[b(4.0)]), b(0.5));
    assert_eq!(f("rcp.approx.ftz.f32", &[TINY]), b(f32::INFINITY));
    assert_eq!(f("tanh.approx.f32", &[b(0.5)]), b(0.5f64.tanh() as f32));
    assert_eq!(f("sin.approx.f32", &[b(0.5)]), b(0.5f64.sin() as f32));
}

#[test]
fn halves() {
    // 1.5 + 2.25 in both formats, high half −1 + −1.
    assert_eq!(bits("mov.b32 %r1, 0xbc003e00; mov.b32 %r2, 0xbc004080; add.f16x2 %r9, %r1, %r2;"), 0xc000_4380);
    assert_eq!(bits("mov.b32 %r1, 0x3fc03f80; fma.rn.bf16x2 %r9, %r1, %r1, %r1;"), 0x4070_4000);
    // 256 + 1 · 1 in bf16 is a tie; the product's low bits must break it.
    let one = bits("mov.b16 %h1, 0x3f80; mov.b16 %h2, 0x4380; fma.rn.bf16 %h3, %h1, %h1, %h2; cvt.u32.u16 %r9, %h3;");
    assert_eq!(one, 0x4380);
    let more = bits("mov.b16 %h1, 0x3f81; mov.b16 %h2, 0x4380; fma.rn.bf16 %h3, %h1, %h1, %h2; cvt.u32.u16 %r9, %h3;");
    assert_eq!(more, 0x4381);
    assert_eq!(bits("mov.b32 %r1, 0x7e003c00; mov.b32 %r2, 0x40004000; min.f16x2 %r9, %r1, %r2;"), 0x4000_3c00);
    assert_eq!(bits("mov.b32 %r1, 0x3f804000; neg.bf16x2 %r9, %r1;"), 0xbf80_c000);
}

#[test]
fn doubles() {
    assert_eq!(wide("add.f64 %d1, 0d3FF0000000000000, 0.25; mov.b64 %rd9, %d1;"), 1.25f64.to_bits());
    assert_eq!(wide("fma.rn.f64 %d1, 3.0, 0.1, 0.5; mov.b64 %rd9, %d1;"), 3f64.mul_add(0.1, 0.5).to_bits());
    assert_eq!(wide("rcp.rn.f64 %d1, 3.0; mov.b64 %rd9, %d1;"), (1f64 / 3.0).to_bits());
}

#[test]
fn integers() {
    assert_eq!(bits("mul.hi.u32 %r9, 0xffffffff, 0xffffffff;"), 0xffff_fffe);
    assert_eq!(bits("mul.hi.s32 %r9, -2, 3;"), u32::MAX);
    assert_eq!(bits("div.s32 %r9, -7, 2;"), -3i32 as u32);
    assert_eq!(bits("rem.s32 %r9, -7, 2;"), -1i32 as u32);
    assert_eq!(bits("min.s32 %r9, -7, 2;"), -7i32 as u32);
    assert_eq!(bits("min.u32 %r9, -7, 2;"), 2);
    assert_eq!(wide("mul.wide.s32 %rd9, -2, 3;"), -6i64 as u64);
    assert_eq!(wide("mad.wide.u32 %rd9, 0xffffffff, 2, 5;"), 0x2_0000_0003);
    assert_eq!(wide("mul.hi.u64 %rd9, -1, -1;"), u64::MAX - 1);
    assert_eq!(wide("mad.lo.s64 %rd9, -3, 5, 1;"), -14i64 as u64);
    assert_eq!(bits("add.cc.u32 %r1, -1, 2; addc.u32 %r9, 0, 0;"), 1);
    assert_eq!(bits("sub.cc.u32 %r1, 1, 2; subc.u32 %r9, 0, 0;"), u32::MAX);
    assert_eq!(bits("add.sat.s32 %r9, 0x7fffffff, 1;"), 0x7fff_ffff);
    assert_eq!(bits("sad.u32 %r9, 3, 9, 100;"), 106);
}

#[test]
fn bit_operations() {
    assert_eq!(bits("shl.b32 %r9, 1, 32;"), 0);
    assert_eq!(bits("shr.s32 %r9, -8, 99;"), u32::MAX);
    assert_eq!(bits("shr.u32 %r9, -8, 28;"), 15);
    assert_eq!(bits("shf.l.wrap.b32 %r9, 0x80000000, 1, 33;"), 3);
    assert_eq!(bits("shf.r.clamp.b32 %r9, 1, 7, 40;"), 7);
    assert_eq!(bits("lop3.b32 %r9, 0xf0, 0xcc, 0xaa, 0x96;"), 0xf0 ^ 0xcc ^ 0xaa);
    assert_eq!(bits("bfe.u32 %r9, 0x12345678, 8, 12;"), 0x456);
    assert_eq!(bits("bfe.s32 %r9, 0x00000f00, 8, 4;"), u32::MAX);
    assert_eq!(bits("bfi.b32 %r9, 0x5, 0xffffffff, 4, 8;"), 0xffff_f05f);
    assert_eq!(bits("prmt.b32 %r9, 0x33221100, 0x77665544, 0x7250;"), 0x7722_5500);
    assert_eq!(bits("prmt.b32 %r9, 0x00008000, 0, 0x9999;"), u32::MAX);
    assert_eq!(bits("brev.b32 %r9, 1;") + bits("popc.b32 %r9, 0xff;") + bits("clz.b32 %r9, 1;"), (1 << 31) + 8 + 31);
    assert_eq!(bits("bfind.u32 %r9, 0x100;"), 8);
    assert_eq!(bits("not.b32 %r1, 0; xor.b32 %r9, %r1, 0xff;"), 0xffff_ff00);
}

#[test]
fn conversions() {
    let to_int = |op: &str, x: f32| bits(&format!("{op} %r9, 0f{:08X};", x.to_bits()));
    assert_eq!(to_int("cvt.rni.s32.f32", 2.5), 2);
    assert_eq!(to_int("cvt.rzi.s32.f32", -2.9), -2i32 as u32);
    assert_eq!(to_int("cvt.rmi.s32.f32", -2.1), -3i32 as u32);
    assert_eq!(to_int("cvt.rpi.s32.f32", 2.1), 3);
    assert_eq!(to_int("cvt.rni.s32.f32", 1e20), i32::MAX as u32);
    assert_eq!(to_int("cvt.rni.u32.f32", -5.0), 0);
    assert_eq!(to_int("cvt.rni.s32.f32", f32::NAN), 0);
    assert_eq!(bits("cvt.rn.f32.u32 %f1, 0xffffffff; mov.b32 %r9, %f1;"), b(4294967295u32 as f32));
    assert_eq!(bits("cvt.rz.f32.u32 %f1, 0xffffffff; mov.b32 %r9, %f1;"), b(4294967040.0));
    assert_eq!(bits("cvt.rn.f32.s64 %f1, -3; mov.b32 %r9, %f1;"), b(-3.0));
    assert_eq!(bits("cvt.s32.s8 %r9, 0xff;"), u32::MAX);
    assert_eq!(bits("mov.u32 %r1, 0x1ff; cvt.u32.u8 %r9, %r1;"), 0xff);
    assert_eq!(bits("cvt.sat.u8.s32 %r9, -4;"), 0);
    assert_eq!(wide("cvt.s64.s32 %rd9, -4;"), -4i64 as u64);
    assert_eq!(bits("cvt.rn.f32.f64 %f1, 0.1; mov.b32 %r9, %f1;"), b(0.1));
    assert_eq!(bits("cvt.rni.f32.f32 %f1, 2.5; mov.b32 %r9, %f1;"), b(2.0));
}

#[test]
fn conversions_of_halves() {
    assert_eq!(bits("mov.f32 %f1, 1.0; mov.f32 %f2, -2.0; cvt.rn.bf16x2.f32 %r9, %f1, %f2;"), 0x3f80_c000);
    assert_eq!(bits("mov.f32 %f1, 1.0; mov.f32 %f2, 65520.0; cvt.rn.f16x2.f32 %r9, %f1, %f2;"), 0x3c00_7c00);
    assert_eq!(bits("cvt.rn.bf16.f32 %h1, 0f3F808000; cvt.u32.u16 %r9, %h1;"), 0x3f80);
    assert_eq!(bits("cvt.rn.bf16.f32 %h1, 0f3F818000; cvt.u32.u16 %r9, %h1;"), 0x3f82);
    assert_eq!(bits("cvt.rn.f16.f32 %h1, 0f33800001; cvt.u32.u16 %r9, %h1;"), 1);
    assert_eq!(bits("cvt.rn.f16.f32 %h1, 0f33000000; cvt.u32.u16 %r9, %h1;"), 0);
    assert_eq!(bits("mov.b16 %h1, 0x0001; cvt.f32.f16 %f1, %h1; mov.b32 %r9, %f1;"), b(2f32.powi(-24)));
    assert_eq!(bits("cvt.rna.tf32.f32 %r9, 0f3F801000;"), 0x3f80_2000);
}

#[test]
fn every_half_survives_f32() {
    let body = "mov.u32 %r1, %t; mov.u32 %r8, 0;
    l: mov.b32 {%h1, %h2}, %r1; cvt.f32.f16 %f1, %h1; cvt.rn.f16.f32 %h3, %f1; setp.ne.b16 %p1, %h3, %h1;
        abs.f16 %h4, %h1; setp.gt.u16 %p2, %h4, 0x7c00; not.pred %p3, %p2; and.pred %p1, %p1, %p3; @%p1 add.u32 %r8, %r8, 1;
        add.u32 %r1, %r1, 1024; setp.lt.u32 %p1, %r1, 0x10000; @%p1 bra l;
        st.global.u32 [%out], %r8;";
    // All threads write the same word: one that found a difference might be overwritten, so let thread 0 alone speak for each launch.
    let each = body.replace("[%out]", "[%o]");
    let mut out = Buffer::zeros(4096);
    launch(&kernel(&each), 1, 1024, 0, &mut out, &mut Buffer::zeros(16)).unwrap();
    assert!(out.u32s().iter().all(|&x| x == 0));
}

#[test]
fn comparisons() {
    let holds = |op: &str, x: f32, y: f32| {
        bits(&format!("setp.{op}.f32 %p1|%p2, 0f{:08X}, 0f{:08X}; selp.u32 %r9, 1, 0, %p1; @%p2 add.u32 %r9, %r9, 2;", b(x), b(y)))
    };
    for op in ["eq", "ne", "lt", "le", "gt", "ge", "num"] {
        assert_eq!(holds(op, f32::NAN, 1.0), 2, "{op}");
    }
    for op in ["equ", "neu", "ltu", "leu", "gtu", "geu", "nan"] {
        assert_eq!(holds(op, f32::NAN, 1.0), 1, "{op}");
    }
    assert_eq!((holds("lt", 1.0, 2.0), holds("ge", 1.0, 2.0), holds("neu", 1.0, 2.0), holds("equ", 1.0, 2.0)), (1, 2, 1, 2));
    assert_eq!(bits("setp.lt.s32 %p1, -1, 1; selp.u32 %r9, 1, 0, %p1;"), 1);
    assert_eq!(bits("setp.lo.u32 %p1, -1, 1; selp.u32 %r9, 1, 0, %p1;"), 0);
    assert_eq!(bits("setp.eq.u32 %p1, 0, 1; setp.eq.and.u32 %p2|%p3, 1, 1, !%p1; selp.u32 %r9, 5, 6, %p2;"), 5);
    assert_eq!(bits("set.gt.u32.f32 %r9, 0f40000000, 0f3F800000;"), u32::MAX);
    assert_eq!(bits("slct.u32.s32 %r9, 5, 6, -1;"), 6);
    assert_eq!(bits("testp.subnormal.f32 %p1, 0f00000123; selp.u32 %r9, 1, 0, %p1;"), 1);
}

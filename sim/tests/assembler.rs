//! Which instructions are taken and which refused, as the assembler itself decides for sm_80.

mod common;
use common::HEAD;
use ptx_sim::Module;

fn parse(line: &str) -> Result<Module, String> {
    Module::parse(&format!(
        "{HEAD}.visible .entry k(.param .u64 out)\n{{\n.reg .b64 %rd<9>; .reg .b32 %r<10>; .reg .u32 %u<4>; .reg .f32 %f<9>;\n\
         .reg .b16 %h<9>; .reg .pred %p<9>; .reg .f16 %q<4>; .reg .f64 %d<4>;\n{line}\nret;\n}}\n"
    ))
}

#[test]
fn taken() {
    let lines = [
        "selp.f32 %f1, %f2, %f3, !%p1;",
        "and.pred %p1, %p2, !%p3;",
        "mov.pred %p1, !%p2;",
        "cvt.f32.bf16 %f1, %h1;",
        "and.b32 %u1, %r1, 1;",
        "rcp.approx.ftz.f64 %d1, %d2;",
        "cvt.f32.f16 %f1, %q1;",
        "ld.global.f32 %r1, [%rd1];",
        "ld.global.f32 %rd1, [%rd1];",
        "ld.global.b16 %r1, [%rd1];",
        "st.shared.f32 [%r1], 0f3F800000;",
        "vote.sync.ballot.b32 %r1, !%p1, -1;",
        "setp.lt.u32 %p1|_, %r1, 3;",
        "ld.global.b16 %q1, [%rd1];",
        "st.global.v2.b16 [%rd1], {%h1,%h2};",
        "shr.b32 %r1, %r2, 3;",
        "cvt.u16.u32 %h1, %r1;",
        "mov.b32 %f1, {%h1, %h2};",
        "ex2.approx.f16x2 %r1, %r2;",
        "max.ftz.f32 %f1, %f2, %f3;",
        "fma.rn.relu.bf16x2 %r1, %r2, %r3, %r1;",
        "st.global.b8 [%rd1], 3;",
        "ld.global.nc.L1::no_allocate.L2::128B.v4.f32 {%f1,%f2,%f3,%f4}, [%rd1];",
        "ld.global.L2::128B.v4.b32 {%f1,%f2,%f3,%f4}, [%rd1];",
        "mul.wide.u32 %rd1, %r1, -4;",
        "set.gt.u32.f32 %r9, %f1, %f2;",
        "fma.rn.f32 %f1, 2.0, 3.0, %f1;",
        "bar.sync %r1, %r2;",
        "ld.const.f32 %f1, [%rd1];",
        "shfl.sync.down.b32 %f1|%p1, %f2, 1, 31, -1;",
        "atom.add.u32 %r1, [%rd1], 1;",
        "cp.async.ca.shared.global [%r1], [%rd1], 16, %r2;",
    ];
    for line in lines {
        assert!(parse(line).is_ok(), "{:?}", parse(line).err());
    }
}

#[test]
fn refused() {
    let lines = [
        "mov.u32 %r1, %f1;",
        "mov.u32 %u1, %f1;",
        "mov.f32 %f1, %u1;",
        "add.bf16 %h1, %h2, %h3;",
        "mul.bf16x2 %r1, %r2, %r3;",
        "add.f32 %f1, %f2, 1;",
        "cvt.rn.f32.f32 %f1, %f2;",
        "mad.f32 %f1, %f2, %f3, %f1;",
        "ld.global.u32 %f1, [%rd1];",
        "st.global.u32 [%rd1], %f1;",
        "shl.b64 %rd1, %rd2, %rd3;",
        "mov.u64 %rd1, %tid.x;",
        "ex2.approx.ftz.f16x2 %r1, %r2;",
    ];
    for line in lines {
        assert!(parse(line).is_err(), "{line}");
    }
}

//! How fast the interpreter is: `cargo run --release --example speed`.

#[path = "../tests/common/mod.rs"]
mod common;
use common::*;
use std::time::Instant;

fn measure(name: &str, body: &str) {
    let text = kernel(&format!(
        "{{ .shared .align 16 .b8 buf[4096]; mov.u32 %r0, 0; mov.f32 %f1, 1.0; mov.f32 %f2, 0.5; mov.u32 %r5, buf; shl.b32 %r6, %t, 4;
        add.u32 %r6, %r6, %r5; st.shared.v4.f32 [%r6], {{%f1,%f2,%f1,%f2}};
        again: {body} add.u32 %r0, %r0, 1; setp.lt.u32 %p1, %r0, 2000; @%p1 bra again; }}"
    ));
    let (mut out, mut input) = (Buffer::zeros(4096), Buffer::zeros(4096));
    let start = Instant::now();
    let stats = launch(&text, 8, 256, 0, &mut out, &mut input).unwrap();
    let rate = stats.instructions as f64 / start.elapsed().as_secs_f64() / 1e6;
    println!("{name}: {rate:.0} million thread instructions a second");
}

fn main() {
    measure("fma", &"fma.rn.f32 %f1, %f1, %f2, %f2; ".repeat(20));
    measure("integer", &"mad.lo.s32 %r1, %r0, 3, %r0; xor.b32 %r2, %r1, 5; ".repeat(10));
    measure("ex2", &"ex2.approx.ftz.f32 %f3, %f2; ".repeat(20));
    measure("shared v4", &"ld.shared.v4.f32 {%f3,%f4,%f5,%f6}, [%r6]; st.shared.v4.f32 [%r6], {%f3,%f4,%f5,%f6}; ".repeat(10));
    measure("shared", &"ld.shared.f32 %f3, [%r6]; st.shared.f32 [%r6], %f3; ".repeat(10));
    measure("global", &"ld.global.f32 %f3, [%i]; st.global.f32 [%o], %f3; ".repeat(10));
    measure("shfl", &"shfl.sync.up.b32 %r1, %r0, 1, 0, -1; ".repeat(20));
}

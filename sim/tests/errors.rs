//! Each mistake that the interpreter must find, and near misses that it must let pass.

mod common;
use common::*;
use ptx_sim::Module;

const BUF: &str = ".shared .align 16 .b8 buf[256]; mov.u32 %r5, buf; shl.b32 %r6, %t, 2; add.u32 %r6, %r6, %r5;";

#[test]
fn out_of_bounds() {
    fails("st.global.u32 [%o+4096], %t;", 2, &[], "is out of bounds: 0 bytes past the end of the allocation");
    fails("ld.global.u32 %r1, [%in+-4];", 1, &[1], "bytes before the allocation");
    fails("mov.u64 %rd1, 0; ld.global.u32 %r1, [%rd1];", 1, &[1], "line 18 `mov.u64");
    fails(&format!("{BUF} st.shared.u32 [%r6+192], %t;"), 17, &[], "thread [16, 0, 0]");
    fails("ld.param.u64 %rd1, [in+8];", 1, &[], "there are 16 bytes of parameters");
    fails(".local .align 4 .b8 l[8]; st.local.u32 [l+8], %t;", 1, &[], "local memory has 8 bytes");
    fails("mov.u64 %rd1, 0x7f00000000000040; st.u32 [%rd1], %t;", 1, &[], "Shared access");
}

#[test]
fn misaligned() {
    fails("ld.global.u32 %r1, [%in+2];", 1, &[1, 2], "not aligned to 4 bytes");
    fails("ld.global.v2.u32 {%r1, %r2}, [%in+4];", 1, &[1, 2, 3], "not aligned to 8 bytes");
    fails(&format!("{BUF} st.shared.b64 [%r6], %rd1;"), 2, &[], "is read before it is written");
    fails(&format!("{BUF} st.shared.b64 [%r6], %out;"), 2, &[], "not aligned to 8 bytes");
}

#[test]
fn uninitialised() {
    fails("add.u32 %r1, %r2, 1;", 1, &[], "register %r2 is read before it is written");
    fails("setp.lt.u32 %p1, %t, 1; @%p1 mov.u32 %r1, 3; add.u32 %r1, %r1, 1;", 2, &[], "lane 1");
    fails("@%p1 mov.u32 %r1, 3;", 1, &[], "predicate %p1");
    fails(&format!("{BUF} ld.shared.u32 %r1, [%r6];"), 1, &[], "shared byte 0x0");
    fails(".local .align 4 .b8 l[8]; ld.local.u32 %r1, [l];", 1, &[], "local byte 0x0");
    fails("addc.u32 %r1, %t, %t;", 1, &[], "carry flag");
}

#[test]
fn races() {
    // The neighbour warp's word without a barrier.
    let cross = |sync: &str| format!("{BUF} st.shared.u32 [%r6], %t; {sync} xor.b32 %r1, %r6, 128; ld.shared.u32 %r2, [%r1];");
    fails(&cross("bar.warp.sync -1;"), 64, &[], "is read before it is written");
    assert!(try_run(&cross("bar.sync 0;"), 64, 0, &[]).is_ok());
    // A read of the neighbour lane's word.
    let inside = |sync: &str| format!("{BUF} st.shared.u32 [%r6], %t; {sync} xor.b32 %r1, %r6, 4; ld.shared.u32 %r2, [%r1];");
    fails(&inside(""), 32, &[], "race on shared byte");
    assert!(try_run(&inside("bar.warp.sync -1;"), 32, 0, &[]).is_ok());
    // A write after another warp's read, with only one barrier between two rounds.
    let rounds = |sync: &str| {
        format!(
            "{BUF} st.shared.u32 [%r6], %t; bar.sync 0; xor.b32 %r1, %r6, 128; ld.shared.u32 %r2, [%r1]; {sync} st.shared.u32 [%r6], %r2;"
        )
    };
    fails(&rounds(""), 64, &[], "race on shared byte");
    assert!(try_run(&rounds("bar.sync 0;"), 64, 0, &[]).is_ok());
    // All threads write one word: agreeing lanes of one store are let pass, warps are not.
    fails(&format!("{BUF} st.shared.u32 [%r5], %t;"), 32, &[], "with the write of thread 0");
    assert!(try_run(&format!("{BUF} st.shared.u32 [%r5], 7;"), 32, 0, &[]).is_ok());
    fails(&format!("{BUF} st.shared.u32 [%r5], 7;"), 64, &[], "race");
}

#[test]
fn a_named_barrier_orders_only_its_warps() {
    let body = |who: &str| {
        format!(
            "{BUF} mov.u32 %r8, 7; setp.ge.u32 %p1, %t, 32; setp.ge.u32 %p2, %t, 64; @%p2 bra third; @%p1 bra second;
            st.shared.u32 [%r6], %r8; bar.arrive 1, 64; bra end;
            second: bar.sync 1, 64; ld.shared.u32 %r1, [%r6+-128]; {who} bra end;
            third: bar.sync 2, 64; ld.shared.u32 %r1, [%r6+-256]; end:"
        )
    };
    assert!(try_run(&body("bar.arrive 2, 64;"), 96, 0, &[]).is_ok());
    fails(&body(""), 96, &[], "deadlock: warp 2 at barrier 2");
}

#[test]
fn asynchronous_copies_not_waited_for() {
    let body =
        |wait: &str| format!("{BUF} cp.async.ca.shared.global [%r6], [%i], 4; cp.async.commit_group; {wait} ld.shared.u32 %r1, [%r6];");
    fails(&body(""), 1, &[5], "was not waited for");
    fails(&body("cp.async.wait_group 1;"), 1, &[5], "was not waited for");
    assert!(try_run(&body("cp.async.wait_group 0;"), 1, 0, &[5]).is_ok());
    fails(&format!("{BUF} cp.async.cg.shared.global [%r6], [%i+0x40000000], 16;"), 1, &[5], "out of bounds");
    let other =
        format!("{BUF} cp.async.ca.shared.global [%r6], [%i], 4; cp.async.wait_all; xor.b32 %r1, %r6, 4; ld.shared.u32 %r2, [%r1];");
    fails(&other, 2, &[5, 6], "race");
}

#[test]
fn barriers() {
    fails("setp.lt.u32 %p1, %t, 3; @%p1 bar.sync 0;", 32, &[], "barrier reached by threads 0x00000007");
    fails("setp.lt.u32 %p1, %t, 3; @%p1 bra a; bar.sync 0; bra b; a: bar.sync 0; b:", 32, &[], "barrier reached by");
    fails("setp.lt.u32 %p1, %t, 32; @%p1 bra a; bar.sync 1; bra b; a: bar.sync 0; b:", 64, &[], "deadlock");
    // Threads that have left, or are about to, do not count.
    assert!(try_run("setp.lt.u32 %p1, %t, 3; @%p1 exit; bar.sync 0;", 40, 0, &[]).is_ok());
    assert!(try_run("setp.lt.u32 %p1, %t, 3; @%p1 bra end; bar.sync 0; end:", 40, 0, &[]).is_ok());
    assert!(try_run("setp.lt.u32 %p1, %t, 32; @%p1 exit; bar.sync 0;", 64, 0, &[]).is_ok());
}

#[test]
fn masks() {
    fails("shfl.sync.up.b32 %r1, %t, 1, 0, -1;", 31, &[], "names threads 0x80000000");
    fails("setp.lt.u32 %p1, %t, 3; @%p1 shfl.sync.up.b32 %r1, %t, 1, 0, -1;", 32, &[], "do not execute");
    fails("shfl.sync.idx.b32 %r1, %t, 9, 31, 0xff;", 8, &[], "lane 9, which does not take part");
    assert!(try_run("setp.lt.u32 %p1, %t, 4; @%p1 shfl.sync.bfly.b32 %r1, %t, 1, 3, 15;", 32, 0, &[]).is_ok());
}

#[test]
fn hangs_and_traps() {
    fails("trap;", 1, &[], "trap");
    let module = Module::parse(&kernel("l: bra l;")).unwrap();
    let launch = ptx_sim::Launch { entry: 0, grid: [1; 3], block: [1; 3], shared: 0, params: &[0; 16] };
    let e = ptx_sim::run_limited(&module, &launch, &Default::default(), 1000).unwrap_err();
    assert!(e.contains("seems to hang"), "{e}");
}

fn refused(body: &str, with: &str) {
    let e = Module::parse(&kernel(body)).err().expect("an error is expected");
    assert!(e.contains(with), "`{e}` does not contain `{with}`");
}

#[test]
fn text_that_is_refused() {
    refused("frobnicate.u32 %r1, %r2;", "instruction frobnicate is not supported");
    refused("add.u32.foo %r1, %r2, 1;", ".foo is not supported");
    refused("add.u32 %r1, %f2, 1;", "register %f2 of type F32");
    refused("add.f32 %f1, %f2, 1;", "cannot be an operand of type F32");
    refused("add.u32 %r1, %rd2, 1;", "%rd2");
    refused("add.u32 %r1, %r2;", "3 operands");
    refused("add.u32 %x, %r2, 1;", "%x is not declared");
    refused("add.u32 %r1, %r2, 1\nadd.u32 %r1, %r2, 1;", "';' is expected");
    refused("bra nowhere;", "label nowhere");
    refused("mul.u32 %r1, %r2, 3;", ".lo, .hi or .wide is missing");
    refused("cvt.f32.s32 %f1, %r1;", "needs .rn");
    refused("cvt.s32.f32 %r1, %f1;", "needs .rni");
    refused("atom.global.add.f32 %f1, [%o], %f2;", "float atomics are refused");
    refused("add.bf16 %h1, %h2, %h3;", "needs sm_90");
    refused("ld.global.u32 %r1, [out];", "out is not in Global memory");
    refused(".shared .b8 big[50000];", "48 KiB");
    let e = Module::parse(&kernel("\n\nadd.u32 %r1;")).err().unwrap();
    assert!(e.starts_with("line 20:") && e.ends_with("add.u32 %r1;"), "{e}");
}

#[test]
fn a_write_after_anothers_read() {
    let body = |sync: &str| {
        format!(
            "{BUF} st.shared.u32 [%r6], %t; bar.sync 0; setp.lt.u32 %p1, %t, 32; @%p1 ld.shared.u32 %r1, [%r5]; {sync}
            setp.eq.u32 %p2, %t, 32; @%p2 st.shared.u32 [%r5], %t;"
        )
    };
    fails(&body(""), 64, &[], "with the read of thread 31");
    assert!(try_run(&body("bar.sync 0;"), 64, 0, &[]).is_ok());
}

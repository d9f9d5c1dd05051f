//! What kernels seldom use: tables of branches, reductions at barriers, matches, generic addresses, shared atomics, polling.

mod common;
use common::*;

#[test]
fn branches_by_table() {
    let body = "table: .branchtargets a, b, c; rem.u32 %r1, %t, 3; brx.idx %r1, table;
        a: mov.u32 %r2, 10; bra end; b: mov.u32 %r2, 20; bra end; c: mov.u32 %r2, 30; end: st.global.u32 [%o], %r2;";
    let out = run_body(body, 32, &[]);
    assert!((0..32).all(|t| out[t] == 10 * (t as u32 % 3 + 1)));
}

#[test]
fn barriers_that_reduce() {
    let body =
        "setp.lt.u32 %p1, %t, 40; barrier.red.popc.u32 %r1, 0, %p1; barrier.red.or.pred %p2, 0, %p1; barrier.red.and.pred %p3, 0, %p1;
        selp.u32 %r2, 100, 0, %p2; selp.u32 %r3, 1000, 0, %p3; add.u32 %r1, %r1, %r2; add.u32 %r1, %r1, %r3; st.global.u32 [%o], %r1;";
    assert!(run_body(body, 64, &[])[..64].iter().all(|&x| x == 140));
}

#[test]
fn groups_of_a_warp() {
    // Two halves with masks of their own.
    let body = "setp.lt.u32 %p1, %t, 16; selp.b32 %r1, 0xffff, 0xffff0000, %p1; redux.sync.add.u32 %r2, %t, %r1;
        st.global.u32 [%o], %r2; and.b32 %r3, %t, 3; match.any.sync.b32 %r4, %r3, -1; st.global.u32 [%o+128], %r4;";
    let out = run_body(body, 32, &[]);
    assert_eq!((out[3], out[20]), (120, 376));
    assert_eq!(out[32 + 5], 0x2222_2222);
    fails("selp.b32 %r1, 1, 2, %p1;", 1, &[], "predicate");
    let cross = "setp.lt.u32 %p1, %t, 16; selp.b32 %r1, 0xffff, 0xffff0000, %p1; shfl.sync.bfly.b32 %r2, %t, 16, 31, %r1;";
    fails(cross, 32, &[], "does not take part");
}

#[test]
fn local_memory_is_each_threads_own() {
    let body = ".local .align 8 .b8 l[16]; mov.u64 %rd1, l; cvta.local.u64 %rd2, %rd1; st.local.u32 [%rd1+4], %t; st.u16 [%rd2+4], 7;
        ld.u32 %r1, [%rd2+4]; ld.local.s8 %r2, [l+4]; st.global.u32 [%o], %r1;";
    let out = run_body(body, 33, &[]);
    assert!(out[..33].iter().all(|&x| x == 7));
}

#[test]
fn shared_atomics_do_not_race() {
    let body = |sync: &str| {
        format!(
            ".shared .b32 n; setp.eq.u32 %p1, %t, 0; @%p1 st.shared.u32 [n], 0; bar.sync 0; atom.shared.inc.u32 %r1, [n], 1000; {sync}
            ld.shared.u32 %r2, [n]; st.global.u32 [%o], %r2;"
        )
    };
    assert!(run_body(&body("bar.sync 0;"), 96, &[])[..96].iter().all(|&x| x == 96));
    fails(&body(""), 96, &[], "race");
}

#[test]
fn a_warp_may_poll_for_another() {
    let body = "setp.ge.u32 %p1, %t, 32; @%p1 bra set; wait: ld.volatile.global.u32 %r1, [%out+8]; setp.eq.u32 %p2, %r1, 0; @%p2 bra wait;
        bra end; set: mov.u32 %r1, 5; st.volatile.global.u32 [%out+8], %r1; end:";
    assert_eq!(run_body(body, 64, &[])[2], 5);
}

#[test]
fn narrow_accesses_are_told_apart() {
    // Neighbouring halves belong to different threads; reading the whole word is a race, the own half is not.
    let head =
        ".shared .align 4 .b8 s[64]; mov.u32 %r1, s; shl.b32 %r2, %t, 1; add.u32 %r1, %r1, %r2; mov.b16 %h1, 9; st.shared.b16 [%r1], %h1;";
    assert!(try_run(&format!("{head} ld.shared.b16 %h2, [%r1];"), 32, 0, &[]).is_ok());
    fails(&format!("{head} and.b32 %r1, %r1, 0xfffffffc; ld.shared.b32 %r3, [%r1];"), 32, &[], "race");
}

#[test]
fn three_dimensional_launches() {
    let text = kernel(
        "mov.u32 %r1, %ctaid.y; mov.u32 %r2, %nctaid.x; mov.u32 %r3, %ctaid.x; mad.lo.u32 %r1, %r1, %r2, %r3;
        mov.u32 %r4, %tid.y; mov.u32 %r5, %ntid.x; mad.lo.u32 %r4, %r4, %r5, %t; mad.lo.u32 %r1, %r1, 6, %r4;
        mul.wide.u32 %rd1, %r1, 4; add.s64 %rd1, %out, %rd1; st.global.u32 [%rd1], %r1;",
    );
    let module = ptx_sim::Module::parse(&text).unwrap();
    let mut out = Buffer::zeros(36 * 4);
    let mut memory = ptx_sim::Memory::default();
    memory.register(out.addr(), out.bytes());
    assert!(memory.contains(out.addr() + 8, 4) && !memory.contains(out.addr() + 142, 4));
    let params: Vec<u8> = [out.addr(), 0].iter().flat_map(|x| x.to_le_bytes()).collect();
    let launch = ptx_sim::Launch { entry: module.entry("k").unwrap(), grid: [3, 2, 1], block: [3, 2, 1], shared: 0, params: &params };
    let stats = ptx_sim::run(&module, &launch, &memory).unwrap();
    assert_eq!(stats.blocks, 6);
    assert!(out.u32s().iter().enumerate().all(|(i, &x)| x == i as u32));
    memory.remove(out.addr());
    assert!(ptx_sim::run(&module, &launch, &memory).unwrap_err().contains("no allocation is registered"));
}

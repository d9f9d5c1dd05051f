//! Decoding of loads, stores, atomics and asynchronous copies.

use super::logic::{SINK, vector_dst};
use super::{Mods, Res, exactly};
use crate::ops::{AtomOp, Op, Space, Widen};
use crate::scope::{Arg, Func};
use crate::types::Ty;

/// Where shared and local memory lie among generic addresses: above all that a host hands out.
pub(crate) const SHARED_WINDOW: u64 = 0x7f00_0000_0000_0000;
pub(crate) const LOCAL_WINDOW: u64 = 0x7e00_0000_0000_0000;
pub(crate) const WINDOW: u64 = 1 << 32;

fn space(m: &mut Mods) -> Space {
    match m.take_any(&["param", "global", "shared", "shared::cta", "const", "local"]) {
        Some("param") => Space::Param,
        Some("global") => Space::Global,
        Some("const") => Space::Const,
        Some("local") => Space::Local,
        Some(_) => Space::Shared,
        None => Space::Generic,
    }
}

/// Suffixes that change nothing here: caching hints and the order of memory, which one thread at a time keeps anyway.
fn hints(m: &mut Mods) {
    const WORDS: [&str; 33] = [
        "weak",
        "volatile",
        "relaxed",
        "acquire",
        "release",
        "acq_rel",
        "cta",
        "gpu",
        "sys",
        "ca",
        "cg",
        "cs",
        "cv",
        "lu",
        "wb",
        "wt",
        "nc",
        "L1::evict_normal",
        "L1::evict_unchanged",
        "L1::evict_first",
        "L1::evict_last",
        "L1::no_allocate",
        "L2::64B",
        "L2::128B",
        "L2::256B",
        "L2::evict_first",
        "L2::evict_last",
        "L2::evict_normal",
        "cluster",
        "noftz",
        "unified",
        "mmio",
        "v1",
    ];
    while m.take_any(&WORDS).is_some() {}
}

fn count(m: &mut Mods) -> usize {
    match m.take_any(&["v2", "v4"]) {
        Some("v2") => 2,
        Some(_) => 4,
        None => 1,
    }
}

/// The elements of a vector operand, or the one operand.
fn elements(arg: &Arg, n: usize) -> Res<Vec<Arg>> {
    match (arg, n) {
        (Arg::List(l), n) if l.len() == n && n > 1 => Ok(l.clone()),
        (Arg::List(l), _) => Err(format!("a vector of {n} is expected, not of {}", l.len())),
        (a, 1) => Ok(vec![a.clone()]),
        _ => Err(format!("a vector of {n} in braces is expected")),
    }
}

/// At most 16 bytes move at once, and the packed types are not types of memory.
fn check(ty: Ty, n: usize) -> Res {
    if matches!(ty, Ty::Pred | Ty::F16x2 | Ty::Bf16 | Ty::Bf16x2 | Ty::Tf32 | Ty::F16) {
        return Err(format!("type {ty:?} cannot be loaded or stored; use the untyped one of its width"));
    }
    if ty.bytes() * n > 16 {
        return Err("a vector access moves at most 16 bytes".into());
    }
    Ok(())
}

pub(crate) fn ld(f: &mut Func, m: &mut Mods, args: &[Arg]) -> Res {
    hints(m);
    let (space, n, ty) = (space(m), count(m), m.ty()?);
    m.done()?;
    check(ty, n)?;
    let [d, a] = exactly(args)?;
    let mut to = [SINK; 4];
    let mut mask = ty.mask();
    for (to, x) in to.iter_mut().zip(elements(d, n)?) {
        let (slot, reg) = vector_dst(f, &x, ty, Ty::fits_wide)?;
        *to = slot;
        mask = reg.mask();
    }
    let addr = f.addr(a, space)?;
    f.emit(Op::Ld { space, bytes: ty.bytes() as u8, n: n as u8, d: to, addr, widen: Widen { signed: ty.signed(), mask } });
    Ok(())
}

pub(crate) fn st(f: &mut Func, m: &mut Mods, args: &[Arg]) -> Res {
    hints(m);
    let (space, n, ty) = (space(m), count(m), m.ty()?);
    m.done()?;
    check(ty, n)?;
    if matches!(space, Space::Const | Space::Param) {
        return Err(format!("{space:?} memory cannot be stored to"));
    }
    let [a, v] = exactly(args)?;
    let mut s = [SINK; 4];
    for (s, x) in s.iter_mut().zip(elements(v, n)?) {
        *s = f.src_by(&x, ty, Ty::fits_wide)?.0;
    }
    let addr = f.addr(a, space)?;
    f.emit(Op::St { space, bytes: ty.bytes() as u8, n: n as u8, s, addr });
    Ok(())
}

pub(crate) fn cvta(f: &mut Func, m: &mut Mods, args: &[Arg]) -> Res {
    use crate::alu::un;
    let to = m.take("to");
    let space = space(m);
    let ty = m.ty()?;
    m.done()?;
    if ty != Ty::U64 {
        return Err("cvta needs .u64 under 64-bit addresses".into());
    }
    let [d, a] = exactly(args)?;
    let (d, a) = (f.dst(d, ty)?, f.src(a, ty)?);
    let op = match (space, to) {
        (Space::Shared, false) => un!(|a| a.wrapping_add(SHARED_WINDOW)),
        (Space::Shared, true) => un!(|a| a.wrapping_sub(SHARED_WINDOW)),
        (Space::Local, false) => un!(|a| a.wrapping_add(LOCAL_WINDOW)),
        (Space::Local, true) => un!(|a| a.wrapping_sub(LOCAL_WINDOW)),
        (Space::Global | Space::Const, _) => un!(|a| a),
        _ => return Err(format!("cvta is not supported for {space:?} memory")),
    };
    f.emit(Op::Un { f: op, d, a });
    Ok(())
}

pub(crate) fn atom(f: &mut Func, red: bool, m: &mut Mods, args: &[Arg]) -> Res {
    hints(m);
    let space = space(m);
    let op = match m.any()? {
        "add" => AtomOp::Add,
        "inc" => AtomOp::Inc,
        "dec" => AtomOp::Dec,
        "cas" => AtomOp::Cas,
        "exch" => AtomOp::Exch,
        "max" => AtomOp::Max,
        "min" => AtomOp::Min,
        "and" => AtomOp::And,
        "or" => AtomOp::Or,
        "xor" => AtomOp::Xor,
        other => return Err(format!("atomic operation {other} is not supported")),
    };
    let ty = m.ty()?;
    m.done()?;
    if ty.float() {
        return Err("float atomics are refused: their result depends on the order of threads".into());
    }
    if ty.bytes() < 4 || !matches!(space, Space::Global | Space::Shared | Space::Generic) {
        return Err("atomics are of 32 or 64 bits, in global or shared memory".into());
    }
    let cas = matches!(op, AtomOp::Cas);
    if args.len() != 2 + !red as usize + cas as usize {
        return Err("the number of operands is wrong".into());
    }
    let (d, rest) = if red {
        (None, args)
    } else if args[0] == Arg::Word("_".into()) {
        (None, &args[1..])
    } else {
        (Some(f.dst(&args[0], ty)?), &args[1..])
    };
    let addr = f.addr(&rest[0], space)?;
    let b = f.src(&rest[1], ty)?;
    let c = if cas { f.src(&rest[2], ty)? } else { b };
    f.emit(Op::Atom { space, op, bytes: ty.bytes() as u8, signed: ty.signed(), d, addr, b, c });
    Ok(())
}

/// `cp.async…`
pub(crate) fn cp_async(f: &mut Func, m: &mut Mods, args: &[Arg]) -> Res {
    if !m.take("async") {
        return Err("only cp.async is supported".into());
    }
    if m.take("commit_group") {
        m.done()?;
        exactly::<0>(args)?;
        f.emit(Op::CpCommit);
        return Ok(());
    }
    if m.take("wait_all") {
        m.done()?;
        exactly::<0>(args)?;
        f.emit(Op::CpWait { keep: 0, all: true });
        return Ok(());
    }
    if m.take("wait_group") {
        m.done()?;
        let [Arg::Num(crate::lex::Num::Int(n))] = exactly::<1>(args)? else { return Err("wait_group needs a constant".into()) };
        f.emit(Op::CpWait { keep: *n as u32, all: false });
        return Ok(());
    }
    let cg = m.take("cg");
    if !cg && !m.take("ca") {
        return Err("cp.async needs .ca or .cg".into());
    }
    if m.take_any(&["shared", "shared::cta"]).is_none() || !m.take("global") {
        return Err("cp.async copies from .global to .shared".into());
    }
    hints(m);
    m.done()?;
    if args.len() != 3 && args.len() != 4 {
        return Err("the number of operands is wrong".into());
    }
    let Arg::Num(crate::lex::Num::Int(bytes)) = args[2] else { return Err("the size must be a constant".into()) };
    if !(bytes == 16 || (!cg && (bytes == 4 || bytes == 8))) {
        return Err("the size must be 16, or with .ca also 4 or 8".into());
    }
    let (dst, src) = (f.addr(&args[0], Space::Shared)?, f.addr(&args[1], Space::Global)?);
    let size = if let Some(a) = args.get(3) { Some(f.src(a, Ty::U32)?) } else { None };
    f.emit(Op::CpAsync { dst, src, bytes: bytes as u8, size });
    Ok(())
}

pub(crate) fn ldmatrix(f: &mut Func, m: &mut Mods, args: &[Arg]) -> Res {
    if !(m.take("sync") && m.take("aligned") && m.take("m8n8")) {
        return Err("ldmatrix needs .sync.aligned.m8n8".into());
    }
    let n = match m.take_any(&["x1", "x2", "x4"]) {
        Some("x1") => 1,
        Some("x2") => 2,
        Some(_) => 4,
        None => return Err("ldmatrix needs .x1, .x2 or .x4".into()),
    };
    let trans = m.take("trans");
    if m.take_any(&["shared", "shared::cta"]).is_none() {
        return Err("ldmatrix is supported from .shared only".into());
    }
    let ty = m.ty()?;
    m.done()?;
    if ty != Ty::B16 {
        return Err("ldmatrix needs .b16".into());
    }
    let [d, a] = exactly(args)?;
    let Arg::List(list) = d else { return Err("a vector in braces is expected".into()) };
    if list.len() != n {
        return Err(format!("a vector of {n} is expected"));
    }
    let mut to = [SINK; 4];
    for (to, x) in to.iter_mut().zip(list) {
        *to = f.dst(x, Ty::B32)?;
    }
    let addr = f.addr(a, Space::Shared)?;
    f.emit(Op::LdMatrix { n: n as u8, trans, d: to, addr });
    Ok(())
}

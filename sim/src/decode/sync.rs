//! Decoding of control flow, barriers, exchanges between lanes and matrix products.

use super::{Mods, Res, exactly};
use crate::ops::{AtomOp, MmaShape, Op, ShflMode, Slot, VoteMode};
use crate::scope::{Arg, Func};
use crate::types::Ty;

/// Instructions with no effect here: prefetches, fences, sleeps.
pub(crate) fn nothing(f: &mut Func) -> Res {
    f.emit(Op::Nop);
    Ok(())
}

pub(crate) fn control(f: &mut Func, name: &str, m: &mut Mods, args: &[Arg]) -> Res {
    m.take("uni");
    if name == "brx" && !m.take("idx") {
        return Err("only brx.idx is supported".into());
    }
    m.done()?;
    match name {
        "bra" => {
            let [Arg::Word(label)] = exactly::<1>(args)? else { return Err("a label is expected".into()) };
            f.jump(label, 0);
            f.emit(Op::Bra { target: 0 });
        }
        "brx" => {
            let [index, Arg::Word(table)] = exactly::<2>(args)? else { return Err("a list of labels is expected".into()) };
            let index = f.src(index, Ty::U32)?;
            let list = f.tables.get(table).cloned().ok_or(format!("{table} is not a list of labels declared above"))?;
            for (case, label) in list.iter().enumerate() {
                f.jump(label, case);
            }
            f.emit(Op::BrxIdx { index, targets: vec![0; list.len()].into() });
        }
        "trap" => f.emit(Op::Trap),
        _ => f.emit(Op::Exit),
    }
    Ok(())
}

pub(crate) fn barrier(f: &mut Func, m: &mut Mods, args: &[Arg]) -> Res {
    m.take_any(&["cta"]);
    if m.take("warp") {
        if !m.take("sync") {
            return Err("bar.warp needs .sync".into());
        }
        m.done()?;
        let [mask] = exactly(args)?;
        let mask = f.src(mask, Ty::B32)?;
        f.emit(Op::WarpSync { mask });
        return Ok(());
    }
    let kind = m.take_any(&["sync", "arrive", "red"]).ok_or("a barrier needs .sync, .arrive or .red")?;
    m.take("aligned");
    if kind == "red" {
        return barrier_red(f, m, args);
    }
    m.done()?;
    let arrive = kind == "arrive";
    if args.is_empty() || args.len() > 2 || (arrive && args.len() != 2) {
        return Err("the number of operands is wrong".into());
    }
    let id = f.src(&args[0], Ty::U32)?;
    let count = if let Some(c) = args.get(1) { Some(f.src(c, Ty::U32)?) } else { None };
    f.emit(Op::Bar { id, count, arrive });
    Ok(())
}

fn barrier_red(f: &mut Func, m: &mut Mods, args: &[Arg]) -> Res {
    let op = match m.take_any(&["popc", "and", "or"]) {
        Some("popc") => VoteMode::Ballot,
        Some("and") => VoteMode::All,
        Some(_) => VoteMode::Any,
        None => return Err("barrier.red needs .popc, .and or .or".into()),
    };
    let ty = m.ty()?;
    m.done()?;
    if args.len() != 3 && args.len() != 4 {
        return Err("the number of operands is wrong".into());
    }
    let d = match (ty, op) {
        (Ty::U32, VoteMode::Ballot) => f.dst(&args[0], ty)?,
        (Ty::Pred, VoteMode::All | VoteMode::Any) => f.pred_dst(&args[0])?.ok_or("a predicate is expected")?,
        _ => return Err("the type does not fit the operation".into()),
    };
    let id = f.src(&args[1], Ty::U32)?;
    let count = if args.len() == 4 { Some(f.src(&args[2], Ty::U32)?) } else { None };
    let src = f.pred(&args[args.len() - 1])?;
    f.emit(Op::BarRed { op, id, count, src, d });
    Ok(())
}

fn must_sync(m: &mut Mods) -> Res {
    if m.take("sync") { Ok(()) } else { Err("only the .sync form is supported".into()) }
}

pub(crate) fn shfl(f: &mut Func, m: &mut Mods, args: &[Arg]) -> Res {
    must_sync(m)?;
    let mode = match m.take_any(&["up", "down", "bfly", "idx"]) {
        Some("up") => ShflMode::Up,
        Some("down") => ShflMode::Down,
        Some("bfly") => ShflMode::Bfly,
        Some(_) => ShflMode::Idx,
        None => return Err("shfl needs .up, .down, .bfly or .idx".into()),
    };
    let ty = m.ty()?;
    m.done()?;
    if ty != Ty::B32 {
        return Err("shfl needs .b32".into());
    }
    let [d, a, b, c, mask] = exactly(args)?;
    let (d, p) = match d {
        Arg::Or(d, p) => (f.dst(d, ty)?, f.pred_dst(p)?),
        d => (f.dst(d, ty)?, None),
    };
    let (a, b, c, mask) = (f.src(a, ty)?, f.src(b, ty)?, f.src(c, ty)?, f.src(mask, ty)?);
    f.emit(Op::Shfl { mode, d, p, a, b, c, mask });
    Ok(())
}

pub(crate) fn vote(f: &mut Func, m: &mut Mods, args: &[Arg]) -> Res {
    must_sync(m)?;
    let mode = match m.take_any(&["all", "any", "uni", "ballot"]) {
        Some("all") => VoteMode::All,
        Some("any") => VoteMode::Any,
        Some("uni") => VoteMode::Uni,
        Some(_) => VoteMode::Ballot,
        None => return Err("vote needs .all, .any, .uni or .ballot".into()),
    };
    let ty = m.ty()?;
    m.done()?;
    let [d, src, mask] = exactly(args)?;
    let d = match (mode, ty) {
        (VoteMode::Ballot, Ty::B32) => f.dst(d, ty)?,
        (VoteMode::All | VoteMode::Any | VoteMode::Uni, Ty::Pred) => f.pred_dst(d)?.ok_or("a predicate is expected")?,
        _ => return Err("the type does not fit the vote".into()),
    };
    let (src, mask) = (f.pred(src)?, f.src(mask, Ty::B32)?);
    f.emit(Op::Vote { mode, d, src, mask });
    Ok(())
}

pub(crate) fn matching(f: &mut Func, m: &mut Mods, args: &[Arg]) -> Res {
    let all = m.take("all");
    if !all && !m.take("any") {
        return Err("match needs .any or .all".into());
    }
    must_sync(m)?;
    let ty = m.ty()?;
    m.done()?;
    let [d, a, mask] = exactly(args)?;
    let (d, p) = match d {
        Arg::Or(d, p) if all => (f.dst(d, Ty::B32)?, f.pred_dst(p)?),
        d => (f.dst(d, Ty::B32)?, None),
    };
    let (a, mask) = (f.src(a, ty)?, f.src(mask, Ty::B32)?);
    f.emit(Op::Match { all, d, p, a, mask });
    Ok(())
}

pub(crate) fn redux(f: &mut Func, m: &mut Mods, args: &[Arg]) -> Res {
    must_sync(m)?;
    let op = match m.any()? {
        "add" => AtomOp::Add,
        "min" => AtomOp::Min,
        "max" => AtomOp::Max,
        "and" => AtomOp::And,
        "or" => AtomOp::Or,
        "xor" => AtomOp::Xor,
        other => return Err(format!("redux.{other} is not supported")),
    };
    let ty = m.ty()?;
    m.done()?;
    let bitwise = matches!(op, AtomOp::And | AtomOp::Or | AtomOp::Xor);
    if !matches!((ty, bitwise), (Ty::U32 | Ty::S32, false) | (Ty::B32, true)) {
        return Err(format!("redux is not supported for type {ty:?}"));
    }
    let [d, a, mask] = exactly(args)?;
    let (d, a, mask) = (f.dst(d, ty)?, f.src(a, ty)?, f.src(mask, Ty::B32)?);
    f.emit(Op::Redux { op, signed: ty.signed(), d, a, mask });
    Ok(())
}

pub(crate) fn activemask(f: &mut Func, m: &mut Mods, args: &[Arg]) -> Res {
    let ty = m.ty()?;
    m.done()?;
    let [d] = exactly(args)?;
    let d = f.dst(d, ty)?;
    f.emit(Op::ActiveMask { d });
    Ok(())
}

/// Registers in each of the four operands of a matrix product.
pub(crate) fn mma_registers(shape: MmaShape) -> [usize; 4] {
    match shape {
        MmaShape::Half16 => [4, 4, 2, 4],
        MmaShape::Half8 => [4, 2, 1, 4],
        MmaShape::Tf8 => [4, 4, 2, 4],
        MmaShape::Tf4 => [4, 2, 1, 4],
        MmaShape::Double => [2, 1, 1, 2],
    }
}

pub(crate) fn mma(f: &mut Func, m: &mut Mods, args: &[Arg]) -> Res {
    if !(m.take("sync") && m.take("aligned")) {
        return Err("mma needs .sync.aligned".into());
    }
    let size = m.take_any(&["m16n8k16", "m16n8k8", "m16n8k4", "m8n8k4"]).ok_or("this shape of mma is not supported")?;
    if !(m.take("row") && m.take("col")) {
        return Err("mma needs .row.col".into());
    }
    let (td, ta, tb, tc) = (m.ty()?, m.ty()?, m.ty()?, m.ty()?);
    m.done()?;
    let shape = match (size, ta) {
        ("m16n8k16", Ty::F16 | Ty::Bf16) => MmaShape::Half16,
        ("m16n8k8", Ty::F16 | Ty::Bf16) => MmaShape::Half8,
        ("m16n8k8", Ty::Tf32) => MmaShape::Tf8,
        ("m16n8k4", Ty::Tf32) => MmaShape::Tf4,
        ("m8n8k4", Ty::F64) => MmaShape::Double,
        _ => return Err(format!("mma {size} is not supported for type {ta:?}")),
    };
    let acc = if shape == MmaShape::Double { Ty::F64 } else { Ty::F32 };
    if ta != tb || td != acc || tc != acc {
        return Err("these types of mma are not supported together".into());
    }
    let [nd, na, nb, nc] = mma_registers(shape);
    let part = if acc == Ty::F64 { Ty::F64 } else { Ty::B32 };
    let [d, a, b, c] = exactly(args)?;
    let list = |x: &Arg, n: usize| match x {
        Arg::List(l) if l.len() == n => Ok(l.clone()),
        x if n == 1 && !matches!(x, Arg::List(_)) => Ok(vec![x.clone()]),
        _ => Err(format!("a vector of {n} is expected")),
    };
    let mut to = [0 as Slot; 4];
    for (to, x) in to.iter_mut().zip(list(d, nd)?) {
        *to = f.dst(&x, acc)?;
    }
    let mut from = [[0 as Slot; 4]; 3];
    for (from, (x, n, ty)) in from.iter_mut().zip([(a, na, part), (b, nb, part), (c, nc, acc)]) {
        for (s, x) in from.iter_mut().zip(list(x, n)?) {
            *s = f.src(&x, ty)?;
        }
    }
    let [a, b, c] = from;
    f.emit(Op::Mma { shape, bf16: ta == Ty::Bf16, d: to, a, b: [b[0], b[1]], c });
    Ok(())
}

//! Decoding of moves, bit operations, comparisons and selections.

use super::{Mods, Res, exactly};
use crate::alu::{bit_bin, bit_un, find_bin, int_cmp, int_quad, int_ter};
use crate::alu_float::{float_cmp, test_cmp};
use crate::ops::{CmpF, Guard, Join, Op, Slot};
use crate::scope::{Arg, Func, Sym};
use crate::types::Ty;

/// The slot that stands for the sink `_` in a vector operand.
pub(crate) const SINK: Slot = u32::MAX;

pub(crate) fn bits(f: &mut Func, name: &str, m: &mut Mods, args: &[Arg]) -> Res {
    let mut full = name.to_string();
    if name == "shf" {
        let (dir, mode) = (m.any()?, m.any()?);
        full = format!("shf.{dir}.{mode}");
    }
    if name == "bfind" && m.take("shiftamt") {
        full = "bfind.shiftamt".into();
    }
    let ty = m.ty()?;
    m.done()?;
    let bad = || format!("{full} is not supported for type {ty:?}");
    if ty == Ty::Pred {
        return pred_logic(f, name, args);
    }
    let needs_sign = matches!(name, "bfind" | "bfe");
    if needs_sign != ty.int() && name != "shr" {
        return Err(bad());
    }
    match name {
        "not" | "cnot" | "popc" | "clz" | "brev" | "bfind" => {
            let op = if name == "bfind" { find_bin(&full, ty) } else { bit_un(name, ty.bits()) }.ok_or_else(bad)?;
            let [d, a] = exactly(args)?;
            let to = if matches!(name, "popc" | "clz" | "bfind") { Ty::U32 } else { ty };
            let (d, a) = (f.dst(d, to)?, f.src(a, ty)?);
            f.emit(Op::Un { f: op, d, a });
        }
        "and" | "or" | "xor" | "shl" | "shr" => {
            let op = bit_bin(name, ty).ok_or_else(bad)?;
            let [d, a, b] = exactly(args)?;
            let second = if name.starts_with("sh") { Ty::U32 } else { ty };
            let (d, a, b) = (f.dst(d, ty)?, f.src(a, ty)?, f.src(b, second)?);
            f.emit(Op::Bin { f: op, d, a, b });
        }
        "bfe" | "prmt" | "shf" => {
            let op = int_ter(&full, ty).filter(|_| name == "bfe" || ty == Ty::B32).ok_or_else(bad)?;
            let [d, a, b, c] = exactly(args)?;
            let second = if name == "bfe" { Ty::U32 } else { ty };
            let (d, a, b, c) = (f.dst(d, ty)?, f.src(a, ty)?, f.src(b, second)?, f.src(c, Ty::U32)?);
            f.emit(Op::Ter { f: op, d, a, b, c });
        }
        _ => {
            let op = int_quad(name, ty.bits()).ok_or_else(bad)?;
            let [d, a, b, c, e] = exactly(args)?;
            let rest = if name == "bfi" { Ty::U32 } else { ty };
            let s = [f.src(a, ty)?, f.src(b, ty)?, f.src(c, rest)?, f.src(e, Ty::U32)?];
            let d = f.dst(d, ty)?;
            f.emit(Op::Quad { f: op, d, s });
        }
    }
    Ok(())
}

fn pred_logic(f: &mut Func, name: &str, args: &[Arg]) -> Res {
    let d = f.pred_dst(args.first().ok_or("operands are missing")?)?.ok_or("the sink _ is not a destination here")?;
    let join = match name {
        "and" | "not" => Join::And,
        "or" => Join::Or,
        "xor" => Join::Xor,
        _ => return Err(format!("{name} is not supported for predicates")),
    };
    let mut a = f.pred(args.get(1).ok_or("operands are missing")?)?;
    let b = if name == "not" {
        exactly::<2>(args)?;
        a.neg = !a.neg;
        a
    } else {
        f.pred(&exactly::<3>(args)?[2])?
    };
    f.emit(Op::Pred { d, a, b, join });
    Ok(())
}

fn comparison(op: &str, ty: Ty, ftz: bool) -> Res<CmpF> {
    let f = if ty.float() { float_cmp(op, ty, ftz) } else { int_cmp(op, ty).filter(|_| !ftz) };
    f.ok_or_else(|| format!("comparison {op} is not supported for type {ty:?} with these suffixes"))
}

fn joined(f: &mut Func, how: Option<&str>, arg: Option<&Arg>) -> Res<Option<(Join, Guard)>> {
    let join = match how {
        Some("and") => Join::And,
        Some("or") => Join::Or,
        Some(_) => Join::Xor,
        None => return Ok(None),
    };
    Ok(Some((join, f.pred(arg.ok_or("the predicate operand is missing")?)?)))
}

pub(crate) fn setp(f: &mut Func, m: &mut Mods, args: &[Arg]) -> Res {
    let op = m.any()?;
    let how = m.take_any(&["and", "or", "xor"]);
    let ftz = m.take("ftz");
    let ty = m.ty()?;
    m.done()?;
    if args.len() != 3 + how.is_some() as usize {
        return Err("the number of operands is wrong".into());
    }
    let cmp = comparison(op, ty, ftz)?;
    let (p, q) = match &args[0] {
        Arg::Or(p, q) => (f.pred_dst(p)?, f.pred_dst(q)?),
        p => (f.pred_dst(p)?, None),
    };
    let (a, b) = (f.src(&args[1], ty)?, f.src(&args[2], ty)?);
    let join = joined(f, how, args.get(3))?;
    f.emit(Op::Setp { f: cmp, p, q, a, b, join });
    Ok(())
}

pub(crate) fn set(f: &mut Func, m: &mut Mods, args: &[Arg]) -> Res {
    let op = m.any()?;
    let how = m.take_any(&["and", "or", "xor"]);
    let ftz = m.take("ftz");
    let (to, ty) = (m.ty()?, m.ty()?);
    m.done()?;
    if args.len() != 3 + how.is_some() as usize {
        return Err("the number of operands is wrong".into());
    }
    let yes = match to {
        Ty::U32 | Ty::S32 => 0xffff_ffff,
        Ty::F32 => 1.0f32.to_bits() as u64,
        _ => return Err(format!("set is not supported into type {to:?}")),
    };
    let cmp = comparison(op, ty, ftz)?;
    let (d, a, b) = (f.dst(&args[0], to)?, f.src(&args[1], ty)?, f.src(&args[2], ty)?);
    let join = joined(f, how, args.get(3))?;
    f.emit(Op::Set { f: cmp, d, a, b, join, yes });
    Ok(())
}

pub(crate) fn testp(f: &mut Func, m: &mut Mods, args: &[Arg]) -> Res {
    let op = m.any()?;
    let ty = m.ty()?;
    m.done()?;
    let [p, a] = exactly(args)?;
    let cmp = test_cmp(op, ty).ok_or_else(|| format!("testp.{op} is not supported for type {ty:?}"))?;
    let (p, a) = (f.pred_dst(p)?, f.src(a, ty)?);
    f.emit(Op::Setp { f: cmp, p, q: None, a, b: a, join: None });
    Ok(())
}

pub(crate) fn select(f: &mut Func, name: &str, m: &mut Mods, args: &[Arg]) -> Res {
    m.take("ftz");
    let ty = m.ty()?;
    let [d, a, b, c] = exactly(args)?;
    let (d, a, b) = (f.dst(d, ty)?, f.src(a, ty)?, f.src(b, ty)?);
    if name == "selp" {
        m.done()?;
        let p = f.pred(c)?;
        f.emit(Op::Selp { d, a, b, p });
        return Ok(());
    }
    let by = m.ty()?;
    m.done()?;
    let op = int_ter(if by == Ty::F32 { "slct.f32" } else { "slct.s32" }, by).filter(|_| matches!(by, Ty::F32 | Ty::S32));
    let op = op.ok_or("slct needs .s32 or .f32 last")?;
    let c = f.src(c, by)?;
    f.emit(Op::Ter { f: op, d, a, b, c });
    Ok(())
}

pub(crate) fn mov(f: &mut Func, m: &mut Mods, args: &[Arg]) -> Res {
    let ty = m.ty()?;
    m.done()?;
    let [d, a] = exactly(args)?;
    if ty == Ty::Pred {
        let to = f.pred_dst(d)?.ok_or("the sink _ is not a destination here")?;
        let a = f.pred(a)?;
        f.emit(Op::Pred { d: to, a, b: a, join: Join::And });
        return Ok(());
    }
    match (d, a) {
        (Arg::List(list), _) => {
            let part = part(ty, list.len())?;
            let mut d = [SINK; 4];
            for (d, x) in d.iter_mut().zip(list) {
                *d = vector_dst(f, x, part, Ty::fits)?.0;
            }
            let a = f.src(a, ty)?;
            f.emit(Op::Split { d, n: list.len() as u8, bits: part.bits() as u8, a });
        }
        (_, Arg::List(list)) => {
            let part = part(ty, list.len())?;
            let mut s = [SINK; 4];
            for (s, x) in s.iter_mut().zip(list) {
                *s = f.src(x, part)?;
            }
            let d = f.dst(d, ty)?;
            f.emit(Op::Merge { d, s, n: list.len() as u8, bits: part.bits() as u8 });
        }
        _ => {
            if let Arg::Word(w) = a
                && let Ok(Sym::Shared(_) | Sym::Dynamic | Sym::Local(_) | Sym::Global(_) | Sym::Const(_) | Sym::Param(_)) = f.lookup(w)
                && (ty.float() || ty.bytes() < 4)
            {
                return Err(format!("the address of {w} does not fit type {ty:?}"));
            }
            let (d, a) = (f.dst(d, ty)?, f.src(a, ty)?);
            let op = bit_un("mov", ty.bits()).ok_or("mov is not supported for this type")?;
            f.emit(Op::Un { f: op, d, a });
        }
    }
    Ok(())
}

/// The element type of a packed move.
fn part(ty: Ty, n: usize) -> Res<Ty> {
    Ok(match (ty, n) {
        (Ty::B64, 2) => Ty::B32,
        (Ty::B64, 4) => Ty::B16,
        (Ty::B32, 2) => Ty::B16,
        _ => return Err(format!("mov of {n} parts is not supported for type {ty:?}")),
    })
}

/// An element of a vector destination, which may be the sink `_`.
pub(crate) fn vector_dst(f: &mut Func, arg: &Arg, ty: Ty, fits: fn(Ty, Ty) -> bool) -> Res<(Slot, Ty)> {
    match arg {
        Arg::Word(w) if w == "_" => Ok((SINK, ty)),
        _ => f.dst_by(arg, ty, fits),
    }
}

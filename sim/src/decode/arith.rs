//! Decoding of arithmetic and conversions.

use super::{Mods, Res, exactly};
use crate::alu::{int_bin, int_ter, int_un};
use crate::alu_float::{Style, float_bin, float_fma, float_un};
use crate::cvt::{Spec, packed};
use crate::float::Round;
use crate::ops::{CarryOp, Op, Slot};
use crate::scope::{Arg, Func};
use crate::types::Ty;

fn unsupported(name: &str, ty: Ty) -> String {
    format!("{name} is not supported for type {ty:?} with these suffixes")
}

/// Brain-float instructions that came only with a later architecture.
fn check_bf16(f: &Func, name: &str, ty: Ty) -> Res {
    if matches!(ty, Ty::Bf16 | Ty::Bf16x2) && matches!(name, "add" | "sub" | "mul" | "ex2" | "tanh") && f.outer.target < 90 {
        return Err(format!("{name} on bf16 needs sm_90"));
    }
    Ok(())
}

pub(crate) fn binary(f: &mut Func, name: &str, m: &mut Mods, args: &[Arg]) -> Res {
    let cc = m.take("cc");
    if cc || matches!(name, "addc" | "subc" | "madc") {
        return carry(f, name, cc, m, args);
    }
    // The product's part comes before the type, and an f32 `mul` has none.
    let part = m.take_any(&["lo", "hi", "wide"]);
    let (ftz, sat, nan, relu) = (m.take("ftz"), m.take("sat"), m.take("NaN"), m.take("relu"));
    let kind = m.take_any(&["approx", "full"]);
    let round = m.round();
    let ty = m.ty()?;
    m.done()?;
    if ty.float() {
        if part.is_some() {
            return Err("float products have no .lo, .hi or .wide".into());
        }
        let style = Style { round: round.unwrap_or(Round::Near), ftz, nan };
        return float(f, name, ty, style, (kind, round.is_some(), sat, relu), args);
    }
    if ftz || nan || relu || kind.is_some() || round.is_some() {
        return Err("float suffixes on an integer instruction".into());
    }
    int(f, name, part, ty, sat, args)
}

fn int(f: &mut Func, name: &str, part: Option<&str>, ty: Ty, sat: bool, args: &[Arg]) -> Res {
    let product = matches!(name, "mul" | "mad" | "mul24" | "mad24");
    if product != part.is_some() {
        return Err(format!("{name}: .lo, .hi or .wide is {}", if product { "missing" } else { "out of place" }));
    }
    if ty.untyped() {
        return Err(format!("{name} needs a signed or unsigned type"));
    }
    let full = part.map_or(name.to_string(), |p| format!("{name}.{p}"));
    let wide = if part == Some("wide") { double(ty)? } else { ty };
    if sat {
        return saturating(f, name, ty, args);
    }
    if let Some(op) = int_bin(&full, ty) {
        let [d, a, b] = exactly(args)?;
        let (d, a, b) = (f.dst(d, wide)?, f.src(a, ty)?, f.src(b, ty)?);
        f.emit(Op::Bin { f: op, d, a, b });
        return Ok(());
    }
    let op = int_ter(&full, ty).ok_or_else(|| unsupported(&full, ty))?;
    let [d, a, b, c] = exactly(args)?;
    let (d, a, b, c) = (f.dst(d, wide)?, f.src(a, ty)?, f.src(b, ty)?, f.src(c, wide)?);
    f.emit(Op::Ter { f: op, d, a, b, c });
    Ok(())
}

/// `add.sat.s32` and `sub.sat.s32`.
fn saturating(f: &mut Func, name: &str, ty: Ty, args: &[Arg]) -> Res {
    use crate::alu::bin;
    let op = match (name, ty) {
        ("add", Ty::S32) => bin!(|a, b| (a as i32).saturating_add(b as i32) as u32 as u64),
        ("sub", Ty::S32) => bin!(|a, b| (a as i32).saturating_sub(b as i32) as u32 as u64),
        _ => return Err(unsupported(&format!("{name}.sat"), ty)),
    };
    let [d, a, b] = exactly(args)?;
    let (d, a, b) = (f.dst(d, ty)?, f.src(a, ty)?, f.src(b, ty)?);
    f.emit(Op::Bin { f: op, d, a, b });
    Ok(())
}

fn double(ty: Ty) -> Res<Ty> {
    Ok(match ty {
        Ty::U16 => Ty::U32,
        Ty::S16 => Ty::S32,
        Ty::U32 => Ty::U64,
        Ty::S32 => Ty::S64,
        _ => return Err(format!(".wide is not supported for type {ty:?}")),
    })
}

fn float(f: &mut Func, name: &str, ty: Ty, style: Style, rest: (Option<&str>, bool, bool, bool), args: &[Arg]) -> Res {
    let (kind, rounded, sat, relu) = rest;
    check_bf16(f, name, ty)?;
    if (name == "fma" || name == "mad") && !rounded {
        return Err(format!("{name} on floats needs a rounding suffix"));
    }
    if name == "div" && !rounded && kind.is_none() {
        return Err("div on floats needs .rn, .approx or .full".into());
    }
    if ty == Ty::F64 && style.ftz {
        return Err(".ftz is for f32 only".into());
    }
    let d = if name == "fma" || name == "mad" {
        let op = float_fma(ty, style, relu).ok_or_else(|| unsupported(name, ty))?;
        let [d, a, b, c] = exactly(args)?;
        let (d, a, b, c) = (f.dst(d, ty)?, f.src(a, ty)?, f.src(b, ty)?, f.src(c, ty)?);
        f.emit(Op::Ter { f: op, d, a, b, c });
        d
    } else {
        if relu {
            return Err(".relu is for fma only".into());
        }
        let full = kind.map_or(name.to_string(), |k| format!("{name}.{k}"));
        let op = float_bin(&full, ty, style).ok_or_else(|| unsupported(&full, ty))?;
        let [d, a, b] = exactly(args)?;
        let (d, a, b) = (f.dst(d, ty)?, f.src(a, ty)?, f.src(b, ty)?);
        f.emit(Op::Bin { f: op, d, a, b });
        d
    };
    saturate(f, ty, sat, d)
}

/// `.sat` as an instruction of its own after the one it qualifies.
fn saturate(f: &mut Func, ty: Ty, sat: bool, d: Slot) -> Res {
    if sat {
        let op = float_un("sat", ty, false).ok_or_else(|| unsupported(".sat", ty))?;
        f.emit(Op::Un { f: op, d, a: d });
    }
    Ok(())
}

fn carry(f: &mut Func, name: &str, write: bool, m: &mut Mods, args: &[Arg]) -> Res {
    let part = m.take_any(&["lo", "hi"]);
    let ty = m.ty()?;
    m.done()?;
    if !matches!(ty, Ty::U32 | Ty::S32 | Ty::U64 | Ty::S64) {
        return Err(unsupported(name, ty));
    }
    let read = name.ends_with('c');
    let op = match (name.trim_end_matches('c'), part) {
        ("add", None) => CarryOp::Add,
        ("sub", None) => CarryOp::Sub,
        ("mad", Some("lo")) => CarryOp::MadLo,
        ("mad", Some("hi")) => CarryOp::MadHi,
        _ => return Err(unsupported(name, ty)),
    };
    let three = matches!(op, CarryOp::MadLo | CarryOp::MadHi);
    if args.len() != 3 + three as usize {
        return Err("the number of operands is wrong".into());
    }
    let (d, a, b) = (f.dst(&args[0], ty)?, f.src(&args[1], ty)?, f.src(&args[2], ty)?);
    let c = if three { Some(f.src(&args[3], ty)?) } else { None };
    f.emit(Op::Carry { op, wide: ty.bytes() == 8, signed: ty.signed(), read, write, d, a, b, c });
    Ok(())
}

pub(crate) fn unary(f: &mut Func, name: &str, m: &mut Mods, args: &[Arg]) -> Res {
    let (ftz, approx, round) = (m.take("ftz"), m.take("approx"), m.round());
    let ty = m.ty()?;
    m.done()?;
    let [d, a] = exactly(args)?;
    let (d, a) = (f.dst(d, ty)?, f.src(a, ty)?);
    if ty.int() {
        if ftz || approx || round.is_some() {
            return Err("float suffixes on an integer instruction".into());
        }
        let op = int_un(name, ty).ok_or_else(|| unsupported(name, ty))?;
        f.emit(Op::Un { f: op, d, a });
        return Ok(());
    }
    check_bf16(f, name, ty)?;
    let exact = matches!(name, "neg" | "abs");
    if !exact && !approx && round.is_none() {
        return Err(format!("{name} needs .approx or a rounding"));
    }
    if (exact && (approx || round.is_some())) || round.is_some_and(|r| r != Round::Near) {
        return Err(unsupported(name, ty));
    }
    if ty == Ty::F64 && name == "rcp" && approx && !ftz {
        return Err("rcp.approx.f64 needs .ftz".into());
    }
    if name == "ex2" && ftz != matches!(ty, Ty::Bf16 | Ty::Bf16x2) && ty != Ty::F32 {
        return Err("ex2 takes .ftz for bf16 and not for f16".into());
    }
    let full = if approx { format!("{name}.approx") } else { name.to_string() };
    let op = float_un(&full, ty, ftz && ty != Ty::F64).ok_or_else(|| unsupported(&full, ty))?;
    f.emit(Op::Un { f: op, d, a });
    Ok(())
}

pub(crate) fn cvt(f: &mut Func, m: &mut Mods, args: &[Arg]) -> Res {
    let integral = m.take_any(&["rni", "rzi", "rmi", "rpi"]).map(|r| match r {
        "rni" => Round::Near,
        "rzi" => Round::Zero,
        "rmi" => Round::Down,
        _ => Round::Up,
    });
    let (round, ftz, sat, relu) = (m.round(), m.take("ftz"), m.take("sat"), m.take("relu"));
    let (to, from) = (m.ty()?, m.ty()?);
    m.done()?;
    if to.untyped() || from.untyped() {
        return Err("cvt needs typed operands".into());
    }
    if matches!(to, Ty::F16x2 | Ty::Bf16x2) {
        let [d, a, b] = exactly(args)?;
        let round = round.ok_or("a rounding is missing")?;
        let op = packed(to, round, relu).filter(|_| from == Ty::F32 && !sat && !ftz).ok_or_else(|| unsupported("cvt", to))?;
        let (d, a, b) = (f.dst(d, Ty::B32)?, f.src(a, from)?, f.src(b, from)?);
        f.emit(Op::Bin { f: op, d, a, b });
        return Ok(());
    }
    check_cvt(f, to, from, round, integral)?;
    let [d, a] = exactly(args)?;
    let wide = if to == Ty::Tf32 { Ty::fits } else { Ty::fits_wide };
    let want = if to == Ty::Tf32 { Ty::B32 } else { to };
    let (d, reg) = f.dst_by(d, want, wide)?;
    let (a, _) = f.src_by(a, from, Ty::fits_wide)?;
    let spec = Spec { from, to, round: round.unwrap_or(Round::Near), integral, sat, ftz, relu, mask: reg.mask() };
    f.emit(Op::Cvt { spec, d, a });
    Ok(())
}

/// The assembler's rules on which conversions must, and must not, say how they round.
fn check_cvt(f: &Func, to: Ty, from: Ty, round: Option<Round>, integral: Option<Round>) -> Res {
    let bf16 = (from == Ty::Bf16 && to != Ty::F32) || (to == Ty::Bf16 && from != Ty::F32);
    if bf16 && f.outer.target < 90 {
        return Err(format!("cvt from {from:?} to {to:?} needs sm_90"));
    }
    if to == Ty::Tf32 {
        return if from == Ty::F32 && round == Some(Round::Away) { Ok(()) } else { Err("only cvt.rna.tf32.f32 is supported".into()) };
    }
    if round == Some(Round::Away) {
        return Err(".rna is for tf32 only".into());
    }
    let precision = |t: Ty| match t {
        Ty::Bf16 => 1,
        Ty::F16 => 1,
        Ty::F32 => 2,
        _ => 3,
    };
    match (from.float(), to.float()) {
        (true, false) if integral.is_none() => Err("float to integer needs .rni, .rzi, .rmi or .rpi".into()),
        (true, false) if round.is_some() => Err("float to integer takes no float rounding".into()),
        (false, true) if round.is_none() => Err("integer to float needs .rn, .rz, .rm or .rp".into()),
        (false, true) if integral.is_some() => Err("integer to float takes no integral rounding".into()),
        (true, true) if precision(to) < precision(from) && round.is_none() => Err("a narrowing needs .rn, .rz, .rm or .rp".into()),
        (true, true) if precision(to) >= precision(from) && round.is_some() => Err("a rounding on an exact conversion".into()),
        (true, true) if integral.is_some() && to != from => Err("integral rounding needs equal types".into()),
        (false, false) if round.is_some() || integral.is_some() => Err("integer conversions take no rounding".into()),
        _ => Ok(()),
    }
}

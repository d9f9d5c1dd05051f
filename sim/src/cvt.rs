//! Conversions between all types, through a value that holds either side exactly.

use crate::alu::bin;
use crate::float::*;
use crate::ops::{BinF, Lanes};
use crate::types::Ty;

/// What a conversion does; the decoder has checked that the parts go together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spec {
    pub(crate) from: Ty,
    pub(crate) to: Ty,
    /// Rounding into a float format.
    pub(crate) round: Round,
    /// Rounding to an integral value.
    pub(crate) integral: Option<Round>,
    pub(crate) sat: bool,
    pub(crate) ftz: bool,
    pub(crate) relu: bool,
    /// The destination register's bits.
    pub(crate) mask: u64,
}

/// Converts all lanes; the commonest conversions have loops of their own.
pub(crate) fn convert(s: &Spec, x: &Lanes, o: &mut Lanes) {
    if !s.from.float() && !s.to.float() {
        for (o, &x) in o.iter_mut().zip(x) {
            *o = int_to_int(s, x);
        }
    } else if s.from == Ty::S32 && s.to == Ty::F32 && s.round == Round::Near && !s.sat {
        for (o, &x) in o.iter_mut().zip(x) {
            *o = b(x as i32 as f32);
        }
    } else if s.from == Ty::F32 && s.to == Ty::F64 && !s.ftz && !s.sat {
        for (o, &x) in o.iter_mut().zip(x) {
            *o = (f(x) as f64).to_bits();
        }
    } else {
        for (o, &x) in o.iter_mut().zip(x) {
            *o = one(s, x);
        }
    }
}

/// A value of an integer type, sign- or zero-extended from its width.
#[inline(always)]
fn int_value(ty: Ty, x: u64) -> i128 {
    let shift = 64 - ty.bits();
    if ty.signed() { ((x << shift) as i64 >> shift) as i128 } else { (x & ty.mask()) as i128 }
}

fn limits(ty: Ty) -> (i128, i128) {
    let bits = ty.bits();
    if ty.signed() { (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1) } else { (0, (1i128 << bits) - 1) }
}

#[inline(always)]
fn int_to_int(s: &Spec, x: u64) -> u64 {
    let mut v = int_value(s.from, x);
    if s.sat {
        let (lo, hi) = limits(s.to);
        v = v.clamp(lo, hi);
    }
    int_value(s.to, v as u64) as u64 & s.mask
}

/// A float's exact value.
fn float_value(s: &Spec, x: u64) -> f64 {
    match s.from {
        Ty::F16 => from_f16(x as u16),
        Ty::Bf16 => from_bf16(x as u16),
        Ty::F32 if s.ftz => flush(f(x)) as f64,
        Ty::F32 => f(x) as f64,
        _ => d(x),
    }
}

fn integral(x: f64, mode: Round) -> f64 {
    match mode {
        Round::Near | Round::Away => x.round_ties_even(),
        Round::Zero => x.trunc(),
        Round::Down => x.floor(),
        Round::Up => x.ceil(),
    }
}

fn one(s: &Spec, x: u64) -> u64 {
    if !s.from.float() {
        return pack(s, int_to_odd(int_value(s.from, x)), Some(int_value(s.from, x)));
    }
    let mut v = float_value(s, x);
    if let Some(mode) = s.integral {
        v = integral(v, mode);
    }
    if s.to.float() {
        return pack(s, v, None);
    }
    let (lo, hi) = limits(s.to);
    let v = if v.is_nan() { 0 } else { (v as i128).clamp(lo, hi) };
    int_value(s.to, v as u64) as u64 & s.mask
}

/// An integer rounded to odd as f64, so that a later rounding to a shorter format is right.
fn int_to_odd(v: i128) -> f64 {
    let near = v as f64;
    odd(near, (v - near as i128) as f64)
}

/// Rounds a value into the destination's format.
fn pack(s: &Spec, v: f64, int: Option<i128>) -> u64 {
    let mut v = v;
    if s.relu && v < 0.0 {
        v = 0.0;
    }
    if s.sat {
        v = if v.is_nan() || v <= 0.0 { 0.0 } else { v.min(1.0) };
    }
    match s.to {
        Ty::F16 => narrow(v, s.round, F16) as u64,
        Ty::Bf16 => narrow(v, s.round, BF16) as u64,
        Ty::Tf32 => (narrow(v, s.round, TF32) as u64) << 13,
        Ty::F32 if s.ftz => b(flush(f32::from_bits(narrow(v, s.round, F32)))),
        Ty::F32 => narrow(v, s.round, F32) as u64,
        _ => match int {
            Some(i) => int_to_f64(i, s.round).to_bits(),
            None => v.to_bits(),
        },
    }
}

/// An integer as f64 in any rounding.
fn int_to_f64(v: i128, mode: Round) -> f64 {
    let near = v as f64;
    let back = near as i128;
    match mode {
        Round::Down if back > v => near.next_down(),
        Round::Up if back < v => near.next_up(),
        Round::Zero if back > v && v > 0 => near.next_down(),
        Round::Zero if back < v && v < 0 => near.next_up(),
        _ => near,
    }
}

/// `cvt.….f16x2.f32` and `cvt.….bf16x2.f32`: the first operand goes into the upper half.
pub(crate) fn packed(to: Ty, round: Round, relu: bool) -> Option<BinF> {
    macro_rules! two {
        ($round:expr, $fmt:expr, $relu:expr) => {
            bin!(|x, y| {
                let h = |v: u64| {
                    let v = f(v) as f64;
                    narrow(if $relu && v < 0.0 { 0.0 } else { v }, $round, $fmt) as u64
                };
                h(x) << 16 | h(y)
            })
        };
    }
    Some(match (to, round, relu) {
        (Ty::F16x2, Round::Near, false) => two!(Round::Near, F16, false),
        (Ty::F16x2, Round::Zero, false) => two!(Round::Zero, F16, false),
        (Ty::F16x2, Round::Near, true) => two!(Round::Near, F16, true),
        (Ty::F16x2, Round::Zero, true) => two!(Round::Zero, F16, true),
        (Ty::Bf16x2, Round::Near, false) => two!(Round::Near, BF16, false),
        (Ty::Bf16x2, Round::Zero, false) => two!(Round::Zero, BF16, false),
        (Ty::Bf16x2, Round::Near, true) => two!(Round::Near, BF16, true),
        (Ty::Bf16x2, Round::Zero, true) => two!(Round::Zero, BF16, true),
        _ => return None,
    })
}

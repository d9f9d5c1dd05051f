//! The float formats and roundings that Rust does not have: halves, brain floats, directed rounding, flushing.

/// How a result that does not fit is rounded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Round {
    Near,
    /// To nearest, ties away from zero (`.rna`).
    Away,
    Zero,
    Down,
    Up,
}

/// A binary float format with at most 32 bits.
#[derive(Clone, Copy)]
pub(crate) struct Format {
    pub(crate) exp: u32,
    pub(crate) man: u32,
}

pub(crate) const F16: Format = Format { exp: 5, man: 10 };
pub(crate) const BF16: Format = Format { exp: 8, man: 7 };
pub(crate) const F32: Format = Format { exp: 8, man: 23 };
pub(crate) const TF32: Format = Format { exp: 8, man: 10 };

/// The NaN that f32 instructions return.
pub(crate) const NAN32: u32 = 0x7fff_ffff;

/// Rounds to a narrower format; NaN becomes the all-ones NaN.
pub(crate) fn narrow(x: f64, mode: Round, fmt: Format) -> u32 {
    let sign = ((x.to_bits() >> 63) as u32) << (fmt.exp + fmt.man);
    let inf = ((1u32 << fmt.exp) - 1) << fmt.man;
    if x.is_nan() {
        return inf | ((1 << fmt.man) - 1);
    }
    if x.is_infinite() {
        return sign | inf;
    }
    if x == 0.0 {
        return sign;
    }
    let bits = x.to_bits() & !(1 << 63);
    let (e, m) = match (bits >> 52) as i32 {
        0 => (-1022, bits),
        e => (e - 1023, (bits & ((1 << 52) - 1)) | (1 << 52)),
    };
    let emin = 2 - (1i32 << (fmt.exp - 1));
    let shift = (e.max(emin) - fmt.man as i32 - (e - 52)) as u32;
    let (keep, rest, half) = if shift >= 63 { (0, 1, 2) } else { ((m >> shift) as u32, m & ((1u64 << shift) - 1), 1u64 << (shift - 1)) };
    let negative = sign != 0;
    let up = match mode {
        Round::Near => rest > half || (rest == half && keep & 1 == 1),
        Round::Away => rest >= half,
        Round::Zero => false,
        Round::Down => rest != 0 && negative,
        Round::Up => rest != 0 && !negative,
    };
    let base = if e >= emin { ((e - emin + 1) as u32).min(1 << fmt.exp) << fmt.man } else { 0 };
    let hidden = if e >= emin { 1u32 << fmt.man } else { 0 };
    let out = base + (keep - hidden) + up as u32;
    if out >= inf {
        let to_inf = match mode {
            Round::Near | Round::Away => true,
            Round::Zero => false,
            Round::Down => negative,
            Round::Up => !negative,
        };
        return sign | if to_inf { inf } else { inf - 1 };
    }
    sign | out
}

pub(crate) fn from_f16(h: u16) -> f64 {
    let sign = if h >> 15 == 1 { -1.0 } else { 1.0 };
    let (e, m) = ((h >> 10) & 31, (h & 1023) as f64);
    match e {
        0 => sign * m * f64::from_bits((1023 - 24) << 52),
        31 if m == 0.0 => sign * f64::INFINITY,
        31 => f64::NAN,
        _ => sign * (1.0 + m / 1024.0) * f64::from_bits((1023 - 15 + e as u64) << 52),
    }
}

pub(crate) fn from_bf16(h: u16) -> f64 {
    f32::from_bits((h as u32) << 16) as f64
}

pub(crate) fn to_f16(x: f64) -> u16 {
    narrow(x, Round::Near, F16) as u16
}

pub(crate) fn to_bf16(x: f64) -> u16 {
    narrow(x, Round::Near, BF16) as u16
}

/// A subnormal becomes a zero of its sign.
#[inline(always)]
pub(crate) fn flush(x: f32) -> f32 {
    if x.to_bits() & 0x7f80_0000 == 0 { f32::from_bits(x.to_bits() & 0x8000_0000) } else { x }
}

/// The f32 in a register.
#[inline(always)]
pub(crate) fn f(x: u64) -> f32 {
    f32::from_bits(x as u32)
}

/// The f64 in a register.
#[inline(always)]
pub(crate) fn d(x: u64) -> f64 {
    f64::from_bits(x)
}

/// An f32 result as register bits, with the one NaN that the hardware returns.
#[inline(always)]
pub(crate) fn b(x: f32) -> u64 {
    if x.is_nan() { NAN32 as u64 } else { x.to_bits() as u64 }
}

/// The sum rounded to odd, so that a second rounding to a shorter format is exact in every mode.
pub(crate) fn add_odd(x: f64, y: f64) -> f64 {
    let s = x + y;
    if !s.is_finite() {
        return s;
    }
    let t = s - x;
    let e = (x - (s - t)) + (y - t);
    odd(s, e)
}

/// Moves `s`, the nearest to an exact value that lies `e` further on, to the odd one of its two neighbours.
pub(crate) fn odd(s: f64, e: f64) -> f64 {
    if e == 0.0 || s.to_bits() & 1 == 1 {
        return s;
    }
    if (e > 0.0) == (s > 0.0) { f64::from_bits(s.to_bits() + 1) } else { f64::from_bits(s.to_bits() - 1) }
}

/// f32 `x * y + z` in any rounding.
pub(crate) fn fma32(x: f32, y: f32, z: f32, mode: Round) -> f32 {
    if mode == Round::Near {
        return x.mul_add(y, z);
    }
    let p = x as f64 * y as f64;
    let s = add_odd(p, z as f64);
    if s == 0.0 && p != 0.0 {
        // An exact cancellation: its sign depends on the mode.
        return if mode == Round::Down { -0.0 } else { 0.0 };
    }
    f32::from_bits(narrow(s, mode, F32))
}

/// f32 `x + y` in any rounding.
pub(crate) fn add32(x: f32, y: f32, mode: Round) -> f32 {
    if mode == Round::Near {
        return x + y;
    }
    let s = add_odd(x as f64, y as f64);
    if s == 0.0 && mode == Round::Down && !(x == 0.0 && y == 0.0 && x.is_sign_positive() && y.is_sign_positive()) {
        return -0.0;
    }
    f32::from_bits(narrow(s, mode, F32))
}

/// f32 `x * y` in any rounding.
pub(crate) fn mul32(x: f32, y: f32, mode: Round) -> f32 {
    if mode == Round::Near { x * y } else { f32::from_bits(narrow(x as f64 * y as f64, mode, F32)) }
}

/// The smaller of two; a NaN loses unless `nan`, and −0 is below +0.
#[inline(always)]
pub(crate) fn min32(x: f32, y: f32, nan: bool) -> f32 {
    if x.is_nan() || y.is_nan() {
        return if nan || (x.is_nan() && y.is_nan()) {
            f32::from_bits(NAN32)
        } else if x.is_nan() {
            y
        } else {
            x
        };
    }
    if x < y || (x == y && x.is_sign_negative()) { x } else { y }
}

#[inline(always)]
pub(crate) fn max32(x: f32, y: f32, nan: bool) -> f32 {
    -min32(-x, -y, nan)
}

pub(crate) fn min64(x: f64, y: f64, nan: bool) -> f64 {
    if x.is_nan() || y.is_nan() {
        return if nan || (x.is_nan() && y.is_nan()) {
            f64::NAN
        } else if x.is_nan() {
            y
        } else {
            x
        };
    }
    if x < y || (x == y && x.is_sign_negative()) { x } else { y }
}

pub(crate) fn max64(x: f64, y: f64, nan: bool) -> f64 {
    -min64(-x, -y, nan)
}

/// `div.approx.f32`, which returns zero where the divisor's reciprocal would be subnormal.
pub(crate) fn div_approx(x: f32, y: f32) -> f32 {
    if y.is_finite() && y.abs() >= f32::from_bits(0x7e80_0000) {
        let sign = if x.is_sign_negative() != y.is_sign_negative() { -0.0 } else { 0.0 };
        return if x.is_infinite() || x.is_nan() { f32::NAN } else { sign };
    }
    x / y
}

//! Float arithmetic: for each opcode, type, rounding and flushing, a loop over the lanes of a warp.

use crate::alu::{bin, cmp, ter, un};
use crate::float::*;
use crate::ops::{BinF, CmpF, TerF, UnF};
use crate::types::Ty;

/// An f32 loop of one operand, flushing its input and output if asked.
macro_rules! f1 {
    ($ftz:expr, |$a:ident| $e:expr) => {
        if $ftz {
            un!(|x| {
                let $a = flush(f(x));
                b(flush($e))
            })
        } else {
            un!(|x| {
                let $a = f(x);
                b($e)
            })
        }
    };
}
macro_rules! f2 {
    ($ftz:expr, |$a:ident, $b:ident| $e:expr) => {
        if $ftz {
            bin!(|x, y| {
                let ($a, $b) = (flush(f(x)), flush(f(y)));
                b(flush($e))
            })
        } else {
            bin!(|x, y| {
                let ($a, $b) = (f(x), f(y));
                b($e)
            })
        }
    };
}
macro_rules! f3 {
    ($ftz:expr, |$a:ident, $b:ident, $c:ident| $e:expr) => {
        if $ftz {
            ter!(|x, y, z| {
                let ($a, $b, $c) = (flush(f(x)), flush(f(y)), flush(f(z)));
                b(flush($e))
            })
        } else {
            ter!(|x, y, z| {
                let ($a, $b, $c) = (f(x), f(y), f(z));
                b($e)
            })
        }
    };
}
macro_rules! d2 {
    (|$a:ident, $b:ident| $e:expr) => {
        bin!(|x, y| {
            let ($a, $b) = (d(x), d(y));
            let r: f64 = $e;
            r.to_bits()
        })
    };
}
macro_rules! d1 {
    (|$a:ident| $e:expr) => {
        un!(|x| {
            let $a = d(x);
            let r: f64 = $e;
            r.to_bits()
        })
    };
}

fn low(x: u64) -> u16 {
    x as u16
}
fn high(x: u64) -> u16 {
    (x >> 16) as u16
}
fn join(hi: u16, lo: u16) -> u64 {
    (hi as u64) << 16 | lo as u64
}

/// A loop over halves of any of the four formats, through f64.
macro_rules! h2 {
    ($ty:expr, |$a:ident, $b:ident| $e:expr) => {{
        fn op($a: f64, $b: f64) -> f64 {
            $e
        }
        fn h(x: u16, y: u16) -> u16 {
            to_f16(op(from_f16(x), from_f16(y)))
        }
        fn g(x: u16, y: u16) -> u16 {
            to_bf16(op(from_bf16(x), from_bf16(y)))
        }
        match $ty {
            Ty::F16 => bin!(|x, y| h(low(x), low(y)) as u64),
            Ty::F16x2 => bin!(|x, y| join(h(high(x), high(y)), h(low(x), low(y)))),
            Ty::Bf16 => bin!(|x, y| g(low(x), low(y)) as u64),
            _ => bin!(|x, y| join(g(high(x), high(y)), g(low(x), low(y)))),
        }
    }};
}
macro_rules! h1 {
    ($ty:expr, |$a:ident| $e:expr) => {{
        fn op($a: f64) -> f64 {
            $e
        }
        fn h(x: u16) -> u16 {
            to_f16(op(from_f16(x)))
        }
        fn g(x: u16) -> u16 {
            to_bf16(op(from_bf16(x)))
        }
        match $ty {
            Ty::F16 => un!(|x| h(low(x)) as u64),
            Ty::F16x2 => un!(|x| join(h(high(x)), h(low(x)))),
            Ty::Bf16 => un!(|x| g(low(x)) as u64),
            _ => un!(|x| join(g(high(x)), g(low(x)))),
        }
    }};
}

fn is_half(ty: Ty) -> bool {
    matches!(ty, Ty::F16 | Ty::F16x2 | Ty::Bf16 | Ty::Bf16x2)
}

/// How a float instruction was qualified.
#[derive(Clone, Copy)]
pub(crate) struct Style {
    pub(crate) round: Round,
    pub(crate) ftz: bool,
    /// `.NaN` of min and max.
    pub(crate) nan: bool,
}

/// Two-operand instructions.
pub(crate) fn float_bin(name: &str, ty: Ty, s: Style) -> Option<BinF> {
    match ty {
        Ty::F32 => f32_bin(name, s),
        Ty::F64 if s.round == Round::Near => Some(match name {
            "add" => d2!(|a, b| a + b),
            "sub" => d2!(|a, b| a - b),
            "mul" => d2!(|a, b| a * b),
            "div" => d2!(|a, b| a / b),
            "min" => d2!(|a, b| min64(a, b, false)),
            "max" => d2!(|a, b| max64(a, b, false)),
            "copysign" => d2!(|a, b| b.copysign(a)),
            _ => return None,
        }),
        _ if is_half(ty) && s.round == Round::Near && !s.ftz => Some(match (name, s.nan) {
            ("add", _) => h2!(ty, |a, b| add_odd(a, b)),
            ("sub", _) => h2!(ty, |a, b| add_odd(a, -b)),
            ("mul", _) => h2!(ty, |a, b| a * b),
            ("min", false) => h2!(ty, |a, b| min64(a, b, false)),
            ("max", false) => h2!(ty, |a, b| max64(a, b, false)),
            ("min", true) => h2!(ty, |a, b| min64(a, b, true)),
            ("max", true) => h2!(ty, |a, b| max64(a, b, true)),
            _ => return None,
        }),
        _ => None,
    }
}

fn f32_bin(name: &str, s: Style) -> Option<BinF> {
    use Round::*;
    Some(match (name, s.round, s.nan) {
        ("add", Near, _) => f2!(s.ftz, |x, y| x + y),
        ("add", Zero, _) => f2!(s.ftz, |x, y| add32(x, y, Zero)),
        ("add", Down, _) => f2!(s.ftz, |x, y| add32(x, y, Down)),
        ("add", Up, _) => f2!(s.ftz, |x, y| add32(x, y, Up)),
        ("sub", Near, _) => f2!(s.ftz, |x, y| x - y),
        ("sub", Zero, _) => f2!(s.ftz, |x, y| add32(x, -y, Zero)),
        ("sub", Down, _) => f2!(s.ftz, |x, y| add32(x, -y, Down)),
        ("sub", Up, _) => f2!(s.ftz, |x, y| add32(x, -y, Up)),
        ("mul", Near, _) => f2!(s.ftz, |x, y| x * y),
        ("mul", Zero, _) => f2!(s.ftz, |x, y| mul32(x, y, Zero)),
        ("mul", Down, _) => f2!(s.ftz, |x, y| mul32(x, y, Down)),
        ("mul", Up, _) => f2!(s.ftz, |x, y| mul32(x, y, Up)),
        ("min", Near, false) => f2!(s.ftz, |x, y| min32(x, y, false)),
        ("max", Near, false) => f2!(s.ftz, |x, y| max32(x, y, false)),
        ("min", Near, true) => f2!(s.ftz, |x, y| min32(x, y, true)),
        ("max", Near, true) => f2!(s.ftz, |x, y| max32(x, y, true)),
        ("div" | "div.full", Near, _) => f2!(s.ftz, |x, y| x / y),
        ("div.approx", Near, _) => f2!(s.ftz, |x, y| div_approx(x, y)),
        ("copysign", Near, _) => bin!(|x, y| (y & 0x7fff_ffff) | (x & 0x8000_0000)),
        _ => return None,
    })
}

/// `fma`, and `mad` on floats, which is the same.
pub(crate) fn float_fma(ty: Ty, s: Style, relu: bool) -> Option<TerF> {
    use Round::*;
    macro_rules! h3 {
        (|$v:ident| $e:expr) => {{
            fn h(x: u16, y: u16, z: u16) -> u16 {
                let $v = add_odd(from_f16(x) * from_f16(y), from_f16(z));
                to_f16($e)
            }
            fn g(x: u16, y: u16, z: u16) -> u16 {
                let $v = add_odd(from_bf16(x) * from_bf16(y), from_bf16(z));
                to_bf16($e)
            }
            match ty {
                Ty::F16 => ter!(|x, y, z| h(low(x), low(y), low(z)) as u64),
                Ty::F16x2 => ter!(|x, y, z| join(h(high(x), high(y), high(z)), h(low(x), low(y), low(z)))),
                Ty::Bf16 => ter!(|x, y, z| g(low(x), low(y), low(z)) as u64),
                _ => ter!(|x, y, z| join(g(high(x), high(y), high(z)), g(low(x), low(y), low(z)))),
            }
        }};
    }
    Some(match (ty, s.round) {
        (Ty::F32, Near) => f3!(s.ftz, |x, y, z| x.mul_add(y, z)),
        (Ty::F32, Zero) => f3!(s.ftz, |x, y, z| fma32(x, y, z, Zero)),
        (Ty::F32, Down) => f3!(s.ftz, |x, y, z| fma32(x, y, z, Down)),
        (Ty::F32, Up) => f3!(s.ftz, |x, y, z| fma32(x, y, z, Up)),
        (Ty::F64, Near) => ter!(|x, y, z| d(x).mul_add(d(y), d(z)).to_bits()),
        (_, Near) if is_half(ty) && !s.ftz && !relu => h3!(|v| v),
        (_, Near) if is_half(ty) && !s.ftz => h3!(|v| if v < 0.0 { 0.0 } else { v }),
        _ => return None,
    })
}

/// One-operand instructions; the approximate ones give the correctly rounded result, which no GPU promises.
pub(crate) fn float_un(name: &str, ty: Ty, ftz: bool) -> Option<UnF> {
    Some(match (ty, name) {
        (Ty::F32, "neg") if !ftz => un!(|x| x ^ 0x8000_0000),
        (Ty::F32, "neg") => un!(|x| flush(f(x)).to_bits() as u64 ^ 0x8000_0000),
        (Ty::F32, "abs") if !ftz => un!(|x| x & 0x7fff_ffff),
        (Ty::F32, "abs") => un!(|x| flush(f(x)).to_bits() as u64 & 0x7fff_ffff),
        (Ty::F32, "rcp" | "rcp.approx") => f1!(ftz, |x| 1.0 / x),
        (Ty::F32, "sqrt" | "sqrt.approx") => f1!(ftz, |x| x.sqrt()),
        (Ty::F32, "rsqrt.approx") => f1!(ftz, |x| (1.0 / (x as f64).sqrt()) as f32),
        (Ty::F32, "ex2.approx") => f1!(ftz, |x| (x as f64).exp2() as f32),
        (Ty::F32, "lg2.approx") => f1!(ftz, |x| (x as f64).log2() as f32),
        (Ty::F32, "sin.approx") => f1!(ftz, |x| (x as f64).sin() as f32),
        (Ty::F32, "cos.approx") => f1!(ftz, |x| (x as f64).cos() as f32),
        (Ty::F32, "tanh.approx") if !ftz => f1!(false, |x| (x as f64).tanh() as f32),
        (Ty::F32, "sat") => f1!(false, |x| if x.is_nan() || x <= 0.0 { 0.0 } else { x.min(1.0) }),
        (Ty::F64, "neg") => un!(|x| x ^ (1 << 63)),
        (Ty::F64, "abs") => un!(|x| x & !(1 << 63)),
        (Ty::F64, "rcp" | "rcp.approx") => d1!(|x| 1.0 / x),
        (Ty::F64, "sqrt") => d1!(|x| x.sqrt()),
        (Ty::F64, "rsqrt.approx") => d1!(|x| 1.0 / x.sqrt()),
        (Ty::F16 | Ty::Bf16, "neg") => un!(|x| x ^ 0x8000),
        (Ty::F16 | Ty::Bf16, "abs") => un!(|x| x & 0x7fff),
        (Ty::F16x2 | Ty::Bf16x2, "neg") => un!(|x| x ^ 0x8000_8000),
        (Ty::F16x2 | Ty::Bf16x2, "abs") => un!(|x| x & 0x7fff_7fff),
        (_, "ex2.approx") if is_half(ty) => h1!(ty, |x| x.exp2()),
        (_, "tanh.approx") if is_half(ty) => h1!(ty, |x| x.tanh()),
        (_, "sat") if is_half(ty) => h1!(ty, |x| if x.is_nan() || x <= 0.0 { 0.0 } else { x.min(1.0) }),
        _ => return None,
    })
}

macro_rules! fcmp {
    ($ty:expr, $ftz:expr, |$a:ident, $b:ident| $e:expr) => {{
        match ($ty, $ftz) {
            (Ty::F32, false) => cmp!(|x, y| {
                let ($a, $b) = (f(x), f(y));
                $e
            }),
            (Ty::F32, true) => cmp!(|x, y| {
                let ($a, $b) = (flush(f(x)), flush(f(y)));
                $e
            }),
            (Ty::F64, false) => cmp!(|x, y| {
                let ($a, $b) = (d(x), d(y));
                $e
            }),
            (Ty::F16, false) => cmp!(|x, y| {
                let ($a, $b) = (from_f16(x as u16), from_f16(y as u16));
                $e
            }),
            (Ty::Bf16, false) => cmp!(|x, y| {
                let ($a, $b) = (from_bf16(x as u16), from_bf16(y as u16));
                $e
            }),
            _ => return None,
        }
    }};
}

/// Comparisons; those ending in `u` also hold if either is NaN.
pub(crate) fn float_cmp(op: &str, ty: Ty, ftz: bool) -> Option<CmpF> {
    Some(match op {
        "eq" => fcmp!(ty, ftz, |a, b| a == b),
        "ne" => fcmp!(ty, ftz, |a, b| a.partial_cmp(&b).is_some_and(|o| o.is_ne())),
        "lt" => fcmp!(ty, ftz, |a, b| a < b),
        "le" => fcmp!(ty, ftz, |a, b| a <= b),
        "gt" => fcmp!(ty, ftz, |a, b| a > b),
        "ge" => fcmp!(ty, ftz, |a, b| a >= b),
        "equ" => fcmp!(ty, ftz, |a, b| a.partial_cmp(&b).is_none_or(|o| o.is_eq())),
        "neu" => fcmp!(ty, ftz, |a, b| a != b),
        "ltu" => fcmp!(ty, ftz, |a, b| a.partial_cmp(&b).is_none_or(|o| o.is_lt())),
        "leu" => fcmp!(ty, ftz, |a, b| a.partial_cmp(&b).is_none_or(|o| o.is_le())),
        "gtu" => fcmp!(ty, ftz, |a, b| a.partial_cmp(&b).is_none_or(|o| o.is_gt())),
        "geu" => fcmp!(ty, ftz, |a, b| a.partial_cmp(&b).is_none_or(|o| o.is_ge())),
        "num" => fcmp!(ty, ftz, |a, b| !a.is_nan() && !b.is_nan()),
        "nan" => fcmp!(ty, ftz, |a, b| a.is_nan() || b.is_nan()),
        _ => return None,
    })
}

/// `testp`, as a comparison of an operand with itself.
pub(crate) fn test_cmp(op: &str, ty: Ty) -> Option<CmpF> {
    if !matches!(ty, Ty::F32 | Ty::F64) {
        return None;
    }
    Some(match op {
        "finite" => fcmp!(ty, false, |a, _b| a.is_finite()),
        "infinite" => fcmp!(ty, false, |a, _b| a.is_infinite()),
        "number" => fcmp!(ty, false, |a, _b| !a.is_nan()),
        "notanumber" => fcmp!(ty, false, |a, _b| a.is_nan()),
        "normal" => fcmp!(ty, false, |a, _b| a.is_normal()),
        "subnormal" => fcmp!(ty, false, |a, _b| a.is_subnormal()),
        _ => return None,
    })
}

//! Integer and bit arithmetic: for each opcode and type, a loop over the lanes of a warp.

use crate::ops::{BinF, CmpF, QuadF, TerF, UnF};
use crate::types::Ty;

macro_rules! un {
    (|$a:ident| $e:expr) => {{
        fn lanes(x: &crate::ops::Lanes, o: &mut crate::ops::Lanes) {
            for i in 0..32 {
                let $a = x[i];
                o[i] = $e;
            }
        }
        lanes as crate::ops::UnF
    }};
}
macro_rules! bin {
    (|$a:ident, $b:ident| $e:expr) => {{
        fn lanes(x: &crate::ops::Lanes, y: &crate::ops::Lanes, o: &mut crate::ops::Lanes) {
            for i in 0..32 {
                let ($a, $b) = (x[i], y[i]);
                o[i] = $e;
            }
        }
        lanes as crate::ops::BinF
    }};
}
macro_rules! ter {
    (|$a:ident, $b:ident, $c:ident| $e:expr) => {{
        fn lanes(x: &crate::ops::Lanes, y: &crate::ops::Lanes, z: &crate::ops::Lanes, o: &mut crate::ops::Lanes) {
            for i in 0..32 {
                let ($a, $b, $c) = (x[i], y[i], z[i]);
                o[i] = $e;
            }
        }
        lanes as crate::ops::TerF
    }};
}
macro_rules! cmp {
    (|$a:ident, $b:ident| $e:expr) => {{
        fn lanes(x: &crate::ops::Lanes, y: &crate::ops::Lanes) -> u32 {
            let mut m = 0;
            for i in 0..32 {
                let ($a, $b) = (x[i], y[i]);
                m |= ($e as u32) << i;
            }
            m
        }
        lanes as crate::ops::CmpF
    }};
}
pub(crate) use {bin, cmp, ter, un};

/// Picks the loop by the width and sign of the type.
macro_rules! by_int {
    ($ty:expr, $m:ident, $t:ident => $e:tt) => {
        match $ty {
            Ty::U16 => {
                type $t = u16;
                $m!($e)
            }
            Ty::U32 => {
                type $t = u32;
                $m!($e)
            }
            Ty::U64 => {
                type $t = u64;
                $m!($e)
            }
            Ty::S16 => {
                type $t = i16;
                $m!($e)
            }
            Ty::S32 => {
                type $t = i32;
                $m!($e)
            }
            Ty::S64 => {
                type $t = i64;
                $m!($e)
            }
            _ => return None,
        }
    };
}

/// A value of an integer type as register bits, and back.
trait Int: Copy {
    fn from(bits: u64) -> Self;
    fn bits(self) -> u64;
}
macro_rules! int {
    ($($t:ty, $u:ty);*) => {$(
        impl Int for $t {
            #[inline(always)]
            fn from(bits: u64) -> Self {
                bits as $t
            }
            #[inline(always)]
            fn bits(self) -> u64 {
                self as $u as u64
            }
        }
    )*};
}
int!(u16, u16; u32, u32; u64, u64; i16, u16; i32, u32; i64, u64);

macro_rules! ibin {
    ($ty:expr, |$a:ident, $b:ident, $t:ident| $e:expr) => {{
        macro_rules! go {
            ($x:tt) => {
                bin!(|x, y| {
                    let ($a, $b) = (<$t as Int>::from(x), <$t as Int>::from(y));
                    let r: $t = $e;
                    r.bits()
                })
            };
        }
        by_int!($ty, go, $t => ())
    }};
}
macro_rules! iun {
    ($ty:expr, |$a:ident, $t:ident| $e:expr) => {{
        macro_rules! go {
            ($x:tt) => {
                un!(|x| {
                    let $a = <$t as Int>::from(x);
                    let r: $t = $e;
                    r.bits()
                })
            };
        }
        by_int!($ty, go, $t => ())
    }};
}

/// Two-operand integer instructions. A division by zero gives all ones, as the hardware does.
pub(crate) fn int_bin(name: &str, ty: Ty) -> Option<BinF> {
    Some(match name {
        "add" => ibin!(ty, |a, b, T| a.wrapping_add(b)),
        "sub" => ibin!(ty, |a, b, T| a.wrapping_sub(b)),
        "mul.lo" => ibin!(ty, |a, b, T| a.wrapping_mul(b)),
        "mul.hi" => ibin!(ty, |a, b, T| ((a as i128).wrapping_mul(b as i128) >> T::BITS) as T),
        "div" => ibin!(ty, |a, b, T| if b == 0 { !0 } else { a.wrapping_div(b) }),
        "rem" => ibin!(ty, |a, b, T| if b == 0 { !0 } else { a.wrapping_rem(b) }),
        "min" => ibin!(ty, |a, b, T| a.min(b)),
        "max" => ibin!(ty, |a, b, T| a.max(b)),
        "mul.wide" => match ty {
            Ty::U16 => bin!(|a, b| a as u16 as u64 * b as u16 as u64),
            Ty::S16 => bin!(|a, b| (a as i16 as i32 * b as i16 as i32) as u32 as u64),
            Ty::U32 => bin!(|a, b| a as u32 as u64 * b as u32 as u64),
            Ty::S32 => bin!(|a, b| (a as i32 as i64 * b as i32 as i64) as u64),
            _ => return None,
        },
        "mul24.lo" => match ty {
            Ty::U32 => bin!(|a, b| ((a & 0xff_ffff) * (b & 0xff_ffff)) as u32 as u64),
            Ty::S32 => bin!(|a, b| (((a as i32) << 8 >> 8) as i64 * ((b as i32) << 8 >> 8) as i64) as u32 as u64),
            _ => return None,
        },
        _ => return None,
    })
}

pub(crate) fn int_un(name: &str, ty: Ty) -> Option<UnF> {
    Some(match name {
        "neg" => iun!(ty, |a, T| (0 as T).wrapping_sub(a)),
        "abs" => match ty {
            Ty::S16 => un!(|a| (a as i16).wrapping_abs() as u16 as u64),
            Ty::S32 => un!(|a| (a as i32).wrapping_abs() as u32 as u64),
            Ty::S64 => un!(|a| (a as i64).wrapping_abs() as u64),
            _ => return None,
        },
        _ => return None,
    })
}

/// Instructions on bits, by the operand's width.
pub(crate) fn bit_un(name: &str, bits: u32) -> Option<UnF> {
    Some(match (name, bits) {
        ("mov", _) => un!(|a| a),
        ("not", 16) => un!(|a| !a & 0xffff),
        ("not", 32) => un!(|a| !a & 0xffff_ffff),
        ("not", 64) => un!(|a| !a),
        ("cnot", _) => un!(|a| (a == 0) as u64),
        ("brev", 32) => un!(|a| (a as u32).reverse_bits() as u64),
        ("brev", 64) => un!(|a| a.reverse_bits()),
        ("popc", _) => un!(|a| a.count_ones() as u64),
        ("clz", 32) => un!(|a| (a as u32).leading_zeros() as u64),
        ("clz", 64) => un!(|a| a.leading_zeros() as u64),
        _ => return None,
    })
}

pub(crate) fn bit_bin(name: &str, ty: Ty) -> Option<BinF> {
    Some(match (name, ty.bits(), ty.signed()) {
        ("and", _, _) => bin!(|a, b| a & b),
        ("or", _, _) => bin!(|a, b| a | b),
        ("xor", _, _) => bin!(|a, b| a ^ b),
        ("shl", 16, _) => bin!(|a, b| if b as u32 > 15 { 0 } else { (a << (b as u32)) & 0xffff }),
        ("shl", 32, _) => bin!(|a, b| if b as u32 > 31 { 0 } else { (a << (b as u32)) & 0xffff_ffff }),
        ("shl", 64, _) => bin!(|a, b| if b as u32 > 63 { 0 } else { a << (b as u32) }),
        ("shr", 16 | 32 | 64, false) => bin!(|a, b| if b as u32 > 63 { 0 } else { a >> (b as u32) }),
        ("shr", 16, true) => bin!(|a, b| (a as i16 >> (b as u32).min(15)) as u16 as u64),
        ("shr", 32, true) => bin!(|a, b| (a as i32 >> (b as u32).min(31)) as u32 as u64),
        ("shr", 64, true) => bin!(|a, b| (a as i64 >> (b as u32).min(63)) as u64),
        _ => return None,
    })
}

pub(crate) fn find_bin(name: &str, ty: Ty) -> Option<UnF> {
    Some(match (name, ty) {
        ("bfind", Ty::U32) => un!(|a| if a as u32 == 0 { 0xffff_ffff } else { 31 - (a as u32).leading_zeros() as u64 }),
        ("bfind", Ty::U64) => un!(|a| if a == 0 { 0xffff_ffff } else { 63 - a.leading_zeros() as u64 }),
        ("bfind", Ty::S32) => un!(|a| {
            let v = (a as i32 ^ (a as i32 >> 31)) as u32;
            if v == 0 { 0xffff_ffff } else { 31 - v.leading_zeros() as u64 }
        }),
        ("bfind", Ty::S64) => un!(|a| {
            let v = (a as i64 ^ (a as i64 >> 63)) as u64;
            if v == 0 { 0xffff_ffff } else { 63 - v.leading_zeros() as u64 }
        }),
        ("bfind.shiftamt", Ty::U32) => un!(|a| if a as u32 == 0 { 0xffff_ffff } else { (a as u32).leading_zeros() as u64 }),
        ("bfind.shiftamt", Ty::U64) => un!(|a| if a == 0 { 0xffff_ffff } else { a.leading_zeros() as u64 }),
        _ => return None,
    })
}

fn extract(a: u64, pos: u64, len: u64, width: u64, signed: bool) -> u64 {
    let (pos, len) = (pos & 255, len & 255);
    let msb = width - 1;
    let sign = signed && len != 0 && a >> (pos + len - 1).min(msb) & 1 == 1;
    (0..width).map(|i| (if i < len && pos + i <= msb { a >> (pos + i) & 1 } else { sign as u64 }) << i).sum()
}

fn insert(a: u64, b: u64, pos: u64, len: u64, width: u64) -> u64 {
    let (pos, len) = (pos & 255, (len & 255).min(width));
    if pos >= width || len == 0 {
        return b;
    }
    let field = if len == 64 { u64::MAX } else { (1 << len) - 1 };
    let all = if width == 64 { u64::MAX } else { (1 << width) - 1 };
    ((b & !(field << pos)) | ((a & field) << pos)) & all
}

fn permute(a: u64, b: u64, sel: u64) -> u64 {
    let bytes = (b << 32) | (a & 0xffff_ffff);
    let mut out = 0;
    for i in 0..4 {
        let s = sel >> (4 * i) & 15;
        let byte = bytes >> (8 * (s & 7)) & 255;
        let byte = if s & 8 == 0 { byte } else { (byte >> 7) * 255 };
        out |= byte << (8 * i);
    }
    out
}

macro_rules! mad {
    ($ty:expr, |$a:ident, $b:ident, $c:ident, $t:ident| $e:expr) => {{
        macro_rules! go {
            ($x:tt) => {
                ter!(|x, y, z| {
                    let ($a, $b, $c) = (<$t as Int>::from(x), <$t as Int>::from(y), <$t as Int>::from(z));
                    let r: $t = $e;
                    r.bits()
                })
            };
        }
        by_int!($ty, go, $t => ())
    }};
}

/// Three-operand integer and bit instructions.
pub(crate) fn int_ter(name: &str, ty: Ty) -> Option<TerF> {
    Some(match (name, ty) {
        ("mad.lo", _) => mad!(ty, |a, b, c, T| a.wrapping_mul(b).wrapping_add(c)),
        ("mad.hi", _) => mad!(ty, |a, b, c, T| (((a as i128).wrapping_mul(b as i128) >> T::BITS) as T).wrapping_add(c)),
        ("mad.wide", Ty::U16) => ter!(|a, b, c| (a as u16 as u32 * b as u16 as u32).wrapping_add(c as u32) as u64),
        ("mad.wide", Ty::S16) => ter!(|a, b, c| (a as i16 as i32 * b as i16 as i32).wrapping_add(c as i32) as u32 as u64),
        ("mad.wide", Ty::U32) => ter!(|a, b, c| (a as u32 as u64 * b as u32 as u64).wrapping_add(c)),
        ("mad.wide", Ty::S32) => ter!(|a, b, c| ((a as i32 as i64 * b as i32 as i64) as u64).wrapping_add(c)),
        ("mad24.lo", Ty::U32) => ter!(|a, b, c| (((a & 0xff_ffff) * (b & 0xff_ffff)) as u32).wrapping_add(c as u32) as u64),
        ("sad", _) => mad!(ty, |a, b, c, T| (if a > b { a.wrapping_sub(b) } else { b.wrapping_sub(a) }).wrapping_add(c)),
        ("bfe", Ty::U32) => ter!(|a, b, c| extract(a, b, c, 32, false)),
        ("bfe", Ty::S32) => ter!(|a, b, c| extract(a, b, c, 32, true)),
        ("bfe", Ty::U64) => ter!(|a, b, c| extract(a, b, c, 64, false)),
        ("bfe", Ty::S64) => ter!(|a, b, c| extract(a, b, c, 64, true)),
        ("prmt", _) => ter!(|a, b, c| permute(a, b, c)),
        ("shf.l.clamp", _) => ter!(|a, b, c| ((b << 32 | a) << (c as u32).min(32)) >> 32),
        ("shf.l.wrap", _) => ter!(|a, b, c| ((b << 32 | a) << (c as u32 & 31)) >> 32),
        ("shf.r.clamp", _) => ter!(|a, b, c| (b << 32 | a) >> (c as u32).min(32) & 0xffff_ffff),
        ("shf.r.wrap", _) => ter!(|a, b, c| (b << 32 | a) >> (c as u32 & 31) & 0xffff_ffff),
        ("slct.s32", _) => ter!(|a, b, c| if c as i32 >= 0 { a } else { b }),
        ("slct.f32", _) => ter!(|a, b, c| if f32::from_bits(c as u32) >= 0.0 { a } else { b }),
        _ => return None,
    })
}

macro_rules! quad {
    (|$a:ident, $b:ident, $c:ident, $d:ident| $e:expr) => {{
        fn lanes(x: &crate::ops::Lanes, y: &crate::ops::Lanes, z: &crate::ops::Lanes, u: &crate::ops::Lanes, o: &mut crate::ops::Lanes) {
            for i in 0..32 {
                let ($a, $b, $c, $d) = (x[i], y[i], z[i], u[i]);
                o[i] = $e;
            }
        }
        lanes as crate::ops::QuadF
    }};
}

/// The table of `lop3`: bit `4a + 2b + c` of it is the result.
fn table(a: u64, b: u64, c: u64, lut: u64) -> u64 {
    let mut out = 0;
    for i in 0..8 {
        if lut >> i & 1 == 1 {
            let pick = |v: u64, on: u64| if on != 0 { v } else { !v };
            out |= pick(a, i & 4) & pick(b, i & 2) & pick(c, i & 1);
        }
    }
    out & 0xffff_ffff
}

pub(crate) fn int_quad(name: &str, bits: u32) -> Option<QuadF> {
    Some(match (name, bits) {
        ("lop3", 32) => quad!(|a, b, c, lut| table(a, b, c, lut)),
        ("bfi", 32) => quad!(|a, b, pos, len| insert(a, b, pos, len, 32)),
        ("bfi", 64) => quad!(|a, b, pos, len| insert(a, b, pos, len, 64)),
        _ => return None,
    })
}

macro_rules! icmp {
    ($ty:expr, |$a:ident, $b:ident, $t:ident| $e:expr) => {{
        macro_rules! go {
            ($x:tt) => {
                cmp!(|x, y| {
                    let ($a, $b) = (<$t as Int>::from(x), <$t as Int>::from(y));
                    $e
                })
            };
        }
        by_int!($ty, go, $t => ())
    }};
}

/// Integer comparisons; `lo ls hi hs` are the unsigned ones.
pub(crate) fn int_cmp(op: &str, ty: Ty) -> Option<CmpF> {
    let unsigned_only = matches!(op, "lo" | "ls" | "hi" | "hs");
    if (unsigned_only && (ty.signed() || ty.untyped())) || (ty.untyped() && !matches!(op, "eq" | "ne")) {
        return None;
    }
    let ty = match ty {
        Ty::B16 => Ty::U16,
        Ty::B32 => Ty::U32,
        Ty::B64 => Ty::U64,
        t => t,
    };
    Some(match op {
        "eq" => icmp!(ty, |a, b, T| a == b),
        "ne" => icmp!(ty, |a, b, T| a != b),
        "lt" | "lo" => icmp!(ty, |a, b, T| a < b),
        "le" | "ls" => icmp!(ty, |a, b, T| a <= b),
        "gt" | "hi" => icmp!(ty, |a, b, T| a > b),
        "ge" | "hs" => icmp!(ty, |a, b, T| a >= b),
        _ => return None,
    })
}

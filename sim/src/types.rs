//! The types that PTX instructions and registers carry, and which of them may stand for which.

/// A type suffix.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(crate) enum Ty {
    B8,
    B16,
    B32,
    B64,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    F32,
    F64,
    Tf32,
    Pred,
}

use Ty::*;

impl Ty {
    /// The type that a suffix (without its dot) names.
    pub(crate) fn parse(word: &str) -> Option<Ty> {
        Some(match word {
            "b8" => B8,
            "b16" => B16,
            "b32" => B32,
            "b64" => B64,
            "u8" => U8,
            "u16" => U16,
            "u32" => U32,
            "u64" => U64,
            "s8" => S8,
            "s16" => S16,
            "s32" => S32,
            "s64" => S64,
            "f16" => F16,
            "f16x2" => F16x2,
            "bf16" => Bf16,
            "bf16x2" => Bf16x2,
            "f32" => F32,
            "f64" => F64,
            "tf32" => Tf32,
            "pred" => Pred,
            _ => return None,
        })
    }

    pub(crate) fn bytes(self) -> usize {
        match self {
            B8 | U8 | S8 => 1,
            B16 | U16 | S16 | F16 | Bf16 => 2,
            B32 | U32 | S32 | F32 | F16x2 | Bf16x2 | Tf32 => 4,
            B64 | U64 | S64 | F64 => 8,
            Pred => 0,
        }
    }

    pub(crate) fn bits(self) -> u32 {
        self.bytes() as u32 * 8
    }

    pub(crate) fn signed(self) -> bool {
        matches!(self, S8 | S16 | S32 | S64)
    }

    pub(crate) fn int(self) -> bool {
        matches!(self, U8 | U16 | U32 | U64 | S8 | S16 | S32 | S64)
    }

    pub(crate) fn untyped(self) -> bool {
        matches!(self, B8 | B16 | B32 | B64)
    }

    pub(crate) fn float(self) -> bool {
        !self.int() && !self.untyped() && self != Pred
    }

    /// Whether a register declared as `self` may be an operand of an instruction of type `want`: the assembler's own rule, so that
    /// text that runs here also assembles.
    pub(crate) fn fits(self, want: Ty) -> bool {
        if self == Pred || want == Pred {
            return self == want;
        }
        // The packed and brain formats have no register type of their own: they live in bit registers.
        self.bytes() == want.bytes() && (self == want || self.untyped() || want.untyped() || (self.int() && want.int()))
    }

    /// As [`Ty::fits`], for loads, stores and conversions, whose register may be wider than the value.
    pub(crate) fn fits_wide(self, want: Ty) -> bool {
        self.fits(want) || (self != Pred && want != Pred && self.bytes() > want.bytes() && !self.float())
    }

    /// Ones in the bits that a value of this type has.
    pub(crate) fn mask(self) -> u64 {
        match self.bytes() {
            8 => u64::MAX,
            n => (1 << (8 * n)) - 1,
        }
    }
}

//! Instruction sets by name, which of them this machine has, and the way into a kernel.

use std::sync::OnceLock;

use crate::arch::generic::tables::Tables;
use crate::arch::generic::vector::{Op, Part, Vector};
use crate::arch::portable;
use crate::error::Error;

#[cfg(target_arch = "aarch64")]
use crate::arch::aarch64::neon;
#[cfg(target_arch = "x86_64")]
use crate::arch::x86_64::{avx2, avx512};

/// An instruction set that the kernels are built for, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Whatever the compiler's target has, by the `wide` crate.
    Portable,
    /// Advanced SIMD of aarch64.
    Neon,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ and VL with FMA.
    Avx512,
}

impl Isa {
    /// All of them, weakest first, whether this machine has them or not.
    pub const ALL: [Isa; 4] = [Isa::Portable, Isa::Neon, Isa::Avx2, Isa::Avx512];

    /// `portable`, `neon`, `avx2` or `avx512`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Neon => "neon",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
        }
    }

    /// The instruction set of this name.
    pub fn parse(name: &str) -> Option<Isa> {
        Isa::ALL.into_iter().find(|isa| isa.name() == name)
    }

    /// Whether this machine has it.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Portable => true,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => neon::available(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::available(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => avx512::available(),
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }

    /// Those that this machine has, weakest first.
    pub fn available() -> impl Iterator<Item = Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.is_available())
    }

    /// What the environment variable `SELECTIVE_SCAN_ISA` allows at most; an error where it is not a name.
    pub fn cap() -> Result<Isa, Error> {
        let Ok(name) = std::env::var("SELECTIVE_SCAN_ISA") else { return Ok(Isa::Avx512) };
        Isa::parse(&name)
            .ok_or_else(|| Error::Value { operand: "SELECTIVE_SCAN_ISA", why: format!("`{name}` is none of portable, neon, avx2, avx512") })
    }

    /// The best that this machine has and [`Isa::cap`] allows. A cap that is not a name allows everything.
    pub fn best() -> Isa {
        Isa::cap().unwrap_or(Isa::Avx512).or_weaker()
    }

    /// This one, or the best weaker one where this machine lacks it.
    fn or_weaker(self) -> Isa {
        Isa::available().filter(|&isa| isa <= self).max().unwrap_or(Isa::Portable)
    }
}

/// The kernels of one instruction set that this machine has: holding one is the proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Kernels {
    isa: Isa,
}

/// f32 or f64, with a vector type for each instruction set.
pub trait Lanes: Tables {
    /// The portable vector.
    type Portable: Vector<Real = Self>;
    /// NEON's vector.
    #[cfg(target_arch = "aarch64")]
    type Neon: Vector<Real = Self>;
    /// AVX2's vector.
    #[cfg(target_arch = "x86_64")]
    type Avx2: Vector<Real = Self>;
    /// AVX-512's vector.
    #[cfg(target_arch = "x86_64")]
    type Avx512: Vector<Real = Self>;
}

impl Lanes for f32 {
    type Portable = portable::F32x8;
    #[cfg(target_arch = "aarch64")]
    type Neon = neon::F32x4;
    #[cfg(target_arch = "x86_64")]
    type Avx2 = avx2::F32x8;
    #[cfg(target_arch = "x86_64")]
    type Avx512 = avx512::F32x16;
}

impl Lanes for f64 {
    type Portable = portable::F64x4;
    #[cfg(target_arch = "aarch64")]
    type Neon = neon::F64x2;
    #[cfg(target_arch = "x86_64")]
    type Avx2 = avx2::F64x4;
    #[cfg(target_arch = "x86_64")]
    type Avx512 = avx512::F64x8;
}

struct Enter<O>(O);

impl<V: Vector, O: Op<V::Real>> Part<V> for Enter<O> {
    type Out = O::Out;
    #[inline(always)]
    fn run(self, zero: V) -> O::Out {
        self.0.run(zero)
    }
}

struct Width;

impl<R: Tables> Op<R> for Width {
    type Out = usize;
    #[inline(always)]
    fn run<V: Vector<Real = R>>(self, _zero: V) -> usize {
        V::LANES
    }
}

impl Kernels {
    /// The kernels of `isa`, or None where this machine lacks it.
    pub fn new(isa: Isa) -> Option<Self> {
        isa.is_available().then_some(Kernels { isa })
    }

    /// The kernels of [`Isa::best`], asked once a process.
    pub fn best() -> Self {
        static BEST: OnceLock<Kernels> = OnceLock::new();
        *BEST.get_or_init(|| Kernels { isa: Isa::best() })
    }

    /// Those of every instruction set that this machine has, weakest first.
    pub fn available() -> impl Iterator<Item = Self> {
        Isa::available().map(|isa| Kernels { isa })
    }

    /// Which instruction set.
    pub fn isa(self) -> Isa {
        self.isa
    }

    /// Channels in a block: the lanes of one vector of `R`. At most 16 for f32 and 8 for f64.
    pub fn lanes<R: Lanes>(self) -> usize {
        self.run::<R, _>(Width)
    }

    /// Runs `op` over the vectors of this instruction set.
    pub fn run<R: Lanes, O: Op<R>>(self, op: O) -> O::Out {
        // SAFETY: Kernels are made only for an instruction set that was detected.
        unsafe {
            match self.isa {
                #[cfg(target_arch = "aarch64")]
                Isa::Neon => R::Neon::enter(Enter(op)),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => R::Avx2::enter(Enter(op)),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => R::Avx512::enter(Enter(op)),
                _ => R::Portable::enter(Enter(op)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back() {
        for isa in Isa::ALL {
            assert_eq!(Isa::parse(isa.name()), Some(isa));
        }
        assert_eq!(Isa::parse("sse9"), None);
    }

    #[test]
    fn a_cap_allows_what_is_weaker() {
        assert_eq!(Isa::Portable.or_weaker(), Isa::Portable);
        for isa in Isa::available() {
            assert_eq!(isa.or_weaker(), isa);
        }
        for isa in Isa::ALL {
            assert!(isa.or_weaker() <= isa && isa.or_weaker().is_available());
        }
    }

    #[test]
    fn kernels_are_for_what_is_available() {
        for isa in Isa::ALL {
            assert_eq!(Kernels::new(isa).map(Kernels::isa), isa.is_available().then_some(isa));
        }
        assert!(Isa::available().any(|isa| isa == Isa::best()));
        for k in Kernels::available() {
            assert!(k.lanes::<f32>() == 2 * k.lanes::<f64>() && k.lanes::<f32>() <= 16);
        }
    }
}

//! Raw SIMD kernels, written once over a `Vector` trait and chosen at run time.
//!
//! [`Isa`] names an instruction set; [`Kernels`] is the proof that this machine has it, and has the kernels as methods. They
//! take staged tiles (see [`generic::tiles`]) and know nothing of strides, storage types or threads.

pub mod generic;

pub use generic::tiles::{
    Coefficient, CoefficientMut, ConvBwd, ConvFwd, ConvTile, Planes, PlanesMut, ScanTile, SelectiveBwd, SelectiveFwd, SelectiveTile, TILE,
    bwd_scratch, fwd_scratch,
};

use crate::element::Real;

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

/// The kernels of one instruction set that this machine has: holding one is the proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Kernels {
    isa: Isa,
}

/// f32 or f64 as the kernels see them: with a vector type for each instruction set.
pub trait Lanes: Real {}

impl Lanes for f32 {}
impl Lanes for f64 {}

// Signatures; bodies follow.
/// What `Kernels` will have.
pub trait Signatures: Sized {
    /// The kernels of `isa`, or None where this machine lacks it.
    fn new(isa: Isa) -> Option<Self>;
    /// The best that this machine has, capped by the environment variable `SELECTIVE_SCAN_ISA`.
    fn best() -> Self;
    /// All that this machine has, weakest first.
    fn available() -> impl Iterator<Item = Self>;
    /// Which instruction set.
    fn isa(self) -> Isa;
    /// Channels in a block: the lanes of one vector of `R`. At most 16 for f32 and 8 for f64.
    fn lanes<R: Lanes>(self) -> usize;
    /// One tile of the selective scan, forward.
    fn selective_scan_fwd<R: Lanes>(self, args: SelectiveFwd<'_, R>);
    /// One tile of the selective scan, backward.
    fn selective_scan_bwd<R: Lanes>(self, args: SelectiveBwd<'_, R>);
    /// One tile of the linear recurrence.
    fn scan<R: Lanes>(self, args: ScanTile<'_, R>);
    /// One tile of the causal convolution, forward.
    fn causal_conv1d_fwd<R: Lanes>(self, args: ConvFwd<'_, R>);
    /// One tile of the causal convolution, backward.
    fn causal_conv1d_bwd<R: Lanes>(self, args: ConvBwd<'_, R>);
}

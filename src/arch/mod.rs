//! Raw SIMD kernels, written once over a `Vector` trait and chosen at run time.
//!
//! [`Isa`] names an instruction set; [`Kernels`] is the proof that this machine has it, and has the kernels as methods. They
//! take staged tiles (see [`generic::tiles`]) and know nothing of strides, storage types or threads.

#[cfg(target_arch = "aarch64")]
pub mod aarch64;
mod entry;
pub mod generic;
mod isa;
pub mod portable;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod testing_scan;
#[cfg(target_arch = "x86_64")]
pub mod x86_64;

pub use generic::tiles::{
    Coefficient, CoefficientMut, ConvBwd, ConvFwd, ConvRows, ConvRowsBwd, ConvTile, Lines, LinesMut, Planes, PlanesMut, ScanTile,
    SelectiveBwd, SelectiveFwd, SelectiveTile, StepRow, TILE, Turn, bwd_scratch, fwd_scratch, step_scratch,
};
pub use isa::{Isa, Kernels, Lanes};

//! The kernels themselves: no view, allocation, thread or instruction set is named here.

// A state's index picks from several arrays at once.
#![allow(clippy::needless_range_loop)]

pub mod causal_conv1d;
pub mod decode;
pub mod discretize;
pub mod exp;
pub mod expm1;
pub mod number;
pub mod product;
pub mod scan;
pub mod selective_scan;
pub mod selective_scan_bwd;
mod selective_scan_bwd_mamba;
pub mod selective_state_update;
pub mod silu;
pub mod sincos;
pub mod softplus;
pub mod tables;
pub mod tiles;
pub mod vector;

/// Arithmetic operators of a vector type from functions of two registers.
macro_rules! operators {
    ($v:ident, $($trait:ident $name:ident $f:expr),+) => {
        $(impl core::ops::$trait for $v {
            type Output = $v;
            #[inline(always)]
            fn $name(self, other: $v) -> $v {
                // SAFETY: the values exist, so the CPU has the instruction set.
                #[allow(unused_unsafe)]
                $v(unsafe { $f(self.0, other.0) })
            }
        })+
    };
}
pub(super) use operators;

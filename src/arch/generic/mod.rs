//! The kernels themselves: no view, allocation, thread or instruction set is named here.

// A state's index picks from several arrays at once.
#![allow(clippy::needless_range_loop)]

/// `unrolled!(j < COUNT { … })` is a loop over j for a constant COUNT of at most 16, written out: the compiler leaves loops of so
/// many long bodies as they are, and what they index then stays in memory instead of registers.
macro_rules! unrolled {
    ($j:ident < $count:ident $body:block) => {
        const { assert!($count <= 16) };
        unrolled!(@ $j $count $body 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $j:ident $count:ident $body:block $($k:literal)*) => {
        $(if $k < $count {
            let $j = $k;
            $body
        })*
    };
}

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

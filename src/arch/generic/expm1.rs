//! e^x − 1.

use crate::arch::generic::exp::exp_parts;
use crate::arch::generic::tables::Tables;
use crate::arch::generic::vector::Vector;
use crate::element::Weight;

/// e^x − 1 without cancellation near 0.
#[inline(always)]
pub fn exp_m1<V: Vector>(x: V) -> V {
    let (m, n) = exp_parts(x);
    // Half of the result, because 2^n alone overflows before the result does.
    let n = n - x.splat(V::Real::ONE);
    let half = m.scale(n) + (x.splat(V::Real::ONE).scale(n) - x.splat(V::Real::HALF));
    half + half
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Kernels;
    use crate::arch::testing::{Function, check, map, sweep};

    struct ExpM1;
    impl Function for ExpM1 {
        #[inline(always)]
        fn call<V: Vector>(x: V) -> V {
            exp_m1(x)
        }
    }

    #[test]
    fn exp_m1_is_accurate() {
        check::<ExpM1>(&sweep(-120.0, 88.7, 100_000), [2.5, 2.5], f64::exp_m1);
        check::<ExpM1>(&sweep(-1.5, 1.5, 100_000), [2.5, 2.5], f64::exp_m1);
    }

    #[test]
    fn special_values() {
        for k in Kernels::available() {
            let y = map::<f32, ExpM1>(k, &[0.0, f32::INFINITY, f32::NEG_INFINITY, 100.0, -1e30, f32::NAN]);
            assert_eq!(y[..5], [0.0, f32::INFINITY, -1.0, f32::INFINITY, -1.0]);
            assert!(y[5].is_nan());
        }
    }
}

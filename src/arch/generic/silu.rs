//! sigmoid, SiLU and its derivative.

use crate::arch::generic::exp::exp_of_negative;
use crate::arch::generic::tables::Tables;
use crate::arch::generic::vector::Vector;
use crate::element::Weight;

/// (sigmoid(x), sigmoid(−x)), each from the side that does not cancel.
#[inline(always)]
pub fn sigmoid_both<V: Vector>(x: V) -> (V, V) {
    let one = x.splat(V::Real::ONE);
    let e = exp_of_negative(-x.abs());
    let big = one / (one + e);
    let small = e * big;
    let negative = x.lt(x.splat(V::Real::ZERO));
    (V::select(negative, small, big), V::select(negative, big, small))
}

/// sigmoid(x) = 1/(1 + e^−x), the derivative of softplus.
#[inline(always)]
pub fn sigmoid<V: Vector>(x: V) -> V {
    sigmoid_both(x).0
}

/// silu(x) = x·2^−k/(2^−k + 1 + m), where e^−x = (1 + m)·2^k. The power of two is applied last, so that the tail below −88 in f32 keeps its
/// precision until the result itself underflows.
#[inline(always)]
pub fn silu<V: Vector>(x: V) -> V {
    let most = x.splat(V::Real::SILU_MAX);
    let inner = x.at_most(most).at_least(x.splat(V::Real::SILU_MIN));
    let magic = x.splat(V::Real::ROUND_MAGIC);
    // −k, and −x + k·(−ln 2) as the negative of what is left of x.
    let n = inner.mul_add(x.splat(V::Real::LOG2_E), magic) - magic;
    let [high, low] = V::Real::LN_2;
    let r = n.mul_add(x.splat(low), n.mul_add(x.splat(high), -inner));
    let m = V::Real::exp_m1_tail(r).mul_add(r * r, r);
    // 2^(j−k), which is normal where 2^−k is not.
    let power = (n + x.splat(V::Real::DOWN_POWER)).mantissa_to_exponent();
    let down = x.splat(V::Real::DOWN);
    // 1 is added last: what is rounded before is the sum of the small ones.
    let value = inner / (power.mul_add(down, m) + x.splat(V::Real::ONE)) * power * down;
    V::select(most.lt(x), x, value)
}

/// (silu(x), silu'(x)), silu'(x) = s·(1 + x·(1 − s)) with s = sigmoid(x).
#[inline(always)]
pub fn silu_and_grad<V: Vector>(x: V) -> (V, V) {
    let (s, t) = sigmoid_both(x);
    (x * s, s * x.mul_add(t, x.splat(V::Real::ONE)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Kernels;
    use crate::arch::testing::{Function, check, check_line, map, sweep};

    struct Silu;
    impl Function for Silu {
        #[inline(always)]
        fn call<V: Vector>(x: V) -> V {
            silu(x)
        }
    }
    struct Sigmoid;
    impl Function for Sigmoid {
        #[inline(always)]
        fn call<V: Vector>(x: V) -> V {
            sigmoid(x)
        }
    }
    struct Grad;
    impl Function for Grad {
        #[inline(always)]
        fn call<V: Vector>(x: V) -> V {
            silu_and_grad(x).1
        }
    }

    fn reference(x: f64) -> f64 {
        let e = (-x.abs()).exp();
        if x >= 0.0 { 1.0 / (1.0 + e) } else { e / (1.0 + e) }
    }

    #[test]
    fn silu_is_accurate() {
        check::<Silu>(&sweep(-91.0, 120.0, 200_000), [2.0, 3.5], |x| x * reference(x));
        check_line::<Silu>(12_347, 2.0, |x| x * reference(x));
        check::<Sigmoid>(&sweep(-86.0, 120.0, 200_000), [3.0, 4.0], reference);
    }

    #[test]
    fn gradient_is_accurate() {
        // Near its zero at −1.278 the error is that of the terms, so it is absolute.
        let x: Vec<f64> = sweep(-30.0, 30.0, 20_000);
        for k in Kernels::available() {
            for (&x, y) in x.iter().zip(map::<f64, Grad>(k, &x)) {
                let (s, t) = (reference(x), reference(-x));
                assert!((y - s * (1.0 + x * t)).abs() <= 1e-15, "{:?} at {x}", k.isa());
            }
            let x: Vec<f32> = x.iter().map(|&x| x as f32).collect();
            for (&x, y) in x.iter().zip(map::<f32, Grad>(k, &x)) {
                let (s, t) = (reference(f64::from(x)), reference(-f64::from(x)));
                assert!((f64::from(y) - s * (1.0 + f64::from(x) * t)).abs() <= 4e-7, "{:?} at {x}", k.isa());
            }
        }
    }

    #[test]
    fn special_values() {
        for k in Kernels::available() {
            let y = map::<f32, Silu>(k, &[0.0, f32::INFINITY, -1e30, f32::MAX, f32::NEG_INFINITY, f32::NAN]);
            assert_eq!(y[..4], [0.0, f32::INFINITY, 0.0, f32::MAX], "{:?}", k.isa());
            assert!(y[4] == 0.0 || y[4].is_nan());
            assert!(y[5].is_nan());
        }
    }
}

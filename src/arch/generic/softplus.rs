//! ln(1 + x) for x in [0, 1], and softplus.

use crate::arch::generic::exp::exp_of_negative;
use crate::arch::generic::tables::Tables;
use crate::arch::generic::vector::Vector;
use crate::element::Weight;

/// x − ln(1 + x) for 0 ≤ x ≤ 1, from x and s = x/(2 + x).
///
/// ln(1 + x) = 2·atanh(s) = x − (x²/2 − s·(x²/2 + R)), R = 2·atanh(s)/s − 2: what is rounded is small beside x.
#[inline(always)]
fn less<V: Vector>(x: V, s: V) -> V {
    let s2 = s * s;
    let half_square = x * x * x.splat(V::Real::HALF);
    let rest = V::Real::ln_1p_tail(s2).mul_add(s2, half_square);
    s.neg_mul_add(rest, half_square)
}

/// ln(1 + x) for 0 ≤ x ≤ 1, to full relative accuracy.
#[inline(always)]
pub fn ln_1p_unit<V: Vector>(x: V) -> V {
    x - less(x, x / (x + x.splat(V::Real::TWO)))
}

/// softplus(x) = max(x, 0) + ln(1 + e^−|x|), where `decay` is e^−|x| and s = decay/(2 + decay): no overflow, no lost tail for x ≪ 0, NaN
/// passes. What the logarithm's last subtraction rounds away goes to the smaller summand.
#[inline(always)]
fn softplus_from<V: Vector>(x: V, decay: V, s: V) -> V {
    let less = less(decay, s);
    let log = decay - less;
    let lost = (decay - log) - less;
    (x.at_least(x.splat(V::Real::ZERO)) + lost) + log
}

/// softplus(x) from x and e^−|x|.
#[inline(always)]
pub fn softplus_of<V: Vector>(x: V, decay: V) -> V {
    softplus_from(x, decay, decay / (decay + x.splat(V::Real::TWO)))
}

/// softplus(x) and its slope, sigmoid(x), from e^−|x|: one division for both.
#[inline(always)]
pub fn softplus_and_grad<V: Vector>(x: V, decay: V) -> (V, V) {
    let (zero, one) = (x.splat(V::Real::ZERO), x.splat(V::Real::ONE));
    let (plus_one, plus_two) = (decay + one, decay + x.splat(V::Real::TWO));
    let inverse = one / (plus_one * plus_two);
    let value = softplus_from(x, decay, decay * (inverse * plus_one));
    (value, V::select(x.lt(zero), decay, one) * (inverse * plus_two))
}

/// softplus(x).
#[inline(always)]
pub fn softplus<V: Vector>(x: V) -> V {
    softplus_of(x, exp_of_negative(-x.abs()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Kernels;
    use crate::arch::testing::{Function, check, check_line, map, sweep};

    struct Ln1p;
    impl Function for Ln1p {
        #[inline(always)]
        fn call<V: Vector>(x: V) -> V {
            ln_1p_unit(x)
        }
    }
    struct Softplus;
    impl Function for Softplus {
        #[inline(always)]
        fn call<V: Vector>(x: V) -> V {
            softplus(x)
        }
    }

    struct Both<const SLOPE: bool>;
    impl<const SLOPE: bool> Function for Both<SLOPE> {
        #[inline(always)]
        fn call<V: Vector>(x: V) -> V {
            let (value, slope) = softplus_and_grad(x, exp_of_negative(-x.abs()));
            if SLOPE { slope } else { value }
        }
    }

    #[test]
    fn both_are_accurate() {
        let x = sweep(-86.0, 120.0, 200_000);
        check::<Both<false>>(&x, [2.5, 4.0], reference);
        check::<Both<true>>(&x, [4.0, 5.0], |x| if x < 0.0 { x.exp() / (1.0 + x.exp()) } else { 1.0 / (1.0 + (-x).exp()) });
    }

    #[test]
    fn ln_1p_is_accurate() {
        check::<Ln1p>(&sweep(0.0, 1.0, 200_000), [1.5, 1.6], f64::ln_1p);
    }

    #[test]
    fn softplus_is_accurate() {
        check::<Softplus>(&sweep(-86.0, 120.0, 200_000), [2.0, 3.0], reference);
        check_line::<Softplus>(12_347, 2.0, reference);
    }

    fn reference(x: f64) -> f64 {
        x.max(0.0) + (-x.abs()).exp().ln_1p()
    }

    #[test]
    fn special_values() {
        for k in Kernels::available() {
            let y = map::<f32, Softplus>(k, &[f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -f32::MAX, f32::NAN]);
            assert_eq!(y[..4], [f32::INFINITY, 0.0, f32::MAX, 0.0]);
            assert!(y[4].is_nan());
        }
    }
}

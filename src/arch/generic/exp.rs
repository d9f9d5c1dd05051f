//! 2^x and e^x.

use crate::arch::generic::tables::Tables;
use crate::arch::generic::vector::Vector;
use crate::element::Weight;

/// 2^x, relative error below 2.5e-7 in f32 and 4e-16 in f64; exact for integers. For the kernels, where x = Δ'·(A·log₂e) must
/// underflow to 0 even where that product overflows; 2^+∞ is ∞ or NaN.
#[inline(always)]
pub fn exp2<V: Vector>(x: V) -> V {
    x.exp2()
}

/// [`exp2`] where there is no better way.
#[inline(always)]
pub fn exp2_by_polynomial<V: Vector>(x: V) -> V {
    let x = x.at_least(x.splat(V::Real::EXP2_MIN));
    let n = x.round();
    let r = x - n;
    V::Real::exp2_tail(r).mul_add(r, x.splat(V::Real::ONE)).scale(n)
}

/// [`Vector::exp2_small`] to [`exp2_by_polynomial`].
#[inline(always)]
pub fn exp2_small_by_polynomial<V: Vector>(x: V) -> V {
    let magic = x.splat(V::Real::ROUND_MAGIC);
    let t = x + magic;
    let r = x - (t - magic);
    V::Real::exp2_tail(r).mul_add(r, x.splat(V::Real::ONE)).add_exponent(t)
}

/// (m, n) with e^x = (1 + m)·2^n and |m| below 0.42; x is clamped to where e^x and x·e^x are neither 0 nor infinite, and a
/// little beyond.
#[inline(always)]
pub fn exp_parts<V: Vector>(x: V) -> (V, V) {
    let x = x.at_least(x.splat(V::Real::EXP_MIN)).at_most(x.splat(V::Real::EXP_MAX));
    let n = (x * x.splat(V::Real::LOG2_E)).round();
    let [high, low] = V::Real::LN_2;
    let r = n.neg_mul_add(x.splat(low), n.neg_mul_add(x.splat(high), x));
    (V::Real::exp_m1_tail(r).mul_add(r * r, r), n)
}

/// e^x for x ≤ 0, to 1 ulp, a little more where it is subnormal. NaN passes.
#[inline(always)]
pub fn exp_of_negative<V: Vector>(x: V) -> V {
    let x = x.at_least(x.splat(V::Real::EXP_MIN));
    let magic = x.splat(V::Real::ROUND_MAGIC);
    let n = x.mul_add(x.splat(V::Real::LOG2_E), magic) - magic;
    let [high, low] = V::Real::LN_2;
    let r = n.neg_mul_add(x.splat(low), n.neg_mul_add(x.splat(high), x));
    (V::Real::exp_m1_tail(r).mul_add(r * r, r) + x.splat(V::Real::ONE)).scale_down(n)
}

/// e^x to 1 ulp, a little more where it is subnormal.
#[inline(always)]
pub fn exp<V: Vector>(x: V) -> V {
    let (m, n) = exp_parts(x);
    (m + x.splat(V::Real::ONE)).scale(n)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::testing::{Function, check, map, sweep};
    use crate::arch::{Kernels, Lanes};

    struct Exp;
    impl Function for Exp {
        #[inline(always)]
        fn call<V: Vector>(x: V) -> V {
            exp(x)
        }
    }
    struct Exp2;
    impl Function for Exp2 {
        #[inline(always)]
        fn call<V: Vector>(x: V) -> V {
            exp2(x)
        }
    }

    #[test]
    fn exp_is_accurate() {
        check::<Exp>(&sweep(-87.0, 88.7, 100_000), [1.1, 1.6], f64::exp);
        check::<Exp>(&sweep(-110.0, -87.0, 20_000), [1.6, 1.6], f64::exp);
    }

    struct Small;
    impl Function for Small {
        #[inline(always)]
        fn call<V: Vector>(x: V) -> V {
            x.exp2_small()
        }
    }
    struct Negative;
    impl Function for Negative {
        #[inline(always)]
        fn call<V: Vector>(x: V) -> V {
            exp_of_negative(x)
        }
    }

    /// The kernels may take either.
    #[test]
    fn small_and_any_agree_in_bits() {
        fn check<R: Lanes>(to: f64) {
            let x: Vec<R> = sweep(-to, to, 200_000).iter().map(|&x| R::from_f64(x)).collect();
            for k in Kernels::available() {
                let (small, any) = (map::<R, Small>(k, &x), map::<R, Exp2>(k, &x));
                assert!(small.iter().zip(&any).all(|(a, b)| a.to_f64().to_bits() == b.to_f64().to_bits()), "{:?}", k.isa());
            }
        }
        check::<f32>(f64::from(f32::EXP2_SMALL) - 1e-3);
        check::<f64>(f64::EXP2_SMALL - 1e-3);
    }

    /// A decay near 1 is raised to high powers: its error must vanish with x.
    #[test]
    fn small_decays_are_more_accurate() {
        let x: Vec<f32> = (0..2_000_000).map(|i| -(i as f32) * 5e-7).collect();
        for k in Kernels::available() {
            for (&x, y) in x.iter().zip(map::<f32, Small>(k, &x)) {
                let want = f64::from(x).exp2();
                let (error, bound) = ((f64::from(y) - want).abs() / want, 2.5e-7f64.min(6e-8 + 1.4e-6 * f64::from(-x)));
                assert!(error <= bound, "{:?} at {x}: {error:e}", k.isa());
            }
        }
    }

    #[test]
    fn exp_of_negative_is_accurate() {
        check::<Negative>(&sweep(-87.0, 0.0, 100_000), [1.1, 1.6], f64::exp);
        check::<Negative>(&sweep(-110.0, -87.0, 20_000), [1.6, 1.6], f64::exp);
        check::<Negative>(&[-700.0, -744.0, -1e5], [1.6, 1.6], f64::exp);
    }

    #[test]
    fn exp2_is_accurate() {
        // 2.5e-7 is 2.1 to 4.2 ulps of f32.
        check::<Exp2>(&sweep(-125.0, 127.9, 100_000), [4.2, 2.0], f64::exp2);
        check::<Exp2>(&sweep(-155.0, -125.0, 20_000), [4.2, 2.0], f64::exp2);
    }

    fn special<R: Lanes, F: Function>(positive_infinity: bool) {
        let infinite = R::ONE / R::ZERO;
        let nan = R::ZERO * infinite;
        let x = [R::ZERO, -R::ZERO, infinite, -infinite, nan, R::of(2000), -R::of(2000), R::MAX, -R::MAX];
        for k in Kernels::available() {
            let y = map::<R, F>(k, &x);
            assert_eq!([y[0], y[1], y[3]], [R::ONE, R::ONE, R::ZERO], "{:?}", k.isa());
            assert!(if positive_infinity { y[2] == infinite } else { !y[2].is_finite() });
            assert!(y[4].to_f64().is_nan());
            assert_eq!(y[5..], [infinite, R::ZERO, infinite, R::ZERO], "{:?}", k.isa());
        }
    }

    #[test]
    fn special_values() {
        special::<f32, Exp>(true);
        special::<f64, Exp>(true);
        special::<f32, Exp2>(false);
        special::<f64, Exp2>(false);
    }

    #[test]
    fn gradual_underflow() {
        for k in Kernels::available() {
            let y = map::<f32, Exp2>(k, &[-149.0, -140.0, -126.0, -151.0]);
            assert_eq!(y, [2f32.powi(-149), 2f32.powi(-140), 2f32.powi(-126), 0.0]);
            let y = map::<f64, Exp2>(k, &[-1074.0, -1050.0, -1022.0, -1076.0]);
            assert_eq!(y, [5e-324, 2f64.powi(-1050), 2f64.powi(-1022), 0.0]);
        }
    }
}

//! Sine and cosine of an angle in two parts.

use crate::arch::generic::tables::Tables;
use crate::arch::generic::vector::{Part, Vector};
use crate::element::{Real, Weight};

/// (sin, cos) of `high + low`, where `high` is a rounded product and `low` what the rounding took away. Infinite angles give NaN.
#[inline(always)]
pub fn sin_cos<V: Vector>(high: V, low: V) -> (V, V) {
    let (sin, cos) = reduced(high, low);
    if high.all_below(V::Real::ANGLE_MAX) {
        return (sin, cos);
    }
    // Only the lanes that need it: what a lane gets must not depend on its neighbours.
    let (far_sin, far_cos) = high.outline(Far { high, low });
    let near = high.abs().lt(high.splat(V::Real::ANGLE_MAX));
    (V::select(near, sin, far_sin), V::select(near, cos, far_cos))
}

/// By Cody and Waite's reduction to |r| ≤ π/4 in quadrant q, and polynomials.
#[inline(always)]
fn reduced<V: Vector>(high: V, low: V) -> (V, V) {
    let number = |x| high.splat(x);
    let quadrants = (high * number(V::Real::FRAC_2_PI)).round();
    let [a, b, c] = V::Real::PI_2;
    let r = quadrants.neg_mul_add(number(b), quadrants.neg_mul_add(number(a), high));
    let r = quadrants.neg_mul_add(number(c), r) + low;
    let r2 = r * r;
    let sin = (V::Real::sin_tail(r2) * r2).mul_add(r, r);
    let cos = (V::Real::cos_tail(r2) * r2).mul_add(r2, r2.neg_mul_add(number(V::Real::HALF), number(V::Real::ONE)));
    // q in −2..=2, congruent to the quadrant modulo 4.
    let q = (quadrants * number(V::Real::of(1) / V::Real::of(4))).round().neg_mul_add(number(V::Real::of(4)), quadrants);
    let (one, half) = (number(V::Real::ONE), number(V::Real::HALF));
    let swap = q.abs().eq(one);
    let (s, c) = (V::select(swap, cos, sin), V::select(swap, sin, cos));
    let (sin_keeps, cos_keeps) = ((q - half).abs().lt(one), (q + half).abs().lt(one));
    (V::select(sin_keeps, s, -s), V::select(cos_keeps, c, -c))
}

/// Angles beyond the reduction's range, lane by lane.
struct Far<V> {
    high: V,
    low: V,
}

impl<V: Vector> Part<V> for Far<V> {
    type Out = (V, V);
    #[inline(always)]
    fn run(self, zero: V) -> (V, V) {
        let (mut sin, mut cos) = (zero, zero);
        for i in 0..V::LANES {
            let (s, c) = self.high.lanes()[i].sin_cos();
            sin.lanes_mut()[i] = s;
            cos.lanes_mut()[i] = c;
        }
        // The low part is below an ulp of the angle: first order, and none where the angle is beyond all meaning.
        let low = V::select(self.low.abs().lt(zero.splat(V::Real::ONE)), self.low, zero);
        let far = (low.mul_add(cos, sin), low.neg_mul_add(sin, cos));
        // A lane in the reduction's range has the same bits whatever its neighbours are.
        let (near, within) = (reduced(self.high, self.low), self.high.abs().lt(zero.splat(V::Real::ANGLE_MAX)));
        (V::select(within, near.0, far.0), V::select(within, near.1, far.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::generic::vector::{Op, rows, rows_mut};
    use crate::arch::testing::{Staged, sweep};
    use crate::arch::{Kernels, Lanes};

    /// sin and cos of x·y.
    struct OfProduct<'a, R> {
        x: &'a [R],
        y: &'a [R],
        sin: &'a mut [R],
        cos: &'a mut [R],
    }

    impl<R: Tables> Op<R> for OfProduct<'_, R> {
        type Out = ();
        #[inline(always)]
        fn run<V: Vector<Real = R>>(self, zero: V) {
            let count = self.x.len() / V::LANES;
            let (x, y) = (rows(zero, self.x, count), rows(zero, self.y, count));
            let (sin, cos) = (rows_mut(zero, self.sin, count), rows_mut(zero, self.cos, count));
            for i in 0..count {
                let high = x[i] * y[i];
                (sin[i], cos[i]) = sin_cos(high, x[i].residual(y[i], high));
            }
        }
    }

    fn of_products<R: Lanes>(k: Kernels, x: &[f64], y: f64) -> (Vec<R>, Vec<R>) {
        let count = x.len().next_multiple_of(16);
        let mut padded = x.to_vec();
        padded.resize(count, 0.0);
        let (mut a, mut b) = (Staged::<R>::from(&padded), Staged::<R>::from(&vec![y; count]));
        let (mut sin, mut cos) = (Staged::<R>::new(count), Staged::<R>::new(count));
        k.run(OfProduct { x: a.get(), y: b.get(), sin: sin.get(), cos: cos.get() });
        (sin.get()[..x.len()].to_vec(), cos.get()[..x.len()].to_vec())
    }

    #[test]
    fn products_are_exact_angles() {
        let y = f64::from(201.062_f32);
        let x: Vec<f64> = sweep(-30.0, 30.0, 40_000).iter().map(|&x| f64::from(x as f32)).collect();
        for k in Kernels::available() {
            let (sin, cos) = of_products::<f32>(k, &x, y);
            for (i, &x) in x.iter().enumerate() {
                let (s, c) = (x * y).sin_cos();
                let error = (f64::from(sin[i]) - s).abs().max((f64::from(cos[i]) - c).abs());
                assert!(error <= 1.2e-7, "{:?}: {error:e} at {x:e}", k.isa());
            }
        }
    }

    #[test]
    fn doubles_are_accurate() {
        let x = sweep(-9e5, 9e5, 40_000);
        for k in Kernels::available() {
            let (sin, cos) = of_products::<f64>(k, &x, 1.0);
            for (i, &x) in x.iter().enumerate() {
                let (s, c) = x.sin_cos();
                assert!((sin[i] - s).abs().max((cos[i] - c).abs()) <= 2.3e-16, "{:?}: {:e} at {x:e}", k.isa(), sin[i] - s);
            }
        }
    }

    #[test]
    fn far_angles_and_special_values() {
        let x = [1e5, -3e7, 1e30, 0.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN];
        for k in Kernels::available() {
            let (sin, cos) = of_products::<f32>(k, &x, 1.0);
            for i in 0..4 {
                let (s, c) = f64::from(x[i] as f32).sin_cos();
                assert!((f64::from(sin[i]) - s).abs().max((f64::from(cos[i]) - c).abs()) <= 1.2e-7);
            }
            assert!(sin[4..].iter().chain(&cos[4..]).all(|x| x.is_nan()));
            let (sin, cos) = of_products::<f64>(k, &x, 1.0);
            for i in 0..4 {
                let (s, c) = x[i].sin_cos();
                assert!((sin[i] - s).abs().max((cos[i] - c).abs()) <= 2.3e-16);
            }
            assert!(sin[4..].iter().chain(&cos[4..]).all(|x| x.is_nan()));
        }
    }

    #[test]
    fn a_lane_does_not_depend_on_its_neighbours() {
        let x: Vec<f64> = (0..16).map(|i| 0.37 * f64::from(i) - 2.9).collect();
        for k in Kernels::available() {
            let (sin, cos) = of_products::<f32>(k, &x, 1.7);
            for far in [1e6, f64::NAN, f64::INFINITY] {
                let mut spoiled = x.clone();
                spoiled[3] = far;
                let (s, c) = of_products::<f32>(k, &spoiled, 1.7);
                for i in (0..16).filter(|&i| i != 3) {
                    assert_eq!(
                        [s[i].to_bits(), c[i].to_bits()],
                        [sin[i].to_bits(), cos[i].to_bits()],
                        "{:?} lane {i} beside {far}",
                        k.isa()
                    );
                }
            }
        }
    }
}

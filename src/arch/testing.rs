//! What the tests of the vector functions and kernels share.

use crate::arch::generic::tables::Tables;
use crate::arch::generic::vector::{Op, Vector, rows, rows_mut};
use crate::arch::{Kernels, Lanes};
use crate::buffer::Buffer;
use crate::element::Real;

/// A vector function of one argument, for [`map`].
pub(crate) trait Function {
    /// Its value.
    fn call<V: Vector>(x: V) -> V;
}

struct Map<'a, R, F> {
    x: &'a [R],
    y: &'a mut [R],
    function: core::marker::PhantomData<F>,
}

impl<R: Tables, F: Function> Op<R> for Map<'_, R, F> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector<Real = R>>(self, zero: V) {
        let count = self.x.len() / V::LANES;
        for (x, y) in rows(zero, self.x, count).iter().zip(rows_mut(zero, self.y, count)) {
            *y = F::call(*x);
        }
    }
}

/// F over all of `x`.
pub(crate) fn map<R: Lanes, F: Function>(k: Kernels, x: &[R]) -> Vec<R> {
    let count = x.len().next_multiple_of(16);
    let (mut from, mut to) = (Staged::new(count), Staged::new(count));
    from.get()[..x.len()].copy_from_slice(x);
    k.run(Map::<R, F> { x: from.get(), y: to.get(), function: core::marker::PhantomData });
    to.get()[..x.len()].to_vec()
}

/// Aligned numbers.
pub(crate) struct Staged<R> {
    buffer: Buffer,
    count: usize,
    of: core::marker::PhantomData<R>,
}

impl<R: Real> Staged<R> {
    /// `count` zeros.
    pub(crate) fn new(count: usize) -> Self {
        Staged { buffer: Buffer::new(), count, of: core::marker::PhantomData }
    }
    /// From numbers of type f64, rounded.
    pub(crate) fn from(numbers: &[f64]) -> Self {
        let mut s = Self::new(numbers.len());
        for (to, &x) in s.get().iter_mut().zip(numbers) {
            *to = R::from_f64(x);
        }
        s
    }
    /// The numbers.
    pub(crate) fn get(&mut self) -> &mut [R] {
        let bytes = crate::workspace::bytes_of::<R>(self.count) + 64;
        self.buffer.workspace(bytes).slice(self.count).unwrap()
    }
}

/// Distance between a value and its reference, in ulps of the type: 0 where both are NaN or the same infinity, and subnormal
/// numbers are spaced as they are.
pub(crate) fn ulps<R: Real>(value: R, reference: f64) -> f64 {
    let (v, least) = (value.to_f64(), if R::UNIT > 1e-12 { 2f64.powi(-149) } else { 5e-324 });
    let rounded = R::from_f64(reference).to_f64();
    if v == rounded || (v.is_nan() && rounded.is_nan()) {
        return if reference.is_finite() && rounded.is_finite() { (v - reference).abs() / spacing::<R>(reference, least) } else { 0.0 };
    }
    (v - reference).abs() / spacing::<R>(reference, least)
}

fn spacing<R: Real>(x: f64, least: f64) -> f64 {
    let binade = 2f64.powi(x.abs().max(f64::MIN_POSITIVE).log2().floor() as i32);
    (binade * 2.0 * R::UNIT).max(least)
}

/// The largest distance of F from `reference` over `x`, on these kernels, with where it is.
pub(crate) fn worst<R: Lanes, F: Function>(k: Kernels, x: &[R], reference: impl Fn(f64) -> f64) -> (f64, f64) {
    let y = map::<R, F>(k, x);
    let mut worst = (0.0, 0.0);
    for (&x, &y) in x.iter().zip(&y) {
        let e = ulps(y, reference(x.to_f64()));
        if e > worst.0 || e.is_nan() {
            worst = (e, x.to_f64());
        }
    }
    worst
}

/// Asserts that F is within `bounds` ulps, [f32, f64], of a reference on every instruction set and both types.
pub(crate) fn check<F: Function>(x: &[f64], bounds: [f64; 2], reference: impl Fn(f64) -> f64) {
    let narrow: Vec<f32> = x.iter().map(|&x| x as f32).collect();
    for k in Kernels::available() {
        let (e, at) = worst::<f32, F>(k, &narrow, &reference);
        assert!(e <= bounds[0], "{:?} f32: {e} ulps at {at:e}", k.isa());
        let (e, at) = worst::<f64, F>(k, x, &reference);
        assert!(e <= bounds[1], "{:?} f64: {e} ulps at {at:e}", k.isa());
    }
}

/// Asserts that F is within `bound` ulps at every `step`th finite number of type f32, on every instruction set.
pub(crate) fn check_line<F: Function>(step: usize, bound: f64, reference: impl Fn(f64) -> f64) {
    let infinite = f32::INFINITY.to_bits() as usize;
    for first in (0..infinite).step_by(step << 14) {
        let bits = (first..infinite).step_by(step).take(1 << 14);
        let x: Vec<f32> = bits.map(|bits| f32::from_bits(bits as u32)).flat_map(|x| [x, -x]).collect();
        for k in Kernels::available() {
            let (e, at) = worst::<f32, F>(k, &x, &reference);
            assert!(e <= bound, "{:?}: {e} ulps at {at:e}", k.isa());
        }
    }
}

/// Evenly spaced numbers and both signs of a geometric sequence.
pub(crate) fn sweep(low: f64, high: f64, count: usize) -> Vec<f64> {
    let mut x: Vec<f64> = (0..=count).map(|i| low + (high - low) * i as f64 / count as f64).collect();
    x.extend(
        (0..count).map(|i| 10f64.powf(-30.0 + 31.0 * i as f64 / count as f64)).flat_map(|x| [x, -x]).filter(|&x| low <= x && x <= high),
    );
    x
}

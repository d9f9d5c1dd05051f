//! Random operands in any layout, as a storage type has them and as the same numbers in f64.

use selective_scan::element::{Element, Real, Weight};
use selective_scan::view::{View, ViewMut};

/// Numbers from a seed, by splitmix64.
#[derive(Debug, Clone)]
pub struct Draw(pub u64);

impl Draw {
    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Uniform between two numbers.
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * ((self.bits() >> 11) as f64 / (1u64 << 53) as f64)
    }

    /// Below n.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// One of two.
    pub fn coin(&mut self) -> bool {
        self.bits() & 1 == 1
    }
}

/// The number in the storage type.
pub fn stored<T: Element>(re: f64, im: f64) -> T {
    type R<T> = <<T as Element>::Arith as Weight>::Real;
    T::store(T::Arith::from_parts(R::<T>::from_f64(re), R::<T>::from_f64(im)))
}

/// Real and imaginary part.
pub fn parts<T: Element>(x: T) -> [f64; 2] {
    let x = x.load();
    [x.re().to_f64(), x.im().to_f64()]
}

/// A tensor with strides of its own.
#[derive(Debug, Clone)]
pub struct Tensor<T, const R: usize> {
    pub data: Vec<T>,
    offset: usize,
    pub dims: [usize; R],
    strides: [isize; R],
}

/// Calls `f` with every index.
pub fn each<const R: usize>(dims: [usize; R], mut f: impl FnMut([usize; R])) {
    for i in 0..dims.iter().product() {
        let (mut rest, mut index) = (i, [0; R]);
        for axis in (0..R).rev() {
            index[axis] = rest % dims[axis];
            rest /= dims[axis];
        }
        f(index);
    }
}

impl<T: Element, const R: usize> Tensor<T, R> {
    /// Zeros. `order` has the axes from the slowest to the fastest; `pad` elements stand between neighbours along each axis but the fastest, and between
    /// those too where `step` is above 1.
    pub fn zeros(dims: [usize; R], order: [usize; R], pad: usize, step: usize) -> Self {
        let (mut strides, mut size) = ([0; R], step);
        for &axis in order.iter().rev() {
            strides[axis] = size as isize;
            size = size * dims[axis].max(1) + pad;
        }
        Tensor { data: vec![T::default(); size + 1], offset: 0, dims, strides }
    }

    /// Contiguous random numbers.
    pub fn random(draw: &mut Draw, dims: [usize; R], low: f64, high: f64) -> Self {
        Self::zeros(dims, core::array::from_fn(|i| i), 0, 1).filled(draw, low, high)
    }

    /// Random numbers in a random layout.
    pub fn scattered(draw: &mut Draw, dims: [usize; R], low: f64, high: f64) -> Self {
        Self::anywhere(draw, dims).filled(draw, low, high)
    }

    /// Zeros in a random layout.
    pub fn anywhere(draw: &mut Draw, dims: [usize; R]) -> Self {
        let mut order: [usize; R] = core::array::from_fn(|i| i);
        (1..R).for_each(|i| order.swap(i, draw.below(i + 1)));
        let (pad, step) = (draw.below(4), 1 + draw.below(2));
        let mut this = Self::zeros(dims, order, pad, step);
        if dims.contains(&0) {
            return this;
        }
        for (stride, count) in this.strides.iter_mut().zip(dims) {
            if draw.below(4) == 0 {
                this.offset += *stride as usize * (count - 1);
                *stride = -*stride;
            }
        }
        this
    }

    /// With random numbers as its elements.
    pub fn filled(mut self, draw: &mut Draw, low: f64, high: f64) -> Self {
        each(self.dims, |i| {
            let value = stored(draw.between(low, high), draw.between(low, high));
            self.view_mut().set(i, value);
        });
        self
    }

    /// The same numbers, contiguous and in another type.
    pub fn cast<U: Element>(&self) -> Tensor<U, R> {
        let mut out = Tensor::<U, R>::zeros(self.dims, core::array::from_fn(|i| i), 0, 1);
        each(self.dims, |i| {
            let [re, im] = parts(self.view().get(i));
            out.view_mut().set(i, stored(re, im));
        });
        out
    }

    /// Its numbers in logical order.
    pub fn numbers(&self) -> Vec<f64> {
        let mut out = Vec::new();
        each(self.dims, |i| out.extend(&parts(self.view().get(i))[..if T::Arith::COMPLEX { 2 } else { 1 }]));
        out
    }

    /// A view.
    pub fn view(&self) -> View<'_, T, R> {
        View::strided(&self.data, self.offset, self.dims, self.strides)
    }

    /// A view to write.
    pub fn view_mut(&mut self) -> ViewMut<'_, T, R> {
        ViewMut::strided(&mut self.data, self.offset, self.dims, self.strides)
    }
}

/// Half an ulp of a storage type relative to a number, and half its smallest subnormal.
pub fn rounding<T: Element>() -> [f64; 2] {
    use selective_scan::element::Dtype::{Bf16, Cbf16, Cf16, F16};
    match T::DTYPE {
        F16 | Cf16 => [2f64.powi(-11), 2f64.powi(-25)],
        Bf16 | Cbf16 => [2f64.powi(-8), 0.0],
        _ => [0.0, 0.0],
    }
}

/// Panics where a result is farther from the reference than its type's rounding and `relative` of the largest number allow.
pub fn compare<T: Element, const R: usize>(what: &str, got: &Tensor<T, R>, want: &[f64], relative: f64) {
    let max = want.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    let [unit, least] = rounding::<T>();
    let got = got.numbers();
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let bound = unit * w.abs() + least + relative * max;
        assert!((g - w).abs() <= bound, "{what}: element {i} is {g:e}, {w:e} is wanted, {:e} of the largest {max:e}", (g - w).abs() / max);
    }
}

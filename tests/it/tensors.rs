//! Tensors for tests: numbers from a seed, in any layout, and the ways of running an operation.

use bytemuck::Pod;
use selective_scan::buffer::{Buffer, Workspace};
use selective_scan::element::{Element, Input, Real};
use selective_scan::par::Par;
use selective_scan::view::{View, ViewMut};

/// `count` multiples of 1/64 below 2 in magnitude, which bf16 and f16 hold exactly.
pub fn numbers(count: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x1234_5678_9abc_def1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..count).map(|_| (next() >> 20) as f64 % 255.0 / 64.0 - 127.0 / 64.0).collect()
}

/// How a tensor lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Row-major.
    Dense,
    /// Column-major, with a gap behind each column.
    Transposed,
    /// Row-major with every axis backwards and gaps between the elements.
    Backwards,
}

/// Every layout.
pub const LAYOUTS: [Layout; 3] = [Layout::Dense, Layout::Transposed, Layout::Backwards];

/// An owned tensor.
#[derive(Debug, Clone)]
pub struct Tensor<T, const R: usize> {
    data: Vec<T>,
    offset: usize,
    dims: [usize; R],
    strides: [isize; R],
}

impl<T: Pod, const R: usize> Tensor<T, R> {
    /// All of `value`.
    pub fn filled(dims: [usize; R], layout: Layout, value: T) -> Self {
        let mut strides = [0; R];
        let gap = if layout == Layout::Dense { 0 } else { 1 };
        let mut size = if layout == Layout::Backwards { 2 } else { 1 };
        for i in 0..R {
            let axis = if layout == Layout::Transposed { i } else { R - 1 - i };
            strides[axis] = size as isize;
            size = size * dims[axis].max(1) + gap;
        }
        let mut offset = 0;
        if layout == Layout::Backwards {
            offset = (0..R).map(|i| dims[i].saturating_sub(1) * strides[i] as usize).sum();
            strides = strides.map(|s| -s);
        }
        Tensor { data: vec![value; size + 1], offset, dims, strides }
    }

    /// The numbers in row-major order.
    pub fn new(dims: [usize; R], layout: Layout, values: &[T]) -> Self {
        assert_eq!(values.len(), dims.iter().product::<usize>());
        let mut tensor = Self::filled(dims, layout, T::zeroed());
        tensor.indices().iter().zip(values).for_each(|(i, v)| tensor.view_mut().set(*i, *v));
        tensor
    }

    fn indices(&self) -> Vec<[usize; R]> {
        let count = self.dims.iter().product();
        let index = |mut n: usize| {
            let mut at = [0; R];
            (0..R).rev().for_each(|i| (at[i], n) = (n % self.dims[i], n / self.dims[i]));
            at
        };
        (0..count).map(index).collect()
    }

    /// The elements in row-major order.
    pub fn values(&self) -> Vec<T> {
        self.indices().iter().map(|i| self.view().get(*i)).collect()
    }

    pub fn view(&self) -> View<'_, T, R> {
        View::strided(&self.data, self.offset, self.dims, self.strides)
    }

    pub fn view_mut(&mut self) -> ViewMut<'_, T, R> {
        ViewMut::strided(&mut self.data, self.offset, self.dims, self.strides)
    }
}

/// Numbers as stored in `I`.
pub fn stored<I: Input>(values: &[f64]) -> Vec<I> {
    values.iter().map(|v| I::store(I::Accum::from_f64(*v))).collect()
}

/// Stored numbers in f64.
pub fn wide<I: Input>(values: &[I]) -> Vec<f64> {
    values.iter().map(|v| v.load().to_f64()).collect()
}

/// Who runs the parts.
#[derive(Debug, Clone, Copy)]
pub enum Threads {
    One,
    Rayon(usize),
    Parts(usize),
}

/// Ways whose bits must agree.
pub const THREADS: [Threads; 7] =
    [Threads::One, Threads::Rayon(1), Threads::Rayon(2), Threads::Rayon(3), Threads::Rayon(7), Threads::Parts(1), Threads::Parts(3)];

impl Threads {
    /// Runs an operation of `phases` phases with a workspace of just the bytes that `query` asks for, filled with NaN.
    pub fn run(self, phases: usize, query: impl Fn(Par) -> usize + Sync, call: impl FnMut(Par, &mut Workspace<'_>) + Send) {
        let mut call = call;
        let mut bytes = Vec::new();
        let mut on = |par: Par| {
            bytes.resize(query(par), 0xff);
            call(par, &mut Workspace::new(&mut bytes));
        };
        match self {
            Threads::One => on(Par::Seq),
            #[cfg(feature = "rayon")]
            Threads::Rayon(n) => {
                rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(|| {
                    let mut bytes = vec![0xff; query(Par::Rayon)];
                    call(Par::Rayon, &mut Workspace::new(&mut bytes));
                });
            }
            #[cfg(not(feature = "rayon"))]
            Threads::Rayon(n) => {
                assert!(n > 0);
                on(Par::Seq);
            }
            Threads::Parts(count) => {
                // Backwards, since no order is promised.
                for phase in 0..phases {
                    (0..count).rev().for_each(|index| on(Par::Part { index, count, phase }));
                }
            }
        }
    }
}

/// Runs a call that needs a workspace on this thread.
pub fn alone<T>(bytes: usize, call: impl FnOnce(&mut Workspace<'_>) -> T) -> T {
    call(&mut Buffer::new().workspace(bytes))
}

/// Largest difference over the largest magnitude of the reference; 0 where both are zero everywhere.
pub fn error(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let max = want.iter().fold(0.0f64, |m, w| m.max(w.abs()));
    let worst = got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0f64, |m, e| if e <= m { m } else { e });
    if worst == 0.0 { 0.0 } else { worst / max }
}

/// Panics unless each number is within roundoff of the storage, and a little of the maximum, of the reference.
pub fn assert_rounded<I: Input>(what: &str, got: &[f64], want: &[f64]) {
    use selective_scan::element::Dtype;
    let (unit, tiny) = match I::DTYPE {
        Dtype::F16 => ((-11f64).exp2(), (-25f64).exp2()),
        Dtype::Bf16 => ((-8f64).exp2(), 0.0),
        other => panic!("{} is not a 16-bit type", other.name()),
    };
    let max = want.iter().fold(0.0f64, |m, w| m.max(w.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let bound = unit * w.abs() + tiny + 2e-6 * max;
        assert!((g - w).abs() <= bound, "{what}[{i}] in {}: {g}, wanted {w}", I::DTYPE.name());
    }
}

/// Panics unless the bits agree.
pub fn assert_bits<T: Element>(what: &str, got: &[T], want: &[T]) {
    let bytes = |v: &[T]| bytemuck::cast_slice::<T, u8>(v).to_vec();
    assert!(bytes(got) == bytes(want), "{what}: {got:?} and {want:?}");
}

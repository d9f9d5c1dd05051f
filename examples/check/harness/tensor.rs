//! Tensors in a storage type and a memory layout. What lies between the elements is marked, so that a stray write is found.

use selective_scan::element::{Element, Real, Weight};
use selective_scan::view::{View, ViewMut};

use super::array::Array;

/// How memory is ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Row-major.
    Contiguous,
    /// The second axis innermost: (B, D, L) for sequences, (N, D) for matrices.
    Transposed,
    /// Row-major with gaps between rows, from an offset.
    Padded,
    /// Every other element, the second axis walked backwards.
    Backwards,
}

impl Layout {
    /// Every layout but the contiguous one.
    pub const STRIDED: [Layout; 3] = [Layout::Transposed, Layout::Padded, Layout::Backwards];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Layout::Contiguous => "contiguous",
            Layout::Transposed => "transposed layout",
            Layout::Padded => "padded layout",
            Layout::Backwards => "backwards layout",
        }
    }

    /// Offset, strides and buffer length for a shape.
    fn place<const R: usize>(self, dims: [usize; R]) -> (usize, [isize; R], usize) {
        // Axes from the innermost outwards.
        let mut order: Vec<usize> = (0..R).rev().collect();
        if self == Layout::Transposed && R > 1 {
            order.retain(|&axis| axis != 1);
            order.insert(0, 1);
        }
        let (mut stride, gap, mut offset) = match self {
            Layout::Padded => (1, 3, 5),
            Layout::Backwards => (2, 1, 1),
            _ => (1, 0, 0),
        };
        let mut strides = [0; R];
        for axis in order {
            strides[axis] = stride as isize;
            stride = stride * dims[axis].max(1) + gap;
        }
        let len = offset + stride + gap;
        if self == Layout::Backwards && R > 1 && !dims.contains(&0) {
            offset += (dims[1] - 1) * strides[1] as usize;
            strides[1] = -strides[1];
        }
        (offset, strides, len)
    }
}

/// A number that no result equals: it marks what has not been written.
const MARK: f64 = 1984.0;

/// A tensor with its own memory.
pub struct Tensor<T, const R: usize> {
    data: Vec<T>,
    offset: usize,
    dims: [usize; R],
    strides: [isize; R],
}

/// f64 to storage, rounded.
fn store<T: Element>(re: f64, im: f64) -> T {
    let real = <T::Arith as Weight>::Real::from_f64;
    T::store(T::Arith::from_parts(real(re), real(im)))
}

impl<T: Element, const R: usize> Tensor<T, R> {
    /// A tensor to be written.
    pub fn marked(dims: [usize; R], layout: Layout) -> Self {
        let (offset, strides, len) = layout.place(dims);
        Tensor { data: vec![store(MARK, MARK); len], offset, dims, strides }
    }

    /// An array in this storage type. The rank and the kind of number are the case reader's to check.
    pub fn from(array: &Array, layout: Layout) -> Self {
        assert_eq!(array.complex, T::Arith::COMPLEX, "a complex array in a complex type");
        let mut tensor = Self::marked(array.dims.as_slice().try_into().expect("the rank was checked"), layout);
        let width = 1 + usize::from(array.complex);
        for (at, number) in tensor.places().into_iter().zip(array.data.chunks(width)) {
            tensor.data[at] = store(number[0], number[width - 1]);
        }
        tensor
    }

    /// Where the elements stand, in row-major order.
    fn places(&self) -> Vec<usize> {
        let count = self.dims.iter().product();
        let place = |mut flat: usize| {
            let mut at = self.offset as isize;
            for axis in (0..R).rev() {
                at += (flat % self.dims[axis]) as isize * self.strides[axis];
                flat /= self.dims[axis];
            }
            at as usize
        };
        (0..count).map(place).collect()
    }

    /// For reading.
    pub fn view(&self) -> View<'_, T, R> {
        View::strided(&self.data, self.offset, self.dims, self.strides)
    }

    /// For writing.
    pub fn view_mut(&mut self) -> ViewMut<'_, T, R> {
        ViewMut::strided(&mut self.data, self.offset, self.dims, self.strides)
    }

    /// The elements, widened. Panics where something was written beside them.
    pub fn array(&self) -> Array {
        let (places, mark) = (self.places(), store::<T>(MARK, MARK));
        let mut own = vec![false; self.data.len()];
        places.iter().for_each(|&at| own[at] = true);
        assert!(self.data.iter().zip(&own).all(|(&x, &own)| own || x == mark), "a result wrote outside its view");
        let mut data = Vec::new();
        for at in places {
            let x = self.data[at].load();
            data.push(x.re().to_f64());
            if T::Arith::COMPLEX {
                data.push(x.im().to_f64());
            }
        }
        Array { dims: self.dims.to_vec(), data, complex: T::Arith::COMPLEX }
    }
}

//! Tensors on the device for tests, in any layout. Gaps between elements hold a canary, which must be there whenever values are read back.

use bytemuck::Pod;
use selective_scan::buffer::Workspace;
use selective_scan::cuda::DeviceBuffer;
use selective_scan::error::Error;
use selective_scan::view::{Device, View, ViewMut};

use super::engine;

const CANARY: u8 = 0xa5;

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

/// An owned tensor on the device.
#[derive(Debug)]
pub struct Tensor<T, const R: usize> {
    buffer: DeviceBuffer<T>,
    offset: usize,
    dims: [usize; R],
    strides: [isize; R],
}

impl<T: Pod, const R: usize> Tensor<T, R> {
    /// The numbers in row-major order.
    pub fn new(dims: [usize; R], layout: Layout, values: &[T]) -> Self {
        assert_eq!(values.len(), dims.iter().product::<usize>());
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
        let mut data = vec![T::zeroed(); size + 1];
        bytemuck::cast_slice_mut::<T, u8>(&mut data).fill(CANARY);
        let mut tensor = Tensor { buffer: engine().buffer(data.len()).expect("memory"), offset, dims, strides };
        tensor.places().iter().zip(values).for_each(|(i, v)| data[*i] = *v);
        tensor.buffer.upload(&data).expect("it is as long");
        tensor
    }

    /// All of `value`.
    pub fn filled(dims: [usize; R], layout: Layout, value: T) -> Self {
        Self::new(dims, layout, &vec![value; dims.iter().product()])
    }

    /// Where the elements stand, in row-major order.
    fn places(&self) -> Vec<usize> {
        let place = |mut n: usize| {
            let mut at = self.offset as isize;
            (0..R).rev().for_each(|i| {
                at += (n % self.dims[i]) as isize * self.strides[i];
                n /= self.dims[i];
            });
            at as usize
        };
        (0..self.dims.iter().product()).map(place).collect()
    }

    /// The elements in row-major order.
    pub fn values(&self) -> Vec<T> {
        let data = self.buffer.to_vec().expect("it can be read");
        let places = self.places();
        let mut own = vec![false; data.len()];
        places.iter().for_each(|i| own[*i] = true);
        for (i, value) in data.iter().enumerate().filter(|(i, _)| !own[*i]) {
            assert!(bytemuck::bytes_of(value).iter().all(|b| *b == CANARY), "element {i}, outside {:?}, was written", self.dims);
        }
        places.into_iter().map(|i| data[i]).collect()
    }

    pub fn view(&self) -> View<'_, T, R, Device> {
        self.buffer.strided(self.offset, self.dims, self.strides)
    }

    pub fn view_mut(&mut self) -> ViewMut<'_, T, R, Device> {
        self.buffer.strided_mut(self.offset, self.dims, self.strides)
    }
}

/// Runs a call with a workspace of just so many bytes, filled with NaN.
pub fn with_workspace<T>(bytes: usize, call: impl FnOnce(&mut Workspace<'_, Device>) -> T) -> T {
    let mut buffer = engine().upload(&vec![0xffu8; bytes]).expect("memory");
    call(&mut buffer.workspace())
}

/// The operand that an error names.
pub fn named<T: std::fmt::Debug>(result: Result<T, Error>) -> &'static str {
    match result {
        Err(Error::Shape { operand, .. } | Error::Value { operand, .. } | Error::Layout { operand, .. }) => operand,
        other => panic!("{other:?}"),
    }
}

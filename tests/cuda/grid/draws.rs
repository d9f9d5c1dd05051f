//! Numbers as they are stored.

use half::{bf16, f16};
use selective_scan::element::Dtype;

use super::array::Array;
use super::pairs::Draw;

/// The nearest number that a type has.
pub fn rounded(dtype: Dtype, x: f64) -> f64 {
    match dtype {
        Dtype::F64 | Dtype::C64 => x,
        Dtype::F32 | Dtype::C32 => f64::from(x as f32),
        Dtype::F16 | Dtype::Cf16 => f16::from_f64(x).to_f64(),
        Dtype::Bf16 | Dtype::Cbf16 => bf16::from_f64(x).to_f64(),
    }
}

/// What numbers of a storage type are computed in.
pub fn accum(storage: Dtype) -> Dtype {
    if storage == Dtype::F64 { Dtype::F64 } else { Dtype::F32 }
}

impl Draw {
    /// An array of numbers between two, each as `dtype` has it.
    pub fn array(&mut self, dims: &[usize], complex: bool, dtype: Dtype, low: f64, high: f64) -> Array {
        let mut array = Array::zeros(dims, complex);
        array.data.iter_mut().for_each(|x| *x = rounded(dtype, low + (high - low) * self.unit()));
        array
    }
}

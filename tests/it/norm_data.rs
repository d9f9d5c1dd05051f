//! Operands of RMSNorm, with a gate and groups where a test wants them.

use selective_scan::layers::norm::NormOptions;

use super::tensors::numbers;

#[derive(Debug, Clone)]
pub struct Data {
    pub dims: [usize; 2],
    pub stream: bool,
    /// Whether there is a gate, and whether the norm comes before it.
    pub gate: Option<bool>,
    pub group_size: Option<usize>,
    pub z: Vec<f64>,
    pub x: Vec<f64>,
    pub residual: Vec<f64>,
    pub weight: Vec<f64>,
    pub grad_out: Vec<f64>,
    pub grad_stream: Vec<f64>,
}

/// Operands of that size, in the bounds of every storage type; `stream`: with a residual of its own.
pub fn data(dims @ [rows, columns]: [usize; 2], stream: bool) -> Data {
    let of = |seed| numbers(rows * columns, seed);
    let z = of(6).into_iter().map(|z| 2.0 * z).collect();
    let (x, residual, weight, grad_out, grad_stream) = (of(1), of(2), numbers(columns, 3), of(4), of(5));
    Data { dims, stream, gate: None, group_size: None, z, x, residual, weight, grad_out, grad_stream }
}

impl Data {
    /// The largest group that is not a row, or one that would do for any row of no columns.
    pub fn grouped(self) -> Self {
        let columns = self.dims[1];
        let size = (1..=columns / 2).rev().find(|&size| columns.is_multiple_of(size)).unwrap_or(if columns == 0 { 3 } else { 1 });
        Data { group_size: Some(size), ..self }
    }

    pub fn gated(self, norm_before_gate: bool) -> Self {
        Data { gate: Some(norm_before_gate), ..self }
    }

    pub fn options(&self) -> NormOptions {
        NormOptions { norm_before_gate: self.gate == Some(true), group_size: self.group_size }
    }

    pub fn name(&self) -> String {
        format!("{:?}, stream {}, gate {:?}, groups of {:?}", self.dims, self.stream, self.gate, self.group_size)
    }
}

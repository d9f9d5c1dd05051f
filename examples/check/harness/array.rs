//! Arrays of f64 in row-major order: what a case holds, and what every result is widened to.

/// A real array, or a complex one whose data are pairs (re, im).
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    pub dims: Vec<usize>,
    pub data: Vec<f64>,
    pub complex: bool,
}

/// For every (row, position) of a new array, the (row, position) it comes from; None is padding.
pub type Index = Vec<Vec<Option<(usize, usize)>>>;

impl Array {
    /// Zeros.
    pub fn zeros(dims: &[usize], complex: bool) -> Self {
        Array { dims: dims.to_vec(), data: vec![0.0; dims.iter().product::<usize>() * (1 + usize::from(complex))], complex }
    }

    /// Numbers in everything after the first `axes` axes.
    fn inner(&self, axes: usize) -> usize {
        self.dims[axes..].iter().product::<usize>() * (1 + usize::from(self.complex))
    }

    /// Rearranges the first two axes, (B, L); padding is filled with `fill`.
    pub fn gather(&self, index: &Index, fill: f64) -> Self {
        let (inner, seqlen) = (self.inner(2), self.dims[1]);
        let mut data = Vec::new();
        for from in index.iter().flatten() {
            match *from {
                Some((row, t)) => data.extend_from_slice(&self.data[(row * seqlen + t) * inner..][..inner]),
                None => data.extend(std::iter::repeat_n(fill, inner)),
            }
        }
        let mut dims = vec![index.len(), index.first().map_or(0, Vec::len)];
        dims.extend_from_slice(&self.dims[2..]);
        Array { dims, data, complex: self.complex }
    }

    /// The given rows of the first axis.
    pub fn take(&self, rows: &[usize]) -> Self {
        let inner = self.inner(1);
        let data = rows.iter().flat_map(|&r| self.data[r * inner..][..inner].iter().copied()).collect();
        let mut dims = self.dims.clone();
        dims[0] = rows.len();
        Array { dims, data, complex: self.complex }
    }

    /// Position `t` of the second axis, which disappears.
    pub fn at(&self, t: usize) -> Self {
        let index = (0..self.dims[0]).map(|row| vec![Some((row, t))]).collect();
        let mut one = self.gather(&index, 0.0);
        one.dims.remove(1);
        one
    }

    /// Arrays one after another along the second axis.
    pub fn join(parts: &[Array]) -> Self {
        let rows = parts[0].dims[0];
        let mut dims = parts[0].dims.clone();
        dims[1] = parts.iter().map(|p| p.dims[1]).sum();
        let mut data = Vec::new();
        for row in 0..rows {
            for part in parts {
                let inner = part.inner(1);
                data.extend_from_slice(&part.data[row * inner..][..inner]);
            }
        }
        Array { dims, data, complex: parts[0].complex }
    }
}

//! The kernels of products, their parameters, and what is chosen for a problem.

use crate::cuda::expression::Vars;
use crate::cuda::launch::Kernel;
use crate::cuda::params::{STORAGE, Strided, params, storage};
use crate::cuda::template::{Template, template};
use crate::element::Dtype;

params! {
    /// One product, out\[m\]\[n\] = Σ_k a\[m\]\[k\]·b\[n\]\[k\] + bias\[n\].
    pub struct Product {
        a: Strided<3>,
        b: Strided<3>,
        bias: Strided<2>,
        out: Strided<3>,
        /// Where parts of split sums go, (parts, m, n) in f64; 0 where sums are not split.
        partial: u64,
        m: u64,
        n: u64,
        k: u64,
        /// Terms of one part of a sum.
        split: u64,
        /// Blocks of one part; for `linear_sum` the number of parts.
        tiles: u32,
        /// Blocks along n.
        across: u32,
        flags: u32,
        unused: u32,
    }
}

/// Lanes that load `a` run along its rows.
pub const A_BY_ROWS: u32 = 1;
/// The same of `b`.
pub const B_BY_ROWS: u32 = 2;
/// 16 bytes of `a` may be loaded at once.
pub const A_QUICK: u32 = 4;
/// The same of `b`.
pub const B_QUICK: u32 = 8;
/// Lanes that store run along m.
pub const OUT_BY_ROWS: u32 = 16;
/// The output is f32 whatever the storage.
pub const WIDE: u32 = 32;

/// Rows and columns of a tile.
pub const TILE: usize = 64;
/// Rows that the kernels for few rows take.
pub const FEW: usize = 8;
/// Terms of a chunk, which chunks are added up in f64.
pub const CHUNK: usize = 512;

/// Threads, columns of a block, and shared memory, of one kind of kernel for one storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Threads of a block.
    pub threads: u32,
    /// Columns of the output that a block has.
    pub columns: usize,
    /// Bytes of shared memory.
    pub shared: u32,
}

fn name(stem: &str, dtype: Dtype, fine: bool) -> String {
    format!("{stem}_{}{}", dtype.name(), if fine { "_f64" } else { "" })
}

fn factors(dtype: Dtype, fine: bool) -> Vars {
    let vars = storage(Vars::new(), dtype);
    if fine { vars.text("A", "f64").int("AB", 8) } else { vars }
}

macro_rules! kernel {
    ($(#[$doc:meta])* $name:ident, $template:literal, $shipped:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct $name {
            /// Storage.
            pub dtype: Dtype,
            /// Whether f32 storage is multiplied in f64.
            pub fine: bool,
        }

        impl Kernel for $name {
            const TEMPLATE: Template = template!($template);
            type Params = Product;

            fn entry(&self) -> String {
                name($template, self.dtype, self.fine)
            }

            fn vars(&self) -> Vars {
                factors(self.dtype, self.fine)
            }

            fn shipped() -> Vec<Self> {
                $shipped.into_iter().map(|(dtype, fine)| $name { dtype, fine }).collect()
            }
        }
    };
}

const PLAIN: [(Dtype, bool); 3] = [(Dtype::F32, false), (Dtype::F32, true), (Dtype::F64, false)];
const HALVES: [(Dtype, bool); 2] = [(Dtype::F16, false), (Dtype::Bf16, false)];

kernel! {
    /// Tiles of multiply-adds.
    Tiles, "linear", PLAIN
}
kernel! {
    /// Sums over rows.
    Bias, "linear_bias", STORAGE.map(|dtype| (dtype, false))
}
kernel! {
    /// Tiles on tensor cores.
    TilesMma, "linear_mma", HALVES
}
kernel! {
    /// Few rows, multiply-adds.
    Rows, "linear_rows", PLAIN
}
kernel! {
    /// Few rows, tensor cores.
    RowsMma, "linear_rows_mma", HALVES
}
kernel! {
    /// Parts of split sums.
    Sum, "linear_sum", [(Dtype::F32, false), (Dtype::F64, false)]
}

/// Bytes of f64 sums that a tile keeps beside its operands.
const TOTALS: u32 = (TILE * TILE * 8) as u32;

/// The tiles' shape for sums of `depth` terms.
pub fn tiles(dtype: Dtype, fine: bool, depth: usize) -> Shape {
    // Two stages of both operands, as the templates lay them out.
    let (threads, operands) = match dtype {
        Dtype::F64 => (256, 4 * 16 * 66 * 8),
        Dtype::F32 if fine => (256, 4 * 16 * 68 * 4),
        Dtype::F32 => (128, 4 * 32 * 68 * 4),
        _ => (128, 4 * 64 * 144),
    };
    Shape { threads, columns: TILE, shared: operands + if depth > CHUNK { TOTALS } else { 0 } }
}

/// The shape for `rows` rows, at most [`FEW`].
pub fn rows(dtype: Dtype, fine: bool, rows: usize, by_rows: bool) -> Shape {
    let bytes = match dtype {
        Dtype::F64 => 8 * 530 * 8 + 64 * 17 * 8 + rows * 16 * 33 * 8,
        Dtype::F32 => 8 * 1060 * 4 + 64 * 33 * if fine { 8 } else { 4 } + rows * 32 * 33 * 4,
        _ => 8704 + 8 * 2064 + if by_rows { 1024 * 48 } else { 16 * 2064 },
    };
    let (threads, columns) = match dtype {
        Dtype::F64 => (128, 8),
        Dtype::F32 => (256, 8),
        _ => (256, 16),
    };
    Shape { threads, columns, shared: bytes as u32 }
}

/// Parts of a sum of `depth` terms for m · n numbers, and the terms of each. By the sizes alone, so bits depend on no card.
pub fn parts(m: usize, n: usize, depth: usize) -> (usize, usize) {
    /// Blocks that keep the largest cards busy twice over.
    const ENOUGH: usize = 264;
    /// Fewer terms are not worth a part of their own.
    const LEAST: usize = 2048;
    let tiles = m.div_ceil(TILE).saturating_mul(n.div_ceil(TILE)).max(1);
    let wanted = (ENOUGH / tiles).min(depth / LEAST).max(1);
    let span = depth.div_ceil(wanted).div_ceil(CHUNK).saturating_mul(CHUNK);
    (depth.div_ceil(span.max(1)).max(1), span)
}

/// Parts of a sum over `rows` rows and the rows of each.
pub fn row_parts(rows: usize) -> (usize, usize) {
    const LEAST: usize = 2048;
    const MOST: usize = 64;
    let span = rows.div_ceil(MOST).max(LEAST);
    (rows.div_ceil(span).max(1), span)
}

/// Whether lanes that load or store (rows, columns) run along the rows: where neighbours lie closer that way.
pub fn by_rows([_, row, column]: Strided<3>, rows: usize, columns: usize) -> bool {
    rows > 1 && (columns <= 1 || row.unsigned_abs() < column.unsigned_abs())
}

/// Whether 16 bytes of a factor of 16-bit numbers can be loaded at once along its fast axis.
pub fn quick([address, row, column]: Strided<3>, by_rows: bool) -> bool {
    let (fast, slow) = if by_rows { (row, column) } else { (column, row) };
    fast == 2 && address % 16 == 0 && slow % 16 == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_the_sum() {
        for (m, n, depth) in
            [(1, 1, 0), (1, 1, 1), (64, 64, 1 << 20), (768, 3072, 4096), (48, 1536, 100_000), (5000, 5000, 9000), (3, 200, 2049)]
        {
            let (count, span) = parts(m, n, depth);
            assert!(count * span >= depth && (count - 1) * span < depth.max(1), "{m} {n} {depth}");
            assert!(span % CHUNK == 0 && count * m.div_ceil(TILE) * n.div_ceil(TILE) <= 6500);
        }
        for rows in [0, 1, 2048, 2049, 131_072, 131_073, 1 << 20] {
            let (count, span) = row_parts(rows);
            assert!((1..=64).contains(&count) && count * span >= rows && (count - 1) * span < rows.max(1), "{rows}");
        }
    }
}

//! Linear on the GPU: by the plain kernels, or by cuBLASLt where the feature `cublaslt` is on and the library is there.
//!
//! The plain kernels sum in one order whatever the number of rows, so a row's bits do not depend on the others. cuBLASLt's may: it has
//! another kernel for another number of rows; for equal sizes and layouts its bits are the same on every repeat. In 16-bit storage both
//! use the tensor cores, whose order inside an instruction is not specified: those bits are of one generation of cards.

mod kernels;
mod products;

use super::Cuda;
use super::launch::Grid;
use super::params::{Strided, optional, strided, strided_mut};
use crate::buffer::Workspace;
use crate::element::{Dtype, Element, Input};
use crate::error::Error;
use crate::layers::linear::{Linear, LinearBwd, LinearFwd, LinearProblem};
use crate::view::{Device, View, ViewMut};
use crate::workspace::{ALIGN, bytes_of};

pub(super) use kernels::{Bias, Product, Rows, RowsMma, Sum, Tiles, TilesMma};
use kernels::{FEW, TILE};
pub(super) use products::Choice;
pub use products::{Products, ProductsLine};

/// Weights of at most so many numbers of f32 are multiplied in f64 throughout, as on the host.
const SMALL_WEIGHT: usize = 1 << 14;
/// Up to so many rows the kernels for few rows serve where tiles would leave multiprocessors without work.
const MIDDLING: usize = 64;
/// Threads of the kernels that sum parts.
const THREADS: u32 = 256;

/// One product as every way of computing it takes it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub dtype: Dtype,
    /// f32 storage, sums in f64.
    pub fine: bool,
    /// Whether the output is in the arithmetic type and not in the storage type.
    pub wide: bool,
}

fn blocks(count: usize) -> Result<u32, Error> {
    u32::try_from(count).map_err(|_| Error::Unsupported { what: format!("a product of {count} blocks") })
}

impl LinearProblem {
    fn is_fine(self, dtype: Dtype) -> bool {
        dtype == Dtype::F32 && self.inputs.saturating_mul(self.outputs) <= SMALL_WEIGHT
    }
}

/// Bytes of workspace that ∂W and ∂bias take: parts of their sums, one after the other.
fn parts_bytes(problem: LinearProblem) -> usize {
    let LinearProblem { rows, inputs, outputs } = problem;
    let (parts, _) = kernels::parts(outputs, inputs, rows);
    let weight = if parts > 1 { bytes_of::<f64>(parts.saturating_mul(outputs).saturating_mul(inputs)) } else { 0 };
    weight.max(bytes_of::<f64>(kernels::row_parts(rows).0.saturating_mul(outputs)))
}

impl Cuda {
    /// out = a·bᵀ + bias by the plain kernels. `parts` has room for split sums where the caller splits them.
    fn plain_product(&self, sizes: Sizes, mut params: Product, parts: Option<u64>) -> Result<(), Error> {
        let Sizes { m, n, k, dtype, fine, wide } = sizes;
        (params.m, params.n, params.k) = (m as u64, n as u64, k as u64);
        let (a_rows, b_rows) = (kernels::by_rows(params.a, m, k), kernels::by_rows(params.b, n, k));
        let flag = |on: bool, flag: u32| if on { flag } else { 0 };
        params.flags = flag(a_rows, kernels::A_BY_ROWS)
            | flag(b_rows, kernels::B_BY_ROWS)
            | flag(kernels::quick(params.b, b_rows), kernels::B_QUICK)
            | flag(kernels::by_rows(params.out, m, n), kernels::OUT_BY_ROWS)
            | flag(wide, kernels::WIDE);
        let a_quick = |along: bool| flag(kernels::quick(params.a, along), kernels::A_QUICK);
        let halves = matches!(dtype, Dtype::F16 | Dtype::Bf16);
        let tiles = m.div_ceil(TILE).saturating_mul(n.div_ceil(TILE));
        let few = m <= FEW || (m <= MIDDLING && tiles < self.properties().multiprocessors as usize);
        if parts.is_none() && few {
            params.flags |= a_quick(false);
            let shape = kernels::rows(dtype, fine, m.min(FEW), b_rows);
            params.across = blocks(n.div_ceil(shape.columns))?;
            let mut grid = Grid::new(m.div_ceil(FEW).saturating_mul(n.div_ceil(shape.columns)), shape.threads);
            grid.shared = shape.shared;
            return if halves { self.run(&RowsMma { dtype, fine }, grid, &params) } else { self.run(&Rows { dtype, fine }, grid, &params) };
        }
        params.flags |= a_quick(a_rows);
        let (count, span) = if parts.is_some() { kernels::parts(m, n, k) } else { (1, k) };
        (params.partial, params.split) = (parts.unwrap_or(0), span as u64);
        (params.tiles, params.across) = (blocks(tiles)?, blocks(n.div_ceil(TILE))?);
        let shape = kernels::tiles(dtype, fine, span.min(k));
        let mut grid = Grid::new(tiles.saturating_mul(count), shape.threads);
        grid.shared = shape.shared;
        if halves { self.run(&TilesMma { dtype, fine }, grid, &params) } else { self.run(&Tiles { dtype, fine }, grid, &params) }
    }

    /// Adds up parts of (m, n) sums.
    fn sum_parts(&self, out: Strided<3>, [m, n]: [usize; 2], parts: usize, partial: u64, dtype: Dtype) -> Result<(), Error> {
        let params = Product { out, partial, m: m as u64, n: n as u64, tiles: blocks(parts)?, ..Product::default() };
        let dtype = if dtype == Dtype::F64 { Dtype::F64 } else { Dtype::F32 };
        self.run(&Sum { dtype, fine: false }, Grid::new(m.saturating_mul(n).div_ceil(THREADS as usize), THREADS), &params)
    }

    /// out = a·bᵀ + bias, (m, k) by (n, k).
    fn product<I: Input, O: Element<Arith = I::Accum>>(
        &self,
        a: View<'_, I, 2, Device>,
        b: View<'_, I, 2, Device>,
        bias: Option<View<'_, I::Accum, 1, Device>>,
        out: ViewMut<'_, O, 2, Device>,
        fine: bool,
        ws: &mut Workspace<'_, Device>,
    ) -> Result<(), Error> {
        let ([m, k], [n, _]) = (a.dims(), b.dims());
        if m == 0 || n == 0 {
            return Ok(());
        }
        let sizes = Sizes { m, n, k, dtype: I::DTYPE, fine, wide: O::DTYPE != I::DTYPE };
        let params =
            Product { a: strided(&a), b: strided(&b), bias: optional(bias.as_ref()), out: strided_mut(&out), ..Product::default() };
        if self.library_product(sizes, &params, ws)? { Ok(()) } else { self.plain_product(sizes, params, None) }
    }

    /// ∂W = ∂outᵀ·x, whose sums run over the rows.
    fn weight_product<I: Input>(
        &self,
        grad_out: View<'_, I, 2, Device>,
        x: View<'_, I, 2, Device>,
        out: ViewMut<'_, I::Accum, 2, Device>,
        fine: bool,
        ws: &mut Workspace<'_, Device>,
    ) -> Result<(), Error> {
        let (a, b) = (grad_out.permute([1, 0]), x.permute([1, 0]));
        let ([m, k], [n, _]) = (a.dims(), b.dims());
        let (parts, _) = kernels::parts(m, n, k);
        if parts == 1 || m == 0 || n == 0 {
            return self.product(a, b, None, out, fine, ws);
        }
        let sizes = Sizes { m, n, k, dtype: I::DTYPE, fine, wide: I::DTYPE != I::Accum::DTYPE };
        let params = Product { a: strided(&a), b: strided(&b), out: strided_mut(&out), ..Product::default() };
        if self.library_product(sizes, &params, ws)? {
            return Ok(());
        }
        let mut ws = ws.reborrow();
        let partial = ws.tensor::<f64, 3>([parts, m, n])?.as_view().buffer().0 as u64;
        self.plain_product(sizes, params, Some(partial))?;
        self.sum_parts(params.out, [m, n], parts, partial, I::DTYPE)
    }

    /// ∂bias: the sum of the rows.
    fn sum_rows<I: Input>(
        &self,
        from: View<'_, I, 2, Device>,
        out: ViewMut<'_, I::Accum, 1, Device>,
        ws: &mut Workspace<'_, Device>,
    ) -> Result<(), Error> {
        let [rows, columns] = from.dims();
        let (parts, span) = kernels::row_parts(rows);
        let mut ws = ws.reborrow();
        let partial = ws.tensor::<f64, 2>([parts, columns])?.as_view().buffer().0 as u64;
        let a = strided(&from);
        let across = columns.div_ceil(32);
        let params = Product {
            a,
            partial,
            m: rows as u64,
            n: columns as u64,
            split: span as u64,
            across: blocks(across)?,
            flags: if kernels::by_rows(a, rows, columns) { kernels::A_BY_ROWS } else { 0 },
            ..Product::default()
        };
        self.run(&Bias { dtype: I::DTYPE, fine: false }, Grid::new(parts.saturating_mul(across), THREADS), &params)?;
        let [address, step]: Strided<2> = strided_mut(&out);
        self.sum_parts([address, 0, step], [1, columns], parts, partial, I::DTYPE)
    }
}

impl Linear for Cuda {
    type Memory = Device;

    fn linear_fwd_workspace<I: Input>(&self, problem: LinearProblem) -> usize {
        match if problem.is_fine(I::DTYPE) { 0 } else { self.library_bytes() } {
            0 => 0,
            bytes => bytes_of::<u8>(bytes).saturating_add(ALIGN),
        }
    }

    fn linear_fwd<I: Input>(&self, args: LinearFwd<'_, I, Device>, ws: &mut Workspace<'_, Device>) -> Result<(), Error> {
        let fine = args.check()?.is_fine(I::DTYPE);
        self.product(args.x, args.weight, args.bias, args.out, fine, ws)
    }

    fn linear_bwd_workspace<I: Input>(&self, problem: LinearProblem) -> usize {
        parts_bytes(problem).max(bytes_of::<u8>(self.library_bytes())).saturating_add(ALIGN)
    }

    fn linear_bwd<I: Input>(&self, args: LinearBwd<'_, I, Device>, ws: &mut Workspace<'_, Device>) -> Result<(), Error> {
        let fine = args.check()?.is_fine(I::DTYPE);
        let LinearBwd { x, weight, grad_out, grad_x, grad_weight, grad_bias } = args;
        if let Some(grad_x) = grad_x {
            self.product(grad_out, weight.permute([1, 0]), None, grad_x, fine, ws)?;
        }
        if let Some(grad_weight) = grad_weight {
            self.weight_product(grad_out, x, grad_weight, fine, ws)?;
        }
        grad_bias.map_or(Ok(()), |grad_bias| self.sum_rows(grad_out, grad_bias, ws))
    }
}

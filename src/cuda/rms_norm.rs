//! RMSNorm with a residual stream on the GPU.

use super::Cuda;
use super::expression::Vars;
use super::launch::{Grid, Kernel};
use super::params::{STORAGE, Strided, optional, optional_mut, params, storage, strided, strided_mut};
use super::sum::address;
use super::template::{Template, template};
use crate::buffer::Workspace;
use crate::element::{Dtype, Input};
use crate::error::Error;
use crate::layers::norm::{NormBwd, NormFwd, RmsNorm};
use crate::view::{Device, ViewMut};
use crate::workspace::{ALIGN, bytes_of};

/// Columns of a thread that stay in registers.
const FWD_KEPT: usize = 8;
const BWD_KEPT: usize = 4;
/// Rows whose part of the weight's gradient one block sums.
const ROWS: usize = 16;
/// Threads of a block, at most.
const FWD_THREADS: usize = 1024;
const BWD_THREADS: usize = 640;
const BWD_THREADS_F64: usize = 512;
/// Blocks of the forward pass, at most; they go on with further rows.
const BLOCKS: usize = 1 << 16;

/// As many threads as leave each `kept` columns: what a row is summed by, so only its length decides.
fn threads(columns: usize, kept: usize, most: usize) -> u32 {
    columns.div_ceil(kept).next_multiple_of(32).clamp(32, most) as u32
}

/// The storage of the inputs and of the residual stream: every pair with the same arithmetic.
fn pairs() -> impl Iterator<Item = (Dtype, Dtype)> {
    let pairs = STORAGE.into_iter().flat_map(|i| STORAGE.map(|r| (i, r)));
    pairs.filter(|(i, r)| (*i == Dtype::F64) == (*r == Dtype::F64))
}

fn vars(input: Dtype, stream: Dtype, kept: usize) -> Vars {
    storage(Vars::new(), input).text("R", stream.name()).int("K", kept).int("ROWS", ROWS)
}

/// A variant of the forward norm.
pub(super) struct Forward {
    input: Dtype,
    stream: Dtype,
}

params! {
    /// Operands of the forward norm.
    pub struct ForwardParams {
        x: Strided<3>,
        residual: Strided<3>,
        out: Strided<3>,
        residual_out: Strided<3>,
        weight: Strided<2>,
        eps: f64,
        rows: u64,
        columns: u64,
    }
}

impl Kernel for Forward {
    const TEMPLATE: Template = template!("rms_norm_fwd");
    type Params = ForwardParams;

    fn entry(&self) -> String {
        format!("rms_norm_fwd_{}_{}", self.input.name(), self.stream.name())
    }

    fn vars(&self) -> Vars {
        vars(self.input, self.stream, FWD_KEPT)
    }

    fn shipped() -> Vec<Self> {
        pairs().map(|(input, stream)| Forward { input, stream }).collect()
    }
}

/// A variant of the backward norm.
pub(super) struct Backward {
    input: Dtype,
    stream: Dtype,
}

params! {
    /// Operands of the backward norm; `partial` is (blocks of rows, M) in f64, contiguous.
    pub struct BackwardParams {
        residual_out: Strided<3>,
        grad_out: Strided<3>,
        grad_residual_out: Strided<3>,
        grad_x: Strided<3>,
        grad_residual: Strided<3>,
        weight: Strided<2>,
        eps: f64,
        rows: u64,
        columns: u64,
        partial: u64,
    }
}

impl Backward {
    /// Threads of a block, at most: so many that a thread has the registers it needs.
    fn most(&self) -> usize {
        if self.input == Dtype::F64 { BWD_THREADS_F64 } else { BWD_THREADS }
    }
}

impl Kernel for Backward {
    const TEMPLATE: Template = template!("rms_norm_bwd");
    type Params = BackwardParams;

    fn entry(&self) -> String {
        format!("rms_norm_bwd_{}_{}", self.input.name(), self.stream.name())
    }

    fn vars(&self) -> Vars {
        let vars = vars(self.input, self.stream, BWD_KEPT).int("THREADS", self.most());
        vars.text("ZERO", if self.input == Dtype::F64 { "0d0000000000000000" } else { "0f00000000" })
    }

    fn shipped() -> Vec<Self> {
        pairs().map(|(input, stream)| Backward { input, stream }).collect()
    }
}

impl RmsNorm for Cuda {
    type Memory = Device;

    fn rms_norm_fwd_workspace<I: Input>(&self, _dims: [usize; 2]) -> usize {
        0
    }

    fn rms_norm_fwd<I: Input, R: Input<Accum = I::Accum>>(
        &self,
        args: NormFwd<'_, I, R, Device>,
        _ws: &mut Workspace<'_, Device>,
    ) -> Result<(), Error> {
        let [rows, columns] = args.check()?;
        if columns == 0 {
            return Ok(());
        }
        let params = ForwardParams {
            x: strided(&args.x),
            residual: optional(args.residual.as_ref()),
            out: strided_mut(&args.out),
            residual_out: optional_mut(args.residual_out.as_ref()),
            weight: strided(&args.weight),
            eps: args.eps,
            rows: rows as u64,
            columns: columns as u64,
        };
        let kernel = Forward { input: I::DTYPE, stream: R::DTYPE };
        self.run(&kernel, Grid::new(rows.min(BLOCKS), threads(columns, FWD_KEPT, FWD_THREADS)), &params)
    }

    fn rms_norm_bwd_workspace<I: Input>(&self, dims: [usize; 2]) -> usize {
        bytes_of::<f64>(dims[0].div_ceil(ROWS).saturating_mul(dims[1])).saturating_add(ALIGN)
    }

    fn rms_norm_bwd<I: Input, R: Input<Accum = I::Accum>>(
        &self,
        args: NormBwd<'_, I, R, Device>,
        ws: &mut Workspace<'_, Device>,
    ) -> Result<(), Error> {
        let [rows, columns] = args.check()?;
        if columns == 0 {
            return Ok(());
        }
        let blocks = rows.div_ceil(ROWS);
        let partial: Option<ViewMut<'_, f64, 2, Device>> = match args.grad_weight {
            Some(_) => Some(ws.tensor([blocks, columns])?),
            None => None,
        };
        let params = BackwardParams {
            residual_out: strided(&args.residual_out),
            grad_out: strided(&args.grad_out),
            grad_residual_out: optional(args.grad_residual_out.as_ref()),
            grad_x: optional_mut(args.grad_x.as_ref()),
            grad_residual: optional_mut(args.grad_residual.as_ref()),
            weight: strided(&args.weight),
            eps: args.eps,
            rows: rows as u64,
            columns: columns as u64,
            partial: partial.as_ref().map_or(0, address),
        };
        let kernel = Backward { input: I::DTYPE, stream: R::DTYPE };
        self.run(&kernel, Grid::new(blocks, threads(columns, BWD_KEPT, kernel.most())), &params)?;
        match (args.grad_weight, partial) {
            (Some(to), Some(partial)) => self.sum_columns(&partial, &to),
            _ => Ok(()),
        }
    }
}

//! RMSNorm with a residual stream and a gate on the GPU.

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
/// Blocks of the forward pass, at most; they go on with further rows.
const BLOCKS: usize = 1 << 16;

/// As many threads as leave each `kept` columns: what a row is summed by, so only its length decides.
fn threads(columns: usize, kept: usize, most: usize) -> u32 {
    columns.div_ceil(kept).next_multiple_of(32).clamp(32, most) as u32
}

/// Groups as kernels divide the number of a block by them. Where they are more than blocks, they may as well be so many.
fn few(groups: usize) -> u64 {
    groups.min(u32::MAX as usize) as u64
}

/// The storage of the inputs and of the residual stream: every pair with the same arithmetic.
fn pairs() -> impl Iterator<Item = (Dtype, Dtype)> {
    let pairs = STORAGE.into_iter().flat_map(|i| STORAGE.map(|r| (i, r)));
    pairs.filter(|(i, r)| (*i == Dtype::F64) == (*r == Dtype::F64))
}

/// What both kernels are specialised by: the storage of the inputs and of the stream, and whether there is a gate.
#[derive(Clone, Copy)]
struct Axes {
    input: Dtype,
    stream: Dtype,
    gate: bool,
}

impl Axes {
    fn of<I: Input, R: Input>(gate: bool) -> Self {
        Axes { input: I::DTYPE, stream: R::DTYPE, gate }
    }

    fn shipped() -> impl Iterator<Item = Self> {
        pairs().flat_map(|(input, stream)| [false, true].map(|gate| Axes { input, stream, gate }))
    }

    fn entry(&self, op: &str) -> String {
        format!("rms_norm_{op}_{}_{}{}", self.input.name(), self.stream.name(), if self.gate { "_z" } else { "" })
    }

    fn vars(&self, kept: usize, threads: usize) -> Vars {
        let vars = storage(Vars::new(), self.input).text("R", self.stream.name()).int("K", kept).int("ROWS", ROWS);
        let (zero, one) =
            if self.input == Dtype::F64 { ("0d0000000000000000", "0d3FF0000000000000") } else { ("0f00000000", "0f3F800000") };
        vars.flag("gate", self.gate).int("THREADS", threads).text("ZERO", zero).text("ONE", one)
    }

    /// Threads of a block of the forward norm, at most: so many that a thread has the registers it needs.
    fn fwd_threads(&self) -> usize {
        match (self.gate, self.input == Dtype::F64) {
            (false, false) => 1024,
            (false, true) => 768,
            (true, _) => 640,
        }
    }

    /// The same of the backward norm.
    fn bwd_threads(&self) -> usize {
        if self.gate { 512 } else { 640 }
    }
}

/// A variant of the forward norm.
pub(super) struct Forward(Axes);

params! {
    /// Operands of the forward norm.
    pub struct ForwardParams {
        x: Strided<3>,
        residual: Strided<3>,
        out: Strided<3>,
        residual_out: Strided<3>,
        z: Strided<3>,
        weight: Strided<2>,
        eps: f64,
        rows: u64,
        /// Columns of a row, and of a group of it.
        width: u64,
        columns: u64,
        /// What a block goes on by: whole rows, and columns of the groups that are left.
        row_step: u64,
        group_step: u64,
        groups: u64,
        /// Whether the norm comes before the gate.
        before: u64,
    }
}

impl Kernel for Forward {
    const TEMPLATE: Template = template!("rms_norm_fwd");
    type Params = ForwardParams;

    fn entry(&self) -> String {
        self.0.entry("fwd")
    }

    fn vars(&self) -> Vars {
        self.0.vars(FWD_KEPT, self.0.fwd_threads())
    }

    fn shipped() -> Vec<Self> {
        Axes::shipped().map(Forward).collect()
    }
}

/// A variant of the backward norm.
pub(super) struct Backward(Axes);

params! {
    /// Operands of the backward norm; `partial` is (blocks of rows, M) in f64, contiguous.
    pub struct BackwardParams {
        residual_out: Strided<3>,
        grad_out: Strided<3>,
        grad_residual_out: Strided<3>,
        grad_x: Strided<3>,
        grad_residual: Strided<3>,
        z: Strided<3>,
        grad_z: Strided<3>,
        weight: Strided<2>,
        eps: f64,
        rows: u64,
        groups: u64,
        /// Columns of a group.
        columns: u64,
        partial: u64,
        /// Whether the norm comes before the gate.
        before: u64,
    }
}

impl Kernel for Backward {
    const TEMPLATE: Template = template!("rms_norm_bwd");
    type Params = BackwardParams;

    fn entry(&self) -> String {
        self.0.entry("bwd")
    }

    fn vars(&self) -> Vars {
        self.0.vars(BWD_KEPT, self.0.bwd_threads())
    }

    fn shipped() -> Vec<Self> {
        Axes::shipped().map(Backward).collect()
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
        let group = args.options.group(columns);
        let groups = columns / group;
        let blocks = rows.saturating_mul(groups).min(BLOCKS);
        let params = ForwardParams {
            x: strided(&args.x),
            residual: optional(args.residual.as_ref()),
            out: strided_mut(&args.out),
            residual_out: optional_mut(args.residual_out.as_ref()),
            z: optional(args.z.as_ref()),
            weight: strided(&args.weight),
            eps: args.eps,
            rows: rows as u64,
            width: columns as u64,
            columns: group as u64,
            row_step: (blocks / groups) as u64,
            group_step: (blocks % groups * group) as u64,
            groups: few(groups),
            before: args.options.norm_before_gate.into(),
        };
        let axes = Axes::of::<I, R>(args.z.is_some());
        self.run(&Forward(axes), Grid::new(blocks, threads(group, FWD_KEPT, axes.fwd_threads())), &params)
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
        let group = args.options.group(columns);
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
            z: optional(args.z.as_ref()),
            grad_z: optional_mut(args.grad_z.as_ref()),
            weight: strided(&args.weight),
            eps: args.eps,
            rows: rows as u64,
            groups: few(columns / group),
            columns: group as u64,
            partial: partial.as_ref().map_or(0, address),
            before: args.options.norm_before_gate.into(),
        };
        let axes = Axes::of::<I, R>(args.z.is_some());
        let grid = Grid::new(blocks.saturating_mul(columns / group), threads(group, BWD_KEPT, axes.bwd_threads()));
        self.run(&Backward(axes), grid, &params)?;
        match (args.grad_weight, partial) {
            (Some(to), Some(partial)) => self.sum_columns(&partial, &to),
            _ => Ok(()),
        }
    }
}

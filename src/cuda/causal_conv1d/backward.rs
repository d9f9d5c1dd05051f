//! The backward convolution: gradients by position, and sums of tiles, which a second kernel adds.

use super::{THREADS, axes, blocks, by_vectors, channels, flag, sequences, tiles, time_fast, width, window_blocks};
use crate::buffer::Workspace;
use crate::cuda::Cuda;
use crate::cuda::expression::Vars;
use crate::cuda::launch::{Grid, Kernel};
use crate::cuda::params::{STORAGE, Strided, optional, optional_mut, params, storage, strided, strided_mut};
use crate::cuda::template::Template;
use crate::element::{Dtype, Element, Input};
use crate::error::Error;
use crate::layers::conv1d::{ConvBwd, ConvProblem};
use crate::view::Device;
use crate::workspace::{ALIGN, bytes_of};

/// Positions of a tile.
const TILE: usize = 256;
/// Tiles of a block where lanes are runs.
const TILES: u32 = 4;

/// One variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backward {
    dtype: Dtype,
    /// W; 0 is any.
    width: usize,
    /// Neighbours in a warp are runs of a channel.
    time: bool,
    /// By vectors: two channels a thread, or 16 bytes of time.
    vector: bool,
}

/// The kernel that adds the tiles' sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sum {
    /// How weights are stored.
    dtype: Dtype,
}

params! {
    /// Parameters of the backward convolution.
    pub struct BackwardParams {
        x: Strided<4>,
        weight: Strided<3>,
        bias: Strided<2>,
        initial: Strided<4>,
        grad_out: Strided<4>,
        grad_final: Strided<4>,
        grad_x: Strided<4>,
        grad_initial: Strided<4>,
        offsets: Strided<2>,
        ids: Strided<3>,
        /// (tiles, W + 1, D) in the arithmetic type.
        sums: i64,
        seqlen: u64,
        dim: u64,
        width: u64,
        states: u64,
        tiles_t: u32,
        tiles_d: u32,
        /// Blocks along time, and those before the blocks of the initial window.
        blocks_t: u32,
        main: u32,
        flags: u32,
        unused: u32,
    }
}

params! {
    /// Parameters of the kernel that adds the tiles' sums.
    pub struct SumParams {
        sums: i64,
        grad_weight: Strided<3>,
        grad_bias: Strided<2>,
        tiles: u64,
        dim: u64,
        width: u64,
        tiles_d: u32,
        unused: u32,
    }
}

impl Kernel for Backward {
    const TEMPLATE: Template = Template { name: "causal_conv1d_bwd", text: include_str!("../../../ptx/causal_conv1d_bwd.ptx") };
    type Params = BackwardParams;

    fn entry(&self) -> String {
        let width = if self.width == 0 { "any".into() } else { self.width.to_string() };
        let (time, vector) = (if self.time { "_time" } else { "" }, if self.vector { "_vec" } else { "" });
        format!("causal_conv1d_bwd_{}_w{width}{time}{vector}", self.dtype.name())
    }

    fn vars(&self) -> Vars {
        storage(Vars::new(), self.dtype).int("W", self.width).int("TILES", TILES as usize).flag("time", self.time).flag("vec", self.vector)
    }

    fn shipped() -> Vec<Self> {
        let of = |dtype| axes(dtype).map(move |(width, time, vector)| Backward { dtype, width, time, vector });
        STORAGE.into_iter().flat_map(of).collect()
    }
}

impl Kernel for Sum {
    const TEMPLATE: Template = Template { name: "causal_conv1d_sum", text: include_str!("../../../ptx/causal_conv1d_sum.ptx") };
    type Params = SumParams;

    fn entry(&self) -> String {
        format!("causal_conv1d_sum_{}", self.dtype.name())
    }

    fn vars(&self) -> Vars {
        storage(Vars::new(), self.dtype)
    }

    fn shipped() -> Vec<Self> {
        [Dtype::F32, Dtype::F64].map(|dtype| Sum { dtype }).into()
    }
}

/// Tiles of the whole batch.
fn tile_count(problem: &ConvProblem) -> usize {
    problem.batch.saturating_mul(problem.seqlen.div_ceil(TILE))
}

/// Bytes of workspace that [`backward`] takes.
pub(super) fn workspace(problem: &ConvProblem) -> usize {
    let sums = tile_count(problem).saturating_mul(problem.width.saturating_add(1)).saturating_mul(problem.dim);
    bytes_of::<f64>(sums).saturating_add(ALIGN)
}

/// The backward convolution.
pub(super) fn backward<I: Input>(engine: &Cuda, args: ConvBwd<'_, I, Device>, ws: &mut Workspace<'_, Device>) -> Result<(), Error> {
    let problem = args.check()?;
    let (inputs, grads) = (&args.inputs, &args.grads);
    let summed = grads.weight.is_some() || grads.bias.is_some();
    let operands: [Strided<4>; 3] = [strided(&inputs.x), strided(&args.grad_out), optional_mut(grads.x.as_ref())];
    let (time, width) = (time_fast(inputs), width(problem.width));
    let vector = width > 0 && by_vectors::<I>(&operands, time, problem.dim);
    let kernel = Backward { dtype: I::DTYPE, width, time, vector };
    let count = tile_count(&problem);
    let mut ws = ws.reborrow();
    let sums: Strided<4> = strided_mut(&ws.tensor::<I::Accum, 3>([count, problem.width + 1, problem.dim])?);
    let (tiles_t, tiles_d) = (tiles(problem.seqlen, TILE)?, tiles(problem.dim, channels(time, vector))?);
    let blocks_t = if time && width > 0 { tiles_t.div_ceil(TILES) } else { tiles_t };
    let main = blocks([problem.batch, blocks_t as usize, tiles_d as usize])?;
    let (offsets, ids, flags) = sequences(inputs);
    let params = BackwardParams {
        x: operands[0],
        weight: strided(&inputs.weight),
        bias: optional(inputs.bias.as_ref()),
        initial: optional(inputs.initial_window.as_ref()),
        grad_out: operands[1],
        grad_final: optional(args.grad_final_window.as_ref()),
        grad_x: operands[2],
        grad_initial: optional_mut(grads.initial_window.as_ref()),
        offsets,
        ids,
        sums: sums[0],
        seqlen: problem.seqlen as u64,
        dim: problem.dim as u64,
        width: problem.width as u64,
        states: problem.states as u64,
        tiles_t,
        tiles_d,
        blocks_t,
        main,
        unused: 0,
        flags: flags | if summed { flag::SUMS } else { 0 },
    };
    let windows = if grads.initial_window.is_some() { window_blocks(&problem) } else { 0 };
    engine.run(&kernel, Grid::new((main as usize).saturating_add(windows), THREADS), &params)?;
    if !summed {
        return Ok(());
    }
    let tiles_d = tiles(problem.dim, 32)?;
    let params = SumParams {
        sums: sums[0],
        grad_weight: optional_mut(grads.weight.as_ref()),
        grad_bias: optional_mut(grads.bias.as_ref()),
        tiles: count as u64,
        dim: problem.dim as u64,
        width: problem.width as u64,
        tiles_d,
        unused: 0,
    };
    let blocks = blocks([problem.width + 1, tiles_d as usize, 1])?;
    engine.run(&Sum { dtype: <I::Accum as Element>::DTYPE }, Grid::new(blocks as usize, 256), &params)
}

//! Causal depthwise conv1d on the GPU: forward, backward and step.

use super::Cuda;
use super::params::{Strided, strided};
use crate::buffer::Workspace;
use crate::element::{Dtype, Input};
use crate::error::Error;
use crate::layers::conv1d::{CausalConv1d, ConvBwd, ConvFwd, ConvInputs, ConvProblem, ConvStep};
use crate::sequences::Sequences;
use crate::view::Device;

pub(super) mod backward;
pub(super) mod forward;
pub(super) mod update;

/// Threads of a block.
const THREADS: u32 = 128;

/// Bits of the kernels' flags.
mod flag {
    pub const SILU: u32 = 1;
    pub const OFFSETS: u32 = 2;
    pub const IDS: u32 = 4;
    /// The sums for ∂w and ∂bias are wanted.
    pub const SUMS: u32 = 8;
}

/// W where there is a variant for it, else 0.
fn width(width: usize) -> usize {
    if (2..=4).contains(&width) { width } else { 0 }
}

/// Whether neighbours in a warp are positions rather than channels: what is nearer in memory.
fn time_fast<I: Input>(inputs: &ConvInputs<'_, I, Device>) -> bool {
    let ([_, seqlen, dim], [_, time, channel]) = (inputs.x.dims(), inputs.x.strides());
    seqlen > 1 && (dim == 1 || time.unsigned_abs() < channel.unsigned_abs())
}

/// Width, time and vectors of every variant of the forward and the backward kernel for a storage type.
fn axes(dtype: Dtype) -> impl Iterator<Item = (usize, bool, bool)> {
    let all =
        [0, 2, 3, 4].into_iter().flat_map(|width| [(false, false), (false, true), (true, false), (true, true)].map(|(t, v)| (width, t, v)));
    all.filter(move |&(width, time, vector)| !vector || width > 0 && (time || dtype != Dtype::F64))
}

/// Whether these operands, where present, can be read by vectors: neighbouring elements along time or channels, and all else at multiples of
/// a vector, 16 bytes of time or two channels. Two channels in f64 would take too many registers.
fn by_vectors<I: Input>(operands: &[Strided<4>], time: bool, dim: usize) -> bool {
    let (size, block) = (size_of::<I>() as i64, if time { 16 } else { 2 * size_of::<I>() as i64 });
    let near = |&[address, batch, step, channel]: &Strided<4>| {
        let (near, far) = if time { (step, channel) } else { (channel, step) };
        address == 0 || near == size && [address, batch, far].iter().all(|x| x % block == 0)
    };
    operands.iter().all(near) && (time || dim.is_multiple_of(2) && I::DTYPE != Dtype::F64)
}

/// Channels of a block.
fn channels(time: bool, vector: bool) -> usize {
    match (time, vector) {
        (true, _) => 8,
        (false, true) => 64,
        (false, false) => 32,
    }
}

/// Offsets and ids as parameters, and the flags.
fn sequences<I: Input>(inputs: &ConvInputs<'_, I, Device>) -> (Strided<2>, Strided<3>, u32) {
    let silu = if inputs.silu { flag::SILU } else { 0 };
    match &inputs.sequences {
        Sequences::Rows => ([0; 2], [0; 3], silu),
        // Their distance is needed for one sequence too, which has two offsets.
        Sequences::CuSeqlens(offsets) => (strided(offsets), [0; 3], silu | flag::OFFSETS),
        Sequences::SeqIdx(ids) => ([0; 2], strided(ids), silu | flag::IDS),
    }
}

/// Blocks along an axis, as parameters have them.
fn tiles(count: usize, each: usize) -> Result<u32, Error> {
    u32::try_from(count.div_ceil(each)).map_err(|_| Error::Unsupported { what: format!("an axis of {count} elements") })
}

/// Blocks of a grid, in parameters too.
fn blocks(counts: [usize; 3]) -> Result<u32, Error> {
    let blocks = counts.iter().fold(1usize, |n, &c| n.saturating_mul(c));
    u32::try_from(blocks).map_err(|_| Error::Unsupported { what: format!("a grid of {blocks} blocks") })
}

/// Blocks that have one thread for each element of a window.
fn window_blocks(problem: &ConvProblem) -> usize {
    problem.states.saturating_mul(problem.width - 1).saturating_mul(problem.dim).div_ceil(THREADS as usize)
}

impl CausalConv1d for Cuda {
    type Memory = Device;

    fn causal_conv1d_fwd_workspace<I: Input>(&self, _problem: &ConvProblem) -> usize {
        0
    }

    fn causal_conv1d_fwd<I: Input>(&self, args: ConvFwd<'_, I, Device>, _ws: &mut Workspace<'_, Device>) -> Result<(), Error> {
        forward::forward(self, args)
    }

    fn causal_conv1d_bwd_workspace<I: Input>(&self, problem: &ConvProblem) -> usize {
        backward::workspace(problem)
    }

    fn causal_conv1d_bwd<I: Input>(&self, args: ConvBwd<'_, I, Device>, ws: &mut Workspace<'_, Device>) -> Result<(), Error> {
        backward::backward(self, args, ws)
    }

    fn causal_conv1d_update_workspace<I: Input>(&self, _problem: &ConvProblem) -> usize {
        0
    }

    fn causal_conv1d_update<I: Input>(&self, args: ConvStep<'_, I, Device>, _ws: &mut Workspace<'_, Device>) -> Result<(), Error> {
        update::update(self, args)
    }
}

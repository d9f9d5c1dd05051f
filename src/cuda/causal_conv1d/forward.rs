//! The forward convolution.

use super::{THREADS, axes, blocks, by_vectors, channels, sequences, tiles, time_fast, width, window_blocks};
use crate::cuda::Cuda;
use crate::cuda::expression::Vars;
use crate::cuda::launch::{Grid, Kernel};
use crate::cuda::params::{STORAGE, Strided, optional, optional_mut, params, storage, strided, strided_mut};
use crate::cuda::template::Template;
use crate::element::{Dtype, Input};
use crate::error::Error;
use crate::layers::conv1d::ConvFwd;
use crate::view::Device;

/// One variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    dtype: Dtype,
    /// W; 0 is any.
    width: usize,
    /// Neighbours in a warp are runs of a channel.
    time: bool,
    /// By vectors: two channels a thread, or 16 bytes of time.
    vector: bool,
}

params! {
    /// Parameters of the forward convolution.
    pub struct ForwardParams {
        x: Strided<4>,
        weight: Strided<3>,
        bias: Strided<2>,
        initial: Strided<4>,
        out: Strided<4>,
        last: Strided<4>,
        offsets: Strided<2>,
        ids: Strided<3>,
        seqlen: u64,
        dim: u64,
        width: u64,
        states: u64,
        /// Blocks along time and along channels.
        tiles_t: u32,
        tiles_d: u32,
        /// Blocks before those of the final window.
        main: u32,
        flags: u32,
    }
}

impl Kernel for Forward {
    const TEMPLATE: Template = Template { name: "causal_conv1d_fwd", text: include_str!("../../../ptx/causal_conv1d_fwd.ptx") };
    type Params = ForwardParams;

    fn entry(&self) -> String {
        let width = if self.width == 0 { "any".into() } else { self.width.to_string() };
        let (time, vector) = (if self.time { "_time" } else { "" }, if self.vector { "_vec" } else { "" });
        format!("causal_conv1d_fwd_{}_w{width}{time}{vector}", self.dtype.name())
    }

    fn vars(&self) -> Vars {
        storage(Vars::new(), self.dtype).int("W", self.width).flag("time", self.time).flag("vec", self.vector)
    }

    fn shipped() -> Vec<Self> {
        let of = |dtype| axes(dtype).map(move |(width, time, vector)| Forward { dtype, width, time, vector });
        STORAGE.into_iter().flat_map(of).collect()
    }
}

/// The forward convolution.
pub(super) fn forward<I: Input>(engine: &Cuda, args: ConvFwd<'_, I, Device>) -> Result<(), Error> {
    let problem = args.check()?;
    let inputs = &args.inputs;
    let (time, width) = (time_fast(inputs), width(problem.width));
    let vector = width > 0 && by_vectors::<I>(&[strided(&inputs.x), strided_mut(&args.out)], time, problem.dim);
    let kernel = Forward { dtype: I::DTYPE, width, time, vector };
    // Positions and channels of a block.
    let tile = [if time { 256 } else { 64 }, channels(time, vector)];
    let (tiles_t, tiles_d) = (tiles(problem.seqlen, tile[0])?, tiles(problem.dim, tile[1])?);
    let main = blocks([problem.batch, tiles_t as usize, tiles_d as usize])?;
    let (offsets, ids, flags) = sequences(inputs);
    let params = ForwardParams {
        x: strided(&inputs.x),
        weight: strided(&inputs.weight),
        bias: optional(inputs.bias.as_ref()),
        initial: optional(inputs.initial_window.as_ref()),
        out: strided_mut(&args.out),
        last: optional_mut(args.final_window.as_ref()),
        offsets,
        ids,
        seqlen: problem.seqlen as u64,
        dim: problem.dim as u64,
        width: problem.width as u64,
        states: problem.states as u64,
        tiles_t,
        tiles_d,
        main,
        flags,
    };
    let windows = if args.final_window.is_some() { window_blocks(&problem) } else { 0 };
    engine.run(&kernel, Grid::new((main as usize).saturating_add(windows), THREADS), &params)
}

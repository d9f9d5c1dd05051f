//! One decode step of the convolution.

use super::{THREADS, flag, tiles, width};
use crate::cuda::Cuda;
use crate::cuda::expression::Vars;
use crate::cuda::launch::{Grid, Kernel};
use crate::cuda::params::{STORAGE, Strided, optional, params, storage, strided, strided_mut};
use crate::cuda::template::Template;
use crate::element::{Dtype, Input};
use crate::error::Error;
use crate::layers::conv1d::ConvStep;
use crate::view::Device;

/// One variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Update {
    dtype: Dtype,
    /// W; 0 is any.
    width: usize,
}

params! {
    /// Parameters of a step.
    pub struct UpdateParams {
        x: Strided<3>,
        weight: Strided<3>,
        bias: Strided<2>,
        window: Strided<4>,
        slots: Strided<2>,
        out: Strided<3>,
        dim: u64,
        width: u64,
        /// Window slots that there are.
        states: u64,
        /// Blocks of a row.
        tiles: u32,
        flags: u32,
    }
}

impl Kernel for Update {
    const TEMPLATE: Template = Template { name: "causal_conv1d_update", text: include_str!("../../../ptx/causal_conv1d_update.ptx") };
    type Params = UpdateParams;

    fn entry(&self) -> String {
        let width = if self.width == 0 { "any".into() } else { self.width.to_string() };
        format!("causal_conv1d_update_{}_w{width}", self.dtype.name())
    }

    fn vars(&self) -> Vars {
        storage(Vars::new(), self.dtype).int("W", self.width)
    }

    fn shipped() -> Vec<Self> {
        STORAGE.into_iter().flat_map(|dtype| [0, 2, 3, 4].map(|width| Update { dtype, width })).collect()
    }
}

/// The step.
pub(super) fn update<I: Input>(engine: &Cuda, args: ConvStep<'_, I, Device>) -> Result<(), Error> {
    let problem = args.check()?;
    let tiles = tiles(problem.dim, THREADS as usize)?;
    let params = UpdateParams {
        x: strided(&args.x),
        weight: strided(&args.weight),
        bias: optional(args.bias.as_ref()),
        window: strided_mut(&args.window),
        slots: optional(args.slots.as_ref()),
        out: strided_mut(&args.out),
        dim: problem.dim as u64,
        width: problem.width as u64,
        states: problem.states as u64,
        tiles,
        flags: if args.silu { flag::SILU } else { 0 },
    };
    let kernel = Update { dtype: I::DTYPE, width: width(problem.width) };
    engine.run(&kernel, Grid::new(problem.batch.saturating_mul(tiles as usize), THREADS), &params)
}

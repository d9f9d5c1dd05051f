//! One decode step of the selective scan on the GPU.

#![allow(non_snake_case)]

use super::Cuda;
use super::expression::Vars;
use super::launch::{Grid, Kernel};
use super::params::{STORAGE, Strided, optional, params, storage, strided, strided_mut};
use super::template::{Template, template};
use crate::element::{Dtype, Element, Input, Weight};
use crate::error::Error;
use crate::ops::Rule;
use crate::selective::{Coefficient, SelectiveStep};
use crate::view::Device;

/// Threads of a block.
const THREADS: u32 = 128;
/// Threads that share a channel's states, at most, as a power of two.
const MAX_LANES: u32 = 5;

/// One variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateUpdate {
    /// How u, Δ, B, C, z and out are stored.
    dtype: Dtype,
    /// Whether A and the states are complex.
    complex: bool,
    /// How a state is stored: a real type, which complex states have pairs of.
    state: Dtype,
    /// Whether A and the state are contiguous in N and aligned, and whole blocks make N.
    vector: bool,
}

/// A variant that takes four rows at once: real states, everything contiguous in N.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rows {
    dtype: Dtype,
    state: Dtype,
}

/// Rows of a thread of [`Rows`], and states of a thread.
const ROWS: usize = 4;

params! {
    /// Parameters of a step.
    pub struct StepParams {
        u: Strided<3>,
        delta: Strided<3>,
        A: Strided<3>,
        /// Addresses, then rows, groups and states.
        B: Strided<4>,
        C: Strided<4>,
        D: Strided<2>,
        z: Strided<3>,
        bias: Strided<2>,
        state: Strided<4>,
        slots: Strided<2>,
        out: Strided<3>,
        batch: u64,
        dim: u64,
        dstate: u64,
        /// State slots that there are.
        states: u64,
        /// Channels of a group of B; 1 where constant.
        per_b: u64,
        per_c: u64,
        /// Blocks of a row.
        tiles: u32,
        /// Threads of a channel, as a power of two.
        logp: u32,
        flags: u32,
        unused: u32,
    }
}

/// Bits of `StepParams::flags`.
mod flag {
    pub const SOFTPLUS: u32 = 1;
    pub const B_CONSTANT: u32 = 2;
    pub const C_CONSTANT: u32 = 4;
    pub const ZOH: u32 = 8;
    pub const BILINEAR: u32 = 16;
    /// Neighbours in a warp are channels, not states.
    pub const CHANNELS_FAST: u32 = 32;
}

impl StateUpdate {
    /// Real numbers of a block of states.
    fn reals(&self) -> usize {
        if self.dtype == Dtype::F64 { 2 } else { 4 }
    }

    /// States of a block: one thread has them, one after another.
    fn block(&self) -> usize {
        self.reals() / (1 + usize::from(self.complex))
    }
}

impl Kernel for StateUpdate {
    const TEMPLATE: Template = template!("selective_state_update");
    type Params = StepParams;

    fn entry(&self) -> String {
        let weight = match (self.dtype == Dtype::F64, self.complex) {
            (false, false) => "f32",
            (false, true) => "c32",
            (true, false) => "f64",
            (true, true) => "c64",
        };
        let vector = if self.vector { "_vec" } else { "" };
        format!("selective_state_update_{}_{weight}_s{}{vector}", self.dtype.name(), self.state.name())
    }

    fn vars(&self) -> Vars {
        let vars = storage(Vars::new(), self.dtype).text("S", self.state.name());
        vars.flag("cx", self.complex).flag("vec", self.vector).int("NV", self.reals())
    }

    fn shipped() -> Vec<Self> {
        let mut all = Vec::new();
        for dtype in STORAGE {
            let states: &[Dtype] = if dtype == Dtype::F64 { &[Dtype::F64] } else { &[Dtype::F32, Dtype::F16, Dtype::Bf16] };
            for &state in states {
                for (complex, vector) in [(false, false), (false, true), (true, false), (true, true)] {
                    all.push(StateUpdate { dtype, complex, state, vector });
                }
            }
        }
        all
    }
}

impl Kernel for Rows {
    const TEMPLATE: Template = template!("selective_state_update_rows");
    type Params = StepParams;

    fn entry(&self) -> String {
        format!("selective_state_update_rows_{}_f32_s{}", self.dtype.name(), self.state.name())
    }

    fn vars(&self) -> Vars {
        let bytes = if self.state == Dtype::F32 { 4 } else { 2 };
        storage(Vars::new(), self.dtype).text("S", self.state.name()).int("SB", bytes)
    }

    fn shipped() -> Vec<Self> {
        let real = [Dtype::F32, Dtype::F16, Dtype::Bf16];
        real.into_iter().flat_map(|dtype| real.map(|state| Rows { dtype, state })).collect()
    }
}

/// The real type that a state's storage has pairs of, or is.
fn part(dtype: Dtype) -> Dtype {
    match dtype {
        Dtype::C32 => Dtype::F32,
        Dtype::C64 => Dtype::F64,
        Dtype::Cf16 => Dtype::F16,
        Dtype::Cbf16 => Dtype::Bf16,
        real => real,
    }
}

/// B or C: address, distances of rows, groups and states; channels of a group; whether it is constant.
fn coefficient<I: Input, W: Weight<Real = I::Accum>>(of: &Coefficient<'_, I, W, 3, Device>, dim: usize) -> (Strided<4>, u64, bool) {
    match of {
        Coefficient::Constant(v) => {
            let [address, channel, state]: Strided<3> = strided(v);
            ([address, 0, channel, state], 1, true)
        }
        Coefficient::Varying(v) => (strided(v), (dim / v.dims()[1]) as u64, false),
    }
}

/// Whether blocks of so many bytes at these places can be loaded at once, elements of `size` bytes being neighbours along the last axis.
fn aligned(of: &[i64], size: usize, block: usize) -> bool {
    let (last, rest) = of.split_last().expect("an operand has an address");
    *last == size as i64 && rest.iter().all(|x| x.rem_euclid((size * block) as i64) == 0)
}

/// The step.
pub(super) fn update<I: Input, W: Weight<Real = I::Accum>, S: Element<Arith = W>>(
    engine: &Cuda,
    args: SelectiveStep<'_, I, W, S, Device>,
) -> Result<(), Error> {
    let problem = args.check()?;
    let (A, state): (Strided<3>, Strided<4>) = (strided(&args.A), strided_mut(&args.state));
    if problem.batch == 0 || state[0] == 0 {
        return Ok(());
    }
    let mut kernel = StateUpdate { dtype: I::DTYPE, complex: W::COMPLEX, state: part(S::DTYPE), vector: false };
    let block = kernel.block();
    kernel.vector = problem.dstate.is_multiple_of(block) && aligned(&A, size_of::<W>(), block) && aligned(&state, size_of::<S>(), block);
    let (B, per_b, b_constant) = coefficient(&args.B, problem.dim);
    let (C, per_c, c_constant) = coefficient(&args.C, problem.dim);
    let channels_fast = problem.dim > 1 && state[2].unsigned_abs() < state[3].unsigned_abs();
    let flags = [
        (args.options.delta_softplus, flag::SOFTPLUS),
        (b_constant, flag::B_CONSTANT),
        (c_constant, flag::C_CONSTANT),
        (args.options.rule == Rule::Zoh, flag::ZOH),
        (args.options.rule == Rule::Bilinear, flag::BILINEAR),
        (channels_fast, flag::CHANNELS_FAST),
    ];
    // How states are shared out decides the order of their sum, so it depends on N and the types only.
    let lanes = problem.dstate.div_ceil(block).next_power_of_two();
    let logp = lanes.trailing_zeros().min(MAX_LANES);
    let tiles = problem.dim.div_ceil((THREADS >> logp) as usize);
    let params = StepParams {
        u: strided(&args.u),
        delta: strided(&args.delta),
        A,
        B,
        C,
        D: optional(args.D.as_ref()),
        z: optional(args.z.as_ref()),
        bias: optional(args.delta_bias.as_ref()),
        state,
        slots: optional(args.slots.as_ref()),
        out: strided_mut(&args.out),
        batch: problem.batch as u64,
        dim: problem.dim as u64,
        dstate: problem.dstate as u64,
        // A slot has 31 bits.
        states: problem.states.min(1 << 31) as u64,
        per_b,
        per_c,
        tiles: u32::try_from(tiles).map_err(|_| Error::Unsupported { what: format!("{} channels", problem.dim) })?,
        logp,
        flags: flags.iter().filter(|(on, _)| *on).map(|(_, bit)| bit).sum(),
        unused: 0,
    };
    // Whole blocks of four states, one a thread.
    let short = problem.batch.max(problem.dim) < (1 << 31) - THREADS as usize;
    let fits = short && (2 * ROWS..=ROWS << MAX_LANES).contains(&problem.dstate) && logp >= 2;
    let near = !b_constant && !c_constant && aligned(&B, size_of::<I>(), ROWS) && aligned(&C, size_of::<I>(), ROWS);
    if kernel.vector && !kernel.complex && I::DTYPE != Dtype::F64 && fits && near && args.options.rule == Rule::Euler {
        let rows = Rows { dtype: I::DTYPE, state: kernel.state };
        return engine.run(&rows, Grid::new(problem.batch.div_ceil(ROWS).saturating_mul(tiles), THREADS), &params);
    }
    engine.run(&kernel, Grid::new(problem.batch.saturating_mul(tiles), THREADS), &params)
}

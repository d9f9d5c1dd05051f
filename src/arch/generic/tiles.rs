//! The operands of the raw kernels: one tile of one block of channels, staged.
//!
//! A *block* is as many channels as one vector has lanes ([`Kernels::lanes`](crate::arch::Kernels::lanes), written `W` here); the last
//! block of a tensor is padded with zeros, which every kernel carries along without harm. A *tile* is at most [`TILE`] steps of
//! one sequence. Staged means: contiguous, in the type `R` that is computed in, channels innermost, and starting on a 64-byte
//! boundary where a row is `W` numbers. Shapes are given as `[rows][W]`, so `[t][w]` has `steps · W` numbers.
//!
//! Slices may be longer than their shape asks; what lies behind is neither read nor written. A slice that is too short or not
//! aligned is a panic: only the crate itself can get that wrong.

use crate::ops::Rule;

/// The longest tile, in steps.
pub const TILE: usize = 64;

/// A real or complex tensor as separate planes of real and imaginary parts of the same shape; `im` is absent for real ones.
#[derive(Debug, Clone, Copy)]
pub struct Planes<'a, R> {
    /// Real parts.
    pub re: &'a [R],
    /// Imaginary parts.
    pub im: Option<&'a [R]>,
}

/// [`Planes`] to write to.
#[derive(Debug)]
pub struct PlanesMut<'a, R> {
    /// Real parts.
    pub re: &'a mut [R],
    /// Imaginary parts.
    pub im: Option<&'a mut [R]>,
}

/// B or C of a selective scan.
#[derive(Debug, Clone, Copy)]
pub enum Coefficient<'a, R> {
    /// `[t][n]`, the same for all channels of the block: a block never spans two groups. Needs no alignment.
    Varying(Planes<'a, R>),
    /// `[n][w]`, the same for all steps.
    Constant(Planes<'a, R>),
}

/// The gradient of a [`Coefficient`], of the same kind and shape.
#[derive(Debug)]
pub enum CoefficientMut<'a, R> {
    /// `[t][n]`: the sum over the block's channels is added to what is there. Needs no alignment.
    Varying(PlanesMut<'a, R>),
    /// `[n][w]`, summed over the tile's steps.
    Constant(PlanesMut<'a, R>),
}

/// What forward and backward of the selective scan read: one tile of one block.
///
/// All planes are complex or none is (`a.im` decides): a real B beside a complex A is staged with an imaginary plane of zeros.
#[derive(Debug, Clone, Copy)]
pub struct SelectiveTile<'a, R> {
    /// Steps in this tile, 1 to [`TILE`].
    pub steps: usize,
    /// States a channel, N ≥ 1.
    pub dstate: usize,
    /// How A and Δ' become Ā and γ.
    pub rule: Rule,
    /// Δ' = softplus(Δ + bias) instead of Δ + bias.
    pub softplus: bool,
    /// The tile starts a sequence that has no initial state: its first step is h = b, and neither Ā nor the old state
    /// is read.
    pub first: bool,
    /// u `[t][w]`.
    pub u: &'a [R],
    /// Δ `[t][w]`, before bias and softplus.
    pub delta: &'a [R],
    /// Bias of Δ `[w]`.
    pub delta_bias: Option<&'a [R]>,
    /// Gate z `[t][w]`.
    pub z: Option<&'a [R]>,
    /// A `[n][w]`, as it is (not multiplied by anything).
    pub a: Planes<'a, R>,
    /// B.
    pub b: Coefficient<'a, R>,
    /// C.
    pub c: Coefficient<'a, R>,
    /// Skip D `[w]`.
    pub d: Option<&'a [R]>,
}

/// One tile of the selective scan, forward; T = 1 makes it the decode step.
///
/// For every step: Δ' as above, h = Ā·h + (Δ'u)·γ·B, out = (κ·Re Σ_n C·h + D·u)·silu(z), κ = 2 for complex A and 1 for real.
/// The bits of a channel depend on its own data, N, types and options, not on where tiles are cut nor on its lane.
#[derive(Debug)]
pub struct SelectiveFwd<'a, R> {
    /// The inputs.
    pub tile: SelectiveTile<'a, R>,
    /// States `[n][w]`: before the tile on entry (arbitrary where `first`), after it on return.
    pub h: PlanesMut<'a, R>,
    /// out `[t][w]`, overwritten. None where only the state is wanted: D and z are then not read.
    pub out: Option<&'a mut [R]>,
    /// Arbitrary numbers, [`fwd_scratch`] of them, 64-byte aligned.
    pub scratch: &'a mut [R],
    /// Addresses of cache lines that the next call will want: a hint, any numbers will do.
    pub ahead: &'a [usize],
}

/// Numbers of scratch memory that a [`SelectiveFwd`] of any number of steps and states takes.
pub const fn fwd_scratch(lanes: usize) -> usize {
    4 * TILE * lanes
}

/// One tile of the selective scan, backward. Every gradient is overwritten with this tile's share, but those of varying B and C,
/// to which a block's share is added: the driver adds the shares of tiles and of many blocks (in f64, so that the error does not
/// grow with their number). Only `carry` goes from tile to tile.
///
/// Padded lanes must be zero in `grad_out` and `carry` too; they then contribute nothing.
#[derive(Debug)]
pub struct SelectiveBwd<'a, R> {
    /// The inputs, as the forward pass had them.
    pub tile: SelectiveTile<'a, R>,
    /// States `[n][w]` before the tile; not read where `tile.first`.
    pub h: Planes<'a, R>,
    /// ∂out `[t][w]`.
    pub grad_out: &'a [R],
    /// conj(Ā)·λ `[n][w]` of the step after the tile on entry: zero, or ∂h_L, at a sequence's end. On return the same of the
    /// tile's first step, for the tile before; after the first tile it is ∂h_0. Zero on return where `tile.first`.
    pub carry: PlanesMut<'a, R>,
    /// ∂u `[t][w]`.
    pub grad_u: &'a mut [R],
    /// ∂Δ `[t][w]`, with respect to Δ before bias and softplus. Its sum over t is ∂bias.
    pub grad_delta: &'a mut [R],
    /// ∂z `[t][w]`; present exactly where `tile.z` is.
    pub grad_z: Option<&'a mut [R]>,
    /// ∂A `[n][w]`, summed over the tile's steps.
    pub grad_a: PlanesMut<'a, R>,
    /// ∂B, of the kind of `tile.b`.
    pub grad_b: CoefficientMut<'a, R>,
    /// ∂C, of the kind of `tile.c`.
    pub grad_c: CoefficientMut<'a, R>,
    /// ∂D `[w]`, summed over the tile's steps; present exactly where `tile.d` is.
    pub grad_d: Option<&'a mut [R]>,
    /// ∂bias `[w]`, summed over the tile's steps; may be absent.
    pub grad_delta_bias: Option<&'a mut [R]>,
    /// Arbitrary numbers, [`bwd_scratch`] of them, 64-byte aligned.
    pub scratch: &'a mut [R],
    /// As [`SelectiveFwd::ahead`].
    pub ahead: &'a [usize],
}

/// Lines of numbers, each contiguous.
pub trait Lines<R> {
    /// Lines `first..first + C`.
    fn lines<const C: usize>(&self, first: usize) -> [&[R]; C];
}

/// [`Lines`] to write to.
pub trait LinesMut<R> {
    /// Lines `first..first + C`.
    fn lines_mut<const C: usize>(&mut self, first: usize) -> [&mut [R]; C];
}

/// One step of many blocks in Mamba's own case: Euler's rule, real A, varying B and C. The bits are those of [`SelectiveFwd`].
/// What is only read, and the states, need no alignment.
#[derive(Debug)]
pub struct StepRow<'a, R, A, H> {
    /// Blocks, `k` below.
    pub blocks: usize,
    /// States a channel, N ≥ 1.
    pub dstate: usize,
    /// `a` and `h` are one line each, a channel's states after another's, N a multiple of `W`; else a line is a state's channels.
    pub by_channel: bool,
    /// Δ' = softplus(Δ + bias) instead of Δ + bias.
    pub softplus: bool,
    /// `bounds` is as an earlier call for the same A and `blocks` left it.
    pub prepared: bool,
    /// u `[k][w]`.
    pub u: &'a [R],
    /// Δ `[k][w]`.
    pub delta: &'a [R],
    /// Bias of Δ `[k][w]`.
    pub delta_bias: Option<&'a [R]>,
    /// Gate z `[k][w]`.
    pub z: Option<&'a [R]>,
    /// Skip D `[k][w]`.
    pub d: Option<&'a [R]>,
    /// A.
    pub a: &'a A,
    /// B `[n]`.
    pub b: &'a [R],
    /// C `[n]`.
    pub c: &'a [R],
    /// The states, updated.
    pub h: &'a mut H,
    /// out `[k][w]`.
    pub out: &'a mut [R],
    /// Arbitrary numbers `[k][w]`, kept for later calls.
    pub bounds: &'a mut [R],
    /// Arbitrary numbers, [`step_scratch`] of them.
    pub scratch: &'a mut [R],
    /// Arbitrary numbers `[n][w]`; not used where not `by_channel`.
    pub columns: &'a mut [R],
}

/// Blocks of a [`StepRow`] that are walked together, so that what is kept of them stays in the nearest cache.
pub(super) const STRIP: usize = 32;

/// Numbers of scratch memory that a [`StepRow`] of any number of blocks takes.
pub const fn step_scratch(lanes: usize) -> usize {
    4 * STRIP * lanes
}

/// A channel's states after another's, N a multiple of `W`, to lines of a state's channels.
#[derive(Debug)]
pub struct Turn<'a, R> {
    /// Blocks of channels.
    pub blocks: usize,
    /// N.
    pub dstate: usize,
    /// `[channel][n]`.
    pub from: &'a [R],
    /// `[n][blocks · W]`.
    pub to: &'a mut [R],
}

/// How many states the backward pass walks at once.
pub(super) const BACK: usize = 4;

/// Numbers of scratch memory that a [`SelectiveBwd`] of any number of steps and states takes.
pub const fn bwd_scratch(lanes: usize) -> usize {
    (6 + 3 * 2 * BACK) * (TILE + 1) * lanes
}

/// One tile of the linear recurrence h_t = a_t·h_{t−1} + b_t. Reverse scans stage their steps in reverse.
#[derive(Debug)]
pub struct ScanTile<'a, R> {
    /// Steps in this tile, 1 to [`TILE`].
    pub steps: usize,
    /// The tile starts a sequence without an initial state: h_1 = b_1, neither a_1 nor the old state is read.
    pub first: bool,
    /// a `[t][w]`.
    pub a: Planes<'a, R>,
    /// b `[t][w]`.
    pub b: Planes<'a, R>,
    /// The state `[w]`: before the tile on entry (arbitrary where `first`), after it on return.
    pub h: PlanesMut<'a, R>,
    /// h_t `[t][w]`, overwritten.
    pub out: PlanesMut<'a, R>,
}

/// One tile of the causal depthwise convolution: out_t = act(bias + Σ_k weight_k·x_{t−(W−1)+k}), W the width.
#[derive(Debug, Clone, Copy)]
pub struct ConvTile<'a, R> {
    /// Steps in this tile, 1 to [`TILE`].
    pub steps: usize,
    /// Taps, ≥ 1.
    pub width: usize,
    /// Whether the activation is SiLU, else none.
    pub silu: bool,
    /// `[width − 1 + t][w]`: the window before the tile, then the tile's own steps.
    pub x: &'a [R],
    /// `[k][w]`; the last tap is the current step's.
    pub weight: &'a [R],
    /// `[w]`.
    pub bias: Option<&'a [R]>,
}

/// A [`ConvTile`], forward.
#[derive(Debug)]
pub struct ConvFwd<'a, R> {
    /// The inputs.
    pub tile: ConvTile<'a, R>,
    /// out `[t][w]`, overwritten.
    pub out: &'a mut [R],
}

/// The convolution over whole rows where they lie, W from 2 to 4. The bits are those of [`ConvFwd`].
#[derive(Debug)]
pub struct ConvRows<'a, R, X, O> {
    /// Outputs a channel.
    pub steps: usize,
    /// Taps.
    pub width: usize,
    /// Blocks of channels, `k` below.
    pub blocks: usize,
    /// Whether the activation is SiLU, else none.
    pub silu: bool,
    /// W − 1 + steps lines of channels.
    pub x: &'a X,
    /// `[k][tap][w]`.
    pub weight: &'a [R],
    /// `[k][w]`.
    pub bias: &'a [R],
    /// Lines of channels.
    pub out: &'a mut O,
    /// The line of the first output.
    pub first: usize,
}

/// [`ConvRows`], backward, over some steps. Every sum is in the order of [`ConvBwd`].
#[derive(Debug)]
pub struct ConvRowsBwd<'a, R, X, O> {
    /// Steps.
    pub steps: usize,
    /// The line of the first of them.
    pub first: usize,
    /// Lines.
    pub seqlen: usize,
    /// Taps.
    pub width: usize,
    /// Blocks of channels, `k` below.
    pub blocks: usize,
    /// Whether the activation is SiLU, else none.
    pub silu: bool,
    /// Lines of channels.
    pub x: &'a X,
    /// ∂out.
    pub grad_out: &'a X,
    /// ∂x, if it is wanted: the lines W − 1 before those of the steps are written.
    pub grad_x: Option<&'a mut O>,
    /// `[k][tap][w]`.
    pub weight: &'a [R],
    /// `[k][w]`.
    pub bias: &'a [R],
    /// The last W − 1 inputs `[k][tap][w]`: before the steps on entry, of them on return.
    pub window: &'a mut [R],
    /// What is known of ∂x of the last W − 1 steps `[k][tap][w]`, in the same way.
    pub open: &'a mut [R],
    /// `[line][k][w]`: what would be lines of `grad_x` before the first, W − 1 of them.
    pub head: &'a mut [R],
    /// ∂weight and then ∂bias `[k][tap][w]`: sums over these steps.
    pub grad_filter: &'a mut [f64],
}

/// A [`ConvTile`], backward. Every gradient is overwritten with this tile's share: the driver adds up the shares of tiles. The
/// rows of `grad_x` that belong to the window are to be added to the last rows of the tile before, or to ∂(initial window).
#[derive(Debug)]
pub struct ConvBwd<'a, R> {
    /// The inputs.
    pub tile: ConvTile<'a, R>,
    /// ∂out `[t][w]`; on return ∂ of what the activation is applied to.
    pub grad_out: &'a mut [R],
    /// ∂x `[width − 1 + t][w]`, added to.
    pub grad_x: &'a mut [R],
    /// ∂weight `[k][w]`, then ∂bias `[w]`: sums over this tile.
    pub grad_filter: &'a mut [f64],
}

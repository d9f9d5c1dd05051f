//! The operands of a selective scan without their storage types, and the tiles they are staged in.

use core::ops::Range;

use super::stage::{Blocks, Region, Source, row, runs, sequence, state, vector, weight};
use super::table::{AHEAD, STRIP_BYTES, TILE};
use crate::arch::{self, Kernels, Lanes, Planes, PlanesMut, SelectiveTile};
use crate::buffer::Workspace;
use crate::element::{Element, Input, Weight};
use crate::selective::{Coefficient, SelectiveInputs, SelectiveProblem, SelectiveStep};
use crate::sequences::Sequences;
use crate::view::View;
use crate::workspace::{ALIGN, bytes_of};

/// What to say where scratch memory that the query counted is missing.
pub(super) const SIZED: &str = "scratch memory is sized by the query";

/// B or C as matrices: (1, 1, N, D) or (B, G, L, N).
pub(super) enum Stored<'a, I: Input, W: Weight<Real = I::Accum>> {
    Constant(View<'a, W, 4>),
    Varying(View<'a, W::Stored<I>, 4>),
}

impl<'a, I: Input, W: Weight<Real = I::Accum>> Stored<'a, I, W> {
    fn new(of: &Coefficient<'a, I, W, 4>) -> Self {
        match of {
            Coefficient::Constant(v) => Stored::Constant(weight(*v)),
            Coefficient::Varying(v) => Stored::Varying(v.permute([0, 2, 1, 3])),
        }
    }

    fn of_step(of: &Coefficient<'a, I, W, 3>) -> Self {
        match of {
            Coefficient::Constant(v) => Stored::Constant(weight(*v)),
            Coefficient::Varying(v) => {
                let ([b, g, n], [sb, sg, sn]) = (v.dims(), v.strides());
                Stored::Varying(v.reshape([b, g, 1, n], [sb, sg, 0, sn]))
            }
        }
    }

    fn source<R: Lanes>(&self) -> &dyn Source<R> {
        match self {
            Stored::Constant(v) => v,
            Stored::Varying(v) => v,
        }
    }
}

/// The operands as matrices.
pub(super) struct Views<'a, I: Input, W: Weight<Real = I::Accum>> {
    pub u: View<'a, I, 4>,
    pub delta: View<'a, I, 4>,
    pub a: View<'a, W, 4>,
    pub b: Stored<'a, I, W>,
    pub c: Stored<'a, I, W>,
    pub d: Option<View<'a, W::Real, 4>>,
    pub z: Option<View<'a, I, 4>>,
    pub delta_bias: Option<View<'a, W::Real, 4>>,
    pub initial_state: Option<View<'a, W, 4>>,
    pub sequences: Sequences<'a>,
}

impl<'a, I: Input, W: Weight<Real = I::Accum>> Views<'a, I, W> {
    pub fn new(inputs: &SelectiveInputs<'a, I, W>) -> Self {
        Views {
            u: sequence(inputs.u),
            delta: sequence(inputs.delta),
            a: weight(inputs.A),
            b: Stored::new(&inputs.B),
            c: Stored::new(&inputs.C),
            d: inputs.D.map(vector),
            z: inputs.z.map(sequence),
            delta_bias: inputs.delta_bias.map(vector),
            initial_state: inputs.initial_state.map(state),
            sequences: inputs.sequences,
        }
    }

    /// One step as a scan of one position.
    pub fn of_step<S: Element<Arith = W>>(args: &SelectiveStep<'a, I, W, S>) -> Self {
        Views {
            u: row(args.u),
            delta: row(args.delta),
            a: weight(args.A),
            b: Stored::of_step(&args.B),
            c: Stored::of_step(&args.C),
            d: args.D.map(vector),
            z: args.z.map(row),
            delta_bias: args.delta_bias.map(vector),
            initial_state: None,
            sequences: Sequences::Rows,
        }
    }

    pub fn erase<R: Lanes>(&self, kernels: Kernels, problem: SelectiveProblem) -> Inputs<'_, R> {
        Inputs {
            kernels,
            problem,
            extent: Extent::new::<R, W>(kernels, &problem, 0, size_of::<I>()),
            u: &self.u,
            delta: &self.delta,
            a: &self.a,
            b: self.b.source(),
            c: self.c.source(),
            d: optional(&self.d),
            z: optional(&self.z),
            delta_bias: optional(&self.delta_bias),
            initial_state: optional(&self.initial_state),
            sequences: self.sequences,
        }
    }
}

fn optional<R, S: Source<R>>(v: &Option<S>) -> Option<&dyn Source<R>> {
    v.as_ref().map(|s| s as &dyn Source<R>)
}

/// The operands, read as numbers of type `R`.
pub(super) struct Inputs<'a, R> {
    pub kernels: Kernels,
    pub problem: SelectiveProblem,
    pub extent: Extent,
    pub u: &'a dyn Source<R>,
    pub delta: &'a dyn Source<R>,
    pub a: &'a dyn Source<R>,
    pub b: &'a dyn Source<R>,
    pub c: &'a dyn Source<R>,
    pub d: Option<&'a dyn Source<R>>,
    pub z: Option<&'a dyn Source<R>>,
    pub delta_bias: Option<&'a dyn Source<R>>,
    pub initial_state: Option<&'a dyn Source<R>>,
    pub sequences: Sequences<'a>,
}

impl<R> Inputs<'_, R> {
    /// The same operands in tasks of this extent.
    pub fn in_blocks(mut self, extent: Extent) -> Self {
        self.extent = extent;
        self
    }
}

/// The sizes of staged tiles. Blocks of any kind start on 64-byte boundaries.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extent {
    /// Channels in a block.
    pub lanes: usize,
    /// Blocks side by side at most.
    pub blocks: usize,
    /// Blocks of which steps are staged at a time: those on a cache line of the input.
    pub strip: usize,
    /// N.
    pub dstate: usize,
    pub complex: bool,
    /// Numbers on a line of 64 bytes.
    line: usize,
}

impl Extent {
    /// `input` is the size of a number of the input.
    pub fn new<R: Lanes, W: Weight>(kernels: Kernels, problem: &SelectiveProblem, blocks: usize, input: usize) -> Self {
        let lanes = kernels.lanes::<R>();
        let strip = (STRIP_BYTES / input / lanes).clamp(1, blocks.max(1));
        Extent { lanes, blocks, strip, dstate: problem.dstate, complex: W::COMPLEX, line: ALIGN / size_of::<R>() }
    }

    /// The sizes of a single block.
    pub fn one(self) -> Self {
        Extent { blocks: 1, strip: 1, ..self }
    }

    /// Steps of all blocks staged at a time.
    pub fn in_one_strip(self) -> Self {
        Extent { strip: self.blocks, ..self }
    }

    /// Planes of A and the states: real, or real and imaginary.
    pub fn planes(self) -> usize {
        1 + usize::from(self.complex)
    }

    /// Numbers from block to block of `rows` rows.
    pub fn stride(self, rows: usize) -> usize {
        (rows * self.lanes).next_multiple_of(self.line)
    }

    /// `[t][w]` of every block of a strip.
    pub fn steps(self) -> Blocks {
        Blocks { width: self.lanes, stride: self.stride(TILE), first: 0 }
    }

    /// `[n][w]` of every block.
    pub fn states(self) -> Blocks {
        Blocks { width: self.lanes, stride: self.stride(self.dstate), first: 0 }
    }

    /// `[w]` of every block.
    pub fn rows(self) -> Blocks {
        Blocks { width: self.lanes, stride: self.stride(1), first: 0 }
    }

    /// `[t][n]`, the same for every block.
    pub fn varying(self) -> Blocks {
        Blocks { width: self.dstate, stride: 0, first: 0 }
    }

    /// Numbers in one plane of B or C, constant or varying.
    fn coefficient(self) -> usize {
        (TILE * self.dstate).max(self.blocks * self.stride(self.dstate))
    }

    /// Takes `[t][w]` of every block of a strip.
    pub fn take_steps<'s, R: Lanes>(self, ws: &mut Workspace<'s>) -> &'s mut [R] {
        ws.slice(self.strip * self.stride(TILE)).expect(SIZED)
    }

    /// The strips of `channels`: first block and channels of each.
    pub fn strips(self, channels: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> {
        let width = self.strip * self.lanes;
        let count = channels.len().div_ceil(width);
        (0..count).map(move |i| {
            let start = channels.start + i * width;
            (i * self.strip, start..(start + width).min(channels.end))
        })
    }

    /// Takes `[n][w]` of every block.
    pub fn take_states<'s, R: Lanes>(self, ws: &mut Workspace<'s>) -> PlanesMut<'s, R> {
        self.take(ws, self.blocks * self.stride(self.dstate))
    }

    /// Takes `[w]` of every block.
    pub fn take_rows<'s, R: Lanes>(self, ws: &mut Workspace<'s>) -> &'s mut [R] {
        ws.slice(self.blocks * self.stride(1)).expect(SIZED)
    }

    /// Takes a B or C.
    pub fn take_coefficient<'s, R: Lanes>(self, ws: &mut Workspace<'s>) -> PlanesMut<'s, R> {
        self.take(ws, self.coefficient())
    }

    fn take<'s, R: Lanes>(self, ws: &mut Workspace<'s>, count: usize) -> PlanesMut<'s, R> {
        let re = ws.slice(count).expect(SIZED);
        PlanesMut { re, im: self.complex.then(|| ws.slice(count).expect(SIZED)) }
    }

    pub fn steps_bytes<R>(self) -> usize {
        bytes_of::<R>(self.strip.saturating_mul(self.stride(TILE)))
    }

    pub fn states_bytes<R>(self) -> usize {
        self.planes() * bytes_of::<R>(self.blocks.saturating_mul(self.stride(self.dstate)))
    }

    pub fn rows_bytes<R>(self) -> usize {
        bytes_of::<R>(self.blocks.saturating_mul(self.stride(1)))
    }

    pub fn coefficient_bytes<R>(self) -> usize {
        self.planes() * bytes_of::<R>(self.coefficient())
    }

    /// Bytes that [`Staged::take`] takes.
    pub fn staged_bytes<R>(self) -> usize {
        bytes_of::<usize>(TILE)
            + bytes_of::<usize>(AHEAD)
            + 3 * self.steps_bytes::<R>()
            + self.states_bytes::<R>()
            + 2 * (self.coefficient_bytes::<R>() + self.rows_bytes::<R>())
    }
}

/// Block `k` of planes.
pub(super) fn block<'p, R>(planes: &'p PlanesMut<'_, R>, k: usize, blocks: Blocks) -> Planes<'p, R> {
    Planes { re: &planes.re[k * blocks.stride..], im: planes.im.as_deref().map(|im| &im[k * blocks.stride..]) }
}

/// Block `k` of planes, to write to.
pub(super) fn block_mut<'p, R>(planes: &'p mut PlanesMut<'_, R>, k: usize, blocks: Blocks) -> PlanesMut<'p, R> {
    PlanesMut { re: &mut planes.re[k * blocks.stride..], im: planes.im.as_deref_mut().map(|im| &mut im[k * blocks.stride..]) }
}

/// Planes, to read.
pub(super) fn shared<'p, R>(planes: &'p PlanesMut<'_, R>) -> Planes<'p, R> {
    Planes { re: planes.re, im: planes.im.as_deref() }
}

/// A real tensor as planes to write to.
pub(super) fn real<R>(re: &mut [R]) -> PlanesMut<'_, R> {
    PlanesMut { re, im: None }
}

/// Fills planes with zeros.
pub(super) fn clear<R: Lanes>(planes: &mut PlanesMut<'_, R>) {
    planes.re.fill(R::ZERO);
    planes.im.iter_mut().for_each(|im| im.fill(R::ZERO));
}

/// Stages positions of one matrix, which may have gaps between them.
pub(super) fn stage_positions<R>(
    source: &dyn Source<R>,
    outer: [usize; 2],
    positions: &[usize],
    cols: Range<usize>,
    blocks: Blocks,
    mut into: PlanesMut<'_, R>,
) {
    for (first, rows) in runs(positions) {
        source.stage(Region { outer, rows, cols: cols.clone() }, Blocks { first, ..blocks }, &mut into);
    }
}

/// The staged operands of one task.
pub(super) struct Staged<'s, R> {
    extent: Extent,
    pub positions: &'s mut [usize],
    ahead: &'s mut [usize],
    /// How many of `ahead` there are.
    asked: usize,
    u: &'s mut [R],
    delta: &'s mut [R],
    z: &'s mut [R],
    a: PlanesMut<'s, R>,
    b: PlanesMut<'s, R>,
    c: PlanesMut<'s, R>,
    d: &'s mut [R],
    delta_bias: &'s mut [R],
}

impl<'s, R: Lanes> Staged<'s, R> {
    pub fn take(extent: Extent, ws: &mut Workspace<'s>) -> Self {
        Staged {
            extent,
            positions: ws.slice(TILE).expect(SIZED),
            ahead: ws.slice(AHEAD).expect(SIZED),
            asked: 0,
            u: extent.take_steps(ws),
            delta: extent.take_steps(ws),
            z: extent.take_steps(ws),
            a: extent.take_states(ws),
            b: extent.take_coefficient(ws),
            c: extent.take_coefficient(ws),
            d: extent.take_rows(ws),
            delta_bias: extent.take_rows(ws),
        }
    }

    /// Stages what does not vary with position.
    pub fn constants(&mut self, inputs: &Inputs<'_, R>, channels: Range<usize>) {
        let (states, rows) = (self.extent.states(), self.extent.rows());
        let region = |rows: usize| Region { outer: [0, 0], rows: 0..rows, cols: channels.clone() };
        inputs.a.stage(region(self.extent.dstate), states, &mut self.a);
        for (groups, source, into) in [(inputs.problem.groups_b, inputs.b, &mut self.b), (inputs.problem.groups_c, inputs.c, &mut self.c)] {
            if groups.is_none() {
                source.stage(region(self.extent.dstate), states, into);
            }
        }
        for (source, into) in [(inputs.d, &mut *self.d), (inputs.delta_bias, &mut *self.delta_bias)] {
            if let Some(source) = source {
                source.stage(region(1), rows, &mut real(into));
            }
        }
    }

    /// Stages one strip of the first `count` of `positions`; z only where `all` is on.
    pub fn strip(&mut self, inputs: &Inputs<'_, R>, batch: usize, count: usize, channels: Range<usize>, all: bool) {
        let steps = self.extent.steps();
        let positions = &self.positions[..count];
        self.asked = 0;
        let lanes = |source: &dyn Source<R>, into: &mut [R]| {
            stage_positions(source, [batch, 0], positions, channels.clone(), steps, real(into));
        };
        lanes(inputs.u, self.u);
        lanes(inputs.delta, self.delta);
        if let Some(z) = inputs.z.filter(|_| all) {
            lanes(z, self.z);
        }
    }

    /// Asks for the lines of a region of some tensor while the strip is worked on.
    pub fn ask(&mut self, lines: impl FnOnce(&mut [usize]) -> usize) {
        self.asked += lines(&mut self.ahead[self.asked..]);
    }

    /// Asks for what [`Staged::strip`] would stage.
    pub fn ask_strip(&mut self, inputs: &Inputs<'_, R>, batch: usize, rows: Range<usize>, channels: Range<usize>, all: bool) {
        for source in [Some(inputs.u), Some(inputs.delta), inputs.z.filter(|_| all)].into_iter().flatten() {
            self.ask(|to| source.lines(Region { outer: [batch, 0], rows: rows.clone(), cols: channels.clone() }, to));
        }
    }

    /// The share of block `k` in what was asked for, of `blocks`.
    pub fn ahead(&self, k: usize, blocks: usize) -> &[usize] {
        &self.ahead[self.asked * k / blocks..self.asked * (k + 1) / blocks]
    }

    /// Stages what all channels share in the first `count` of `positions`; C only where `all` is on.
    pub fn shared(&mut self, inputs: &Inputs<'_, R>, batch: usize, count: usize, channels: Range<usize>, all: bool) {
        let varying = self.extent.varying();
        let positions = &self.positions[..count];
        for (groups, source, into, wanted) in
            [(inputs.problem.groups_b, inputs.b, &mut self.b, true), (inputs.problem.groups_c, inputs.c, &mut self.c, all)]
        {
            if let Some(groups) = groups.filter(|_| wanted) {
                let group = channels.start * groups / inputs.problem.dim;
                let into = PlanesMut { re: &mut *into.re, im: into.im.as_deref_mut() };
                stage_positions(source, [batch, group], positions, 0..self.extent.dstate, varying, into);
            }
        }
    }

    /// Block `k`, which is block `at` of the staged strip.
    pub fn tile(&self, inputs: &Inputs<'_, R>, [k, at]: [usize; 2], steps: usize, first: bool) -> SelectiveTile<'_, R> {
        let options = inputs.problem.options;
        let (tiles, states, rows) = (self.extent.steps(), self.extent.states(), self.extent.rows());
        let coefficient = |groups: Option<usize>, planes| match groups {
            None => arch::Coefficient::Constant(block(planes, k, states)),
            Some(_) => arch::Coefficient::Varying(shared(planes)),
        };
        SelectiveTile {
            steps,
            dstate: self.extent.dstate,
            rule: options.rule,
            softplus: options.delta_softplus,
            first,
            u: &self.u[at * tiles.stride..],
            delta: &self.delta[at * tiles.stride..],
            delta_bias: inputs.delta_bias.map(|_| &self.delta_bias[k * rows.stride..]),
            z: inputs.z.map(|_| &self.z[at * tiles.stride..]),
            a: block(&self.a, k, states),
            b: coefficient(inputs.problem.groups_b, &self.b),
            c: coefficient(inputs.problem.groups_c, &self.c),
            d: inputs.d.map(|_| &self.d[k * rows.stride..]),
        }
    }
}

//! The selective scan, backward, in two phases: tasks walk their sequences and leave partial sums, then the sums are reduced.
//!
//! A task recomputes the states forwards, keeps them at the start of every tile that needs one, and walks the tiles in reverse.

use super::grid::{Grid, Shape, Task};
use super::inputs::{Extent, Inputs, SIZED, Staged, Views, block, block_mut, clear, real, shared, stage_positions};
use super::selective_fwd::{initial, local, put_positions, shape, zero_padding};
use super::stage::{Blocks, Region, Sink, Source, Tensor, runs, sequence, sequence_mut, state, state_mut};
use super::sums::{self, Rows};
use super::table::{BWD_SLICES, SUBTOTAL_BLOCKS, TILE, bwd_slices};
use super::{Cpu, wide};
use crate::arch::{self, CoefficientMut, Lanes, Planes, PlanesMut, bwd_scratch};
use crate::buffer::Workspace;
use crate::element::{Input, Weight};
use crate::error::Error;
use crate::selective::{SelectiveBwd, SelectiveProblem};
use crate::view::Cut;
use crate::workspace::{ALIGN, bytes_of};

/// The sizes of one call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub extent: Extent,
    pub shape: Shape,
    pub rows: Rows,
    /// Channels of a part: a slice of the grid, which is one task's, has some of them. Each has partial sums of its own, so that how
    /// many a task takes, which depends on the threads, does not change them.
    part: usize,
    /// Parts of a slice at most.
    parts: usize,
}

fn sizes<R: Lanes, W: Weight>(cpu: &Cpu, problem: &SelectiveProblem, input: usize) -> Sizes {
    let lanes = cpu.kernels.lanes::<R>();
    let blocks = problem.dim.div_ceil(lanes).div_ceil(BWD_SLICES);
    let part = blocks * lanes;
    let all = problem.dim.div_ceil(part);
    // No slice has channels of two groups.
    let groups = problem.groups_b.unwrap_or(1).max(problem.groups_c.unwrap_or(1)).max(1);
    let most = (problem.dim / groups).div_ceil(part);
    let parts = bwd_slices::<R>(all.saturating_mul(problem.states.max(1)), part, cpu.par.workers()).min(most);
    let extent = Extent::new::<R, W>(cpu.kernels, problem, blocks * parts, input);
    Sizes { extent, shape: shape(problem, part * parts), rows: Rows::new(problem, extent.planes()), part, parts }
}

impl Sizes {
    /// The partial sums of a slice of so many channels.
    pub fn parts(self, slice: usize, channels: usize) -> core::ops::Range<usize> {
        slice * self.parts..slice * self.parts + channels.div_ceil(self.part)
    }

    /// (B, tiles, rows, D): the states at the start of tiles.
    fn checkpoints(self, p: &SelectiveProblem) -> [usize; 4] {
        [p.batch, p.seqlen / TILE, self.extent.planes() * p.dstate, p.dim]
    }

    /// (B, parts · planes, L, N): what each part of the channels adds to ∂B or ∂C.
    fn partial(self, p: &SelectiveProblem) -> [usize; 4] {
        [p.batch, self.shape.slices() * self.parts * self.extent.planes(), p.seqlen, p.dstate]
    }

    /// (groups of sequences, 1, rows, D): what each group of sequences adds to the gradients of shared parameters.
    fn shared(self, p: &SelectiveProblem) -> [usize; 4] {
        [self.shape.span_groups(), 1, self.rows.count, p.dim]
    }

    fn task_bytes<R>(self, p: &SelectiveProblem) -> usize {
        let (all, one) = (self.extent, self.extent.one());
        let own = 2 * all.states_bytes::<R>() + 4 * all.steps_bytes::<R>();
        let tile =
            one.states_bytes::<R>() + 2 * (one.coefficient_bytes::<R>() + one.rows_bytes::<R>()) + bytes_of::<R>(bwd_scratch(all.lanes));
        let sums = bytes_of::<f64>(all.blocks * self.rows.count * all.lanes) + 2 * one.coefficient_bytes::<f64>();
        all.staged_bytes::<R>() + own + tile + sums + bytes_of::<[usize; 2]>(p.seqlen)
    }
}

fn elements(dims: [usize; 4]) -> usize {
    dims.iter().fold(1, |n: usize, &d| n.saturating_mul(d))
}

pub(super) fn workspace<R: Lanes, W: Weight>(cpu: &Cpu, p: &SelectiveProblem, input: usize) -> usize {
    let sizes = sizes::<R, W>(cpu, p, input);
    let partial = bytes_of::<R>(elements(sizes.partial(p)));
    let partials = [p.groups_b, p.groups_c].into_iter().flatten().fold(0usize, |n, _| n.saturating_add(partial));
    let scratch = sizes.task_bytes::<R>(p).max(sums::task_bytes(&sizes));
    [
        sizes.shape.bytes(cpu.par),
        bytes_of::<R>(elements(sizes.checkpoints(p))),
        partials,
        bytes_of::<f64>(elements(sizes.shared(p))),
        cpu.par.scratch_bytes(scratch),
        ALIGN,
    ]
    .into_iter()
    .fold(0, usize::saturating_add)
}

pub(super) fn run<I: Input, W: Weight<Real = I::Accum>>(
    cpu: &Cpu,
    args: SelectiveBwd<'_, I, W>,
    ws: &mut Workspace<'_>,
) -> Result<(), Error> {
    let problem = args.check()?;
    cpu.par.check(2)?;
    if wide::<W>(&problem) { run_in::<I, W, f64>(cpu, &problem, args, ws) } else { run_in::<I, W, f32>(cpu, &problem, args, ws) }
}

fn run_in<I: Input, W: Weight<Real = I::Accum>, R: Lanes>(
    cpu: &Cpu,
    p: &SelectiveProblem,
    args: SelectiveBwd<'_, I, W>,
    ws: &mut Workspace<'_>,
) -> Result<(), Error> {
    let sizes = sizes::<R, W>(cpu, p, size_of::<I>());
    let views = Views::new(&args.inputs);
    let inputs = views.erase::<R>(cpu.kernels, *p).in_blocks(sizes.extent);
    let (grad_out, grad_last) = (sequence(args.grad_out), args.grad_last_state.map(state));
    let upstream = Upstream { out: &grad_out, last_state: grad_last.as_ref().map(|v| v as &dyn Source<R>) };
    let grads = args.grads;
    let mut ws = ws.reborrow();
    let grid = Grid::new(sizes.shape, &args.inputs.sequences, cpu.par, TILE, &mut ws)?;
    let checkpoints = ws.tensor::<R, 4>(sizes.checkpoints(p))?.tiles(grid.tiles_cut(), grid.channels_cut());
    let mut totals = ws.tensor::<f64, 4>(sizes.shared(p))?;
    let mut partial = |groups: Option<usize>| groups.map(|_| ws.tensor::<R, 4>(sizes.partial(p))).transpose();
    let (mut b, mut c) = (partial(p.groups_b)?, partial(p.groups_c)?);

    let cut = |v| sequence_mut::<I>(v).tiles(grid.positions_cut(), grid.channels_cut());
    let by_slice = Cut::Every(1, sizes.parts * sizes.extent.planes());
    let pieces = (
        grads.u.map(cut),
        grads.delta.map(cut),
        grads.z.map(cut),
        grads.initial_state.map(|v| state_mut(v).tiles(grid.states_cut(), grid.channels_cut())),
        checkpoints,
        b.as_mut().map(|v| v.reborrow().tiles(grid.positions_cut(), by_slice)),
        c.as_mut().map(|v| v.reborrow().tiles(grid.positions_cut(), by_slice)),
        totals.reborrow().tiles(Cut::Every(0, 1), grid.channels_cut()),
    );
    let each = sizes.task_bytes::<R>(p);
    cpu.par.run(
        0,
        grid.tasks(),
        pieces,
        &mut ws.reborrow(),
        each,
        |i, (mut u, mut delta, mut z, mut h0, mut saved, mut b, mut c, mut totals), ws| {
            let gradients = Gradients {
                steps: [sink(&mut u), sink(&mut delta), sink(&mut z)],
                initial_state: sink(&mut h0),
                coefficients: [sink(&mut b), sink(&mut c)],
                shared: &mut totals,
            };
            let task = Walked { inputs: &inputs, upstream: &upstream, sizes: &sizes, task: grid.task(i), first_tile: grid.first_tile(i) };
            task.run(gradients, &mut saved, ws);
        },
    )?;

    let ((b_const, b_var), (c_const, c_var)) = (sums::either(grads.B), sums::either(grads.C));
    let shared = sums::Shared { a: grads.A, b: b_const, c: c_const, d: grads.D, delta_bias: grads.delta_bias };
    sums::shared(cpu, &sizes, totals.as_view(), shared, &mut ws.reborrow())?;
    for (partial, into) in [(b, b_var), (c, c_var)] {
        if let (Some(partial), Some(into)) = (partial, into) {
            sums::varying(cpu, &sizes, &args.inputs.sequences, &grid, partial.as_view(), into, &mut ws.reborrow())?;
        }
    }
    Ok(())
}

fn sink<R, S: Sink<R>>(v: &mut Option<S>) -> Option<&mut dyn Sink<R>> {
    v.as_mut().map(|s| s as &mut dyn Sink<R>)
}

/// What comes from downstream.
struct Upstream<'a, R> {
    out: &'a dyn Source<R>,
    last_state: Option<&'a dyn Source<R>>,
}

/// Where a task's gradients go.
struct Gradients<'o, R> {
    /// ∂u, ∂Δ, ∂z.
    steps: [Option<&'o mut dyn Sink<R>>; 3],
    initial_state: Option<&'o mut dyn Sink<R>>,
    /// The parts' shares of varying ∂B and ∂C.
    coefficients: [Option<&'o mut dyn Sink<f64>>; 2],
    shared: &'o mut dyn Sink<f64>,
}

/// A tile that was walked over: its first position, and how it starts.
#[derive(Debug, Clone, Copy)]
struct Record {
    start: usize,
    count: usize,
    fresh: bool,
    first: bool,
}

impl Record {
    fn pack(start: usize, tile: crate::sequences::Tile) -> [usize; 2] {
        [start, tile.count * 4 + usize::from(tile.fresh) * 2 + usize::from(tile.first)]
    }

    /// Its positions, if there are no gaps.
    fn rows(self) -> core::ops::Range<usize> {
        self.start..self.start + self.count
    }

    fn unpack([start, bits]: [usize; 2]) -> Self {
        Record { start, count: bits / 4, fresh: bits & 2 != 0, first: bits & 1 != 0 }
    }
}

/// The memory of one task.
struct Buffers<'s, R> {
    staged: Staged<'s, R>,
    records: &'s mut [[usize; 2]],
    h: PlanesMut<'s, R>,
    carry: PlanesMut<'s, R>,
    grad_out: &'s mut [R],
    /// ∂u, ∂Δ, ∂z.
    steps: [&'s mut [R]; 3],
    /// One block's share of ∂A.
    a: PlanesMut<'s, R>,
    /// One block's share of ∂B and ∂C where they are constant, that of some blocks where they vary.
    coefficients: [PlanesMut<'s, R>; 2],
    /// One block's share of ∂D and ∂bias.
    rows: [&'s mut [R]; 2],
    /// Sums over tiles of the shared gradients, `[block][row][w]`.
    shared: &'s mut [f64],
    /// Sums over blocks of varying ∂B and ∂C in one tile.
    varying: [PlanesMut<'s, f64>; 2],
    scratch: &'s mut [R],
}

impl<'s, R: Lanes> Buffers<'s, R> {
    fn take(sizes: &Sizes, seqlen: usize, ws: &mut Workspace<'s>) -> Self {
        let (all, one) = (sizes.extent, sizes.extent.one());
        Buffers {
            staged: Staged::take(all, ws),
            records: ws.slice(seqlen).expect(SIZED),
            h: all.take_states(ws),
            carry: all.take_states(ws),
            grad_out: all.take_steps(ws),
            steps: [(); 3].map(|()| all.take_steps(ws)),
            a: one.take_states(ws),
            coefficients: [(); 2].map(|()| one.take_coefficient(ws)),
            rows: [(); 2].map(|()| one.take_rows(ws)),
            shared: ws.slice(all.blocks * sizes.rows.count * all.lanes).expect(SIZED),
            varying: [(); 2].map(|()| one.take_coefficient(ws)),
            scratch: ws.slice(bwd_scratch(all.lanes)).expect(SIZED),
        }
    }
}

/// A strip of one part of a task's channels.
#[derive(Debug, Clone)]
struct Strip {
    part: usize,
    /// First block and last channel of the part.
    of: (usize, usize),
    /// Its own first block.
    block: usize,
    channels: core::ops::Range<usize>,
}

/// One task and what it reads.
struct Walked<'a, R> {
    inputs: &'a Inputs<'a, R>,
    upstream: &'a Upstream<'a, R>,
    sizes: &'a Sizes,
    task: Task,
    /// First tile of the task's piece of the saved states.
    first_tile: usize,
}

impl<R: Lanes> Walked<'_, R> {
    fn run(&self, mut grads: Gradients<'_, R>, saved: &mut dyn Tensor<R>, ws: &mut Workspace<'_>) {
        let (inputs, extent, task) = (self.inputs, self.sizes.extent, &self.task);
        let mut ws = ws.reborrow();
        let mut buffers = Buffers::take(self.sizes, inputs.problem.seqlen, &mut ws);
        buffers.staged.constants(inputs, task.channels.clone());
        buffers.shared.fill(0.0);
        for steps in grads.steps.iter_mut().flatten() {
            zero_padding(&inputs.sequences, task, inputs.problem.seqlen, &mut **steps);
        }
        for index in task.states.clone() {
            let span = inputs.sequences.span(index, inputs.problem.seqlen);
            let (batch, base) = (span.batch, span.range.start / TILE - self.first_tile);
            let mut walk = inputs.sequences.walk(&span);
            let mut count = 0;
            while let Some(tile) = walk.next(buffers.staged.positions) {
                buffers.records[count] = Record::pack(buffers.staged.positions[0], tile);
                count += 1;
            }
            let saves = self.forwards(&mut buffers, [index, batch, base], count, saved);
            self.backwards(&mut buffers, &mut grads, [index, batch, base + saves], count, saved);
            if let Some(sink) = grads.initial_state.as_mut() {
                let region = Region { outer: [index - task.states.start, 0], rows: 0..extent.dstate, cols: 0..task.channels.len() };
                sink.put(region, extent.states(), &shared(&buffers.carry));
            }
        }
        let sums = Blocks { width: extent.lanes, stride: self.sizes.rows.count * extent.lanes, first: 0 };
        let region = Region { outer: [0, 0], rows: 0..self.sizes.rows.count, cols: 0..task.channels.len() };
        grads.shared.put(region, sums, &Planes { re: buffers.shared, im: None });
    }

    /// Whether a tile starts from nothing at all.
    fn starts(&self, record: Record) -> bool {
        record.fresh && !(record.first && self.inputs.initial_state.is_some())
    }

    /// The positions of a tile that was walked over.
    fn positions(&self, positions: &mut [usize], batch: usize, record: Record) {
        let unpadded = (record.start..).filter(|&t| !self.inputs.sequences.is_padding(batch, t));
        positions[..record.count].iter_mut().zip(unpadded).for_each(|(slot, t)| *slot = t);
    }

    /// The state planes of saved tile `at`, in the task's piece.
    fn saved_region(&self, batch: usize, at: usize, plane: usize) -> Region {
        let n = self.sizes.extent.dstate;
        Region { outer: [batch - self.task.origin[0], at], rows: plane * n..(plane + 1) * n, cols: 0..self.task.channels.len() }
    }

    /// Recomputes the states and saves those that a tile starts from; how many.
    fn forwards(&self, buffers: &mut Buffers<'_, R>, [index, batch, base]: [usize; 3], count: usize, saved: &mut dyn Tensor<R>) -> usize {
        let (inputs, extent) = (self.inputs, self.sizes.extent);
        let mut saves = 0;
        initial(inputs, &self.task, index, &mut buffers.h);
        for i in 1..count {
            let (before, record) = (Record::unpack(buffers.records[i - 1]), Record::unpack(buffers.records[i]));
            if record.fresh {
                continue;
            }
            self.positions(buffers.staged.positions, batch, before);
            buffers.staged.shared(inputs, batch, before.count, self.task.channels.clone(), false);
            let mut strips = extent.strips(self.task.channels.clone()).peekable();
            while let Some((block, channels)) = strips.next() {
                buffers.staged.strip(inputs, batch, before.count, channels.clone(), false);
                if let Some((_, channels)) = strips.peek() {
                    buffers.staged.ask_strip(inputs, batch, before.rows(), channels.clone(), false);
                } else {
                    buffers.staged.ask_strip(inputs, batch, record.rows(), self.first_strip(), false);
                }
                let blocks = channels.len().div_ceil(extent.lanes);
                for at in 0..blocks {
                    let tile = buffers.staged.tile(inputs, [block + at, at], before.count, self.starts(before));
                    let (h, ahead) = (block_mut(&mut buffers.h, block + at, extent.states()), buffers.staged.ahead(at, blocks));
                    inputs.kernels.selective_scan_fwd(arch::SelectiveFwd { tile, h, out: None, scratch: &mut *buffers.scratch, ahead });
                }
            }
            let planes = [Some(&*buffers.h.re), buffers.h.im.as_deref()];
            for (plane, re) in planes.into_iter().flatten().enumerate() {
                saved.put(self.saved_region(batch, base + saves, plane), extent.states(), &Planes { re, im: None });
            }
            saves += 1;
        }
        saves
    }

    /// Walks the tiles in reverse. `saved_end` is one past the last saved state.
    fn backwards(
        &self,
        buffers: &mut Buffers<'_, R>,
        grads: &mut Gradients<'_, R>,
        [index, batch, mut saved_end]: [usize; 3],
        count: usize,
        saved: &dyn Tensor<R>,
    ) {
        let (inputs, extent) = (self.inputs, self.sizes.extent);
        match self.upstream.last_state {
            Some(source) => {
                let region = Region { outer: [index, 0], rows: 0..extent.dstate, cols: self.task.channels.clone() };
                source.stage(region, extent.states(), &mut buffers.carry);
            }
            None => clear(&mut buffers.carry),
        }
        for i in (0..count).rev() {
            let record = Record::unpack(buffers.records[i]);
            if record.fresh {
                initial(inputs, &self.task, index, &mut buffers.h);
            } else {
                saved_end -= 1;
                let planes = [Some(&mut *buffers.h.re), buffers.h.im.as_deref_mut()];
                for (plane, re) in planes.into_iter().flatten().enumerate() {
                    saved.stage(self.saved_region(batch, saved_end, plane), extent.states(), &mut real(re));
                }
            }
            self.positions(buffers.staged.positions, batch, record);
            buffers.staged.shared(inputs, batch, record.count, self.task.channels.clone(), true);
            let mut strips = self.strips().peekable();
            while let Some(strip) = strips.next() {
                let channels = strip.channels.clone();
                buffers.staged.strip(inputs, batch, record.count, channels.clone(), true);
                let positions = &buffers.staged.positions[..record.count];
                stage_positions(self.upstream.out, [batch, 0], positions, channels.clone(), extent.steps(), real(buffers.grad_out));
                if let Some(next) = strips.peek() {
                    self.ask(&mut buffers.staged, grads, batch, record.rows(), next.channels.clone());
                } else if i > 0 {
                    self.ask(&mut buffers.staged, grads, batch, Record::unpack(buffers.records[i - 1]).rows(), self.first_strip());
                }
                let blocks = channels.len().div_ceil(extent.lanes);
                for at in 0..blocks {
                    self.tile(buffers, &strip, at, blocks, record);
                }
                self.store_steps(buffers, grads, batch, record.count, channels);
                if strip.channels.end == strip.of.1 {
                    self.store(buffers, grads, batch, record.count, strip.part);
                }
            }
        }
    }

    /// The strips of the task's channels, part by part.
    fn strips(&self) -> impl Iterator<Item = Strip> {
        let (extent, width, all) = (self.sizes.extent, self.sizes.part, self.task.channels.clone());
        (0..all.len().div_ceil(width)).flat_map(move |part| {
            let (start, first) = (all.start + part * width, part * (width / extent.lanes));
            let of = (first, (start + width).min(all.end));
            extent.strips(start..of.1).map(move |(block, channels)| Strip { part, of, block: first + block, channels })
        })
    }

    /// The channels of the task's first strip.
    fn first_strip(&self) -> core::ops::Range<usize> {
        self.strips().next().map_or(0..0, |strip| strip.channels)
    }

    /// Asks for what the backward pass reads and writes of some positions and channels.
    fn ask(
        &self,
        staged: &mut Staged<'_, R>,
        grads: &Gradients<'_, R>,
        batch: usize,
        rows: core::ops::Range<usize>,
        channels: core::ops::Range<usize>,
    ) {
        staged.ask_strip(self.inputs, batch, rows.clone(), channels.clone(), true);
        staged.ask(|to| self.upstream.out.lines(Region { outer: [batch, 0], rows: rows.clone(), cols: channels.clone() }, to));
        for sink in grads.steps.iter().flatten() {
            staged.ask(|to| sink.lines(local(&self.task, batch, rows.clone(), channels.clone()), to));
        }
    }

    /// Block `at` of a strip of `blocks` in one tile.
    fn tile(&self, buffers: &mut Buffers<'_, R>, strip: &Strip, at: usize, blocks: usize, record: Record) {
        let (inputs, extent, k) = (self.inputs, self.sizes.extent, strip.block + at);
        let (tiles, states) = (extent.steps().stride, extent.states());
        let problem = &inputs.problem;
        let of_part = k - strip.of.0;
        if of_part.is_multiple_of(SUBTOTAL_BLOCKS) {
            for (_, share) in varying(problem).zip(&mut buffers.coefficients).filter(|(varies, _)| *varies) {
                clear_steps(share, record.count * extent.dstate);
            }
        }
        let Buffers { staged, h, carry, grad_out, steps: [u, delta, z], a, coefficients: [b, c], rows: [d, delta_bias], scratch, .. } =
            buffers;
        inputs.kernels.selective_scan_bwd(arch::SelectiveBwd {
            tile: staged.tile(inputs, [k, at], record.count, self.starts(record)),
            h: block(h, k, states),
            grad_out: &grad_out[at * tiles..],
            carry: block_mut(carry, k, states),
            grad_u: &mut u[at * tiles..],
            grad_delta: &mut delta[at * tiles..],
            grad_z: inputs.z.map(|_| &mut z[at * tiles..]),
            grad_a: block_mut(a, 0, states),
            grad_b: coefficient(problem.groups_b, block_mut(b, 0, states)),
            grad_c: coefficient(problem.groups_c, block_mut(c, 0, states)),
            grad_d: inputs.d.map(|_| &mut **d),
            grad_delta_bias: inputs.delta_bias.map(|_| &mut **delta_bias),
            scratch,
            ahead: staged.ahead(at, blocks),
        });
        self.add(buffers, k);
        if (of_part + 1).is_multiple_of(SUBTOTAL_BLOCKS) || self.task.channels.start + (k + 1) * extent.lanes >= strip.of.1 {
            self.add_varying(buffers, of_part < SUBTOTAL_BLOCKS, record.count * extent.dstate);
        }
    }

    /// Adds one block's shares to the sums.
    fn add(&self, buffers: &mut Buffers<'_, R>, k: usize) {
        let (inputs, extent, rows) = (self.inputs, self.sizes.extent, self.sizes.rows);
        let (n, lanes, stride) = (extent.dstate, extent.lanes, rows.count * extent.lanes);
        let sums = &mut *buffers.shared;
        let mut matrix = |start: usize, planes: &PlanesMut<'_, R>| {
            for (plane, re) in [Some(&*planes.re), planes.im.as_deref()].into_iter().flatten().enumerate() {
                let start = start + plane * n;
                sums::add(sums::rows_of(sums, k, stride, lanes, start..start + n), re);
            }
        };
        matrix(rows.start[0], &buffers.a);
        for (i, groups) in [inputs.problem.groups_b, inputs.problem.groups_c].into_iter().enumerate() {
            if groups.is_none() {
                matrix(rows.start[i + 1], &buffers.coefficients[i]);
            }
        }
        for (given, row, share) in
            [(inputs.d.is_some(), rows.d, &buffers.rows[0]), (inputs.delta_bias.is_some(), rows.delta_bias, &buffers.rows[1])]
        {
            if given {
                sums::add(sums::rows_of(sums, k, stride, lanes, row..row + 1), share);
            }
        }
    }

    /// Adds some blocks' shares of varying ∂B and ∂C to the sums over all of them, or begins with the `first`.
    fn add_varying(&self, buffers: &mut Buffers<'_, R>, first: bool, count: usize) {
        let shares = buffers.coefficients.iter().zip(&mut buffers.varying);
        for (_, (share, sum)) in varying(&self.inputs.problem).zip(shares).filter(|(varies, _)| *varies) {
            if first {
                clear_steps(sum, count);
            }
            sums::add(&mut sum.re[..count], share.re);
            if let (Some(sum), Some(share)) = (sum.im.as_deref_mut(), share.im.as_deref()) {
                sums::add(&mut sum[..count], share);
            }
        }
    }

    /// Stores what is by position and channel.
    fn store_steps(
        &self,
        buffers: &Buffers<'_, R>,
        grads: &mut Gradients<'_, R>,
        batch: usize,
        count: usize,
        channels: core::ops::Range<usize>,
    ) {
        let (extent, positions) = (self.sizes.extent, &buffers.staged.positions[..count]);
        for (sink, re) in grads.steps.iter_mut().zip(&buffers.steps) {
            if let Some(sink) = sink {
                put_positions(&mut **sink, &self.task, batch, positions, channels.clone(), extent.steps(), &Planes { re, im: None });
            }
        }
    }

    /// Stores what is by position, of one part.
    fn store(&self, buffers: &Buffers<'_, R>, grads: &mut Gradients<'_, R>, batch: usize, count: usize, part: usize) {
        let (extent, positions) = (self.sizes.extent, &buffers.staged.positions[..count]);
        let [row, start] = self.task.origin;
        for (sink, sums) in grads.coefficients.iter_mut().zip(&buffers.varying) {
            let Some(sink) = sink else { continue };
            for (first, range) in runs(positions) {
                for (plane, re) in [Some(&*sums.re), sums.im.as_deref()].into_iter().flatten().enumerate() {
                    let outer = [batch - row, part * extent.planes() + plane];
                    let region = Region { outer, rows: range.start - start..range.end - start, cols: 0..extent.dstate };
                    sink.put(region, Blocks { first, ..extent.varying() }, &Planes { re, im: None });
                }
            }
        }
    }
}

/// A share of ∂B or ∂C of the kind that its tensor has.
fn coefficient<R>(groups: Option<usize>, planes: PlanesMut<'_, R>) -> CoefficientMut<'_, R> {
    if groups.is_none() { CoefficientMut::Constant(planes) } else { CoefficientMut::Varying(planes) }
}

/// Whether B varies, and C.
fn varying(problem: &SelectiveProblem) -> impl Iterator<Item = bool> {
    [problem.groups_b, problem.groups_c].into_iter().map(|groups| groups.is_some())
}

/// Zeros in the first `count` numbers.
fn clear_steps<R: Lanes>(planes: &mut PlanesMut<'_, R>, count: usize) {
    planes.re[..count].fill(R::ZERO);
    planes.im.iter_mut().for_each(|im| im[..count].fill(R::ZERO));
}

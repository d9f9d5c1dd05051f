//! Decode steps in f32 on the SIMD engine, fused: weights packed in the order they are read, and threads that meet twice a layer.
//!
//! Channels are cut into parts, whose number depends on the model alone, and each thread owns the weights, windows and states of some
//! parts. In a layer it computes
//!
//! ```text
//! norm, in_proj, convolution of its channels; its parts' sums of x_proj      | all meet
//! the sums added up, dt_proj, step and gate of its channels; its parts' sums of out_proj | all meet
//! ```
//!
//! The stream is small: every thread adds up all of it. Sums of parts are added in the order of the parts, so bits do not depend on the
//! threads; nor on the other rows.

use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use super::{ModelState, Packing, head_weight};
use crate::arch::Kernels;
use crate::arch::generic::decode::{Channels, ConvUpdate, ScanUpdate};
use crate::arch::generic::product::{NARROW, PANEL, Product};
use crate::buffer::Buffer;
use crate::cpu::Cpu;
use crate::error::Error;
use crate::layers::linear::LinearProblem;
use crate::model::config::Sizes;
use crate::model::parameters::Parameters;
use crate::par::{Member, Par, Team, share};
use crate::view::{Cut, ViewMut};

mod layout;

use layout::{Layout, Part};

/// Outputs of the head that are computed before they are copied to the logits.
const HEAD: usize = 1024;
/// Partial sums of a mean square.
const LANES: usize = 8;

/// What one thread owns.
#[derive(Debug)]
struct Own {
    /// Its parts of the layout, and all their channels.
    parts: core::ops::Range<usize>,
    channels: usize,
    /// Outputs of the head.
    head: core::ops::Range<usize>,
    /// `[row][M]`: the stream, and it normed.
    stream: Buffer,
    normed: Buffer,
    /// `[row][channel]`, its own channels: x and later y, the gate, Δ.
    x: Buffer,
    z: Buffer,
    delta: Buffer,
    /// `[row][…]`: [δ | B | C], and δ alone.
    low: Buffer,
    rank: Buffer,
    /// `[layer][part][block][slot][…][lane]`.
    windows: Buffer,
    states: Buffer,
    logits: Buffer,
}

/// What one thread's parts add to the sums that all read, `[part][row][output]`.
#[derive(Debug)]
struct Sums {
    parts: usize,
    low: Buffer,
    out: Buffer,
}

/// The fused decoder.
#[derive(Debug)]
pub(super) struct Fused {
    kernels: Kernels,
    layout: Layout,
    packed: Buffer,
    /// Norm weights of the layers and the last one, then out_proj's biases.
    norms: Vec<f32>,
    biases: Vec<f32>,
    eps: f64,
    /// Rows at most, and slots.
    slots: usize,
    own: Vec<Mutex<Own>>,
    sums: Vec<RwLock<Sums>>,
    /// Where each thread's logits begin, and the end.
    bounds: Vec<usize>,
    team: Mutex<Team>,
}

/// What a step reads.
#[derive(Clone, Copy)]
struct Job<'a> {
    embeddings: &'a [f32],
    tokens: &'a [u32],
    slots: &'a [i32],
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read<T>(of: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    of.read().unwrap_or_else(PoisonError::into_inner)
}

/// normed = stream / sqrt(mean square + ε) · weight for each row, and 0 in its padding.
fn norm(stream: &[f32], weight: &[f32], eps: f64, normed: &mut [f32], stride: usize, rows: usize) {
    let width = weight.len();
    for row in 0..rows {
        let (r, out) = (&stream[row * stride..][..width], &mut normed[row * stride..][..stride]);
        out[width..].fill(0.0);
        let mut lanes = [0.0f64; LANES];
        let chunks = r.chunks_exact(LANES);
        let rest: f64 = chunks.remainder().iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        for chunk in chunks {
            for i in 0..LANES {
                lanes[i] += f64::from(chunk[i]) * f64::from(chunk[i]);
            }
        }
        let scale = (1.0 / ((lanes.iter().sum::<f64>() + rest) / width as f64 + eps).sqrt()) as f32;
        for ((out, r), w) in out.iter_mut().zip(r).zip(weight) {
            *out = r * scale * w;
        }
    }
}

/// to += from, or to = from.
fn accumulate(to: &mut [f32], from: &[f32], first: bool) {
    if first {
        to.copy_from_slice(from);
        return;
    }
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}

impl Fused {
    /// The packed weights, and memory for `slots` texts.
    pub fn new(cpu: Cpu, parameters: &Parameters<f32>, sizes: &Sizes, eps: f64, slots: usize, packing: Packing) -> Self {
        let kernels = cpu.kernels();
        let pairs = packing == Packing::Bf16 || layout::is_bf16(parameters);
        let layout = Layout::new(sizes, pairs, kernels.lanes::<f32>());
        let mut packed = Buffer::zeroed::<f32>(layout.words);
        let (layers, head) = packed.numbers_mut::<f32>()[..layout.words].split_at_mut(layout.layer * sizes.layers);
        cpu.par().chunks_mut(layers, layout.layer, |i, to| layout.pack_layer(to, &parameters.layers[i]));
        let outputs = HEAD;
        cpu.par().chunks_mut(head, layout.words(outputs, sizes.hidden), |i, to| {
            layout.pack_head(to, head_weight(parameters), i * outputs..((i + 1) * outputs).min(layout.vocab));
        });
        let team = Team::new(cpu.par().workers().min(layout.parts.len()));
        let threads = team.count();
        let panels = layout.vocab.div_ceil(PANEL);
        let bound = |i: usize| (share(panels, i, threads).start * PANEL).min(sizes.vocab);
        let norms = parameters.layers.iter().map(|layer| &layer.norm).chain([&parameters.norm_f]);
        Fused {
            kernels,
            packed,
            norms: norms.flatten().copied().collect(),
            biases: parameters.layers.iter().filter_map(|layer| layer.out_proj_bias.as_ref()).flatten().copied().collect(),
            eps,
            slots,
            own: (0..threads).map(|i| Mutex::new(Own::new(&layout, slots, i, threads))).collect(),
            sums: (0..threads).map(|i| RwLock::new(Sums::new(&layout, slots, share(layout.parts.len(), i, threads).len()))).collect(),
            bounds: (0..threads).map(bound).chain([sizes.vocab]).collect(),
            team: Mutex::new(team),
            layout,
        }
    }

    /// Checks that every slot exists and stands once.
    pub fn check(&self, slots: &[i32]) -> Result<(), Error> {
        let fault = |why: String| Err(Error::Value { operand: "slots", why });
        for (i, &slot) in slots.iter().enumerate() {
            if slot as usize >= self.slots {
                return fault(format!("slot {slot} of {}", self.slots));
            }
            if slots[..i].contains(&slot) {
                return fault(format!("slot {slot} stands twice"));
            }
        }
        Ok(())
    }

    /// One step; the logits of row i are those of `tokens[i]`, which belongs to slot `slots[i]`.
    pub fn step(&self, embeddings: &[f32], tokens: &[u32], slots: &[i32], logits: &mut [f32]) {
        let job = Job { embeddings, tokens, slots };
        self.run(tokens.len(), logits, |own, member| self.blocks(own, member, job));
    }

    /// The logits of rows that have been normed, (rows, M).
    pub fn head_of(&self, hidden: &[f32], rows: usize, logits: &mut [f32]) {
        let width = self.layout.sizes.hidden;
        self.run(rows, logits, |own, _| {
            for row in 0..rows {
                own.normed.numbers_mut()[row * self.layout.hidden..][..width].copy_from_slice(&hidden[row * width..][..width]);
            }
        });
    }

    /// Runs `before`, which leaves normed rows, and the head on every thread.
    fn run(&self, rows: usize, logits: &mut [f32], before: impl Fn(&mut Own, &Member<'_>) + Sync) {
        let tiles = ViewMut::new(logits, [rows, self.layout.sizes.vocab]).tiles(Cut::Whole, Cut::At(1, &self.bounds));
        lock(&self.team).run((tiles,), |member, (logits,)| {
            let mut own = lock(&self.own[member.index]);
            before(&mut own, &member);
            self.head(&mut own, rows, logits);
        });
    }

    /// The weights of a layer.
    fn layer(&self, layer: usize) -> &[f32] {
        &self.packed.numbers()[layer * self.layout.layer..][..self.layout.layer]
    }

    fn blocks(&self, own: &mut Own, member: &Member<'_>, job: Job<'_>) {
        let (Sizes { hidden, layers, .. }, stride, rows) = (self.layout.sizes, self.layout.hidden, job.tokens.len());
        for (row, &token) in job.tokens.iter().enumerate() {
            let from = &job.embeddings[token as usize * hidden..][..hidden];
            own.stream.numbers_mut()[row * stride..][..hidden].copy_from_slice(from);
        }
        for layer in 0..layers {
            norm(own.stream.numbers(), &self.norms[layer * hidden..][..hidden], self.eps, own.normed.numbers_mut(), stride, rows);
            self.first_half(own, member.index, layer, job.slots);
            member.meet();
            self.gather(own.low.numbers_mut(), rows, self.layout.low, |sums| &sums.low);
            self.second_half(own, member.index, layer, job.slots);
            member.meet();
            self.gather(own.normed.numbers_mut(), rows, stride, |sums| &sums.out);
            let bias = self.biases.get(layer * hidden..(layer + 1) * hidden);
            for row in 0..rows {
                let at = row * stride..row * stride + hidden;
                let sum = &mut own.normed.numbers_mut::<f32>()[at.clone()];
                if let Some(bias) = bias {
                    accumulate(sum, bias, false);
                }
                accumulate(&mut own.stream.numbers_mut()[at], sum, false);
            }
        }
        norm(own.stream.numbers(), &self.norms[layers * hidden..], self.eps, own.normed.numbers_mut(), stride, rows);
    }

    /// to = the sums of all parts, in their order.
    fn gather(&self, to: &mut [f32], rows: usize, width: usize, which: impl Fn(&Sums) -> &Buffer) {
        let (mut first, count) = (true, rows * width);
        for member in &self.sums {
            let sums = read(member);
            let numbers = which(&sums).numbers::<f32>();
            for part in numbers.chunks_exact(self.slots * width).take(sums.parts) {
                accumulate(&mut to[..count], &part[..count], first);
                first = false;
            }
        }
    }

    fn product(&self, weight: &[f32], dims: [usize; 2], x: (&[f32], usize), out: (&mut [f32], usize), rows: usize) {
        let [inputs, outputs] = dims;
        let weight = self.layout.panels(weight);
        self.kernels.product(Product { weight, inputs, outputs, rows, x: x.0, x_stride: x.1, out: out.0, out_stride: out.1 });
    }

    /// in_proj, the convolution, and this thread's sums of x_proj.
    fn first_half(&self, own: &mut Own, index: usize, layer: usize, slots: &[i32]) {
        let (layout, weights, rows) = (&self.layout, self.layer(layer), slots.len());
        let Sizes { hidden, conv, .. } = layout.sizes;
        let mut sums = self.sums[index].write().unwrap_or_else(PoisonError::into_inner);
        let all = own.channels;
        for (i, part) in layout.parts[own.parts.clone()].iter().enumerate() {
            let (c, from) = (part.channels.len(), own.start(layout, part));
            let (x, z) = (&mut own.x.numbers_mut::<f32>()[from..], &mut own.z.numbers_mut::<f32>()[from..]);
            let normed = (own.normed.numbers(), layout.hidden);
            self.product(&weights[part.input[0].clone()], [hidden, c], normed, (x, all), rows);
            self.product(&weights[part.input[1].clone()], [hidden, c], normed, (z, all), rows);
            if layout.sizes.bias {
                let (x_bias, z_bias) = weights[part.input_bias.clone()].split_at(c);
                for row in 0..rows {
                    accumulate(&mut x[row * all..][..c], x_bias, false);
                    accumulate(&mut z[row * all..][..c], z_bias, false);
                }
            }
            let window = (layer * all + from) * self.slots * (conv - 1);
            self.kernels.conv_update(ConvUpdate {
                channels: c,
                width: conv,
                slots,
                states: self.slots,
                weight: &weights[part.conv.clone()],
                bias: &weights[part.conv_bias.clone()],
                window: &mut own.windows.numbers_mut()[window..],
                x: Channels { data: x, stride: all },
            });
            let out = &mut sums.low.numbers_mut::<f32>()[i * self.slots * layout.low..];
            self.product(&weights[part.low.clone()], [c, layout.low], (x, all), (out, layout.low), rows);
        }
    }

    /// Δ, the step of the scan with its gate, and this thread's sums of out_proj.
    fn second_half(&self, own: &mut Own, index: usize, layer: usize, slots: &[i32]) {
        let (layout, weights, rows) = (&self.layout, self.layer(layer), slots.len());
        let Sizes { rank, state, .. } = layout.sizes;
        let mut sums = self.sums[index].write().unwrap_or_else(PoisonError::into_inner);
        let (all, rank_stride) = (own.channels, rank.next_multiple_of(2));
        for row in 0..rows {
            own.rank.numbers_mut::<f32>()[row * rank_stride..][..rank].copy_from_slice(&own.low.numbers()[row * layout.low..][..rank]);
        }
        for (i, part) in layout.parts[own.parts.clone()].iter().enumerate() {
            let (c, from) = (part.channels.len(), own.start(layout, part));
            let delta = &mut own.delta.numbers_mut::<f32>()[from..];
            self.product(&weights[part.delta.clone()], [rank, c], (own.rank.numbers(), rank_stride), (delta, all), rows);
            let states = (layer * all + from) * self.slots * state;
            let x = &mut own.x.numbers_mut::<f32>()[from..];
            self.kernels.scan_update(ScanUpdate {
                channels: c,
                dstate: state,
                slots,
                states: self.slots,
                decay: &weights[part.decay.clone()],
                skip: &weights[part.skip.clone()],
                delta_bias: &weights[part.delta_bias.clone()],
                coefficients: &own.low.numbers()[rank..],
                coefficient_stride: layout.low,
                state: &mut own.states.numbers_mut()[states..],
                delta: Channels { data: delta, stride: all },
                z: Channels { data: &mut own.z.numbers_mut()[from..], stride: all },
                u: Channels { data: x, stride: all },
            });
            let out = &mut sums.out.numbers_mut::<f32>()[i * self.slots * layout.hidden..];
            self.product(&weights[part.output.clone()], [c, layout.hidden], (x, all), (out, layout.hidden), rows);
        }
    }

    /// This thread's logits of the normed rows.
    fn head(&self, own: &mut Own, rows: usize, mut logits: ViewMut<'_, f32, 2>) {
        let (layout, end) = (&self.layout, own.head.end);
        let hidden = layout.sizes.hidden;
        let head = &self.packed.numbers::<f32>()[layout.layer * layout.sizes.layers..layout.words];
        for start in own.head.clone().step_by(HEAD) {
            let outputs = (start + HEAD).min(end) - start;
            let out = own.logits.numbers_mut::<f32>();
            let weight = &head[layout.words(start, hidden)..];
            self.product(weight, [hidden, outputs], (own.normed.numbers(), layout.hidden), (out, HEAD), rows);
            let (from, width) = (start - own.head.start, logits.dims()[1]);
            for row in 0..rows {
                let real = outputs.min(width - from);
                let to = logits.row_mut([row, 0]).expect("a tile of contiguous rows");
                to[from..from + real].copy_from_slice(&out[row * HEAD..][..real]);
            }
        }
    }

    /// Calls `visit` with every number of windows and states, and where it stands in a [`ModelState`]: (layer, index).
    fn each(&self, mut visit: impl FnMut(bool, usize, usize, &mut f32)) {
        let (Sizes { layers, inner, state, conv, .. }, lanes) = (self.layout.sizes, self.layout.lanes);
        for own in &self.own {
            let own = &mut *lock(own);
            for layer in 0..layers {
                for part in &self.layout.parts[own.parts.clone()] {
                    let (from, c) = (own.start(&self.layout, part), part.channels.len());
                    for (is_state, buffer, count) in [(false, &mut own.windows, conv - 1), (true, &mut own.states, state)] {
                        let numbers = &mut buffer.numbers_mut::<f32>()[(layer * own.channels + from) * self.slots * count..];
                        for (at, number) in numbers[..c * self.slots * count].iter_mut().enumerate() {
                            let (lane, i, slot) = (at % lanes, at / lanes % count, at / lanes / count % self.slots);
                            let channel = part.channels.start + at / lanes / count / self.slots * lanes + lane;
                            if channel < inner {
                                let index =
                                    if is_state { (slot * inner + channel) * state + i } else { (slot * count + i) * inner + channel };
                                visit(is_state, layer, index, number);
                            }
                        }
                    }
                }
            }
        }
    }

    /// Takes windows and states over.
    pub fn load(&self, from: &ModelState<f32>) {
        self.each(|state, layer, index, number| *number = if state { from.states[layer][index] } else { from.windows[layer][index] });
    }

    /// Windows and states.
    pub fn state(&self) -> ModelState<f32> {
        let mut to = ModelState::zeros(&self.layout.sizes, self.slots);
        self.each(|state, layer, index, number| {
            *(if state { &mut to.states[layer][index] } else { &mut to.windows[layer][index] }) = *number;
        });
        to
    }
}

impl Own {
    fn new(layout: &Layout, slots: usize, index: usize, threads: usize) -> Self {
        let sizes = &layout.sizes;
        let parts = share(layout.parts.len(), index, threads);
        let channels: usize = layout.parts[parts.clone()].iter().map(|part| part.channels.len()).sum();
        let panels = share(layout.vocab.div_ceil(PANEL), index, threads);
        let head = panels.start * PANEL..(panels.end * PANEL).min(layout.vocab);
        let zeros = Buffer::zeroed::<f32>;
        Own {
            parts,
            channels,
            head,
            stream: zeros(slots * layout.hidden),
            normed: zeros(slots * layout.hidden),
            x: zeros(slots * channels),
            z: zeros(slots * channels),
            delta: zeros(slots * channels),
            low: zeros(slots * layout.low),
            rank: zeros(slots * sizes.rank.next_multiple_of(2)),
            windows: zeros(sizes.layers * slots * channels * (sizes.conv - 1)),
            states: zeros(sizes.layers * slots * channels * sizes.state),
            logits: zeros(slots * HEAD.next_multiple_of(NARROW)),
        }
    }

    /// The first of a part's channels among all of this thread's.
    fn start(&self, layout: &Layout, part: &Part) -> usize {
        part.channels.start - layout.parts[self.parts.start].channels.start
    }
}

impl Sums {
    fn new(layout: &Layout, slots: usize, parts: usize) -> Self {
        Sums { parts, low: Buffer::zeroed::<f32>(parts * slots * layout.low), out: Buffer::zeroed::<f32>(parts * slots * layout.hidden) }
    }
}

/// Whether steps of a model are fused on an engine with this way of running parts: not on a host's own threads, and not where the
/// products that make Δ, B and C are so small that `Linear` computes them in f64, which a small model's accuracy lives on.
pub(super) fn suits(sizes: &Sizes, par: Par) -> bool {
    let product = |inputs, outputs| LinearProblem { rows: 1, inputs, outputs };
    let small = product(sizes.inner, sizes.rank + 2 * sizes.state).fine() || product(sizes.rank, sizes.inner).fine();
    !small && !matches!(par, Par::Part { .. })
}

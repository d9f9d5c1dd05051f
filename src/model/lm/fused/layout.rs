//! Where the weights of a fused decoder lie: one buffer, in the order in which a step reads it.

use core::ops::Range;

use half::bf16;

use crate::arch::generic::product::{NARROW, PANEL, Panels};
use crate::model::config::Sizes;
use crate::model::parameters::{Layer, Parameters};
use crate::par::share;

/// Channels of a part at least, and parts at most. A part has its own partial sums of x_proj and out_proj, so their number shapes
/// the order of sums: it depends on the model alone.
const PART_CHANNELS: usize = 96;
const MOST_PARTS: usize = 16;

/// One part's channels, and its weights in a layer, as words of the layer. Padded channels have weights 0.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub channels: Range<usize>,
    /// in_proj for x, then for z: (channels, M).
    pub input: [Range<usize>; 2],
    /// Its bias, for x and then for z.
    pub input_bias: Range<usize>,
    /// `[block][tap][lane]`.
    pub conv: Range<usize>,
    pub conv_bias: Range<usize>,
    /// x_proj's share, (R + 2N, channels).
    pub low: Range<usize>,
    /// (channels, R).
    pub delta: Range<usize>,
    pub delta_bias: Range<usize>,
    pub skip: Range<usize>,
    /// A·log₂e, `[block][n][lane]`.
    pub decay: Range<usize>,
    /// out_proj's share, (M, channels).
    pub output: Range<usize>,
}

/// The order of all weights.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub sizes: Sizes,
    /// Whether products have weights in pairs of bf16.
    pub pairs: bool,
    /// Channels of a block.
    pub lanes: usize,
    pub parts: Vec<Part>,
    /// Words of a layer, and of everything.
    pub layer: usize,
    pub words: usize,
    /// M, R + 2N and the vocabulary, each padded to whole panels.
    pub hidden: usize,
    pub low: usize,
    pub vocab: usize,
}

/// Takes words one after another.
struct Taken(usize);

impl Taken {
    fn take(&mut self, words: usize) -> Range<usize> {
        self.0 += words;
        self.0 - words..self.0
    }
}

impl Layout {
    pub fn new(sizes: &Sizes, pairs: bool, lanes: usize) -> Self {
        let [inner, hidden, low, vocab] =
            [sizes.inner, sizes.hidden, sizes.rank + 2 * sizes.state, sizes.vocab].map(|n| n.next_multiple_of(NARROW));
        let (count, units) = ((sizes.inner / PART_CHANNELS).clamp(1, MOST_PARTS), inner.div_ceil(PANEL));
        let channels = |i: usize| {
            let units = share(units, i, count);
            units.start * PANEL..(units.end * PANEL).min(inner)
        };
        let product = |outputs: usize, inputs: usize| words(pairs, outputs, inputs);
        let mut at = Taken(0);
        let mut parts: Vec<Part> = Vec::new();
        for i in 0..count {
            let channels = channels(i);
            let c = channels.len();
            parts.push(Part {
                input: [at.take(product(c, sizes.hidden)), at.take(product(c, sizes.hidden))],
                input_bias: at.take(2 * c),
                conv: at.take(sizes.conv * c),
                conv_bias: at.take(c),
                low: at.take(product(low, c)),
                channels,
                delta: 0..0,
                delta_bias: 0..0,
                skip: 0..0,
                decay: 0..0,
                output: 0..0,
            });
        }
        for part in &mut parts {
            let c = part.channels.len();
            part.delta = at.take(product(c, sizes.rank));
            part.delta_bias = at.take(c);
            part.skip = at.take(c);
            part.decay = at.take(sizes.state * c);
            part.output = at.take(product(hidden, c));
        }
        let layer = at.0;
        let words = sizes.layers * layer + product(vocab, sizes.hidden);
        Layout { sizes: *sizes, pairs, lanes, parts, layer, words, hidden, low, vocab }
    }

    /// Words of a product's weight.
    pub fn words(&self, outputs: usize, inputs: usize) -> usize {
        words(self.pairs, outputs, inputs)
    }

    /// Words as a product reads them.
    pub fn panels<'a>(&self, words: &'a [f32]) -> Panels<'a, f32> {
        if self.pairs { Panels::Pairs(bytemuck::cast_slice(words)) } else { Panels::Plain(words) }
    }

    /// Writes a product's weight: number (output, input), which is 0 beyond `outputs` × `inputs`.
    fn pack(&self, to: &mut [f32], dims: [usize; 2], given: [usize; 2], number: impl Fn(usize, usize) -> f32) {
        let [outputs, inputs] = dims;
        let padded = |o: usize, k: usize| if o < given[0] && k < given[1] { number(o, k) } else { 0.0 };
        let mut to = to.iter_mut();
        let mut put = |word: f32| *to.next().expect("words as `words` says") = word;
        for panel in (0..outputs).step_by(PANEL) {
            let panel = panel..(panel + PANEL).min(outputs);
            if self.pairs {
                for k in (0..inputs).step_by(2) {
                    panel.clone().for_each(|o| put(bytemuck::cast([bf16::from_f32(padded(o, k)), bf16::from_f32(padded(o, k + 1))])));
                }
            } else {
                (0..inputs).for_each(|k| panel.clone().for_each(|o| put(padded(o, k))));
            }
        }
    }

    /// Writes numbers of channels, `[block][i][lane]`.
    fn pack_channels(&self, to: &mut [f32], part: &Part, count: usize, number: impl Fn(usize, usize) -> f32) {
        for (at, to) in to.iter_mut().enumerate() {
            let (block, i, lane) = (at / (count * self.lanes), at / self.lanes % count, at % self.lanes);
            let channel = part.channels.start + block * self.lanes + lane;
            *to = if channel < self.sizes.inner { number(channel, i) } else { 0.0 };
        }
    }

    /// Writes a layer.
    pub fn pack_layer(&self, to: &mut [f32], layer: &Layer<f32>) {
        let Sizes { hidden, inner, state, rank, conv, .. } = self.sizes;
        let low = rank + 2 * state;
        for part in &self.parts {
            let (from, c) = (part.channels.start, part.channels.len());
            let real = inner.min(part.channels.end) - from;
            for (half, to_range) in part.input.iter().enumerate() {
                let rows = &layer.in_proj[(half * inner + from) * hidden..];
                self.pack(&mut to[to_range.clone()], [c, hidden], [real, hidden], |o, k| rows[o * hidden + k]);
            }
            let bias = |at: usize| layer.in_proj_bias.as_ref().map_or(0.0, |bias| bias[at]);
            let (x_bias, z_bias) = to[part.input_bias.clone()].split_at_mut(c);
            self.pack_channels(x_bias, part, 1, |d, _| bias(d));
            self.pack_channels(z_bias, part, 1, |d, _| bias(inner + d));
            self.pack_channels(&mut to[part.conv.clone()], part, conv, |d, k| layer.conv_weight[d * conv + k]);
            self.pack_channels(&mut to[part.conv_bias.clone()], part, 1, |d, _| layer.conv_bias.as_ref().map_or(0.0, |bias| bias[d]));
            self.pack(&mut to[part.low.clone()], [self.low, c], [low, real], |o, k| layer.x_proj[o * inner + from + k]);
            self.pack(&mut to[part.delta.clone()], [c, rank], [real, rank], |o, k| layer.dt_proj[(from + o) * rank + k]);
            self.pack_channels(&mut to[part.delta_bias.clone()], part, 1, |d, _| layer.dt_bias[d]);
            self.pack_channels(&mut to[part.skip.clone()], part, 1, |d, _| layer.d[d]);
            let decay = |d: usize, n: usize| (-f64::from(layer.a_log[d * state + n]).exp() * core::f64::consts::LOG2_E) as f32;
            self.pack_channels(&mut to[part.decay.clone()], part, state, decay);
            self.pack(&mut to[part.output.clone()], [self.hidden, c], [hidden, real], |o, k| layer.out_proj[o * inner + from + k]);
        }
    }

    /// Writes panels of the head from the first of these outputs on.
    pub fn pack_head(&self, to: &mut [f32], head: &[f32], outputs: Range<usize>) {
        let Sizes { hidden, vocab, .. } = self.sizes;
        let real = vocab.min(outputs.end) - outputs.start.min(vocab);
        let rows = &head[outputs.start.min(vocab) * hidden..];
        self.pack(to, [outputs.len(), hidden], [real, hidden], |o, k| rows[o * hidden + k]);
    }
}

fn words(pairs: bool, outputs: usize, inputs: usize) -> usize {
    if pairs { outputs * inputs.div_ceil(2) } else { outputs * inputs }
}

/// Whether all weights of products are numbers of bf16.
pub(super) fn is_bf16(parameters: &Parameters<f32>) -> bool {
    let exact = |weights: &[f32]| weights.iter().all(|x| x.to_bits() & 0xffff == 0);
    let layer = |layer: &Layer<f32>| [&layer.in_proj, &layer.x_proj, &layer.dt_proj, &layer.out_proj].into_iter().all(|w| exact(w));
    exact(super::super::head_weight(parameters)) && parameters.layers.iter().all(layer)
}

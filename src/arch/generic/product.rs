//! Products of few rows with a packed weight. Weights are read once, in the order they lie in.
//!
//! Outputs lie in lanes. Each number is a chain of multiply-adds over `SEGMENT` inputs, and these sums are added up in their order: its
//! bits depend neither on the number of rows nor on how weights are stored.

use half::bf16;

use crate::arch::generic::tables::Tables;
use crate::arch::generic::vector::{Op, Part, Vector, rows, rows_mut};

/// Outputs of a panel.
pub const PANEL: usize = 32;
/// Outputs of the last panel where no more are left.
pub const NARROW: usize = 16;
/// Inputs whose products are one chain; even.
const SEGMENT: usize = 128;

/// The weight of a product, panel after panel.
#[derive(Debug, Clone, Copy)]
pub enum Panels<'a, R> {
    /// `[k][output]` a panel; 64-byte aligned.
    Plain(&'a [R]),
    /// `[k/2][output]` a panel: the weights of two inputs side by side. An odd number of inputs has a weight 0 more.
    Pairs(&'a [[bf16; 2]]),
}

/// out = x·Wᵀ for a few rows.
#[derive(Debug)]
pub struct Product<'a, R> {
    /// The weight.
    pub weight: Panels<'a, R>,
    /// Inputs.
    pub inputs: usize,
    /// Outputs, a multiple of [`NARROW`]: panels of [`PANEL`], and a narrow one where half a panel is left.
    pub outputs: usize,
    /// Rows.
    pub rows: usize,
    /// `[row][x_stride]`; where inputs are odd and weights are pairs, one more number is read and should be 0.
    pub x: &'a [R],
    /// From row to row.
    pub x_stride: usize,
    /// `[row][out_stride]`, overwritten; 64-byte aligned.
    pub out: &'a mut [R],
    /// From row to row, a multiple of [`NARROW`].
    pub out_stride: usize,
}

/// The product of `G` rows with `NV` vectors of outputs over one segment.
struct Segment<'t, 'a, V: Vector, const NV: usize, const G: usize> {
    weight: Panels<'a, V::Real>,
    /// Outputs of the panel, and the first of them that is wanted here.
    panel: [usize; 2],
    /// x of the first row, from the segment's first input on.
    x: &'a [V::Real],
    x_stride: usize,
    inputs: usize,
    out: &'t mut [V::Real],
    out_stride: usize,
    first: bool,
    /// What is asked for meanwhile, so many words an input or pair of them. It may lie anywhere.
    ahead: Option<(*const u32, usize)>,
}

impl<V: Vector, const NV: usize, const G: usize> Segment<'_, '_, V, NV, G> {
    /// acc += weight·x of input `k`.
    ///
    /// # Safety
    /// x of every row has a number `k`.
    #[inline(always)]
    unsafe fn multiply(&self, zero: V, weight: [V; NV], k: usize, acc: &mut [[V; NV]; G]) {
        for g in 0..G {
            // SAFETY: the caller says so.
            let x = zero.splat(unsafe { *self.x.get_unchecked(g * self.x_stride + k) });
            for j in 0..NV {
                acc[g][j] = weight[j].mul_add(x, acc[g][j]);
            }
        }
    }

    /// Adds the products of all inputs, weights plain.
    #[inline(always)]
    fn plain(&self, zero: V, weight: &[V::Real], acc: &mut [[V; NV]; G]) {
        let [panel, from] = self.panel;
        assert!(self.x.len() >= (G - 1) * self.x_stride + self.inputs && from + NV * V::LANES <= panel);
        let weight = &rows(zero, weight, self.inputs * panel / V::LANES)[from / V::LANES..];
        for k in 0..self.inputs {
            self.prefetch(zero, k);
            let mut own = [zero; NV];
            for j in 0..NV {
                // SAFETY: `panel` is a whole number of vectors, `inputs` times of which are there, and these end inside of one.
                own[j] = unsafe { *weight.get_unchecked(k * panel / V::LANES + j) };
            }
            // SAFETY: the assertion.
            unsafe { self.multiply(zero, own, k, acc) };
        }
    }

    /// Adds the products of all inputs, weights in pairs.
    #[inline(always)]
    fn pairs(&self, zero: V, weight: &[[bf16; 2]], acc: &mut [[V; NV]; G]) {
        let ([panel, from], pairs) = (self.panel, self.inputs.div_ceil(2));
        assert!(self.x.len() >= (G - 1) * self.x_stride + 2 * pairs && from + NV * V::LANES <= panel);
        let weight = &weight[from..pairs * panel];
        for k in 0..pairs {
            self.prefetch(zero, k);
            let (mut first, mut second) = ([zero; NV], [zero; NV]);
            for j in 0..NV {
                let at = k * panel + j * V::LANES;
                // SAFETY: `pairs` times `panel` words are there, and these end inside of a panel.
                let words = unsafe { weight.get_unchecked(at..at + V::LANES) };
                (first[j], second[j]) = (zero.widen::<false>(words), zero.widen::<true>(words));
            }
            // SAFETY: the assertion.
            unsafe {
                self.multiply(zero, first, 2 * k, acc);
                self.multiply(zero, second, 2 * k + 1, acc);
            }
        }
    }

    #[inline(always)]
    fn prefetch(&self, zero: V, k: usize) {
        if let Some((ahead, words)) = self.ahead {
            zero.prefetch::<false>(ahead.wrapping_add(k * words).addr());
        }
    }
}

impl<V: Vector, const NV: usize, const G: usize> Part<V> for Segment<'_, '_, V, NV, G> {
    type Out = ();
    #[inline(always)]
    fn run(self, zero: V) {
        let mut acc = [[zero; NV]; G];
        match self.weight {
            Panels::Plain(weight) => self.plain(zero, weight, &mut acc),
            Panels::Pairs(weight) => self.pairs(zero, weight, &mut acc),
        }
        for g in 0..G {
            let out = rows_mut(zero, &mut self.out[g * self.out_stride..], NV);
            for j in 0..NV {
                out[j] = if self.first { acc[g][j] } else { out[j] + acc[g][j] };
            }
        }
    }
}

impl<'a, R: Tables> Panels<'a, R> {
    /// From the panel's or segment's first word on; none where there is no such word.
    #[inline(always)]
    fn from(self, word: usize) -> Self {
        match self {
            Panels::Plain(weight) => Panels::Plain(&weight[word.min(weight.len())..]),
            Panels::Pairs(weight) => Panels::Pairs(&weight[word.min(weight.len())..]),
        }
    }

    #[inline(always)]
    fn start(self) -> *const u32 {
        match self {
            Panels::Plain(weight) => weight.as_ptr().cast(),
            Panels::Pairs(weight) => weight.as_ptr().cast(),
        }
    }

    /// Words that `inputs` inputs of a panel of `width` outputs take.
    #[inline(always)]
    fn words(self, inputs: usize, width: usize) -> usize {
        match self {
            Panels::Plain(_) => inputs * width,
            Panels::Pairs(_) => inputs.div_ceil(2) * width,
        }
    }
}

/// How many of `left` rows are taken at once. Registers hold the sums of half a panel and six rows, or, with 16 lanes, of a panel and
/// eight; a whole panel and two rows in any case.
#[inline(always)]
fn group(lanes: usize, left: usize) -> usize {
    match (lanes, left) {
        (16, 8..) => 8,
        (16, 4..) => 4,
        (16, 3) => 2,
        (_, 6 | 9..) => 6,
        (_, 4 | 7 | 8) => 4,
        (_, 3 | 5) => 3,
        (_, 2..) => 2,
        _ => 1,
    }
}

/// How many groups, or halves of them, take all rows.
#[inline(always)]
fn passes(lanes: usize, width: usize, rows: usize) -> usize {
    let (mut row, mut passes) = (0, 0);
    while row < rows {
        let size = group(lanes, rows - row);
        passes += if width < PANEL || size <= 2 || lanes == 16 { 1 } else { 2 };
        row += size;
    }
    passes
}

impl<'a, R: Tables> Product<'a, R> {
    /// `NV` vectors of a group of `size` rows over the inputs from `start` on.
    #[inline(always)]
    fn group<V: Vector<Real = R>, const NV: usize>(&mut self, zero: V, at: Place<'a, R>, size: usize) {
        let Place { weight, panel, output, start, inputs, row, ahead } = at;
        let x = &self.x[row * self.x_stride + start..];
        let (x_stride, out_stride, first) = (self.x_stride, self.out_stride, start == 0);
        let out = &mut self.out[row * out_stride + output..];
        // What is not asked for below is not compiled.
        let (half, sixteen) = (NV * V::LANES < PANEL, V::LANES == 16);
        if size == 1 {
            zero.outline(Segment::<V, NV, 1> { weight, panel, x, x_stride, inputs, out, out_stride, first, ahead });
        } else if size == 2 {
            zero.outline(Segment::<V, NV, 2> { weight, panel, x, x_stride, inputs, out, out_stride, first, ahead });
        } else if half && !sixteen && size == 3 {
            zero.outline(Segment::<V, NV, 3> { weight, panel, x, x_stride, inputs, out, out_stride, first, ahead });
        } else if (half || sixteen) && size == 4 {
            zero.outline(Segment::<V, NV, 4> { weight, panel, x, x_stride, inputs, out, out_stride, first, ahead });
        } else if half && !sixteen {
            zero.outline(Segment::<V, NV, 6> { weight, panel, x, x_stride, inputs, out, out_stride, first, ahead });
        } else if sixteen {
            zero.outline(Segment::<V, NV, 8> { weight, panel, x, x_stride, inputs, out, out_stride, first, ahead });
        }
    }

    /// One panel, of `WIDE` vectors or, where it is narrow, `HALF`: all rows. `output` is its first output, `word` where it starts.
    #[inline(always)]
    fn panel<V: Vector<Real = R>, const WIDE: usize, const HALF: usize>(&mut self, zero: V, output: usize, word: usize) {
        let width = PANEL.min(self.outputs - output);
        for start in (0..self.inputs).step_by(SEGMENT) {
            let inputs = SEGMENT.min(self.inputs - start);
            let weight = self.weight.from(word + self.weight.words(start, width));
            // Several groups share in asking for the next segment. One alone reads weights once, and the hardware's own guesses do better.
            let (groups, inner) = (passes(V::LANES, width, self.rows), weight.words(inputs, 1));
            let (words, mut row, mut pass) = (width.div_ceil(groups), 0, 0);
            let mut ahead = || {
                pass += 1;
                (groups > 1).then(|| (weight.start().wrapping_add((groups + pass - 1) * inner * words), words))
            };
            while row < self.rows {
                let size = group(V::LANES, self.rows - row);
                let place = Place { weight, panel: [width, 0], output, start, inputs, row, ahead: ahead() };
                if width < PANEL {
                    self.group::<V, HALF>(zero, place, size);
                } else if size <= 2 || V::LANES == 16 {
                    self.group::<V, WIDE>(zero, place, size);
                } else {
                    self.group::<V, HALF>(zero, place, size);
                    let place = Place { panel: [width, NARROW], output: output + NARROW, ahead: ahead(), ..place };
                    self.group::<V, HALF>(zero, place, size);
                }
                row += size;
            }
        }
    }

    #[inline(always)]
    fn panels<V: Vector<Real = R>, const WIDE: usize, const HALF: usize>(mut self, zero: V) {
        let mut word = 0;
        for output in (0..self.outputs).step_by(PANEL) {
            self.panel::<V, WIDE, HALF>(zero, output, word);
            word += self.weight.words(self.inputs, PANEL);
        }
    }
}

/// Where a group stands.
#[derive(Clone, Copy)]
struct Place<'a, R> {
    weight: Panels<'a, R>,
    panel: [usize; 2],
    output: usize,
    start: usize,
    inputs: usize,
    row: usize,
    ahead: Option<(*const u32, usize)>,
}

impl<R: Tables> Op<R> for Product<'_, R> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector<Real = R>>(self, zero: V) {
        assert!(self.outputs.is_multiple_of(NARROW) && self.inputs > 0, "{} inputs, {} outputs", self.inputs, self.outputs);
        if V::LANES == 16 {
            self.panels::<V, 2, 1>(zero);
        } else if V::LANES == 8 {
            self.panels::<V, 4, 2>(zero);
        } else if V::LANES == 4 {
            self.panels::<V, 8, 4>(zero);
        } else {
            self.panels::<V, 16, 8>(zero);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::testing::Staged;
    use crate::arch::testing_scan::{Random, error};
    use crate::arch::{Kernels, Lanes};

    /// Rows, inputs, outputs; weights that bf16 holds.
    struct Case {
        dims: [usize; 3],
        x: Vec<f64>,
        weight: Vec<f64>,
    }

    fn case(rows: usize, inputs: usize, outputs: usize) -> Case {
        let mut r = Random((rows + 7 * inputs) as u64);
        let weight = r.vec(outputs * inputs, 1.0, 0.0).iter().map(|&w| f64::from(bf16::from_f64(w))).collect();
        Case { dims: [rows, inputs, outputs], x: r.vec(rows * inputs, 1.0, 0.0), weight }
    }

    impl Case {
        /// x and what is behind it, and its stride.
        fn x<R: Lanes>(&self) -> (Vec<R>, usize) {
            let ([rows, inputs, _], stride) = (self.dims, self.dims[1] + 3);
            let mut x = vec![R::ZERO; rows * stride];
            for (to, from) in x.chunks_mut(stride).zip(self.x.chunks(inputs)) {
                to.iter_mut().zip(from).for_each(|(to, &x)| *to = R::from_f64(x));
            }
            (x, stride)
        }

        /// (output, input) of each place, panel after panel, `step` inputs side by side.
        fn order(&self, step: usize) -> Vec<f64> {
            let [_, inputs, outputs] = self.dims;
            let mut order = Vec::new();
            for panel in (0..outputs).step_by(PANEL) {
                for k in (0..inputs).step_by(step) {
                    for o in panel..(panel + PANEL).min(outputs) {
                        order.extend((k..k + step).map(|k| if k < inputs { self.weight[o * inputs + k] } else { 0.0 }));
                    }
                }
            }
            order
        }

        fn run<R: Lanes>(&self, k: Kernels, pairs: bool, rows: core::ops::Range<usize>) -> Vec<R> {
            let ([_, inputs, outputs], (x, x_stride)) = (self.dims, self.x::<R>());
            let (count, out_stride) = (rows.len(), outputs + NARROW);
            let words: Vec<[bf16; 2]> = self.order(2).chunks(2).map(|w| [bf16::from_f64(w[0]), bf16::from_f64(w[1])]).collect();
            let (mut plain, mut out) = (Staged::<R>::from(&self.order(1)), Staged::<R>::new(count * out_stride));
            out.get().fill(R::from_f64(f64::NAN));
            let weight = if pairs { Panels::Pairs(&words) } else { Panels::Plain(plain.get()) };
            let (x, out_of) = (&x[rows.start * x_stride..], out.get());
            k.product(Product { weight, inputs, outputs, rows: count, x, x_stride, out: out_of, out_stride });
            assert!(out.get().chunks(out_stride).all(|row| row[outputs..].iter().all(|x| x.to_f64().is_nan())), "written beyond its end");
            out.get().chunks(out_stride).flat_map(|row| row[..outputs].to_vec()).collect()
        }

        fn check<R: Lanes>(&self, bound: f64) {
            let [rows, inputs, outputs] = self.dims;
            let dot = |row: usize, o: usize| (0..inputs).map(|k| self.x[row * inputs + k] * self.weight[o * inputs + k]).sum::<f64>();
            let want: Vec<f64> = (0..rows * outputs).map(|i| dot(i / outputs, i % outputs)).collect();
            for k in Kernels::available() {
                let all: Vec<R> = self.run(k, false, 0..rows);
                let got: Vec<f64> = all.iter().map(|x| x.to_f64()).collect();
                assert!(error(&got, &want) <= bound, "{:?} {:?}: {:e}", k.isa(), self.dims, error(&got, &want));
                assert!(self.run::<R>(k, true, 0..rows) == all, "{:?} {:?}: pairs have other bits", k.isa(), self.dims);
                let alone: Vec<R> = (0..rows).flat_map(|row| self.run::<R>(k, row % 2 == 0, row..row + 1)).collect();
                assert!(alone == all, "{:?} {:?}: a row alone has other bits", k.isa(), self.dims);
            }
        }
    }

    #[test]
    fn products() {
        for rows in (1..=12).chain([16, 19, 33]) {
            case(rows, 5, 48).check::<f32>(1e-6);
            case(rows, 8, 16).check::<f64>(1e-14);
        }
        for inputs in [1, 2, 127, 128, 129, 300] {
            case(2, inputs, 80).check::<f32>(2e-6);
            case(7, inputs, 32).check::<f32>(2e-6);
        }
    }
}

//! The causal depthwise convolution over a staged tile.

use crate::arch::generic::silu::{silu, silu_and_grad};
use crate::arch::generic::tables::Tables;
use crate::arch::generic::tiles::{ConvBwd, ConvFwd, ConvRows, ConvRowsBwd, ConvTile, Lines, LinesMut, TILE};
use crate::arch::generic::vector::{Op, Vector, loose, loose_mut, rows, rows_mut};
use crate::element::Real as _;

/// Σ_k weight_k·x_{t+k} + bias.
#[inline(always)]
fn taps<V: Vector>(weight: &[V], bias: V, x: &[V]) -> V {
    let mut sum = bias;
    for (w, x) in weight.iter().zip(x) {
        sum = w.mul_add(*x, sum);
    }
    sum
}

/// The operands as vectors: (x, weight, bias).
#[inline(always)]
fn operands<'a, V: Vector>(zero: V, tile: &ConvTile<'a, V::Real>) -> (&'a [V], &'a [V], V) {
    let ConvTile { steps, width, .. } = *tile;
    assert!((1..=TILE).contains(&steps) && width > 0, "a tile of {steps} steps and {width} taps");
    let bias = tile.bias.map_or(zero, |bias| rows(zero, bias, 1)[0]);
    (rows(zero, tile.x, steps + width - 1), rows(zero, tile.weight, width), bias)
}

/// With a width that is known when compiled, so that the weights stay in registers.
#[inline(always)]
fn forward<V: Vector, const W: usize>(weight: &[V], bias: V, x: &[V], act: bool, out: &mut [V]) {
    let mut kernel = [bias; W];
    kernel.copy_from_slice(weight);
    for (t, out) in out.iter_mut().enumerate() {
        let sum = taps(&kernel, bias, &x[t..t + W]);
        *out = if act { silu(sum) } else { sum };
    }
}

impl<R: Tables> Op<R> for ConvFwd<'_, R> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector<Real = R>>(self, zero: V) {
        let ConvTile { steps, width, silu: act, .. } = self.tile;
        let (x, weight, bias) = operands(zero, &self.tile);
        let out = rows_mut(zero, self.out, steps);
        match width {
            2 => forward::<V, 2>(weight, bias, x, act, out),
            3 => forward::<V, 3>(weight, bias, x, act, out),
            4 => forward::<V, 4>(weight, bias, x, act, out),
            _ => {
                for (t, out) in out.iter_mut().enumerate() {
                    let sum = taps(weight, bias, &x[t..t + width]);
                    *out = if act { silu(sum) } else { sum };
                }
            }
        }
    }
}

/// Asks for block `k` of a line, once for each 64 bytes.
#[inline(always)]
fn ask<V: Vector>(zero: V, line: &[V::Real], k: usize) {
    if (k * size_of::<V>()).is_multiple_of(64) {
        zero.prefetch::<true>(line.as_ptr().wrapping_add(k * V::LANES).addr());
    }
}

/// `T` outputs of all blocks from output `t` on, which take `M` = W − 1 + T lines.
#[inline(always)]
fn outputs<V: Vector, const W: usize, const T: usize, const M: usize>(
    zero: V,
    args: &mut ConvRows<'_, V::Real, impl Lines<V::Real>, impl LinesMut<V::Real>>,
    t: usize,
) {
    let (blocks, act) = (args.blocks, args.silu);
    let x = args.x.lines::<M>(t).map(|line| loose(zero, line, blocks));
    let out = args.out.lines_mut::<T>(args.first + t).map(|line| loose_mut(zero, line, blocks));
    let (weight, bias) = (rows(zero, args.weight, W * blocks), rows(zero, args.bias, blocks));
    // The lines of the next outputs, or these again.
    let next = if t + M + T < args.steps + W { args.x.lines::<T>(t + M) } else { args.x.lines::<T>(t) };
    for (k, (weight, bias)) in weight.chunks_exact(W).zip(bias).enumerate() {
        let (mut window, mut sums) = ([zero; M], [zero; T]);
        for next in next {
            ask(zero, next, k);
        }
        for i in 0..M {
            window[i] = x[i][k].get();
        }
        for i in 0..T {
            let sum = taps(weight, *bias, &window[i..i + W]);
            sums[i] = if act { silu(sum) } else { sum };
        }
        for i in 0..T {
            out[i][k].set(sums[i]);
        }
    }
}

/// All outputs, few at a time, so that weights and inputs are read for several of them.
#[inline(always)]
fn over_rows<V: Vector, const W: usize, const M: usize>(
    zero: V,
    mut args: ConvRows<'_, V::Real, impl Lines<V::Real>, impl LinesMut<V::Real>>,
) {
    let mut t = 0;
    while t + 4 <= args.steps {
        outputs::<V, W, 4, M>(zero, &mut args, t);
        t += 4;
    }
    while t < args.steps {
        outputs::<V, W, 1, W>(zero, &mut args, t);
        t += 1;
    }
}

impl<R: Tables, X: Lines<R>, O: LinesMut<R>> Op<R> for ConvRows<'_, R, X, O> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector<Real = R>>(self, zero: V) {
        match self.width {
            2 => over_rows::<V, 2, 5>(zero, self),
            3 => over_rows::<V, 3, 6>(zero, self),
            4 => over_rows::<V, 4, 7>(zero, self),
            width => panic!("a filter of {width} taps is applied to tiles"),
        }
    }
}

/// The lanes of a sum over the tile.
#[inline(always)]
fn put<V: Vector>(sum: V, to: &mut [f64]) {
    for (to, lane) in to.iter_mut().zip(sum.lanes()) {
        *to = lane.to_f64();
    }
}

/// ∂x and the sums, from ∂ of what the activation is applied to, with a width that is known when compiled: the rows of ∂x that
/// are not complete yet stay in registers.
#[inline(always)]
fn backward<V: Vector, const W: usize>(zero: V, weight: &[V], x: &[V], grad: &[V], grad_x: &mut [V], sums: &mut [f64]) {
    let (mut kernel, mut open, mut total) = ([zero; W], [zero; W], [zero; W]);
    kernel.copy_from_slice(weight);
    open[..W - 1].copy_from_slice(&grad_x[..W - 1]);
    for (t, g) in grad.iter().enumerate() {
        let (x, grad_x) = (&x[t..t + W], &mut grad_x[t..t + W]);
        open[W - 1] = grad_x[W - 1];
        for k in 0..W {
            open[k] = kernel[k].mul_add(*g, open[k]);
            total[k] = x[k].mul_add(*g, total[k]);
        }
        grad_x[0] = open[0];
        for k in 1..W {
            open[k - 1] = open[k];
        }
    }
    grad_x[grad.len()..].copy_from_slice(&open[..W - 1]);
    for (sum, to) in total.iter().zip(sums.chunks_exact_mut(V::LANES)) {
        put(*sum, to);
    }
}

/// Block `k` of whole rows.
#[inline(always)]
fn backward_rows<V: Vector, const W: usize>(
    zero: V,
    args: &mut ConvRowsBwd<'_, V::Real, impl Lines<V::Real>, impl LinesMut<V::Real>>,
    k: usize,
) {
    let (blocks, at) = (args.blocks, k * (W - 1));
    let carried = blocks * (W - 1);
    let (mut weight, mut x, mut open, mut total) = ([zero; W], [zero; W], [zero; W], [zero; W]);
    weight.copy_from_slice(&rows(zero, args.weight, W * blocks)[k * W..][..W]);
    let (bias, mut sum) = (rows(zero, args.bias, blocks)[k], zero);
    let (window, carry) = (rows_mut(zero, args.window, carried), rows_mut(zero, args.open, carried));
    let head = rows_mut(zero, args.head, carried);
    x[..W - 1].copy_from_slice(&window[at..at + W - 1]);
    open[..W - 1].copy_from_slice(&carry[at..at + W - 1]);
    for t in args.first..args.first + args.steps {
        let ([input], [g]) = (args.x.lines::<1>(t), args.grad_out.lines::<1>(t));
        // A column of rows is no stream to the hardware.
        let ahead = (t + TILE / 2).min(args.seqlen - 1);
        ask(zero, args.x.lines::<1>(ahead)[0], k);
        ask(zero, args.grad_out.lines::<1>(ahead)[0], k);
        x[W - 1] = loose::<V>(zero, input, blocks)[k].get();
        let mut g = loose::<V>(zero, g, blocks)[k].get();
        if args.silu {
            g = g * silu_and_grad(taps(&weight, bias, &x)).1;
        }
        open[W - 1] = zero;
        for j in 0..W {
            open[j] = weight[j].mul_add(g, open[j]);
            total[j] = x[j].mul_add(g, total[j]);
        }
        sum = sum + g;
        if t < W - 1 {
            head[t * blocks + k] = open[0];
        } else if let Some(grad_x) = &mut args.grad_x {
            let [to] = grad_x.lines_mut::<1>(t - (W - 1));
            loose_mut(zero, to, blocks)[k].set(open[0]);
        }
        for j in 1..W {
            (open[j - 1], x[j - 1]) = (open[j], x[j]);
        }
    }
    window[at..at + W - 1].copy_from_slice(&x[..W - 1]);
    carry[at..at + W - 1].copy_from_slice(&open[..W - 1]);
    let sums = &mut args.grad_filter[k * (W + 1) * V::LANES..];
    for (sum, to) in total.iter().chain([&sum]).zip(sums.chunks_exact_mut(V::LANES)) {
        put(*sum, to);
    }
}

impl<R: Tables, X: Lines<R>, O: LinesMut<R>> Op<R> for ConvRowsBwd<'_, R, X, O> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector<Real = R>>(mut self, zero: V) {
        for k in 0..self.blocks {
            match self.width {
                2 => backward_rows::<V, 2>(zero, &mut self, k),
                3 => backward_rows::<V, 3>(zero, &mut self, k),
                4 => backward_rows::<V, 4>(zero, &mut self, k),
                width => panic!("a filter of {width} taps is applied to tiles"),
            }
        }
    }
}

impl<R: Tables> Op<R> for ConvBwd<'_, R> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector<Real = R>>(self, zero: V) {
        let ConvTile { steps, width, silu: act, .. } = self.tile;
        let (x, weight, bias) = operands(zero, &self.tile);
        let grad = rows_mut(zero, self.grad_out, steps);
        let grad_x = rows_mut(zero, self.grad_x, steps + width - 1);
        let sums = &mut self.grad_filter[..(width + 1) * V::LANES];
        if act {
            for (t, grad) in grad.iter_mut().enumerate() {
                *grad = *grad * silu_and_grad(taps(weight, bias, &x[t..t + width])).1;
            }
        }
        match width {
            2 => backward::<V, 2>(zero, weight, x, grad, grad_x, sums),
            3 => backward::<V, 3>(zero, weight, x, grad, grad_x, sums),
            4 => backward::<V, 4>(zero, weight, x, grad, grad_x, sums),
            _ => {
                for (t, g) in grad.iter().enumerate() {
                    for (to, w) in grad_x[t..t + width].iter_mut().zip(weight) {
                        *to = w.mul_add(*g, *to);
                    }
                }
                for (k, to) in sums.chunks_exact_mut(V::LANES).enumerate().take(width) {
                    let mut sum = zero;
                    for (x, g) in x[k..].iter().zip(grad.iter()) {
                        sum = x.mul_add(*g, sum);
                    }
                    put(sum, to);
                }
            }
        }
        let mut sum = zero;
        for g in grad.iter() {
            sum = sum + *g;
        }
        put(sum, &mut sums[width * V::LANES..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::testing::Staged;
    use crate::arch::testing_scan::{Random, error};
    use crate::arch::{Kernels, Lanes};
    use crate::ops;

    fn check<R: Lanes>(act: bool, biased: bool, bound: f64) {
        for k in Kernels::available() {
            for width in 1..=6 {
                for steps in [1, 5, TILE] {
                    let lanes = k.lanes::<R>();
                    let mut r = Random(width as u64);
                    let x = r.vec((steps + width - 1) * lanes, 1.0, 0.0);
                    let (weight, bias) = (r.vec(width * lanes, 1.0, 0.0), r.vec(lanes, 1.0, 0.0));
                    let mut want = Vec::new();
                    for i in 0..steps * lanes {
                        let w = i % lanes;
                        let mut sum = if biased { bias[w] } else { 0.0 };
                        for tap in 0..width {
                            sum += weight[tap * lanes + w] * x[i + tap * lanes];
                        }
                        want.push(if act { ops::silu(sum) } else { sum });
                    }
                    let (mut sx, mut sw, mut sb) = (Staged::<R>::from(&x), Staged::<R>::from(&weight), Staged::<R>::from(&bias));
                    let mut out = Staged::<R>::new(want.len());
                    let tile = ConvTile { steps, width, silu: act, x: sx.get(), weight: sw.get(), bias: biased.then(|| &*sb.get()) };
                    k.causal_conv1d_fwd(ConvFwd { tile, out: out.get() });
                    let got: Vec<f64> = out.get().iter().map(|x| x.to_f64()).collect();
                    assert!(error(&got, &want) <= bound, "{:?}: {:e}", k.isa(), error(&got, &want));
                }
            }
        }
    }

    fn check_bwd<R: Lanes>(act: bool, width: usize, steps: usize, bound: f64) {
        for k in Kernels::available() {
            let lanes = k.lanes::<R>();
            let mut r = Random(width as u64);
            let x = r.vec((steps + width - 1) * lanes, 1.0, 0.0);
            let (weight, bias, grad) = (r.vec(width * lanes, 1.0, 0.0), r.vec(lanes, 1.0, 0.0), r.vec(steps * lanes, 1.0, 0.0));
            let (mut gx, mut gw, mut gb) = (vec![0.0; x.len()], vec![0.0; weight.len()], vec![0.0; lanes]);
            for i in 0..steps * lanes {
                let w = i % lanes;
                let sum: f64 = bias[w] + (0..width).map(|tap| weight[tap * lanes + w] * x[i + tap * lanes]).sum::<f64>();
                let g = grad[i] * if act { ops::silu_grad(sum) } else { 1.0 };
                gb[w] += g;
                for tap in 0..width {
                    gx[i + tap * lanes] += g * weight[tap * lanes + w];
                    gw[tap * lanes + w] += g * x[i + tap * lanes];
                }
            }
            let [mut sx, mut sw, mut sb, mut sg] = [&x, &weight, &bias, &grad].map(|x| Staged::<R>::from(x));
            // What is there before is added to.
            let mut ox = Staged::<R>::from(&x);
            gx.iter_mut().zip(&x).for_each(|(g, x)| *g += x);
            let mut filter = vec![f64::NAN; weight.len() + lanes];
            let tile = ConvTile { steps, width, silu: act, x: sx.get(), weight: sw.get(), bias: Some(sb.get()) };
            k.causal_conv1d_bwd(ConvBwd { tile, grad_out: sg.get(), grad_x: ox.get(), grad_filter: &mut filter });
            let grad_x: Vec<f64> = ox.get().iter().map(|x| x.to_f64()).collect();
            for (got, want) in [(grad_x, gx), (filter[..weight.len()].to_vec(), gw), (filter[weight.len()..].to_vec(), gb)] {
                assert!(error(&got, &want) <= bound, "{:?}: {:e}", k.isa(), error(&got, &want));
            }
        }
    }

    #[test]
    fn backward_of_any_width() {
        for act in [false, true] {
            for width in 1..=6 {
                for steps in [1, 5, TILE] {
                    check_bwd::<f32>(act, width, steps, 1e-6);
                    check_bwd::<f64>(act, width, steps, 2e-15);
                }
            }
        }
    }

    #[test]
    fn forward_of_any_width() {
        for (act, biased) in [(false, false), (false, true), (true, false), (true, true)] {
            check::<f32>(act, biased, 4e-7);
            check::<f64>(act, biased, 8e-16);
        }
    }
}

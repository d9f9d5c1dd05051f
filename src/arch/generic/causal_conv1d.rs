//! The causal depthwise convolution over a staged tile.

use crate::arch::generic::silu::{silu, silu_and_grad};
use crate::arch::generic::tables::Tables;
use crate::arch::generic::tiles::{ConvBwd, ConvFwd, ConvTile, TILE};
use crate::arch::generic::vector::{Op, Vector, rows, rows_mut};

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

impl<R: Tables> Op<R> for ConvBwd<'_, R> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector<Real = R>>(self, zero: V) {
        let ConvTile { steps, width, silu: act, .. } = self.tile;
        let (x, weight, bias) = operands(zero, &self.tile);
        let grad_out = rows(zero, self.grad_out, steps);
        let grad_x = rows_mut(zero, self.grad_x, steps + width - 1);
        let grad_weight = rows_mut(zero, self.grad_weight, width);
        grad_x.fill(zero);
        grad_weight.fill(zero);
        let mut grad_bias = zero;
        for t in 0..steps {
            let slope = if act { silu_and_grad(taps(weight, bias, &x[t..t + width])).1 } else { zero.splat(R::ONE) };
            let grad = grad_out[t] * slope;
            grad_bias = grad_bias + grad;
            for k in 0..width {
                grad_x[t + k] = weight[k].mul_add(grad, grad_x[t + k]);
                grad_weight[k] = x[t + k].mul_add(grad, grad_weight[k]);
            }
        }
        rows_mut(zero, self.grad_bias, 1)[0] = grad_bias;
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
            let [mut ox, mut ow, mut ob] = [&x, &weight, &bias].map(|x| Staged::<R>::from(&vec![f64::NAN; x.len()]));
            let tile = ConvTile { steps, width, silu: act, x: sx.get(), weight: sw.get(), bias: Some(sb.get()) };
            let (grad_x, grad_weight, grad_bias) = (ox.get(), ow.get(), ob.get());
            k.causal_conv1d_bwd(ConvBwd { tile, grad_out: sg.get(), grad_x, grad_weight, grad_bias });
            for (got, want) in [(&mut ox, gx), (&mut ow, gw), (&mut ob, gb)] {
                let got: Vec<f64> = got.get().iter().map(|x| x.to_f64()).collect();
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

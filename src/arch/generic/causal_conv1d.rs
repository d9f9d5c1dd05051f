//! The causal depthwise convolution over a staged tile.

use crate::arch::generic::silu::silu;
use crate::arch::generic::tables::Tables;
use crate::arch::generic::tiles::{ConvFwd, ConvTile, TILE};
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

    #[test]
    fn forward_of_any_width() {
        for (act, biased) in [(false, false), (false, true), (true, false), (true, true)] {
            check::<f32>(act, biased, 4e-7);
            check::<f64>(act, biased, 8e-16);
        }
    }
}

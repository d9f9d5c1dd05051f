//! What stands between the products of a decode step: the convolution of one position, and the scan of one position with its gate.
//!
//! Channels lie in blocks of one vector; each block takes all rows in turn, so that its constants are read once.

use crate::arch::generic::exp::exp2;
use crate::arch::generic::silu::silu;
use crate::arch::generic::softplus::softplus;
use crate::arch::generic::tables::Tables;
use crate::arch::generic::vector::{Op, Vector, rows, rows_mut};
use crate::element::Weight;

/// Partial sums of y over the states, so that neither latency nor rounding grows with N.
const SUMS: usize = 4;

/// Rows of channels in the working memory of a decode step: `[row][stride]`, 64-byte aligned, the stride a multiple of 16.
#[derive(Debug)]
pub struct Channels<'a, R> {
    /// The numbers.
    pub data: &'a mut [R],
    /// From row to row.
    pub stride: usize,
}

/// x ← silu(bias + Σ_k weight_k·x_{t−(W−1)+k}) for one position of each row, and its window moved on.
#[derive(Debug)]
pub struct ConvUpdate<'a, R> {
    /// Channels, a multiple of 16.
    pub channels: usize,
    /// Taps, ≥ 1.
    pub width: usize,
    /// The window's slot of each row.
    pub slots: &'a [i32],
    /// Slots in `window`.
    pub states: usize,
    /// `[block][k][lane]`.
    pub weight: &'a [R],
    /// `[channel]`.
    pub bias: &'a [R],
    /// `[block][slot][width − 1][lane]`, oldest first.
    pub window: &'a mut [R],
    /// Overwritten.
    pub x: Channels<'a, R>,
}

impl<R: Tables> Op<R> for ConvUpdate<'_, R> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector<Real = R>>(self, zero: V) {
        let (taps, old) = (self.width, self.width - 1);
        let blocks = self.channels / V::LANES;
        let (weight, bias) = (rows(zero, self.weight, blocks * taps), rows(zero, self.bias, blocks));
        // Nothing may lie anywhere.
        let window = if old == 0 { &mut [] } else { rows_mut(zero, self.window, blocks * self.states * old) };
        for block in 0..blocks {
            let weight = &weight[block * taps..(block + 1) * taps];
            for (row, &slot) in self.slots.iter().enumerate() {
                let x = &mut rows_mut(zero, &mut self.x.data[row * self.x.stride + block * V::LANES..], 1)[0];
                let window = &mut window[(block * self.states + slot as usize) * old..][..old];
                let mut sum = bias[block];
                for k in 0..old {
                    sum = weight[k].mul_add(window[k], sum);
                }
                sum = weight[old].mul_add(*x, sum);
                for k in 1..old {
                    window[k - 1] = window[k];
                }
                if old > 0 {
                    window[old - 1] = *x;
                }
                *x = silu(sum);
            }
        }
    }
}

/// The scan of one position of each row, Mamba's rule, real: h ← e^(Δ'A)·h + Δ'u·B, u ← (Σ_n C·h + D·u)·silu(z).
#[derive(Debug)]
pub struct ScanUpdate<'a, R> {
    /// Channels, a multiple of 16.
    pub channels: usize,
    /// States, N ≥ 1.
    pub dstate: usize,
    /// The state's slot of each row.
    pub slots: &'a [i32],
    /// Slots in `state`.
    pub states: usize,
    /// A·log₂e, `[block][n][lane]`.
    pub decay: &'a [R],
    /// D, `[channel]`.
    pub skip: &'a [R],
    /// Bias of Δ, `[channel]`.
    pub delta_bias: &'a [R],
    /// B and C of each row, `[row][coefficient_stride]`: N numbers of B, then N of C.
    pub coefficients: &'a [R],
    /// From row to row.
    pub coefficient_stride: usize,
    /// `[block][slot][n][lane]`.
    pub state: &'a mut [R],
    /// Δ before its bias and softplus.
    pub delta: Channels<'a, R>,
    /// The gate.
    pub z: Channels<'a, R>,
    /// Overwritten by the gated y.
    pub u: Channels<'a, R>,
}

/// One block of one row; the gated y.
#[inline(always)]
fn step<V: Vector>(dt: V, u: V, decay: &[V], h: &mut [V], b: &[V::Real], c: &[V::Real], skip: V) -> V {
    let (du, mut sums) = (dt * u, [dt.splat(V::Real::ZERO); SUMS]);
    let count = decay.len();
    let (h, b, c) = (&mut h[..count], &b[..count], &c[..count]);
    for n in 0..count {
        h[n] = exp2(dt * decay[n]).mul_add(h[n], du * dt.splat(b[n]));
        sums[n % SUMS] = h[n].mul_add(dt.splat(c[n]), sums[n % SUMS]);
    }
    skip.mul_add(u, (sums[0] + sums[1]) + (sums[2] + sums[3]))
}

impl<R: Tables> Op<R> for ScanUpdate<'_, R> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector<Real = R>>(self, zero: V) {
        let (n, blocks) = (self.dstate, self.channels / V::LANES);
        let decay = rows(zero, self.decay, blocks * n);
        let (skip, bias) = (rows(zero, self.skip, blocks), rows(zero, self.delta_bias, blocks));
        let state = rows_mut(zero, self.state, blocks * self.states * n);
        for block in 0..blocks {
            let decay = &decay[block * n..(block + 1) * n];
            for (row, &slot) in self.slots.iter().enumerate() {
                let at = |c: &Channels<'_, R>| row * c.stride + block * V::LANES;
                let delta = rows(zero, &self.delta.data[at(&self.delta)..], 1)[0];
                let z = rows(zero, &self.z.data[at(&self.z)..], 1)[0];
                let place = at(&self.u);
                let u = &mut rows_mut(zero, &mut self.u.data[place..], 1)[0];
                let h = &mut state[(block * self.states + slot as usize) * n..][..n];
                let (b, c) = self.coefficients[row * self.coefficient_stride..][..2 * n].split_at(n);
                let y = step(softplus(delta + bias[block]), *u, decay, h, b, c, skip[block]);
                *u = y * silu(z);
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

    const SLOTS: [i32; 3] = [3, 0, 2];
    const STATES: usize = 4;

    fn numbers<R: Lanes>(of: &mut Staged<R>) -> Vec<f64> {
        of.get().iter().map(|x| x.to_f64()).collect()
    }

    fn conv<R: Lanes>(width: usize, bound: f64) {
        for k in Kernels::available() {
            let (lanes, channels, old) = (k.lanes::<R>(), 32, width - 1);
            let mut r = Random(width as u64);
            let (weight, bias) = (r.vec(channels * width, 1.0, 0.0), r.vec(channels, 1.0, 0.0));
            let (window, x) = (r.vec(channels * STATES * old, 1.0, 0.0), r.vec(SLOTS.len() * channels, 1.0, 0.0));
            let (mut want_window, mut want) = (window.clone(), x.clone());
            for (row, slot) in SLOTS.iter().enumerate() {
                for c in 0..channels {
                    let (block, lane) = (c / lanes, c % lanes);
                    let at = |k: usize| ((block * STATES + *slot as usize) * old + k) * lanes + lane;
                    let taps: Vec<f64> = (0..old).map(|k| window[at(k)]).chain([x[row * channels + c]]).collect();
                    let sum: f64 = (0..width).map(|k| weight[(block * width + k) * lanes + lane] * taps[k]).sum();
                    want[row * channels + c] = ops::silu(sum + bias[c]);
                    (0..old).for_each(|k| want_window[at(k)] = taps[k + 1]);
                }
            }
            let [mut weight, mut bias, mut window, mut x] = [&weight, &bias, &window, &x].map(|x| Staged::<R>::from(x));
            k.conv_update(ConvUpdate {
                channels,
                width,
                slots: &SLOTS,
                states: STATES,
                weight: weight.get(),
                bias: bias.get(),
                window: window.get(),
                x: Channels { data: x.get(), stride: channels },
            });
            let worst = error(&numbers(&mut x), &want);
            assert!(worst <= bound, "{:?}, width {width}: {worst:e}", k.isa());
            assert!(old == 0 || error(&numbers(&mut window), &want_window) <= 1e-7);
        }
    }

    #[test]
    fn convolution() {
        for width in 1..=5 {
            conv::<f32>(width, 4e-7);
            conv::<f64>(width, 8e-16);
        }
    }

    fn scan<R: Lanes>(dstate: usize, bound: f64) {
        for k in Kernels::available() {
            let (lanes, channels, rows) = (k.lanes::<R>(), 32, SLOTS.len());
            let mut r = Random(dstate as u64);
            let decay: Vec<f64> = r.vec(channels * dstate, 1.0, 0.0).iter().map(|x| -x.abs()).collect();
            let [skip, bias] = [0, 1].map(|_| r.vec(channels, 1.0, 0.0));
            let [delta, z, u] = [0, 1, 2].map(|_| r.vec(rows * channels, 1.0, 0.0));
            let coefficients = r.vec(rows * (2 * dstate + 5), 1.0, 0.0);
            let state = r.vec(channels * STATES * dstate, 1.0, 0.0);
            let (mut want_state, mut want) = (state.clone(), u.clone());
            for (row, slot) in SLOTS.iter().enumerate() {
                for c in 0..channels {
                    let (block, lane, i) = (c / lanes, c % lanes, row * channels + c);
                    let dt = ops::softplus(delta[i] + bias[c]);
                    let mut y = skip[c] * u[i];
                    for n in 0..dstate {
                        let at = ((block * STATES + *slot as usize) * dstate + n) * lanes + lane;
                        let [b, cc] = [n, dstate + n].map(|n| coefficients[row * (2 * dstate + 5) + n]);
                        want_state[at] = (dt * decay[(block * dstate + n) * lanes + lane]).exp2() * state[at] + dt * u[i] * b;
                        y += cc * want_state[at];
                    }
                    want[i] = y * ops::silu(z[i]);
                }
            }
            let [mut decay, mut skip, mut bias, mut delta, mut z, mut u, mut coefficients, mut state] =
                [&decay, &skip, &bias, &delta, &z, &u, &coefficients, &state].map(|x| Staged::<R>::from(x));
            k.scan_update(ScanUpdate {
                channels,
                dstate,
                slots: &SLOTS,
                states: STATES,
                decay: decay.get(),
                skip: skip.get(),
                delta_bias: bias.get(),
                coefficients: coefficients.get(),
                coefficient_stride: 2 * dstate + 5,
                state: state.get(),
                delta: Channels { data: delta.get(), stride: channels },
                z: Channels { data: z.get(), stride: channels },
                u: Channels { data: u.get(), stride: channels },
            });
            let worst = error(&numbers(&mut u), &want).max(error(&numbers(&mut state), &want_state));
            assert!(worst <= bound, "{:?}, {dstate} states: {worst:e}", k.isa());
        }
    }

    #[test]
    fn steps() {
        for dstate in [1, 3, 16, 65] {
            scan::<f32>(dstate, 2e-6);
            scan::<f64>(dstate, 4e-15);
        }
    }
}

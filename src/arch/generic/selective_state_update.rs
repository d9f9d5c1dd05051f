//! The decode step in Mamba's own case, over many blocks of channels at once: the arithmetic of the forward scan's tile, in the
//! same order, with blocks in the place of steps.

use crate::arch::generic::exp::exp_of_negative;
use crate::arch::generic::selective_scan::{SUBTOTAL, group};
use crate::arch::generic::silu::silu;
use crate::arch::generic::softplus::ln_1p_unit;
use crate::arch::generic::tables::Tables;
use crate::arch::generic::tiles::StepRow;
use crate::arch::generic::vector::{Op, Vector, rows, rows_mut};
use crate::element::Weight as _;

/// A·log₂e in the place of A, and the Δ' below which all exponents are small; 0 where A is not finite.
#[inline(always)]
fn prepare<V: Vector>(zero: V, a: &mut [V], limit: &mut V) {
    let (mut slowest, mut total) = (zero, zero);
    for a in a {
        *a = *a * zero.splat(V::Real::LOG2_E);
        slowest = slowest.at_least(a.abs());
        total = total + a.abs();
    }
    let finite = total.lt(zero.splat(V::Real::MAX));
    *limit = V::select(finite, zero.splat(V::Real::EXP2_SMALL) / slowest, zero);
}

/// `NB` states from `n` on of one block; returns Σ C·h with the rest of y.
#[inline(always)]
fn states<V: Vector, const NB: usize, const SMALL: bool>(a: &[V], h: &mut [V], [dt, du, y]: [V; 3], b: &[V::Real], c: &[V::Real]) -> V {
    let mut sums = [dt.splat(V::Real::ZERO); 2];
    let (a, h, b, c) = (&a[..NB], &mut h[..NB], &b[..NB], &c[..NB]);
    for j in 0..NB {
        let input = du * dt.splat(b[j]);
        let x = dt * a[j];
        h[j] = (if SMALL { x.exp2_small() } else { x.exp2() }).mul_add(h[j], input);
        sums[j % 2] = h[j].mul_add(dt.splat(c[j]), sums[j % 2]);
    }
    y + (sums[0] + sums[1])
}

/// All states of one block; returns Σ C·h.
#[inline(always)]
fn block<V: Vector, const SMALL: bool>(zero: V, a: &[V], h: &mut [V], [dt, du]: [V; 2], b: &[V::Real], c: &[V::Real]) -> V {
    let (mut y, mut subtotal, mut n) = (zero, zero, 0);
    while n < a.len() {
        let size = group(V::STATES, a.len() - n);
        let sum = if n < SUBTOTAL { y } else { subtotal };
        let of = [dt, du, sum];
        let sum = if V::STATES >= 16 && size == 16 {
            states::<V, 16, SMALL>(&a[n..], &mut h[n..], of, &b[n..], &c[n..])
        } else if V::STATES >= 8 && size == 8 {
            states::<V, 8, SMALL>(&a[n..], &mut h[n..], of, &b[n..], &c[n..])
        } else if size == 4 {
            states::<V, 4, SMALL>(&a[n..], &mut h[n..], of, &b[n..], &c[n..])
        } else if size == 2 {
            states::<V, 2, SMALL>(&a[n..], &mut h[n..], of, &b[n..], &c[n..])
        } else {
            states::<V, 1, SMALL>(&a[n..], &mut h[n..], of, &b[n..], &c[n..])
        };
        let first = n < SUBTOTAL;
        n += size;
        if first {
            y = sum;
        } else if n.is_multiple_of(SUBTOTAL) || n == a.len() {
            (y, subtotal) = (y + sum, zero);
        } else {
            subtotal = sum;
        }
    }
    y
}

impl<R: Tables> Op<R> for StepRow<'_, R> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector<Real = R>>(self, zero: V) {
        let (count, dstate) = (self.blocks, self.dstate);
        let [u, delta] = [self.u, self.delta].map(|x| rows(zero, x, count));
        let bias = self.delta_bias.map(|x| rows(zero, x, count));
        let (dt, out) = (rows_mut(zero, self.scratch, count), rows_mut(zero, self.out, count));
        let limits = rows_mut(zero, self.limits, count);
        let (b, c) = (&self.b[..dstate], &self.c[..dstate]);
        if !self.prepared {
            for (k, limit) in limits.iter_mut().enumerate() {
                prepare(zero, rows_mut(zero, &mut self.a[k * self.stride..], dstate), limit);
            }
        }
        for k in 0..count {
            dt[k] = delta[k] + bias.map_or(zero, |bias| bias[k]);
        }
        if self.softplus {
            for k in 0..count {
                out[k] = exp_of_negative(-dt[k].abs());
            }
            for k in 0..count {
                dt[k] = dt[k].at_least(zero) + ln_1p_unit(out[k]);
            }
        }
        for k in 0..count {
            let a = rows(zero, &self.a[k * self.stride..], dstate);
            let h = rows_mut(zero, &mut self.h[k * self.stride..], dstate);
            let of = [dt[k], dt[k] * u[k]];
            out[k] = if V::all(dt[k].abs().lt(limits[k])) {
                block::<V, true>(zero, a, h, of, b, c)
            } else {
                block::<V, false>(zero, a, h, of, b, c)
            };
        }
        if let Some(d) = self.d {
            let d = rows(zero, d, count);
            for k in 0..count {
                out[k] = d[k].mul_add(u[k], out[k]);
            }
        }
        if let Some(z) = self.z {
            let z = rows(zero, z, count);
            for k in 0..count {
                out[k] = out[k] * silu(z[k]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::testing::Staged;
    use crate::arch::testing_scan::{case, run_fwd};
    use crate::arch::{Kernels, Lanes};
    use crate::ops::Rule;

    /// A row of blocks has the bits of as many tiles of one step.
    fn check<R: Lanes>(dstate: usize, delta: f64) {
        for k in Kernels::available() {
            let lanes = k.lanes::<R>();
            let stride = (dstate * lanes).next_multiple_of(16);
            let mut cases: Vec<_> = (0..3).map(|_| case(lanes, 1, dstate, Rule::Euler, 0b1110_0010)).collect();
            for (i, case) in cases.iter_mut().enumerate() {
                case.delta.iter_mut().for_each(|x| *x += delta * i as f64);
                case.u.iter_mut().for_each(|x| *x += i as f64);
            }
            let flat = |pick: &dyn Fn(usize) -> Vec<f64>| Staged::<R>::from(&(0..3).flat_map(pick).collect::<Vec<_>>());
            let planes = |pick: &dyn Fn(usize) -> Vec<f64>| {
                let mut all = vec![0.0; 3 * stride];
                (0..3).for_each(|i| all[i * stride..][..dstate * lanes].copy_from_slice(&pick(i)));
                Staged::<R>::from(&all)
            };
            let real = |x: &[num_complex::Complex<f64>]| x.iter().map(|x| x.re).collect::<Vec<_>>();
            let (mut u, mut delta) = (flat(&|i| cases[i].u.clone()), flat(&|i| cases[i].delta.clone()));
            let (mut z, mut d) = (flat(&|i| cases[i].z.clone().unwrap()), flat(&|i| cases[i].d.clone().unwrap()));
            let mut bias = flat(&|i| cases[i].bias.clone().unwrap());
            let (mut a, mut h) = (planes(&|i| real(&cases[i].a)), planes(&|i| real(&cases[i].h)));
            let (mut b, mut c) = (Staged::<R>::from(&real(&cases[0].b)), Staged::<R>::from(&real(&cases[0].c)));
            let [mut out, mut limits, mut scratch] = [(); 3].map(|()| Staged::<R>::new(3 * lanes));
            k.selective_state_update(StepRow {
                blocks: 3,
                dstate,
                stride,
                softplus: true,
                prepared: false,
                u: u.get(),
                delta: delta.get(),
                delta_bias: Some(bias.get()),
                z: Some(z.get()),
                d: Some(d.get()),
                a: a.get(),
                b: b.get(),
                c: c.get(),
                h: h.get(),
                out: out.get(),
                limits: limits.get(),
                scratch: scratch.get(),
            });
            for (i, case) in cases.iter().enumerate() {
                let (want, states) = run_fwd::<R>(k, case);
                let got: Vec<f64> = out.get()[i * lanes..][..lanes].iter().map(|x| x.to_f64()).collect();
                assert_eq!(got, want, "{:?}", k.isa());
                let got: Vec<f64> = h.get()[i * stride..][..dstate * lanes].iter().map(|x| x.to_f64()).collect();
                assert_eq!(got, real(&states), "{:?}", k.isa());
            }
        }
    }

    #[test]
    fn has_the_bits_of_tiles() {
        for dstate in [1, 3, 16, 37, 64, 100] {
            // The last has exponents that are not small.
            for delta in [0.0, 0.5, 150.0] {
                check::<f32>(dstate, delta);
                check::<f64>(dstate, delta);
            }
        }
    }
}

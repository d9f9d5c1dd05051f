//! One decode step: the recurrence written out once.

#![allow(non_snake_case)]

use crate::buffer::Workspace;
use crate::element::{Element, Input, Real, Weight};
use crate::error::Error;
use crate::ops::{silu, softplus};
use crate::par::Par;
use crate::selective::{Coefficient, SelectiveStep};
use crate::view::{Cut, View};
use crate::workspace::ALIGN;

/// Channels of a task.
const CHANNELS: usize = 32;

pub(super) fn workspace(par: Par) -> usize {
    par.scratch_bytes(0).saturating_add(ALIGN)
}

/// B or C of state `n` for channel `d` of row `batch`.
fn coefficient<I: Input, W: Weight<Real = I::Accum>>(from: &Coefficient<'_, I, W, 3>, batch: usize, d: usize, dim: usize, n: usize) -> W {
    match from {
        Coefficient::Constant(v) => v.get([d, n]),
        Coefficient::Varying(v) => v.get([batch, d * v.dims()[1] / dim, n]).load(),
    }
}

pub(super) fn run<I: Input, W: Weight<Real = I::Accum>, S: Element<Arith = W>>(
    par: Par,
    args: SelectiveStep<'_, I, W, S>,
    ws: &mut Workspace<'_>,
) -> Result<(), Error> {
    par.check(1)?;
    let problem = args.check()?;
    let SelectiveStep { u, delta, A, B, C, D, z, delta_bias, state, slots, out, options } = args;
    let split = (state.tiles(Cut::Every(1, CHANNELS), Cut::Whole), out.tiles(Cut::Every(1, CHANNELS), Cut::Whole));
    par.run(0, problem.dim.div_ceil(CHANNELS), split, ws, 0, |task, (mut state, mut out), _| {
        for batch in 0..problem.batch {
            // A negative slot skips its row.
            let Ok(slot) = usize::try_from(slots.map_or(batch as i64, |v| i64::from(v.get([batch])))) else { continue };
            for c in 0..out.dims()[1] {
                let d = task * CHANNELS + c;
                let at = |v: View<'_, I, 2>| v.get([batch, d]).load();
                let raw = delta_bias.map_or(at(delta), |bias| at(delta) + bias.get([d]));
                let dt = if options.delta_softplus { softplus(raw) } else { raw };
                let mut sum = 0.0;
                for n in 0..problem.dstate {
                    let discrete = options.rule.discretize(dt, A.get([d, n]));
                    let input = (discrete.gamma * coefficient(&B, batch, d, problem.dim, n)).scale(dt * at(u));
                    let h = discrete.abar * state.get([slot, c, n]).load() + input;
                    state.set([slot, c, n], S::store(h));
                    sum += (coefficient(&C, batch, d, problem.dim, n) * h).re().to_f64();
                }
                let y = W::Real::from_f64(W::KAPPA * sum);
                let y = D.map_or(y, |skip| y + skip.get([d]) * at(u));
                out.set([batch, c], I::store(z.map_or(y, |z| y * silu(at(z)))));
            }
        }
    })
}

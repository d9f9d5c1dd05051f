//! How hard a problem is: how many steps a decay remembers, and the scale of the rounding error to expect.

use super::channel::{Channel, Steps};
use crate::element::{Element, Input, Real, Weight};
use crate::error::Error;
use crate::ops::silu;
use crate::selective::SelectiveInputs;
use crate::view::View;

/// n_eff = max_t Σ_{s≤t} Π_{r=s+1..t} |a_r| over the rows of a layer-1 scan: how many steps the recurrence remembers at most.
///
/// `a` is (B, L, D). The rounding error of a scan in a type with unit roundoff u grows like u·n_eff.
pub fn scan_n_eff<E: Element>(a: View<'_, E, 3>, reverse: bool) -> Result<f64, Error> {
    let dims @ [batch, seqlen, dim] = a.dims();
    a.check("a", dims)?;
    let a = if reverse { a.flip(1) } else { a };
    let mut most = 0.0f64;
    for row in 0..batch {
        for d in 0..dim {
            let mut sum = 0.0;
            for t in 0..seqlen {
                sum = 1.0 + if t == 0 { 0.0 } else { a.get([row, t, d]).load().widen().modulus() * sum };
                most = most.max(sum);
            }
        }
    }
    Ok(most)
}

/// Calls `visit` with every channel of every span, in f64.
fn channels<I: Input, W: Weight<Real = I::Accum>>(
    inputs: &SelectiveInputs<'_, I, W>,
    mut visit: impl FnMut(&Steps, usize, &Channel<W::Wide>),
) -> Result<(), Error> {
    let problem = inputs.check()?;
    for state in 0..problem.states {
        let steps = Steps::of(&inputs.sequences, &inputs.sequences.span(state, problem.seqlen));
        for d in 0..problem.dim {
            visit(&steps, d, &Channel::gather(inputs, &steps, state, d));
        }
    }
    Ok(())
}

/// As [`scan_n_eff`] for a selective scan: the largest over batch, channels and states, with Ā by the rule in force.
pub fn selective_n_eff<I: Input, W: Weight<Real = I::Accum>>(inputs: &SelectiveInputs<'_, I, W>) -> Result<f64, Error> {
    let mut most = 0.0f64;
    channels(inputs, |_, _, channel| {
        for &a in &channel.A {
            let mut sum = 0.0;
            for (&dt, &fresh) in channel.dt.iter().zip(&channel.fresh) {
                sum = 1.0 + if fresh { 0.0 } else { channel.rule.discretize(dt, a).abar.modulus() * sum };
                most = most.max(sum);
            }
        }
    })?;
    Ok(most)
}

/// The scale of the rounding error of every out, (B, L, D) row-major: (S + |D u|)·|silu(z)| with
///
/// ```text
/// S_t = κ Σ_n |C_n| Σ_{s≤t} w_s |Π_{r=s+1..t} Ā_r| |b_s|,     w_s = 1 + Σ_{r=s+1..t} (2 + |Δ'_r A|)
/// ```
///
/// An engine in a type with unit roundoff u is within a small multiple of u times this of the exact result, whatever the
/// inputs: each factor of a product adds its own rounding and the one of its exponent.
pub fn condition<I: Input, W: Weight<Real = I::Accum>>(inputs: &SelectiveInputs<'_, I, W>) -> Result<Vec<f64>, Error> {
    let [batch, seqlen, dim] = inputs.u.dims();
    let mut scale = vec![0.0; batch * seqlen * dim];
    channels(inputs, |steps, d, channel| {
        let dstate = channel.dstate();
        // Σ |Π Ā| |b| and the same with the weights w.
        let (mut plain, mut weighted) = (vec![0.0; dstate], vec![0.0; dstate]);
        if let Some(initial) = &channel.initial {
            (plain, weighted) = (initial.iter().map(|h| h.modulus()).collect(), initial.iter().map(|h| h.modulus()).collect());
        }
        for (i, &t) in steps.positions.iter().enumerate() {
            let mut sum = 0.0;
            for (n, (&a, (&b, &c))) in channel.A.iter().zip(channel.B.at(i, dstate).iter().zip(channel.C.at(i, dstate))).enumerate() {
                let discrete = channel.rule.discretize(channel.dt[i], a);
                let decay = if channel.continues(i) { discrete.abar.modulus() } else { 0.0 };
                let input = (discrete.gamma * b).scale(channel.dt[i] * channel.u[i]).modulus();
                weighted[n] = decay * (weighted[n] + (2.0 + a.scale(channel.dt[i]).modulus()) * plain[n]) + input;
                plain[n] = decay * plain[n] + input;
                sum += c.modulus() * weighted[n];
            }
            let skip = channel.skip.map_or(0.0, |skip| (skip * channel.u[i]).abs());
            let gate = channel.z.as_ref().map_or(1.0, |z| silu(z[i]).abs());
            scale[(steps.batch * seqlen + t) * dim + d] = (W::KAPPA * sum + skip) * gate.to_f64();
        }
    })?;
    Ok(scale)
}

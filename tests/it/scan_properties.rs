//! What holds for every layer-1 scan, on every engine, ISA and type.

use proptest::prelude::*;
use selective_scan::element::Dtype;

use crate::harness::array::Array;
use crate::harness::compare::compare_bits;
use crate::harness::scan::Scan;
use crate::problems::{agrees, cases, data, dot, dot_scale, forward, name, places, run, scans, specified};

/// The second axis turned round.
fn flipped(array: &Array) -> Array {
    let [rows, seqlen] = [array.dims[0], array.dims[1]];
    array.gather(&(0..rows).map(|r| (0..seqlen).rev().map(|t| Some((r, t))).collect()).collect(), 0.0)
}

proptest! {
    #![proptest_config(cases(24))]

    /// Engines agree with the specification; any layout gives the same bits; two calls are one.
    #[test]
    fn engines_agree(problem in scans()) {
        agrees(&specified(problem))?;
    }

    /// The reverse scan is the forward scan of the sequence turned round, bit for bit.
    #[test]
    fn reverse_is_forward_turned_round(problem in scans()) {
        let turned = Scan {
            a: flipped(&problem.a), b: flipped(&problem.b), grad_h: flipped(&problem.grad_h), reverse: !problem.reverse, ..problem.clone()
        };
        for (entry, dtype) in places() {
            for (there, back) in run(&entry, dtype, &problem).iter().zip(run(&entry, dtype, &turned)) {
                let back = if back.array.dims.len() == 3 { flipped(&back.array) } else { back.array };
                let same = compare_bits(&back.data, &there.array.data);
                prop_assert!(same.used == 0.0, "{} of {}: {same:?}", there.name, name(&entry, dtype));
            }
        }
    }

    /// What comes later in scan order does not reach back.
    #[test]
    fn causal(problem in scans(), cut in 0.0f64..1.0) {
        let [batch, seqlen] = [problem.b.dims[0], problem.b.dims[1]];
        let at = (seqlen as f64 * cut) as usize;
        let mut changed = problem.clone();
        let width = problem.b.data.len() / (batch * seqlen).max(1);
        let early = |i: usize| { let t = i / width % seqlen; if problem.reverse { t >= at } else { t < at } };
        for array in [&mut changed.a, &mut changed.b] {
            array.data.iter_mut().enumerate().filter(|(i, _)| !early(*i)).for_each(|(_, x)| *x = 0.25 - *x);
        }
        for (entry, dtype) in places() {
            let (before, after) = (forward(&entry, dtype, &problem), forward(&entry, dtype, &changed));
            for (i, (x, y)) in data(&before, "h").iter().zip(data(&after, "h")).enumerate() {
                prop_assert!(!early(i) || x.to_bits() == y.to_bits(), "{}: element {i}", name(&entry, dtype));
            }
        }
    }

    /// ⟨J v, w⟩ = ⟨v, Jᵀ w⟩ for the part that is linear, (b, h_0).
    #[test]
    fn adjoint_in_b_and_the_initial_state(problem in scans()) {
        for (entry, dtype) in places().into_iter().filter(|(_, d)| matches!(d, Dtype::F64 | Dtype::F32)) {
            let results = run(&entry, dtype, &problem);
            let mut pairs = vec![(data(&results, "h"), &problem.grad_h.data[..], 1.0)];
            pairs.extend(problem.grad_last.iter().map(|g| (data(&results, "last"), &g.data[..], 1.0)));
            pairs.push((data(&results, "grad.b"), &problem.b.data, -1.0));
            pairs.extend(problem.h0.iter().map(|h| (data(&results, "grad.h0"), &h.data[..], -1.0)));
            let gap: f64 = pairs.iter().map(|(a, b, sign)| sign * dot(a, b)).sum();
            let scale: f64 = pairs.iter().map(|(a, b, _)| dot_scale(a, b)).sum();
            let unit = if dtype == Dtype::F64 { 1e-14 } else { 2e-6 };
            prop_assert!(gap.abs() <= unit * scale, "{}: {gap:e} of {scale:e}", name(&entry, dtype));
        }
    }

    /// ∂a, ∂b and ∂h_0 against central differences in f64.
    #[test]
    fn gradients_are_derivatives(problem in scans(), seed: u64) {
        let loss = |entry: &_, p: &Scan| {
            let results = forward(entry, Dtype::F64, p);
            dot(data(&results, "h"), &p.grad_h.data) + p.grad_last.as_ref().map_or(0.0, |g| dot(data(&results, "last"), &g.data))
        };
        let mut draw = crate::problems::Draw(seed);
        for (entry, _) in places().into_iter().filter(|(_, d)| *d == Dtype::F64) {
            let results = run(&entry, Dtype::F64, &problem);
            for which in ["grad.a", "grad.b", "grad.h0"] {
                let step = 1e-5;
                let mut sides = [problem.clone(), problem.clone()];
                let mut direction = Vec::new();
                for (side, sign) in sides.iter_mut().zip([step, -step]) {
                    let array = match which { "grad.a" => Some(&mut side.a), "grad.b" => Some(&mut side.b), _ => side.h0.as_mut() };
                    let Some(array) = array else { continue };
                    if direction.is_empty() {
                        direction = array.data.iter().map(|_| draw.between(-1.0, 1.0)).collect();
                    }
                    array.data.iter_mut().zip(&direction).for_each(|(x, d)| *x += sign * d);
                }
                if direction.is_empty() {
                    continue;
                }
                let slope = (loss(&entry, &sides[0]) - loss(&entry, &sides[1])) / (2.0 * step);
                let gradient = data(&results, which);
                let scale = dot_scale(gradient, &direction) + dot_scale(data(&results, "h"), &problem.grad_h.data);
                let gap = (slope - dot(gradient, &direction)).abs();
                prop_assert!(gap <= 1e-8 * scale, "{which} on {}: {gap:e} of {scale:e}", entry.name);
            }
        }
    }
}

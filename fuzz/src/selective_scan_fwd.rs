//! Layer 2, forward: against the specification, and what one bad number may spoil.

use arbitrary::Result;
use selective_scan::naive::{Naive, condition, selective_n_eff};
use selective_scan::ops::Rule;

use super::compare::{UNIT, close, each_engine, largest, widen};
use super::input::Source;
use super::selective::Case;

fn check(bytes: &[u8]) -> Result<()> {
    let mut from = Source::new(bytes);
    let case = Case::new(&mut from, 257)?;
    let wide = case.widen();
    let want = wide.forward(&Naive);
    let scale = condition(&wide.inputs()).expect("a valid scan");
    let remembered = selective_n_eff(&wide.inputs()).expect("a valid scan");
    let states = state_scale(&case, remembered);
    let factor = 32.0 + 4.0 * remembered;
    let order = positions(&case);
    each_engine!(engine, name, {
        let got = case.forward(&engine);
        close(name, "out", &got[0].1, &want[0].1, |i| scale[order[i]] + 4.0 * want[0].1[i].abs(), factor);
        close(name, "last_state", &got[1].1, &want[1].1, |i| states[i].max(UNIT * largest(&states)), factor * 8.0);
    });
    if case.seqlen > 0 && case.batch > 0 {
        poison(&mut from, case)?;
    }
    Ok(())
}

/// What rounding errors of the last state are relative to: the state of the problem with absolute values. The bilinear Ā may be
/// negative, so there it is a bound: as many inputs as are remembered, each of them the largest.
fn state_scale(case: &Case<f32>, remembered: f64) -> Vec<f64> {
    let states = case.positive().forward(&Naive).swap_remove(1).1;
    if case.options.rule != Rule::Bilinear {
        return states;
    }
    let most = |v: &[f32]| largest(&widen(v));
    let step = most(&case.delta) + case.bias.as_deref().map_or(0.0, most) + 1.0;
    let bound = remembered * step * most(&case.u) * most(&case.b) + case.initial.as_deref().map_or(0.0, most);
    vec![bound; states.len()]
}

/// Where element i in memory stands in (B, L, D).
fn positions(case: &Case<f32>) -> Vec<usize> {
    let (l, d) = (case.seqlen, case.dim);
    (0..case.u.len()).map(|i| if case.transposed { i / (l * d) * l * d + i % l * d + i / l % d } else { i }).collect()
}

/// NaN or infinity in u at one position makes every later output of its channel non-finite up to the end of its sequence, and
/// touches nothing else: not a bit of earlier positions, other channels, rows or sequences.
fn poison(from: &mut Source<'_>, clean: Case<f32>) -> Result<()> {
    let bad = from.pick(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY])?;
    let at = from.upto(clean.u.len() - 1)?;
    let mut case = clean.clone();
    // A gate of 0 or a C of 0 makes NaN of infinity, a step of 0 does too: the output is not finite in any case.
    case.u[at] = bad;
    let order = positions(&case);
    let (row, t, d) = place(&case, order[at]);
    let end = case.offsets.as_ref().map_or(case.seqlen, |o| *o.iter().find(|&&end| end > t as i64).expect("an end") as usize);
    each_engine!(engine, name, {
        let (before, after) = (clean.forward(&engine).swap_remove(0).1, case.forward(&engine).swap_remove(0).1);
        for i in 0..after.len() {
            let (r, s, c) = place(&case, order[i]);
            if r == row && c == d && (t..end).contains(&s) {
                assert!(!after[i].is_finite(), "{name}: {bad} in u at {t} of {end} is lost at {s}: {}", after[i]);
            } else {
                assert_eq!(before[i].to_bits(), after[i].to_bits(), "{name}: {bad} in u at ({row}, {t}, {d}) leaks to ({r}, {s}, {c})");
            }
        }
    });
    Ok(())
}

fn place(case: &Case<f32>, position: usize) -> (usize, usize, usize) {
    (position / (case.seqlen * case.dim), position / case.dim % case.seqlen, position % case.dim)
}

/// The target.
pub fn run(bytes: &[u8]) {
    let _ = check(bytes);
}

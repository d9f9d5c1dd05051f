//! What is promised of NaN and infinity.

use selective_scan::cuda::Regime;
use selective_scan::element::Dtype;
use selective_scan::ops::Rule;
use selective_scan::selective::Carry;

use super::array::Array;
use super::selective::{Problem, forward_in, run_in};
use super::selective_grid::plain;
use super::tensor::Layout;
use super::transform::Transform;
use super::{Faults, Role, carried_by, named, refused};

const POISON: [f64; 3] = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
/// B, L, D, N: time crosses a carry chunk, channels 3 to 5 are group 1.
const SIZES: [usize; 4] = [2, 140, 6, 5];
/// Row, position, channel and group that are spoiled.
const AT: [usize; 4] = [1, 17, 4, 1];

/// Index of (row, position, channel) in (B, L, D).
fn at([row, t, d]: [usize; 3]) -> usize {
    (row * SIZES[1] + t) * SIZES[2] + d
}

/// Spoils one number of a varying coefficient.
fn spoil(array: &mut Array, value: f64) {
    let ([row, t, _, group], width) = (AT, 1 + usize::from(array.complex));
    array.data[(((row * SIZES[1] + t) * 2 + group) * SIZES[3] + 2) * width] = value;
}

/// Every kind of problem in both regimes.
fn each(sizes: [usize; 4], mut test: impl FnMut(&Problem, Regime, Dtype) -> Result<(), String>) {
    let mut faults = Faults::default();
    for (i, rule) in [Rule::Euler, Rule::Zoh, Rule::Bilinear].into_iter().enumerate() {
        for (complex, regime, carry) in [
            (false, Regime::Walk, Carry::Plain),
            (true, Regime::Walk, Carry::Plain),
            (false, Regime::Split, Carry::Plain),
            (true, Regime::Split, Carry::Plain),
            (i == 1, Regime::Walk, Carry::Compensated),
        ] {
            let dtype = [Dtype::F32, Dtype::Bf16, Dtype::F64][(i + usize::from(complex)) % 3];
            let mut of = plain(sizes, dtype, complex, rule);
            of.options.carry = carry;
            faults.case(&|| format!("{rule:?}, complex {complex}, {regime:?}, {carry:?}, {}", dtype.name()), || test(&of, regime, dtype));
        }
    }
    faults.none();
}

/// Every out is as `spoiled` says: not finite there, the clean bits elsewhere.
fn spreads(
    [clean, dirty]: [&Problem; 2],
    regime: Regime,
    dtype: Dtype,
    what: &str,
    spoiled: impl Fn([usize; 3]) -> bool,
) -> Result<(), String> {
    let run = |of| forward_in(&carried_by(regime), dtype, of, Layout::Contiguous).map_err(refused);
    let (before, after) = (run(clean)?, run(dirty)?);
    for place in (0..SIZES[0]).flat_map(|r| (0..SIZES[1]).flat_map(move |t| (0..SIZES[2]).map(move |d| [r, t, d]))) {
        let (x, y) = (named(&before, "out").array.data[at(place)], named(&after, "out").array.data[at(place)]);
        let right = if spoiled(place) { !y.is_finite() } else { x.to_bits() == y.to_bits() };
        if !right {
            return Err(format!("{what}: out{place:?} is {y}, before {x}"));
        }
    }
    Ok(())
}

#[test]
fn a_spoiled_input_spoils_what_comes_after() {
    let [row, t, d, group] = AT;
    each(SIZES, |clean, regime, dtype| {
        for poison in POISON {
            let mut dirty = clean.clone();
            dirty.u.data[at([row, t, d])] = poison;
            spreads([clean, &dirty], regime, dtype, &format!("u = {poison}"), |[r, s, c]| r == row && s >= t && c == d)?;
            let mut dirty = clean.clone();
            spoil(&mut dirty.B, poison);
            spreads([clean, &dirty], regime, dtype, &format!("B = {poison}"), |[r, s, c]| r == row && s >= t && c / 3 == group)?;
            if poison != f64::NEG_INFINITY {
                let mut dirty = clean.clone();
                dirty.delta.data[at([row, t, d])] = poison;
                spreads([clean, &dirty], regime, dtype, &format!("delta = {poison}"), |[r, s, c]| r == row && s >= t && c == d)?;
            }
        }
        Ok(())
    });
}

#[test]
fn a_spoiled_coefficient_or_gate_spoils_its_position() {
    let [row, t, d, group] = AT;
    each(SIZES, |clean, regime, dtype| {
        for poison in POISON {
            let mut dirty = clean.clone();
            spoil(&mut dirty.C, poison);
            spreads([clean, &dirty], regime, dtype, &format!("C = {poison}"), |[r, s, c]| r == row && s == t && c / 3 == group)?;
            let mut dirty = clean.clone();
            dirty.z.as_mut().expect("it has a gate").data[at([row, t, d])] = poison;
            if poison != f64::NEG_INFINITY {
                spreads([clean, &dirty], regime, dtype, &format!("z = {poison}"), |[r, s, c]| r == row && s == t && c == d)?;
                continue;
            }
            let results = forward_in(&carried_by(regime), dtype, &dirty, Layout::Contiguous).map_err(refused)?;
            let out = named(&results, "out").array.data[at([row, t, d])];
            if out != 0.0 && !out.is_nan() {
                return Err(format!("z = -inf gives {out}"));
            }
        }
        Ok(())
    });
}

fn finite(of: &Problem, regime: Regime, dtype: Dtype, what: &str) -> Result<(), String> {
    for found in forward_in(&carried_by(regime), dtype, of, Layout::Contiguous).map_err(refused)? {
        if let Some(x) = found.array.data.iter().find(|x| !x.is_finite()) {
            return Err(format!("{what}: {} has {x}", found.name));
        }
    }
    Ok(())
}

/// b is formed as (Δ'u)·B, so numbers whose other products overflow are fine.
#[test]
fn what_fits_stays_finite() {
    each(SIZES, |of, regime, dtype| {
        let mut big = Problem { D: None, z: None, delta_bias: None, h0: None, ..of.clone() };
        big.options.delta_softplus = false;
        big.u.data.fill(1e30);
        big.B.data.fill(1e30);
        big.delta.data.fill(1e-30);
        finite(&big, regime, dtype, "u and B of 1e30")
    });
}

/// softplus does not overflow, exp underflows to 0.
#[test]
fn extreme_steps_stay_finite() {
    each(SIZES, |of, regime, dtype| {
        for extreme in [60000.0, -60000.0, 200.0, -200.0] {
            let mut far = of.clone();
            far.delta.data.iter_mut().skip(1).step_by(3).for_each(|x| *x = extreme);
            far.u.data.iter_mut().for_each(|x| *x *= 1e-3);
            far.z.as_mut().expect("a gate").data.iter_mut().skip(2).step_by(5).for_each(|x| *x = -extreme.abs().min(1e4));
            finite(&far, regime, dtype, &format!("steps of {extreme}"))?;
        }
        Ok(())
    });
}

/// Without an initial state the first decay is not read.
#[test]
fn the_first_decay_is_not_read() {
    each([2, 1, 6, 5], |of, regime, dtype| {
        let mut one = Problem { delta_bias: None, h0: None, ..of.clone() };
        (one.options.delta_softplus, one.options.rule) = (false, Rule::Euler);
        one.delta.data.fill(0.5);
        one.A.data.fill(1e6);
        finite(&one, regime, dtype, "A of a million")
    });
}

/// A boundary selects: nothing of a spoiled sequence reaches another one, forward or backward.
#[test]
fn nothing_crosses_a_boundary() {
    let rows = |r: usize| (0..SIZES[1]).map(|t| (r, t)).collect::<Vec<_>>();
    each(SIZES, |of, regime, dtype| {
        let clean = Problem { h0: None, grad_last: None, ..of.clone() };
        let mut dirty = clean.clone();
        dirty.u.data[..SIZES[1] * SIZES[2]].fill(f64::NAN);
        dirty.delta.data[..SIZES[1] * SIZES[2]].fill(f64::INFINITY);
        for by in [Transform::pack(2, SIZES[1]), Transform::chain(&[rows(0), rows(1)]), Transform::chain(&[rows(1), rows(0)])] {
            let run = |of: &Problem| run_in(&carried_by(regime), dtype, &of.transform(&by), Layout::Contiguous).map_err(refused);
            let (before, after) = (run(&clean)?, run(&dirty)?);
            for found in after.iter().filter(|f| f.role == Role::Positions) {
                let (x, y) = (&named(&before, found.name).array.data, &found.array.data);
                let width = x.len() / by.index[0].len();
                for (t, _) in by.index[0].iter().enumerate().filter(|(_, from)| !matches!(from, Some((0, _)))) {
                    let same = (t * width..(t + 1) * width).all(|i| x[i].to_bits() == y[i].to_bits());
                    if !same {
                        return Err(format!("{}: {} at {t} changed", by.label, found.name));
                    }
                }
            }
        }
        Ok(())
    });
}

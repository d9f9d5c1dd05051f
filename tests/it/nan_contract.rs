//! What is promised of NaN and infinity, on every engine, ISA and type.

use selective_scan::element::Dtype;
use selective_scan::ops::Rule;

use crate::harness::array::Array;
use crate::harness::operation::{Operation, Role, named};
use crate::harness::scan::Scan;
use crate::harness::selective::Selective;
use crate::harness::transform::{Packing, Transform};
use crate::problems::{Draw, Recipe, data, forward, name, places, run};

const POISON: [f64; 3] = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
const SIZES: [usize; 4] = [2, 40, 6, 5];
/// Row, position, channel and group that are spoiled; channels 3 to 5 are group 1.
const AT: (usize, usize, usize, usize) = (1, 17, 4, 1);

fn problem(rule: Rule, complex: bool, seed: u64) -> Selective {
    let flags = (true, true, true, true);
    let (skip, gate, bias, softplus) = flags;
    Recipe { sizes: SIZES, groups: 2, complex, varying: [true; 2], skip, gate, bias, softplus, states: true, rule, seed, packed: false }
        .problem()
}

fn kinds() -> impl Iterator<Item = (Rule, bool)> {
    [Rule::Euler, Rule::Zoh, Rule::Bilinear].into_iter().flat_map(|r| [(r, false), (r, true)])
}

/// Index of (row, position, channel) in (B, L, D).
fn at(row: usize, t: usize, d: usize) -> usize {
    (row * SIZES[1] + t) * SIZES[2] + d
}

/// Spoils one number of a varying coefficient.
fn spoil(array: &mut Array, value: f64) {
    let width = if array.complex { 2 } else { 1 };
    let (row, t, _, group) = AT;
    array.data[(((row * SIZES[1] + t) * 2 + group) * SIZES[3] + 2) * width] = value;
}

/// Every out is as `spoiled` says: not finite there, the clean bits elsewhere.
fn spreads(clean: &Selective, dirty: &Selective, what: &str, spoiled: impl Fn(usize, usize, usize) -> bool) {
    for (entry, dtype) in places() {
        let (before, after) = (forward(&entry, dtype, clean), forward(&entry, dtype, dirty));
        for row in 0..SIZES[0] {
            for t in 0..SIZES[1] {
                for d in 0..SIZES[2] {
                    let (x, y) = (data(&before, "out")[at(row, t, d)], data(&after, "out")[at(row, t, d)]);
                    let place = || format!("{what} on {}: out[{row}, {t}, {d}] = {y}", name(&entry, dtype));
                    if spoiled(row, t, d) {
                        assert!(!y.is_finite(), "{}", place());
                    } else {
                        assert_eq!(x.to_bits(), y.to_bits(), "{}", place());
                    }
                }
            }
        }
    }
}

#[test]
fn a_spoiled_input_spoils_what_comes_after() {
    let (row, t, d, group) = AT;
    for (rule, complex) in kinds() {
        let clean = problem(rule, complex, 1);
        for poison in POISON {
            let mut dirty = clean.clone();
            dirty.u.data[at(row, t, d)] = poison;
            spreads(&clean, &dirty, &format!("u = {poison}, {rule:?}"), |r, s, c| r == row && s >= t && c == d);
            let mut dirty = clean.clone();
            spoil(&mut dirty.B, poison);
            spreads(&clean, &dirty, &format!("B = {poison}, {rule:?}"), |r, s, c| r == row && s >= t && c / 3 == group);
        }
        for poison in [f64::NAN, f64::INFINITY] {
            let mut dirty = clean.clone();
            dirty.delta.data[at(row, t, d)] = poison;
            spreads(&clean, &dirty, &format!("delta = {poison}, {rule:?}"), |r, s, c| r == row && s >= t && c == d);
        }
    }
}

#[test]
fn a_spoiled_coefficient_or_gate_spoils_its_position() {
    let (row, t, d, group) = AT;
    for (rule, complex) in kinds() {
        let clean = problem(rule, complex, 2);
        for poison in POISON {
            let mut dirty = clean.clone();
            spoil(&mut dirty.C, poison);
            spreads(&clean, &dirty, &format!("C = {poison}"), |r, s, c| r == row && s == t && c / 3 == group);
            let mut dirty = clean.clone();
            dirty.z.as_mut().expect("it has a gate").data[at(row, t, d)] = poison;
            if poison == f64::NEG_INFINITY {
                for (entry, dtype) in places() {
                    let out = data(&forward(&entry, dtype, &dirty), "out")[at(row, t, d)];
                    assert!(out == 0.0 || out.is_nan(), "z = -inf on {}: {out}", name(&entry, dtype));
                }
            } else {
                spreads(&clean, &dirty, &format!("z = {poison}"), |r, s, c| r == row && s == t && c == d);
            }
        }
    }
}

/// b is formed as (Δ'u)·B, so numbers whose other products overflow are fine.
#[test]
fn what_fits_stays_finite() {
    for (rule, complex) in kinds() {
        let mut big = Recipe { skip: false, gate: false, bias: false, softplus: false, states: false, ..plain(rule, complex) }.problem();
        big.u.data.iter_mut().for_each(|x| *x = 1e30);
        big.B.data.iter_mut().for_each(|x| *x = 1e30);
        big.delta.data.iter_mut().for_each(|x| *x = 1e-30);
        for (entry, dtype) in places().into_iter().filter(|(_, d)| *d != Dtype::F16) {
            let results = forward(&entry, dtype, &big);
            for result in ["out", "last_state"] {
                assert!(data(&results, result).iter().all(|x| x.is_finite()), "{result}, {rule:?} on {}", name(&entry, dtype));
            }
        }
    }
}

fn plain(rule: Rule, complex: bool) -> Recipe {
    let [skip, gate, bias, softplus, states, packed] = [true, true, true, true, false, false];
    Recipe { sizes: SIZES, groups: 2, complex, varying: [true; 2], skip, gate, bias, softplus, states, rule, seed: 3, packed }
}

/// softplus does not overflow, exp underflows to 0, for numbers of any size in any type.
#[test]
fn extreme_steps_stay_finite() {
    for (rule, complex) in kinds() {
        for extreme in [60000.0, -60000.0, 200.0, -200.0] {
            let mut problem = plain(rule, complex).problem();
            problem.delta.data.iter_mut().skip(1).step_by(3).for_each(|x| *x = extreme);
            problem.u.data.iter_mut().for_each(|x| *x *= 1e-3);
            problem.z.as_mut().expect("a gate").data.iter_mut().skip(2).step_by(5).for_each(|x| *x = -extreme.abs().min(1e4));
            for (entry, dtype) in places() {
                for found in forward(&entry, dtype, &problem) {
                    assert!(
                        found.array.data.iter().all(|x| x.is_finite()),
                        "{} at {extreme}, {rule:?}, {}",
                        found.name,
                        name(&entry, dtype)
                    );
                }
            }
        }
    }
}

/// A boundary selects: nothing of a spoiled sequence reaches another one, forward or backward.
#[test]
fn nothing_crosses_a_boundary() {
    for (rule, complex) in kinds() {
        let clean = plain(rule, complex).problem();
        let mut dirty = clean.clone();
        dirty.u.data[..SIZES[1] * SIZES[2]].fill(f64::NAN);
        dirty.delta.data[..SIZES[1] * SIZES[2]].fill(f64::INFINITY);
        let rows = |r: usize| (0..SIZES[1]).map(|t| (r, t)).collect::<Vec<_>>();
        for by in [Transform::pack(2, SIZES[1]), Transform::chain(&[rows(0), rows(1)]), Transform::chain(&[rows(1), rows(0)])] {
            for (entry, dtype) in places() {
                let (before, after) = (run(&entry, dtype, &clean.transform(&by)), run(&entry, dtype, &dirty.transform(&by)));
                for found in after.iter().filter(|r| r.role == Role::Positions) {
                    let (x, y) = (&named(&before, &found.name).array, &found.array);
                    let width = x.data.len() / by.index[0].len();
                    for (t, _) in by.index[0].iter().enumerate().filter(|(_, from)| !matches!(from, Some((0, _)))) {
                        let at = t * width..(t + 1) * width;
                        let same = x.data[at.clone()].iter().zip(&y.data[at]).all(|(x, y)| x.to_bits() == y.to_bits());
                        assert!(same, "{} at {t}, {}, {rule:?}, {}", found.name, by.label, name(&entry, dtype));
                    }
                }
            }
        }
        assert_eq!(clean.packing, Packing::Rows);
    }
}

/// Without an initial state the first decay is not read.
#[test]
fn the_first_decay_is_not_read() {
    let mut problem = Recipe { sizes: [2, 1, 6, 5], softplus: false, bias: false, ..plain(Rule::Euler, false) }.problem();
    problem.delta.data.fill(0.5);
    problem.A.data.fill(1e6);
    for (entry, dtype) in places() {
        for found in forward(&entry, dtype, &problem) {
            assert!(found.array.data.iter().all(|x| x.is_finite()), "{} on {}", found.name, name(&entry, dtype));
        }
    }
}

/// Layer 1: a spoiled b, or an a that is read, spoils what comes after in its row and nothing else.
#[test]
fn a_spoiled_scan() {
    let dims = [2, 40, 6];
    let (row, t, d) = (1, 17, 4);
    for (complex, reverse, poison) in POISON.into_iter().flat_map(|p| [(false, false, p), (true, false, p), (false, true, p)]) {
        let mut draw = Draw(9);
        let clean = Scan {
            a: draw.array(&dims, complex, -0.9, 0.9),
            b: draw.array(&dims, complex, -1.0, 1.0),
            h0: None,
            grad_h: draw.array(&dims, complex, -1.0, 1.0),
            grad_last: None,
            reverse,
            n_eff: 0.0,
        };
        let width = if complex { 2 } else { 1 };
        let first = if reverse { dims[1] - 1 } else { 0 };
        let spoiled_from = |which: usize| {
            let mut dirty = clean.clone();
            match which {
                0 => dirty.b.data[at(row, t, d) * width] = poison,
                1 => dirty.a.data[at(row, t, d) * width] = poison,
                // Nothing is before the first step, so its a is not read.
                _ => dirty.a.data[at(row, first, d) * width] = poison,
            }
            dirty
        };
        for (which, (entry, dtype)) in places().into_iter().flat_map(|p| [(0, p.clone()), (1, p.clone()), (2, p)]) {
            let (before, after) = (forward(&entry, dtype, &clean), forward(&entry, dtype, &spoiled_from(which)));
            for (i, (x, y)) in data(&before, "h").chunks(width).zip(data(&after, "h").chunks(width)).enumerate() {
                let (r, s, c) = (i / (dims[1] * dims[2]), i / dims[2] % dims[1], i % dims[2]);
                let later = if reverse { s <= t } else { s >= t };
                let place = format!("{poison} in {which} on {}: h[{r}, {s}, {c}] = {y:?}", name(&entry, dtype));
                if which < 2 && r == row && later && c == d {
                    assert!(y.iter().any(|y| !y.is_finite()), "{place}");
                } else {
                    assert!(x.iter().zip(y).all(|(x, y)| x.to_bits() == y.to_bits()), "{place}");
                }
            }
        }
    }
}

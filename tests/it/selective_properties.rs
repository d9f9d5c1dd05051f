//! What holds for every selective scan, on every engine, ISA and type.

use num_complex::Complex;
use proptest::prelude::*;
use selective_scan::element::Dtype;
use selective_scan::ops::{Rule, sigmoid, softplus};
use selective_scan::selective::Carry;

use crate::harness::array::Array;
use crate::harness::compare::{Bound, compare, compare_bits};
use crate::harness::operation::{Operation, Role, named};
use crate::harness::selective::Selective;
use crate::harness::transform::Packing;
use crate::problems::{Draw, Recipe, agrees, cases, data, dot, dot_scale, forward, name, places, recipes, run, specified};

/// A plain recipe that tests change.
fn recipe(sizes: [usize; 4], seed: u64) -> Recipe {
    let rule = Rule::Euler;
    Recipe {
        sizes,
        groups: 1,
        complex: false,
        varying: [true; 2],
        skip: false,
        gate: false,
        bias: false,
        softplus: false,
        states: true,
        rule,
        seed,
        packed: false,
    }
}

/// The channels `from..to` alone, with the groups they belong to.
fn channels(problem: &Selective, from: usize, to: usize) -> Selective {
    let dim = problem.u.dims[2];
    // The last axis but `after` is cut from `low` to `high`.
    let cut = |x: &Array, axis: usize, low: usize, high: usize| {
        let inner = x.data.len() / x.dims[..=axis].iter().product::<usize>().max(1);
        let rows = x.data.chunks((inner * x.dims[axis]).max(1));
        let data = rows.flat_map(|row| row[low * inner..high * inner].to_vec()).collect();
        let mut dims = x.dims.clone();
        dims[axis] = high - low;
        Array { dims, data, complex: x.complex }
    };
    let along = |x: &Array| cut(x, x.dims.len() - 1, from, to);
    let coefficient = |x: &Array| match x.dims[..] {
        [_, _, groups, _] => cut(x, 2, from * groups / dim, (to - 1) * groups / dim + 1),
        _ => cut(x, 0, from, to),
    };
    let states = |x: &Option<Array>| x.as_ref().map(|x| cut(x, 1, from, to));
    Selective {
        u: along(&problem.u),
        delta: along(&problem.delta),
        A: cut(&problem.A, 0, from, to),
        B: coefficient(&problem.B),
        C: coefficient(&problem.C),
        D: problem.D.as_ref().map(along),
        z: problem.z.as_ref().map(along),
        delta_bias: problem.delta_bias.as_ref().map(along),
        h0: states(&problem.h0),
        grad_out: along(&problem.grad_out),
        grad_last_state: states(&problem.grad_last_state),
        ..problem.clone()
    }
}

/// ℓ = Σ out·∂out + Σ last·∂last, whose gradients the backward call gives.
fn loss(entry: &crate::harness::engines::Entry, problem: &Selective) -> f64 {
    let results = forward(entry, Dtype::F64, problem);
    let last = problem.grad_last_state.as_ref().map_or(0.0, |g| dot(data(&results, "last_state"), &g.data));
    dot(data(&results, "out"), &problem.grad_out.data) + last
}

/// The operand that a gradient belongs to.
fn operand<'a>(problem: &'a mut Selective, gradient: &str) -> Option<&'a mut Array> {
    match gradient {
        "grad.u" => Some(&mut problem.u),
        "grad.delta" => Some(&mut problem.delta),
        "grad.A" => Some(&mut problem.A),
        "grad.B" => Some(&mut problem.B),
        "grad.C" => Some(&mut problem.C),
        "grad.D" => problem.D.as_mut(),
        "grad.z" => problem.z.as_mut(),
        "grad.delta_bias" => problem.delta_bias.as_mut(),
        "grad.h0" => problem.h0.as_mut(),
        other => panic!("{other} is no gradient"),
    }
}

/// The scale of the terms of gradients that are summed over the batch and time: the largest of a few partial sums, which do not
/// cancel as a sum of random terms may. What few channels and states there are would hide it otherwise.
fn terms(problem: &Selective) -> Vec<(String, f64)> {
    let mut scales: Vec<(String, f64)> = Vec::new();
    for part in 0..8 {
        let mut masked = problem.clone();
        let mut draw = Draw(part);
        for gradient in [Some(&mut masked.grad_out), masked.grad_last_state.as_mut()].into_iter().flatten() {
            gradient.data.iter_mut().filter(|_| draw.unit() < 0.5).for_each(|g| *g = 0.0);
        }
        for found in run(&crate::harness::engines::naive(), Dtype::F64, &masked).into_iter().filter(|r| r.role == Role::Shared) {
            let largest = found.array.data.iter().fold(0.0f64, |most, x| most.max(x.abs()));
            match scales.iter_mut().find(|(n, _)| *n == found.name) {
                Some((_, scale)) => *scale = scale.max(largest),
                None => scales.push((found.name, largest)),
            }
        }
    }
    scales
}

proptest! {
    #![proptest_config(cases(24))]

    /// Engines agree with the specification; layouts, packing, padding, two calls and steps agree with the plain call.
    #[test]
    fn engines_agree(recipe in recipes(129)) {
        let mut checked = specified(recipe.problem());
        checked.terms = terms(&checked.problem);
        agrees(&checked)?;
    }

    /// What comes later does not reach back.
    #[test]
    fn causal(recipe in recipes(129), cut in 0.0f64..1.0) {
        let problem = recipe.problem();
        let [rows, seqlen] = problem.sizes();
        let at = (seqlen as f64 * cut) as usize;
        let mut changed = problem.clone();
        for array in [Some(&mut changed.u), Some(&mut changed.delta), changed.z.as_mut()].into_iter().flatten() {
            let width = array.data.len() / (rows * seqlen).max(1);
            array.data.iter_mut().enumerate().filter(|(i, _)| i / width % seqlen >= at).for_each(|(_, x)| *x = 0.5 - *x);
        }
        for (entry, dtype) in places() {
            let (before, after) = (forward(&entry, dtype, &problem), forward(&entry, dtype, &changed));
            let early = |x: &[f64]| {
                let width = x.len() / (rows * seqlen).max(1);
                x.iter().enumerate().filter(|(i, _)| i / width % seqlen < at).map(|(_, x)| *x).collect::<Vec<_>>()
            };
            let same = compare_bits(&early(data(&after, "out")), &early(data(&before, "out")));
            prop_assert!(same.used == 0.0, "{}: {same:?}", name(&entry, dtype));
        }
    }

    /// out and last state are linear in (u, h_0): doubled inputs give doubled results to the bit, sums give sums.
    #[test]
    fn linear_in_u_and_the_initial_state(recipe in recipes(65), seed: u64) {
        let problem = recipe.problem();
        let mut draw = Draw(seed);
        let mut other = problem.clone();
        other.u = draw.array(&problem.u.dims, false, -1.0, 1.0);
        other.h0 = problem.h0.as_ref().map(|h| draw.array(&h.dims, h.complex, -1.0, 1.0));
        let combined = |f: &dyn Fn(f64, f64) -> f64| {
            let of = |x: &Array, y: &Array| Array { data: x.data.iter().zip(&y.data).map(|(x, y)| f(*x, *y)).collect(), ..x.clone() };
            let h0 = problem.h0.as_ref().zip(other.h0.as_ref()).map(|(x, y)| of(x, y));
            Selective { u: of(&problem.u, &other.u), h0, ..problem.clone() }
        };
        for (entry, dtype) in places() {
            let [one, two, doubled] = [&problem, &other, &combined(&|x, _| 2.0 * x)].map(|p| forward(&entry, dtype, p));
            for name_of in ["out", "last_state"] {
                let twice: Vec<f64> = data(&one, name_of).iter().map(|x| 2.0 * x).collect();
                // Subnormals of f16 do not double.
                let bits = compare_bits(data(&doubled, name_of), &twice);
                prop_assert!(dtype == Dtype::F16 || bits.used == 0.0, "{name_of} on {}: {bits:?}", name(&entry, dtype));
            }
            if matches!(dtype, Dtype::F64 | Dtype::F32) {
                let both = forward(&entry, dtype, &combined(&|x, y| 0.5 * x + 0.25 * y));
                for name_of in ["out", "last_state"] {
                    let (x, y) = (data(&one, name_of), data(&two, name_of));
                    let want: Vec<f64> = x.iter().zip(y).map(|(x, y)| 0.5 * x + 0.25 * y).collect();
                    // Largest of the parts, not of their sum, which may cancel.
                    let largest = x.iter().chain(y).fold(0.0f64, |m, x| m.max(x.abs()));
                    let gap = want.iter().zip(data(&both, name_of)).fold(0.0f64, |m, (a, b)| m.max((a - b).abs()));
                    let unit = if dtype == Dtype::F64 { 1e-13 } else { 4e-6 };
                    prop_assert!(gap <= unit * (1.0 + problem.n_eff_on(&entry, dtype) / 16.0) * largest, "{name_of} on {}: {gap:e}", name(&entry, dtype));
                }
            }
        }
    }

    /// ⟨J v, w⟩ = ⟨v, Jᵀ w⟩ for the linear part, (u, h_0).
    #[test]
    fn adjoint_in_u_and_the_initial_state(recipe in recipes(129)) {
        let problem = recipe.problem();
        for (entry, dtype) in places().into_iter().filter(|(_, d)| matches!(d, Dtype::F64 | Dtype::F32)) {
            let results = run(&entry, dtype, &problem);
            let mut pairs = vec![(data(&results, "out"), &problem.grad_out.data[..], 1.0)];
            pairs.extend(problem.grad_last_state.iter().map(|g| (data(&results, "last_state"), &g.data[..], 1.0)));
            pairs.push((data(&results, "grad.u"), &problem.u.data, -1.0));
            pairs.extend(problem.h0.iter().map(|h| (data(&results, "grad.h0"), &h.data[..], -1.0)));
            let gap: f64 = pairs.iter().map(|(a, b, sign)| sign * dot(a, b)).sum();
            let scale: f64 = pairs.iter().map(|(a, b, _)| dot_scale(a, b)).sum();
            let unit = if dtype == Dtype::F64 { 1e-13 } else { 4e-6 };
            prop_assert!(gap.abs() <= unit * scale, "{}: {gap:e} of {scale:e}", name(&entry, dtype));
        }
    }

    /// Every gradient against central differences in f64, along a random direction.
    #[test]
    fn gradients_are_derivatives(recipe in recipes(33), seed: u64) {
        let problem = recipe.problem();
        for (entry, _) in places().into_iter().filter(|(_, d)| *d == Dtype::F64) {
            let results = run(&entry, Dtype::F64, &problem);
            let outputs = dot_scale(data(&results, "out"), &problem.grad_out.data);
            for gradient in results.iter().filter(|r| r.name.starts_with("grad.")) {
                let (mut draw, step) = (Draw(seed), 1e-5);
                let direction: Vec<f64> = gradient.array.data.iter().map(|_| draw.between(-1.0, 1.0)).collect();
                let side = |sign: f64| {
                    let mut moved = problem.clone();
                    let array = operand(&mut moved, &gradient.name).expect("what has a gradient is there");
                    array.data.iter_mut().zip(&direction).for_each(|(x, d)| *x += sign * d);
                    loss(&entry, &moved)
                };
                // Of fourth order: Δ turns the phase of a long memory, and its third derivative is large.
                let slope = (8.0 * (side(step) - side(-step)) - (side(2.0 * step) - side(-2.0 * step))) / (12.0 * step);
                let scale = dot_scale(&gradient.array.data, &direction) + outputs;
                let gap = (slope - dot(&gradient.array.data, &direction)).abs();
                prop_assert!(gap <= 2e-8 * scale, "{} on {}: {gap:e} of {scale:e}", gradient.name, entry.name);
            }
        }
    }

    /// Channel d belongs to group ⌊d·G/D⌋: the channels of one group alone give the same.
    #[test]
    fn groups_are_blocks(recipe in recipes(65)) {
        let problem = recipe.problem();
        let (dim, groups) = (problem.u.dims[2], recipe.groups);
        for (entry, dtype) in places().into_iter().filter(|(_, d)| matches!(d, Dtype::F64 | Dtype::F32)) {
            let all = forward(&entry, dtype, &problem);
            for group in 0..groups {
                let (from, to) = (group * dim / groups, (group + 1) * dim / groups);
                let alone = forward(&entry, dtype, &channels(&problem, from, to));
                let cut = channels(&Selective { u: named(&all, "out").array.clone(), ..problem.clone() }, from, to).u;
                let found = compare(data(&alone, "out"), &cut.data, Bound::new(dtype, problem.n_eff_on(&entry, dtype), true));
                prop_assert!(found.used <= 1.0, "group {group} on {}: {found:?}", name(&entry, dtype));
            }
        }
    }

    /// In f32 no out is further from the exact one than a few roundings of every term that enters it, whatever the inputs.
    #[test]
    fn errors_stay_below_the_condition(recipe in recipes(129), stretch in 0.0f64..6.0) {
        let mut problem = recipe.problem();
        problem.A.data.iter_mut().for_each(|x| *x *= 10f64.powf(stretch - 3.0));
        let problem = problem.measured().expect("right").in_f32();
        let scale = problem.condition();
        let exact = specified(problem.clone());
        for (entry, _) in places().into_iter().filter(|(_, d)| *d == Dtype::F32) {
            let got = forward(&entry, Dtype::F32, &problem);
            let out = &exact.reference.iter().find(|(n, _)| n == "out").expect("there").1;
            for ((got, want), scale) in data(&got, "out").iter().zip(&out.data).zip(&scale) {
                let allowed = 8.0 * f64::from(f32::EPSILON) * scale + 1e-37;
                prop_assert!((got - want).abs() <= allowed, "{}: {got} for {want}, scale {scale:e}", entry.name);
            }
        }
    }
}

/// Δ' = 0 holds the state to the bit, by every rule.
#[test]
fn no_step_holds_the_state() {
    for (rule, complex) in [Rule::Euler, Rule::Zoh, Rule::Bilinear].into_iter().flat_map(|r| [(r, false), (r, true)]) {
        let mut problem = Recipe { rule, complex, ..recipe([2, 65, 9, 5], 3) }.problem();
        problem.delta.data.fill(0.0);
        let held = problem.h0.clone().expect("there is one");
        for (entry, dtype) in places() {
            let results = forward(&entry, dtype, &problem);
            assert_eq!(data(&results, "last_state"), &held.data, "{rule:?} on {}", name(&entry, dtype));
        }
    }
}

/// Δ' → ∞ with A < 0 forgets everything before, to the bit.
#[test]
fn an_endless_step_forgets() {
    for (rule, complex) in [Rule::Euler, Rule::Zoh].into_iter().flat_map(|r| [(r, false), (r, true)]) {
        let mut problem = Recipe { rule, complex, ..recipe([1, 40, 9, 5], 4) }.problem();
        let (at, width) = (20, 9);
        problem.delta.data[at * width..(at + 1) * width].fill(32768.0);
        // What enters with that step still fits f16.
        problem.u.data[at * width..(at + 1) * width].iter_mut().for_each(|x| *x /= 64.0);
        let mut other = problem.clone();
        other.u.data[..at * width].iter_mut().for_each(|x| *x = 0.5 - *x);
        other.h0 = None;
        for (entry, dtype) in places() {
            let (one, two) = (forward(&entry, dtype, &problem), forward(&entry, dtype, &other));
            let late = |x: &[f64]| x[at * width..].to_vec();
            assert_eq!(late(data(&one, "out")), late(data(&two, "out")), "{rule:?} on {}", name(&entry, dtype));
            assert!(data(&one, "out").iter().all(|x| x.is_finite()), "{rule:?} on {}", name(&entry, dtype));
        }
    }
}

/// With N = 1, A = −1, B = 1, ZOH and softplus it is the gated RNN h = (1 − g) h + g x, g = sigmoid(z) (Mamba, Theorem 1).
#[test]
fn the_gated_rnn() {
    let (seqlen, dim) = (65, 9);
    let mut problem =
        Recipe { rule: Rule::Zoh, softplus: true, states: false, varying: [false; 2], ..recipe([1, seqlen, dim, 1], 5) }.problem();
    problem.A.data.fill(-1.0);
    problem.B.data.fill(1.0);
    problem.C.data.fill(1.0);
    let problem = problem.measured().expect("right");
    let mut want = vec![0.0; seqlen * dim];
    for d in 0..dim {
        let mut h = 0.0;
        for t in 0..seqlen {
            let gate = sigmoid(problem.delta.data[t * dim + d]);
            h = (1.0 - gate) * h + gate * problem.u.data[t * dim + d];
            want[t * dim + d] = h;
        }
    }
    for (entry, dtype) in places() {
        let results = forward(&entry, dtype, &problem);
        let found = compare(data(&results, "out"), &want, Bound::new(dtype, problem.n_eff_on(&entry, dtype), false));
        assert!(found.used <= 1.0, "{}: {found:?}", name(&entry, dtype));
    }
    // And Δ' is what the identity says.
    assert!((softplus(0.3f64) - (1.0 + 0.3f64.exp()).ln()).abs() < 1e-15);
}

/// With constant parameters it is the convolution with K_l = κ Re Σ_n C_n Ā_n^l B̄_n (S4).
#[test]
fn constant_parameters_are_a_convolution() {
    let (seqlen, dim, dstate) = (65, 9, 5);
    for (rule, complex) in [Rule::Euler, Rule::Zoh, Rule::Bilinear].into_iter().flat_map(|rule| [(rule, false), (rule, true)]) {
        let shape = [1, seqlen, dim, dstate];
        let mut problem = Recipe { rule, complex, states: false, varying: [false; 2], ..recipe(shape, 8) }.problem();
        for t in 1..seqlen {
            problem.delta.data.copy_within(..dim, t * dim);
        }
        let problem = problem.measured().expect("right");
        let number =
            |a: &Array, i: usize| if complex { Complex::new(a.data[2 * i], a.data[2 * i + 1]) } else { Complex::new(a.data[i], 0.0) };
        let mut want = vec![0.0; seqlen * dim];
        for d in 0..dim {
            for n in 0..dstate {
                let at = d * dstate + n;
                let dt = problem.delta.data[d];
                let discrete = rule.discretize(dt, number(&problem.A, at));
                let weight = number(&problem.C, at) * discrete.gamma * number(&problem.B, at) * dt;
                for t in 0..seqlen {
                    for s in 0..=t {
                        let tap = (weight * discrete.abar.powu((t - s) as u32)).re;
                        want[t * dim + d] += if complex { 2.0 * tap } else { tap } * problem.u.data[s * dim + d];
                    }
                }
            }
        }
        for (entry, dtype) in places() {
            let results = forward(&entry, dtype, &problem);
            let found = compare(data(&results, "out"), &want, Bound::new(dtype, problem.n_eff_on(&entry, dtype), false));
            assert!(found.used <= 1.0, "{rule:?} {complex} {}: {found:?}", name(&entry, dtype));
        }
    }
}

/// A compensated carry keeps f32 within 2e-6 however long the decay remembers; what is checked does not grow with n_eff.
#[test]
fn a_compensated_carry_does_not_drift() {
    let mut problem = Recipe { rule: Rule::Euler, ..recipe([1, 3000, 3, 2], 6) }.problem();
    problem.A.data.iter_mut().for_each(|x| *x *= 1e-4);
    problem.options.carry = Carry::Compensated;
    let problem = problem.in_f32().measured().expect("right");
    assert!(problem.n_eff > 500.0, "the decay is slow: {}", problem.n_eff);
    let exact = specified(problem.clone());
    for (entry, _) in places().into_iter().filter(|(_, d)| *d == Dtype::F32) {
        for found in run(&entry, Dtype::F32, &problem) {
            let want = &exact.reference.iter().find(|(n, _)| *n == found.name).expect("there").1;
            let gap = compare(&found.array.data, &want.data, Bound::new(Dtype::F32, 0.0, found.name.starts_with("grad.")));
            assert!(gap.used <= 1.0, "{} on {}: {gap:?}", found.name, entry.name);
        }
    }
}

/// A row does not depend on what else is in the batch.
#[test]
fn a_row_does_not_depend_on_the_batch() {
    let problem = Recipe { skip: true, gate: true, bias: true, softplus: true, groups: 3, ..recipe([3, 65, 9, 5], 7) }.problem();
    for (entry, dtype) in places() {
        let all = run(&entry, dtype, &problem);
        for row in 0..3 {
            let mut by = crate::harness::transform::Transform::slice(1, 0, 65);
            (by.index, by.states) = (vec![(0..65).map(|t| Some((row, t))).collect()], vec![row]);
            for found in run(&entry, dtype, &problem.transform(&by)).iter().filter(|r| r.role != Role::Shared) {
                let want = named(&all, &found.name).array.take(&[row]);
                let same = compare_bits(&found.array.data, &want.data);
                assert!(same.used == 0.0, "{} of row {row} on {}: {same:?}", found.name, name(&entry, dtype));
            }
        }
    }
    assert_eq!(problem.packing, Packing::Rows);
}

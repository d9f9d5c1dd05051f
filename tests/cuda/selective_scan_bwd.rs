//! The backward selective scan against the specification in f64, and the bits that regimes, batches and packings share.

use half::{bf16, f16};
use num_complex::Complex;
use selective_scan::buffer::Buffer;
use selective_scan::cuda::{Cuda, Regime};
use selective_scan::element::{Dtype, Element, Input, Weight};
use selective_scan::naive::Naive;
use selective_scan::ops::Rule;
use selective_scan::selective::{
    Carry, Coefficient, CoefficientGrad, SelectiveBwd, SelectiveGrads, SelectiveInputs, SelectiveOptions, SelectiveScan,
};
use selective_scan::sequences::Sequences;
use selective_scan::view::{Host, View};

use super::arrays::{Draw, Tensor, compare, each};
use super::carried::Carried;
use super::interpreter;

type C32 = Complex<f32>;
type C64 = Complex<f64>;

#[derive(Clone)]
enum Coef<I: Input, W: Weight<Real = I::Accum>> {
    Constant(Tensor<W, 2>),
    Varying(Tensor<W::Stored<I>, 4>),
}

impl<I: Input, W: Weight<Real = I::Accum>> Coef<I, W> {
    fn draw(draw: &mut Draw, [batch, seqlen, dim, n]: [usize; 4], groups: usize) -> Self {
        match groups {
            0 => Coef::Constant(Tensor::scattered(draw, [dim, n], -1.0, 1.0)),
            groups => Coef::Varying(Tensor::scattered(draw, [batch, seqlen, groups, n], -1.0, 1.0)),
        }
    }

    /// The same shape in another layout, for a gradient.
    fn anywhere(&self, draw: &mut Draw) -> Self {
        match self {
            Coef::Constant(t) => Coef::Constant(Tensor::anywhere(draw, t.dims)),
            Coef::Varying(t) => Coef::Varying(Tensor::anywhere(draw, t.dims)),
        }
    }

    fn view(&self) -> Coefficient<'_, I, W> {
        match self {
            Coef::Constant(t) => Coefficient::Constant(t.view()),
            Coef::Varying(t) => Coefficient::Varying(t.view()),
        }
    }

    fn view_mut(&mut self) -> CoefficientGrad<'_, I, W> {
        match self {
            Coef::Constant(t) => CoefficientGrad::Constant(t.view_mut()),
            Coef::Varying(t) => CoefficientGrad::Varying(t.view_mut()),
        }
    }

    fn wide(&self) -> Coef<f64, W::Wide> {
        match self {
            Coef::Constant(t) => Coef::Constant(t.cast()),
            Coef::Varying(t) => Coef::Varying(t.cast()),
        }
    }

    fn numbers(&self) -> Vec<f64> {
        match self {
            Coef::Constant(t) => t.numbers(),
            Coef::Varying(t) => t.numbers(),
        }
    }

    fn part(&self, row: usize, positions: &[usize]) -> Self {
        match self {
            Coef::Constant(t) => Coef::Constant(t.clone()),
            Coef::Varying(t) => {
                let mut out = Tensor::zeros([1, positions.len(), t.dims[2], t.dims[3]], [0, 1, 2, 3], 0, 1);
                each(out.dims, |[_, i, g, n]| {
                    let x = t.view().get([row, positions[i], g, n]);
                    out.view_mut().set([0, i, g, n], x);
                });
                Coef::Varying(out)
            }
        }
    }

    fn compare(&self, what: &str, want: &[f64], relative: f64) {
        match self {
            Coef::Constant(t) => compare(what, t, want, relative),
            Coef::Varying(t) => compare(what, t, want, relative),
        }
    }
}

/// Some positions of a row as a batch of their own.
fn rows<I: Input>(t: &Tensor<I, 3>, row: usize, positions: &[usize]) -> Tensor<I, 3> {
    let mut out = Tensor::zeros([1, positions.len(), t.dims[2]], [0, 2, 1], 1, 1);
    each(out.dims, |[_, i, d]| {
        let x = t.view().get([row, positions[i], d]);
        out.view_mut().set([0, i, d], x);
    });
    out
}

/// One state as a batch of its own.
fn one<W: Element>(t: &Tensor<W, 3>, state: usize) -> Tensor<W, 3> {
    let mut out = Tensor::zeros([1, t.dims[1], t.dims[2]], [0, 1, 2], 0, 1);
    each(out.dims, |[_, d, n]| {
        let x = t.view().get([state, d, n]);
        out.view_mut().set([0, d, n], x);
    });
    out
}

/// Which positions belong together.
#[derive(Debug, Clone)]
enum Kind {
    Rows,
    Packed(Vec<i64>),
    Ids(Vec<i32>),
}

/// The gradients.
#[derive(Clone)]
struct Grads<I: Input, W: Weight<Real = I::Accum>> {
    u: Option<Tensor<I, 3>>,
    delta: Option<Tensor<I, 3>>,
    a: Option<Tensor<W, 2>>,
    b: Option<Coef<I, W>>,
    c: Option<Coef<I, W>>,
    skip: Option<Tensor<W::Real, 1>>,
    z: Option<Tensor<I, 3>>,
    bias: Option<Tensor<W::Real, 1>>,
    initial: Option<Tensor<W, 3>>,
}

/// The operands of a scan.
struct Problem<I: Input, W: Weight<Real = I::Accum>> {
    u: Tensor<I, 3>,
    delta: Tensor<I, 3>,
    a: Tensor<W, 2>,
    b: Coef<I, W>,
    c: Coef<I, W>,
    skip: Option<Tensor<W::Real, 1>>,
    z: Option<Tensor<I, 3>>,
    bias: Option<Tensor<W::Real, 1>>,
    initial: Option<Tensor<W, 3>>,
    grad_out: Tensor<I, 3>,
    grad_last: Option<Tensor<W, 3>>,
    kind: Kind,
    options: SelectiveOptions,
}

/// What a case varies besides types.
#[derive(Debug, Clone)]
struct Case {
    /// B, L, D, N.
    dims: [usize; 4],
    groups: [usize; 2],
    /// skip, z, bias, softplus, initial state, gradient of the last state.
    on: [bool; 6],
    rule: Rule,
    carry: Carry,
    kind: Kind,
    /// Which gradients are wanted, a bit each.
    wanted: u32,
    seed: u64,
}

impl Default for Case {
    fn default() -> Self {
        Case {
            dims: [2, 5, 3, 4],
            groups: [1, 1],
            on: [true; 6],
            rule: Rule::Euler,
            carry: Carry::Plain,
            kind: Kind::Rows,
            wanted: 0x1ff,
            seed: 1,
        }
    }
}

impl<I: Input, W: Weight<Real = I::Accum>> Problem<I, W> {
    fn new(case: &Case) -> Self {
        let (draw, dims @ [batch, seqlen, dim, n]) = (&mut Draw(case.seed), case.dims);
        let [skip, gate, bias, delta_softplus, initial, last] = case.on;
        let states = if let Kind::Packed(offsets) = &case.kind { offsets.len() - 1 } else { batch };
        let positions = [batch, seqlen, dim];
        let delta = if delta_softplus { [-4.0, 2.0] } else { [0.0, 1.0] };
        Problem {
            u: Tensor::scattered(draw, positions, -1.0, 1.0),
            delta: Tensor::scattered(draw, positions, delta[0], delta[1]),
            a: Tensor::scattered(draw, [dim, n], -2.0, -0.05),
            b: Coef::draw(draw, dims, case.groups[0]),
            c: Coef::draw(draw, dims, case.groups[1]),
            skip: skip.then(|| Tensor::scattered(draw, [dim], -1.0, 1.0)),
            z: gate.then(|| Tensor::scattered(draw, positions, -4.0, 4.0)),
            bias: bias.then(|| Tensor::scattered(draw, [dim], 0.0, 0.5)),
            initial: initial.then(|| Tensor::scattered(draw, [states, dim, n], -1.0, 1.0)),
            grad_out: Tensor::scattered(draw, positions, -1.0, 1.0),
            grad_last: last.then(|| Tensor::scattered(draw, [states, dim, n], -1.0, 1.0)),
            kind: case.kind.clone(),
            options: SelectiveOptions { delta_softplus, rule: case.rule, carry: case.carry },
        }
    }

    fn wide(&self) -> Problem<f64, W::Wide> {
        Problem {
            u: self.u.cast(),
            delta: self.delta.cast(),
            a: self.a.cast(),
            b: self.b.wide(),
            c: self.c.wide(),
            skip: self.skip.as_ref().map(Tensor::cast),
            z: self.z.as_ref().map(Tensor::cast),
            bias: self.bias.as_ref().map(Tensor::cast),
            initial: self.initial.as_ref().map(Tensor::cast),
            grad_out: self.grad_out.cast(),
            grad_last: self.grad_last.as_ref().map(Tensor::cast),
            kind: self.kind.clone(),
            options: self.options,
        }
    }

    /// Some positions of a row as a batch of their own, with the row's initial state and gradient of the last one where it `starts` and `ends`.
    fn part(&self, row: usize, positions: &[usize], state: usize, [starts, ends]: [bool; 2]) -> Self {
        let rows = |t: &Tensor<I, 3>| rows(t, row, positions);
        Problem {
            u: rows(&self.u),
            delta: rows(&self.delta),
            a: self.a.clone(),
            b: self.b.part(row, positions),
            c: self.c.part(row, positions),
            skip: self.skip.clone(),
            z: self.z.as_ref().map(rows),
            bias: self.bias.clone(),
            initial: self.initial.as_ref().filter(|_| starts).map(|t| one(t, state)),
            grad_out: rows(&self.grad_out),
            grad_last: self.grad_last.as_ref().filter(|_| ends).map(|t| one(t, state)),
            kind: Kind::Rows,
            options: self.options,
        }
    }

    fn run(&self, engine: &impl SelectiveScan<Memory = Host>, wanted: u32, seed: u64) -> Grads<I, W> {
        let draw = &mut Draw(seed);
        let sequences = match &self.kind {
            Kind::Rows => Sequences::Rows,
            Kind::Packed(v) => Sequences::CuSeqlens(View::new(v, [v.len()])),
            Kind::Ids(v) => Sequences::SeqIdx(View::new(v, [self.u.dims[0], self.u.dims[1]])),
        };
        let on = |bit: u32| wanted >> bit & 1 == 1;
        let mut grads = Grads::<I, W> {
            u: on(0).then(|| Tensor::anywhere(draw, self.u.dims)),
            delta: on(1).then(|| Tensor::anywhere(draw, self.u.dims)),
            a: on(2).then(|| Tensor::anywhere(draw, self.a.dims)),
            b: on(3).then(|| self.b.anywhere(draw)),
            c: on(4).then(|| self.c.anywhere(draw)),
            skip: self.skip.as_ref().filter(|_| on(5)).map(|t| Tensor::anywhere(draw, t.dims)),
            z: self.z.as_ref().filter(|_| on(6)).map(|t| Tensor::anywhere(draw, t.dims)),
            bias: self.bias.as_ref().filter(|_| on(7)).map(|t| Tensor::anywhere(draw, t.dims)),
            initial: self.initial.as_ref().filter(|_| on(8)).map(|t| Tensor::anywhere(draw, t.dims)),
        };
        let args = SelectiveBwd {
            inputs: SelectiveInputs {
                u: self.u.view(),
                delta: self.delta.view(),
                A: self.a.view(),
                B: self.b.view(),
                C: self.c.view(),
                D: self.skip.as_ref().map(Tensor::view),
                z: self.z.as_ref().map(Tensor::view),
                delta_bias: self.bias.as_ref().map(Tensor::view),
                initial_state: self.initial.as_ref().map(Tensor::view),
                sequences,
                options: self.options,
            },
            grad_out: self.grad_out.view(),
            grad_last_state: self.grad_last.as_ref().map(Tensor::view),
            grads: SelectiveGrads {
                u: grads.u.as_mut().map(Tensor::view_mut),
                delta: grads.delta.as_mut().map(Tensor::view_mut),
                A: grads.a.as_mut().map(Tensor::view_mut),
                B: grads.b.as_mut().map(Coef::view_mut),
                C: grads.c.as_mut().map(Coef::view_mut),
                D: grads.skip.as_mut().map(Tensor::view_mut),
                z: grads.z.as_mut().map(Tensor::view_mut),
                delta_bias: grads.bias.as_mut().map(Tensor::view_mut),
                initial_state: grads.initial.as_mut().map(Tensor::view_mut),
            },
        };
        let bytes = engine.selective_scan_bwd_workspace::<I, W>(&args.check().unwrap());
        engine.selective_scan_bwd(args, &mut Buffer::new().workspace(bytes)).unwrap();
        grads
    }
}

impl<I: Input, W: Weight<Real = I::Accum>> Grads<I, W> {
    /// Every number, by name.
    fn numbers(&self) -> Vec<(&'static str, Vec<f64>)> {
        let all = [
            ("u", self.u.as_ref().map(Tensor::numbers)),
            ("delta", self.delta.as_ref().map(Tensor::numbers)),
            ("z", self.z.as_ref().map(Tensor::numbers)),
            ("B", self.b.as_ref().map(Coef::numbers)),
            ("C", self.c.as_ref().map(Coef::numbers)),
            ("initial_state", self.initial.as_ref().map(Tensor::numbers)),
            ("A", self.a.as_ref().map(Tensor::numbers)),
            ("D", self.skip.as_ref().map(Tensor::numbers)),
            ("delta_bias", self.bias.as_ref().map(Tensor::numbers)),
        ];
        all.into_iter().filter_map(|(name, numbers)| Some((name, numbers?))).collect()
    }

    fn compare(&self, name: &str, want: &Grads<f64, W::Wide>, relative: f64) {
        let what = |of: &str| format!("∂{of} of {name}");
        fn tensor<T: Element, const R: usize>(got: &Option<Tensor<T, R>>, want: Option<Vec<f64>>, what: String, relative: f64) {
            if let (Some(got), Some(want)) = (got, want) {
                compare(&what, got, &want, relative);
            }
        }
        tensor(&self.u, want.u.as_ref().map(Tensor::numbers), what("u"), relative);
        tensor(&self.delta, want.delta.as_ref().map(Tensor::numbers), what("delta"), relative);
        tensor(&self.z, want.z.as_ref().map(Tensor::numbers), what("z"), relative);
        tensor(&self.a, want.a.as_ref().map(Tensor::numbers), what("A"), relative);
        tensor(&self.skip, want.skip.as_ref().map(Tensor::numbers), what("D"), relative);
        tensor(&self.bias, want.bias.as_ref().map(Tensor::numbers), what("delta_bias"), relative);
        tensor(&self.initial, want.initial.as_ref().map(Tensor::numbers), what("initial_state"), relative);
        for (of, got, want) in [("B", &self.b, &want.b), ("C", &self.c, &want.c)] {
            if let (Some(got), Some(want)) = (got, want) {
                got.compare(&what(of), &want.numbers(), relative);
            }
        }
    }
}

fn engine(regime: Regime) -> Carried {
    let (engine, checked) = interpreter::engine();
    static ENGINES: std::sync::OnceLock<[selective_scan::cuda::Cuda; 2]> = std::sync::OnceLock::new();
    let [walk, split] = ENGINES.get_or_init(|| [Regime::Walk, Regime::Split].map(|r| engine.clone().with_regime(Some(r))));
    Carried::new(if regime == Regime::Walk { walk } else { split }, checked)
}

/// A longest memory of about 40 steps.
const N_EFF: f64 = 40.0;

fn check<I: Input, W: Weight<Real = I::Accum>>(case: &Case) -> Grads<I, W> {
    let name = format!("{} {} {case:?}", I::DTYPE.name(), W::DTYPE.name());
    let problem = Problem::<I, W>::new(case);
    let got = problem.run(&engine(Regime::Walk), case.wanted, 7);
    let want = problem.wide().run(&Naive, case.wanted, 7);
    let relative = match I::DTYPE {
        Dtype::F64 => 1e-13 + 2f64.powi(-53) * N_EFF,
        Dtype::F32 if !Cuda::approximates_decay(I::DTYPE, W::COMPLEX, problem.options) => 2.0 * (2e-6 + 2f64.powi(-24) * N_EFF),
        _ => 2.0 * (2e-6 + 2f64.powi(-22) * N_EFF),
    };
    got.compare(&name, &want, relative);
    got
}

fn every_type(case: &Case) {
    check::<f32, f32>(case);
    check::<f32, C32>(case);
    check::<f64, f64>(case);
    check::<f64, C64>(case);
    check::<f16, f32>(case);
    check::<bf16, f32>(case);
    check::<bf16, C32>(case);
    check::<f16, C32>(case);
}

#[test]
fn mamba() {
    for (i, dims) in [[2, 37, 5, 16], [1, 300, 33, 16], [1, 20, 3, 20], [2, 1, 1, 1], [1, 130, 2, 40]].into_iter().enumerate() {
        let case = Case { dims, seed: 10 + i as u64, ..Case::default() };
        check::<f32, f32>(&case);
        check::<f64, f64>(&case);
        check::<bf16, f32>(&case);
    }
}

#[test]
fn every_option_with_every_type() {
    let rules = [Rule::Euler, Rule::Zoh, Rule::Bilinear];
    for i in 0..24u64 {
        let draw = &mut Draw(900 + i);
        let [b, l, d] = [1 + draw.below(2), [0, 1, 3, 17, 40, 129][draw.below(6)], [1, 2, 4, 6][draw.below(4)]];
        let divisors: Vec<usize> = (0..=d).filter(|&g| g == 0 || d % g == 0).collect();
        let group = |draw: &mut Draw| divisors[draw.below(divisors.len())];
        let case = Case {
            dims: [b, l, d, [1, 2, 5, 16, 17, 33][draw.below(6)]],
            groups: [group(draw), group(draw)],
            on: core::array::from_fn(|_| draw.coin()),
            rule: rules[draw.below(3)],
            carry: if draw.coin() { Carry::Plain } else { Carry::Compensated },
            wanted: if draw.coin() { 0x1ff } else { draw.bits() as u32 & 0x1ff },
            seed: draw.bits(),
            ..Case::default()
        };
        every_type(&case);
    }
}

#[test]
fn many_states_take_several_passes() {
    for (n, seed) in [(64, 1), (128, 2), (130, 3), (256, 4)] {
        let case = Case { dims: [1, 21, 3, n], seed, ..Case::default() };
        check::<f32, f32>(&case);
        check::<f64, f64>(&case);
        check::<bf16, f32>(&case);
    }
}

#[test]
fn repeats_and_regimes_and_batches_give_the_same_bits() {
    let case = Case { dims: [3, 200, 9, 16], groups: [3, 1], ..Case::default() };
    let problem = Problem::<f32, f32>::new(&case);
    let first = problem.run(&engine(Regime::Walk), 0x1ff, 1).numbers();
    assert!(first == problem.run(&engine(Regime::Walk), 0x1ff, 2).numbers(), "a repeat in other layouts");
    assert!(first == problem.run(&engine(Regime::Split), 0x1ff, 1).numbers(), "another regime");
    let positions: Vec<usize> = (0..200).collect();
    for row in 0..3 {
        let alone = problem.part(row, &positions, row, [true, true]).run(&engine(Regime::Walk), 0x1ff, 1);
        same_by_position(&problem.run(&engine(Regime::Walk), 0x1ff, 1), &alone, row, &positions, Some(row));
    }
}

/// Gradients by position, and of the initial state, are those of the part alone.
fn same_by_position<I: Input, W: Weight<Real = I::Accum>>(
    whole: &Grads<I, W>,
    alone: &Grads<I, W>,
    row: usize,
    positions: &[usize],
    state: Option<usize>,
) {
    for (name, whole, alone) in [("u", &whole.u, &alone.u), ("delta", &whole.delta, &alone.delta), ("z", &whole.z, &alone.z)] {
        if let (Some(whole), Some(alone)) = (whole, alone) {
            assert!(rows(whole, row, positions).numbers() == alone.numbers(), "∂{name} of row {row}, positions {positions:?}");
        }
    }
    for (name, whole, alone) in [("B", &whole.b, &alone.b), ("C", &whole.c, &alone.c)] {
        if let (Some(whole @ Coef::Varying(_)), Some(alone)) = (whole, alone) {
            assert!(whole.part(row, positions).numbers() == alone.numbers(), "∂{name} of row {row}, positions {positions:?}");
        }
    }
    if let (Some(whole), Some(alone), Some(state)) = (&whole.initial, &alone.initial, state) {
        assert!(one(whole, state).numbers() == alone.numbers(), "∂initial_state {state}");
    }
}

fn packed<I: Input, W: Weight<Real = I::Accum>>(case: &Case, offsets: &[i64]) {
    let case = Case { kind: Kind::Packed(offsets.to_vec()), ..case.clone() };
    let whole = check::<I, W>(&case);
    let problem = Problem::<I, W>::new(&case);
    for (state, ends) in offsets.windows(2).enumerate() {
        let positions: Vec<usize> = (ends[0] as usize..ends[1] as usize).collect();
        let alone = problem.part(0, &positions, state, [true, true]).run(&engine(Regime::Walk), 0x1ff, 1);
        same_by_position(&whole, &alone, 0, &positions, Some(state));
    }
}

#[test]
fn packed_sequences_are_those_run_alone() {
    let case = Case { dims: [1, 300, 3, 16], ..Case::default() };
    packed::<f32, f32>(&case, &[0, 0, 7, 150, 150, 151, 300]);
    packed::<bf16, f32>(&case, &[0, 128, 256, 300]);
    packed::<f32, f32>(&Case { on: [true, true, true, true, false, false], ..case.clone() }, &[0, 100, 300]);
    packed::<f32, C32>(&Case { dims: [1, 140, 2, 3], rule: Rule::Zoh, ..case.clone() }, &[0, 3, 140]);
    packed::<f32, f32>(&Case { dims: [1, 0, 2, 3], ..case }, &[0, 0]);
}

fn indexed<I: Input, W: Weight<Real = I::Accum>>(case: &Case, ids: Vec<i32>) {
    let case = Case { kind: Kind::Ids(ids.clone()), ..case.clone() };
    let whole = check::<I, W>(&case);
    let problem = Problem::<I, W>::new(&case);
    let [batch, seqlen, ..] = case.dims;
    for row in 0..batch {
        let ids = &ids[row * seqlen..(row + 1) * seqlen];
        let mut sequences: Vec<Vec<usize>> = Vec::new();
        let mut last = None;
        for (t, &id) in ids.iter().enumerate().filter(|(_, id)| **id >= 0) {
            if last != Some(id) {
                sequences.push(Vec::new());
            }
            last = Some(id);
            sequences.last_mut().unwrap().push(t);
        }
        for (i, positions) in sequences.iter().enumerate() {
            let ends = [i == 0, i + 1 == sequences.len()];
            let alone = problem.part(row, positions, row, ends).run(&engine(Regime::Walk), 0x1ff, 1);
            same_by_position(&whole, &alone, row, positions, (i == 0).then_some(row));
        }
    }
}

#[test]
fn ids_mark_sequences_and_padding() {
    let draw = &mut Draw(5);
    // Lengths of sequences; a third of the positions is padding.
    for (i, lengths) in [vec![5, 1, 9], vec![150, 3, 100, 140], vec![20, 128, 128, 2, 2], vec![300], vec![]].into_iter().enumerate() {
        let mut ids = Vec::new();
        for (id, &length) in lengths.iter().enumerate() {
            for _ in 0..length {
                while draw.below(3) == 0 {
                    ids.push(-1 - draw.below(3) as i32);
                }
                ids.push(id as i32 * 2);
            }
        }
        ids.extend([-1, -2]);
        let case =
            Case { dims: [1, ids.len(), 2, 5], groups: [1, 2], on: [true, i % 2 == 0, true, true, i % 2 == 0, i != 1], ..Case::default() };
        indexed::<f32, f32>(&case, ids.clone());
        indexed::<bf16, f32>(&case, ids.clone());
        if i < 2 {
            indexed::<f64, C64>(&Case { rule: Rule::Bilinear, groups: [0, 1], ..case }, ids);
        }
    }
    let case = Case { dims: [2, 6, 3, 16], ..Case::default() };
    indexed::<f32, f32>(&case, vec![0, 0, 0, 1, 1, 2, -1, -1, -1, -1, -1, -1]);
}

#[test]
fn slow_decays_stay_compensated() {
    if super::real("slow_decays_stay_compensated").is_none() {
        return;
    }
    let case = Case { dims: [1, 4096, 64, 16], carry: Carry::Compensated, ..Case::default() };
    check::<f32, f32>(&case);
    let case = Case { dims: [2, 2048, 256, 16], ..Case::default() };
    every_type(&case);
}

#[test]
fn long_sequences_carry_over_many_items() {
    let case = Case { dims: [1, 1300, 2, 3], ..Case::default() };
    check::<f32, f32>(&case);
    check::<f64, C64>(&Case { dims: [1, 700, 1, 2], rule: Rule::Bilinear, ..case.clone() });
    packed::<f32, f32>(&case, &[0, 650, 651, 1300]);
    let ids = (0..1300).map(|t| if t % 11 == 5 { -1 } else { [0, 3, 9][t / 600] }).collect();
    indexed::<f32, f32>(&case, ids);
}

#[test]
fn nothing_crosses_the_start_of_a_sequence() {
    let ids: Vec<i32> = (0..60).map(|t| if t % 7 == 6 { -1 } else { t / 20 }).collect();
    for rule in [Rule::Euler, Rule::Bilinear] {
        for kind in [Kind::Ids(ids.clone()), Kind::Packed(vec![0, 20, 40, 60])] {
            let case = Case { dims: [1, 60, 3, 5], kind, rule, ..Case::default() };
            let clean = Problem::<f32, f32>::new(&case);
            let wanted = 0b1_0101_1011;
            let before = clean.run(&engine(Regime::Walk), wanted, 3);
            for value in [f32::NAN, f32::INFINITY] {
                let mut spoiled = Problem::<f32, f32>::new(&case);
                for d in 0..3 {
                    spoiled.u.view_mut().set([0, 25, d], value);
                    spoiled.delta.view_mut().set([0, 30, d], value);
                    spoiled.grad_out.view_mut().set([0, 38, d], value);
                }
                let after = spoiled.run(&engine(Regime::Walk), wanted, 3);
                for positions in [(0..20).collect::<Vec<_>>(), (40..60).collect()] {
                    let others = |g: &Grads<f32, f32>| [&g.u, &g.delta, &g.z].map(|t| rows(t.as_ref().unwrap(), 0, &positions).numbers());
                    assert!(others(&before) == others(&after), "{case:?}");
                    let shared = |g: &Option<Coef<f32, f32>>| g.as_ref().unwrap().part(0, &positions).numbers();
                    assert!(shared(&before.b) == shared(&after.b) && shared(&before.c) == shared(&after.c), "{case:?}");
                }
                let first = |g: &Grads<f32, f32>| one(g.initial.as_ref().unwrap(), 0).numbers();
                assert!(first(&before) == first(&after), "{case:?}");
                let middle = rows(after.u.as_ref().unwrap(), 0, &(21..33).collect::<Vec<_>>()).numbers();
                assert!(middle.iter().any(|x| !x.is_finite()), "{case:?}: what is spoiled shows");
            }
        }
    }
}

#[test]
fn hostile_sequences_stay_inside() {
    use super::tensor::{LAYOUTS, Tensor, with_workspace};
    use selective_scan::buffer::Workspace;
    use selective_scan::view::Device;

    const DIMS: [usize; 3] = [1, 300, 3];
    let (dim, n) = (DIMS[2], 16);
    let values = |count: usize| (0..count).map(|i| (i % 7) as f32 * 0.25 - 0.5).collect::<Vec<f32>>();
    let layout = LAYOUTS[1];
    let x = Tensor::new(DIMS, layout, &values(300 * dim));
    let a = Tensor::filled([dim, n], layout, -1.0f32);
    let b = Tensor::new([1, 300, 1, n], layout, &values(300 * n));
    let offsets: [[i64; 5]; 4] =
        [[0, 400, 100, 200, 300], [i64::MIN, i64::MAX, 17, -1, 300], [300, 200, 100, 50, 0], [i64::MAX, i64::MAX, 0, 0, i64::MIN]];
    let ids: Vec<i32> = (0..300).map(|i| [5, 0, i32::MIN, i32::MAX, 3, 3][(i * i) % 6]).collect();
    for case in 0..5 {
        let states = if case < 4 { 4 } else { 1 };
        let initial = Tensor::new([states, dim, n], layout, &values(states * dim * n));
        let mut grads: [Tensor<f32, 3>; 2] = core::array::from_fn(|_| Tensor::filled(DIMS, layout, 0.0));
        let (mut shared, mut first) = (Tensor::filled([1, 300, 1, n], layout, 0.0f32), Tensor::filled([states, dim, n], layout, 0.0f32));
        let offsets = Tensor::new([5], layout, &offsets[case.min(3)]);
        let ids = Tensor::new([1, 300], layout, &ids);
        let [u, delta] = &mut grads;
        let args = SelectiveBwd::<f32, f32, Device> {
            inputs: SelectiveInputs {
                u: x.view(),
                delta: x.view(),
                A: a.view(),
                B: Coefficient::Varying(b.view()),
                C: Coefficient::Varying(b.view()),
                D: None,
                z: None,
                delta_bias: None,
                initial_state: Some(initial.view()),
                sequences: if case < 4 { Sequences::CuSeqlens(offsets.view()) } else { Sequences::SeqIdx(ids.view()) },
                options: SelectiveOptions { delta_softplus: true, ..Default::default() },
            },
            grad_out: x.view(),
            grad_last_state: Some(initial.view()),
            grads: SelectiveGrads {
                u: Some(u.view_mut()),
                delta: Some(delta.view_mut()),
                B: Some(CoefficientGrad::Varying(shared.view_mut())),
                initial_state: Some(first.view_mut()),
                ..Default::default()
            },
        };
        let engine = super::engine();
        let bytes = engine.selective_scan_bwd_workspace::<f32, f32>(&args.check().unwrap());
        with_workspace(bytes, |ws: &mut Workspace<'_, Device>| engine.selective_scan_bwd(args, ws)).unwrap();
        engine.synchronize().unwrap();
        // Reading the values back checks what stands between them.
        assert!(grads.iter().all(|g| g.values().len() == 300 * dim) && first.values().len() == states * dim * n);
        assert_eq!(shared.values().len(), 300 * n);
    }
}

#[test]
fn the_slabs_of_a_large_problem_change_no_bit() {
    if super::real("the_slabs_of_a_large_problem_change_no_bit").is_none() {
        return;
    }
    // One block a channel, so that the shares of B and C of two rows do not fit at once.
    let case = Case { dims: [2, 2100, 64, 256], groups: [64, 1], ..Case::default() };
    let problem = Problem::<f32, f32>::new(&case);
    let whole = problem.run(&engine(Regime::Walk), 0x1ff, 1);
    let positions: Vec<usize> = (0..2100).collect();
    let alone = problem.part(1, &positions, 1, [true, true]).run(&engine(Regime::Walk), 0x1ff, 1);
    same_by_position(&whole, &alone, 1, &positions, Some(1));
}

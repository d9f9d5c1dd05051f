//! The forward selective scan against the specification in f64, and the bits that schedules, batches and packings share.

use half::{bf16, f16};
use num_complex::Complex;
use selective_scan::buffer::Buffer;
use selective_scan::cuda::{Cuda, Regime};
use selective_scan::element::{Dtype, Input, Weight};
use selective_scan::naive::Naive;
use selective_scan::ops::Rule;
use selective_scan::selective::{Carry, Coefficient, SelectiveFwd, SelectiveInputs, SelectiveOptions, SelectiveScan};
use selective_scan::sequences::Sequences;
use selective_scan::view::{Host, View};

use super::arrays::{Draw, Tensor, compare, each};
use super::carried::Carried;
use super::{interpreter, is_real};

type C32 = Complex<f32>;
type C64 = Complex<f64>;

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

    fn view(&self) -> Coefficient<'_, I, W> {
        match self {
            Coef::Constant(t) => Coefficient::Constant(t.view()),
            Coef::Varying(t) => Coefficient::Varying(t.view()),
        }
    }

    fn wide(&self) -> Coef<f64, W::Wide> {
        match self {
            Coef::Constant(t) => Coef::Constant(t.cast()),
            Coef::Varying(t) => Coef::Varying(t.cast()),
        }
    }

    /// Positions of one row, as a batch of their own.
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
}

/// Which positions belong together.
#[derive(Debug, Clone)]
enum Kind {
    Rows,
    Packed(Vec<i64>),
    Ids(Vec<i32>),
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
    out: Tensor<I, 3>,
    last: Option<Tensor<W, 3>>,
    kind: Kind,
    options: SelectiveOptions,
}

/// What a case varies besides types.
#[derive(Debug, Clone)]
struct Case {
    /// B, L, D, N.
    dims: [usize; 4],
    groups: [usize; 2],
    /// skip, z, bias, softplus, initial state, last state.
    on: [bool; 6],
    rule: Rule,
    carry: Carry,
    kind: Kind,
    seed: u64,
}

impl Default for Case {
    fn default() -> Self {
        Case { dims: [2, 5, 3, 4], groups: [1, 1], on: [true; 6], rule: Rule::Euler, carry: Carry::Plain, kind: Kind::Rows, seed: 1 }
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
            out: Tensor::anywhere(draw, positions),
            last: last.then(|| Tensor::anywhere(draw, [states, dim, n])),
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
            out: self.out.cast(),
            last: self.last.as_ref().map(Tensor::cast),
            kind: self.kind.clone(),
            options: self.options,
        }
    }

    /// Some positions of a row as a batch of their own, with initial state `state` where there is one and `starts` says so.
    fn part(&self, row: usize, positions: &[usize], state: usize, starts: bool) -> Self {
        let rows = |t: &Tensor<I, 3>| {
            let mut out = Tensor::zeros([1, positions.len(), t.dims[2]], [0, 2, 1], 1, 1);
            each(out.dims, |[_, i, d]| {
                let x = t.view().get([row, positions[i], d]);
                out.view_mut().set([0, i, d], x);
            });
            out
        };
        let one = |t: &Tensor<W, 3>| {
            let mut out = Tensor::zeros([1, t.dims[1], t.dims[2]], [0, 1, 2], 0, 1);
            each(out.dims, |[_, d, n]| {
                let x = t.view().get([state, d, n]);
                out.view_mut().set([0, d, n], x);
            });
            out
        };
        Problem {
            u: rows(&self.u),
            delta: rows(&self.delta),
            a: self.a.clone(),
            b: self.b.part(row, positions),
            c: self.c.part(row, positions),
            skip: self.skip.clone(),
            z: self.z.as_ref().map(rows),
            bias: self.bias.clone(),
            initial: self.initial.as_ref().filter(|_| starts).map(one),
            out: rows(&self.out),
            last: self.last.as_ref().map(one),
            kind: Kind::Rows,
            options: self.options,
        }
    }

    fn run(&mut self, engine: &impl SelectiveScan<Memory = Host>) {
        let sequences = match &self.kind {
            Kind::Rows => Sequences::Rows,
            Kind::Packed(v) => Sequences::CuSeqlens(View::new(v, [v.len()])),
            Kind::Ids(v) => Sequences::SeqIdx(View::new(v, [self.u.dims[0], self.u.dims[1]])),
        };
        let args = SelectiveFwd {
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
            out: self.out.view_mut(),
            last_state: self.last.as_mut().map(Tensor::view_mut),
        };
        let bytes = engine.selective_scan_fwd_workspace::<I, W>(&args.check().unwrap());
        engine.selective_scan_fwd(args, &mut Buffer::new().workspace(bytes)).unwrap();
    }

    /// The bits of the outputs.
    fn results(&self) -> (Vec<f64>, Vec<f64>) {
        (self.out.numbers(), self.last.as_ref().map(Tensor::numbers).unwrap_or_default())
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

fn check<I: Input, W: Weight<Real = I::Accum>>(case: &Case) {
    let name = format!("{} {} {case:?}", I::DTYPE.name(), W::DTYPE.name());
    let mut walked = Problem::<I, W>::new(case);
    let mut want = walked.wide();
    walked.run(&engine(Regime::Walk));
    want.run(&Naive);
    let relative = match I::DTYPE {
        Dtype::F64 => 1e-13 + 2f64.powi(-53) * N_EFF,
        Dtype::F32 if !Cuda::approximates_decay(I::DTYPE, W::COMPLEX, walked.options) => 2e-6 + 2f64.powi(-24) * N_EFF,
        _ => 2e-6 + 2f64.powi(-22) * N_EFF,
    };
    compare(&format!("out of {name}"), &walked.out, &want.out.numbers(), relative);
    if let (Some(got), Some(want)) = (&walked.last, &want.last) {
        compare(&format!("last state of {name}"), got, &want.numbers(), relative);
    }
    let mut split = Problem::<I, W>::new(case);
    split.run(&engine(Regime::Split));
    assert!(walked.results() == split.results(), "{name}: split and walked differ");
}

fn every_type(case: &Case) {
    check::<f32, f32>(case);
    check::<f32, C32>(case);
    check::<f64, f64>(case);
    check::<f64, C64>(case);
    check::<f16, f32>(case);
    check::<f16, C32>(case);
    check::<bf16, f32>(case);
    check::<bf16, C32>(case);
}

const RULES: [Rule; 3] = [Rule::Euler, Rule::Zoh, Rule::Bilinear];

#[test]
fn the_smallest() {
    every_type(&Case::default());
    check::<f32, f32>(&Case { dims: [1, 150, 2, 16], ..Case::default() });
}

#[test]
fn agrees_with_the_specification() {
    let mut draw = Draw(7);
    let sizes = [1usize, 2, 3, 16, 5, 32, 17, 64, 128, 40, 256, 130, 300];
    for (i, n) in sizes.into_iter().enumerate() {
        let dim = [1usize, 2, 6, 33, 12, 4][i % 6].min(if n > 64 { 3 } else { 64 });
        let seqlen = [1usize, 2, 7, 33, 129, 40][(i * 5 + 3) % 6];
        let divisors: Vec<usize> = (0..=dim).filter(|&g| g == 0 || dim.is_multiple_of(g)).collect();
        let groups = [divisors[draw.below(divisors.len())], divisors[draw.below(divisors.len())]];
        let on = core::array::from_fn(|_| draw.coin());
        for rule in if n == 16 || i % 4 == 0 { &RULES[..] } else { &RULES[..1] } {
            let case = Case { dims: [1 + i % 2, seqlen, dim, n], groups, on, rule: *rule, seed: i as u64, ..Case::default() };
            every_type(&case);
        }
    }
}

/// The tiles for B and C that vary: as many states as one has room for, and fewer.
#[test]
fn any_number_of_states() {
    for (i, n) in [1usize, 2, 3, 4, 5, 8, 9, 12, 16, 20, 33, 64, 100, 128, 256].into_iter().enumerate() {
        let dims = [1 + i % 2, [40, 131, 9][i % 3], [2, 5, 12][i % 3], n];
        let on = [true, i % 2 == 0, true, i % 3 > 0, i % 4 < 2, true];
        let case = Case { dims, on, seed: 60 + i as u64, ..Case::default() };
        match i % 3 {
            0 => check::<f32, f32>(&case),
            1 => check::<bf16, f32>(&case),
            _ => check::<f16, f32>(&case),
        }
    }
}

/// Rows whose neighbours in memory are steps or channels, beginning anywhere: the same bits.
#[test]
fn rows_at_any_alignment() {
    fn laid<I: Input>(of: &Tensor<I, 3>, order: [usize; 3], pad: usize) -> Tensor<I, 3> {
        let mut out = Tensor::zeros(of.dims, order, pad, 1);
        each(of.dims, |at| out.view_mut().set(at, of.view().get(at)));
        out
    }
    fn all<I: Input<Accum = f32>>(case: &Case) {
        let mut want = Problem::<I, f32>::new(case);
        want.run(&engine(Regime::Walk));
        for (order, pads) in [([0, 2, 1], [0, 0, 0, 0]), ([0, 2, 1], [0, 1, 2, 3]), ([0, 1, 2], [1, 0, 3, 2]), ([0, 1, 2], [0, 0, 0, 0])] {
            let mut problem = Problem::<I, f32>::new(case);
            problem.u = laid(&problem.u, order, pads[0]);
            problem.delta = laid(&problem.delta, order, pads[1]);
            problem.z = problem.z.map(|z| laid(&z, order, pads[2]));
            problem.out = laid(&problem.out, order, pads[3]);
            if let (Coef::Varying(b), [_, n, _]) = (&problem.b, order) {
                // With time or states as neighbours.
                let mut other = Tensor::zeros(b.dims, if n == 2 { [0, 2, 3, 1] } else { [0, 1, 2, 3] }, pads[0], 1);
                each(b.dims, |at| other.view_mut().set(at, b.view().get(at)));
                problem.b = Coef::Varying(other);
            }
            problem.run(&engine(if pads[0] == 0 { Regime::Walk } else { Regime::Split }));
            assert!(problem.results() == want.results(), "{order:?} {pads:?} {case:?}");
        }
    }
    for (i, (seqlen, dim, n)) in [(97, 5, 16), (131, 66, 16), (96, 64, 16), (67, 33, 64), (33, 17, 128)].into_iter().enumerate() {
        let case = Case { dims: [1 + i % 2, seqlen, dim, n], on: [true, i != 1, true, true, i == 0, true], ..Case::default() };
        all::<bf16>(&case);
        if i != 1 {
            all::<f32>(&case);
        }
    }
}

/// Packed and with ids too, each sequence has the bits that it has alone, whatever kernel takes it.
#[test]
fn few_states_in_any_arrangement() {
    for (i, n) in [1usize, 4, 7, 11, 24].into_iter().enumerate() {
        let on = [i % 2 == 0, true, false, true, i != 1, true];
        let offsets = vec![0i64, 3, 3, 131, 140, 200];
        let case = Case { dims: [1, 200, 3, n], on, seed: 80 + i as u64, ..Case::default() };
        let ids = (0..200).map(|t| if t % 7 == 3 { -1 } else { t / 70 }).collect();
        packed::<f32, f32>(&Case { kind: Kind::Packed(offsets.clone()), ..case.clone() });
        listed::<f32, f32>(&Case { kind: Kind::Ids(ids), ..case.clone() });
        packed::<bf16, f32>(&Case { kind: Kind::Packed(offsets), ..case });
    }
}

#[test]
fn options_by_pairs() {
    for i in 0..16u64 {
        let bit = |k: u64| (i >> k) & 1 == 1;
        let case = Case {
            dims: [2, [20, 131][(i % 2) as usize], 6, 16],
            groups: [[0, 1, 3, 6][i as usize % 4], [2, 0, 6, 1][(i / 4) as usize]],
            on: [bit(0), bit(1), bit(2) ^ bit(0), bit(3), bit(1) ^ bit(3), bit(0) ^ bit(3)],
            rule: RULES[i as usize % 3],
            carry: if i % 5 == 0 { Carry::Compensated } else { Carry::Plain },
            seed: 100 + i,
            ..Case::default()
        };
        match i % 4 {
            0 => check::<f32, f32>(&case),
            1 => check::<bf16, C32>(&case),
            2 => check::<f16, f32>(&case),
            _ => check::<f64, C64>(&case),
        }
        check::<f32, f32>(&Case { rule: Rule::Euler, ..case.clone() });
        check::<f32, C32>(&case);
    }
}

#[test]
fn lengths_around_tiles_and_chunks() {
    for seqlen in [0usize, 1, 3, 4, 5, 31, 32, 33, 127, 128, 129, 256, 257, 300] {
        for on in [[true; 6], [false, false, false, true, false, true]] {
            let case = Case { dims: [1, seqlen, 3, 16], on, seed: seqlen as u64, ..Case::default() };
            check::<f32, f32>(&case);
            if seqlen % 2 == 1 {
                check::<f64, f64>(&case);
                check::<f32, C32>(&Case { rule: Rule::Bilinear, ..case.clone() });
                check::<bf16, f32>(&Case { dims: [1, seqlen, 1, 130], ..case });
            }
        }
    }
}

/// Each sequence of a packed problem alone has the same bits.
fn packed<I: Input, W: Weight<Real = I::Accum>>(case: &Case) {
    let Kind::Packed(offsets) = &case.kind else { panic!("it is packed") };
    check::<I, W>(case);
    let mut whole = Problem::<I, W>::new(case);
    whole.run(&engine(Regime::Split));
    for s in 0..offsets.len() - 1 {
        let positions: Vec<usize> = (offsets[s] as usize..offsets[s + 1] as usize).collect();
        let mut alone = whole.part(0, &positions, s, true);
        alone.run(&engine(if s % 2 == 0 { Regime::Walk } else { Regime::Split }));
        let want = whole.part(0, &positions, s, true);
        assert!(alone.results() == want.results(), "sequence {s} of {case:?}");
    }
}

#[test]
fn packed_sequences() {
    let offsets = vec![0i64, 3, 3, 131, 140, 300, 300];
    for (i, groups) in [[1usize, 1], [0, 3], [3, 0]].into_iter().enumerate() {
        let on = [true, true, false, true, i != 1, true];
        let case = Case { dims: [1, 300, 6, 16], groups, on, kind: Kind::Packed(offsets.clone()), seed: 5, ..Case::default() };
        packed::<f32, f32>(&case);
        packed::<bf16, C32>(&Case { rule: Rule::Zoh, ..case.clone() });
        packed::<f64, f64>(&Case { dims: [1, 300, 3, 5], ..case });
    }
    check::<f32, f32>(&Case { dims: [1, 0, 6, 16], kind: Kind::Packed(vec![0, 0, 0]), ..Case::default() });
    check::<f32, f32>(&Case { dims: [1, 0, 6, 16], kind: Kind::Packed(vec![0]), ..Case::default() });
}

/// Each sequence of a row with ids alone has the same bits.
fn listed<I: Input, W: Weight<Real = I::Accum>>(case: &Case) {
    let Kind::Ids(ids) = &case.kind else { panic!("it has ids") };
    check::<I, W>(case);
    let mut whole = Problem::<I, W>::new(case);
    whole.run(&engine(Regime::Walk));
    let seqlen = case.dims[1];
    for row in 0..case.dims[0] {
        let of = &ids[row * seqlen..(row + 1) * seqlen];
        let mut distinct: Vec<i32> = of.iter().copied().filter(|&x| x >= 0).collect();
        distinct.dedup();
        for (k, &id) in distinct.iter().enumerate() {
            let positions: Vec<usize> = (0..seqlen).filter(|&t| of[t] == id).collect();
            let mut alone = whole.part(row, &positions, row, k == 0);
            alone.run(&engine(if k % 2 == 0 { Regime::Split } else { Regime::Walk }));
            let want = whole.part(row, &positions, row, true).results();
            assert!(alone.results().0 == want.0, "row {row}, id {id} of {case:?}");
            if k + 1 == distinct.len() {
                assert!(alone.results().1 == want.1, "last state of row {row} of {case:?}");
            }
        }
    }
}

#[test]
fn rows_with_ids() {
    let mut draw = Draw(9);
    for (i, longest) in [3usize, 40, 200, 1].into_iter().enumerate() {
        let seqlen = 330;
        let mut ids = Vec::new();
        for row in 0..2 {
            let (mut id, mut left) = (0, draw.below(longest) + 1);
            for _ in 0..seqlen {
                let padding = row == i % 2 && draw.below(3) == 0;
                ids.push(if padding { -1 - draw.below(9) as i32 } else { id });
                left -= usize::from(!padding);
                if left == 0 {
                    (id, left) = (id + 1 + draw.below(2) as i32, draw.below(longest) + 1);
                }
            }
        }
        let on = [true, i % 2 == 0, true, true, i < 2, true];
        let case = Case { dims: [2, seqlen, 3, 16], on, kind: Kind::Ids(ids), seed: 20 + i as u64, ..Case::default() };
        if i < 3 {
            listed::<f32, f32>(&case);
        }
        check::<f64, C64>(&case);
        check::<f16, f32>(&Case { dims: [2, seqlen, 2, 130], rule: Rule::Zoh, ..case });
    }
    // Nothing but padding.
    let kind = Kind::Ids(vec![-1; 20]);
    check::<f32, f32>(&Case { dims: [2, 10, 3, 16], kind: kind.clone(), ..Case::default() });
    check::<f32, f32>(&Case { dims: [2, 10, 3, 130], kind, on: [false, false, false, false, false, true], ..Case::default() });
}

#[test]
fn rows_do_not_depend_on_others_and_repeats_agree() {
    let case = Case { dims: [3, 140, 70, 16], groups: [2, 5], ..Case::default() };
    let mut whole = Problem::<f32, f32>::new(&case);
    let mut again = Problem::<f32, f32>::new(&case);
    whole.run(&engine(Regime::Walk));
    again.run(&engine(Regime::Split));
    assert!(whole.results() == again.results());
    let positions: Vec<usize> = (0..140).collect();
    let mut alone = whole.part(2, &positions, 2, true);
    alone.run(&engine(Regime::Walk));
    assert!(alone.results() == whole.part(2, &positions, 2, true).results());
}

#[test]
fn a_compensated_carry_keeps_slow_decays() {
    let seqlen = if is_real() { 65536 } else { 1500 };
    let mut problem = Problem::<f32, f32>::new(&Case {
        dims: [1, seqlen, 1, 3],
        on: [false, false, false, false, false, true],
        carry: Carry::Compensated,
        ..Case::default()
    });
    problem.a.data.iter_mut().for_each(|x| *x *= 1e-5);
    let mut want = problem.wide();
    problem.run(&engine(Regime::Split));
    want.run(&Naive);
    compare("out", &problem.out, &want.out.numbers(), 2e-6);
    compare("last state", problem.last.as_ref().unwrap(), &want.last.unwrap().numbers(), 2e-6);
}

/// Offsets and ids that mean nothing, where the host cannot see them: nothing outside the operands is touched.
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
    for (i, regime) in [Regime::Walk, Regime::Split].into_iter().enumerate() {
        let engine = super::engine().clone().with_regime(Some(regime));
        for case in 0..5 {
            let states = if case < 4 { 4 } else { 1 };
            let initial = Tensor::new([states, dim, n], layout, &values(states * dim * n));
            let (mut out, mut last) = (Tensor::filled(DIMS, layout, 0.0f32), Tensor::filled([states, dim, n], layout, 0.0f32));
            let offsets = Tensor::new([5], layout, &offsets[case.min(3)]);
            let ids = Tensor::new([1, 300], layout, &ids);
            let args = SelectiveFwd::<f32, f32, Device> {
                inputs: SelectiveInputs {
                    u: x.view(),
                    delta: x.view(),
                    A: a.view(),
                    B: Coefficient::Varying(b.view()),
                    C: Coefficient::Varying(b.view()),
                    D: None,
                    z: None,
                    delta_bias: None,
                    initial_state: (i == 0).then(|| initial.view()),
                    sequences: if case < 4 { Sequences::CuSeqlens(offsets.view()) } else { Sequences::SeqIdx(ids.view()) },
                    options: SelectiveOptions { delta_softplus: true, ..Default::default() },
                },
                out: out.view_mut(),
                last_state: Some(last.view_mut()),
            };
            let bytes = engine.selective_scan_fwd_workspace::<f32, f32>(&args.check().unwrap());
            with_workspace(bytes, |ws: &mut Workspace<'_, Device>| engine.selective_scan_fwd(args, ws)).unwrap();
            engine.synchronize().unwrap();
            assert_eq!((out.values().len(), last.values().len()), (300 * dim, states * dim * n));
        }
    }
}

/// The states that a training forward keeps are those before their steps, in both schedules.
#[test]
fn states_on_the_way_are_kept() {
    use super::tensor::{LAYOUTS, Tensor, with_workspace};
    use selective_scan::buffer::Workspace;
    use selective_scan::view::Device;

    let (dim, n, every, layout) = (3, 16, 32, LAYOUTS[0]);
    let values = |count: usize| (0..count).map(|i| (i % 7) as f32 * 0.25 - 0.5).collect::<Vec<f32>>();
    let a = Tensor::filled([dim, n], layout, -0.7f32);
    let run = |regime: Regime, seqlen: usize| {
        let engine = super::engine().clone().with_regime(Some(regime));
        let x = Tensor::new([1, seqlen, dim], layout, &values(seqlen * dim));
        let b = Tensor::new([1, seqlen, 1, n], layout, &values(seqlen * n));
        let (mut out, mut last) = (Tensor::filled([1, seqlen, dim], layout, 0.0f32), Tensor::filled([1, dim, n], layout, 0.0f32));
        let slots = seqlen.div_ceil(every);
        let mut saved = Tensor::filled([slots, dim, n], layout, 7.0f32);
        let args = SelectiveFwd::<f32, f32, Device> {
            inputs: SelectiveInputs {
                u: x.view(),
                delta: x.view(),
                A: a.view(),
                B: Coefficient::Varying(b.view()),
                C: Coefficient::Varying(b.view()),
                D: None,
                z: None,
                delta_bias: None,
                initial_state: None,
                sequences: Sequences::Rows,
                options: SelectiveOptions { delta_softplus: true, ..Default::default() },
            },
            out: out.view_mut(),
            last_state: Some(last.view_mut()),
        };
        let bytes = engine.selective_scan_fwd_workspace::<f32, f32>(&args.check().unwrap());
        let mut into = saved.view_mut();
        with_workspace(bytes, |ws: &mut Workspace<'_, Device>| engine.selective_scan_fwd_with_states(args, every, &mut into, ws)).unwrap();
        engine.synchronize().unwrap();
        (saved.values(), last.values())
    };
    let (walked, split) = (run(Regime::Walk, 300).0, run(Regime::Split, 300).0);
    assert!(walked == split, "walked and split states differ");
    assert!(walked[..dim * n].iter().all(|&x| x == 0.0));
    for slot in [1usize, 4, 7, 9] {
        let want = run(Regime::Walk, slot * every).1;
        for (x, y) in walked[slot * dim * n..].iter().zip(&want) {
            assert!((x - y).abs() < 1e-5, "slot {slot}: {x}, {y} is right");
        }
    }
}

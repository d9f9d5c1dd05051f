//! The decode step against the specification in f64.

use half::{bf16, f16};
use num_complex::Complex;
use selective_scan::buffer::Buffer;
use selective_scan::element::{Dtype, Element, Input, Weight};
use selective_scan::naive::Naive;
use selective_scan::ops::Rule;
use selective_scan::selective::{Coefficient, SelectiveOptions, SelectiveScan, SelectiveStep};
use selective_scan::view::{Host, View};

use super::arrays::{Draw, Tensor, compare};
use super::carried;

type C32 = Complex<f32>;
type C64 = Complex<f64>;

enum Coef<I: Input, W: Weight<Real = I::Accum>> {
    Constant(Tensor<W, 2>),
    Varying(Tensor<W::Stored<I>, 3>),
}

impl<I: Input, W: Weight<Real = I::Accum>> Coef<I, W> {
    fn draw(draw: &mut Draw, [batch, dim, n]: [usize; 3], groups: usize, near: bool) -> Self {
        match groups {
            0 => Coef::Constant(Tensor::scattered(draw, [dim, n], -1.0, 1.0)),
            groups if near => Coef::Varying(Tensor::random(draw, [batch, groups, n], -1.0, 1.0)),
            groups => Coef::Varying(Tensor::scattered(draw, [batch, groups, n], -1.0, 1.0)),
        }
    }

    fn view(&self) -> Coefficient<'_, I, W, 3> {
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
}

/// The operands of a step.
struct Step<I: Input, W: Weight<Real = I::Accum>, S: Element<Arith = W>> {
    u: Tensor<I, 2>,
    delta: Tensor<I, 2>,
    a: Tensor<W, 2>,
    b: Coef<I, W>,
    c: Coef<I, W>,
    skip: Option<Tensor<W::Real, 1>>,
    z: Option<Tensor<I, 2>>,
    bias: Option<Tensor<W::Real, 1>>,
    state: Tensor<S, 3>,
    slots: Option<Vec<i32>>,
    out: Tensor<I, 2>,
    options: SelectiveOptions,
}

/// What a case varies besides types.
#[derive(Debug, Clone, Copy)]
struct Case {
    dims: [usize; 3],
    groups: [usize; 2],
    /// skip, z, bias, softplus, slots.
    on: [bool; 5],
    rule: Rule,
    /// The state's axes from the slowest to the fastest, or a random layout.
    order: Option<[usize; 3]>,
    seed: u64,
}

impl<I: Input, W: Weight<Real = I::Accum>, S: Element<Arith = W>> Step<I, W, S> {
    fn new(case: Case) -> Self {
        let (mut draw, dims @ [batch, dim, n]) = (Draw(case.seed), case.dims);
        let [skip, gate, bias, delta_softplus, slotted] = case.on;
        let draw = &mut draw;
        let count = if slotted { batch + 2 } else { batch };
        let state = match case.order {
            Some(order) => Tensor::zeros([count, dim, n], order, 0, 1).filled(draw, -1.0, 1.0),
            None => Tensor::scattered(draw, [count, dim, n], -1.0, 1.0),
        };
        // A contiguous state comes with contiguous A, B and C.
        let near = case.order == Some([0, 1, 2]);
        let a = if near { Tensor::random(draw, [dim, n], -3.0, -0.05) } else { Tensor::scattered(draw, [dim, n], -3.0, -0.05) };
        Step {
            u: Tensor::scattered(draw, [batch, dim], -1.0, 1.0),
            delta: if delta_softplus {
                Tensor::scattered(draw, [batch, dim], -4.0, 2.0)
            } else {
                Tensor::scattered(draw, [batch, dim], 0.0, 1.0)
            },
            a,
            b: Coef::draw(draw, dims, case.groups[0], near),
            c: Coef::draw(draw, dims, case.groups[1], near),
            skip: skip.then(|| Tensor::scattered(draw, [dim], -1.0, 1.0)),
            z: gate.then(|| Tensor::scattered(draw, [batch, dim], -4.0, 4.0)),
            bias: bias.then(|| Tensor::scattered(draw, [dim], 0.0, 0.5)),
            state,
            slots: slotted.then(|| (0..batch).map(|b| if b % 3 == 1 { -1 - b as i32 } else { (batch + 1 - b) as i32 }).collect()),
            out: Tensor::anywhere(draw, [batch, dim]),
            options: SelectiveOptions { delta_softplus, rule: case.rule, ..Default::default() },
        }
    }

    fn wide(&self) -> Step<f64, W::Wide, W::Wide> {
        Step {
            u: self.u.cast(),
            delta: self.delta.cast(),
            a: self.a.cast(),
            b: self.b.wide(),
            c: self.c.wide(),
            skip: self.skip.as_ref().map(Tensor::cast),
            z: self.z.as_ref().map(Tensor::cast),
            bias: self.bias.as_ref().map(Tensor::cast),
            state: self.state.cast(),
            slots: self.slots.clone(),
            out: self.out.cast(),
            options: self.options,
        }
    }

    fn run(&mut self, engine: &impl SelectiveScan<Memory = Host>) {
        let args = SelectiveStep {
            u: self.u.view(),
            delta: self.delta.view(),
            A: self.a.view(),
            B: self.b.view(),
            C: self.c.view(),
            D: self.skip.as_ref().map(Tensor::view),
            z: self.z.as_ref().map(Tensor::view),
            delta_bias: self.bias.as_ref().map(Tensor::view),
            state: self.state.view_mut(),
            slots: self.slots.as_ref().map(|s| View::new(s, [s.len()])),
            out: self.out.view_mut(),
            options: self.options,
        };
        let bytes = engine.selective_state_update_workspace::<I, W>(&args.check().unwrap());
        engine.selective_state_update(args, &mut Buffer::new().workspace(bytes)).unwrap();
    }
}

fn check<I: Input, W: Weight<Real = I::Accum>, S: Element<Arith = W>>(case: Case) {
    let name = format!("{} {} {} {case:?}", I::DTYPE.name(), W::DTYPE.name(), S::DTYPE.name());
    let mut step = Step::<I, W, S>::new(case);
    let mut want = step.wide();
    step.run(&carried());
    want.run(&Naive);
    let relative = if I::DTYPE == Dtype::F64 { 2e-13 } else { 2e-6 + 2f64.powi(-22) };
    compare(&format!("state of {name}"), &step.state, &want.state.numbers(), relative);
    compare(&format!("out of {name}"), &step.out, &want.out.numbers(), relative);
    let mut again = Step::<I, W, S>::new(case);
    again.run(&carried());
    assert_eq!((step.out.numbers(), step.state.numbers()), (again.out.numbers(), again.state.numbers()), "{name}");
}

fn every_type(case: Case) {
    check::<f32, f32, f32>(case);
    check::<f32, f32, bf16>(case);
    check::<f32, C32, C32>(case);
    check::<f32, C32, Complex<f16>>(case);
    check::<f64, f64, f64>(case);
    check::<f64, C64, C64>(case);
    check::<f16, f32, f16>(case);
    check::<f16, f32, f32>(case);
    check::<f16, C32, Complex<f16>>(case);
    check::<bf16, f32, bf16>(case);
    check::<bf16, f32, f16>(case);
    check::<bf16, C32, C32>(case);
    check::<bf16, C32, Complex<bf16>>(case);
}

const RULES: [Rule; 3] = [Rule::Euler, Rule::Zoh, Rule::Bilinear];

#[test]
fn agrees_with_the_specification() {
    let mut draw = Draw(7);
    let orders = [Some([0, 1, 2]), Some([0, 2, 1]), None];
    for (i, n) in [1usize, 2, 3, 4, 5, 8, 15, 16, 31, 64, 130, 257].into_iter().enumerate() {
        let dim = [1usize, 2, 6, 33, 12, 40][i % 6];
        let divisors: Vec<usize> = (0..=dim).filter(|&g| g == 0 || dim.is_multiple_of(g)).collect();
        let groups = [divisors[draw.below(divisors.len())], divisors[draw.below(divisors.len())]];
        let on = core::array::from_fn(|_| draw.coin());
        let case = Case { dims: [1 + i % 3, dim, n], groups, on, rule: RULES[(i / 2) % 3], order: orders[i % 3], seed: i as u64 };
        every_type(case);
    }
}

#[test]
fn options_by_pairs() {
    for i in 0..16u64 {
        let bit = |k: u64| (i >> k) & 1 == 1;
        let case = Case {
            dims: [3, 6, 16],
            groups: [[0, 1, 3, 6][i as usize % 4], [2, 0, 6, 1][(i / 4) as usize]],
            on: [bit(0), bit(1), bit(2) ^ bit(0), bit(3), bit(1) ^ bit(3)],
            rule: RULES[i as usize % 3],
            order: if bit(2) { Some([0, 1, 2]) } else { Some([1, 0, 2]) },
            seed: 100 + i,
        };
        check::<f32, f32, f32>(case);
        check::<bf16, C32, Complex<bf16>>(case);
        check::<f16, f32, f32>(case);
        check::<f64, C64, C64>(case);
    }
}

/// The states turned so that channels are neighbours.
fn turned<I: Input, S: Element<Arith = f32>>(case: Case) -> Step<I, f32, S>
where
    f32: Weight<Real = I::Accum>,
{
    let mut step = Step::<I, f32, S>::new(case);
    let dims = step.state.view().dims();
    let mut state = Tensor::<S, 3>::zeros(dims, [2, 0, 1], 3, 1);
    super::arrays::each(dims, |i| state.view_mut().set(i, step.state.view().get(i)));
    step.state = state;
    step
}

/// Four rows a thread, with every number of lanes a channel and rows that are no multiple of four, against the general kernel.
fn rows_by_fours<I: Input, S: Element<Arith = f32>>()
where
    f32: Weight<Real = I::Accum>,
{
    for (i, n) in [8usize, 16, 24, 60, 128].into_iter().enumerate() {
        let on = core::array::from_fn(|bit| (0b10110 + 11 * i) >> bit & 1 == 1);
        let groups = [[1, 6], [2, 1], [3, 2]][i % 3];
        let case = Case { dims: [[5, 8, 1, 6, 3][i], 6, n], groups, on, rule: Rule::Euler, order: Some([0, 1, 2]), seed: 40 + i as u64 };
        check::<I, f32, S>(case);
        let (mut step, mut other) = (Step::<I, f32, S>::new(case), turned::<I, S>(case));
        step.run(&carried());
        other.run(&carried());
        assert_eq!((step.out.numbers(), step.state.numbers()), (other.out.numbers(), other.state.numbers()), "{case:?}");
    }
}

#[test]
fn four_rows_at_once_have_the_bits_of_one() {
    rows_by_fours::<f32, f32>();
    rows_by_fours::<f32, f16>();
    rows_by_fours::<f16, bf16>();
    rows_by_fours::<f16, f16>();
    rows_by_fours::<bf16, f32>();
    rows_by_fours::<bf16, bf16>();
}

#[test]
fn layouts_have_the_same_bits_and_rows_do_not_depend_on_others() {
    let case =
        Case { dims: [3, 20, 24], groups: [4, 0], on: [true, true, true, true, false], rule: Rule::Zoh, order: Some([0, 1, 2]), seed: 3 };
    let mut whole = Step::<f32, f32, f32>::new(case);
    let mut turned = turned::<f32, f32>(case);
    whole.run(&carried());
    turned.run(&carried());
    assert_eq!(whole.out.numbers(), turned.out.numbers());
    assert_eq!(whole.state.numbers(), turned.state.numbers());
    // The last row alone.
    let mut one = Step::<f32, f32, f32>::new(case);
    let last = |t: &Tensor<f32, 2>| {
        let mut row = Tensor::<f32, 2>::zeros([1, 20], [0, 1], 0, 1);
        (0..20).for_each(|d| row.view_mut().set([0, d], t.view().get([2, d])));
        row
    };
    (one.u, one.delta, one.z, one.out) = (last(&one.u), last(&one.delta), one.z.as_ref().map(last), last(&one.out));
    if let Coef::Varying(b) = &one.b {
        let mut row = Tensor::<f32, 3>::zeros([1, 4, 24], [0, 1, 2], 0, 1);
        super::arrays::each([1, 4, 24], |[_, g, n]| row.view_mut().set([0, g, n], b.view().get([2, g, n])));
        one.b = Coef::Varying(row);
    }
    let mut row = Tensor::<f32, 3>::zeros([1, 20, 24], [0, 1, 2], 0, 1);
    super::arrays::each([1, 20, 24], |[_, d, n]| row.view_mut().set([0, d, n], one.state.view().get([2, d, n])));
    one.state = row;
    one.run(&carried());
    assert_eq!(one.out.numbers(), whole.out.numbers()[40..]);
    assert_eq!(one.state.numbers(), whole.state.numbers()[2 * 20 * 24..]);
}

#[test]
fn slots_that_there_are_not_touch_nothing() {
    strange_slots(6);
    strange_slots(8);
}

fn strange_slots(n: usize) {
    let (engine, dim) = (super::engine(), 5usize);
    let ones = |len: usize| engine.upload(&vec![1.0f32; len]).unwrap();
    let (u, a, b) = (ones(4 * dim), ones(dim * n), ones(4 * n));
    let (mut state, mut out) = (ones(2 * dim * n), ones(4 * dim));
    let slots = engine.upload(&[i32::MIN, 2, i32::MAX, 1]).unwrap();
    let args = SelectiveStep {
        u: u.view([4, dim]),
        delta: u.view([4, dim]),
        A: a.view([dim, n]),
        B: Coefficient::Varying(b.view([4, 1, n])),
        C: Coefficient::Varying(b.view([4, 1, n])),
        D: None,
        z: None,
        delta_bias: None,
        state: state.view_mut([2, dim, n]),
        slots: Some(slots.view([4])),
        out: out.view_mut([4, dim]),
        options: SelectiveOptions::default(),
    };
    engine.selective_state_update(args, &mut engine.buffer::<u8>(0).unwrap().workspace()).unwrap();
    let (state, out) = (state.to_vec().unwrap(), out.to_vec().unwrap());
    assert!(state[..dim * n].iter().all(|&x| x == 1.0) && state[dim * n..].iter().all(|&x| x > 3.0));
    assert!(out[..3 * dim].iter().all(|&x| x == 1.0) && out[3 * dim..].iter().all(|&x| x > 20.0));
}

//! Layer 1 against the specification in f64, in every layout and regime.

use half::{bf16, f16};
use num_complex::Complex;
use selective_scan::buffer::Buffer;
use selective_scan::cuda::Regime;
use selective_scan::element::{Element, Weight};
use selective_scan::naive::{Naive, scan_n_eff};
use selective_scan::scan::{Scan, ScanBwd, ScanFwd};
use selective_scan::view::Host;

use super::arrays::{Draw, Tensor, compare};
use super::carried::Carried;
use super::{carried, engine, is_real};

type Wide<E> = <<E as Element>::Arith as Weight>::Wide;

/// Types by which `f::<E>` is called.
macro_rules! for_types {
    ($f:ident($($arg:expr),*)) => {
        $f::<f32>($($arg),*);
        $f::<f64>($($arg),*);
        $f::<f16>($($arg),*);
        $f::<bf16>($($arg),*);
        $f::<Complex<f32>>($($arg),*);
        $f::<Complex<f64>>($($arg),*);
        $f::<Complex<f16>>($($arg),*);
        $f::<Complex<bf16>>($($arg),*);
    };
}

/// How the tensors of a case lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lay {
    /// Channels contiguous.
    Channels,
    /// Time contiguous.
    Time,
    /// Time contiguous, rows that do not start at multiples of anything.
    Ragged,
    /// Each tensor in a layout of its own.
    Any,
}

const LAYS: [Lay; 4] = [Lay::Channels, Lay::Time, Lay::Ragged, Lay::Any];

impl Lay {
    fn zeros<E: Element, const R: usize>(self, draw: &mut Draw, dims: [usize; R]) -> Tensor<E, R> {
        let mut order = core::array::from_fn(|i| i);
        if R == 3 && self != Lay::Channels {
            order.swap(1, 2);
        }
        match self {
            Lay::Channels | Lay::Time => Tensor::zeros(dims, order, 0, 1),
            Lay::Ragged => Tensor::zeros(dims, order, 3, 1),
            Lay::Any => Tensor::anywhere(draw, dims),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Case {
    dims: [usize; 3],
    lay: Lay,
    reverse: bool,
    initial: bool,
    /// The last state and its gradient.
    last: bool,
    /// Decay: |a| stays below this.
    decay: f64,
    seed: u64,
}

/// Operands and results of both directions.
#[derive(Debug, Clone)]
struct Problem<E: Element> {
    case: Case,
    a: Tensor<E, 3>,
    b: Tensor<E, 3>,
    initial: Option<Tensor<E::Arith, 2>>,
    g: Tensor<E, 3>,
    g_last: Option<Tensor<E::Arith, 2>>,
    h: Tensor<E, 3>,
    last: Option<Tensor<E::Arith, 2>>,
    ga: Option<Tensor<E, 3>>,
    gb: Option<Tensor<E, 3>>,
    g_initial: Option<Tensor<E::Arith, 2>>,
}

impl<E: Element> Problem<E> {
    fn new(case: Case) -> Self {
        let dims @ [batch, _, dim] = case.dims;
        let (mut draw, mut places) = (Draw(case.seed), Draw(case.seed + 99));
        let (draw, places) = (&mut draw, &mut places);
        let state = [batch, dim];
        // Complex numbers have two parts.
        let (low, high) = if E::Arith::COMPLEX { (-0.7, 0.7 * case.decay) } else { (case.decay - 0.4, case.decay) };
        let a = Tensor::random(draw, dims, low, high);
        let (b, g) = (Tensor::random(draw, dims, -1.0, 1.0), Tensor::random(draw, dims, -1.0, 1.0));
        let (initial, g_last) = (Tensor::random(draw, state, -1.0, 1.0), Tensor::random(draw, state, -1.0, 1.0));
        let lay = case.lay;
        Problem {
            case,
            a: moved(&a, lay.zeros(places, dims)),
            b: moved(&b, lay.zeros(places, dims)),
            initial: case.initial.then(|| moved(&initial, lay.zeros(places, state))),
            g: moved(&g, lay.zeros(places, dims)),
            g_last: case.last.then(|| moved(&g_last, lay.zeros(places, state))),
            h: lay.zeros(places, dims),
            last: case.last.then(|| lay.zeros(places, state)),
            ga: (case.seed % 5 != 1).then(|| lay.zeros(places, dims)),
            gb: (case.seed % 5 != 2).then(|| lay.zeros(places, dims)),
            g_initial: case.initial.then(|| lay.zeros(places, state)),
        }
    }

    fn wide(&self) -> Problem<Wide<E>> {
        Problem {
            case: self.case,
            a: self.a.cast(),
            b: self.b.cast(),
            initial: self.initial.as_ref().map(Tensor::cast),
            g: self.g.cast(),
            g_last: self.g_last.as_ref().map(Tensor::cast),
            h: self.h.cast(),
            last: self.last.as_ref().map(Tensor::cast),
            ga: self.ga.as_ref().map(Tensor::cast),
            gb: self.gb.as_ref().map(Tensor::cast),
            g_initial: self.g_initial.as_ref().map(Tensor::cast),
        }
    }

    fn forward(&mut self, engine: &impl Scan<Memory = Host>) {
        let args = ScanFwd {
            a: self.a.view(),
            b: self.b.view(),
            initial_state: self.initial.as_ref().map(Tensor::view),
            h: self.h.view_mut(),
            last_state: self.last.as_mut().map(Tensor::view_mut),
            reverse: self.case.reverse,
        };
        let mut buffer = Buffer::new();
        let bytes = engine.scan_fwd_workspace::<E>(args.check().expect("well formed"));
        engine.scan_fwd(args, &mut buffer.workspace(bytes)).unwrap_or_else(|why| panic!("{:?}: {why}", self.case));
    }

    fn backward(&mut self, engine: &impl Scan<Memory = Host>) {
        let args = ScanBwd {
            a: self.a.view(),
            b: self.b.view(),
            initial_state: self.initial.as_ref().map(Tensor::view),
            grad_h: self.g.view(),
            grad_last_state: self.g_last.as_ref().map(Tensor::view),
            grad_a: self.ga.as_mut().map(Tensor::view_mut),
            grad_b: self.gb.as_mut().map(Tensor::view_mut),
            grad_initial_state: self.g_initial.as_mut().map(Tensor::view_mut),
            reverse: self.case.reverse,
        };
        let mut buffer = Buffer::new();
        let bytes = engine.scan_bwd_workspace::<E>(args.check().expect("well formed"));
        engine.scan_bwd(args, &mut buffer.workspace(bytes)).unwrap_or_else(|why| panic!("{:?}: {why}", self.case));
    }

    fn run(mut self, engine: &impl Scan<Memory = Host>) -> Self {
        self.forward(engine);
        self.backward(engine);
        self
    }

    /// Every result's bits, in logical order.
    fn bits(&self) -> Vec<u64> {
        let mut all = self.h.numbers();
        [&self.ga, &self.gb].into_iter().flatten().for_each(|t| all.extend(t.numbers()));
        [&self.last, &self.g_initial].into_iter().flatten().for_each(|t| all.extend(t.numbers()));
        all.into_iter().map(f64::to_bits).collect()
    }
}

/// The numbers of one tensor in the layout of another.
fn moved<E: Element, const R: usize>(from: &Tensor<E, R>, mut to: Tensor<E, R>) -> Tensor<E, R> {
    super::arrays::each(from.dims, |i| to.view_mut().set(i, from.view().get(i)));
    to
}

/// The engine with its scans run in one way.
fn with(regime: Regime) -> Carried {
    Carried::new(Box::leak(Box::new(engine().clone().with_regime(Some(regime)))), !is_real())
}

fn check<E: Element>(case: Case, engine: &Carried) {
    let problem = Problem::<E>::new(case);
    let want = problem.wide().run(&Naive);
    let got = problem.run(engine);
    let wide = got.a.cast::<Wide<E>>();
    let n_eff = scan_n_eff(wide.view(), case.reverse).expect("a view");
    let unit = if matches!(E::DTYPE, selective_scan::element::Dtype::F64 | selective_scan::element::Dtype::C64) {
        2f64.powi(-53)
    } else {
        2f64.powi(-24)
    };
    let base = if unit < 1e-10 { 1e-13 } else { 2e-6 };
    let bound = base + unit * n_eff;
    let name = |what: &str| format!("{what} of {} {case:?}", E::DTYPE.name());
    compare(&name("h"), &got.h, &want.h.numbers(), bound);
    let two = |got: &Option<Tensor<E, 3>>, want: &Option<Tensor<Wide<E>, 3>>, what: &str| {
        if let (Some(got), Some(want)) = (got, want) {
            compare(&name(what), got, &want.numbers(), 2.0 * bound);
        }
    };
    two(&got.ga, &want.ga, "grad_a");
    two(&got.gb, &want.gb, "grad_b");
    for (got, want, what) in [(&got.last, &want.last, "last_state"), (&got.g_initial, &want.g_initial, "grad_initial_state")] {
        if let (Some(got), Some(want)) = (got, want) {
            compare(&name(what), got, &want.numbers(), 2.0 * bound);
        }
    }
}

#[test]
fn every_option_at_every_size() {
    let sizes = [
        [0, 5, 3],
        [2, 0, 3],
        [2, 4, 0],
        [1, 1, 1],
        [2, 9, 5],
        [1, 255, 2],
        [2, 256, 1],
        [1, 257, 18],
        [1, 520, 3],
        [1, 1100, 2],
        [3, 40, 33],
        [1, 1536, 1],
    ];
    let mut seed = 0;
    for dims in sizes {
        for (i, lay) in LAYS.into_iter().enumerate() {
            let bit = |n: usize| (seed as usize + i * 3) >> n & 1 == 1;
            let case = Case { dims, lay, reverse: bit(0), initial: bit(1), last: bit(2), decay: 1.0, seed };
            let engine = if bit(0) ^ bit(2) { with(Regime::Split) } else { with(Regime::Walk) };
            for_types!(check(case, &engine));
            seed += 1;
        }
    }
}

#[test]
fn slow_decays_and_growth_stay_within_the_bound() {
    for (decay, seqlen) in [(1.39, 40), (1.0, 3000), (0.0, 700)] {
        let case = Case { dims: [1, seqlen, 2], lay: Lay::Time, reverse: false, initial: true, last: true, decay, seed: 5 };
        check::<f32>(case, &carried());
        check::<f64>(case, &carried());
        check::<Complex<f32>>(case, &carried());
    }
    // Nearly no decay at all: n_eff is close to L.
    let case = Case { dims: [1, 3000, 1], lay: Lay::Time, reverse: false, initial: false, last: true, decay: 1.0, seed: 6 };
    let mut problem = Problem::<f32>::new(case);
    problem.a.data.iter_mut().for_each(|a| *a = 1.0 - (1.0 - *a) * 1e-4);
    let want = problem.wide().run(&Naive);
    let got = problem.run(&carried());
    let bound = 2e-6 + 2f64.powi(-24) * 2900.0;
    compare("h", &got.h, &want.h.numbers(), bound);
    compare("grad_b", got.gb.as_ref().expect("asked for"), &want.gb.expect("asked for").numbers(), 2.0 * bound);
}

fn same_bits<E: Element>(dims: [usize; 3], reverse: bool, initial: bool) {
    let case = Case { dims, lay: Lay::Time, reverse, initial, last: true, decay: 1.0, seed: 10 + dims[1] as u64 / 5 * 5 };
    let want = Problem::<E>::new(case).run(&with(Regime::Walk)).bits();
    for lay in LAYS {
        for engine in [with(Regime::Walk), with(Regime::Split), carried()] {
            let got = Problem::<E>::new(Case { lay, ..case }).run(&engine).bits();
            assert!(got == want, "{} {case:?} in {lay:?}, {:?}", E::DTYPE.name(), engine.engine);
        }
    }
}

#[test]
fn layout_and_regime_change_no_bit() {
    for (dims, reverse, initial) in [([1, 1300, 3], false, true), ([2, 610, 2], true, false), ([1, 256, 18], true, true)] {
        for_types!(same_bits(dims, reverse, initial));
    }
}

#[test]
fn the_rest_of_the_batch_changes_no_bit() {
    let case = Case { dims: [3, 700, 5], lay: Lay::Time, reverse: false, initial: true, last: true, decay: 1.0, seed: 3 };
    let all = Problem::<f32>::new(case).run(&carried());
    let mut one = Problem::<f32>::new(Case { dims: [1, 700, 1], ..case });
    for t in 0..700 {
        let pairs = [(&all.a, &mut one.a), (&all.b, &mut one.b), (&all.g, &mut one.g)];
        pairs.into_iter().for_each(|(from, to)| to.view_mut().set([0, t, 0], from.view().get([2, t, 3])));
    }
    let states = [(&all.initial, &mut one.initial), (&all.g_last, &mut one.g_last)];
    for (from, to) in states {
        let value = from.as_ref().expect("asked for").view().get([2, 3]);
        to.as_mut().expect("asked for").view_mut().set([0, 0], value);
    }
    let one = one.run(&with(Regime::Split));
    for t in 0..700 {
        assert_eq!(all.h.view().get([2, t, 3]).to_bits(), one.h.view().get([0, t, 0]).to_bits());
        let grad = |p: &Problem<f32>, i| [&p.ga, &p.gb].map(|g| g.as_ref().expect("asked for").view().get(i).to_bits());
        assert_eq!(grad(&all, [2, t, 3]), grad(&one, [0, t, 0]));
    }
}

/// With one number replaced, in either regime: which outputs are finite.
fn spoiled(initial: bool, change: impl Fn(&mut Problem<f32>)) -> Vec<Problem<f32>> {
    let case = Case { dims: [1, 600, 1], lay: Lay::Time, reverse: false, initial, last: true, decay: 1.0, seed: 8 };
    let run = |engine: Carried, lay| {
        let mut problem = Problem::new(Case { lay, ..case });
        change(&mut problem);
        problem.forward(&engine);
        problem
    };
    vec![run(with(Regime::Walk), Lay::Time), run(with(Regime::Split), Lay::Channels)]
}

#[test]
fn non_finite_numbers_spoil_everything_after_them_and_nothing_before() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in [0, 1, 7, 8, 255, 256, 300] {
            for in_a in [false, true] {
                for problem in spoiled(true, |p| {
                    let t = if in_a { &mut p.a } else { &mut p.b };
                    t.view_mut().set([0, at, 0], value);
                    (at + 1..600).for_each(|t| p.a.view_mut().set([0, t, 0], if t % 3 == 0 { 0.0 } else { 1e-20 }));
                }) {
                    for t in 0..600 {
                        let h = problem.h.view().get([0, t, 0]);
                        assert_eq!(h.is_finite(), t < at, "{value} at {at} of {}: h[{t}] = {h}", if in_a { "a" } else { "b" });
                    }
                }
            }
        }
    }
}

#[test]
fn the_first_a_is_not_read_and_resets_are_exact() {
    for first in [f32::NAN, f32::INFINITY, 0.5] {
        for problem in spoiled(false, |p| {
            p.a.view_mut().set([0, 0, 0], first);
            p.a.view_mut().set([0, 270, 0], 0.0);
            p.b.view_mut().set([0, 269, 0], 1e30);
        }) {
            assert_eq!(problem.h.view().get([0, 0, 0]), problem.b.view().get([0, 0, 0]));
            assert_eq!(problem.h.view().get([0, 270, 0]), problem.b.view().get([0, 270, 0]));
            assert!(problem.h.numbers().iter().all(|x| x.is_finite()));
        }
    }
}

//! The linear recurrence (layer 1): its calls in any storage type, and its option grid.

use selective_scan::Error;
use selective_scan::buffer::Buffer;
use selective_scan::element::{Dtype, Element, Input, Weight};
use selective_scan::naive::{Naive, scan_n_eff};
use selective_scan::scan::{ScanBwd, ScanFwd};

use super::array::Array;
use super::draws::accum;
use super::pairs::{Draw, Options};
use super::selective::{found, given, typed};
use super::tensor::{Layout, Tensor};
use super::{Engine, Faults, Found, LAYOUTS, Role, STORAGE, agree, carried_by, refused};
use selective_scan::cuda::Regime;

/// A recurrence and its upstream gradients.
#[derive(Debug, Clone)]
pub struct Problem {
    pub a: Array,
    pub b: Array,
    pub h0: Option<Array>,
    pub grad_h: Array,
    pub grad_last: Option<Array>,
    pub reverse: bool,
    pub last: bool,
    /// Whether only the gradient of a is asked for.
    pub only_a: bool,
}

impl Problem {
    fn n_eff(&self) -> f64 {
        fn of<E: Element>(problem: &Problem) -> f64 {
            scan_n_eff(Tensor::<E, 3>::from(&problem.a, Layout::Contiguous).view(), problem.reverse).expect("the operands agree")
        }
        if self.a.complex { of::<num_complex::Complex<f64>>(self) } else { of::<f64>(self) }
    }

    /// Row `b` alone.
    pub fn row(&self, b: usize) -> Self {
        let take = |x: &Array| x.take(&[b]);
        let (h0, grad_last) = (self.h0.as_ref().map(take), self.grad_last.as_ref().map(take));
        Problem { a: take(&self.a), b: take(&self.b), h0, grad_h: take(&self.grad_h), grad_last, ..self.clone() }
    }
}

/// Forward and backward. a, b and h are stored as `I`, or as pairs of it.
fn run<E: Engine, I: Input, W: Weight<Real = I::Accum>>(engine: &E, of: &Problem, layout: Layout) -> Result<Vec<Found>, Error> {
    stored::<E, W::Stored<I>>(engine, of, layout)
}

fn stored<E: Engine, S: Element>(engine: &E, of: &Problem, layout: Layout) -> Result<Vec<Found>, Error> {
    let (a, b) = (Tensor::<S, 3>::from(&of.a, layout), Tensor::<S, 3>::from(&of.b, layout));
    let (h0, grad_last) = (given::<S::Arith, 2>(&of.h0, layout), given::<S::Arith, 2>(&of.grad_last, layout));
    let grad_h = Tensor::<S, 3>::from(&of.grad_h, layout);
    let dims @ [batch, _, dim] = a.view().dims();
    let mut h = Tensor::<S, 3>::marked(dims, layout);
    let mut last = of.last.then(|| Tensor::<S::Arith, 2>::marked([batch, dim], layout));
    let args = ScanFwd {
        a: a.view(),
        b: b.view(),
        initial_state: h0.as_ref().map(Tensor::view),
        h: h.view_mut(),
        last_state: last.as_mut().map(Tensor::view_mut),
        reverse: of.reverse,
    };
    let bytes = engine.scan_fwd_workspace::<S>(args.check()?);
    engine.scan_fwd(args, &mut Buffer::new().workspace(bytes))?;
    let (mut grad_a, mut grad_b) = (Tensor::<S, 3>::marked(dims, layout), (!of.only_a).then(|| Tensor::<S, 3>::marked(dims, layout)));
    let mut grad_h0 = (h0.is_some() && !of.only_a).then(|| Tensor::<S::Arith, 2>::marked([batch, dim], layout));
    let args = ScanBwd {
        a: a.view(),
        b: b.view(),
        initial_state: h0.as_ref().map(Tensor::view),
        grad_h: grad_h.view(),
        grad_last_state: grad_last.as_ref().map(Tensor::view),
        grad_a: Some(grad_a.view_mut()),
        grad_b: grad_b.as_mut().map(Tensor::view_mut),
        grad_initial_state: grad_h0.as_mut().map(Tensor::view_mut),
        reverse: of.reverse,
    };
    let bytes = engine.scan_bwd_workspace::<S>(args.check()?);
    engine.scan_bwd(args, &mut Buffer::new().workspace(bytes))?;
    let mut results = vec![found("h", &h, Role::Positions), found("grad.a", &grad_a, Role::Positions)];
    results.extend(last.iter().map(|t| found("last_state", t, Role::States)));
    results.extend(grad_b.iter().map(|t| found("grad.b", t, Role::Positions)));
    results.extend(grad_h0.iter().map(|t| found("grad.h0", t, Role::States)));
    Ok(results)
}

/// The same in a storage type.
pub fn run_in<E: Engine>(engine: &E, dtype: Dtype, of: &Problem, layout: Layout) -> Result<Vec<Found>, Error> {
    typed!(dtype, of.a.complex, run(engine, of, layout))
}

const LENGTHS: [usize; 9] = [0, 1, 2, 31, 127, 128, 129, 300, 1000];
const CHANNELS: [usize; 5] = [1, 2, 37, 64, 130];
const BATCHES: [usize; 3] = [1, 0, 3];
/// Storage, complex, reverse, initial state, last state, its gradient, layout, L, D, B, regime, only ∂a, size of a.
const VALUES: [usize; 13] = [4, 2, 2, 2, 2, 2, 4, 9, 5, 3, 2, 2, 3];

#[derive(Debug, Clone)]
struct Row {
    storage: Dtype,
    layout: Layout,
    sizes: [usize; 3],
    regime: Regime,
    /// Complex, reverse, initial state, last state, its gradient, only ∂a.
    flags: [bool; 6],
    /// Largest |a|, about.
    most: f64,
    seed: u64,
}

impl Row {
    fn new(v: &[usize], seed: u64) -> Self {
        Row {
            storage: STORAGE[v[0]],
            layout: LAYOUTS[v[6]],
            sizes: [BATCHES[v[9]], LENGTHS[v[7]], CHANNELS[v[8]]],
            regime: if v[10] == 0 { Regime::Walk } else { Regime::Split },
            flags: [1, 2, 3, 4, 5, 11].map(|option| v[option] == 1),
            most: [0.7, 0.99, 0.1][v[12]],
            seed,
        }
    }

    fn problem(&self) -> Problem {
        let [complex, reverse, initial, last, grad_last, only_a] = self.flags;
        let (mut draw, storage, dims @ [batch, _, dim]) = (Draw(self.seed), self.storage, self.sizes);
        let most = if complex { self.most / 2f64.sqrt() } else { self.most };
        let mut a = draw.array(&dims, complex, storage, -0.2 * most, most);
        // Resets.
        a.data.chunks_mut(if complex { 2 } else { 1 }).filter(|_| draw.unit() < 0.02).for_each(|x| x.fill(0.0));
        Problem {
            a,
            b: draw.array(&dims, complex, storage, -1.0, 1.0),
            h0: initial.then(|| draw.array(&[batch, dim], complex, accum(storage), -1.0, 1.0)),
            grad_h: draw.array(&dims, complex, storage, -1.0, 1.0),
            grad_last: grad_last.then(|| draw.array(&[batch, dim], complex, accum(storage), -1.0, 1.0)),
            reverse,
            last,
            only_a,
        }
    }
}

fn check<E: Engine>(engine: &E, row: &Row) -> Result<(), String> {
    let of = row.problem();
    let whole = Problem { last: true, only_a: false, ..of.clone() };
    let want = run_in(&Naive, Dtype::F64, &whole, Layout::Contiguous).expect("the operands are right");
    let got = run_in(engine, row.storage, &of, row.layout).map_err(refused)?;
    agree(&got, &want, &want, of.n_eff())
}

fn rows(seed: u64) -> Vec<Row> {
    let options = Options { values: &VALUES, may: &|_| true };
    let table = options.table(seed);
    let (_, impossible, absent) = options.missing(&table);
    assert!(impossible == 0 && absent.is_empty(), "every pair occurs");
    table.iter().enumerate().map(|(i, v)| Row::new(v, (seed << 32) + i as u64)).collect()
}

#[test]
fn recurrences_agree_over_the_whole_grid() {
    let mut faults = Faults::default();
    for row in (1..if crate::is_real() { 10 } else { 2 }).flat_map(rows) {
        faults.case(&|| format!("{row:?}"), || check(&carried_by(row.regime), &row));
    }
    faults.none();
}

#[test]
fn the_specification_passes_the_grid_of_recurrences() {
    let mut faults = Faults::default();
    for row in rows(7) {
        faults.case(&|| format!("{row:?}"), || check(&Naive, &row));
    }
    faults.none();
}

//! The whole option grid of the selective scan: forward, backward and step.

use half::{bf16, f16};
use num_complex::Complex;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use selective_scan::Error;
use selective_scan::cuda::{Cuda, Regime};
use selective_scan::element::{Dtype, Element, Input, Weight};
use selective_scan::naive::Naive;
use selective_scan::ops::Rule;
use selective_scan::selective::{Carry, SelectiveOptions};

use super::array::Array;
use super::compare::Bound;
use super::draws::{accum, rounded};
use super::pairs::{Draw, Options, Partial};
use super::selective::{Problem, Wanted, backward_in, forward_in, step, typed};
use super::sequences::{ORDERS, Order, padding};
use super::tensor::Layout;
use super::transform::Packing;
use super::{Engine, FEW, Faults, Found, LAYOUTS, Role, STORAGE, carried_by, close, largest, named, refused, same_bits};

const RULES: [Rule; 3] = [Rule::Euler, Rule::Zoh, Rule::Bilinear];
const WANTED: [Wanted; 4] = [Wanted::All, Wanted::Parameters, Wanted::Positions, Wanted::Delta];

/// B or C of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Constant,
    OneGroup,
    Groups,
}
const KINDS: [Kind; 3] = [Kind::Constant, Kind::OneGroup, Kind::Groups];

/// The slots of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slots {
    None,
    /// One more than there are rows, rows in reverse order.
    Reversed,
    /// As before, and the first row is skipped.
    Skipping,
}
const SLOTS: [Slots; 3] = [Slots::None, Slots::Reversed, Slots::Skipping];

/// How a step's states are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stored {
    Wide,
    F16,
    Bf16,
}
const STORED: [Stored; 3] = [Stored::Wide, Stored::F16, Stored::Bf16];

const STATES: [usize; 9] = [1, 3, 16, 32, 64, 128, 256, 5, 300];
const LENGTHS: [usize; 9] = [0, 1, 2, 31, 127, 128, 129, 257, 300];
const CHANNELS: [usize; 6] = [1, 2, 37, 64, 65, 130];
const BATCHES: [usize; 3] = [1, 0, 3];

/// The options, and how many values each has.
const VALUES: [usize; 23] = [4, 2, 3, 3, 3, 2, 2, 2, 2, 2, 2, 2, 5, 4, 9, 9, 6, 3, 2, 2, 4, 3, 3];

/// A row of the table.
#[derive(Debug, Clone)]
struct Row {
    storage: Dtype,
    complex: bool,
    rule: Rule,
    kinds: [Kind; 2],
    skip: bool,
    gate: bool,
    bias: bool,
    softplus: bool,
    initial: bool,
    last: bool,
    grad_last: bool,
    order: Order,
    layout: Layout,
    /// B, L, D, N.
    sizes: [usize; 4],
    regime: Regime,
    carry: Carry,
    wanted: Wanted,
    slots: Slots,
    stored: Stored,
    seed: u64,
}

impl Row {
    fn new(v: &[usize], seed: u64) -> Self {
        Row {
            storage: STORAGE[v[0]],
            complex: v[1] == 1,
            rule: RULES[v[2]],
            kinds: [KINDS[v[3]], KINDS[v[4]]],
            skip: v[5] == 1,
            gate: v[6] == 1,
            bias: v[7] == 1,
            softplus: v[8] == 1,
            initial: v[9] == 1,
            last: v[10] == 1,
            grad_last: v[11] == 1,
            order: ORDERS[v[12]],
            layout: LAYOUTS[v[13]],
            sizes: [BATCHES[v[17]], LENGTHS[v[15]], CHANNELS[v[16]], STATES[v[14]]],
            regime: if v[18] == 0 { Regime::Walk } else { Regime::Split },
            carry: if v[19] == 0 { Carry::Plain } else { Carry::Compensated },
            wanted: WANTED[v[20]],
            slots: SLOTS[v[21]],
            stored: STORED[v[22]],
            seed,
        }
    }

    /// Groups of B or C.
    fn groups(&self, which: usize) -> Option<usize> {
        let dim = self.sizes[2];
        match (self.kinds[which], which) {
            (Kind::Constant, _) => None,
            (Kind::OneGroup, _) => Some(1),
            // Of B as many as can be, of C as few.
            (Kind::Groups, 0) => (2..dim).rev().find(|g| dim.is_multiple_of(*g)).or(Some(dim)),
            (Kind::Groups, _) => (2..=dim).find(|g| dim.is_multiple_of(*g)),
        }
    }

    /// Random numbers of the row's types.
    fn problem(&self) -> Problem {
        let ([batch, seqlen, dim, dstate], complex, storage) = (self.sizes, self.complex, self.storage);
        let mut draw = Draw(self.seed);
        let (accum, positions) = (accum(storage), [batch, seqlen, dim]);
        let packing = self.order.packing([batch, seqlen], &mut draw);
        let states = if let Packing::CuSeqlens(offsets) = &packing { offsets.len() - 1 } else { batch };
        // Every third problem remembers long.
        let slow = if draw.below(3) == 0 { 0.02 } else { 1.0 };
        let mut A = draw.array(&[dim, dstate], complex, accum, -2.0 * slow, -0.05 * slow);
        if complex {
            A.data.iter_mut().skip(1).step_by(2).for_each(|im| *im *= 3.0);
            A.data.iter_mut().for_each(|x| *x = rounded(accum, *x));
        }
        let coefficient = |which, draw: &mut Draw| match self.groups(which) {
            None => draw.array(&[dim, dstate], complex, accum, -1.0, 1.0),
            Some(groups) => draw.array(&[batch, seqlen, groups, dstate], complex, storage, -1.0, 1.0),
        };
        let (B, C) = (coefficient(0, &mut draw), coefficient(1, &mut draw));
        let [low, high] = if self.softplus { [-3.0, 2.0] } else { [0.01, 1.0] };
        let state = [states, dim, dstate];
        let options = SelectiveOptions { delta_softplus: self.softplus, rule: self.rule, carry: self.carry };
        Problem {
            u: draw.array(&positions, false, storage, -1.0, 1.0),
            delta: draw.array(&positions, false, storage, low, high),
            A,
            B,
            C,
            D: self.skip.then(|| draw.array(&[dim], false, accum, -1.0, 1.0)),
            z: self.gate.then(|| draw.array(&positions, false, storage, -3.0, 3.0)),
            delta_bias: self.bias.then(|| draw.array(&[dim], false, accum, 0.0, 0.5)),
            h0: self.initial.then(|| draw.array(&state, complex, accum, -1.0, 1.0)),
            grad_out: draw.array(&positions, false, storage, -1.0, 1.0),
            grad_last: self.grad_last.then(|| draw.array(&state, complex, accum, -1.0, 1.0)),
            packing,
            options,
            last: self.last,
            wanted: self.wanted,
        }
    }
}

/// NaN in everything that is padding: whoever reads it shows it.
fn spoiled_padding(mut of: Problem) -> Problem {
    let all = [Some(&mut of.u), Some(&mut of.delta), of.z.as_mut(), Some(&mut of.grad_out)];
    let varying = [&mut of.B, &mut of.C].into_iter().filter(|x| x.dims.len() == 4);
    padding(&of.packing, all.into_iter().flatten().chain(varying));
    of
}

/// The scale of the terms of gradients that are summed over the batch and time, which may cancel: the largest of a few partial sums.
fn terms(of: &Problem) -> Vec<(&'static str, f64)> {
    let mut scales: Vec<(&'static str, f64)> = Vec::new();
    for part in 0..8 {
        let (mut masked, mut draw) = (of.clone(), Draw(part));
        for gradient in [Some(&mut masked.grad_out), masked.grad_last.as_mut()].into_iter().flatten() {
            gradient.data.iter_mut().filter(|_| draw.unit() < 0.5).for_each(|g| *g = 0.0);
        }
        for found in masked.reference().into_iter().filter(|r| r.role == Role::Shared) {
            match scales.iter_mut().find(|(n, _)| *n == found.name) {
                Some((_, scale)) => *scale = scale.max(largest(&found.array)),
                None => scales.push((found.name, largest(&found.array))),
            }
        }
    }
    let few = absolute(of).reference().into_iter().filter(|r| r.role != Role::Shared && r.array.data.len() < FEW);
    scales.extend(few.map(|r| (r.name, largest(&r.array))));
    scales
}

/// The same problem with the absolute value of every factor but A and the gate: its results are the scale of the terms of the other's.
fn absolute(of: &Problem) -> Problem {
    let all = |x: &Array| {
        let width = 1 + usize::from(x.complex);
        let modulus = |x: &[f64]| x.iter().fold(0.0f64, |sum, x| sum.hypot(*x));
        let data = x.data.chunks(width).flat_map(|x| [modulus(x), 0.0].into_iter().take(width)).collect();
        Array { data, ..x.clone() }
    };
    let maybe = |x: &Option<Array>| x.as_ref().map(all);
    let (D, h0, grad_last) = (maybe(&of.D), maybe(&of.h0), maybe(&of.grad_last));
    Problem { u: all(&of.u), B: all(&of.B), C: all(&of.C), D, h0, grad_out: all(&of.grad_out), grad_last, ..of.clone() }
}

/// Forward or backward on an engine against the specification in f64, from the same stored numbers.
fn agrees<E: Engine>(engine: &E, storage: Dtype, of: &Problem, layout: Layout, call: Call) -> Result<(), String> {
    let whole = Problem { last: true, wanted: Wanted::All, ..of.clone() };
    let (want, scales) = (whole.reference(), terms(&whole));
    // A compensated carry does not add up roundings.
    let narrow = of.options.carry == Carry::Compensated && storage != Dtype::F64;
    // In f32 an approximated decay errs by 2⁻²² a step, not 2⁻²⁴.
    let approximate = storage == Dtype::F32 && Cuda::approximates_decay(storage, of.complex(), of.options);
    let n_eff = if narrow { 0.0 } else { of.n_eff() * if approximate { 4.0 } else { 1.0 } };
    let mut wrong = Vec::new();
    let got = if call == Call::Forward { forward_in(engine, storage, of, layout) } else { backward_in(engine, storage, of, layout) };
    for found in got.map_err(refused)? {
        let scale = scales.iter().find(|(n, _)| *n == found.name).map_or(0.0, |(_, s)| *s);
        let bound = Bound::new(found.dtype, n_eff, found.name.starts_with("grad.")).of_terms(scale);
        wrong.extend(close(&found, &named(&want, found.name).array.data, bound).err());
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
}

/// The same as one step, from states as they are stored.
struct OneStep<'a> {
    of: &'a Problem,
    t: usize,
    states: Array,
    slots: Option<Vec<i32>>,
    layout: Layout,
}

impl OneStep<'_> {
    fn run<E: Engine, I: Input, W: Weight<Real = I::Accum>, S: Element<Arith = W>>(&self, engine: &E) -> Result<Vec<Found>, Error> {
        step::<E, I, W, S>(engine, self.of, self.t, &self.states, self.slots.as_deref(), self.layout)
    }

    /// How large the terms of out are.
    fn scale(&self) -> f64 {
        let (of, states) = (absolute(self.of), absolute(&Problem { h0: Some(self.states.clone()), ..self.of.clone() }).h0);
        let states = states.expect("it is there");
        let mut one = OneStep { of: &of, states, slots: self.slots.clone(), ..*self };
        if let Some(slots) = &mut one.slots {
            // What a skipped row keeps is no term.
            slots.iter_mut().filter(|s| **s < 0).for_each(|s| *s = of.u.dims[0] as i32);
        }
        largest(&one.reference()[0].array)
    }

    fn reference(&self) -> Vec<Found> {
        let done = if self.of.complex() {
            self.run::<Naive, f64, Complex<f64>, Complex<f64>>(&Naive)
        } else {
            self.run::<Naive, f64, f64, f64>(&Naive)
        };
        done.expect("the operands are right")
    }
}

/// Every storage type of a state.
fn step_as<E: Engine, I: Input, W: Weight<Real = I::Accum>>(engine: &E, one: &OneStep<'_>, stored: Stored) -> Result<Vec<Found>, Error> {
    // A type of states beside this type of inputs, where it is one.
    macro_rules! narrow {
        ($real:ty) => {
            match (I::DTYPE, W::COMPLEX) {
                (Dtype::F32, false) => one.run::<E, f32, f32, $real>(engine),
                (Dtype::F16, false) => one.run::<E, f16, f32, $real>(engine),
                (Dtype::Bf16, false) => one.run::<E, bf16, f32, $real>(engine),
                (Dtype::F32, true) => one.run::<E, f32, Complex<f32>, Complex<$real>>(engine),
                (Dtype::F16, true) => one.run::<E, f16, Complex<f32>, Complex<$real>>(engine),
                (Dtype::Bf16, true) => one.run::<E, bf16, Complex<f32>, Complex<$real>>(engine),
                (other, _) => panic!("states of 16 bits beside {other:?}"),
            }
        };
    }
    match stored {
        Stored::Wide => one.run::<E, I, W, W>(engine),
        Stored::F16 => narrow!(f16),
        Stored::Bf16 => narrow!(bf16),
    }
}

/// One step of a row's problem on an engine against the specification.
fn step_agrees<E: Engine>(engine: &E, row: &Row, of: &Problem) -> Result<(), String> {
    let [batch, seqlen, dim, dstate] = row.sizes;
    if seqlen == 0 {
        return Ok(());
    }
    let held = if row.slots == Slots::None { batch } else { batch + 1 };
    let dtype = match row.stored {
        Stored::Wide => accum(row.storage),
        Stored::F16 => Dtype::F16,
        Stored::Bf16 => Dtype::Bf16,
    };
    let mut slots: Vec<i32> = (0..batch).map(|b| (batch - b) as i32).collect();
    if let (Slots::Skipping, Some(first)) = (row.slots, slots.first_mut()) {
        *first = -3;
    }
    let states = Draw(row.seed + 1).array(&[held, dim, dstate], row.complex, dtype, -1.0, 1.0);
    let kept: Vec<usize> = (0..batch).filter(|&b| row.slots == Slots::None || slots[b] >= 0).collect();
    let skipped: Vec<usize> = (0..batch).filter(|b| !kept.contains(b)).collect();
    let one = OneStep { of, t: seqlen / 2, states, slots: (row.slots != Slots::None).then_some(slots), layout: row.layout };
    let (storage, complex) = (row.storage, row.complex);
    let mut got = typed!(storage, complex, step_as(engine, &one, row.stored)).map_err(refused)?;
    let mut want = one.reference();
    // A row without a slot keeps what it had.
    let blank = Found { array: got[0].array.take(&skipped), ..got[0].clone() };
    same_bits(&blank, &want[0].array.take(&skipped)).map_err(|why| format!("a skipped row's {why}"))?;
    for results in [&mut got, &mut want] {
        results[0].array = results[0].array.take(&kept);
    }
    for (found, want) in got.iter().zip(&want) {
        let narrow = matches!(found.dtype, Dtype::F16 | Dtype::Cf16 | Dtype::Bf16 | Dtype::Cbf16);
        let bound = if narrow { Bound::one_step(found.dtype) } else { Bound::new(found.dtype, 1.0, false) };
        let scale = if found.role == Role::Positions && found.array.data.len() < FEW { one.scale() } else { 0.0 };
        close(found, &want.array.data, bound.of_terms(scale)).map_err(|why| format!("step: {why}"))?;
    }
    Ok(())
}

/// A problem with every option, one row after another.
pub fn plain(sizes @ [_, _, dim, _]: [usize; 4], storage: Dtype, complex: bool, rule: Rule) -> Problem {
    let kinds = if dim > 1 { [Kind::Groups; 2] } else { [Kind::OneGroup; 2] };
    let mut row = Row::new(&[0; VALUES.len()], dim as u64);
    (row.skip, row.gate, row.bias, row.softplus) = (true, true, true, true);
    (row.initial, row.last, row.grad_last) = (true, true, true);
    let mut of = Row { storage, complex, rule, kinds, sizes, ..row }.problem();
    if kinds[0] == Kind::Groups && dim == 6 {
        // As many groups of B as of C.
        let [batch, seqlen, _, dstate] = sizes;
        of.B = Draw(3).array(&[batch, seqlen, 2, dstate], complex, storage, -1.0, 1.0);
    }
    of
}

/// One position with every option.
pub fn one_step(storage: Dtype, complex: bool, dstate: usize) -> Problem {
    plain([3, 1, 9, dstate], storage, complex, Rule::Zoh)
}

/// Batches of three rows with all results, of every kind.
pub fn batches() -> Vec<(Dtype, Problem)> {
    let (most, step) = if crate::is_real() { (LARGE, 1) } else { (SMALL / 4, 4) };
    let three = |row: Row| {
        let [_, seqlen, dim, dstate] = row.sizes;
        Row { order: Order::Rows, sizes: [3, seqlen, dim, dstate], last: true, wanted: Wanted::All, ..row }
    };
    let fits = |row: &Row| (1..=most).contains(&row.sizes.iter().product());
    let rows = rows(SMALL, 5).into_iter().map(three).filter(fits).step_by(step);
    rows.map(|row| (row.storage, row.problem())).collect()
}

/// What is asked of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Forward,
    Backward,
    Step,
}
const CALLS: [Call; 3] = [Call::Forward, Call::Backward, Call::Step];

fn check<E: Engine>(engine: &E, row: &Row, call: Call) -> Result<(), String> {
    let of = row.problem();
    if call == Call::Step { step_agrees(engine, row, &of) } else { agrees(engine, row.storage, &spoiled_padding(of), row.layout, call) }
}

/// Which rows there can be: at most so many B·L·D·N.
fn may(row: &Partial, most: usize) -> bool {
    let value = |option: usize, of: &[usize]| row[option].map_or(1, |v| of[v].max(1));
    let size = value(14, &STATES) * value(15, &LENGTHS) * value(16, &CHANNELS) * value(17, &BATCHES);
    let packed = row[12].is_some_and(|v| ORDERS[v] == Order::CuSeqlens);
    let grouped = [3, 4].iter().any(|&o| row[o].is_some_and(|v| KINDS[v] == Kind::Groups));
    let single = row[16].is_some_and(|v| CHANNELS[v] == 1);
    let several = row[17].is_some_and(|v| BATCHES[v] != 1);
    let double = row[0].is_some_and(|v| STORAGE[v] == Dtype::F64);
    let narrow = row[22].is_some_and(|v| STORED[v] != Stored::Wide);
    size <= most && !(packed && several) && !(grouped && single) && !(double && narrow)
}

/// B·L·D·N at most, where kernels are interpreted.
const SMALL: usize = 100_000;
/// The same on a GPU: what bounds it is the specification.
const LARGE: usize = 400_000;

fn rows(most: usize, seed: u64) -> Vec<Row> {
    let table = Options { values: &VALUES, may: &|row| may(row, most) }.table(seed);
    table.iter().enumerate().map(|(i, v)| Row::new(v, (seed << 32) + i as u64)).collect()
}

#[test]
fn every_pair_of_options_occurs() {
    let options = Options { values: &VALUES, may: &|row| may(row, SMALL) };
    let table = options.table(1);
    let (pairs, impossible, absent) = options.missing(&table);
    assert!(absent.is_empty(), "{absent:?}");
    // Packed rows are one row (2), groups want channels (2), f64 has no 16-bit states (2).
    assert_eq!(impossible, 6);
    println!("{pairs} pairs in {} rows", table.len());
    assert!((81..=150).contains(&table.len()), "{} rows", table.len());
}

fn over_the_whole_grid(call: Call) {
    let mut faults = Faults::default();
    let (most, seeds) = if crate::is_real() { (LARGE, 1..4) } else { (SMALL, 1..2) };
    for row in seeds.flat_map(|seed| rows(most, seed)) {
        faults.case(&|| format!("{call:?} {row:?}"), || check(&carried_by(row.regime), &row, call));
    }
    faults.none();
}

#[test]
fn forward_calls_agree_over_the_whole_grid() {
    over_the_whole_grid(Call::Forward);
}

#[test]
fn backward_calls_agree_over_the_whole_grid() {
    over_the_whole_grid(Call::Backward);
}

#[test]
fn steps_agree_over_the_whole_grid() {
    over_the_whole_grid(Call::Step);
}

/// Rows of options drawn at random, in any combination.
#[test]
fn the_engine_agrees_on_random_problems() {
    let cases = if crate::is_real() { 200 } else { 12 };
    let most = if crate::is_real() { LARGE } else { SMALL / 8 };
    let config = Config { cases, max_shrink_iters: 64, failure_persistence: None, rng_seed: RngSeed::Fixed(0), ..Config::default() };
    let options: Vec<_> = VALUES.iter().map(|&count| 0..count).collect();
    let strategy =
        (options, any::<u64>()).prop_filter("sizes that fit", move |(v, _)| may(&v.iter().map(|&v| Some(v)).collect::<Vec<_>>(), most));
    let run = |(v, seed): (Vec<usize>, u64)| {
        let row = Row::new(&v, seed >> 1);
        let each = |call| check(&carried_by(row.regime), &row, call).map_err(|why| TestCaseError::fail(format!("{call:?} {row:?}: {why}")));
        CALLS.into_iter().try_for_each(each)
    };
    TestRunner::new(config).run(&strategy, run).unwrap_or_else(|why| panic!("{why}"));
}

/// The specification itself passes in every type, so what is asked can be met.
#[test]
fn the_specification_passes_its_own_grid() {
    let mut faults = Faults::default();
    for row in &rows(SMALL / 4, 9) {
        for call in CALLS {
            faults.case(&|| format!("{call:?} {row:?}"), || check(&Naive, row, call));
        }
    }
    faults.none();
}

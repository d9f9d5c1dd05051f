//! One operator's problem, and everything that is done with it on one engine in one storage type.

use std::time::Instant;

use half::{bf16, f16};
use num_complex::Complex;
use selective_scan::Error;
use selective_scan::element::{Dtype, Input, Weight};

use super::array::Array;
use super::compare::{Bound, compare, compare_bits};
use super::engines::{Entry, HostEngine, Visit};
use super::report::Findings;
use super::tensor::Layout;
use super::transform::{Packing, Transform};

/// What the first axes of a result mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// (B, L, …).
    Positions,
    /// One entry a state.
    States,
    /// A sum over the batch and time.
    Shared,
}

/// One result, named as in the case file.
#[derive(Debug, Clone)]
pub struct Named {
    pub name: String,
    pub array: Array,
    pub dtype: Dtype,
    pub role: Role,
}

impl Named {
    fn bound(&self, n_eff: f64) -> Bound {
        Bound::new(self.dtype, n_eff, self.name.starts_with("grad."))
    }
}

/// A case's results by name.
pub type Reference = Vec<(String, Array)>;

/// Finds a result by name.
pub fn named<'a>(results: &'a [Named], name: &str) -> &'a Named {
    results.iter().find(|r| r.name == name).expect("every run has the same results")
}

/// A case that can be run: what `check` prints and the golden test asserts.
pub trait Check {
    /// The storage types that it admits, widest first.
    fn dtypes(&self) -> &'static [Dtype] {
        &DTYPES
    }

    /// Everything on one engine in one storage type. An `Err` is the engine's own, about the operands.
    fn on(&self, entry: &Entry, dtype: Dtype) -> Result<Findings, Error>;

    /// What the results are compared with.
    fn reference_mut(&mut self) -> &mut Reference;
}

/// A problem of one operator, in f64.
pub trait Operation: Sized {
    /// The name of the result by position.
    const OUT: &'static str;
    /// The name of the state after the last position.
    const STATE: &'static str;

    /// Whether its states or coefficients are complex.
    fn complex(&self) -> bool;
    /// How many steps the decay remembers.
    fn n_eff(&self) -> f64;
    /// The same as the bound has it: times the units of 2⁻²⁴ that a step in f32 may err by there.
    fn n_eff_on(&self, _entry: &Entry, _dtype: Dtype) -> f64 {
        self.n_eff()
    }
    /// B and L.
    fn sizes(&self) -> [usize; 2];
    /// Which positions belong together; None where the operator knows no sequences.
    fn packing(&self) -> Option<&Packing>;
    /// Whether time is walked from the end.
    fn reverse(&self) -> bool;
    /// Whether there is an initial state or a gradient of the last one.
    fn has_states(&self) -> bool;
    /// The same problem arranged in another way.
    fn transform(&self, by: &Transform) -> Self;
    /// The same problem with another initial state.
    fn with_initial(&self, state: Array) -> Self;
    /// Forward and backward: every output and every gradient.
    fn run<E: HostEngine, I: Input, W: Weight<Real = I::Accum>>(&self, engine: &E, layout: Layout) -> Result<Vec<Named>, Error>;
    /// Only the output by position and the last state.
    fn forward<E: HostEngine, I: Input, W: Weight<Real = I::Accum>>(&self, engine: &E, layout: Layout) -> Result<Vec<Named>, Error>;
    /// The same two, one decode step after another; nothing where the operator has no step.
    fn steps<E: HostEngine, I: Input, W: Weight<Real = I::Accum>>(&self, engine: &E) -> Result<Vec<Named>, Error>;
    /// Single steps whose state is stored in 16 bits, from `state`, against f64 from the same stored state.
    fn narrow_steps<E: HostEngine, I: Input, W: Weight<Real = I::Accum>>(
        &self,
        engine: &E,
        state: &Array,
        findings: &mut Findings,
    ) -> Result<(), Error>;
}

/// One way of calling an operator.
#[derive(Debug, Clone, Copy)]
pub enum Call<'a> {
    /// Forward and backward: every output and every gradient.
    Run(Layout),
    /// Only the output by position and the last state.
    Forward(Layout),
    /// The same two, one decode step after another; nothing where the operator has no step.
    Steps,
    /// Single steps from this state, stored in 16 bits. The results are findings already.
    NarrowSteps(&'a Array),
}

/// What came of a call.
#[derive(Debug, Default)]
pub struct Answer {
    pub results: Vec<Named>,
    pub findings: Findings,
}

struct Asked<'a, O> {
    problem: &'a O,
    dtype: Dtype,
    call: Call<'a>,
}

impl<O: Operation> Asked<'_, O> {
    fn answer<E: HostEngine, I: Input, W: Weight<Real = I::Accum>>(&self, engine: &E) -> Result<Answer, Error> {
        let mut answer = Answer::default();
        match self.call {
            Call::Run(layout) => answer.results = self.problem.run::<E, I, W>(engine, layout)?,
            Call::Forward(layout) => answer.results = self.problem.forward::<E, I, W>(engine, layout)?,
            Call::Steps => answer.results = self.problem.steps::<E, I, W>(engine)?,
            Call::NarrowSteps(state) => self.problem.narrow_steps::<E, I, W>(engine, state, &mut answer.findings)?,
        }
        Ok(answer)
    }
}

impl<O: Operation> Visit for Asked<'_, O> {
    type Output = Result<Answer, Error>;

    fn visit<E: HostEngine>(self, engine: &E) -> Self::Output {
        match (self.dtype, self.problem.complex()) {
            (Dtype::F64, false) => self.answer::<E, f64, f64>(engine),
            (Dtype::F32, false) => self.answer::<E, f32, f32>(engine),
            (Dtype::F16, false) => self.answer::<E, f16, f32>(engine),
            (Dtype::Bf16, false) => self.answer::<E, bf16, f32>(engine),
            (Dtype::F64, true) => self.answer::<E, f64, Complex<f64>>(engine),
            (Dtype::F32, true) => self.answer::<E, f32, Complex<f32>>(engine),
            (Dtype::F16, true) => self.answer::<E, f16, Complex<f32>>(engine),
            (Dtype::Bf16, true) => self.answer::<E, bf16, Complex<f32>>(engine),
            (other, _) => panic!("{other:?} is not a storage type of inputs"),
        }
    }
}

/// Calls an operator on one engine in one storage type. An `Err` is the engine's own, about the operands.
pub fn call<O: Operation>(entry: &Entry, dtype: Dtype, problem: &O, call: Call<'_>) -> Result<Answer, Error> {
    entry.visit(Asked { problem, dtype, call })
}

/// The storage types, widest first.
pub const DTYPES: [Dtype; 4] = [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::Bf16];

/// A case that can be run: a problem and its reference.
pub struct Checked<O> {
    pub problem: O,
    pub reference: Reference,
    /// The scale of the terms of sums that may cancel. Case files say nothing about it: their sums are held to their own size.
    pub terms: Vec<(String, f64)>,
}

/// One engine in one storage type.
#[derive(Clone, Copy)]
struct Place<'a> {
    entry: &'a Entry,
    dtype: Dtype,
}

impl Place<'_> {
    fn results<O: Operation>(self, problem: &O, what: Call<'_>) -> Result<Vec<Named>, Error> {
        Ok(call(self.entry, self.dtype, problem, what)?.results)
    }
}

impl<O: Operation> Checked<O> {
    fn wanted(&self, name: &str) -> &Array {
        &self.reference.iter().find(|(n, _)| n == name).expect("the case reader asks for every reference").1
    }

    fn bound(&self, place: Place<'_>, found: &Named) -> Bound {
        let terms = self.terms.iter().find(|(n, _)| *n == found.name).map_or(0.0, |(_, scale)| *scale);
        found.bound(self.problem.n_eff_on(place.entry, place.dtype)).of_terms(terms)
    }

    /// Packed, taken apart, with padding: the same bits by position, shared gradients within the bound.
    fn rearranged(&self, place: Place<'_>, base: &[Named], findings: &mut Findings) -> Result<(), Error> {
        for by in arrangements(&self.problem) {
            for found in &place.results(&self.problem.transform(&by), Call::Run(Layout::Contiguous))? {
                let before = &named(base, &found.name).array;
                let deviation = match found.role {
                    Role::Positions => compare_bits(&found.array.data, &by.positions(before).data),
                    Role::States => compare_bits(&found.array.data, &before.take(&by.states).data),
                    Role::Shared if by.whole => compare(&found.array.data, &self.wanted(&found.name).data, self.bound(place, found)),
                    Role::Shared => continue,
                };
                findings.add(&found.name, deviation, &by.label);
            }
        }
        Ok(())
    }

    /// The scan in two calls, and a prefill followed by steps.
    fn continued(&self, place: Place<'_>, findings: &mut Findings) -> Result<(), Error> {
        if !matches!(self.problem.packing(), None | Some(Packing::Rows)) {
            return Ok(());
        }
        let [batch, seqlen] = self.problem.sizes();
        let mut splits = vec![0, 1, seqlen / 2, seqlen.saturating_sub(1)];
        splits.sort_unstable();
        splits.dedup();
        for split in splits.into_iter().filter(|&s| s < seqlen) {
            let [front, back] = [Transform::slice(batch, 0, split), Transform::slice(batch, split, seqlen)];
            let (first, second) = if self.problem.reverse() { (back, front) } else { (front, back) };
            let first = place.results(&self.problem.transform(&first), Call::Forward(Layout::Contiguous))?;
            let mut second = self.problem.transform(&second);
            let head = &named(&first, O::OUT).array;
            // With nothing before it the second part starts as the whole problem does.
            if !head.data.is_empty() {
                second = second.with_initial(named(&first, O::STATE).array.clone());
            }
            for (how, what) in [("in two calls, cut at", Call::Forward(Layout::Contiguous)), ("steps from", Call::Steps)] {
                for found in place.results(&second, what)? {
                    let bound = self.bound(place, &found);
                    let whole = match (found.name == O::OUT, self.problem.reverse()) {
                        (false, _) => found.array,
                        (true, false) => Array::join(&[head.clone(), found.array]),
                        (true, true) => Array::join(&[found.array, head.clone()]),
                    };
                    findings.add(&found.name, compare(&whole.data, &self.wanted(&found.name).data, bound), &format!("{how} {split}"));
                }
            }
        }
        Ok(())
    }
}

impl<O: Operation> Check for Checked<O> {
    fn on(&self, entry: &Entry, dtype: Dtype) -> Result<Findings, Error> {
        let place = Place { entry, dtype };
        let mut findings = Findings::default();
        let started = Instant::now();
        let base = place.results(&self.problem, Call::Run(Layout::Contiguous))?;
        findings.seconds = started.elapsed().as_secs_f64();
        for found in &base {
            let deviation = compare(&found.array.data, &self.wanted(&found.name).data, self.bound(place, found));
            findings.add(&found.name, deviation, "plain");
        }
        for layout in Layout::STRIDED {
            for (again, before) in place.results(&self.problem, Call::Run(layout))?.iter().zip(&base) {
                findings.add(&again.name, compare_bits(&again.array.data, &before.array.data), layout.name());
            }
        }
        self.rearranged(place, &base, &mut findings)?;
        self.continued(place, &mut findings)?;
        if matches!(dtype, Dtype::F16 | Dtype::Bf16) {
            let state = &named(&base, O::STATE).array;
            for f in call(entry, dtype, &self.problem, Call::NarrowSteps(state))?.findings.list {
                findings.add(&f.tensor, f.worst, &f.how);
            }
        }
        Ok(findings)
    }

    fn reference_mut(&mut self) -> &mut Reference {
        &mut self.reference
    }
}

/// The other ways to arrange a problem.
fn arrangements<O: Operation>(problem: &O) -> Vec<Transform> {
    let [batch, seqlen] = problem.sizes();
    let mut all = Vec::new();
    let sequences: Vec<Vec<(usize, usize)>> = match problem.packing() {
        None | Some(Packing::SeqIdx { .. }) => return all,
        Some(Packing::Rows) => {
            all.push(Transform::pack(batch, seqlen));
            all.push(Transform::padded(batch, seqlen));
            (0..batch).map(|row| (0..seqlen).map(|t| (row, t)).collect()).collect()
        }
        Some(Packing::CuSeqlens(offsets)) => {
            all.extend((0..offsets.len() - 1).map(|i| Transform::alone(offsets, i)));
            offsets.windows(2).map(|w| (w[0]..w[1]).map(|t| (0, t as usize)).collect()).collect()
        }
    };
    if !problem.has_states() && !sequences.is_empty() {
        all.push(Transform::chain(&sequences));
    }
    all
}

//! Random problems of layers 1 and 2, in f64 and exactly representable in every storage type.

#![allow(non_snake_case)]

use half::bf16;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::RngSeed;
use selective_scan::element::Dtype;
use selective_scan::ops::Rule;
use selective_scan::selective::SelectiveOptions;

use crate::harness::array::Array;
use crate::harness::engines::{Entry, engines, naive};
use crate::harness::operation::{Call, Check as _, Checked, DTYPES, Named, Operation, call};
use crate::harness::scan::Scan;
use crate::harness::selective::Selective;
use crate::harness::tensor::Layout;
use crate::harness::transform::Packing;
use crate::lengths::{CHANNELS, LENGTHS, STATES};

/// Numbers from a seed, by splitmix64.
#[derive(Debug, Clone)]
pub struct Draw(pub u64);

impl Draw {
    /// Uniform in [0, 1).
    pub fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform between two numbers, in steps that every storage type has.
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        let x = bf16::from_f64(low + (high - low) * self.unit()).to_f64();
        // Below this f16 would round.
        if x.abs() < 1e-4 { 0.0 } else { x }
    }

    /// An array of them.
    pub fn array(&mut self, dims: &[usize], complex: bool, low: f64, high: f64) -> Array {
        let mut array = Array::zeros(dims, complex);
        array.data.iter_mut().for_each(|x| *x = self.between(low, high));
        array
    }
}

/// A selective scan before its numbers are drawn.
#[derive(Debug, Clone)]
pub struct Recipe {
    pub sizes: [usize; 4],
    pub groups: usize,
    pub complex: bool,
    pub varying: [bool; 2],
    pub skip: bool,
    pub gate: bool,
    pub bias: bool,
    pub softplus: bool,
    pub states: bool,
    pub rule: Rule,
    pub seed: u64,
    pub packed: bool,
}

impl Recipe {
    /// The problem.
    pub fn problem(&self) -> Selective {
        let [batch, seqlen, dim, dstate] = self.sizes;
        let batch = if self.packed { 1 } else { batch };
        let mut draw = Draw(self.seed);
        let complex = self.complex;
        let offsets = vec![0, seqlen / 3, seqlen / 3, seqlen / 2, seqlen].into_iter().map(|x| x as i64).collect::<Vec<_>>();
        let states = if self.packed { offsets.len() - 1 } else { batch };
        let mut coefficient = |varying: bool| {
            let dims: &[usize] = if varying { &[batch, seqlen, self.groups, dstate] } else { &[dim, dstate] };
            draw.array(dims, complex, -1.0, 1.0)
        };
        let (B, C) = (coefficient(self.varying[0]), coefficient(self.varying[1]));
        let mut A = draw.array(&[dim, dstate], complex, -2.0, -0.05);
        if complex {
            A.data.iter_mut().skip(1).step_by(2).for_each(|im| *im *= 3.0);
        }
        let positions = [batch, seqlen, dim];
        let state = [states, dim, dstate];
        let problem = Selective {
            u: draw.array(&positions, false, -1.0, 1.0),
            delta: if self.softplus { draw.array(&positions, false, -3.0, 2.0) } else { draw.array(&positions, false, 0.0, 1.0) },
            A,
            B,
            C,
            D: self.skip.then(|| draw.array(&[dim], false, -1.0, 1.0)),
            z: self.gate.then(|| draw.array(&positions, false, -2.0, 2.0)),
            delta_bias: self.bias.then(|| draw.array(&[dim], false, 0.0, 0.5)),
            h0: self.states.then(|| draw.array(&state, complex, -1.0, 1.0)),
            grad_out: draw.array(&positions, false, -1.0, 1.0),
            grad_last_state: self.states.then(|| draw.array(&state, complex, -1.0, 1.0)),
            options: SelectiveOptions { delta_softplus: self.softplus, rule: self.rule, ..Default::default() },
            packing: if self.packed { Packing::CuSeqlens(offsets) } else { Packing::Rows },
            n_eff: 0.0,
        };
        problem.measured().expect("the operands agree")
    }
}

/// Recipes of every kind, at most `longest` long.
pub fn recipes(longest: usize) -> impl Strategy<Value = Recipe> {
    let lengths: Vec<usize> = LENGTHS.into_iter().filter(|&l| l <= longest).collect();
    let sizes = (select(vec![1usize, 2, 3]), select(lengths), select(CHANNELS.to_vec()), select(STATES.to_vec()));
    let rule = select(vec![Rule::Euler, Rule::Zoh, Rule::Bilinear]);
    let flags = (any::<[bool; 2]>(), any::<[bool; 6]>(), proptest::bool::weighted(0.3), proptest::bool::weighted(0.3));
    (sizes, rule, flags, any::<bool>(), any::<u64>()).prop_map(|(sizes, rule, flags, grouped, seed)| {
        let (batch, seqlen, dim, dstate) = sizes;
        let (varying, [skip, gate, bias, softplus, states, _], complex, packed) = flags;
        let groups = if grouped { (1..=dim).rev().find(|&g| dim % g == 0 && g < dim).unwrap_or(1) } else { 1 };
        let sizes = [batch, seqlen, dim, dstate];
        Recipe { sizes, groups, complex, varying, skip, gate, bias, softplus, states, rule, seed, packed }
    })
}

/// Layer-1 problems: decays inside the unit circle, now and then a reset.
pub fn scans() -> impl Strategy<Value = Scan> {
    let sizes = (select(vec![1usize, 2, 3]), select(LENGTHS.to_vec()), select(CHANNELS.to_vec()));
    (sizes, any::<[bool; 3]>(), any::<u64>()).prop_map(|((batch, seqlen, dim), [complex, reverse, states], seed)| {
        let mut draw = Draw(seed);
        let positions = [batch, seqlen, dim];
        let mut a = draw.array(&positions, complex, -0.7, 0.7);
        a.data.chunks_mut(if complex { 2 } else { 1 }).filter(|_| draw.unit() < 0.02).for_each(|x| x.fill(0.0));
        let problem = Scan {
            a,
            b: draw.array(&positions, complex, -1.0, 1.0),
            h0: states.then(|| draw.array(&[batch, dim], complex, -1.0, 1.0)),
            grad_h: draw.array(&positions, complex, -1.0, 1.0),
            grad_last: states.then(|| draw.array(&[batch, dim], complex, -1.0, 1.0)),
            reverse,
            n_eff: 0.0,
        };
        problem.measured().expect("the operands agree")
    })
}

/// How many cases a property is tried with. Each runs on every engine, ISA and type.
pub fn cases(count: u32) -> ProptestConfig {
    let config = ProptestConfig { cases: count, failure_persistence: None, ..ProptestConfig::default() };
    // The same problems on every run, unless PROPTEST_RNG_SEED asks for others: a failure then belongs to the change under test.
    match config.rng_seed {
        RngSeed::Random => ProptestConfig { rng_seed: RngSeed::Fixed(0), ..config },
        RngSeed::Fixed(_) => config,
    }
}

/// Every engine and ISA with every storage type.
pub fn places() -> Vec<(Entry, Dtype)> {
    engines().into_iter().flat_map(|e| DTYPES.map(|d| (e.clone(), d))).collect()
}

/// The name of a place, for messages.
pub fn name(entry: &Entry, dtype: Dtype) -> String {
    format!("{}/{} in {}", entry.name, entry.isa, dtype.name())
}

/// Forward and backward.
pub fn run<O: Operation>(entry: &Entry, dtype: Dtype, problem: &O) -> Vec<Named> {
    call(entry, dtype, problem, Call::Run(Layout::Contiguous)).expect("the operands are right").results
}

/// Forward alone.
pub fn forward<O: Operation>(entry: &Entry, dtype: Dtype, problem: &O) -> Vec<Named> {
    call(entry, dtype, problem, Call::Forward(Layout::Contiguous)).expect("the operands are right").results
}

/// The data of a result.
pub fn data<'a>(results: &'a [Named], name: &str) -> &'a [f64] {
    &crate::harness::operation::named(results, name).array.data
}

/// The problem with the specification's f64 results as the reference.
pub fn specified<O: Operation>(problem: O) -> Checked<O> {
    let reference = run(&naive(), Dtype::F64, &problem).into_iter().map(|r| (r.name, r.array)).collect();
    Checked { problem, reference, terms: Vec::new() }
}

/// Everything `check` does, against the specification in f64: layouts, packing, padding, two calls, steps.
pub fn agrees<O: Operation>(checked: &Checked<O>) -> Result<(), TestCaseError> {
    for (entry, dtype) in places() {
        let findings = checked.on(&entry, dtype).expect("the operands are right");
        let wrong: Vec<_> = findings.exceeding().collect();
        prop_assert!(wrong.is_empty(), "{}: {wrong:?}", name(&entry, dtype));
    }
    Ok(())
}

/// Σ a·b.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Σ |a·b|: the scale of the rounding error of [`dot`].
pub fn dot_scale(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a * b).abs()).sum()
}

//! Layer 2 in terms of layer 1: the tree engine, and an engine that has nothing but a loop for layer 1, against the specification.

#![allow(non_snake_case)]

use half::{bf16, f16};
use num_complex::Complex;
use selective_scan::Error;
use selective_scan::blelloch::Blelloch;
use selective_scan::buffer::{Buffer, Workspace};
use selective_scan::element::{Element, Input, Real, Weight};
use selective_scan::naive::Naive;
use selective_scan::ops::Rule;
use selective_scan::par::Par;
use selective_scan::scan::{Scan, ScanBwd, ScanFwd, ScanProblem, host as scan_host};
use selective_scan::selective::{
    Carry, Coefficient, CoefficientGrad, SelectiveBwd, SelectiveFwd, SelectiveGrads, SelectiveInputs, SelectiveOptions, SelectiveProblem,
    SelectiveScan, SelectiveStep, host,
};
use selective_scan::sequences::Sequences;
use selective_scan::view::{Host, View, ViewMut};

type C64 = Complex<f64>;

/// An engine with layer 1 only: a loop. All else is the default.
struct Loop;

impl Scan for Loop {
    type Memory = Host;

    fn scan_fwd_workspace<E: Element>(&self, _: ScanProblem) -> usize {
        0
    }

    fn scan_fwd<E: Element>(&self, args: ScanFwd<'_, E>, _: &mut Workspace<'_>) -> Result<(), Error> {
        let ScanProblem { batch, seqlen, dim } = args.check()?;
        let ScanFwd { a, b, initial_state, mut h, mut last_state, .. } = args.forwards();
        for (r, c) in (0..batch).flat_map(|r| (0..dim).map(move |c| (r, c))) {
            let mut state = initial_state.map(|v| v.get([r, c]));
            for t in 0..seqlen {
                let b = b.get([r, t, c]).load();
                let next = state.map_or(b, |before| a.get([r, t, c]).load() * before + b);
                h.set([r, t, c], E::store(next));
                state = Some(next);
            }
            if let Some(last) = last_state.as_mut() {
                last.set([r, c], state.unwrap_or(E::Arith::ZERO));
            }
        }
        Ok(())
    }

    fn scan_bwd_workspace<E: Element>(&self, problem: ScanProblem) -> usize {
        scan_host::scan_bwd_workspace::<E>(self, Par::Seq, problem)
    }

    fn scan_bwd<E: Element>(&self, args: ScanBwd<'_, E>, ws: &mut Workspace<'_>) -> Result<(), Error> {
        scan_host::scan_bwd(self, Par::Seq, args, ws)
    }
}

impl SelectiveScan for Loop {
    fn selective_scan_fwd_workspace<I: Input, W: Weight<Real = I::Accum>>(&self, problem: &SelectiveProblem) -> usize {
        host::selective_scan_fwd_workspace::<I, W>(self, Par::Seq, problem)
    }

    fn selective_scan_fwd<I: Input, W: Weight<Real = I::Accum>>(
        &self,
        args: SelectiveFwd<'_, I, W>,
        ws: &mut Workspace<'_>,
    ) -> Result<(), Error> {
        host::selective_scan_fwd(self, Par::Seq, args, ws)
    }

    fn selective_scan_bwd_workspace<I: Input, W: Weight<Real = I::Accum>>(&self, problem: &SelectiveProblem) -> usize {
        host::selective_scan_bwd_workspace::<I, W>(self, Par::Seq, problem)
    }

    fn selective_scan_bwd<I: Input, W: Weight<Real = I::Accum>>(
        &self,
        args: SelectiveBwd<'_, I, W>,
        ws: &mut Workspace<'_>,
    ) -> Result<(), Error> {
        host::selective_scan_bwd(self, Par::Seq, args, ws)
    }

    fn selective_state_update_workspace<I: Input, W: Weight<Real = I::Accum>>(&self, _: &SelectiveProblem) -> usize {
        host::selective_state_update_workspace(Par::Seq)
    }

    fn selective_state_update<I: Input, W: Weight<Real = I::Accum>, S: Element<Arith = W>>(
        &self,
        args: SelectiveStep<'_, I, W, S>,
        ws: &mut Workspace<'_>,
    ) -> Result<(), Error> {
        host::selective_state_update(Par::Seq, args, ws)
    }
}

/// Numbers in (−1, 1) that are exact in bfloat16.
fn noise(seed: usize, i: usize) -> f64 {
    let x = ((i + 1) as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add((seed as u64).wrapping_mul(0xD1B5_4A32_D192_ED03));
    let x = (x ^ (x >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bf16::from_f64(((x ^ (x >> 32)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0).to_f64()
}

fn number<E: Element>(re: f64, im: f64) -> E {
    let real = <E::Arith as Weight>::Real::from_f64;
    E::store(E::Arith::from_parts(real(re), real(im)))
}

fn random<E: Element>(seed: usize, n: usize) -> Vec<E> {
    (0..n).map(|i| number(noise(seed, i), noise(seed + 1000, i))).collect()
}

fn wide<E: Element>(v: &[E]) -> Vec<C64> {
    v.iter().map(|x| x.load()).map(|x| C64::new(x.re().to_f64(), x.im().to_f64())).collect()
}

/// How positions are packed.
#[derive(Clone, Debug)]
enum Packing {
    Rows,
    Offsets(Vec<i64>),
    Ids(Vec<i32>),
}

/// One problem. Groups of 0 mean constant.
#[derive(Clone, Debug)]
struct Case {
    dims: [usize; 3],
    dstate: usize,
    groups: [usize; 2],
    extras: bool,
    initial: bool,
    packing: Packing,
    options: SelectiveOptions,
}

/// Named results, widened.
type Results = Vec<(&'static str, Vec<C64>)>;

/// The operands of a case in some types.
struct Operands<I: Input, W: Weight<Real = I::Accum>> {
    sequences: [Vec<I>; 4],
    A: Vec<W>,
    constants: [Vec<W>; 2],
    varying: [Vec<W::Stored<I>>; 2],
    reals: [Vec<W::Real>; 2],
    states: [Vec<W>; 2],
    entries: usize,
}

impl<I: Input, W: Weight<Real = I::Accum>> Operands<I, W> {
    fn new(case: &Case) -> Self {
        let [batch, seqlen, dim] = case.dims;
        let (n, rows) = (batch * seqlen * dim, batch * seqlen * case.dstate);
        let entries = if let Packing::Offsets(v) = &case.packing { v.len() - 1 } else { batch };
        let A = |i: usize| number(f64::from((-1.1 - noise(20, i)) as f32), noise(21, i));
        Operands {
            sequences: [1, 2, 3, 4].map(|seed| random(seed, n)),
            A: (0..dim * case.dstate).map(A).collect(),
            constants: [5, 6].map(|seed| random(seed, dim * case.dstate)),
            varying: [0, 1].map(|i| random(7 + i, rows * case.groups[i])),
            reals: [9, 10].map(|seed| random(seed, dim)),
            states: [11, 12].map(|seed| random(seed, entries * dim * case.dstate)),
            entries,
        }
    }

    fn coefficient(&self, case: &Case, i: usize) -> Coefficient<'_, I, W> {
        let [batch, seqlen, dim] = case.dims;
        if case.groups[i] == 0 {
            return Coefficient::Constant(View::new(&self.constants[i], [dim, case.dstate]));
        }
        Coefficient::Varying(View::new(&self.varying[i], [batch, seqlen, case.groups[i], case.dstate]))
    }

    fn inputs<'a>(&'a self, case: &Case, packing: Sequences<'a>) -> SelectiveInputs<'a, I, W> {
        let [_, _, dim] = case.dims;
        let sequence = |i: usize| View::new(&self.sequences[i], case.dims);
        SelectiveInputs {
            u: sequence(0),
            delta: sequence(1),
            A: View::new(&self.A, [dim, case.dstate]),
            B: self.coefficient(case, 0),
            C: self.coefficient(case, 1),
            D: case.extras.then(|| View::new(&self.reals[0], [dim])),
            z: case.extras.then(|| sequence(2)),
            delta_bias: case.extras.then(|| View::new(&self.reals[1], [dim])),
            initial_state: case.initial.then(|| View::new(&self.states[0], [self.entries, dim, case.dstate])),
            sequences: packing,
            options: case.options,
        }
    }
}

/// Runs forward and backward.
fn run<I: Input, W: Weight<Real = I::Accum>>(engine: &impl SelectiveScan<Memory = Host>, case: &Case) -> Results {
    let [batch, seqlen, dim] = case.dims;
    let operands = Operands::<I, W>::new(case);
    let packing = match &case.packing {
        Packing::Rows => Sequences::Rows,
        Packing::Offsets(v) => Sequences::CuSeqlens(View::new(v, [v.len()])),
        Packing::Ids(v) => Sequences::SeqIdx(View::new(v, [batch, seqlen])),
    };
    let inputs = operands.inputs(case, packing);
    let problem = inputs.check().unwrap();
    let state = [operands.entries, dim, case.dstate];
    // Poison: every element of an output must be written.
    let poison = |n: usize| vec![number::<I>(f64::NAN, f64::NAN); n];
    let poisoned = |n: usize| vec![number::<W>(f64::NAN, f64::NAN); n];
    let n = batch * seqlen * dim;
    let (mut out, mut last) = (poison(n), poisoned(state.iter().product()));
    let (mut du, mut ddelta, mut dz) = (poison(n), poison(n), poison(n));
    let (mut dA, mut dh0) = (poisoned(dim * case.dstate), poisoned(state.iter().product()));
    let (mut constants, mut varying) = (operands.constants.clone(), operands.varying.clone());
    let mut reals = operands.reals.clone();

    let mut buffer = Buffer::new();
    let mut ws = buffer.workspace(engine.selective_scan_fwd_workspace::<I, W>(&problem));
    let fwd = SelectiveFwd { inputs, out: ViewMut::new(&mut out, case.dims), last_state: Some(ViewMut::new(&mut last, state)) };
    engine.selective_scan_fwd(fwd, &mut ws).unwrap();

    let mut ws = buffer.workspace(engine.selective_scan_bwd_workspace::<I, W>(&problem));
    let [dB, dC] = &mut constants;
    let [vB, vC] = &mut varying;
    let [dD, dbias] = &mut reals;
    let grad = |i: usize, constant, varying| {
        if case.groups[i] == 0 {
            CoefficientGrad::Constant(ViewMut::new(constant, [dim, case.dstate]))
        } else {
            CoefficientGrad::Varying(ViewMut::new(varying, [batch, seqlen, case.groups[i], case.dstate]))
        }
    };
    let grads = SelectiveGrads {
        u: Some(ViewMut::new(&mut du, case.dims)),
        delta: Some(ViewMut::new(&mut ddelta, case.dims)),
        A: Some(ViewMut::new(&mut dA, [dim, case.dstate])),
        B: Some(grad(0, dB, vB)),
        C: Some(grad(1, dC, vC)),
        D: case.extras.then(|| ViewMut::new(dD, [dim])),
        z: case.extras.then(|| ViewMut::new(&mut dz, case.dims)),
        delta_bias: case.extras.then(|| ViewMut::new(dbias, [dim])),
        initial_state: case.initial.then(|| ViewMut::new(&mut dh0, state)),
    };
    let grad_out = View::new(&operands.sequences[3], case.dims);
    let grad_last_state = Some(View::new(&operands.states[1], state));
    engine.selective_scan_bwd(SelectiveBwd { inputs, grad_out, grad_last_state, grads }, &mut ws).unwrap();

    let mut results: Results = vec![
        ("out", wide(&out)),
        ("last_state", wide(&last)),
        ("grad u", wide(&du)),
        ("grad delta", wide(&ddelta)),
        ("grad A", wide(&dA)),
        ("grad B", if case.groups[0] == 0 { wide(&constants[0]) } else { wide(&varying[0]) }),
        ("grad C", if case.groups[1] == 0 { wide(&constants[1]) } else { wide(&varying[1]) }),
    ];
    if case.extras {
        results.extend([("grad D", wide(&reals[0])), ("grad delta_bias", wide(&reals[1])), ("grad z", wide(&dz))]);
    }
    if case.initial {
        results.push(("grad initial_state", wide(&dh0)));
    }
    results
}

fn close(got: &Results, want: &Results, tolerance: f64, what: &str) {
    for ((name, got), (_, want)) in got.iter().zip(want) {
        let largest = want.iter().map(|x| x.norm()).fold(1e-300, f64::max);
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            assert!((got - want).norm() <= tolerance * largest, "{name}[{i}] of {what}: {got} is not {want} (largest {largest})");
        }
    }
}

/// Cases that between them have every option.
fn cases() -> Vec<Case> {
    let base = Case {
        dims: [2, 70, 6],
        dstate: 16,
        groups: [1, 1],
        extras: true,
        initial: true,
        packing: Packing::Rows,
        options: SelectiveOptions { delta_softplus: true, ..Default::default() },
    };
    let rule = |rule| SelectiveOptions { rule, ..base.options };
    let ids = (0..140).map(|i| [-1, 0, 0, -1, 2, 2, 2, 5, -3, 5][i % 70 / 7]).collect();
    vec![
        base.clone(),
        Case { dims: [1, 600, 3], dstate: 4, ..base.clone() },
        Case { dims: [1, 40, 37], dstate: 5, groups: [37, 1], initial: false, ..base.clone() },
        Case { dims: [2, 33, 24], dstate: 1, groups: [4, 6], ..base.clone() },
        Case { dims: [1, 20, 200], dstate: 3, groups: [0, 2], options: rule(Rule::Zoh), ..base.clone() },
        Case { groups: [0, 0], options: rule(Rule::Bilinear), ..base.clone() },
        Case { dims: [2, 300, 4], dstate: 100, groups: [2, 0], options: rule(Rule::Zoh), extras: false, ..base.clone() },
        Case { dims: [3, 70, 5], extras: false, initial: false, ..base.clone() },
        Case { packing: Packing::Ids(ids), ..base.clone() },
        Case { dims: [1, 900, 6], packing: Packing::Offsets(vec![0, 0, 300, 300, 301, 845, 900, 900]), ..base.clone() },
        Case { dims: [2, 3, 2], packing: Packing::Ids(vec![-1; 6]), ..base.clone() },
        Case { dims: [2, 0, 3], ..base.clone() },
        Case { dims: [0, 4, 3], ..base.clone() },
        Case { dims: [1, 1, 1], dstate: 1, ..base.clone() },
        Case { options: SelectiveOptions { carry: Carry::Compensated, ..base.options }, ..base },
    ]
}

fn compare<I: Input, W: Weight<Real = I::Accum>, W64: Weight<Real = f64>>(tolerance: f64) {
    for case in cases() {
        let want = run::<f64, W64>(&Naive, &case);
        let what = format!("{:?} {:?} {case:?}", I::DTYPE, W::DTYPE);
        let got = run::<I, W>(&Blelloch::new(), &case);
        close(&got, &want, tolerance, &what);
        assert!(got == run::<I, W>(&Blelloch::with_par(Par::Seq), &case), "one thread gives other bits: {what}");
    }
}

#[test]
fn the_tree_engine_agrees_with_the_specification() {
    compare::<f64, f64, f64>(1e-13);
    compare::<f64, C64, C64>(1e-13);
    compare::<f32, f32, f64>(4e-6);
    compare::<f32, Complex<f32>, C64>(4e-6);
    compare::<bf16, f32, f64>(1.0 / 256.0);
    compare::<f16, Complex<f32>, C64>(1.0 / 2048.0);
}

#[test]
fn an_engine_with_layer_1_alone_is_complete() {
    for case in cases() {
        close(&run::<f64, C64>(&Loop, &case), &run::<f64, C64>(&Naive, &case), 1e-13, &format!("{case:?}"));
    }
}

/// The part of `all` at `positions` of a (1, L, D) tensor.
fn at(all: &[C64], dim: usize, positions: &[usize]) -> Vec<C64> {
    positions.iter().flat_map(|&t| all[t * dim..(t + 1) * dim].to_vec()).collect()
}

/// A sequence has the same bits packed by offsets or by ids, and alone with padding around it.
fn packed_like_alone<I: Input, W: Weight<Real = I::Accum>>(seqlens: &[usize], engine: &impl SelectiveScan<Memory = Host>) {
    let (dim, dstate) = (5, 3);
    let total: usize = seqlens.iter().sum();
    let sum = |n: usize| seqlens[..n].iter().sum::<usize>();
    let offsets: Vec<i64> = (0..=seqlens.len()).map(|i| sum(i) as i64).collect();
    let case = |packing| Case {
        dims: [1, total, dim],
        dstate,
        groups: [1, 1],
        extras: true,
        initial: false,
        packing,
        options: SelectiveOptions { delta_softplus: true, ..Default::default() },
    };
    let ids = seqlens.iter().enumerate().flat_map(|(i, &n)| vec![i as i32; n]).collect();
    let packed = run::<I, W>(engine, &case(Packing::Offsets(offsets)));
    let by_id = run::<I, W>(engine, &case(Packing::Ids(ids)));
    for name in ["out", "grad z"] {
        let find = |results: &Results| results.iter().find(|(n, _)| *n == name).unwrap().1.clone();
        // The gradient of each sequence's last state is given with offsets only, so gradients that λ reaches are not compared here.
        assert!(find(&packed) == find(&by_id), "{name}");
    }
    for (i, &n) in seqlens.iter().enumerate() {
        // The others become padding, so the operands stand where they stood.
        let alone = (0..total).map(|t| if (sum(i)..sum(i) + n).contains(&t) { 0 } else { -1 }).collect();
        let positions: Vec<usize> = (sum(i)..sum(i) + n).collect();
        let by_padding = run::<I, W>(engine, &case(Packing::Ids(alone)));
        let (_, out) = &by_padding[0];
        assert!(at(out, dim, &positions) == at(&packed[0].1, dim, &positions), "sequence {i} of {seqlens:?}");
    }
}

#[test]
fn packed_sequences_have_the_bits_of_lone_ones() {
    for seqlens in [vec![300, 1, 257, 40], vec![1, 1, 600], vec![16, 0, 17]] {
        packed_like_alone::<f32, f32>(&seqlens, &Blelloch::new());
        packed_like_alone::<f64, C64>(&seqlens, &Loop);
    }
}

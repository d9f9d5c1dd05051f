//! Problems of layer 2: forward, backward and step from the same operands.

use arbitrary::Result;
use selective_scan::buffer::Buffer;
use selective_scan::element::Real;
use selective_scan::ops::Rule;
use selective_scan::selective::{
    Carry, Coefficient, CoefficientGrad, SelectiveBwd, SelectiveFwd, SelectiveGrads, SelectiveInputs, SelectiveOptions, SelectiveScan,
    SelectiveStep,
};
use selective_scan::sequences::Sequences;
use selective_scan::view::{Host, View, ViewMut};

use super::input::{DIMS, Kind, LENGTHS, STATES, Source};

/// The operands of one problem.
#[derive(Debug, Clone)]
pub(crate) struct Case<T> {
    pub batch: usize,
    pub seqlen: usize,
    pub dim: usize,
    pub dstate: usize,
    pub groups: usize,
    pub options: SelectiveOptions,
    /// (B, D, L) in memory instead of (B, L, D).
    pub transposed: bool,
    pub u: Vec<T>,
    pub delta: Vec<T>,
    pub a: Vec<T>,
    pub b: Vec<T>,
    pub c: Vec<T>,
    pub d: Option<Vec<T>>,
    pub z: Option<Vec<T>>,
    pub bias: Option<Vec<T>>,
    pub initial: Option<Vec<T>>,
    pub offsets: Option<Vec<i64>>,
    pub grad_out: Vec<T>,
}

/// Results by name.
pub(crate) type Out<T> = Vec<(&'static str, Vec<T>)>;

impl Case<f32> {
    pub fn new(from: &mut Source<'_>, longest: usize) -> Result<Self> {
        let packed = from.flag()?;
        let batch = if packed { 1 } else { from.upto(2)? };
        let (dim, dstate) = (from.pick(&DIMS)?, from.pick(&STATES)?);
        let seqlen = from.pick(&LENGTHS)?.min(longest).min(20_000 / (dim * dstate));
        let groups = if dim % 2 == 0 && from.flag()? { 2 } else { 1 };
        let rule = from.pick(&[Rule::Euler, Rule::Euler, Rule::Zoh, Rule::Bilinear])?;
        let options = SelectiveOptions { delta_softplus: from.flag()?, rule, carry: from.pick(&[Carry::Plain, Carry::Compensated])? };
        let transposed = from.flag()?;
        let offsets = packed.then(|| cuts(from, seqlen)).transpose()?;
        let states = offsets.as_ref().map_or(batch, |o| o.len() - 1);
        let (given_d, given_z, given_bias, given_initial) = (from.flag()?, from.flag()?, from.flag()?, from.flag()?);
        let (positions, shared) = (batch * seqlen * dim, batch * seqlen * groups * dstate);
        let mut make = |kind, count| from.numbers(kind, count);
        let mut delta = make(Kind::Step, positions);
        if !options.delta_softplus {
            // A step is not negative.
            delta.iter_mut().for_each(|x| *x = x.abs());
        }
        Ok(Case {
            u: make(Kind::Value, positions),
            delta,
            a: make(Kind::Rate, dim * dstate),
            b: make(Kind::Value, shared),
            c: make(Kind::Value, shared),
            d: given_d.then(|| make(Kind::Value, dim)),
            z: given_z.then(|| make(Kind::Value, positions)),
            bias: given_bias.then(|| make(Kind::Step, dim).iter().map(|x| x.abs().min(5.0)).collect()),
            initial: given_initial.then(|| make(Kind::Value, states * dim * dstate)),
            grad_out: make(Kind::Value, positions),
            batch,
            seqlen,
            dim,
            dstate,
            groups,
            options,
            transposed,
            offsets,
        })
    }

    /// The same problem in f64.
    pub fn widen(&self) -> Case<f64> {
        self.map(f64::from)
    }

    /// The same problem in f64 with every number but A and Δ made positive: a scale for rounding errors.
    pub fn positive(&self) -> Case<f64> {
        let mut case = self.map(|x| f64::from(x.abs()));
        (case.a, case.delta) = (self.widen().a, self.widen().delta);
        case
    }

    fn map(&self, f: impl Fn(f32) -> f64 + Copy) -> Case<f64> {
        let all = |v: &Vec<f32>| v.iter().map(|&x| f(x)).collect::<Vec<f64>>();
        let some = |v: &Option<Vec<f32>>| v.as_ref().map(all);
        let Case { batch, seqlen, dim, dstate, groups, options, transposed, .. } = *self;
        let (u, delta, a, b, c) = (all(&self.u), all(&self.delta), all(&self.a), all(&self.b), all(&self.c));
        let (d, z, bias, initial, offsets) = (some(&self.d), some(&self.z), some(&self.bias), some(&self.initial), self.offsets.clone());
        let grad_out = all(&self.grad_out);
        Case { batch, seqlen, dim, dstate, groups, options, transposed, u, delta, a, b, c, d, z, bias, initial, offsets, grad_out }
    }
}

/// Offsets of up to four sequences, some of them empty.
fn cuts(from: &mut Source<'_>, seqlen: usize) -> Result<Vec<i64>> {
    let mut offsets = vec![0, seqlen as i64];
    for _ in 0..from.upto(3)? {
        offsets.push(from.upto(seqlen)? as i64);
    }
    offsets.sort_unstable();
    Ok(offsets)
}

impl<T: Real<Stored<T> = T>> Case<T> {
    fn states(&self) -> usize {
        self.offsets.as_ref().map_or(self.batch, |o| o.len() - 1)
    }

    fn layout(&self) -> ([usize; 3], [isize; 3]) {
        let (l, d) = (self.seqlen as isize, self.dim as isize);
        let strides = if self.transposed { [l * d, 1, l] } else { [l * d, d, 1] };
        ([self.batch, self.seqlen, self.dim], strides)
    }

    pub fn inputs(&self) -> SelectiveInputs<'_, T, T> {
        let (dims, strides) = self.layout();
        let shared = [self.batch, self.seqlen, self.groups, self.dstate];
        let offsets = self.offsets.as_ref().map(|o| Sequences::CuSeqlens(View::new(o, [o.len()])));
        SelectiveInputs {
            u: View::strided(&self.u, 0, dims, strides),
            delta: View::strided(&self.delta, 0, dims, strides),
            A: View::new(&self.a, [self.dim, self.dstate]),
            B: Coefficient::Varying(View::new(&self.b, shared)),
            C: Coefficient::Varying(View::new(&self.c, shared)),
            D: self.d.as_ref().map(|v| View::new(v, [self.dim])),
            z: self.z.as_ref().map(|v| View::strided(v, 0, dims, strides)),
            delta_bias: self.bias.as_ref().map(|v| View::new(v, [self.dim])),
            initial_state: self.initial.as_ref().map(|v| View::new(v, [self.states(), self.dim, self.dstate])),
            sequences: offsets.unwrap_or_default(),
            options: self.options,
        }
    }

    pub fn forward(&self, engine: &impl SelectiveScan<Memory = Host>) -> Out<T> {
        let (dims, strides) = self.layout();
        let state = [self.states(), self.dim, self.dstate];
        let (mut out, mut last) = (vec![T::ZERO; self.u.len()], vec![T::ZERO; state.iter().product()]);
        let args = SelectiveFwd {
            inputs: self.inputs(),
            out: ViewMut::strided(&mut out, 0, dims, strides),
            last_state: Some(ViewMut::new(&mut last, state)),
        };
        let problem = args.check().expect("a valid scan");
        let mut buffer = Buffer::new();
        let mut ws = buffer.workspace(engine.selective_scan_fwd_workspace::<T, T>(&problem));
        engine.selective_scan_fwd(args, &mut ws).expect("a valid scan");
        vec![("out", out), ("last_state", last)]
    }

    pub fn backward(&self, engine: &impl SelectiveScan<Memory = Host>) -> Out<T> {
        let (dims, strides) = self.layout();
        let state = [self.states(), self.dim, self.dstate];
        let shared = [self.batch, self.seqlen, self.groups, self.dstate];
        let zeros = |n: usize| vec![T::ZERO; n];
        let (mut u, mut delta, mut a) = (zeros(self.u.len()), zeros(self.u.len()), zeros(self.a.len()));
        let (mut b, mut c, mut d, mut z) = (zeros(self.b.len()), zeros(self.c.len()), zeros(self.dim), zeros(self.u.len()));
        let (mut bias, mut initial) = (zeros(self.dim), zeros(state.iter().product()));
        let grads = SelectiveGrads {
            u: Some(ViewMut::strided(&mut u, 0, dims, strides)),
            delta: Some(ViewMut::strided(&mut delta, 0, dims, strides)),
            A: Some(ViewMut::new(&mut a, [self.dim, self.dstate])),
            B: Some(CoefficientGrad::Varying(ViewMut::new(&mut b, shared))),
            C: Some(CoefficientGrad::Varying(ViewMut::new(&mut c, shared))),
            D: self.d.as_ref().map(|_| ViewMut::new(&mut d, [self.dim])),
            z: self.z.as_ref().map(|_| ViewMut::strided(&mut z, 0, dims, strides)),
            delta_bias: self.bias.as_ref().map(|_| ViewMut::new(&mut bias, [self.dim])),
            initial_state: self.initial.as_ref().map(|_| ViewMut::new(&mut initial, state)),
        };
        let grad_out = View::strided(&self.grad_out, 0, dims, strides);
        let args = SelectiveBwd { inputs: self.inputs(), grad_out, grad_last_state: None, grads };
        let problem = args.check().expect("a valid backward scan");
        let mut buffer = Buffer::new();
        let mut ws = buffer.workspace(engine.selective_scan_bwd_workspace::<T, T>(&problem));
        engine.selective_scan_bwd(args, &mut ws).expect("a valid backward scan");
        vec![
            ("grad u", u),
            ("grad delta", delta),
            ("grad A", a),
            ("grad B", b),
            ("grad C", c),
            ("grad D", d),
            ("grad z", z),
            ("grad delta_bias", bias),
            ("grad initial_state", initial),
        ]
    }

    /// One decode step from the problem's first position, on `slots`.
    pub fn step(&self, engine: &impl SelectiveScan<Memory = Host>, slots: &[i32]) -> Out<T> {
        let rows = [self.batch, self.dim];
        let shared = [self.batch, self.groups, self.dstate];
        let taken = self.batch * self.dim;
        let state_dims = [self.states(), self.dim, self.dstate];
        let mut state = self.initial.clone().unwrap_or_else(|| vec![T::ZERO; state_dims.iter().product()]);
        let mut out = vec![T::ZERO; taken];
        let args = SelectiveStep {
            u: View::new(&self.u[..taken], rows),
            delta: View::new(&self.delta[..taken], rows),
            A: View::new(&self.a, [self.dim, self.dstate]),
            B: Coefficient::Varying(View::new(&self.b[..self.batch * self.groups * self.dstate], shared)),
            C: Coefficient::Varying(View::new(&self.c[..self.batch * self.groups * self.dstate], shared)),
            D: self.d.as_ref().map(|v| View::new(v, [self.dim])),
            z: self.z.as_ref().map(|v| View::new(&v[..taken], rows)),
            delta_bias: self.bias.as_ref().map(|v| View::new(v, [self.dim])),
            state: ViewMut::new(&mut state, state_dims),
            slots: Some(View::new(slots, [self.batch])),
            out: ViewMut::new(&mut out, rows),
            options: self.options,
        };
        let problem = args.check().expect("a valid step");
        let mut buffer = Buffer::new();
        let mut ws = buffer.workspace(engine.selective_state_update_workspace::<T, T>(&problem));
        engine.selective_state_update(args, &mut ws).expect("a valid step");
        vec![("out", out), ("state", state)]
    }
}

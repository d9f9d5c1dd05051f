//! The selective scan with everything on, at the published initialisation: forward, backward, decode step.

use std::marker::PhantomData;

use selective_scan::element::{Dtype, Element, Input, Real, Weight};
use selective_scan::error::Error;
use selective_scan::selective::{
    Coefficient, CoefficientGrad, SelectiveBwd, SelectiveFwd, SelectiveGrads, SelectiveInputs, SelectiveOptions, SelectiveStep,
};
use selective_scan::sequences::Sequences;

use super::operator::{Family, Operator, Work};
use super::place::{Engine, Place, numbers};
use super::shape::{Layout, Shape};

/// Multiply-adds of a CPU's pipe an element, as counted in the notes: the exponential, the recurrence, the sum over states; and the same for backward.
const FORWARD: f64 = 9.0;
const BACKWARD: f64 = 20.0;

/// What the scans read.
pub struct Operands<P: Place, I: Input, W: Weight<Real = I::Accum>> {
    shape: Shape,
    u: P::Array<I>,
    delta: P::Array<I>,
    b: P::Array<W::Stored<I>>,
    c: P::Array<W::Stored<I>>,
    z: P::Array<I>,
    a: P::Array<W>,
    d: P::Array<I::Accum>,
    bias: P::Array<I::Accum>,
}

impl<P: Place, I: Input, W: Weight<Real = I::Accum>> Operands<P, I, W> {
    fn new(place: &P, shape: Shape) -> Result<Self, Error> {
        let (count, shared, dim, n) = (shape.count(), shape.batch * shape.seqlen * shape.extra, shape.dim, shape.extra);
        let real = I::Accum::from_f64;
        // −1 … −N; a complex one turns as it decays.
        let a = |i: usize| W::from_parts(real(-((i % n + 1) as f64)), real((i % n) as f64));
        Ok(Operands {
            shape,
            u: place.data(count, [-1.0, 1.0], 1)?,
            delta: place.data(count, [-0.5, 0.5], 2)?,
            b: place.data(shared, [-1.0, 1.0], 3)?,
            c: place.data(shared, [-1.0, 1.0], 4)?,
            z: place.data(count, [-2.0, 2.0], 5)?,
            a: place.array((0..dim * n).map(a).collect())?,
            d: place.array(vec![real(1.0); dim])?,
            bias: place.data(dim, [-6.9, -2.25], 6)?,
        })
    }

    fn options() -> SelectiveOptions {
        SelectiveOptions { delta_softplus: true, ..SelectiveOptions::default() }
    }

    fn inputs(&self) -> SelectiveInputs<'_, I, W, P::Memory> {
        let Shape { batch, seqlen, dim, extra, layout } = self.shape;
        let tensor = |of| self.shape.view::<P, I>(of);
        let coefficient = |of| match layout {
            Layout::Bld => P::view::<W::Stored<I>, 4>(of, [batch, seqlen, 1, extra]),
            Layout::Bdl => P::view::<W::Stored<I>, 4>(of, [batch, 1, extra, seqlen]).permute([0, 3, 1, 2]),
        };
        SelectiveInputs {
            u: tensor(&self.u),
            delta: tensor(&self.delta),
            A: P::view(&self.a, [dim, extra]),
            B: Coefficient::Varying(coefficient(&self.b)),
            C: Coefficient::Varying(coefficient(&self.c)),
            D: Some(P::view(&self.d, [dim])),
            z: Some(tensor(&self.z)),
            delta_bias: Some(P::view(&self.bias, [dim])),
            initial_state: None,
            sequences: Sequences::Rows,
            options: Self::options(),
        }
    }

    /// Bytes of u, Δ, z, B and C; weights are nothing beside them.
    fn bytes(shape: Shape) -> f64 {
        (3 * shape.count() * size_of::<I>() + 2 * shape.batch * shape.seqlen * shape.extra * size_of::<W::Stored<I>>()) as f64
    }

    /// The work of a scan that moves so many bytes: complex numbers take four multiply-adds for one and a sine and a cosine more, f64 half of a vector's lanes.
    fn work(shape: Shape, bytes: f64, fp32: f64, multiply_adds: f64) -> Work {
        let elements = shape.states() as f64;
        let (parts, functions) = if W::COMPLEX { (4.0, 3.0) } else { (1.0, 1.0) };
        let wide = if size_of::<I::Accum>() == 8 { 2.0 } else { 1.0 };
        Work {
            elements,
            bytes,
            fp32: fp32 * elements * parts * wide,
            exponentials: functions * elements,
            multiply_adds: multiply_adds * elements * parts * wide,
        }
    }
}

/// The forward scan; with `SAVED` that of a training step, which also keeps what the backward one uses.
pub struct Fwd<I, W, const SAVED: bool = false>(PhantomData<(I, W)>);

pub struct FwdAt<P: Place, I: Input, W: Weight<Real = I::Accum>, const SAVED: bool> {
    of: Operands<P, I, W>,
    out: P::Array<I>,
    saved: Option<P::Array<u8>>,
}

impl<I: Input, W: Weight<Real = I::Accum>, const SAVED: bool> Family for Fwd<I, W, SAVED> {
    const OP: &'static str = if SAVED { "selective_scan_fwd_saving" } else { "selective_scan_fwd" };
    const INPUT: Dtype = I::DTYPE;
    const WEIGHT: Dtype = W::DTYPE;
    type On<P: Place> = FwdAt<P, I, W, SAVED>;

    fn work(shape: Shape) -> Work {
        let bytes = Operands::<super::place::Here, I, W>::bytes(shape) + super::operator::bytes::<I>(shape.count());
        Operands::<super::place::Here, I, W>::work(shape, bytes, 4.0, FORWARD)
    }
}

impl<P: Place, I: Input, W: Weight<Real = I::Accum>, const SAVED: bool> Operator<P> for FwdAt<P, I, W, SAVED> {
    fn new(place: &P, shape: Shape) -> Result<Self, Error> {
        Ok(FwdAt { of: Operands::new(place, shape)?, out: place.zeros(shape.count())?, saved: None })
    }

    fn call(&mut self, place: &P, engine: &impl Engine<P::Memory>, scratch: &mut P::Scratch) -> Result<(), Error> {
        let out = self.of.shape.view_mut::<P, I>(&mut self.out);
        let args = SelectiveFwd { inputs: self.of.inputs(), out, last_state: None };
        if SAVED {
            return saving(place, engine, args, &mut self.saved, scratch);
        }
        let bytes = engine.selective_scan_fwd_workspace::<I, W>(&args.check()?);
        engine.selective_scan_fwd(args, &mut place.workspace(scratch, bytes)?)
    }

    fn results(&self) -> Result<Vec<Vec<f64>>, Error> {
        Ok(vec![numbers::<P, I>(&self.out)?])
    }
}

/// The forward scan of a training step into `saved`, which is made where there is none.
fn saving<P: Place, I: Input, W: Weight<Real = I::Accum>>(
    place: &P,
    engine: &impl Engine<P::Memory>,
    args: SelectiveFwd<'_, I, W, P::Memory>,
    saved: &mut Option<P::Array<u8>>,
    scratch: &mut P::Scratch,
) -> Result<(), Error> {
    let problem = args.check()?;
    let count = engine.selective_scan_saved_bytes::<I, W>(&problem);
    if saved.is_none() {
        *saved = Some(place.zeros(count)?);
    }
    let into = P::view_mut(saved.as_mut().expect("just made"), [count]);
    let bytes = engine.selective_scan_fwd_saving_workspace::<I, W>(&problem);
    engine.selective_scan_fwd_saving(args, into, &mut place.workspace(scratch, bytes)?)
}

/// Every gradient from inputs and ∂out; states are recomputed, or with `SAVED` those that a forward scan has kept, which is not timed.
pub struct Bwd<I, W, const SAVED: bool = false>(PhantomData<(I, W)>);

pub struct BwdAt<P: Place, I: Input, W: Weight<Real = I::Accum>, const SAVED: bool> {
    of: Operands<P, I, W>,
    saved: Option<P::Array<u8>>,
    grad_out: P::Array<I>,
    u: P::Array<I>,
    delta: P::Array<I>,
    z: P::Array<I>,
    b: P::Array<W::Stored<I>>,
    c: P::Array<W::Stored<I>>,
    a: P::Array<W>,
    d: P::Array<I::Accum>,
    bias: P::Array<I::Accum>,
}

impl<I: Input, W: Weight<Real = I::Accum>, const SAVED: bool> Family for Bwd<I, W, SAVED> {
    const OP: &'static str = if SAVED { "selective_scan_bwd_from" } else { "selective_scan_bwd" };
    const INPUT: Dtype = I::DTYPE;
    const WEIGHT: Dtype = W::DTYPE;
    type On<P: Place> = BwdAt<P, I, W, SAVED>;

    fn work(shape: Shape) -> Work {
        let bytes = 2.0 * Operands::<super::place::Here, I, W>::bytes(shape) + super::operator::bytes::<I>(shape.count());
        Operands::<super::place::Here, I, W>::work(shape, bytes, 12.0, BACKWARD)
    }
}

impl<P: Place, I: Input, W: Weight<Real = I::Accum>, const SAVED: bool> Operator<P> for BwdAt<P, I, W, SAVED> {
    fn new(place: &P, shape: Shape) -> Result<Self, Error> {
        let (count, shared, dim) = (shape.count(), shape.batch * shape.seqlen * shape.extra, shape.dim);
        Ok(BwdAt {
            of: Operands::new(place, shape)?,
            saved: None,
            grad_out: place.data(count, [-1.0, 1.0], 7)?,
            u: place.zeros(count)?,
            delta: place.zeros(count)?,
            z: place.zeros(count)?,
            b: place.zeros(shared)?,
            c: place.zeros(shared)?,
            a: place.zeros(dim * shape.extra)?,
            d: place.zeros(dim)?,
            bias: place.zeros(dim)?,
        })
    }

    fn call(&mut self, place: &P, engine: &impl Engine<P::Memory>, scratch: &mut P::Scratch) -> Result<(), Error> {
        let shape @ Shape { batch, seqlen, dim, extra, .. } = self.of.shape;
        if SAVED && self.saved.is_none() {
            // Where ∂u will be.
            let out = shape.view_mut::<P, I>(&mut self.u);
            saving(place, engine, SelectiveFwd { inputs: self.of.inputs(), out, last_state: None }, &mut self.saved, scratch)?;
        }
        let shared = [batch, seqlen, 1, extra];
        let grads = SelectiveGrads {
            u: Some(shape.view_mut::<P, I>(&mut self.u)),
            delta: Some(shape.view_mut::<P, I>(&mut self.delta)),
            A: Some(P::view_mut(&mut self.a, [dim, extra])),
            B: Some(CoefficientGrad::Varying(P::view_mut(&mut self.b, shared))),
            C: Some(CoefficientGrad::Varying(P::view_mut(&mut self.c, shared))),
            D: Some(P::view_mut(&mut self.d, [dim])),
            z: Some(shape.view_mut::<P, I>(&mut self.z)),
            delta_bias: Some(P::view_mut(&mut self.bias, [dim])),
            initial_state: None,
        };
        let args = SelectiveBwd { inputs: self.of.inputs(), grad_out: shape.view::<P, I>(&self.grad_out), grad_last_state: None, grads };
        let problem = args.check()?;
        let bytes = engine.selective_scan_bwd_workspace::<I, W>(&problem);
        let ws = &mut place.workspace(scratch, bytes)?;
        match &self.saved {
            Some(saved) => engine.selective_scan_bwd_from(args, P::view(saved, [engine.selective_scan_saved_bytes::<I, W>(&problem)]), ws),
            None => engine.selective_scan_bwd(args, ws),
        }
    }

    fn results(&self) -> Result<Vec<Vec<f64>>, Error> {
        let mut all = Vec::new();
        for tensor in [&self.u, &self.delta, &self.z] {
            all.push(numbers::<P, I>(tensor)?);
        }
        for tensor in [&self.b, &self.c] {
            all.push(numbers::<P, W::Stored<I>>(tensor)?);
        }
        all.push(numbers::<P, W>(&self.a)?);
        all.push(numbers::<P, I::Accum>(&self.d)?);
        all.push(numbers::<P, I::Accum>(&self.bias)?);
        Ok(all)
    }
}

/// A decode step of B rows; states are stored as S, (B, D, N).
pub struct Step<I, W, S>(PhantomData<(I, W, S)>);

pub struct StepAt<P: Place, I: Input, W: Weight<Real = I::Accum>, S: Element<Arith = W>> {
    of: Operands<P, I, W>,
    state: P::Array<S>,
    out: P::Array<I>,
}

impl<I: Input, W: Weight<Real = I::Accum>, S: Element<Arith = W>> Family for Step<I, W, S> {
    const OP: &'static str = "selective_state_update";
    const INPUT: Dtype = I::DTYPE;
    const WEIGHT: Dtype = W::DTYPE;
    const SUFFIX: &'static str = match S::DTYPE {
        Dtype::F32 => "_sf32",
        Dtype::F64 => "_sf64",
        Dtype::F16 => "_sf16",
        Dtype::Bf16 => "_sbf16",
        Dtype::C32 => "_sc32",
        Dtype::C64 => "_sc64",
        Dtype::Cf16 => "_scf16",
        Dtype::Cbf16 => "_scbf16",
    };
    type On<P: Place> = StepAt<P, I, W, S>;

    fn work(shape: Shape) -> Work {
        let shape = Shape { seqlen: 1, ..shape };
        let rows = Operands::<super::place::Here, I, W>::bytes(shape) + super::operator::bytes::<I>(shape.count());
        let bytes = rows + (2 * shape.states() * size_of::<S>()) as f64;
        Operands::<super::place::Here, I, W>::work(shape, bytes, 4.0, FORWARD)
    }
}

impl<P: Place, I: Input, W: Weight<Real = I::Accum>, S: Element<Arith = W>> Operator<P> for StepAt<P, I, W, S> {
    fn new(place: &P, shape: Shape) -> Result<Self, Error> {
        let shape = Shape { seqlen: 1, ..shape };
        let state = place.data(shape.states(), [-1.0, 1.0], 8)?;
        Ok(StepAt { of: Operands::new(place, shape)?, state, out: place.zeros(shape.count())? })
    }

    fn call(&mut self, place: &P, engine: &impl Engine<P::Memory>, scratch: &mut P::Scratch) -> Result<(), Error> {
        let Shape { batch, dim, extra, .. } = self.of.shape;
        let (rows, shared) = ([batch, dim], [batch, 1, extra]);
        // For steps the other layout is that of the states: (B, N, D), channels contiguous.
        let state = match self.of.shape.layout {
            Layout::Bld => P::view_mut(&mut self.state, [batch, dim, extra]),
            Layout::Bdl => P::view_mut(&mut self.state, [batch, extra, dim]).permute([0, 2, 1]),
        };
        let args = SelectiveStep {
            u: P::view(&self.of.u, rows),
            delta: P::view(&self.of.delta, rows),
            A: P::view(&self.of.a, [dim, extra]),
            B: Coefficient::Varying(P::view(&self.of.b, shared)),
            C: Coefficient::Varying(P::view(&self.of.c, shared)),
            D: Some(P::view(&self.of.d, [dim])),
            z: Some(P::view(&self.of.z, rows)),
            delta_bias: Some(P::view(&self.of.bias, [dim])),
            state,
            slots: None,
            out: P::view_mut(&mut self.out, rows),
            options: Operands::<P, I, W>::options(),
        };
        let bytes = engine.selective_state_update_workspace::<I, W>(&args.check()?);
        engine.selective_state_update(args, &mut place.workspace(scratch, bytes)?)
    }

    fn results(&self) -> Result<Vec<Vec<f64>>, Error> {
        Ok(vec![numbers::<P, I>(&self.out)?, numbers::<P, S>(&self.state)?])
    }
}

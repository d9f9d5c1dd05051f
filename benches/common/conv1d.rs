//! The causal convolution with bias and SiLU: forward, backward, decode step.

use std::marker::PhantomData;

use selective_scan::element::{Dtype, Element, Input};
use selective_scan::error::Error;
use selective_scan::layers::conv1d::{ConvBwd, ConvFwd, ConvGrads, ConvInputs, ConvProblem, ConvStep};
use selective_scan::sequences::Sequences;

use super::operator::{Family, Operator, Work, bytes};
use super::place::{Engine, Place, numbers};
use super::shape::Shape;

/// Multiply-adds of SiLU, an exponential and a division.
const SILU: f64 = 12.0;

/// Which of the three.
pub const FWD: usize = 0;
pub const BWD: usize = 1;
pub const UPDATE: usize = 2;

/// One of them; N of a shape is the number of taps.
pub struct Conv<I, const WHICH: usize>(PhantomData<I>);

impl<I: Input, const WHICH: usize> Family for Conv<I, WHICH> {
    const OP: &'static str = ["causal_conv1d_fwd", "causal_conv1d_bwd", "causal_conv1d_update"][WHICH];
    const INPUT: Dtype = I::DTYPE;
    const WEIGHT: Dtype = <I::Accum as Element>::DTYPE;
    type On<P: Place> = ConvAt<P, I, WHICH>;

    fn work(shape: Shape) -> Work {
        let shape = if WHICH == UPDATE { Shape { seqlen: 1, ..shape } } else { shape };
        let (count, taps) = (shape.count(), shape.extra as f64);
        // x and out, or x and two gradients, or x, out and the window twice.
        let tensors = [2, 3, 2 + 2 * (shape.extra - 1)][WHICH];
        let each = if WHICH == BWD { 3.0 * taps + 2.0 * SILU } else { taps + SILU };
        let elements = count as f64;
        Work { elements, bytes: bytes::<I>(tensors * count), fp32: each * elements, exponentials: elements, multiply_adds: each * elements }
    }
}

pub struct ConvAt<P: Place, I: Input, const WHICH: usize> {
    shape: Shape,
    x: P::Array<I>,
    weight: P::Array<I::Accum>,
    bias: P::Array<I::Accum>,
    grad_out: P::Array<I>,
    out: P::Array<I>,
    grad_weight: P::Array<I::Accum>,
    grad_bias: P::Array<I::Accum>,
    window: P::Array<I>,
}

impl<P: Place, I: Input, const WHICH: usize> ConvAt<P, I, WHICH> {
    fn update(&mut self, place: &P, engine: &impl Engine<P::Memory>, scratch: &mut P::Scratch) -> Result<(), Error> {
        let Shape { batch, dim, extra: width, .. } = self.shape;
        let problem = ConvProblem { batch, seqlen: 1, dim, width, states: batch };
        let bytes = engine.causal_conv1d_update_workspace::<I>(&problem);
        let args = ConvStep {
            x: P::view(&self.x, [batch, dim]),
            weight: P::view(&self.weight, [dim, width]),
            bias: Some(P::view(&self.bias, [dim])),
            window: P::view_mut(&mut self.window, [batch, width - 1, dim]),
            slots: None,
            out: P::view_mut(&mut self.out, [batch, dim]),
            silu: true,
        };
        engine.causal_conv1d_update(args, &mut place.workspace(scratch, bytes)?)
    }
}

impl<P: Place, I: Input, const WHICH: usize> Operator<P> for ConvAt<P, I, WHICH> {
    fn new(place: &P, shape: Shape) -> Result<Self, Error> {
        let shape = if WHICH == UPDATE { Shape { seqlen: 1, ..shape } } else { shape };
        let (count, taps) = (shape.count(), shape.dim * shape.extra);
        Ok(ConvAt {
            shape,
            x: place.data(count, [-1.0, 1.0], 1)?,
            weight: place.data(taps, [-0.5, 0.5], 2)?,
            bias: place.data(shape.dim, [-0.5, 0.5], 3)?,
            grad_out: place.data(if WHICH == BWD { count } else { 0 }, [-1.0, 1.0], 4)?,
            out: place.zeros(count)?,
            grad_weight: place.zeros(taps)?,
            grad_bias: place.zeros(shape.dim)?,
            window: place.data(if WHICH == UPDATE { shape.batch * (shape.extra - 1) * shape.dim } else { 0 }, [-1.0, 1.0], 5)?,
        })
    }

    fn call(&mut self, place: &P, engine: &impl Engine<P::Memory>, scratch: &mut P::Scratch) -> Result<(), Error> {
        if WHICH == UPDATE {
            return self.update(place, engine, scratch);
        }
        let (shape, taps) = (self.shape, [self.shape.dim, self.shape.extra]);
        let inputs = ConvInputs {
            x: shape.view::<P, I>(&self.x),
            weight: P::view(&self.weight, taps),
            bias: Some(P::view(&self.bias, [shape.dim])),
            initial_window: None,
            sequences: Sequences::Rows,
            silu: true,
        };
        let out = shape.view_mut::<P, I>(&mut self.out);
        if WHICH == FWD {
            let args = ConvFwd { inputs, out, final_window: None };
            let bytes = engine.causal_conv1d_fwd_workspace::<I>(&args.check()?);
            return engine.causal_conv1d_fwd(args, &mut place.workspace(scratch, bytes)?);
        }
        let grads = ConvGrads {
            x: Some(out),
            weight: Some(P::view_mut(&mut self.grad_weight, taps)),
            bias: Some(P::view_mut(&mut self.grad_bias, [shape.dim])),
            initial_window: None,
        };
        let args = ConvBwd { inputs, grad_out: shape.view::<P, I>(&self.grad_out), grad_final_window: None, grads };
        let bytes = engine.causal_conv1d_bwd_workspace::<I>(&args.check()?);
        engine.causal_conv1d_bwd(args, &mut place.workspace(scratch, bytes)?)
    }

    fn results(&self) -> Result<Vec<Vec<f64>>, Error> {
        let sums = [&self.grad_weight, &self.grad_bias].map(numbers::<P, I::Accum>);
        let tensors = [&self.out, &self.window].map(numbers::<P, I>);
        tensors.into_iter().chain(sums).collect()
    }
}

//! RMSNorm with its residual stream, and products.

use std::marker::PhantomData;

use selective_scan::element::{Dtype, Element, Input, Real};
use selective_scan::error::Error;
use selective_scan::layers::linear::{LinearBwd, LinearFwd, LinearProblem};
use selective_scan::layers::norm::{NormBwd, NormFwd};

use super::operator::{Family, Operator, Work, bytes};
use super::place::{Engine, Place, numbers};
use super::shape::Shape;

/// ε of the norm.
const EPS: f64 = 1e-5;

/// The norm of B·L rows of D, forward with a residual or backward.
pub struct Norm<I, const BACKWARD: bool>(PhantomData<I>);

impl<I: Input, const BACKWARD: bool> Family for Norm<I, BACKWARD> {
    const OP: &'static str = if BACKWARD { "rms_norm_bwd" } else { "rms_norm_fwd" };
    const INPUT: Dtype = I::DTYPE;
    const WEIGHT: Dtype = <I::Accum as Element>::DTYPE;
    type On<P: Place> = NormAt<P, I, BACKWARD>;

    fn work(shape: Shape) -> Work {
        // x, residual, r and out; or r, ∂out, ∂r and ∂x.
        let elements = shape.count() as f64;
        let each = if BACKWARD { 6.0 } else { 3.0 };
        Work { elements, bytes: bytes::<I>(4 * shape.count()), fp32: each * elements, exponentials: 0.0, multiply_adds: each * elements }
    }
}

pub struct NormAt<P: Place, I: Input, const BACKWARD: bool> {
    dims: [usize; 2],
    x: P::Array<I>,
    residual: P::Array<I>,
    weight: P::Array<I::Accum>,
    out: P::Array<I>,
    residual_out: P::Array<I>,
    grad_weight: P::Array<I::Accum>,
}

impl<P: Place, I: Input, const BACKWARD: bool> Operator<P> for NormAt<P, I, BACKWARD> {
    fn new(place: &P, shape: Shape) -> Result<Self, Error> {
        let count = shape.count();
        Ok(NormAt {
            dims: [shape.batch * shape.seqlen, shape.dim],
            x: place.data(count, [-1.0, 1.0], 1)?,
            residual: place.data(count, [-1.0, 1.0], 2)?,
            weight: place.data(shape.dim, [0.5, 1.5], 3)?,
            out: place.zeros(count)?,
            residual_out: place.data(count, [-1.0, 1.0], 4)?,
            grad_weight: place.zeros(shape.dim)?,
        })
    }

    fn call(&mut self, place: &P, engine: &impl Engine<P::Memory>, scratch: &mut P::Scratch) -> Result<(), Error> {
        let (dims, weight) = (self.dims, P::view(&self.weight, [self.dims[1]]));
        if !BACKWARD {
            let bytes = engine.rms_norm_fwd_workspace::<I>(dims);
            let args = NormFwd::<I, I, P::Memory> {
                residual: Some(P::view(&self.residual, dims)),
                residual_out: Some(P::view_mut(&mut self.residual_out, dims)),
                ..NormFwd::new(P::view(&self.x, dims), weight, EPS, P::view_mut(&mut self.out, dims))
            };
            return engine.rms_norm_fwd(args, &mut place.workspace(scratch, bytes)?);
        }
        let bytes = engine.rms_norm_bwd_workspace::<I>(dims);
        let args = NormBwd::<I, I, P::Memory> {
            grad_residual_out: Some(P::view(&self.residual, dims)),
            grad_x: Some(P::view_mut(&mut self.out, dims)),
            grad_weight: Some(P::view_mut(&mut self.grad_weight, [dims[1]])),
            ..NormBwd::new(P::view(&self.residual_out, dims), weight, EPS, P::view(&self.x, dims))
        };
        engine.rms_norm_bwd(args, &mut place.workspace(scratch, bytes)?)
    }

    fn results(&self) -> Result<Vec<Vec<f64>>, Error> {
        let weight = numbers::<P, I::Accum>(&self.grad_weight)?;
        Ok(vec![numbers::<P, I>(&self.out)?, numbers::<P, I>(&self.residual_out)?, weight])
    }
}

/// The product of B·L rows of N by (D, N), or its gradients.
pub struct Product<I, const BACKWARD: bool>(PhantomData<I>);

impl<I: Input, const BACKWARD: bool> Family for Product<I, BACKWARD> {
    const OP: &'static str = if BACKWARD { "linear_bwd" } else { "linear_fwd" };
    const INPUT: Dtype = I::DTYPE;
    const WEIGHT: Dtype = I::DTYPE;
    const SLACK: f64 = 2.0;
    const PRODUCT: bool = true;
    type On<P: Place> = ProductAt<P, I, BACKWARD>;

    fn work(shape: Shape) -> Work {
        let (rows, k, n) = (shape.batch * shape.seqlen, shape.extra, shape.dim);
        let (times, wide) = (if BACKWARD { 2.0 } else { 1.0 }, if size_of::<I::Accum>() == 8 { 2.0 } else { 1.0 });
        let elements = times * (rows * k) as f64 * n as f64;
        let once = bytes::<I>(rows * k) + bytes::<I>(rows * n) + bytes::<I>(k * n);
        let sums = if BACKWARD { bytes::<I>(rows * k) + bytes::<I::Accum>(k * n) } else { 0.0 };
        Work { elements, bytes: once + sums, fp32: elements * wide, exponentials: 0.0, multiply_adds: elements * wide }
    }
}

pub struct ProductAt<P: Place, I: Input, const BACKWARD: bool> {
    problem: LinearProblem,
    x: P::Array<I>,
    weight: P::Array<I>,
    out: P::Array<I>,
    grad_x: P::Array<I>,
    grad_weight: P::Array<I::Accum>,
}

impl<P: Place, I: Input, const BACKWARD: bool> Operator<P> for ProductAt<P, I, BACKWARD> {
    fn new(place: &P, shape: Shape) -> Result<Self, Error> {
        let (rows, k, n) = (shape.batch * shape.seqlen, shape.extra, shape.dim);
        let root = 1.0 / (k as f64).sqrt();
        let back = |count| if BACKWARD { count } else { 0 };
        Ok(ProductAt {
            problem: LinearProblem { rows, inputs: k, outputs: n },
            x: place.data(rows * k, [-1.0, 1.0], 1)?,
            weight: place.data(n * k, [-root, root], 2)?,
            out: place.data(rows * n, [-1.0, 1.0], 3)?,
            grad_x: place.zeros(back(rows * k))?,
            grad_weight: place.zeros(back(n * k))?,
        })
    }

    fn call(&mut self, place: &P, engine: &impl Engine<P::Memory>, scratch: &mut P::Scratch) -> Result<(), Error> {
        let LinearProblem { rows, inputs: k, outputs: n } = self.problem;
        let (x, weight) = (P::view(&self.x, [rows, k]), P::view(&self.weight, [n, k]));
        if !BACKWARD {
            let bytes = engine.linear_fwd_workspace::<I>(self.problem);
            let args = LinearFwd { x, weight, bias: None, out: P::view_mut(&mut self.out, [rows, n]) };
            return engine.linear_fwd(args, &mut place.workspace(scratch, bytes)?);
        }
        let bytes = engine.linear_bwd_workspace::<I>(self.problem);
        let args = LinearBwd {
            x,
            weight,
            grad_out: P::view(&self.out, [rows, n]),
            grad_x: Some(P::view_mut(&mut self.grad_x, [rows, k])),
            grad_weight: Some(P::view_mut(&mut self.grad_weight, [n, k])),
            grad_bias: None,
        };
        engine.linear_bwd(args, &mut place.workspace(scratch, bytes)?)
    }

    fn results(&self) -> Result<Vec<Vec<f64>>, Error> {
        let (out, weight) = (if BACKWARD { &self.grad_x } else { &self.out }, numbers::<P, I::Accum>(&self.grad_weight)?);
        Ok(vec![numbers::<P, I>(out)?, weight.iter().map(|x| f64::from_f64(*x)).collect()])
    }
}

//! The affine recurrence, forward and its adjoint.

use std::marker::PhantomData;

use selective_scan::element::{Dtype, Element, Weight};
use selective_scan::error::Error;
use selective_scan::scan::{ScanBwd, ScanFwd};

use super::operator::{Family, Operator, Work};
use super::place::{Engine, Place, numbers};
use super::shape::Shape;

/// One of the two.
pub struct Linear<E, const BACKWARD: bool>(PhantomData<E>);

impl<E: Element, const BACKWARD: bool> Family for Linear<E, BACKWARD> {
    const OP: &'static str = if BACKWARD { "linear_scan_bwd" } else { "linear_scan_fwd" };
    const INPUT: Dtype = E::DTYPE;
    const WEIGHT: Dtype = <E::Arith as Element>::DTYPE;
    type On<P: Place> = LinearAt<P, E, BACKWARD>;

    fn work(shape: Shape) -> Work {
        // a, b and h; or a, b, ∂h, ∂a and ∂b, where h is recomputed.
        let (tensors, adds) = if BACKWARD { (5, 3.0) } else { (3, 1.0) };
        let parts = if E::Arith::COMPLEX { 4.0 } else { 1.0 };
        let elements = shape.count() as f64;
        let bytes = (tensors * shape.count() * size_of::<E>()) as f64;
        Work { elements, bytes, fp32: adds * parts * elements, exponentials: 0.0, multiply_adds: adds * parts * elements }
    }
}

pub struct LinearAt<P: Place, E: Element, const BACKWARD: bool> {
    shape: Shape,
    a: P::Array<E>,
    b: P::Array<E>,
    g: P::Array<E>,
    out: P::Array<E>,
    grad_a: P::Array<E>,
}

impl<P: Place, E: Element, const BACKWARD: bool> Operator<P> for LinearAt<P, E, BACKWARD> {
    fn new(place: &P, shape: Shape) -> Result<Self, Error> {
        let (count, more) = (shape.count(), if BACKWARD { shape.count() } else { 0 });
        // A complex a of at most 1 in size decays too.
        let most = if E::Arith::COMPLEX { 0.7 } else { 1.0 };
        Ok(LinearAt {
            shape,
            a: place.data(count, [0.8 * most, most], 1)?,
            b: place.data(count, [-1.0, 1.0], 2)?,
            g: place.data(more, [-1.0, 1.0], 3)?,
            out: place.zeros(count)?,
            grad_a: place.zeros(more)?,
        })
    }

    fn call(&mut self, place: &P, engine: &impl Engine<P::Memory>, scratch: &mut P::Scratch) -> Result<(), Error> {
        let shape = self.shape;
        let (a, b, out) = (shape.view::<P, E>(&self.a), shape.view::<P, E>(&self.b), shape.view_mut::<P, E>(&mut self.out));
        if !BACKWARD {
            let args = ScanFwd { a, b, initial_state: None, h: out, last_state: None, reverse: false };
            let bytes = engine.scan_fwd_workspace::<E>(args.check()?);
            return engine.scan_fwd(args, &mut place.workspace(scratch, bytes)?);
        }
        let args = ScanBwd {
            a,
            b,
            initial_state: None,
            grad_h: shape.view::<P, E>(&self.g),
            grad_last_state: None,
            grad_a: Some(shape.view_mut::<P, E>(&mut self.grad_a)),
            grad_b: Some(out),
            grad_initial_state: None,
            reverse: false,
        };
        let bytes = engine.scan_bwd_workspace::<E>(args.check()?);
        engine.scan_bwd(args, &mut place.workspace(scratch, bytes)?)
    }

    fn results(&self) -> Result<Vec<Vec<f64>>, Error> {
        Ok(vec![numbers::<P, E>(&self.out)?, numbers::<P, E>(&self.grad_a)?])
    }
}

//! What an operator is to a bench: operands, a call, results, and how much work that is at least.

use selective_scan::buffer::Buffer;
use selective_scan::element::{Dtype, Input};
use selective_scan::error::Error;
use selective_scan::view::Host;

use super::place::{Engine, Here, Place};
use super::shape::Shape;

/// The least that a call has to do.
#[derive(Debug, Clone, Copy, Default)]
pub struct Work {
    /// What is counted as elements.
    pub elements: f64,
    /// Inputs once, outputs once, updated states twice.
    pub bytes: f64,
    /// Instructions of a GPU's floating-point pipe, per lane.
    pub fp32: f64,
    /// Exponentials of a GPU's special function units.
    pub exponentials: f64,
    /// Instructions of a CPU's multiply-add pipe, per lane.
    pub multiply_adds: f64,
}

/// A set of operands of an operator, and its call.
pub trait Operator<P: Place>: Sized {
    /// Operands of a shape.
    fn new(place: &P, shape: Shape) -> Result<Self, Error>;
    /// The operator.
    fn call(&mut self, place: &P, engine: &impl Engine<P::Memory>, scratch: &mut P::Scratch) -> Result<(), Error>;
    /// Outputs, each as numbers.
    fn results(&self) -> Result<Vec<Vec<f64>>, Error>;
}

/// An operator in one choice of types, for any place.
pub trait Family {
    /// Its name.
    const OP: &'static str;
    /// How inputs are stored.
    const INPUT: Dtype;
    /// How weights are stored.
    const WEIGHT: Dtype;
    /// Behind the shape: what else was chosen.
    const SUFFIX: &'static str = "";
    /// How many times as far results may be from another engine's as those of a single operation.
    const SLACK: f64 = 1.0;
    /// Operands at a place.
    type On<P: Place>: Operator<P>;
    /// The least work of a call.
    fn work(shape: Shape) -> Work;
    /// Whether a product is what takes the time: then a GPU has units for 16-bit storage whose rate is not measured here.
    const PRODUCT: bool = false;
}

/// `bf16_f32`.
pub fn types<F: Family>() -> String {
    format!("{}_{}", F::INPUT.name(), F::WEIGHT.name())
}

/// What two right results may differ by, of the largest number: roundings of storage, or arithmetic in two orders.
fn bound<F: Family>() -> f64 {
    F::SLACK
        * match F::INPUT {
            Dtype::Bf16 => 1e-2,
            Dtype::F16 => 2e-3,
            Dtype::F64 => 1e-11,
            _ => 1e-4,
        }
}

/// Bytes of a number of a type.
pub fn bytes<I: Input>(count: usize) -> f64 {
    (count * size_of::<I>()) as f64
}

/// Small operands through an engine and through another one on the host: the largest difference over the largest number of each output.
/// `Err` where that is more than it may be.
pub fn checked<F: Family, P: Place>(
    place: &P,
    engine: &impl Engine<P::Memory>,
    other: &impl Engine<Host>,
    shape: Shape,
) -> Result<f64, String> {
    let off = deviation::<F, P>(place, engine, other, shape.small()).map_err(|e| e.to_string())?;
    if off > bound::<F>() {
        return Err(format!("wrong results: {off:.1e} of the largest number away from another engine's, {:.1e} is allowed", bound::<F>()));
    }
    Ok(off)
}

fn deviation<F: Family, P: Place>(
    place: &P,
    engine: &impl Engine<P::Memory>,
    other: &impl Engine<Host>,
    shape: Shape,
) -> Result<f64, Error> {
    let (mut there, mut here) = (F::On::<P>::new(place, shape)?, F::On::<Here>::new(&Here, shape)?);
    there.call(place, engine, &mut P::Scratch::default())?;
    here.call(&Here, other, &mut Buffer::new())?;
    let mut worst = 0.0f64;
    for (got, want) in there.results()?.iter().zip(here.results()?) {
        let most = want.iter().fold(1e-30f64, |m, x| m.max(x.abs()));
        let far = got.iter().zip(&want).map(|(g, w)| if g.is_finite() { (g - w).abs() } else { f64::INFINITY });
        worst = worst.max(far.fold(0.0, f64::max) / most);
    }
    Ok(worst)
}

/// Views of (B, L, D) operands.
impl Shape {
    /// A (B, L, D) operand.
    pub fn view<'a, P: Place, T: bytemuck::Pod>(&self, of: &'a P::Array<T>) -> selective_scan::view::View<'a, T, 3, P::Memory> {
        match self.layout {
            super::shape::Layout::Bld => P::view(of, [self.batch, self.seqlen, self.dim]),
            super::shape::Layout::Bdl => P::view(of, [self.batch, self.dim, self.seqlen]).permute([0, 2, 1]),
        }
    }

    /// A (B, L, D) operand that is written.
    pub fn view_mut<'a, P: Place, T: bytemuck::Pod>(&self, of: &'a mut P::Array<T>) -> selective_scan::view::ViewMut<'a, T, 3, P::Memory> {
        match self.layout {
            super::shape::Layout::Bld => P::view_mut(of, [self.batch, self.seqlen, self.dim]),
            super::shape::Layout::Bdl => P::view_mut(of, [self.batch, self.dim, self.seqlen]).permute([0, 2, 1]),
        }
    }
}

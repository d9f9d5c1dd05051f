//! AdamW over flat arrays on the GPU.

use super::Cuda;
use super::expression::Vars;
use super::launch::{Grid, Kernel};
use super::params::{Strided, optional, params, storage, strided, strided_mut};
use super::template::{Template, template};
use crate::element::{Dtype, Real};
use crate::error::Error;
use crate::view::{Device, View, ViewMut};

/// Elements of a block.
const BLOCK: usize = 1024;

/// A variant.
pub(super) struct Step {
    dtype: Dtype,
}

params! {
    /// Operands and numbers of a step.
    pub struct StepParams {
        parameters: Strided<2>,
        gradients: Strided<2>,
        first: Strided<2>,
        second: Strided<2>,
        segments: Strided<3>,
        schedule: Strided<2>,
        segment_count: u64,
        norm: u64,
        refused: u64,
        count: u64,
        beta1: f64,
        beta2: f64,
        epsilon: f64,
        weight_decay: f64,
        clip: f64,
        rate: f64,
        correct1: f64,
        correct2: f64,
    }
}

impl Kernel for Step {
    const TEMPLATE: Template = template!("adamw");
    type Params = StepParams;

    fn entry(&self) -> String {
        format!("adamw_{}", self.dtype.name())
    }

    fn vars(&self) -> Vars {
        storage(Vars::new(), self.dtype)
    }

    fn shipped() -> Vec<Self> {
        [Dtype::F32, Dtype::F64].map(|dtype| Step { dtype }).into()
    }
}

/// The numbers of a step of AdamW: the options, the learning rate, and what corrects the moments.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWStep {
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of their squares.
    pub beta2: f64,
    /// ε, added to the root.
    pub epsilon: f64,
    /// Weight decay λ, where the segments say so.
    pub weight_decay: f64,
    /// Gradients are scaled so that their norm is at most this; infinity for none.
    pub clip: f64,
    /// The learning rate η.
    pub rate: f64,
    /// 1 − β₁ᵗ.
    pub correct1: f64,
    /// 1 − β₂ᵗ.
    pub correct2: f64,
}

impl AdamWStep {
    fn check(&self) -> Result<(), Error> {
        let ranges = [
            ("beta1", self.beta1, (0.0..1.0).contains(&self.beta1)),
            ("beta2", self.beta2, (0.0..1.0).contains(&self.beta2)),
            ("epsilon", self.epsilon, self.epsilon > 0.0 && self.epsilon.is_finite()),
            ("weight_decay", self.weight_decay, self.weight_decay >= 0.0 && self.weight_decay.is_finite()),
            ("clip", self.clip, self.clip > 0.0),
            ("rate", self.rate, self.rate >= 0.0 && self.rate.is_finite()),
            ("correct1", self.correct1, self.correct1 > 0.0 && self.correct1 <= 1.0),
            ("correct2", self.correct2, self.correct2 > 0.0 && self.correct2 <= 1.0),
        ];
        match ranges.into_iter().find(|(_, _, fine)| !fine) {
            Some((operand, value, _)) => Err(Error::Value { operand, why: format!("{value} is out of range") }),
            None => Ok(()),
        }
    }
}

/// Operands of a step of AdamW over n parameters, f32 or f64.
#[derive(Debug)]
pub struct AdamWArgs<'a, A: Real> {
    /// (n); updated.
    pub parameters: ViewMut<'a, A, 1, Device>,
    /// (n).
    pub gradients: View<'a, A, 1, Device>,
    /// Mean of gradients m, (n); updated.
    pub first: ViewMut<'a, A, 1, Device>,
    /// Mean of squares v, (n); updated.
    pub second: ViewMut<'a, A, 1, Device>,
    /// Which parameters decay, (segments, 2): the first element of each segment, in rising order, and 1 where its parameters decay, else 0. Those
    /// before the first segment do not.
    pub segments: View<'a, u64, 2, Device>,
    /// (1): the norm of the gradients, as [`Cuda::gradient_norm`] leaves it.
    pub norm: View<'a, f64, 1, Device>,
    /// (1): one more where the norm is not finite. Nothing else is changed then.
    pub refused: ViewMut<'a, u32, 1, Device>,
    /// (3): the learning rate, 1 − β₁ᵗ and 1 − β₂ᵗ, taken in place of those of `numbers`, so that a recorded step goes on with others.
    pub schedule: Option<View<'a, f64, 1, Device>>,
    /// The numbers.
    pub numbers: AdamWStep,
}

impl Cuda {
    /// One step of AdamW, as the host's `AdamW::step`; arithmetic is f64, and for f32 the bits are the host's where the norm's are.
    ///
    /// # Errors
    /// Where an operand does not fit, or a number is out of range.
    pub fn adamw<A: Real>(&self, args: AdamWArgs<'_, A>) -> Result<(), Error> {
        let [count] = args.parameters.dims();
        args.parameters.check("parameters", [count])?;
        args.gradients.check("gradients", [count])?;
        args.first.check("first", [count])?;
        args.second.check("second", [count])?;
        let [segments, _] = args.segments.dims();
        args.segments.check("segments", [segments, 2])?;
        args.norm.check("norm", [1])?;
        args.refused.check("refused", [1])?;
        if let Some(schedule) = &args.schedule {
            schedule.check("schedule", [3])?;
        }
        let numbers = args.numbers;
        numbers.check()?;
        let params = StepParams {
            parameters: strided_mut(&args.parameters),
            gradients: strided(&args.gradients),
            first: strided_mut(&args.first),
            second: strided_mut(&args.second),
            segments: strided(&args.segments),
            schedule: optional(args.schedule.as_ref()),
            segment_count: segments as u64,
            norm: strided::<_, 1, 2>(&args.norm)[0] as u64,
            refused: strided_mut::<_, 1, 2>(&args.refused)[0] as u64,
            count: count as u64,
            beta1: numbers.beta1,
            beta2: numbers.beta2,
            epsilon: numbers.epsilon,
            weight_decay: numbers.weight_decay,
            clip: numbers.clip,
            rate: numbers.rate,
            correct1: numbers.correct1,
            correct2: numbers.correct2,
        };
        // One block even where there are no parameters: a norm that is not finite is counted.
        self.run(&Step { dtype: A::DTYPE }, Grid::new(count.div_ceil(BLOCK).max(1), 256), &params)
    }
}

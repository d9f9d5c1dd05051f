//! Training on a device: forward, backward, clipping and AdamW without a copy to the host.

use super::lm::GpuLm;
use super::loss::read_loss;
use super::memory::{GpuMemory, GpuState};
use super::parameters::GpuParameters;
use crate::cuda::{AdamWArgs, AdamWStep, Cuda, DeviceBuffer, Recordings};
use crate::error::Error;
use crate::model::lm::{check_targets, check_tokens};
use crate::model::optimizer::check_rate;
use crate::model::{AdamW, AdamWOptions, Loss, Parameters};

/// What a step uses.
#[derive(Debug)]
struct Training {
    model: GpuLm,
    options: AdamWOptions,
    parameters: GpuParameters<f32>,
    gradients: GpuParameters<f32>,
    first: GpuParameters<f32>,
    second: GpuParameters<f32>,
    memory: GpuMemory<f32>,
    scratch: DeviceBuffer<u8>,
    /// Which tensors decay.
    segments: DeviceBuffer<u64>,
    /// The learning rate, 1 − β₁ᵗ and 1 − β₂ᵗ of the next step.
    schedule: DeviceBuffer<f64>,
    norm: DeviceBuffer<f64>,
    refused: DeviceBuffer<u32>,
}

/// A model in training on a GPU, with its optimiser: [`AdamW`]'s steps, whose parameters, gradients and moments stay on the device.
///
/// [`GpuTrainer::step`] sends tokens, targets and the learning rate and does not wait. [`GpuTrainer::report`] brings loss and norm back. The
/// launches of a step are recorded the second time that a batch has the same shape, and replayed from then on.
#[derive(Debug)]
pub struct GpuTrainer {
    steps: Recordings<Training>,
    step: u64,
}

/// What a step found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// The loss before the step.
    pub loss: Loss,
    /// The norm of the gradients before clipping.
    pub norm: f64,
}

impl GpuTrainer {
    /// Goes on from parameters and an optimiser of the host's.
    ///
    /// # Errors
    /// [`Error::Value`] where they do not fit the model or an option is out of range; what the driver says.
    pub fn new(model: GpuLm, parameters: &Parameters<f32>, optimizer: &AdamW) -> Result<Self, Error> {
        optimizer.options.check()?;
        for (operand, same) in [("parameters", parameters), ("first", &optimizer.first), ("second", &optimizer.second)] {
            same.check(operand, model.sizes())?;
        }
        let engine = model.engine().clone();
        let parameters = GpuParameters::upload(&engine, parameters)?;
        let segments: Vec<u64> = parameters.ranges().flat_map(|(range, decays)| [range.start as u64, u64::from(decays)]).collect();
        let training = Training {
            options: optimizer.options,
            gradients: parameters.zeros_like(&engine)?,
            first: GpuParameters::upload(&engine, &optimizer.first)?,
            second: GpuParameters::upload(&engine, &optimizer.second)?,
            memory: GpuMemory::new(&engine)?,
            scratch: engine.buffer(engine.sum_workspace(parameters.flat().dims()[0]))?,
            segments: engine.upload(&segments)?,
            schedule: engine.buffer(3)?,
            norm: engine.upload(&[0.0])?,
            refused: engine.upload(&[0])?,
            parameters,
            model,
        };
        Ok(GpuTrainer { steps: Recordings::new(engine, training, step), step: optimizer.step })
    }

    /// The model.
    pub fn model(&self) -> &GpuLm {
        &self.steps.memory().model
    }

    /// The parameters on the device, as the steps so far left them.
    pub fn parameters(&self) -> &GpuParameters<f32> {
        &self.steps.memory().parameters
    }

    /// The gradients of the last step.
    pub fn gradients(&self) -> &GpuParameters<f32> {
        &self.steps.memory().gradients
    }

    /// Whether steps are recorded and replayed, as they are at first, or launched one kernel after another. No bit depends on it.
    pub fn record(&mut self, on: bool) {
        self.steps.record(on);
    }

    /// One step with learning rate `rate` on the mean loss of `targets`, (B, L), after `tokens`, (B, L). Does not wait for the device: where the
    /// norm of the gradients is not finite nothing is changed, which the next [`GpuTrainer::report`] says.
    ///
    /// # Errors
    /// [`Error::Value`] where an operand does not fit the model; what the driver says.
    pub fn step(&mut self, tokens: &[u32], targets: &[u32], batch: usize, rate: f64) -> Result<(), Error> {
        let Training { model, memory, options, .. } = self.steps.memory();
        let shape = [batch, check_tokens(model.sizes(), tokens, batch)?];
        check_targets(model.sizes(), tokens, targets)?;
        check_rate(rate)?;
        let [correct1, correct2] = options.corrections(self.step + 1);
        let need = model.training_need::<f32>(shape[0], shape[1]);
        if !memory.fits(&need) {
            let Training { model, memory, .. } = self.steps.memory_mut();
            memory.reserve(model.engine(), &need)?;
        }
        self.steps.upload(|training| &mut training.memory.tokens, tokens)?;
        self.steps.upload(|training| &mut training.memory.targets, targets)?;
        self.steps.upload(|training| &mut training.schedule, &[rate, correct1, correct2])?;
        self.steps.run(shape)?;
        self.step += 1;
        Ok(())
    }

    /// Loss and norm of the last step; waits for the device.
    ///
    /// # Errors
    /// [`Error::Value`] where the norm of a step since the last report was not finite. Such a step changed nothing and is not counted; those
    /// after it, if there were any before this call, took the count for one step further.
    pub fn report(&mut self) -> Result<StepReport, Error> {
        let Training { memory, norm, refused, .. } = self.steps.memory();
        let (loss, norm, refused) = (read_loss(memory)?, norm.to_vec()?[0], refused.to_vec()?[0]);
        if refused > 0 {
            self.steps.upload(|training| &mut training.refused, &[0])?;
            self.step -= u64::from(refused).min(self.step);
            return Err(Error::Value { operand: "gradients", why: format!("their norm is {norm}") });
        }
        Ok(StepReport { loss, norm })
    }

    /// The loss of a text with the parameters as they are, as [`GpuLm::loss`].
    ///
    /// # Errors
    /// As there.
    pub fn loss(&mut self, tokens: &[u32], targets: &[u32], batch: usize, state: Option<&mut GpuState<f32>>) -> Result<Loss, Error> {
        let Training { model, parameters, memory, .. } = self.steps.memory_mut();
        model.loss(parameters, tokens, targets, batch, state, memory)
    }

    /// Parameters and optimiser for the host, as a checkpoint holds them; waits for the device.
    ///
    /// # Errors
    /// What the driver says.
    pub fn download(&self) -> Result<(Parameters<f32>, AdamW), Error> {
        let Training { options, parameters, first, second, .. } = self.steps.memory();
        let optimizer = AdamW { options: *options, first: first.download()?, second: second.download()?, step: self.step };
        Ok((parameters.download()?, optimizer))
    }
}

/// One step on the tokens and targets in memory.
fn step(engine: &Cuda, training: &mut Training, shape: [usize; 2]) -> Result<(), Error> {
    let Training { model, options, parameters, gradients, first, second, memory, scratch, segments, schedule, norm, refused } = training;
    model.gradients(parameters, shape, gradients, memory)?;
    engine.gradient_norm(gradients.flat(), norm.view_mut([1]), &mut scratch.workspace())?;
    let AdamWOptions { beta1, beta2, epsilon, weight_decay, clip } = *options;
    engine.adamw(AdamWArgs {
        parameters: parameters.flat_mut(),
        gradients: gradients.flat(),
        first: first.flat_mut(),
        second: second.flat_mut(),
        segments: segments.view([segments.len() / 2, 2]),
        norm: norm.view([1]),
        refused: refused.view_mut([1]),
        schedule: Some(schedule.view([3])),
        numbers: AdamWStep { beta1, beta2, epsilon, weight_decay, clip, rate: 0.0, correct1: 1.0, correct2: 1.0 },
    })
}

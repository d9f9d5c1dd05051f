//! Models on a GPU, end to end: parameters, activations, states and moments live on the device. The numbers are those of the host's model
//! within rounding, and files and checkpoints are the same.

mod decode;
mod lm;
mod loss;
mod memory;
mod parameters;
mod train;

pub use decode::GpuDecoder;
pub use lm::GpuLm;
pub use memory::{GpuMemory, GpuState};
pub use parameters::GpuParameters;
pub use train::{GpuTrainer, StepReport};

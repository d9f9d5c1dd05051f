//! All integration tests, as one binary.

mod blelloch;
mod causal_conv1d;
mod fuzz;
mod golden;
mod host_default;
#[path = "../../examples/check/harness/mod.rs"]
#[allow(dead_code)]
mod harness;
mod cpu;
mod layering;
mod linear;
mod mamba_block;
#[cfg(feature = "model")]
mod model;
mod monoid;
mod rms_norm;
mod source;
mod tensors;
mod tidy;

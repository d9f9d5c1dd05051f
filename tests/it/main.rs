//! All integration tests, as one binary.

mod blelloch;
mod causal_conv1d;
mod fuzz;
mod golden;
mod layering;
mod mamba_block;
mod linear;
mod monoid;
mod rms_norm;
mod source;
mod tensors;
mod tidy;

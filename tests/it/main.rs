//! All integration tests, as one binary.

mod causal_conv1d;
mod layering;
mod linear;
mod rms_norm;
mod source;
mod tensors;
mod tidy;

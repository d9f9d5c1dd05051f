//! All integration tests, as one binary.

mod golden;
mod blelloch;
mod fuzz;
mod layering;
mod monoid;
mod causal_conv1d;
mod layering;
mod linear;
mod rms_norm;
mod source;
mod tensors;
mod tidy;

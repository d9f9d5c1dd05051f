//! All integration tests, as one binary.

mod blelloch;
mod causal_conv1d;
mod fuzz;
mod golden;
mod host_default;
mod layering;
mod linear;
mod monoid;
mod source;
mod tensors;
mod tidy;

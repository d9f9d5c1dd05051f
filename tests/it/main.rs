//! All integration tests, as one binary.

mod blelloch;
mod causal_conv1d;
mod fuzz;
mod golden;
mod layering;
mod linear;
mod monoid;
mod source;
mod tensors;
mod tidy;

//! All integration tests, as one binary.

mod blelloch;
mod causal_conv1d;
mod fuzz;
mod golden;
#[path = "../../examples/check/harness/mod.rs"]
#[allow(dead_code)]
mod harness;
mod layering;
mod lengths;
mod linear;
mod rms_norm;
mod monoid;
mod nan_contract;
mod problems;
mod scan_properties;
mod selective_properties;
mod source;
mod tensors;
mod threads;
mod tidy;

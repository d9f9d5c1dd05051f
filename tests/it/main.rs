//! All integration tests, as one binary.

#[macro_use]
#[path = "../../examples/check/kinds_macro.rs"]
mod kinds_macro;
#[path = "../../examples/check/kinds.rs"]
mod kinds;

mod blelloch;
mod causal_conv1d;
mod cpu;
mod elementwise;
mod fuzz;
mod golden;
#[path = "../../examples/check/harness/mod.rs"]
#[allow(dead_code)]
mod harness;
mod host_default;
mod hostile;
mod layering;
mod lengths;
mod linear;
mod mamba_block;
#[cfg(feature = "model")]
mod model;
mod monoid;
mod nan_contract;
mod norm_data;
mod problems;
mod rms_norm;
mod scan_properties;
mod selective_properties;
#[cfg(feature = "model")]
mod shakespeare;
mod source;
mod tensors;
mod threads;
mod tidy;
#[cfg(feature = "model")]
mod train;

use kinds::table as engine_table;

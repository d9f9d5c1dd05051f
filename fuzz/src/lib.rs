//! The bodies of the fuzz targets: each turns bytes into a small problem of hard values and awkward sizes, runs every engine on
//! it and compares with the specification in f64. An ordinary test replays the corpora through the same functions.

pub mod canary;
pub mod causal_conv1d;
pub mod compare;
pub mod dims;
pub mod input;
pub mod monoid;
pub mod scan;
pub mod selective;
pub mod selective_scan_bwd;
pub mod selective_scan_fwd;
pub mod selective_state_update;

//! All integration tests, as one binary.

mod layering;
mod mamba_block;
mod source;
mod tidy;

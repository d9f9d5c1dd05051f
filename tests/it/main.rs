//! All integration tests, as one binary.

mod cpu;
mod layering;
mod source;
mod tidy;

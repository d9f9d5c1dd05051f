//! All integration tests, as one binary.

mod golden;
mod layering;
mod source;
mod tidy;

//! All integration tests, as one binary.

mod layering;
mod source;
mod tidy;

//! All integration tests, as one binary.

mod fuzz;
mod layering;
mod source;
mod tidy;

//! All integration tests, as one binary.

mod golden;
mod blelloch;
mod layering;
mod monoid;
mod source;
mod tidy;

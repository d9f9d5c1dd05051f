//! All integration tests, as one binary.

mod blelloch;
mod layering;
mod monoid;
mod source;
mod tidy;

//! All integration tests, as one binary.

mod layering;
mod source;
mod tidy;
//! Every integration test, one binary.

mod blelloch;
mod monoid;

//! All integration tests, as one binary.

mod layering;
mod linear;
mod source;
mod tensors;
mod tidy;

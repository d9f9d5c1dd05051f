//! Reference cases: reading them, running them on every engine in every storage type and way of calling, and comparing.
//! The `check` example prints what it finds; the golden test asserts it.

#![allow(non_snake_case)]

pub mod array;
#[cfg(feature = "cuda")]
pub mod carried;
pub mod case;
pub mod compare;
pub mod conv1d;
pub mod engines;
pub mod mamba_block;
#[cfg(feature = "model")]
pub mod model;
pub mod operation;
pub mod report;
pub mod scan;
pub mod selective;
pub mod suite;
pub mod tensor;
pub mod transform;

//! The selective scan of Mamba-family state space models.

pub mod arch;
pub mod blelloch;
pub mod block;
pub mod buffer;
pub mod cpu;
pub mod element;
pub mod error;
pub mod layers;
#[cfg(feature = "model")]
pub mod model;
pub mod naive;
pub mod ops;
pub mod par;
pub mod plan;
pub mod scan;
pub mod selective;
pub mod sequences;
pub mod view;
pub mod workspace;

pub use error::Error;

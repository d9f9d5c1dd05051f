//! The selective scan of Mamba-family state space models.

pub mod buffer;
pub mod element;
pub mod error;
#[cfg(feature = "model")]
pub mod model;
pub mod ops;
pub mod par;
pub mod view;
pub mod workspace;

pub use error::Error;

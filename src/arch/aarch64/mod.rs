//! The vectors of aarch64.

pub mod neon;

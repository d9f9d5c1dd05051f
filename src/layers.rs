//! Layer 3: the block's other parts: causal conv1d, RMSNorm, linear.

pub mod conv1d;
pub mod linear;
pub mod norm;

mod rows;

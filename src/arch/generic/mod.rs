//! The kernels themselves: no view, allocation, thread or instruction set is named here.

pub mod tiles;

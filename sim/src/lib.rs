//! Runs PTX text on the CPU, one thread block after another, and checks what a GPU would not: that every access lies inside an
//! allocation, is aligned, reads only what was written, and does not race inside a block.
//!
//! A device address is a host address: kernels read and write the memory that [`Memory`] was told about, in place.

mod alu;
mod alu_float;
mod cvt;
mod decode;
mod exec;
mod exec_mem;
mod exec_sync;
mod float;
mod lex;
mod memory;
mod mma;
mod ops;
mod parse;
mod scope;
mod shared;
mod types;
mod warp;

pub use exec::{Launch, Stats, run, run_limited};
pub use memory::Memory;
pub use parse::Module;

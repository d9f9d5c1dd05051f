//! The GPU engine, one module an operator. Where there is no GPU the same tests run its kernels on an interpreter of PTX, which checks every
//! memory access; those that need the real thing say in one line that they are skipped.

mod arrays;
#[path = "../../examples/check/harness/carried/mod.rs"]
#[allow(dead_code)]
mod carried;
mod causal_conv1d;
mod ceilings;
mod elementwise;
mod embedding;
mod frame;
mod grid;
mod interpreter;
mod linear;
mod mamba_block;
#[cfg(feature = "model")]
mod model;
#[path = "../it/norm_data.rs"]
mod norm_data;
mod rms_norm;
mod scan;
mod selective_scan_bwd;
mod selective_scan_fwd;
mod selective_scan_saved;
mod selective_state_update;
mod shared;
mod sizes;
mod skip;
mod tensor;
#[path = "../it/tensors.rs"]
#[allow(dead_code)]
mod tensors;
mod training;

use selective_scan::cuda::Cuda;

use carried::Carried;

/// The engine that tests run on: the GPU of this machine, or else the interpreter.
pub fn engine() -> &'static Cuda {
    interpreter::engine().0
}

/// Whether kernels really run on a GPU, which takes larger problems.
#[allow(dead_code)]
pub fn is_real() -> bool {
    !interpreter::engine().1
}

/// The GPU of this machine; None, and one line that says so, where there is none.
#[allow(dead_code)]
pub fn real(test: &str) -> Option<&'static Cuda> {
    if !is_real() {
        skip::skipped(test, "there is no GPU");
    }
    is_real().then(engine)
}

/// That engine behind the traits of host memory.
#[allow(dead_code)]
pub fn carried() -> Carried {
    let (engine, checked) = interpreter::engine();
    Carried::new(engine, checked)
}

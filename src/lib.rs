//! The selective scan of Mamba-family state space models: forward, backward and step, on CPUs and NVIDIA GPUs.
//!
//! ```text
//! Δ'_t = softplus(Δ_t + Δ_bias)
//! h_t[d,n] = exp(Δ'_t[d] A[d,n]) h_{t−1}[d,n] + Δ'_t[d] B_t[n] u_t[d]
//! out_t[d] = (Σ_n C_t[n] h_t[d,n] + D[d] u_t[d]) · silu(z_t[d])
//! ```
//!
//! (Mamba, arXiv 2312.00752, section 3.) Everything is built in layers, each a trait that every engine implements:
//!
//! 1. [`scan::Scan`]: the affine recurrence h_t = a_t ⊙ h_{t−1} + b_t and its adjoint. [`blelloch::scan_with`] scans over any
//!    associative operator ([`ops::Monoid`]).
//! 2. [`selective::SelectiveScan`]: the formulas above, their gradients, and the decode step; packed sequences
//!    ([`sequences::Sequences`]), real or complex A, three rules of discretisation ([`ops::Rule`]).
//! 3. [`layers`]: causal depthwise convolution, RMSNorm with a residual stream and a gate, linear, and elementwise copies, zeros and sums.
//! 4. [`block`]: the whole Mamba block, forward and backward, prefill and step, in the memory of its engine.
//! 5. `model`, with the feature of that name: stacks of blocks in the published layout, training, generation.
//!
//! Engines are [`naive::Naive`] (the specification), [`blelloch::Blelloch`] (a tree over time) and [`cpu::Cpu`] (fused SIMD kernels of
//! [`arch`], chosen at run time), and `cuda::Cuda` with the feature of that name (PTX by hand, on NVIDIA GPUs). [`plan`] says which one suits a problem and a machine.
//!
//! Operands are structs of borrowed [`view::View`]s: a slice, a shape, strides. The logical order is (B, L, D) everywhere, the
//! memory order is the strides'. Scratch memory is a [`buffer::Workspace`] of the caller, sized by a query. [`par::Par`] says who runs
//! the parts of an operation; it never changes a bit of the result. What a caller can get wrong is an [`Error`] that names the operand.
//!
//! Features that are on by default: `rayon` (threads), `gemm` (matrix products by the `gemm` crate instead of plain loops), `model`
//! (models, files, training). Off by default: `cuda` (the GPU engine; needs nothing but a driver, at run time), `cublaslt` (its products by cuBLASLt).

pub mod arch;
pub mod blelloch;
pub mod block;
pub mod buffer;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod element;
pub mod error;
pub mod layers;
#[cfg(feature = "model")]
pub mod model;
pub mod naive;
pub mod ops;
pub mod par;
pub mod plan;
mod regime;
pub mod scan;
pub mod selective;
pub mod sequences;
pub mod view;
pub mod workspace;

pub use error::Error;

/// The README's code, compiled and run as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;

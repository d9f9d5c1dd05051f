//! Layer 4: whole blocks, composed of layers 2 and 3 of any engine.

use crate::blelloch::Blelloch;
use crate::cpu::Cpu;
use crate::layers::conv1d::CausalConv1d;
use crate::layers::elementwise::Elementwise;
use crate::layers::linear::Linear;
use crate::layers::norm::RmsNorm;
use crate::naive::Naive;
use crate::scan::Scan;
use crate::selective::SelectiveScan;
use crate::view::Host;

pub mod mamba;

/// Where an engine's operands live.
pub type MemoryOf<E> = <E as Scan>::Memory;

/// An engine with all of layers 1 to 3 in one memory: what a block is generic over.
pub trait Engine:
    SelectiveScan
    + CausalConv1d<Memory = MemoryOf<Self>>
    + RmsNorm<Memory = MemoryOf<Self>>
    + Linear<Memory = MemoryOf<Self>>
    + Elementwise<Memory = MemoryOf<Self>>
{
}

impl<E> Engine for E where
    E: SelectiveScan
        + CausalConv1d<Memory = MemoryOf<E>>
        + RmsNorm<Memory = MemoryOf<E>>
        + Linear<Memory = MemoryOf<E>>
        + Elementwise<Memory = MemoryOf<E>>
{
}

/// An engine in this process's memory: what a model is generic over.
pub trait HostEngine: Engine + Scan<Memory = Host> {
    /// The SIMD engine, where this is it: a model may fuse its kernels across layers.
    fn simd(&self) -> Option<Cpu> {
        None
    }
}

impl HostEngine for Naive {}

impl HostEngine for Blelloch {}

impl HostEngine for Cpu {
    fn simd(&self) -> Option<Cpu> {
        Some(*self)
    }
}

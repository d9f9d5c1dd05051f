//! Layer 4: whole blocks, composed of layers 2 and 3 of any engine.

use crate::layers::conv1d::CausalConv1d;
use crate::layers::linear::Linear;
use crate::layers::norm::RmsNorm;
use crate::scan::Scan;
use crate::selective::SelectiveScan;
use crate::view::Host;

pub mod mamba;

/// An engine with all of layers 1 to 3 in this process's memory: what a block and a model are generic over.
pub trait HostEngine:
    SelectiveScan + Scan<Memory = Host> + CausalConv1d<Memory = Host> + RmsNorm<Memory = Host> + Linear<Memory = Host>
{
}

impl<E> HostEngine for E where
    E: SelectiveScan + Scan<Memory = Host> + CausalConv1d<Memory = Host> + RmsNorm<Memory = Host> + Linear<Memory = Host>
{
}

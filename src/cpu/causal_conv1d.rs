//! The causal convolution by the SIMD kernels.

use bytemuck::{cast_slice, cast_slice_mut};

use super::{Cpu, double};
use crate::arch::{ConvBwd as TileBwd, ConvFwd as TileFwd, ConvTile, Isa, Kernels, Lanes};
use crate::buffer::Workspace;
use crate::element::{Input, Real};
use crate::error::Error;
use crate::layers::conv1d::{
    CausalConv1d, ConvBwd, ConvFwd, ConvKernel, ConvProblem, ConvStep, Filter, Plain, TileGrads, bwd_with, causal_conv1d_bwd_workspace,
    fwd_with, fwd_workspace_with, update_with, update_workspace_with,
};
use crate::view::Host;

/// One tile by the kernel of `R`, the type that `A` is.
fn forward<A: Real, R: Lanes>(kernels: Kernels, filter: &Filter<'_, A>, rows: &[A], outputs: &mut [A]) {
    let steps = outputs.len() / filter.lanes;
    let (x, weight, bias) = (cast_slice(rows), cast_slice(filter.taps), Some(cast_slice(filter.bias)));
    let tile = ConvTile { steps, width: filter.width, silu: filter.silu, x, weight, bias };
    kernels.causal_conv1d_fwd::<R>(TileFwd { tile, out: cast_slice_mut(outputs) });
}

/// As [`forward`], the gradients.
fn backward<A: Real, R: Lanes>(kernels: Kernels, filter: &Filter<'_, A>, rows: &[A], grad_out: &mut [A], grads: TileGrads<'_, A>) {
    let steps = grad_out.len() / filter.lanes;
    let (x, weight, bias) = (cast_slice(rows), cast_slice(filter.taps), Some(cast_slice(filter.bias)));
    let tile = ConvTile { steps, width: filter.width, silu: filter.silu, x, weight, bias };
    let (grad_out, grad_x) = (cast_slice_mut(grad_out), cast_slice_mut(grads.x));
    kernels.causal_conv1d_bwd::<R>(TileBwd { tile, grad_out, grad_x, grad_filter: grads.filter });
}

/// Vectors of a block: a block is several cache lines of a row, so that few pages are met for many numbers.
const VECTORS: usize = 8;

/// A group of channels is one vector.
impl ConvKernel for Kernels {
    fn block<A: Real>(self) -> usize {
        VECTORS * ConvKernel::lanes::<A>(self, 0)
    }

    fn lanes<A: Real>(self, _: usize) -> usize {
        if double::<A>() { Kernels::lanes::<f64>(self) } else { Kernels::lanes::<f32>(self) }
    }

    fn forward<A: Real>(self, filter: &Filter<'_, A>, rows: &[A], outputs: &mut [A]) {
        // The portable level has no fused multiply-add, and a block magnifies the rounding of each tap: loops in f64 there.
        if self.isa() == Isa::Portable {
            Plain.forward(filter, rows, outputs);
        } else if double::<A>() {
            forward::<A, f64>(self, filter, rows, outputs);
        } else {
            forward::<A, f32>(self, filter, rows, outputs);
        }
    }

    fn backward<A: Real>(self, filter: &Filter<'_, A>, rows: &[A], grad_out: &mut [A], grads: TileGrads<'_, A>) {
        if self.isa() == Isa::Portable {
            Plain.backward(filter, rows, grad_out, grads);
        } else if double::<A>() {
            backward::<A, f64>(self, filter, rows, grad_out, grads);
        } else {
            backward::<A, f32>(self, filter, rows, grad_out, grads);
        }
    }
}

impl CausalConv1d for Cpu {
    type Memory = Host;

    fn causal_conv1d_fwd_workspace<I: Input>(&self, problem: &ConvProblem) -> usize {
        fwd_workspace_with::<I>(self.kernels, problem, self.par)
    }

    fn causal_conv1d_fwd<I: Input>(&self, args: ConvFwd<'_, I>, ws: &mut Workspace<'_>) -> Result<(), Error> {
        fwd_with(self.kernels, args, self.par, ws)
    }

    fn causal_conv1d_bwd_workspace<I: Input>(&self, problem: &ConvProblem) -> usize {
        causal_conv1d_bwd_workspace::<I>(problem, self.par)
    }

    fn causal_conv1d_bwd<I: Input>(&self, args: ConvBwd<'_, I>, ws: &mut Workspace<'_>) -> Result<(), Error> {
        bwd_with(self.kernels, args, self.par, ws)
    }

    fn causal_conv1d_update_workspace<I: Input>(&self, problem: &ConvProblem) -> usize {
        update_workspace_with::<I>(self.kernels, problem, self.par)
    }

    fn causal_conv1d_update<I: Input>(&self, args: ConvStep<'_, I>, ws: &mut Workspace<'_>) -> Result<(), Error> {
        update_with(self.kernels, args, self.par, ws)
    }
}

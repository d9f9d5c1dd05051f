//! The causal convolution by the SIMD kernels.

use bytemuck::{cast_slice, cast_slice_mut};

use super::{Cpu, double};
use crate::arch::{ConvBwd as TileBwd, ConvFwd as TileFwd, ConvRows, ConvRowsBwd, ConvTile, Isa, Kernels, Lanes, Lines, LinesMut};
use crate::buffer::Workspace;
use crate::element::{Input, Real};
use crate::error::Error;
use crate::layers::conv1d::{
    CausalConv1d, ConvBwd, ConvFwd, ConvKernel, ConvProblem, ConvStep, Filter, Plain, RowGrads, TileGrads, bwd_with,
    causal_conv1d_bwd_workspace, fwd_with, fwd_workspace_with, update_with, update_workspace_with,
};
use crate::view::{Host, Rows, RowsMut};

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

/// Rows of numbers of type `A`, which is `R`.
struct Same<T>(T);

impl<A: Real, R: Lanes> Lines<R> for Same<&Rows<'_, A>> {
    #[inline(always)]
    fn lines<const C: usize>(&self, first: usize) -> [&[R]; C] {
        self.0.several::<C>(first).map(cast_slice)
    }
}

impl<A: Real, R: Lanes> LinesMut<R> for Same<&mut RowsMut<'_, A>> {
    #[inline(always)]
    fn lines_mut<const C: usize>(&mut self, first: usize) -> [&mut [R]; C] {
        self.0.several::<C>(first).map(cast_slice_mut)
    }
}

/// Whole rows by the kernel of `R`, the type that `A` is.
fn in_place<A: Real, R: Lanes>(
    kernels: Kernels,
    filter: &Filter<'_, A>,
    x: &Rows<'_, A>,
    out: &mut RowsMut<'_, A>,
    [first, steps]: [usize; 2],
) {
    kernels.causal_conv1d_rows::<R>(ConvRows {
        steps,
        width: filter.width,
        blocks: filter.bias.len() / filter.lanes,
        silu: filter.silu,
        x: &Same(x),
        weight: cast_slice(filter.taps),
        bias: cast_slice(filter.bias),
        out: &mut Same(out),
        first,
    });
}

/// As [`in_place`], the gradients.
fn backward_in_place<A: Real, R: Lanes>(kernels: Kernels, filter: &Filter<'_, A>, rows: RowGrads<'_, '_, A>) {
    kernels.causal_conv1d_rows_bwd::<R>(ConvRowsBwd {
        steps: rows.steps,
        first: rows.first,
        seqlen: rows.seqlen,
        width: filter.width,
        blocks: filter.bias.len() / filter.lanes,
        silu: filter.silu,
        x: &Same(rows.x),
        grad_out: &Same(rows.grad_out),
        grad_x: rows.grad_x.map(Same).as_mut(),
        weight: cast_slice(filter.taps),
        bias: cast_slice(filter.bias),
        window: cast_slice_mut(rows.window),
        open: cast_slice_mut(rows.open),
        head: cast_slice_mut(rows.head),
        grad_filter: rows.filter,
    });
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

    fn has_in_place(self, width: usize) -> bool {
        self.isa() != Isa::Portable && (2..=4).contains(&width)
    }

    fn in_place<A: Real>(self, filter: &Filter<'_, A>, x: &Rows<'_, A>, out: &mut RowsMut<'_, A>, first: usize, steps: usize) {
        if double::<A>() {
            in_place::<A, f64>(self, filter, x, out, [first, steps]);
        } else {
            in_place::<A, f32>(self, filter, x, out, [first, steps]);
        }
    }

    fn backward_in_place<A: Real>(self, filter: &Filter<'_, A>, rows: RowGrads<'_, '_, A>) {
        if double::<A>() {
            backward_in_place::<A, f64>(self, filter, rows);
        } else {
            backward_in_place::<A, f32>(self, filter, rows);
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

//! Linear for host memory, by blocks of the output.
//!
//! Every product is cut into blocks of rows and columns, and along its depth into chunks. What a number is depends on no cut of
//! the output: along one chunk it is one chain of multiply-adds in the order of the depth; a few chunks are added up in the type that is
//! computed in, and those sums in f64. So its bits depend on neither threads, strides nor the number of rows, and its error does not grow
//! with the depth.

use super::{LinearBwd, LinearFwd, LinearProblem, is_small, multiply, padded};
use crate::buffer::Workspace;
use crate::element::{Element, Input, Real, Weight as _};
use crate::error::{Error, given};
use crate::layers::rows::{load_row, store_row};
use crate::ops::Sum;
use crate::par::Par;
use crate::view::{Cut, Memory, View, ViewMut};
use crate::workspace::{ALIGN, bytes_of};

/// Depth of one product.
const DEPTH: usize = 512;
/// Depth that is added up in the type that is computed in: seven more roundings than one product. Sums of more are added up in f64.
const SPAN: usize = 8 * DEPTH;
/// Weights of at most so many numbers are multiplied in f64 throughout: they cost little, and the sensitive low-rank Δ is among them.
const SMALL_WEIGHT: usize = 1 << 14;
/// Rows and columns of a block, best first: each factor is packed once a block, for which the other one's size pays.
const BLOCKS: [[usize; 2]; 3] = [[512, 512], [512, 256], [512, 128]];
/// As long as each thread has so many blocks; else square ones, so that more threads have work.
const ENOUGH: usize = 3;
const SQUARE: [usize; 2] = [128, 128];
/// Multiply-adds below which waking other threads costs more than it saves: some 20 µs of work.
const SERIAL_BELOW: usize = 1 << 19;
/// Columns of one part of ∂bias, and rows that are added up in plain f64 there.
const BIAS_COLUMNS: usize = 64;
const BIAS_ROWS: usize = 32;

impl<I: Input, M: Memory> LinearFwd<'_, I, M> {
    /// Checks every operand; the sizes.
    pub fn check(&self) -> Result<LinearProblem, Error> {
        let ([rows, inputs], outputs) = (self.x.dims(), self.weight.dims()[0]);
        self.x.check("x", [rows, inputs])?;
        self.weight.check("weight", [outputs, inputs])?;
        given(self.bias.as_ref(), |v| v.check("bias", [outputs]))?;
        self.out.check("out", [rows, outputs])?;
        Ok(LinearProblem { rows, inputs, outputs })
    }
}

impl<I: Input, M: Memory> LinearBwd<'_, I, M> {
    /// Checks every operand; the sizes.
    pub fn check(&self) -> Result<LinearProblem, Error> {
        let ([rows, inputs], outputs) = (self.x.dims(), self.weight.dims()[0]);
        self.x.check("x", [rows, inputs])?;
        self.weight.check("weight", [outputs, inputs])?;
        self.grad_out.check("grad_out", [rows, outputs])?;
        given(self.grad_x.as_ref(), |v| v.check("grad_x", [rows, inputs]))?;
        given(self.grad_weight.as_ref(), |v| v.check("grad_weight", [outputs, inputs]))?;
        given(self.grad_bias.as_ref(), |v| v.check("grad_bias", [outputs]))?;
        Ok(LinearProblem { rows, inputs, outputs })
    }
}

/// Sizes of one product, (m, k) by (k, n), and whether it is computed in f64.
#[derive(Clone, Copy)]
struct Sizes {
    m: usize,
    n: usize,
    k: usize,
    fine: bool,
    /// Threads.
    workers: usize,
}

impl LinearProblem {
    /// Whether products with the weight are computed in f64. By the weight's size alone: bits must not depend on the rows.
    pub(crate) fn fine(self) -> bool {
        self.inputs.saturating_mul(self.outputs) <= SMALL_WEIGHT
    }
}

impl Sizes {
    /// Rows and columns of a block.
    fn block(self) -> [usize; 2] {
        let blocks = |[height, width]: [usize; 2]| self.m.div_ceil(height).saturating_mul(self.n.div_ceil(width));
        let fits = |&block: &[usize; 2]| self.m >= block[0] && blocks(block) >= ENOUGH * self.workers;
        BLOCKS.into_iter().find(fits).unwrap_or(SQUARE)
    }

    /// Bytes that a worker takes with storage over `A`.
    fn scratch<A: Real>(self) -> usize {
        if self.fine { self.scratch_in::<f64>() } else { self.scratch_in::<A>() }
    }

    /// The block in the type that is computed in and in f64, and both factors where they must be copied.
    fn scratch_in<A: Real>(self) -> usize {
        let block = self.block();
        let [m, n] = padded(self.m.min(block[0]), self.n.min(block[1]));
        let k = self.k.min(DEPTH);
        let total = if self.k > SPAN { bytes_of::<f64>(m * n) } else { 0 };
        bytes_of::<A>(m * n) + total + bytes_of::<A>((m + 1) * k) + bytes_of::<A>(n * k) + bytes_of::<A>(n) + ALIGN
    }
}

/// out = lhs·rhs + bias, (m, k) by (k, n), the bias along n.
fn product<I: Input, O: Element<Arith = I::Accum>>(
    lhs: View<'_, I, 2>,
    rhs: View<'_, I, 2>,
    bias: Option<View<'_, I::Accum, 1>>,
    out: ViewMut<'_, O, 2>,
    fine: bool,
    par: Par,
    ws: &mut Workspace<'_>,
) -> Result<(), Error> {
    let ([m, k], n) = (lhs.dims(), rhs.dims()[1]);
    let sizes = Sizes { m, n, k, fine, workers: par.workers() };
    let par = par.or_seq(m.saturating_mul(n).saturating_mul(k) < SERIAL_BELOW);
    let [height, width] = sizes.block();
    let across = n.div_ceil(width);
    let part = |i: usize, step: usize, size: usize| i * step..(i * step + step).min(size);
    let split = out.tiles(Cut::Every(0, height), Cut::Every(1, width));
    par.run(0, m.div_ceil(height) * across, split, &mut ws.reborrow(), sizes.scratch::<I::Accum>(), |i, mut out, ws| {
        let (rows, columns) = (part(i / across, height, m), part(i % across, width, n));
        let bias = bias.map(|v| v.slice(0, columns.clone()));
        let (lhs, rhs) = (lhs.slice(0, rows), rhs.slice(1, columns));
        let done = if fine { block_product::<I, O, f64> } else { block_product::<I, O, I::Accum> }(lhs, rhs, bias, &mut out, ws);
        done.expect("scratch memory as `scratch` says");
    })
}

/// One block of [`product`], computed in `A`.
fn block_product<I: Input, O: Element<Arith = I::Accum>, A: Real>(
    lhs: View<'_, I, 2>,
    rhs: View<'_, I, 2>,
    bias: Option<View<'_, I::Accum, 1>>,
    out: &mut ViewMut<'_, O, 2>,
    ws: &mut Workspace<'_>,
) -> Result<(), Error> {
    let ([m, k], n) = (lhs.dims(), rhs.dims()[1]);
    let mut ws = ws.reborrow();
    let [rows, width] = padded(m, n);
    let sums = ws.slice::<A>(rows * width)?;
    if k == 0 {
        sums.fill(A::ZERO);
    }
    let total = ws.slice::<f64>(if k > SPAN { rows * width } else { 0 })?;
    let left = ws.slice::<A>((m + 1) * k.min(DEPTH))?;
    let right = ws.slice::<A>(n * k.min(DEPTH))?;
    for start in (0..k).step_by(DEPTH) {
        let chunk = start..(start + DEPTH).min(k);
        // The right factor is (k, n); its columns are staged as rows.
        let lhs = staged(lhs.slice(1, chunk.clone()), is_small(m, n), left);
        let rhs = staged(rhs.slice(0, chunk).permute([1, 0]), false, right).permute([1, 0]);
        multiply(lhs, rhs, sums, !start.is_multiple_of(SPAN));
        if (start + DEPTH).is_multiple_of(SPAN) || start + DEPTH >= k {
            let before = |total: f64| if start < SPAN { 0.0 } else { total };
            total.iter_mut().zip(sums.iter()).for_each(|(total, sum)| *total = before(*total) + sum.to_f64());
        }
    }
    let rounded = ws.slice::<I::Accum>(n)?;
    for (i, row) in sums.chunks_exact_mut(width).take(m).enumerate() {
        for (c, to) in rounded.iter_mut().enumerate() {
            let sum = if k > SPAN { total[i * width + c] } else { row[c].to_f64() };
            let bias = bias.map_or(I::Accum::ZERO, |bias| bias.get([c]));
            // In f64 the bias is added before the one rounding, else after it, as the arithmetic type adds.
            *to = if A::UNIT < I::Accum::UNIT { I::Accum::from_f64(sum + bias.to_f64()) } else { I::Accum::from_f64(sum) + bias };
        }
        store_row(out, [i, 0], rounded);
    }
    Ok(())
}

/// The factor itself where it is stored in the type that is computed in and its strides go forwards, else a copy of it. `apart` asks for
/// a copy whose rows are not contiguous.
fn staged<'s, I: Input, A: Real>(from: View<'s, I, 2>, apart: bool, room: &'s mut [A]) -> View<'s, A, 2> {
    let [rows, columns] = from.dims();
    let convert = |x: I| A::from_f64(x.load().to_f64());
    if apart {
        let step = rows + 1;
        (0..rows).for_each(|i| (0..columns).for_each(|p| room[p * step + i] = convert(from.get([i, p]))));
        return View::strided(room, 0, [rows, columns], [1, step as isize]);
    }
    let forwards = from.strides().iter().all(|&s| s >= 0);
    if let Some(view) = from.same::<A>().filter(|_| forwards) {
        return view;
    }
    for (i, to) in room.chunks_exact_mut(columns).take(rows).enumerate() {
        match from.row([i, 0]) {
            Some(row) => to.iter_mut().zip(row).for_each(|(to, &x)| *to = convert(x)),
            None => to.iter_mut().enumerate().for_each(|(p, to)| *to = convert(from.get([i, p]))),
        }
    }
    View::new(room, [rows, columns])
}

/// Bytes of workspace that [`linear_fwd`] takes.
pub fn linear_fwd_workspace<I: Input>(problem: LinearProblem, par: Par) -> usize {
    let LinearProblem { rows, inputs, outputs } = problem;
    par.scratch_bytes(Sizes { m: rows, n: outputs, k: inputs, fine: problem.fine(), workers: par.workers() }.scratch::<I::Accum>())
}

/// The forward product; one phase.
pub fn linear_fwd<I: Input>(args: LinearFwd<'_, I>, par: Par, ws: &mut Workspace<'_>) -> Result<(), Error> {
    let fine = args.check()?.fine();
    par.check(1)?;
    product(args.x, args.weight.permute([1, 0]), args.bias, args.out, fine, par, ws)
}

/// Bytes of workspace that [`linear_bwd`] takes.
pub fn linear_bwd_workspace<I: Input>(problem: LinearProblem, par: Par) -> usize {
    let (LinearProblem { rows, inputs, outputs }, fine, workers) = (problem, problem.fine(), par.workers());
    let x = Sizes { m: rows, n: inputs, k: outputs, fine, workers }.scratch::<I::Accum>();
    let weight = Sizes { m: outputs, n: inputs, k: rows, fine, workers }.scratch::<I::Accum>();
    par.scratch_bytes(x.max(weight).max(bias_scratch::<I>()))
}

/// The backward product; one phase.
pub fn linear_bwd<I: Input>(args: LinearBwd<'_, I>, par: Par, ws: &mut Workspace<'_>) -> Result<(), Error> {
    let fine = args.check()?.fine();
    par.check(1)?;
    let LinearBwd { x, weight, grad_out, grad_x, grad_weight, grad_bias } = args;
    if let Some(grad_x) = grad_x {
        product(grad_out, weight, None, grad_x, fine, par, ws)?;
    }
    if let Some(grad_weight) = grad_weight {
        product(grad_out.permute([1, 0]), x, None, grad_weight, fine, par, ws)?;
    }
    grad_bias.map_or(Ok(()), |grad_bias| sum_rows(grad_out, grad_bias, par, ws))
}

fn bias_scratch<I: Input>() -> usize {
    bytes_of::<I::Accum>(BIAS_COLUMNS) + bytes_of::<f64>(BIAS_COLUMNS) + bytes_of::<Sum>(BIAS_COLUMNS) + ALIGN
}

/// out = Σ of the rows, in their order: blocks of rows in f64, and the blocks compensated.
fn sum_rows<I: Input>(from: View<'_, I, 2>, out: ViewMut<'_, I::Accum, 1>, par: Par, ws: &mut Workspace<'_>) -> Result<(), Error> {
    let [rows, columns] = from.dims();
    let split = out.tiles(Cut::Every(0, BIAS_COLUMNS), Cut::Whole);
    par.run(0, columns.div_ceil(BIAS_COLUMNS), split, &mut ws.reborrow(), bias_scratch::<I>(), |i, mut out, ws| {
        let width = out.dims()[0];
        let from = from.slice(1, i * BIAS_COLUMNS..i * BIAS_COLUMNS + width);
        let mut take = || Ok::<_, Error>((ws.slice::<I::Accum>(width)?, ws.slice::<f64>(width)?, ws.slice::<Sum>(width)?));
        let (row, block, total) = take().expect("scratch memory as bias_scratch says");
        total.fill(Sum::default());
        for start in (0..rows).step_by(BIAS_ROWS) {
            block.fill(0.0);
            for t in start..(start + BIAS_ROWS).min(rows) {
                load_row(&from, [t, 0], row);
                block.iter_mut().zip(row.iter()).for_each(|(sum, g)| *sum += g.to_f64());
            }
            total.iter_mut().zip(block.iter()).for_each(|(total, sum)| total.add(*sum));
        }
        total.iter().enumerate().for_each(|(c, sum)| out.set([c], I::Accum::from_f64(sum.value())));
    })
}

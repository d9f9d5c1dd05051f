//! RMSNorm for host memory, parallel over blocks of rows.

use super::{NormBwd, NormFwd, NormOptions};
use crate::buffer::Workspace;
use crate::element::{Input, Real};
use crate::error::{Error, given};
use crate::layers::rows::{load_row, store_row};
use crate::ops::{Sum, silu, silu_grad};
use crate::par::Par;
use crate::view::{Cut, Memory, View, ViewMut};
use crate::workspace::{ALIGN, bytes_of};

/// Rows of one part. Gradients of the weight are summed by blocks of so many rows, whoever runs them.
const ROWS: usize = 32;
/// Columns of one part where the sums of the blocks are added up.
const COLUMNS: usize = 64;
/// Partial sums along a row: independent, so that they run as vectors.
const LANES: usize = 8;

fn check_eps(eps: f64) -> Result<(), Error> {
    if eps.is_finite() && eps >= 0.0 {
        return Ok(());
    }
    Err(Error::Value { operand: "eps", why: format!("{eps} is not a finite number of at least 0") })
}

impl NormOptions {
    /// Checks them for rows of M; columns of a group.
    fn check(&self, columns: usize) -> Result<usize, Error> {
        match self.group_size {
            None => Ok(columns),
            Some(size) if size > 0 && columns.is_multiple_of(size) => Ok(size),
            Some(size) => Err(Error::Value { operand: "group_size", why: format!("{size} does not divide {columns} columns") }),
        }
    }

    /// Columns of a group; 1 at least, so that rows of nothing have groups too.
    pub(crate) fn group(&self, columns: usize) -> usize {
        self.group_size.unwrap_or(columns).max(1)
    }
}

impl<I: Input, R: Input<Accum = I::Accum>, M: Memory> NormFwd<'_, I, R, M> {
    /// Checks every operand; (rows, M).
    pub fn check(&self) -> Result<[usize; 2], Error> {
        let dims = self.x.dims();
        self.x.check("x", dims)?;
        given(self.residual.as_ref(), |v| v.check("residual", dims))?;
        self.weight.check("weight", [dims[1]])?;
        given(self.z.as_ref(), |v| v.check("z", dims))?;
        check_eps(self.eps)?;
        self.options.check(dims[1])?;
        self.out.check("out", dims)?;
        given(self.residual_out.as_ref(), |v| v.check("residual_out", dims))?;
        Ok(dims)
    }
}

impl<I: Input, R: Input<Accum = I::Accum>, M: Memory> NormBwd<'_, I, R, M> {
    /// Checks every operand; (rows, M).
    pub fn check(&self) -> Result<[usize; 2], Error> {
        let dims = self.residual_out.dims();
        self.residual_out.check("residual_out", dims)?;
        self.weight.check("weight", [dims[1]])?;
        given(self.z.as_ref(), |v| v.check("z", dims))?;
        check_eps(self.eps)?;
        self.options.check(dims[1])?;
        self.grad_out.check("grad_out", dims)?;
        given(self.grad_residual_out.as_ref(), |v| v.check("grad_residual_out", dims))?;
        given(self.grad_x.as_ref(), |v| v.check("grad_x", dims))?;
        given(self.grad_residual.as_ref(), |v| v.check("grad_residual", dims))?;
        given(self.grad_weight.as_ref(), |v| v.check("grad_weight", [dims[1]]))?;
        if self.grad_z.is_some() && self.z.is_none() {
            return Err(Error::Value { operand: "grad_z", why: "there is no z".into() });
        }
        given(self.grad_z.as_ref(), |v| v.check("grad_z", dims))?;
        Ok(dims)
    }
}

/// Σ a·b in f64, in `LANES` partial sums.
fn dot<A: Real>(a: &[A], b: &[A]) -> f64 {
    let mut lanes = [0.0; LANES];
    let (head, tail) = a.split_at(a.len() / LANES * LANES);
    for (a, b) in head.chunks_exact(LANES).zip(b.chunks_exact(LANES)) {
        for i in 0..LANES {
            lanes[i] += a[i].to_f64() * b[i].to_f64();
        }
    }
    let rest: f64 = tail.iter().zip(&b[head.len()..]).map(|(a, b)| a.to_f64() * b.to_f64()).sum();
    lanes.iter().sum::<f64>() + rest
}

/// 1 / sqrt(mean(r²) + ε).
fn scale_of<A: Real>(r: &[A], eps: f64) -> f64 {
    1.0 / (dot(r, r) / r.len() as f64 + eps).sqrt()
}

fn fwd_scratch<I: Input>(columns: usize) -> usize {
    bytes_of::<I::Accum>(columns).saturating_mul(4).saturating_add(ALIGN)
}

/// Bytes of workspace that [`rms_norm_fwd`] takes for (rows, M).
pub fn rms_norm_fwd_workspace<I: Input>(dims: [usize; 2], par: Par) -> usize {
    par.scratch_bytes(fwd_scratch::<I>(dims[1]))
}

/// a · b in place of a.
fn multiply<A: Real>(a: &mut [A], b: &[A]) {
    a.iter_mut().zip(b).for_each(|(a, b)| *a = *a * *b);
}

/// The forward norm; one phase. The mean square is summed in f64.
pub fn rms_norm_fwd<I: Input, R: Input<Accum = I::Accum>>(args: NormFwd<'_, I, R>, par: Par, ws: &mut Workspace<'_>) -> Result<(), Error> {
    let [rows, columns] = args.check()?;
    par.check(1)?;
    let NormFwd { x, residual, weight, z, eps, options, out, residual_out } = args;
    let group = options.group(columns);
    let split = (out.tiles(Cut::Every(0, ROWS), Cut::Whole), residual_out.map(|v| v.tiles(Cut::Every(0, ROWS), Cut::Whole)));
    let work = |i: usize, (mut out, mut stream): (ViewMut<'_, I, 2>, Option<ViewMut<'_, R, 2>>), ws: &mut Workspace<'_>| {
        let mut row = || ws.slice::<I::Accum>(columns).expect("scratch memory as fwd_scratch says");
        let (r, w, add, gate) = (row(), row(), row(), row());
        load_row(&weight, [0], w);
        for t in 0..out.dims()[0] {
            load_row(&x, [i * ROWS + t, 0], r);
            if let Some(residual) = &residual {
                load_row(residual, [i * ROWS + t, 0], add);
                r.iter_mut().zip(add.iter()).for_each(|(r, add)| *r = *add + *r);
            }
            if let Some(stream) = &mut stream {
                store_row(stream, [t, 0], r);
            }
            if let Some(z) = &z {
                load_row(z, [i * ROWS + t, 0], gate);
                gate.iter_mut().for_each(|z| *z = silu(*z));
                if !options.norm_before_gate {
                    multiply(r, gate);
                }
            }
            for (r, w) in r.chunks_mut(group).zip(w.chunks(group)) {
                let scale = I::Accum::from_f64(scale_of(r, eps));
                r.iter_mut().zip(w).for_each(|(r, w)| *r = *r * scale * *w);
            }
            if z.is_some() && options.norm_before_gate {
                multiply(r, gate);
            }
            store_row(&mut out, [t, 0], r);
        }
    };
    par.run(0, rows.div_ceil(ROWS), split, &mut ws.reborrow(), fwd_scratch::<I>(columns), work)
}

fn bwd_scratch<I: Input>(columns: usize) -> usize {
    bytes_of::<I::Accum>(columns).saturating_mul(6).saturating_add(ALIGN)
}

/// Bytes of workspace that [`rms_norm_bwd`] takes for (rows, M): the sums of the blocks of rows, and scratch memory.
pub fn rms_norm_bwd_workspace<I: Input>(dims: [usize; 2], par: Par) -> usize {
    let partial = bytes_of::<f64>(dims[0].div_ceil(ROWS).saturating_mul(dims[1]));
    partial.saturating_add(par.scratch_bytes(bwd_scratch::<I>(dims[1]))).saturating_add(ALIGN)
}

/// The backward norm; two phases. y is what was normed, h the gradient of what the norm and the weight gave, G columns are a group:
///
/// ```text
/// y = r·silu(z),  h = ∂out            y = r,  h = ∂out·silu(z) where the norm comes before the gate      y = r,  h = ∂out without a gate
/// s = 1/sqrt(mean(y²) + ε)            ∂y = s·w·h − y·s³/G·Σ y·w·h             ∂w = Σ_rows s·y·h
/// ∂r = ∂y·silu(z)                     ∂r = ∂y                                 plus ∂r from the stream after
/// ∂z = ∂y·r·silu'(z)                  ∂z = s·w·r·∂out·silu'(z)
/// ```
pub fn rms_norm_bwd<I: Input, R: Input<Accum = I::Accum>>(args: NormBwd<'_, I, R>, par: Par, ws: &mut Workspace<'_>) -> Result<(), Error> {
    let [rows, columns] = args.check()?;
    par.check(2)?;
    let NormBwd { residual_out, weight, z, eps, options, grad_out, grad_residual_out, grad_x, grad_residual, grad_weight, grad_z } = args;
    let mut ws = ws.reborrow();
    let blocks = rows.div_ceil(ROWS);
    let mut partial = match grad_weight {
        Some(_) => Some(ws.tensor::<f64, 2>([blocks, columns])?),
        None => None,
    };
    let every = Cut::Every(0, ROWS);
    let split = (
        grad_x.map(|v| v.tiles(every, Cut::Whole)),
        grad_residual.map(|v| v.tiles(every, Cut::Whole)),
        grad_z.map(|v| v.tiles(every, Cut::Whole)),
        partial.as_mut().map(|v| v.reborrow().tiles(Cut::Every(0, 1), Cut::Whole)),
    );
    let inputs = Backward { residual_out, weight, z, eps, options, grad_out, grad_residual_out };
    par.run(0, blocks, split, &mut ws.reborrow(), bwd_scratch::<I>(columns), |i, (x, residual, z, sums), ws| {
        let to = Written { x, residual, z, sums };
        inputs.block(i * ROWS..(i * ROWS + ROWS).min(rows), to, ws).expect("scratch memory as bwd_scratch says");
    })?;
    let (Some(grad_weight), Some(partial)) = (grad_weight, partial) else { return Ok(()) };
    let partial = partial.as_view();
    let split = grad_weight.tiles(Cut::Every(0, COLUMNS), Cut::Whole);
    par.run(1, columns.div_ceil(COLUMNS), split, &mut ws, 0, |i, mut out, _| {
        for c in 0..out.dims()[0] {
            let mut sum = Sum::default();
            (0..blocks).for_each(|block| sum.add(partial.get([block, i * COLUMNS + c])));
            out.set([c], I::Accum::from_f64(sum.value()));
        }
    })
}

/// What the backward norm reads.
struct Backward<'a, I: Input, R: Input<Accum = I::Accum>> {
    residual_out: View<'a, R, 2>,
    weight: View<'a, I::Accum, 1>,
    z: Option<View<'a, I, 2>>,
    eps: f64,
    options: NormOptions,
    grad_out: View<'a, I, 2>,
    grad_residual_out: Option<View<'a, R, 2>>,
}

/// What it writes of one block of rows; `sums` is its part of ∂w.
struct Written<'a, I: Input, R: Input<Accum = I::Accum>> {
    x: Option<ViewMut<'a, I, 2>>,
    residual: Option<ViewMut<'a, R, 2>>,
    z: Option<ViewMut<'a, I, 2>>,
    sums: Option<ViewMut<'a, f64, 2>>,
}

/// A row, or a group of it, of the backward pass.
struct Row<'a, A> {
    /// y.
    y: &'a [A],
    /// h, then ∂r.
    h: &'a mut [A],
    w: &'a [A],
    /// ∂r from the stream after.
    after: &'a [A],
    /// silu(z), by which ∂y becomes ∂r where the gate comes first.
    gate: &'a [A],
    /// What ∂y, or s·w·r where the norm comes first, is multiplied by to give ∂z; then ∂z.
    slope: &'a mut [A],
}

impl<A: Real> Row<'_, A> {
    /// Without a gate, or with the norm before it or behind it.
    fn run(self, eps: f64, before: Option<bool>, sums: Option<&mut [f64]>) {
        let Row { y, h, w, after, gate, slope } = self;
        let scale = scale_of(y, eps);
        if let Some(sums) = sums {
            let terms = y.iter().zip(h.iter()).map(|(y, h)| y.to_f64() * h.to_f64() * scale);
            sums.iter_mut().zip(terms).for_each(|(sum, term)| *sum += term);
        }
        multiply(h, w);
        let pull = dot(y, h) * scale * scale * scale / y.len() as f64;
        // In f64, since the two terms all but cancel where y has one large element.
        let grad = |y: A, h: A| h.to_f64() * scale - y.to_f64() * pull;
        if before == Some(false) {
            for (((h, y), after), (gate, slope)) in h.iter_mut().zip(y).zip(after).zip(gate.iter().zip(slope)) {
                let grad = grad(*y, *h);
                *h = A::from_f64(grad * gate.to_f64() + after.to_f64());
                *slope = A::from_f64(grad * slope.to_f64());
            }
            return;
        }
        h.iter_mut().zip(y).zip(after).for_each(|((h, y), after)| *h = A::from_f64(grad(*y, *h) + after.to_f64()));
        if before == Some(true) {
            let scaled = y.iter().zip(w).map(|(y, w)| scale * w.to_f64() * y.to_f64());
            slope.iter_mut().zip(scaled).for_each(|(slope, scaled)| *slope = A::from_f64(scaled * slope.to_f64()));
        }
    }
}

impl<I: Input, R: Input<Accum = I::Accum>> Backward<'_, I, R> {
    /// One block of rows.
    fn block(&self, rows: core::ops::Range<usize>, mut to: Written<'_, I, R>, ws: &mut Workspace<'_>) -> Result<(), Error> {
        let columns = self.weight.dims()[0];
        let group = self.options.group(columns);
        let before = self.z.is_some().then_some(self.options.norm_before_gate);
        let mut row = || ws.slice::<I::Accum>(columns);
        let (y, h, w, after, gate, slope) = (row()?, row()?, row()?, row()?, row()?, row()?);
        let mut sums = to.sums.map(|v| v.into_slice());
        sums.iter_mut().for_each(|v| v.fill(0.0));
        after.fill(I::Accum::from_f64(0.0));
        load_row(&self.weight, [0], w);
        for (i, t) in rows.enumerate() {
            load_row(&self.residual_out, [t, 0], y);
            load_row(&self.grad_out, [t, 0], h);
            if let Some(z) = &self.z {
                load_row(z, [t, 0], gate);
                slope.iter_mut().zip(gate.iter()).for_each(|(slope, z)| *slope = silu_grad(*z));
                gate.iter_mut().for_each(|z| *z = silu(*z));
                let gated = if before == Some(true) { &mut *h } else { &mut *y };
                multiply(slope, gated);
                multiply(gated, gate);
            }
            if let Some(stream) = &self.grad_residual_out {
                load_row(stream, [t, 0], after);
            }
            for from in (0..columns).step_by(group) {
                let part = from..from + group;
                let (h, slope) = (&mut h[part.clone()], &mut slope[part.clone()]);
                let (y, w, after, gate) = (&y[part.clone()], &w[part.clone()], &after[part.clone()], &gate[part.clone()]);
                Row { y, h, w, after, gate, slope }.run(self.eps, before, sums.as_mut().map(|v| &mut v[part]));
            }
            to.x.iter_mut().for_each(|x| store_row(x, [i, 0], h));
            to.residual.iter_mut().for_each(|r| store_row(r, [i, 0], h));
            to.z.iter_mut().for_each(|z| store_row(z, [i, 0], slope));
        }
        Ok(())
    }
}

//! RMSNorm for host memory, parallel over blocks of rows.

use super::{NormBwd, NormFwd};
use crate::buffer::Workspace;
use crate::element::{Input, Real};
use crate::error::{Error, given};
use crate::layers::rows::{load_row, store_row};
use crate::ops::Sum;
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

impl<I: Input, R: Input<Accum = I::Accum>, M: Memory> NormFwd<'_, I, R, M> {
    /// Checks every operand; (rows, M).
    pub fn check(&self) -> Result<[usize; 2], Error> {
        let dims = self.x.dims();
        self.x.check("x", dims)?;
        given(self.residual.as_ref(), |v| v.check("residual", dims))?;
        self.weight.check("weight", [dims[1]])?;
        check_eps(self.eps)?;
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
        check_eps(self.eps)?;
        self.grad_out.check("grad_out", dims)?;
        given(self.grad_residual_out.as_ref(), |v| v.check("grad_residual_out", dims))?;
        given(self.grad_x.as_ref(), |v| v.check("grad_x", dims))?;
        given(self.grad_residual.as_ref(), |v| v.check("grad_residual", dims))?;
        given(self.grad_weight.as_ref(), |v| v.check("grad_weight", [dims[1]]))?;
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
    bytes_of::<I::Accum>(columns).saturating_mul(3).saturating_add(ALIGN)
}

/// Bytes of workspace that [`rms_norm_fwd`] takes for (rows, M).
pub fn rms_norm_fwd_workspace<I: Input>(dims: [usize; 2], par: Par) -> usize {
    par.scratch_bytes(fwd_scratch::<I>(dims[1]))
}

/// The forward norm; one phase. The mean square is summed in f64.
pub fn rms_norm_fwd<I: Input, R: Input<Accum = I::Accum>>(args: NormFwd<'_, I, R>, par: Par, ws: &mut Workspace<'_>) -> Result<(), Error> {
    let [rows, columns] = args.check()?;
    par.check(1)?;
    let NormFwd { x, residual, weight, eps, out, residual_out } = args;
    let split = (out.tiles(Cut::Every(0, ROWS), Cut::Whole), residual_out.map(|v| v.tiles(Cut::Every(0, ROWS), Cut::Whole)));
    let work = |i: usize, (mut out, mut stream): (ViewMut<'_, I, 2>, Option<ViewMut<'_, R, 2>>), ws: &mut Workspace<'_>| {
        let mut row = || ws.slice::<I::Accum>(columns).expect("scratch memory as fwd_scratch says");
        let (r, w, add) = (row(), row(), row());
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
            let scale = I::Accum::from_f64(scale_of(r, eps));
            r.iter_mut().zip(w.iter()).for_each(|(r, w)| *r = *r * scale * *w);
            store_row(&mut out, [t, 0], r);
        }
    };
    par.run(0, rows.div_ceil(ROWS), split, &mut ws.reborrow(), fwd_scratch::<I>(columns), work)
}

fn bwd_scratch<I: Input>(columns: usize) -> usize {
    bytes_of::<I::Accum>(columns).saturating_mul(4).saturating_add(ALIGN)
}

/// Bytes of workspace that [`rms_norm_bwd`] takes for (rows, M): the sums of the blocks of rows, and scratch memory.
pub fn rms_norm_bwd_workspace<I: Input>(dims: [usize; 2], par: Par) -> usize {
    let partial = bytes_of::<f64>(dims[0].div_ceil(ROWS).saturating_mul(dims[1]));
    partial.saturating_add(par.scratch_bytes(bwd_scratch::<I>(dims[1]))).saturating_add(ALIGN)
}

/// The backward norm; two phases. With s = 1/sqrt(mean(r²) + ε):
///
/// ```text
/// ∂r = s·w·∂out − r·s³/M·Σ r·w·∂out + ∂r from the stream after,     ∂w = Σ_rows s·r·∂out
/// ```
pub fn rms_norm_bwd<I: Input, R: Input<Accum = I::Accum>>(args: NormBwd<'_, I, R>, par: Par, ws: &mut Workspace<'_>) -> Result<(), Error> {
    let [rows, columns] = args.check()?;
    par.check(2)?;
    let NormBwd { residual_out, weight, eps, grad_out, grad_residual_out, grad_x, grad_residual, grad_weight } = args;
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
        partial.as_mut().map(|v| v.reborrow().tiles(Cut::Every(0, 1), Cut::Whole)),
    );
    let inputs = Backward { residual_out, weight, eps, grad_out, grad_residual_out };
    par.run(0, blocks, split, &mut ws.reborrow(), bwd_scratch::<I>(columns), |i, (x, residual, sums), ws| {
        inputs.block(i * ROWS..(i * ROWS + ROWS).min(rows), x, residual, sums, ws).expect("scratch memory as bwd_scratch says");
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
    eps: f64,
    grad_out: View<'a, I, 2>,
    grad_residual_out: Option<View<'a, R, 2>>,
}

impl<I: Input, R: Input<Accum = I::Accum>> Backward<'_, I, R> {
    /// One block of rows; `sums` is its part of ∂w.
    fn block(
        &self,
        rows: core::ops::Range<usize>,
        mut grad_x: Option<ViewMut<'_, I, 2>>,
        mut grad_residual: Option<ViewMut<'_, R, 2>>,
        sums: Option<ViewMut<'_, f64, 2>>,
        ws: &mut Workspace<'_>,
    ) -> Result<(), Error> {
        let columns = self.weight.dims()[0];
        let (r, g) = (ws.slice::<I::Accum>(columns)?, ws.slice::<I::Accum>(columns)?);
        let (w, after) = (ws.slice::<I::Accum>(columns)?, ws.slice::<I::Accum>(columns)?);
        let mut sums = sums.map(|v| v.into_slice());
        sums.iter_mut().for_each(|v| v.fill(0.0));
        after.fill(I::Accum::from_f64(0.0));
        load_row(&self.weight, [0], w);
        for (i, t) in rows.enumerate() {
            load_row(&self.residual_out, [t, 0], r);
            load_row(&self.grad_out, [t, 0], g);
            let scale = scale_of(r, self.eps);
            if let Some(sums) = &mut sums {
                let terms = r.iter().zip(g.iter()).map(|(r, g)| r.to_f64() * g.to_f64() * scale);
                sums.iter_mut().zip(terms).for_each(|(sum, term)| *sum += term);
            }
            g.iter_mut().zip(w.iter()).for_each(|(g, w)| *g = *g * *w);
            let pull = dot(r, g) * scale * scale * scale / columns as f64;
            if let Some(stream) = &self.grad_residual_out {
                load_row(stream, [t, 0], after);
            }
            // In f64, since the two terms all but cancel where r has one large element.
            for ((g, r), after) in g.iter_mut().zip(r.iter()).zip(after.iter()) {
                *g = I::Accum::from_f64(g.to_f64() * scale - r.to_f64() * pull + after.to_f64());
            }
            if let Some(to) = &mut grad_x {
                store_row(to, [i, 0], g);
            }
            if let Some(to) = &mut grad_residual {
                store_row(to, [i, 0], g);
            }
        }
        Ok(())
    }
}

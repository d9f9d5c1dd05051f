//! The adjoint for host memory, in terms of an engine's forward scan.

use super::{Scan, ScanBwd, ScanFwd, ScanProblem};
use crate::buffer::Workspace;
use crate::element::{Element, Weight};
use crate::error::Error;
use crate::view::{Host, View, ViewMut};
use crate::workspace::{ALIGN, bytes_of};

/// Bytes of workspace that [`scan_bwd`] takes: h, the shifted conj(a), the upstream gradient and λ, each (B, L, D).
pub fn scan_bwd_workspace<E: Element>(engine: &impl Scan<Memory = Host>, problem: ScanProblem) -> usize {
    let n = problem.batch.saturating_mul(problem.seqlen).saturating_mul(problem.dim);
    let inner = engine.scan_fwd_workspace::<E::Arith>(problem);
    bytes_of::<E::Arith>(n).saturating_mul(4).saturating_add(inner).saturating_add(ALIGN)
}

/// The adjoint: h by one forward scan, λ by one reverse scan over conj(a) shifted by one step, then products.
pub fn scan_bwd<E: Element>(engine: &impl Scan<Memory = Host>, args: ScanBwd<'_, E>, ws: &mut Workspace<'_>) -> Result<(), Error> {
    let ScanProblem { batch, seqlen, dim } = args.check()?;
    let ScanBwd { a, b, initial_state, grad_h, grad_last_state, mut grad_a, mut grad_b, mut grad_initial_state, .. } = args.forwards();
    let dims = [batch, seqlen, dim];
    let mut ws = ws.reborrow();
    let mut h = ws.tensor::<E::Arith, 3>(dims)?;
    let mut shifted = ws.tensor::<E::Arith, 3>(dims)?;
    let mut lambda = ws.tensor::<E::Arith, 3>(dims)?;
    let mut wide = ws.tensor::<E::Arith, 3>(dims)?;

    copy(&mut shifted, |i| a.get(i).load());
    copy(&mut wide, |i| b.get(i).load());
    let forward = ScanFwd { a: shifted.as_view(), b: wide.as_view(), initial_state, h: h.reborrow(), last_state: None, reverse: false };
    engine.scan_fwd(forward, &mut ws)?;

    let last = seqlen.wrapping_sub(1);
    // The last a of the reverse scan is not read, there is no initial state on that side.
    copy(&mut shifted, |[r, t, c]| if t == last { E::Arith::ZERO } else { a.get([r, t + 1, c]).load().conj() });
    copy(&mut wide, |[r, t, c]| {
        let g = grad_h.get([r, t, c]).load();
        grad_last_state.filter(|_| t == last).map_or(g, |v| g + v.get([r, c]))
    });
    let reverse =
        ScanFwd { a: shifted.as_view(), b: wide.as_view(), initial_state: None, h: lambda.reborrow(), last_state: None, reverse: true };
    engine.scan_fwd(reverse, &mut ws)?;

    if let Some(out) = grad_b.as_mut() {
        copy(out, |i| E::store(lambda.get(i)));
    }
    if let Some(out) = grad_a.as_mut() {
        let before = |[r, t, c]: [usize; 3]| if t == 0 { initial_state.map(|v| v.get([r, c])) } else { Some(h.get([r, t - 1, c])) };
        copy(out, |i| E::store(before(i).map_or(E::Arith::ZERO, |h| lambda.get(i) * h.conj())));
    }
    if let Some(out) = grad_initial_state.as_mut() {
        for r in 0..batch {
            for c in 0..dim {
                let through = |g: View<'_, E::Arith, 2>| g.get([r, c]);
                let empty = || grad_last_state.map_or(E::Arith::ZERO, through);
                out.set([r, c], if seqlen == 0 { empty() } else { a.get([r, 0, c]).load().conj() * lambda.get([r, 0, c]) });
            }
        }
    }
    Ok(())
}

/// Fills a (B, L, D) tensor from its indices.
fn copy<T: Copy>(out: &mut ViewMut<'_, T, 3>, of: impl Fn([usize; 3]) -> T) {
    let [batch, seqlen, dim] = out.dims();
    for r in 0..batch {
        for t in 0..seqlen {
            (0..dim).for_each(|c| out.set([r, t, c], of([r, t, c])));
        }
    }
}

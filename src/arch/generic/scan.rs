//! The linear recurrence h_t = a_t·h_{t−1} + b_t over a staged tile.

use crate::arch::generic::number::{Cx, Number, Re, plane_rows, plane_rows_mut};
use crate::arch::generic::tables::Tables;
use crate::arch::generic::tiles::{ScanTile, TILE};
use crate::arch::generic::vector::{Op, Vector};

#[inline(always)]
fn scan<X: Number>(zero: X::V, args: ScanTile<'_, <X::V as Vector>::Real>) {
    let ScanTile { steps, first, a, b, h, out } = args;
    assert!((1..=TILE).contains(&steps), "a tile of {steps} steps");
    let (a, b) = (plane_rows(zero, a, steps), plane_rows(zero, b, steps));
    let (mut h, mut out) = (plane_rows_mut(zero, h, 1), plane_rows_mut(zero, out, steps));
    let mut state = X::read(h.as_parts(), 0);
    for t in 0..steps {
        let input = X::read(b, t);
        state = if first && t == 0 { input } else { X::read(a, t).mul_add(state, input) };
        state.write(&mut out, t);
    }
    state.write(&mut h, 0);
}

impl<R: Tables> Op<R> for ScanTile<'_, R> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector<Real = R>>(self, zero: V) {
        if self.a.im.is_some() { scan::<Cx<V>>(zero, self) } else { scan::<Re<V>>(zero, self) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::testing_scan::{Random, StagedPlanes, error, flat};
    use crate::arch::{Kernels, Lanes};
    use num_complex::Complex;

    fn check<R: Lanes>(complex: bool, first: bool, bound: f64) {
        for k in Kernels::available() {
            for steps in [1, 2, 13, TILE] {
                let lanes = k.lanes::<R>();
                let mut r = Random(steps as u64);
                let mut numbers = |count: usize| -> Vec<Complex<f64>> {
                    let (re, im) = (r.vec(count, 0.7, 0.0), r.vec(count, 0.7, 0.0));
                    re.iter().zip(im).map(|(&re, im)| Complex::new(re, if complex { im } else { 0.0 })).collect()
                };
                let (a, b, mut h) = (numbers(steps * lanes), numbers(steps * lanes), numbers(lanes));
                let (mut sa, mut sb, mut sh) =
                    (StagedPlanes::<R>::new(&a, complex), StagedPlanes::new(&b, complex), StagedPlanes::new(&h, complex));
                let mut out = StagedPlanes::new(&vec![Complex::new(f64::NAN, 0.0); a.len()], complex);
                k.scan(ScanTile { steps, first, a: sa.get(), b: sb.get(), h: sh.get_mut(), out: out.get_mut() });
                let mut want = Vec::new();
                for t in 0..steps {
                    for w in 0..lanes {
                        let i = t * lanes + w;
                        h[w] = if first && t == 0 { b[i] } else { a[i] * h[w] + b[i] };
                    }
                    want.extend_from_slice(&h);
                }
                let worst = error(&flat(&out.numbers()), &flat(&want)).max(error(&flat(&sh.numbers()), &flat(&h)));
                assert!(worst <= bound, "{:?}: {worst:e}", k.isa());
            }
        }
    }

    #[test]
    fn recurrence() {
        for (complex, first) in [(false, false), (false, true), (true, false), (true, true)] {
            check::<f32>(complex, first, 4e-7);
            check::<f64>(complex, first, 8e-16);
        }
    }
}

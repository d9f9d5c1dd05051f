//! Layer 1, forward and adjoint.

use arbitrary::Result;
use selective_scan::buffer::Buffer;
use selective_scan::element::{Element, Real};
use selective_scan::naive::Naive;
use selective_scan::scan::{Scan, ScanBwd, ScanFwd, ScanProblem};
use selective_scan::view::{Host, View, ViewMut};

use super::compare::{close, each_engine};
use super::input::{DIMS, Kind, LENGTHS, Source};

/// One problem; gradients stand beside the tensors they belong to.
pub(crate) struct Case<T> {
    dims: [usize; 3],
    a: Vec<T>,
    b: Vec<T>,
    initial: Option<Vec<T>>,
    grad: Vec<T>,
    reverse: bool,
}

/// What a scan and its adjoint write: h, last state, ∂a, ∂b.
pub(crate) type Out<T> = [Vec<T>; 4];

impl Case<f32> {
    fn new(from: &mut Source<'_>) -> Result<Self> {
        let dims @ [batch, seqlen, dim] = [from.upto(2)?, from.pick(&LENGTHS)?, from.pick(&DIMS)?];
        let count = batch * seqlen * dim;
        let reverse = from.flag()?;
        let initial = from.flag()?.then(|| from.numbers(Kind::Value, batch * dim));
        let (a, b, grad) = (from.numbers(Kind::Factor, count), from.numbers(Kind::Value, count), from.numbers(Kind::Value, count));
        Ok(Case { dims, a, b, initial, grad, reverse })
    }

    fn map(&self, f: impl Fn(f32) -> f64) -> Case<f64> {
        let map = |v: &Vec<f32>| v.iter().map(|&x| f(x)).collect();
        let Case { dims, reverse, .. } = *self;
        Case { dims, a: map(&self.a), b: map(&self.b), initial: self.initial.as_ref().map(map), grad: map(&self.grad), reverse }
    }
}

impl<T: Real + Element<Arith = T>> Case<T> {
    fn run(&self, engine: &impl Scan<Memory = Host>) -> Out<T> {
        let [batch, seqlen, dim] = self.dims;
        let mut out: Out<T> =
            [vec![T::ZERO; self.a.len()], vec![T::ZERO; batch * dim], vec![T::ZERO; self.a.len()], vec![T::ZERO; self.a.len()]];
        let [h, last, grad_a, grad_b] = &mut out;
        let (a, b) = (View::new(&self.a, self.dims), View::new(&self.b, self.dims));
        let initial_state = self.initial.as_ref().map(|v| View::new(v, [batch, dim]));
        let problem = ScanProblem { batch, seqlen, dim };
        let mut buffer = Buffer::new();
        let mut ws = buffer.workspace(engine.scan_fwd_workspace::<T>(problem));
        let last_state = Some(ViewMut::new(last, [batch, dim]));
        let args = ScanFwd { a, b, initial_state, h: ViewMut::new(h, self.dims), last_state, reverse: self.reverse };
        engine.scan_fwd(args, &mut ws).expect("a valid scan");
        let mut ws = buffer.workspace(engine.scan_bwd_workspace::<T>(problem));
        let args = ScanBwd {
            a,
            b,
            initial_state,
            grad_h: View::new(&self.grad, self.dims),
            grad_last_state: None,
            grad_a: Some(ViewMut::new(grad_a, self.dims)),
            grad_b: Some(ViewMut::new(grad_b, self.dims)),
            grad_initial_state: None,
            reverse: self.reverse,
        };
        engine.scan_bwd(args, &mut ws).expect("a valid adjoint");
        out
    }
}

/// Compares all engines; `bend` changes the reference, for the canary.
pub(crate) fn check(bytes: &[u8], bend: impl Fn(&mut Out<f64>)) -> Result<()> {
    let case = Case::new(&mut Source::new(bytes))?;
    let mut want = case.map(f64::from).run(&Naive);
    bend(&mut want);
    // The same problem with absolute values: what rounding errors are relative to. Two products of up to L steps add two of them a step.
    let scale = case.map(|x| f64::from(x.abs())).run(&Naive);
    let factor = 4.0 * (case.dims[1] + 2) as f64;
    each_engine!(engine, name, {
        let got = case.run(&engine);
        for (i, tensor) in ["h", "last_state", "grad_a", "grad_b"].into_iter().enumerate() {
            close(name, tensor, &got[i], &want[i], |at| scale[i][at], factor);
        }
    });
    Ok(())
}

/// The target.
pub fn run(bytes: &[u8]) {
    // Bytes that make no problem are no finding.
    let _ = check(bytes, |_| ());
}

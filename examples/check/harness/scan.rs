//! Cases of the layer-1 scan.

use num_complex::Complex;
use selective_scan::Error;
use selective_scan::buffer::Buffer;
use selective_scan::element::{Element, Input, Weight};
use selective_scan::naive::scan_n_eff;
use selective_scan::scan::{ScanBwd, ScanFwd};

use super::array::Array;
use super::case::Case;
use super::engines::HostEngine;
use super::operation::{Checked, Named, Operation, Role};
use super::report::Findings;
use super::tensor::{Layout, Tensor};
use super::transform::{Packing, Transform};

/// A recurrence and its upstream gradients, in f64.
#[derive(Debug, Clone)]
pub struct Scan {
    pub a: Array,
    pub b: Array,
    pub h0: Option<Array>,
    pub grad_h: Array,
    pub grad_last: Option<Array>,
    pub reverse: bool,
    /// How many steps the decay remembers; see [`Scan::measured`].
    pub n_eff: f64,
}

impl Scan {
    /// Takes a case apart. `Err` is one sentence about what is malformed.
    pub fn read(mut case: Case) -> Result<Checked<Self>, String> {
        let reverse = case.flag("reverse", false)?;
        // No option says that it is complex; four axes do.
        let complex = case.is_complex("a", 4);
        let mut problem = Scan {
            a: case.tensor("a", &[3], complex)?,
            b: case.tensor("b", &[3], complex)?,
            h0: case.optional("h0", &[2], complex)?,
            grad_h: case.tensor("grad_h", &[3], complex)?,
            grad_last: case.optional("grad_last", &[2], complex)?,
            reverse,
            n_eff: 0.0,
        };
        problem = problem.measured().map_err(|e| e.to_string())?;
        let [batch, _, dim] = problem.b.dims[..] else { return Err("tensor `b` has three axes".into()) };
        let state = Array::zeros(&[batch, dim], complex);
        let mut reference = vec![("h".to_owned(), case.reference("h", &problem.b)?)];
        reference.push(("last".into(), case.reference("last", &state)?));
        reference.push(("grad.a".into(), case.reference("grad.a", &problem.a)?));
        reference.push(("grad.b".into(), case.reference("grad.b", &problem.b)?));
        if problem.h0.is_some() {
            reference.push(("grad.h0".into(), case.reference("grad.h0", &state)?));
        }
        case.finish()?;
        Ok(Checked { problem, reference, terms: Vec::new() })
    }

    /// Finds n_eff.
    pub fn measured(mut self) -> Result<Self, Error> {
        self.n_eff = if self.complex() {
            scan_n_eff(Tensor::<Complex<f64>, 3>::from(&self.a, Layout::Contiguous).view(), self.reverse)?
        } else {
            scan_n_eff(Tensor::<f64, 3>::from(&self.a, Layout::Contiguous).view(), self.reverse)?
        };
        Ok(self)
    }

    fn forward_in<T: HostEngine, E: Element>(&self, engine: &T, layout: Layout) -> Result<Vec<Named>, Error> {
        let (a, b) = (Tensor::<E, 3>::from(&self.a, layout), Tensor::<E, 3>::from(&self.b, layout));
        let h0 = self.h0.as_ref().map(|x| Tensor::<E::Arith, 2>::from(x, layout));
        let [batch, _, dim] = b.view().dims();
        let mut h = Tensor::<E, 3>::marked(b.view().dims(), layout);
        let mut last = Tensor::<E::Arith, 2>::marked([batch, dim], layout);
        let args = ScanFwd {
            a: a.view(),
            b: b.view(),
            initial_state: h0.as_ref().map(Tensor::view),
            h: h.view_mut(),
            last_state: Some(last.view_mut()),
            reverse: self.reverse,
        };
        let bytes = engine.scan_fwd_workspace::<E>(args.check()?);
        engine.scan_fwd(args, &mut Buffer::new().workspace(bytes))?;
        Ok(vec![result("h", &h, Role::Positions), result("last", &last, Role::States)])
    }

    fn backward_in<T: HostEngine, E: Element>(&self, engine: &T, layout: Layout) -> Result<Vec<Named>, Error> {
        let (a, b) = (Tensor::<E, 3>::from(&self.a, layout), Tensor::<E, 3>::from(&self.b, layout));
        let state = |x: &Array| Tensor::<E::Arith, 2>::from(x, layout);
        let (h0, grad_last) = (self.h0.as_ref().map(state), self.grad_last.as_ref().map(state));
        let grad_h = Tensor::<E, 3>::from(&self.grad_h, layout);
        let dims @ [batch, _, dim] = b.view().dims();
        let (mut grad_a, mut grad_b) = (Tensor::<E, 3>::marked(dims, layout), Tensor::<E, 3>::marked(dims, layout));
        let mut grad_h0 = self.h0.as_ref().map(|_| Tensor::<E::Arith, 2>::marked([batch, dim], layout));
        let args = ScanBwd {
            a: a.view(),
            b: b.view(),
            initial_state: h0.as_ref().map(Tensor::view),
            grad_h: grad_h.view(),
            grad_last_state: grad_last.as_ref().map(Tensor::view),
            grad_a: Some(grad_a.view_mut()),
            grad_b: Some(grad_b.view_mut()),
            grad_initial_state: grad_h0.as_mut().map(Tensor::view_mut),
            reverse: self.reverse,
        };
        let bytes = engine.scan_bwd_workspace::<E>(args.check()?);
        engine.scan_bwd(args, &mut Buffer::new().workspace(bytes))?;
        let mut results = vec![result("grad.a", &grad_a, Role::Positions), result("grad.b", &grad_b, Role::Positions)];
        results.extend(grad_h0.as_ref().map(|t| result("grad.h0", t, Role::States)));
        Ok(results)
    }
}

fn result<T: Element, const R: usize>(name: &str, tensor: &Tensor<T, R>, role: Role) -> Named {
    Named { name: name.into(), array: tensor.array(), dtype: T::DTYPE, role }
}

impl Operation for Scan {
    const OUT: &'static str = "h";
    const STATE: &'static str = "last";

    fn complex(&self) -> bool {
        self.a.complex
    }

    fn n_eff(&self) -> f64 {
        self.n_eff
    }

    fn sizes(&self) -> [usize; 2] {
        [self.b.dims[0], self.b.dims[1]]
    }

    fn packing(&self) -> Option<&Packing> {
        None
    }

    fn reverse(&self) -> bool {
        self.reverse
    }

    fn has_states(&self) -> bool {
        self.h0.is_some() || self.grad_last.is_some()
    }

    fn transform(&self, by: &Transform) -> Self {
        Scan { a: by.input(&self.a), b: by.input(&self.b), grad_h: by.input(&self.grad_h), ..self.clone() }
    }

    fn with_initial(&self, state: Array) -> Self {
        Scan { h0: Some(state), ..self.clone() }
    }

    fn run<E: HostEngine, I: Input, W: Weight<Real = I::Accum>>(&self, engine: &E, layout: Layout) -> Result<Vec<Named>, Error> {
        let mut results = self.forward_in::<E, W::Stored<I>>(engine, layout)?;
        results.extend(self.backward_in::<E, W::Stored<I>>(engine, layout)?);
        Ok(results)
    }

    fn forward<E: HostEngine, I: Input, W: Weight<Real = I::Accum>>(&self, engine: &E, layout: Layout) -> Result<Vec<Named>, Error> {
        self.forward_in::<E, W::Stored<I>>(engine, layout)
    }

    fn steps<E: HostEngine, I: Input, W: Weight<Real = I::Accum>>(&self, _: &E) -> Result<Vec<Named>, Error> {
        Ok(Vec::new())
    }

    fn narrow_steps<E: HostEngine, I: Input, W: Weight<Real = I::Accum>>(&self, _: &E, _: &Array, _: &mut Findings) -> Result<(), Error> {
        Ok(())
    }
}

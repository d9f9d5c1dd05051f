//! A selective scan's operands in one storage type and layout, and the calls themselves.

use selective_scan::Error;
use selective_scan::buffer::Buffer;
use selective_scan::element::{Element, Input, Weight};
use selective_scan::selective::{
    Coefficient, CoefficientGrad, SelectiveBwd, SelectiveFwd, SelectiveGrads, SelectiveInputs, SelectiveOptions, SelectiveStep,
};
use selective_scan::sequences::Sequences;
use selective_scan::view::View;

use super::super::array::Array;
use super::super::engines::HostEngine;
use super::super::operation::{Named, Role};
use super::super::tensor::{Layout, Tensor};
use super::super::transform::Packing;
use super::{Selective, stored};

/// B or C, or the gradient of one.
enum Coef<I: Input, W: Weight<Real = I::Accum>> {
    Constant(Tensor<W, 2>),
    Varying(Tensor<W::Stored<I>, 4>),
}

impl<I: Input, W: Weight<Real = I::Accum>> Coef<I, W> {
    fn new(array: &Array, layout: Layout) -> Self {
        if array.dims.len() == 4 { Coef::Varying(Tensor::from(array, layout)) } else { Coef::Constant(Tensor::from(array, layout)) }
    }

    fn view(&self) -> Coefficient<'_, I, W> {
        match self {
            Coef::Constant(t) => Coefficient::Constant(t.view()),
            Coef::Varying(t) => Coefficient::Varying(t.view()),
        }
    }

    /// A gradient to be written.
    fn marked(&self, layout: Layout) -> Self {
        match self {
            Coef::Constant(t) => Coef::Constant(Tensor::marked(t.view().dims(), layout)),
            Coef::Varying(t) => Coef::Varying(Tensor::marked(t.view().dims(), layout)),
        }
    }

    fn grad(&mut self) -> CoefficientGrad<'_, I, W> {
        match self {
            Coef::Constant(t) => CoefficientGrad::Constant(t.view_mut()),
            Coef::Varying(t) => CoefficientGrad::Varying(t.view_mut()),
        }
    }

    fn result(&self, name: &str) -> Named {
        let (array, dtype, role) = match self {
            Coef::Constant(t) => (t.array(), W::DTYPE, Role::Shared),
            Coef::Varying(t) => (t.array(), stored::<I, W>(), Role::Positions),
        };
        Named { name: name.into(), array, dtype, role }
    }
}

/// Ids or offsets with their shape.
enum Order<'a> {
    Rows,
    CuSeqlens(&'a [i64]),
    SeqIdx(&'a [i32], [usize; 2]),
}

/// Everything the calls read, and in which layout results are written.
pub struct Operands<'a, I: Input, W: Weight<Real = I::Accum>> {
    u: Tensor<I, 3>,
    delta: Tensor<I, 3>,
    A: Tensor<W, 2>,
    B: Coef<I, W>,
    C: Coef<I, W>,
    D: Option<Tensor<W::Real, 1>>,
    z: Option<Tensor<I, 3>>,
    delta_bias: Option<Tensor<W::Real, 1>>,
    h0: Option<Tensor<W, 3>>,
    grad_out: Tensor<I, 3>,
    grad_last_state: Option<Tensor<W, 3>>,
    options: SelectiveOptions,
    order: Order<'a>,
    state_dims: [usize; 3],
    layout: Layout,
}

fn given<T: Element, const R: usize>(array: &Option<Array>, layout: Layout) -> Option<Tensor<T, R>> {
    array.as_ref().map(|a| Tensor::from(a, layout))
}

fn result<T: Element, const R: usize>(name: &str, tensor: &Tensor<T, R>, role: Role) -> Named {
    Named { name: name.into(), array: tensor.array(), dtype: T::DTYPE, role }
}

impl<'a, I: Input, W: Weight<Real = I::Accum>> Operands<'a, I, W> {
    pub fn new(problem: &'a Selective, layout: Layout) -> Self {
        Operands {
            u: Tensor::from(&problem.u, layout),
            delta: Tensor::from(&problem.delta, layout),
            A: Tensor::from(&problem.A, layout),
            B: Coef::new(&problem.B, layout),
            C: Coef::new(&problem.C, layout),
            D: given(&problem.D, layout),
            z: given(&problem.z, layout),
            delta_bias: given(&problem.delta_bias, layout),
            h0: given(&problem.h0, layout),
            grad_out: Tensor::from(&problem.grad_out, layout),
            grad_last_state: given(&problem.grad_last_state, layout),
            options: problem.options,
            order: match &problem.packing {
                Packing::Rows => Order::Rows,
                Packing::CuSeqlens(offsets) => Order::CuSeqlens(offsets),
                Packing::SeqIdx { ids, dims } => Order::SeqIdx(ids, *dims),
            },
            state_dims: problem.zero_state().dims.try_into().expect("states have three axes"),
            layout,
        }
    }

    pub fn inputs(&self) -> SelectiveInputs<'_, I, W> {
        SelectiveInputs {
            u: self.u.view(),
            delta: self.delta.view(),
            A: self.A.view(),
            B: self.B.view(),
            C: self.C.view(),
            D: self.D.as_ref().map(Tensor::view),
            z: self.z.as_ref().map(Tensor::view),
            delta_bias: self.delta_bias.as_ref().map(Tensor::view),
            initial_state: self.h0.as_ref().map(Tensor::view),
            sequences: match &self.order {
                Order::Rows => Sequences::Rows,
                Order::CuSeqlens(offsets) => Sequences::CuSeqlens(View::new(offsets, [offsets.len()])),
                Order::SeqIdx(ids, dims) => Sequences::SeqIdx(View::new(ids, *dims)),
            },
            options: self.options,
        }
    }

    pub fn forward<E: HostEngine>(&self, engine: &E) -> Result<Vec<Named>, Error> {
        let mut out = Tensor::<I, 3>::marked(self.u.view().dims(), self.layout);
        let mut last = Tensor::<W, 3>::marked(self.state_dims, self.layout);
        let args = SelectiveFwd { inputs: self.inputs(), out: out.view_mut(), last_state: Some(last.view_mut()) };
        let problem = args.check()?;
        let bytes = engine.selective_scan_fwd_workspace::<I, W>(&problem);
        engine.selective_scan_fwd(args, &mut Buffer::new().workspace(bytes))?;
        Ok(vec![result("out", &out, Role::Positions), result("last_state", &last, Role::States)])
    }

    pub fn backward<E: HostEngine>(&self, engine: &E) -> Result<Vec<Named>, Error> {
        let (dims, layout) = (self.u.view().dims(), self.layout);
        let positions = || Tensor::<I, 3>::marked(dims, layout);
        let channels = || Tensor::<W::Real, 1>::marked([dims[2]], layout);
        let (mut u, mut delta, mut A) = (positions(), positions(), Tensor::<W, 2>::marked(self.A.view().dims(), layout));
        let (mut B, mut C) = (self.B.marked(layout), self.C.marked(layout));
        let (mut D, mut z) = (self.D.as_ref().map(|_| channels()), self.z.as_ref().map(|_| positions()));
        let mut delta_bias = self.delta_bias.as_ref().map(|_| channels());
        let mut h0 = self.h0.as_ref().map(|_| Tensor::<W, 3>::marked(self.state_dims, layout));
        let grads = SelectiveGrads {
            u: Some(u.view_mut()),
            delta: Some(delta.view_mut()),
            A: Some(A.view_mut()),
            B: Some(B.grad()),
            C: Some(C.grad()),
            D: D.as_mut().map(Tensor::view_mut),
            z: z.as_mut().map(Tensor::view_mut),
            delta_bias: delta_bias.as_mut().map(Tensor::view_mut),
            initial_state: h0.as_mut().map(Tensor::view_mut),
        };
        let grad_last_state = self.grad_last_state.as_ref().map(Tensor::view);
        let args = SelectiveBwd { inputs: self.inputs(), grad_out: self.grad_out.view(), grad_last_state, grads };
        let problem = args.check()?;
        let bytes = engine.selective_scan_bwd_workspace::<I, W>(&problem);
        engine.selective_scan_bwd(args, &mut Buffer::new().workspace(bytes))?;
        let mut results = vec![result("grad.u", &u, Role::Positions), result("grad.delta", &delta, Role::Positions)];
        results.extend([result("grad.A", &A, Role::Shared), B.result("grad.B"), C.result("grad.C")]);
        results.extend(D.as_ref().map(|t| result("grad.D", t, Role::Shared)));
        results.extend(z.as_ref().map(|t| result("grad.z", t, Role::Positions)));
        results.extend(delta_bias.as_ref().map(|t| result("grad.delta_bias", t, Role::Shared)));
        results.extend(h0.as_ref().map(|t| result("grad.h0", t, Role::States)));
        Ok(results)
    }
}

/// The states of a batch between steps, one slot more than there are rows, rows in reverse order.
pub struct StateStore<S: Element> {
    state: Tensor<S, 3>,
    slots: Vec<i32>,
}

impl<S: Element> StateStore<S> {
    pub fn new(state: &Array) -> Self {
        let batch = state.dims[0];
        let mut all = Array::zeros(&[1, state.dims[1], state.dims[2]], state.complex);
        let rows = state.take(&(0..batch).rev().collect::<Vec<_>>());
        all.dims[0] += batch;
        all.data.extend(rows.data);
        StateStore { state: Tensor::from(&all, Layout::Contiguous), slots: (0..batch).map(|row| (batch - row) as i32).collect() }
    }

    pub fn array(&self) -> Array {
        self.state.array().take(&self.slots.iter().map(|&s| s as usize).collect::<Vec<_>>())
    }

    /// Position `t` of a problem as one decode step; its out.
    pub fn step<E: HostEngine, I: Input, W: Weight<Real = I::Accum>>(
        &mut self,
        engine: &E,
        problem: &Selective,
        t: usize,
    ) -> Result<Array, Error>
    where
        S: Element<Arith = W>,
    {
        let at = |x: &Array| Tensor::<I, 2>::from(&x.at(t), Layout::Contiguous);
        let channels = |x: &Option<Array>| given::<W::Real, 1>(x, Layout::Contiguous);
        let (u, delta, z) = (at(&problem.u), at(&problem.delta), problem.z.as_ref().map(at));
        let A = Tensor::<W, 2>::from(&problem.A, Layout::Contiguous);
        let (D, bias) = (channels(&problem.D), channels(&problem.delta_bias));
        let (B, C) = (StepCoef::<I, W>::new(&problem.B, t), StepCoef::<I, W>::new(&problem.C, t));
        let mut out = Tensor::<I, 2>::marked(u.view().dims(), Layout::Contiguous);
        let args = SelectiveStep {
            u: u.view(),
            delta: delta.view(),
            A: A.view(),
            B: B.view(),
            C: C.view(),
            D: D.as_ref().map(Tensor::view),
            z: z.as_ref().map(Tensor::view),
            delta_bias: bias.as_ref().map(Tensor::view),
            state: self.state.view_mut(),
            slots: Some(View::new(&self.slots, [self.slots.len()])),
            out: out.view_mut(),
            options: problem.options,
        };
        let sizes = args.check()?;
        let bytes = engine.selective_state_update_workspace::<I, W>(&sizes);
        engine.selective_state_update(args, &mut Buffer::new().workspace(bytes))?;
        Ok(out.array())
    }
}

/// B or C of one step.
enum StepCoef<I: Input, W: Weight<Real = I::Accum>> {
    Constant(Tensor<W, 2>),
    Varying(Tensor<W::Stored<I>, 3>),
}

impl<I: Input, W: Weight<Real = I::Accum>> StepCoef<I, W> {
    fn new(array: &Array, t: usize) -> Self {
        if array.dims.len() == 4 {
            StepCoef::Varying(Tensor::from(&array.at(t), Layout::Contiguous))
        } else {
            StepCoef::Constant(Tensor::from(array, Layout::Contiguous))
        }
    }

    fn view(&self) -> Coefficient<'_, I, W, 3> {
        match self {
            StepCoef::Constant(t) => Coefficient::Constant(t.view()),
            StepCoef::Varying(t) => Coefficient::Varying(t.view()),
        }
    }
}

//! A selective scan in f64, and its calls in any storage type on any engine.

use selective_scan::Error;
use selective_scan::buffer::Buffer;
use selective_scan::element::{Dtype, Element, Input, Weight};
use selective_scan::naive::{Naive, selective_n_eff};
use selective_scan::selective::{
    Coefficient, CoefficientGrad, SelectiveBwd, SelectiveFwd, SelectiveGrads, SelectiveInputs, SelectiveOptions, SelectiveStep,
};
use selective_scan::view::View;

use super::array::Array;
use super::tensor::{Layout, Tensor};
use super::transform::{Packing, Transform};
use super::{Engine, Found, Role};

/// Which gradients are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    All,
    /// Those of parameters: A, constant or varying B and C, D and the bias.
    Parameters,
    /// Those by position and of the initial state, without B and C.
    Positions,
    /// That of Δ alone.
    Delta,
}

impl Wanted {
    fn has(self, name: &str) -> bool {
        match self {
            Wanted::All => true,
            Wanted::Parameters => ["A", "B", "C", "D", "delta_bias"].contains(&name),
            Wanted::Positions => ["u", "delta", "z", "h0"].contains(&name),
            Wanted::Delta => name == "delta",
        }
    }
}

/// A selective scan and its upstream gradients.
#[derive(Debug, Clone)]
pub struct Problem {
    pub u: Array,
    pub delta: Array,
    pub A: Array,
    pub B: Array,
    pub C: Array,
    pub D: Option<Array>,
    pub z: Option<Array>,
    pub delta_bias: Option<Array>,
    pub h0: Option<Array>,
    pub grad_out: Array,
    pub grad_last: Option<Array>,
    pub packing: Packing,
    pub options: SelectiveOptions,
    /// Whether the last state is asked for.
    pub last: bool,
    pub wanted: Wanted,
}

impl Problem {
    pub fn complex(&self) -> bool {
        self.A.complex
    }

    /// (states, D, N).
    pub fn state_dims(&self) -> [usize; 3] {
        let states = if let Packing::CuSeqlens(offsets) = &self.packing { offsets.len() - 1 } else { self.u.dims[0] };
        [states, self.A.dims[0], self.A.dims[1]]
    }

    /// How many steps the decay remembers.
    pub fn n_eff(&self) -> f64 {
        fn of<W: Weight<Real = f64>>(problem: &Problem) -> f64 {
            selective_n_eff(&Operands::<f64, W>::new(problem, Layout::Contiguous).inputs()).expect("the operands agree")
        }
        if self.complex() { of::<num_complex::Complex<f64>>(self) } else { of::<f64>(self) }
    }

    /// The specification's results in f64.
    pub fn reference(&self) -> Vec<Found> {
        fn of<W: Weight<Real = f64>>(problem: &Problem) -> Vec<Found> {
            run::<Naive, f64, W>(&Naive, problem, Layout::Contiguous).expect("the operands are right")
        }
        if self.complex() { of::<num_complex::Complex<f64>>(self) } else { of::<f64>(self) }
    }

    /// The same work arranged in another way.
    pub fn transform(&self, by: &Transform) -> Self {
        let coefficient = |x: &Array| if x.dims.len() == 4 { by.input(x) } else { x.clone() };
        let states = |x: &Option<Array>| x.as_ref().map(|x| x.take(&by.states));
        Problem {
            u: by.input(&self.u),
            delta: by.input(&self.delta),
            B: coefficient(&self.B),
            C: coefficient(&self.C),
            z: self.z.as_ref().map(|z| by.input(z)),
            h0: states(&self.h0),
            grad_out: by.input(&self.grad_out),
            grad_last: states(&self.grad_last),
            packing: by.packing.clone(),
            ..self.clone()
        }
    }
}

/// B or C, or the gradient of one. `R` is 4 for scans and 3 for the step.
enum Coef<I: Input, W: Weight<Real = I::Accum>, const R: usize> {
    Constant(Tensor<W, 2>),
    Varying(Tensor<W::Stored<I>, R>),
}

impl<I: Input, W: Weight<Real = I::Accum>, const R: usize> Coef<I, W, R> {
    fn new(array: &Array, layout: Layout) -> Self {
        if array.dims.len() == R { Coef::Varying(Tensor::from(array, layout)) } else { Coef::Constant(Tensor::from(array, layout)) }
    }

    fn view(&self) -> Coefficient<'_, I, W, R> {
        match self {
            Coef::Constant(t) => Coefficient::Constant(t.view()),
            Coef::Varying(t) => Coefficient::Varying(t.view()),
        }
    }
}

impl<I: Input, W: Weight<Real = I::Accum>> Coef<I, W, 4> {
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

    fn found(&self, name: &'static str) -> Found {
        match self {
            Coef::Constant(t) => Found { name, array: t.array(), dtype: W::DTYPE, role: Role::Shared },
            Coef::Varying(t) => Found { name, array: t.array(), dtype: <W::Stored<I> as Element>::DTYPE, role: Role::Positions },
        }
    }
}

/// A tensor as a result.
pub fn found<T: Element, const R: usize>(name: &'static str, tensor: &Tensor<T, R>, role: Role) -> Found {
    Found { name, array: tensor.array(), dtype: T::DTYPE, role }
}

/// An operand that may be absent.
pub fn given<T: Element, const R: usize>(array: &Option<Array>, layout: Layout) -> Option<Tensor<T, R>> {
    array.as_ref().map(|a| Tensor::from(a, layout))
}

/// Everything that the calls read, in one layout, in which results are written too.
struct Operands<'a, I: Input, W: Weight<Real = I::Accum>> {
    of: &'a Problem,
    u: Tensor<I, 3>,
    delta: Tensor<I, 3>,
    A: Tensor<W, 2>,
    B: Coef<I, W, 4>,
    C: Coef<I, W, 4>,
    D: Option<Tensor<W::Real, 1>>,
    z: Option<Tensor<I, 3>>,
    delta_bias: Option<Tensor<W::Real, 1>>,
    h0: Option<Tensor<W, 3>>,
    layout: Layout,
}

impl<'a, I: Input, W: Weight<Real = I::Accum>> Operands<'a, I, W> {
    fn new(of: &'a Problem, layout: Layout) -> Self {
        Operands {
            of,
            u: Tensor::from(&of.u, layout),
            delta: Tensor::from(&of.delta, layout),
            A: Tensor::from(&of.A, layout),
            B: Coef::new(&of.B, layout),
            C: Coef::new(&of.C, layout),
            D: given(&of.D, layout),
            z: given(&of.z, layout),
            delta_bias: given(&of.delta_bias, layout),
            h0: given(&of.h0, layout),
            layout,
        }
    }

    fn inputs(&self) -> SelectiveInputs<'_, I, W> {
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
            sequences: self.of.packing.sequences(),
            options: self.of.options,
        }
    }

    fn forward<E: Engine>(&self, engine: &E) -> Result<Vec<Found>, Error> {
        let mut out = Tensor::<I, 3>::marked(self.u.view().dims(), self.layout);
        let mut last = self.of.last.then(|| Tensor::<W, 3>::marked(self.of.state_dims(), self.layout));
        let args = SelectiveFwd { inputs: self.inputs(), out: out.view_mut(), last_state: last.as_mut().map(Tensor::view_mut) };
        let bytes = engine.selective_scan_fwd_workspace::<I, W>(&args.check()?);
        engine.selective_scan_fwd(args, &mut Buffer::new().workspace(bytes))?;
        let mut results = vec![found("out", &out, Role::Positions)];
        results.extend(last.iter().map(|t| found("last_state", t, Role::States)));
        Ok(results)
    }

    fn backward<E: Engine>(&self, engine: &E) -> Result<Vec<Found>, Error> {
        let (dims, layout, wanted) = (self.u.view().dims(), self.layout, self.of.wanted);
        let by_position = |name, there: bool| (wanted.has(name) && there).then(|| Tensor::<I, 3>::marked(dims, layout));
        let by_channel = |name, there: bool| (wanted.has(name) && there).then(|| Tensor::<W::Real, 1>::marked([dims[2]], layout));
        let (mut u, mut delta) = (by_position("u", true), by_position("delta", true));
        let mut A = wanted.has("A").then(|| Tensor::<W, 2>::marked(self.A.view().dims(), layout));
        let mut B = wanted.has("B").then(|| self.B.marked(layout));
        let mut C = wanted.has("C").then(|| self.C.marked(layout));
        let (mut D, mut z) = (by_channel("D", self.D.is_some()), by_position("z", self.z.is_some()));
        let mut delta_bias = by_channel("delta_bias", self.delta_bias.is_some());
        let mut h0 = (wanted.has("h0") && self.h0.is_some()).then(|| Tensor::<W, 3>::marked(self.of.state_dims(), layout));
        let (grad_out, grad_last) = (Tensor::<I, 3>::from(&self.of.grad_out, layout), given::<W, 3>(&self.of.grad_last, layout));
        let grads = SelectiveGrads {
            u: u.as_mut().map(Tensor::view_mut),
            delta: delta.as_mut().map(Tensor::view_mut),
            A: A.as_mut().map(Tensor::view_mut),
            B: B.as_mut().map(Coef::grad),
            C: C.as_mut().map(Coef::grad),
            D: D.as_mut().map(Tensor::view_mut),
            z: z.as_mut().map(Tensor::view_mut),
            delta_bias: delta_bias.as_mut().map(Tensor::view_mut),
            initial_state: h0.as_mut().map(Tensor::view_mut),
        };
        let grad_last_state = grad_last.as_ref().map(Tensor::view);
        let args = SelectiveBwd { inputs: self.inputs(), grad_out: grad_out.view(), grad_last_state, grads };
        let bytes = engine.selective_scan_bwd_workspace::<I, W>(&args.check()?);
        engine.selective_scan_bwd(args, &mut Buffer::new().workspace(bytes))?;
        let mut results = Vec::new();
        results.extend(u.iter().map(|t| found("grad.u", t, Role::Positions)));
        results.extend(delta.iter().map(|t| found("grad.delta", t, Role::Positions)));
        results.extend(z.iter().map(|t| found("grad.z", t, Role::Positions)));
        results.extend(A.iter().map(|t| found("grad.A", t, Role::Shared)));
        results.extend(B.iter().map(|t| t.found("grad.B")));
        results.extend(C.iter().map(|t| t.found("grad.C")));
        results.extend(D.iter().map(|t| found("grad.D", t, Role::Shared)));
        results.extend(delta_bias.iter().map(|t| found("grad.delta_bias", t, Role::Shared)));
        results.extend(h0.iter().map(|t| found("grad.h0", t, Role::States)));
        Ok(results)
    }
}

/// Forward and backward.
pub fn run<E: Engine, I: Input, W: Weight<Real = I::Accum>>(engine: &E, of: &Problem, layout: Layout) -> Result<Vec<Found>, Error> {
    let operands = Operands::<I, W>::new(of, layout);
    let mut results = operands.forward(engine)?;
    results.extend(operands.backward(engine)?);
    Ok(results)
}

/// Forward alone.
fn forward<E: Engine, I: Input, W: Weight<Real = I::Accum>>(engine: &E, of: &Problem, layout: Layout) -> Result<Vec<Found>, Error> {
    Operands::<I, W>::new(of, layout).forward(engine)
}

/// Position `t` as one decode step on states that are stored as `S`; out, and every state afterwards. Rows that are skipped keep the
/// mark in their out.
pub fn step<E: Engine, I: Input, W: Weight<Real = I::Accum>, S: Element<Arith = W>>(
    engine: &E,
    of: &Problem,
    t: usize,
    states: &Array,
    slots: Option<&[i32]>,
    layout: Layout,
) -> Result<Vec<Found>, Error> {
    let at = |x: &Array| Tensor::<I, 2>::from(&x.at(t), layout);
    let coefficient = |x: &Array| Coef::<I, W, 3>::new(&if x.dims.len() == 4 { x.at(t) } else { x.clone() }, layout);
    let (u, delta, z) = (at(&of.u), at(&of.delta), of.z.as_ref().map(at));
    let (A, B, C) = (Tensor::<W, 2>::from(&of.A, layout), coefficient(&of.B), coefficient(&of.C));
    let (D, delta_bias) = (given::<W::Real, 1>(&of.D, layout), given::<W::Real, 1>(&of.delta_bias, layout));
    let mut state = Tensor::<S, 3>::from(states, layout);
    let mut out = Tensor::<I, 2>::marked(u.view().dims(), layout);
    let args = SelectiveStep {
        u: u.view(),
        delta: delta.view(),
        A: A.view(),
        B: B.view(),
        C: C.view(),
        D: D.as_ref().map(Tensor::view),
        z: z.as_ref().map(Tensor::view),
        delta_bias: delta_bias.as_ref().map(Tensor::view),
        state: state.view_mut(),
        slots: slots.map(|s| View::new(s, [s.len()])),
        out: out.view_mut(),
        options: of.options,
    };
    let bytes = engine.selective_state_update_workspace::<I, W>(&args.check()?);
    engine.selective_state_update(args, &mut Buffer::new().workspace(bytes))?;
    Ok(vec![found("out", &out, Role::Positions), found("state", &state, Role::States)])
}

/// Calls a generic function with the types of a storage type and a kind of number: `typed!(dtype, complex, function::<_, I, W>(arguments))`.
macro_rules! typed {
    ($dtype:expr, $complex:expr, $function:ident($($argument:expr),* $(,)?)) => {{
        use half::{bf16, f16};
        use num_complex::Complex;
        use selective_scan::element::Dtype;
        match ($dtype, $complex) {
            (Dtype::F64, false) => $function::<_, f64, f64>($($argument),*),
            (Dtype::F32, false) => $function::<_, f32, f32>($($argument),*),
            (Dtype::F16, false) => $function::<_, f16, f32>($($argument),*),
            (Dtype::Bf16, false) => $function::<_, bf16, f32>($($argument),*),
            (Dtype::F64, true) => $function::<_, f64, Complex<f64>>($($argument),*),
            (Dtype::F32, true) => $function::<_, f32, Complex<f32>>($($argument),*),
            (Dtype::F16, true) => $function::<_, f16, Complex<f32>>($($argument),*),
            (Dtype::Bf16, true) => $function::<_, bf16, Complex<f32>>($($argument),*),
            (other, _) => panic!("{other:?} is not a storage type of inputs"),
        }
    }};
}
pub(super) use typed;

/// Backward alone.
fn backward<E: Engine, I: Input, W: Weight<Real = I::Accum>>(engine: &E, of: &Problem, layout: Layout) -> Result<Vec<Found>, Error> {
    Operands::<I, W>::new(of, layout).backward(engine)
}

/// Backward in a storage type.
pub fn backward_in<E: Engine>(engine: &E, dtype: Dtype, of: &Problem, layout: Layout) -> Result<Vec<Found>, Error> {
    typed!(dtype, of.complex(), backward(engine, of, layout))
}

/// Forward and backward in a storage type.
pub fn run_in<E: Engine>(engine: &E, dtype: Dtype, of: &Problem, layout: Layout) -> Result<Vec<Found>, Error> {
    typed!(dtype, of.complex(), run(engine, of, layout))
}

/// Forward in a storage type.
pub fn forward_in<E: Engine>(engine: &E, dtype: Dtype, of: &Problem, layout: Layout) -> Result<Vec<Found>, Error> {
    typed!(dtype, of.complex(), forward(engine, of, layout))
}

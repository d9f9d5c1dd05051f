//! Cases of the causal depthwise convolution.

use selective_scan::Error;
use selective_scan::buffer::Buffer;
use selective_scan::element::{Element, Input, Weight};
use selective_scan::layers::conv1d::{ConvBwd, ConvFwd, ConvGrads, ConvInputs, ConvStep};

use super::array::Array;
use super::case::{Case, check_state};
use super::engines::HostEngine;
use super::operation::{Checked, Named, Operation, Role};
use super::report::Findings;
use super::tensor::{Layout, Tensor};
use super::transform::{Packing, Transform};

/// A convolution and its upstream gradients, in f64.
#[derive(Debug, Clone)]
pub struct Conv1d {
    pub x: Array,
    pub weight: Array,
    pub bias: Option<Array>,
    pub window: Option<Array>,
    pub grad_out: Array,
    pub grad_final_window: Option<Array>,
    pub silu: bool,
    pub packing: Packing,
}

impl Conv1d {
    /// Takes a case apart. `Err` is one sentence about what is malformed.
    pub fn read(mut case: Case) -> Result<Checked<Self>, String> {
        let problem = Conv1d {
            x: case.tensor("x", &[3], false)?,
            weight: case.tensor("weight", &[2], false)?,
            bias: case.optional("bias", &[1], false)?,
            window: case.optional("window", &[3], false)?,
            grad_out: case.tensor("grad_out", &[3], false)?,
            grad_final_window: case.optional("grad_final_window", &[3], false)?,
            silu: case.flag("silu", true)?,
            packing: case.cu_seqlens()?.map_or(Packing::Rows, Packing::CuSeqlens),
        };
        check_state("final_window", &problem.window_dims())?;
        Operands::<f64>::new(&problem, Layout::Contiguous).inputs(&problem).check().map_err(|e| e.to_string())?;
        let window = Array::zeros(&problem.window_dims(), false);
        let mut reference = vec![("out".to_owned(), case.reference("out", &problem.x)?)];
        reference.push(("final_window".into(), case.reference("final_window", &window)?));
        let inputs = [("x", Some(&problem.x)), ("weight", Some(&problem.weight)), ("bias", problem.bias.as_ref())];
        for (name, input) in inputs.into_iter().chain([("window", problem.window.as_ref())]) {
            if let Some(input) = input {
                let name = format!("grad.{name}");
                let gradient = case.reference(&name, input)?;
                reference.push((name, gradient));
            }
        }
        case.finish()?;
        Ok(Checked { problem, reference, terms: Vec::new() })
    }

    fn window_dims(&self) -> [usize; 3] {
        let states = match &self.packing {
            Packing::CuSeqlens(offsets) => offsets.len().saturating_sub(1),
            _ => self.x.dims[0],
        };
        [states, self.weight.dims[1].saturating_sub(1), self.x.dims[2]]
    }
}

/// The operands in one storage type and layout.
struct Operands<I: Input> {
    x: Tensor<I, 3>,
    weight: Tensor<I::Accum, 2>,
    bias: Option<Tensor<I::Accum, 1>>,
    window: Option<Tensor<I, 3>>,
    grad_out: Tensor<I, 3>,
    grad_final_window: Option<Tensor<I, 3>>,
    layout: Layout,
}

impl<I: Input> Operands<I> {
    fn new(problem: &Conv1d, layout: Layout) -> Self {
        Operands {
            x: Tensor::from(&problem.x, layout),
            weight: Tensor::from(&problem.weight, layout),
            bias: problem.bias.as_ref().map(|x| Tensor::from(x, layout)),
            window: problem.window.as_ref().map(|x| Tensor::from(x, layout)),
            grad_out: Tensor::from(&problem.grad_out, layout),
            grad_final_window: problem.grad_final_window.as_ref().map(|x| Tensor::from(x, layout)),
            layout,
        }
    }

    fn inputs<'a>(&'a self, problem: &'a Conv1d) -> ConvInputs<'a, I> {
        ConvInputs {
            x: self.x.view(),
            weight: self.weight.view(),
            bias: self.bias.as_ref().map(Tensor::view),
            initial_window: self.window.as_ref().map(Tensor::view),
            sequences: problem.packing.sequences(),
            silu: problem.silu,
        }
    }

    fn forward<E: HostEngine>(&self, engine: &E, problem: &Conv1d) -> Result<Vec<Named>, Error> {
        let mut out = Tensor::<I, 3>::marked(self.x.view().dims(), self.layout);
        let mut last = Tensor::<I, 3>::marked(problem.window_dims(), self.layout);
        let args = ConvFwd { inputs: self.inputs(problem), out: out.view_mut(), final_window: Some(last.view_mut()) };
        let bytes = engine.causal_conv1d_fwd_workspace::<I>(&args.check()?);
        engine.causal_conv1d_fwd(args, &mut Buffer::new().workspace(bytes))?;
        Ok(vec![result("out", &out, Role::Positions), result("final_window", &last, Role::States)])
    }

    fn backward<E: HostEngine>(&self, engine: &E, problem: &Conv1d) -> Result<Vec<Named>, Error> {
        let dims = self.x.view().dims();
        let mut x = Tensor::<I, 3>::marked(dims, self.layout);
        let mut weight = Tensor::<I::Accum, 2>::marked(self.weight.view().dims(), self.layout);
        let mut bias = self.bias.as_ref().map(|_| Tensor::<I::Accum, 1>::marked([dims[2]], self.layout));
        let mut window = self.window.as_ref().map(|_| Tensor::<I, 3>::marked(problem.window_dims(), self.layout));
        let grads = ConvGrads {
            x: Some(x.view_mut()),
            weight: Some(weight.view_mut()),
            bias: bias.as_mut().map(Tensor::view_mut),
            initial_window: window.as_mut().map(Tensor::view_mut),
        };
        let grad_final_window = self.grad_final_window.as_ref().map(Tensor::view);
        let args = ConvBwd { inputs: self.inputs(problem), grad_out: self.grad_out.view(), grad_final_window, grads };
        let bytes = engine.causal_conv1d_bwd_workspace::<I>(&args.check()?);
        engine.causal_conv1d_bwd(args, &mut Buffer::new().workspace(bytes))?;
        let mut results = vec![result("grad.x", &x, Role::Positions), result("grad.weight", &weight, Role::Shared)];
        results.extend(bias.as_ref().map(|t| result("grad.bias", t, Role::Shared)));
        results.extend(window.as_ref().map(|t| result("grad.window", t, Role::States)));
        Ok(results)
    }
}

fn result<T: Element, const R: usize>(name: &str, tensor: &Tensor<T, R>, role: Role) -> Named {
    Named { name: name.into(), array: tensor.array(), dtype: T::DTYPE, role }
}

/// One position as a decode step on a window.
fn step<E: HostEngine, I: Input>(engine: &E, problem: &Conv1d, window: &mut Tensor<I, 3>, t: usize) -> Result<Array, Error> {
    let x = Tensor::<I, 2>::from(&problem.x.at(t), Layout::Contiguous);
    let weight = Tensor::<I::Accum, 2>::from(&problem.weight, Layout::Contiguous);
    let bias = problem.bias.as_ref().map(|b| Tensor::<I::Accum, 1>::from(b, Layout::Contiguous));
    let mut out = Tensor::<I, 2>::marked(x.view().dims(), Layout::Contiguous);
    let args = ConvStep {
        x: x.view(),
        weight: weight.view(),
        bias: bias.as_ref().map(Tensor::view),
        window: window.view_mut(),
        slots: None,
        out: out.view_mut(),
        silu: problem.silu,
    };
    let bytes = engine.causal_conv1d_update_workspace::<I>(&args.check()?);
    engine.causal_conv1d_update(args, &mut Buffer::new().workspace(bytes))?;
    Ok(out.array())
}

impl Operation for Conv1d {
    const OUT: &'static str = "out";
    const STATE: &'static str = "final_window";

    fn complex(&self) -> bool {
        false
    }

    /// Nothing is carried from step to step but inputs.
    fn n_eff(&self) -> f64 {
        0.0
    }

    fn sizes(&self) -> [usize; 2] {
        [self.x.dims[0], self.x.dims[1]]
    }

    fn packing(&self) -> Option<&Packing> {
        Some(&self.packing)
    }

    fn reverse(&self) -> bool {
        false
    }

    fn has_states(&self) -> bool {
        self.window.is_some() || self.grad_final_window.is_some()
    }

    fn transform(&self, by: &Transform) -> Self {
        let states = |x: &Option<Array>| x.as_ref().map(|x| x.take(&by.states));
        Conv1d {
            x: by.input(&self.x),
            window: states(&self.window),
            grad_out: by.input(&self.grad_out),
            grad_final_window: states(&self.grad_final_window),
            packing: by.packing.clone(),
            ..self.clone()
        }
    }

    fn with_initial(&self, state: Array) -> Self {
        Conv1d { window: Some(state), ..self.clone() }
    }

    fn run<E: HostEngine, I: Input, W: Weight<Real = I::Accum>>(&self, engine: &E, layout: Layout) -> Result<Vec<Named>, Error> {
        let operands = Operands::<I>::new(self, layout);
        let mut results = operands.forward(engine, self)?;
        results.extend(operands.backward(engine, self)?);
        Ok(results)
    }

    fn forward<E: HostEngine, I: Input, W: Weight<Real = I::Accum>>(&self, engine: &E, layout: Layout) -> Result<Vec<Named>, Error> {
        Operands::<I>::new(self, layout).forward(engine, self)
    }

    fn steps<E: HostEngine, I: Input, W: Weight<Real = I::Accum>>(&self, engine: &E) -> Result<Vec<Named>, Error> {
        let start = Array::zeros(&self.window_dims(), false);
        let mut window = Tensor::<I, 3>::from(self.window.as_ref().unwrap_or(&start), Layout::Contiguous);
        let mut out = Array::zeros(&[self.x.dims[0], 0, self.x.dims[2]], false);
        for t in 0..self.x.dims[1] {
            let mut one = step(engine, self, &mut window, t)?;
            one.dims.insert(1, 1);
            out = Array::join(&[out, one]);
        }
        let out = Named { name: "out".into(), array: out, dtype: I::DTYPE, role: Role::Positions };
        Ok(vec![out, result("final_window", &window, Role::States)])
    }

    /// Windows are inputs, so they are always stored as these are.
    fn narrow_steps<E: HostEngine, I: Input, W: Weight<Real = I::Accum>>(&self, _: &E, _: &Array, _: &mut Findings) -> Result<(), Error> {
        Ok(())
    }
}

//! The Mamba block in one storage type and memory layout, called with tensors under their published names.

use std::collections::BTreeMap;

use selective_scan::Error;
use selective_scan::block::HostEngine;
use selective_scan::block::mamba::{
    MAMBA_OPTIONS, MambaBlock, MambaBwd, MambaFwd, MambaGrads, MambaInputs, MambaMemory, MambaParams, MambaSaved, MambaStep,
};
use selective_scan::buffer::Buffer;
use selective_scan::element::{Element, Input, Real};
use selective_scan::view::View;

use super::super::array::Array;
use super::super::operation::{Named, Role};
use super::super::tensor::{Layout, Tensor};
use super::super::transform::Packing;

/// Tensors by name, in f64: parameters as published, and `x`, `window`, `h0`, `grad_out`, `grad_final_window`, `grad_last_state`.
pub type Tensors = BTreeMap<String, Array>;

/// Parameters or their gradients: `P` is the type of projections, `R` that of the rest.
pub struct Set<P, R> {
    in_proj: Tensor<P, 2>,
    in_proj_bias: Option<Tensor<R, 1>>,
    conv_weight: Tensor<R, 2>,
    conv_bias: Option<Tensor<R, 1>>,
    x_proj: Tensor<P, 2>,
    dt_proj: Tensor<P, 2>,
    dt_bias: Tensor<R, 1>,
    A_log: Tensor<R, 2>,
    D: Tensor<R, 1>,
    out_proj: Tensor<P, 2>,
    out_proj_bias: Option<Tensor<R, 1>>,
}

/// Parameters beside inputs of type `I`.
pub type Weights<I> = Set<I, <I as Input>::Accum>;

/// (D, 1, W) as (D, W).
fn without_middle(weight: &Array) -> Array {
    let mut weight = weight.clone();
    weight.dims.remove(1);
    weight
}

impl<P: Element, R: Real> Set<P, R> {
    /// The parameters among `t`. Their ranks are the case reader's to check.
    pub fn new(t: &Tensors, layout: Layout) -> Self {
        let matrix = |name: &str| Tensor::from(&t[name], layout);
        let vector = |name: &str| t.get(name).map(|x| Tensor::from(x, layout));
        Set {
            in_proj: matrix("in_proj.weight"),
            in_proj_bias: vector("in_proj.bias"),
            conv_weight: Tensor::from(&without_middle(&t["conv1d.weight"]), layout),
            conv_bias: vector("conv1d.bias"),
            x_proj: matrix("x_proj.weight"),
            dt_proj: matrix("dt_proj.weight"),
            dt_bias: Tensor::from(&t["dt_proj.bias"], layout),
            A_log: Tensor::from(&t["A_log"], layout),
            D: Tensor::from(&t["D"], layout),
            out_proj: matrix("out_proj.weight"),
            out_proj_bias: vector("out_proj.bias"),
        }
    }

    /// Room for the gradients.
    fn gradients(&self, layout: Layout) -> Set<R, R> {
        let projection = |x: &Tensor<P, 2>| Tensor::marked(x.view().dims(), layout);
        let matrix = |x: &Tensor<R, 2>| Tensor::marked(x.view().dims(), layout);
        let vector = |x: &Tensor<R, 1>| Tensor::marked(x.view().dims(), layout);
        Set {
            in_proj: projection(&self.in_proj),
            in_proj_bias: self.in_proj_bias.as_ref().map(vector),
            conv_weight: matrix(&self.conv_weight),
            conv_bias: self.conv_bias.as_ref().map(vector),
            x_proj: projection(&self.x_proj),
            dt_proj: projection(&self.dt_proj),
            dt_bias: vector(&self.dt_bias),
            A_log: matrix(&self.A_log),
            D: vector(&self.D),
            out_proj: projection(&self.out_proj),
            out_proj_bias: self.out_proj_bias.as_ref().map(vector),
        }
    }

    /// The gradients under the names of their parameters.
    fn results(&self) -> Vec<Named> {
        let matrices = [
            ("in_proj.weight", self.in_proj.array()),
            ("conv1d.weight", self.conv_weight.array()),
            ("x_proj.weight", self.x_proj.array()),
            ("dt_proj.weight", self.dt_proj.array()),
            ("A_log", self.A_log.array()),
            ("out_proj.weight", self.out_proj.array()),
            ("dt_proj.bias", self.dt_bias.array()),
            ("D", self.D.array()),
        ];
        let biases = [("in_proj.bias", &self.in_proj_bias), ("conv1d.bias", &self.conv_bias), ("out_proj.bias", &self.out_proj_bias)];
        let biases = biases.into_iter().filter_map(|(name, bias)| Some((name, bias.as_ref()?.array())));
        let named = |(name, array)| Named { name: format!("grad.{name}"), array, dtype: R::DTYPE, role: Role::Shared };
        matrices.into_iter().chain(biases).map(named).collect()
    }
}

impl<I: Input> Set<I, I::Accum> {
    /// The parameters as a block borrows them.
    pub fn params(&self) -> MambaParams<'_, I> {
        MambaParams {
            in_proj: self.in_proj.view(),
            in_proj_bias: self.in_proj_bias.as_ref().map(Tensor::view),
            conv_weight: self.conv_weight.view(),
            conv_bias: self.conv_bias.as_ref().map(Tensor::view),
            x_proj: self.x_proj.view(),
            dt_proj: self.dt_proj.view(),
            dt_bias: self.dt_bias.view(),
            A_log: self.A_log.view(),
            A: None,
            D: self.D.view(),
            out_proj: self.out_proj.view(),
            out_proj_bias: self.out_proj_bias.as_ref().map(Tensor::view),
        }
    }
}

impl<R: Real> Set<R, R> {
    fn targets<I: Input<Accum = R>>(&mut self) -> MambaGrads<'_, I> {
        MambaGrads {
            in_proj: Some(self.in_proj.view_mut()),
            in_proj_bias: self.in_proj_bias.as_mut().map(Tensor::view_mut),
            conv_weight: Some(self.conv_weight.view_mut()),
            conv_bias: self.conv_bias.as_mut().map(Tensor::view_mut),
            x_proj: Some(self.x_proj.view_mut()),
            dt_proj: Some(self.dt_proj.view_mut()),
            dt_bias: Some(self.dt_bias.view_mut()),
            A_log: Some(self.A_log.view_mut()),
            D: Some(self.D.view_mut()),
            out_proj: Some(self.out_proj.view_mut()),
            out_proj_bias: self.out_proj_bias.as_mut().map(Tensor::view_mut),
            ..MambaGrads::default()
        }
    }
}

/// Everything a call reads, in one storage type and layout.
pub struct Operands<'a, I: Input> {
    weights: Weights<I>,
    x: Tensor<I, 3>,
    window: Option<Tensor<I, 3>>,
    h0: Option<Tensor<I::Accum, 3>>,
    grad_out: Tensor<I, 3>,
    grad_final_window: Option<Tensor<I, 3>>,
    grad_last_state: Option<Tensor<I::Accum, 3>>,
    packing: &'a Packing,
    layout: Layout,
}

fn result<T: Element, const R: usize>(name: &str, tensor: &Tensor<T, R>, role: Role) -> Named {
    Named { name: name.into(), array: tensor.array(), dtype: T::DTYPE, role }
}

impl<'a, I: Input> Operands<'a, I> {
    /// The tensors of `t` in this storage type.
    pub fn new(t: &Tensors, packing: &'a Packing, layout: Layout) -> Self {
        let stored = |name: &str| t.get(name).map(|x| Tensor::from(x, layout));
        let real = |name: &str| t.get(name).map(|x| Tensor::from(x, layout));
        Operands {
            weights: Set::new(t, layout),
            x: Tensor::from(&t["x"], layout),
            window: stored("window"),
            h0: real("h0"),
            grad_out: Tensor::from(&t["grad_out"], layout),
            grad_final_window: stored("grad_final_window"),
            grad_last_state: real("grad_last_state"),
            packing,
            layout,
        }
    }

    /// As the block reads them.
    pub fn inputs(&self) -> MambaInputs<'_, I> {
        MambaInputs {
            initial_window: self.window.as_ref().map(Tensor::view),
            initial_state: self.h0.as_ref().map(Tensor::view),
            sequences: self.packing.sequences(),
            ..MambaInputs::new(self.weights.params(), self.x.view())
        }
    }

    fn forward_into<E: HostEngine>(&self, engine: &E, saved: Option<&mut MambaSaved<'_, I>>) -> Result<Vec<Named>, Error> {
        let problem = self.inputs().check()?;
        let mut out = Tensor::<I, 3>::marked(self.x.view().dims(), self.layout);
        let mut final_window = Tensor::<I, 3>::marked([problem.states, problem.width - 1, problem.inner], self.layout);
        let mut last_state = Tensor::<I::Accum, 3>::marked([problem.states, problem.inner, problem.dstate], self.layout);
        let args = MambaFwd {
            inputs: self.inputs(),
            out: out.view_mut(),
            final_window: Some(final_window.view_mut()),
            last_state: Some(last_state.view_mut()),
        };
        let block = MambaBlock { engine };
        let mut buffer = Buffer::new();
        match saved {
            Some(saved) => block.forward_saving(args, saved, &mut buffer.workspace(block.saving_workspace::<I>(&problem)))?,
            None => block.forward(args, &mut buffer.workspace(block.forward_workspace::<I>(&problem)))?,
        }
        let window = result("final_window", &final_window, Role::States);
        Ok(vec![result("out", &out, Role::Positions), window, result("last_state", &last_state, Role::States)])
    }

    /// `out`, `final_window` and `last_state`.
    pub fn forward<E: HostEngine>(&self, engine: &E) -> Result<Vec<Named>, Error> {
        self.forward_into(engine, None)
    }

    /// The same, and the gradient of every tensor that is there.
    pub fn run<E: HostEngine>(&self, engine: &E) -> Result<Vec<Named>, Error> {
        let problem = self.inputs().check()?;
        let mut memory = MambaMemory::new();
        let mut saved = memory.saved(&problem);
        let mut results = self.forward_into(engine, Some(&mut saved))?;
        let mut grads = self.weights.gradients(self.layout);
        let mut x = Tensor::<I, 3>::marked(self.x.view().dims(), self.layout);
        let mut window = self.window.as_ref().map(|w| Tensor::<I, 3>::marked(w.view().dims(), self.layout));
        let mut h0 = self.h0.as_ref().map(|h| Tensor::<I::Accum, 3>::marked(h.view().dims(), self.layout));
        let args = MambaBwd {
            inputs: self.inputs(),
            saved: &saved,
            grad_out: self.grad_out.view(),
            grad_final_window: self.grad_final_window.as_ref().map(Tensor::view),
            grad_last_state: self.grad_last_state.as_ref().map(Tensor::view),
            grads: MambaGrads {
                x: Some(x.view_mut()),
                initial_window: window.as_mut().map(Tensor::view_mut),
                initial_state: h0.as_mut().map(Tensor::view_mut),
                ..grads.targets()
            },
        };
        let block = MambaBlock { engine };
        block.backward(args, &mut Buffer::new().workspace(block.backward_workspace::<I>(&problem)))?;
        results.push(result("grad.x", &x, Role::Positions));
        results.extend(window.as_ref().map(|w| result("grad.window", w, Role::States)));
        results.extend(h0.as_ref().map(|h| result("grad.h0", h, Role::States)));
        results.extend(grads.results());
        Ok(results)
    }
}

/// What `forward` gives, one decode step after another from `window` and `h0`, both of which must be there. Windows and states
/// stand in slots in another order than the rows, with one slot more that no row has.
pub fn steps<I: Input, E: HostEngine>(engine: &E, t: &Tensors) -> Result<Vec<Named>, Error> {
    let weights = Weights::<I>::new(t, Layout::Contiguous);
    let [batch, seqlen, hidden] = t["x"].dims[..] else { panic!("x has three axes") };
    let spread = |x: &Array| x.take(&[batch - 1].into_iter().chain((0..batch).rev()).collect::<Vec<_>>());
    let gathered = |x: Array| x.take(&(0..batch).map(|row| batch - row).collect::<Vec<_>>());
    let slots: Vec<i32> = (0..batch).map(|row| (batch - row) as i32).collect();
    let mut window = Tensor::<I, 3>::from(&spread(&t["window"]), Layout::Contiguous);
    let mut state = Tensor::<I::Accum, 3>::from(&spread(&t["h0"]), Layout::Contiguous);
    let spare = [window.array().take(&[0]), state.array().take(&[0])];
    let block = MambaBlock { engine };
    let mut buffer = Buffer::new();
    let mut all = Array::zeros(&[batch, 0, hidden], false);
    for t in (0..seqlen).map(|at| t["x"].at(at)) {
        let x = Tensor::<I, 2>::from(&t, Layout::Contiguous);
        let mut out = Tensor::<I, 2>::marked([batch, hidden], Layout::Contiguous);
        let args = MambaStep {
            params: weights.params(),
            x: x.view(),
            window: window.view_mut(),
            state: state.view_mut(),
            slots: Some(View::new(&slots, [batch])),
            out: out.view_mut(),
            options: MAMBA_OPTIONS,
        };
        let bytes = block.step_workspace::<I>(&args.check()?);
        block.step(args, &mut buffer.workspace(bytes))?;
        let mut one = out.array();
        one.dims.insert(1, 1);
        all = Array::join(&[all, one]);
    }
    assert_eq!(spare, [window.array().take(&[0]), state.array().take(&[0])], "a slot of no row was written");
    let end = |name: &str, array, dtype| Named { name: name.into(), array, dtype, role: Role::States };
    Ok(vec![
        Named { name: "out".into(), array: all, dtype: I::DTYPE, role: Role::Positions },
        end("final_window", gathered(window.array()), I::DTYPE),
        end("last_state", gathered(state.array()), <I::Accum as Element>::DTYPE),
    ])
}

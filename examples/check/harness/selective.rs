//! Cases of the selective scan.

use selective_scan::Error;
use selective_scan::element::{Dtype, Input, Weight};
use selective_scan::naive::{Naive, condition, selective_n_eff};
use selective_scan::ops::Rule;
use selective_scan::selective::SelectiveOptions;

use super::array::Array;
use super::case::{Case, check_state};
use super::compare::{Bound, compare};
use super::engines::{Entry, HostEngine};
use super::operation::{Checked, Named, Operation, Reference, Role};
use super::report::Findings;
use super::tensor::Layout;
use super::transform::{Packing, Transform};

mod typed;

use typed::{Operands, StateStore};

/// A selective scan and its upstream gradients, in f64.
#[derive(Debug, Clone)]
pub struct Selective {
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
    pub grad_last_state: Option<Array>,
    pub options: SelectiveOptions,
    pub packing: Packing,
    /// How many steps the decay remembers; see [`Selective::measured`].
    pub n_eff: f64,
}

/// Names of the operands that have a gradient, where they are given.
const INPUTS: [&str; 9] = ["u", "delta", "A", "B", "C", "D", "z", "delta_bias", "h0"];

impl Selective {
    /// Takes a case apart. `Err` is one sentence about what is malformed.
    pub fn read(mut case: Case) -> Result<Checked<Self>, String> {
        let complex = case.flag("complex", false)?;
        let ranks = |varying: bool| if varying { [4] } else { [2] };
        let (varying_B, varying_C) = (case.flag("variable_B", true)?, case.flag("variable_C", true)?);
        let rule = match case.text("rule", "euler")?.as_str() {
            "euler" => Rule::Euler,
            "zoh" => Rule::Zoh,
            "bilinear" => Rule::Bilinear,
            other => return Err(format!("option `rule` is {other:?}, wanted euler, zoh or bilinear")),
        };
        let options = SelectiveOptions { delta_softplus: case.flag("delta_softplus", true)?, rule, ..Default::default() };
        let mut problem = Selective {
            u: case.tensor("u", &[3], false)?,
            delta: case.tensor("delta", &[3], false)?,
            A: case.tensor("A", &[2], complex)?,
            B: case.tensor("B", &ranks(varying_B), complex)?,
            C: case.tensor("C", &ranks(varying_C), complex)?,
            D: case.optional("D", &[1], false)?,
            z: case.optional("z", &[3], false)?,
            delta_bias: case.optional("delta_bias", &[1], false)?,
            h0: case.optional("h0", &[3], complex)?,
            grad_out: case.tensor("grad_out", &[3], false)?,
            grad_last_state: case.optional("grad_last_state", &[3], complex)?,
            options,
            packing: case.cu_seqlens()?.map_or(Packing::Rows, Packing::CuSeqlens),
            n_eff: 0.0,
        };
        if let Some(groups) = case.count("groups")? {
            for (name, array) in [("B", &problem.B), ("C", &problem.C)] {
                if array.dims.len() == 4 && array.dims[2] != groups {
                    return Err(format!("tensor `{name}` has {} groups, option `groups` says {groups}", array.dims[2]));
                }
            }
        }
        check_state("last_state", &problem.state_dims())?;
        problem = problem.measured().map_err(|e| e.to_string())?;
        let reference = problem.reference(&mut case)?;
        case.finish()?;
        Ok(Checked { problem, reference, terms: Vec::new() })
    }

    /// Checks the operands against one another and finds n_eff.
    pub fn measured(mut self) -> Result<Self, Error> {
        fn of<W: Weight<Real = f64>>(problem: &Selective) -> Result<f64, Error> {
            selective_n_eff(&Operands::<f64, W>::new(problem, Layout::Contiguous).inputs())
        }
        self.n_eff = if self.complex() { of::<num_complex::Complex<f64>>(&self)? } else { of::<f64>(&self)? };
        Ok(self)
    }

    /// The scale of the rounding error of every out, as `naive::condition` says.
    pub fn condition(&self) -> Vec<f64> {
        fn of<W: Weight<Real = f64>>(problem: &Selective) -> Result<Vec<f64>, Error> {
            condition(&Operands::<f64, W>::new(problem, Layout::Contiguous).inputs())
        }
        let found = if self.complex() { of::<num_complex::Complex<f64>>(self) } else { of::<f64>(self) };
        found.expect("the operands are right")
    }

    /// The same problem with A rounded to f32, so that storage does not round it.
    pub fn in_f32(mut self) -> Self {
        self.A.data.iter_mut().for_each(|x| *x = f64::from(*x as f32));
        self
    }

    fn reference(&self, case: &mut Case) -> Result<Reference, String> {
        let mut reference = vec![("out".to_owned(), case.reference("out", &self.u)?)];
        reference.push(("last_state".into(), case.reference("last_state", &self.zero_state())?));
        for (name, input) in INPUTS.iter().zip(self.inputs()) {
            if let Some(input) = input {
                let name = format!("grad.{name}");
                let gradient = case.reference(&name, input)?;
                reference.push((name, gradient));
            }
        }
        Ok(reference)
    }

    fn inputs(&self) -> [Option<&Array>; 9] {
        let (D, z, bias, h0) = (self.D.as_ref(), self.z.as_ref(), self.delta_bias.as_ref(), self.h0.as_ref());
        [Some(&self.u), Some(&self.delta), Some(&self.A), Some(&self.B), Some(&self.C), D, z, bias, h0]
    }

    fn state_dims(&self) -> [usize; 3] {
        let states = match &self.packing {
            Packing::CuSeqlens(offsets) => offsets.len().saturating_sub(1),
            _ => self.u.dims[0],
        };
        [states, self.A.dims[0], self.A.dims[1]]
    }

    /// A state of zeros.
    pub fn zero_state(&self) -> Array {
        Array::zeros(&self.state_dims(), self.complex())
    }
}

impl Operation for Selective {
    const OUT: &'static str = "out";
    const STATE: &'static str = "last_state";

    fn complex(&self) -> bool {
        self.A.complex
    }

    fn n_eff(&self) -> f64 {
        self.n_eff
    }

    fn n_eff_on(&self, entry: &Entry, dtype: Dtype) -> f64 {
        self.n_eff * entry.step_units(dtype, self.complex(), self.options)
    }

    fn sizes(&self) -> [usize; 2] {
        [self.u.dims[0], self.u.dims[1]]
    }

    fn packing(&self) -> Option<&Packing> {
        Some(&self.packing)
    }

    fn reverse(&self) -> bool {
        false
    }

    fn has_states(&self) -> bool {
        self.h0.is_some() || self.grad_last_state.is_some()
    }

    fn transform(&self, by: &Transform) -> Self {
        let coefficient = |x: &Array| if x.dims.len() == 4 { by.input(x) } else { x.clone() };
        let states = |x: &Option<Array>| x.as_ref().map(|x| x.take(&by.states));
        Selective {
            u: by.input(&self.u),
            delta: by.input(&self.delta),
            B: coefficient(&self.B),
            C: coefficient(&self.C),
            z: self.z.as_ref().map(|z| by.input(z)),
            h0: states(&self.h0),
            grad_out: by.input(&self.grad_out),
            grad_last_state: states(&self.grad_last_state),
            packing: by.packing.clone(),
            ..self.clone()
        }
    }

    fn with_initial(&self, state: Array) -> Self {
        Selective { h0: Some(state), ..self.clone() }
    }

    fn run<E: HostEngine, I: Input, W: Weight<Real = I::Accum>>(&self, engine: &E, layout: Layout) -> Result<Vec<Named>, Error> {
        let operands = Operands::<I, W>::new(self, layout);
        let mut results = operands.forward(engine)?;
        results.extend(operands.backward(engine)?);
        Ok(results)
    }

    fn forward<E: HostEngine, I: Input, W: Weight<Real = I::Accum>>(&self, engine: &E, layout: Layout) -> Result<Vec<Named>, Error> {
        Operands::<I, W>::new(self, layout).forward(engine)
    }

    fn steps<E: HostEngine, I: Input, W: Weight<Real = I::Accum>>(&self, engine: &E) -> Result<Vec<Named>, Error> {
        let mut state = StateStore::<W>::new(self.h0.as_ref().unwrap_or(&self.zero_state()));
        let mut out = Array::zeros(&[self.u.dims[0], 0, self.u.dims[2]], false);
        for t in 0..self.u.dims[1] {
            let mut one = state.step::<E, I, W>(engine, self, t)?;
            one.dims.insert(1, 1);
            out = Array::join(&[out, one]);
        }
        let out = Named { name: "out".into(), array: out, dtype: I::DTYPE, role: Role::Positions };
        Ok(vec![out, Named { name: "last_state".into(), array: state.array(), dtype: W::DTYPE, role: Role::States }])
    }

    fn narrow_steps<E: HostEngine, I: Input, W: Weight<Real = I::Accum>>(
        &self,
        engine: &E,
        state: &Array,
        findings: &mut Findings,
    ) -> Result<(), Error> {
        if self.packing != Packing::Rows || self.u.dims[1] == 0 {
            return Ok(());
        }
        let mut store = StateStore::<W::Stored<I>>::new(state);
        for t in [0, self.u.dims[1] / 2, self.u.dims[1] - 1] {
            let [want_out, want_state] = if self.complex() {
                exact_step::<num_complex::Complex<f64>>(self, t, &store.array())?
            } else {
                exact_step::<f64>(self, t, &store.array())?
            };
            let out = store.step::<E, I, W>(engine, self, t)?;
            let dtype = <W::Stored<I> as selective_scan::element::Element>::DTYPE;
            let how = format!("one step at {t} with a {} state", dtype.name());
            findings.add("step.out", compare(&out.data, &want_out.data, Bound::one_step(I::DTYPE)), &how);
            findings.add("step.state", compare(&store.array().data, &want_state.data, Bound::one_step(dtype)), &how);
        }
        Ok(())
    }
}

/// One step in f64 from a stored state.
fn exact_step<W: Weight<Real = f64>>(problem: &Selective, t: usize, state: &Array) -> Result<[Array; 2], Error> {
    let mut store = StateStore::<W>::new(state);
    let out = store.step::<Naive, f64, W>(&Naive, problem, t)?;
    Ok([out, store.array()])
}

/// The storage type of B and C beside inputs of type `I`.
fn stored<I: Input, W: Weight<Real = I::Accum>>() -> Dtype {
    <W::Stored<I> as selective_scan::element::Element>::DTYPE
}

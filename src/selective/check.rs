//! Operand checks of layer 2. They name the operand that is wrong.

use super::{Coefficient, CoefficientGrad, SelectiveBwd, SelectiveFwd, SelectiveInputs, SelectiveProblem, SelectiveStep};
use crate::element::{Element, Input, Weight};
use crate::error::{Error, given, only_with};
use crate::sequences::check_slots;
use crate::view::{Memory, View, ViewMut};

impl<I: Input, W: Weight<Real = I::Accum>, M: Memory> Coefficient<'_, I, W, 4, M> {
    /// G, or None where constant.
    pub fn groups(&self) -> Option<usize> {
        match self {
            Coefficient::Constant(_) => None,
            Coefficient::Varying(v) => Some(v.dims()[2]),
        }
    }

    fn check(&self, operand: &'static str, [batch, seqlen, dim, dstate]: [usize; 4]) -> Result<(), Error> {
        match self {
            Coefficient::Constant(v) => v.check(operand, [dim, dstate]),
            Coefficient::Varying(v) => {
                let groups = check_groups(operand, v.dims()[2], dim)?;
                v.check(operand, [batch, seqlen, groups, dstate])
            }
        }
    }
}

impl<I: Input, W: Weight<Real = I::Accum>, M: Memory> Coefficient<'_, I, W, 3, M> {
    /// G, or None where constant.
    pub fn groups(&self) -> Option<usize> {
        match self {
            Coefficient::Constant(_) => None,
            Coefficient::Varying(v) => Some(v.dims()[1]),
        }
    }

    fn check(&self, operand: &'static str, batch: usize, dim: usize, dstate: usize) -> Result<(), Error> {
        match self {
            Coefficient::Constant(v) => v.check(operand, [dim, dstate]),
            Coefficient::Varying(v) => {
                let groups = check_groups(operand, v.dims()[1], dim)?;
                v.check(operand, [batch, groups, dstate])
            }
        }
    }
}

impl<I: Input, W: Weight<Real = I::Accum>, M: Memory> CoefficientGrad<'_, I, W, M> {
    fn check(&self, operand: &'static str, of: &Coefficient<'_, I, W, 4, M>) -> Result<(), Error> {
        match (self, of) {
            (CoefficientGrad::Constant(g), Coefficient::Constant(v)) => g.check(operand, v.dims()),
            (CoefficientGrad::Varying(g), Coefficient::Varying(v)) => g.check(operand, v.dims()),
            _ => Err(Error::Value { operand, why: "its tensor is constant and it varies, or the other way about".into() }),
        }
    }
}

fn check_groups(operand: &'static str, groups: usize, dim: usize) -> Result<usize, Error> {
    if groups > 0 && dim.is_multiple_of(groups) {
        return Ok(groups);
    }
    Err(Error::Value { operand, why: format!("{groups} groups do not divide {dim} channels") })
}

fn check_sizes(dim: usize, dstate: usize) -> Result<(), Error> {
    if dim == 0 || dstate == 0 {
        return Err(Error::Value { operand: "A", why: format!("shape [{dim}, {dstate}]: at least one channel and one state are wanted") });
    }
    Ok(())
}

impl<I: Input, W: Weight<Real = I::Accum>, M: Memory> SelectiveInputs<'_, I, W, M> {
    /// Checks every operand; the sizes.
    pub fn check(&self) -> Result<SelectiveProblem, Error> {
        let dims @ [batch, seqlen, dim] = self.u.dims();
        let dstate = self.A.dims()[1];
        self.u.check("u", dims)?;
        self.delta.check("delta", dims)?;
        check_sizes(dim, dstate)?;
        self.A.check("A", [dim, dstate])?;
        self.B.check("B", [batch, seqlen, dim, dstate])?;
        self.C.check("C", [batch, seqlen, dim, dstate])?;
        given(self.D.as_ref(), |v| v.check("D", [dim]))?;
        given(self.z.as_ref(), |v| v.check("z", dims))?;
        given(self.delta_bias.as_ref(), |v| v.check("delta_bias", [dim]))?;
        let states = self.sequences.check(batch, seqlen)?;
        given(self.initial_state.as_ref(), |v| v.check("initial_state", [states, dim, dstate]))?;
        let (groups_b, groups_c) = (self.B.groups(), self.C.groups());
        Ok(SelectiveProblem { batch, seqlen, dim, dstate, states, groups_b, groups_c, options: self.options })
    }
}

impl<I: Input, W: Weight<Real = I::Accum>, M: Memory> SelectiveFwd<'_, I, W, M> {
    /// Checks every operand; the sizes.
    pub fn check(&self) -> Result<SelectiveProblem, Error> {
        let problem = self.inputs.check()?;
        self.out.check("out", self.inputs.u.dims())?;
        given(self.last_state.as_ref(), |v| v.check("last_state", [problem.states, problem.dim, problem.dstate]))?;
        Ok(problem)
    }
}

impl<I: Input, W: Weight<Real = I::Accum>, M: Memory> SelectiveBwd<'_, I, W, M> {
    /// Checks every operand; the sizes.
    pub fn check(&self) -> Result<SelectiveProblem, Error> {
        let (inputs, grads) = (&self.inputs, &self.grads);
        let problem = inputs.check()?;
        let dims = inputs.u.dims();
        let state = [problem.states, problem.dim, problem.dstate];
        self.grad_out.check("grad_out", dims)?;
        given(self.grad_last_state.as_ref(), |v: &View<'_, W, 3, M>| v.check("grad_last_state", state))?;
        given(grads.u.as_ref(), |v| v.check("grads.u", dims))?;
        given(grads.delta.as_ref(), |v| v.check("grads.delta", dims))?;
        given(grads.A.as_ref(), |v| v.check("grads.A", inputs.A.dims()))?;
        given(grads.B.as_ref(), |v| v.check("grads.B", &inputs.B))?;
        given(grads.C.as_ref(), |v| v.check("grads.C", &inputs.C))?;
        given(grads.D.as_ref(), |v| v.check("grads.D", [problem.dim]))?;
        given(grads.z.as_ref(), |v| v.check("grads.z", dims))?;
        given(grads.delta_bias.as_ref(), |v| v.check("grads.delta_bias", [problem.dim]))?;
        given(grads.initial_state.as_ref(), |v: &ViewMut<'_, W, 3, M>| v.check("grads.initial_state", state))?;
        only_with("grads.D", grads.D.is_some(), inputs.D.is_some())?;
        only_with("grads.z", grads.z.is_some(), inputs.z.is_some())?;
        only_with("grads.delta_bias", grads.delta_bias.is_some(), inputs.delta_bias.is_some())?;
        only_with("grads.initial_state", grads.initial_state.is_some(), inputs.initial_state.is_some())?;
        Ok(problem)
    }
}

impl<I: Input, W: Weight<Real = I::Accum>, S: Element<Arith = W>, M: Memory> SelectiveStep<'_, I, W, S, M> {
    /// Checks every operand; the sizes, with L = 1 and the number of slots as `states`.
    pub fn check(&self) -> Result<SelectiveProblem, Error> {
        let dims @ [batch, dim] = self.u.dims();
        let dstate = self.A.dims()[1];
        self.u.check("u", dims)?;
        self.delta.check("delta", dims)?;
        check_sizes(dim, dstate)?;
        self.A.check("A", [dim, dstate])?;
        self.B.check("B", batch, dim, dstate)?;
        self.C.check("C", batch, dim, dstate)?;
        given(self.D.as_ref(), |v| v.check("D", [dim]))?;
        given(self.z.as_ref(), |v| v.check("z", dims))?;
        given(self.delta_bias.as_ref(), |v| v.check("delta_bias", [dim]))?;
        self.out.check("out", dims)?;
        let states = if self.slots.is_some() { self.state.dims()[0] } else { batch };
        self.state.check("state", [states, dim, dstate])?;
        given(self.slots.as_ref(), |v| check_slots(v, batch, states))?;
        let (groups_b, groups_c) = (self.B.groups(), self.C.groups());
        Ok(SelectiveProblem { batch, seqlen: 1, dim, dstate, states, groups_b, groups_c, options: self.options })
    }
}

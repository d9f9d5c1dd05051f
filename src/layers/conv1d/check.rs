//! Operand checks of the convolution. They name the operand that is wrong.

use super::{ConvBwd, ConvFwd, ConvInputs, ConvProblem, ConvStep};
use crate::element::Input;
use crate::error::{Error, given, only_with};
use crate::sequences::check_slots;
use crate::view::Memory;

/// W from a weight of shape (D, W).
fn width_of([dim, width]: [usize; 2]) -> Result<usize, Error> {
    if width > 0 {
        return Ok(width);
    }
    Err(Error::Value { operand: "weight", why: format!("shape [{dim}, 0]: a width of at least 1 is wanted") })
}

impl<I: Input, M: Memory> ConvInputs<'_, I, M> {
    /// Checks every operand; the sizes.
    pub fn check(&self) -> Result<ConvProblem, Error> {
        let dims @ [batch, seqlen, dim] = self.x.dims();
        self.x.check("x", dims)?;
        let width = width_of(self.weight.dims())?;
        self.weight.check("weight", [dim, width])?;
        given(self.bias.as_ref(), |v| v.check("bias", [dim]))?;
        let states = self.sequences.check(batch, seqlen)?;
        given(self.initial_window.as_ref(), |v| v.check("initial_window", [states, width - 1, dim]))?;
        Ok(ConvProblem { batch, seqlen, dim, width, states })
    }
}

impl<I: Input, M: Memory> ConvFwd<'_, I, M> {
    /// Checks every operand; the sizes.
    pub fn check(&self) -> Result<ConvProblem, Error> {
        let problem = self.inputs.check()?;
        self.out.check("out", self.inputs.x.dims())?;
        given(self.final_window.as_ref(), |v| v.check("final_window", [problem.states, problem.width - 1, problem.dim]))?;
        Ok(problem)
    }
}

impl<I: Input, M: Memory> ConvBwd<'_, I, M> {
    /// Checks every operand; the sizes.
    pub fn check(&self) -> Result<ConvProblem, Error> {
        let (inputs, grads) = (&self.inputs, &self.grads);
        let problem = inputs.check()?;
        let window = [problem.states, problem.width - 1, problem.dim];
        self.grad_out.check("grad_out", inputs.x.dims())?;
        given(self.grad_final_window.as_ref(), |v| v.check("grad_final_window", window))?;
        given(grads.x.as_ref(), |v| v.check("grads.x", inputs.x.dims()))?;
        given(grads.weight.as_ref(), |v| v.check("grads.weight", inputs.weight.dims()))?;
        given(grads.bias.as_ref(), |v| v.check("grads.bias", [problem.dim]))?;
        given(grads.initial_window.as_ref(), |v| v.check("grads.initial_window", window))?;
        only_with("grads.bias", grads.bias.is_some(), inputs.bias.is_some())?;
        only_with("grads.initial_window", grads.initial_window.is_some(), inputs.initial_window.is_some())?;
        Ok(problem)
    }
}

impl<I: Input, M: Memory> ConvStep<'_, I, M> {
    /// Checks every operand; the sizes, with L = 1 and the number of slots as `states`.
    pub fn check(&self) -> Result<ConvProblem, Error> {
        let dims @ [batch, dim] = self.x.dims();
        self.x.check("x", dims)?;
        let width = width_of(self.weight.dims())?;
        self.weight.check("weight", [dim, width])?;
        given(self.bias.as_ref(), |v| v.check("bias", [dim]))?;
        let states = if self.slots.is_some() { self.window.dims()[0] } else { batch };
        self.window.check("window", [states, width - 1, dim])?;
        given(self.slots.as_ref(), |v| check_slots(v, batch, states))?;
        self.out.check("out", dims)?;
        Ok(ConvProblem { batch, seqlen: 1, dim, width, states })
    }
}

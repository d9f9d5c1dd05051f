//! Operand checks of the Mamba block: they name the operand that is wrong.

use super::{MambaBwd, MambaFwd, MambaInputs, MambaParams, MambaProblem, MambaStep};
use crate::element::{Element, Input};
use crate::error::{Error, given, only_with};
use crate::selective::SelectiveOptions;
use crate::sequences::check_slots;
use crate::view::Memory;

impl<I: Input, M: Memory> MambaParams<'_, I, M> {
    /// Checks every parameter; the sizes, with B = L = 0.
    fn check(&self, options: SelectiveOptions) -> Result<MambaProblem, Error> {
        let [hidden, inner] = self.out_proj.dims();
        let (rank, dstate, width) = (self.dt_proj.dims()[1], self.A_log.dims()[1], self.conv_weight.dims()[1]);
        let sizes = [("out_proj", hidden), ("out_proj", inner), ("dt_proj", rank), ("A_log", dstate), ("conv_weight", width)];
        if let Some((operand, _)) = sizes.into_iter().find(|(_, size)| *size == 0) {
            return Err(Error::Value { operand, why: "an axis is empty".into() });
        }
        self.out_proj.check("out_proj", [hidden, inner])?;
        self.in_proj.check("in_proj", [2 * inner, hidden])?;
        given(self.in_proj_bias.as_ref(), |v| v.check("in_proj_bias", [2 * inner]))?;
        self.conv_weight.check("conv_weight", [inner, width])?;
        given(self.conv_bias.as_ref(), |v| v.check("conv_bias", [inner]))?;
        self.x_proj.check("x_proj", [rank + 2 * dstate, inner])?;
        self.dt_proj.check("dt_proj", [inner, rank])?;
        self.dt_bias.check("dt_bias", [inner])?;
        self.A_log.check("A_log", [inner, dstate])?;
        given(self.A.as_ref(), |v| v.check("A", [inner, dstate]))?;
        self.D.check("D", [inner])?;
        given(self.out_proj_bias.as_ref(), |v| v.check("out_proj_bias", [hidden]))?;
        Ok(MambaProblem { batch: 0, seqlen: 0, hidden, inner, dstate, rank, width, states: 0, options })
    }
}

impl<I: Input, M: Memory> MambaInputs<'_, I, M> {
    /// Checks every operand; the sizes.
    pub fn check(&self) -> Result<MambaProblem, Error> {
        let sizes = self.params.check(self.options)?;
        let [batch, seqlen, _] = self.x.dims();
        self.x.check("x", [batch, seqlen, sizes.hidden])?;
        let states = self.sequences.check(batch, seqlen)?;
        given(self.initial_window.as_ref(), |v| v.check("initial_window", [states, sizes.width - 1, sizes.inner]))?;
        given(self.initial_state.as_ref(), |v| v.check("initial_state", [states, sizes.inner, sizes.dstate]))?;
        Ok(MambaProblem { batch, seqlen, states, ..sizes })
    }
}

impl<I: Input, M: Memory> MambaFwd<'_, I, M> {
    /// Checks every operand; the sizes.
    pub fn check(&self) -> Result<MambaProblem, Error> {
        let p = self.inputs.check()?;
        self.out.check("out", self.inputs.x.dims())?;
        given(self.final_window.as_ref(), |v| v.check("final_window", [p.states, p.width - 1, p.inner]))?;
        given(self.last_state.as_ref(), |v| v.check("last_state", [p.states, p.inner, p.dstate]))?;
        Ok(p)
    }
}

impl<I: Input, M: Memory> MambaBwd<'_, I, M> {
    /// Checks every operand; the sizes.
    pub fn check(&self) -> Result<MambaProblem, Error> {
        let p = self.inputs.check()?;
        if *self.saved.kept != Some(p) {
            return Err(Error::Value {
                operand: "saved",
                why: format!("it was kept by {:?}, not by this call's forward, {p:?}", self.saved.kept),
            });
        }
        self.saved.check(&p)?;
        self.grad_out.check("grad_out", self.inputs.x.dims())?;
        let (window, state) = ([p.states, p.width - 1, p.inner], [p.states, p.inner, p.dstate]);
        given(self.grad_final_window.as_ref(), |v| v.check("grad_final_window", window))?;
        given(self.grad_last_state.as_ref(), |v| v.check("grad_last_state", state))?;
        let (g, params) = (&self.grads, &self.inputs.params);
        given(g.x.as_ref(), |v| v.check("grads.x", self.inputs.x.dims()))?;
        given(g.in_proj.as_ref(), |v| v.check("grads.in_proj", params.in_proj.dims()))?;
        given(g.in_proj_bias.as_ref(), |v| v.check("grads.in_proj_bias", [2 * p.inner]))?;
        given(g.conv_weight.as_ref(), |v| v.check("grads.conv_weight", [p.inner, p.width]))?;
        given(g.conv_bias.as_ref(), |v| v.check("grads.conv_bias", [p.inner]))?;
        given(g.x_proj.as_ref(), |v| v.check("grads.x_proj", params.x_proj.dims()))?;
        given(g.dt_proj.as_ref(), |v| v.check("grads.dt_proj", params.dt_proj.dims()))?;
        given(g.dt_bias.as_ref(), |v| v.check("grads.dt_bias", [p.inner]))?;
        given(g.A_log.as_ref(), |v| v.check("grads.A_log", [p.inner, p.dstate]))?;
        given(g.D.as_ref(), |v| v.check("grads.D", [p.inner]))?;
        given(g.out_proj.as_ref(), |v| v.check("grads.out_proj", [p.hidden, p.inner]))?;
        given(g.out_proj_bias.as_ref(), |v| v.check("grads.out_proj_bias", [p.hidden]))?;
        given(g.initial_window.as_ref(), |v| v.check("grads.initial_window", window))?;
        given(g.initial_state.as_ref(), |v| v.check("grads.initial_state", state))?;
        only_with("grads.in_proj_bias", g.in_proj_bias.is_some(), params.in_proj_bias.is_some())?;
        only_with("grads.conv_bias", g.conv_bias.is_some(), params.conv_bias.is_some())?;
        only_with("grads.out_proj_bias", g.out_proj_bias.is_some(), params.out_proj_bias.is_some())?;
        only_with("grads.initial_window", g.initial_window.is_some(), self.inputs.initial_window.is_some())?;
        only_with("grads.initial_state", g.initial_state.is_some(), self.inputs.initial_state.is_some())?;
        Ok(p)
    }
}

impl<I: Input, S: Element<Arith = I::Accum>, M: Memory> MambaStep<'_, I, S, M> {
    /// Checks every operand; the sizes, with L = 1 and the number of slots as `states`.
    pub fn check(&self) -> Result<MambaProblem, Error> {
        let p = self.params.check(self.options)?;
        let batch = self.x.dims()[0];
        self.x.check("x", [batch, p.hidden])?;
        self.out.check("out", [batch, p.hidden])?;
        let states = if self.slots.is_some() { self.state.dims()[0] } else { batch };
        self.window.check("window", [states, p.width - 1, p.inner])?;
        self.state.check("state", [states, p.inner, p.dstate])?;
        given(self.slots.as_ref(), |v| check_slots(v, batch, states))?;
        Ok(MambaProblem { batch, seqlen: 1, states, ..p })
    }
}

//! Layer 3.

use selective_scan::Error;
use selective_scan::buffer::Workspace;
use selective_scan::element::{Element, Input, Real};
use selective_scan::layers::conv1d::{CausalConv1d, ConvBwd, ConvFwd, ConvGrads, ConvInputs, ConvProblem, ConvStep};
use selective_scan::layers::elementwise::Elementwise;
use selective_scan::layers::linear::{Linear, LinearBwd, LinearFwd, LinearProblem};
use selective_scan::layers::norm::{NormBwd, NormFwd, RmsNorm};
use selective_scan::view::{Device, Host, View, ViewMut};

use super::{Carried, Sent, SentSequences, back, view, view_mut};

struct SentConv<I: Input> {
    x: Sent<I, 3>,
    weight: Sent<I::Accum, 2>,
    bias: Option<Sent<I::Accum, 1>>,
    window: Option<Sent<I, 3>>,
    sequences: SentSequences,
    silu: bool,
}

impl<I: Input> SentConv<I> {
    fn send(to: &Carried, of: &ConvInputs<'_, I>) -> Result<Self, Error> {
        let (x, weight, bias) = (to.read(&of.x)?, to.read(&of.weight)?, to.maybe(of.bias.as_ref())?);
        let (window, sequences) = (to.maybe(of.initial_window.as_ref())?, to.sequences(&of.sequences)?);
        Ok(SentConv { x, weight, bias, window, sequences, silu: of.silu })
    }

    fn view(&self) -> ConvInputs<'_, I, Device> {
        ConvInputs {
            x: self.x.view(),
            weight: self.weight.view(),
            bias: view!(self.bias),
            initial_window: view!(self.window),
            sequences: self.sequences.view(),
            silu: self.silu,
        }
    }
}

impl CausalConv1d for Carried {
    type Memory = Host;

    fn causal_conv1d_fwd_workspace<I: Input>(&self, _problem: &ConvProblem) -> usize {
        0
    }

    fn causal_conv1d_fwd<I: Input>(&self, args: ConvFwd<'_, I>, _ws: &mut Workspace<'_>) -> Result<(), Error> {
        let problem = args.check()?;
        let inputs = SentConv::send(self, &args.inputs)?;
        let (mut out, mut window) = (self.written(&args.out)?, self.maybe_written(args.final_window.as_ref())?);
        self.with_workspace(self.engine.causal_conv1d_fwd_workspace::<I>(&problem), |ws| {
            let device = ConvFwd { inputs: inputs.view(), out: out.view_mut(), final_window: view_mut!(window) };
            self.engine.causal_conv1d_fwd(device, ws)
        })?;
        let (mut to_out, mut to_window) = (Some(args.out), args.final_window);
        back!(Some(out) => to_out, "out"; window => to_window, "final_window";);
        Ok(())
    }

    fn causal_conv1d_bwd_workspace<I: Input>(&self, _problem: &ConvProblem) -> usize {
        0
    }

    fn causal_conv1d_bwd<I: Input>(&self, args: ConvBwd<'_, I>, _ws: &mut Workspace<'_>) -> Result<(), Error> {
        let problem = args.check()?;
        let inputs = SentConv::send(self, &args.inputs)?;
        let (grad_out, grad_window) = (self.read(&args.grad_out)?, self.maybe(args.grad_final_window.as_ref())?);
        let mut to = args.grads;
        let (mut x, mut weight) = (self.maybe_written(to.x.as_ref())?, self.maybe_written(to.weight.as_ref())?);
        let (mut bias, mut window) = (self.maybe_written(to.bias.as_ref())?, self.maybe_written(to.initial_window.as_ref())?);
        self.with_workspace(self.engine.causal_conv1d_bwd_workspace::<I>(&problem), |ws| {
            let grads = ConvGrads { x: view_mut!(x), weight: view_mut!(weight), bias: view_mut!(bias), initial_window: view_mut!(window) };
            let device = ConvBwd { inputs: inputs.view(), grad_out: grad_out.view(), grad_final_window: view!(grad_window), grads };
            self.engine.causal_conv1d_bwd(device, ws)
        })?;
        back!(x => to.x, "grads.x"; weight => to.weight, "grads.weight"; bias => to.bias, "grads.bias";);
        back!(window => to.initial_window, "grads.initial_window";);
        Ok(())
    }

    fn causal_conv1d_update_workspace<I: Input>(&self, _problem: &ConvProblem) -> usize {
        0
    }

    fn causal_conv1d_update<I: Input>(&self, args: ConvStep<'_, I>, _ws: &mut Workspace<'_>) -> Result<(), Error> {
        let problem = args.check()?;
        let (x, weight, bias) = (self.read(&args.x)?, self.read(&args.weight)?, self.maybe(args.bias.as_ref())?);
        let (mut window, slots) = (self.updated(&args.window)?, self.maybe(args.slots.as_ref())?);
        // Rows without a slot keep what their out holds.
        let mut out = if slots.is_some() { self.updated(&args.out)? } else { self.written(&args.out)? };
        self.with_workspace(self.engine.causal_conv1d_update_workspace::<I>(&problem), |ws| {
            let device = ConvStep {
                x: x.view(),
                weight: weight.view(),
                bias: view!(bias),
                window: window.view_mut(),
                slots: view!(slots),
                out: out.view_mut(),
                silu: args.silu,
            };
            self.engine.causal_conv1d_update(device, ws)
        })?;
        let (mut to_window, mut to_out) = (Some(args.window), Some(args.out));
        back!(Some(window) => to_window, "window"; Some(out) => to_out, "out";);
        Ok(())
    }
}

impl RmsNorm for Carried {
    type Memory = Host;

    fn rms_norm_fwd_workspace<I: Input>(&self, _dims: [usize; 2]) -> usize {
        0
    }

    fn rms_norm_fwd<I: Input, R: Input<Accum = I::Accum>>(&self, args: NormFwd<'_, I, R>, _ws: &mut Workspace<'_>) -> Result<(), Error> {
        let dims = args.check()?;
        let (x, residual, weight) = (self.read(&args.x)?, self.maybe(args.residual.as_ref())?, self.read(&args.weight)?);
        let z = self.maybe(args.z.as_ref())?;
        let (mut out, mut stream) = (self.written(&args.out)?, self.maybe_written(args.residual_out.as_ref())?);
        self.with_workspace(self.engine.rms_norm_fwd_workspace::<I>(dims), |ws| {
            let device = NormFwd {
                x: x.view(),
                residual: view!(residual),
                weight: weight.view(),
                z: view!(z),
                eps: args.eps,
                options: args.options,
                out: out.view_mut(),
                residual_out: view_mut!(stream),
            };
            self.engine.rms_norm_fwd(device, ws)
        })?;
        let (mut to_out, mut to_stream) = (Some(args.out), args.residual_out);
        back!(Some(out) => to_out, "out"; stream => to_stream, "residual_out";);
        Ok(())
    }

    fn rms_norm_bwd_workspace<I: Input>(&self, _dims: [usize; 2]) -> usize {
        0
    }

    fn rms_norm_bwd<I: Input, R: Input<Accum = I::Accum>>(
        &self,
        mut args: NormBwd<'_, I, R>,
        _ws: &mut Workspace<'_>,
    ) -> Result<(), Error> {
        let dims = args.check()?;
        let (stream, weight) = (self.read(&args.residual_out)?, self.read(&args.weight)?);
        let z = self.maybe(args.z.as_ref())?;
        let (grad_out, grad_stream) = (self.read(&args.grad_out)?, self.maybe(args.grad_residual_out.as_ref())?);
        let (mut x, mut residual) = (self.maybe_written(args.grad_x.as_ref())?, self.maybe_written(args.grad_residual.as_ref())?);
        let (mut grad_weight, mut grad_z) = (self.maybe_written(args.grad_weight.as_ref())?, self.maybe_written(args.grad_z.as_ref())?);
        self.with_workspace(self.engine.rms_norm_bwd_workspace::<I>(dims), |ws| {
            let device = NormBwd {
                residual_out: stream.view(),
                weight: weight.view(),
                z: view!(z),
                eps: args.eps,
                options: args.options,
                grad_out: grad_out.view(),
                grad_residual_out: view!(grad_stream),
                grad_x: view_mut!(x),
                grad_residual: view_mut!(residual),
                grad_weight: view_mut!(grad_weight),
                grad_z: view_mut!(grad_z),
            };
            self.engine.rms_norm_bwd(device, ws)
        })?;
        back!(x => args.grad_x, "grad_x"; residual => args.grad_residual, "grad_residual"; grad_weight => args.grad_weight, "grad_weight";);
        back!(grad_z => args.grad_z, "grad_z";);
        Ok(())
    }
}

impl Linear for Carried {
    type Memory = Host;

    fn linear_fwd_workspace<I: Input>(&self, _problem: LinearProblem) -> usize {
        0
    }

    fn linear_fwd<I: Input>(&self, args: LinearFwd<'_, I>, _ws: &mut Workspace<'_>) -> Result<(), Error> {
        let problem = args.check()?;
        let (x, weight, bias) = (self.read(&args.x)?, self.read(&args.weight)?, self.maybe(args.bias.as_ref())?);
        let mut out = self.written(&args.out)?;
        self.with_workspace(self.engine.linear_fwd_workspace::<I>(problem), |ws| {
            let device = LinearFwd { x: x.view(), weight: weight.view(), bias: view!(bias), out: out.view_mut() };
            self.engine.linear_fwd(device, ws)
        })?;
        let mut to = args.out;
        out.back("out", &mut to)
    }

    fn linear_bwd_workspace<I: Input>(&self, _problem: LinearProblem) -> usize {
        0
    }

    fn linear_bwd<I: Input>(&self, mut args: LinearBwd<'_, I>, _ws: &mut Workspace<'_>) -> Result<(), Error> {
        let problem = args.check()?;
        let (x, weight, grad_out) = (self.read(&args.x)?, self.read(&args.weight)?, self.read(&args.grad_out)?);
        let (mut grad_x, mut grad_weight) = (self.maybe_written(args.grad_x.as_ref())?, self.maybe_written(args.grad_weight.as_ref())?);
        let mut bias = self.maybe_written(args.grad_bias.as_ref())?;
        self.with_workspace(self.engine.linear_bwd_workspace::<I>(problem), |ws| {
            let device = LinearBwd {
                x: x.view(),
                weight: weight.view(),
                grad_out: grad_out.view(),
                grad_x: view_mut!(grad_x),
                grad_weight: view_mut!(grad_weight),
                grad_bias: view_mut!(bias),
            };
            self.engine.linear_bwd(device, ws)
        })?;
        back!(grad_x => args.grad_x, "grad_x"; grad_weight => args.grad_weight, "grad_weight"; bias => args.grad_bias, "grad_bias";);
        Ok(())
    }
}

impl Elementwise for Carried {
    type Memory = Host;

    fn copy<T: Element>(&self, from: View<'_, T, 3>, mut to: ViewMut<'_, T, 3>) -> Result<(), Error> {
        from.check("from", from.dims())?;
        to.check("to", from.dims())?;
        let (sent, mut written) = (self.read(&from)?, self.written(&to)?);
        self.engine.copy(sent.view(), written.view_mut())?;
        written.back("to", &mut to)
    }

    fn zero<T: Element>(&self, mut to: ViewMut<'_, T, 3>) -> Result<(), Error> {
        to.check("to", to.dims())?;
        let mut written = self.written(&to)?;
        self.engine.zero(written.view_mut())?;
        written.back("to", &mut to)
    }

    fn add<I: Input>(&self, from: View<'_, I, 3>, mut to: ViewMut<'_, I, 3>) -> Result<(), Error> {
        from.check("from", from.dims())?;
        to.check("to", from.dims())?;
        let (sent, mut updated) = (self.read(&from)?, self.updated(&to)?);
        self.engine.add(sent.view(), updated.view_mut())?;
        updated.back("to", &mut to)
    }

    fn decay<A: Real>(&self, a_log: View<'_, A, 2>, mut a: ViewMut<'_, A, 2>) -> Result<(), Error> {
        a_log.check("A_log", a_log.dims())?;
        a.check("A", a_log.dims())?;
        let (sent, mut written) = (self.read(&a_log)?, self.written(&a)?);
        self.engine.decay(sent.view(), written.view_mut())?;
        written.back("A", &mut a)
    }

    fn scale<A: Real>(&self, by: View<'_, A, 2>, mut to: ViewMut<'_, A, 2>) -> Result<(), Error> {
        by.check("by", by.dims())?;
        to.check("to", by.dims())?;
        let (sent, mut updated) = (self.read(&by)?, self.updated(&to)?);
        self.engine.scale(sent.view(), updated.view_mut())?;
        updated.back("to", &mut to)
    }
}

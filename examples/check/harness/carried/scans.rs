//! Layers 1 and 2.

use selective_scan::Error;
use selective_scan::buffer::Workspace;
use selective_scan::element::{Element, Input, Weight};
use selective_scan::scan::{Scan, ScanBwd, ScanFwd, ScanProblem};
use selective_scan::selective::{
    Coefficient, CoefficientGrad, SelectiveBwd, SelectiveFwd, SelectiveGrads, SelectiveInputs, SelectiveProblem, SelectiveScan,
    SelectiveStep,
};
use selective_scan::view::{Device, Host};

use super::{Carried, Sent, SentSequences, back, view, view_mut};

impl Scan for Carried {
    type Memory = Host;

    fn scan_fwd_workspace<E: Element>(&self, _problem: ScanProblem) -> usize {
        0
    }

    fn scan_fwd<E: Element>(&self, args: ScanFwd<'_, E>, _ws: &mut Workspace<'_>) -> Result<(), Error> {
        let problem = args.check()?;
        let (a, b, initial) = (self.read(&args.a)?, self.read(&args.b)?, self.maybe(args.initial_state.as_ref())?);
        let (mut h, mut last) = (self.written(&args.h)?, self.maybe_written(args.last_state.as_ref())?);
        self.with_workspace(self.engine.scan_fwd_workspace::<E>(problem), |ws| {
            let device = ScanFwd {
                a: a.view(),
                b: b.view(),
                initial_state: view!(initial),
                h: h.view_mut(),
                last_state: view_mut!(last),
                reverse: args.reverse,
            };
            self.engine.scan_fwd(device, ws)
        })?;
        let (mut to_h, mut to_last) = (Some(args.h), args.last_state);
        back!(Some(h) => to_h, "h"; last => to_last, "last_state";);
        Ok(())
    }

    fn scan_bwd_workspace<E: Element>(&self, _problem: ScanProblem) -> usize {
        0
    }

    fn scan_bwd<E: Element>(&self, mut args: ScanBwd<'_, E>, _ws: &mut Workspace<'_>) -> Result<(), Error> {
        let problem = args.check()?;
        let (a, b, initial) = (self.read(&args.a)?, self.read(&args.b)?, self.maybe(args.initial_state.as_ref())?);
        let (grad_h, grad_last) = (self.read(&args.grad_h)?, self.maybe(args.grad_last_state.as_ref())?);
        let (mut grad_a, mut grad_b) = (self.maybe_written(args.grad_a.as_ref())?, self.maybe_written(args.grad_b.as_ref())?);
        let mut grad_initial = self.maybe_written(args.grad_initial_state.as_ref())?;
        self.with_workspace(self.engine.scan_bwd_workspace::<E>(problem), |ws| {
            let device = ScanBwd {
                a: a.view(),
                b: b.view(),
                initial_state: view!(initial),
                grad_h: grad_h.view(),
                grad_last_state: view!(grad_last),
                grad_a: view_mut!(grad_a),
                grad_b: view_mut!(grad_b),
                grad_initial_state: view_mut!(grad_initial),
                reverse: args.reverse,
            };
            self.engine.scan_bwd(device, ws)
        })?;
        back!(grad_a => args.grad_a, "grad_a"; grad_b => args.grad_b, "grad_b"; grad_initial => args.grad_initial_state, "grad_initial_state";);
        Ok(())
    }
}

/// B or C on the device.
enum SentCoefficient<I: Input, W: Weight<Real = I::Accum>, const R: usize> {
    Constant(Sent<W, 2>),
    Varying(Sent<W::Stored<I>, R>),
}

impl<I: Input, W: Weight<Real = I::Accum>, const R: usize> SentCoefficient<I, W, R> {
    fn send(to: &Carried, of: &Coefficient<'_, I, W, R>) -> Result<Self, Error> {
        Ok(match of {
            Coefficient::Constant(v) => SentCoefficient::Constant(to.read(v)?),
            Coefficient::Varying(v) => SentCoefficient::Varying(to.read(v)?),
        })
    }

    fn view(&self) -> Coefficient<'_, I, W, R, Device> {
        match self {
            SentCoefficient::Constant(v) => Coefficient::Constant(v.view()),
            SentCoefficient::Varying(v) => Coefficient::Varying(v.view()),
        }
    }
}

/// The gradient of B or C on the device.
enum SentGrad<I: Input, W: Weight<Real = I::Accum>> {
    Constant(Sent<W, 2>),
    Varying(Sent<W::Stored<I>, 4>),
}

impl<I: Input, W: Weight<Real = I::Accum>> SentGrad<I, W> {
    fn send(to: &Carried, of: Option<&CoefficientGrad<'_, I, W>>) -> Result<Option<Self>, Error> {
        Ok(match of {
            None => None,
            Some(CoefficientGrad::Constant(v)) => Some(SentGrad::Constant(to.written(v)?)),
            Some(CoefficientGrad::Varying(v)) => Some(SentGrad::Varying(to.written(v)?)),
        })
    }

    fn view_mut(&mut self) -> CoefficientGrad<'_, I, W, Device> {
        match self {
            SentGrad::Constant(v) => CoefficientGrad::Constant(v.view_mut()),
            SentGrad::Varying(v) => CoefficientGrad::Varying(v.view_mut()),
        }
    }

    fn back(&self, operand: &str, to: &mut CoefficientGrad<'_, I, W>) -> Result<(), Error> {
        match (self, to) {
            (SentGrad::Constant(v), CoefficientGrad::Constant(to)) => v.back(operand, to),
            (SentGrad::Varying(v), CoefficientGrad::Varying(to)) => v.back(operand, to),
            _ => unreachable!("sent as it is"),
        }
    }
}

struct SentInputs<I: Input, W: Weight<Real = I::Accum>> {
    u: Sent<I, 3>,
    delta: Sent<I, 3>,
    a: Sent<W, 2>,
    b: SentCoefficient<I, W, 4>,
    c: SentCoefficient<I, W, 4>,
    d: Option<Sent<W::Real, 1>>,
    z: Option<Sent<I, 3>>,
    delta_bias: Option<Sent<W::Real, 1>>,
    initial_state: Option<Sent<W, 3>>,
    sequences: SentSequences,
    options: selective_scan::selective::SelectiveOptions,
}

impl<I: Input, W: Weight<Real = I::Accum>> SentInputs<I, W> {
    fn send(to: &Carried, of: &SelectiveInputs<'_, I, W>) -> Result<Self, Error> {
        Ok(SentInputs {
            u: to.read(&of.u)?,
            delta: to.read(&of.delta)?,
            a: to.read(&of.A)?,
            b: SentCoefficient::send(to, &of.B)?,
            c: SentCoefficient::send(to, &of.C)?,
            d: to.maybe(of.D.as_ref())?,
            z: to.maybe(of.z.as_ref())?,
            delta_bias: to.maybe(of.delta_bias.as_ref())?,
            initial_state: to.maybe(of.initial_state.as_ref())?,
            sequences: to.sequences(&of.sequences)?,
            options: of.options,
        })
    }

    fn view(&self) -> SelectiveInputs<'_, I, W, Device> {
        SelectiveInputs {
            u: self.u.view(),
            delta: self.delta.view(),
            A: self.a.view(),
            B: self.b.view(),
            C: self.c.view(),
            D: view!(self.d),
            z: view!(self.z),
            delta_bias: view!(self.delta_bias),
            initial_state: view!(self.initial_state),
            sequences: self.sequences.view(),
            options: self.options,
        }
    }
}

impl SelectiveScan for Carried {
    fn selective_scan_fwd_workspace<I: Input, W: Weight<Real = I::Accum>>(&self, _problem: &SelectiveProblem) -> usize {
        0
    }

    fn selective_scan_fwd<I: Input, W: Weight<Real = I::Accum>>(
        &self,
        args: SelectiveFwd<'_, I, W>,
        _ws: &mut Workspace<'_>,
    ) -> Result<(), Error> {
        let problem = args.check()?;
        let inputs = SentInputs::send(self, &args.inputs)?;
        let (mut out, mut last) = (self.written(&args.out)?, self.maybe_written(args.last_state.as_ref())?);
        self.with_workspace(self.engine.selective_scan_fwd_workspace::<I, W>(&problem), |ws| {
            let device = SelectiveFwd { inputs: inputs.view(), out: out.view_mut(), last_state: view_mut!(last) };
            self.engine.selective_scan_fwd(device, ws)
        })?;
        let (mut to_out, mut to_last) = (Some(args.out), args.last_state);
        back!(Some(out) => to_out, "out"; last => to_last, "last_state";);
        Ok(())
    }

    fn selective_scan_bwd_workspace<I: Input, W: Weight<Real = I::Accum>>(&self, _problem: &SelectiveProblem) -> usize {
        0
    }

    fn selective_scan_bwd<I: Input, W: Weight<Real = I::Accum>>(
        &self,
        args: SelectiveBwd<'_, I, W>,
        _ws: &mut Workspace<'_>,
    ) -> Result<(), Error> {
        let problem = args.check()?;
        let inputs = SentInputs::send(self, &args.inputs)?;
        let (grad_out, grad_last) = (self.read(&args.grad_out)?, self.maybe(args.grad_last_state.as_ref())?);
        let mut to = args.grads;
        let (mut u, mut delta, mut a) =
            (self.maybe_written(to.u.as_ref())?, self.maybe_written(to.delta.as_ref())?, self.maybe_written(to.A.as_ref())?);
        let (mut b, mut c) = (SentGrad::send(self, to.B.as_ref())?, SentGrad::send(self, to.C.as_ref())?);
        let (mut d, mut z) = (self.maybe_written(to.D.as_ref())?, self.maybe_written(to.z.as_ref())?);
        let (mut bias, mut initial) = (self.maybe_written(to.delta_bias.as_ref())?, self.maybe_written(to.initial_state.as_ref())?);
        self.with_workspace(self.engine.selective_scan_bwd_workspace::<I, W>(&problem), |ws| {
            let grads = SelectiveGrads {
                u: view_mut!(u),
                delta: view_mut!(delta),
                A: view_mut!(a),
                B: view_mut!(b),
                C: view_mut!(c),
                D: view_mut!(d),
                z: view_mut!(z),
                delta_bias: view_mut!(bias),
                initial_state: view_mut!(initial),
            };
            let device = SelectiveBwd { inputs: inputs.view(), grad_out: grad_out.view(), grad_last_state: view!(grad_last), grads };
            self.engine.selective_scan_bwd(device, ws)
        })?;
        back!(u => to.u, "grads.u"; delta => to.delta, "grads.delta"; a => to.A, "grads.A"; b => to.B, "grads.B"; c => to.C, "grads.C";);
        back!(d => to.D, "grads.D"; z => to.z, "grads.z"; bias => to.delta_bias, "grads.delta_bias";);
        back!(initial => to.initial_state, "grads.initial_state";);
        Ok(())
    }

    fn selective_state_update_workspace<I: Input, W: Weight<Real = I::Accum>>(&self, _problem: &SelectiveProblem) -> usize {
        0
    }

    fn selective_state_update<I: Input, W: Weight<Real = I::Accum>, S: Element<Arith = W>>(
        &self,
        args: SelectiveStep<'_, I, W, S>,
        _ws: &mut Workspace<'_>,
    ) -> Result<(), Error> {
        let problem = args.check()?;
        let (u, delta, a) = (self.read(&args.u)?, self.read(&args.delta)?, self.read(&args.A)?);
        let (b, c) = (SentCoefficient::<I, W, 3>::send(self, &args.B)?, SentCoefficient::<I, W, 3>::send(self, &args.C)?);
        let (d, z) = (self.maybe(args.D.as_ref())?, self.maybe(args.z.as_ref())?);
        let (bias, slots) = (self.maybe(args.delta_bias.as_ref())?, self.maybe(args.slots.as_ref())?);
        let mut state = self.updated(&args.state)?;
        // Rows without a slot keep what their out holds.
        let mut out = if slots.is_some() { self.updated(&args.out)? } else { self.written(&args.out)? };
        self.with_workspace(self.engine.selective_state_update_workspace::<I, W>(&problem), |ws| {
            let device = SelectiveStep {
                u: u.view(),
                delta: delta.view(),
                A: a.view(),
                B: b.view(),
                C: c.view(),
                D: view!(d),
                z: view!(z),
                delta_bias: view!(bias),
                state: state.view_mut(),
                slots: view!(slots),
                out: out.view_mut(),
                options: args.options,
            };
            self.engine.selective_state_update(device, ws)
        })?;
        let (mut to_state, mut to_out) = (Some(args.state), Some(args.out));
        back!(Some(state) => to_state, "state"; Some(out) => to_out, "out";);
        Ok(())
    }
}

//! The engine `Cpu`: chunked SIMD, fused, on any number of threads.
//!
//! Channels lie in the lanes of vectors and time is walked in tiles of 64 steps. Each tile is staged into contiguous memory in
//! the type that is computed in, so that kernels see one layout whatever the strides and storage types are. Work is cut into
//! tasks, groups of sequences × slices of channels, and what a task computes depends neither on the other tasks nor on who runs it.
//!
//! With `Carry::Compensated` f32 and 16-bit data is computed in f64 from the staged tile on; only outputs and the states handed
//! out are rounded.

use crate::arch::{Isa, Kernels};
use crate::buffer::Workspace;
use crate::element::{Element, Input, Real, Weight};
use crate::error::Error;
use crate::par::Par;
use crate::scan::{Scan, ScanBwd, ScanFwd, ScanProblem, host};
use crate::selective::{Carry, SelectiveBwd, SelectiveFwd, SelectiveProblem, SelectiveScan, SelectiveStep};
use crate::view::Host;

mod causal_conv1d;
mod convert;
mod grid;
mod inputs;
mod layers;
mod scan;
mod selective_bwd;
mod selective_fwd;
mod stage;
mod step;
mod sums;
mod table;

/// The chunked SIMD engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cpu {
    kernels: Kernels,
    par: Par,
}

impl Default for Cpu {
    fn default() -> Self {
        Cpu::new()
    }
}

impl Cpu {
    /// The best instruction set of this machine (capped by the environment variable `SELECTIVE_SCAN_ISA`), and rayon's threads
    /// where that feature is on.
    pub fn new() -> Self {
        Cpu { kernels: Kernels::best(), par: Par::default() }
    }

    /// Another way of running parts.
    pub fn with_par(self, par: Par) -> Self {
        Cpu { par, ..self }
    }

    /// Another instruction set; an error where this machine lacks it.
    pub fn with_isa(self, isa: Isa) -> Result<Self, Error> {
        let kernels = Kernels::new(isa).ok_or_else(|| Error::Unavailable { what: format!("{isa:?} on this machine") })?;
        Ok(Cpu { kernels, ..self })
    }

    /// The kernels in use.
    pub fn kernels(&self) -> Kernels {
        self.kernels
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.kernels.isa()
    }

    /// Who runs the parts.
    pub fn par(&self) -> Par {
        self.par
    }
}

/// Whether numbers of type `W` are f64 or complex pairs of it.
const fn double<W: Weight>() -> bool {
    <W::Real as Real>::UNIT < f32::EPSILON as f64 / 4.0
}

/// Whether a selective scan over states of type `W` is computed in f64.
fn wide<W: Weight>(problem: &SelectiveProblem) -> bool {
    double::<W>() || problem.options.carry == Carry::Compensated
}

impl Scan for Cpu {
    type Memory = Host;

    fn scan_fwd_workspace<E: Element>(&self, problem: ScanProblem) -> usize {
        if double::<E::Arith>() { scan::workspace::<E, f64>(self, problem) } else { scan::workspace::<E, f32>(self, problem) }
    }

    fn scan_fwd<E: Element>(&self, args: ScanFwd<'_, E>, ws: &mut Workspace<'_>) -> Result<(), Error> {
        if double::<E::Arith>() { scan::run::<E, f64>(self, args, ws) } else { scan::run::<E, f32>(self, args, ws) }
    }

    fn scan_bwd_workspace<E: Element>(&self, problem: ScanProblem) -> usize {
        host::scan_bwd_workspace::<E>(self, self.par, problem)
    }

    fn scan_bwd<E: Element>(&self, args: ScanBwd<'_, E>, ws: &mut Workspace<'_>) -> Result<(), Error> {
        host::scan_bwd(self, self.par, args, ws)
    }
}

impl SelectiveScan for Cpu {
    fn selective_scan_fwd_workspace<I: Input, W: Weight<Real = I::Accum>>(&self, problem: &SelectiveProblem) -> usize {
        if wide::<W>(problem) {
            selective_fwd::workspace::<f64, W>(self, problem, size_of::<I>())
        } else {
            selective_fwd::workspace::<f32, W>(self, problem, size_of::<I>())
        }
    }

    fn selective_scan_fwd<I: Input, W: Weight<Real = I::Accum>>(
        &self,
        args: SelectiveFwd<'_, I, W>,
        ws: &mut Workspace<'_>,
    ) -> Result<(), Error> {
        selective_fwd::run(self, args, ws)
    }

    fn selective_scan_bwd_workspace<I: Input, W: Weight<Real = I::Accum>>(&self, problem: &SelectiveProblem) -> usize {
        if wide::<W>(problem) {
            selective_bwd::workspace::<f64, W>(self, problem, size_of::<I>())
        } else {
            selective_bwd::workspace::<f32, W>(self, problem, size_of::<I>())
        }
    }

    fn selective_scan_bwd<I: Input, W: Weight<Real = I::Accum>>(
        &self,
        args: SelectiveBwd<'_, I, W>,
        ws: &mut Workspace<'_>,
    ) -> Result<(), Error> {
        selective_bwd::run(self, args, ws)
    }

    fn selective_state_update_workspace<I: Input, W: Weight<Real = I::Accum>>(&self, problem: &SelectiveProblem) -> usize {
        if double::<W>() { step::workspace::<f64, W>(self, problem) } else { step::workspace::<f32, W>(self, problem) }
    }

    fn selective_state_update<I: Input, W: Weight<Real = I::Accum>, S: Element<Arith = W>>(
        &self,
        args: SelectiveStep<'_, I, W, S>,
        ws: &mut Workspace<'_>,
    ) -> Result<(), Error> {
        if double::<W>() { step::run::<I, W, S, f64>(self, args, ws) } else { step::run::<I, W, S, f32>(self, args, ws) }
    }
}

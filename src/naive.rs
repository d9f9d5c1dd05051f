//! The specification: one step after another, for any storage, any option, any layout. Safe code, no threads, nothing clever.
//!
//! Every other engine is compared with this one, and this one with float64 references made elsewhere. It allocates what it
//! needs, so its workspace queries answer 0 wherever it does not go through another engine-independent function; it holds the
//! states of one channel over one sequence at a time, (L, N), never (B, L, D, N).
//!
//! The forward scan computes in the arithmetic type of its operands, or, with [`Carry::Compensated`], in f64 rounded once at the end.
//! The backward scan is always computed in f64: sums over time whose terms cancel would show the rounding of each term otherwise.

#![forbid(unsafe_code)]

use crate::buffer::Workspace;
use crate::element::{Element, Input, Weight};
use crate::error::Error;
use crate::par::Par;
use crate::scan::{Scan, ScanBwd, ScanFwd, ScanProblem, host};
use crate::selective::{Carry, SelectiveBwd, SelectiveFwd, SelectiveProblem, SelectiveScan, SelectiveStep};
use crate::view::Host;

mod backward;
mod channel;
mod condition;
mod forward;
mod layers;

pub use condition::{condition, scan_n_eff, selective_n_eff};

/// The engine that takes one step after another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Naive;

impl Scan for Naive {
    type Memory = Host;

    fn scan_fwd_workspace<E: Element>(&self, _: ScanProblem) -> usize {
        0
    }

    fn scan_fwd<E: Element>(&self, args: ScanFwd<'_, E>, _: &mut Workspace<'_>) -> Result<(), Error> {
        let ScanProblem { batch, seqlen, dim } = args.check()?;
        let ScanFwd { a, b, initial_state, mut h, mut last_state, .. } = args.forwards();
        for row in 0..batch {
            for d in 0..dim {
                let mut state = initial_state.map(|v| v.get([row, d]));
                for t in 0..seqlen {
                    let input = b.get([row, t, d]).load();
                    // Without a state before it the step selects b: a is not read.
                    let next = state.map_or(input, |before| a.get([row, t, d]).load() * before + input);
                    h.set([row, t, d], E::store(next));
                    state = Some(next);
                }
                if let Some(last) = last_state.as_mut() {
                    last.set([row, d], state.unwrap_or(E::Arith::ZERO));
                }
            }
        }
        Ok(())
    }

    fn scan_bwd_workspace<E: Element>(&self, problem: ScanProblem) -> usize {
        host::scan_bwd_workspace::<E>(self, Par::Seq, problem)
    }

    fn scan_bwd<E: Element>(&self, args: ScanBwd<'_, E>, ws: &mut Workspace<'_>) -> Result<(), Error> {
        host::scan_bwd(self, Par::Seq, args, ws)
    }
}

impl SelectiveScan for Naive {
    fn selective_scan_fwd_workspace<I: Input, W: Weight<Real = I::Accum>>(&self, _: &SelectiveProblem) -> usize {
        0
    }

    fn selective_scan_fwd<I: Input, W: Weight<Real = I::Accum>>(
        &self,
        args: SelectiveFwd<'_, I, W>,
        _: &mut Workspace<'_>,
    ) -> Result<(), Error> {
        match args.inputs.options.carry {
            Carry::Plain => forward::selective_scan_fwd::<I, W, W>(args),
            Carry::Compensated => forward::selective_scan_fwd::<I, W, W::Wide>(args),
        }
    }

    fn selective_scan_bwd_workspace<I: Input, W: Weight<Real = I::Accum>>(&self, _: &SelectiveProblem) -> usize {
        0
    }

    fn selective_scan_bwd<I: Input, W: Weight<Real = I::Accum>>(
        &self,
        args: SelectiveBwd<'_, I, W>,
        _: &mut Workspace<'_>,
    ) -> Result<(), Error> {
        backward::selective_scan_bwd::<I, W, W::Wide>(args)
    }

    fn selective_state_update_workspace<I: Input, W: Weight<Real = I::Accum>>(&self, _: &SelectiveProblem) -> usize {
        0
    }

    fn selective_state_update<I: Input, W: Weight<Real = I::Accum>, S: Element<Arith = W>>(
        &self,
        args: SelectiveStep<'_, I, W, S>,
        _: &mut Workspace<'_>,
    ) -> Result<(), Error> {
        forward::selective_state_update(args)
    }
}

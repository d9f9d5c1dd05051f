//! A tile: some steps of some channels, gathered from its views and widened to the type that it is computed in.

#![allow(non_snake_case)]

use core::ops::Range;

use super::Shape;
use crate::buffer::Workspace;
use crate::element::{Element, Input, Real, Weight, cast, cast_real};
use crate::error::Error;
use crate::ops::{Rule, softplus};
use crate::selective::{Coefficient, SelectiveInputs};
use crate::view::View;
use crate::workspace::bytes_of;

/// B or C of a tile: (steps, N) where it varies, (channels, N) where it is constant.
pub(super) struct Rows<'w, K> {
    rows: &'w mut [K],
    varying: bool,
    dstate: usize,
}

impl<'w, K: Weight> Rows<'w, K> {
    fn new(ws: &mut Workspace<'w>, shape: &Shape, varying: bool) -> Result<Self, Error> {
        Ok(Rows { rows: ws.slice(rows_of(shape))?, varying, dstate: shape.dstate })
    }

    /// The N numbers of step `t` and channel `c`.
    #[inline(always)]
    pub fn at(&self, t: usize, c: usize) -> &[K] {
        let row = if self.varying { t } else { c };
        &self.rows[row * self.dstate..(row + 1) * self.dstate]
    }

    fn gather_constant<I: Input, W: Weight<Real = I::Accum>>(&mut self, from: &Coefficient<'_, I, W>, channels: Range<usize>) {
        if let Coefficient::Constant(v) = from {
            for (row, d) in self.rows.chunks_mut(self.dstate).zip(channels) {
                row.iter_mut().enumerate().for_each(|(n, x)| *x = cast(v.get([d, n])));
            }
        }
    }

    fn gather_varying<I: Input, W: Weight<Real = I::Accum>>(
        &mut self,
        from: &Coefficient<'_, I, W>,
        batch: usize,
        positions: &[usize],
        group: impl Fn(usize) -> usize,
    ) {
        if let Coefficient::Varying(v) = from {
            let g = group(v.dims()[2]);
            for (row, &t) in self.rows.chunks_mut(self.dstate).zip(positions) {
                match v.row([batch, t, g, 0]) {
                    Some(from) => row.iter_mut().zip(from).for_each(|(x, &y)| *x = cast(y.load())),
                    None => row.iter_mut().enumerate().for_each(|(n, x)| *x = cast(v.get([batch, t, g, n]).load())),
                }
            }
        }
    }
}

fn rows_of(shape: &Shape) -> usize {
    shape.steps.max(shape.channels).saturating_mul(shape.dstate)
}

/// What is computed with. Sequences are (steps, channels); `K` is the arithmetic, which may be wider than the operands'.
pub(super) struct Tile<'w, K: Weight> {
    pub u: &'w mut [K::Real],
    /// Δ + Δ_bias, before softplus.
    pub raw: &'w mut [K::Real],
    /// Δ'.
    pub dt: &'w mut [K::Real],
    pub z: &'w mut [K::Real],
    /// (channels, N).
    pub A: &'w mut [K],
    pub B: Rows<'w, K>,
    pub C: Rows<'w, K>,
    bias: &'w mut [K::Real],
    /// D, or 0.
    pub skip: &'w mut [K::Real],
    pub channels: Range<usize>,
    pub dstate: usize,
    pub rule: Rule,
}

impl<'w, K: Weight> Tile<'w, K> {
    /// Bytes that [`Tile::new`] takes.
    pub fn bytes(shape: &Shape) -> usize {
        let sequences = bytes_of::<K::Real>(shape.steps * shape.channels).saturating_mul(4);
        let rows = bytes_of::<K>(rows_of(shape)).saturating_mul(2);
        let channels = bytes_of::<K>(shape.lanes()).saturating_add(bytes_of::<K::Real>(shape.channels).saturating_mul(2));
        sequences.saturating_add(rows).saturating_add(channels)
    }

    /// A tile with the constants of `channels`.
    pub fn new<I: Input, W: Weight<Real = I::Accum>>(
        inputs: &SelectiveInputs<'_, I, W>,
        channels: Range<usize>,
        shape: &Shape,
        ws: &mut Workspace<'w>,
    ) -> Result<Self, Error> {
        let sequence = shape.steps * shape.channels;
        let mut tile = Tile {
            u: ws.slice(sequence)?,
            raw: ws.slice(sequence)?,
            dt: ws.slice(sequence)?,
            z: ws.slice(sequence)?,
            A: ws.slice(shape.lanes())?,
            B: Rows::new(ws, shape, inputs.B.groups().is_some())?,
            C: Rows::new(ws, shape, inputs.C.groups().is_some())?,
            bias: ws.slice(shape.channels)?,
            skip: ws.slice(shape.channels)?,
            channels: channels.clone(),
            dstate: shape.dstate,
            rule: inputs.options.rule,
        };
        for (c, d) in channels.clone().enumerate() {
            let row = &mut tile.A[c * shape.dstate..(c + 1) * shape.dstate];
            row.iter_mut().enumerate().for_each(|(n, x)| *x = cast(inputs.A.get([d, n])));
            tile.bias[c] = inputs.delta_bias.map_or(K::Real::ZERO, |v| cast_real(v.get([d])));
            tile.skip[c] = inputs.D.map_or(K::Real::ZERO, |v| cast_real(v.get([d])));
        }
        tile.B.gather_constant(&inputs.B, channels.clone());
        tile.C.gather_constant(&inputs.C, channels);
        Ok(tile)
    }

    /// Channels times states.
    pub fn lanes(&self) -> usize {
        self.channels.len() * self.dstate
    }

    /// Gathers the steps at `positions` of row `batch`.
    pub fn gather<I: Input, W: Weight<Real = I::Accum>>(&mut self, inputs: &SelectiveInputs<'_, I, W>, batch: usize, positions: &[usize]) {
        let dim = inputs.u.dims()[2];
        let (width, first) = (self.channels.len(), self.channels.start);
        gather(&inputs.u, batch, positions, self.channels.clone(), self.u);
        gather(&inputs.delta, batch, positions, self.channels.clone(), self.raw);
        if let Some(z) = &inputs.z {
            gather(z, batch, positions, self.channels.clone(), self.z);
        }
        let group = |groups: usize| first * groups / dim;
        self.B.gather_varying(&inputs.B, batch, positions, group);
        self.C.gather_varying(&inputs.C, batch, positions, group);
        if inputs.delta_bias.is_some() {
            for raw in self.raw.chunks_mut(width).take(positions.len()) {
                raw.iter_mut().zip(&*self.bias).for_each(|(x, &bias)| *x += bias);
            }
        }
        let count = positions.len() * width;
        for (dt, &raw) in self.dt[..count].iter_mut().zip(&*self.raw) {
            *dt = if inputs.options.delta_softplus { softplus(raw) } else { raw };
        }
    }

    /// Ā and B̄u of `count` steps, (steps, lanes). B̄u is formed as (Δ'u)·γB.
    pub fn discretize(&self, count: usize, a: &mut [K], b: &mut [K]) {
        let (width, dstate) = (self.channels.len(), self.dstate);
        for i in 0..count * width {
            let (t, c) = (i / width, i % width);
            let (dt, input) = (self.dt[i], self.dt[i] * self.u[i]);
            let (A, B) = (&self.A[c * dstate..(c + 1) * dstate], self.B.at(t, c));
            let (a, b) = (&mut a[i * dstate..(i + 1) * dstate], &mut b[i * dstate..(i + 1) * dstate]);
            for n in 0..dstate {
                let discrete = self.rule.discretize(dt, A[n]);
                a[n] = discrete.abar;
                b[n] = (discrete.gamma * B[n]).scale(input);
            }
        }
    }

    /// Σ_n C_n h_n of step `t` and channel `c`, twice its real part for complex A; plus D u where `has_skip`.
    pub fn contract(&self, t: usize, c: usize, h: &[K], has_skip: bool) -> K::Real {
        let sum: f64 = self.C.at(t, c).iter().zip(h).map(|(&c, &h)| (c * h).re().to_f64()).sum();
        let y = K::Real::from_f64(K::KAPPA * sum);
        if has_skip { y + self.skip[c] * self.u[t * self.channels.len() + c] } else { y }
    }
}

/// Gathers (positions, channels) of a row.
pub(super) fn gather<I: Input, R: Real>(from: &View<'_, I, 3>, batch: usize, positions: &[usize], channels: Range<usize>, to: &mut [R]) {
    for (row, &t) in to.chunks_mut(channels.len()).zip(positions) {
        row.iter_mut().zip(channels.clone()).for_each(|(x, d)| *x = cast_real(from.get([batch, t, d]).load()));
    }
}

//! How work is cut into tasks: groups of sequences × slices of channels.

use core::ops::Range;

use super::table::SPAN_GROUPS;
use crate::buffer::Workspace;
use crate::error::Error;
use crate::par::Par;
use crate::sequences::Sequences;
use crate::view::Cut;
use crate::workspace::bytes_of;

/// The sizes that a cut depends on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// D.
    pub dim: usize,
    /// Entries of the initial and last state.
    pub states: usize,
    /// Numbers of groups of channels whose bounds no slice crosses.
    pub groups: [usize; 2],
    /// Channels in a slice at most.
    pub width: usize,
}

impl Shape {
    /// Where slices begin, and D at last.
    fn bounds(self) -> impl Iterator<Item = usize> {
        let mut next = Some(0);
        core::iter::from_fn(move || {
            let at = next?;
            let group_end = |groups: usize| (at * groups / self.dim + 1) * (self.dim / groups);
            let end = group_end(self.groups[0]).min(group_end(self.groups[1])).min(at + self.width);
            next = (at < self.dim).then_some(end);
            Some(at)
        })
    }

    /// How many slices there are.
    pub fn slices(self) -> usize {
        self.bounds().count() - 1
    }

    /// Sequences a task walks one after another.
    fn per(self) -> usize {
        self.states.div_ceil(SPAN_GROUPS).max(1)
    }

    /// How many groups of sequences there are.
    pub fn span_groups(self) -> usize {
        self.states.div_ceil(self.per())
    }

    /// Bytes of workspace that a [`Grid`] takes.
    pub fn bytes(self, par: Par) -> usize {
        let shares = shares(par).1;
        bytes_of::<usize>(shares * (self.slices() + 1)) + 2 * bytes_of::<usize>(shares * (self.span_groups() + 1))
    }
}

/// Which share of a call this is and of how many: threads that run parts of one call must not write the same numbers.
fn shares(par: Par) -> (usize, usize) {
    if let Par::Part { index, count, .. } = par { (index, count) } else { (0, 1) }
}

fn fill<'w>(par: Par, ws: &mut Workspace<'w>, of: impl Iterator<Item = usize>, count: usize) -> Result<&'w [usize], Error> {
    let (index, shares) = shares(par);
    let mine = ws.tensor::<usize, 2>([shares, count])?.slice(0, index..index + 1).into_slice();
    mine.iter_mut().zip(of).for_each(|(slot, x)| *slot = x);
    Ok(mine)
}

/// The cut of one call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid<'w> {
    shape: Shape,
    /// First channel of each slice, and D.
    channels: &'w [usize],
    /// Packed sequences: first position of each group of them, and L.
    positions: Option<&'w [usize]>,
    /// Packed sequences: the same in whole tiles.
    tiles: Option<&'w [usize]>,
}

/// One task.
#[derive(Debug, Clone)]
pub(super) struct Task {
    /// Which sequences: entries of the initial and last state.
    pub states: Range<usize>,
    /// Which channels.
    pub channels: Range<usize>,
    /// The task's pieces of tensors over (B, …, L, D) begin at this row of the batch and this position.
    pub origin: [usize; 2],
}

impl<'w> Grid<'w> {
    pub fn new(shape: Shape, sequences: &Sequences<'_>, par: Par, tile: usize, ws: &mut Workspace<'w>) -> Result<Self, Error> {
        let channels = fill(par, ws, shape.bounds(), shape.slices() + 1)?;
        let (mut positions, mut tiles) = (None, None);
        if let Sequences::CuSeqlens(v) = sequences {
            let offset = |g: usize| v.get([(g * shape.per()).min(shape.states)]) as usize;
            let count = shape.span_groups() + 1;
            positions = Some(fill(par, ws, (0..count).map(offset), count)?);
            tiles = Some(fill(par, ws, (0..count).map(|g| offset(g) / tile), count)?);
        }
        Ok(Grid { shape, channels, positions, tiles })
    }

    /// How many tasks there are.
    pub fn tasks(&self) -> usize {
        self.shape.span_groups() * self.slices()
    }

    /// How many slices of channels there are.
    pub fn slices(&self) -> usize {
        self.channels.len() - 1
    }

    /// The channels of a slice.
    pub fn channels(&self, slice: usize) -> Range<usize> {
        self.channels[slice]..self.channels[slice + 1]
    }

    /// The slices whose channels are among `channels`, whole groups of them.
    pub fn slices_of(&self, channels: Range<usize>) -> Range<usize> {
        let index = |c: usize| self.channels.partition_point(|&start| start < c);
        index(channels.start)..index(channels.end)
    }

    /// Task `index`.
    pub fn task(&self, index: usize) -> Task {
        let (group, slice) = (index / self.slices(), index % self.slices());
        let states = group * self.shape.per()..((group + 1) * self.shape.per()).min(self.shape.states);
        let origin = self.positions.map_or([states.start, 0], |p| [0, p[group]]);
        Task { states, channels: self.channels(slice), origin }
    }

    /// First tile of a task in tensors cut by `tiles_cut`.
    pub fn first_tile(&self, index: usize) -> usize {
        self.tiles.map_or(0, |t| t[index / self.slices()])
    }

    /// Cuts (B, 1, L, D) by sequences.
    pub fn positions_cut(&self) -> Cut<'w> {
        self.positions.map_or(Cut::Every(0, self.shape.per()), |p| Cut::At(2, p))
    }

    /// Cuts (B, tiles, …) by sequences.
    pub fn tiles_cut(&self) -> Cut<'w> {
        self.tiles.map_or(Cut::Every(0, self.shape.per()), |t| Cut::At(1, t))
    }

    /// Cuts (states, …) by sequences.
    pub fn states_cut(&self) -> Cut<'w> {
        Cut::Every(0, self.shape.per())
    }

    /// Cuts the last axis, D, by slices.
    pub fn channels_cut(&self) -> Cut<'w> {
        Cut::At(3, self.channels)
    }
}

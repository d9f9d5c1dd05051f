//! Reading and writing (1, T, C) tiles of strided tensors along whichever axis is contiguous.

use crate::element::Element;
use crate::view::{View, ViewMut};

/// Calls `put(position, channel, run)` for runs of neighbouring channels that together are the tile: whole rows where channels are
/// contiguous, else single elements, along time where that is contiguous.
#[inline(always)]
pub(crate) fn read<E: Copy>(tile: View<'_, E, 3>, mut put: impl FnMut(usize, usize, &[E])) {
    let [_, count, channels] = tile.dims();
    let across = tile.permute([0, 2, 1]);
    if count == 0 || channels == 0 {
        return;
    }
    // One channel alone may be contiguous along both.
    if channels > 1 && tile.row([0; 3]).is_some() {
        (0..count).for_each(|t| put(t, 0, tile.row([0, t, 0]).expect("contiguous along the channels")));
    } else if across.row([0; 3]).is_some() {
        for c in 0..channels {
            let row = across.row([0, c, 0]).expect("contiguous along time");
            row.iter().enumerate().for_each(|(t, x)| put(t, c, core::slice::from_ref(x)));
        }
    } else {
        (0..count).for_each(|t| (0..channels).for_each(|c| put(t, c, &[tile.get([0, t, c])])));
    }
}

/// Calls `fill(position, channel, run)` to write runs of neighbouring channels, as [`read`].
#[inline(always)]
pub(crate) fn write<E: Copy + Default>(tile: &mut ViewMut<'_, E, 3>, mut fill: impl FnMut(usize, usize, &mut [E])) {
    let [_, count, channels] = tile.dims();
    if count == 0 || channels == 0 {
        return;
    }
    let rows = channels > 1 && tile.row_mut([0; 3]).is_some();
    let mut across = tile.reborrow().permute([0, 2, 1]);
    if !rows && across.row_mut([0; 3]).is_some() {
        for c in 0..channels {
            let row = across.row_mut([0, c, 0]).expect("contiguous along time");
            row.iter_mut().enumerate().for_each(|(t, x)| fill(t, c, core::slice::from_mut(x)));
        }
        return;
    }
    for t in 0..count {
        if let Some(row) = tile.row_mut([0, t, 0]) {
            fill(t, 0, row);
            continue;
        }
        for c in 0..channels {
            let mut x = [E::default()];
            fill(t, c, &mut x);
            tile.set([0, t, c], x[0]);
        }
    }
}

/// Loads a run into arithmetic numbers.
#[inline(always)]
pub(crate) fn load<E: Element>(run: &[E], to: &mut [E::Arith]) {
    to.iter_mut().zip(run).for_each(|(to, x)| *to = x.load());
}

/// Stores arithmetic numbers into a run.
#[inline(always)]
pub(crate) fn store<E: Element>(from: &[E::Arith], run: &mut [E]) {
    run.iter_mut().zip(from).for_each(|(x, &from)| *x = E::store(from));
}

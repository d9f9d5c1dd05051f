//! Reading and writing (1, T, C) tiles of strided tensors along whichever axis is contiguous.

use crate::view::{View, ViewMut};

/// Calls `put(position, channel, value)` for every element of a (1, T, C) tile.
#[inline(always)]
pub(crate) fn read<E: Copy>(tile: View<'_, E, 3>, mut put: impl FnMut(usize, usize, E)) {
    let [_, count, channels] = tile.dims();
    let across = tile.permute([0, 2, 1]);
    if count == 0 || channels == 0 {
        return;
    }
    if tile.row([0; 3]).is_some() {
        for t in 0..count {
            let row = tile.row([0, t, 0]).expect("contiguous along the channels");
            row.iter().enumerate().for_each(|(c, &x)| put(t, c, x));
        }
    } else if across.row([0; 3]).is_some() {
        for c in 0..channels {
            let row = across.row([0, c, 0]).expect("contiguous along time");
            row.iter().enumerate().for_each(|(t, &x)| put(t, c, x));
        }
    } else {
        (0..count).for_each(|t| (0..channels).for_each(|c| put(t, c, tile.get([0, t, c]))));
    }
}

/// Writes `of(position, channel)` to every element of a (1, T, C) tile.
#[inline(always)]
pub(crate) fn write<E: Copy>(tile: &mut ViewMut<'_, E, 3>, of: impl Fn(usize, usize) -> E) {
    let [_, count, channels] = tile.dims();
    if count == 0 || channels == 0 {
        return;
    }
    let mut across = tile.reborrow().permute([0, 2, 1]);
    if across.row_mut([0; 3]).is_some() && count > 1 {
        for c in 0..channels {
            let row = across.row_mut([0, c, 0]).expect("contiguous along time");
            row.iter_mut().enumerate().for_each(|(t, x)| *x = of(t, c));
        }
        return;
    }
    for t in 0..count {
        match tile.row_mut([0, t, 0]) {
            Some(row) => row.iter_mut().enumerate().for_each(|(c, x)| *x = of(t, c)),
            None => (0..channels).for_each(|c| tile.set([0, t, c], of(t, c))),
        }
    }
}

//! Rows of a tensor, widened to and rounded from the arithmetic type.

use crate::element::{Element, Input};
use crate::view::{View, ViewMut};

/// Copies the elements along the last axis, from `at` with last coordinate 0, as numbers to compute with.
pub(crate) fn load_row<E: Element, const R: usize>(from: &View<'_, E, R>, at: [usize; R], into: &mut [E::Arith]) {
    if let Some(row) = from.row(at) {
        into.iter_mut().zip(row).for_each(|(to, from)| *to = from.load());
        return;
    }
    let mut index = at;
    for (c, to) in into.iter_mut().enumerate() {
        index[R - 1] = c;
        *to = from.get(index).load();
    }
}

/// Rounds numbers into the elements along the last axis, from `at` with last coordinate 0.
pub(crate) fn store_row<E: Element, const R: usize>(to: &mut ViewMut<'_, E, R>, at: [usize; R], from: &[E::Arith]) {
    if let Some(row) = to.row_mut(at) {
        row.iter_mut().zip(from).for_each(|(to, from)| *to = E::store(*from));
        return;
    }
    let mut index = at;
    for (c, from) in from.iter().enumerate() {
        index[R - 1] = c;
        to.set(index, E::store(*from));
    }
}

/// Zeros along the last axis.
pub(crate) fn clear_row<I: Input, const R: usize>(to: &mut ViewMut<'_, I, R>, at: [usize; R]) {
    let mut index = at;
    for c in 0..to.dims()[R - 1] {
        index[R - 1] = c;
        to.set(index, I::default());
    }
}

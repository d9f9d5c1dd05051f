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

/// Copies one vector's numbers, without a call for the usual counts.
#[inline(always)]
pub(crate) fn copy_lanes<A: Copy>(from: &[A], to: &mut [A]) {
    #[inline(always)]
    fn whole<A: Copy, const N: usize>(from: &[A], to: &mut [A]) -> bool {
        let (Ok(from), Ok(to)) = (<&[A; N]>::try_from(from), <&mut [A; N]>::try_from(to)) else { return false };
        *to = *from;
        true
    }
    if !(whole::<A, 16>(from, to) || whole::<A, 8>(from, to) || whole::<A, 4>(from, to)) {
        to.copy_from_slice(from);
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

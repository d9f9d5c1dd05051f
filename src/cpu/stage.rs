//! Staging: tensors of any storage type and stride to and from contiguous tiles of f32 or f64 that kernels work on.
//!
//! Every operand is seen as matrices (outer, outer, rows, columns): u as (B, 1, L, D), a varying B as (B, G, L, N), A as
//! (1, 1, N, D). What is innermost in a tile is the columns. `Source` and `Sink` hide the storage type, so that drivers are
//! compiled once for f32 and once for f64 and not for each combination of storage types.

use core::ops::Range;

use super::convert::{load_lines, load_rows, store_lines, store_rows};
use crate::arch::{Lanes, Lines, LinesMut, Planes, PlanesMut};
use crate::element::{Element, Real, Weight};
use crate::view::{Rows, RowsMut, View, ViewMut};
use crate::workspace::ALIGN;

/// A part of one matrix of a tensor.
#[derive(Debug, Clone)]
pub(super) struct Region {
    /// Which matrix.
    pub outer: [usize; 2],
    /// Its rows.
    pub rows: Range<usize>,
    /// Its columns.
    pub cols: Range<usize>,
}

/// How a tile lies: blocks of `width` columns, each a `[row][width]` array, `stride` numbers apart. The region's first row is
/// row `first` of the blocks. Columns that are missing from the last block are zeros.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blocks {
    pub width: usize,
    pub stride: usize,
    pub first: usize,
}

impl Blocks {
    /// Where row `row` of block `block` starts.
    #[inline(always)]
    pub fn at(self, block: usize, row: usize) -> usize {
        block * self.stride + (self.first + row) * self.width
    }
}

/// A tensor that is read as numbers of type `R`.
pub(super) trait Source<R>: Sync {
    /// Copies a region into blocks. The imaginary plane of a real tensor is left alone.
    fn stage(&self, region: Region, blocks: Blocks, into: &mut PlanesMut<'_, R>);
    /// See [`lines`].
    fn lines(&self, region: Region, to: &mut [usize]) -> usize;
    /// The region where it lies, if its numbers are of type `R`: its rows, if each is contiguous, or, where `columns` are asked for, all of
    /// its columns in one line, if they are contiguous one after another.
    fn in_place(&self, region: Region, columns: bool) -> Option<Rows<'_, R>>;
}

/// A tensor that is written from numbers of type `R`.
pub(super) trait Sink<R>: Send {
    /// Copies blocks into a region.
    fn put(&mut self, region: Region, blocks: Blocks, from: &Planes<'_, R>);
    /// Writes zeros.
    fn zero(&mut self, region: Region);
    /// See [`lines`].
    fn lines(&self, region: Region, to: &mut [usize]) -> usize;
}

/// A tensor that is updated in place.
pub(super) trait Tensor<R>: Sink<R> {
    /// As [`Source::stage`].
    fn stage(&self, region: Region, blocks: Blocks, into: &mut PlanesMut<'_, R>);
    /// As [`Source::in_place`].
    fn in_place(&mut self, region: Region, columns: bool) -> Option<RowsMut<'_, R>>;
}

impl<R> Lines<R> for Rows<'_, R> {
    #[inline(always)]
    fn lines<const C: usize>(&self, first: usize) -> [&[R]; C] {
        self.several(first)
    }
}

impl<R> LinesMut<R> for RowsMut<'_, R> {
    #[inline(always)]
    fn lines_mut<const C: usize>(&mut self, first: usize) -> [&mut [R]; C] {
        self.several(first)
    }
}

/// Addresses on the cache lines of a region, as many as `to` holds, where it is contiguous along one axis; how many.
fn lines<E: Element>(of: View<'_, E, 4>, region: Region, to: &mut [usize]) -> usize {
    let Region { outer: [o, p], rows, cols } = region;
    let tile = of.slice(0, o..o + 1).slice(1, p..p + 1).slice(2, rows).slice(3, cols);
    let ([_, _, rows, cols], (start, [by_row, by_col]), size) = (tile.dims(), tile.addresses(), size_of::<E>());
    let (outer, inner, by) = match size as isize {
        one if one == by_col => (rows, cols, by_row),
        one if one == by_row => (cols, rows, by_col),
        _ => return 0,
    };
    // From the last byte on: where a region begins inside a cache line, that line was used before.
    let (each, last) = ((inner * size).div_ceil(ALIGN), start.wrapping_add(inner * size).wrapping_sub(1));
    let count = to.len().min(outer * each);
    if each <= 1 {
        to[..count].iter_mut().enumerate().for_each(|(i, to)| *to = last.wrapping_add_signed(i as isize * by));
        return count;
    }
    for (i, to) in to[..count].chunks_mut(each).enumerate() {
        let last = last.wrapping_add_signed(i as isize * by);
        to.iter_mut().enumerate().for_each(|(k, to)| *to = last.wrapping_sub(k * ALIGN));
    }
    count
}

impl<E: Element, R: Lanes> Tensor<R> for ViewMut<'_, E, 4> {
    fn stage(&self, region: Region, blocks: Blocks, into: &mut PlanesMut<'_, R>) {
        self.as_view().stage(region, blocks, into);
    }

    fn in_place(&mut self, region: Region, columns: bool) -> Option<RowsMut<'_, R>> {
        let Region { outer: [o, p], rows, cols } = region;
        let tile = self.reborrow().same::<R>()?.slice(0, o..o + 1).slice(1, p..p + 1).slice(2, rows).slice(3, cols);
        if !columns {
            return tile.into_rows();
        }
        let tile = tile.permute([0, 1, 3, 2]);
        let len = tile.as_view().as_slice()?.len();
        ViewMut::new(tile.into_slice(), [1, len]).into_rows()
    }
}

/// A number of type `E` as parts of type `R`. The way through f64 is exact and vanishes where the types agree.
#[inline(always)]
pub(super) fn parts<E: Element, R: Real>(x: E) -> (R, R) {
    let x = x.load();
    (R::from_f64(x.re().to_f64()), R::from_f64(x.im().to_f64()))
}

#[inline(always)]
pub(super) fn whole<E: Element, R: Real>(re: R, im: R) -> E {
    let part = |x: R| <E::Arith as Weight>::Real::from_f64(x.to_f64());
    E::store(E::Arith::from_parts(part(re), part(im)))
}

/// One row of numbers to a row of a tile, `step` numbers apart.
#[inline(always)]
fn load<E: Element, R: Real>(row: &[E], into: &mut PlanesMut<'_, R>, at: usize, step: usize) {
    if E::Arith::COMPLEX {
        let im = into.im.as_deref_mut().expect("a plane for imaginary parts");
        let (re, im) = (into.re[at..].iter_mut().step_by(step), im[at..].iter_mut().step_by(step));
        row.iter().zip(re.zip(im)).for_each(|(x, (re, im))| (*re, *im) = parts(*x));
    } else if step == 1 {
        into.re[at..at + row.len()].iter_mut().zip(row).for_each(|(re, x)| *re = parts(*x).0);
    } else {
        into.re[at..].iter_mut().step_by(step).zip(row).for_each(|(re, x)| *re = parts(*x).0);
    }
}

/// One row of a tile, `step` numbers apart, to a row of numbers.
#[inline(always)]
fn save<E: Element, R: Real>(row: &mut [E], from: &Planes<'_, R>, at: usize, step: usize) {
    if E::Arith::COMPLEX {
        let im = from.im.expect("a plane of imaginary parts");
        let (re, im) = (from.re[at..].iter().step_by(step), im[at..].iter().step_by(step));
        row.iter_mut().zip(re.zip(im)).for_each(|(x, (re, im))| *x = whole(*re, *im));
    } else if step == 1 {
        let from = &from.re[at..at + row.len()];
        row.iter_mut().zip(from).for_each(|(x, re)| *x = whole(*re, R::ZERO));
    } else {
        row.iter_mut().zip(from.re[at..].iter().step_by(step)).for_each(|(x, re)| *x = whole(*re, R::ZERO));
    }
}

/// Zeros in the columns that the last block lacks.
fn pad<R: Real>(into: &mut PlanesMut<'_, R>, blocks: Blocks, [rows, cols]: [usize; 2]) {
    let (last, used) = (cols / blocks.width, cols % blocks.width);
    if used == 0 {
        return;
    }
    for r in 0..rows {
        let at = blocks.at(last, r);
        into.re[at + used..at + blocks.width].fill(R::ZERO);
        if let Some(im) = into.im.as_deref_mut() {
            im[at + used..at + blocks.width].fill(R::ZERO);
        }
    }
}

impl<E: Element, R: Lanes> Source<R> for View<'_, E, 4> {
    fn stage(&self, region: Region, blocks: Blocks, into: &mut PlanesMut<'_, R>) {
        let Region { outer: [o, p], rows, cols } = region;
        let tile = self.slice(0, o..o + 1).slice(1, p..p + 1).slice(2, rows).slice(3, cols);
        let [_, _, rows, cols] = tile.dims();
        if let (Some(rows), false) = (tile.matrix_rows(), E::Arith::COMPLEX) {
            load_rows(rows, blocks, into.re);
        } else if let Some(rows) = tile.matrix_rows() {
            for (r, row) in rows.enumerate() {
                row.chunks(blocks.width).enumerate().for_each(|(k, part)| load(part, into, blocks.at(k, r), 1));
            }
        } else if let (Some(lines), false) = (tile.permute([0, 1, 3, 2]).matrix_rows(), E::Arith::COMPLEX) {
            load_lines(lines, rows, blocks, into.re);
        } else if let Some(lines) = tile.permute([0, 1, 3, 2]).matrix_rows() {
            for (c, line) in lines.enumerate() {
                load(line, into, blocks.at(c / blocks.width, 0) + c % blocks.width, blocks.width);
            }
        } else {
            for r in 0..rows {
                (0..cols).for_each(|c| load(&[tile.get([0, 0, r, c])], into, blocks.at(c / blocks.width, r) + c % blocks.width, 1));
            }
        }
        pad(into, blocks, [rows, cols]);
    }

    fn lines(&self, region: Region, to: &mut [usize]) -> usize {
        lines(*self, region, to)
    }

    fn in_place(&self, region: Region, columns: bool) -> Option<Rows<'_, R>> {
        let Region { outer: [o, p], rows, cols } = region;
        let tile = self.same::<R>()?.slice(0, o..o + 1).slice(1, p..p + 1).slice(2, rows).slice(3, cols);
        if !columns {
            return tile.lines();
        }
        let all = tile.permute([0, 1, 3, 2]).as_slice()?;
        View::new(all, [1, all.len()]).lines()
    }
}

impl<E: Element, R: Lanes> Sink<R> for ViewMut<'_, E, 4> {
    fn put(&mut self, region: Region, blocks: Blocks, from: &Planes<'_, R>) {
        let Region { outer: [o, p], rows, cols } = region;
        let mut tile = self.reborrow().slice(0, o..o + 1).slice(1, p..p + 1).slice(2, rows).slice(3, cols);
        let [_, _, rows, cols] = tile.dims();
        if let Some(mut rows) = tile.matrix_rows_mut() {
            if !E::Arith::COMPLEX {
                return store_rows(rows, blocks, from.re);
            }
            let mut r = 0;
            while let Some(row) = rows.next() {
                row.chunks_mut(blocks.width).enumerate().for_each(|(k, part)| save(part, from, blocks.at(k, r), 1));
                r += 1;
            }
            return;
        }
        if let Some(mut lines) = tile.reborrow().permute([0, 1, 3, 2]).matrix_rows_mut() {
            if !E::Arith::COMPLEX {
                return store_lines(lines, cols, rows, blocks, from.re);
            }
            let mut c = 0;
            while let Some(line) = lines.next() {
                save(line, from, blocks.at(c / blocks.width, 0) + c % blocks.width, blocks.width);
                c += 1;
            }
            return;
        }
        for r in 0..rows {
            for c in 0..cols {
                let mut one = [E::default()];
                save(&mut one, from, blocks.at(c / blocks.width, r) + c % blocks.width, 1);
                tile.set([0, 0, r, c], one[0]);
            }
        }
    }

    fn zero(&mut self, region: Region) {
        let Region { outer: [o, p], rows, cols } = region;
        self.reborrow().slice(0, o..o + 1).slice(1, p..p + 1).slice(2, rows).slice(3, cols).fill(E::store(E::Arith::ZERO));
    }

    fn lines(&self, region: Region, to: &mut [usize]) -> usize {
        lines(self.as_view(), region, to)
    }
}

/// Positions as ranges without gaps: (first index, range of positions) each.
pub(super) fn runs(positions: &[usize]) -> impl Iterator<Item = (usize, Range<usize>)> {
    let mut at = 0;
    core::iter::from_fn(move || {
        let (first, start) = (at, *positions.get(at)?);
        while positions.get(at) == Some(&(start + at - first)) {
            at += 1;
        }
        Some((first, start..start + at - first))
    })
}

/// (B, L, D) as (B, 1, L, D).
pub(super) fn sequence<'a, T: Copy>(v: View<'a, T, 3>) -> View<'a, T, 4> {
    let ([b, l, d], [sb, sl, sd]) = (v.dims(), v.strides());
    v.reshape([b, 1, l, d], [sb, 0, sl, sd])
}

/// (B, L, D) as (B, 1, L, D).
pub(super) fn sequence_mut<'a, T: Copy>(v: ViewMut<'a, T, 3>) -> ViewMut<'a, T, 4> {
    let ([b, l, d], [sb, sl, sd]) = (v.dims(), v.strides());
    v.reshape([b, 1, l, d], [sb, 0, sl, sd])
}

/// (B, D) as (B, 1, 1, D).
pub(super) fn row<'a, T: Copy>(v: View<'a, T, 2>) -> View<'a, T, 4> {
    let ([b, d], [sb, sd]) = (v.dims(), v.strides());
    v.reshape([b, 1, 1, d], [sb, 0, 0, sd])
}

/// (B, D) as (B, 1, 1, D).
pub(super) fn row_mut<'a, T: Copy>(v: ViewMut<'a, T, 2>) -> ViewMut<'a, T, 4> {
    let ([b, d], [sb, sd]) = (v.dims(), v.strides());
    v.reshape([b, 1, 1, d], [sb, 0, 0, sd])
}

/// (S, D, N) as (S, 1, N, D).
pub(super) fn state<'a, T: Copy>(v: View<'a, T, 3>) -> View<'a, T, 4> {
    sequence(v.permute([0, 2, 1]))
}

/// (S, D, N) as (S, 1, N, D).
pub(super) fn state_mut<'a, T: Copy>(v: ViewMut<'a, T, 3>) -> ViewMut<'a, T, 4> {
    sequence_mut(v.permute([0, 2, 1]))
}

/// (D, N) as (1, 1, N, D).
pub(super) fn weight<'a, T: Copy>(v: View<'a, T, 2>) -> View<'a, T, 4> {
    let ([d, n], [sd, sn]) = (v.dims(), v.strides());
    v.reshape([1, 1, n, d], [0, 0, sn, sd])
}

/// (D, N) as (1, 1, N, D).
pub(super) fn weight_mut<'a, T: Copy>(v: ViewMut<'a, T, 2>) -> ViewMut<'a, T, 4> {
    let ([d, n], [sd, sn]) = (v.dims(), v.strides());
    v.reshape([1, 1, n, d], [0, 0, sn, sd])
}

/// (D) as (1, 1, 1, D).
pub(super) fn vector<'a, T: Copy>(v: View<'a, T, 1>) -> View<'a, T, 4> {
    let ([d], [sd]) = (v.dims(), v.strides());
    v.reshape([1, 1, 1, d], [0, 0, 0, sd])
}

/// (D) as (1, 1, 1, D).
pub(super) fn vector_mut<'a, T: Copy>(v: ViewMut<'a, T, 1>) -> ViewMut<'a, T, 4> {
    let ([d], [sd]) = (v.dims(), v.strides());
    v.reshape([1, 1, 1, d], [0, 0, 0, sd])
}

//! Rows of any storage type to and from the rows of blocks, compiled for the best instruction set of this machine: conversions
//! round the same way in each.

use bytemuck::{cast_slice, cast_slice_mut};

use super::stage::{Blocks, parts, whole};
use crate::arch::generic::vector::{Op, Vector};
use crate::arch::{Kernels, Lanes};
use crate::element::{Dtype, Element};
use crate::view::RowsMut;

/// Copies numbers, eight at a time, without a call.
#[inline(always)]
fn copy<R: Copy>(from: &[R], to: &mut [R]) {
    let ((from, rest), (to, last)) = (from.as_chunks::<8>(), to.as_chunks_mut::<8>());
    to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
}

/// Numbers of type `E` to as many of type `R`.
#[inline(always)]
fn load<V: Vector, E: Element>(zero: V, from: &[E], to: &mut [V::Real]) {
    if const { matches!((E::DTYPE, <V::Real as Element>::DTYPE), (Dtype::F32, Dtype::F32) | (Dtype::F64, Dtype::F64)) } {
        copy(cast_slice::<E, V::Real>(from), to);
    } else if const { matches!((E::DTYPE, <V::Real as Element>::DTYPE), (Dtype::F16, Dtype::F32)) } {
        zero.load_f16(cast_slice(from), to);
    } else if const { matches!((E::DTYPE, <V::Real as Element>::DTYPE), (Dtype::Bf16, Dtype::F32)) } {
        let from: &[u16] = cast_slice(from);
        let to: &mut [u32] = cast_slice_mut(to);
        to.iter_mut().zip(from).for_each(|(to, bits)| *to = u32::from(*bits) << 16);
    } else {
        to.iter_mut().zip(from).for_each(|(to, x)| *to = parts(*x).0);
    }
}

/// As [`load`], the other way.
#[inline(always)]
fn store<V: Vector, E: Element>(zero: V, from: &[V::Real], to: &mut [E]) {
    if const { matches!((E::DTYPE, <V::Real as Element>::DTYPE), (Dtype::F32, Dtype::F32) | (Dtype::F64, Dtype::F64)) } {
        copy(from, cast_slice_mut::<E, V::Real>(to));
    } else if const { matches!((E::DTYPE, <V::Real as Element>::DTYPE), (Dtype::F16, Dtype::F32)) } {
        zero.store_f16(from, cast_slice_mut(to));
    } else if const { matches!((E::DTYPE, <V::Real as Element>::DTYPE), (Dtype::Bf16, Dtype::F32)) } {
        let from: &[u32] = cast_slice(from);
        let to: &mut [u16] = cast_slice_mut(to);
        for (to, &bits) in to.iter_mut().zip(from) {
            // To nearest, ties to even; a NaN stays one.
            let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
            *to = ((if bits & 0x7fff_ffff > 0x7f80_0000 { bits | 0x40_0000 } else { rounded }) >> 16) as u16;
        }
    } else {
        to.iter_mut().zip(from).for_each(|(to, x)| *to = whole(*x, V::Real::default()));
    }
}

/// Contiguous rows to rows of blocks.
struct Rows<'i, I, R> {
    rows: I,
    blocks: Blocks,
    into: &'i mut [R],
}

impl<'e, E: Element + 'e, R: Lanes, I: Iterator<Item = &'e [E]>> Rows<'_, I, R> {
    #[inline(always)]
    fn by<V: Vector<Real = R>, const W: usize>(self, zero: V) {
        for (r, row) in self.rows.enumerate() {
            let (whole, rest) = row.as_chunks::<W>();
            for (k, part) in whole.iter().enumerate() {
                let at = self.blocks.at(k, r);
                load(zero, part, &mut self.into[at..at + W]);
            }
            let at = self.blocks.at(whole.len(), r);
            if !rest.is_empty() {
                load(zero, rest, &mut self.into[at..at + rest.len()]);
            }
        }
    }
}

impl<'e, E: Element + 'e, R: Lanes, I: Iterator<Item = &'e [E]>> Op<R> for Rows<'_, I, R> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector<Real = R>>(self, zero: V) {
        match self.blocks.width {
            16 => self.by::<V, 16>(zero),
            8 => self.by::<V, 8>(zero),
            4 => self.by::<V, 4>(zero),
            width => {
                for (r, row) in self.rows.enumerate() {
                    for (k, part) in row.chunks(width).enumerate() {
                        let at = self.blocks.at(k, r);
                        load(zero, part, &mut self.into[at..at + part.len()]);
                    }
                }
            }
        }
    }
}

/// Copies contiguous rows to the rows of blocks.
pub(super) fn load_rows<'e, E: Element + 'e, R: Lanes>(rows: impl Iterator<Item = &'e [E]>, blocks: Blocks, into: &mut [R]) {
    Kernels::best().run(Rows { rows, blocks, into });
}

/// Rows of blocks to contiguous rows.
struct RowsOut<'a, E, R> {
    rows: RowsMut<'a, E>,
    blocks: Blocks,
    from: &'a [R],
}

impl<E: Element, R: Lanes> RowsOut<'_, E, R> {
    #[inline(always)]
    fn by<V: Vector<Real = R>, const W: usize>(mut self, zero: V) {
        let mut r = 0;
        while let Some(row) = self.rows.next() {
            let (whole, rest) = row.as_chunks_mut::<W>();
            let last = self.blocks.at(whole.len(), r);
            for (k, part) in whole.iter_mut().enumerate() {
                let at = self.blocks.at(k, r);
                store(zero, &self.from[at..at + W], part);
            }
            if !rest.is_empty() {
                store(zero, &self.from[last..last + rest.len()], rest);
            }
            r += 1;
        }
    }
}

impl<E: Element, R: Lanes> Op<R> for RowsOut<'_, E, R> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector<Real = R>>(mut self, zero: V) {
        match self.blocks.width {
            16 => self.by::<V, 16>(zero),
            8 => self.by::<V, 8>(zero),
            4 => self.by::<V, 4>(zero),
            width => {
                let mut r = 0;
                while let Some(row) = self.rows.next() {
                    for (k, part) in row.chunks_mut(width).enumerate() {
                        let at = self.blocks.at(k, r);
                        store(zero, &self.from[at..at + part.len()], part);
                    }
                    r += 1;
                }
            }
        }
    }
}

/// Copies the rows of blocks to contiguous rows.
pub(super) fn store_rows<E: Element, R: Lanes>(rows: RowsMut<'_, E>, blocks: Blocks, from: &[R]) {
    Kernels::best().run(RowsOut { rows, blocks, from });
}

/// Rows that are transposed at a time.
const RUN: usize = 64;

/// Contiguous columns to columns of blocks.
struct Lines<'i, I, R> {
    lines: I,
    rows: usize,
    blocks: Blocks,
    into: &'i mut [R],
}

impl<'e, E: Element + 'e, R: Lanes, I: Iterator<Item = &'e [E]>> Op<R> for Lines<'_, I, R> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector<Real = R>>(mut self, zero: V) {
        let width = self.blocks.width;
        let mut staged = [[R::default(); RUN]; 8];
        let mut col = 0;
        loop {
            let (mut lines, mut count): ([&[E]; 8], usize) = ([&[]; 8], 0);
            while count < 8
                && let Some(line) = self.lines.next()
            {
                lines[count] = line;
                count += 1;
            }
            if count == 0 {
                return;
            }
            for first in (0..self.rows).step_by(RUN) {
                let rows = RUN.min(self.rows - first);
                for (staged, line) in staged.iter_mut().zip(&lines[..count]) {
                    load(zero, &line[first..first + rows], &mut staged[..rows]);
                }
                // Eight columns of one block at once; what lies beside the last column is padding.
                let whole = if width.is_multiple_of(8) { rows / 8 * 8 } else { 0 };
                let from: [&[R]; 8] = [&staged[0], &staged[1], &staged[2], &staged[3], &staged[4], &staged[5], &staged[6], &staged[7]];
                for r in (0..whole).step_by(8) {
                    let at = self.blocks.at(col / width, first + r) + col % width;
                    zero.transpose(from, r, &mut self.into[at..], width);
                }
                for r in whole..rows {
                    for (c, from) in from.iter().enumerate().take(count) {
                        self.into[self.blocks.at((col + c) / width, first + r) + (col + c) % width] = from[r];
                    }
                }
            }
            col += count;
        }
    }
}

/// Copies contiguous columns of `rows` numbers to the columns of blocks.
pub(super) fn load_lines<'e, E: Element + 'e, R: Lanes>(lines: impl Iterator<Item = &'e [E]>, rows: usize, blocks: Blocks, into: &mut [R]) {
    Kernels::best().run(Lines { lines, rows, blocks, into });
}

/// Columns of blocks to contiguous columns.
struct LinesOut<'a, E, R> {
    lines: RowsMut<'a, E>,
    cols: usize,
    rows: usize,
    blocks: Blocks,
    from: &'a [R],
}

impl<E: Element, R: Lanes> Op<R> for LinesOut<'_, E, R> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector<Real = R>>(mut self, zero: V) {
        let width = self.blocks.width;
        let mut staged = [R::default(); 8 * RUN];
        for first in (0..self.rows).step_by(RUN) {
            let rows = RUN.min(self.rows - first);
            self.lines.restart();
            for col in (0..self.cols).step_by(8) {
                let whole = if width.is_multiple_of(8) { rows / 8 * 8 } else { 0 };
                for r in (0..whole).step_by(8) {
                    let at = self.blocks.at(col / width, first + r) + col % width;
                    let row = |i: usize| &self.from[at + i * width..at + i * width + 8];
                    zero.transpose([row(0), row(1), row(2), row(3), row(4), row(5), row(6), row(7)], 0, &mut staged[r..], RUN);
                }
                let count = 8.min(self.cols - col);
                for r in whole..rows {
                    for c in 0..count {
                        staged[c * RUN + r] = self.from[self.blocks.at((col + c) / width, first + r) + (col + c) % width];
                    }
                }
                for c in 0..count {
                    let Some(line) = self.lines.next() else { return };
                    store(zero, &staged[c * RUN..c * RUN + rows], &mut line[first..first + rows]);
                }
            }
        }
    }
}

/// Copies the columns of blocks to contiguous columns of `rows` numbers.
pub(super) fn store_lines<E: Element, R: Lanes>(lines: RowsMut<'_, E>, cols: usize, rows: usize, blocks: Blocks, from: &[R]) {
    Kernels::best().run(LinesOut { lines, cols, rows, blocks, from });
}

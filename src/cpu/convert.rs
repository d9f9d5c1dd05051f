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

/// Runs `by` with the greatest of 8, 4, 2 and 1 that divides the width of blocks: columns that lie side by side.
macro_rules! by_parts {
    ($of:ident, $zero:ident) => {
        match $of.blocks.width {
            width if width.is_multiple_of(8) => $of.by::<V, 8>($zero),
            width if width.is_multiple_of(4) => $of.by::<V, 4>($zero),
            width if width.is_multiple_of(2) => $of.by::<V, 2>($zero),
            _ => $of.by::<V, 1>($zero),
        }
    };
}

/// Contiguous columns to columns of blocks.
struct Lines<'i, I, R> {
    lines: I,
    rows: usize,
    blocks: Blocks,
    into: &'i mut [R],
}

impl<'e, E: Element + 'e, R: Lanes, I: Iterator<Item = &'e [E]>> Lines<'_, I, R> {
    #[inline(always)]
    fn by<V: Vector<Real = R>, const P: usize>(mut self, zero: V) {
        let width = self.blocks.width;
        let mut col = 0;
        while let Some(line) = self.lines.next() {
            // Columns that are not there repeat the first; what lies beside the last column is padding.
            let (mut lines, mut count) = ([line; 8], 1);
            while count < 8
                && let Some(line) = self.lines.next()
            {
                lines[count] = line;
                count += 1;
            }
            let whole = self.rows / 8 * 8;
            for r in (0..whole).step_by(8) {
                let mut x = [[R::default(); 8]; 8];
                for (x, line) in x.iter_mut().zip(lines) {
                    load(zero, &line[r..r + 8], x);
                }
                let x = zero.transpose(x);
                for p in (0..count).step_by(P) {
                    let into = &mut self.into[self.blocks.at((col + p) / width, r) + (col + p) % width..];
                    for (i, x) in x.iter().enumerate() {
                        copy_part::<R, P>(&x[p..], &mut into[i * width..]);
                    }
                }
            }
            for (c, line) in lines.iter().enumerate().take(count) {
                for (r, x) in line.iter().enumerate().take(self.rows).skip(whole) {
                    self.into[self.blocks.at((col + c) / width, r) + (col + c) % width] = parts(*x).0;
                }
            }
            col += count;
        }
    }
}

/// Copies as many numbers as the constant says.
#[inline(always)]
fn copy_part<R: Copy, const P: usize>(from: &[R], to: &mut [R]) {
    if let (Some(from), Some(to)) = (from.first_chunk::<P>(), to.first_chunk_mut::<P>()) {
        *to = *from;
    }
}

impl<'e, E: Element + 'e, R: Lanes, I: Iterator<Item = &'e [E]>> Op<R> for Lines<'_, I, R> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector<Real = R>>(self, zero: V) {
        by_parts!(self, zero);
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

impl<E: Element, R: Lanes> LinesOut<'_, E, R> {
    #[inline(always)]
    fn by<V: Vector<Real = R>, const P: usize>(mut self, zero: V) {
        let (width, whole) = (self.blocks.width, self.rows / 8 * 8);
        for col in (0..self.cols).step_by(8) {
            let count = 8.min(self.cols - col);
            for r in (0..whole).step_by(8) {
                let mut x = [[R::default(); 8]; 8];
                for p in (0..count).step_by(P) {
                    let from = &self.from[self.blocks.at((col + p) / width, r) + (col + p) % width..];
                    for (i, x) in x.iter_mut().enumerate() {
                        copy_part::<R, P>(&from[i * width..], &mut x[p..]);
                    }
                }
                let x = zero.transpose(x);
                for (c, x) in x.iter().enumerate().take(count) {
                    store(zero, x, &mut self.lines.row(col + c)[r..r + 8]);
                }
            }
            for c in col..col + count {
                let line = self.lines.row(c);
                for (r, x) in line.iter_mut().enumerate().take(self.rows).skip(whole) {
                    *x = super::stage::whole(self.from[self.blocks.at(c / width, r) + c % width], R::default());
                }
            }
        }
    }
}

impl<E: Element, R: Lanes> Op<R> for LinesOut<'_, E, R> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector<Real = R>>(self, zero: V) {
        by_parts!(self, zero);
    }
}

/// Copies the columns of blocks to contiguous columns of `rows` numbers.
pub(super) fn store_lines<E: Element, R: Lanes>(lines: RowsMut<'_, E>, cols: usize, rows: usize, blocks: Blocks, from: &[R]) {
    Kernels::best().run(LinesOut { lines, cols, rows, blocks, from });
}

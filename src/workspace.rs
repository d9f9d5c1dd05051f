//! Scratch memory that the caller owns: sizes that compose, and pieces taken from it one after another.

use bytemuck::Pod;

use crate::error::Error;
use crate::view::{Host, Memory, ViewMut, contiguous};

/// Alignment in bytes of everything taken from a workspace: a cache line and a 512-bit vector.
pub const ALIGN: usize = 64;

/// Bytes that `count` elements of `T` take in a workspace, padding included. Saturates.
pub const fn bytes_of<T>(count: usize) -> usize {
    match count.saturating_mul(size_of::<T>()).checked_add(ALIGN - 1) {
        Some(padded) => padded / ALIGN * ALIGN,
        None => usize::MAX,
    }
}

/// Scratch memory borrowed from the caller. Its content before a call does not matter and is not defined after it.
///
/// A query answers with the sum of `bytes_of` its pieces plus [`ALIGN`], so that the start may lie anywhere.
#[derive(Debug)]
pub struct Workspace<'a, M: Memory = Host> {
    free: ViewMut<'a, u8, 1, M>,
}

impl<'a> Workspace<'a> {
    /// All of `bytes`.
    pub fn new(bytes: &'a mut [u8]) -> Self {
        let len = bytes.len();
        Workspace { free: ViewMut::new(bytes, [len]) }
    }

    /// A workspace that several threads hold, each to run its own part of one call: see [`ViewMut::from_raw`].
    pub fn shared(bytes: ViewMut<'a, u8, 1>) -> Self {
        Workspace { free: bytes }
    }

    /// The same scratch memory for a shorter time: what is taken from it is free again afterwards.
    pub fn reborrow(&mut self) -> Workspace<'_> {
        Workspace { free: self.free.reborrow() }
    }

    /// Takes a contiguous tensor, uninitialised in the sense that its numbers are arbitrary.
    pub fn tensor<T: Pod, const R: usize>(&mut self, dims: [usize; R]) -> Result<ViewMut<'a, T, R>, Error> {
        let count = dims.iter().fold(1usize, |n, &d| n.saturating_mul(d));
        let (got, want) = (self.free.dims()[0], bytes_of::<T>(count));
        let piece = self.free.carve::<T>(count, ALIGN).ok_or(Error::Workspace { got, want })?;
        Ok(piece.reshape(dims, contiguous(dims)))
    }

    /// Takes a slice of `count` arbitrary numbers.
    pub fn slice<T: Pod>(&mut self, count: usize) -> Result<&'a mut [T], Error> {
        Ok(self.tensor::<T, 1>([count])?.into_slice())
    }

    /// Takes `count` bytes as workspaces of `each` bytes, for `Par::run`.
    pub(crate) fn scratch(&mut self, count: usize, each: usize) -> Result<ViewMut<'a, u8, 2>, Error> {
        self.tensor([count, each.next_multiple_of(ALIGN)])
    }

    /// One row of [`Workspace::scratch`].
    pub(crate) fn of_row(row: ViewMut<'a, u8, 2>) -> Self {
        let len = row.dims()[1];
        Workspace { free: row.reshape([len], [1]) }
    }
}

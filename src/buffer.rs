//! Memory for tensors and scratch: owned, aligned buffers, and workspaces that pieces are taken from one after another.

use bytemuck::{Pod, Zeroable};

use crate::error::Error;
use crate::view::{Host, Memory, ViewMut, contiguous};
use crate::workspace::{ALIGN, bytes_of};

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; ALIGN]);

// SAFETY: plain bytes, any pattern is valid, all zero included.
unsafe impl Zeroable for Line {}
// SAFETY: 64 bytes with alignment 64, no padding, any pattern valid.
unsafe impl Pod for Line {}

/// Owned bytes that start on a 64-byte boundary. It grows and never shrinks, so that one buffer serves many calls. Large ones ask the
/// system for huge pages, with which memory is read up to twice as fast.
#[derive(Default)]
pub struct Buffer {
    lines: Vec<Line>,
}

impl core::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Buffer({} bytes)", self.lines.len() * ALIGN)
    }
}

impl Buffer {
    /// An empty buffer.
    pub const fn new() -> Self {
        Buffer { lines: Vec::new() }
    }

    /// A workspace of at least `bytes` bytes; allocates only where the buffer is smaller.
    pub fn workspace(&mut self, bytes: usize) -> Workspace<'_> {
        let lines = bytes.div_ceil(ALIGN);
        if self.lines.len() < lines {
            self.lines = Vec::new();
            self.lines = bytemuck::zeroed_vec(lines);
            huge_pages(&mut self.lines);
        }
        Workspace::new(bytemuck::cast_slice_mut(&mut self.lines))
    }

    /// A buffer of `count` zeros.
    pub fn zeroed<T: Pod>(count: usize) -> Self {
        let mut buffer = Buffer::new();
        buffer.workspace(count * size_of::<T>());
        buffer
    }

    /// All of it as numbers.
    pub fn numbers<T: Pod>(&self) -> &[T] {
        bytemuck::cast_slice(&self.lines)
    }

    /// All of it as numbers to write to.
    pub fn numbers_mut<T: Pod>(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.lines)
    }
}

/// Bytes from which on huge pages are asked for.
const HUGE_FROM: usize = 4 << 20;

/// Asks for huge pages for memory that was not touched yet. It is advice: where there are none, nothing changes.
#[cfg(target_os = "linux")]
fn huge_pages(lines: &mut [Line]) {
    const PAGE: usize = 4096;
    const MADV_HUGEPAGE: i32 = 14;
    // SAFETY: the signature of the C library's function, which the standard library links.
    unsafe extern "C" {
        fn madvise(start: *mut core::ffi::c_void, len: usize, advice: i32) -> i32;
    }
    if size_of_val(lines) < HUGE_FROM {
        return;
    }
    let range = lines.as_mut_ptr_range();
    let skip = range.start.addr().next_multiple_of(PAGE) - range.start.addr();
    let len = (size_of_val(lines) - skip) / PAGE * PAGE;
    // SAFETY: whole pages inside memory that is borrowed here for writing; the advice changes none of its content.
    unsafe { madvise(range.start.byte_add(skip).cast(), len, MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn huge_pages(_lines: &mut [Line]) {}

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
    pub fn shared(bytes: ViewMut<'a, u8, 1>) -> Result<Self, Error> {
        Workspace::over(bytes)
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

impl<'a, M: Memory> Workspace<'a, M> {
    /// All of a contiguous tensor of bytes, in any memory.
    ///
    /// # Errors
    /// [`Error::Layout`] where it is not contiguous or leaves its buffer.
    pub fn over(free: ViewMut<'a, u8, 1, M>) -> Result<Self, Error> {
        free.check("workspace", free.dims())?;
        if free.dims()[0] > 1 && free.strides() != [1] {
            return Err(Error::Layout { operand: "workspace", why: "it is not contiguous".into() });
        }
        Ok(Workspace { free })
    }

    /// The same scratch memory for a shorter time: what is taken from it is free again afterwards.
    pub fn reborrow(&mut self) -> Workspace<'_, M> {
        Workspace { free: self.free.reborrow() }
    }

    /// Takes a contiguous tensor, uninitialised in the sense that its numbers are arbitrary.
    pub fn tensor<T: Pod, const R: usize>(&mut self, dims: [usize; R]) -> Result<ViewMut<'a, T, R, M>, Error> {
        let count = dims.iter().fold(1usize, |n, &d| n.saturating_mul(d));
        let (got, want) = (self.free.dims()[0], bytes_of::<T>(count));
        let piece = self.free.carve::<T>(count, ALIGN).ok_or(Error::Workspace { got, want })?;
        Ok(piece.reshape(dims, contiguous(dims)))
    }
}

//! Owned memory for tensors and workspaces, aligned to a cache line.

use bytemuck::{Pod, Zeroable};

use crate::workspace::{ALIGN, Workspace};

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; ALIGN]);

// SAFETY: plain bytes, any pattern is valid, all zero included.
unsafe impl Zeroable for Line {}
// SAFETY: 64 bytes with alignment 64, no padding, any pattern valid.
unsafe impl Pod for Line {}

/// Owned bytes that start on a 64-byte boundary. It grows and never shrinks, so that one buffer serves many calls.
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
        }
        Workspace::new(bytemuck::cast_slice_mut(&mut self.lines))
    }
}

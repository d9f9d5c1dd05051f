//! What a forward call keeps for backward, in memory of any kind, and an owner of such memory in this process.

use core::marker::PhantomData;

use super::MambaProblem;
use crate::buffer::{Buffer, Workspace};
use crate::element::Input;
use crate::error::Error;
use crate::view::{Host, Memory, ViewMut};
use crate::workspace::{ALIGN, bytes_of};

/// What a forward call keeps for backward, borrowed from a caller who holds the memory for as long as backward may follow.
///
/// [`MambaMemory`] is such a caller. Any other, as one whose memory is a device's, has for each layer a buffer of
/// [`MambaProblem::saved_bytes`] and an `Option<MambaProblem>` beside it, and makes this anew of both for each call by
/// [`MambaSaved::carve`]. The option has to become None where the buffer is written otherwise.
#[derive(Debug)]
pub struct MambaSaved<'a, I: Input, M: Memory = Host> {
    /// [x | z], (B·L, 2D).
    pub xz: ViewMut<'a, I, 2, M>,
    /// x after the convolution, (B·L, D).
    pub x: ViewMut<'a, I, 2, M>,
    /// [δ | B | C], (B·L, R + 2N).
    pub x_dbl: ViewMut<'a, I, 2, M>,
    /// y, (B·L, D).
    pub y: ViewMut<'a, I, 2, M>,
    /// Whose tensors these are: a forward call writes its problem here, a backward call wants to find its own.
    pub kept: &'a mut Option<MambaProblem>,
}

impl MambaProblem {
    /// Shapes of what is kept: [x | z], x, [δ | B | C], y.
    fn saved_dims(&self) -> [[usize; 2]; 4] {
        [self.inner.saturating_mul(2), self.inner, self.dbl(), self.inner].map(|columns| [self.rows(), columns])
    }

    /// Bytes that [`MambaSaved::carve`] takes: 4D + R + 2N numbers a position.
    pub fn saved_bytes<I: Input>(&self) -> usize {
        let bytes = |[rows, columns]: [usize; 2]| bytes_of::<I>(rows.saturating_mul(columns));
        self.saved_dims().into_iter().fold(ALIGN, |sum, dims| sum.saturating_add(bytes(dims)))
    }
}

impl<'a, I: Input, M: Memory> MambaSaved<'a, I, M> {
    /// Takes the tensors of a problem from `ws`, always in the same places of the same memory.
    ///
    /// # Errors
    /// [`Error::Workspace`] where it has less than [`MambaProblem::saved_bytes`].
    pub fn carve(p: &MambaProblem, ws: &mut Workspace<'a, M>, kept: &'a mut Option<MambaProblem>) -> Result<Self, Error> {
        let [xz, x, x_dbl, y] = p.saved_dims();
        Ok(MambaSaved { xz: ws.tensor(xz)?, x: ws.tensor(x)?, x_dbl: ws.tensor(x_dbl)?, y: ws.tensor(y)?, kept })
    }

    /// Checks that the tensors are those of a problem.
    pub(super) fn check(&self, p: &MambaProblem) -> Result<(), Error> {
        let [xz, x, x_dbl, y] = p.saved_dims();
        self.xz.check("saved.xz", xz)?;
        self.x.check("saved.x", x)?;
        self.x_dbl.check("saved.x_dbl", x_dbl)?;
        self.y.check("saved.y", y)
    }
}

/// Memory of this process for what one block keeps. One may serve many calls; it allocates where a call is larger than all before it.
#[derive(Debug)]
pub struct MambaMemory<I> {
    buffer: Buffer,
    kept: Option<MambaProblem>,
    stored: PhantomData<I>,
}

impl<I> Default for MambaMemory<I> {
    fn default() -> Self {
        MambaMemory::new()
    }
}

impl<I> MambaMemory<I> {
    /// Holds nothing yet.
    pub const fn new() -> Self {
        MambaMemory { buffer: Buffer::new(), kept: None, stored: PhantomData }
    }
}

impl<I: Input> MambaMemory<I> {
    /// The tensors of a problem: what its forward call kept, if that was the last to have this memory, else room for what it will keep.
    pub fn saved(&mut self, p: &MambaProblem) -> MambaSaved<'_, I> {
        // Another problem has its tensors elsewhere, and the buffer may move.
        self.kept = self.kept.filter(|kept| kept == p);
        let mut ws = self.buffer.workspace(p.saved_bytes::<I>());
        MambaSaved::carve(p, &mut ws, &mut self.kept).expect("the buffer has the bytes that the problem asks for")
    }
}

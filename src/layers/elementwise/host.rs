//! Elementwise operations for host memory, parallel over blocks.

use super::check_pair;
use crate::buffer::Workspace;
use crate::element::{Element, Input, Real};
use crate::error::Error;
use crate::par::Par;
use crate::view::{Cut, Tiles, View, ViewMut};
use crate::workspace::ALIGN;

/// Elements of a block: more than a hundred times what handing it out costs.
const BLOCK: usize = 1 << 14;

/// How a tensor is cut into blocks, the last axis last.
#[derive(Debug, Clone, Copy)]
struct Blocks {
    dims: [usize; 3],
    size: [usize; 3],
}

impl Blocks {
    fn new(dims: [usize; 3]) -> Self {
        let mut size = [1; 3];
        let mut room = BLOCK;
        for axis in (0..3).rev() {
            size[axis] = dims[axis].clamp(1, room);
            room /= size[axis];
        }
        Blocks { dims, size }
    }

    fn count(&self) -> usize {
        (0..3).map(|axis| self.dims[axis].div_ceil(self.size[axis])).product()
    }

    fn tiles<'a, T: Copy>(&self, of: ViewMut<'a, T, 3>) -> Tiles<'a, 'static, T, 3> {
        let [outer, middle, inner] = core::array::from_fn(|axis| Cut::Every(axis, self.size[axis]));
        of.tiles(outer, middle).cut(inner)
    }

    /// The part of what is read that belongs to tile `index`.
    fn block<'a, T: Copy>(&self, of: View<'a, T, 3>, mut index: usize) -> View<'a, T, 3> {
        (0..3).rev().fold(of, |part, axis| {
            let parts = self.dims[axis].div_ceil(self.size[axis]);
            let start = index % parts * self.size[axis];
            index /= parts;
            part.slice(axis, start..(start + self.size[axis]).min(self.dims[axis]))
        })
    }
}

/// Calls `work` with each block of `to`, and its number.
fn run<T: Element>(to: ViewMut<'_, T, 3>, par: Par, work: impl Fn(&Blocks, usize, ViewMut<'_, T, 3>) + Sync) -> Result<(), Error> {
    par.check(1)?;
    if to.dims().contains(&0) {
        return Ok(());
    }
    let blocks = Blocks::new(to.dims());
    // No worker has scratch memory, but its empty share starts on a boundary.
    let mut none = [0u8; ALIGN];
    par.run(0, blocks.count(), (blocks.tiles(to),), &mut Workspace::new(&mut none), 0, |i, (tile,), _| work(&blocks, i, tile))
}

/// Calls `each` with every element of `from` and its counterpart in `to`; both have been checked.
fn pairs<T: Element>(from: View<'_, T, 3>, to: ViewMut<'_, T, 3>, par: Par, each: impl Fn(T, &mut T) + Sync) -> Result<(), Error> {
    run(to, par, |blocks, i, mut to| {
        let from = blocks.block(from, i);
        let [batch, seqlen, dim] = to.dims();
        for (b, t) in (0..batch).flat_map(|b| (0..seqlen).map(move |t| (b, t))) {
            if let (Some(from), Some(to)) = (from.row([b, t, 0]), to.row_mut([b, t, 0])) {
                to.iter_mut().zip(from).for_each(|(to, from)| each(*from, to));
                continue;
            }
            for at in (0..dim).map(|d| [b, t, d]) {
                let mut value = to.get(at);
                each(from.get(at), &mut value);
                to.set(at, value);
            }
        }
    })
}

/// A matrix as a tensor of three axes.
fn deep<'a, T: Copy>(matrix: View<'a, T, 2>) -> View<'a, T, 3> {
    let ([rows, columns], [row, column]) = (matrix.dims(), matrix.strides());
    matrix.reshape([1, rows, columns], [0, row, column])
}

/// As [`deep`], of what is written.
fn deep_mut<'a, T: Copy>(matrix: ViewMut<'a, T, 2>) -> ViewMut<'a, T, 3> {
    let ([rows, columns], [row, column]) = (matrix.dims(), matrix.strides());
    matrix.reshape([1, rows, columns], [0, row, column])
}

/// to = from; one phase.
pub fn copy<T: Element>(from: View<'_, T, 3>, to: ViewMut<'_, T, 3>, par: Par) -> Result<(), Error> {
    check_pair(("from", &from), ("to", &to))?;
    pairs(from, to, par, |from, to| *to = from)
}

/// Every element 0; one phase.
pub fn zero<T: Element>(to: ViewMut<'_, T, 3>, par: Par) -> Result<(), Error> {
    to.check("to", to.dims())?;
    run(to, par, |_, _, mut to| to.fill(T::default()))
}

/// to = to + from in the arithmetic type, rounded once; one phase.
pub fn add<I: Input>(from: View<'_, I, 3>, to: ViewMut<'_, I, 3>, par: Par) -> Result<(), Error> {
    check_pair(("from", &from), ("to", &to))?;
    pairs(from, to, par, |from, to| *to = I::store(to.load() + from.load()))
}

/// A = −exp(A_log); one phase.
pub fn decay<A: Real>(a_log: View<'_, A, 2>, a: ViewMut<'_, A, 2>, par: Par) -> Result<(), Error> {
    check_pair(("a_log", &a_log), ("a", &a))?;
    pairs(deep(a_log), deep_mut(a), par, |log, a| *a = -log.exp())
}

/// to = to ⊙ by; one phase.
pub fn scale<A: Real>(by: View<'_, A, 2>, to: ViewMut<'_, A, 2>, par: Par) -> Result<(), Error> {
    check_pair(("by", &by), ("to", &to))?;
    pairs(deep(by), deep_mut(to), par, |by, to| *to = *to * by)
}

//! Elementwise operations on the GPU.

use super::Cuda;
use super::expression::Vars;
use super::launch::{Grid, Kernel};
use super::params::{STORAGE, Strided, params, storage, strided, strided_mut};
use super::template::{Template, template};
use crate::element::{Dtype, Element, Input, Real};
use crate::error::Error;
use crate::layers::elementwise::{Elementwise, check_pair};
use crate::view::{Device, View, ViewMut};

/// Threads of a block.
const THREADS: usize = 256;
/// Columns of a thread.
const TURNS: usize = 4;
/// Columns and rows of a tile.
const TILE: u64 = 32;
/// Bytes that move at once, at most.
const WIDEST: i64 = 16;

/// What is done to each element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    /// An element is so many bytes, moved in pieces of so many.
    Copy([usize; 2]),
    Zero([usize; 2]),
    Add(Dtype),
    Decay(Dtype),
    Scale(Dtype),
}

/// A variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Each {
    op: Op,
    tile: bool,
}

params! {
    /// Both operands with the axes in the order that `Plan` gives; blocks along the axes.
    pub struct EachParams {
        from: Strided<4>,
        to: Strided<4>,
        outer: u64,
        middle: u64,
        inner: u64,
        tiles: u32,
        bands: u32,
        shift: u64,
    }
}

/// Bytes of an element and of the pieces that its alignment allows: complex numbers are aligned as their parts.
const PIECES: [[usize; 2]; 7] = [[2, 2], [4, 4], [4, 2], [8, 8], [8, 4], [16, 16], [16, 8]];

impl Kernel for Each {
    const TEMPLATE: Template = template!("elementwise");
    type Params = EachParams;

    fn entry(&self) -> String {
        let tile = if self.tile { "_tile" } else { "" };
        match self.op {
            Op::Copy([bytes, piece]) => format!("elementwise_copy_{bytes}_{piece}{tile}"),
            Op::Zero([bytes, piece]) => format!("elementwise_zero_{bytes}_{piece}"),
            Op::Add(dtype) => format!("elementwise_add_{}{tile}", dtype.name()),
            Op::Decay(dtype) => format!("elementwise_decay_{}", dtype.name()),
            Op::Scale(dtype) => format!("elementwise_scale_{}", dtype.name()),
        }
    }

    fn vars(&self) -> Vars {
        let vars = Vars::new().flag("TILE", self.tile);
        let pieces = |vars: Vars, [bytes, piece]: [usize; 2]| vars.int("BYTES", bytes).int("PIECE", piece);
        // A tile of numbers holds them as they are computed in.
        let numbers = |vars, dtype: Dtype| storage(vars, dtype).int("BYTES", if dtype == Dtype::F64 { 8 } else { 4 });
        match self.op {
            Op::Copy(by) => pieces(vars, by).text("OP", "copy"),
            Op::Zero(by) => pieces(vars, by).text("OP", "zero"),
            Op::Add(dtype) => numbers(vars, dtype).text("OP", "add"),
            Op::Decay(dtype) => numbers(vars, dtype).text("OP", "decay"),
            Op::Scale(dtype) => numbers(vars, dtype).text("OP", "scale"),
        }
    }

    fn shipped() -> Vec<Self> {
        let mut all = Vec::new();
        for tile in [false, true] {
            all.extend(PIECES.map(|by| Each { op: Op::Copy(by), tile }));
            all.extend(STORAGE.map(|dtype| Each { op: Op::Add(dtype), tile }));
        }
        all.extend(PIECES.map(|by| Each { op: Op::Zero(by), tile: false }));
        for dtype in [Dtype::F32, Dtype::F64] {
            all.extend([Op::Decay(dtype), Op::Scale(dtype)].map(|op| Each { op, tile: false }));
        }
        all
    }
}

/// Two operands of one shape, with their axes in the order in which they are walked. Strides are in bytes.
#[derive(Debug, Clone, Copy)]
struct Plan {
    from: Strided<4>,
    to: Strided<4>,
    dims: [i64; 3],
}

impl Plan {
    fn new(from: Strided<4>, to: Strided<4>, dims: [usize; 3]) -> Self {
        let mut plan = Plan { from, to, dims: dims.map(|d| d as i64) };
        // Outermost the axes of one element, then by the distance of what is written.
        let mut order = [0, 1, 2];
        order.sort_by_key(|&axis| core::cmp::Reverse((dims[axis] == 1, plan.to[axis + 1].unsigned_abs())));
        plan.reorder(order);
        for axis in [1, 0] {
            plan.merge(axis);
        }
        plan
    }

    fn reorder(&mut self, order: [usize; 3]) {
        let before = *self;
        for (axis, old) in order.into_iter().enumerate() {
            self.dims[axis] = before.dims[old];
            self.from[axis + 1] = before.from[old + 1];
            self.to[axis + 1] = before.to[old + 1];
        }
    }

    /// Makes one axis of this one and the next one, where both operands allow it.
    fn merge(&mut self, axis: usize) {
        let inside = self.dims[axis + 1];
        let fits = |v: &Strided<4>| v[axis + 1] == v[axis + 2] * inside;
        if self.dims[axis] == 1 || !fits(&self.from) || !fits(&self.to) {
            return;
        }
        self.dims[axis + 1] *= self.dims[axis];
        // What was further out moves in.
        for i in (1..=axis).rev() {
            (self.dims[i], self.from[i + 1], self.to[i + 1]) = (self.dims[i - 1], self.from[i], self.to[i]);
        }
        (self.dims[0], self.from[1], self.to[1]) = (1, 0, 0);
    }

    /// Bytes of a piece, for elements of so many; a contiguous axis is cut into wider elements where all is aligned to them.
    fn pieces(&mut self, bytes: usize) -> [usize; 2] {
        let all = |plan: &Plan, axes: usize| [plan.from, plan.to].iter().fold(0, |all, v| v[..=axes].iter().fold(all, |all, x| all | x));
        let row = self.dims[2] * bytes as i64;
        if self.from[3] == bytes as i64 && self.to[3] == bytes as i64 && (all(self, 2) | row) % WIDEST == 0 {
            (self.dims[2], self.from[3], self.to[3]) = (row / WIDEST, WIDEST, WIDEST);
            return [WIDEST as usize; 2];
        }
        let piece = 1 << all(self, 3).trailing_zeros().min(4);
        let fitting = PIECES.into_iter().find(|by| by[0] == bytes && by[1] <= piece);
        fitting.unwrap_or([bytes, bytes])
    }

    /// Whether the operands are contiguous along different axes. Then that of `from` is made the middle one.
    fn across(&mut self) -> bool {
        let near = (0..3).filter(|&axis| self.dims[axis] > 1 && self.from[axis + 1] != 0);
        let Some(axis) = near.min_by_key(|&axis| (self.from[axis + 1].unsigned_abs(), core::cmp::Reverse(axis))) else { return false };
        // Lanes of a tile that has few columns or rows would be idle.
        if axis == 2 || self.from[3] == 0 || self.dims[axis] < 8 || self.dims[2] < 8 {
            return false;
        }
        if axis == 0 {
            self.reorder([1, 0, 2]);
        }
        true
    }

    fn launch(mut self, engine: &Cuda, op: Op) -> Result<(), Error> {
        let tile = matches!(op, Op::Copy(_) | Op::Add(_)) && self.across();
        let [outer, middle, inner] = self.dims.map(|d| d as u64);
        let (from, to) = (self.from, self.to);
        let params = |tiles: u64, bands: u64, shift: u32| {
            // More blocks than an axis of the grid are refused by the launch.
            let [tiles, bands] = [tiles, bands].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
            EachParams { from, to, outer, middle, inner, tiles, bands, shift: u64::from(shift) }
        };
        let kernel = Each { op, tile };
        if tile {
            let (tiles, bands) = (inner.div_ceil(TILE), middle.div_ceil(TILE));
            let blocks = outer.saturating_mul(tiles).saturating_mul(bands);
            return engine.run(&kernel, Grid { blocks, threads: THREADS as u32, shared: 0 }, &params(tiles, bands, 0));
        }
        let shift = inner.next_power_of_two().min(THREADS as u64).trailing_zeros();
        let tiles = inner.div_ceil((TURNS as u64) << shift);
        let rows = outer.saturating_mul(middle).div_ceil(THREADS as u64 >> shift);
        let grid = Grid { blocks: rows.saturating_mul(tiles), threads: THREADS as u32, shared: 0 };
        engine.run(&kernel, grid, &params(tiles, 1, shift))
    }
}

/// A matrix as an operand of three axes.
fn deep([address, row, column]: Strided<3>) -> Strided<4> {
    [address, 0, row, column]
}

impl Elementwise for Cuda {
    type Memory = Device;

    fn copy<T: Element>(&self, from: View<'_, T, 3, Device>, to: ViewMut<'_, T, 3, Device>) -> Result<(), Error> {
        check_pair(("from", &from), ("to", &to))?;
        if to.dims().contains(&0) {
            return Ok(());
        }
        let mut plan = Plan::new(strided(&from), strided_mut(&to), to.dims());
        let by = plan.pieces(size_of::<T>());
        plan.launch(self, Op::Copy(by))
    }

    fn zero<T: Element>(&self, to: ViewMut<'_, T, 3, Device>) -> Result<(), Error> {
        to.check("to", to.dims())?;
        if to.dims().contains(&0) {
            return Ok(());
        }
        let at = strided_mut(&to);
        let mut plan = Plan::new(at, at, to.dims());
        let by = plan.pieces(size_of::<T>());
        plan.launch(self, Op::Zero(by))
    }

    fn add<I: Input>(&self, from: View<'_, I, 3, Device>, to: ViewMut<'_, I, 3, Device>) -> Result<(), Error> {
        check_pair(("from", &from), ("to", &to))?;
        if to.dims().contains(&0) {
            return Ok(());
        }
        Plan::new(strided(&from), strided_mut(&to), to.dims()).launch(self, Op::Add(I::DTYPE))
    }

    fn decay<A: Real>(&self, a_log: View<'_, A, 2, Device>, a: ViewMut<'_, A, 2, Device>) -> Result<(), Error> {
        check_pair(("a_log", &a_log), ("a", &a))?;
        let [rows, columns] = a.dims();
        if rows == 0 || columns == 0 {
            return Ok(());
        }
        let plan = Plan::new(deep(strided(&a_log)), deep(strided_mut(&a)), [1, rows, columns]);
        plan.launch(self, Op::Decay(A::DTYPE))
    }

    fn scale<A: Real>(&self, by: View<'_, A, 2, Device>, to: ViewMut<'_, A, 2, Device>) -> Result<(), Error> {
        check_pair(("by", &by), ("to", &to))?;
        let [rows, columns] = to.dims();
        if rows == 0 || columns == 0 {
            return Ok(());
        }
        let plan = Plan::new(deep(strided(&by)), deep(strided_mut(&to)), [1, rows, columns]);
        plan.launch(self, Op::Scale(A::DTYPE))
    }
}

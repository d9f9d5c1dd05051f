//! Rows of a table by token, and the gradient of the table, on the GPU.

use super::Cuda;
use super::expression::Vars;
use super::launch::{Grid, Kernel};
use super::params::{STORAGE, Strided, params, storage, strided, strided_mut};
use super::sum::address;
use super::template::{Template, template};
use crate::buffer::Workspace;
use crate::element::{Dtype, Input};
use crate::error::Error;
use crate::view::{Device, View, ViewMut};
use crate::workspace::{ALIGN, bytes_of};

/// Threads of a block, but for what is done by whole warps of 32 columns.
const THREADS: usize = 256;
/// Digits of the sort: as many as there are threads.
const BITS: u32 = 8;
const BINS: usize = 1 << BITS;
const WARPS: usize = THREADS / 32;
/// Keys that a warp has, 32 at a time, and that a block has.
const TURNS: usize = 8;
const TILE: usize = WARPS * 32 * TURNS;
/// From so many positions on, a token is summed by whole blocks.
const HOT: usize = 256;
/// Bytes that move at once, at most.
const WIDEST: i64 = 16;

/// A variant of the rows by token: bytes that move at once.
pub(super) struct Forward {
    piece: usize,
}

params! {
    /// Operands of the rows by token; 2 to the power `shift` threads a row.
    pub struct ForwardParams {
        table: Strided<3>,
        tokens: Strided<2>,
        out: Strided<3>,
        rows: u64,
        columns: u64,
        vocab: u64,
        shift: u64,
    }
}

impl Kernel for Forward {
    const TEMPLATE: Template = template!("embedding_fwd");
    type Params = ForwardParams;

    fn entry(&self) -> String {
        format!("embedding_fwd_{}", self.piece)
    }

    fn vars(&self) -> Vars {
        Vars::new().int("PIECE", self.piece)
    }

    fn shipped() -> Vec<Self> {
        [2, 4, 8, 16].map(|piece| Forward { piece }).into()
    }
}

/// What the sort does next.
#[derive(Debug, Clone, Copy)]
enum Stage {
    Count,
    Offsets,
    Scatter,
    Starts,
}

/// A variant of the sort of positions by token.
pub(super) struct Sort {
    stage: Stage,
}

params! {
    /// Arrays of the sort: `count` keys and positions (the keys' own where absent), BINS · `blocks` counters, `vocab` + 1 starts.
    pub struct SortParams {
        keys: Strided<2>,
        positions: u64,
        keys_to: u64,
        positions_to: u64,
        counts: u64,
        starts: u64,
        count: u64,
        vocab: u32,
        shift: u32,
        blocks: u64,
    }
}

impl Kernel for Sort {
    const TEMPLATE: Template = template!("embedding_sort");
    type Params = SortParams;

    fn entry(&self) -> String {
        format!("embedding_sort_{}", self.stage())
    }

    fn vars(&self) -> Vars {
        let vars = Vars::new().text("STAGE", self.stage()).int("BINS", BINS).int("WARPS", WARPS);
        vars.int("TURNS", TURNS).int("TILE", TILE)
    }

    fn shipped() -> Vec<Self> {
        [Stage::Count, Stage::Offsets, Stage::Scatter, Stage::Starts].map(|stage| Sort { stage }).into()
    }
}

impl Sort {
    fn stage(&self) -> &'static str {
        match self.stage {
            Stage::Count => "count",
            Stage::Offsets => "offsets",
            Stage::Scatter => "scatter",
            Stage::Starts => "starts",
        }
    }
}

/// A variant of the gradient of the table.
pub(super) struct Backward {
    dtype: Dtype,
    long: bool,
}

params! {
    /// Operands of the gradient of the table, after the sort.
    pub struct BackwardParams {
        grad_out: Strided<3>,
        grad_table: Strided<3>,
        keys: u64,
        positions: u64,
        starts: u64,
        columns: u64,
        vocab: u64,
        add: u32,
        tiles: u32,
        shift: u64,
    }
}

impl Kernel for Backward {
    const TEMPLATE: Template = template!("embedding_bwd");
    type Params = BackwardParams;

    fn entry(&self) -> String {
        format!("embedding_bwd_{}{}", self.dtype.name(), if self.long { "_long" } else { "" })
    }

    fn vars(&self) -> Vars {
        let threads = if self.long { 1024 } else { THREADS };
        storage(Vars::new(), self.dtype).flag("LONG", self.long).int("HOT", HOT).int("THREADS", threads)
    }

    fn shipped() -> Vec<Self> {
        STORAGE.into_iter().flat_map(|dtype| [false, true].map(|long| Backward { dtype, long })).collect()
    }
}

/// Threads of a row as a power of two: at most a block's.
fn shift(columns: usize) -> u32 {
    columns.next_power_of_two().min(THREADS).trailing_zeros()
}

/// Passes of the sort that bring the keys 0 … vocab into order.
fn passes(vocab: usize) -> u32 {
    (usize::BITS - vocab.leading_zeros()).div_ceil(BITS).max(1)
}

/// Ids and positions are 32 bits wide.
fn check_sizes(rows: usize, vocab: usize) -> Result<(), Error> {
    let most = u32::MAX as usize - TILE;
    if rows <= most && vocab <= most {
        return Ok(());
    }
    Err(Error::Unsupported { what: format!("an embedding of {rows} positions and {vocab} tokens, more than {most}") })
}

/// Positions in the order of their tokens, and where those of each token begin.
struct Sorted<'a> {
    keys: ViewMut<'a, u32, 1, Device>,
    positions: ViewMut<'a, u32, 1, Device>,
    starts: ViewMut<'a, u32, 1, Device>,
}

impl Cuda {
    /// out = the rows of `table`, (vocab, M), that `tokens`, (rows), name: (rows, M). Zeros for an id that is none of the table's, such as `IGNORE`.
    ///
    /// # Errors
    /// Where an operand does not fit.
    pub fn embedding_fwd<I: Input>(
        &self,
        table: View<'_, I, 2, Device>,
        tokens: View<'_, u32, 1, Device>,
        out: ViewMut<'_, I, 2, Device>,
    ) -> Result<(), Error> {
        let ([vocab, columns], [rows]) = (table.dims(), tokens.dims());
        table.check("table", [vocab, columns])?;
        tokens.check("tokens", [rows])?;
        out.check("out", [rows, columns])?;
        if rows == 0 || columns == 0 {
            return Ok(());
        }
        let (mut from, mut to): (Strided<3>, Strided<3>) = (strided(&table), strided_mut(&out));
        let (mut piece, mut width) = (size_of::<I>() as i64, columns);
        // Contiguous rows move in wider pieces where all is aligned to them. An empty table has nothing to read.
        let all = from[0] | from[1] | to[0] | to[1] | (columns as i64 * piece);
        let contiguous = |v: &Strided<3>| v[2] == piece;
        if all % WIDEST == 0 && contiguous(&to) && (contiguous(&from) || from[0] == 0) {
            width = columns * piece as usize / WIDEST as usize;
            (piece, from[2], to[2]) = (WIDEST, WIDEST, WIDEST);
        }
        let shift = shift(width);
        let params = ForwardParams {
            table: from,
            tokens: strided(&tokens),
            out: to,
            rows: rows as u64,
            columns: width as u64,
            vocab: vocab as u64,
            shift: u64::from(shift),
        };
        self.run(&Forward { piece: piece as usize }, Grid::new(rows.div_ceil(THREADS >> shift), THREADS as u32), &params)
    }

    /// Bytes of workspace that [`Cuda::embedding_bwd`] takes for so many positions and tokens of the vocabulary.
    pub fn embedding_bwd_workspace(&self, rows: usize, vocab: usize) -> usize {
        let pieces = [rows, rows, rows, rows, rows.div_ceil(TILE).saturating_mul(BINS), vocab.saturating_add(1)];
        pieces.iter().fold(ALIGN, |sum, n| sum.saturating_add(bytes_of::<u32>(*n)))
    }

    /// The gradient of a table: row `token` of `grad_table`, (vocab, M), is the sum of the rows of `grad_out`, (rows, M), at which `tokens`,
    /// (rows), has that token; with `add` it is added to what is there (where the head has the same weights). Each sum is in f64, in an order that
    /// depends on how many positions the token has only. Ids that are none of the table's have no part.
    ///
    /// # Errors
    /// Where an operand does not fit, or the workspace is too small.
    pub fn embedding_bwd<I: Input>(
        &self,
        grad_out: View<'_, I, 2, Device>,
        tokens: View<'_, u32, 1, Device>,
        grad_table: ViewMut<'_, I::Accum, 2, Device>,
        add: bool,
        ws: &mut Workspace<'_, Device>,
    ) -> Result<(), Error> {
        let ([rows, columns], [vocab, _]) = (grad_out.dims(), grad_table.dims());
        grad_out.check("grad_out", [rows, columns])?;
        tokens.check("tokens", [rows])?;
        grad_table.check("grad_table", [vocab, columns])?;
        check_sizes(rows, vocab)?;
        if vocab == 0 || columns == 0 {
            return Ok(());
        }
        let sorted = self.sort(&tokens, vocab, &mut ws.reborrow())?;
        let (shift, tiles) = (shift(columns), columns.div_ceil(32));
        let params = BackwardParams {
            grad_out: strided(&grad_out),
            grad_table: strided_mut(&grad_table),
            keys: address(&sorted.keys),
            positions: address(&sorted.positions),
            starts: address(&sorted.starts),
            columns: columns as u64,
            vocab: vocab as u64,
            add: u32::from(add),
            tiles: u32::try_from(tiles).map_err(|_| Error::Unsupported { what: format!("{columns} columns of an embedding") })?,
            shift: u64::from(shift),
        };
        let [few, many] = [false, true].map(|long| Backward { dtype: I::DTYPE, long });
        self.run(&few, Grid::new(vocab.div_ceil(THREADS >> shift), THREADS as u32), &params)?;
        if rows < HOT {
            return Ok(());
        }
        self.run(&many, Grid::new(rows.div_ceil(HOT).saturating_mul(tiles), 1024), &params)
    }

    /// Sorts the positions 0 … rows − 1 by their tokens; those with the same token stay in order.
    fn sort<'a>(&self, tokens: &View<'_, u32, 1, Device>, vocab: usize, ws: &mut Workspace<'a, Device>) -> Result<Sorted<'a>, Error> {
        let [rows] = tokens.dims();
        let blocks = rows.div_ceil(TILE);
        let mut array = |n: usize| ws.tensor::<u32, 1>([n]);
        let (mut keys, mut positions) = ([array(rows)?, array(rows)?], [array(rows)?, array(rows)?]);
        let (counts, starts) = (array(blocks.saturating_mul(BINS))?, array(vocab + 1)?);
        let mut params = SortParams {
            keys: strided(tokens),
            positions: 0,
            keys_to: address(&keys[0]),
            positions_to: address(&positions[0]),
            counts: address(&counts),
            starts: address(&starts),
            count: rows as u64,
            vocab: vocab as u32,
            shift: 0,
            blocks: blocks as u64,
        };
        for pass in 0..passes(vocab) {
            params.shift = pass * BITS;
            if pass > 0 {
                (params.keys, params.positions) = (strided(&keys[0].as_view()), address(&positions[0]));
                keys.swap(0, 1);
                positions.swap(0, 1);
                (params.keys_to, params.positions_to) = (address(&keys[0]), address(&positions[0]));
            }
            self.run(&Sort { stage: Stage::Count }, Grid::new(blocks, THREADS as u32), &params)?;
            self.run(&Sort { stage: Stage::Offsets }, Grid::new(blocks.min(1), 1024), &params)?;
            self.run(&Sort { stage: Stage::Scatter }, Grid::new(blocks, THREADS as u32), &params)?;
        }
        (params.keys, params.positions) = (strided(&keys[0].as_view()), address(&positions[0]));
        self.run(&Sort { stage: Stage::Starts }, Grid::new((vocab + 1).div_ceil(THREADS), THREADS as u32), &params)?;
        let ([keys, _], [positions, _]) = (keys, positions);
        Ok(Sorted { keys, positions, starts })
    }
}

//! Shapes of cases, as they are written: `b1_d1536_l2048_n16`, then what is not the usual.

use core::fmt;

/// How (B, L, D) operands lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Layout {
    /// Channels are neighbours.
    #[default]
    Bld,
    /// Steps are neighbours.
    Bdl,
}

/// Sizes of a case. An operator takes those that it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// B, or the rows of a product or a norm.
    pub batch: usize,
    /// L.
    pub seqlen: usize,
    /// D, the channels; the columns of a norm; what a product gives.
    pub dim: usize,
    /// N: states, or taps of a convolution, or what a product takes.
    pub extra: usize,
    /// Of (B, L, D) operands.
    pub layout: Layout,
}

impl Shape {
    /// Channels contiguous in memory.
    pub const fn new([batch, dim, seqlen, extra]: [usize; 4]) -> Self {
        Shape { batch, seqlen, dim, extra, layout: Layout::Bld }
    }

    /// The same with time contiguous.
    pub const fn turned(self) -> Self {
        Shape { layout: Layout::Bdl, ..self }
    }

    /// Reads `b1_d1536_l2048_n16`, perhaps with `_bdl` behind, in any order; what is missing stays as it is in `usual`.
    pub fn parse(text: &str, usual: Shape) -> Result<Self, String> {
        let mut shape = usual;
        for part in text.split('_') {
            if part == "bdl" || part == "bld" {
                shape.layout = if part == "bdl" { Layout::Bdl } else { Layout::Bld };
                continue;
            }
            let (name, number) = part.split_at_checked(1).ok_or_else(|| format!("`{text}` has an empty part"))?;
            let number = number.parse().map_err(|_| format!("`{part}` in `{text}` is not a letter and a number"))?;
            let size = match name {
                "b" => &mut shape.batch,
                "d" => &mut shape.dim,
                "l" => &mut shape.seqlen,
                "n" => &mut shape.extra,
                _ => return Err(format!("`{part}` in `{text}`: sizes are b, d, l and n")),
            };
            *size = number;
        }
        if shape.batch.min(shape.dim).min(shape.seqlen).min(shape.extra) == 0 {
            return Err(format!("`{text}` has a size of 0"));
        }
        let all = shape.batch.checked_mul(shape.dim).and_then(|x| x.checked_mul(shape.seqlen)).and_then(|x| x.checked_mul(shape.extra));
        all.map(|_| shape).ok_or_else(|| format!("`{text}` is too large"))
    }

    /// Elements of (B, L, D).
    pub fn count(&self) -> usize {
        self.batch * self.seqlen * self.dim
    }

    /// Elements of (B, L, D, N).
    pub fn states(&self) -> usize {
        self.count() * self.extra
    }

    /// Small enough for any engine, and unlike anything round.
    pub fn small(self) -> Self {
        Shape { batch: self.batch.min(2), seqlen: self.seqlen.min(301), dim: self.dim.min(72), extra: self.extra.min(256), ..self }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shape { batch, seqlen, dim, extra, layout } = self;
        let turned = if *layout == Layout::Bdl { "_bdl" } else { "" };
        write!(f, "b{batch}_d{dim}_l{seqlen}_n{extra}{turned}")
    }
}

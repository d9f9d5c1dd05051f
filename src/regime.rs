//! How scans run on a GPU, as data: what the choice depends on, what it is and why. The GPU engine and the planner share it.

use core::fmt;

use crate::element::Dtype;

/// What a GPU has, as far as the choice depends on it. No driver is needed to describe one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gpu {
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Compute capability, 9.0 as (9, 0).
    pub capability: (u32, u32),
}

/// What a GPU's choice depends on besides sizes. The default is a forward call of whole rows of real f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// How inputs are stored: f32, f64, f16 or bf16.
    pub input: Dtype,
    /// Whether A and the states are complex; in layer 1 everything.
    pub complex: bool,
    /// Whether rows are packed by ids, `Sequences::SeqIdx`.
    pub seq_idx: bool,
    /// Whether gradients are computed.
    pub backward: bool,
}

impl Default for Call {
    fn default() -> Self {
        Call { input: Dtype::F32, complex: false, seq_idx: false, backward: false }
    }
}

/// How a scan runs on a GPU. Both ways give the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Regime {
    /// A thread walks a row's time with its states in registers: for many rows.
    Walk,
    /// Time is cut into carry chunks that blocks take side by side: for few rows.
    Split,
}

/// Why a scan runs on a GPU as it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The engine was told to.
    Asked(Regime),
    /// Chunks are counted from the start of a sequence, which ids alone do not tell: walked.
    Ids,
    /// A channel has more states than its lanes hold, and takes several passes over time: walked.
    States,
    /// Gradients need the states before every chunk in any case: split.
    Chunks,
    /// Sequences of so few steps: walked.
    Short {
        /// Steps.
        seqlen: usize,
        /// Steps up to which they are walked.
        until: usize,
    },
    /// So many threads would walk, enough to fill the card: walked.
    Full {
        /// Threads.
        walkers: usize,
        /// Threads from which it is full.
        from: usize,
    },
    /// They would not be enough: split.
    Few {
        /// Threads.
        walkers: usize,
        /// Threads from which it is full.
        from: usize,
    },
}

impl Reason {
    /// Walked while there are threads enough, or where sequences are short.
    #[cfg(feature = "cuda")]
    pub(crate) fn of(walkers: usize, from: usize, seqlen: usize, until: usize) -> Self {
        if walkers >= from {
            Reason::Full { walkers, from }
        } else if seqlen <= until {
            Reason::Short { seqlen, until }
        } else {
            Reason::Few { walkers, from }
        }
    }

    /// How it runs.
    pub fn regime(self) -> Regime {
        match self {
            Reason::Asked(regime) => regime,
            Reason::Ids | Reason::States | Reason::Short { .. } | Reason::Full { .. } => Regime::Walk,
            Reason::Chunks | Reason::Few { .. } => Regime::Split,
        }
    }

    /// The same, or the regime that was asked for where either can be had.
    #[cfg(feature = "cuda")]
    pub(crate) fn or_asked(self, asked: Option<Regime>) -> Self {
        match (self, asked) {
            (Reason::Short { .. } | Reason::Full { .. } | Reason::Few { .. }, Some(regime)) => Reason::Asked(regime),
            _ => self,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Asked(_) => write!(f, "the engine was told to"),
            Reason::Ids => write!(f, "rows with ids of their sequences are walked"),
            Reason::States => write!(f, "a channel has more states than its lanes hold; it is walked, in several passes"),
            Reason::Chunks => write!(f, "the backward pass starts from the states before every chunk"),
            Reason::Short { seqlen, until } => write!(f, "{seqlen} steps are walked, as all up to {until} are"),
            Reason::Full { walkers, from } => write!(f, "{walkers} threads walk time; the card is full from {from}"),
            Reason::Few { walkers, from } => {
                write!(
                    f,
                    "{walkers} threads that walk time would leave the card idle, which is full from {from}; chunks of time run side by side"
                )
            }
        }
    }
}

#[cfg(feature = "cuda")]
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_long_rows_are_split() {
        let regime = |walkers, seqlen| Reason::of(walkers, 100, seqlen, 256).regime();
        assert_eq!([regime(99, 256), regime(99, 257), regime(100, 257)], [Regime::Walk, Regime::Split, Regime::Walk]);
    }

    #[test]
    fn what_is_asked_for_counts_where_there_is_a_choice() {
        for regime in [Regime::Walk, Regime::Split] {
            for reason in [Reason::of(1, 2, 9, 1), Reason::of(2, 2, 9, 1), Reason::of(1, 2, 1, 1)] {
                assert_eq!(reason.or_asked(Some(regime)).regime(), regime);
                assert_eq!(reason.or_asked(None), reason);
            }
            for reason in [Reason::Ids, Reason::States, Reason::Chunks] {
                assert_eq!(reason.or_asked(Some(regime)), reason);
            }
        }
    }
}

//! What the benches and the example `measure` share: operators with their operands, whose memory may be a host's or a GPU's, so that one piece
//! of code is checked here and timed there; their floors; the ceilings of the machine; and how time is taken.
#![allow(dead_code, reason = "each bench uses its part")]
#![allow(non_snake_case, reason = "the field's names are kept: A is not a")]

pub mod block;
pub mod ceilings;
pub mod conv1d;
pub mod criterion;
pub mod exp;
#[cfg(feature = "model")]
pub mod generate;
pub mod layers;
pub mod line;
pub mod operator;
pub mod place;
pub mod scan;
pub mod selective;
pub mod shape;
pub mod time;

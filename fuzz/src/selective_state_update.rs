//! Layer 2, the decode step, with slots that skip rows.

use arbitrary::Result;
use selective_scan::naive::Naive;

use super::compare::{close, each_engine, largest};
use super::input::Source;
use super::selective::Case;

fn check(bytes: &[u8]) -> Result<()> {
    let mut from = Source::new(bytes);
    let mut case = Case::new(&mut from, 1)?;
    if case.seqlen == 0 || case.offsets.is_some() {
        return Ok(());
    }
    case.transposed = false;
    // Slots in reverse, one in three rows skipped.
    let mut slots = Vec::new();
    for row in 0..case.batch {
        slots.push(if from.upto(2)? == 0 { -1 } else { (case.batch - 1 - row) as i32 });
    }
    let want = case.widen().step(&Naive, &slots);
    let scale = case.positive().step(&Naive, &slots);
    each_engine!(engine, name, {
        for ((tensor, got), ((_, want), (_, scale))) in case.step(&engine, &slots).iter().zip(want.iter().zip(&scale)) {
            let most = largest(want).max(largest(scale));
            close(name, tensor, got, want, |_| most, 64.0);
        }
    });
    Ok(())
}

/// The target.
pub fn run(bytes: &[u8]) {
    let _ = check(bytes);
}

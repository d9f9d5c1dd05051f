//! Layer 2, backward.

use arbitrary::Result;
use selective_scan::naive::{Naive, selective_n_eff};

use super::compare::{UNIT, close, each_engine, largest};
use super::input::Source;
use super::selective::Case;

fn check(bytes: &[u8]) -> Result<()> {
    let case = Case::new(&mut Source::new(bytes), 129)?;
    let wide = case.widen();
    let want = wide.backward(&Naive);
    let scale = case.positive().backward(&Naive);
    let remembered = selective_n_eff(&wide.inputs()).expect("a valid scan");
    // 4e-6 of the largest value and two units a remembered step, for each of the two recurrences that a gradient multiplies.
    let factor = 2.0 * (4e-6 / UNIT + 4.0 * remembered);
    each_engine!(engine, name, {
        for ((tensor, got), ((_, want), (_, scale))) in case.backward(&engine).iter().zip(want.iter().zip(&scale)) {
            let most = largest(want).max(largest(scale));
            close(name, tensor, got, want, |_| most, factor);
        }
    });
    Ok(())
}

/// The target.
pub fn run(bytes: &[u8]) {
    let _ = check(bytes);
}

//! Scans over an operator that does not commute, on every schedule: exact, so the results must be equal.

use arbitrary::Result;
use selective_scan::blelloch::{Schedule, scan_with};
use selective_scan::ops::Monoid;
use selective_scan::par::Par;

use super::input::{LENGTHS, Source};

/// Affine maps x ↦ a·x + b over the integers modulo 2⁶⁴.
struct Wrapping;

impl Monoid for Wrapping {
    type Element = (u64, u64);
    fn identity(&self) -> (u64, u64) {
        (1, 0)
    }
    fn combine(&self, earlier: &(u64, u64), later: &(u64, u64)) -> (u64, u64) {
        (later.0.wrapping_mul(earlier.0), later.0.wrapping_mul(earlier.1).wrapping_add(later.1))
    }
}

fn check(bytes: &[u8]) -> Result<()> {
    let mut from = Source::new(bytes);
    let (length, reverse) = (from.pick(&LENGTHS)?, from.flag()?);
    let items: Vec<(u64, u64)> = (0..length).map(|_| (from.bits(), from.bits())).collect();
    let mut want = items.clone();
    if reverse {
        want.reverse();
    }
    for t in 1..length {
        want[t] = Wrapping.combine(&want[t - 1], &want[t]);
    }
    if reverse {
        want.reverse();
    }
    for schedule in [Schedule::Sequential, Schedule::Blelloch, Schedule::Chunked] {
        let mut got = items.clone();
        scan_with(&Wrapping, &mut got, schedule, reverse, Par::default());
        assert_eq!(got, want, "{schedule:?}");
    }
    Ok(())
}

/// The target.
pub fn run(bytes: &[u8]) {
    let _ = check(bytes);
}

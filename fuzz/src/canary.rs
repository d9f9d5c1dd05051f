//! A target that must fail: the reference is wrong by a thousandth in one number. If it passes, failures are not seen.

use super::scan::check;

/// The target.
pub fn run(bytes: &[u8]) {
    let _ = check(bytes, |want| {
        if let Some(first) = want[0].first_mut() {
            *first = *first * 1.001 + 1e-3;
        }
    });
}

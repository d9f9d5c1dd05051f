//! The kernels that measure the card.

use super::{engine, is_real};

#[test]
fn ceilings_are_measured() {
    let (bytes, rounds) = if is_real() { (256 << 20, 256) } else { (40_000, 1) };
    let ceilings = engine().ceilings(bytes, rounds).expect("they are measured");
    println!("{ceilings:?}");
    for rate in [ceilings.copy, ceilings.ex2, ceilings.fma] {
        assert!(rate.is_finite() && rate > 0.0, "{ceilings:?}");
    }
}

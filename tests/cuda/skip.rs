//! Tests that cannot run on this machine say so in one line and pass. `SELECTIVE_SCAN_WANT_GPU=1` makes that a failure, for machines that must not skip.

use std::fmt::Display;
use std::io::Write;

use selective_scan::Error;

fn may_skip() -> bool {
    std::env::var_os("SELECTIVE_SCAN_WANT_GPU").is_none_or(|value| value != "1")
}

/// One line, by a way that the test harness does not capture: what passes shows nothing else.
pub fn skipped(test: &str, why: impl Display) {
    assert!(may_skip(), "{test} may not be skipped: {why}");
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
}

/// What this machine has, or why it has it not. What is there and does not work is a failure.
pub fn here<T>(found: Result<T, Error>) -> Result<T, Error> {
    match found {
        Err(why) if !matches!(why, Error::Unavailable { .. }) => panic!("it is there and does not work: {why}"),
        Err(why) if !may_skip() => panic!("SELECTIVE_SCAN_WANT_GPU=1 wants it: {why}"),
        found => found,
    }
}

#[test]
#[should_panic = "it is there and does not work"]
fn a_gpu_that_fails_is_not_passed_over() {
    let _ = here::<()>(Err(Error::Driver { why: "a fault".into() }));
}

#[test]
fn a_gpu_that_is_not_there_may_be() {
    assert_eq!(here(Ok(1)), Ok(1));
    if may_skip() {
        let none = Error::Unavailable { what: "a GPU".into() };
        assert_eq!(here::<()>(Err(none.clone())), Err(none));
    }
}

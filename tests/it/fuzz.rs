//! The fuzz targets' bodies over their corpora, and over bytes from a fixed seed, without a fuzzer.

use std::panic::catch_unwind;

#[path = "../../fuzz/src/lib.rs"]
mod bodies;

/// Problems from the fixed seed, for each target.
const PROBLEMS: u64 = 60;

/// `len` bytes that depend on `seed` only.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}

fn replay(name: &str, run: fn(&[u8])) {
    let corpus = std::fs::read_dir(format!("fuzz/corpus/{name}")).into_iter().flatten().flatten();
    let mut files: Vec<_> = corpus.map(|f| f.path()).collect();
    files.sort();
    for file in files {
        run(&std::fs::read(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display())));
    }
    (0..PROBLEMS).for_each(|seed| run(&noise(seed, 96)));
    run(&[]);
}

macro_rules! targets {
    ($($name:ident),+) => {
        $(#[test]
        fn $name() {
            replay(stringify!($name), bodies::$name::run);
        })+

        /// Every target of `fuzz/fuzz_targets` is replayed here.
        #[test]
        fn all_targets_are_replayed() {
            let mut names = vec!["canary", $(stringify!($name)),+];
            names.sort_unstable();
            let stem = |s: &crate::source::Source| s.path["fuzz/fuzz_targets/".len()..].trim_end_matches(".rs").to_string();
            let found: Vec<String> = crate::source::files("fuzz/fuzz_targets", "rs").iter().map(stem).collect();
            assert_eq!(found, names);
        }
    };
}

targets!(scan, monoid, causal_conv1d, selective_scan_fwd, selective_scan_bwd, selective_state_update, dims);

#[test]
fn the_canary_fails() {
    let failed = (0..PROBLEMS).filter(|&seed| catch_unwind(|| bodies::canary::run(&noise(seed, 96))).is_err()).count();
    assert!(failed as u64 > PROBLEMS / 4, "a wrong reference was seen in {failed} problems only");
}

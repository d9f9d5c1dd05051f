//! Every reference case and every property that holds for all engines, on the GPU engine. Where there is no GPU they are skipped, with one line that says so: on the
//! interpreter of PTX they would take too long, and the tests of `cuda` run there.

/// The kinds of engines of this program: each costs it time to build.
macro_rules! engine_kinds {
    ($define:ident) => {
        use super::carried::Carried;

        $define! {
            Naive: |engine: &Naive, _| *engine, |_, op| format!("naive {op}");
            Carried: |engine: &Carried, _| *engine, |_, op| format!("cuda {op}");
        }
    };
}

#[path = "../it/golden.rs"]
mod golden;
#[path = "../../examples/check/harness/mod.rs"]
#[allow(dead_code)]
mod harness;
#[path = "../it/lengths.rs"]
#[allow(dead_code)]
mod lengths;
#[path = "../it/nan_contract.rs"]
mod nan_contract;
#[path = "../it/problems.rs"]
#[allow(dead_code)]
mod problems;
#[path = "../it/scan_properties.rs"]
mod scan_properties;
#[path = "../it/selective_properties.rs"]
mod selective_properties;
#[path = "../cuda/skip.rs"]
mod skip;

use std::collections::BTreeSet;
use std::sync::Mutex;

use harness::carried::Carried;
use harness::engines::{Engine, Entry};

/// The engine under test.
fn engine_table() -> Vec<Entry> {
    match skip::here(harness::engines::gpu()) {
        Ok(engine) => vec![Entry::new("cuda", "ptx", Engine::Carried(Carried::new(engine, false)))],
        Err(why) => {
            // A test asks for the engines more than once.
            static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
            let test = std::thread::current().name().unwrap_or("a test").to_string();
            if SAID.lock().is_ok_and(|mut said| said.insert(test.clone())) {
                skip::skipped(&test, why);
            }
            Vec::new()
        }
    }
}

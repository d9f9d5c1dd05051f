//! The same bits for any number of threads, on repeats, and where a host runs the parts on its own threads.

use selective_scan::par::Par;

use crate::harness::compare::compare_bits;
use crate::harness::operation::{Named, Operation};
use crate::problems::{Draw, Recipe, name, places, run};

fn same<O: Operation + Sync>(problem: &O) {
    for (entry, dtype) in places() {
        let alone = run(&entry.with_par(Par::Seq), dtype, problem);
        let mut others: Vec<(String, Vec<Named>)> = Vec::new();
        others.push(("again".into(), run(&entry.with_par(Par::Seq), dtype, problem)));
        #[cfg(feature = "rayon")]
        for threads in [1, 2, 3, 7] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool of a few threads");
            others.push((format!("{threads} threads"), pool.install(|| run(&entry.with_par(Par::Rayon), dtype, problem))));
        }
        for (how, results) in others {
            for (one, other) in alone.iter().zip(&results) {
                let bits = compare_bits(&other.array.data, &one.array.data);
                assert!(bits.used == 0.0, "{} with {how} on {}: {bits:?}", one.name, name(&entry, dtype));
            }
        }
    }
}

#[test]
fn selective_scans_do_not_depend_on_threads() {
    let recipe = |sizes, seed, complex| {
        let [skip, gate, bias, softplus, states, packed] = [true, true, true, true, true, false];
        let rule = Default::default();
        Recipe { sizes, groups: 1, complex, varying: [true; 2], skip, gate, bias, softplus, states, rule, seed, packed }
    };
    same(&recipe([2, 300, 35, 4], 1, false).problem());
    same(&recipe([1, 600, 2, 16], 2, false).problem());
    same(&recipe([3, 65, 9, 3], 3, true).problem());
    same(&Recipe { packed: true, groups: 3, ..recipe([1, 200, 9, 3], 4, false) }.problem());
}

#[test]
fn scans_do_not_depend_on_threads() {
    for (reverse, complex, dims) in [(false, false, [1, 2000, 2]), (true, true, [3, 300, 17])] {
        let mut draw = Draw(5);
        same(&crate::harness::scan::Scan {
            a: draw.array(&dims, complex, -0.7, 0.7),
            b: draw.array(&dims, complex, -1.0, 1.0),
            h0: None,
            grad_h: draw.array(&dims, complex, -1.0, 1.0),
            grad_last: None,
            reverse,
            n_eff: 0.0,
        });
    }
}

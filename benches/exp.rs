//! The functions of single numbers in the scans, in each instruction set.

use common::criterion::Bench;
use common::exp::{Function, NAMES};
use selective_scan::arch::Kernels;

mod common;

fn main() {
    let mut bench = Bench::default();
    for (which, name) in NAMES.iter().enumerate() {
        for k in Kernels::available() {
            let mut function = Function::new(k, which);
            let work = function.work();
            let id = format!("cpu_{}/f32_f32/n{}", k.isa().name(), work.elements);
            let make = || function.checked().map(|_| Box::new(function) as Box<dyn common::time::Timed>);
            bench.case(name, &id, work, make, || common::ceilings::host_floor(&work, k, 1));
        }
    }
}

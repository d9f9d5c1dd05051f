//! The engines of this crate as kinds of the harness, and the table of those that this machine has.

use selective_scan::arch::Isa;
use selective_scan::blelloch::Blelloch;
use selective_scan::cpu::Cpu;

#[cfg(feature = "cuda")]
use crate::harness::carried::Carried;
use crate::harness::engines::{Engine, Entry, naive};

/// Every engine at every ISA level that this machine has.
pub fn table() -> Vec<Entry> {
    let mut all = vec![naive()];
    all.push(Entry::new("blelloch", "none", Engine::Blelloch(Blelloch::new())));
    for isa in Isa::available() {
        let engine = Cpu::new().with_isa(isa).expect("an available instruction set");
        all.push(Entry::new("cpu", isa.name(), Engine::Cpu(engine)));
    }
    #[cfg(feature = "cuda")]
    if let Ok(engine) = crate::harness::engines::gpu() {
        all.push(Entry::new("cuda", "ptx", Engine::Carried(Carried::new(engine, false))));
    }
    all
}

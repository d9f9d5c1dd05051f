// Included before the harness: a macro is known to the modules after it.
/// The kinds of engines, how each is told who runs its parts, and what it calls its kernels.
macro_rules! engine_kinds {
    ($define:ident) => {
        #[cfg(feature = "cuda")]
        use super::carried::Carried;
        use selective_scan::blelloch::Blelloch;
        use selective_scan::cpu::Cpu;

        $define! {
            Naive: |engine: &Naive, _| *engine, |_, op| format!("naive {op}");
            Blelloch: |_, par| Blelloch::with_par(par), |_, op| format!("blelloch {op}");
            Cpu: |engine: &Cpu, par| engine.with_par(par), |engine: &Cpu, op| format!("cpu {op} {}", engine.isa().name());
            #[cfg(feature = "cuda")]
            Carried: |engine: &Carried, _| *engine, |_, op| format!("cuda {op}");
        }
    };
}

//! The engines of this machine, in one table.

use selective_scan::arch::Isa;
use selective_scan::blelloch::Blelloch;
use selective_scan::block;
use selective_scan::cpu::Cpu;
use selective_scan::naive::Naive;
use selective_scan::par::Par;

/// What an engine for host memory offers.
pub trait HostEngine: block::HostEngine + Copy + Sync {}

impl<E: block::HostEngine + Copy + Sync> HostEngine for E {}

/// Something to do with any engine: their methods are generic, so they cannot be called through a pointer.
pub trait Visit {
    /// What comes of it.
    type Output;
    /// Does it.
    fn visit<E: HostEngine>(self, engine: &E) -> Self::Output;
}

/// One line of the table: an engine at one ISA level.
#[derive(Debug, Clone)]
pub struct Entry {
    pub name: &'static str,
    pub isa: &'static str,
    engine: Engine,
}

/// The kinds of engines, how each is told who runs its parts, and what it calls its kernels.
macro_rules! engines {
    ($($kind:ident: $par:expr, $kernel:expr;)+) => {
        #[derive(Debug, Clone)]
        enum Engine {
            $($kind($kind),)+
        }

        impl Entry {
            /// What really runs for an operator. Convolutions, norms and products are the same functions for host memory on every
            /// engine; of a block or a model the scan is the engine's own.
            pub fn kernel(&self, op: &str) -> String {
                match op {
                    "causal_conv1d" => return format!("host {op}"),
                    "mamba_block" => return format!("{}, host causal_conv1d, host linear", self.kernel("selective_scan")),
                    "model" => return format!("{}, host rms_norm", self.kernel("mamba_block")),
                    _ => {}
                }
                match &self.engine {
                    $(Engine::$kind(engine) => $kernel(engine, op),)+
                }
            }

            /// The same engine with its parts run in another way.
            pub fn with_par(&self, par: Par) -> Self {
                let engine = match &self.engine {
                    $(Engine::$kind(engine) => Engine::$kind($par(engine, par)),)+
                };
                Entry { engine, ..self.clone() }
            }

            /// Calls the visitor with the engine.
            pub fn visit<V: Visit>(&self, visitor: V) -> V::Output {
                match &self.engine {
                    $(Engine::$kind(engine) => visitor.visit(engine),)+
                }
            }
        }
    };
}

engines! {
    Naive: |engine: &Naive, _| *engine, |_, op| format!("naive {op}");
    Blelloch: |_, par| Blelloch::with_par(par), |_, op| format!("blelloch {op}");
    Cpu: |engine: &Cpu, par| engine.with_par(par), |engine: &Cpu, op| format!("cpu {op} {}", engine.isa().name());
}

/// Every engine at every ISA level that this machine has.
pub fn engines() -> Vec<Entry> {
    let mut all = vec![Entry { name: "naive", isa: "none", engine: Engine::Naive(Naive) }];
    all.push(Entry { name: "blelloch", isa: "none", engine: Engine::Blelloch(Blelloch::new()) });
    for isa in Isa::available() {
        let engine = Cpu::new().with_isa(isa).expect("an available instruction set");
        all.push(Entry { name: "cpu", isa: isa.name(), engine: Engine::Cpu(engine) });
    }
    all
}

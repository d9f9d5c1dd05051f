//! The engines of this machine, in one table.

use selective_scan::blelloch::Blelloch;
use selective_scan::layers::conv1d::CausalConv1d;
use selective_scan::naive::Naive;
use selective_scan::scan::Scan;
use selective_scan::selective::SelectiveScan;
use selective_scan::view::Host;

/// What an engine for host memory offers.
pub trait HostEngine: SelectiveScan + Scan<Memory = Host> + CausalConv1d<Memory = Host> + Sync {}

impl<E: SelectiveScan + Scan<Memory = Host> + CausalConv1d<Memory = Host> + Sync> HostEngine for E {}

/// Something to do with any engine: their methods are generic, so they cannot be called through a pointer.
pub trait Visit {
    /// What comes of it.
    type Output;
    /// Does it.
    fn visit<E: HostEngine>(self, engine: &E) -> Self::Output;
}

/// One line of the table: an engine at one ISA level.
pub struct Entry {
    pub name: &'static str,
    pub isa: &'static str,
    engine: Engine,
}

enum Engine {
    Naive(Naive),
    Blelloch(Blelloch),
}

impl Entry {
    /// What really runs for an operator.
    pub fn kernel(&self, op: &str) -> String {
        match &self.engine {
            Engine::Naive(_) => format!("naive {op}"),
            Engine::Blelloch(_) => format!("blelloch {op}"),
        }
    }

    /// Calls the visitor with the engine.
    pub fn visit<V: Visit>(&self, visitor: V) -> V::Output {
        match &self.engine {
            Engine::Naive(engine) => visitor.visit(engine),
            Engine::Blelloch(engine) => visitor.visit(engine),
        }
    }
}

/// Every engine at every ISA level that this machine has.
pub fn engines() -> Vec<Entry> {
    vec![
        Entry { name: "naive", isa: "none", engine: Engine::Naive(Naive) },
        Entry { name: "blelloch", isa: "none", engine: Engine::Blelloch(Blelloch::new()) },
    ]
}

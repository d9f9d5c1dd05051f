//! The engines of this machine, in one table.

use selective_scan::block;
use selective_scan::element::Dtype;
use selective_scan::naive::Naive;
use selective_scan::par::Par;
use selective_scan::selective::SelectiveOptions;

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

impl Entry {
    /// A line.
    pub fn new(name: &'static str, isa: &'static str, engine: Engine) -> Self {
        Entry { name, isa, engine }
    }

    /// Units of 2⁻²⁴ that a step of a selective scan in f32 may err by: 4 where the hardware approximates the decay.
    pub fn step_units(&self, dtype: Dtype, complex: bool, options: SelectiveOptions) -> f64 {
        #[cfg(feature = "cuda")]
        if self.name == "cuda" && dtype == Dtype::F32 && selective_scan::cuda::Cuda::approximates_decay(dtype, complex, options) {
            return 4.0;
        }
        let _ = (dtype, complex, options);
        1.0
    }
}

/// The kinds of engines, how each is told who runs its parts, and what it calls its kernels.
macro_rules! engines {
    ($($(#[$condition:meta])? $kind:ident: $par:expr, $kernel:expr;)+) => {
        /// An engine of any of these kinds.
        #[derive(Debug, Clone)]
        pub enum Engine {
            $($(#[$condition])? $kind($kind),)+
        }

        impl Entry {
            /// What really runs for an operator. Convolutions, norms and products are the same functions for host memory on every
            /// engine; of a block or a model the scan is the engine's own.
            pub fn kernel(&self, op: &str) -> String {
                if self.name == "cuda" {
                    return format!("cuda {op}");
                }
                match op {
                    "causal_conv1d" => return format!("host {op}"),
                    "mamba_block" => return format!("{}, host causal_conv1d, host linear", self.kernel("selective_scan")),
                    "model" => return format!("{}, host rms_norm", self.kernel("mamba_block")),
                    _ => {}
                }
                match &self.engine {
                    $($(#[$condition])? Engine::$kind(engine) => $kernel(engine, op),)+
                }
            }

            /// The same engine with its parts run in another way.
            pub fn with_par(&self, par: Par) -> Self {
                let engine = match &self.engine {
                    $($(#[$condition])? Engine::$kind(engine) => Engine::$kind($par(engine, par)),)+
                };
                Entry { engine, ..self.clone() }
            }

            /// Calls the visitor with the engine.
            pub fn visit<V: Visit>(&self, visitor: V) -> V::Output {
                match &self.engine {
                    $($(#[$condition])? Engine::$kind(engine) => visitor.visit(engine),)+
                }
            }
        }
    };
}

// The program that this is part of says which kinds it has: each costs it time to build.
engine_kinds!(engines);

/// The first GPU of this machine, opened once.
#[cfg(feature = "cuda")]
pub fn gpu() -> Result<&'static selective_scan::cuda::Cuda, selective_scan::Error> {
    use selective_scan::cuda::Cuda;
    static GPU: std::sync::OnceLock<Result<Cuda, selective_scan::Error>> = std::sync::OnceLock::new();
    GPU.get_or_init(|| Cuda::new(0)).as_ref().map_err(Clone::clone)
}

/// The specification.
pub fn naive() -> Entry {
    Entry { name: "naive", isa: "none", engine: Engine::Naive(Naive) }
}

/// Every engine that is under test, at every ISA level.
pub fn engines() -> Vec<Entry> {
    crate::engine_table()
}

//! Engines under test, and how far a result may be from the specification.

/// Runs a block of code once for each engine of this machine, on one thread; `$engine` is the engine, `$name` its name.
macro_rules! each_engine {
    ($engine:ident, $name:ident, $body:block) => {{
        {
            let ($engine, $name) = (selective_scan::naive::Naive, "naive");
            $body
        }
        {
            let ($engine, $name) = (selective_scan::blelloch::Blelloch::with_par(selective_scan::par::Par::Seq), "blelloch");
            $body
        }
        for isa in selective_scan::arch::Isa::available() {
            let cpu = selective_scan::cpu::Cpu::new().with_par(selective_scan::par::Par::Seq);
            let ($engine, $name) = (cpu.with_isa(isa).expect("an available instruction set"), isa.name());
            $body
        }
    }};
}
pub(crate) use each_engine;

/// Unit roundoff of f32.
pub const UNIT: f64 = 1.0 / (1u64 << 24) as f64;

/// Panics unless every |got − want| is at most `factor` units of `scale`, and a few subnormals.
pub fn close(name: &str, tensor: &str, got: &[f32], want: &[f64], scale: impl Fn(usize) -> f64, factor: f64) {
    assert_eq!(got.len(), want.len());
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let bound = factor * UNIT * scale(i) + 1e-38;
        let error = (f64::from(g) - w).abs();
        assert!(error <= bound, "{name}, {tensor}[{i}]: {g:e}, wanted {w:e}, error {error:e} beyond {bound:e}");
    }
}

/// The largest magnitude of a tensor.
pub fn largest(of: &[f64]) -> f64 {
    of.iter().fold(0.0, |m, x| m.max(x.abs()))
}

/// The same numbers in f64.
pub fn widen(of: &[f32]) -> Vec<f64> {
    of.iter().map(|&x| f64::from(x)).collect()
}

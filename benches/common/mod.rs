//! Problems and engines that several benches time.
#![allow(dead_code, reason = "each bench uses its part")]

use selective_scan::arch::Isa;
use selective_scan::cpu::Cpu;
use selective_scan::element::Input;
use selective_scan::par::Par;
use selective_scan::selective::{Coefficient, SelectiveInputs, SelectiveOptions};
use selective_scan::sequences::Sequences;
use selective_scan::view::View;

/// The engine `Cpu` in each instruction set of this machine on one thread, and in the best one on all of them.
pub fn cpus() -> Vec<(String, Cpu)> {
    let one =
        |isa: Isa| (format!("cpu_{}", isa.name()), Cpu::new().with_par(Par::Seq).with_isa(isa).expect("an available instruction set"));
    let mut all: Vec<(String, Cpu)> = Isa::available().map(one).collect();
    if Par::default().workers() > 1 {
        all.push((format!("cpu_{}_threads{}", Cpu::new().isa().name(), Par::default().workers()), Cpu::new()));
    }
    all
}

/// `count` numbers in [low, high] that look random and are the same on every run.
pub fn numbers<I: Input<Accum = f32>>(count: usize, low: f32, high: f32) -> Vec<I> {
    let mut state = 0x2545_f491_4f6c_dd1du64 ^ count as u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        I::store(low + (high - low) * ((state >> 40) as f32 / (1u64 << 24) as f32))
    };
    (0..count).map(|_| next()).collect()
}

/// A selective scan with everything on: softplus, delta_bias, D and z; f32 weights.
pub struct Full<I> {
    pub dims: [usize; 3],
    pub dstate: usize,
    pub u: Vec<I>,
    pub delta: Vec<I>,
    pub b: Vec<I>,
    pub c: Vec<I>,
    pub z: Vec<I>,
    pub a: Vec<f32>,
    pub d: Vec<f32>,
    pub bias: Vec<f32>,
}

impl<I: Input<Accum = f32>> Full<I> {
    /// At the published initialisation: A = −(1 … N), Δ from 1e-3 to 1e-1.
    pub fn new(batch: usize, seqlen: usize, dim: usize, dstate: usize) -> Self {
        let (count, shared) = (batch * seqlen * dim, batch * seqlen * dstate);
        Full {
            dims: [batch, seqlen, dim],
            dstate,
            u: numbers(count, -1.0, 1.0),
            delta: numbers(count, -0.5, 0.5),
            b: numbers(shared, -1.0, 1.0),
            c: numbers(shared, -1.0, 1.0),
            z: numbers(count, -2.0, 2.0),
            a: (0..dim * dstate).map(|i| -((i % dstate + 1) as f32)).collect(),
            d: vec![1.0; dim],
            bias: numbers(dim, -6.9, -2.25),
        }
    }

    /// As operands.
    pub fn inputs(&self) -> SelectiveInputs<'_, I, f32> {
        let [batch, seqlen, dim] = self.dims;
        let shared = [batch, seqlen, 1, self.dstate];
        SelectiveInputs {
            u: View::new(&self.u, self.dims),
            delta: View::new(&self.delta, self.dims),
            A: View::new(&self.a, [dim, self.dstate]),
            B: Coefficient::Varying(View::new(&self.b, shared)),
            C: Coefficient::Varying(View::new(&self.c, shared)),
            D: Some(View::new(&self.d, [dim])),
            z: Some(View::new(&self.z, self.dims)),
            delta_bias: Some(View::new(&self.bias, [dim])),
            initial_state: None,
            sequences: Sequences::Rows,
            options: SelectiveOptions { delta_softplus: true, ..SelectiveOptions::default() },
        }
    }

    /// `f32_f32/b1_d1536_l2048_n16`.
    pub fn id(&self) -> String {
        let [batch, seqlen, dim] = self.dims;
        format!("{}_f32/b{batch}_d{dim}_l{seqlen}_n{}", I::DTYPE.name(), self.dstate)
    }
}

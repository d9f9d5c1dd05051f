//! This crate beside others on the same shapes, one thread, in one process: the forward scan beside a plain loop that calls libm, and decoding of the
//! 130m model beside mamba-rs and candle-transformers. Random or zero weights: time does not depend on them.

use std::hint::black_box;
use std::time::Instant;

use selective_scan::buffer::Buffer;
use selective_scan::cpu::Cpu;
use selective_scan::model::{Generation, MambaLm, ModelConfig, Sampling, generate, init};
use selective_scan::par::Par;
use selective_scan::selective::{Coefficient, SelectiveFwd, SelectiveInputs, SelectiveOptions, SelectiveScan};
use selective_scan::sequences::Sequences;
use selective_scan::view::{View, ViewMut};

const N: usize = 16;

/// The median time of five calls, in seconds, after one untimed.
fn median(mut work: impl FnMut()) -> f64 {
    work();
    let mut all: Vec<f64> = (0..5)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64()
        })
        .collect();
    all.sort_by(f64::total_cmp);
    all[2]
}

/// A scan with everything on, (1, L, D).
struct Problem {
    seqlen: usize,
    dim: usize,
    u: Vec<f32>,
    delta: Vec<f32>,
    z: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
    a: Vec<f32>,
    d: Vec<f32>,
    bias: Vec<f32>,
}

impl Problem {
    fn new(seqlen: usize, dim: usize) -> Self {
        let wave = |count: usize, size: f32, by: f32| (0..count).map(|i| size * (i as f32 * by).sin()).collect::<Vec<_>>();
        Problem {
            seqlen,
            dim,
            u: wave(seqlen * dim, 1.0, 0.37),
            delta: wave(seqlen * dim, 0.5, 0.73),
            z: wave(seqlen * dim, 2.0, 0.11),
            b: wave(seqlen * N, 1.0, 0.19),
            c: wave(seqlen * N, 1.0, 0.23),
            a: (0..dim * N).map(|i| -((i % N + 1) as f32)).collect(),
            d: vec![1.0; dim],
            bias: wave(dim, 2.0, 0.31).into_iter().map(|x| x - 4.5).collect(),
        }
    }

    fn ours(&self, engine: &Cpu, buffer: &mut Buffer, out: &mut [f32]) {
        let (dims, shared) = ([1, self.seqlen, self.dim], [1, self.seqlen, 1, N]);
        let inputs = SelectiveInputs {
            u: View::new(&self.u, dims),
            delta: View::new(&self.delta, dims),
            A: View::new(&self.a, [self.dim, N]),
            B: Coefficient::Varying(View::new(&self.b, shared)),
            C: Coefficient::Varying(View::new(&self.c, shared)),
            D: Some(View::new(&self.d, [self.dim])),
            z: Some(View::new(&self.z, dims)),
            delta_bias: Some(View::new(&self.bias, [self.dim])),
            initial_state: None,
            sequences: Sequences::Rows,
            options: SelectiveOptions { delta_softplus: true, ..Default::default() },
        };
        let args = SelectiveFwd { inputs, out: ViewMut::new(out, dims), last_state: None };
        let bytes = engine.selective_scan_fwd_workspace::<f32, f32>(&args.check().expect("operands fit"));
        engine.selective_scan_fwd(args, &mut buffer.workspace(bytes)).expect("it runs");
    }

    /// As anyone would write it: channel by channel would read with a stride, so step by step, states beside.
    fn plain(&self, state: &mut [f32], out: &mut [f32]) {
        state.fill(0.0);
        for t in 0..self.seqlen {
            let (b, c) = (&self.b[t * N..][..N], &self.c[t * N..][..N]);
            for d in 0..self.dim {
                let at = t * self.dim + d;
                let raw = self.delta[at] + self.bias[d];
                let delta = if raw > 20.0 { raw } else { raw.exp().ln_1p() };
                let (h, a) = (&mut state[d * N..][..N], &self.a[d * N..][..N]);
                let (x, mut y) = (delta * self.u[at], 0.0);
                for n in 0..N {
                    h[n] = (delta * a[n]).exp() * h[n] + x * b[n];
                    y += c[n] * h[n];
                }
                let z = self.z[at];
                out[at] = (y + self.d[d] * self.u[at]) * z / (1.0 + (-z).exp());
            }
        }
    }
}

fn scans() {
    for (dim, seqlen) in [(1536, 512), (1536, 2048), (5120, 512)] {
        let problem = Problem::new(seqlen, dim);
        let (engine, mut buffer) = (Cpu::new().with_par(Par::Seq), Buffer::new());
        let (mut ours, mut theirs, mut state) = (vec![0.0; seqlen * dim], vec![0.0; seqlen * dim], vec![0.0; dim * N]);
        let fast = median(|| problem.ours(&engine, &mut buffer, black_box(&mut ours)));
        let slow = median(|| problem.plain(&mut state, black_box(&mut theirs)));
        let most = theirs.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let off = ours.iter().zip(&theirs).fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / most;
        assert!(off < 1e-4, "the two differ by {off} of the largest number");
        let rate = |seconds: f64| (seqlen * dim * N) as f64 / seconds / 1e9;
        println!(
            "forward b1_d{dim}_l{seqlen}_n{N}: {:.2} ms, {:.2} G elements/s; plain loop {:.2} ms, {:.2} G elements/s; {:.1} times",
            fast * 1e3,
            rate(fast),
            slow * 1e3,
            rate(slow),
            slow / fast
        );
    }
}

/// Seconds a token of the 130m model, batch 1.
fn decode() -> Result<(), Box<dyn std::error::Error>> {
    let config = ModelConfig { num_hidden_layers: 24, ..ModelConfig::default() };
    let parameters = init::<f32>(&config, 1)?;
    let model = MambaLm::new(config, Cpu::new().with_par(Par::Seq), Par::Seq)?;
    let how = Generation { tokens: 12, sampling: Sampling { temperature: 0.0, top_k: None, top_p: None }, seed: 1, stop_at_eos: false };
    let mut times = Vec::new();
    generate(&model, &parameters, &[&[1, 2, 3]], &how, |_, _| {
        times.push(Instant::now());
        std::ops::ControlFlow::Continue(())
    })?;
    let mut gaps: Vec<f64> = times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
    gaps.sort_by(f64::total_cmp);
    println!("decode 130m: {:.1} tokens/s", 1.0 / gaps[gaps.len() / 2]);
    drop(parameters);

    let config = mamba_rs::MambaConfig { d_model: 768, n_layers: 24, ..Default::default() };
    let backbone = mamba_rs::MambaBackbone::init(config, 768, 42);
    let (mut state, mut scratch) = (backbone.alloc_state(), backbone.alloc_scratch());
    let (input, mut output) = (vec![0.1f32; 768], vec![0.0f32; 768]);
    let each = median(|| backbone.forward_step(&input, black_box(&mut output), &mut state, &mut scratch));
    println!("decode 130m, mamba-rs, without the head: {:.1} tokens/s", 1.0 / each);

    use candle_core::{DType, Device, Tensor};
    use candle_transformers::models::mamba::{Config, Model, State};
    let config = Config { d_model: 768, n_layer: 24, vocab_size: 50280, pad_vocab_size_multiple: 8 };
    let model = Model::new(&config, candle_nn::VarBuilder::zeros(DType::F32, &Device::Cpu))?;
    let mut state = State::new(1, &config, DType::F32, &Device::Cpu)?;
    let token = Tensor::new(&[1u32], &Device::Cpu)?;
    let each = median(|| drop(black_box(model.forward(&token, &mut state).expect("it runs"))));
    println!("decode 130m, candle-transformers: {:.1} tokens/s", 1.0 / each);
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    scans();
    decode()
}

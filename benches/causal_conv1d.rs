//! The causal convolution: prefill, its gradients and one decode step. Throughput is the bytes of x and out.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use selective_scan::arch::Isa;
use selective_scan::buffer::Buffer;
use selective_scan::cpu::Cpu;
use selective_scan::layers::conv1d::{CausalConv1d, ConvBwd, ConvFwd, ConvGrads, ConvInputs, ConvProblem, ConvStep};
use selective_scan::par::Par;
use selective_scan::sequences::Sequences;
use selective_scan::view::{View, ViewMut};

fn engines() -> Vec<(&'static str, Cpu)> {
    let plain = Cpu::new().with_isa(Isa::Portable).expect("the portable kernels run anywhere");
    vec![("portable", plain.with_par(Par::Seq)), ("cpu", Cpu::new().with_par(Par::Seq)), ("cpu_threads", Cpu::new())]
}

fn wave(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i as f32 * 0.37).sin()).collect()
}

fn causal_conv1d(c: &mut Criterion) {
    let mut group = c.benchmark_group("causal_conv1d");
    for (batch, seqlen, dim, width) in [(1, 512, 1536, 4), (8, 256, 512, 4)] {
        let dims = [batch, seqlen, dim];
        let (x, weight, bias, grad_out) = (wave(batch * seqlen * dim), wave(dim * width), wave(dim), wave(batch * seqlen * dim));
        let (mut out, mut grad_x, mut grad_weight) = (x.clone(), x.clone(), weight.clone());
        let mut window = vec![0.0f32; batch * (width - 1) * dim];
        let inputs = ConvInputs {
            x: View::new(&x, dims),
            weight: View::new(&weight, [dim, width]),
            bias: Some(View::new(&bias, [dim])),
            initial_window: None,
            sequences: Sequences::Rows,
            silu: true,
        };
        let problem = ConvProblem { batch, seqlen, dim, width, states: batch };
        let mut buffer = Buffer::new();
        for (name, engine) in engines() {
            let id = |op: &str| format!("{op}/{name}/f32/b{batch}_d{dim}_l{seqlen}_w{width}");
            group.throughput(Throughput::Bytes(8 * x.len() as u64));
            group.bench_function(id("fwd"), |b| {
                b.iter(|| {
                    let mut ws = buffer.workspace(engine.causal_conv1d_fwd_workspace::<f32>(&problem));
                    let args = ConvFwd { inputs: black_box(inputs), out: ViewMut::new(&mut out, dims), final_window: None };
                    engine.causal_conv1d_fwd(args, &mut ws).unwrap();
                })
            });
            group.bench_function(id("bwd"), |b| {
                b.iter(|| {
                    let mut ws = buffer.workspace(engine.causal_conv1d_bwd_workspace::<f32>(&problem));
                    let (grad_x, weight) = (ViewMut::new(&mut grad_x, dims), ViewMut::new(&mut grad_weight, [dim, width]));
                    let grads = ConvGrads { x: Some(grad_x), weight: Some(weight), ..Default::default() };
                    let args = ConvBwd { inputs: black_box(inputs), grad_out: View::new(&grad_out, dims), grad_final_window: None, grads };
                    engine.causal_conv1d_bwd(args, &mut ws).unwrap();
                })
            });
            group.throughput(Throughput::Bytes((8 * batch * dim) as u64));
            group.bench_function(id("update"), |b| {
                b.iter(|| {
                    let mut ws = buffer.workspace(engine.causal_conv1d_update_workspace::<f32>(&problem));
                    let args = ConvStep {
                        x: View::new(black_box(&x[..batch * dim]), [batch, dim]),
                        weight: inputs.weight,
                        bias: inputs.bias,
                        window: ViewMut::new(&mut window, [batch, width - 1, dim]),
                        slots: None,
                        out: ViewMut::new(&mut out[..batch * dim], [batch, dim]),
                        silu: true,
                    };
                    engine.causal_conv1d_update(args, &mut ws).unwrap();
                })
            });
        }
    }
}

criterion_group!(benches, causal_conv1d);
criterion_main!(benches);

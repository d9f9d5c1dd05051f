//! Linear: the shapes of training and of decode. Throughput is in multiply-adds, so 2 flop an element.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use selective_scan::buffer::Buffer;
use selective_scan::layers::linear::{
    LinearBwd, LinearFwd, LinearProblem, linear_bwd, linear_bwd_workspace, linear_fwd, linear_fwd_workspace,
};
use selective_scan::par::Par;
use selective_scan::view::{View, ViewMut};

const SHAPES: [[usize; 3]; 5] = [[4096, 256, 1024], [4096, 512, 256], [4096, 16, 512], [1, 768, 3072], [4, 768, 3072]];

fn ways() -> Vec<(&'static str, Par)> {
    vec![
        ("seq", Par::Seq),
        #[cfg(feature = "rayon")]
        ("rayon", Par::Rayon),
    ]
}

fn wave(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i as f32 * 0.37).sin()).collect()
}

fn linear(c: &mut Criterion) {
    let mut group = c.benchmark_group("linear");
    for [rows, k, n] in SHAPES {
        let (x, weight, grad_out) = (wave(rows * k), wave(n * k), wave(rows * n));
        let (mut out, mut grad_x, mut grad_weight) = (vec![0.0f32; rows * n], vec![0.0f32; rows * k], vec![0.0f32; n * k]);
        let (x, weight) = (View::new(&x, [rows, k]), View::new(&weight, [n, k]));
        let problem = LinearProblem { rows, inputs: k, outputs: n };
        let mut buffer = Buffer::new();
        for (name, par) in ways() {
            group.throughput(Throughput::Elements((rows * k * n) as u64));
            group.bench_function(format!("fwd/{name}/f32/r{rows}_k{k}_n{n}"), |b| {
                b.iter(|| {
                    let mut ws = buffer.workspace(linear_fwd_workspace::<f32>(problem, par));
                    let args = LinearFwd { x: black_box(x), weight, bias: None, out: ViewMut::new(&mut out, [rows, n]) };
                    linear_fwd(args, par, &mut ws).unwrap();
                })
            });
            group.throughput(Throughput::Elements((2 * rows * k * n) as u64));
            group.bench_function(format!("bwd/{name}/f32/r{rows}_k{k}_n{n}"), |b| {
                b.iter(|| {
                    let mut ws = buffer.workspace(linear_bwd_workspace::<f32>(problem, par));
                    let args = LinearBwd {
                        x: black_box(x),
                        weight,
                        grad_out: View::new(&grad_out, [rows, n]),
                        grad_x: Some(ViewMut::new(&mut grad_x, [rows, k])),
                        grad_weight: Some(ViewMut::new(&mut grad_weight, [n, k])),
                        grad_bias: None,
                    };
                    linear_bwd(args, par, &mut ws).unwrap();
                })
            });
        }
    }
}

criterion_group!(benches, linear);
criterion_main!(benches);

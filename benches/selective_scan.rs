//! The selective scan with everything on, forward and backward. Throughput is every input read once and every output written once.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use selective_scan::blelloch::Blelloch;
use selective_scan::buffer::Buffer;
use selective_scan::element::Input;
use selective_scan::naive::Naive;
use selective_scan::par::Par;
use selective_scan::selective::{CoefficientGrad, SelectiveBwd, SelectiveFwd, SelectiveGrads, SelectiveScan};
use selective_scan::view::{Host, View, ViewMut};

mod common;
use common::{Full, cpus};

fn forward<I: Input<Accum = f32>>(c: &mut Criterion, name: &str, engine: &impl SelectiveScan<Memory = Host>, problem: &Full<I>) {
    let mut group = c.benchmark_group("selective_scan_fwd");
    let mut out = problem.u.clone();
    let mut buffer = Buffer::new();
    group.throughput(Throughput::Bytes((4 * out.len() * size_of::<I>()) as u64));
    group.bench_function(format!("{name}/{}", problem.id()), |b| {
        b.iter(|| {
            let args = SelectiveFwd { inputs: black_box(problem.inputs()), out: ViewMut::new(&mut out, problem.dims), last_state: None };
            let sizes = args.check().unwrap();
            let mut ws = buffer.workspace(engine.selective_scan_fwd_workspace::<I, f32>(&sizes));
            engine.selective_scan_fwd(args, &mut ws).unwrap();
        });
    });
}

fn backward<I: Input<Accum = f32>>(c: &mut Criterion, name: &str, engine: &impl SelectiveScan<Memory = Host>, problem: &Full<I>)
where
    f32: selective_scan::element::Weight<Stored<I> = I>,
{
    let [batch, seqlen, dim] = problem.dims;
    let dstate = problem.dstate;
    let mut group = c.benchmark_group("selective_scan_bwd");
    let (mut u, mut delta, mut z) = (problem.u.clone(), problem.u.clone(), problem.u.clone());
    let (mut grad_b, mut grad_c) = (problem.b.clone(), problem.c.clone());
    let (mut a, mut d, mut bias) = (problem.a.clone(), problem.d.clone(), problem.bias.clone());
    let mut buffer = Buffer::new();
    group.throughput(Throughput::Bytes((7 * u.len() * size_of::<I>()) as u64));
    group.bench_function(format!("{name}/{}", problem.id()), |b| {
        b.iter(|| {
            let shared = [batch, seqlen, 1, dstate];
            let grads = SelectiveGrads {
                u: Some(ViewMut::new(&mut u, problem.dims)),
                delta: Some(ViewMut::new(&mut delta, problem.dims)),
                A: Some(ViewMut::new(&mut a, [dim, dstate])),
                B: Some(CoefficientGrad::Varying(ViewMut::new(&mut grad_b, shared))),
                C: Some(CoefficientGrad::Varying(ViewMut::new(&mut grad_c, shared))),
                D: Some(ViewMut::new(&mut d, [dim])),
                z: Some(ViewMut::new(&mut z, problem.dims)),
                delta_bias: Some(ViewMut::new(&mut bias, [dim])),
                initial_state: None,
            };
            let grad_out = View::new(&problem.z, problem.dims);
            let args = SelectiveBwd { inputs: black_box(problem.inputs()), grad_out, grad_last_state: None, grads };
            let sizes = args.check().unwrap();
            let mut ws = buffer.workspace(engine.selective_scan_bwd_workspace::<I, f32>(&sizes));
            engine.selective_scan_bwd(args, &mut ws).unwrap();
        });
    });
}

fn selective_scan(c: &mut Criterion) {
    let small = Full::<f32>::new(1, 128, 256, 16);
    let large = Full::<f32>::new(1, 2048, 1536, 16);
    let halves = Full::<bf16>::new(1, 2048, 1536, 16);
    forward(c, "naive", &Naive, &small);
    backward(c, "naive", &Naive, &small);
    forward(c, "blelloch", &Blelloch::with_par(Par::Seq), &small);
    backward(c, "blelloch", &Blelloch::with_par(Par::Seq), &small);
    for (name, engine) in cpus() {
        forward(c, &name, &engine, &small);
        backward(c, &name, &engine, &small);
        forward(c, &name, &engine, &large);
        backward(c, &name, &engine, &large);
        forward(c, &name, &engine, &halves);
    }
}

criterion_group!(benches, selective_scan);
criterion_main!(benches);

//! The decode step with everything on, states in f32. Throughput is the state read and written.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use selective_scan::buffer::Buffer;
use selective_scan::naive::Naive;
use selective_scan::selective::{Coefficient, SelectiveScan, SelectiveStep};
use selective_scan::view::{Host, View, ViewMut};

mod common;
use common::{Full, cpus};

fn step(c: &mut Criterion, name: &str, engine: &impl SelectiveScan<Memory = Host>, problem: &Full<f32>) {
    let [batch, _, dim] = problem.dims;
    let (dstate, rows) = (problem.dstate, [batch, dim]);
    let mut state = vec![0.0f32; batch * dim * dstate];
    let mut out = vec![0.0f32; batch * dim];
    let mut buffer = Buffer::new();
    let mut group = c.benchmark_group("selective_state_update");
    group.throughput(Throughput::Bytes(8 * state.len() as u64));
    group.bench_function(format!("{name}/{}", problem.id()), |b| {
        b.iter(|| {
            let full = black_box(problem.inputs());
            let args = SelectiveStep {
                u: View::new(&problem.u, rows),
                delta: View::new(&problem.delta, rows),
                A: full.A,
                B: Coefficient::Varying(View::new(&problem.b, [batch, 1, dstate])),
                C: Coefficient::Varying(View::new(&problem.c, [batch, 1, dstate])),
                D: full.D,
                z: Some(View::new(&problem.z, rows)),
                delta_bias: full.delta_bias,
                state: ViewMut::new(&mut state, [batch, dim, dstate]),
                slots: None,
                out: ViewMut::new(&mut out, rows),
                options: full.options,
            };
            let sizes = args.check().unwrap();
            let mut ws = buffer.workspace(engine.selective_state_update_workspace::<f32, f32>(&sizes));
            engine.selective_state_update(args, &mut ws).unwrap();
        });
    });
}

fn selective_state_update(c: &mut Criterion) {
    let (one, many) = (Full::<f32>::new(1, 1, 1536, 16), Full::<f32>::new(64, 1, 1536, 16));
    step(c, "naive", &Naive, &one);
    for (name, engine) in cpus() {
        step(c, &name, &engine, &one);
        step(c, &name, &engine, &many);
    }
}

criterion_group!(benches, selective_state_update);
criterion_main!(benches);

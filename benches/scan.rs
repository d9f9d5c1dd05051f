//! The affine recurrence of layer 1, forward. Throughput is a and b read and h written.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use selective_scan::blelloch::Blelloch;
use selective_scan::buffer::Buffer;
use selective_scan::naive::Naive;
use selective_scan::par::Par;
use selective_scan::scan::{Scan, ScanFwd, ScanProblem};
use selective_scan::view::{Host, View, ViewMut};

mod common;
use common::{cpus, numbers};

fn forward(c: &mut Criterion, name: &str, engine: &impl Scan<Memory = Host>, dims: [usize; 3]) {
    let [batch, seqlen, dim] = dims;
    let count = batch * seqlen * dim;
    let (a, b) = (numbers::<f32>(count, 0.5, 1.0), numbers::<f32>(count, -1.0, 1.0));
    let mut h = vec![0.0f32; count];
    let mut buffer = Buffer::new();
    let mut group = c.benchmark_group("scan_fwd");
    group.throughput(Throughput::Bytes(12 * count as u64));
    group.bench_function(format!("{name}/f32/b{batch}_d{dim}_l{seqlen}"), |bench| {
        bench.iter(|| {
            let mut ws = buffer.workspace(engine.scan_fwd_workspace::<f32>(ScanProblem { batch, seqlen, dim }));
            let h = ViewMut::new(&mut h, dims);
            let (a, b) = (View::new(black_box(&a), dims), View::new(&b, dims));
            engine.scan_fwd(ScanFwd { a, b, initial_state: None, h, last_state: None, reverse: false }, &mut ws).unwrap();
        });
    });
}

fn scan(c: &mut Criterion) {
    for dims in [[1, 1 << 20, 1], [8, 2048, 512], [1, 1 << 16, 64]] {
        forward(c, "naive", &Naive, dims);
        forward(c, "blelloch", &Blelloch::with_par(Par::Seq), dims);
        forward(c, "blelloch_threads", &Blelloch::new(), dims);
        for (name, engine) in cpus() {
            forward(c, &name, &engine, dims);
        }
    }
}

criterion_group!(benches, scan);
criterion_main!(benches);

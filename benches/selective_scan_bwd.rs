//! The selective scan, backward, with every option, on one thread and on all: `cargo bench --bench selective_scan_bwd`.

use criterion::{Criterion, criterion_group, criterion_main};

mod selective;

fn bench(c: &mut Criterion) {
    selective::bench(c, "selective_scan_bwd", true);
}

criterion_group!(benches, bench);
criterion_main!(benches);

//! What this machine allows one core: multiply-adds in each instruction set, exponentials, and reads from memory.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use selective_scan::arch::Kernels;
use selective_scan::arch::generic::exp::exp2;
use selective_scan::arch::generic::vector::{Op, Vector};
use selective_scan::element::Weight;

/// Independent chains, enough to hide the latency of two pipes.
const CHAINS: usize = 12;
/// Steps of each chain in one call.
const STEPS: usize = 4096;

/// x ← x·m + c.
struct MultiplyAdd(f32, f32);

impl Op<f32> for MultiplyAdd {
    type Out = f32;
    #[inline(always)]
    fn run<V: Vector<Real = f32>>(self, zero: V) -> f32 {
        let (m, c) = (zero.splat(self.0), zero.splat(self.1));
        let mut x = [zero; CHAINS];
        for _ in 0..STEPS {
            for x in &mut x {
                *x = x.mul_add(m, c);
            }
        }
        total(zero, &x)
    }
}

/// x ← 2^(x·m).
struct Exponential(f32);

impl Op<f32> for Exponential {
    type Out = f32;
    #[inline(always)]
    fn run<V: Vector<Real = f32>>(self, zero: V) -> f32 {
        let m = zero.splat(self.0);
        let mut x = [zero; CHAINS];
        for _ in 0..STEPS {
            for x in &mut x {
                *x = exp2(*x * m);
            }
        }
        total(zero, &x)
    }
}

#[inline(always)]
fn total<V: Vector<Real = f32>>(zero: V, x: &[V]) -> f32 {
    let mut sum = zero.splat(f32::ZERO);
    for x in x {
        sum = sum + *x;
    }
    sum.sum()
}

fn arithmetic(c: &mut Criterion) {
    for k in Kernels::available() {
        let count = (CHAINS * STEPS * k.lanes::<f32>()) as u64;
        let mut group = c.benchmark_group("ceilings");
        group.throughput(Throughput::Elements(count));
        group.bench_function(format!("multiply_add/{}", k.isa().name()), |b| {
            b.iter(|| k.run(MultiplyAdd(black_box(0.5), black_box(1.0))));
        });
        group.bench_function(format!("exp2/{}", k.isa().name()), |b| b.iter(|| k.run(Exponential(black_box(-0.5)))));
    }
}

/// Reads of a buffer that no cache holds.
fn memory(c: &mut Criterion) {
    let data = vec![1u64; 32 << 20];
    let mut group = c.benchmark_group("ceilings");
    group.throughput(Throughput::Bytes(8 * data.len() as u64));
    group.bench_function("read/256MiB", |b| {
        b.iter(|| black_box(&data).chunks_exact(64).fold([0u64; 64], |sum, chunk| std::array::from_fn(|i| sum[i] ^ chunk[i])));
    });
}

criterion_group!(benches, arithmetic, memory);
criterion_main!(benches);

//! What this machine allows: multiply-adds, exponentials and reads of the host, and what a GPU does; measured right beside what is compared with it.

use std::hint::black_box;
use std::time::Instant;

use selective_scan::arch::Kernels;
use selective_scan::arch::generic::exp::exp2;
use selective_scan::arch::generic::vector::{Op, Vector, rows};
use selective_scan::buffer::Buffer;
#[cfg(feature = "cuda")]
use selective_scan::cuda::Ceilings;
#[cfg(feature = "cuda")]
use selective_scan::element::Dtype;

use super::line::Line;
#[cfg(feature = "cuda")]
use super::operator::Family;
use super::operator::Work;

/// Independent chains, enough to hide the latency of two pipes.
const CHAINS: usize = 12;
/// Steps of each chain in one call.
const STEPS: usize = 4096;
/// Timings that a median is taken of, and how long each is at least.
const TIMINGS: usize = 5;
const SAMPLE: f64 = 4e-3;
/// The largest buffer that is read.
pub const FAR: usize = 256 << 20;

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

/// Every number once, in order.
struct Read<'a>(&'a [f32]);

impl Op<f32> for Read<'_> {
    type Out = f32;
    #[inline(always)]
    fn run<V: Vector<Real = f32>>(self, zero: V) -> f32 {
        let mut sums = [zero; 8];
        for some in rows(zero, self.0, self.0.len() / V::LANES).chunks_exact(8) {
            for i in 0..8 {
                sums[i] = sums[i] + some[i];
            }
        }
        total(zero, &sums)
    }
}

#[inline(always)]
fn total<V: Vector<Real = f32>>(zero: V, x: &[V]) -> f32 {
    let mut sum = zero.splat(0.0);
    for x in x {
        sum = sum + *x;
    }
    sum.sum()
}

/// How many times a second `work` runs, a median.
fn rate(mut work: impl FnMut()) -> f64 {
    work();
    let mut all = [0.0; TIMINGS];
    for place in &mut all {
        let (start, mut calls) = (Instant::now(), 0);
        while start.elapsed().as_secs_f64() < SAMPLE {
            work();
            calls += 1;
        }
        *place = f64::from(calls) / start.elapsed().as_secs_f64();
    }
    all.sort_by(f64::total_cmp);
    all[TIMINGS / 2]
}

/// The sum over threads that run at once, each of what `work` says of itself.
fn together(threads: usize, work: impl Fn() -> f64 + Sync) -> f64 {
    std::thread::scope(|scope| {
        let all: Vec<_> = (1..threads).map(|_| scope.spawn(&work)).collect();
        work() + all.into_iter().map(|t| t.join().expect("a measurement does not panic")).sum::<f64>()
    })
}

/// Lanes of f32 a second through multiply-adds.
pub fn multiply_adds(k: Kernels, threads: usize) -> f64 {
    let count = (CHAINS * STEPS * k.lanes::<f32>()) as f64;
    together(threads, || count * rate(|| _ = black_box(k.run(MultiplyAdd(black_box(0.5), black_box(1.0))))))
}

/// Lanes of f32 a second through exp2.
pub fn exponentials(k: Kernels, threads: usize) -> f64 {
    let count = (CHAINS * STEPS * k.lanes::<f32>()) as f64;
    together(threads, || count * rate(|| _ = black_box(k.run(Exponential(black_box(-0.5))))))
}

/// Bytes a second that threads read together, again and again, of so many bytes (of `FAR` where they are more).
pub fn read(k: Kernels, threads: usize, bytes: usize) -> f64 {
    let each = (bytes.min(FAR) / threads / 512).max(8) * 128;
    together(threads, || {
        let mut buffer = Buffer::new();
        let mut ws = buffer.workspace(4 * each + 64);
        let data: &[f32] = ws.slice(each).expect("it was asked for");
        4.0 * each as f64 * rate(|| _ = black_box(k.run(Read(black_box(data)))))
    })
}

/// The least time of some work, and what sets it.
#[derive(Debug, Clone, Copy)]
pub struct Floor {
    pub seconds: f64,
    pub limit: &'static str,
}

fn largest(parts: &[(f64, &'static str)]) -> Floor {
    let most = parts.iter().copied().max_by(|a, b| a.0.total_cmp(&b.0)).expect("there is one");
    Floor { seconds: most.0, limit: most.1 }
}

/// The floor on the host: multiply-adds, and operands read as fast as a buffer of their size is.
pub fn host_floor(work: &Work, k: Kernels, threads: usize) -> Floor {
    let (adds, reads) = (work.multiply_adds / multiply_adds(k, threads), work.bytes / read(k, threads, work.bytes as usize));
    largest(&[(adds, "FMA"), (reads, "read")])
}

/// The floor on a GPU: memory, special functions, floating-point instructions.
#[cfg(feature = "cuda")]
pub fn gpu_floor<F: Family>(work: &Work, ceilings: &Ceilings) -> Floor {
    // 16-bit products run in units whose rate is not measured.
    let tensor = F::PRODUCT && matches!(F::INPUT, Dtype::F16 | Dtype::Bf16);
    let fp32 = if tensor { 0.0 } else { work.fp32 / ceilings.fma };
    largest(&[(work.bytes / ceilings.copy, "HBM"), (work.exponentials / ceilings.ex2, "MUFU"), (fp32, "FP32")])
}

/// A ceiling as a line of its own.
fn line(op: &str, engine: &str, isa: &str, shape: String, threads: usize, [elements, bytes]: [f64; 2]) -> Line {
    let all = elements.max(bytes / 4.0);
    Line {
        op: format!("ceiling_{op}"),
        engine: engine.into(),
        isa: isa.into(),
        input: "f32".into(),
        weight: "f32".into(),
        shape,
        threads,
        seconds: 1.0,
        elements: all,
        bytes,
        ceiling: all,
        limit: "own",
        deviation: None,
    }
}

/// Every ceiling of the host in one instruction set.
pub fn host_lines(k: Kernels, threads: usize) -> Vec<Line> {
    let isa = k.isa().name();
    let mut all = vec![
        line("fma", "cpu", isa, "registers".into(), threads, [multiply_adds(k, threads), 0.0]),
        line("exp2", "cpu", isa, "registers".into(), threads, [exponentials(k, threads), 0.0]),
    ];
    for (name, bytes) in [("16KiB", 16 << 10), ("256KiB", 256 << 10), ("4MiB", 4 << 20), ("256MiB", FAR)] {
        all.push(line("read", "cpu", isa, name.into(), threads, [0.0, read(k, threads, bytes * if bytes < FAR { threads } else { 1 })]));
    }
    all
}

/// Every ceiling of a GPU.
#[cfg(feature = "cuda")]
pub fn gpu_lines(ceilings: &Ceilings, isa: &str) -> Vec<Line> {
    vec![
        line("copy", "cuda", isa, "256MiB".into(), 1, [0.0, ceilings.copy]),
        line("ex2", "cuda", isa, "registers".into(), 1, [ceilings.ex2, 0.0]),
        line("fma", "cuda", isa, "registers".into(), 1, [ceilings.fma, 0.0]),
    ]
}

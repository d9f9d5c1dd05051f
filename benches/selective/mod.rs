//! Problems and loops that the benches of the selective scan share.

use criterion::{Criterion, Throughput};
use half::bf16;
use selective_scan::arch::Isa;
use selective_scan::buffer::Buffer;
use selective_scan::cpu::Cpu;
use selective_scan::element::{Dtype, Input, Real, Weight};
use selective_scan::par::Par;
use selective_scan::selective::{
    Coefficient, CoefficientGrad, SelectiveBwd, SelectiveFwd, SelectiveGrads, SelectiveInputs, SelectiveOptions, SelectiveScan,
};
use selective_scan::sequences::Sequences;
use selective_scan::view::{View, ViewMut};

/// Batch, length, channels, states.
const SIZES: [[usize; 4]; 2] = [[1, 2048, 1536, 16], [1, 2048, 5120, 16]];

/// Numbers from `low` to `high`, always the same.
fn numbers<I: Input>(count: usize, low: f64, high: f64) -> Vec<I> {
    let mut x = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        low + (high - low) * (x >> 11) as f64 / (1u64 << 53) as f64
    };
    (0..count).map(|_| I::store(I::Accum::from_f64(next()))).collect()
}

/// Every operand of one problem.
struct Problem<I: Input> {
    size: [usize; 4],
    u: Vec<I>,
    delta: Vec<I>,
    z: Vec<I>,
    b: Vec<I>,
    c: Vec<I>,
    a: Vec<I::Accum>,
    d: Vec<I::Accum>,
    bias: Vec<I::Accum>,
}

impl<I: Input> Problem<I>
where
    I::Accum: Weight<Stored<I> = I>,
{
    fn new(size: [usize; 4]) -> Self {
        let [batch, seqlen, dim, dstate] = size;
        let (bld, bln) = (batch * seqlen * dim, batch * seqlen * dstate);
        Problem {
            size,
            u: numbers(bld, -1.0, 1.0),
            delta: numbers(bld, -4.0, 0.0),
            z: numbers(bld, -2.0, 2.0),
            b: numbers(bln, -1.0, 1.0),
            c: numbers(bln, -1.0, 1.0),
            a: numbers(dim * dstate, -8.0, -0.5),
            d: numbers(dim, -1.0, 1.0),
            bias: numbers(dim, -1.0, 0.0),
        }
    }

    fn inputs(&self, order: Order) -> SelectiveInputs<'_, I, I::Accum> {
        let [batch, seqlen, dim, dstate] = self.size;
        SelectiveInputs {
            u: order.view(&self.u, self.size),
            delta: order.view(&self.delta, self.size),
            A: View::new(&self.a, [dim, dstate]),
            B: Coefficient::Varying(View::new(&self.b, [batch, seqlen, 1, dstate])),
            C: Coefficient::Varying(View::new(&self.c, [batch, seqlen, 1, dstate])),
            D: Some(View::new(&self.d, [dim])),
            z: Some(order.view(&self.z, self.size)),
            delta_bias: Some(View::new(&self.bias, [dim])),
            initial_state: None,
            sequences: Sequences::Rows,
            options: SelectiveOptions { delta_softplus: true, ..Default::default() },
        }
    }
}

/// Memory order of (B, L, D) tensors.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Order {
    Bld,
    Bdl,
}

impl Order {
    fn view<T: Copy>(self, data: &[T], [batch, seqlen, dim, _]: [usize; 4]) -> View<'_, T, 3> {
        match self {
            Order::Bld => View::new(data, [batch, seqlen, dim]),
            Order::Bdl => View::new(data, [batch, dim, seqlen]).permute([0, 2, 1]),
        }
    }

    fn view_mut<T: Copy>(self, data: &mut [T], [batch, seqlen, dim, _]: [usize; 4]) -> ViewMut<'_, T, 3> {
        match self {
            Order::Bld => ViewMut::new(data, [batch, seqlen, dim]),
            Order::Bdl => ViewMut::new(data, [batch, dim, seqlen]).permute([0, 2, 1]),
        }
    }
}

/// One call, forward or backward, ready to be repeated.
fn repeat<I: Input>(cpu: Cpu, problem: &Problem<I>, order: Order, backward: bool, bencher: &mut criterion::Bencher<'_>)
where
    I::Accum: Weight<Stored<I> = I>,
{
    let inputs = problem.inputs(order);
    let sizes = inputs.check().expect("the operands fit");
    let mut buffer = Buffer::new();
    let zeros = || vec![I::default(); problem.u.len()];
    if !backward {
        let mut ws = buffer.workspace(cpu.selective_scan_fwd_workspace::<I, I::Accum>(&sizes));
        let mut out = zeros();
        bencher.iter(|| {
            let args = SelectiveFwd { inputs, out: order.view_mut(&mut out, problem.size), last_state: None };
            cpu.selective_scan_fwd(args, &mut ws).expect("it runs");
        });
        return;
    }
    let [batch, seqlen, dim, dstate] = problem.size;
    let mut ws = buffer.workspace(cpu.selective_scan_bwd_workspace::<I, I::Accum>(&sizes));
    let (mut u, mut delta, mut z) = (zeros(), zeros(), zeros());
    let (mut a, mut d, mut bias) = (problem.a.clone(), problem.d.clone(), problem.bias.clone());
    let (mut b, mut c) = (problem.b.clone(), problem.c.clone());
    bencher.iter(|| {
        let grads = SelectiveGrads {
            u: Some(order.view_mut(&mut u, problem.size)),
            delta: Some(order.view_mut(&mut delta, problem.size)),
            A: Some(ViewMut::new(&mut a, [dim, dstate])),
            B: Some(CoefficientGrad::Varying(ViewMut::new(&mut b, [batch, seqlen, 1, dstate]))),
            C: Some(CoefficientGrad::Varying(ViewMut::new(&mut c, [batch, seqlen, 1, dstate]))),
            D: Some(ViewMut::new(&mut d, [dim])),
            z: Some(order.view_mut(&mut z, problem.size)),
            delta_bias: Some(ViewMut::new(&mut bias, [dim])),
            initial_state: None,
        };
        let args = SelectiveBwd { inputs, grad_out: order.view(&problem.u, problem.size), grad_last_state: None, grads };
        cpu.selective_scan_bwd(args, &mut ws).expect("it runs");
    });
}

fn storage<I: Input>(c: &mut Criterion, op: &str, backward: bool)
where
    I::Accum: Weight<Stored<I> = I>,
{
    for size in SIZES {
        let problem = Problem::<I>::new(size);
        let [batch, seqlen, dim, dstate] = size;
        let (input, weight) = (I::DTYPE.name(), <I::Accum as selective_scan::element::Element>::DTYPE.name());
        for isa in Isa::available() {
            for (par, threads) in [(Par::Seq, "1t"), (Par::default(), "all")] {
                for order in [Order::Bld, Order::Bdl] {
                    if (I::DTYPE != Dtype::F32 || dim != SIZES[0][2] || threads == "all") && order == Order::Bdl {
                        continue;
                    }
                    let cpu = Cpu::new().with_isa(isa).expect("it is available").with_par(par);
                    let layout = if order == Order::Bld { "" } else { "_bdl" };
                    let id = format!("cpu-{}-{threads}/{input}_{weight}/b{batch}_d{dim}_l{seqlen}_n{dstate}{layout}", isa.name());
                    let mut group = c.benchmark_group(op);
                    group.sample_size(10).throughput(Throughput::Elements((batch * seqlen * dim * dstate) as u64));
                    group.bench_function(id, |bencher| repeat(cpu, &problem, order, backward, bencher));
                    group.finish();
                }
            }
        }
    }
}

/// Every size, storage type, instruction set and number of threads.
pub fn bench(c: &mut Criterion, op: &str, backward: bool) {
    storage::<f32>(c, op, backward);
    storage::<bf16>(c, op, backward);
}

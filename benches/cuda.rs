//! Operators on the GPU by CUDA events: medians over sets of operands that take turns and are larger than the caches, each checked once
//! against the CPU engine at a small size. `cargo bench --features cuda --bench cuda -- FILTER` times the cases whose id has FILTER in it.
#![allow(non_snake_case)]

use bytemuck::Pod;
use half::bf16;
use selective_scan::cpu::Cpu;
use selective_scan::cuda::Cuda;
use selective_scan::element::{Element, Input, Real, Weight};
use selective_scan::error::Error;
use selective_scan::layers::conv1d::{ConvBwd, ConvFwd, ConvGrads, ConvInputs};
use selective_scan::scan::{ScanBwd, ScanFwd};
use selective_scan::selective::{
    Coefficient, CoefficientGrad, SelectiveBwd, SelectiveFwd, SelectiveGrads, SelectiveInputs, SelectiveOptions, SelectiveStep,
};
use selective_scan::sequences::Sequences;

#[path = "common/cuda.rs"]
mod common;
use common::{Engine, Here, Operator, Place, Sizes, case, numbers};

/// `count` numbers in [low, high] that look random, the same for every type.
fn data<T: Element>(count: usize, low: f64, high: f64, seed: u64) -> Vec<T> {
    type R<T> = <<T as Element>::Arith as Weight>::Real;
    let mut state = 0x2545_f491_4f6c_dd1d ^ (seed << 32 | 1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        T::store(T::Arith::from_real(R::<T>::from_f64(low + (high - low) * ((state >> 40) as f64 / (1u64 << 24) as f64))))
    };
    let some: Vec<T> = (0..count.min(999_983)).map(|_| next()).collect();
    some.iter().cycle().take(count).copied().collect()
}

/// Zeros.
fn zeros<P: Place, T: Pod>(place: &P, count: usize) -> Result<P::Array<T>, Error> {
    place.array(bytemuck::zeroed_vec(count))
}

/// The selective scan with everything on, at the published initialisation.
struct Selective<P: Place, I: Input<Accum = f32>> {
    sizes: Sizes,
    u: P::Array<I>,
    delta: P::Array<I>,
    b: P::Array<I>,
    c: P::Array<I>,
    z: P::Array<I>,
    a: P::Array<f32>,
    d: P::Array<f32>,
    bias: P::Array<f32>,
}

impl<P: Place, I: Input<Accum = f32>> Selective<P, I>
where
    f32: Weight<Stored<I> = I>,
{
    fn new(place: &P, sizes: Sizes) -> Result<Self, Error> {
        let (count, shared, dim, n) = (sizes.count(), sizes.batch * sizes.seqlen * sizes.extra, sizes.dim, sizes.extra);
        Ok(Selective {
            sizes,
            u: place.array(data(count, -1.0, 1.0, 1))?,
            delta: place.array(data(count, -0.5, 0.5, 2))?,
            b: place.array(data(shared, -1.0, 1.0, 3))?,
            c: place.array(data(shared, -1.0, 1.0, 4))?,
            z: place.array(data(count, -2.0, 2.0, 5))?,
            a: place.array((0..dim * n).map(|i| -((i % n + 1) as f32)).collect())?,
            d: place.array(vec![1.0; dim])?,
            bias: place.array(data(dim, -6.9, -2.25, 6))?,
        })
    }

    fn inputs(&self) -> SelectiveInputs<'_, I, f32, P::Memory> {
        let Sizes { batch, seqlen, dim, extra, time_contiguous, .. } = self.sizes;
        let tensor = |of| self.sizes.view::<P, I>(of);
        let coefficient = |of| {
            if time_contiguous {
                P::view::<I, 4>(of, [batch, 1, extra, seqlen]).permute([0, 3, 1, 2])
            } else {
                P::view::<I, 4>(of, [batch, seqlen, 1, extra])
            }
        };
        SelectiveInputs {
            u: tensor(&self.u),
            delta: tensor(&self.delta),
            A: P::view(&self.a, [dim, extra]),
            B: Coefficient::Varying(coefficient(&self.b)),
            C: Coefficient::Varying(coefficient(&self.c)),
            D: Some(P::view(&self.d, [dim])),
            z: Some(tensor(&self.z)),
            delta_bias: Some(P::view(&self.bias, [dim])),
            initial_state: None,
            sequences: Sequences::Rows,
            options: SelectiveOptions { delta_softplus: true, ..SelectiveOptions::default() },
        }
    }

    /// u, Δ, z, B, C once; weights are nothing beside them.
    fn bytes(sizes: Sizes) -> usize {
        (3 * sizes.count() + 2 * sizes.batch * sizes.seqlen * sizes.extra) * size_of::<I>()
    }
}

struct Forward<P: Place, I: Input<Accum = f32>> {
    of: Selective<P, I>,
    out: P::Array<I>,
}

impl<P: Place, I: Input<Accum = f32>> Operator<P> for Forward<P, I>
where
    f32: Weight<Stored<I> = I>,
{
    fn new(place: &P, sizes: Sizes) -> Result<Self, Error> {
        Ok(Forward { of: Selective::new(place, sizes)?, out: zeros(place, sizes.count())? })
    }

    fn call(&mut self, place: &P, engine: &impl Engine<P::Memory>, scratch: &mut P::Scratch) -> Result<(), Error> {
        let out = self.of.sizes.view_mut::<P, I>(&mut self.out);
        let args = SelectiveFwd { inputs: self.of.inputs(), out, last_state: None };
        let bytes = engine.selective_scan_fwd_workspace::<I, f32>(&args.check()?);
        engine.selective_scan_fwd(args, &mut place.workspace(scratch, bytes)?)
    }

    fn results(&self) -> Result<Vec<Vec<f64>>, Error> {
        Ok(vec![numbers::<P, I>(&self.out)?])
    }

    fn bytes(sizes: Sizes) -> usize {
        Selective::<P, I>::bytes(sizes) + sizes.count() * size_of::<I>()
    }
}

/// The adjoint; FROM: from what a forward call of the same operands has saved.
struct Backward<P: Place, I: Input<Accum = f32>, const FROM: bool> {
    of: Selective<P, I>,
    grad_out: P::Array<I>,
    u: P::Array<I>,
    delta: P::Array<I>,
    z: P::Array<I>,
    b: P::Array<I>,
    c: P::Array<I>,
    a: P::Array<f32>,
    d: P::Array<f32>,
    bias: P::Array<f32>,
    saved: Option<P::Array<u8>>,
}

impl<P: Place, I: Input<Accum = f32>, const FROM: bool> Operator<P> for Backward<P, I, FROM>
where
    f32: Weight<Stored<I> = I>,
{
    fn new(place: &P, sizes: Sizes) -> Result<Self, Error> {
        let (count, shared) = (sizes.count(), sizes.batch * sizes.seqlen * sizes.extra);
        Ok(Backward {
            of: Selective::new(place, sizes)?,
            grad_out: place.array(data(count, -1.0, 1.0, 7))?,
            u: zeros(place, count)?,
            delta: zeros(place, count)?,
            z: zeros(place, count)?,
            b: zeros(place, shared)?,
            c: zeros(place, shared)?,
            a: zeros(place, sizes.dim * sizes.extra)?,
            d: zeros(place, sizes.dim)?,
            bias: zeros(place, sizes.dim)?,
            saved: None,
        })
    }

    fn call(&mut self, place: &P, engine: &impl Engine<P::Memory>, scratch: &mut P::Scratch) -> Result<(), Error> {
        let sizes @ Sizes { batch, seqlen, dim, extra, .. } = self.of.sizes;
        if FROM && self.saved.is_none() {
            let inputs = self.of.inputs();
            let mut out = zeros::<P, I>(place, sizes.count())?;
            let args = SelectiveFwd { inputs, out: sizes.view_mut::<P, I>(&mut out), last_state: None };
            let problem = args.check()?;
            let count = engine.selective_scan_saved_bytes::<I, f32>(&problem);
            let mut saved = zeros::<P, u8>(place, count)?;
            let bytes = engine.selective_scan_fwd_saving_workspace::<I, f32>(&problem);
            engine.selective_scan_fwd_saving(args, P::view_mut(&mut saved, [count]), &mut place.workspace(scratch, bytes)?)?;
            self.saved = Some(saved);
        }
        let shared = [batch, seqlen, 1, extra];
        let grads = SelectiveGrads {
            u: Some(sizes.view_mut::<P, I>(&mut self.u)),
            delta: Some(sizes.view_mut::<P, I>(&mut self.delta)),
            A: Some(P::view_mut(&mut self.a, [dim, extra])),
            B: Some(CoefficientGrad::Varying(P::view_mut(&mut self.b, shared))),
            C: Some(CoefficientGrad::Varying(P::view_mut(&mut self.c, shared))),
            D: Some(P::view_mut(&mut self.d, [dim])),
            z: Some(sizes.view_mut::<P, I>(&mut self.z)),
            delta_bias: Some(P::view_mut(&mut self.bias, [dim])),
            initial_state: None,
        };
        let args = SelectiveBwd { inputs: self.of.inputs(), grad_out: sizes.view::<P, I>(&self.grad_out), grad_last_state: None, grads };
        let bytes = engine.selective_scan_bwd_workspace::<I, f32>(&args.check()?);
        let mut ws = place.workspace(scratch, bytes)?;
        match &self.saved {
            Some(saved) => {
                let count = engine.selective_scan_saved_bytes::<I, f32>(&args.check()?);
                engine.selective_scan_bwd_from(args, P::view(saved, [count]), &mut ws)
            }
            None => engine.selective_scan_bwd(args, &mut ws),
        }
    }

    fn results(&self) -> Result<Vec<Vec<f64>>, Error> {
        let tensors = [&self.u, &self.delta, &self.z, &self.b, &self.c].map(|t| numbers::<P, I>(t));
        tensors.into_iter().chain([&self.a, &self.d, &self.bias].map(|t| numbers::<P, f32>(t))).collect()
    }

    fn bytes(sizes: Sizes) -> usize {
        2 * Selective::<P, I>::bytes(sizes) + sizes.count() * size_of::<I>()
    }
}

/// A decode step with the state stored as S.
struct Step<P: Place, S: Element<Arith = f32>> {
    of: Selective<P, bf16>,
    state: P::Array<S>,
    out: P::Array<bf16>,
}

impl<P: Place, S: Element<Arith = f32>> Operator<P> for Step<P, S> {
    fn new(place: &P, sizes: Sizes) -> Result<Self, Error> {
        let states = data(sizes.count() * sizes.extra, -1.0, 1.0, 8);
        Ok(Step { of: Selective::new(place, sizes)?, state: place.array(states)?, out: zeros(place, sizes.count())? })
    }

    fn call(&mut self, place: &P, engine: &impl Engine<P::Memory>, scratch: &mut P::Scratch) -> Result<(), Error> {
        let Sizes { batch, dim, extra, .. } = self.of.sizes;
        let (rows, shared) = ([batch, dim], [batch, 1, extra]);
        let args = SelectiveStep {
            u: P::view(&self.of.u, rows),
            delta: P::view(&self.of.delta, rows),
            A: P::view(&self.of.a, [dim, extra]),
            B: Coefficient::Varying(P::view(&self.of.b, shared)),
            C: Coefficient::Varying(P::view(&self.of.c, shared)),
            D: Some(P::view(&self.of.d, [dim])),
            z: Some(P::view(&self.of.z, rows)),
            delta_bias: Some(P::view(&self.of.bias, [dim])),
            state: P::view_mut(&mut self.state, [batch, dim, extra]),
            slots: None,
            out: P::view_mut(&mut self.out, rows),
            options: SelectiveOptions { delta_softplus: true, ..SelectiveOptions::default() },
        };
        let bytes = engine.selective_state_update_workspace::<bf16, f32>(&args.check()?);
        engine.selective_state_update(args, &mut place.workspace(scratch, bytes)?)
    }

    fn results(&self) -> Result<Vec<Vec<f64>>, Error> {
        Ok(vec![numbers::<P, bf16>(&self.out)?, numbers::<P, S>(&self.state)?])
    }

    fn bytes(sizes: Sizes) -> usize {
        Forward::<P, bf16>::bytes(sizes) + 2 * sizes.count() * sizes.extra * size_of::<S>()
    }
}

/// The convolution with bias and SiLU, forward or with its adjoint alone.
struct Conv<P: Place, I: Input<Accum = f32>, const BACKWARD: bool> {
    sizes: Sizes,
    x: P::Array<I>,
    weight: P::Array<f32>,
    bias: P::Array<f32>,
    grad_out: P::Array<I>,
    out: P::Array<I>,
    grad_weight: P::Array<f32>,
    grad_bias: P::Array<f32>,
}

impl<P: Place, I: Input<Accum = f32>, const BACKWARD: bool> Operator<P> for Conv<P, I, BACKWARD> {
    fn new(place: &P, sizes: Sizes) -> Result<Self, Error> {
        let (count, taps) = (sizes.count(), sizes.dim * sizes.extra);
        Ok(Conv {
            sizes,
            x: place.array(data(count, -1.0, 1.0, 1))?,
            weight: place.array(data(taps, -0.5, 0.5, 2))?,
            bias: place.array(data(sizes.dim, -0.5, 0.5, 3))?,
            grad_out: place.array(data(if BACKWARD { count } else { 0 }, -1.0, 1.0, 4))?,
            out: zeros(place, count)?,
            grad_weight: zeros(place, taps)?,
            grad_bias: zeros(place, sizes.dim)?,
        })
    }

    fn call(&mut self, place: &P, engine: &impl Engine<P::Memory>, scratch: &mut P::Scratch) -> Result<(), Error> {
        let (sizes, taps) = (self.sizes, [self.sizes.dim, self.sizes.extra]);
        let inputs = ConvInputs {
            x: sizes.view::<P, I>(&self.x),
            weight: P::view(&self.weight, taps),
            bias: Some(P::view(&self.bias, [sizes.dim])),
            initial_window: None,
            sequences: Sequences::Rows,
            silu: true,
        };
        let out = sizes.view_mut::<P, I>(&mut self.out);
        if !BACKWARD {
            let args = ConvFwd { inputs, out, final_window: None };
            let bytes = engine.causal_conv1d_fwd_workspace::<I>(&args.check()?);
            return engine.causal_conv1d_fwd(args, &mut place.workspace(scratch, bytes)?);
        }
        let grads = ConvGrads {
            x: Some(out),
            weight: Some(P::view_mut(&mut self.grad_weight, taps)),
            bias: Some(P::view_mut(&mut self.grad_bias, [sizes.dim])),
            initial_window: None,
        };
        let args = ConvBwd { inputs, grad_out: sizes.view::<P, I>(&self.grad_out), grad_final_window: None, grads };
        let bytes = engine.causal_conv1d_bwd_workspace::<I>(&args.check()?);
        engine.causal_conv1d_bwd(args, &mut place.workspace(scratch, bytes)?)
    }

    fn results(&self) -> Result<Vec<Vec<f64>>, Error> {
        Ok(vec![numbers::<P, I>(&self.out)?, numbers::<P, f32>(&self.grad_weight)?, numbers::<P, f32>(&self.grad_bias)?])
    }

    fn bytes(sizes: Sizes) -> usize {
        (if BACKWARD { 3 } else { 2 }) * sizes.count() * size_of::<I>()
    }
}

/// The linear recurrence, forward or its adjoint.
struct Linear<P: Place, E: Element, const BACKWARD: bool> {
    sizes: Sizes,
    a: P::Array<E>,
    b: P::Array<E>,
    g: P::Array<E>,
    out: P::Array<E>,
    grad_a: P::Array<E>,
}

impl<P: Place, E: Element, const BACKWARD: bool> Operator<P> for Linear<P, E, BACKWARD> {
    fn new(place: &P, sizes: Sizes) -> Result<Self, Error> {
        let (count, more) = (sizes.count(), if BACKWARD { sizes.count() } else { 0 });
        Ok(Linear {
            sizes,
            a: place.array(data(count, 0.8, 1.0, 1))?,
            b: place.array(data(count, -1.0, 1.0, 2))?,
            g: place.array(data(more, -1.0, 1.0, 3))?,
            out: zeros(place, count)?,
            grad_a: zeros(place, more)?,
        })
    }

    fn call(&mut self, place: &P, engine: &impl Engine<P::Memory>, scratch: &mut P::Scratch) -> Result<(), Error> {
        let sizes = self.sizes;
        let (a, b, out) = (sizes.view::<P, E>(&self.a), sizes.view::<P, E>(&self.b), sizes.view_mut::<P, E>(&mut self.out));
        if !BACKWARD {
            let args = ScanFwd { a, b, initial_state: None, h: out, last_state: None, reverse: false };
            let bytes = engine.scan_fwd_workspace::<E>(args.check()?);
            return engine.scan_fwd(args, &mut place.workspace(scratch, bytes)?);
        }
        let args = ScanBwd {
            a,
            b,
            initial_state: None,
            grad_h: sizes.view::<P, E>(&self.g),
            grad_last_state: None,
            grad_a: Some(sizes.view_mut::<P, E>(&mut self.grad_a)),
            grad_b: Some(out),
            grad_initial_state: None,
            reverse: false,
        };
        let bytes = engine.scan_bwd_workspace::<E>(args.check()?);
        engine.scan_bwd(args, &mut place.workspace(scratch, bytes)?)
    }

    fn results(&self) -> Result<Vec<Vec<f64>>, Error> {
        Ok(vec![numbers::<P, E>(&self.out)?, numbers::<P, E>(&self.grad_a)?])
    }

    fn bytes(sizes: Sizes) -> usize {
        (if BACKWARD { 5 } else { 3 }) * sizes.count() * size_of::<E>()
    }
}

/// What two right results may differ by, of the largest number: a rounding of bf16 storage each, or f32 arithmetic in two orders.
const BF16: f64 = 1e-2;
const F32: f64 = 1e-4;

/// Times an operator.
macro_rules! time {
    ($at:expr, $op:ident <$arg:ty $(; $back:literal)?>, $id:expr, $bound:expr, $($sizes:expr),+ $(,)?) => {{
        let (gpu, cpu, filter) = $at;
        for sizes in [$($sizes),+] {
            case::<$op<Cuda, $arg $(, $back)?>, $op<Here, $arg $(, $back)?>>(gpu, cpu, filter, $id, $bound, sizes);
        }
    }};
}

fn main() {
    let filter = std::env::args().skip(1).find(|a| !a.starts_with('-')).unwrap_or_default();
    let gpu = match Cuda::new(0) {
        Ok(gpu) => gpu,
        Err(why) => return println!("nothing is timed: {why}"),
    };
    println!("{gpu:?}; the HBM floor is that of an H100, 2.95 TB/s");
    let at = (&gpu, &Cpu::new(), filter.as_str());
    let s = Sizes::new;
    let scans = [
        [8, 2048, 2048, 16],
        [8, 2048, 8192, 16],
        [1, 2048, 2048, 16],
        [1, 2048, 8192, 16],
        [1, 2048, 131_072, 16],
        [1, 1024, 2048, 16],
        [8, 768, 1300, 16],
        [8, 2048, 2048, 64],
    ];
    for sizes in scans {
        time!(at, Forward<bf16>, "selective_scan_fwd/cuda/bf16_f32", BF16, s(sizes), s(sizes).turned());
    }
    time!(at, Forward<f32>, "selective_scan_fwd/cuda/f32_f32", F32, s(scans[0]), s(scans[0]).turned());
    for sizes in [scans[0], scans[1], scans[3]] {
        time!(at, Backward<bf16; false>, "selective_scan_bwd/cuda/bf16_f32", BF16, s(sizes), s(sizes).turned());
        time!(at, Backward<bf16; true>, "selective_scan_bwd_from/cuda/bf16_f32", BF16, s(sizes), s(sizes).turned());
    }
    time!(at, Backward<f32; false>, "selective_scan_bwd/cuda/f32_f32", F32, s(scans[0]), s(scans[0]).turned());
    time!(at, Backward<f32; true>, "selective_scan_bwd_from/cuda/f32_f32", F32, s(scans[0]), s(scans[0]).turned());
    for dim in [2048, 5120] {
        time!(at, Step<f32>, "selective_state_update/cuda/bf16_f32_sf32", BF16, s([256, dim, 1, 16]));
        time!(at, Step<bf16>, "selective_state_update/cuda/bf16_f32_sbf16", BF16, s([256, dim, 1, 16]));
    }
    let conv = s([8, 2048, 2048, 4]);
    time!(at, Conv<bf16; false>, "causal_conv1d_fwd/cuda/bf16", BF16, conv, conv.turned());
    time!(at, Conv<bf16; true>, "causal_conv1d_bwd/cuda/bf16", BF16, conv, conv.turned());
    let (long, one) = (s([8, 1536, 8192, 1]), s([1, 1, 1 << 20, 1]));
    time!(at, Linear<f32; false>, "linear_scan_fwd/cuda/f32", F32, long, long.turned(), one.turned());
    time!(at, Linear<bf16; false>, "linear_scan_fwd/cuda/bf16", BF16, long, long.turned());
    time!(at, Linear<f32; true>, "linear_scan_bwd/cuda/f32", F32, long, long.turned());
    time!(at, Linear<bf16; true>, "linear_scan_bwd/cuda/bf16", BF16, long, long.turned());
}

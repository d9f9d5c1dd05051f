//! The block on an engine of another memory, which hands each call to the specification: it must reach tensors through its engine only.

use super::*;
use crate::block::{Engine, MemoryOf};
use crate::buffer::{Buffer, Workspace};
use crate::element::{Real, Weight};
use crate::error::Error;
use crate::layers::conv1d::{CausalConv1d, ConvBwd, ConvFwd, ConvGrads, ConvInputs, ConvStep};
use crate::layers::elementwise::Elementwise;
use crate::layers::linear::{Linear, LinearBwd, LinearFwd};
use crate::layers::norm::{NormBwd, NormFwd, RmsNorm};
use crate::naive::Naive;
use crate::scan::{Scan, ScanBwd, ScanFwd, ScanProblem};
use crate::selective::{
    Coefficient, CoefficientGrad, SelectiveBwd, SelectiveFwd, SelectiveGrads, SelectiveInputs, SelectiveScan, SelectiveStep,
};
use crate::view::Device;

type Scratch<'a, 'b> = &'a mut Workspace<'b, Device>;

/// The same tensor, said to lie in another memory; here all of them are this process's.
fn at<'a, T: Copy, const R: usize, A: Memory, B: Memory>(v: View<'a, T, R, A>) -> View<'a, T, R, B> {
    let (address, len) = v.buffer();
    View::at_address(address, len, v.offset(), v.dims(), v.strides())
}

fn at_mut<'a, T: Copy, const R: usize, A: Memory, B: Memory>(v: ViewMut<'a, T, R, A>) -> ViewMut<'a, T, R, B> {
    let ((address, len), offset) = (v.as_view().buffer(), v.as_view().offset());
    ViewMut::at_address(address, len, offset, v.dims(), v.strides())
}

fn rows(sequences: Sequences<'_, Device>) -> Sequences<'static> {
    assert!(matches!(sequences, Sequences::Rows));
    Sequences::Rows
}

/// Runs a call of the specification in a workspace of its own.
fn with<T>(bytes: usize, call: impl FnOnce(&mut Workspace<'_>) -> T) -> T {
    call(&mut Buffer::new().workspace(bytes))
}

fn conv<I: Input>(i: ConvInputs<'_, I, Device>) -> ConvInputs<'_, I> {
    let (bias, initial_window) = (i.bias.map(at), i.initial_window.map(at));
    ConvInputs { x: at(i.x), weight: at(i.weight), bias, initial_window, sequences: rows(i.sequences), silu: i.silu }
}

fn coefficient<I: Input, W: Weight<Real = I::Accum>, const R: usize>(c: Coefficient<'_, I, W, R, Device>) -> Coefficient<'_, I, W, R> {
    match c {
        Coefficient::Constant(v) => Coefficient::Constant(at(v)),
        Coefficient::Varying(v) => Coefficient::Varying(at(v)),
    }
}

fn gradient<I: Input, W: Weight<Real = I::Accum>>(c: CoefficientGrad<'_, I, W, Device>) -> CoefficientGrad<'_, I, W> {
    match c {
        CoefficientGrad::Constant(v) => CoefficientGrad::Constant(at_mut(v)),
        CoefficientGrad::Varying(v) => CoefficientGrad::Varying(at_mut(v)),
    }
}

fn selective<I: Input, W: Weight<Real = I::Accum>>(i: SelectiveInputs<'_, I, W, Device>) -> SelectiveInputs<'_, I, W> {
    SelectiveInputs {
        u: at(i.u),
        delta: at(i.delta),
        A: at(i.A),
        B: coefficient(i.B),
        C: coefficient(i.C),
        D: i.D.map(at),
        z: i.z.map(at),
        delta_bias: i.delta_bias.map(at),
        initial_state: i.initial_state.map(at),
        sequences: rows(i.sequences),
        options: i.options,
    }
}

/// An engine of the memory `Device`.
struct Mirror;

impl Scan for Mirror {
    type Memory = Device;
    fn scan_fwd_workspace<E: Element>(&self, _: ScanProblem) -> usize {
        0
    }
    fn scan_fwd<E: Element>(&self, _: ScanFwd<'_, E, Device>, _: Scratch<'_, '_>) -> Result<(), Error> {
        unreachable!("a block does not call layer 1")
    }
    fn scan_bwd_workspace<E: Element>(&self, _: ScanProblem) -> usize {
        0
    }
    fn scan_bwd<E: Element>(&self, _: ScanBwd<'_, E, Device>, _: Scratch<'_, '_>) -> Result<(), Error> {
        unreachable!("a block does not call layer 1")
    }
}

impl SelectiveScan for Mirror {
    fn selective_scan_fwd_workspace<I: Input, W: Weight<Real = I::Accum>>(&self, _: &SelectiveProblem) -> usize {
        0
    }
    fn selective_scan_fwd<I: Input, W: Weight<Real = I::Accum>>(
        &self,
        a: SelectiveFwd<'_, I, W, Device>,
        _: Scratch<'_, '_>,
    ) -> Result<(), Error> {
        let args = SelectiveFwd { inputs: selective(a.inputs), out: at_mut(a.out), last_state: a.last_state.map(at_mut) };
        with(Naive.selective_scan_fwd_workspace::<I, W>(&args.check()?), |ws| Naive.selective_scan_fwd(args, ws))
    }
    fn selective_scan_bwd_workspace<I: Input, W: Weight<Real = I::Accum>>(&self, _: &SelectiveProblem) -> usize {
        0
    }
    fn selective_scan_bwd<I: Input, W: Weight<Real = I::Accum>>(
        &self,
        a: SelectiveBwd<'_, I, W, Device>,
        _: Scratch<'_, '_>,
    ) -> Result<(), Error> {
        let grads = SelectiveGrads {
            u: a.grads.u.map(at_mut),
            delta: a.grads.delta.map(at_mut),
            A: a.grads.A.map(at_mut),
            B: a.grads.B.map(gradient),
            C: a.grads.C.map(gradient),
            D: a.grads.D.map(at_mut),
            z: a.grads.z.map(at_mut),
            delta_bias: a.grads.delta_bias.map(at_mut),
            initial_state: a.grads.initial_state.map(at_mut),
        };
        let (grad_out, grad_last_state) = (at(a.grad_out), a.grad_last_state.map(at));
        let args = SelectiveBwd { inputs: selective(a.inputs), grad_out, grad_last_state, grads };
        with(Naive.selective_scan_bwd_workspace::<I, W>(&args.check()?), |ws| Naive.selective_scan_bwd(args, ws))
    }
    fn selective_state_update_workspace<I: Input, W: Weight<Real = I::Accum>>(&self, _: &SelectiveProblem) -> usize {
        0
    }
    fn selective_state_update<I: Input, W: Weight<Real = I::Accum>, S: Element<Arith = W>>(
        &self,
        a: SelectiveStep<'_, I, W, S, Device>,
        _: Scratch<'_, '_>,
    ) -> Result<(), Error> {
        let args = SelectiveStep {
            u: at(a.u),
            delta: at(a.delta),
            A: at(a.A),
            B: coefficient(a.B),
            C: coefficient(a.C),
            D: a.D.map(at),
            z: a.z.map(at),
            delta_bias: a.delta_bias.map(at),
            state: at_mut(a.state),
            slots: a.slots.map(at),
            out: at_mut(a.out),
            options: a.options,
        };
        with(Naive.selective_state_update_workspace::<I, W>(&args.check()?), |ws| Naive.selective_state_update(args, ws))
    }
}

impl CausalConv1d for Mirror {
    type Memory = Device;
    fn causal_conv1d_fwd_workspace<I: Input>(&self, _: &ConvProblem) -> usize {
        0
    }
    fn causal_conv1d_fwd<I: Input>(&self, a: ConvFwd<'_, I, Device>, _: Scratch<'_, '_>) -> Result<(), Error> {
        let args = ConvFwd { inputs: conv(a.inputs), out: at_mut(a.out), final_window: a.final_window.map(at_mut) };
        with(Naive.causal_conv1d_fwd_workspace::<I>(&args.check()?), |ws| Naive.causal_conv1d_fwd(args, ws))
    }
    fn causal_conv1d_bwd_workspace<I: Input>(&self, _: &ConvProblem) -> usize {
        0
    }
    fn causal_conv1d_bwd<I: Input>(&self, a: ConvBwd<'_, I, Device>, _: Scratch<'_, '_>) -> Result<(), Error> {
        let grads = ConvGrads {
            x: a.grads.x.map(at_mut),
            weight: a.grads.weight.map(at_mut),
            bias: a.grads.bias.map(at_mut),
            initial_window: a.grads.initial_window.map(at_mut),
        };
        let (grad_out, grad_final_window) = (at(a.grad_out), a.grad_final_window.map(at));
        let args = ConvBwd { inputs: conv(a.inputs), grad_out, grad_final_window, grads };
        with(Naive.causal_conv1d_bwd_workspace::<I>(&args.check()?), |ws| Naive.causal_conv1d_bwd(args, ws))
    }
    fn causal_conv1d_update_workspace<I: Input>(&self, _: &ConvProblem) -> usize {
        0
    }
    fn causal_conv1d_update<I: Input>(&self, a: ConvStep<'_, I, Device>, _: Scratch<'_, '_>) -> Result<(), Error> {
        let (bias, slots) = (a.bias.map(at), a.slots.map(at));
        let (window, out) = (at_mut(a.window), at_mut(a.out));
        let args = ConvStep { x: at(a.x), weight: at(a.weight), bias, window, slots, out, silu: a.silu };
        with(Naive.causal_conv1d_update_workspace::<I>(&args.check()?), |ws| Naive.causal_conv1d_update(args, ws))
    }
}

impl RmsNorm for Mirror {
    type Memory = Device;
    fn rms_norm_fwd_workspace<I: Input>(&self, _: [usize; 2]) -> usize {
        0
    }
    fn rms_norm_fwd<I: Input, R: Input<Accum = I::Accum>>(&self, _: NormFwd<'_, I, R, Device>, _: Scratch<'_, '_>) -> Result<(), Error> {
        unreachable!("a block has no norm")
    }
    fn rms_norm_bwd_workspace<I: Input>(&self, _: [usize; 2]) -> usize {
        0
    }
    fn rms_norm_bwd<I: Input, R: Input<Accum = I::Accum>>(&self, _: NormBwd<'_, I, R, Device>, _: Scratch<'_, '_>) -> Result<(), Error> {
        unreachable!("a block has no norm")
    }
}

impl Linear for Mirror {
    type Memory = Device;
    fn linear_fwd_workspace<I: Input>(&self, _: LinearProblem) -> usize {
        0
    }
    fn linear_fwd<I: Input>(&self, a: LinearFwd<'_, I, Device>, _: Scratch<'_, '_>) -> Result<(), Error> {
        let args = LinearFwd { x: at(a.x), weight: at(a.weight), bias: a.bias.map(at), out: at_mut(a.out) };
        with(Naive.linear_fwd_workspace::<I>(args.check()?), |ws| Naive.linear_fwd(args, ws))
    }
    fn linear_bwd_workspace<I: Input>(&self, _: LinearProblem) -> usize {
        0
    }
    fn linear_bwd<I: Input>(&self, a: LinearBwd<'_, I, Device>, _: Scratch<'_, '_>) -> Result<(), Error> {
        let (grad_x, grad_weight, grad_bias) = (a.grad_x.map(at_mut), a.grad_weight.map(at_mut), a.grad_bias.map(at_mut));
        let args = LinearBwd { x: at(a.x), weight: at(a.weight), grad_out: at(a.grad_out), grad_x, grad_weight, grad_bias };
        with(Naive.linear_bwd_workspace::<I>(args.check()?), |ws| Naive.linear_bwd(args, ws))
    }
}

impl Elementwise for Mirror {
    type Memory = Device;
    fn copy<T: Element>(&self, from: View<'_, T, 3, Device>, to: ViewMut<'_, T, 3, Device>) -> Result<(), Error> {
        Naive.copy(at(from), at_mut(to))
    }
    fn zero<T: Element>(&self, to: ViewMut<'_, T, 3, Device>) -> Result<(), Error> {
        Naive.zero(at_mut(to))
    }
    fn add<I: Input>(&self, from: View<'_, I, 3, Device>, to: ViewMut<'_, I, 3, Device>) -> Result<(), Error> {
        Naive.add(at(from), at_mut(to))
    }
    fn decay<A: Real>(&self, a_log: View<'_, A, 2, Device>, a: ViewMut<'_, A, 2, Device>) -> Result<(), Error> {
        Naive.decay(at(a_log), at_mut(a))
    }
    fn scale<A: Real>(&self, by: View<'_, A, 2, Device>, to: ViewMut<'_, A, 2, Device>) -> Result<(), Error> {
        Naive.scale(at(by), at_mut(to))
    }
}

/// B, L, M, D, N, R, W.
const SIZES: [usize; 7] = [2, 5, 3, 4, 2, 1, 3];

/// Numbers between −1 and 1 that differ.
fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 37 + seed * 101) % 113) as f32 / 56.5 - 1.0).collect()
}

/// The parameters' numbers: in_proj, conv_weight, x_proj, dt_proj, dt_bias, A_log, D, out_proj.
fn weights() -> [Vec<f32>; 8] {
    let [_, _, m, d, n, r, w] = SIZES;
    let mut seed = 0;
    [2 * d * m, d * w, (r + 2 * n) * d, d * r, d, d * n, d, m * d].map(|count| {
        seed += 1;
        numbers(count, seed)
    })
}

fn params<M: Memory>(data: &[Vec<f32>; 8]) -> MambaParams<'_, f32, M> {
    let [_, _, m, d, n, r, w] = SIZES;
    let matrix = |i: usize, dims| at(View::new(&data[i], dims));
    let vector = |i: usize| at(View::new(&data[i], [d]));
    MambaParams {
        in_proj: matrix(0, [2 * d, m]),
        in_proj_bias: None,
        conv_weight: matrix(1, [d, w]),
        conv_bias: None,
        x_proj: matrix(2, [r + 2 * n, d]),
        dt_proj: matrix(3, [d, r]),
        dt_bias: vector(4),
        A_log: matrix(5, [d, n]),
        A: None,
        D: vector(6),
        out_proj: matrix(7, [m, d]),
        out_proj_bias: None,
    }
}

/// Bytes as a workspace of any memory.
fn scratch<M: Memory>(bytes: &mut Vec<u8>, count: usize) -> Workspace<'_, M> {
    bytes.clear();
    bytes.resize(count, 0xff);
    Workspace::over(at_mut(ViewMut::new(bytes, [count]))).unwrap()
}

/// out, ∂ℓ/∂x and the gradients of A_log and x_proj, with rows that do not merge where `apart` is on.
fn train<E: Engine>(engine: &E, apart: bool) -> [Vec<f32>; 4] {
    let ([b, l, m, d, n, r, _], data) = (SIZES, weights());
    let (dims, strides) = ([b, l, m], if apart { [m as isize, (b * m) as isize, 1] } else { [(l * m) as isize, m as isize, 1] });
    let (x, ones) = (numbers(b * l * m, 9), numbers(b * l * m, 10));
    let mut results = [b * l * m, b * l * m, d * n, (r + 2 * n) * d].map(|count| vec![f32::NAN; count]);
    let [out, grad_x, a_log, x_proj] = &mut results;
    let inputs = MambaInputs::<f32, MemoryOf<E>>::new(params(&data), at(View::strided(&x, 0, dims, strides)));
    let (block, p) = (MambaBlock { engine }, inputs.check().unwrap());
    let (mut memory, mut bytes, mut kept) = (vec![0xffu8; p.saved_bytes::<f32>()], Vec::new(), None);
    let whole = [memory.len()];
    // The caller's memory is carved anew for each direction.
    for backward in [false, true] {
        let mut held = Workspace::over(at_mut(ViewMut::new(&mut memory, whole))).unwrap();
        let mut saved = MambaSaved::carve(&p, &mut held, &mut kept).unwrap();
        if backward {
            let grads = MambaGrads {
                x: Some(at_mut(ViewMut::strided(grad_x, 0, dims, strides))),
                A_log: Some(at_mut(ViewMut::new(a_log, [d, n]))),
                x_proj: Some(at_mut(ViewMut::new(x_proj, [r + 2 * n, d]))),
                ..Default::default()
            };
            let grad_out = at(View::strided(&ones, 0, dims, strides));
            let args = MambaBwd { inputs, saved: &saved, grad_out, grad_final_window: None, grad_last_state: None, grads };
            block.backward(args, &mut scratch(&mut bytes, block.backward_workspace::<f32>(&p))).unwrap();
        } else {
            let out = at_mut(ViewMut::strided(out, 0, dims, strides));
            let args = MambaFwd { inputs, out, final_window: None, last_state: None };
            block.forward_saving(args, &mut saved, &mut scratch(&mut bytes, block.saving_workspace::<f32>(&p))).unwrap();
        }
    }
    let mut alone = vec![f32::NAN; out.len()];
    let args = MambaFwd { inputs, out: at_mut(ViewMut::strided(&mut alone, 0, dims, strides)), final_window: None, last_state: None };
    block.forward(args, &mut scratch(&mut bytes, block.forward_workspace::<f32>(&p))).unwrap();
    assert_eq!(&alone, out);
    results
}

/// out, windows and states of one step, with a slot that no row has and a row without a slot.
fn step<E: Engine>(engine: &E) -> [Vec<f32>; 3] {
    let ([b, _, m, d, n, _, w], data) = (SIZES, weights());
    let (x, slots, states) = (numbers(b * m, 3), [2, -1], 3);
    let mut results = [vec![f32::NAN; b * m], numbers(states * (w - 1) * d, 5), numbers(states * d * n, 6)];
    let [out, window, state] = &mut results;
    let (block, mut bytes) = (MambaBlock { engine }, Vec::new());
    let args = MambaStep::<f32, f32, MemoryOf<E>> {
        params: params(&data),
        x: at(View::new(&x, [b, m])),
        window: at_mut(ViewMut::new(window, [states, w - 1, d])),
        state: at_mut(ViewMut::new(state, [states, d, n])),
        slots: Some(at(View::new(&slots, [b]))),
        out: at_mut(ViewMut::new(out, [b, m])),
        options: MAMBA_OPTIONS,
    };
    let p = args.check().unwrap();
    block.step(args, &mut scratch(&mut bytes, block.step_workspace::<f32>(&p))).unwrap();
    results
}

#[test]
fn a_block_reaches_memory_through_its_engine_only() {
    for apart in [false, true] {
        let (here, there) = (train(&Naive, apart), train(&Mirror, apart));
        assert!(here.iter().flatten().all(|x| x.is_finite()) && here.iter().flatten().any(|x| *x != 0.0));
        assert_eq!(here, there);
    }
    let (here, there) = (step(&Naive), step(&Mirror));
    assert!(here.iter().flatten().all(|x| x.is_finite()));
    assert_eq!(here, there);
}

//! The block in the device's own memory, as a caller with buffers there uses it, against the same calls in this process's memory in f64.

use std::collections::BTreeMap;

use bytemuck::Pod;
use half::{bf16, f16};
use selective_scan::block::Engine;
use selective_scan::block::mamba::{
    MAMBA_OPTIONS, MambaBlock, MambaBwd, MambaFwd, MambaGrads, MambaInputs, MambaParams, MambaProblem, MambaSaved, MambaStep,
};
use selective_scan::buffer::Workspace;
use selective_scan::cuda::DeviceBuffer;
use selective_scan::element::Input;
use selective_scan::naive::Naive;
use selective_scan::scan::Scan;
use selective_scan::sequences::Sequences;
use selective_scan::view::{Device, Host, Memory, View, ViewMut};

use super::engine;
use super::tensors::{numbers, stored, wide};

const HIDDEN: usize = 6;
const INNER: usize = 20;
const STATE: usize = 5;
const RANK: usize = 3;
const WIDTH: usize = 4;

/// A memory with tensors in it.
trait Space {
    type Memory: Memory;
    type Held<T: Pod>;

    fn put<T: Pod>(values: &[T]) -> Self::Held<T>;
    fn get<T: Pod>(of: &Self::Held<T>) -> Vec<T>;
    fn read<T: Pod, const R: usize>(of: &Self::Held<T>, dims: [usize; R]) -> View<'_, T, R, Self::Memory>;
    fn write<T: Pod, const R: usize>(of: &mut Self::Held<T>, dims: [usize; R]) -> ViewMut<'_, T, R, Self::Memory>;
}

struct OnHost;
struct OnDevice;

impl Space for OnHost {
    type Memory = Host;
    type Held<T: Pod> = Vec<T>;

    fn put<T: Pod>(values: &[T]) -> Vec<T> {
        values.to_vec()
    }
    fn get<T: Pod>(of: &Vec<T>) -> Vec<T> {
        of.clone()
    }
    fn read<T: Pod, const R: usize>(of: &Vec<T>, dims: [usize; R]) -> View<'_, T, R> {
        View::new(of, dims)
    }
    fn write<T: Pod, const R: usize>(of: &mut Vec<T>, dims: [usize; R]) -> ViewMut<'_, T, R> {
        ViewMut::new(of, dims)
    }
}

impl Space for OnDevice {
    type Memory = Device;
    type Held<T: Pod> = DeviceBuffer<T>;

    fn put<T: Pod>(values: &[T]) -> DeviceBuffer<T> {
        engine().upload(values).expect("room for little")
    }
    fn get<T: Pod>(of: &DeviceBuffer<T>) -> Vec<T> {
        of.to_vec().expect("it can be read")
    }
    fn read<T: Pod, const R: usize>(of: &DeviceBuffer<T>, dims: [usize; R]) -> View<'_, T, R, Device> {
        of.view(dims)
    }
    fn write<T: Pod, const R: usize>(of: &mut DeviceBuffer<T>, dims: [usize; R]) -> ViewMut<'_, T, R, Device> {
        of.view_mut(dims)
    }
}

/// Shapes of parameters with the range of their numbers, in the order of [`MambaParams`].
const PARAMETERS: [([usize; 2], f64); 11] = [
    ([2 * INNER, HIDDEN], 0.6),
    ([1, 2 * INNER], 0.3),
    ([INNER, WIDTH], 0.5),
    ([1, INNER], 0.3),
    ([RANK + 2 * STATE, INNER], 0.4),
    ([INNER, RANK], 0.5),
    ([1, INNER], 0.5),
    ([INNER, STATE], 0.8),
    ([1, INNER], 1.0),
    ([HIDDEN, INNER], 0.4),
    ([1, HIDDEN], 0.3),
];

/// Numbers that every type has, from one seed an operand.
fn held<T: Input, S: Space>(count: usize, scale: f64, seed: u64) -> S::Held<T> {
    let values: Vec<f64> = numbers(count, seed).iter().map(|x| bf16::from_f64(x * scale).to_f64()).collect();
    S::put(&stored::<T>(&values))
}

fn unset<T: Input, S: Space>(count: usize) -> S::Held<T> {
    S::put(&stored::<T>(&vec![f64::NAN; count]))
}

/// Parameters in the storage type and in the arithmetic type; of either those are used that are so.
struct Weights<I: Input, S: Space>(Vec<S::Held<I>>, Vec<S::Held<I::Accum>>);

/// What a call left, by name, in f64.
type Results = BTreeMap<&'static str, Vec<f64>>;

fn note<T: Input, S: Space>(results: &mut Results, name: &'static str, of: &S::Held<T>) {
    results.insert(name, wide(&S::get(of)));
}

fn params<I: Input, S: Space>(Weights(of, other): &Weights<I, S>) -> MambaParams<'_, I, S::Memory> {
    let (vector, matrix) = (|i: usize| S::read(&other[i], [PARAMETERS[i].0[1]]), |i: usize| S::read(&of[i], PARAMETERS[i].0));
    let exact = |i: usize| S::read(&other[i], PARAMETERS[i].0);
    MambaParams {
        in_proj: matrix(0),
        in_proj_bias: Some(vector(1)),
        conv_weight: exact(2),
        conv_bias: Some(vector(3)),
        x_proj: matrix(4),
        dt_proj: matrix(5),
        dt_bias: vector(6),
        A_log: exact(7),
        A: None,
        D: vector(8),
        out_proj: matrix(9),
        out_proj_bias: Some(vector(10)),
    }
}

const NAMES: [&str; 11] =
    ["in_proj", "in_proj_bias", "conv_weight", "conv_bias", "x_proj", "dt_proj", "dt_bias", "A_log", "D", "out_proj", "out_proj_bias"];

/// Sizes of a problem.
fn problem(batch: usize, seqlen: usize, states: usize) -> MambaProblem {
    MambaProblem { batch, seqlen, hidden: HIDDEN, inner: INNER, dstate: STATE, rank: RANK, width: WIDTH, states, options: MAMBA_OPTIONS }
}

fn weights<I: Input, S: Space>() -> Weights<I, S> {
    fn all<T: Input, S: Space>() -> Vec<S::Held<T>> {
        PARAMETERS.iter().zip(1..).map(|(([r, c], scale), seed)| held::<T, S>(r * c, *scale, seed)).collect()
    }
    Weights(all::<I, S>(), all::<I::Accum, S>())
}

/// Where packed sequences, the second of which is empty, begin and end.
const OFFSETS: [i64; 4] = [0, 5, 5, 14];
const SEQLEN: usize = 14;
const X: [usize; 3] = [1, SEQLEN, HIDDEN];
const WINDOW: [usize; 3] = [3, WIDTH - 1, INNER];
const LAST: [usize; 3] = [3, INNER, STATE];
/// Numbers of X, WINDOW and LAST.
const COUNTS: [usize; 3] = [SEQLEN * HIDDEN, 3 * (WIDTH - 1) * INNER, 3 * INNER * STATE];

/// A call on packed sequences with states in and out, and memory for it.
struct Packed<I: Input, S: Space> {
    weights: Weights<I, S>,
    /// x and the initial window; then gradients of what comes out.
    given: [S::Held<I>; 4],
    /// The initial state; then the gradient of the last one.
    states: [S::Held<I::Accum>; 2],
    offsets: S::Held<i64>,
    scratch: S::Held<u8>,
    saved: S::Held<u8>,
    kept: Option<MambaProblem>,
    results: Results,
}

impl<I: Input, S: Space> Packed<I, S> {
    fn new(bytes: usize) -> Self {
        Packed {
            weights: weights::<I, S>(),
            given: core::array::from_fn(|i| held::<I, S>(COUNTS[i % 2], 1.0, 21 + i as u64)),
            states: core::array::from_fn(|i| held::<I::Accum, S>(COUNTS[2], 1.0, 25 + i as u64)),
            offsets: S::put(&OFFSETS),
            scratch: S::put(&vec![0xffu8; bytes]),
            saved: S::put(&vec![0xffu8; problem(1, SEQLEN, 3).saved_bytes::<I>()]),
            kept: None,
            results: Results::new(),
        }
    }

    fn forward<E: Engine + Scan<Memory = S::Memory>>(&mut self, engine: &E, saves: bool, bytes: usize) {
        let (p, block) = (problem(1, SEQLEN, 3), MambaBlock { engine });
        let Packed { weights, given, states, offsets, scratch, saved, kept, results } = self;
        let mut ws = Workspace::over(S::write(scratch, [bytes])).expect("contiguous bytes");
        let ([mut out, mut window], mut last) = ([COUNTS[0], COUNTS[1]].map(unset::<I, S>), unset::<I::Accum, S>(COUNTS[2]));
        let args = MambaFwd {
            inputs: inputs::<I, S>(weights, given, states, offsets),
            out: S::write(&mut out, X),
            final_window: Some(S::write(&mut window, WINDOW)),
            last_state: Some(S::write(&mut last, LAST)),
        };
        if saves {
            let mut from = Workspace::over(S::write(saved, [p.saved_bytes::<I>()])).expect("contiguous bytes");
            block.forward_saving(args, &mut MambaSaved::carve(&p, &mut from, kept).expect("room for it"), &mut ws).expect("it runs");
        } else {
            block.forward(args, &mut ws).expect("it runs");
        }
        let names = if saves { ["saving.out", "saving.window", "saving.state"] } else { ["out", "window", "state"] };
        names.iter().zip([&out, &window]).for_each(|(name, of)| note::<I, S>(results, name, of));
        note::<I::Accum, S>(results, names[2], &last);
    }

    fn backward<E: Engine + Scan<Memory = S::Memory>>(&mut self, engine: &E, bytes: usize) {
        let p = problem(1, SEQLEN, 3);
        let Packed { weights, given, states, offsets, scratch, saved, kept, results } = self;
        let mut parameters: [S::Held<I::Accum>; 11] = PARAMETERS.map(|([r, c], _)| unset::<I::Accum, S>(r * c));
        let ([mut x, mut window], mut state) = ([COUNTS[0], COUNTS[1]].map(unset::<I, S>), unset::<I::Accum, S>(COUNTS[2]));
        let mut from = Workspace::over(S::write(saved, [p.saved_bytes::<I>()])).expect("contiguous bytes");
        let args = MambaBwd {
            inputs: inputs::<I, S>(weights, given, states, offsets),
            saved: &MambaSaved::carve(&p, &mut from, kept).expect("room for it"),
            grad_out: S::read(&given[2], X),
            grad_final_window: Some(S::read(&given[3], WINDOW)),
            grad_last_state: Some(S::read(&states[1], LAST)),
            grads: MambaGrads {
                x: Some(S::write(&mut x, X)),
                initial_window: Some(S::write(&mut window, WINDOW)),
                initial_state: Some(S::write(&mut state, LAST)),
                ..grads::<I, S>(&mut parameters)
            },
        };
        let mut ws = Workspace::over(S::write(scratch, [bytes])).expect("contiguous bytes");
        MambaBlock { engine }.backward(args, &mut ws).expect("it runs");
        NAMES.iter().zip(&parameters).for_each(|(name, of)| note::<I::Accum, S>(results, name, of));
        [("grad.x", &x), ("grad.window", &window)].iter().for_each(|(name, of)| note::<I, S>(results, name, of));
        note::<I::Accum, S>(results, "grad.state", &state);
    }
}

fn inputs<'a, I: Input, S: Space>(
    weights: &'a Weights<I, S>,
    given: &'a [S::Held<I>; 4],
    states: &'a [S::Held<I::Accum>; 2],
    offsets: &'a S::Held<i64>,
) -> MambaInputs<'a, I, S::Memory> {
    MambaInputs {
        initial_window: Some(S::read(&given[1], WINDOW)),
        initial_state: Some(S::read(&states[0], LAST)),
        sequences: Sequences::CuSeqlens(S::read(offsets, [OFFSETS.len()])),
        ..MambaInputs::new(params::<I, S>(weights), S::read(&given[0], X))
    }
}

/// Where the gradients of parameters go.
fn grads<I: Input, S: Space>(of: &mut [S::Held<I::Accum>; 11]) -> MambaGrads<'_, I, S::Memory> {
    let [in_proj, in_bias, conv, conv_bias, x_proj, dt_proj, dt_bias, a_log, d, out_proj, out_bias] = of;
    let dims = |i: usize| PARAMETERS[i].0;
    MambaGrads {
        in_proj: Some(S::write(in_proj, dims(0))),
        in_proj_bias: Some(S::write(in_bias, [dims(1)[1]])),
        conv_weight: Some(S::write(conv, dims(2))),
        conv_bias: Some(S::write(conv_bias, [dims(3)[1]])),
        x_proj: Some(S::write(x_proj, dims(4))),
        dt_proj: Some(S::write(dt_proj, dims(5))),
        dt_bias: Some(S::write(dt_bias, [dims(6)[1]])),
        A_log: Some(S::write(a_log, dims(7))),
        D: Some(S::write(d, [dims(8)[1]])),
        out_proj: Some(S::write(out_proj, dims(9))),
        out_proj_bias: Some(S::write(out_bias, [dims(10)[1]])),
        ..MambaGrads::default()
    }
}

/// Forward, forward that saves, and backward.
fn packed<I: Input, S: Space, E: Engine + Scan<Memory = S::Memory>>(engine: &E) -> Results {
    let (block, p) = (MambaBlock { engine }, problem(1, SEQLEN, 3));
    let bytes = block.forward_workspace::<I>(&p).max(block.backward_workspace::<I>(&p)).max(block.saving_workspace::<I>(&p));
    let mut call = Packed::<I, S>::new(bytes);
    call.forward(engine, false, bytes);
    call.forward(engine, true, bytes);
    call.backward(engine, bytes);
    call.results
}

/// Steps of rows with slots, one of which skips.
fn steps<I: Input, S: Space, E: Engine + Scan<Memory = S::Memory>>(engine: &E) -> Results {
    let (batch, states, slots) = (3, 4, [2i32, -1, 0]);
    let block = MambaBlock { engine };
    let (p, weights) = (problem(batch, 1, states), weights::<I, S>());
    let (window_dims, state_dims) = ([states, WIDTH - 1, INNER], [states, INNER, STATE]);
    let mut window = held::<I, S>(window_dims.iter().product(), 1.0, 31);
    let mut state = held::<I::Accum, S>(state_dims.iter().product(), 1.0, 32);
    let (slots, mut out) = (S::put(&slots), unset::<I, S>(batch * HIDDEN));
    let bytes = block.step_workspace::<I>(&p);
    let mut scratch = S::put(&vec![0xffu8; bytes]);
    for step in 0..3 {
        let x = held::<I, S>(batch * HIDDEN, 1.0, 33 + step);
        let args = MambaStep {
            params: params::<I, S>(&weights),
            x: S::read(&x, [batch, HIDDEN]),
            window: S::write(&mut window, window_dims),
            state: S::write(&mut state, state_dims),
            slots: Some(S::read(&slots, [batch])),
            out: S::write(&mut out, [batch, HIDDEN]),
            options: MAMBA_OPTIONS,
        };
        block.step(args, &mut Workspace::over(S::write(&mut scratch, [bytes])).expect("contiguous bytes")).expect("it runs");
    }
    let mut results = Results::new();
    [("out", &out), ("window", &window)].iter().for_each(|(name, of)| note::<I, S>(&mut results, name, of));
    note::<I::Accum, S>(&mut results, "state", &state);
    results
}

fn near(got: &Results, want: &Results, bound: f64) {
    assert!(got.keys().eq(want.keys()));
    for (name, want) in want {
        let most = want.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
        for (got, want) in got[name].iter().zip(want) {
            // NaN is none of what is near.
            assert!((got - want).abs() <= bound * most, "{name}: {got}, wanted {want} within {bound} of {most}");
        }
    }
}

#[test]
fn packed_sequences_there_and_back() {
    let want = packed::<f64, OnHost, _>(&Naive);
    near(&packed::<f64, OnDevice, _>(engine()), &want, 1e-12);
    near(&packed::<f32, OnDevice, _>(engine()), &want, 7e-6);
    // What is between the products is rounded to storage too: some units of the largest value.
    near(&packed::<f16, OnDevice, _>(engine()), &want, 8.0 * (-11f64).exp2());
    near(&packed::<bf16, OnDevice, _>(engine()), &want, 8.0 * (-8f64).exp2());
}

#[test]
fn steps_with_slots() {
    let want = steps::<f64, OnHost, _>(&Naive);
    near(&steps::<f64, OnDevice, _>(engine()), &want, 1e-12);
    near(&steps::<f32, OnDevice, _>(engine()), &want, 5e-6);
    near(&steps::<f16, OnDevice, _>(engine()), &want, 8.0 * (-11f64).exp2());
    near(&steps::<bf16, OnDevice, _>(engine()), &want, 8.0 * (-8f64).exp2());
}

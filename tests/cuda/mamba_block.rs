//! The block in the device's own memory, as a caller with buffers there uses it, against the same calls in this process's memory in f64.

use std::collections::BTreeMap;

use bytemuck::Pod;
use selective_scan::block::Engine;
use selective_scan::block::mamba::{
    MAMBA_OPTIONS, MambaBlock, MambaBwd, MambaFwd, MambaGrads, MambaInputs, MambaParams, MambaProblem, MambaSaved, MambaStep,
};
use selective_scan::buffer::Workspace;
use selective_scan::cuda::DeviceBuffer;
use selective_scan::element::Real;
use selective_scan::naive::Naive;
use selective_scan::scan::Scan;
use selective_scan::sequences::Sequences;
use selective_scan::view::{Device, Host, Memory, View, ViewMut};

use super::engine;
use super::tensors::numbers;

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

/// Numbers that f32 has, from one seed an operand.
fn held<T: Real, S: Space>(count: usize, scale: f64, seed: u64) -> S::Held<T> {
    S::put(&numbers(count, seed).iter().map(|x| T::from_f64(f64::from((x * scale) as f32))).collect::<Vec<_>>())
}

fn unset<T: Real, S: Space>(count: usize) -> S::Held<T> {
    S::put(&vec![T::from_f64(f64::NAN); count])
}

/// What a call left, by name, in f64.
type Results = BTreeMap<&'static str, Vec<f64>>;

fn note<T: Real, S: Space>(results: &mut Results, name: &'static str, of: &S::Held<T>) {
    results.insert(name, S::get(of).iter().map(|x| x.to_f64()).collect());
}

fn params<T: Real, S: Space>(of: &[S::Held<T>]) -> MambaParams<'_, T, S::Memory> {
    let (vector, matrix) = (|i: usize| S::read(&of[i], [PARAMETERS[i].0[1]]), |i: usize| S::read(&of[i], PARAMETERS[i].0));
    MambaParams {
        in_proj: matrix(0),
        in_proj_bias: Some(vector(1)),
        conv_weight: matrix(2),
        conv_bias: Some(vector(3)),
        x_proj: matrix(4),
        dt_proj: matrix(5),
        dt_bias: vector(6),
        A_log: matrix(7),
        A: None,
        D: vector(8),
        out_proj: matrix(9),
        out_proj_bias: Some(vector(10)),
    }
}

const NAMES: [&str; 11] =
    ["in_proj", "in_proj_bias", "conv_weight", "conv_bias", "x_proj", "dt_proj", "dt_bias", "A_log", "D", "out_proj", "out_proj_bias"];

/// Forward, forward that saves, and backward of packed sequences, one of them empty, with states in and out.
fn packed<T: Real, S: Space, E: Engine + Scan<Memory = S::Memory>>(engine: &E) -> Results {
    let (offsets, states, seqlen) = ([0i64, 5, 5, 14], 3, 14);
    let block = MambaBlock { engine };
    let p = MambaProblem {
        batch: 1,
        seqlen,
        hidden: HIDDEN,
        inner: INNER,
        dstate: STATE,
        rank: RANK,
        width: WIDTH,
        states,
        options: MAMBA_OPTIONS,
    };
    let weights: Vec<_> = PARAMETERS.iter().zip(1..).map(|(([r, c], scale), seed)| held::<T, S>(r * c, *scale, seed)).collect();
    let (x_dims, window_dims, state_dims) = ([1, seqlen, HIDDEN], [states, WIDTH - 1, INNER], [states, INNER, STATE]);
    let [xs, windows, all] = [x_dims, window_dims, state_dims].map(|d| d.iter().product::<usize>());
    let (x, window, state) = (held::<T, S>(xs, 1.0, 21), held::<T, S>(windows, 1.0, 22), held::<T, S>(all, 1.0, 23));
    let (grad_out, grad_window, grad_state) = (held::<T, S>(xs, 1.0, 24), held::<T, S>(windows, 1.0, 25), held::<T, S>(all, 1.0, 26));
    let packed = S::put(&offsets);
    let inputs = || MambaInputs {
        initial_window: Some(S::read(&window, window_dims)),
        initial_state: Some(S::read(&state, state_dims)),
        sequences: Sequences::CuSeqlens(S::read(&packed, [states + 1])),
        ..MambaInputs::new(params::<T, S>(&weights), S::read(&x, x_dims))
    };
    let bytes = block.forward_workspace::<T>(&p).max(block.backward_workspace::<T>(&p)).max(block.saving_workspace::<T>(&p));
    let (mut scratch, mut saved, mut kept) = (S::put(&vec![0xffu8; bytes]), S::put(&vec![0xffu8; p.saved_bytes::<T>()]), None);
    let mut results = Results::new();
    for saves in [false, true] {
        let mut ws = Workspace::over(S::write(&mut scratch, [bytes])).expect("contiguous bytes");
        let (mut out, mut last_window, mut last) = (unset::<T, S>(xs), unset::<T, S>(windows), unset::<T, S>(all));
        let args = MambaFwd {
            inputs: inputs(),
            out: S::write(&mut out, x_dims),
            final_window: Some(S::write(&mut last_window, window_dims)),
            last_state: Some(S::write(&mut last, state_dims)),
        };
        if saves {
            let mut from = Workspace::over(S::write(&mut saved, [p.saved_bytes::<T>()])).expect("contiguous bytes");
            block.forward_saving(args, &mut MambaSaved::carve(&p, &mut from, &mut kept).expect("room for it"), &mut ws).expect("it runs");
        } else {
            block.forward(args, &mut ws).expect("it runs");
        }
        let names = if saves { ["saving.out", "saving.window", "saving.state"] } else { ["out", "window", "state"] };
        names.iter().zip([&out, &last_window, &last]).for_each(|(name, of)| note::<T, S>(&mut results, name, of));
    }
    let mut grads: Vec<_> = PARAMETERS.iter().map(|([r, c], _)| unset::<T, S>(r * c)).collect();
    let (mut grad_x, mut grad_first, mut grad_initial) = (unset::<T, S>(xs), unset::<T, S>(windows), unset::<T, S>(all));
    {
        let mut each = grads.iter_mut().zip(PARAMETERS);
        let mut next = || each.next().expect("eleven of them");
        // Fields are evaluated in the order in which they stand here.
        macro_rules! matrix {
            () => {{
                let (of, (dims, _)) = next();
                Some(S::write(of, dims))
            }};
        }
        macro_rules! vector {
            () => {{
                let (of, (dims, _)) = next();
                Some(S::write(of, [dims[1]]))
            }};
        }
        let grads = MambaGrads {
            in_proj: matrix!(),
            in_proj_bias: vector!(),
            conv_weight: matrix!(),
            conv_bias: vector!(),
            x_proj: matrix!(),
            dt_proj: matrix!(),
            dt_bias: vector!(),
            A_log: matrix!(),
            D: vector!(),
            out_proj: matrix!(),
            out_proj_bias: vector!(),
            x: Some(S::write(&mut grad_x, x_dims)),
            initial_window: Some(S::write(&mut grad_first, window_dims)),
            initial_state: Some(S::write(&mut grad_initial, state_dims)),
        };
        let mut from = Workspace::over(S::write(&mut saved, [p.saved_bytes::<T>()])).expect("contiguous bytes");
        let args = MambaBwd {
            inputs: inputs(),
            saved: &MambaSaved::carve(&p, &mut from, &mut kept).expect("room for it"),
            grad_out: S::read(&grad_out, x_dims),
            grad_final_window: Some(S::read(&grad_window, window_dims)),
            grad_last_state: Some(S::read(&grad_state, state_dims)),
            grads,
        };
        let mut ws = Workspace::over(S::write(&mut scratch, [bytes])).expect("contiguous bytes");
        block.backward(args, &mut ws).expect("it runs");
    }
    NAMES.iter().zip(&grads).for_each(|(name, of)| note::<T, S>(&mut results, name, of));
    let inner = [("grad.x", &grad_x), ("grad.window", &grad_first), ("grad.state", &grad_initial)];
    inner.iter().for_each(|(name, of)| note::<T, S>(&mut results, name, of));
    results
}

/// Steps of rows with slots, one of which skips.
fn steps<T: Real, S: Space, E: Engine + Scan<Memory = S::Memory>>(engine: &E) -> Results {
    let (batch, states, slots) = (3, 4, [2i32, -1, 0]);
    let block = MambaBlock { engine };
    let p = MambaProblem {
        batch,
        seqlen: 1,
        hidden: HIDDEN,
        inner: INNER,
        dstate: STATE,
        rank: RANK,
        width: WIDTH,
        states,
        options: MAMBA_OPTIONS,
    };
    let weights: Vec<_> = PARAMETERS.iter().zip(1..).map(|(([r, c], scale), seed)| held::<T, S>(r * c, *scale, seed)).collect();
    let (window_dims, state_dims) = ([states, WIDTH - 1, INNER], [states, INNER, STATE]);
    let mut window = held::<T, S>(window_dims.iter().product(), 1.0, 31);
    let mut state = held::<T, S>(state_dims.iter().product(), 1.0, 32);
    let (slots, mut out) = (S::put(&slots), unset::<T, S>(batch * HIDDEN));
    let bytes = block.step_workspace::<T>(&p);
    let mut scratch = S::put(&vec![0xffu8; bytes]);
    for step in 0..3 {
        let x = held::<T, S>(batch * HIDDEN, 1.0, 33 + step);
        let args = MambaStep {
            params: params::<T, S>(&weights),
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
    [("out", &out), ("window", &window), ("state", &state)].iter().for_each(|(name, of)| note::<T, S>(&mut results, name, of));
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
}

#[test]
fn steps_with_slots() {
    let want = steps::<f64, OnHost, _>(&Naive);
    near(&steps::<f64, OnDevice, _>(engine()), &want, 1e-12);
    near(&steps::<f32, OnDevice, _>(engine()), &want, 5e-6);
}

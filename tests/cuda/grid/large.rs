//! Tensors of more than 2³¹ elements, on a GPU only.

use std::sync::{Mutex, MutexGuard, PoisonError};

use half::bf16;
use selective_scan::Error;
use selective_scan::buffer::Workspace;
use selective_scan::cuda::{Cuda, DeviceBuffer, Regime};
use selective_scan::element::Dtype;
use selective_scan::layers::conv1d::{CausalConv1d, ConvBwd, ConvFwd, ConvGrads, ConvInputs};
use selective_scan::layers::elementwise::Elementwise;
use selective_scan::scan::{Scan, ScanBwd, ScanFwd};
use selective_scan::selective::{
    Coefficient, CoefficientGrad, SelectiveBwd, SelectiveFwd, SelectiveGrads, SelectiveInputs, SelectiveOptions, SelectiveScan,
};
use selective_scan::sequences::Sequences;
use selective_scan::view::{Device, View, ViewMut};

use super::array::Array;
use super::compare::{Bound, compare};
use super::draws::rounded;
use super::pairs::Draw;
use crate::real;
use crate::skip::skipped;

const N: usize = 16;
/// Width of the convolution.
const WIDTH: usize = 4;
/// B, L, D: a row is 2²⁵ elements and 2²⁶ bytes, so 64 of them are 2³¹ elements, 32 are 2³¹ bytes.
const ROWS: [usize; 3] = [66, 8192, 4096];
/// Rows that are looked at.
const SAMPLED: [usize; 6] = [0, 31, 32, 63, 64, 65];

type Half = DeviceBuffer<bf16>;
type Of<'a> = View<'a, bf16, 3, Device>;
type To<'a> = ViewMut<'a, bf16, 3, Device>;

/// A GPU with so many GB of memory, for one test at a time.
fn large(test: &str, gigabytes: usize) -> Option<(&'static Cuda, MutexGuard<'static, ()>)> {
    static TURN: Mutex<()> = Mutex::new(());
    let on = real(test)?;
    let has = on.properties().memory;
    if has < gigabytes * 1_000_000_000 {
        skipped(test, format_args!("it takes {gigabytes} GB on a GPU that has {}", has / 1_000_000_000));
        return None;
    }
    Some((on, TURN.lock().unwrap_or_else(PoisonError::into_inner)))
}

/// As many numbers as `count` between two.
fn numbers(seed: u64, count: usize, low: f64, high: f64) -> Vec<bf16> {
    let mut draw = Draw(seed);
    (0..count).map(|_| bf16::from_f64(low + (high - low) * draw.unit())).collect()
}

/// A block whose size is no power of two again and again, so that every row has numbers of its own.
fn tiled(on: &Cuda, seed: u64, count: usize, [low, high]: [f64; 2]) -> Half {
    let block = numbers(seed, count.min(4093 * 1021), low, high);
    let tile = on.upload(&block).expect("it fits");
    let mut all = on.buffer::<bf16>(count).expect("it fits");
    let whole = count / block.len();
    let repeated = tile.strided(0, [1, whole, block.len()], [0, 0, 1]);
    on.copy(repeated, all.strided_mut(0, [1, whole, block.len()], [0, block.len() as isize, 1])).expect("right");
    let left = count - whole * block.len();
    on.copy(tile.strided(0, [1, 1, left], [0, 0, 1]), all.strided_mut(whole * block.len(), [1, 1, left], [0, 0, 1])).expect("right");
    on.synchronize().expect("it runs");
    all
}

/// A tensor that nobody has written.
fn unset(on: &Cuda, count: usize) -> Half {
    let mut all = on.buffer::<bf16>(count).expect("it fits");
    all.fill(0xff).expect("it can be written");
    all
}

/// Calls with a workspace of so many bytes, and waits.
fn with_room(on: &Cuda, bytes: usize, call: impl FnOnce(&mut Workspace<'_, Device>) -> Result<(), Error>) {
    let mut room = on.buffer::<u8>(bytes).expect("it fits");
    call(&mut room.workspace()).and_then(|()| on.synchronize()).expect("the operands are right");
}

/// What the selective scans read; B and C are `b` where there is one, else `a` itself.
fn inputs<'a>(
    u: Of<'a>,
    delta: Of<'a>,
    a: View<'a, f32, 2, Device>,
    b: Option<View<'a, bf16, 4, Device>>,
) -> SelectiveInputs<'a, bf16, f32, Device> {
    let coefficient = || b.map_or(Coefficient::<bf16, f32, 4, Device>::Constant(a), Coefficient::Varying);
    SelectiveInputs {
        u,
        delta,
        A: a,
        B: coefficient(),
        C: coefficient(),
        D: None,
        z: None,
        delta_bias: None,
        initial_state: None,
        sequences: Sequences::Rows,
        options: SelectiveOptions { delta_softplus: true, ..Default::default() },
    }
}

fn forward(on: &Cuda, inputs: SelectiveInputs<'_, bf16, f32, Device>, out: To<'_>) {
    let bytes = on.selective_scan_fwd_workspace::<bf16, f32>(&inputs.check().expect("the operands are right"));
    with_room(on, bytes, |ws| on.selective_scan_fwd(SelectiveFwd { inputs, out, last_state: None }, ws));
}

/// The gradients of u, delta and B.
fn backward(
    on: &Cuda,
    inputs: SelectiveInputs<'_, bf16, f32, Device>,
    grad_out: Of<'_>,
    [u, delta]: [To<'_>; 2],
    b: ViewMut<'_, bf16, 4, Device>,
) {
    let bytes = on.selective_scan_bwd_workspace::<bf16, f32>(&inputs.check().expect("the operands are right"));
    let grads = SelectiveGrads { u: Some(u), delta: Some(delta), B: Some(CoefficientGrad::Varying(b)), ..Default::default() };
    with_room(on, bytes, |ws| on.selective_scan_bwd(SelectiveBwd { inputs, grad_out, grad_last_state: None, grads }, ws));
}

fn decays(on: &Cuda, dim: usize) -> DeviceBuffer<f32> {
    let mut draw = Draw(2);
    let a: Vec<f32> = (0..dim * N).map(|_| rounded(Dtype::F32, -1.0 + 0.9 * draw.unit()) as f32).collect();
    on.upload(&a).expect("it fits")
}

/// A part of a large tensor, in memory of its own.
fn part(on: &Cuda, of: Of<'_>) -> Half {
    let mut own = on.buffer(of.dims().iter().product()).expect("it fits");
    on.copy(of, own.view_mut(of.dims())).expect("the operands are right");
    own
}

/// One row of a large tensor.
fn row(on: &Cuda, of: &Half, dims: [usize; 3], b: usize) -> Half {
    part(on, of.view(dims).slice(0, b..b + 1))
}

/// Rows have the bits that they have alone.
fn same(what: &str, b: usize, together: &Half, alone: &Half) {
    let (got, want) = (together.to_vec().expect("it can be read"), alone.to_vec().expect("it can be read"));
    let [x, y] = [&got, &want].map(|of| bytemuck::cast_slice::<bf16, u16>(of));
    if x != y {
        let differs = x.iter().zip(y).position(|(x, y)| x != y);
        panic!("{what}: row {b} differs from itself alone at {differs:?}");
    }
    // A kernel that leaves something out leaves out more than this.
    assert!(got.iter().step_by(509).all(|x| !x.is_nan()), "{what}: row {b} is not written");
}

#[test]
fn rows_beyond_two_to_the_31() {
    let Some((engine, _turn)) = large("rows_beyond_two_to_the_31", 40) else { return };
    let [batch, seqlen, dim] = ROWS;
    let (count, one) = (batch * seqlen * dim, [1, seqlen, dim]);
    assert!(count > 1 << 31);
    let (u, delta, a) = (tiled(engine, 1, count, [-1.0, 1.0]), tiled(engine, 2, count, [-3.0, 2.0]), decays(engine, dim));
    let bs = tiled(engine, 3, batch * seqlen * N, [-1.0, 1.0]);
    let b = |row: usize| bs.strided(row * seqlen * N, [1, seqlen, 1, N], [0, N as isize, 0, 1]);
    for regime in [Regime::Walk, Regime::Split] {
        let on = engine.clone().with_regime(Some(regime));
        let mut out = unset(&on, count);
        forward(&on, inputs(u.view(ROWS), delta.view(ROWS), a.view([dim, N]), Some(bs.view([batch, seqlen, 1, N]))), out.view_mut(ROWS));
        for at in SAMPLED {
            let (u, delta, mut alone) = (row(&on, &u, ROWS, at), row(&on, &delta, ROWS, at), unset(&on, seqlen * dim));
            forward(&on, inputs(u.view(one), delta.view(one), a.view([dim, N]), Some(b(at))), alone.view_mut(one));
            same(&format!("{regime:?}"), at, &row(&on, &out, ROWS, at), &alone);
        }
    }
}

#[test]
fn gradients_beyond_two_to_the_31() {
    let Some((engine, _turn)) = large("gradients_beyond_two_to_the_31", 75) else { return };
    let [batch, seqlen, dim] = ROWS;
    let (count, one, each) = (batch * seqlen * dim, [1, seqlen, dim], seqlen * N);
    let (u, a, bs) = (tiled(engine, 1, count, [-1.0, 1.0]), decays(engine, dim), tiled(engine, 3, batch * each, [-1.0, 1.0]));
    for regime in [Regime::Walk, Regime::Split] {
        let on = engine.clone().with_regime(Some(regime));
        let [mut grad_u, mut grad_delta] = [(); 2].map(|()| unset(&on, count));
        let mut grad_b = unset(&on, batch * each);
        let all = [batch, seqlen, 1, N];
        // u stands for delta and the gradient of out too, for the sake of memory.
        let given = inputs(u.view(ROWS), u.view(ROWS), a.view([dim, N]), Some(bs.view(all)));
        backward(&on, given, u.view(ROWS), [grad_u.view_mut(ROWS), grad_delta.view_mut(ROWS)], grad_b.view_mut(all));
        for at in SAMPLED {
            let (u, b) = (row(&on, &u, ROWS, at), row(&on, &bs, [batch, seqlen, N], at));
            let [mut alone_u, mut alone_delta] = [(); 2].map(|()| unset(&on, seqlen * dim));
            let (mut alone_b, of) = (unset(&on, each), [1, seqlen, 1, N]);
            let given = inputs(u.view(one), u.view(one), a.view([dim, N]), Some(b.view(of)));
            backward(&on, given, u.view(one), [alone_u.view_mut(one), alone_delta.view_mut(one)], alone_b.view_mut(of));
            same(&format!("{regime:?}, u"), at, &row(&on, &grad_u, ROWS, at), &alone_u);
            same(&format!("{regime:?}, delta"), at, &row(&on, &grad_delta, ROWS, at), &alone_delta);
            same(&format!("{regime:?}, B"), at, &row(&on, &grad_b, [batch, seqlen, N], at), &alone_b);
        }
    }
}

/// Out, and the gradient of x where out's is x itself.
fn convolve(on: &Cuda, x: Of<'_>, weight: View<'_, f32, 2, Device>, out: To<'_>, grad_x: To<'_>) {
    let inputs = ConvInputs { x, weight, bias: None, initial_window: None, sequences: Sequences::Rows, silu: true };
    let problem = inputs.check().expect("the operands are right");
    let bytes = on.causal_conv1d_fwd_workspace::<bf16>(&problem);
    with_room(on, bytes, |ws| on.causal_conv1d_fwd(ConvFwd { inputs, out, final_window: None }, ws));
    let bytes = on.causal_conv1d_bwd_workspace::<bf16>(&problem);
    let grads = ConvGrads { x: Some(grad_x), ..Default::default() };
    with_room(on, bytes, |ws| on.causal_conv1d_bwd(ConvBwd { inputs, grad_out: x, grad_final_window: None, grads }, ws));
}

#[test]
fn convolutions_beyond_two_to_the_31() {
    let Some((on, _turn)) = large("convolutions_beyond_two_to_the_31", 30) else { return };
    let [batch, seqlen, dim] = ROWS;
    let (count, one) = (batch * seqlen * dim, [1, seqlen, dim]);
    let x = tiled(on, 1, count, [-1.0, 1.0]);
    let weight = decays(on, dim);
    let weight = weight.strided(0, [dim, WIDTH], [N as isize, 1]);
    let [mut out, mut grad_x] = [(); 2].map(|()| unset(on, count));
    convolve(on, x.view(ROWS), weight, out.view_mut(ROWS), grad_x.view_mut(ROWS));
    for at in SAMPLED {
        let x = row(on, &x, ROWS, at);
        let [mut alone, mut alone_x] = [(); 2].map(|()| unset(on, seqlen * dim));
        convolve(on, x.view(one), weight, alone.view_mut(one), alone_x.view_mut(one));
        same("out", at, &row(on, &out, ROWS, at), &alone);
        same("the gradient of x", at, &row(on, &grad_x, ROWS, at), &alone_x);
    }
}

/// h, and the gradients of a and b, of a recurrence whose a, b and gradient of h are one tensor.
fn recur(on: &Cuda, x: Of<'_>, h: To<'_>, [grad_a, grad_b]: [To<'_>; 2]) {
    let args = ScanFwd { a: x, b: x, initial_state: None, h, last_state: None, reverse: false };
    let problem = args.check().expect("the operands are right");
    with_room(on, on.scan_fwd_workspace::<bf16>(problem), |ws| on.scan_fwd(args, ws));
    let args = ScanBwd {
        a: x,
        b: x,
        initial_state: None,
        grad_h: x,
        grad_last_state: None,
        grad_a: Some(grad_a),
        grad_b: Some(grad_b),
        grad_initial_state: None,
        reverse: false,
    };
    with_room(on, on.scan_bwd_workspace::<bf16>(problem), |ws| on.scan_bwd(args, ws));
}

/// Channels close in memory, or steps.
#[test]
fn recurrences_beyond_two_to_the_31() {
    let Some((engine, _turn)) = large("recurrences_beyond_two_to_the_31", 60) else { return };
    let [batch, seqlen, dim] = ROWS;
    let (count, each, one) = (batch * seqlen * dim, seqlen * dim, [1, seqlen, dim]);
    let x = tiled(engine, 1, count, [-1.0, 1.0]);
    for (regime, [step, channel]) in [Regime::Walk, Regime::Split].into_iter().flat_map(|r| [(r, [dim, 1]), (r, [1, seqlen])]) {
        let on = engine.clone().with_regime(Some(regime));
        let strides = [each as isize, step as isize, channel as isize];
        let mut made = [(); 3].map(|()| unset(&on, count));
        let [h, grads @ ..] = made.each_mut().map(|to| to.strided_mut(0, ROWS, strides));
        recur(&on, x.strided(0, ROWS, strides), h, grads);
        // Before and after 2³¹ bytes and elements; each takes half a second.
        for at in [0, 32, 65] {
            let mut alone = [(); 3].map(|()| unset(&on, each));
            let [h, grads @ ..] = alone.each_mut().map(|to| to.strided_mut(0, one, strides));
            recur(&on, x.strided(at * each, one, strides), h, grads);
            for ((name, made), alone) in ["h", "the gradient of a", "that of b"].iter().zip(&made).zip(&alone) {
                same(&format!("{regime:?}, strides {strides:?}, {name}"), at, &row(&on, made, ROWS, at), alone);
            }
        }
    }
}

/// One row with more than 2³¹ elements: some of its channels against the same ones in a small tensor, in both orders of memory.
#[test]
fn a_row_beyond_two_to_the_31() {
    let Some((engine, _turn)) = large("a_row_beyond_two_to_the_31", 20) else { return };
    let dims @ [_, seqlen, dim] = [1, (1 << 17) + 200, 16384];
    assert!(dims.iter().product::<usize>() > 1 << 31);
    let [plain, turned] = [[0, dim as isize, 1], [0, 1, seqlen as isize]];
    let (a, u) = (decays(engine, dim), tiled(engine, 1, seqlen * dim, [-1.0, 1.0]));
    let bs = tiled(engine, 3, seqlen * N, [-1.0, 1.0]);
    let all = [(Regime::Walk, plain), (Regime::Split, plain), (Regime::Walk, turned), (Regime::Split, turned)];
    // The kernels for B and C that vary and those for others.
    for (varying, (regime, strides)) in all.map(|how| (true, how)).into_iter().chain([(false, all[1]), (false, all[2])]) {
        let on = engine.clone().with_regime(Some(regime));
        let b = varying.then(|| bs.view([1, seqlen, 1, N]));
        let mut out = unset(&on, seqlen * dim);
        let whole = u.strided(0, dims, strides);
        forward(&on, inputs(whole, whole, a.view([dim, N]), b), out.strided_mut(0, dims, strides));
        for from in [0, dim / 2 - 3, dim - 16] {
            let (cut, few) = (from..from + 16, [1, seqlen, 16]);
            let own = part(&on, whole.slice(2, cut.clone()));
            let mut alone = unset(&on, seqlen * 16);
            let own = own.view(few);
            forward(&on, inputs(own, own, a.strided(from * N, [16, N], [N as isize, 1]), b), alone.view_mut(few));
            let wide = |x: Half| Array {
                dims: few.to_vec(),
                data: x.to_vec().expect("read").iter().map(|x| x.to_f64()).collect(),
                complex: false,
            };
            let (got, want) = (wide(part(&on, out.strided(0, dims, strides).slice(2, cut))), wide(alone));
            // Both are rounded, so they may be two roundings apart.
            let gap = compare(&got.data, &want.data, Bound::new(Dtype::Bf16, 100.0, false));
            assert!(gap.used <= 2.0, "{regime:?}, varying {varying}, strides {strides:?}, channels from {from}: {gap:?}");
        }
    }
}

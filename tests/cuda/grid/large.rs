//! Tensors of more than 2³¹ elements, on a GPU only.

use half::bf16;
use selective_scan::buffer::Workspace;
use selective_scan::cuda::{Cuda, DeviceBuffer, Regime};
use selective_scan::element::Dtype;
use selective_scan::layers::elementwise::Elementwise;
use selective_scan::selective::{Coefficient, SelectiveFwd, SelectiveInputs, SelectiveOptions, SelectiveScan};
use selective_scan::sequences::Sequences;
use selective_scan::view::{Device, View, ViewMut};

use super::array::Array;
use super::compare::{Bound, compare};
use super::draws::rounded;
use super::pairs::Draw;
use crate::real;

const N: usize = 16;

type Half = DeviceBuffer<bf16>;

/// As many numbers as `count` between two.
fn numbers(seed: u64, count: usize, low: f64, high: f64) -> Vec<bf16> {
    let mut draw = Draw(seed);
    (0..count).map(|_| bf16::from_f64(low + (high - low) * draw.unit())).collect()
}

/// The forward scan with constant B and C, which are `a` itself.
fn forward(
    on: &Cuda,
    u: View<'_, bf16, 3, Device>,
    delta: View<'_, bf16, 3, Device>,
    a: View<'_, f32, 2, Device>,
    out: ViewMut<'_, bf16, 3, Device>,
) {
    let inputs = SelectiveInputs {
        u,
        delta,
        A: a,
        B: Coefficient::<bf16, f32, 4, Device>::Constant(a),
        C: Coefficient::Constant(a),
        D: None,
        z: None,
        delta_bias: None,
        initial_state: None,
        sequences: Sequences::Rows,
        options: SelectiveOptions { delta_softplus: true, ..Default::default() },
    };
    let bytes = on.selective_scan_fwd_workspace::<bf16, f32>(&inputs.check().expect("the operands are right"));
    let mut room = on.buffer::<u8>(bytes).expect("it fits");
    let mut ws = Workspace::over(room.view_mut([bytes])).expect("contiguous");
    on.selective_scan_fwd(SelectiveFwd { inputs, out, last_state: None }, &mut ws).expect("the operands are right");
    on.synchronize().expect("it runs");
}

fn decays(on: &Cuda, dim: usize) -> DeviceBuffer<f32> {
    let mut draw = Draw(2);
    let a: Vec<f32> = (0..dim * N).map(|_| rounded(Dtype::F32, -1.0 + 0.9 * draw.unit()) as f32).collect();
    on.upload(&a).expect("it fits")
}

/// A part of a large tensor, in memory of its own.
fn part(on: &Cuda, of: View<'_, bf16, 3, Device>) -> Half {
    let mut own = on.buffer(of.dims().iter().product()).expect("it fits");
    on.copy(of, own.view_mut(of.dims())).expect("the operands are right");
    own
}

/// A tensor of this shape whose every row is a copy of one, but for a few with numbers of their own.
fn rows(on: &Cuda, [batch, seqlen, dim]: [usize; 3], own: &[usize], [low, high]: [f64; 2]) -> Half {
    let each = seqlen * dim;
    let mut all = on.buffer::<bf16>(batch * each).expect("it fits");
    let common = on.upload(&numbers(1, each, low, high)).expect("it fits");
    let repeated = common.strided(0, [batch, seqlen, dim], [0, dim as isize, 1]);
    on.copy(repeated, all.view_mut([batch, seqlen, dim])).expect("the operands are right");
    for &b in own {
        let row = on.upload(&numbers(100 + b as u64, each, low, high)).expect("it fits");
        on.copy(row.view([1, seqlen, dim]), all.strided_mut(b * each, [1, seqlen, dim], [0, dim as isize, 1])).expect("right");
        on.synchronize().expect("it runs");
    }
    all
}

/// Rows beyond 2³¹ elements have the bits that they have alone.
#[test]
fn rows_beyond_two_to_the_31() {
    let Some(engine) = real("rows_beyond_two_to_the_31") else { return };
    let dims @ [batch, seqlen, dim] = [66, 8192, 4096];
    assert!(dims.iter().product::<usize>() > 1 << 31);
    // A row is 2²⁵ elements and 2²⁶ bytes: 64 of them are 2³¹ elements, 32 are 2³¹ bytes.
    let sampled = [0, 1, 31, 32, 33, 63, 64, 65];
    for regime in [Regime::Walk, Regime::Split] {
        let on = engine.clone().with_regime(Some(regime));
        let (u, delta, a) = (rows(&on, dims, &sampled, [-1.0, 1.0]), rows(&on, dims, &sampled, [-3.0, 2.0]), decays(&on, dim));
        let mut out = on.buffer::<bf16>(batch * seqlen * dim).expect("it fits");
        out.fill(0xff).expect("it can be written");
        forward(&on, u.view(dims), delta.view(dims), a.view([dim, N]), out.view_mut(dims));
        for b in sampled.into_iter().chain([2, 40]) {
            let row = |of: &Half| part(&on, of.view(dims).slice(0, b..b + 1));
            let mut alone = on.buffer::<bf16>(seqlen * dim).expect("it fits");
            let one = [1, seqlen, dim];
            forward(&on, row(&u).view(one), row(&delta).view(one), a.view([dim, N]), alone.view_mut(one));
            let (got, want) = (row(&out).to_vec().expect("it can be read"), alone.to_vec().expect("it can be read"));
            let differs = got.iter().zip(&want).position(|(x, y)| x.to_bits() != y.to_bits());
            assert!(differs.is_none(), "{regime:?}: row {b} differs from itself alone at {differs:?}");
        }
    }
}

/// One row with more than 2³¹ elements: some of its channels against the same ones in a small tensor, in both orders of memory.
#[test]
fn a_row_beyond_two_to_the_31() {
    let Some(engine) = real("a_row_beyond_two_to_the_31") else { return };
    let dims @ [_, seqlen, dim] = [1, (1 << 17) + 200, 16384];
    assert!(dims.iter().product::<usize>() > 1 << 31);
    let block = numbers(1, 4093 * 1021, -1.0, 1.0);
    let [plain, turned] = [[0, dim as isize, 1], [0, 1, seqlen as isize]];
    let a = decays(engine, dim);
    for (regime, strides) in [(Regime::Walk, plain), (Regime::Split, plain), (Regime::Walk, turned), (Regime::Split, turned)] {
        let on = engine.clone().with_regime(Some(regime));
        let mut u = on.buffer::<bf16>(seqlen * dim).expect("it fits");
        // A tile whose size is no power of two, again and again.
        let tile = on.upload(&block).expect("it fits");
        let whole = seqlen * dim / block.len();
        let repeated = tile.strided(0, [1, whole, block.len()], [0, 0, 1]);
        on.copy(repeated, u.strided_mut(0, [1, whole, block.len()], [0, block.len() as isize, 1])).expect("right");
        let left = seqlen * dim - whole * block.len();
        on.copy(tile.strided(0, [1, 1, left], [0, 0, 1]), u.strided_mut(whole * block.len(), [1, 1, left], [0, 0, 1])).expect("right");
        let mut out = on.buffer::<bf16>(seqlen * dim).expect("it fits");
        out.fill(0xff).expect("it can be written");
        forward(&on, u.strided(0, dims, strides), u.strided(0, dims, strides), a.view([dim, N]), out.strided_mut(0, dims, strides));
        for from in [0, dim / 2 - 3, dim - 16] {
            let (cut, few) = (from..from + 16, [1, seqlen, 16]);
            let own = part(&on, u.strided(0, dims, strides).slice(2, cut.clone()));
            let mut alone = on.buffer::<bf16>(seqlen * 16).expect("it fits");
            forward(&on, own.view(few), own.view(few), a.strided(from * N, [16, N], [N as isize, 1]), alone.view_mut(few));
            let wide = |x: Half| Array {
                dims: few.to_vec(),
                data: x.to_vec().expect("read").iter().map(|x| x.to_f64()).collect(),
                complex: false,
            };
            let (got, want) = (wide(part(&on, out.strided(0, dims, strides).slice(2, cut))), wide(alone));
            // Both are rounded, so they may be two roundings apart.
            let gap = compare(&got.data, &want.data, Bound::new(Dtype::Bf16, 100.0, false));
            assert!(gap.used <= 2.0, "{regime:?}, strides {strides:?}, channels from {from}: {gap:?}");
        }
    }
}

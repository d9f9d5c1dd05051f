//! The convolution against the specification in f64: forward, backward, step.

use half::{bf16, f16};
use selective_scan::buffer::Buffer;
use selective_scan::element::{Dtype, Input};
use selective_scan::layers::conv1d::{CausalConv1d, ConvBwd, ConvFwd, ConvGrads, ConvInputs, ConvStep};
use selective_scan::naive::Naive;
use selective_scan::sequences::Sequences;
use selective_scan::view::{Host, View};

use super::arrays::{Draw, Tensor, compare, each};
use super::carried;

#[derive(Debug, Clone)]
enum Packing {
    Rows,
    Offsets(Vec<i64>),
    Ids(Vec<i32>),
}

#[derive(Debug, Clone)]
struct Case {
    dims: [usize; 3],
    width: usize,
    bias: bool,
    silu: bool,
    window: bool,
    /// Whether the final window has a gradient.
    final_grad: bool,
    packing: Packing,
    /// Axes of x, out and their gradients from the slowest to the fastest; random where None.
    order: Option<[usize; 3]>,
    seed: u64,
}

struct Conv<I: Input> {
    case: Case,
    x: Tensor<I, 3>,
    weight: Tensor<I::Accum, 2>,
    bias: Option<Tensor<I::Accum, 1>>,
    window: Option<Tensor<I, 3>>,
    grad_out: Tensor<I, 3>,
    grad_final: Tensor<I, 3>,
}

/// out, final window, ∂x, ∂w, ∂bias, ∂initial window.
struct Results<I: Input> {
    by_position: [Tensor<I, 3>; 4],
    weight: Tensor<I::Accum, 2>,
    bias: Tensor<I::Accum, 1>,
}

impl<I: Input> Conv<I> {
    fn new(case: &Case) -> Self {
        let (mut draw, case) = (Draw(case.seed), case.clone());
        let draw = &mut draw;
        let states = if let Packing::Offsets(v) = &case.packing { v.len() - 1 } else { case.dims[0] };
        let window = [states, case.width - 1, case.dims[2]];
        let x = match case.order {
            Some(order) => Tensor::zeros(case.dims, order, 0, 1).filled(draw, -1.0, 1.0),
            None => Tensor::scattered(draw, case.dims, -1.0, 1.0),
        };
        let grad_out = match case.order {
            Some(order) => Tensor::zeros(case.dims, order, 0, 1).filled(draw, -1.0, 1.0),
            None => Tensor::scattered(draw, case.dims, -1.0, 1.0),
        };
        Conv {
            x,
            weight: Tensor::scattered(draw, [case.dims[2], case.width], -1.0, 1.0),
            bias: case.bias.then(|| Tensor::scattered(draw, [case.dims[2]], -0.5, 0.5)),
            window: case.window.then(|| Tensor::scattered(draw, window, -1.0, 1.0)),
            grad_out,
            grad_final: Tensor::scattered(draw, window, -1.0, 1.0),
            case,
        }
    }

    fn wide(&self) -> Conv<f64> {
        Conv {
            case: self.case.clone(),
            x: self.x.cast(),
            weight: self.weight.cast(),
            bias: self.bias.as_ref().map(Tensor::cast),
            window: self.window.as_ref().map(Tensor::cast),
            grad_out: self.grad_out.cast(),
            grad_final: self.grad_final.cast(),
        }
    }

    fn inputs(&self) -> ConvInputs<'_, I> {
        let [batch, seqlen, _] = self.case.dims;
        ConvInputs {
            x: self.x.view(),
            weight: self.weight.view(),
            bias: self.bias.as_ref().map(Tensor::view),
            initial_window: self.window.as_ref().map(Tensor::view),
            sequences: match &self.case.packing {
                Packing::Rows => Sequences::Rows,
                Packing::Offsets(v) => Sequences::CuSeqlens(View::new(v, [v.len()])),
                Packing::Ids(v) => Sequences::SeqIdx(View::new(v, [batch, seqlen])),
            },
            silu: self.case.silu,
        }
    }

    fn run(&self, engine: &impl CausalConv1d<Memory = Host>) -> Results<I> {
        let draw = &mut Draw(self.case.seed + 1000);
        let (dims, window) = (self.case.dims, self.grad_final.dims);
        let mut like = |dims| match self.case.order {
            Some(order) => Tensor::zeros(dims, order, 0, 1),
            None => Tensor::anywhere(draw, dims),
        };
        let mut out = Results {
            by_position: [like(dims), like(window), like(dims), like(window)],
            weight: Tensor::anywhere(&mut Draw(5), self.weight.dims),
            bias: Tensor::anywhere(&mut Draw(6), [dims[2]]),
        };
        let problem = self.inputs().check().unwrap();
        let [y, last, gx, gw] = &mut out.by_position;
        let args = ConvFwd { inputs: self.inputs(), out: y.view_mut(), final_window: Some(last.view_mut()) };
        let bytes = engine.causal_conv1d_fwd_workspace::<I>(&problem);
        engine.causal_conv1d_fwd(args, &mut Buffer::new().workspace(bytes)).unwrap();
        let grads = ConvGrads {
            x: Some(gx.view_mut()),
            weight: Some(out.weight.view_mut()),
            bias: self.bias.is_some().then(|| out.bias.view_mut()),
            initial_window: self.window.is_some().then(|| gw.view_mut()),
        };
        let (grad_out, grad_final_window) = (self.grad_out.view(), self.case.final_grad.then(|| self.grad_final.view()));
        let args = ConvBwd { inputs: self.inputs(), grad_out, grad_final_window, grads };
        let bytes = engine.causal_conv1d_bwd_workspace::<I>(&problem);
        engine.causal_conv1d_bwd(args, &mut Buffer::new().workspace(bytes)).unwrap();
        out
    }
}

const NAMES: [&str; 4] = ["out", "final window", "grad of x", "grad of the window"];

fn check<I: Input>(case: &Case) {
    let conv = Conv::<I>::new(case);
    let (got, want) = (conv.run(&carried()), conv.wide().run(&Naive));
    let relative = if I::DTYPE == Dtype::F64 { 1e-13 } else { 2e-6 };
    for (i, name) in NAMES.into_iter().enumerate() {
        let what = format!("{name} {} {case:?}", I::DTYPE.name());
        compare(&what, &got.by_position[i], &want.by_position[i].numbers(), if i < 2 { relative } else { 2.0 * relative });
    }
    let what = format!("{} {case:?}", I::DTYPE.name());
    compare(&format!("grad of w {what}"), &got.weight, &want.weight.numbers(), 2.0 * relative);
    compare(&format!("grad of bias {what}"), &got.bias, &want.bias.numbers(), 2.0 * relative);
    let again = conv.run(&carried());
    for (i, name) in NAMES.into_iter().enumerate() {
        assert_eq!(got.by_position[i].numbers(), again.by_position[i].numbers(), "{name} {what}");
    }
    assert_eq!((got.weight.numbers(), got.bias.numbers()), (again.weight.numbers(), again.bias.numbers()), "{what}");
}

/// Ids of a row: sequences of random lengths with padding among them.
fn ids(draw: &mut Draw, [batch, seqlen, _]: [usize; 3]) -> Vec<i32> {
    let mut all = Vec::new();
    for _ in 0..batch {
        let (mut id, longest) = (0, 1 + draw.below(60) as u64);
        for _ in 0..seqlen {
            id += i32::from(draw.bits().is_multiple_of(longest)) * (1 + draw.below(3) as i32);
            all.push(if draw.below(9) == 0 { -1 - draw.below(3) as i32 } else { id });
        }
    }
    all
}

fn offsets(draw: &mut Draw, seqlen: usize) -> Vec<i64> {
    let mut inner: Vec<i64> = (0..draw.below(7)).map(|_| draw.below(seqlen + 1) as i64).collect();
    inner.sort_unstable();
    [vec![0], inner, vec![seqlen as i64]].concat()
}

const ORDERS: [Option<[usize; 3]>; 3] = [Some([0, 1, 2]), Some([0, 2, 1]), None];

fn cases(lengths: &[usize]) -> Vec<Case> {
    let (mut cases, mut draw) = (Vec::new(), Draw(11));
    for (i, &seqlen) in lengths.iter().enumerate() {
        for (j, width) in [1usize, 2, 3, 4, 7].into_iter().enumerate() {
            let dim = [1, 5, 33, 4, 40][(i + j) % 5];
            let batch = 1 + (i + j) % 3;
            for packing in 0..3 {
                let dims = [if packing == 1 { 1 } else { batch }, seqlen, dim];
                let packing = match packing {
                    0 => Packing::Rows,
                    1 => Packing::Offsets(offsets(&mut draw, seqlen)),
                    _ => Packing::Ids(ids(&mut draw, dims)),
                };
                let (order, seed) = (ORDERS[draw.below(3)], draw.bits() >> 8);
                let [bias, silu, window, final_grad] = core::array::from_fn(|_| draw.coin());
                cases.push(Case { dims, width, bias, silu, window, final_grad, packing, order, seed });
            }
        }
    }
    cases
}

#[test]
fn agrees_with_the_specification() {
    for (i, case) in cases(&[0, 1, 2, 3, 5, 17, 31, 64, 67, 129, 255, 257, 600]).iter().enumerate() {
        check::<f32>(case);
        match i % 3 {
            0 => check::<f64>(case),
            1 => check::<f16>(case),
            _ => check::<bf16>(case),
        }
    }
}

/// Whole runs and chunks, at both ends of rows, by vectors and by elements.
fn long_rows<I: Input>(seed: u64) {
    for (i, width) in [2usize, 3, 4].into_iter().enumerate() {
        for (j, packing) in [Packing::Rows, Packing::Offsets(vec![0, 150, 264]), Packing::Ids(vec![7; 264])].into_iter().enumerate() {
            let dims = [1, 264, 6];
            let [window, final_grad, silu] = [i == 1, j == 1, i + j != 3];
            let case = Case { dims, width, bias: true, silu, window, final_grad, packing, order: ORDERS[0], seed: seed + width as u64 };
            check::<I>(&case);
            let whole = Conv::<I>::new(&case);
            let want = whole.run(&carried());
            // Channels that are no neighbours, time by vectors, time by elements.
            for (order, pad) in [([0, 1, 2], 1), ([0, 2, 1], 0), ([0, 2, 1], 1)] {
                let mut other = Conv::<I>::new(&Case { order: if pad == 0 { Some(order) } else { None }, ..case.clone() });
                let like = |of: &Tensor<I, 3>| {
                    let mut to = Tensor::zeros(dims, order, pad, 1);
                    each(dims, |i| to.view_mut().set(i, of.view().get(i)));
                    to
                };
                (other.x, other.grad_out) = (like(&whole.x), like(&whole.grad_out));
                (other.weight, other.bias) = (whole.weight.clone(), whole.bias.clone());
                (other.window, other.grad_final) = (whole.window.clone(), whole.grad_final.clone());
                let got = other.run(&carried());
                let what = format!("{order:?} {pad} {case:?}");
                (0..4).for_each(|i| assert_eq!(got.by_position[i].numbers(), want.by_position[i].numbers(), "{} {what}", NAMES[i]));
                assert_eq!((got.weight.numbers(), got.bias.numbers()), (want.weight.numbers(), want.bias.numbers()), "{what}");
            }
        }
    }
}

#[test]
fn long_rows_have_the_same_bits_in_every_layout() {
    long_rows::<f32>(20);
    long_rows::<f64>(30);
    long_rows::<f16>(40);
    long_rows::<bf16>(50);
}

#[test]
fn both_layouts_and_every_packing_have_the_same_bits() {
    for width in [2, 3, 4, 6] {
        let dims = [1, 300, 37];
        let case = Case {
            dims,
            width,
            bias: true,
            silu: true,
            window: false,
            final_grad: true,
            packing: Packing::Rows,
            order: ORDERS[0],
            seed: 9,
        };
        let whole = Conv::<f32>::new(&case);
        let want = whole.run(&carried());
        let mut turned = Conv::<f32>::new(&case);
        turned.x = Tensor::zeros(dims, [0, 2, 1], 0, 1);
        each(dims, |i| turned.x.view_mut().set(i, whole.x.view().get(i)));
        let got = turned.run(&carried());
        (0..4).for_each(|i| assert_eq!(got.by_position[i].numbers(), want.by_position[i].numbers(), "{}", NAMES[i]));
        // Three sequences in a row, against each alone.
        let cuts = [0usize, 111, 113, 300];
        let packed_ids = (0..300)
            .map(|t| {
                if t < 111 {
                    0
                } else if t < 113 {
                    4
                } else {
                    5
                }
            })
            .collect();
        for packing in [Packing::Offsets(cuts.map(|c| c as i64).into()), Packing::Ids(packed_ids)] {
            let ids = matches!(packing, Packing::Ids(_));
            let mut packed = Conv::<f32>::new(&Case { packing, ..case.clone() });
            (packed.x, packed.weight, packed.bias) = (whole.x.clone(), whole.weight.clone(), whole.bias.clone());
            packed.grad_out = whole.grad_out.clone();
            if ids {
                packed.grad_final = packed.grad_final.clone().filled(&mut Draw(0), 0.0, 0.0);
            } else {
                packed.grad_final = Tensor::zeros(packed.grad_final.dims, [0, 1, 2], 0, 1);
            }
            let all = packed.run(&carried());
            for w in cuts.windows(2) {
                let dims = [1, w[1] - w[0], 37];
                let mut alone = Conv::<f32>::new(&Case { dims, ..case.clone() });
                let part = |of: &Tensor<f32, 3>| {
                    let mut part = Tensor::zeros(dims, [0, 1, 2], 0, 1);
                    each(dims, |[b, t, d]| part.view_mut().set([b, t, d], of.view().get([b, t + w[0], d])));
                    part
                };
                (alone.x, alone.grad_out) = (part(&whole.x), part(&whole.grad_out));
                (alone.weight, alone.bias) = (whole.weight.clone(), whole.bias.clone());
                alone.grad_final = Tensor::zeros(alone.grad_final.dims, [0, 1, 2], 0, 1);
                let one = alone.run(&carried());
                for i in [0, 2] {
                    assert_eq!(part(&all.by_position[i]).numbers(), one.by_position[i].numbers(), "{} of {w:?}, W = {width}", NAMES[i]);
                }
            }
        }
    }
}

#[test]
fn offsets_and_ids_may_be_anything() {
    let engine = super::engine();
    let (seqlen, dim, width) = (40usize, 3usize, 4usize);
    let ones = |len: usize| engine.upload(&vec![1.0f32; len]).unwrap();
    let (x, weight, window) = (ones(seqlen * dim), ones(dim * width), ones(4 * 3 * dim));
    let hostile_offsets = engine.upload(&[i64::MIN, 900, -7, i64::MAX, 12]).unwrap();
    let hostile_ids: Vec<i32> = (0..seqlen as i32).map(|t| [9, i32::MIN, 3, i32::MAX, 3][t as usize % 5]).collect();
    let hostile_ids = engine.upload(&hostile_ids).unwrap();
    for packed in [true, false] {
        let states = if packed { 4 } else { 1 };
        let inputs = ConvInputs {
            x: x.view([1, seqlen, dim]),
            weight: weight.view([dim, width]),
            bias: None,
            initial_window: Some(window.strided(0, [states, 3, dim], [9, 3, 1])),
            sequences: if packed {
                Sequences::CuSeqlens(hostile_offsets.view([5]))
            } else {
                Sequences::SeqIdx(hostile_ids.view([1, seqlen]))
            },
            silu: true,
        };
        let (mut out, mut last) = (ones(seqlen * dim), ones(states * 3 * dim));
        let (mut gx, mut gw, mut gi) = (ones(seqlen * dim), ones(dim * width), ones(states * 3 * dim));
        let problem = inputs.check().unwrap();
        let args = ConvFwd { inputs, out: out.view_mut([1, seqlen, dim]), final_window: Some(last.view_mut([states, 3, dim])) };
        engine.causal_conv1d_fwd(args, &mut engine.buffer::<u8>(0).unwrap().workspace()).unwrap();
        let grads = ConvGrads {
            x: Some(gx.view_mut([1, seqlen, dim])),
            weight: Some(gw.view_mut([dim, width])),
            bias: None,
            initial_window: Some(gi.view_mut([states, 3, dim])),
        };
        let args = ConvBwd { inputs, grad_out: x.view([1, seqlen, dim]), grad_final_window: None, grads };
        let mut ws = engine.buffer::<u8>(engine.causal_conv1d_bwd_workspace::<f32>(&problem)).unwrap();
        engine.causal_conv1d_bwd(args, &mut ws.workspace()).unwrap();
        engine.synchronize().unwrap();
    }
}

/// Steps one position at a time: the bits of forward, the window that forward leaves; skipped rows keep theirs.
fn steps<I: Input>(width: usize, silu: bool, seed: u64) {
    let dims @ [batch, seqlen, dim] = [3, 6, 131];
    let case = Case { dims, width, bias: silu, silu, window: true, final_grad: false, packing: Packing::Rows, order: None, seed };
    let conv = Conv::<I>::new(&case);
    let forward = conv.run(&carried());
    let start = conv.window.as_ref().unwrap();
    let mut window = Tensor::<I, 3>::anywhere(&mut Draw(seed), [5, width - 1, dim]);
    let slots = [4, -3, 1];
    each(start.dims, |[b, k, d]| {
        if slots[b] >= 0 {
            window.view_mut().set([slots[b] as usize, k, d], start.view().get([b, k, d]));
        }
    });
    for t in 0..seqlen {
        let mut x = Tensor::<I, 2>::anywhere(&mut Draw(seed + 1), [batch, dim]);
        each([batch, dim], |[b, d]| x.view_mut().set([b, d], conv.x.view().get([b, t, d])));
        let mut out = Tensor::<I, 2>::anywhere(&mut Draw(seed + 2), [batch, dim]);
        let args = ConvStep {
            x: x.view(),
            weight: conv.weight.view(),
            bias: conv.bias.as_ref().map(Tensor::view),
            window: window.view_mut(),
            slots: Some(View::new(&slots, [3])),
            out: out.view_mut(),
            silu,
        };
        carried().causal_conv1d_update(args, &mut Buffer::new().workspace(0)).unwrap();
        each([batch, dim], |[b, d]| {
            let want = if slots[b] < 0 { I::default() } else { forward.by_position[0].view().get([b, t, d]) };
            assert_eq!(out.view().get([b, d]), want, "W = {width}, row {b}, position {t}");
        });
    }
    each(start.dims, |[b, k, d]| {
        if slots[b] >= 0 {
            assert_eq!(window.view().get([slots[b] as usize, k, d]), forward.by_position[1].view().get([b, k, d]));
        }
    });
}

#[test]
fn steps_have_the_bits_of_forward() {
    for (i, width) in [1, 2, 3, 4, 5, 9].into_iter().enumerate() {
        steps::<f32>(width, i % 2 == 0, 40 + i as u64);
        steps::<f64>(width, i % 2 == 1, 50 + i as u64);
        steps::<f16>(width, true, 60 + i as u64);
        steps::<bf16>(width, i % 2 == 0, 70 + i as u64);
    }
}

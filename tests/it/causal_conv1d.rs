//! The causal convolution against plain loops and central differences in f64, and the identities it must keep.

use half::{bf16, f16};
use selective_scan::arch::Isa;
use selective_scan::cpu::Cpu;
use selective_scan::element::{Input, Real};
use selective_scan::error::Error;
use selective_scan::layers::conv1d::{
    CausalConv1d, ConvBwd, ConvFwd, ConvGrads, ConvInputs, ConvProblem, ConvStep, causal_conv1d_bwd, causal_conv1d_bwd_workspace,
    causal_conv1d_fwd, causal_conv1d_fwd_workspace, causal_conv1d_update, causal_conv1d_update_workspace,
};
use selective_scan::naive::Naive;
use selective_scan::par::Par;
use selective_scan::sequences::Sequences;
use selective_scan::view::{View, ViewMut};

use crate::tensors::{LAYOUTS, Layout, THREADS, Tensor, Threads, alone, assert_bits, assert_rounded, error, numbers, stored, wide};

#[derive(Debug, Clone)]
enum Packing {
    Rows,
    Offsets(Vec<i64>),
    Ids(Vec<i32>),
}

#[derive(Debug, Clone)]
struct Case {
    batch: usize,
    seqlen: usize,
    dim: usize,
    width: usize,
    silu: bool,
    bias: bool,
    window: bool,
    packing: Packing,
}

/// The numbers of a case, in row-major order.
#[derive(Debug, Clone)]
struct Data {
    case: Case,
    x: Vec<f64>,
    weight: Vec<f64>,
    bias: Vec<f64>,
    window: Vec<f64>,
    grad_out: Vec<f64>,
    grad_final: Vec<f64>,
}

impl Case {
    fn states(&self) -> usize {
        if let Packing::Offsets(offsets) = &self.packing { offsets.len() - 1 } else { self.batch }
    }

    fn data(self) -> Data {
        let (n, window) = (self.batch * self.seqlen * self.dim, self.states() * (self.width - 1) * self.dim);
        Data {
            x: numbers(n, 1),
            weight: numbers(self.dim * self.width, 2).iter().map(|v| v / 2.0).collect(),
            bias: numbers(self.dim, 3),
            window: numbers(window, 4),
            grad_out: numbers(n, 5),
            grad_final: numbers(window, 6),
            case: self,
        }
    }
}

/// Widths, lengths and options in every packing.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (i, (width, dim)) in [(1, 3), (2, 5), (3, 70), (4, 64), (4, 3), (7, 2), (40, 1)].into_iter().enumerate() {
        for (j, seqlen) in [0, 1, 2, 3, 4, 31, 33, 70].into_iter().enumerate() {
            let (silu, bias, window) = ((i + j) % 2 == 0, (i + j) % 3 != 0, j % 2 == 1 || i % 2 == 1);
            let case = Case { batch: 2, seqlen, dim, width, silu, bias, window, packing: Packing::Rows };
            let ids = |row: i32| (0..seqlen as i32).map(move |t| if (t + row) % 5 == 1 { -1 - t } else { (t + row) / 6 });
            cases.push(Case { packing: Packing::Ids(ids(0).chain(ids(3)).collect()), ..case.clone() });
            let l = seqlen as i64;
            let offsets = vec![0, 0, l / 4, l / 4, l / 4 + l / 3, l, l];
            cases.push(Case { batch: 1, packing: Packing::Offsets(offsets), ..case.clone() });
            cases.push(case);
        }
    }
    cases
}

/// The tensors of a case, stored in `I`.
struct Tensors<I: Input> {
    case: Case,
    x: Tensor<I, 3>,
    weight: Tensor<I::Accum, 2>,
    bias: Option<Tensor<I::Accum, 1>>,
    window: Option<Tensor<I, 3>>,
    offsets: Option<Tensor<i64, 1>>,
    ids: Option<Tensor<i32, 2>>,
}

impl<I: Input> Tensors<I> {
    fn new(d: &Data, layout: Layout) -> Self {
        let c = &d.case;
        let states = c.states();
        Tensors {
            case: c.clone(),
            x: Tensor::new([c.batch, c.seqlen, c.dim], layout, &stored(&d.x)),
            weight: Tensor::new([c.dim, c.width], layout, &stored(&d.weight)),
            bias: c.bias.then(|| Tensor::new([c.dim], layout, &stored(&d.bias))),
            window: c.window.then(|| Tensor::new([states, c.width - 1, c.dim], layout, &stored(&d.window))),
            offsets: if let Packing::Offsets(v) = &c.packing { Some(Tensor::new([v.len()], layout, v)) } else { None },
            ids: if let Packing::Ids(v) = &c.packing { Some(Tensor::new([c.batch, c.seqlen], layout, v)) } else { None },
        }
    }

    fn inputs(&self) -> ConvInputs<'_, I> {
        let sequences = match (&self.offsets, &self.ids) {
            (Some(v), _) => Sequences::CuSeqlens(v.view()),
            (_, Some(v)) => Sequences::SeqIdx(v.view()),
            _ => Sequences::Rows,
        };
        ConvInputs {
            x: self.x.view(),
            weight: self.weight.view(),
            bias: self.bias.as_ref().map(Tensor::view),
            initial_window: self.window.as_ref().map(Tensor::view),
            sequences,
            silu: self.case.silu,
        }
    }

    fn problem(&self) -> ConvProblem {
        let Case { batch, seqlen, dim, width, .. } = self.case;
        ConvProblem { batch, seqlen, dim, width, states: self.case.states() }
    }

    fn window_dims(&self) -> [usize; 3] {
        [self.case.states(), self.case.width - 1, self.case.dim]
    }
}

fn nan<I: Input>() -> I {
    I::store(I::Accum::from_f64(f64::NAN))
}

/// Who computes the outputs.
#[derive(Debug, Clone, Copy)]
enum By {
    Host,
    Simd(Isa),
}

/// The functions for host memory, and the SIMD kernels of this machine.
fn all_by() -> Vec<By> {
    let simd = Isa::ALL.into_iter().filter(|isa| Cpu::new().with_isa(*isa).is_ok()).map(By::Simd);
    [By::Host].into_iter().chain(simd).collect()
}

fn cpu(isa: Isa, par: Par) -> Cpu {
    Cpu::new().with_isa(isa).unwrap().with_par(par)
}

/// out and the final window by the functions for host memory.
fn forward<I: Input>(d: &Data, layout: Layout, threads: Threads) -> (Vec<I>, Vec<I>) {
    forward_by(By::Host, d, layout, threads)
}

/// out and the final window.
fn forward_by<I: Input>(by: By, d: &Data, layout: Layout, threads: Threads) -> (Vec<I>, Vec<I>) {
    let t = Tensors::<I>::new(d, layout);
    let mut out = Tensor::filled([d.case.batch, d.case.seqlen, d.case.dim], layout, nan::<I>());
    let mut last = Tensor::filled(t.window_dims(), layout, nan::<I>());
    let query = |par| match by {
        By::Host => causal_conv1d_fwd_workspace::<I>(&t.problem(), par),
        By::Simd(isa) => cpu(isa, par).causal_conv1d_fwd_workspace::<I>(&t.problem()),
    };
    threads.run(1, query, |par, ws| {
        let args = ConvFwd { inputs: t.inputs(), out: out.view_mut(), final_window: Some(last.view_mut()) };
        match by {
            By::Host => causal_conv1d_fwd(args, par, ws),
            By::Simd(isa) => cpu(isa, par).causal_conv1d_fwd(args, ws),
        }
        .unwrap();
    });
    (out.values(), last.values())
}

#[derive(Debug)]
struct Grads<I: Input> {
    x: Vec<I>,
    weight: Vec<I::Accum>,
    bias: Vec<I::Accum>,
    window: Vec<I>,
}

fn backward<I: Input>(d: &Data, layout: Layout, threads: Threads) -> Grads<I> {
    let (t, c) = (Tensors::<I>::new(d, layout), &d.case);
    let dims = [c.batch, c.seqlen, c.dim];
    let grad_out = Tensor::new(dims, layout, &stored::<I>(&d.grad_out));
    let grad_final = Tensor::new(t.window_dims(), layout, &stored::<I>(&d.grad_final));
    let (mut x, mut window) = (Tensor::filled(dims, layout, nan::<I>()), Tensor::filled(t.window_dims(), layout, nan::<I>()));
    let (mut weight, mut bias) = (Tensor::filled([c.dim, c.width], layout, nan()), Tensor::filled([c.dim], layout, nan()));
    threads.run(
        1,
        |par| causal_conv1d_bwd_workspace::<I>(&t.problem(), par),
        |par, ws| {
            let grads = ConvGrads {
                x: Some(x.view_mut()),
                weight: Some(weight.view_mut()),
                bias: c.bias.then(|| bias.view_mut()),
                initial_window: c.window.then(|| window.view_mut()),
            };
            let args = ConvBwd { inputs: t.inputs(), grad_out: grad_out.view(), grad_final_window: Some(grad_final.view()), grads };
            causal_conv1d_bwd(args, par, ws).unwrap();
        },
    );
    Grads {
        x: x.values(),
        weight: weight.values(),
        bias: if c.bias { bias.values() } else { Vec::new() },
        window: if c.window { window.values() } else { Vec::new() },
    }
}

/// The positions of each state's span, row by row: (row, position, whether a sequence other than the span's first begins there).
fn spans(case: &Case) -> Vec<Vec<(usize, usize, bool)>> {
    let row = |b: usize, range: core::ops::Range<usize>| range.map(|t| (b, t, false)).collect();
    match &case.packing {
        Packing::Rows => (0..case.batch).map(|b| row(b, 0..case.seqlen)).collect(),
        Packing::Offsets(v) => v.windows(2).map(|w| row(0, w[0] as usize..w[1] as usize)).collect(),
        Packing::Ids(ids) => {
            let of_row = |b: usize| {
                let mut before = None;
                let mut span = Vec::new();
                for t in 0..case.seqlen {
                    let id = ids[b * case.seqlen + t];
                    if id >= 0 {
                        span.push((b, t, before.is_some_and(|v| v != id)));
                        before = Some(id);
                    }
                }
                span
            };
            (0..case.batch).map(of_row).collect()
        }
    }
}

/// out and the final window by plain loops.
fn reference(d: &Data) -> (Vec<f64>, Vec<f64>) {
    let Case { seqlen, dim, width, silu, .. } = d.case;
    let (mut out, mut last) = (vec![0.0; d.x.len()], Vec::new());
    for (state, span) in spans(&d.case).into_iter().enumerate() {
        let mut window: Vec<Vec<f64>> = (0..width - 1)
            .map(|k| (0..dim).map(|c| if d.case.window { d.window[(state * (width - 1) + k) * dim + c] } else { 0.0 }).collect())
            .collect();
        for (b, t, fresh) in span {
            if fresh {
                window = vec![vec![0.0; dim]; width - 1];
            }
            let at = (b * seqlen + t) * dim;
            window.push(d.x[at..at + dim].to_vec());
            for c in 0..dim {
                let bias = if d.case.bias { d.bias[c] } else { 0.0 };
                let sum = bias + (0..width).map(|k| d.weight[c * width + k] * window[k][c]).sum::<f64>();
                out[at + c] = if silu { sum / (1.0 + (-sum).exp()) } else { sum };
            }
            window.remove(0);
        }
        last.extend(window.concat());
    }
    (out, last)
}

fn forward_is_close<I: Input>(bound: f64) {
    for d in cases().into_iter().map(Case::data) {
        let (out, last) = reference(&d);
        for (by, layout) in all_by().into_iter().flat_map(|by| LAYOUTS.map(|l| (by, l))) {
            let got = forward_by::<I>(by, &d, layout, Threads::One);
            let worst = error(&wide(&got.0), &out);
            assert!(worst <= bound, "{by:?} on {:?}, {layout:?}: {worst:e}", d.case);
            assert_eq!(wide(&got.1), last, "{by:?} on {:?}, {layout:?}", d.case);
        }
    }
}

#[test]
fn forward_is_the_definition() {
    forward_is_close::<f64>(1e-14);
    forward_is_close::<f32>(1e-6);
}

#[test]
fn sixteen_bits_are_rounded_once() {
    fn rounded<I: Input>() {
        for d in cases().into_iter().map(Case::data) {
            let exact = reference(&d);
            for by in all_by() {
                let got = forward_by::<I>(by, &d, Layout::Dense, Threads::One);
                assert_rounded::<I>("out", &wide(&got.0), &exact.0);
                assert_eq!(wide(&got.1), exact.1);
            }
            let (got, exact) = (backward::<I>(&d, Layout::Dense, Threads::One), backward::<f64>(&d, Layout::Dense, Threads::One));
            assert_rounded::<I>("grads.x", &wide(&got.x), &exact.x);
            assert_rounded::<I>("grads.initial_window", &wide(&got.window), &exact.window);
            assert!(error(&wide(&got.weight), &exact.weight) <= 4e-6 && error(&wide(&got.bias), &exact.bias) <= 4e-6);
        }
    }
    rounded::<f16>();
    rounded::<bf16>();
}

/// Σ of the products of the outputs with their upstream gradients.
fn loss(d: &Data) -> f64 {
    let (out, last) = reference(d);
    out.iter().zip(&d.grad_out).chain(last.iter().zip(&d.grad_final)).map(|(a, b)| a * b).sum()
}

#[test]
fn gradients_are_central_differences() {
    const STEP: f64 = 1e-5;
    let small = |c: &Case| c.dim <= 5 && c.seqlen <= 4 || (c.dim == 3 && c.seqlen == 33);
    for d in cases().into_iter().filter(small).map(Case::data) {
        let difference = |of: fn(&mut Data) -> &mut Vec<f64>, i: usize| {
            let at = |step: f64| {
                let mut moved = d.clone();
                of(&mut moved)[i] += step;
                loss(&moved)
            };
            (at(STEP) - at(-STEP)) / (2.0 * STEP)
        };
        let got = backward::<f64>(&d, Layout::Dense, Threads::One);
        let check = |name: &str, got: &[f64], of: fn(&mut Data) -> &mut Vec<f64>| {
            let want: Vec<f64> = (0..got.len()).map(|i| difference(of, i)).collect();
            let max = want.iter().fold(1.0f64, |m, v| m.max(v.abs()));
            got.iter().zip(&want).for_each(|(g, w)| assert!((g - w).abs() <= 1e-8 * max, "{name} of {:?}: {g}, wanted {w}", d.case));
        };
        check("x", &got.x, |d| &mut d.x);
        check("weight", &got.weight, |d| &mut d.weight);
        check("bias", &got.bias, |d| &mut d.bias);
        check("window", &got.window, |d| &mut d.window);
    }
}

#[test]
fn f32_gradients_are_close_to_f64() {
    for d in cases().into_iter().map(Case::data) {
        let (got, want) = (backward::<f32>(&d, Layout::Dense, Threads::One), backward::<f64>(&d, Layout::Dense, Threads::One));
        for (name, got, want) in [
            ("x", wide(&got.x), want.x),
            ("weight", wide(&got.weight), want.weight),
            ("bias", wide(&got.bias), want.bias),
            ("window", wide(&got.window), want.window),
        ] {
            assert!(error(&got, &want) <= 2e-6, "{name} of {:?}: {:e}", d.case, error(&got, &want));
        }
    }
}

#[test]
fn backward_is_the_adjoint_of_forward() {
    for mut case in cases() {
        // Linear in x and the window once there is neither SiLU nor bias.
        (case.silu, case.bias) = (false, false);
        let d = case.data();
        let (out, last) = forward::<f64>(&d, Layout::Dense, Threads::One);
        let got = backward::<f64>(&d, Layout::Dense, Threads::One);
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let left = dot(&out, &d.grad_out) + dot(&last, &d.grad_final);
        let right = dot(&d.x, &got.x) + if d.case.window { dot(&d.window, &got.window) } else { 0.0 };
        let size = out.iter().zip(&d.grad_out).map(|(a, b)| (a * b).abs()).sum::<f64>() + 1.0;
        assert!((left - right).abs() <= 1e-13 * size, "{:?}: {left} and {right}", d.case);
    }
}

#[test]
fn bits_depend_on_neither_layout_nor_threads() {
    for d in cases().into_iter().filter(|c| c.seqlen >= 3).map(Case::data) {
        let whole = all_by().into_iter().map(|by| (by, forward_by::<f32>(by, &d, Layout::Dense, Threads::One))).collect::<Vec<_>>();
        let grads = backward::<f32>(&d, Layout::Dense, Threads::One);
        let ways = LAYOUTS.map(|l| (l, Threads::One)).into_iter().chain(THREADS.map(|t| (Layout::Dense, t)));
        for (layout, threads) in ways {
            let what = format!("{:?}, {layout:?}, {threads:?}", d.case);
            for (by, (out, last)) in &whole {
                let got = forward_by::<f32>(*by, &d, layout, threads);
                assert_bits(&what, &got.0, out);
                assert_bits(&what, &got.1, last);
            }
            let got = backward::<f32>(&d, layout, threads);
            assert_bits(&what, &got.x, &grads.x);
            assert_bits(&what, &got.weight, &grads.weight);
            assert_bits(&what, &got.bias, &grads.bias);
            assert_bits(&what, &got.window, &grads.window);
        }
    }
}

/// `range` of the positions of row `row` as a case of its own, with the window of state `state` or none.
fn cut(d: &Data, row: usize, positions: &[usize], state: Option<usize>) -> Data {
    let Case { seqlen, dim, width, .. } = d.case;
    let pick = |v: &[f64]| positions.iter().flat_map(|t| v[(row * seqlen + t) * dim..][..dim].to_vec()).collect::<Vec<_>>();
    let size = (width - 1) * dim;
    let window = |v: &[f64]| state.map_or(vec![0.0; size], |s| v[s * size..][..size].to_vec());
    Data {
        case: Case {
            batch: 1,
            seqlen: positions.len(),
            window: state.is_some() && d.case.window,
            packing: Packing::Rows,
            ..d.case.clone()
        },
        x: pick(&d.x),
        grad_out: pick(&d.grad_out),
        window: window(&d.window),
        grad_final: window(&d.grad_final),
        ..d.clone()
    }
}

/// Packed sequences and the same ones each run alone.
#[test]
fn packed_is_apart() {
    for d in cases().into_iter().filter(|c| !matches!(c.packing, Packing::Rows)).map(Case::data) {
        let whole = all_by().into_iter().map(|by| (by, forward_by::<f32>(by, &d, Layout::Dense, Threads::Rayon(2)))).collect::<Vec<_>>();
        let grads = backward::<f32>(&d, Layout::Dense, Threads::Rayon(2));
        let size = (d.case.width - 1) * d.case.dim;
        for (state, span) in spans(&d.case).into_iter().enumerate() {
            let starts: Vec<usize> = (0..span.len()).filter(|&i| i == 0 || span[i].2).chain([span.len()]).collect();
            for (i, w) in starts.windows(2).enumerate() {
                let positions: Vec<usize> = span[w[0]..w[1]].iter().map(|p| p.1).collect();
                let (row, is_last) = (span[0].0, w[1] == span.len());
                let mut part = cut(&d, row, &positions, Some(state));
                part.case.window &= i == 0;
                if !is_last {
                    part.grad_final.fill(0.0);
                }
                let pick = |v: &[f32]| {
                    let at = |t: &usize| v[(row * d.case.seqlen + t) * d.case.dim..][..d.case.dim].to_vec();
                    positions.iter().flat_map(at).collect::<Vec<_>>()
                };
                let what = format!("{:?}, state {state}, sequence {i}", d.case);
                for (by, (out, last)) in &whole {
                    let (alone, window) = forward_by::<f32>(*by, &part, Layout::Dense, Threads::One);
                    assert_bits(&what, &pick(out), &alone);
                    if is_last {
                        assert_bits(&what, &last[state * size..][..size], &window);
                    }
                }
                let alone = backward::<f32>(&part, Layout::Dense, Threads::One);
                assert_bits(&what, &pick(&grads.x), &alone.x);
                if part.case.window {
                    assert_bits(&what, &grads.window[state * size..][..size], &alone.window);
                }
            }
        }
    }
}

#[test]
fn padding_is_zero_and_nothing_crosses_a_boundary() {
    let case = Case {
        batch: 1,
        seqlen: 9,
        dim: 2,
        width: 4,
        silu: true,
        bias: true,
        window: true,
        packing: Packing::Ids(vec![-1, 0, -2, 0, 2, 2, -1, 2, -1]),
    };
    let mut d = case.data();
    // Channel 0 is NaN at padding and in the first sequence, infinite in its window and gradients.
    for t in [0, 1, 2, 3, 6, 8] {
        d.x[2 * t] = f64::NAN;
        d.grad_out[2 * t] = f64::INFINITY;
    }
    d.window.fill(f64::INFINITY);
    let (out, last) = forward::<f32>(&d, Layout::Dense, Threads::One);
    let grads = backward::<f32>(&d, Layout::Dense, Threads::One);
    for t in [0, 2, 6, 8] {
        assert_eq!((&out[2 * t..][..2], &grads.x[2 * t..][..2]), (&[0.0; 2][..], &[0.0; 2][..]));
    }
    for t in [4, 5, 7] {
        assert!(out[2 * t..][..2].iter().chain(&grads.x[2 * t..][..2]).all(|v| v.is_finite()), "position {t}");
    }
    assert!(out[2].is_nan() && out[6].is_nan() && last.iter().all(|v| v.is_finite()));
}

#[test]
fn a_nan_spoils_w_positions() {
    for width in [1, 2, 4, 5] {
        let case = Case { batch: 1, seqlen: 40, dim: 3, width, silu: true, bias: true, window: false, packing: Packing::Rows };
        let mut d = case.data();
        d.x[30 * 3 + 1] = f64::NAN;
        let (out, _) = forward::<f32>(&d, Layout::Dense, Threads::One);
        let spoilt = |i: usize| i % 3 == 1 && (30..30 + width).contains(&(i / 3));
        assert!(out.iter().enumerate().all(|(i, v)| v.is_nan() == spoilt(i)), "width {width}");
    }
}

#[test]
fn split_anywhere_is_whole() {
    for d in cases().into_iter().filter(|c| matches!(c.packing, Packing::Rows) && c.seqlen <= 33).map(Case::data) {
        let all: Vec<usize> = (0..d.case.seqlen).collect();
        let whole = cut(&d, 1, &all, Some(1));
        let (out, last) = forward::<f32>(&whole, Layout::Dense, Threads::One);
        let grads = backward::<f32>(&whole, Layout::Dense, Threads::One);
        for at in 0..=d.case.seqlen {
            let what = format!("{:?} at {at}", d.case);
            let (mut head, mut tail) = (cut(&d, 1, &all[..at], Some(1)), cut(&d, 1, &all[at..], Some(1)));
            let first = forward::<f32>(&head, Layout::Dense, Threads::One);
            (tail.case.window, tail.window) = (true, wide(&first.1));
            let second = forward::<f32>(&tail, Layout::Dense, Threads::One);
            assert_bits(&what, &[first.0, second.0].concat(), &out);
            assert_bits(&what, &second.1, &last);
            let second = backward::<f32>(&tail, Layout::Dense, Threads::One);
            head.grad_final = wide(&second.window);
            let first = backward::<f32>(&head, Layout::Dense, Threads::One);
            // The sum over the taps is cut in two here, so it rounds differently.
            assert!(error(&wide(&[first.x, second.x].concat()), &wide(&grads.x)) <= 1e-6, "{what}");
            assert!(error(&wide(&first.window), &wide(&grads.window)) <= 1e-6, "{what}");
        }
    }
}

/// Steps through slots, in every layout, and the forward call.
#[test]
fn steps_are_forward() {
    let rows = cases().into_iter().filter(|c| matches!(c.packing, Packing::Rows)).zip(LAYOUTS.iter().cycle());
    for ((case, layout), by) in rows.flat_map(|row| all_by().into_iter().map(move |by| (row.clone(), by))) {
        let d = case.data();
        let Case { batch, seqlen, dim, width, silu, window, .. } = d.case;
        let (out, last) = forward_by::<f32>(by, &d, Layout::Dense, Threads::One);
        let t = Tensors::<f32>::new(&d, *layout);
        // Row 0 lives in slot 2, row 1 in slot 0; slot 1 belongs to nobody.
        let size = (width - 1) * dim;
        let start: Vec<f32> = if window { stored(&d.window) } else { vec![0.0; 2 * size] };
        let other: Vec<f32> = stored(&numbers(size, 9));
        let mut windows = Tensor::new([3, width - 1, dim], *layout, &[&start[size..], &other, &start[..size]].concat());
        let slots = [2, -1, 0];
        let problem = ConvProblem { batch: 3, seqlen: 1, dim, width, states: 3 };
        for at in 0..seqlen {
            let row = |b: usize| stored::<f32>(&d.x[(b * seqlen + at) * dim..][..dim]);
            let x = Tensor::new([3, dim], *layout, &[row(0), vec![f32::NAN; dim], row(1)].concat());
            let mut got = Tensor::filled([3, dim], *layout, 7.0f32);
            let query = |par| match by {
                By::Host => causal_conv1d_update_workspace::<f32>(&problem, par),
                By::Simd(isa) => cpu(isa, par).causal_conv1d_update_workspace::<f32>(&problem),
            };
            Threads::Rayon(2).run(1, query, |par, ws| {
                let slots = Some(View::new(&slots, [3]));
                let (weight, bias) = (t.weight.view(), t.bias.as_ref().map(Tensor::view));
                let step = ConvStep { x: x.view(), weight, bias, window: windows.view_mut(), slots, out: got.view_mut(), silu };
                match by {
                    By::Host => causal_conv1d_update(step, par, ws),
                    By::Simd(isa) => cpu(isa, par).causal_conv1d_update(step, ws),
                }
                .unwrap();
            });
            let want = |b: usize| out[(b * seqlen + at) * dim..][..dim].to_vec();
            assert_bits(&format!("{:?} at {at}", d.case), &got.values(), &[want(0), vec![7.0; dim], want(1)].concat());
        }
        assert_eq!(batch, 2);
        assert_bits(&format!("{:?}", d.case), &windows.values(), &[&last[size..], &other, &last[..size]].concat());
    }
}

/// The reference cases: outputs and gradients made elsewhere, in f64.
#[test]
fn reference_cases_are_met() {
    let mut met = 0;
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden")).unwrap() {
        let path = entry.unwrap().path();
        if !path.file_name().unwrap().to_string_lossy().starts_with("conv1d-") {
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let options: serde_json::Value = serde_json::from_str(&header.metadata().as_ref().unwrap()["options"]).unwrap();
        let tensor = |name: &str| file.tensor(name).map(|t| bytemuck::pod_collect_to_vec::<u8, f64>(t.data())).unwrap_or_default();
        let (x, weight) = (file.tensor("x").unwrap(), file.tensor("weight").unwrap());
        let offsets = options.get("cu_seqlens").map(|v| serde_json::from_value(v.clone()).unwrap());
        let case = Case {
            batch: x.shape()[0],
            seqlen: x.shape()[1],
            dim: x.shape()[2],
            width: weight.shape()[1],
            silu: options["silu"].as_bool().unwrap(),
            bias: file.tensor("bias").is_ok(),
            window: file.tensor("window").is_ok(),
            packing: offsets.map_or(Packing::Rows, Packing::Offsets),
        };
        let d = Data {
            case,
            x: tensor("x"),
            weight: tensor("weight"),
            bias: tensor("bias"),
            window: tensor("window"),
            grad_out: tensor("grad_out"),
            grad_final: tensor("grad_final_window"),
        };
        fn met_in<I: Input>(d: &Data, bound: f64, tensor: impl Fn(&str) -> Vec<f64>) {
            let (out, last) = forward::<I>(d, Layout::Dense, Threads::One);
            let grads = backward::<I>(d, Layout::Dense, Threads::One);
            let (weight, bias) = (wide(&grads.weight), wide(&grads.bias));
            let gradients =
                [("grad.x", wide(&grads.x)), ("grad.weight", weight), ("grad.bias", bias), ("grad.window", wide(&grads.window))];
            for (name, got) in [("out", wide(&out)), ("final_window", wide(&last))].into_iter().chain(gradients) {
                let worst = error(&got, &tensor(name));
                assert!(worst <= bound, "{name} of {:?}: {worst:e}", d.case);
            }
        }
        met_in::<f64>(&d, 1e-13, tensor);
        met_in::<f32>(&d, 2e-6, tensor);
        met += 1;
    }
    assert!(met >= 5, "{met} cases");
}

/// The error of a forward call on f32 with these shapes.
fn shapes(x: [usize; 3], w: [usize; 2], bias: usize, window: [usize; 3], out: [usize; 3], out_strides: [isize; 3]) -> Result<(), Error> {
    let (data, mut written, mut last) = (vec![0f32; 64], vec![0f32; 64], vec![0f32; 64]);
    let inputs = ConvInputs {
        x: View::new(&data, x),
        weight: View::new(&data, w),
        bias: Some(View::new(&data, [bias])),
        initial_window: Some(View::new(&data, window)),
        sequences: Sequences::Rows,
        silu: true,
    };
    let (out, last) = (ViewMut::strided(&mut written, 0, out, out_strides), Some(ViewMut::new(&mut last, window)));
    alone(1 << 20, |ws| Naive.causal_conv1d_fwd(ConvFwd { inputs, out, final_window: last }, ws))
}

#[test]
fn what_is_wrong_is_named() {
    let (x, strides) = ([2, 4, 3], [12, 3, 1]);
    assert_eq!(shapes(x, [3, 4], 3, [2, 3, 3], x, strides), Ok(()));
    let names = |result: Result<(), Error>, name: &str| {
        let text = result.as_ref().map_err(|e| e.to_string()).err();
        assert!(text.is_some_and(|e| e.contains(&format!("`{name}`"))), "{result:?}, wanted {name}");
    };
    names(shapes([20, 4, 3], [3, 4], 3, [2, 3, 3], x, strides), "x");
    names(shapes(x, [3, 0], 3, [2, 3, 3], x, strides), "weight");
    names(shapes(x, [2, 4], 3, [2, 3, 3], x, strides), "weight");
    names(shapes(x, [3, 4], 4, [2, 3, 3], x, strides), "bias");
    names(shapes(x, [3, 4], 3, [2, 4, 3], x, strides), "initial_window");
    names(shapes(x, [3, 4], 3, [2, 3, 3], [2, 4, 4], [16, 4, 1]), "out");
    names(shapes(x, [3, 4], 3, [2, 3, 3], x, [12, 0, 1]), "out");
    names(shapes(x, [3, 4], 3, [2, 3, 3], x, [isize::MAX, 3, 1]), "out");
    let data = [0f32; 8];
    let inputs = ConvInputs {
        x: View::new(&data, [1, 2, 2]),
        weight: View::new(&data, [2, 2]),
        bias: None,
        initial_window: None,
        sequences: Sequences::Rows,
        silu: false,
    };
    let (mut bias, mut window) = ([0f32; 2], [0f32; 2]);
    let bwd = |grads| {
        let args = ConvBwd { inputs, grad_out: View::new(&data, [1, 2, 2]), grad_final_window: None, grads };
        alone(1 << 20, |ws| Naive.causal_conv1d_bwd(args, ws))
    };
    names(bwd(ConvGrads { bias: Some(ViewMut::new(&mut bias, [2])), ..Default::default() }), "grads.bias");
    let grads = ConvGrads { initial_window: Some(ViewMut::new(&mut window, [1, 1, 2])), ..Default::default() };
    names(bwd(grads), "grads.initial_window");
    let (mut window, mut out) = ([0f32; 6], [0f32; 4]);
    let mut step = |slots: [i32; 2]| {
        let args = ConvStep {
            x: View::new(&data, [2, 2]),
            weight: View::new(&data, [2, 2]),
            bias: None,
            window: ViewMut::new(&mut window, [3, 1, 2]),
            slots: Some(View::new(&slots, [2])),
            out: ViewMut::new(&mut out, [2, 2]),
            silu: false,
        };
        alone(1 << 20, |ws| Naive.causal_conv1d_update(args, ws))
    };
    assert_eq!(step([2, -5]), Ok(()));
    names(step([0, 3]), "slots");
    names(step([1, 1]), "slots");
}

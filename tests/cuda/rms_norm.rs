//! RMSNorm against `Naive` in f64, in every pair of types and every layout.

use half::{bf16, f16};
use selective_scan::element::{Input, Real};
use selective_scan::layers::norm::{NormBwd, NormFwd, RmsNorm};
use selective_scan::naive::Naive;
use selective_scan::view::{View, ViewMut};

use super::engine;
use super::tensor::{LAYOUTS, Layout, Tensor, named, with_workspace};
use super::tensors::{alone, assert_bits, assert_rounded, error, numbers, stored, wide};

/// Around the sizes of warps, of what a thread keeps and of blocks of rows.
const SIZES: [[usize; 2]; 11] = [[1, 1], [2, 3], [17, 8], [33, 40], [5, 257], [3, 1000], [2, 2561], [2, 8193], [0, 5], [4, 0], [40, 2]];
const EPS: f64 = 1e-5;

struct Data {
    dims: [usize; 2],
    stream: bool,
    x: Vec<f64>,
    residual: Vec<f64>,
    weight: Vec<f64>,
    grad_out: Vec<f64>,
    grad_stream: Vec<f64>,
}

fn data(dims @ [rows, columns]: [usize; 2], stream: bool) -> Data {
    let of = |seed| numbers(rows * columns, seed);
    Data { dims, stream, x: of(1), residual: of(2), weight: numbers(columns, 3), grad_out: of(4), grad_stream: of(5) }
}

fn all() -> impl Iterator<Item = Data> {
    SIZES.into_iter().flat_map(|dims| [data(dims, false), data(dims, true)])
}

/// out and r.
fn forward<I: Input, R: Input<Accum = I::Accum>>(d: &Data, layout: Layout) -> (Vec<I>, Vec<R>) {
    let nan = I::Accum::from_f64(f64::NAN);
    let x = Tensor::new(d.dims, layout, &stored::<I>(&d.x));
    let residual = Tensor::new(d.dims, layout, &stored::<R>(&d.residual));
    let weight = Tensor::new([d.dims[1]], layout, &stored::<I::Accum>(&d.weight));
    let (mut out, mut r) = (Tensor::filled(d.dims, layout, I::store(nan)), Tensor::filled(d.dims, layout, R::store(nan)));
    let args = NormFwd {
        x: x.view(),
        residual: d.stream.then(|| residual.view()),
        weight: weight.view(),
        eps: EPS,
        out: out.view_mut(),
        residual_out: Some(r.view_mut()),
    };
    with_workspace(engine().rms_norm_fwd_workspace::<I>(d.dims), |ws| engine().rms_norm_fwd(args, ws)).expect("it runs");
    (out.values(), r.values())
}

struct Grads<I: Input, R> {
    x: Vec<I>,
    residual: Vec<R>,
    weight: Vec<I::Accum>,
}

/// The gradients at r, which is `residual` here.
fn backward<I: Input, R: Input<Accum = I::Accum>>(d: &Data, layout: Layout) -> Grads<I, R> {
    let nan = I::Accum::from_f64(f64::NAN);
    let r = Tensor::new(d.dims, layout, &stored::<R>(&d.residual));
    let weight = Tensor::new([d.dims[1]], layout, &stored::<I::Accum>(&d.weight));
    let grad_out = Tensor::new(d.dims, layout, &stored::<I>(&d.grad_out));
    let grad_stream = Tensor::new(d.dims, layout, &stored::<R>(&d.grad_stream));
    let (mut x, mut residual) = (Tensor::filled(d.dims, layout, I::store(nan)), Tensor::filled(d.dims, layout, R::store(nan)));
    let mut grad_weight = Tensor::filled([d.dims[1]], layout, nan);
    let args = NormBwd {
        residual_out: r.view(),
        weight: weight.view(),
        eps: EPS,
        grad_out: grad_out.view(),
        grad_residual_out: d.stream.then(|| grad_stream.view()),
        grad_x: Some(x.view_mut()),
        grad_residual: Some(residual.view_mut()),
        grad_weight: Some(grad_weight.view_mut()),
    };
    with_workspace(engine().rms_norm_bwd_workspace::<I>(d.dims), |ws| engine().rms_norm_bwd(args, ws)).expect("it runs");
    Grads { x: x.values(), residual: residual.values(), weight: grad_weight.values() }
}

/// The same by `Naive`, in f64.
fn oracle_forward(d: &Data) -> (Vec<f64>, Vec<f64>) {
    let (mut out, mut r) = (vec![f64::NAN; d.x.len()], vec![f64::NAN; d.x.len()]);
    let args = NormFwd::<f64, f64> {
        x: View::new(&d.x, d.dims),
        residual: d.stream.then(|| View::new(&d.residual, d.dims)),
        weight: View::new(&d.weight, [d.dims[1]]),
        eps: EPS,
        out: ViewMut::new(&mut out, d.dims),
        residual_out: Some(ViewMut::new(&mut r, d.dims)),
    };
    alone(1 << 20, |ws| Naive.rms_norm_fwd(args, ws)).expect("it runs");
    (out, r)
}

fn oracle_backward(d: &Data) -> Grads<f64, f64> {
    let (mut x, mut residual, mut weight) = (vec![f64::NAN; d.x.len()], vec![f64::NAN; d.x.len()], vec![f64::NAN; d.dims[1]]);
    let args = NormBwd::<f64, f64> {
        residual_out: View::new(&d.residual, d.dims),
        weight: View::new(&d.weight, [d.dims[1]]),
        eps: EPS,
        grad_out: View::new(&d.grad_out, d.dims),
        grad_residual_out: d.stream.then(|| View::new(&d.grad_stream, d.dims)),
        grad_x: Some(ViewMut::new(&mut x, d.dims)),
        grad_residual: Some(ViewMut::new(&mut residual, d.dims)),
        grad_weight: Some(ViewMut::new(&mut weight, [d.dims[1]])),
    };
    alone(1 << 20, |ws| Naive.rms_norm_bwd(args, ws)).expect("it runs");
    Grads { x, residual, weight }
}

#[test]
fn wide_types_are_close_to_the_oracle() {
    for d in all() {
        let (out, r) = oracle_forward(&d);
        let got = forward::<f64, f64>(&d, Layout::Dense);
        assert_eq!(got.1, r);
        assert!(error(&got.0, &out) <= 1e-15, "{:?}", d.dims);
        let got = forward::<f32, f32>(&d, Layout::Dense);
        assert_eq!(wide(&got.1), r);
        assert!(error(&wide(&got.0), &out) <= 3e-7, "{:?}", d.dims);
        let want = oracle_backward(&d);
        let got = backward::<f64, f64>(&d, Layout::Dense);
        assert!(error(&got.x, &want.x) <= 1e-14 && error(&got.weight, &want.weight) <= 1e-14, "{:?}", d.dims);
        assert_bits("the same numbers twice", &got.x, &got.residual);
        let got = backward::<f32, f32>(&d, Layout::Dense);
        assert!(error(&wide(&got.x), &want.x) <= 6e-7, "{:?}: {:e}", d.dims, error(&wide(&got.x), &want.x));
        assert!(error(&wide(&got.weight), &want.weight) <= 2e-7, "{:?}", d.dims);
    }
}

/// Every pair of storage types with f32 arithmetic.
#[test]
fn narrow_types_are_rounded_once() {
    fn pair<I: Input<Accum = f32>, R: Input<Accum = f32>>(check: impl Fn(&str, &[f64], &[f64]), stream: impl Fn(&str, &[f64], &[f64])) {
        for d in all() {
            let ((out, r), want) = (forward::<I, R>(&d, Layout::Dense), oracle_forward(&d));
            check("out", &wide(&out), &want.0);
            stream("r", &wide(&r), &want.1);
            // The norm is of the sum before it is rounded.
            assert_bits("out", &forward::<I, f32>(&d, Layout::Dense).0, &out);
            let (got, want) = (backward::<I, R>(&d, Layout::Dense), oracle_backward(&d));
            check("grad_x", &wide(&got.x), &want.x);
            stream("grad_residual", &wide(&got.residual), &want.residual);
            assert!(error(&wide(&got.weight), &want.weight) <= 2e-7);
        }
    }
    let single = |what: &str, got: &[f64], want: &[f64]| assert!(error(got, want) <= 6e-7, "{what}");
    pair::<f16, f32>(assert_rounded::<f16>, single);
    pair::<bf16, f32>(assert_rounded::<bf16>, single);
    pair::<f16, f16>(assert_rounded::<f16>, assert_rounded::<f16>);
    pair::<bf16, bf16>(assert_rounded::<bf16>, assert_rounded::<bf16>);
    pair::<f16, bf16>(assert_rounded::<f16>, assert_rounded::<bf16>);
    pair::<bf16, f16>(assert_rounded::<bf16>, assert_rounded::<f16>);
    pair::<f32, f16>(single, assert_rounded::<f16>);
    pair::<f32, bf16>(single, assert_rounded::<bf16>);
}

#[test]
fn bits_depend_on_neither_layout_nor_repeats() {
    for d in all() {
        let (out, r) = forward::<bf16, f32>(&d, Layout::Dense);
        let grads = backward::<bf16, f32>(&d, Layout::Dense);
        for layout in LAYOUTS {
            let what = format!("{:?}, {layout:?}", d.dims);
            let got = forward::<bf16, f32>(&d, layout);
            assert_bits(&what, &got.0, &out);
            assert_bits(&what, &got.1, &r);
            let got = backward::<bf16, f32>(&d, layout);
            assert_bits(&what, &got.x, &grads.x);
            assert_bits(&what, &got.residual, &grads.residual);
            assert_bits(&what, &got.weight, &grads.weight);
        }
    }
}

#[test]
fn bits_of_a_row_do_not_depend_on_the_others() {
    let d = data([40, 65], true);
    let (out, _) = forward::<f32, f32>(&d, Layout::Dense);
    let grads = backward::<f32, f32>(&d, Layout::Dense);
    for row in [0, 15, 16, 39] {
        let pick = |v: &[f64]| v[row * 65..][..65].to_vec();
        let (x, residual, grad_out, grad_stream) = (pick(&d.x), pick(&d.residual), pick(&d.grad_out), pick(&d.grad_stream));
        let one = Data { dims: [1, 65], stream: true, x, residual, grad_out, grad_stream, weight: d.weight.clone() };
        assert_bits("out", &forward::<f32, f32>(&one, Layout::Dense).0, &out[row * 65..][..65]);
        assert_bits("grad_x", &backward::<f32, f32>(&one, Layout::Dense).x, &grads.x[row * 65..][..65]);
    }
}

#[test]
fn long_sums_of_weight_gradients_stay_accurate() {
    let mut d = data([5_000, 2], false);
    d.residual.iter_mut().chain(d.grad_out.iter_mut()).for_each(|v| *v = v.abs());
    let (got, want) = (backward::<f32, f32>(&d, Layout::Dense), oracle_backward(&d));
    assert!(error(&wide(&got.weight), &want.weight) <= 6e-8);
}

#[test]
fn more_rows_than_blocks() {
    let d = data([(1 << 16) + 40, 2], true);
    let ((out, r), want) = (forward::<f64, f64>(&d, Layout::Dense), oracle_forward(&d));
    assert!(r == want.1 && error(&out, &want.0) <= 1e-15);
}

#[test]
fn large_and_small_rows_neither_overflow_nor_vanish() {
    for size in [1e-30f32, 1e30] {
        let (x, weight) =
            (Tensor::new([1, 4], Layout::Dense, &[size, -size, size, size]), Tensor::new([4], Layout::Dense, &[1.0f32, 2.0, 3.0, 4.0]));
        let mut out = Tensor::filled([1, 4], Layout::Dense, 0f32);
        let args = NormFwd::<f32, f32, _> {
            x: x.view(),
            residual: None,
            weight: weight.view(),
            eps: 0.0,
            out: out.view_mut(),
            residual_out: None,
        };
        with_workspace(0, |ws| engine().rms_norm_fwd(args, ws)).expect("it runs");
        assert!(error(&wide(&out.values()), &[1.0, -2.0, 3.0, 4.0]) < 2e-7);
    }
}

/// One gradient at a time: what is absent is not written, and changes no bit of the others.
#[test]
fn each_gradient_alone() {
    let d = data([20, 70], true);
    let all = backward::<f32, f32>(&d, Layout::Dense);
    let (r, weight) =
        (Tensor::new(d.dims, Layout::Dense, &stored::<f32>(&d.residual)), Tensor::new([70], Layout::Dense, &stored::<f32>(&d.weight)));
    let grad_out = Tensor::new(d.dims, Layout::Dense, &stored::<f32>(&d.grad_out));
    let after = Tensor::new(d.dims, Layout::Dense, &stored::<f32>(&d.grad_stream));
    for which in 0..3 {
        let mut to = Tensor::filled(d.dims, Layout::Dense, f32::NAN);
        let mut residual = Tensor::filled(d.dims, Layout::Dense, f32::NAN);
        let mut grad_weight = Tensor::filled([70], Layout::Dense, f32::NAN);
        let args = NormBwd::<f32, f32, _> {
            residual_out: r.view(),
            weight: weight.view(),
            eps: EPS,
            grad_out: grad_out.view(),
            grad_residual_out: Some(after.view()),
            grad_x: (which == 0).then(|| to.view_mut()),
            grad_residual: (which == 1).then(|| residual.view_mut()),
            grad_weight: (which == 2).then(|| grad_weight.view_mut()),
        };
        with_workspace(engine().rms_norm_bwd_workspace::<f32>(d.dims), |ws| engine().rms_norm_bwd(args, ws)).expect("it runs");
        match which {
            0 => assert_bits("grad_x", &to.values(), &all.x),
            1 => assert_bits("grad_residual", &residual.values(), &all.residual),
            _ => assert_bits("grad_weight", &grad_weight.values(), &all.weight),
        }
    }
}

#[test]
fn what_is_wrong_is_named() {
    let (data, weight) = (Tensor::filled([2, 3], Layout::Dense, 1f32), Tensor::filled([2], Layout::Dense, 1f32));
    let mut out = Tensor::filled([2, 3], Layout::Dense, 7f32);
    let args =
        NormFwd::<f32, f32, _> { x: data.view(), residual: None, weight: weight.view(), eps: EPS, out: out.view_mut(), residual_out: None };
    assert_eq!(named(with_workspace(0, |ws| engine().rms_norm_fwd(args, ws))), "weight");
    assert_eq!(out.values(), [7.0; 6]);
}

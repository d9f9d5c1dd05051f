//! RMSNorm against `Naive` in f64, in every pair of types and every layout.

use half::{bf16, f16};
use selective_scan::element::{Input, Real};
use selective_scan::layers::norm::{NormBwd, NormFwd, NormOptions, RmsNorm};
use selective_scan::naive::Naive;
use selective_scan::view::{View, ViewMut};

use super::engine;
use super::norm_data::{Data, data};
use super::tensor::{LAYOUTS, Layout, Tensor, named, with_workspace};
use super::tensors::{alone, assert_bits, assert_rounded, error, stored, wide};

/// Around the sizes of warps, of what a thread keeps and of blocks of rows.
const SIZES: [[usize; 2]; 11] = [[1, 1], [2, 3], [17, 8], [33, 40], [5, 257], [3, 1000], [2, 2561], [2, 8193], [0, 5], [4, 0], [40, 2]];
const EPS: f64 = 1e-5;

/// Without a gate, with one on either side, and in groups.
fn all() -> impl Iterator<Item = Data> {
    SIZES.into_iter().enumerate().flat_map(|(i, dims)| {
        let [plain, stream] = [false, true].map(|stream| data(dims, stream));
        let gated = [plain.clone().gated(false), stream.clone().gated(true), stream.clone().gated(i % 2 == 0).grouped()];
        gated.into_iter().chain([plain.clone().grouped(), plain, stream])
    })
}

/// out and r.
fn forward<I: Input, R: Input<Accum = I::Accum>>(d: &Data, layout: Layout) -> (Vec<I>, Vec<R>) {
    let nan = I::Accum::from_f64(f64::NAN);
    let x = Tensor::new(d.dims, layout, &stored::<I>(&d.x));
    let residual = Tensor::new(d.dims, layout, &stored::<R>(&d.residual));
    let weight = Tensor::new([d.dims[1]], layout, &stored::<I::Accum>(&d.weight));
    let z = Tensor::new(d.dims, layout, &stored::<I>(&d.z));
    let (mut out, mut r) = (Tensor::filled(d.dims, layout, I::store(nan)), Tensor::filled(d.dims, layout, R::store(nan)));
    let args = NormFwd {
        x: x.view(),
        residual: d.stream.then(|| residual.view()),
        weight: weight.view(),
        z: d.gate.map(|_| z.view()),
        eps: EPS,
        options: d.options(),
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
    /// Empty where there is no gate.
    z: Vec<I>,
}

/// The gradients at r, which is `residual` here.
fn backward<I: Input, R: Input<Accum = I::Accum>>(d: &Data, layout: Layout) -> Grads<I, R> {
    let nan = I::Accum::from_f64(f64::NAN);
    let r = Tensor::new(d.dims, layout, &stored::<R>(&d.residual));
    let weight = Tensor::new([d.dims[1]], layout, &stored::<I::Accum>(&d.weight));
    let grad_out = Tensor::new(d.dims, layout, &stored::<I>(&d.grad_out));
    let grad_stream = Tensor::new(d.dims, layout, &stored::<R>(&d.grad_stream));
    let (mut x, mut residual) = (Tensor::filled(d.dims, layout, I::store(nan)), Tensor::filled(d.dims, layout, R::store(nan)));
    let (mut grad_weight, mut grad_z) = (Tensor::filled([d.dims[1]], layout, nan), Tensor::filled(d.dims, layout, I::store(nan)));
    let z = Tensor::new(d.dims, layout, &stored::<I>(&d.z));
    let args = NormBwd {
        residual_out: r.view(),
        weight: weight.view(),
        z: d.gate.map(|_| z.view()),
        eps: EPS,
        options: d.options(),
        grad_out: grad_out.view(),
        grad_residual_out: d.stream.then(|| grad_stream.view()),
        grad_x: Some(x.view_mut()),
        grad_residual: Some(residual.view_mut()),
        grad_weight: Some(grad_weight.view_mut()),
        grad_z: d.gate.map(|_| grad_z.view_mut()),
    };
    with_workspace(engine().rms_norm_bwd_workspace::<I>(d.dims), |ws| engine().rms_norm_bwd(args, ws)).expect("it runs");
    let z = if d.gate.is_some() { grad_z.values() } else { Vec::new() };
    Grads { x: x.values(), residual: residual.values(), weight: grad_weight.values(), z }
}

/// The same by `Naive`, in f64.
fn oracle_forward(d: &Data) -> (Vec<f64>, Vec<f64>) {
    let (mut out, mut r) = (vec![f64::NAN; d.x.len()], vec![f64::NAN; d.x.len()]);
    let args = NormFwd::<f64, f64> {
        residual: d.stream.then(|| View::new(&d.residual, d.dims)),
        z: d.gate.map(|_| View::new(&d.z, d.dims)),
        options: d.options(),
        residual_out: Some(ViewMut::new(&mut r, d.dims)),
        ..NormFwd::new(View::new(&d.x, d.dims), View::new(&d.weight, [d.dims[1]]), EPS, ViewMut::new(&mut out, d.dims))
    };
    alone(1 << 20, |ws| Naive.rms_norm_fwd(args, ws)).expect("it runs");
    (out, r)
}

fn oracle_backward(d: &Data) -> Grads<f64, f64> {
    let (mut x, mut residual, mut weight) = (vec![f64::NAN; d.x.len()], vec![f64::NAN; d.x.len()], vec![f64::NAN; d.dims[1]]);
    let mut z = vec![f64::NAN; if d.gate.is_some() { d.z.len() } else { 0 }];
    let (r, w, grad_out) = (View::new(&d.residual, d.dims), View::new(&d.weight, [d.dims[1]]), View::new(&d.grad_out, d.dims));
    let args = NormBwd::<f64, f64> {
        z: d.gate.map(|_| View::new(&d.z, d.dims)),
        options: d.options(),
        grad_residual_out: d.stream.then(|| View::new(&d.grad_stream, d.dims)),
        grad_x: Some(ViewMut::new(&mut x, d.dims)),
        grad_residual: Some(ViewMut::new(&mut residual, d.dims)),
        grad_weight: Some(ViewMut::new(&mut weight, [d.dims[1]])),
        grad_z: d.gate.map(|_| ViewMut::new(&mut z, d.dims)),
        ..NormBwd::new(r, w, EPS, grad_out)
    };
    alone(1 << 20, |ws| Naive.rms_norm_bwd(args, ws)).expect("it runs");
    Grads { x, residual, weight, z }
}

/// A gate adds the errors of SiLU and of its product.
fn bound(d: &Data, plain: f64) -> f64 {
    if d.gate.is_some() { 2.0 * plain } else { plain }
}

#[test]
fn wide_types_are_close_to_the_oracle() {
    fn close(d: &Data, what: &str, got: &[f64], want: &[f64], bound: f64) {
        assert!(error(got, want) <= bound, "{what} of {}: {:e}", d.name(), error(got, want));
    }
    for d in all() {
        let (out, r) = oracle_forward(&d);
        let got = forward::<f64, f64>(&d, Layout::Dense);
        assert_eq!(got.1, r);
        close(&d, "out", &got.0, &out, bound(&d, 1e-15));
        let got = forward::<f32, f32>(&d, Layout::Dense);
        assert_eq!(wide(&got.1), r);
        close(&d, "out in f32", &wide(&got.0), &out, bound(&d, 3e-7));
        let want = oracle_backward(&d);
        let got = backward::<f64, f64>(&d, Layout::Dense);
        for (what, got, want) in [("grad_x", &got.x, &want.x), ("grad_weight", &got.weight, &want.weight), ("grad_z", &got.z, &want.z)] {
            close(&d, what, got, want, 1e-14);
        }
        assert_bits("the same numbers twice", &got.x, &got.residual);
        let got = backward::<f32, f32>(&d, Layout::Dense);
        close(&d, "grad_x in f32", &wide(&got.x), &want.x, bound(&d, 6e-7));
        close(&d, "grad_z in f32", &wide(&got.z), &want.z, 1.2e-6);
        close(&d, "grad_weight in f32", &wide(&got.weight), &want.weight, bound(&d, 2e-7));
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
            check("grad_z", &wide(&got.z), &want.z);
            stream("grad_residual", &wide(&got.residual), &want.residual);
            assert!(error(&wide(&got.weight), &want.weight) <= bound(&d, 2e-7));
        }
    }
    let single = |what: &str, got: &[f64], want: &[f64]| assert!(error(got, want) <= 1.2e-6, "{what}: {:e}", error(got, want));
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
            let what = format!("{}, {layout:?}", d.name());
            let got = forward::<bf16, f32>(&d, layout);
            assert_bits(&what, &got.0, &out);
            assert_bits(&what, &got.1, &r);
            let got = backward::<bf16, f32>(&d, layout);
            assert_bits(&what, &got.x, &grads.x);
            assert_bits(&what, &got.residual, &grads.residual);
            assert_bits(&what, &got.weight, &grads.weight);
            assert_bits(&what, &got.z, &grads.z);
        }
    }
}

#[test]
fn bits_of_a_row_do_not_depend_on_the_others() {
    let plain = data([40, 65], true);
    for d in [plain.clone(), plain.clone().gated(false), plain.clone().grouped().gated(true), plain.grouped().gated(false)] {
        let (out, _) = forward::<f32, f32>(&d, Layout::Dense);
        let grads = backward::<f32, f32>(&d, Layout::Dense);
        for row in [0, 15, 16, 39] {
            let pick = |v: &[f64]| v[row * 65..][..65].to_vec();
            let (x, residual, grad_out, grad_stream) = (pick(&d.x), pick(&d.residual), pick(&d.grad_out), pick(&d.grad_stream));
            let one = Data { dims: [1, 65], z: pick(&d.z), x, residual, grad_out, grad_stream, ..d.clone() };
            assert_bits("out", &forward::<f32, f32>(&one, Layout::Dense).0, &out[row * 65..][..65]);
            let got = backward::<f32, f32>(&one, Layout::Dense);
            assert_bits("grad_x", &got.x, &grads.x[row * 65..][..65]);
            assert!(d.gate.is_none() || got.z == grads.z[row * 65..][..65]);
        }
    }
}

/// A group is normed as a row of its own would be.
#[test]
fn groups_are_rows() {
    for (gate, size) in [(None, 48), (Some(false), 48), (Some(true), 1), (Some(false), 1), (Some(true), 600)] {
        let d = Data { gate, group_size: Some(size), ..data([3, 1200], true) };
        let per_row = 1200 / size;
        let weight = d.weight.iter().copied().cycle().take(size).collect::<Vec<_>>();
        let d = Data { weight: weight.iter().copied().cycle().take(1200).collect(), ..d };
        let apart = Data { dims: [3 * per_row, size], group_size: None, weight, ..d.clone() };
        assert_bits("out", &forward::<bf16, f32>(&d, Layout::Dense).0, &forward::<bf16, f32>(&apart, Layout::Dense).0);
        let (got, want) = (backward::<bf16, f32>(&d, Layout::Transposed), backward::<bf16, f32>(&apart, Layout::Dense));
        assert_bits("grad_residual", &got.residual, &want.residual);
        assert_bits("grad_z", &got.z, &want.z);
    }
}

/// SiLU neither overflows nor loses its digits, however large its argument.
#[test]
fn gates_of_any_size() {
    let sizes = [0.0, -0.0, 1e-30, -1e-30, 1e-3, 5.0, -5.0, 20.0, -20.0, 80.0, -80.0, 89.0, -89.0, 104.0, -104.0, 1e4, -1e4, 1e15, -1e15];
    for before in [false, true] {
        let mut d = data([sizes.len(), 7], true).gated(before);
        for (row, size) in d.z.chunks_mut(7).zip(sizes) {
            row.fill(f64::from(size as f32));
        }
        let (out, want) = (forward::<f32, f32>(&d, Layout::Dense).0, oracle_forward(&d).0);
        let (got, grads) = (backward::<f32, f32>(&d, Layout::Dense), oracle_backward(&d));
        for (row, size) in sizes.iter().enumerate() {
            let at = row * 7..(row + 1) * 7;
            let close = |what: &str, got: &[f32], want: &[f64], bound: f64| {
                let worst = error(&wide(&got[at.clone()]), &want[at.clone()]);
                // Where silu is below the smallest normal number all but nothing is right.
                assert!(worst <= bound || want[at.clone()].iter().all(|w| w.abs() < 1e-30), "{what} with z = {size}, {before}: {worst:e}");
            };
            close("out", &out, &want, 6e-7);
            close("grad_x", &got.x, &grads.x, 1.2e-6);
            close("grad_z", &got.z, &grads.z, 1.2e-6);
        }
    }
}

#[test]
fn a_spoiled_gate_spoils_its_group_only() {
    let clean = data([5, 12], true);
    for (before, poison) in [false, true].into_iter().flat_map(|b| [f64::NAN, f64::INFINITY, f64::NEG_INFINITY].map(|p| (b, p))) {
        let clean = Data { group_size: Some(4), ..clean.clone().gated(before) };
        let mut dirty = clean.clone();
        // Row 2, group 1, its second column.
        dirty.z[2 * 12 + 5] = poison;
        let [clean, dirty] = [clean, dirty].map(|d| (forward::<f32, f32>(&d, Layout::Dense).0, backward::<f32, f32>(&d, Layout::Dense)));
        let of = |(out, grads): (Vec<f32>, Grads<f32, f32>)| [out, grads.x, grads.z];
        let (clean, dirty) = (of(clean), of(dirty));
        for (what, (clean, dirty)) in ["out", "grad_x", "grad_z"].into_iter().zip(clean.iter().zip(&dirty)) {
            let inside = |at: usize| (28..32).contains(&at);
            let same = |at: usize| clean[at].to_bits() == dirty[at].to_bits();
            assert!((0..60).all(|at| inside(at) || same(at)), "{what} with z = {poison}, {before}: it left its group");
            let spoiled = !dirty[29].is_finite() || (poison == f64::NEG_INFINITY && dirty[29] == 0.0);
            assert!(spoiled || (before && what == "grad_x"), "{what} with z = {poison}, {before}: {} is swallowed", dirty[29]);
            if poison.is_nan() && !(before && what != "grad_x") {
                assert!((28..32).all(|at| dirty[at].is_nan()), "{what}: a NaN spoils what is normed with it");
            }
        }
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
        let args = NormFwd::<f32, f32, _>::new(x.view(), weight.view(), 0.0, out.view_mut());
        with_workspace(0, |ws| engine().rms_norm_fwd(args, ws)).expect("it runs");
        assert!(error(&wide(&out.values()), &[1.0, -2.0, 3.0, 4.0]) < 2e-7);
    }
}

/// One gradient at a time: what is absent is not written, and changes no bit of the others.
#[test]
fn each_gradient_alone() {
    let d = data([20, 70], true).gated(false);
    let all = backward::<f32, f32>(&d, Layout::Dense);
    let (r, weight) =
        (Tensor::new(d.dims, Layout::Dense, &stored::<f32>(&d.residual)), Tensor::new([70], Layout::Dense, &stored::<f32>(&d.weight)));
    let grad_out = Tensor::new(d.dims, Layout::Dense, &stored::<f32>(&d.grad_out));
    let after = Tensor::new(d.dims, Layout::Dense, &stored::<f32>(&d.grad_stream));
    let z = Tensor::new(d.dims, Layout::Dense, &stored::<f32>(&d.z));
    for which in 0..4 {
        let mut to = Tensor::filled(d.dims, Layout::Dense, f32::NAN);
        let mut residual = Tensor::filled(d.dims, Layout::Dense, f32::NAN);
        let mut grad_weight = Tensor::filled([70], Layout::Dense, f32::NAN);
        let mut grad_z = Tensor::filled(d.dims, Layout::Dense, f32::NAN);
        let args = NormBwd::<f32, f32, _> {
            z: Some(z.view()),
            grad_residual_out: Some(after.view()),
            grad_x: (which == 0).then(|| to.view_mut()),
            grad_residual: (which == 1).then(|| residual.view_mut()),
            grad_weight: (which == 2).then(|| grad_weight.view_mut()),
            grad_z: (which == 3).then(|| grad_z.view_mut()),
            ..NormBwd::new(r.view(), weight.view(), EPS, grad_out.view())
        };
        with_workspace(engine().rms_norm_bwd_workspace::<f32>(d.dims), |ws| engine().rms_norm_bwd(args, ws)).expect("it runs");
        match which {
            0 => assert_bits("grad_x", &to.values(), &all.x),
            1 => assert_bits("grad_residual", &residual.values(), &all.residual),
            2 => assert_bits("grad_weight", &grad_weight.values(), &all.weight),
            _ => assert_bits("grad_z", &grad_z.values(), &all.z),
        }
    }
}

#[test]
fn what_is_wrong_is_named() {
    let (data, weight) = (Tensor::filled([2, 3], Layout::Dense, 1f32), Tensor::filled([2], Layout::Dense, 1f32));
    let mut out = Tensor::filled([2, 3], Layout::Dense, 7f32);
    let args = NormFwd::<f32, f32, _>::new(data.view(), weight.view(), EPS, out.view_mut());
    assert_eq!(named(with_workspace(0, |ws| engine().rms_norm_fwd(args, ws))), "weight");
    let weight = Tensor::filled([3], Layout::Dense, 1f32);
    for size in [0, 2, 4] {
        let options = NormOptions { group_size: Some(size), ..NormOptions::default() };
        let args = NormFwd::<f32, f32, _> { options, ..NormFwd::new(data.view(), weight.view(), EPS, out.view_mut()) };
        assert_eq!(named(with_workspace(0, |ws| engine().rms_norm_fwd(args, ws))), "group_size");
    }
    let (narrow, mut grad) = (Tensor::filled([2, 2], Layout::Dense, 1f32), Tensor::filled([2, 3], Layout::Dense, 7f32));
    let args = NormFwd::<f32, f32, _> { z: Some(narrow.view()), ..NormFwd::new(data.view(), weight.view(), EPS, out.view_mut()) };
    assert_eq!(named(with_workspace(0, |ws| engine().rms_norm_fwd(args, ws))), "z");
    let args = NormBwd::<f32, f32, _> { grad_z: Some(grad.view_mut()), ..NormBwd::new(data.view(), weight.view(), EPS, data.view()) };
    assert_eq!(named(with_workspace(0, |ws| engine().rms_norm_bwd(args, ws))), "grad_z");
    assert!(out.values() == [7.0; 6] && grad.values() == [7.0; 6]);
}

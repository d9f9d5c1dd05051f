//! RMSNorm against plain loops and central differences in f64, in every type, layout and number of threads.

use half::{bf16, f16};
use selective_scan::element::{Input, Real};
use selective_scan::error::Error;
use selective_scan::layers::norm::{
    NormBwd, NormFwd, NormOptions, RmsNorm, rms_norm_bwd, rms_norm_bwd_workspace, rms_norm_fwd, rms_norm_fwd_workspace,
};
use selective_scan::naive::Naive;
use selective_scan::view::{View, ViewMut};

use crate::norm_data::{Data, data};
use crate::tensors::{LAYOUTS, Layout, THREADS, Tensor, Threads, alone, assert_bits, assert_rounded, error, stored, wide};

/// Rows and columns around the sizes of blocks and vectors.
const SIZES: [[usize; 2]; 9] = [[1, 1], [2, 3], [31, 8], [32, 17], [33, 64], [70, 65], [3, 768], [0, 5], [4, 0]];
const EPS: f64 = 1e-5;

fn nan<I: Input>() -> I {
    I::store(I::Accum::from_f64(f64::NAN))
}

/// out and r.
fn forward<I: Input, R: Input<Accum = I::Accum>>(d: &Data, layout: Layout, threads: Threads) -> (Vec<I>, Vec<R>) {
    let x = Tensor::new(d.dims, layout, &stored::<I>(&d.x));
    let residual = Tensor::new(d.dims, layout, &stored::<R>(&d.residual));
    let weight = Tensor::new([d.dims[1]], layout, &stored::<I::Accum>(&d.weight));
    let z = Tensor::new(d.dims, layout, &stored::<I>(&d.z));
    let (mut out, mut r) = (Tensor::filled(d.dims, layout, nan::<I>()), Tensor::filled(d.dims, layout, nan::<R>()));
    threads.run(
        1,
        |par| rms_norm_fwd_workspace::<I>(d.dims, par),
        |par, ws| {
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
            rms_norm_fwd(args, par, ws).unwrap();
        },
    );
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
fn backward<I: Input, R: Input<Accum = I::Accum>>(d: &Data, layout: Layout, threads: Threads) -> Grads<I, R> {
    let r = Tensor::new(d.dims, layout, &stored::<R>(&d.residual));
    let weight = Tensor::new([d.dims[1]], layout, &stored::<I::Accum>(&d.weight));
    let grad_out = Tensor::new(d.dims, layout, &stored::<I>(&d.grad_out));
    let grad_stream = Tensor::new(d.dims, layout, &stored::<R>(&d.grad_stream));
    let (mut x, mut residual) = (Tensor::filled(d.dims, layout, nan::<I>()), Tensor::filled(d.dims, layout, nan::<R>()));
    let (mut grad_weight, mut grad_z) =
        (Tensor::filled([d.dims[1]], layout, nan::<I::Accum>()), Tensor::filled(d.dims, layout, nan::<I>()));
    let z = Tensor::new(d.dims, layout, &stored::<I>(&d.z));
    threads.run(
        2,
        |par| rms_norm_bwd_workspace::<I>(d.dims, par),
        |par, ws| {
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
            rms_norm_bwd(args, par, ws).unwrap();
        },
    );
    let z = if d.gate.is_some() { grad_z.values() } else { Vec::new() };
    Grads { x: x.values(), residual: residual.values(), weight: grad_weight.values(), z }
}

/// x·sigmoid(x), by its definition.
fn gate_of(z: f64) -> f64 {
    z / (1.0 + (-z).exp())
}

/// out for r, weight and z, by plain loops.
fn norm(d: &Data, r: &[f64], weight: &[f64], z: &[f64]) -> Vec<f64> {
    let columns = d.dims[1];
    let mut y: Vec<f64> = r.iter().zip(z).map(|(r, z)| if d.gate == Some(false) { r * gate_of(*z) } else { *r }).collect();
    for group in y.chunks_mut(d.group_size.unwrap_or(columns).max(1)) {
        let mean = group.iter().map(|y| y * y).sum::<f64>() / group.len() as f64;
        group.iter_mut().for_each(|y| *y /= (mean + EPS).sqrt());
    }
    let after = |i: usize| weight[i % columns] * if d.gate == Some(true) { gate_of(z[i]) } else { 1.0 };
    y.iter().enumerate().map(|(i, y)| y * after(i)).collect()
}

fn stream(d: &Data) -> Vec<f64> {
    d.x.iter().zip(&d.residual).map(|(x, r)| if d.stream { x + r } else { *x }).collect()
}

fn all() -> impl Iterator<Item = Data> {
    SIZES.into_iter().flat_map(|dims| {
        let plain = [data(dims, false), data(dims, true)];
        let gated = [false, true].into_iter().flat_map(move |stream| [false, true].map(|before| data(dims, stream).gated(before)));
        let whole = plain.into_iter().chain(gated);
        whole.clone().chain(whole.map(Data::grouped))
    })
}

fn forward_is_close<I: Input>(bound: f64) {
    for (d, layout) in all().flat_map(|d| LAYOUTS.map(|l| (d.clone(), l))) {
        let (out, r) = forward::<I, I>(&d, layout, Threads::One);
        let want = stream(&d);
        assert_eq!(wide(&r), want);
        let worst = error(&wide(&out), &norm(&d, &want, &d.weight, &d.z));
        let bound = if d.gate.is_some() { 2.0 * bound } else { bound };
        assert!(worst <= bound, "{}, {layout:?}: {worst:e}", d.name());
    }
}

#[test]
fn forward_is_the_definition() {
    forward_is_close::<f64>(1e-15);
    forward_is_close::<f32>(3e-7);
}

#[test]
fn gradients_are_central_differences() {
    const STEP: f64 = 1e-5;
    for d in all().filter(|d| d.dims.iter().product::<usize>() < 1000) {
        let loss = |r: &[f64], w: &[f64], z: &[f64]| {
            let through = norm(&d, r, w, z).iter().zip(&d.grad_out).map(|(a, b)| a * b).sum::<f64>();
            through + if d.stream { r.iter().zip(&d.grad_stream).map(|(a, b)| a * b).sum::<f64>() } else { 0.0 }
        };
        let got = backward::<f64, f64>(&d, Layout::Dense, Threads::One);
        let moved = |v: &[f64], i: usize, step: f64| {
            let mut v = v.to_vec();
            v[i] += step;
            v
        };
        // Where a group is 0, or all but 0, its root is of ε and the curve steep: hence two steps, whose third derivatives cancel.
        let close = |name: &str, got: &[f64], loss: &dyn Fn(usize, f64) -> f64| {
            let size = got.iter().fold(1.0f64, |m, v| m.max(v.abs()));
            for (i, got) in got.iter().enumerate() {
                let slope = |step: f64| (loss(i, step) - loss(i, -step)) / (2.0 * step);
                let want = (4.0 * slope(STEP) - slope(2.0 * STEP)) / 3.0;
                assert!((got - want).abs() <= 1e-7 * size, "{name}[{i}] of {}: {got}, wanted {want}", d.name());
            }
        };
        close("x", &got.x, &|i, step| loss(&moved(&d.residual, i, step), &d.weight, &d.z));
        close("weight", &got.weight, &|i, step| loss(&d.residual, &moved(&d.weight, i, step), &d.z));
        close("z", &got.z, &|i, step| loss(&d.residual, &d.weight, &moved(&d.z, i, step)));
        assert_bits("the same numbers twice", &got.x, &got.residual);
    }
}

#[test]
fn f32_gradients_are_close_to_f64() {
    for d in all() {
        let (got, want) = (backward::<f32, f32>(&d, Layout::Dense, Threads::One), backward::<f64, f64>(&d, Layout::Dense, Threads::One));
        let more = if d.gate.is_some() { 2.0 } else { 1.0 };
        for (what, got, want, bound) in
            [("x", &got.x, &want.x, 6e-7), ("z", &got.z, &want.z, 6e-7), ("weight", &got.weight, &want.weight, 2e-7)]
        {
            assert!(error(&wide(got), want) <= more * bound, "{what} of {}: {:e}", d.name(), error(&wide(got), want));
        }
    }
}

/// The stream is kept in f32 beside 16-bit storage.
#[test]
fn sixteen_bits_are_rounded_once() {
    fn rounded<I: Input<Accum = f32>>() {
        for d in all() {
            let (out, r) = forward::<I, f32>(&d, Layout::Dense, Threads::One);
            let want = stream(&d);
            assert_eq!(wide(&r), want);
            assert_rounded::<I>("out", &wide(&out), &norm(&d, &want, &d.weight, &d.z));
            let (got, want) = (backward::<I, f32>(&d, Layout::Dense, Threads::One), backward::<f64, f64>(&d, Layout::Dense, Threads::One));
            assert_rounded::<I>("grad_x", &wide(&got.x), &want.x);
            assert_rounded::<I>("grad_z", &wide(&got.z), &want.z);
            assert!(error(&wide(&got.residual), &want.residual) <= 1.2e-6);
            // With the stream in 16 bits the norm is still of the sum before it is rounded.
            assert_bits("out", &forward::<I, I>(&d, Layout::Dense, Threads::One).0, &out);
        }
    }
    rounded::<f16>();
    rounded::<bf16>();
}

#[test]
fn bits_depend_on_neither_layout_nor_threads() {
    for d in all() {
        let (out, r) = forward::<f32, f32>(&d, Layout::Dense, Threads::One);
        let grads = backward::<f32, f32>(&d, Layout::Dense, Threads::One);
        for (layout, threads) in LAYOUTS.iter().flat_map(|l| THREADS.map(|t| (*l, t))) {
            let what = format!("{}, {layout:?}, {threads:?}", d.name());
            let got = forward::<f32, f32>(&d, layout, threads);
            assert_bits(&what, &got.0, &out);
            assert_bits(&what, &got.1, &r);
            let got = backward::<f32, f32>(&d, layout, threads);
            assert_bits(&what, &got.x, &grads.x);
            assert_bits(&what, &got.residual, &grads.residual);
            assert_bits(&what, &got.weight, &grads.weight);
            assert_bits(&what, &got.z, &grads.z);
        }
    }
}

#[test]
fn bits_of_a_row_do_not_depend_on_the_others() {
    let plain = data([70, 65], true);
    for d in [plain.clone(), plain.clone().gated(false), plain.grouped().gated(true)] {
        let (out, _) = forward::<f32, f32>(&d, Layout::Dense, Threads::One);
        let grads = backward::<f32, f32>(&d, Layout::Dense, Threads::One);
        for row in [0, 31, 32, 69] {
            let pick = |v: &[f64]| v[row * 65..][..65].to_vec();
            let (x, residual, grad_out, grad_stream) = (pick(&d.x), pick(&d.residual), pick(&d.grad_out), pick(&d.grad_stream));
            let one = Data { dims: [1, 65], z: pick(&d.z), x, residual, grad_out, grad_stream, ..d.clone() };
            assert_bits("out", &forward::<f32, f32>(&one, Layout::Dense, Threads::One).0, &out[row * 65..][..65]);
            let got = backward::<f32, f32>(&one, Layout::Dense, Threads::One);
            assert_bits("grad_x", &got.x, &grads.x[row * 65..][..65]);
            assert!(d.gate.is_none() || got.z == grads.z[row * 65..][..65]);
        }
    }
}

/// A group is normed as a row of its own would be.
#[test]
fn groups_are_rows() {
    for (gate, size) in [(None, 48), (Some(false), 48), (Some(true), 1), (Some(false), 1), (Some(true), 72)] {
        let d = Data { gate, group_size: Some(size), ..data([3, 144], true) };
        let weight = d.weight.iter().copied().cycle().take(size).collect::<Vec<_>>();
        let d = Data { weight: weight.iter().copied().cycle().take(144).collect(), ..d };
        let apart = Data { dims: [3 * (144 / size), size], group_size: None, weight, ..d.clone() };
        let forward = |d: &Data| forward::<bf16, f32>(d, Layout::Dense, Threads::One).0;
        assert_bits("out", &forward(&d), &forward(&apart));
        let [got, want] = [&d, &apart].map(|d| backward::<bf16, f32>(d, Layout::Dense, Threads::One));
        assert_bits("grad_residual", &got.residual, &want.residual);
        assert_bits("grad_z", &got.z, &want.z);
    }
}

/// SiLU neither overflows nor loses its digits, however large its argument; what is not a number stays in its group.
#[test]
fn gates_of_any_size() {
    let sizes = [0.0, -0.0, 1e-30, -1e-30, 5.0, -5.0, 20.0, -20.0, 80.0, -80.0, 89.0, -89.0, 104.0, -104.0, 1e15, -1e15];
    for before in [false, true] {
        let mut d = data([sizes.len(), 7], true).gated(before);
        d.z.chunks_mut(7).zip(sizes).for_each(|(row, size)| row.fill(f64::from(size as f32)));
        let (out, want) = (forward::<f32, f32>(&d, Layout::Dense, Threads::One).0, norm(&d, &stream(&d), &d.weight, &d.z));
        let (got, grads) = (backward::<f32, f32>(&d, Layout::Dense, Threads::One), backward::<f64, f64>(&d, Layout::Dense, Threads::One));
        for (row, size) in sizes.iter().enumerate() {
            let at = row * 7..(row + 1) * 7;
            for (what, got, want) in [("out", &out, &want), ("grad_x", &got.x, &grads.x), ("grad_z", &got.z, &grads.z)] {
                let worst = error(&wide(&got[at.clone()]), &want[at.clone()]);
                // Below the smallest normal number few digits are left.
                let none = want[at.clone()].iter().all(|w| w.abs() < 1e-30);
                assert!(worst <= 1.2e-6 || none, "{what} with z = {size}, {before}: {worst:e}");
            }
        }
        for poison in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let clean = Data { group_size: Some(4), ..data([3, 12], true).gated(before) };
            let mut dirty = clean.clone();
            dirty.z[12 + 5] = poison;
            let [clean, dirty] = [clean, dirty].map(|d| {
                let grads = backward::<f32, f32>(&d, Layout::Dense, Threads::One);
                [forward::<f32, f32>(&d, Layout::Dense, Threads::One).0, grads.x, grads.z]
            });
            for (clean, dirty) in clean.iter().zip(&dirty) {
                assert!((0..36).all(|at| (16..20).contains(&at) || clean[at].to_bits() == dirty[at].to_bits()));
            }
            let [out, _, grad_z] = dirty;
            assert!([out[17], grad_z[17]].iter().all(|x| !x.is_finite() || (poison == f64::NEG_INFINITY && *x == 0.0)));
        }
    }
}

#[test]
fn long_sums_of_weight_gradients_stay_accurate() {
    let mut d = data([50_000, 2], false);
    d.residual.iter_mut().chain(d.grad_out.iter_mut()).for_each(|v| *v = v.abs());
    let (got, want) = (backward::<f32, f32>(&d, Layout::Dense, Threads::One), backward::<f64, f64>(&d, Layout::Dense, Threads::One));
    assert!(error(&wide(&got.weight), &want.weight) <= 6e-8, "{:e}", error(&wide(&got.weight), &want.weight));
}

#[test]
fn large_and_small_rows_neither_overflow_nor_vanish() {
    for size in [1e-30f32, 1e30] {
        let x = [size, -size, size, size];
        let mut out = [0f32; 4];
        let (x, weight) = (View::new(&x, [1, 4]), View::new(&[1.0, 2.0, 3.0, 4.0], [4]));
        let args = NormFwd::<f32, f32>::new(x, weight, 0.0, ViewMut::new(&mut out, [1, 4]));
        alone(1 << 12, |ws| Naive.rms_norm_fwd(args, ws)).unwrap();
        assert!(error(&wide(&out), &[1.0, -2.0, 3.0, 4.0]) < 2e-7, "{out:?}");
    }
}

/// The error of a forward call on f32 with these shapes.
fn shapes(x: [usize; 2], residual: [usize; 2], weight: usize, eps: f64, out: [usize; 2], strides: [isize; 2]) -> Result<(), Error> {
    let (data, mut written) = ([1f32; 16], [0f32; 16]);
    let (x, weight, out) = (View::new(&data, x), View::new(&data, [weight]), ViewMut::strided(&mut written, 0, out, strides));
    let args = NormFwd::<f32, f32> { residual: Some(View::new(&data, residual)), ..NormFwd::new(x, weight, eps, out) };
    alone(1 << 12, |ws| Naive.rms_norm_fwd(args, ws))
}

#[test]
fn what_is_wrong_is_named() {
    let (dims, strides) = ([2, 3], [3, 1]);
    assert_eq!(shapes(dims, dims, 3, EPS, dims, strides), Ok(()));
    let names = |result: Result<(), Error>, name: &str| {
        let text = result.as_ref().map_err(|e| e.to_string()).err();
        assert!(text.is_some_and(|e| e.contains(&format!("`{name}`"))), "{result:?}, wanted {name}");
    };
    names(shapes([6, 3], dims, 3, EPS, dims, strides), "x");
    names(shapes(dims, [3, 2], 3, EPS, dims, strides), "residual");
    names(shapes(dims, dims, 2, EPS, dims, strides), "weight");
    names(shapes(dims, dims, 3, f64::NAN, dims, strides), "eps");
    names(shapes(dims, dims, 3, -1e-5, dims, strides), "eps");
    names(shapes(dims, dims, 3, EPS, [2, 4], [4, 1]), "out");
    names(shapes(dims, dims, 3, EPS, dims, [1, 1]), "out");
    let data = [1f32; 6];
    let gated = |z: [usize; 2], group_size: Option<usize>| {
        let (mut out, options) = ([0f32; 6], NormOptions { group_size, ..NormOptions::default() });
        let plain = NormFwd::new(View::new(&data, dims), View::new(&data[..3], [3]), EPS, ViewMut::new(&mut out, dims));
        let args = NormFwd::<f32, f32> { z: Some(View::new(&data[..z[0] * z[1]], z)), options, ..plain };
        alone(1 << 12, |ws| Naive.rms_norm_fwd(args, ws))
    };
    assert_eq!(gated(dims, Some(1)), Ok(()));
    names(gated([2, 2], None), "z");
    names(gated(dims, Some(2)), "group_size");
    names(gated(dims, Some(0)), "group_size");
    let (mut out, plain) = ([0f32; 6], NormBwd::new(View::new(&data, dims), View::new(&data[..3], [3]), EPS, View::new(&data, dims)));
    let args = NormBwd::<f32, f32> { grad_z: Some(ViewMut::new(&mut out, dims)), ..plain };
    names(alone(1 << 12, |ws| Naive.rms_norm_bwd(args, ws)), "grad_z");
}

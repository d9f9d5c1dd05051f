//! RMSNorm against plain loops and central differences in f64, in every type, layout and number of threads.

use half::{bf16, f16};
use selective_scan::element::{Input, Real};
use selective_scan::error::Error;
use selective_scan::layers::norm::{NormBwd, NormFwd, RmsNorm, rms_norm_bwd, rms_norm_bwd_workspace, rms_norm_fwd, rms_norm_fwd_workspace};
use selective_scan::naive::Naive;
use selective_scan::view::{View, ViewMut};

use crate::tensors::{LAYOUTS, Layout, THREADS, Tensor, Threads, alone, assert_bits, assert_rounded, error, numbers, stored, wide};

/// Rows and columns around the sizes of blocks and vectors.
const SIZES: [[usize; 2]; 9] = [[1, 1], [2, 3], [31, 8], [32, 17], [33, 64], [70, 65], [3, 768], [0, 5], [4, 0]];
const EPS: f64 = 1e-5;

#[derive(Debug, Clone)]
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

fn nan<I: Input>() -> I {
    I::store(I::Accum::from_f64(f64::NAN))
}

/// out and r.
fn forward<I: Input, R: Input<Accum = I::Accum>>(d: &Data, layout: Layout, threads: Threads) -> (Vec<I>, Vec<R>) {
    let x = Tensor::new(d.dims, layout, &stored::<I>(&d.x));
    let residual = Tensor::new(d.dims, layout, &stored::<R>(&d.residual));
    let weight = Tensor::new([d.dims[1]], layout, &stored::<I::Accum>(&d.weight));
    let (mut out, mut r) = (Tensor::filled(d.dims, layout, nan::<I>()), Tensor::filled(d.dims, layout, nan::<R>()));
    threads.run(
        1,
        |par| rms_norm_fwd_workspace::<I>(d.dims, par),
        |par, ws| {
            let args = NormFwd {
                x: x.view(),
                residual: d.stream.then(|| residual.view()),
                weight: weight.view(),
                eps: EPS,
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
}

/// The gradients at r, which is `residual` here.
fn backward<I: Input, R: Input<Accum = I::Accum>>(d: &Data, layout: Layout, threads: Threads) -> Grads<I, R> {
    let r = Tensor::new(d.dims, layout, &stored::<R>(&d.residual));
    let weight = Tensor::new([d.dims[1]], layout, &stored::<I::Accum>(&d.weight));
    let grad_out = Tensor::new(d.dims, layout, &stored::<I>(&d.grad_out));
    let grad_stream = Tensor::new(d.dims, layout, &stored::<R>(&d.grad_stream));
    let (mut x, mut residual) = (Tensor::filled(d.dims, layout, nan::<I>()), Tensor::filled(d.dims, layout, nan::<R>()));
    let mut grad_weight = Tensor::filled([d.dims[1]], layout, nan::<I::Accum>());
    threads.run(
        2,
        |par| rms_norm_bwd_workspace::<I>(d.dims, par),
        |par, ws| {
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
            rms_norm_bwd(args, par, ws).unwrap();
        },
    );
    Grads { x: x.values(), residual: residual.values(), weight: grad_weight.values() }
}

/// out for each row of r, by a plain loop.
fn norm(r: &[f64], weight: &[f64]) -> Vec<f64> {
    let rows = r.chunks_exact(weight.len().max(1));
    let of_row = |row: &[f64]| {
        let scale = 1.0 / (row.iter().map(|v| v * v).sum::<f64>() / row.len() as f64 + EPS).sqrt();
        row.iter().zip(weight).map(|(v, w)| v * scale * w).collect::<Vec<_>>()
    };
    rows.flat_map(of_row).collect()
}

fn stream(d: &Data) -> Vec<f64> {
    d.x.iter().zip(&d.residual).map(|(x, r)| if d.stream { x + r } else { *x }).collect()
}

fn all() -> impl Iterator<Item = Data> {
    SIZES.into_iter().flat_map(|dims| [data(dims, false), data(dims, true)])
}

fn forward_is_close<I: Input>(bound: f64) {
    for (d, layout) in all().flat_map(|d| LAYOUTS.map(|l| (d.clone(), l))) {
        let (out, r) = forward::<I, I>(&d, layout, Threads::One);
        let want = stream(&d);
        assert_eq!(wide(&r), want);
        let worst = error(&wide(&out), &norm(&want, &d.weight));
        assert!(worst <= bound, "{:?}, {layout:?}: {worst:e}", d.dims);
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
        let loss = |r: &[f64], w: &[f64]| {
            let out = norm(r, w);
            let through = out.iter().zip(&d.grad_out).map(|(a, b)| a * b).sum::<f64>();
            through + if d.stream { r.iter().zip(&d.grad_stream).map(|(a, b)| a * b).sum::<f64>() } else { 0.0 }
        };
        let got = backward::<f64, f64>(&d, Layout::Dense, Threads::One);
        let moved = |v: &[f64], i: usize, step: f64| {
            let mut v = v.to_vec();
            v[i] += step;
            v
        };
        let close = |name: &str, got: f64, want: f64, size: f64| {
            assert!((got - want).abs() <= 1e-8 * size, "{name} of {:?}: {got}, wanted {want}", d.dims);
        };
        // Steps far below the smallest row: 1/64 is the smallest number.
        let size = got.x.iter().chain(&got.weight).fold(1.0f64, |m, v| m.max(v.abs()));
        for i in 0..got.x.len() {
            let at = |step| loss(&moved(&d.residual, i, step), &d.weight);
            close("x", got.x[i], (at(STEP) - at(-STEP)) / (2.0 * STEP), size);
        }
        for i in 0..got.weight.len() {
            let at = |step| loss(&d.residual, &moved(&d.weight, i, step));
            close("weight", got.weight[i], (at(STEP) - at(-STEP)) / (2.0 * STEP), size);
        }
        assert_bits("the same numbers twice", &got.x, &got.residual);
    }
}

#[test]
fn f32_gradients_are_close_to_f64() {
    for d in all() {
        let (got, want) = (backward::<f32, f32>(&d, Layout::Dense, Threads::One), backward::<f64, f64>(&d, Layout::Dense, Threads::One));
        assert!(error(&wide(&got.x), &want.x) <= 6e-7, "{:?}: {:e}", d.dims, error(&wide(&got.x), &want.x));
        assert!(error(&wide(&got.weight), &want.weight) <= 2e-7, "{:?}", d.dims);
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
            assert_rounded::<I>("out", &wide(&out), &norm(&want, &d.weight));
            let (got, want) = (backward::<I, f32>(&d, Layout::Dense, Threads::One), backward::<f64, f64>(&d, Layout::Dense, Threads::One));
            assert_rounded::<I>("grad_x", &wide(&got.x), &want.x);
            assert!(error(&wide(&got.residual), &want.residual) <= 6e-7);
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
            let what = format!("{:?}, {layout:?}, {threads:?}", d.dims);
            let got = forward::<f32, f32>(&d, layout, threads);
            assert_bits(&what, &got.0, &out);
            assert_bits(&what, &got.1, &r);
            let got = backward::<f32, f32>(&d, layout, threads);
            assert_bits(&what, &got.x, &grads.x);
            assert_bits(&what, &got.residual, &grads.residual);
            assert_bits(&what, &got.weight, &grads.weight);
        }
    }
}

#[test]
fn bits_of_a_row_do_not_depend_on_the_others() {
    let d = data([70, 65], true);
    let (out, _) = forward::<f32, f32>(&d, Layout::Dense, Threads::One);
    let grads = backward::<f32, f32>(&d, Layout::Dense, Threads::One);
    for row in [0, 31, 32, 69] {
        let pick = |v: &[f64]| v[row * 65..][..65].to_vec();
        let (x, residual, grad_out, grad_stream) = (pick(&d.x), pick(&d.residual), pick(&d.grad_out), pick(&d.grad_stream));
        let one = Data { dims: [1, 65], x, residual, grad_out, grad_stream, ..d.clone() };
        assert_bits("out", &forward::<f32, f32>(&one, Layout::Dense, Threads::One).0, &out[row * 65..][..65]);
        assert_bits("grad_x", &backward::<f32, f32>(&one, Layout::Dense, Threads::One).x, &grads.x[row * 65..][..65]);
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
        let args = NormFwd::<f32, f32> {
            x: View::new(&x, [1, 4]),
            residual: None,
            weight: View::new(&[1.0, 2.0, 3.0, 4.0], [4]),
            eps: 0.0,
            out: ViewMut::new(&mut out, [1, 4]),
            residual_out: None,
        };
        alone(1 << 12, |ws| Naive.rms_norm_fwd(args, ws)).unwrap();
        assert!(error(&wide(&out), &[1.0, -2.0, 3.0, 4.0]) < 2e-7, "{out:?}");
    }
}

/// The error of a forward call on f32 with these shapes.
fn shapes(x: [usize; 2], residual: [usize; 2], weight: usize, eps: f64, out: [usize; 2], strides: [isize; 2]) -> Result<(), Error> {
    let (data, mut written) = ([1f32; 16], [0f32; 16]);
    let args = NormFwd::<f32, f32> {
        x: View::new(&data, x),
        residual: Some(View::new(&data, residual)),
        weight: View::new(&data, [weight]),
        eps,
        out: ViewMut::strided(&mut written, 0, out, strides),
        residual_out: None,
    };
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
}

//! Linear against plain loops in f64, in every type, layout and number of threads.

use half::{bf16, f16};
use selective_scan::element::{Input, Real};
use selective_scan::error::Error;
use selective_scan::layers::linear::{
    Linear, LinearBwd, LinearFwd, LinearProblem, linear_bwd, linear_bwd_workspace, linear_fwd, linear_fwd_workspace,
};
use selective_scan::naive::Naive;

use crate::tensors::{LAYOUTS, Layout, THREADS, Tensor, Threads, alone, assert_bits, assert_rounded, error, numbers, stored, wide};

/// Rows, K and N around the widths of blocks, chunks and vectors.
const SIZES: [[usize; 3]; 14] = [
    [1, 1, 1],
    [1, 5, 3],
    [2, 2, 2],
    [3, 16, 48],
    [1, 768, 70],
    [4, 33, 1],
    [5, 513, 17],
    [64, 3, 128],
    [129, 40, 257],
    [130, 1030, 9],
    [300, 64, 100],
    [0, 4, 3],
    [3, 0, 4],
    [3, 4, 0],
];

struct Data {
    sizes: [usize; 3],
    x: Vec<f64>,
    weight: Vec<f64>,
    bias: Vec<f64>,
    grad_out: Vec<f64>,
}

fn data(sizes @ [rows, k, n]: [usize; 3]) -> Data {
    Data { sizes, x: numbers(rows * k, 1), weight: numbers(n * k, 2), bias: numbers(n, 3), grad_out: numbers(rows * n, 4) }
}

fn forward<I: Input>(d: &Data, layout: Layout, threads: Threads) -> Vec<I> {
    let [rows, k, n] = d.sizes;
    let (x, weight) = (Tensor::new([rows, k], layout, &stored::<I>(&d.x)), Tensor::new([n, k], layout, &stored::<I>(&d.weight)));
    let bias = Tensor::new([n], layout, &stored::<I::Accum>(&d.bias));
    let mut out = Tensor::filled([rows, n], layout, I::store(I::Accum::from_f64(f64::NAN)));
    let problem = LinearProblem { rows, inputs: k, outputs: n };
    threads.run(
        1,
        |par| linear_fwd_workspace::<I>(problem, par),
        |par, ws| {
            let args = LinearFwd { x: x.view(), weight: weight.view(), bias: Some(bias.view()), out: out.view_mut() };
            linear_fwd(args, par, ws).unwrap();
        },
    );
    out.values()
}

struct Grads<I: Input> {
    x: Vec<I>,
    weight: Vec<I::Accum>,
    bias: Vec<I::Accum>,
}

fn backward<I: Input>(d: &Data, layout: Layout, threads: Threads) -> Grads<I> {
    let [rows, k, n] = d.sizes;
    let (x, weight) = (Tensor::new([rows, k], layout, &stored::<I>(&d.x)), Tensor::new([n, k], layout, &stored::<I>(&d.weight)));
    let grad_out = Tensor::new([rows, n], layout, &stored::<I>(&d.grad_out));
    let nan = I::Accum::from_f64(f64::NAN);
    let mut grad_x = Tensor::filled([rows, k], layout, I::store(nan));
    let (mut grad_weight, mut grad_bias) = (Tensor::filled([n, k], layout, nan), Tensor::filled([n], layout, nan));
    let problem = LinearProblem { rows, inputs: k, outputs: n };
    threads.run(
        1,
        |par| linear_bwd_workspace::<I>(problem, par),
        |par, ws| {
            let args = LinearBwd {
                x: x.view(),
                weight: weight.view(),
                grad_out: grad_out.view(),
                grad_x: Some(grad_x.view_mut()),
                grad_weight: Some(grad_weight.view_mut()),
                grad_bias: Some(grad_bias.view_mut()),
            };
            linear_bwd(args, par, ws).unwrap();
        },
    );
    Grads { x: grad_x.values(), weight: grad_weight.values(), bias: grad_bias.values() }
}

/// out, ∂x, ∂weight, ∂bias by plain loops. The numbers are multiples of 1/64, so these sums are exact.
fn reference(d: &Data) -> [Vec<f64>; 4] {
    let [rows, k, n] = d.sizes;
    let mut out = vec![0.0; rows * n];
    let (mut grad_x, mut grad_weight, mut grad_bias) = (vec![0.0; rows * k], vec![0.0; n * k], vec![0.0; n]);
    for i in 0..rows {
        for j in 0..n {
            out[i * n + j] = d.bias[j];
            grad_bias[j] += d.grad_out[i * n + j];
            for p in 0..k {
                out[i * n + j] += d.x[i * k + p] * d.weight[j * k + p];
                grad_x[i * k + p] += d.grad_out[i * n + j] * d.weight[j * k + p];
                grad_weight[j * k + p] += d.grad_out[i * n + j] * d.x[i * k + p];
            }
        }
    }
    [out, grad_x, grad_weight, grad_bias]
}

fn close<I: Input>(bound: f64) {
    for sizes in SIZES {
        let d = data(sizes);
        let [out, x, weight, bias] = reference(&d);
        for layout in LAYOUTS {
            let got = backward::<I>(&d, layout, Threads::One);
            let pairs = [
                ("out", wide(&forward::<I>(&d, layout, Threads::One)), &out),
                ("grad_x", wide(&got.x), &x),
                ("grad_weight", wide(&got.weight), &weight),
                ("grad_bias", wide(&got.bias), &bias),
            ];
            for (name, got, want) in pairs {
                let worst = error(&got, want);
                assert!(worst <= bound, "{name} of {sizes:?}, {layout:?}: {worst:e}");
            }
        }
    }
}

#[test]
fn f64_is_exact_to_roundoff() {
    close::<f64>(1e-14);
}

#[test]
fn f32_is_within_a_millionth() {
    close::<f32>(1e-6);
}

fn rounded<I: Input>() {
    for sizes in SIZES {
        let d = data(sizes);
        let [out, x, weight, bias] = reference(&d);
        let got = backward::<I>(&d, Layout::Dense, Threads::One);
        assert_rounded::<I>("out", &wide(&forward::<I>(&d, Layout::Dense, Threads::One)), &out);
        assert_rounded::<I>("grad_x", &wide(&got.x), &x);
        assert!(error(&wide(&got.weight), &weight) <= 1e-6 && error(&wide(&got.bias), &bias) <= 1e-6, "{sizes:?}");
    }
}

#[test]
fn sixteen_bits_are_rounded_once() {
    rounded::<f16>();
    rounded::<bf16>();
}

/// Numbers whose products do not fit f32, so that the order of a sum shows in its bits.
fn rough(mut d: Data) -> Data {
    for values in [&mut d.x, &mut d.weight, &mut d.bias, &mut d.grad_out] {
        values.iter_mut().enumerate().for_each(|(i, v)| *v = (*v + i as f64 * 0.37).sin());
    }
    d
}

#[test]
fn bits_depend_on_neither_layout_nor_threads() {
    for sizes in SIZES {
        let d = rough(data(sizes));
        let (out, grads) = (forward::<f32>(&d, Layout::Dense, Threads::One), backward::<f32>(&d, Layout::Dense, Threads::One));
        for (layout, threads) in LAYOUTS.iter().flat_map(|l| THREADS.map(|t| (*l, t))) {
            let what = format!("{sizes:?}, {layout:?}, {threads:?}");
            assert_bits(&what, &forward::<f32>(&d, layout, threads), &out);
            let got = backward::<f32>(&d, layout, threads);
            assert_bits(&what, &got.x, &grads.x);
            assert_bits(&what, &got.weight, &grads.weight);
            assert_bits(&what, &got.bias, &grads.bias);
        }
    }
}

fn rows_alone<I: Input>(rows: usize, k: usize, n: usize) {
    let d = rough(data([rows, k, n]));
    let all = forward::<I>(&d, Layout::Dense, Threads::One);
    let grads = backward::<I>(&d, Layout::Dense, Threads::One);
    for (first, count) in [(0, 1), (rows - 1, 1), (1, 2), (2, 3), (0, 4), (1, 9), (0, rows - 1)] {
        let range = |width: usize| first * width..(first + count) * width;
        let part = Data {
            sizes: [count, k, n],
            x: d.x[range(k)].to_vec(),
            weight: d.weight.clone(),
            bias: d.bias.clone(),
            grad_out: d.grad_out[range(n)].to_vec(),
        };
        let what = format!("rows {first}..{} of {rows} × {k} → {n}", first + count);
        assert_bits(&what, &forward::<I>(&part, Layout::Dense, Threads::One), &all[range(n)]);
        assert_bits(&what, &backward::<I>(&part, Layout::Dense, Threads::One).x, &grads.x[range(k)]);
    }
}

#[test]
fn bits_of_a_row_do_not_depend_on_the_others() {
    for (rows, k, n) in [(150, 64, 48), (12, 100, 300), (600, 700, 40), (11, 2, 5), (11, 513, 1), (300, 1, 20)] {
        rows_alone::<f32>(rows, k, n);
        rows_alone::<f64>(rows, k, n);
        rows_alone::<bf16>(rows, k, n);
    }
}

#[test]
fn long_sums_of_weight_gradients_stay_accurate() {
    let mut d = data([20_000, 2, 3]);
    // All of one sign: a plain f32 sum would lose a digit here.
    d.x.iter_mut().chain(d.grad_out.iter_mut()).for_each(|v| *v = v.abs());
    let [_, _, weight, bias] = reference(&d);
    let got = backward::<f32>(&d, Layout::Dense, Threads::One);
    assert!(error(&wide(&got.weight), &weight) <= 3e-7, "{:e}", error(&wide(&got.weight), &weight));
    assert!(error(&wide(&got.bias), &bias) <= 6e-8, "{:e}", error(&wide(&got.bias), &bias));
}

#[test]
fn a_nan_spoils_its_row_only() {
    let mut d = data([5, 40, 30]);
    d.x[2 * 40 + 7] = f64::NAN;
    let out = forward::<f32>(&d, Layout::Dense, Threads::One);
    assert!(out.iter().enumerate().all(|(i, v)| v.is_nan() == (i / 30 == 2)));
}

#[test]
fn what_is_wrong_is_named() {
    let shapes = |x: [usize; 2], w: [usize; 2], b: usize, o: [usize; 2], out_strides: [isize; 2]| {
        let (data, mut out) = (vec![0f32; 64], vec![0f32; 64]);
        let args = LinearFwd {
            x: selective_scan::view::View::new(&data, x),
            weight: selective_scan::view::View::new(&data, w),
            bias: Some(selective_scan::view::View::new(&data, [b])),
            out: selective_scan::view::ViewMut::strided(&mut out, 0, o, out_strides),
        };
        alone(1 << 20, |ws| Naive.linear_fwd(args, ws)).map_err(|e| e.to_string())
    };
    assert_eq!(shapes([2, 3], [4, 3], 4, [2, 4], [4, 1]), Ok(()));
    let names = |result: Result<(), String>, name: &str| assert!(result.as_ref().is_err_and(|e| e.contains(name)), "{result:?}");
    names(shapes([2, 3], [4, 5], 4, [2, 4], [4, 1]), "`weight`");
    names(shapes([2, 3], [4, 3], 5, [2, 4], [4, 1]), "`bias`");
    names(shapes([2, 3], [4, 3], 4, [2, 5], [4, 1]), "`out`");
    names(shapes([2, 3], [4, 3], 4, [2, 4], [0, 1]), "`out`");
    names(shapes([20, 30], [4, 30], 4, [2, 4], [4, 1]), "`x`");
    let (data, mut out) = ([0f32; 4], [0f32; 4]);
    let (x, out) = (selective_scan::view::View::new(&data, [2, 2]), selective_scan::view::ViewMut::new(&mut out, [2, 2]));
    let result = alone(0, |ws| Naive.linear_fwd(LinearFwd { x, weight: x, bias: None, out }, ws));
    assert!(matches!(result, Err(Error::Workspace { .. })), "{result:?}");
}

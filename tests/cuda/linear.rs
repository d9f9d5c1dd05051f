//! Linear on the GPU against plain loops in f64: every type, layout and kind of kernel.

use bytemuck::Pod;
use half::{bf16, f16};
use selective_scan::Error;
use selective_scan::buffer::Buffer;
use selective_scan::cuda::{Cuda, DeviceBuffer, Products};
use selective_scan::element::{Input, Real};
use selective_scan::layers::linear::{Linear, LinearBwd, LinearFwd, LinearProblem};
use selective_scan::view::{View, ViewMut};

use super::carried::Carried;
use super::tensors::{assert_bits, assert_rounded, error, numbers, stored, wide};
use super::{engine, is_real};

/// How a matrix lies in memory: by rows, by columns, by columns with gaps, backwards with gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    Rows,
    Columns,
    Gaps,
    Backwards,
}

use Layout::{Backwards, Columns, Gaps, Rows};

/// Layouts of x, the weight, and of what is written or is a gradient of it.
const LAYOUTS: [[Layout; 3]; 5] =
    [[Rows, Rows, Rows], [Rows, Columns, Rows], [Columns, Rows, Columns], [Gaps, Gaps, Gaps], [Backwards, Backwards, Backwards]];

struct Matrix<T> {
    data: Vec<T>,
    offset: usize,
    dims: [usize; 2],
    strides: [isize; 2],
}

impl<T: Pod> Matrix<T> {
    fn new(dims @ [rows, columns]: [usize; 2], layout: Layout, values: impl Fn(usize) -> T) -> Self {
        let (r, c) = (rows.max(1), columns.max(1));
        let (strides, size) = match layout {
            Rows => ([c as isize, 1], r * c),
            Columns => ([1, r as isize], r * c),
            Gaps => ([1, r as isize + 1], (r + 1) * c),
            Backwards => ([-(2 * c as isize + 1), -2], (2 * c + 1) * r),
        };
        let offset = if layout == Backwards { size - 1 } else { 0 };
        let mut matrix = Matrix { data: vec![T::zeroed(); size + 1], offset, dims, strides };
        let mut view = matrix.view_mut();
        (0..rows * columns).for_each(|i| view.set([i / columns, i % columns], values(i)));
        matrix
    }

    fn view(&self) -> View<'_, T, 2> {
        View::strided(&self.data, self.offset, self.dims, self.strides)
    }

    fn view_mut(&mut self) -> ViewMut<'_, T, 2> {
        ViewMut::strided(&mut self.data, self.offset, self.dims, self.strides)
    }

    fn values(&self) -> Vec<T> {
        let [rows, columns] = self.dims;
        (0..rows * columns).map(|i| self.view().get([i / columns, i % columns])).collect()
    }
}

struct Data {
    /// Rows, K, N.
    sizes: [usize; 3],
    x: Vec<f64>,
    weight: Vec<f64>,
    bias: Vec<f64>,
    grad_out: Vec<f64>,
}

fn data(sizes @ [rows, k, n]: [usize; 3]) -> Data {
    Data { sizes, x: numbers(rows * k, 1), weight: numbers(n * k, 2), bias: numbers(n, 3), grad_out: numbers(rows * n, 4) }
}

/// Numbers whose products do not fit f32, so that the order of a sum shows in its bits.
fn rough(mut d: Data) -> Data {
    for values in [&mut d.x, &mut d.weight, &mut d.bias, &mut d.grad_out] {
        values.iter_mut().enumerate().for_each(|(i, v)| *v = (*v + i as f64 * 0.37).sin());
    }
    d
}

fn matrix<I: Input>(dims: [usize; 2], layout: Layout, values: &[f64]) -> Matrix<I> {
    let values = stored::<I>(values);
    Matrix::new(dims, layout, |i| values[i])
}

fn forward<I: Input>(on: &Carried, d: &Data, [x, weight, out]: [Layout; 3]) -> Vec<I> {
    let [rows, k, n] = d.sizes;
    let (x, weight) = (matrix::<I>([rows, k], x, &d.x), matrix::<I>([n, k], weight, &d.weight));
    let bias = stored::<I::Accum>(&d.bias);
    let mut out = Matrix::new([rows, n], out, |_| I::store(I::Accum::from_f64(f64::NAN)));
    let args = LinearFwd { x: x.view(), weight: weight.view(), bias: Some(View::new(&bias, [n])), out: out.view_mut() };
    on.linear_fwd(args, &mut Buffer::new().workspace(0)).expect("a product");
    out.values()
}

struct Grads<I: Input> {
    x: Vec<I>,
    weight: Vec<I::Accum>,
    bias: Vec<I::Accum>,
}

fn backward<I: Input>(on: &Carried, d: &Data, [x, weight, out]: [Layout; 3]) -> Grads<I> {
    let [rows, k, n] = d.sizes;
    let nan = I::Accum::from_f64(f64::NAN);
    let mut grad_x = Matrix::new([rows, k], x, |_| I::store(nan));
    let mut grad_weight = Matrix::new([n, k], weight, |_| nan);
    let mut grad_bias = vec![nan; n];
    let (x, weight) = (matrix::<I>([rows, k], x, &d.x), matrix::<I>([n, k], weight, &d.weight));
    let grad_out = matrix::<I>([rows, n], out, &d.grad_out);
    let args = LinearBwd {
        x: x.view(),
        weight: weight.view(),
        grad_out: grad_out.view(),
        grad_x: Some(grad_x.view_mut()),
        grad_weight: Some(grad_weight.view_mut()),
        grad_bias: Some(ViewMut::new(&mut grad_bias, [n])),
    };
    on.linear_bwd(args, &mut Buffer::new().workspace(0)).expect("gradients");
    Grads { x: grad_x.values(), weight: grad_weight.values(), bias: grad_bias }
}

/// out, ∂x, ∂weight, ∂bias by plain loops.
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

/// Rows, K and N around the widths of slices, chunks and blocks; few rows and many, small weights and others.
const SIZES: [[usize; 3]; 12] = [
    [1, 1, 1],
    [1, 5, 3],
    [3, 16, 48],
    [5, 1030, 17],
    [8, 64, 264],
    [64, 3, 128],
    [70, 40, 130],
    [66, 600, 9],
    [0, 4, 3],
    [3, 0, 4],
    [3, 4, 0],
    [65, 136, 128],
];

/// `check(what, numbers, reference, whether they are in the storage type)` for every output in every layout.
fn each<I: Input>(on: &Carried, sizes: &[[usize; 3]], check: impl Fn(&str, &[f64], &[f64], bool)) {
    for &sizes in sizes {
        let d = data(sizes);
        let [out, x, weight, bias] = reference(&d);
        for layout in LAYOUTS {
            let got = backward::<I>(on, &d, layout);
            let what = |name: &str| format!("{name} of {sizes:?}, {layout:?}, {}", I::DTYPE.name());
            check(&what("out"), &wide(&forward::<I>(on, &d, layout)), &out, true);
            check(&what("grad_x"), &wide(&got.x), &x, true);
            check(&what("grad_weight"), &wide(&got.weight), &weight, false);
            check(&what("grad_bias"), &wide(&got.bias), &bias, false);
        }
    }
}

fn close<I: Input>(on: &Carried, sizes: &[[usize; 3]], bound: f64) {
    each::<I>(on, sizes, |what, got, want, _| {
        let worst = error(got, want);
        assert!(worst <= bound, "{what}: {worst:e}");
    });
}

fn rounded<I: Input>(on: &Carried, sizes: &[[usize; 3]]) {
    each::<I>(on, sizes, |what, got, want, stored| {
        if stored {
            assert_rounded::<I>(what, got, want);
        } else {
            let worst = error(got, want);
            assert!(worst <= 1e-6, "{what}: {worst:e}");
        }
    });
}

#[test]
fn f64_is_exact_to_roundoff() {
    close::<f64>(&plain(), &SIZES[..9], 1e-14);
}

#[test]
fn f32_is_within_a_millionth() {
    close::<f32>(&plain(), &SIZES, 1e-6);
}

#[test]
fn sixteen_bits_are_rounded_once() {
    rounded::<f16>(&plain(), &SIZES[2..8]);
    rounded::<bf16>(&plain(), &SIZES);
}

/// The plain kernels, whatever libraries there are.
fn plain() -> Carried {
    carried_with(engine().clone().with_products(Products::Plain).expect("they are always there"))
}

/// Another engine behind the traits of host memory. Tests never end an engine.
fn carried_with(engine: Cuda) -> Carried {
    let checked = !is_real();
    Carried::new(Box::leak(Box::new(engine)), checked)
}

fn same_bits<I: Input>() {
    for sizes in SIZES {
        let (d, on) = (rough(data(sizes)), plain());
        let (out, grads) = (forward::<I>(&on, &d, LAYOUTS[0]), backward::<I>(&on, &d, LAYOUTS[0]));
        // The first again: repeats have the same bits too.
        for layout in LAYOUTS {
            let what = format!("{sizes:?}, {layout:?}");
            assert_bits(&what, &forward::<I>(&on, &d, layout), &out);
            let got = backward::<I>(&on, &d, layout);
            assert_bits(&what, &got.x, &grads.x);
            assert_bits(&what, &got.weight, &grads.weight);
            assert_bits(&what, &got.bias, &grads.bias);
        }
    }
}

#[test]
fn bits_depend_on_no_layout() {
    same_bits::<f32>();
    same_bits::<bf16>();
}

fn rows_alone<I: Input>([rows, k, n]: [usize; 3]) {
    let (d, on) = (rough(data([rows, k, n])), plain());
    let (all, grads) = (forward::<I>(&on, &d, LAYOUTS[0]), backward::<I>(&on, &d, LAYOUTS[0]));
    for (first, count) in [(0, 1), (rows - 1, 1), (1, 2), (0, 9), (0, rows - 1)] {
        let range = |width: usize| first * width..(first + count) * width;
        let (x, grad_out) = (d.x[range(k)].to_vec(), d.grad_out[range(n)].to_vec());
        let part = Data { sizes: [count, k, n], x, weight: d.weight.clone(), bias: d.bias.clone(), grad_out };
        let what = format!("rows {first}..{} of {rows} × {k} → {n}", first + count);
        assert_bits(&what, &forward::<I>(&on, &part, LAYOUTS[0]), &all[range(n)]);
        assert_bits(&what, &backward::<I>(&on, &part, LAYOUTS[0]).x, &grads.x[range(k)]);
    }
}

/// Few rows, whose sums a kernel of its own computes, and many.
#[test]
fn bits_of_a_row_do_not_depend_on_the_others() {
    for sizes in [[70, 64, 48], [66, 1100, 40], [66, 2, 5], [66, 1, 20]] {
        rows_alone::<f32>(sizes);
        rows_alone::<f64>(sizes);
        rows_alone::<bf16>(sizes);
    }
}

#[test]
fn long_sums_are_split_and_stay_accurate() {
    for sizes in [[9000, 2, 3], [5000, 130, 140]] {
        if !is_real() && sizes[1] > 2 {
            continue;
        }
        let mut d = data(sizes);
        // All of one sign: a plain f32 sum would lose a digit here.
        d.x.iter_mut().chain(d.grad_out.iter_mut()).for_each(|v| *v = v.abs());
        let [_, _, weight, bias] = reference(&d);
        let on = plain();
        let got = backward::<f32>(&on, &d, LAYOUTS[0]);
        let worst = error(&wide(&got.weight), &weight);
        assert!(worst <= 3e-7, "{sizes:?}: {worst:e}");
        assert!(error(&wide(&got.bias), &bias) <= 6e-8);
        let other = backward::<f32>(&on, &d, LAYOUTS[2]);
        assert_bits("another layout", &other.weight, &got.weight);
        assert_bits("another layout", &other.bias, &got.bias);
        let halves = backward::<bf16>(&on, &d, LAYOUTS[0]);
        assert!(error(&wide(&halves.weight), &weight) <= 1e-6);
        assert!(error(&wide(&halves.bias), &bias) <= 6e-8);
        let double = backward::<f64>(&on, &d, LAYOUTS[0]);
        assert!(error(&double.weight, &weight) <= 1e-14 && error(&double.bias, &bias) <= 1e-14);
    }
}

#[test]
fn a_nan_spoils_its_row_only() {
    for rows in [5, 70] {
        let mut d = data([rows, 40, 30]);
        d.x[2 * 40 + 7] = f64::NAN;
        let out = forward::<f32>(&plain(), &d, LAYOUTS[0]);
        assert!(out.iter().enumerate().all(|(i, v)| v.is_nan() == (i / 30 == 2)));
        let out = forward::<bf16>(&plain(), &d, LAYOUTS[0]);
        assert!(out.iter().enumerate().all(|(i, v)| v.is_nan() == (i / 30 == 2)));
    }
}

/// The queries are small and enough.
#[test]
fn a_workspace_that_is_too_small_is_an_error() {
    let on = engine().clone().with_products(Products::Plain).expect("they are always there");
    let problem = LinearProblem { rows: 5000, inputs: 8, outputs: 8 };
    assert_eq!(on.linear_fwd_workspace::<f32>(problem), 0);
    let bytes = on.linear_bwd_workspace::<f32>(problem);
    assert!((8 * 64 * 2..1 << 12).contains(&bytes), "{bytes}");
    let (x, mut grad) = (on.upload(&[0f32; 40_000]).expect("memory"), on.upload(&[0f32; 64]).expect("memory"));
    let mut room = on.buffer::<u8>(bytes - 128).expect("memory");
    let view = x.view([5000, 8]);
    let weight = x.strided(0, [8, 8], [8, 1]);
    let grad_weight = Some(grad.view_mut([8, 8]));
    let args = LinearBwd { x: view, weight, grad_out: view, grad_x: None, grad_weight, grad_bias: None };
    let result = on.linear_bwd(args, &mut room.workspace());
    assert!(matches!(result, Err(Error::Workspace { .. })), "{result:?}");
}

#[test]
fn the_way_of_products_is_said() {
    let line = engine().products_line().to_string();
    match engine().products() {
        Products::Plain => assert!(line.starts_with("plain PTX kernels, because "), "{line}"),
        Products::CublasLt => assert!(line.starts_with("cuBLASLt 1"), "{line}"),
    }
    let plain = engine().clone().with_products(Products::Plain).expect("they are always there");
    assert_eq!(plain.products(), Products::Plain);
    if !is_real() {
        let result = engine().clone().with_products(Products::CublasLt);
        assert!(matches!(result, Err(Error::Unavailable { .. })), "{result:?}");
    }
}

/// The library, where there is one.
#[cfg(feature = "cublaslt")]
#[test]
fn cublaslt_agrees() {
    let on = match super::skip::here(engine().clone().with_products(Products::CublasLt)) {
        Ok(engine) => carried_with(engine),
        Err(why) => return super::skip::skipped("cublaslt_agrees", why),
    };
    let mut sizes = SIZES.to_vec();
    sizes.extend([[300, 256, 1024], [512, 768, 300], [20_000, 130, 140]]);
    close::<f64>(&on, &sizes, 1e-13);
    close::<f32>(&on, &sizes, 3e-6);
    rounded::<f16>(&on, &sizes[..14]);
    rounded::<bf16>(&on, &sizes[..14]);
    let d = rough(data([300, 256, 1024]));
    let (first, grads) = (forward::<bf16>(&on, &d, LAYOUTS[0]), backward::<bf16>(&on, &d, LAYOUTS[0]));
    for _ in 0..3 {
        assert_bits("a repeat", &forward::<bf16>(&on, &d, LAYOUTS[0]), &first);
        assert_bits("a repeat", &backward::<bf16>(&on, &d, LAYOUTS[0]).weight, &grads.weight);
    }
    assert_eq!(super::carried().engine.products(), Products::CublasLt, "it is used where it is there");
}

/// A product and its gradients run from a graph as they run by themselves.
#[test]
fn products_can_be_captured() {
    let ways = [Products::Plain, Products::CublasLt];
    for on in ways.into_iter().filter_map(|way| engine().clone().with_products(way).ok()) {
        let problem = LinearProblem { rows: 70, inputs: 136, outputs: 128 };
        let x = on.upload(&stored::<f32>(&numbers(70 * 136, 1))).expect("memory");
        let weight = on.upload(&stored::<f32>(&numbers(128 * 136, 2))).expect("memory");
        let (mut out, mut grad) = (on.buffer::<f32>(70 * 128).expect("memory"), on.buffer::<f32>(128 * 136).expect("memory"));
        let bytes = on.linear_fwd_workspace::<f32>(problem).max(on.linear_bwd_workspace::<f32>(problem));
        let mut room = on.buffer::<u8>(bytes).expect("memory");
        let mut work = |out: &mut DeviceBuffer<f32>, grad: &mut DeviceBuffer<f32>| {
            let (x, weight) = (x.view([70, 136]), weight.view([128, 136]));
            on.linear_fwd(LinearFwd { x, weight, bias: None, out: out.view_mut([70, 128]) }, &mut room.workspace())?;
            let grad_weight = Some(grad.view_mut([128, 136]));
            let args = LinearBwd { x, weight, grad_out: out.view([70, 128]), grad_x: None, grad_weight, grad_bias: None };
            on.linear_bwd(args, &mut room.workspace())
        };
        work(&mut out, &mut grad).expect("a first run");
        let want = (out.to_vec().expect("numbers"), grad.to_vec().expect("numbers"));
        let graph = on.capture(|| work(&mut out, &mut grad)).expect("a graph");
        out.fill(0xff).and(grad.fill(0xff)).expect("memory");
        // SAFETY: the buffers are alive, and the copies below wait.
        unsafe { graph.replay() }.expect("it runs");
        assert_bits("out", &out.to_vec().expect("numbers"), &want.0);
        assert_bits("grad_weight", &grad.to_vec().expect("numbers"), &want.1);
    }
}

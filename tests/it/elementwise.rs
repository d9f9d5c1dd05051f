//! Elementwise operations against plain loops, in every type, layout and number of threads.

use half::{bf16, f16};
use num_complex::Complex;
use selective_scan::Error;
use selective_scan::blelloch::Blelloch;
use selective_scan::cpu::Cpu;
use selective_scan::element::{Element, Input, Real};
use selective_scan::layers::elementwise::{Elementwise, add, copy, decay, scale, zero};
use selective_scan::naive::Naive;
use selective_scan::par::Par;
use selective_scan::view::{Host, View, ViewMut};

use crate::tensors::{LAYOUTS, Layout, THREADS, Tensor, Threads, assert_bits, numbers, stored};

/// Around the size of a block along each axis, and shapes with nothing in them.
const SIZES: [[usize; 3]; 9] =
    [[1, 1, 1], [2, 3, 5], [1, 1, 16_385], [1, 300, 70], [20_000, 1, 1], [3, 16_390, 1], [0, 4, 2], [2, 0, 3], [1, 5, 0]];

fn count(dims: &[usize]) -> usize {
    dims.iter().product()
}

/// Pairs of layouts, and every way of running the parts for one of them.
fn places() -> impl Iterator<Item = (Layout, Layout, Threads)> {
    let pairs = LAYOUTS.into_iter().flat_map(|from| LAYOUTS.map(|to| (from, to, Threads::One)));
    pairs.chain(THREADS.map(|threads| (Layout::Transposed, Layout::Backwards, threads)))
}

/// Runs an operation that takes no workspace.
fn on(threads: Threads, mut call: impl FnMut(Par) -> Result<(), Error> + Send) {
    threads.run(1, |_| 0, |par, _| call(par).unwrap());
}

fn copies<T: Element>(make: impl Fn(f64) -> T) {
    for (dims, (from_layout, to_layout, threads)) in SIZES.iter().flat_map(|d| places().map(|p| (*d, p))) {
        let values: Vec<T> = numbers(count(&dims), 1).into_iter().map(&make).collect();
        let (from, mut to) = (Tensor::new(dims, from_layout, &values), Tensor::filled(dims, to_layout, make(f64::NAN)));
        on(threads, |par| copy(from.view(), to.view_mut(), par));
        assert_bits("copy", &to.values(), &values);
        on(threads, |par| zero(to.view_mut(), par));
        assert_bits("zero", &to.values(), &vec![T::default(); values.len()]);
    }
}

#[test]
fn copies_and_zeros_reach_every_element() {
    copies::<f32>(|x| x as f32);
    copies::<f64>(|x| x);
    copies::<f16>(f16::from_f64);
    copies::<bf16>(bf16::from_f64);
    copies::<Complex<f32>>(|x| Complex::new(x as f32, -x as f32));
}

fn sums<I: Input>() {
    for (dims, (from_layout, to_layout, threads)) in SIZES.iter().flat_map(|d| places().map(|p| (*d, p))) {
        let [a, b]: [Vec<I>; 2] = [2, 3].map(|seed| stored(&numbers(count(&dims), seed).iter().map(|x| x / 3.0).collect::<Vec<_>>()));
        let (from, mut to) = (Tensor::new(dims, from_layout, &a), Tensor::new(dims, to_layout, &b));
        on(threads, |par| add(from.view(), to.view_mut(), par));
        let want: Vec<I> = a.iter().zip(&b).map(|(a, b)| I::store(b.load() + a.load())).collect();
        assert_bits("add", &to.values(), &want);
    }
}

#[test]
fn sums_are_rounded_once() {
    sums::<f32>();
    sums::<f64>();
    sums::<f16>();
    sums::<bf16>();
}

fn matrices<A: Real>() {
    for (dims, (from_layout, to_layout, threads)) in
        [[1, 1], [5, 3], [1100, 16], [4, 0], [0, 4]].iter().flat_map(|d| places().map(|p| (*d, p)))
    {
        let [log, grad]: [Vec<A>; 2] = [4, 5].map(|seed| stored(&numbers(count(&dims), seed)));
        let from = Tensor::new(dims, from_layout, &log);
        let (mut a, mut to) = (Tensor::filled(dims, to_layout, A::from_f64(f64::NAN)), Tensor::new(dims, to_layout, &grad));
        on(threads, |par| decay(from.view(), a.view_mut(), par));
        let want: Vec<A> = log.iter().map(|x| -x.exp()).collect();
        assert_bits("decay", &a.values(), &want);
        on(threads, |par| scale(a.view(), to.view_mut(), par));
        let want: Vec<A> = grad.iter().zip(&want).map(|(g, a)| *g * *a).collect();
        assert_bits("scale", &to.values(), &want);
    }
}

#[test]
fn decay_and_its_gradient() {
    matrices::<f32>();
    matrices::<f64>();
}

/// Special numbers go through as they are.
#[test]
fn nothing_is_swallowed() {
    let from = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0];
    let mut to = [1.0f32; 4];
    add(View::new(&from, [1, 1, 4]), ViewMut::new(&mut to, [1, 1, 4]), Par::Seq).unwrap();
    assert!(to[0].is_nan() && to[1] == f32::INFINITY && to[2] == f32::NEG_INFINITY && to[3] == 1.0);
    decay(View::new(&from, [2, 2]), ViewMut::new(&mut to, [2, 2]), Par::Seq).unwrap();
    assert!(to[0].is_nan() && to[1] == f32::NEG_INFINITY && to[2] == 0.0 && to[3] == -1.0);
}

/// The operand that an error names.
fn named(result: Result<(), Error>) -> &'static str {
    match result {
        Err(Error::Shape { operand, .. } | Error::Value { operand, .. } | Error::Layout { operand, .. }) => operand,
        other => panic!("{other:?}"),
    }
}

fn wrong<E: Elementwise<Memory = Host>>(engine: &E) {
    let data = [1.0f32; 24];
    let mut out = [2.0f32; 24];
    let (good, other, short) = (View::new(&data, [2, 3, 4]), View::new(&data, [3, 2, 4]), View::new(&data[1..], [2, 3, 4]));
    assert_eq!(named(engine.copy(other, ViewMut::new(&mut out, [2, 3, 4]))), "to");
    assert_eq!(named(engine.copy(short, ViewMut::new(&mut out, [2, 3, 4]))), "from");
    assert_eq!(named(engine.add(other, ViewMut::new(&mut out, [2, 3, 4]))), "to");
    assert_eq!(named(engine.add(short, ViewMut::new(&mut out, [2, 3, 4]))), "from");
    assert_eq!(named(engine.copy(good, ViewMut::strided(&mut out, 0, [2, 3, 4], [3, 4, 1]))), "to");
    assert_eq!(named(engine.add(good, ViewMut::strided(&mut out, 0, [2, 3, 4], [12, 0, 1]))), "to");
    assert_eq!(named(engine.zero(ViewMut::strided(&mut out, 0, [2, 3, 4], [12, 4, 0]))), "to");
    assert_eq!(named(engine.zero(ViewMut::strided(&mut out, 0, [2, 3, 4], [24, 4, 1]))), "to");
    let (good, other, short) = (View::new(&data, [6, 4]), View::new(&data, [4, 6]), View::new(&data[1..], [6, 4]));
    assert_eq!(named(engine.decay(other, ViewMut::new(&mut out, [6, 4]))), "a");
    assert_eq!(named(engine.decay(short, ViewMut::new(&mut out, [6, 4]))), "a_log");
    assert_eq!(named(engine.scale(other, ViewMut::new(&mut out, [6, 4]))), "to");
    assert_eq!(named(engine.scale(short, ViewMut::new(&mut out, [6, 4]))), "by");
    assert_eq!(named(engine.decay(good, ViewMut::strided(&mut out, 0, [6, 4], [0, 1]))), "a");
    assert_eq!(named(engine.scale(good, ViewMut::strided(&mut out, 0, [6, 4], [3, 1]))), "to");
    assert_eq!(out, [2.0; 24], "an error wrote something");
}

#[test]
fn wrong_operands_are_named() {
    wrong(&Naive);
    wrong(&Blelloch::new());
    wrong(&Cpu::new());
    let mut out = [1.0f32];
    assert_eq!(named(zero(ViewMut::new(&mut out, [1, 1, 1]), Par::Part { index: 1, count: 1, phase: 0 })), "par");
    assert_eq!(named(zero(ViewMut::new(&mut out, [1, 1, 1]), Par::Part { index: 0, count: 1, phase: 1 })), "par");
}

/// A broadcast may be read, and an empty tensor may have any size along its other axes.
#[test]
fn broadcasts_and_empty_axes() {
    let mut out = [0.0f32; 6];
    Naive.copy(View::strided(&[7.0f32], 0, [1, 2, 3], [0, 0, 0]), ViewMut::new(&mut out, [1, 2, 3])).unwrap();
    assert_eq!(out, [7.0; 6]);
    let huge = [usize::MAX, usize::MAX, 0];
    Naive.zero(ViewMut::<f32, 3>::strided(&mut [], 0, huge, [1, 1, 1])).unwrap();
    Naive.copy(View::<f32, 3>::strided(&[], 0, huge, [1, 1, 1]), ViewMut::strided(&mut [], 0, huge, [1, 1, 1])).unwrap();
}

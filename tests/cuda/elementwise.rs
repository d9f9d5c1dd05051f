//! Elementwise operations and conversions against plain loops, in every type and pair of layouts.

use half::{bf16, f16};
use num_complex::Complex;
use selective_scan::element::{Element, Input, Real};
use selective_scan::layers::elementwise::Elementwise;

use super::engine;
use super::tensor::{LAYOUTS, Layout, Tensor, named};
use super::tensors::{assert_bits, numbers, stored};

/// Around the sizes of tiles and blocks, and shapes with nothing in them.
const SIZES: [[usize; 3]; 10] =
    [[1, 1, 1], [2, 3, 5], [1, 1, 1100], [1, 33, 70], [300, 1, 1], [3, 9, 16], [0, 4, 2], [2, 0, 3], [1, 5, 0], [2, 40, 1]];

fn count(dims: &[usize]) -> usize {
    dims.iter().product()
}

fn pairs() -> impl Iterator<Item = (Layout, Layout)> {
    LAYOUTS.into_iter().flat_map(|from| LAYOUTS.map(|to| (from, to)))
}

fn copies<T: Element>(make: impl Fn(f64) -> T) {
    for (dims, (from_layout, to_layout)) in SIZES.iter().flat_map(|d| pairs().map(|p| (*d, p))) {
        let values: Vec<T> = numbers(count(&dims), 1).into_iter().map(&make).collect();
        let (from, mut to) = (Tensor::new(dims, from_layout, &values), Tensor::filled(dims, to_layout, make(f64::NAN)));
        engine().copy(from.view(), to.view_mut()).expect("it runs");
        assert_bits("copy", &to.values(), &values);
        engine().zero(to.view_mut()).expect("it runs");
        assert_bits("zero", &to.values(), &vec![T::default(); values.len()]);
    }
}

#[test]
fn copies_and_zeros_reach_every_element() {
    copies::<f32>(|x| x as f32);
    copies::<f64>(|x| x);
    copies::<bf16>(bf16::from_f64);
    copies::<Complex<bf16>>(|x| Complex::new(bf16::from_f64(x), bf16::from_f64(-x)));
    copies::<Complex<f32>>(|x| Complex::new(x as f32, -x as f32));
    copies::<Complex<f64>>(|x| Complex::new(x, -x));
}

fn sums<I: Input>() {
    for (dims, (from_layout, to_layout)) in SIZES.iter().flat_map(|d| pairs().map(|p| (*d, p))) {
        let [a, b]: [Vec<I>; 2] = [2, 3].map(|seed| stored(&numbers(count(&dims), seed).iter().map(|x| x / 3.0).collect::<Vec<_>>()));
        let (from, mut to) = (Tensor::new(dims, from_layout, &a), Tensor::new(dims, to_layout, &b));
        engine().add(from.view(), to.view_mut()).expect("it runs");
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
    for (dims, (from_layout, to_layout)) in [[1, 1], [5, 3], [110, 16], [4, 0], [0, 4]].iter().flat_map(|d| pairs().map(|p| (*d, p))) {
        let [log, grad]: [Vec<A>; 2] = [4, 5].map(|seed| stored(&numbers(count(&dims), seed)));
        let from = Tensor::new(dims, from_layout, &log);
        let (mut a, mut to) = (Tensor::filled(dims, to_layout, A::from_f64(f64::NAN)), Tensor::new(dims, to_layout, &grad));
        engine().decay(from.view(), a.view_mut()).expect("it runs");
        let got = a.values();
        for (log, a) in log.iter().zip(&got) {
            let want = -log.to_f64().exp();
            assert!((a.to_f64() - want).abs() <= 3.0 * A::UNIT * want.abs(), "-exp({log:?}) = {a:?}");
        }
        engine().scale(a.view(), to.view_mut()).expect("it runs");
        let want: Vec<A> = grad.iter().zip(&got).map(|(g, a)| *g * *a).collect();
        assert_bits("scale", &to.values(), &want);
    }
}

#[test]
fn decay_and_its_gradient() {
    matrices::<f32>();
    matrices::<f64>();
}

#[test]
fn nothing_is_swallowed() {
    let from = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0];
    let wide = Tensor::new([1, 1, 4], Layout::Dense, &from);
    let mut to = Tensor::filled([1, 1, 4], Layout::Dense, 1.0f32);
    engine().add(wide.view(), to.view_mut()).expect("it runs");
    let got = to.values();
    assert!(got[0].is_nan() && got[1] == f32::INFINITY && got[2] == f32::NEG_INFINITY && got[3] == 1.0);
    let (flat, mut to) = (Tensor::new([2, 2], Layout::Dense, &from), Tensor::filled([2, 2], Layout::Dense, 1.0f32));
    engine().decay(flat.view(), to.view_mut()).expect("it runs");
    let got = to.values();
    assert!(got[0].is_nan() && got[1] == f32::NEG_INFINITY && got[2] == 0.0 && got[3] == -1.0);
}

/// A broadcast may be read along any axes, also where the other operand is contiguous along another one.
#[test]
fn broadcasts() {
    let source = engine().upload(&numbers(64, 7)).expect("memory");
    let host = numbers(64, 7);
    for strides in [[0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 2, 1], [5, 0, 1]] {
        let dims = [3, 12, 20];
        let from = source.strided(0, dims, strides);
        let mut to = Tensor::filled(dims, Layout::Dense, f64::NAN);
        engine().copy(from, to.view_mut()).expect("it runs");
        let index = |i: usize| [i / 240, i / 20 % 12, i % 20];
        let at = |i: usize| host[index(i).iter().zip(strides).map(|(i, s)| *i as isize * s).sum::<isize>() as usize];
        assert_bits("copy", &to.values(), &(0..720).map(at).collect::<Vec<_>>());
    }
}

#[test]
fn wrong_operands_are_named() {
    let good = Tensor::filled([2, 3, 4], Layout::Dense, 1f32);
    let mut other = Tensor::filled([3, 2, 4], Layout::Dense, 2f32);
    assert_eq!(named(engine().copy(good.view(), other.view_mut())), "to");
    assert_eq!(named(engine().add(good.view(), other.view_mut())), "to");
    let flat = Tensor::filled([2, 3], Layout::Dense, 1f32);
    let mut out = Tensor::filled([3, 2], Layout::Dense, 2f32);
    assert_eq!(named(engine().decay(flat.view(), out.view_mut())), "a");
    assert_eq!(named(engine().scale(flat.view(), out.view_mut())), "to");
    assert_eq!((other.values(), out.values()), (vec![2.0; 24], vec![2.0; 6]));
}

/// Around ties, the ends of the subnormal numbers, and overflow of each type.
fn hard() -> Vec<f64> {
    let mut all = vec![0.0, -0.0, f64::INFINITY, f64::NEG_INFINITY, f64::MAX, f64::MIN_POSITIVE, 5e-324, 65504.0, 65519.99, 65520.0];
    for exponent in [-150, -149, -148, -134, -133, -126, -26, -25, -24, -14, 0, 1, 15, 127] {
        let unit = f64::from(exponent).exp2();
        // One and a half of the last place of 8, 11, 24 bits, and a little to both sides.
        for bits in [1, 2, 8, 9, 11, 12, 24, 25] {
            let half = unit * f64::from(-bits).exp2();
            for tie in [unit + half, unit + 3.0 * half] {
                all.extend([tie, -tie, tie * (1.0 + f64::EPSILON), tie * (1.0 - f64::EPSILON)]);
            }
        }
    }
    all.extend(numbers(500, 3).iter().map(|x| x.exp() / 3.0));
    all
}

/// x rounded to `bits` bits and to multiples of 2^lowest, ties to even; infinite from `beyond` on.
fn rounded(x: f64, bits: i32, lowest: i32, beyond: f64) -> f64 {
    if x == 0.0 || !x.is_finite() {
        return x;
    }
    // The exponent of x: subnormal f64 are far below every quantum here.
    let exponent = ((x.to_bits() >> 52) & 0x7ff) as i32 - 1023;
    let quantum = (exponent - bits + 1).max(lowest);
    if quantum < -1000 {
        return x;
    }
    let scaled = if quantum < -500 { x * 1000f64.exp2() * f64::from(-quantum - 1000).exp2() } else { x * f64::from(-quantum).exp2() };
    let y = scaled.round_ties_even() * f64::from(quantum).exp2();
    if y.abs() >= beyond { f64::INFINITY.copysign(x) } else { y.abs().copysign(x) }
}

fn to_type<O: Input>(x: f64) -> f64 {
    use selective_scan::element::Dtype;
    match O::DTYPE {
        Dtype::F16 => rounded(x, 11, -24, 65520.0),
        Dtype::Bf16 => rounded(x, 8, -133, 128f64.exp2()),
        Dtype::F32 => f64::from(x as f32),
        _ => x,
    }
}

fn cast<I: Input, O: Input>() {
    let from: Vec<I> = stored(&hard());
    for layout in LAYOUTS {
        let (source, mut to) = (Tensor::new([from.len()], layout, &from), Tensor::filled([from.len()], layout, O::default()));
        engine().cast(source.view(), to.view_mut()).expect("it runs");
        for (from, to) in from.iter().map(|x| x.load().to_f64()).zip(to.values().iter().map(|x| x.load().to_f64())) {
            let want = to_type::<O>(from);
            assert!(to == want && to.is_sign_negative() == want.is_sign_negative(), "{from:e} to {}: {to:e}, {want:e}", O::DTYPE.name());
        }
    }
    let (nan, mut to) =
        (Tensor::filled([1], Layout::Dense, I::store(I::Accum::from_f64(f64::NAN))), Tensor::filled([1], Layout::Dense, O::default()));
    engine().cast(nan.view(), to.view_mut()).expect("it runs");
    assert!(to.values()[0].load().to_f64().is_nan());
}

#[test]
fn conversions_round_to_nearest_even_once() {
    fn from<I: Input>() {
        cast::<I, f32>();
        cast::<I, f64>();
        cast::<I, f16>();
        cast::<I, bf16>();
    }
    from::<f32>();
    from::<f64>();
    from::<f16>();
    from::<bf16>();
    let (empty, mut to) = (Tensor::<f32, 1>::filled([0], Layout::Dense, 0.0), Tensor::filled([0], Layout::Dense, bf16::ZERO));
    engine().cast(empty.view(), to.view_mut()).expect("nothing");
    let mut longer = Tensor::filled([1], Layout::Dense, bf16::ZERO);
    assert_eq!(named(engine().cast(empty.view(), longer.view_mut())), "to");
}

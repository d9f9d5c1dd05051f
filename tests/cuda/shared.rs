//! The snippets of accurate functions, each as a kernel over a table of numbers, against f64.

use bytemuck::Pod;
use selective_scan::cuda::driver::Launch;
use selective_scan::cuda::expression::Vars;
use selective_scan::cuda::template::Template;
use selective_scan::element::Real;
use selective_scan::ops;

use super::arrays::Draw;
use super::engine;

/// Number i of each input goes through the snippet to number i of each output; x, y are inputs and v, w outputs.
const KERNEL: &str = r"
.version 8.0
.target sm_80
.address_size 64
.visible .entry @entry@(.param .align 8 .b8 p[32])
{
.reg .b32 %thread, %block;
.reg .b64 %off, %addr;
.reg .@A@ %x, %y, %v, %w;
mov.u32 %thread, %tid.x;
mov.u32 %block, %ctaid.x;
mad.lo.u32 %thread, %block, 128, %thread;
mul.wide.u32 %off, %thread, @AB@;
ld.param.u64 %addr, [p];
add.u64 %addr, %addr, %off;
ld.global.@A@ %x, [%addr];
ld.param.u64 %addr, [p+8];
add.u64 %addr, %addr, %off;
ld.global.@A@ %y, [%addr];
mov.@A@ %v, %x;
mov.@A@ %w, %y;
SNIPPET
ld.param.u64 %addr, [p+16];
add.u64 %addr, %addr, %off;
st.global.@A@ [%addr], %v;
ld.param.u64 %addr, [p+24];
add.u64 %addr, %addr, %off;
st.global.@A@ [%addr], %w;
ret;
}
";

fn of<R: Real>(x: f64) -> R {
    R::from_f64(x)
}

/// The two outputs of a line of a template.
fn run<R: Real + Pod>(line: &str, x: &[R], y: &[R]) -> [Vec<R>; 2] {
    let (arith, bytes) = (if size_of::<R>() == 8 { "f64" } else { "f32" }, size_of::<R>());
    let zero = if bytes == 8 { "0d0000000000000000" } else { "0f00000000" };
    let text: &'static str = Box::leak(KERNEL.replace("SNIPPET", &format!("//!use {}", line.replace("ZERO", zero))).into_boxed_str());
    let name: String = format!("{arith}_{line}").chars().map(|c| if c.is_alphanumeric() { c } else { '_' }).collect();
    let vars = Vars::new().text("A", arith).int("AB", bytes).text("T", arith).int("TB", bytes).text("entry", name.as_str());
    let function = engine().driver().load(&Template { name: "snippet", text }.expand(&vars), &name).expect("it assembles");
    let count = x.len().next_multiple_of(128);
    let padded = |v: &[R]| {
        let mut v = v.to_vec();
        v.resize(count, R::ZERO);
        engine().upload(&v).expect("a small buffer")
    };
    let buffers = [padded(x), padded(y), padded(&[]), padded(&[])];
    let addresses: Vec<u64> = buffers.iter().map(|b| b.view([count]).buffer().0 as u64).collect();
    let launch =
        Launch { function, grid: [(count / 128) as u32, 1, 1], block: [128, 1, 1], shared: 0, params: bytemuck::cast_slice(&addresses) };
    // SAFETY: the kernel takes four addresses of `count` numbers each, one for each of its threads.
    unsafe { engine().driver().launch(&launch) }.expect("it runs");
    let read = |i: usize| buffers[i].to_vec().expect("it can be read")[..x.len()].to_vec();
    [read(2), read(3)]
}

/// The distance of neighbours at a number of the type.
fn ulp<R: Real>(x: f64) -> f64 {
    let (digits, least) = if size_of::<R>() == 8 { (52, -1022) } else { (23, -126) };
    let exponent = if x == 0.0 { least } else { (x.abs().log2().floor() as i32).max(least) };
    2f64.powi(exponent) * 2f64.powi(-digits)
}

fn sweep<R: Real>(low: f64, high: f64) -> Vec<R> {
    let mut draw = Draw(1);
    let mut x: Vec<R> = (0..3000).map(|_| of(draw.between(low, high))).collect();
    // As many numbers whose logarithms are spread evenly.
    x.extend((0..1000).map(|_| of::<R>((draw.between(-60.0, high.max(1e-9).ln())).exp())));
    x.extend((0..1000).filter(|_| low < 0.0).map(|_| of::<R>(-(draw.between(-60.0, (-low).ln())).exp())));
    x
}

/// Within so many ulps of the type; the reference itself is f64's.
fn within<R: Real + Pod>(name: &str, [low, high]: [f64; 2], ulps: f64, reference: impl Fn(f64) -> f64) {
    let x = sweep::<R>(low, high);
    let got = &run(&format!("{name} d=%v x=%v"), &x, &x)[0];
    let mut worst = (0.0, 0.0);
    for (x, got) in x.iter().zip(got) {
        let want = reference(x.to_f64());
        let error = (got.to_f64() - want).abs() / ulp::<R>(want);
        assert!(error <= ulps, "{name} of {:e} is {:e}, {want:e} is wanted: {error} ulp", x.to_f64(), got.to_f64());
        if error > worst.0 {
            worst = (error, x.to_f64());
        }
    }
    println!("{name} in f{}: {:.2} ulp at {:e}", 8 * size_of::<R>(), worst.0, worst.1);
}

#[test]
fn single_precision_is_accurate() {
    within::<f32>("exp2", [-125.4, 127.99], 1.0, f64::exp2);
    within::<f32>("exp2_fast", [-125.4, 127.99], 4.0, f64::exp2);
    within::<f32>("exp", [-86.9, 88.7], 1.1, f64::exp);
    within::<f32>("expm1", [-60.0, 88.7], 1.7, f64::exp_m1);
    within::<f32>("log1p", [-0.999, 1e30], 1.0, f64::ln_1p);
    within::<f32>("softplus", [-86.9, 100.0], 1.8, ops::softplus);
    within::<f32>("sigmoid", [-86.9, 100.0], 3.0, ops::sigmoid);
    within::<f32>("silu", [-86.0, 100.0], 3.6, ops::silu);
    within::<f32>("phi1", [-80.0, 80.0], 2.0, ops::phi1::<f64>);
}

#[test]
fn double_precision_is_accurate() {
    within::<f64>("exp2", [-1074.0, 1023.9], 2.0, f64::exp2);
    within::<f64>("exp", [-744.0, 709.7], 2.0, f64::exp);
    within::<f64>("expm1", [-60.0, 709.7], 3.0, f64::exp_m1);
    within::<f64>("log1p", [-0.999, 1e300], 2.2, f64::ln_1p);
    within::<f64>("softplus", [-700.0, 800.0], 3.0, ops::softplus);
    within::<f64>("sigmoid", [-700.0, 800.0], 4.0, ops::sigmoid);
    within::<f64>("silu", [-700.0, 800.0], 4.5, ops::silu);
    within::<f64>("phi1", [-700.0, 700.0], 4.0, ops::phi1::<f64>);
}

/// Largest distance from pairs of numbers.
fn far<R: Real>(got: &[Vec<R>; 2], want: impl Fn(usize) -> [f64; 2]) -> f64 {
    let error = |i: usize| (got[0][i].to_f64() - want(i)[0]).abs().max((got[1][i].to_f64() - want(i)[1]).abs());
    (0..got[0].len()).map(error).fold(0.0, |m, e| if e <= m { m } else { e })
}

#[test]
fn sines_and_cosines_are_accurate() {
    fn check<R: Real + Pod>(reach: f64, bound: f64) {
        let x = sweep::<R>(-reach, reach);
        let got = run("sincos d_sin=%v d_cos=%w x=%v", &x, &x);
        let error = far(&got, |i| x[i].to_f64().sin_cos().into());
        assert!(error <= bound, "{error:e}");
        // The low part: what a product lost when it was rounded.
        let low: Vec<R> = x.iter().map(|x| of(x.to_f64() * R::UNIT)).collect();
        let got = run("sincos_sum d_sin=%v d_cos=%w x=%v low=%w", &x, &low);
        let error = far(&got, |i| {
            let ((s, c), (a, b)) = (x[i].to_f64().sin_cos(), low[i].to_f64().sin_cos());
            [s * b + c * a, c * b - s * a]
        });
        assert!(error <= 1.5 * bound, "{error:e}");
    }
    check::<f32>(10.0, 1.2e-7);
    check::<f32>(3e5, 1.2e-7);
    check::<f64>(10.0, 2.3e-16);
    check::<f64>(1e9, 2.3e-16);
}

#[test]
fn complex_functions_are_accurate() {
    use num_complex::Complex;
    fn check<R: Real + Pod>(bound: f64) {
        let mut draw = Draw(3);
        let mut part = |scale: f64| -> Vec<R> { (0..4000).map(|i| of(draw.between(-1.0, 1.0) * scale * 10f64.powi(-(i % 12)))).collect() };
        let (x, y) = (part(8.0), part(30.0));
        let z = |i: usize| Complex::new(x[i].to_f64(), y[i].to_f64());
        let check = |line: &str, of: &dyn Fn(Complex<f64>) -> Complex<f64>| {
            let got = run(line, &x, &y);
            for i in 0..x.len() {
                let (got, want) = (Complex::new(got[0][i].to_f64(), got[1][i].to_f64()), of(z(i)));
                let error = (got - want).norm() / want.norm();
                assert!(error <= bound, "{line}: {error:e} at {}", z(i));
            }
        };
        check("cexp d_re=%v d_im=%w re=%v im=%w low=ZERO", &|z| z.exp());
        check("cexp2 d_re=%v d_im=%w re=%v im=%w low=ZERO", &|z| Complex::from_polar(z.re.exp2(), z.im));
        check("cphi1 d_re=%v d_im=%w re=%v im=%w", &ops::phi1);
        check("crcp d_re=%v d_im=%w re=%v im=%w", &|z| Complex::<f64>::ONE / z);
    }
    check::<f32>(1e-6);
    check::<f64>(2e-15);
}

#[test]
fn special_values() {
    fn check<R: Real + Pod>() {
        let infinite = f64::INFINITY;
        let x = [0.0, -0.0, infinite, -infinite, f64::NAN, 1e30, -1e30, 1e-30];
        let x: Vec<R> = x.into_iter().map(of).collect();
        let near = 1.0 + of::<R>(1e-30).to_f64();
        let table = |name: &str| -> Vec<f64> { run(&format!("{name} d=%v x=%v"), &x, &x)[0].iter().map(|y| y.to_f64()).collect() };
        let same = |name: &str, want: [f64; 8]| {
            for (i, (got, want)) in table(name).into_iter().zip(want).enumerate() {
                assert!(got == want || want.is_nan() && got.is_nan(), "{name} of {:e} is {got:e}, {want:e} is wanted", x[i].to_f64());
            }
        };
        let nan = f64::NAN;
        for name in ["exp2", "exp2_fast", "exp"] {
            same(name, [1.0, 1.0, infinite, 0.0, nan, infinite, 0.0, near]);
        }
        let tiny = x[7].to_f64();
        same("expm1", [0.0, 0.0, infinite, -1.0, nan, infinite, -1.0, tiny]);
        assert_eq!(table("log1p")[2], infinite);
        assert!(table("log1p")[4].is_nan());
        let big = x[5].to_f64();
        same("sigmoid", [0.5, 0.5, 1.0, 0.0, nan, 1.0, 0.0, 0.5]);
        same("silu", [0.0, 0.0, infinite, nan, nan, big, 0.0, tiny / 2.0]);
        let got = table("softplus");
        assert!(got[2] == infinite && got[3] == 0.0 && got[4].is_nan() && got[5] == big && got[6] == 0.0);
        assert!(got[0] == got[1] && (got[0] - 2f64.ln()).abs() < 1e-7);
        let got = table("phi1");
        assert!(got[0] == 1.0 && got[3] == 0.0 && !got[2].is_finite() && got[4].is_nan() && got[7] == 1.0);
        let got = run("sincos d_sin=%v d_cos=%w x=%v", &x, &x);
        for i in [2, 3, 4] {
            assert!(got[0][i].to_f64().is_nan() && got[1][i].to_f64().is_nan());
        }
        // Beyond the range the angle means nothing, but nothing exceeds 1.
        assert!(got[0][5].to_f64().abs() <= 1.0 && got[1][6].to_f64().abs() <= 1.0);
    }
    check::<f32>();
    check::<f64>();
}

#[test]
fn the_derivative_of_silu_is_accurate() {
    fn check<R: Real + Pod>(bound: f64) {
        let x = sweep::<R>(-40.0, 40.0);
        for (x, got) in x.iter().zip(&run("silu_grad d=%v x=%v", &x, &x)[0]) {
            let want = ops::silu_grad(x.to_f64());
            assert!((got.to_f64() - want).abs() <= bound, "{:e}", x.to_f64());
        }
    }
    check::<f32>(4e-7);
    check::<f64>(1e-15);
}

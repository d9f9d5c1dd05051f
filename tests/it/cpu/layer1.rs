//! Layer 1 on the SIMD engine against the specification.

use half::{bf16, f16};
use num_complex::Complex;
use selective_scan::buffer::Buffer;
use selective_scan::element::{Element, Weight};
use selective_scan::naive::Naive;
use selective_scan::scan::{Scan, ScanBwd, ScanFwd};
use selective_scan::view::Host;

use super::case::{C32, C64, Results, Tensor, close, noise, number};
use super::engines;

/// Forward and adjoint in type `E` on numbers that were rounded to `As`.
fn run<E: Element, As: Element>(
    engine: &impl Scan<Memory = Host>,
    dims @ [batch, _, dim]: [usize; 3],
    reverse: bool,
    initial: bool,
) -> Results {
    let tensor =
        |name: u64, scale: f64| Tensor::<E, 3>::plain(dims, |i| number::<As, E>(scale * noise(5, name, i), scale * noise(5, name + 1, i)));
    let state =
        |name: u64| Tensor::<E::Arith, 2>::plain([batch, dim], |i| number::<As::Arith, E::Arith>(noise(5, name, i), noise(5, name + 1, i)));
    let (a, b, g, h0, grad_last) = (tensor(1, 0.7), tensor(3, 1.0), tensor(5, 1.0), state(7), state(9));
    let mut buffer = Buffer::new();
    let (mut h, mut last) = (a.like(), h0.like());
    let initial_state = initial.then(|| h0.view());
    let args = ScanFwd { a: a.view(), b: b.view(), initial_state, h: h.view_mut(), last_state: Some(last.view_mut()), reverse };
    let problem = args.check().unwrap();
    engine.scan_fwd(args, &mut buffer.workspace(engine.scan_fwd_workspace::<E>(problem))).unwrap();
    let (mut grad_a, mut grad_b, mut grad_initial) = (a.like(), a.like(), h0.like());
    let args = ScanBwd {
        a: a.view(),
        b: b.view(),
        initial_state,
        grad_h: g.view(),
        grad_last_state: Some(grad_last.view()),
        grad_a: Some(grad_a.view_mut()),
        grad_b: Some(grad_b.view_mut()),
        grad_initial_state: initial.then(|| grad_initial.view_mut()),
        reverse,
    };
    engine.scan_bwd(args, &mut buffer.workspace(engine.scan_bwd_workspace::<E>(problem))).unwrap();
    let mut results = vec![("h", h.numbers()), ("last_state", last.numbers()), ("grad a", grad_a.numbers()), ("grad b", grad_b.numbers())];
    results.extend(initial.then(|| ("grad initial_state", grad_initial.numbers())));
    results
}

fn check<E: Element, Wide: Element>(dims: [usize; 3], tolerance: f64, rounding: f64)
where
    E::Arith: Weight,
{
    for (reverse, initial) in [(false, true), (true, true), (false, false), (true, false)] {
        let want = run::<Wide, E>(&Naive, dims, reverse, initial);
        for cpu in engines() {
            let what = format!("{} {:?} {dims:?} reverse {reverse}", cpu.isa().name(), E::DTYPE);
            close(&what, &run::<E, E>(&cpu, dims, reverse, initial), &want, tolerance, rounding);
        }
    }
}

#[test]
fn the_recurrence_agrees_with_the_specification() {
    for dims in [[2, 1, 5], [1, 63, 17], [3, 64, 33], [8, 65, 1], [2, 130, 16], [1, 0, 4], [0, 5, 4], [2, 3, 0]] {
        check::<f32, f64>(dims, 1e-6, 0.0);
        check::<f64, f64>(dims, 1e-14, 0.0);
        check::<C32, C64>(dims, 1e-6, 0.0);
        check::<C64, C64>(dims, 1e-14, 0.0);
        check::<f16, f64>(dims, 1e-6, 1.0 / 2048.0);
        check::<bf16, f64>(dims, 1e-6, 1.0 / 256.0);
        check::<Complex<bf16>, C64>(dims, 1e-6, 1.0 / 256.0);
    }
}

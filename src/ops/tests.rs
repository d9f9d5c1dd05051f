use num_complex::Complex;

use super::*;

type C = Complex<f64>;

/// φ₁ by its series, which converges everywhere though slowly.
fn phi1_series(z: C) -> C {
    let mut term = C::ONE;
    let mut sum = C::ONE;
    for k in 2..200 {
        term = term * z / f64::from(k);
        sum += term;
    }
    sum
}

#[test]
fn phi1_and_its_derivative_agree_with_series_and_differences() {
    for re in [-3.0, -1.0, -0.3, -1e-3, -1e-5, -1e-12, 0.0, 1e-7, 0.5, 2.0] {
        for im in [0.0, 1e-30, 1e-5, 0.2, -1.1, 3.0] {
            let z = C::new(re, im);
            assert!((phi1(z) - phi1_series(z)).norm() < 1e-15 * 8.0, "{z}");
            let h = 1e-5;
            let slope = (phi1_series(z + h) - phi1_series(z - h)) / (2.0 * h);
            assert!((phi1_grad(z) - slope).norm() < 1e-9, "{z}: {} {slope}", phi1_grad(z));
            if im == 0.0 {
                assert!((phi1(re) - phi1(z).re).abs() < 1e-15 && (phi1_grad(re) - phi1_grad(z).re).abs() < 1e-14);
                assert!((f64::from(phi1(re as f32)) - phi1(f64::from(re as f32))).abs() < 3e-7);
            }
        }
    }
    assert_eq!((phi1(0.0f32), phi1_grad(0.0f64)), (1.0, 0.5));
    assert_eq!(phi1(f64::NEG_INFINITY), 0.0);
    assert!(phi1(f32::NAN).is_nan());
}

#[test]
fn rules_have_the_derivatives_they_say() {
    let (dt, a, b) = (0.3, C::new(-1.4, 2.2), C::new(0.7, -0.4));
    let h = 1e-6;
    for rule in [Rule::Euler, Rule::Zoh, Rule::Bilinear] {
        let bbar = |dt: f64, a: C| rule.discretize(dt, a).gamma * b * dt;
        let abar = |dt: f64, a: C| rule.discretize(dt, a).abar;
        let g = rule.discretize_grad(dt, a);
        let near = |got: C, want: C| assert!((got - want).norm() < 1e-8, "{rule:?}: {got} {want}");
        near(g.slope * dt, (abar(dt, a + h) - abar(dt, a - h)) / (2.0 * h));
        near(g.slope * a, (abar(dt + h, a) - abar(dt - h, a)) / (2.0 * h));
        near(g.bslope * b, (bbar(dt + h, a) - bbar(dt - h, a)) / (2.0 * h));
        near(g.curve * b * dt * dt, (bbar(dt, a + h) - bbar(dt, a - h)) / (2.0 * h));
    }
}

#[test]
fn activations_are_right_at_the_edges() {
    assert_eq!(softplus(1000.0f32), 1000.0);
    assert_eq!(softplus(-1000.0f64), 0.0);
    assert!((softplus(-40.0f64) / (-40.0f64).exp() - 1.0).abs() < 1e-15);
    assert_eq!(softplus(0.0f64), 2.0f64.ln());
    assert_eq!(softplus(f32::INFINITY), f32::INFINITY);
    assert_eq!(softplus(f32::NEG_INFINITY), 0.0);
    for nan in [softplus(f32::NAN), sigmoid(f32::NAN), silu(f32::NAN), silu_grad(f32::NAN)] {
        assert!(nan.is_nan());
    }
    assert!(silu(-87.0f32) < 0.0 && silu(100.0f32) == 100.0);
    let s = silu(f64::NEG_INFINITY);
    assert!(s == 0.0 || s.is_nan());
    for x in [-30.0, -2.0, -0.1, 0.0, 0.4, 5.0, 40.0f64] {
        let h = 1e-6;
        assert!((silu_grad(x) - (silu(x + h) - silu(x - h)) / (2.0 * h)).abs() < 1e-8);
        assert!((sigmoid(x) + sigmoid(-x) - 1.0).abs() < 1e-15);
    }
}

#[test]
fn the_sum_loses_nothing() {
    let mut sum = Sum::default();
    for x in [1e100, 1.0, -1e100, 1e-30] {
        sum.add(x);
    }
    assert_eq!(sum.value(), 1.0 + 1e-30);
    sum.add(f64::INFINITY);
    assert_eq!(sum.value(), f64::INFINITY);
    sum.add(f64::NAN);
    assert!(sum.value().is_nan());
}

#[test]
fn the_affine_operator_composes_maps() {
    let op = Affine::<f64>::new();
    let (f, g, h) = ((2.0, 3.0), (-0.5, 1.0), (0.25, -8.0));
    assert_eq!(op.combine(&op.combine(&f, &g), &h), op.combine(&f, &op.combine(&g, &h)));
    assert_eq!(op.combine(&op.identity(), &f), f);
    assert_eq!(op.combine(&f, &op.identity()), f);
    let at = |(a, b): (f64, f64), x: f64| a * x + b;
    assert_eq!(at(op.combine(&f, &g), 7.0), at(g, at(f, 7.0)));
}

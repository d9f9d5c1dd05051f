//! The selective scan, forward: discretisation, recurrence, contraction with C, skip and gate in one pass over a staged tile.

use crate::arch::generic::discretize::discretize;
use crate::arch::generic::exp::exp_of_negative;
use crate::arch::generic::number::{Cx, Number, Parts, PartsMut, Re, plane_rows, plane_rows_mut, plane_scalars};
use crate::arch::generic::silu::silu;
use crate::arch::generic::softplus::softplus_of;
use crate::arch::generic::tables::Tables;
use crate::arch::generic::tiles::{Coefficient, SelectiveFwd, SelectiveTile, TILE};
use crate::arch::generic::vector::{Op, Part, Vector, rows, rows_mut};
use crate::element::Weight as _;
use crate::ops::Rule;

/// States whose share of y is added up before it joins the rest, so that rounding does not grow with N.
pub(super) const SUBTOTAL: usize = 32;

/// B or C of the tile: scalars `[t][n]` or vectors `[n]`.
#[derive(Clone, Copy)]
pub(super) enum Coef<'a, V: Vector> {
    Varying(Parts<'a, V::Real>),
    Constant(Parts<'a, V>),
}

impl<'a, V: Vector> Coef<'a, V> {
    /// From the operand.
    #[inline(always)]
    pub(super) fn new(zero: V, from: Coefficient<'a, V::Real>, steps: usize, dstate: usize) -> Self {
        match from {
            Coefficient::Varying(planes) => Coef::Varying(plane_scalars(planes, steps * dstate)),
            Coefficient::Constant(planes) => Coef::Constant(plane_rows(zero, planes, dstate)),
        }
    }
    /// The coefficient of state `n` at step `t`.
    #[inline(always)]
    pub(super) fn at<X: Number<V = V>>(self, zero: V, t: usize, n: usize, dstate: usize) -> X {
        match self {
            Coef::Varying(parts) => X::broadcast(zero, parts, t * dstate + n),
            Coef::Constant(parts) => X::read(parts, n),
        }
    }
}

/// What the state loops read.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a, V: Vector> {
    pub(super) steps: usize,
    pub(super) dstate: usize,
    pub(super) rule: Rule,
    pub(super) first: bool,
    /// Δ' a step.
    pub(super) dt: &'a [V],
    /// Δ'·u a step.
    pub(super) du: &'a [V],
    pub(super) a: Parts<'a, V>,
    pub(super) b: Coef<'a, V>,
    pub(super) c: Coef<'a, V>,
    /// Whether every exponent is small: see [`Vector::exp2_small`].
    pub(super) small: bool,
    /// Addresses that are asked for while states are walked.
    pub(super) ahead: &'a [usize],
}

impl<'a, V: Vector> Inputs<'a, V> {
    /// The share of `ahead` for states `n..n + count`.
    #[inline(always)]
    pub(super) fn ahead_of(&self, n: usize, count: usize) -> &'a [usize] {
        &self.ahead[self.ahead.len() * n / self.dstate..self.ahead.len() * (n + count) / self.dstate]
    }
}

/// Whether |Δ'·A·log₂e| is below [`Tables::EXP2_SMALL`] for every step and state; false where something is NaN.
#[inline(always)]
pub(super) fn all_small<V: Vector>(zero: V, dt: &[V], a: &[V]) -> bool {
    let scale = zero.splat(V::Real::LOG2_E / V::Real::EXP2_SMALL);
    let (mut slowest, mut total) = (zero, zero);
    for a in a {
        slowest = slowest.at_least(a.abs());
        total = total + *a;
    }
    let limit = zero.splat(V::Real::ONE) / (slowest * scale);
    // NaN in any A is one here.
    let mut small = total.all_below(V::Real::MAX);
    for dt in dt {
        small &= V::all(dt.abs().lt(limit));
    }
    small
}

/// Δ' and Δ'·u of every step; `decay` is e^−|Δ + bias| on return where softplus is on.
#[inline(always)]
pub(super) fn steps<V: Vector>(zero: V, tile: &SelectiveTile<'_, V::Real>, decay: &mut [V], dt: &mut [V], du: &mut [V]) {
    let (u, delta) = (rows(zero, tile.u, tile.steps), rows(zero, tile.delta, tile.steps));
    let bias = tile.delta_bias.map_or(zero, |bias| rows(zero, bias, 1)[0]);
    // In two passes: chains of dependent instructions are shorter, and more steps are in flight at once.
    if tile.softplus {
        for (decay, delta) in decay.iter_mut().zip(delta) {
            *decay = exp_of_negative(-(*delta + bias).abs());
        }
        for ((((dt, du), decay), delta), u) in dt.iter_mut().zip(du).zip(decay).zip(delta).zip(u) {
            *dt = softplus_of(*delta + bias, *decay);
            *du = *dt * *u;
        }
    } else {
        for (((dt, du), delta), u) in dt.iter_mut().zip(du).zip(delta).zip(u) {
            *dt = *delta + bias;
            *du = *dt * *u;
        }
    }
}

/// Steps between two rounds of [`Ahead`].
pub(super) const PART: usize = 8;

/// Addresses, a few every so many steps.
pub(super) struct Ahead<'a> {
    left: &'a [usize],
    each: usize,
}

impl<'a> Ahead<'a> {
    #[inline(always)]
    pub(super) fn new(addresses: &'a [usize], steps: usize, every: usize) -> Self {
        Ahead { left: addresses, each: addresses.len().div_ceil(steps.div_ceil(every)) }
    }
    /// Asks for the next few.
    #[inline(always)]
    pub(super) fn part<V: Vector>(&mut self, zero: V) {
        let (now, left) = self.left.split_at(self.each.min(self.left.len()));
        for &address in now {
            if V::NEAR {
                zero.prefetch::<true>(address);
            } else {
                zero.prefetch::<false>(address);
            }
        }
        self.left = left;
    }
}

/// As many states at once as registers hold and are left.
#[inline(always)]
pub(super) fn group(most: usize, left: usize) -> usize {
    let mut size = most;
    while size > left {
        size /= 2;
    }
    size
}

/// `NB` states from `n` on over the tile; adds their part of Σ_n C·h to y.
struct States<'t, 'a, X: Number, const NB: usize> {
    inputs: &'t Inputs<'a, X::V>,
    n: usize,
    h: PartsMut<'t, X::V>,
    y: &'t mut [X::V],
}

impl<X: Number, const NB: usize> Part<X::V> for States<'_, '_, X, NB> {
    type Out = ();
    #[inline(always)]
    fn run(mut self, zero: X::V) {
        let mut h = [X::real(zero); NB];
        for j in 0..NB {
            h[j] = X::read(self.h.as_parts(), j);
        }
        for t in 0..self.inputs.steps {
            self.step(zero, &mut h, t);
        }
        for j in 0..NB {
            h[j].write(&mut self.h, j);
        }
    }
}

impl<X: Number, const NB: usize> States<'_, '_, X, NB> {
    #[inline(always)]
    fn step(&mut self, zero: X::V, h: &mut [X; NB], t: usize) {
        let Inputs { dstate, rule, first, dt, du, a, b, c, .. } = *self.inputs;
        let mut sums = [zero; 2];
        for j in 0..NB {
            let n = self.n + j;
            let d = discretize(rule, dt[t], X::read(a, n));
            let input = b.at::<X>(zero, t, n, dstate);
            let input = if matches!(rule, Rule::Euler) { input.scale(du[t]) } else { d.gamma.scale(du[t]).mul(input) };
            h[j] = if first && t == 0 { input } else { d.abar.mul_add(h[j], input) };
            sums[j % 2] = c.at::<X>(zero, t, n, dstate).add_re_mul(h[j], sums[j % 2]);
        }
        self.y[t] = self.y[t] + (sums[0] + sums[1]);
    }
}

/// [`States`] for Mamba's own case: Euler's rule, real numbers, B and C varying; and perhaps all exponents `SMALL`.
struct Mamba<'t, 'a, V: Vector, const NB: usize, const SMALL: bool> {
    inputs: &'t Inputs<'a, V>,
    b: &'a [V::Real],
    c: &'a [V::Real],
    n: usize,
    h: &'t mut [V],
    y: &'t mut [V],
}

impl<V: Vector, const NB: usize, const SMALL: bool> Part<V> for Mamba<'_, '_, V, NB, SMALL> {
    type Out = ();
    #[inline(always)]
    fn run(self, zero: V) {
        let (mut h, mut a) = ([zero; NB], [zero; NB]);
        unrolled!(j < NB {
            h[j] = self.h[j];
            a[j] = self.inputs.a.re[self.n + j] * zero.splat(V::Real::LOG2_E);
        });
        let Inputs { steps, dstate, dt, du, mut first, .. } = *self.inputs;
        let mut ahead = Ahead::new(self.inputs.ahead_of(self.n, NB), steps, PART);
        let of_steps = dt.chunks(PART).zip(du.chunks(PART)).zip(self.y.chunks_mut(PART));
        let (b, c) = (&self.b[..steps * dstate], &self.c[..steps * dstate]);
        for (((dt, du), y), (b, c)) in of_steps.zip(b.chunks(PART * dstate).zip(c.chunks(PART * dstate))) {
            ahead.part(zero);
            for ((((dt, du), y), b), c) in dt.iter().zip(du).zip(y).zip(b.chunks(dstate)).zip(c.chunks(dstate)) {
                let (b, c) = (&b[self.n..self.n + NB], &c[self.n..self.n + NB]);
                *y = if first {
                    Self::step::<true>(&a, &mut h, [*dt, *du, *y], b, c)
                } else {
                    Self::step::<false>(&a, &mut h, [*dt, *du, *y], b, c)
                };
                first = false;
            }
        }
        unrolled!(j < NB {
            self.h[j] = h[j];
        });
    }
}

impl<V: Vector, const NB: usize, const SMALL: bool> Mamba<'_, '_, V, NB, SMALL> {
    /// One step; returns the new y.
    #[inline(always)]
    fn step<const FIRST: bool>(a: &[V; NB], h: &mut [V; NB], [dt, du, y]: [V; 3], b: &[V::Real], c: &[V::Real]) -> V {
        let mut sums = [dt.splat(V::Real::ZERO); 2];
        unrolled!(j < NB {
            let input = du * dt.splat(b[j]);
            let x = dt * a[j];
            h[j] = if FIRST { input } else { (if SMALL { x.exp2_small() } else { x.exp2() }).mul_add(h[j], input) };
            sums[j % 2] = h[j].mul_add(dt.splat(c[j]), sums[j % 2]);
        });
        y + (sums[0] + sums[1])
    }
}

/// A loop over states `n..`, returning how many it took. `NB` is chosen by N alone.
trait Walk<X: Number> {
    fn states(zero: X::V, inputs: &Inputs<'_, X::V>, n: usize, h: &mut PartsMut<'_, X::V>, y: &mut [X::V]) -> usize;
}

/// [`States`].
struct General;

impl<X: Number> Walk<X> for General {
    #[inline(always)]
    fn states(zero: X::V, inputs: &Inputs<'_, X::V>, n: usize, h: &mut PartsMut<'_, X::V>, y: &mut [X::V]) -> usize {
        let size = group(4, inputs.dstate - n);
        let h = h.range(n, size);
        match size {
            4 => zero.outline(States::<X, 4> { inputs, n, h, y }),
            2 => zero.outline(States::<X, 2> { inputs, n, h, y }),
            _ => zero.outline(States::<X, 1> { inputs, n, h, y }),
        }
        size
    }
}

/// [`Mamba`] where it fits, else [`States`].
struct Fast;

impl<V: Vector> Walk<Re<V>> for Fast {
    #[inline(always)]
    fn states(zero: V, inputs: &Inputs<'_, V>, n: usize, h: &mut PartsMut<'_, V>, y: &mut [V]) -> usize {
        let (Rule::Euler, Coef::Varying(b), Coef::Varying(c)) = (inputs.rule, inputs.b, inputs.c) else {
            return <General as Walk<Re<V>>>::states(zero, inputs, n, h, y);
        };
        let (b, c) = (b.re, c.re);
        let size = group(V::STATES, inputs.dstate - n);
        let h = h.range(n, size).re;
        macro_rules! walk {
            ($states:literal) => {
                if inputs.small {
                    zero.outline(Mamba::<V, $states, true> { inputs, b, c, n, h, y })
                } else {
                    zero.outline(Mamba::<V, $states, false> { inputs, b, c, n, h, y })
                }
            };
        }
        // The first two are compiled only where so many states fit in registers.
        if V::STATES >= 16 && size == 16 {
            walk!(16);
        } else if V::STATES >= 8 && size == 8 {
            walk!(8);
        } else if size == 4 {
            walk!(4);
        } else if size == 2 {
            walk!(2);
        } else {
            walk!(1);
        }
        size
    }
}

/// Σ_n C·h of every step, to `y`; `subtotal` is scratch memory of the same size.
#[inline(always)]
fn contract<X: Number, W: Walk<X>>(
    zero: X::V,
    inputs: &Inputs<'_, X::V>,
    h: &mut PartsMut<'_, X::V>,
    y: &mut [X::V],
    subtotal: &mut [X::V],
) {
    y.fill(zero);
    let mut n = 0;
    while n < inputs.dstate {
        if n < SUBTOTAL {
            n += W::states(zero, inputs, n, h, y);
            continue;
        }
        if n.is_multiple_of(SUBTOTAL) {
            subtotal.fill(zero);
        }
        n += W::states(zero, inputs, n, h, subtotal);
        if n.is_multiple_of(SUBTOTAL) || n == inputs.dstate {
            for t in 0..inputs.steps {
                y[t] = y[t] + subtotal[t];
            }
        }
    }
}

/// out = (κ·y + D·u)·silu(z), where `y` holds Σ_n Re(C·h).
#[inline(always)]
fn finish<X: Number>(zero: X::V, tile: &SelectiveTile<'_, <X::V as Vector>::Real>, y: &mut [X::V]) {
    let u = rows(zero, tile.u, tile.steps);
    if X::COMPLEX {
        for y in y.iter_mut() {
            *y = *y + *y;
        }
    }
    if let Some(d) = tile.d {
        let d = rows(zero, d, 1)[0];
        for t in 0..tile.steps {
            y[t] = d.mul_add(u[t], y[t]);
        }
    }
    if let Some(z) = tile.z {
        let z = rows(zero, z, tile.steps);
        for t in 0..tile.steps {
            y[t] = y[t] * silu(z[t]);
        }
    }
}

#[inline(always)]
fn forward<X: Number, W: Walk<X>>(zero: X::V, args: SelectiveFwd<'_, <X::V as Vector>::Real>) {
    let SelectiveFwd { tile, h, out, scratch, ahead } = args;
    let SelectiveTile { steps: count, dstate, .. } = tile;
    assert!((1..=TILE).contains(&count) && dstate > 0, "a tile of {count} steps and {dstate} states");
    let scratch = rows_mut(zero, scratch, 4 * TILE);
    let (dt, scratch) = scratch.split_at_mut(TILE);
    let (du, scratch) = scratch.split_at_mut(TILE);
    let (subtotal, rest) = scratch.split_at_mut(TILE);
    // The decay's place is y's later.
    steps(zero, &tile, subtotal, dt, du);
    let (dt, a) = (&dt[..count], plane_rows(zero, tile.a, dstate));
    let inputs = Inputs {
        steps: count,
        dstate,
        rule: tile.rule,
        first: tile.first,
        small: !X::COMPLEX && all_small(zero, dt, a.re),
        ahead,
        dt,
        du: &du[..count],
        a,
        b: Coef::new(zero, tile.b, count, dstate),
        c: Coef::new(zero, tile.c, count, dstate),
    };
    let mut h = plane_rows_mut(zero, h, dstate);
    match out {
        Some(out) => {
            let y = rows_mut(zero, out, count);
            contract::<X, W>(zero, &inputs, &mut h, y, &mut subtotal[..count]);
            finish::<X>(zero, &tile, y);
        }
        None => contract::<X, W>(zero, &inputs, &mut h, &mut rest[..count], &mut subtotal[..count]),
    }
}

impl<R: Tables> Op<R> for SelectiveFwd<'_, R> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector<Real = R>>(self, zero: V) {
        if self.tile.a.im.is_some() { forward::<Cx<V>, General>(zero, self) } else { forward::<Re<V>, Fast>(zero, self) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::testing::Staged;
    use crate::arch::testing_scan::{StagedCase, StagedPlanes, case, cases, error, error_over, flat, run_fwd};
    use crate::arch::{Kernels, Lanes, fwd_scratch};

    fn check<R: Lanes>(bound: f64) {
        for k in Kernels::available() {
            for case in cases(k.lanes::<R>()) {
                let states = case.states();
                let (out, h) = run_fwd::<R>(k, &case);
                let last = &states[states.len() - case.h.len()..];
                let worst = error_over(case.magnitude(&states), &out, &case.out(&states)).max(error(&flat(&h), &flat(last)));
                assert!(
                    worst <= bound,
                    "{:?}: {worst:e} for {} steps, {} states, {:?}, complex {}",
                    k.isa(),
                    case.steps,
                    case.dstate,
                    case.rule,
                    case.complex
                );
            }
        }
    }

    #[test]
    fn forward_in_f32() {
        check::<f32>(2e-6);
    }

    #[test]
    fn forward_in_f64() {
        check::<f64>(4e-15);
    }

    /// Cutting a tile in two, or asking for the state alone, changes no bits.
    #[test]
    fn tiles_may_be_cut_anywhere() {
        for k in Kernels::available() {
            for options in [0b1110_0010, 0b1110_0111] {
                let whole = case(k.lanes::<f32>(), 20, 19, Rule::Euler, options);
                let (out, h) = run_fwd::<f32>(k, &whole);
                let row = whole.lanes;
                let (mut head, mut tail) = (whole.clone(), whole.clone());
                head.steps = 7;
                tail.steps = 13;
                tail.first = false;
                for x in [&mut tail.u, &mut tail.delta, tail.z.as_mut().unwrap()] {
                    x.drain(..7 * row);
                }
                for x in [&mut tail.b, &mut tail.c] {
                    x.drain(..7 * whole.dstate);
                }
                let (mut cut, between) = run_fwd::<f32>(k, &head);
                cut.truncate(7 * row);
                tail.h = between;
                let (rest, end) = run_fwd::<f32>(k, &tail);
                cut.extend(rest);
                assert_eq!((cut, &end), (out, &h));

                let mut staged = StagedCase::<f32>::new(&tail);
                let mut h = StagedPlanes::<f32>::new(&tail.h, tail.complex);
                let mut scratch = Staged::<f32>::new(fwd_scratch(row));
                k.selective_scan_fwd(SelectiveFwd {
                    tile: staged.tile(&tail),
                    h: h.get_mut(),
                    out: None,
                    scratch: scratch.get(),
                    ahead: &[],
                });
                assert_eq!(h.numbers(), end);
            }
        }
    }

    /// Without an initial state the old one is not read, NaN or not.
    #[test]
    fn first_step_selects() {
        for k in Kernels::available() {
            for (rule, options) in [(Rule::Euler, 0b110), (Rule::Euler, 0b111), (Rule::Zoh, 0b110)] {
                let mut case = case(k.lanes::<f64>(), 5, 17, rule, options);
                case.h.fill(num_complex::Complex::new(f64::NAN, f64::NAN));
                let (out, h) = run_fwd::<f64>(k, &case);
                assert!(out.iter().chain(&flat(&h)).all(|x| x.is_finite()));
            }
        }
    }

    /// A step so long that Δ'·A overflows forgets the state and stays finite; NaN and ∞ in an input spoil what follows.
    #[test]
    fn non_finite_values() {
        for k in Kernels::available() {
            for rule in [Rule::Euler, Rule::Zoh, Rule::Bilinear] {
                for options in [0b00, 0b01] {
                    let lanes = k.lanes::<f32>();
                    let mut long = case(lanes, 4, 5, rule, options);
                    long.a.fill(num_complex::Complex::new(-1e10, if options == 1 { 1e10 } else { 0.0 }));
                    long.delta[lanes..2 * lanes].fill(3e37);
                    long.u[lanes..2 * lanes].fill(1e-37);
                    let (out, h) = run_fwd::<f32>(k, &long);
                    assert!(out.iter().chain(&flat(&h)).all(|x| x.is_finite()), "{:?} {rule:?} {options}", k.isa());

                    for (hard, in_delta) in [(f64::NAN, true), (f64::INFINITY, true), (f64::NAN, false), (f64::NEG_INFINITY, false)] {
                        let mut bad = case(lanes, 6, 5, rule, options);
                        if in_delta {
                            bad.delta[2 * lanes] = hard
                        } else {
                            bad.u[2 * lanes] = hard
                        }
                        let (out, h) = run_fwd::<f32>(k, &bad);
                        assert!((2..6).all(|t| !out[t * lanes].is_finite()), "{:?} {rule:?} {options} {hard}", k.isa());
                        assert!((0..2).all(|t| out[t * lanes].is_finite()) && out[2 * lanes + 1..3 * lanes].iter().all(|x| x.is_finite()));
                        assert!((0..5).all(|n| !h[n * lanes].re.is_finite()));
                    }
                }
            }
        }
    }
}

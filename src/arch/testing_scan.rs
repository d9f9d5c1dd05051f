//! A selective-scan tile in plain f64 loops, to hold the kernels against.

#![allow(clippy::needless_range_loop)]

use num_complex::Complex;

use crate::arch::generic::tables::Tables;
use crate::arch::testing::Staged;
use crate::arch::{
    Coefficient, CoefficientMut, Kernels, Lanes, Planes, PlanesMut, SelectiveBwd, SelectiveFwd, SelectiveTile, TILE, bwd_scratch,
    fwd_scratch,
};
use crate::ops::{Rule, sigmoid, silu, silu_grad, softplus};

type C64 = Complex<f64>;

/// Numbers that look random: a linear congruence, in −1..1, representable in f32.
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        f64::from(((self.0 >> 40) as f32) / 8_388_608.0 - 1.0)
    }
    pub(crate) fn vec(&mut self, count: usize, scale: f64, shift: f64) -> Vec<f64> {
        (0..count).map(|_| f64::from((self.next() * scale + shift) as f32)).collect()
    }
    fn complex(&mut self, count: usize, scale: f64, on: bool) -> Vec<C64> {
        (0..count).map(|_| C64::new(self.next() * scale, if on { self.next() * scale } else { 0.0 })).map(narrow).collect()
    }
}

fn narrow(z: C64) -> C64 {
    C64::new(f64::from(z.re as f32), f64::from(z.im as f32))
}

/// One tile with all its operands.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub lanes: usize,
    pub steps: usize,
    pub dstate: usize,
    pub rule: Rule,
    pub complex: bool,
    pub softplus: bool,
    pub first: bool,
    pub constant_b: bool,
    pub constant_c: bool,
    pub u: Vec<f64>,
    pub delta: Vec<f64>,
    pub z: Option<Vec<f64>>,
    pub d: Option<Vec<f64>>,
    pub bias: Option<Vec<f64>>,
    pub a: Vec<C64>,
    pub b: Vec<C64>,
    pub c: Vec<C64>,
    pub h: Vec<C64>,
    pub grad_out: Vec<f64>,
    pub carry: Vec<C64>,
}

/// Which options a case has, by number: every bit one option.
pub(crate) fn case(lanes: usize, steps: usize, dstate: usize, rule: Rule, options: u64) -> Case {
    let mut r = Random(options * 7919 + steps as u64 * 31 + dstate as u64);
    let bit = |k: u64| options >> k & 1 == 1;
    let complex = bit(0);
    let (rows, states) = (steps * lanes, dstate * lanes);
    let coefficient = |constant: bool| if constant { states } else { steps * dstate };
    let delta_shift = if bit(1) { -1.5 } else { 0.6 };
    Case {
        lanes,
        steps,
        dstate,
        rule,
        complex,
        softplus: bit(1),
        first: bit(2),
        constant_b: bit(3),
        constant_c: bit(4),
        u: r.vec(rows, 1.0, 0.0),
        delta: r.vec(rows, 0.5, delta_shift),
        z: bit(5).then(|| r.vec(rows, 3.0, 0.0)),
        d: bit(6).then(|| r.vec(lanes, 1.0, 0.0)),
        bias: bit(7).then(|| r.vec(lanes, 0.1, 0.0)),
        a: (0..states).map(|_| narrow(C64::new(-0.51 + r.next() / 2.0, if complex { r.next() * 4.0 } else { 0.0 }))).collect(),
        b: r.complex(coefficient(bit(3)), 1.0, complex),
        c: r.complex(coefficient(bit(4)), 1.0, complex),
        h: r.complex(states, 1.0, complex),
        grad_out: r.vec(rows, 1.0, 0.0),
        carry: r.complex(states, 1.0, complex),
    }
}

/// Lengths, state sizes, rules and options that meet every path of the kernels.
pub(crate) fn cases(lanes: usize) -> Vec<Case> {
    let mut all = Vec::new();
    for rule in [Rule::Euler, Rule::Zoh, Rule::Bilinear] {
        for options in 0..256 {
            let steps = [1, 2, 7, TILE][options as usize % 4];
            let dstate = [1, 3, 4, 6, 16][options as usize % 5];
            all.push(case(lanes, steps, dstate, rule, options));
        }
    }
    for dstate in [31, 32, 33, 37, 64, 256] {
        all.push(case(lanes, 9, dstate, Rule::Euler, 0b1110_0010));
        all.push(case(lanes, 5, dstate, Rule::Euler, 0b1110_0111));
    }
    all
}

impl Case {
    pub(crate) fn kappa(&self) -> f64 {
        if self.complex { 2.0 } else { 1.0 }
    }
    /// Index into B for step, state and lane.
    pub(crate) fn b_at(&self, t: usize, n: usize, w: usize) -> usize {
        if self.constant_b { n * self.lanes + w } else { t * self.dstate + n }
    }
    /// Index into C.
    pub(crate) fn c_at(&self, t: usize, n: usize, w: usize) -> usize {
        if self.constant_c { n * self.lanes + w } else { t * self.dstate + n }
    }
    /// Δ before softplus, and Δ'.
    pub(crate) fn dt(&self, t: usize, w: usize) -> (f64, f64) {
        let x = self.delta[t * self.lanes + w] + self.bias.as_ref().map_or(0.0, |b| b[w]);
        (x, if self.softplus { softplus(x) } else { x })
    }
    /// max_t Σ_{s≤t} Π_{r=s+1..t} |Ā_r|: over how many steps rounding adds up.
    pub(crate) fn steps_in_effect(&self) -> f64 {
        let mut most = 0f64;
        for i in 0..self.a.len() {
            let mut sum = 0.0;
            for t in 0..self.steps {
                sum = sum * self.rule.discretize(self.dt(t, i % self.lanes).1, self.a[i]).abar.norm() + 1.0;
                most = most.max(sum);
            }
        }
        most
    }
    /// The states after every step, `[t][n][w]`.
    pub(crate) fn states(&self) -> Vec<C64> {
        let states = self.dstate * self.lanes;
        let mut all = Vec::new();
        let mut h = self.h.clone();
        for t in 0..self.steps {
            for i in 0..states {
                let (n, w) = (i / self.lanes, i % self.lanes);
                let (_, dt) = self.dt(t, w);
                let d = self.rule.discretize(dt, self.a[i]);
                let input = d.gamma * self.b[self.b_at(t, n, w)] * (dt * self.u[t * self.lanes + w]);
                h[i] = if self.first && t == 0 { input } else { d.abar * h[i] + input };
            }
            all.extend_from_slice(&h);
        }
        all
    }
    /// κ·Re Σ C·h at a step and lane.
    pub(crate) fn y(&self, states: &[C64], t: usize, w: usize) -> f64 {
        let h = |n| states[(t * self.dstate + n) * self.lanes + w];
        (0..self.dstate).map(|n| (self.c[self.c_at(t, n, w)] * h(n)).re).sum::<f64>() * self.kappa()
    }
    /// out `[t][w]`.
    pub(crate) fn out(&self, states: &[C64]) -> Vec<f64> {
        let mut out = Vec::new();
        for t in 0..self.steps {
            for w in 0..self.lanes {
                let i = t * self.lanes + w;
                let y = self.y(states, t, w) + self.d.as_ref().map_or(0.0, |d| d[w] * self.u[i]);
                out.push(y * self.z.as_ref().map_or(1.0, |z| silu(z[i])));
            }
        }
        out
    }
}

impl Case {
    /// out with every term's absolute value: what the rounding of a sum is to be measured by where its terms cancel.
    pub(crate) fn magnitude(&self, states: &[C64]) -> f64 {
        let mut positive = self.clone();
        let absolute = |z: &mut C64| *z = C64::new(z.norm(), 0.0);
        positive.c.iter_mut().for_each(absolute);
        let states: Vec<C64> = states.iter().map(|h| C64::new(h.norm(), 0.0)).collect();
        positive.out(&states).iter().fold(0f64, |m, x| m.max(x.abs()))
    }
}

/// Staged planes of a complex or real tensor.
pub(crate) struct StagedPlanes<R> {
    pub re: Staged<R>,
    pub im: Option<Staged<R>>,
}

impl<R: Tables> StagedPlanes<R> {
    pub(crate) fn new(z: &[C64], complex: bool) -> Self {
        let part = |f: fn(&C64) -> f64| Staged::from(&z.iter().map(f).collect::<Vec<_>>());
        StagedPlanes { re: part(|z| z.re), im: complex.then(|| part(|z| z.im)) }
    }
    pub(crate) fn get(&mut self) -> Planes<'_, R> {
        Planes { re: self.re.get(), im: self.im.as_mut().map(|im| &*im.get()) }
    }
    pub(crate) fn get_mut(&mut self) -> PlanesMut<'_, R> {
        PlanesMut { re: self.re.get(), im: self.im.as_mut().map(Staged::get) }
    }
    pub(crate) fn numbers(&mut self) -> Vec<C64> {
        let re: Vec<f64> = self.re.get().iter().map(|x| x.to_f64()).collect();
        let im = self.im.as_mut().map(|im| im.get().iter().map(|x| x.to_f64()).collect::<Vec<_>>());
        re.iter().enumerate().map(|(i, &re)| C64::new(re, im.as_ref().map_or(0.0, |im| im[i]))).collect()
    }
}

/// A case's inputs in the kernels' layout.
pub(crate) struct StagedCase<R> {
    rows: [Staged<R>; 2],
    z: Option<Staged<R>>,
    d: Option<Staged<R>>,
    bias: Option<Staged<R>>,
    coefficients: [StagedPlanes<R>; 3],
}

impl<R: Tables> StagedCase<R> {
    pub(crate) fn new(case: &Case) -> Self {
        StagedCase {
            rows: [Staged::from(&case.u), Staged::from(&case.delta)],
            z: case.z.as_deref().map(Staged::from),
            d: case.d.as_deref().map(Staged::from),
            bias: case.bias.as_deref().map(Staged::from),
            coefficients: [&case.a, &case.b, &case.c].map(|z| StagedPlanes::new(z, case.complex)),
        }
    }
    pub(crate) fn tile(&mut self, case: &Case) -> SelectiveTile<'_, R> {
        let [u, delta] = &mut self.rows;
        let [a, b, c] = &mut self.coefficients;
        let coefficient = |constant, planes| if constant { Coefficient::Constant(planes) } else { Coefficient::Varying(planes) };
        SelectiveTile {
            steps: case.steps,
            dstate: case.dstate,
            rule: case.rule,
            softplus: case.softplus,
            first: case.first,
            u: u.get(),
            delta: delta.get(),
            delta_bias: self.bias.as_mut().map(|x| &*x.get()),
            z: self.z.as_mut().map(|x| &*x.get()),
            a: a.get(),
            b: coefficient(case.constant_b, b.get()),
            c: coefficient(case.constant_c, c.get()),
            d: self.d.as_mut().map(|x| &*x.get()),
        }
    }
}

/// (out, states after the tile) by a kernel.
pub(crate) fn run_fwd<R: Lanes>(k: Kernels, case: &Case) -> (Vec<f64>, Vec<C64>) {
    let mut staged = StagedCase::<R>::new(case);
    let mut h = StagedPlanes::<R>::new(&case.h, case.complex);
    let mut out = Staged::<R>::new(case.steps * case.lanes);
    let mut scratch = Staged::<R>::new(fwd_scratch(case.lanes));
    k.selective_scan_fwd(SelectiveFwd {
        tile: staged.tile(case),
        h: h.get_mut(),
        out: Some(out.get()),
        scratch: scratch.get(),
        ahead: &[],
    });
    (out.get().iter().map(|x| x.to_f64()).collect(), h.numbers())
}

/// The largest difference over the largest magnitude of the reference.
pub(crate) fn error(got: &[f64], want: &[f64]) -> f64 {
    error_over(want.iter().fold(0f64, |m, x| m.max(x.abs())).max(1e-30), got, want)
}

/// The largest difference over `scale`.
pub(crate) fn error_over(scale: f64, got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let mut worst = 0f64;
    for (g, w) in got.iter().zip(want) {
        assert!(g.is_finite(), "{g} where {w} is wanted");
        worst = worst.max((g - w).abs());
    }
    worst / scale
}

/// Parts of complex numbers one after another.
pub(crate) fn flat(z: &[C64]) -> Vec<f64> {
    z.iter().flat_map(|z| [z.re, z.im]).collect()
}

/// Every gradient of a case's loss Σ out·grad_out + Re Σ h_T·conj(carry), complex ones as they are laid out.
#[derive(Debug, Clone)]
pub(crate) struct Gradients {
    pub u: Vec<f64>,
    pub delta: Vec<f64>,
    pub z: Vec<f64>,
    pub d: Vec<f64>,
    pub bias: Vec<f64>,
    pub a: Vec<C64>,
    pub b: Vec<C64>,
    pub c: Vec<C64>,
    pub h: Vec<C64>,
}

impl Gradients {
    /// By name, as plain numbers.
    pub(crate) fn named(&self) -> [(&'static str, Vec<f64>); 9] {
        [
            ("u", self.u.clone()),
            ("delta", self.delta.clone()),
            ("z", self.z.clone()),
            ("d", self.d.clone()),
            ("bias", self.bias.clone()),
            ("a", flat(&self.a)),
            ("b", flat(&self.b)),
            ("c", flat(&self.c)),
            ("h", flat(&self.h)),
        ]
    }
}

impl Case {
    /// The loss whose gradients the backward pass gives.
    pub(crate) fn loss(&self) -> f64 {
        let states = self.states();
        let last = &states[states.len() - self.h.len()..];
        let out = self.out(&states);
        out.iter().zip(&self.grad_out).map(|(y, g)| y * g).sum::<f64>()
            + last.iter().zip(&self.carry).map(|(h, g)| (h * g.conj()).re).sum::<f64>()
    }

    /// The gradients by the adjoint recurrence, in plain loops.
    pub(crate) fn gradients(&self) -> Gradients {
        let zero = |count| vec![0.0; count];
        let none = |count| vec![C64::new(0.0, 0.0); count];
        let (rows, states) = (self.u.len(), self.states());
        let mut g = Gradients {
            u: zero(rows),
            delta: zero(rows),
            z: zero(self.z.as_ref().map_or(0, Vec::len)),
            d: zero(self.d.as_ref().map_or(0, Vec::len)),
            bias: zero(self.lanes),
            a: none(self.a.len()),
            b: none(self.b.len()),
            c: none(self.c.len()),
            h: self.carry.clone(),
        };
        for t in (0..self.steps).rev() {
            for w in 0..self.lanes {
                self.back_step(&states, t, w, &mut g);
            }
        }
        g
    }

    fn back_step(&self, states: &[C64], t: usize, w: usize, g: &mut Gradients) {
        let i = t * self.lanes + w;
        let (u, (x, dt), kappa) = (self.u[i], self.dt(t, w), self.kappa());
        let skip = self.d.as_ref().map_or(0.0, |d| d[w]);
        let grad_y = self.grad_out[i] * self.z.as_ref().map_or(1.0, |z| silu(z[i]));
        if let Some(z) = &self.z {
            g.z[i] = self.grad_out[i] * (self.y(states, t, w) + skip * u) * silu_grad(z[i]);
        }
        if self.d.is_some() {
            g.d[w] += grad_y * u;
        }
        let (mut grad_u, mut grad_dt) = (skip * grad_y, 0.0);
        for n in 0..self.dstate {
            let s = n * self.lanes + w;
            let (ib, ic) = (self.b_at(t, n, w), self.c_at(t, n, w));
            let d = self.rule.discretize_grad(dt, self.a[s]);
            let lambda = self.c[ic].conj() * (kappa * grad_y) + g.h[s];
            g.c[ic] += states[t * self.a.len() + s].conj() * (kappa * grad_y);
            g.b[ib] += lambda * d.gamma.conj() * (dt * u);
            grad_u += (lambda * (d.gamma * self.b[ib] * dt).conj()).re;
            grad_dt += (lambda * (d.bslope * self.b[ib]).conj()).re * u;
            g.a[s] += lambda * (d.curve * self.b[ib]).conj() * (dt * dt * u);
            if self.first && t == 0 {
                g.h[s] = C64::new(0.0, 0.0);
                continue;
            }
            let before = if t == 0 { self.h[s] } else { states[(t - 1) * self.a.len() + s] };
            let grad_abar = lambda * before.conj();
            grad_dt += (grad_abar * (self.a[s] * d.slope).conj()).re;
            g.a[s] += grad_abar * d.slope.conj() * dt;
            g.h[s] = lambda * d.abar.conj();
        }
        g.u[i] = grad_u;
        g.delta[i] = grad_dt * if self.softplus { sigmoid(x) } else { 1.0 };
        g.bias[w] += g.delta[i];
    }
}

/// The gradients by a kernel.
pub(crate) fn run_bwd<R: Lanes>(k: Kernels, case: &Case) -> Gradients {
    let mut staged = StagedCase::<R>::new(case);
    let rows = |count: usize| Staged::<R>::from(&vec![f64::NAN; count]);
    let planes = |count: usize| StagedPlanes::<R>::new(&vec![C64::new(f64::NAN, f64::NAN); count], case.complex);
    let mut h = StagedPlanes::<R>::new(&case.h, case.complex);
    let mut carry = StagedPlanes::<R>::new(&case.carry, case.complex);
    let mut grad_out = Staged::<R>::from(&case.grad_out);
    let (mut u, mut delta, mut bias) = (rows(case.u.len()), rows(case.u.len()), rows(case.lanes));
    let mut z = case.z.as_ref().map(|z| rows(z.len()));
    let mut d = case.d.as_ref().map(|d| rows(d.len()));
    let mut a = planes(case.a.len());
    // Shares of varying coefficients are added to what is there.
    let [mut b, mut c] = [(&case.b, case.constant_b), (&case.c, case.constant_c)].map(|(x, constant)| {
        if constant { planes(x.len()) } else { StagedPlanes::<R>::new(&vec![C64::new(0.0, 0.0); x.len()], case.complex) }
    });
    let mut scratch = Staged::<R>::new(bwd_scratch(case.lanes));
    let coefficient = |constant, planes| if constant { CoefficientMut::Constant(planes) } else { CoefficientMut::Varying(planes) };
    k.selective_scan_bwd(SelectiveBwd {
        tile: staged.tile(case),
        h: h.get(),
        grad_out: grad_out.get(),
        carry: carry.get_mut(),
        grad_u: u.get(),
        grad_delta: delta.get(),
        grad_z: z.as_mut().map(Staged::get),
        grad_a: a.get_mut(),
        grad_b: coefficient(case.constant_b, b.get_mut()),
        grad_c: coefficient(case.constant_c, c.get_mut()),
        grad_d: d.as_mut().map(Staged::get),
        grad_delta_bias: Some(bias.get()),
        scratch: scratch.get(),
        ahead: &[],
    });
    let plain = |x: &mut Staged<R>| x.get().iter().map(|x| x.to_f64()).collect::<Vec<_>>();
    Gradients {
        u: plain(&mut u),
        delta: plain(&mut delta),
        z: z.as_mut().map_or(Vec::new(), plain),
        d: d.as_mut().map_or(Vec::new(), plain),
        bias: plain(&mut bias),
        a: a.numbers(),
        b: b.numbers(),
        c: c.numbers(),
        h: carry.numbers(),
    }
}

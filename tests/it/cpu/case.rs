//! Random problems of the selective scan, run on any engine in any type, with results as plain f64.

use num_complex::Complex;
use selective_scan::buffer::Buffer;
use selective_scan::element::{Element, Input, Real, Weight};
use selective_scan::selective::{
    Coefficient, CoefficientGrad, SelectiveBwd, SelectiveFwd, SelectiveGrads, SelectiveInputs, SelectiveOptions, SelectiveScan,
};
use selective_scan::sequences::Sequences;
use selective_scan::view::{Host, View, ViewMut};

/// Memory order of (B, L, D) tensors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Order {
    /// D innermost.
    Bld,
    /// L innermost.
    Bdl,
    /// Nothing innermost: two elements apart, time backwards.
    Odd,
}

#[derive(Debug, Clone)]
pub enum Packing {
    Rows,
    Offsets(Vec<i64>),
    Ids(Vec<i32>),
}

/// One problem.
#[derive(Debug, Clone)]
pub struct Case {
    pub dims: [usize; 3],
    pub dstate: usize,
    pub groups: [Option<usize>; 2],
    pub d: bool,
    pub z: bool,
    pub bias: bool,
    pub initial: bool,
    pub order: Order,
    pub packing: Packing,
    pub options: SelectiveOptions,
    pub seed: u64,
}

impl Case {
    pub fn full(dims: [usize; 3], dstate: usize) -> Self {
        let options = SelectiveOptions { delta_softplus: true, ..Default::default() };
        let groups = [Some(1), Some(1)];
        Case {
            dims,
            dstate,
            groups,
            d: true,
            z: true,
            bias: true,
            initial: true,
            order: Order::Bld,
            packing: Packing::Rows,
            options,
            seed: 1,
        }
    }

    pub fn bare(dims: [usize; 3], dstate: usize) -> Self {
        Case { d: false, z: false, bias: false, initial: false, options: SelectiveOptions::default(), ..Case::full(dims, dstate) }
    }

    fn states(&self) -> usize {
        if let Packing::Offsets(o) = &self.packing { o.len() - 1 } else { self.dims[0] }
    }
}

/// Numbers from −1 to 1 that depend on a seed, a name and an index only.
fn noise(seed: u64, name: u64, index: usize) -> f64 {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)
        ^ name.wrapping_mul(0xbf58_476d_1ce4_e5b9)
        ^ (index as u64).wrapping_mul(0x94d0_49bb_1331_11eb);
    for _ in 0..3 {
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    }
    (x >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

/// A number as type `T`, after it was rounded to `As`: what both engines of a comparison start from.
fn number<As: Element, T: Element>(re: f64, im: f64) -> T {
    let part = |x: f64| <As::Arith as Weight>::Real::from_f64(x);
    let rounded = As::store(As::Arith::from_parts(part(re), part(im))).load();
    let part = |x: <As::Arith as Weight>::Real| <T::Arith as Weight>::Real::from_f64(x.to_f64());
    T::store(T::Arith::from_parts(part(rounded.re()), part(rounded.im())))
}

fn strides([b, l, d]: [usize; 3], order: Order) -> ([isize; 3], usize, usize) {
    let (l_, d_) = (l as isize, d as isize);
    match order {
        Order::Bld => ([l_ * d_, d_, 1], 0, b * l * d),
        Order::Bdl => ([l_ * d_, 1, l_], 0, b * l * d),
        Order::Odd => ([2 * l_ * d_, -2 * d_, 2], 2 * d * l.saturating_sub(1), 2 * b * l * d),
    }
}

/// A buffer with its layout.
pub struct Tensor<T, const R: usize> {
    data: Vec<T>,
    offset: usize,
    dims: [usize; R],
    strides: [isize; R],
}

fn indices<const R: usize>(dims: [usize; R]) -> impl Iterator<Item = [usize; R]> {
    let count: usize = dims.iter().product();
    (0..count).map(move |mut i| {
        let mut index = [0; R];
        for axis in (0..R).rev() {
            (index[axis], i) = (i % dims[axis], i / dims[axis]);
        }
        index
    })
}

impl<T: Element, const R: usize> Tensor<T, R> {
    fn new(dims: [usize; R], strides: [isize; R], offset: usize, len: usize, mut of: impl FnMut(usize) -> T) -> Self {
        let mut t = Tensor { data: vec![T::default(); len], offset, dims, strides };
        let mut view = t.view_mut();
        indices(dims).enumerate().for_each(|(i, index)| view.set(index, of(i)));
        t
    }

    fn plain(dims: [usize; R], of: impl FnMut(usize) -> T) -> Self {
        let strides = selective_scan::view::contiguous(dims);
        Tensor::new(dims, strides, 0, dims.iter().product(), of)
    }

    pub fn view(&self) -> View<'_, T, R> {
        View::strided(&self.data, self.offset, self.dims, self.strides)
    }

    pub fn view_mut(&mut self) -> ViewMut<'_, T, R> {
        ViewMut::strided(&mut self.data, self.offset, self.dims, self.strides)
    }

    pub fn numbers(&self) -> Vec<f64> {
        let parts = |x: T| [x.load().re().to_f64(), x.load().im().to_f64()];
        let take = 1 + usize::from(T::Arith::COMPLEX);
        indices(self.dims).flat_map(|i| parts(self.view().get(i)).into_iter().take(take)).collect()
    }
}

/// Results by name.
pub type Results = Vec<(&'static str, Vec<f64>)>;

enum Coef<I: Input, W: Weight<Real = I::Accum>> {
    Constant(Tensor<W, 2>),
    Varying(Tensor<W::Stored<I>, 4>),
}

impl<I: Input, W: Weight<Real = I::Accum>> Coef<I, W> {
    fn view(&self) -> Coefficient<'_, I, W> {
        match self {
            Coef::Constant(t) => Coefficient::Constant(t.view()),
            Coef::Varying(t) => Coefficient::Varying(t.view()),
        }
    }

    fn grad(&mut self) -> CoefficientGrad<'_, I, W> {
        match self {
            Coef::Constant(t) => CoefficientGrad::Constant(t.view_mut()),
            Coef::Varying(t) => CoefficientGrad::Varying(t.view_mut()),
        }
    }

    fn numbers(&self) -> Vec<f64> {
        match self {
            Coef::Constant(t) => t.numbers(),
            Coef::Varying(t) => t.numbers(),
        }
    }
}

/// Runs a case in types `I` and `W` on numbers that were rounded to `Ri` and `Rw`; forward, and backward where `backward` is on.
pub fn run<I, W, Ri, Rw>(engine: &impl SelectiveScan<Memory = Host>, case: &Case, backward: bool) -> Results
where
    I: Input,
    W: Weight<Real = I::Accum>,
    Ri: Input,
    Rw: Weight<Real = Ri::Accum>,
{
    let [batch, seqlen, dim] = case.dims;
    let n = case.dstate;
    let (by, offset, len) = strides(case.dims, case.order);
    let at = |name: u64, i: usize| noise(case.seed, name, i);
    let seq = |name: u64, scale: f64, shift: f64| {
        Tensor::<I, 3>::new(case.dims, by, offset, len, |i| number::<Ri, I>(scale * at(name, i) + shift, 0.0))
    };
    let (u, z, g) = (seq(1, 1.0, 0.0), seq(2, 2.0, 0.0), seq(3, 1.0, 0.0));
    let delta = if case.options.delta_softplus { seq(4, 2.0, -2.0) } else { seq(4, 0.3, 0.4) };
    let a = Tensor::<W, 2>::plain([dim, n], |i| number::<Rw, W>(-0.05 - (1.0 + at(5, i)) * (1.0 + (i % n) as f64 / 4.0), 3.0 * at(6, i)));
    let coef = |name: u64, groups: Option<usize>| match groups {
        None => Coef::<I, W>::Constant(Tensor::plain([dim, n], |i| number::<Rw, W>(at(name, i), at(name + 1, i)))),
        Some(g) => {
            Coef::Varying(Tensor::plain([batch, seqlen, g, n], |i| number::<Rw::Stored<Ri>, W::Stored<I>>(at(name, i), at(name + 1, i))))
        }
    };
    let (b, c) = (coef(7, case.groups[0]), coef(9, case.groups[1]));
    let vector = |name: u64| Tensor::<W::Real, 1>::plain([dim], |i| number::<Rw::Real, W::Real>(at(name, i), 0.0));
    let (skip, bias) = (vector(11), vector(12));
    let state = |name: u64| Tensor::<W, 3>::plain([case.states(), dim, n], |i| number::<Rw, W>(at(name, i), at(name + 1, i)));
    let (initial, grad_last) = (state(13), state(15));
    let (offsets, ids) = match &case.packing {
        Packing::Rows => (vec![], vec![]),
        Packing::Offsets(o) => (o.clone(), vec![]),
        Packing::Ids(ids) => (vec![], ids.clone()),
    };
    let sequences = match &case.packing {
        Packing::Rows => Sequences::Rows,
        Packing::Offsets(_) => Sequences::CuSeqlens(View::new(&offsets, [offsets.len()])),
        Packing::Ids(_) => Sequences::SeqIdx(View::new(&ids, [batch, seqlen])),
    };
    let inputs = SelectiveInputs {
        u: u.view(),
        delta: delta.view(),
        A: a.view(),
        B: b.view(),
        C: c.view(),
        D: case.d.then(|| skip.view()),
        z: case.z.then(|| z.view()),
        delta_bias: case.bias.then(|| bias.view()),
        initial_state: case.initial.then(|| initial.view()),
        sequences,
        options: case.options,
    };
    let problem = inputs.check().unwrap();
    let blank = || Tensor::<I, 3>::new(case.dims, by, offset, len, |_| number::<I, I>(77.0, 0.0));
    let (mut out, mut last) = (blank(), state(17));
    let mut buffer = Buffer::new();
    let fwd = SelectiveFwd { inputs, out: out.view_mut(), last_state: Some(last.view_mut()) };
    engine.selective_scan_fwd(fwd, &mut buffer.workspace(engine.selective_scan_fwd_workspace::<I, W>(&problem))).unwrap();
    let mut results = vec![("out", out.numbers()), ("last_state", last.numbers())];
    if backward {
        let (mut gu, mut gd, mut gz, mut ga, mut g0) = (blank(), blank(), blank(), Tensor::<W, 2>::plain([dim, n], |_| W::ZERO), state(19));
        let (mut gb, mut gc, mut gskip, mut gbias) = (coef(7, case.groups[0]), coef(9, case.groups[1]), vector(11), vector(12));
        let grads = SelectiveGrads {
            u: Some(gu.view_mut()),
            delta: Some(gd.view_mut()),
            A: Some(ga.view_mut()),
            B: Some(gb.grad()),
            C: Some(gc.grad()),
            D: case.d.then(|| gskip.view_mut()),
            z: case.z.then(|| gz.view_mut()),
            delta_bias: case.bias.then(|| gbias.view_mut()),
            initial_state: case.initial.then(|| g0.view_mut()),
        };
        let bwd = SelectiveBwd { inputs, grad_out: g.view(), grad_last_state: Some(grad_last.view()), grads };
        engine.selective_scan_bwd(bwd, &mut buffer.workspace(engine.selective_scan_bwd_workspace::<I, W>(&problem))).unwrap();
        results.extend([
            ("grad u", gu.numbers()),
            ("grad delta", gd.numbers()),
            ("grad A", ga.numbers()),
            ("grad B", gb.numbers()),
            ("grad C", gc.numbers()),
        ]);
        results.extend(
            [(case.d, "grad D", gskip.numbers()), (case.bias, "grad delta_bias", gbias.numbers())]
                .into_iter()
                .filter(|x| x.0)
                .map(|x| (x.1, x.2)),
        );
        results.extend(
            [(case.z, "grad z", gz.numbers()), (case.initial, "grad initial_state", g0.numbers())]
                .into_iter()
                .filter(|x| x.0)
                .map(|x| (x.1, x.2)),
        );
    }
    results
}

/// The f64 types of a comparison.
pub type C32 = Complex<f32>;
pub type C64 = Complex<f64>;

/// Asserts that results agree within `tolerance` of the largest reference value; 16-bit outputs may also be off by their rounding.
pub fn close(what: &str, got: &Results, want: &Results, tolerance: f64, rounding: f64) {
    for ((name, got), (_, want)) in got.iter().zip(want) {
        let max = want.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        assert_eq!(got.len(), want.len());
        let small = ["last_state", "grad A", "grad D", "grad delta_bias", "grad initial_state"].contains(name);
        for (i, (g, w)) in got.iter().zip(want).enumerate() {
            let allowed = tolerance * max + if small { 0.0 } else { rounding * w.abs() };
            assert!((g - w).abs() <= allowed, "{what}: {name}[{i}] is {g}, wanted {w}; off by {:.2e} of {max}", (g - w).abs() / max);
        }
    }
}

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
    /// Where this case begins in the one it was cut from: its first position and its first state.
    pub from: [usize; 2],
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
            from: [0, 0],
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
pub fn noise(seed: u64, name: u64, index: usize) -> f64 {
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
pub fn number<As: Element, T: Element>(re: f64, im: f64) -> T {
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

    pub fn plain(dims: [usize; R], of: impl FnMut(usize) -> T) -> Self {
        let strides = selective_scan::view::contiguous(dims);
        Tensor::new(dims, strides, 0, dims.iter().product(), of)
    }

    /// A tensor of the same shape, full of numbers that must not stay.
    pub fn like(&self) -> Self {
        let part = |x: f64| <<T::Arith as Weight>::Real as Real>::from_f64(x);
        Tensor::plain(self.dims, |_| T::store(T::Arith::from_parts(part(77.0), part(78.0))))
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

/// B or C.
pub enum Coef<I: Input, W: Weight<Real = I::Accum>> {
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

    fn like(&self) -> Self {
        match self {
            Coef::Constant(t) => Coef::Constant(t.like()),
            Coef::Varying(t) => Coef::Varying(t.like()),
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

/// The operands of one case in types `I` and `W`.
pub struct Operands<I: Input, W: Weight<Real = I::Accum>> {
    case: Case,
    pub u: Tensor<I, 3>,
    pub delta: Tensor<I, 3>,
    pub z: Tensor<I, 3>,
    grad_out: Tensor<I, 3>,
    pub a: Tensor<W, 2>,
    pub b: Coef<I, W>,
    pub c: Coef<I, W>,
    pub d: Tensor<W::Real, 1>,
    pub delta_bias: Tensor<W::Real, 1>,
    pub initial: Tensor<W, 3>,
    grad_last: Tensor<W, 3>,
    offsets: Vec<i64>,
    ids: Vec<i32>,
}

impl<I: Input, W: Weight<Real = I::Accum>> Operands<I, W> {
    /// Numbers of the case, rounded to `Ri` and `Rw` first.
    pub fn new<Ri: Input, Rw: Weight<Real = Ri::Accum>>(case: &Case) -> Self {
        let ([batch, seqlen, dim], n, [position, entry]) = (case.dims, case.dstate, case.from);
        let (by, offset, len) = strides(case.dims, case.order);
        let at = |name: u64, i: usize| noise(case.seed, name, i);
        let seq = |name: u64, scale: f64, shift: f64| {
            Tensor::<I, 3>::new(case.dims, by, offset, len, |i| number::<Ri, I>(scale * at(name, i + position * dim) + shift, 0.0))
        };
        let coef = |name: u64, groups: Option<usize>| match groups {
            None => Coef::<I, W>::Constant(Tensor::plain([dim, n], |i| number::<Rw, W>(at(name, i), at(name + 1, i)))),
            Some(g) => Coef::Varying(Tensor::plain([batch, seqlen, g, n], |i| {
                let i = i + position * g * n;
                number::<Rw::Stored<Ri>, W::Stored<I>>(at(name, i), at(name + 1, i))
            })),
        };
        let vector = |name: u64| Tensor::<W::Real, 1>::plain([dim], |i| number::<Rw::Real, W::Real>(at(name, i), 0.0));
        let state = |name: u64| {
            let number = |i: usize| number::<Rw, W>(at(name, i + entry * dim * n), at(name + 1, i + entry * dim * n));
            Tensor::<W, 3>::plain([case.states(), dim, n], number)
        };
        let slow = |i: usize| -0.05 - (1.0 + at(5, i)) * (1.0 + (i % n) as f64 / 4.0);
        let (offsets, ids) = match &case.packing {
            Packing::Rows => (vec![], vec![]),
            Packing::Offsets(o) => (o.clone(), vec![]),
            Packing::Ids(ids) => (vec![], ids.clone()),
        };
        Operands {
            case: case.clone(),
            u: seq(1, 1.0, 0.0),
            delta: if case.options.delta_softplus { seq(4, 2.0, -2.0) } else { seq(4, 0.3, 0.4) },
            z: seq(2, 2.0, 0.0),
            grad_out: seq(3, 1.0, 0.0),
            a: Tensor::plain([dim, n], |i| number::<Rw, W>(slow(i), 3.0 * at(6, i))),
            b: coef(7, case.groups[0]),
            c: coef(9, case.groups[1]),
            d: vector(11),
            delta_bias: vector(12),
            initial: state(13),
            grad_last: state(15),
            offsets,
            ids,
        }
    }

    fn sequences(&self) -> Sequences<'_> {
        match &self.case.packing {
            Packing::Rows => Sequences::Rows,
            Packing::Offsets(_) => Sequences::CuSeqlens(View::new(&self.offsets, [self.offsets.len()])),
            Packing::Ids(_) => Sequences::SeqIdx(View::new(&self.ids, [self.case.dims[0], self.case.dims[1]])),
        }
    }

    pub fn inputs(&self) -> SelectiveInputs<'_, I, W> {
        SelectiveInputs {
            u: self.u.view(),
            delta: self.delta.view(),
            A: self.a.view(),
            B: self.b.view(),
            C: self.c.view(),
            D: self.case.d.then(|| self.d.view()),
            z: self.case.z.then(|| self.z.view()),
            delta_bias: self.case.bias.then(|| self.delta_bias.view()),
            initial_state: self.case.initial.then(|| self.initial.view()),
            sequences: self.sequences(),
            options: self.case.options,
        }
    }

    /// An output in the layout of u, full of numbers that must not stay.
    fn blank(&self) -> Tensor<I, 3> {
        let (by, offset, len) = strides(self.case.dims, self.case.order);
        Tensor::new(self.case.dims, by, offset, len, |_| number::<I, I>(77.0, 0.0))
    }

    pub fn forward(&self, engine: &impl SelectiveScan<Memory = Host>) -> Results {
        let (mut out, mut last) = (self.blank(), self.initial.like());
        let args = SelectiveFwd { inputs: self.inputs(), out: out.view_mut(), last_state: Some(last.view_mut()) };
        let bytes = engine.selective_scan_fwd_workspace::<I, W>(&args.check().unwrap());
        engine.selective_scan_fwd(args, &mut Buffer::new().workspace(bytes)).unwrap();
        vec![("out", out.numbers()), ("last_state", last.numbers())]
    }

    pub fn backward<E: SelectiveScan<Memory = Host>>(&self, engine: &E) -> Results {
        self.backward_by(core::slice::from_ref(engine))
    }

    /// The same call on each of several engines in turn, into the same outputs and with the same workspace.
    pub fn backward_by<E: SelectiveScan<Memory = Host>>(&self, engines: &[E]) -> Results {
        let (mut u, mut delta, mut z, mut a, mut initial) = (self.blank(), self.blank(), self.blank(), self.a.like(), self.initial.like());
        let (mut b, mut c, mut d, mut bias) = (self.b.like(), self.c.like(), self.d.like(), self.delta_bias.like());
        let case = &self.case;
        let mut buffer = Buffer::new();
        for engine in engines {
            let grads = SelectiveGrads {
                u: Some(u.view_mut()),
                delta: Some(delta.view_mut()),
                A: Some(a.view_mut()),
                B: Some(b.grad()),
                C: Some(c.grad()),
                D: case.d.then(|| d.view_mut()),
                z: case.z.then(|| z.view_mut()),
                delta_bias: case.bias.then(|| bias.view_mut()),
                initial_state: case.initial.then(|| initial.view_mut()),
            };
            let (grad_out, grad_last_state) = (self.grad_out.view(), Some(self.grad_last.view()));
            let args = SelectiveBwd { inputs: self.inputs(), grad_out, grad_last_state, grads };
            let bytes = engine.selective_scan_bwd_workspace::<I, W>(&args.check().unwrap());
            engine.selective_scan_bwd(args, &mut buffer.workspace(bytes)).unwrap();
        }
        let always = [("grad u", u.numbers()), ("grad delta", delta.numbers()), ("grad A", a.numbers())];
        let coefficients = [("grad B", b.numbers()), ("grad C", c.numbers())];
        let vectors = [(case.d, "grad D", d.numbers()), (case.bias, "grad delta_bias", bias.numbers())];
        let others = [(case.z, "grad z", z.numbers()), (case.initial, "grad initial_state", initial.numbers())];
        let given = vectors.into_iter().chain(others).filter(|x| x.0).map(|x| (x.1, x.2));
        always.into_iter().chain(coefficients).chain(given).collect()
    }
}

/// Runs a case in types `I` and `W` on numbers that were rounded to `Ri` and `Rw`, forward and backward.
pub fn run<I, W, Ri, Rw>(engine: &impl SelectiveScan<Memory = Host>, case: &Case) -> Results
where
    I: Input,
    W: Weight<Real = I::Accum>,
    Ri: Input,
    Rw: Weight<Real = Ri::Accum>,
{
    let operands = Operands::<I, W>::new::<Ri, Rw>(case);
    operands.forward(engine).into_iter().chain(operands.backward(engine)).collect()
}

/// The f64 types of a comparison.
pub type C32 = Complex<f32>;
pub type C64 = Complex<f64>;

/// Asserts that results agree within `tolerance` of the largest reference value; 16-bit outputs may also be off by their rounding.
pub fn close(what: &str, got: &Results, want: &Results, tolerance: f64, rounding: f64) {
    let names = |r: &Results| r.iter().map(|x| x.0).collect::<Vec<_>>();
    assert_eq!(names(got), names(want));
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

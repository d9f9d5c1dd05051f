//! The tree engine's layer 1 against a plain loop in f64.

use num_complex::Complex;
use selective_scan::blelloch::Blelloch;
use selective_scan::buffer::Buffer;
use selective_scan::element::{Element, Weight};
use selective_scan::par::Par;
use selective_scan::scan::{Scan, ScanBwd, ScanFwd, ScanProblem};
use selective_scan::view::{View, ViewMut};

type C64 = Complex<f64>;

const LENGTHS: [usize; 12] = [0, 1, 2, 3, 17, 255, 256, 257, 511, 513, 1000, 1300];

/// Numbers in (−1, 1) that repeat late.
fn noise(seed: usize, i: usize) -> f64 {
    let x = ((i + 1) as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add((seed as u64).wrapping_mul(0xD1B5_4A32_D192_ED03));
    let x = (x ^ (x >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    ((x ^ (x >> 32)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

fn number<E: Element>(re: f64, im: f64) -> E {
    use selective_scan::element::Real;
    let real = <E::Arith as Weight>::Real::from_f64;
    E::store(E::Arith::from_parts(real(re), real(im)))
}

fn wide<W: Weight>(x: W) -> C64 {
    use selective_scan::element::Real;
    C64::new(x.re().to_f64(), x.im().to_f64())
}

/// A problem of (batch, seqlen, dim) in contiguous memory.
struct Case<E: Element> {
    dims: [usize; 3],
    a: Vec<E>,
    b: Vec<E>,
    g: Vec<E>,
    h0: Vec<E::Arith>,
    gl: Vec<E::Arith>,
}

/// All that an engine says about a case.
#[derive(PartialEq, Debug)]
struct Answer<E: Element> {
    h: Vec<E>,
    last: Vec<E::Arith>,
    da: Vec<E>,
    db: Vec<E>,
    dh0: Vec<E::Arith>,
}

impl<E: Element> Case<E> {
    fn new(dims: [usize; 3]) -> Self {
        let n = dims.iter().product::<usize>();
        let decay = |i| number::<E>(0.95 + 0.05 * noise(1, i), 0.05 * noise(2, i));
        let plain = |seed: usize, n: usize| (0..n).map(move |i| (noise(seed, i), noise(seed + 1, i)));
        Case {
            dims,
            a: (0..n).map(decay).collect(),
            b: plain(3, n).map(|(x, y)| number(x, y)).collect(),
            g: plain(5, n).map(|(x, y)| number(x, y)).collect(),
            h0: plain(7, dims[0] * dims[2]).map(|(x, y)| number(x, y)).collect(),
            gl: plain(9, dims[0] * dims[2]).map(|(x, y)| number(x, y)).collect(),
        }
    }

    /// The definition, in complex f64.
    fn oracle(&self, initial: bool, reverse: bool) -> [Vec<C64>; 5] {
        let [batch, seqlen, dim] = self.dims;
        let load = |v: &[E], i: usize| wide(v[i].load());
        let zero = |n: usize| vec![C64::ZERO; n];
        let (mut h, mut da, mut db) = (zero(self.a.len()), zero(self.a.len()), zero(self.a.len()));
        let (mut last, mut dh0) = (zero(batch * dim), zero(batch * dim));
        for r in 0..batch {
            for c in 0..dim {
                let s = r * dim + c;
                let at = |t: usize| (r * seqlen + if reverse { seqlen - 1 - t } else { t }) * dim + c;
                let h0 = if initial { wide(self.h0[s]) } else { C64::ZERO };
                let mut state = h0;
                for t in 0..seqlen {
                    state = load(&self.a, at(t)) * state + load(&self.b, at(t));
                    h[at(t)] = state;
                }
                last[s] = state;
                let mut lambda = wide(self.gl[s]);
                for t in (0..seqlen).rev() {
                    lambda += load(&self.g, at(t));
                    db[at(t)] = lambda;
                    let before = if t > 0 { h[at(t - 1)] } else { h0 };
                    da[at(t)] = lambda * before.conj();
                    lambda *= load(&self.a, at(t)).conj();
                }
                dh0[s] = lambda;
            }
        }
        [h, last, da, db, dh0]
    }

    /// What the engine says; memory is (B, L, D), or (B, D, L) where `across` is on.
    fn run(&self, engine: Blelloch, initial: bool, reverse: bool) -> Answer<E> {
        let dims @ [batch, seqlen, dim] = self.dims;
        let (n, states) = (self.a.len(), batch * dim);
        let h0 = initial.then(|| View::new(&self.h0, [batch, dim]));
        let zero = E::default();
        let mut out = Answer {
            h: vec![zero; n],
            last: vec![E::Arith::ZERO; states],
            da: vec![zero; n],
            db: vec![zero; n],
            dh0: vec![E::Arith::ZERO; states],
        };
        let problem = ScanProblem { batch, seqlen, dim };
        let mut buffer = Buffer::new();
        let mut ws = buffer.workspace(engine.scan_fwd_workspace::<E>(problem).max(engine.scan_bwd_workspace::<E>(problem)));
        let fwd = ScanFwd {
            a: View::new(&self.a, dims),
            b: View::new(&self.b, dims),
            initial_state: h0,
            h: ViewMut::new(&mut out.h, dims),
            last_state: Some(ViewMut::new(&mut out.last, [batch, dim])),
            reverse,
        };
        engine.scan_fwd(fwd, &mut ws).unwrap();
        let bwd = ScanBwd {
            a: View::new(&self.a, dims),
            b: View::new(&self.b, dims),
            initial_state: h0,
            grad_h: View::new(&self.g, dims),
            grad_last_state: Some(View::new(&self.gl, [batch, dim])),
            grad_a: Some(ViewMut::new(&mut out.da, dims)),
            grad_b: Some(ViewMut::new(&mut out.db, dims)),
            grad_initial_state: initial.then(|| ViewMut::new(&mut out.dh0, [batch, dim])),
            reverse,
        };
        engine.scan_bwd(bwd, &mut ws).unwrap();
        out
    }
}

fn close(name: &str, got: impl Iterator<Item = C64>, want: &[C64], tolerance: f64) {
    let largest = want.iter().map(|x| x.norm()).fold(1e-300, f64::max);
    for (i, (got, want)) in got.zip(want).enumerate() {
        assert!((got - want).norm() <= tolerance * largest, "{name}[{i}]: {got} is not {want}");
    }
}

fn check<E: Element>(dims: [usize; 3], tolerance: f64) {
    let case = Case::<E>::new(dims);
    for (initial, reverse) in [(false, false), (true, false), (false, true), (true, true)] {
        let got = case.run(Blelloch::new(), initial, reverse);
        let [h, last, da, db, dh0] = case.oracle(initial, reverse);
        let stored = |v: &[E]| v.iter().map(|x| wide(x.load())).collect::<Vec<_>>().into_iter();
        let states = |v: &[E::Arith]| v.iter().map(|&x| wide(x)).collect::<Vec<_>>().into_iter();
        let name = |n: &str| format!("{n} of {:?} {dims:?} initial {initial} reverse {reverse}", E::DTYPE);
        close(&name("h"), stored(&got.h), &h, tolerance);
        close(&name("last"), states(&got.last), &last, tolerance);
        close(&name("da"), stored(&got.da), &da, 2.0 * tolerance);
        close(&name("db"), stored(&got.db), &db, 2.0 * tolerance);
        if initial {
            close(&name("dh0"), states(&got.dh0), &dh0, 2.0 * tolerance);
        }
        for par in [Par::Seq, Par::default()] {
            assert_eq!(case.run(Blelloch { par }, initial, reverse), got);
        }
    }
}

#[test]
fn every_type_and_length_agrees_with_the_loop() {
    for seqlen in LENGTHS {
        for (batch, dim) in [(2, 1), (1, 3), (2, 37)] {
            let dims = [batch, seqlen, dim];
            check::<f64>(dims, 1e-13);
            check::<f32>(dims, 2e-6);
            check::<C64>(dims, 1e-13);
            check::<Complex<f32>>(dims, 2e-6);
        }
    }
}

/// A (B, D, L) buffer seen as (B, L, D), and one with gaps, give the bits of a contiguous one.
#[test]
fn any_strides_give_the_same_bits() {
    for (seqlen, dim) in [(700, 5), (3, 40), (300, 1)] {
        let case = Case::<f32>::new([2, seqlen, dim]);
        let problem = ScanProblem { batch: 2, seqlen, dim };
        let mut buffer = Buffer::new();
        for reverse in [false, true] {
            let want = case.run(Blelloch::new(), false, reverse).h;
            let layouts = [[seqlen * dim, 1, seqlen], [seqlen * dim * 6, dim * 3, 2]].map(|s| s.map(|s| s as isize));
            for strides in layouts {
                let place = |i: usize| {
                    let (r, t, d) = (i / (seqlen * dim), i / dim % seqlen, i % dim);
                    r * strides[0] as usize + t * strides[1] as usize + d * strides[2] as usize
                };
                let spread = |v: &[f32]| {
                    let mut out = vec![f32::NAN; 12 * seqlen * dim];
                    v.iter().enumerate().for_each(|(i, &x)| out[place(i)] = x);
                    out
                };
                let (a, b, mut h) = (spread(&case.a), spread(&case.b), vec![7.0; 12 * seqlen * dim]);
                let args = ScanFwd {
                    a: View::strided(&a, 0, case.dims, strides),
                    b: View::strided(&b, 0, case.dims, strides),
                    initial_state: None,
                    h: ViewMut::strided(&mut h, 0, case.dims, strides),
                    last_state: None,
                    reverse,
                };
                let engine = Blelloch::new();
                engine.scan_fwd(args, &mut buffer.workspace(engine.scan_fwd_workspace::<f32>(problem))).unwrap();
                (0..want.len()).for_each(|i| assert_eq!(h[place(i)], want[i], "{strides:?}, element {i}"));
                assert_eq!(h.iter().filter(|&&x| x == 7.0).count(), h.len() - want.len(), "{strides:?}: gaps are left alone");
            }
        }
    }
}

/// NaN and infinity spoil every later h of their channel and nothing else; without an initial state the first a is not read.
#[test]
fn non_finite_values_are_not_swallowed() {
    let [batch, seqlen, dim] = [1, 600, 3];
    for (bad, at) in [(f64::NAN, 0), (f64::INFINITY, 0), (f64::NEG_INFINITY, 300), (f64::NAN, 599), (f64::INFINITY, 255), (f64::NAN, 256)] {
        for in_a in [false, true] {
            let mut case = Case::<f64>::new([batch, seqlen, dim]);
            // A reset later on multiplies by zero, which lets no NaN or infinity go.
            case.a[400 * dim + 1] = 0.0;
            if in_a {
                case.a[at * dim + 1] = bad
            } else {
                case.b[at * dim + 1] = bad
            }
            let h = case.run(Blelloch::new(), false, false).h;
            for (i, x) in h.iter().enumerate() {
                let spoilt = i % dim == 1 && i / dim >= at && !(in_a && at == 0);
                assert_eq!(x.is_finite(), !spoilt, "{bad} at {at} in a {in_a}: h[{i}] is {x}");
            }
        }
    }
}

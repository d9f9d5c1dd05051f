//! The functions of single numbers in the scans, over an array in the first cache.

use std::hint::black_box;
use std::time::{Duration, Instant};

use selective_scan::arch::Kernels;
use selective_scan::arch::generic::exp::exp;
use selective_scan::arch::generic::silu::silu;
use selective_scan::arch::generic::softplus::softplus;
use selective_scan::arch::generic::vector::{Op, Vector, rows, rows_mut};
use selective_scan::buffer::Buffer;
use selective_scan::error::Error;

use super::operator::Work;
use super::time::Timed;

/// Their names; the constants below stand in this order.
pub const NAMES: [&str; 3] = ["exp", "softplus", "silu"];
const EXP: usize = 0;
const SOFTPLUS: usize = 1;
/// What a multiply-add pipe has to do for one number: a polynomial of degree five with its reduction; that and a logarithm; that and a division.
const PIPE: [f64; 3] = [8.0, 20.0, 12.0];
/// Numbers of a call.
const COUNT: usize = 2048;

struct Map<'a, const WHICH: usize>(&'a [f32], &'a mut [f32]);

impl<const WHICH: usize> Op<f32> for Map<'_, WHICH> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector<Real = f32>>(self, zero: V) {
        let count = COUNT / V::LANES;
        for (x, y) in rows(zero, self.0, count).iter().zip(rows_mut(zero, self.1, count)) {
            *y = match WHICH {
                EXP => exp(*x),
                SOFTPLUS => softplus(*x),
                _ => silu(*x),
            };
        }
    }
}

/// One of them.
pub struct Function {
    kernels: Kernels,
    which: usize,
    buffer: Buffer,
}

impl Function {
    pub fn new(kernels: Kernels, which: usize) -> Self {
        Function { kernels, which, buffer: Buffer::new() }
    }

    /// The work of a call.
    pub fn work(&self) -> Work {
        let elements = COUNT as f64;
        Work { elements, bytes: 8.0 * elements, multiply_adds: PIPE[self.which] * elements, ..Work::default() }
    }

    /// Numbers from −20 to 20 and a call's results.
    fn with<R>(&mut self, work: impl FnOnce(&dyn Fn(&[f32], &mut [f32]), &[f32], &mut [f32]) -> R) -> R {
        let (k, which) = (self.kernels, self.which);
        let mut ws = self.buffer.workspace(8 * COUNT + 128);
        let x: &mut [f32] = ws.slice(COUNT).expect("it was asked for");
        let y = ws.slice(COUNT).expect("it was asked for");
        x.iter_mut().enumerate().for_each(|(i, x)| *x = (i * 769 % COUNT) as f32 * (40.0 / COUNT as f32) - 20.0);
        let call = |x: &[f32], y: &mut [f32]| match which {
            EXP => k.run(Map::<EXP>(x, y)),
            SOFTPLUS => k.run(Map::<SOFTPLUS>(x, y)),
            _ => k.run(Map::<2>(x, y)),
        };
        work(&call, x, y)
    }

    /// The largest relative distance from the same in f64; an `Err` where that is too much.
    pub fn checked(&mut self) -> Result<f64, String> {
        let exact = [|x: f64| x.exp(), |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p(), |x: f64| x / (1.0 + (-x).exp())][self.which];
        let off = self.with(|call, x, y| {
            call(x, y);
            let far = |(x, y): (&f32, &f32)| ((f64::from(*y) - exact(f64::from(*x))) / exact(f64::from(*x)).abs().max(1e-30)).abs();
            x.iter().zip(&*y).map(far).fold(0.0, f64::max)
        });
        if off < 1e-6 { Ok(off) } else { Err(format!("wrong results: {off:.1e} away, relatively")) }
    }
}

impl Timed for Function {
    fn time(&mut self, calls: u64) -> Result<Duration, Error> {
        Ok(self.with(|call, x, y| {
            let start = Instant::now();
            for _ in 0..calls {
                call(black_box(x), y);
                black_box(&mut *y);
            }
            start.elapsed()
        }))
    }
}

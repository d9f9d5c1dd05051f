//! The causal convolution, forward and backward.

use arbitrary::Result;
use selective_scan::buffer::Buffer;
use selective_scan::element::Real;
use selective_scan::layers::conv1d::{CausalConv1d, ConvBwd, ConvFwd, ConvGrads, ConvInputs, ConvProblem};
use selective_scan::naive::Naive;
use selective_scan::sequences::Sequences;
use selective_scan::view::{Host, View, ViewMut};

use super::compare::{close, each_engine, largest};
use super::input::{DIMS, Kind, LENGTHS, Source};

struct Case<T> {
    dims: [usize; 3],
    width: usize,
    silu: bool,
    x: Vec<T>,
    weight: Vec<T>,
    bias: Option<Vec<T>>,
    window: Option<Vec<T>>,
    grad_out: Vec<T>,
}

impl Case<f32> {
    fn new(from: &mut Source<'_>) -> Result<Self> {
        let dims @ [batch, seqlen, dim] = [from.upto(2)?, from.pick(&LENGTHS)?, from.pick(&DIMS)?];
        let (width, silu) = (1 + from.upto(5)?, from.flag()?);
        let (given_bias, given_window) = (from.flag()?, from.flag()?);
        let mut make = |count| from.numbers(Kind::Value, count);
        let count = batch * seqlen * dim;
        let bias = given_bias.then(|| make(dim));
        let window = given_window.then(|| make(batch * (width - 1) * dim));
        Ok(Case { dims, width, silu, x: make(count), weight: make(dim * width), bias, window, grad_out: make(count) })
    }

    fn map(&self, f: impl Fn(f32) -> f64 + Copy) -> Case<f64> {
        let all = |v: &Vec<f32>| v.iter().map(|&x| f(x)).collect::<Vec<f64>>();
        let Case { dims, width, silu, .. } = *self;
        let (bias, window) = (self.bias.as_ref().map(all), self.window.as_ref().map(all));
        Case { dims, width, silu, x: all(&self.x), weight: all(&self.weight), bias, window, grad_out: all(&self.grad_out) }
    }
}

impl<T: Real> Case<T> {
    fn inputs(&self) -> ConvInputs<'_, T> {
        let [batch, _, dim] = self.dims;
        ConvInputs {
            x: View::new(&self.x, self.dims),
            weight: View::new(&self.weight, [dim, self.width]),
            bias: self.bias.as_ref().map(|v| View::new(v, [dim])),
            initial_window: self.window.as_ref().map(|v| View::new(v, [batch, self.width - 1, dim])),
            sequences: Sequences::Rows,
            silu: self.silu,
        }
    }

    fn run(&self, engine: &impl CausalConv1d<Memory = Host>) -> Vec<(&'static str, Vec<T>)> {
        let [batch, seqlen, dim] = self.dims;
        let window_dims = [batch, self.width - 1, dim];
        let zeros = |n: usize| vec![T::ZERO; n];
        let (mut out, mut last) = (zeros(self.x.len()), zeros(window_dims.iter().product()));
        let problem = ConvProblem { batch, seqlen, dim, width: self.width, states: batch };
        let mut buffer = Buffer::new();
        let mut ws = buffer.workspace(engine.causal_conv1d_fwd_workspace::<T>(&problem));
        let final_window = Some(ViewMut::new(&mut last, window_dims));
        let args = ConvFwd { inputs: self.inputs(), out: ViewMut::new(&mut out, self.dims), final_window };
        engine.causal_conv1d_fwd(args, &mut ws).expect("a valid convolution");

        let (mut x, mut weight, mut bias, mut window) = (zeros(self.x.len()), zeros(self.weight.len()), zeros(dim), zeros(last.len()));
        let grads = ConvGrads {
            x: Some(ViewMut::new(&mut x, self.dims)),
            weight: Some(ViewMut::new(&mut weight, [dim, self.width])),
            bias: self.bias.as_ref().map(|_| ViewMut::new(&mut bias, [dim])),
            initial_window: self.window.as_ref().map(|_| ViewMut::new(&mut window, window_dims)),
        };
        let mut ws = buffer.workspace(engine.causal_conv1d_bwd_workspace::<T>(&problem));
        let grad_out = View::new(&self.grad_out, self.dims);
        let args = ConvBwd { inputs: self.inputs(), grad_out, grad_final_window: None, grads };
        engine.causal_conv1d_bwd(args, &mut ws).expect("a valid backward convolution");
        vec![("out", out), ("final_window", last), ("grad x", x), ("grad weight", weight), ("grad bias", bias), ("grad window", window)]
    }
}

fn check(bytes: &[u8]) -> Result<()> {
    let case = Case::new(&mut Source::new(bytes))?;
    let want = case.map(f64::from).run(&Naive);
    // SiLU aside, what rounding errors are relative to; its slope is at most 1.1, and it may lose a few units of its argument.
    let mut positive = case.map(|x| f64::from(x.abs()));
    positive.silu = false;
    let scale = positive.run(&Naive);
    // silu' moves by up to half of what the sum before it does, and that by units of its own scale.
    let slope = if case.silu { 1.0 + largest(&scale[0].1) } else { 1.0 };
    each_engine!(engine, name, {
        for ((tensor, got), ((_, want), (_, scale))) in case.run(&engine).iter().zip(want.iter().zip(&scale)) {
            let most = if case.silu { largest(scale) } else { 0.0 };
            close(name, tensor, got, want, |i| 1.1 * scale[i].max(most) * slope, 64.0);
        }
    });
    Ok(())
}

/// The target.
pub fn run(bytes: &[u8]) {
    let _ = check(bytes);
}

//! The Mamba block of M channels outside and D = 2M inside, W = 4, rank ⌈M/16⌉: forward, backward, decode step.

use std::marker::PhantomData;

use selective_scan::block::mamba::{
    MAMBA_OPTIONS, MambaBlock, MambaBwd, MambaFwd, MambaGrads, MambaInputs, MambaParams, MambaProblem, MambaSaved, MambaStep,
};
use selective_scan::buffer::Workspace;
use selective_scan::element::{Dtype, Input, Real};
use selective_scan::error::Error;

use super::operator::{Family, Operator, Work, bytes};
use super::place::{Engine, Place, numbers};
use super::shape::Shape;

/// Taps of the convolution.
const WIDTH: usize = 4;

/// Which of the three.
pub const FWD: usize = 0;
pub const BWD: usize = 1;
pub const STEP: usize = 2;

/// One of them; backward is with what a forward call kept before, so a training step is a forward and a backward one.
pub struct Block<I, const WHICH: usize>(PhantomData<I>);

fn problem(shape: Shape) -> MambaProblem {
    let Shape { batch, seqlen, dim, extra, .. } = shape;
    let hidden = dim.div_ceil(2);
    MambaProblem {
        batch,
        seqlen,
        hidden,
        inner: dim,
        dstate: extra,
        rank: hidden.div_ceil(16),
        width: WIDTH,
        states: batch,
        options: MAMBA_OPTIONS,
    }
}

impl<I: Input, const WHICH: usize> Family for Block<I, WHICH> {
    const OP: &'static str = ["mamba_block_fwd", "mamba_block_bwd", "mamba_block_step"][WHICH];
    const INPUT: Dtype = I::DTYPE;
    const WEIGHT: Dtype = I::DTYPE;
    const SLACK: f64 = 4.0;
    const PRODUCT: bool = true;
    type On<P: Place> = BlockAt<P, I, WHICH>;

    fn work(shape: Shape) -> Work {
        let shape = if WHICH == STEP { Shape { seqlen: 1, ..shape } } else { shape };
        let MambaProblem { hidden, inner, dstate, rank, .. } = problem(shape);
        let (rows, weights) = (shape.batch * shape.seqlen, 3 * hidden * inner + inner * (rank + 2 * dstate) + rank * inner);
        let (scan, times) = if WHICH == BWD { (20.0, 2.0) } else { (9.0, 1.0) };
        let products = times * rows as f64 * weights as f64;
        let states = if WHICH == STEP { 2.0 * bytes::<I::Accum>(shape.states()) } else { 0.0 };
        let fp32 = if WHICH == BWD { 12.0 } else { 4.0 };
        Work {
            elements: shape.count() as f64,
            bytes: times * bytes::<I>(weights + 2 * rows * hidden) + states,
            fp32: products + fp32 * shape.states() as f64,
            exponentials: shape.states() as f64,
            multiply_adds: products + scan * shape.states() as f64,
        }
    }
}

/// The tensors of a block's parameters, or of their gradients.
struct Tensors<P: Place, I: Input, W: Input> {
    in_proj: P::Array<W>,
    conv_weight: P::Array<I::Accum>,
    conv_bias: P::Array<I::Accum>,
    x_proj: P::Array<W>,
    dt_proj: P::Array<W>,
    dt_bias: P::Array<I::Accum>,
    a_log: P::Array<I::Accum>,
    d: P::Array<I::Accum>,
    out_proj: P::Array<W>,
}

pub struct BlockAt<P: Place, I: Input, const WHICH: usize> {
    problem: MambaProblem,
    of: Tensors<P, I, I>,
    grads: Tensors<P, I, I::Accum>,
    x: P::Array<I>,
    out: P::Array<I>,
    grad_x: P::Array<I>,
    window: P::Array<I>,
    state: P::Array<I::Accum>,
    saved: P::Scratch,
    kept: Option<MambaProblem>,
}

/// The dimensions of the four products.
fn products(p: &MambaProblem) -> [[usize; 2]; 4] {
    [[2 * p.inner, p.hidden], [p.rank + 2 * p.dstate, p.inner], [p.inner, p.rank], [p.hidden, p.inner]]
}

fn parameters<P: Place, I: Input>(place: &P, p: &MambaProblem) -> Result<Tensors<P, I, I>, Error> {
    let product = |i: usize, seed| {
        let [n, k] = products(p)[i];
        let root = 1.0 / (k as f64).sqrt();
        place.data::<I>(n * k, [-root, root], seed)
    };
    let a_log = |i: usize| I::Accum::from_f64(((i % p.dstate + 1) as f64).ln());
    Ok(Tensors {
        in_proj: product(0, 1)?,
        conv_weight: place.data(p.inner * WIDTH, [-0.5, 0.5], 2)?,
        conv_bias: place.data(p.inner, [-0.5, 0.5], 3)?,
        x_proj: product(1, 4)?,
        dt_proj: product(2, 5)?,
        dt_bias: place.data(p.inner, [-6.9, -2.25], 6)?,
        a_log: place.array((0..p.inner * p.dstate).map(a_log).collect())?,
        d: place.array(vec![I::Accum::from_f64(1.0); p.inner])?,
        out_proj: product(3, 7)?,
    })
}

fn gradients<P: Place, I: Input>(place: &P, p: &MambaProblem, wanted: bool) -> Result<Tensors<P, I, I::Accum>, Error> {
    let zeros = |count: usize| place.zeros::<I::Accum>(if wanted { count } else { 0 });
    let [in_proj, x_proj, dt_proj, out_proj] = products(p).map(|[n, k]| n * k);
    Ok(Tensors {
        in_proj: zeros(in_proj)?,
        conv_weight: zeros(p.inner * WIDTH)?,
        conv_bias: zeros(p.inner)?,
        x_proj: zeros(x_proj)?,
        dt_proj: zeros(dt_proj)?,
        dt_bias: zeros(p.inner)?,
        a_log: zeros(p.inner * p.dstate)?,
        d: zeros(p.inner)?,
        out_proj: zeros(out_proj)?,
    })
}

impl<P: Place, I: Input> Tensors<P, I, I> {
    fn params(&self, p: &MambaProblem) -> MambaParams<'_, I, P::Memory> {
        let [in_proj, x_proj, dt_proj, out_proj] = products(p);
        MambaParams {
            in_proj: P::view(&self.in_proj, in_proj),
            in_proj_bias: None,
            conv_weight: P::view(&self.conv_weight, [p.inner, WIDTH]),
            conv_bias: Some(P::view(&self.conv_bias, [p.inner])),
            x_proj: P::view(&self.x_proj, x_proj),
            dt_proj: P::view(&self.dt_proj, dt_proj),
            dt_bias: P::view(&self.dt_bias, [p.inner]),
            A_log: P::view(&self.a_log, [p.inner, p.dstate]),
            A: None,
            D: P::view(&self.d, [p.inner]),
            out_proj: P::view(&self.out_proj, out_proj),
            out_proj_bias: None,
        }
    }
}

impl<P: Place, I: Input> Tensors<P, I, I::Accum> {
    fn grads<'a>(&'a mut self, p: &MambaProblem, x: &'a mut P::Array<I>) -> MambaGrads<'a, I, P::Memory> {
        let [in_proj, x_proj, dt_proj, out_proj] = products(p);
        MambaGrads {
            x: Some(P::view_mut(x, [p.batch, p.seqlen, p.hidden])),
            in_proj: Some(P::view_mut(&mut self.in_proj, in_proj)),
            conv_weight: Some(P::view_mut(&mut self.conv_weight, [p.inner, WIDTH])),
            conv_bias: Some(P::view_mut(&mut self.conv_bias, [p.inner])),
            x_proj: Some(P::view_mut(&mut self.x_proj, x_proj)),
            dt_proj: Some(P::view_mut(&mut self.dt_proj, dt_proj)),
            dt_bias: Some(P::view_mut(&mut self.dt_bias, [p.inner])),
            A_log: Some(P::view_mut(&mut self.a_log, [p.inner, p.dstate])),
            D: Some(P::view_mut(&mut self.d, [p.inner])),
            out_proj: Some(P::view_mut(&mut self.out_proj, out_proj)),
            ..MambaGrads::default()
        }
    }
}

impl<P: Place, I: Input, const WHICH: usize> BlockAt<P, I, WHICH> {
    fn step(&mut self, place: &P, engine: &impl Engine<P::Memory>, scratch: &mut P::Scratch) -> Result<(), Error> {
        let (p, block) = (self.problem, MambaBlock { engine });
        let bytes = block.step_workspace::<I>(&p);
        let args = MambaStep {
            params: self.of.params(&p),
            x: P::view(&self.x, [p.batch, p.hidden]),
            window: P::view_mut(&mut self.window, [p.batch, WIDTH - 1, p.inner]),
            state: P::view_mut(&mut self.state, [p.batch, p.inner, p.dstate]),
            slots: None,
            out: P::view_mut(&mut self.out, [p.batch, p.hidden]),
            options: p.options,
        };
        block.step(args, &mut place.workspace(scratch, bytes)?)
    }

    fn backward(&mut self, place: &P, engine: &impl Engine<P::Memory>, scratch: &mut P::Scratch) -> Result<(), Error> {
        let (p, block, dims) = (self.problem, MambaBlock { engine }, [self.problem.batch, self.problem.seqlen, self.problem.hidden]);
        let fresh = self.kept.is_none();
        let mut ws: Workspace<'_, P::Memory> = place.workspace(&mut self.saved, p.saved_bytes::<I>())?;
        let mut saved = MambaSaved::carve(&p, &mut ws, &mut self.kept)?;
        let inputs = MambaInputs::new(self.of.params(&p), P::view(&self.x, dims));
        if fresh {
            let out = P::view_mut(&mut self.out, dims);
            let bytes = block.saving_workspace::<I>(&p);
            let args = MambaFwd { inputs, out, final_window: None, last_state: None };
            block.forward_saving(args, &mut saved, &mut place.workspace(scratch, bytes)?)?;
        }
        let bytes = block.backward_workspace::<I>(&p);
        let args = MambaBwd {
            inputs,
            saved: &saved,
            grad_out: P::view(&self.x, dims),
            grad_final_window: None,
            grad_last_state: None,
            grads: self.grads.grads(&p, &mut self.grad_x),
        };
        block.backward(args, &mut place.workspace(scratch, bytes)?)
    }
}

impl<P: Place, I: Input, const WHICH: usize> Operator<P> for BlockAt<P, I, WHICH> {
    fn new(place: &P, shape: Shape) -> Result<Self, Error> {
        let p = problem(if WHICH == STEP { Shape { seqlen: 1, ..shape } } else { shape });
        let count = p.batch * p.seqlen * p.hidden;
        Ok(BlockAt {
            problem: p,
            of: parameters(place, &p)?,
            grads: gradients(place, &p, WHICH == BWD)?,
            x: place.data(count, [-1.0, 1.0], 8)?,
            out: place.zeros(count)?,
            grad_x: place.zeros(if WHICH == BWD { count } else { 0 })?,
            window: place.zeros(if WHICH == STEP { p.batch * (WIDTH - 1) * p.inner } else { 0 })?,
            state: place.zeros(if WHICH == STEP { p.batch * p.inner * p.dstate } else { 0 })?,
            saved: P::Scratch::default(),
            kept: None,
        })
    }

    fn call(&mut self, place: &P, engine: &impl Engine<P::Memory>, scratch: &mut P::Scratch) -> Result<(), Error> {
        match WHICH {
            STEP => self.step(place, engine, scratch),
            BWD => self.backward(place, engine, scratch),
            _ => {
                let (p, block, dims) =
                    (self.problem, MambaBlock { engine }, [self.problem.batch, self.problem.seqlen, self.problem.hidden]);
                let inputs = MambaInputs::new(self.of.params(&p), P::view(&self.x, dims));
                let args = MambaFwd { inputs, out: P::view_mut(&mut self.out, dims), final_window: None, last_state: None };
                let bytes = block.forward_workspace::<I>(&p);
                block.forward(args, &mut place.workspace(scratch, bytes)?)
            }
        }
    }

    fn results(&self) -> Result<Vec<Vec<f64>>, Error> {
        let Tensors { in_proj, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, a_log, d, out_proj } = &self.grads;
        let sums = [in_proj, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, a_log, d, out_proj, &self.state];
        let tensors = [&self.out, &self.grad_x, &self.window];
        tensors.map(numbers::<P, I>).into_iter().chain(sums.map(numbers::<P, I::Accum>)).collect()
    }
}

//! The causal convolution: its calls in any storage type, and its option grid.

use selective_scan::Error;
use selective_scan::buffer::Buffer;
use selective_scan::element::{Dtype, Input};
use selective_scan::layers::conv1d::{ConvBwd, ConvFwd, ConvGrads, ConvInputs, ConvStep};
use selective_scan::naive::Naive;
use selective_scan::view::View;

use super::array::Array;
use super::compare::Bound;
use super::draws::accum;
use super::pairs::{Draw, Options};
use super::selective::{found, given};
use super::sequences::{ORDERS, Order, padding};
use super::tensor::{Layout, Tensor};
use super::transform::{Packing, Transform};
use super::{Engine, Faults, Found, LAYOUTS, Role, STORAGE, agree, masked, real_typed, refused, rest, same_bits, scales};

/// A convolution and its upstream gradients.
#[derive(Debug, Clone)]
pub struct Problem {
    pub x: Array,
    pub weight: Array,
    pub bias: Option<Array>,
    pub window: Option<Array>,
    pub grad_out: Array,
    pub grad_window: Option<Array>,
    pub packing: Packing,
    pub silu: bool,
    /// Whether the final window is asked for.
    pub last: bool,
    /// Whether only the gradients of parameters are.
    pub parameters: bool,
}

impl Problem {
    fn window_dims(&self) -> [usize; 3] {
        let states = if let Packing::CuSeqlens(offsets) = &self.packing { offsets.len() - 1 } else { self.x.dims[0] };
        [states, self.weight.dims[1] - 1, self.x.dims[2]]
    }

    /// The same work arranged in another way.
    pub fn transform(&self, by: &Transform) -> Self {
        let states = |x: &Option<Array>| x.as_ref().map(|x| x.take(&by.states));
        Problem {
            x: by.input(&self.x),
            window: states(&self.window),
            grad_out: by.input(&self.grad_out),
            grad_window: states(&self.grad_window),
            packing: by.packing.clone(),
            ..self.clone()
        }
    }
}

/// Forward and backward.
fn run<E: Engine, I: Input>(engine: &E, of: &Problem, layout: Layout) -> Result<Vec<Found>, Error> {
    let (x, weight) = (Tensor::<I, 3>::from(&of.x, layout), Tensor::<I::Accum, 2>::from(&of.weight, layout));
    let (bias, window) = (given::<I::Accum, 1>(&of.bias, layout), given::<I, 3>(&of.window, layout));
    let (grad_out, grad_window) = (Tensor::<I, 3>::from(&of.grad_out, layout), given::<I, 3>(&of.grad_window, layout));
    let dims = x.view().dims();
    let inputs = || ConvInputs {
        x: x.view(),
        weight: weight.view(),
        bias: bias.as_ref().map(Tensor::view),
        initial_window: window.as_ref().map(Tensor::view),
        sequences: of.packing.sequences(),
        silu: of.silu,
    };
    let mut out = Tensor::<I, 3>::marked(dims, layout);
    let mut last = of.last.then(|| Tensor::<I, 3>::marked(of.window_dims(), layout));
    let args = ConvFwd { inputs: inputs(), out: out.view_mut(), final_window: last.as_mut().map(Tensor::view_mut) };
    let bytes = engine.causal_conv1d_fwd_workspace::<I>(&args.check()?);
    engine.causal_conv1d_fwd(args, &mut Buffer::new().workspace(bytes))?;

    let mut grad_x = (!of.parameters).then(|| Tensor::<I, 3>::marked(dims, layout));
    let mut grad_weight = Tensor::<I::Accum, 2>::marked(weight.view().dims(), layout);
    let mut grad_bias = bias.as_ref().map(|_| Tensor::<I::Accum, 1>::marked([dims[2]], layout));
    let mut grad_initial = (window.is_some() && !of.parameters).then(|| Tensor::<I, 3>::marked(of.window_dims(), layout));
    let grads = ConvGrads {
        x: grad_x.as_mut().map(Tensor::view_mut),
        weight: Some(grad_weight.view_mut()),
        bias: grad_bias.as_mut().map(Tensor::view_mut),
        initial_window: grad_initial.as_mut().map(Tensor::view_mut),
    };
    let grad_final_window = grad_window.as_ref().map(Tensor::view);
    let args = ConvBwd { inputs: inputs(), grad_out: grad_out.view(), grad_final_window, grads };
    let bytes = engine.causal_conv1d_bwd_workspace::<I>(&args.check()?);
    engine.causal_conv1d_bwd(args, &mut Buffer::new().workspace(bytes))?;
    let mut results = vec![found("out", &out, Role::Positions), found("grad.weight", &grad_weight, Role::Shared)];
    results.extend(last.iter().map(|t| found("final_window", t, Role::States)));
    results.extend(grad_x.iter().map(|t| found("grad.x", t, Role::Positions)));
    results.extend(grad_bias.iter().map(|t| found("grad.bias", t, Role::Shared)));
    results.extend(grad_initial.iter().map(|t| found("grad.window", t, Role::States)));
    Ok(results)
}

/// The same in a storage type.
pub fn run_in<E: Engine>(engine: &E, dtype: Dtype, of: &Problem, layout: Layout) -> Result<Vec<Found>, Error> {
    real_typed!(dtype, run(engine, of, layout))
}

/// Position `t` as one decode step on windows; out, and every window afterwards. Rows that are skipped keep the mark in their out.
fn step<E: Engine, I: Input>(
    engine: &E,
    of: &Problem,
    t: usize,
    windows: &Array,
    slots: Option<&[i32]>,
    layout: Layout,
) -> Result<Vec<Found>, Error> {
    let (x, weight) = (Tensor::<I, 2>::from(&of.x.at(t), layout), Tensor::<I::Accum, 2>::from(&of.weight, layout));
    let (bias, mut window) = (given::<I::Accum, 1>(&of.bias, layout), Tensor::<I, 3>::from(windows, layout));
    let mut out = Tensor::<I, 2>::marked(x.view().dims(), layout);
    let args = ConvStep {
        x: x.view(),
        weight: weight.view(),
        bias: bias.as_ref().map(Tensor::view),
        window: window.view_mut(),
        slots: slots.map(|s| View::new(s, [s.len()])),
        out: out.view_mut(),
        silu: of.silu,
    };
    let bytes = engine.causal_conv1d_update_workspace::<I>(&args.check()?);
    engine.causal_conv1d_update(args, &mut Buffer::new().workspace(bytes))?;
    Ok(vec![found("out", &out, Role::Positions), found("window", &window, Role::States)])
}

/// As [`step`], in a storage type.
pub fn step_in<E: Engine>(
    engine: &E,
    dtype: Dtype,
    of: &Problem,
    t: usize,
    windows: &Array,
    slots: Option<&[i32]>,
    layout: Layout,
) -> Result<Vec<Found>, Error> {
    real_typed!(dtype, step(engine, of, t, windows, slots, layout))
}

const WIDTHS: [usize; 5] = [1, 2, 3, 4, 5];
const LENGTHS: [usize; 8] = [0, 1, 2, 3, 31, 64, 129, 300];
const CHANNELS: [usize; 5] = [1, 2, 37, 64, 130];
const BATCHES: [usize; 3] = [1, 0, 3];
/// Storage, W, bias, SiLU, initial window, final one, its gradient, order, layout, L, D, B, only parameters, slots.
const VALUES: [usize; 14] = [4, 5, 2, 2, 2, 2, 2, 5, 4, 8, 5, 3, 2, 2];

#[derive(Debug, Clone)]
struct Row {
    storage: Dtype,
    layout: Layout,
    order: Order,
    slots: bool,
    /// B, L, D, W.
    sizes: [usize; 4],
    flags: [bool; 6],
    seed: u64,
}

impl Row {
    fn new(v: &[usize], seed: u64) -> Self {
        let sizes = [BATCHES[v[11]], LENGTHS[v[9]], CHANNELS[v[10]], WIDTHS[v[1]]];
        let flags = [2, 3, 4, 5, 6, 12].map(|option| v[option] == 1);
        Row { storage: STORAGE[v[0]], layout: LAYOUTS[v[8]], order: ORDERS[v[7]], slots: v[13] == 1, sizes, flags, seed }
    }

    fn problem(&self) -> Problem {
        let ([batch, seqlen, dim, width], storage) = (self.sizes, self.storage);
        let [bias, silu, window, last, grad_last, parameters] = self.flags;
        let mut draw = Draw(self.seed);
        let packing = self.order.packing([batch, seqlen], &mut draw);
        let states = if let Packing::CuSeqlens(offsets) = &packing { offsets.len() - 1 } else { batch };
        let state = [states, width - 1, dim];
        Problem {
            x: draw.array(&[batch, seqlen, dim], false, storage, -1.0, 1.0),
            weight: draw.array(&[dim, width], false, accum(storage), -1.0, 1.0),
            bias: bias.then(|| draw.array(&[dim], false, accum(storage), -1.0, 1.0)),
            window: window.then(|| draw.array(&state, false, storage, -1.0, 1.0)),
            grad_out: draw.array(&[batch, seqlen, dim], false, storage, -1.0, 1.0),
            grad_window: grad_last.then(|| draw.array(&state, false, storage, -1.0, 1.0)),
            packing,
            silu,
            last,
            parameters,
        }
    }
}

/// The same with every factor's absolute value: its results are the scale of the other's terms.
fn absolute(of: &Problem) -> Problem {
    let all = |x: &Array| Array { data: x.data.iter().map(|x| x.abs()).collect(), ..x.clone() };
    let maybe = |x: &Option<Array>| x.as_ref().map(all);
    let (x, weight, grad_out) = (all(&of.x), all(&of.weight), all(&of.grad_out));
    Problem { x, weight, bias: maybe(&of.bias), window: maybe(&of.window), grad_out, grad_window: maybe(&of.grad_window), ..of.clone() }
}

fn check<E: Engine>(engine: &E, row: &Row) -> Result<(), String> {
    let (clean, mut of) = (row.problem(), row.problem());
    let [batch, seqlen, dim, width] = row.sizes;
    padding(&of.packing.clone(), [&mut of.x, &mut of.grad_out]);
    let whole = Problem { last: true, parameters: false, ..of.clone() };
    let reference = |of: &Problem| run_in(&Naive, Dtype::F64, of, Layout::Contiguous).expect("the operands are right");
    let got = run_in(engine, row.storage, &of, row.layout).map_err(refused)?;
    let part = |part| {
        let grad_window = whole.grad_window.as_ref().map(|g| masked(g, part));
        reference(&Problem { grad_out: masked(&whole.grad_out, part), grad_window, ..whole.clone() })
    };
    agree(&got, &reference(&whole), &scales(part, reference(&absolute(&whole))), 0.0)?;
    if seqlen == 0 {
        return Ok(());
    }
    let held = batch + usize::from(row.slots);
    let windows = Draw(row.seed + 1).array(&[held, width - 1, dim], false, row.storage, -1.0, 1.0);
    let mut slots: Vec<i32> = (0..batch).map(|b| (batch - b) as i32).collect();
    slots.iter_mut().take(1).for_each(|s| *s = -1);
    let slots = row.slots.then_some(slots);
    let steps = |of, windows| step_in(&Naive, Dtype::F64, of, seqlen / 2, windows, slots.as_deref(), Layout::Contiguous);
    let want = steps(&clean, &windows).expect("the operands are right");
    let got = step_in(engine, row.storage, &clean, seqlen / 2, &windows, slots.as_deref(), row.layout).map_err(refused)?;
    let rows = rest(batch, slots.as_deref());
    let cut = |r: &[Found]| vec![Found { array: r[0].array.take(&rows), ..r[0].clone() }];
    // What is moved is moved to the bit, and a skipped row keeps its window and its out.
    same_bits(&got[1], &want[1].array).map_err(|why| format!("step: {why}"))?;
    let skipped: Vec<usize> = (0..batch).filter(|b| !rows.contains(b)).collect();
    same_bits(&Found { array: got[0].array.take(&skipped), ..got[0].clone() }, &want[0].array.take(&skipped))?;
    let positive = Array { data: windows.data.iter().map(|x| x.abs()).collect(), ..windows.clone() };
    let scale = steps(&absolute(&clean), &positive).expect("the operands are right");
    agree(&cut(&got), &cut(&want), &cut(&scale), 0.0).map_err(|why| format!("step: {why}"))
}

fn rows(seed: u64) -> Vec<Row> {
    let may =
        |row: &super::pairs::Partial| !(row[7].is_some_and(|v| ORDERS[v] == Order::CuSeqlens) && row[11].is_some_and(|v| BATCHES[v] != 1));
    let options = Options { values: &VALUES, may: &may };
    let table = options.table(seed);
    let (_, impossible, absent) = options.missing(&table);
    assert!(impossible == 2 && absent.is_empty(), "every pair occurs");
    table.iter().enumerate().map(|(i, v)| Row::new(v, (seed << 32) + i as u64)).collect()
}

#[test]
fn convolutions_agree_over_the_whole_grid() {
    let mut faults = Faults::default();
    for row in (1..if crate::is_real() { 10 } else { 2 }).flat_map(rows) {
        faults.case(&|| format!("{row:?}"), || check(&crate::carried(), &row));
    }
    faults.none();
}

#[test]
fn the_specification_passes_the_grid_of_convolutions() {
    let mut faults = Faults::default();
    for row in rows(7) {
        faults.case(&|| format!("{row:?}"), || check(&Naive, &row));
    }
    faults.none();
}

/// A gradient of storage type: its bound is not twice that of outputs but has the rounding.
#[test]
fn bounds_are_of_the_storage() {
    let one = Found {
        name: "out",
        array: Array { dims: vec![1], data: vec![1.0 + 2.0f64.powi(-8)], complex: false },
        dtype: Dtype::Bf16,
        role: Role::Positions,
    };
    assert!(super::close(&one, &[1.0], Bound::new(Dtype::Bf16, 0.0, false)).is_ok());
    assert!(super::close(&one, &[1.0], Bound::new(Dtype::F32, 0.0, false)).is_err());
}

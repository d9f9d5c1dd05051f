//! Norms and products: their calls in any storage type, and their option grids.

use selective_scan::Error;
use selective_scan::buffer::Buffer;
use selective_scan::element::{Dtype, Input};
use selective_scan::layers::linear::{LinearBwd, LinearFwd};
use selective_scan::layers::norm::{NormBwd, NormFwd, NormOptions};
use selective_scan::naive::Naive;
use selective_scan::ops::{silu, silu_grad};

use super::array::Array;
use super::draws::accum;
use super::pairs::{Draw, Options};
use super::selective::{found, given};
use super::tensor::{Layout, Tensor};
use super::{Engine, Faults, Found, LAYOUTS, Role, STORAGE, agree, masked, real_typed, refused, scales};

/// ε of every norm.
const EPS: f64 = 1e-5;

/// A norm and its upstream gradients.
#[derive(Debug, Clone)]
pub struct Norm {
    pub x: Array,
    pub residual: Option<Array>,
    pub weight: Array,
    pub z: Option<Array>,
    pub options: NormOptions,
    pub grad_out: Array,
    pub grad_stream: Option<Array>,
    /// The stream as it is kept for the backward call.
    pub stream: Array,
    /// Whether the stream is stored in the arithmetic type.
    pub wide: bool,
}

impl Norm {
    /// Some rows alone.
    pub fn rows(&self, rows: &[usize]) -> Self {
        let take = |x: &Array| x.take(rows);
        let (residual, grad_stream) = (self.residual.as_ref().map(take), self.grad_stream.as_ref().map(take));
        let z = self.z.as_ref().map(take);
        Norm { x: take(&self.x), residual, z, grad_out: take(&self.grad_out), grad_stream, stream: take(&self.stream), ..self.clone() }
    }
}

/// Forward and backward.
fn norm<E: Engine, I: Input, R: Input<Accum = I::Accum>>(engine: &E, of: &Norm, layout: Layout) -> Result<Vec<Found>, Error> {
    let (x, weight) = (Tensor::<I, 2>::from(&of.x, layout), Tensor::<I::Accum, 1>::from(&of.weight, layout));
    let (residual, grad_stream) = (given::<R, 2>(&of.residual, layout), given::<R, 2>(&of.grad_stream, layout));
    let (grad_out, stream) = (Tensor::<I, 2>::from(&of.grad_out, layout), Tensor::<R, 2>::from(&of.stream, layout));
    let (z, options) = (given::<I, 2>(&of.z, layout), of.options);
    let dims = x.view().dims();
    let (mut out, mut r) = (Tensor::<I, 2>::marked(dims, layout), Tensor::<R, 2>::marked(dims, layout));
    let args = NormFwd {
        residual: residual.as_ref().map(Tensor::view),
        z: z.as_ref().map(Tensor::view),
        options,
        residual_out: Some(r.view_mut()),
        ..NormFwd::new(x.view(), weight.view(), EPS, out.view_mut())
    };
    engine.rms_norm_fwd(args, &mut Buffer::new().workspace(engine.rms_norm_fwd_workspace::<I>(dims)))?;
    let (mut grad_x, mut grad_residual) = (Tensor::<I, 2>::marked(dims, layout), Tensor::<R, 2>::marked(dims, layout));
    let (mut grad_weight, mut grad_z) = (Tensor::<I::Accum, 1>::marked([dims[1]], layout), Tensor::<I, 2>::marked(dims, layout));
    let args = NormBwd {
        z: z.as_ref().map(Tensor::view),
        options,
        grad_residual_out: grad_stream.as_ref().map(Tensor::view),
        grad_x: Some(grad_x.view_mut()),
        grad_residual: Some(grad_residual.view_mut()),
        grad_weight: Some(grad_weight.view_mut()),
        grad_z: z.as_ref().map(|_| grad_z.view_mut()),
        ..NormBwd::new(stream.view(), weight.view(), EPS, grad_out.view())
    };
    engine.rms_norm_bwd(args, &mut Buffer::new().workspace(engine.rms_norm_bwd_workspace::<I>(dims)))?;
    let mut results = vec![
        found("out", &out, Role::Positions),
        found("residual_out", &r, Role::Positions),
        found("grad.x", &grad_x, Role::Positions),
        found("grad.residual", &grad_residual, Role::Positions),
        found("grad.weight", &grad_weight, Role::Shared),
    ];
    results.extend(z.is_some().then(|| found("grad.z", &grad_z, Role::Positions)));
    Ok(results)
}

/// The same in a storage type.
pub fn norm_in<E: Engine>(engine: &E, dtype: Dtype, of: &Norm, layout: Layout) -> Result<Vec<Found>, Error> {
    use half::{bf16, f16};
    match (dtype, of.wide) {
        (Dtype::F16, true) => norm::<E, f16, f32>(engine, of, layout),
        (Dtype::Bf16, true) => norm::<E, bf16, f32>(engine, of, layout),
        (Dtype::F64, _) => norm::<E, f64, f64>(engine, of, layout),
        (Dtype::F32, _) => norm::<E, f32, f32>(engine, of, layout),
        (Dtype::F16, false) => norm::<E, f16, f16>(engine, of, layout),
        _ => norm::<E, bf16, bf16>(engine, of, layout),
    }
}

/// A product and its upstream gradient.
#[derive(Debug, Clone)]
struct Product {
    x: Array,
    weight: Array,
    bias: Option<Array>,
    grad_out: Array,
    /// Whether the weight's memory is its transpose's.
    turned: bool,
}

fn product<E: Engine, I: Input>(engine: &E, of: &Product, layout: Layout) -> Result<Vec<Found>, Error> {
    let (x, grad_out) = (Tensor::<I, 2>::from(&of.x, layout), Tensor::<I, 2>::from(&of.grad_out, layout));
    let [outputs, inputs]: [usize; 2] = of.weight.dims[..].try_into().expect("a matrix");
    let transpose = || {
        let data = (0..inputs).flat_map(|k| (0..outputs).map(move |n| of.weight.data[n * inputs + k])).collect();
        Array { dims: vec![inputs, outputs], data, complex: false }
    };
    let weight = Tensor::<I, 2>::from(&if of.turned { transpose() } else { of.weight.clone() }, layout);
    let weight = || if of.turned { weight.view().permute([1, 0]) } else { weight.view() };
    let bias = given::<I::Accum, 1>(&of.bias, layout);
    let mut out = Tensor::<I, 2>::marked(grad_out.view().dims(), layout);
    let args = LinearFwd { x: x.view(), weight: weight(), bias: bias.as_ref().map(Tensor::view), out: out.view_mut() };
    let problem = args.check()?;
    engine.linear_fwd(args, &mut Buffer::new().workspace(engine.linear_fwd_workspace::<I>(problem)))?;
    let mut grad_x = Tensor::<I, 2>::marked(x.view().dims(), layout);
    let (mut grad_weight, mut grad_bias) =
        (Tensor::<I::Accum, 2>::marked([outputs, inputs], layout), Tensor::<I::Accum, 1>::marked([outputs], layout));
    let args = LinearBwd {
        x: x.view(),
        weight: weight(),
        grad_out: grad_out.view(),
        grad_x: Some(grad_x.view_mut()),
        grad_weight: Some(grad_weight.view_mut()),
        grad_bias: bias.as_ref().map(|_| grad_bias.view_mut()),
    };
    engine.linear_bwd(args, &mut Buffer::new().workspace(engine.linear_bwd_workspace::<I>(problem)))?;
    let mut results = vec![
        found("out", &out, Role::Positions),
        found("grad.x", &grad_x, Role::Positions),
        found("grad.weight", &grad_weight, Role::Shared),
    ];
    results.extend(bias.is_some().then(|| found("grad.bias", &grad_bias, Role::Shared)));
    Ok(results)
}

fn product_in<E: Engine>(engine: &E, dtype: Dtype, of: &Product, layout: Layout) -> Result<Vec<Found>, Error> {
    real_typed!(dtype, product(engine, of, layout))
}

const ROWS: [usize; 8] = [0, 1, 2, 3, 16, 33, 64, 130];
const COLUMNS: [usize; 8] = [1, 3, 8, 37, 64, 128, 257, 1000];
const DEPTHS: [usize; 6] = [1, 3, 16, 37, 64, 130];

fn table(values: &[usize], seed: u64, may: &dyn Fn(&super::pairs::Partial) -> bool) -> Vec<(Vec<usize>, u64)> {
    let options = Options { values, may };
    let table = options.table(seed);
    assert!(options.missing(&table).2.is_empty(), "every pair occurs");
    table.into_iter().enumerate().map(|(i, v)| (v, (seed << 32) + i as u64)).collect()
}

fn absolute(x: &Array) -> Array {
    Array { data: x.data.iter().map(|x| x.abs()).collect(), ..x.clone() }
}

/// How large the terms of ∂r and ∂z are, which are differences where the gate lets the norm's gradient through: each with the norm of its number alone.
fn terms(of: &Norm) -> [f64; 2] {
    let mut most = [0.0f64; 2];
    for (i, (g, r)) in of.grad_out.data.iter().zip(&of.stream.data).enumerate() {
        let (q, slope) = of.z.as_ref().map_or((1.0, 0.0), |z| (silu(z.data[i]), silu_grad(z.data[i])));
        let by = |x: f64| g.abs() / (x.abs() + EPS.sqrt());
        let [x, z] = match of.options.norm_before_gate {
            false => [by(r * q) * q.abs(), by(r * q) * (r * slope).abs()],
            true => [by(*r) * q.abs(), by(*r) * (r * slope).abs()],
        };
        most = [most[0].max(x), most[1].max(z)];
    }
    most
}

/// Options: storage, residual, gradient of the stream, wide stream, layout, rows, columns, no gate or one on either side, groups.
fn norm_agrees<E: Engine>(engine: &E, v: &[usize], seed: u64) -> Result<(), String> {
    let (storage, wide, mut draw) = (STORAGE[v[0]], v[3] == 1, Draw(seed));
    let kept = if wide { accum(storage) } else { storage };
    let (dims, columns) = ([ROWS[v[5]], COLUMNS[v[6]]], COLUMNS[v[6]]);
    let of = Norm {
        x: draw.array(&dims, false, storage, -1.0, 1.0),
        residual: (v[1] == 1).then(|| draw.array(&dims, false, kept, -2.0, 2.0)),
        weight: draw.array(&[columns], false, accum(storage), -1.0, 1.0),
        grad_out: draw.array(&dims, false, storage, -1.0, 1.0),
        grad_stream: (v[2] == 1).then(|| draw.array(&dims, false, kept, -1.0, 1.0)),
        stream: draw.array(&dims, false, kept, -1.0, 1.0),
        z: (v[7] > 0).then(|| draw.array(&dims, false, storage, -6.0, 6.0)),
        options: NormOptions {
            norm_before_gate: v[7] == 2,
            group_size: match v[8] {
                0 => None,
                1 => Some(columns),
                _ => (1..=columns / 2 + 1).rev().find(|&size| columns.is_multiple_of(size)),
            },
        },
        wide,
    };
    let want = norm_in(&Naive, Dtype::F64, &of, Layout::Contiguous).expect("the operands are right");
    // ∂x is a difference of two terms, ∂out·w/r and its projection.
    let (grad_out, grad_stream) = (absolute(&of.grad_out), of.grad_stream.as_ref().map(absolute));
    let terms = Norm { stream: absolute(&of.stream), weight: absolute(&of.weight), grad_out, grad_stream, ..of.clone() };
    let part = |part| {
        let masked = Norm { grad_out: masked(&of.grad_out, part), ..of.clone() };
        norm_in(&Naive, Dtype::F64, &masked, Layout::Contiguous).expect("the operands are right")
    };
    let mut scale = scales(part, norm_in(&Naive, Dtype::F64, &terms, Layout::Contiguous).expect("the operands are right"));
    let [x, z] = self::terms(&of);
    for (found, size) in scale.iter_mut().filter_map(|f| match f.name {
        "grad.x" | "grad.residual" => Some((f, x)),
        "grad.z" => Some((f, z)),
        _ => None,
    }) {
        found.array.data.fill(size);
    }
    agree(&norm_in(engine, storage, &of, LAYOUTS[v[4]]).map_err(refused)?, &want, &scale, 0.0)
}

/// Options: storage, bias, layout, rows, inputs, outputs, weight turned.
fn product_agrees<E: Engine>(engine: &E, v: &[usize], seed: u64) -> Result<(), String> {
    let (storage, mut draw) = (STORAGE[v[0]], Draw(seed));
    let (rows, inputs, outputs) = (ROWS[v[3]], DEPTHS[v[4]], DEPTHS[v[5]]);
    let of = Product {
        x: draw.array(&[rows, inputs], false, storage, -1.0, 1.0),
        weight: draw.array(&[outputs, inputs], false, storage, -1.0, 1.0),
        bias: (v[1] == 1).then(|| draw.array(&[outputs], false, accum(storage), -1.0, 1.0)),
        grad_out: draw.array(&[rows, outputs], false, storage, -1.0, 1.0),
        turned: v[6] == 1,
    };
    let (x, weight, grad_out) = (absolute(&of.x), absolute(&of.weight), absolute(&of.grad_out));
    let terms = Product { x, weight, bias: of.bias.as_ref().map(absolute), grad_out, turned: false };
    let exact = |of: &Product| product_in(&Naive, Dtype::F64, of, Layout::Contiguous).expect("the operands are right");
    let part = |part| exact(&Product { grad_out: masked(&of.grad_out, part), ..of.clone() });
    agree(&product_in(engine, storage, &of, LAYOUTS[v[2]]).map_err(refused)?, &exact(&of), &scales(part, exact(&terms)), 0.0)
}

fn norms<E: Engine>(engine: &E, seeds: std::ops::Range<u64>) {
    let mut faults = Faults::default();
    for (v, seed) in seeds.flat_map(|seed| table(&[4, 2, 2, 2, 4, 8, 8, 3, 3], seed, &|_| true)) {
        faults.case(&|| format!("norm {v:?} from {seed}"), || norm_agrees(engine, &v, seed));
    }
    faults.none();
}

fn products<E: Engine>(engine: &E, seeds: std::ops::Range<u64>) {
    let mut faults = Faults::default();
    for (v, seed) in seeds.flat_map(|seed| table(&[4, 2, 4, 8, 6, 6, 2], seed, &|_| true)) {
        faults.case(&|| format!("product {v:?} from {seed}"), || product_agrees(engine, &v, seed));
    }
    faults.none();
}

#[test]
fn norms_agree_over_the_whole_grid() {
    norms(&crate::carried(), 1..if crate::is_real() { 10 } else { 2 });
}

#[test]
fn products_agree_over_the_whole_grid() {
    products(&crate::carried(), 1..if crate::is_real() { 10 } else { 2 });
}

#[test]
fn the_specification_passes_the_grids_of_norms_and_products() {
    norms(&Naive, 7..8);
    products(&Naive, 7..8);
}

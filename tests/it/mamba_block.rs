//! The Mamba block against reference cases, central differences and its own identities, on every engine.

use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use safetensors::SafeTensors;
use selective_scan::Error;
use selective_scan::arch::Isa;
use selective_scan::blelloch::Blelloch;
use selective_scan::block::HostEngine;
use selective_scan::block::mamba::{
    MAMBA_OPTIONS, MambaBlock, MambaBwd, MambaFwd, MambaGrads, MambaInputs, MambaParams, MambaSaved, MambaStep,
};
use selective_scan::buffer::Buffer;
use selective_scan::cpu::Cpu;
use selective_scan::element::{Input, Real};
use selective_scan::naive::Naive;
use selective_scan::par::Par;
use selective_scan::sequences::Sequences;
use selective_scan::view::{View, ViewMut};

/// Calls a generic function with each engine of this machine.
macro_rules! on_engines {
    ($function:ident $(, $arg:expr)*) => {{
        $function(&Naive $(, $arg)*);
        $function(&Blelloch::new() $(, $arg)*);
        for isa in Isa::available() {
            $function(&Cpu::new().with_isa(isa).unwrap() $(, $arg)*);
        }
    }};
}

/// Tensors by name, in f64.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<f64>)>;

fn read(name: &str) -> Tensors {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let bytes = std::fs::read(path).expect("the case is in the repository");
    let file = SafeTensors::deserialize(&bytes).expect("the case is whole");
    let numbers = |data: &[u8]| data.as_chunks::<8>().0.iter().map(|&b| f64::from_le_bytes(b)).collect();
    file.iter().map(|(name, t)| (name.to_string(), (t.shape().to_vec(), numbers(t.data())))).collect()
}

fn stored<I: Input>(values: &[f64]) -> Vec<I> {
    values.iter().map(|&x| I::store(I::Accum::from_f64(x))).collect()
}

fn real<R: Real>(values: &[f64]) -> Vec<R> {
    values.iter().map(|&x| R::from_f64(x)).collect()
}

fn wide<I: Input>(values: &[I]) -> Vec<f64> {
    values.iter().map(|&x| x.load().to_f64()).collect()
}

#[derive(Clone, Copy)]
struct Sizes {
    hidden: usize,
    inner: usize,
    state: usize,
    rank: usize,
    width: usize,
}

/// The parameters of a block, the projections in `I`.
struct Weights<I: Input> {
    sizes: Sizes,
    projections: BTreeMap<&'static str, Vec<I>>,
    others: BTreeMap<&'static str, Vec<I::Accum>>,
}

const PROJECTIONS: [&str; 4] = ["in_proj.weight", "x_proj.weight", "dt_proj.weight", "out_proj.weight"];
const OTHERS: [&str; 7] = ["in_proj.bias", "conv1d.weight", "conv1d.bias", "dt_proj.bias", "A_log", "D", "out_proj.bias"];

impl<I: Input> Weights<I> {
    fn new(t: &Tensors) -> Self {
        let (dims, w) = (&t["A_log"].0, &t["conv1d.weight"].0);
        let sizes =
            Sizes { hidden: t["out_proj.weight"].0[0], inner: dims[0], state: dims[1], rank: t["dt_proj.weight"].0[1], width: w[2] };
        let projections = PROJECTIONS.iter().map(|&name| (name, stored(&t[name].1))).collect();
        let others = OTHERS.iter().filter_map(|&name| Some((name, real(&t.get(name)?.1)))).collect();
        Weights { sizes, projections, others }
    }

    /// Zeros for the gradient of each parameter, and of the initial state where there is one.
    fn zeros(&self, h0: Option<&Vec<I::Accum>>) -> BTreeMap<&'static str, Vec<I::Accum>> {
        let zeros = |count: usize| vec![I::Accum::default(); count];
        let projections = self.projections.iter().map(|(&name, v)| (name, zeros(v.len())));
        let others = self.others.iter().map(|(&name, v)| (name, zeros(v.len())));
        projections.chain(others).chain(h0.map(|h0| ("h0", zeros(h0.len())))).collect()
    }

    fn params(&self) -> MambaParams<'_, I> {
        let Sizes { hidden, inner, state, rank, width } = self.sizes;
        let projection = |name, dims| View::new(&self.projections[name], dims);
        let vector = |name| self.others.get(name).map(|v| View::new(v, [v.len()]));
        MambaParams {
            in_proj: projection("in_proj.weight", [2 * inner, hidden]),
            in_proj_bias: vector("in_proj.bias"),
            conv_weight: View::new(&self.others["conv1d.weight"], [inner, width]),
            conv_bias: vector("conv1d.bias"),
            x_proj: projection("x_proj.weight", [rank + 2 * state, inner]),
            dt_proj: projection("dt_proj.weight", [inner, rank]),
            dt_bias: vector("dt_proj.bias").unwrap(),
            A_log: View::new(&self.others["A_log"], [inner, state]),
            A: None,
            D: vector("D").unwrap(),
            out_proj: projection("out_proj.weight", [hidden, inner]),
            out_proj_bias: vector("out_proj.bias"),
        }
    }
}

/// Everything a call gives, in f64, under the names of the reference cases.
type Results = BTreeMap<String, Vec<f64>>;

fn forward<I: Input, E: HostEngine>(engine: &E, t: &Tensors, sequences: Sequences<'_>, saved: Option<&mut MambaSaved<I>>) -> Results {
    let weights = Weights::<I>::new(t);
    let Sizes { inner, state, width, .. } = weights.sizes;
    let dims: [usize; 3] = t["x"].0.clone().try_into().unwrap();
    let x = stored::<I>(&t["x"].1);
    let states = sequences.check(dims[0], dims[1]).unwrap();
    let (w_dims, h_dims) = ([states, width - 1, inner], [states, inner, state]);
    let (window, h0) = (t.get("window").map(|w| stored::<I>(&w.1)), t.get("h0").map(|h| real::<I::Accum>(&h.1)));
    let (mut out, mut final_window) = (vec![I::default(); x.len()], vec![I::default(); w_dims.iter().product()]);
    let mut last_state = vec![I::Accum::default(); h_dims.iter().product()];
    let inputs = MambaInputs {
        params: weights.params(),
        x: View::new(&x, dims),
        initial_window: window.as_ref().map(|w| View::new(w, w_dims)),
        initial_state: h0.as_ref().map(|h| View::new(h, h_dims)),
        sequences,
        options: MAMBA_OPTIONS,
    };
    let block = MambaBlock { engine, par: Par::default() };
    let problem = inputs.check().unwrap();
    let args = MambaFwd {
        inputs,
        out: ViewMut::new(&mut out, dims),
        final_window: Some(ViewMut::new(&mut final_window, w_dims)),
        last_state: Some(ViewMut::new(&mut last_state, h_dims)),
    };
    let mut buffer = Buffer::new();
    match saved {
        Some(saved) => block.forward_saving(args, saved, &mut buffer.workspace(block.saving_workspace::<I>(&problem))),
        None => block.forward(args, &mut buffer.workspace(block.forward_workspace::<I>(&problem))),
    }
    .unwrap();
    [("out", wide(&out)), ("final_window", wide(&final_window)), ("last_state", wide(&last_state))].map(|(n, v)| (n.to_string(), v)).into()
}

fn backward<I: Input, E: HostEngine>(engine: &E, t: &Tensors, sequences: Sequences<'_>) -> Results {
    let mut saved = MambaSaved::<I>::new();
    let mut results = forward(engine, t, sequences, Some(&mut saved));
    let weights = Weights::<I>::new(t);
    let Sizes { hidden, inner, state, rank, width } = weights.sizes;
    let dims: [usize; 3] = t["x"].0.clone().try_into().unwrap();
    let x = stored::<I>(&t["x"].1);
    let states = sequences.check(dims[0], dims[1]).unwrap();
    let (w_dims, h_dims) = ([states, width - 1, inner], [states, inner, state]);
    let (window, h0) = (t.get("window").map(|w| stored::<I>(&w.1)), t.get("h0").map(|h| real::<I::Accum>(&h.1)));
    let (grad_out, grad_last) = (stored::<I>(&t["grad_out"].1), t.get("grad_last_state").map(|g| real::<I::Accum>(&g.1)));
    let grad_window_out = t.get("grad_final_window").map(|g| stored::<I>(&g.1));
    let mut grad_x = vec![I::default(); x.len()];
    let mut grad_window = window.as_ref().map(|w| vec![I::default(); w.len()]);
    let mut grads = weights.zeros(h0.as_ref());
    let inputs = MambaInputs {
        params: weights.params(),
        x: View::new(&x, dims),
        initial_window: window.as_ref().map(|w| View::new(w, w_dims)),
        initial_state: h0.as_ref().map(|h| View::new(h, h_dims)),
        sequences,
        options: MAMBA_OPTIONS,
    };
    let problem = inputs.check().unwrap();
    let block = MambaBlock { engine, par: Par::default() };
    let mut places: BTreeMap<&str, &mut Vec<I::Accum>> = grads.iter_mut().map(|(&n, v)| (n, v)).collect();
    let mut take = |name: &str| places.remove(name).map(|v| (v.len(), v));
    let mut matrix = |name: &str, dims: [usize; 2]| take(name).map(|(_, v)| ViewMut::new(v, dims));
    let matrices = [
        matrix("in_proj.weight", [2 * inner, hidden]),
        matrix("conv1d.weight", [inner, width]),
        matrix("x_proj.weight", [rank + 2 * state, inner]),
        matrix("dt_proj.weight", [inner, rank]),
        matrix("A_log", [inner, state]),
        matrix("out_proj.weight", [hidden, inner]),
    ];
    let [in_proj, conv_weight, x_proj, dt_proj, a_log, out_proj] = matrices;
    let mut vector = |name: &str| take(name).map(|(n, v)| ViewMut::new(v, [n]));
    let args = MambaBwd {
        inputs,
        saved: &saved,
        grad_out: View::new(&grad_out, dims),
        grad_final_window: grad_window_out.as_ref().map(|g| View::new(g, w_dims)),
        grad_last_state: grad_last.as_ref().map(|g| View::new(g, h_dims)),
        grads: MambaGrads {
            x: Some(ViewMut::new(&mut grad_x, dims)),
            in_proj,
            in_proj_bias: vector("in_proj.bias"),
            conv_weight,
            conv_bias: vector("conv1d.bias"),
            x_proj,
            dt_proj,
            dt_bias: vector("dt_proj.bias"),
            A_log: a_log,
            D: vector("D"),
            out_proj,
            out_proj_bias: vector("out_proj.bias"),
            initial_window: grad_window.as_mut().map(|w| ViewMut::new(w, w_dims)),
            initial_state: take("h0").map(|(_, v)| ViewMut::new(v, h_dims)),
        },
    };
    block.backward(args, &mut Buffer::new().workspace(block.backward_workspace::<I>(&problem))).unwrap();
    results.extend(grads.iter().map(|(n, v)| (format!("grad.{n}"), wide(v))));
    results.insert("grad.x".into(), wide(&grad_x));
    results.extend(grad_window.map(|w| ("grad.window".to_string(), wide(&w))));
    results
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |most: f64, x| most.max(x.abs()))
}

/// The largest difference over the largest reference value.
fn error(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    assert!(got.iter().all(|x| x.is_finite()));
    let difference = got.iter().zip(want).fold(0.0, |most: f64, (a, b)| most.max((a - b).abs()));
    if difference == 0.0 { 0.0 } else { difference / largest(want) }
}

fn golden_case<I: Input, E: HostEngine>(engine: &E, case: &str, bound: f64) {
    let t = read(case);
    let results = backward::<I, E>(engine, &t, Sequences::Rows);
    let wanted: Vec<&String> =
        t.keys().filter(|n| n.starts_with("grad.") || ["out", "final_window", "last_state"].contains(&n.as_str())).collect();
    assert!(wanted.len() >= 13);
    for name in wanted {
        let e = error(&results[name], &t[name].1);
        assert!(e <= bound, "{case} {} {name}: {e:e} above {bound:e}", I::DTYPE.name());
    }
    let alone = forward::<I, E>(engine, &t, Sequences::Rows, None);
    assert!(alone.iter().all(|(name, values)| &results[name] == values), "keeping activations changes the result");
}

fn golden<E: HostEngine>(engine: &E) {
    for case in ["mamba_block.safetensors", "mamba_block-states.safetensors"] {
        golden_case::<f64, E>(engine, case, 1e-12);
        golden_case::<f32, E>(engine, case, 5e-6);
        golden_case::<f16, E>(engine, case, 6e-3);
        golden_case::<bf16, E>(engine, case, 4e-2);
    }
}

#[test]
fn golden_cases() {
    on_engines!(golden);
}

/// SplitMix64, as numbers around 0.
fn numbers(count: usize, scale: f64, seed: &mut u64) -> Vec<f64> {
    let mut next = || {
        *seed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = *seed;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (x ^ (x >> 31)) as f64 / u64::MAX as f64 * 2.0 - 1.0
    };
    (0..count).map(|_| scale * next()).collect()
}

/// A random case with every optional part; all sizes differ.
fn random_case(batch: usize, seqlen: usize, states: usize, seed: u64) -> Tensors {
    let (hidden, inner, state, rank, width) = (3, 5, 4, 2, 4);
    let mut seed = seed;
    let shapes: [(&str, Vec<usize>, f64); 17] = [
        ("x", vec![batch, seqlen, hidden], 1.0),
        ("in_proj.weight", vec![2 * inner, hidden], 1.0),
        ("in_proj.bias", vec![2 * inner], 0.5),
        ("conv1d.weight", vec![inner, 1, width], 0.7),
        ("conv1d.bias", vec![inner], 0.3),
        ("x_proj.weight", vec![rank + 2 * state, inner], 0.8),
        ("dt_proj.weight", vec![inner, rank], 1.0),
        ("dt_proj.bias", vec![inner], 1.0),
        ("A_log", vec![inner, state], 1.0),
        ("D", vec![inner], 1.0),
        ("out_proj.weight", vec![hidden, inner], 0.8),
        ("out_proj.bias", vec![hidden], 0.5),
        ("window", vec![states, width - 1, inner], 1.0),
        ("h0", vec![states, inner, state], 1.0),
        ("grad_out", vec![batch, seqlen, hidden], 1.0),
        ("grad_final_window", vec![states, width - 1, inner], 1.0),
        ("grad_last_state", vec![states, inner, state], 1.0),
    ];
    shapes
        .into_iter()
        .map(|(name, dims, scale)| (name.to_string(), (dims.clone(), numbers(dims.iter().product(), scale, &mut seed))))
        .collect()
}

fn differences<E: HostEngine>(engine: &E) {
    // Lengths below and above the window.
    for seqlen in [1, 2, 7] {
        let mut t = random_case(2, seqlen, 2, seqlen as u64);
        let results = backward::<f64, E>(engine, &t, Sequences::Rows);
        let loss = |t: &Tensors| -> f64 {
            let r = forward::<f64, E>(engine, t, Sequences::Rows, None);
            let dot = |a: &str, b: &str| r[a].iter().zip(&t[b].1).map(|(x, y)| x * y).sum::<f64>();
            dot("out", "grad_out") + dot("final_window", "grad_final_window") + dot("last_state", "grad_last_state")
        };
        let names: Vec<String> = results.keys().filter_map(|n| n.strip_prefix("grad.").map(String::from)).collect();
        assert_eq!(names.len(), 14);
        for name in names {
            let grad = &results[&format!("grad.{name}")];
            let scale = largest(grad).max(1e-3);
            for (i, &exact) in grad.iter().enumerate() {
                let step = 1e-5;
                let old = t[&name].1[i];
                let mut at = |x: f64| {
                    t.get_mut(&name).unwrap().1[i] = x;
                    loss(&t)
                };
                let slope = (at(old + step) - at(old - step)) / (2.0 * step);
                at(old);
                assert!((slope - exact).abs() < 1e-8 * scale.max(1.0), "{name}[{i}], L = {seqlen}: {slope} and {exact}");
            }
        }
    }
}

#[test]
fn central_differences() {
    on_engines!(differences);
}

/// Part of a tensor along its second axis.
fn cut(t: &(Vec<usize>, Vec<f64>), from: usize, to: usize) -> (Vec<usize>, Vec<f64>) {
    let (batch, seqlen, dim) = (t.0[0], t.0[1], t.0[2]);
    let rows = (0..batch).flat_map(|b| (from..to).map(move |l| (b * seqlen + l) * dim));
    (vec![batch, to - from, dim], rows.flat_map(|at| t.1[at..at + dim].to_vec()).collect())
}

/// Steps from position `from`, with windows and states in slots of another order and one slot that no row has.
fn steps<I: Input, E: HostEngine>(engine: &E, t: &Tensors, from: usize, prefill: &Results) -> (Vec<Vec<f64>>, Results) {
    let weights = Weights::<I>::new(t);
    let Sizes { inner, state, width, hidden, .. } = weights.sizes;
    let (batch, seqlen) = (t["x"].0[0], t["x"].0[1]);
    let (w_len, h_len) = ((width - 1) * inner, inner * state);
    let slot = |b: usize| batch - b;
    let spread = |values: &[f64], each: usize| -> Vec<f64> {
        let mut all = vec![7.0; (batch + 1) * each];
        (0..batch).for_each(|b| all[slot(b) * each..][..each].copy_from_slice(&values[b * each..][..each]));
        all
    };
    let mut window = stored::<I>(&spread(&prefill["final_window"], w_len));
    let mut h = real::<I::Accum>(&spread(&prefill["last_state"], h_len));
    let slots: Vec<i32> = (0..batch).map(|b| slot(b) as i32).collect();
    let block = MambaBlock { engine, par: Par::default() };
    let mut buffer = Buffer::new();
    let mut outs = Vec::new();
    for l in from..seqlen {
        let x = stored::<I>(&cut(&t["x"], l, l + 1).1);
        let mut out = vec![I::default(); batch * hidden];
        let args = MambaStep {
            params: weights.params(),
            x: View::new(&x, [batch, hidden]),
            window: ViewMut::new(&mut window, [batch + 1, width - 1, inner]),
            state: ViewMut::new(&mut h, [batch + 1, inner, state]),
            slots: Some(View::new(&slots, [batch])),
            out: ViewMut::new(&mut out, [batch, hidden]),
            options: MAMBA_OPTIONS,
        };
        let problem = args.check().unwrap();
        let bytes = block.step_workspace::<I>(&problem);
        block.step(args, &mut buffer.workspace(bytes)).unwrap();
        outs.push(wide(&out));
    }
    assert!(window[..w_len].iter().all(|&x| x.load().to_f64() == 7.0) && h[..h_len].iter().all(|&x| x.to_f64() == 7.0), "a slot of no row");
    let gather = |all: Vec<f64>, each: usize| (0..batch).flat_map(|b| all[slot(b) * each..][..each].to_vec()).collect();
    let ends = [("final_window".to_string(), gather(wide(&window), w_len)), ("last_state".to_string(), gather(wide(&h), h_len))];
    (outs, ends.into())
}

fn prefill_then_steps<I: Input, E: HostEngine>(engine: &E, bound: f64) {
    let seqlen = 9;
    let t = random_case(3, seqlen, 3, 5);
    let whole = forward::<I, E>(engine, &t, Sequences::Rows, None);
    let hidden = t["x"].0[2];
    let reference = (vec![3, seqlen, hidden], whole["out"].clone());
    for split in 0..=seqlen {
        let mut first = t.clone();
        first.insert("x".into(), cut(&t["x"], 0, split));
        let prefill = forward::<I, E>(engine, &first, Sequences::Rows, None);
        assert!(error(&prefill["out"], &cut(&reference, 0, split).1) <= bound, "prefill of {split}");
        let (outs, ends) = steps::<I, E>(engine, &t, split, &prefill);
        for (i, out) in outs.iter().enumerate() {
            let e = error(out, &cut(&reference, split + i, split + i + 1).1);
            assert!(e <= bound, "{} split {split}, step {i}: {e:e}", I::DTYPE.name());
        }
        for (name, end) in &ends {
            let e = error(end, &whole[name]);
            assert!(e <= bound, "{} split {split}, {name}: {e:e}", I::DTYPE.name());
        }
    }
}

fn all_splits<E: HostEngine>(engine: &E) {
    prefill_then_steps::<f64, E>(engine, 1e-12);
    prefill_then_steps::<f32, E>(engine, 5e-6);
    prefill_then_steps::<f16, E>(engine, 6e-3);
    prefill_then_steps::<bf16, E>(engine, 4e-2);
}

#[test]
fn prefill_of_any_length_then_steps() {
    on_engines!(all_splits);
}

fn packed<E: HostEngine>(engine: &E) {
    let offsets: [i64; 6] = [0, 3, 3, 4, 11, 13];
    let (seqlen, states) = (13, 5);
    let t = random_case(1, seqlen, states, 8);
    let together = backward::<f64, E>(engine, &t, Sequences::CuSeqlens(View::new(&offsets, [6])));
    let mut shared: Results = BTreeMap::new();
    for k in 0..states {
        let mut one = t.clone();
        let (from, to) = (offsets[k] as usize, offsets[k + 1] as usize);
        for name in ["x", "grad_out"] {
            one.insert(name.into(), cut(&t[name], from, to));
        }
        let per_state = ["window", "h0", "grad_final_window", "grad_last_state"];
        for name in per_state {
            let (dims, values) = &t[name];
            let each = values.len() / states;
            one.insert(name.into(), (vec![1, dims[1], dims[2]], values[k * each..][..each].to_vec()));
        }
        let apart = backward::<f64, E>(engine, &one, Sequences::Rows);
        let hidden = t["x"].0[2];
        for (name, values) in &apart {
            match name.as_str() {
                "out" | "grad.x" => assert!(error(values, &together[name][from * hidden..to * hidden]) <= 1e-14, "{name} of sequence {k}"),
                "final_window" | "last_state" | "grad.window" | "grad.h0" => {
                    assert!(error(values, &together[name][k * values.len()..][..values.len()]) <= 1e-14, "{name} of sequence {k}");
                }
                _ => {
                    let total = shared.entry(name.clone()).or_insert_with(|| vec![0.0; values.len()]);
                    total.iter_mut().zip(values).for_each(|(t, v)| *t += v);
                }
            }
        }
    }
    assert_eq!(shared.len(), 11);
    for (name, values) in shared {
        assert!(error(&values, &together[&name]) <= 1e-12, "{name}");
    }
}

#[test]
fn packed_is_run_apart() {
    on_engines!(packed);
}

fn rows_apart<E: HostEngine>(engine: &E) {
    let t = random_case(3, 6, 3, 21);
    let together = forward::<f32, E>(engine, &t, Sequences::Rows, None);
    for b in 0..3 {
        let mut one = t.clone();
        for name in ["x", "window", "h0"] {
            let (dims, values) = &t[name];
            let each = values.len() / 3;
            one.insert(name.into(), (vec![1, dims[1], dims[2]], values[b * each..][..each].to_vec()));
        }
        for (name, values) in forward::<f32, E>(engine, &one, Sequences::Rows, None) {
            assert!(error(&values, &together[&name][b * values.len()..][..values.len()]) <= 1e-6, "{name} of row {b}");
        }
    }
}

#[test]
fn rows_are_independent() {
    on_engines!(rows_apart);
}

fn empty<E: HostEngine>(engine: &E) {
    for (batch, seqlen) in [(2, 0), (0, 3)] {
        let t = random_case(batch, seqlen, batch, 3);
        let results = backward::<f64, E>(engine, &t, Sequences::Rows);
        assert!(results["out"].is_empty());
        assert_eq!((&results["last_state"], &results["final_window"]), (&t["h0"].1, &t["window"].1));
        assert_eq!((&results["grad.h0"], &results["grad.window"]), (&t["grad_last_state"].1, &t["grad_final_window"].1));
        assert!(results["grad.in_proj.weight"].iter().chain(&results["grad.A_log"]).all(|&g| g == 0.0));
    }
}

#[test]
fn nothing_passes_states_through() {
    on_engines!(empty);
}

/// Strides that no two axes of merge, in and out.
fn strided<E: HostEngine>(engine: &E) {
    let t = random_case(2, 5, 2, 4);
    let weights = Weights::<f64>::new(&t);
    let plain = forward::<f64, E>(engine, &t, Sequences::Rows, None);
    let (window, h0) = (t["window"].1.clone(), t["h0"].1.clone());
    let (batch, seqlen, hidden) = (2, 5, 3);
    // (L, M, B) in memory.
    let strides = [1, (hidden * batch) as isize, batch as isize];
    let place = |i: usize| (i / (seqlen * hidden)) + (i / hidden % seqlen) * hidden * batch + i % hidden * batch;
    let mut x = vec![0.0; batch * seqlen * hidden];
    (0..x.len()).for_each(|i| x[place(i)] = t["x"].1[i]);
    let mut out = x.clone();
    let inputs = MambaInputs {
        initial_window: Some(View::new(&window, [2, 3, 5])),
        initial_state: Some(View::new(&h0, [2, 5, 4])),
        ..MambaInputs::new(weights.params(), View::strided(&x, 0, [batch, seqlen, hidden], strides))
    };
    let problem = inputs.check().unwrap();
    let args =
        MambaFwd { inputs, out: ViewMut::strided(&mut out, 0, [batch, seqlen, hidden], strides), final_window: None, last_state: None };
    let block = MambaBlock { engine, par: Par::Seq };
    block.forward(args, &mut Buffer::new().workspace(block.forward_workspace::<f64>(&problem))).unwrap();
    let back: Vec<f64> = (0..out.len()).map(|i| out[place(i)]).collect();
    assert_eq!(back, plain["out"]);
}

#[test]
fn any_strides() {
    on_engines!(strided);
}

/// The operand that the check of changed inputs names.
fn named<'a>(mut inputs: MambaInputs<'a, f64>, change: impl FnOnce(&mut MambaInputs<'a, f64>)) -> &'static str {
    change(&mut inputs);
    match inputs.check() {
        Err(Error::Shape { operand, .. } | Error::Value { operand, .. } | Error::Layout { operand, .. }) => operand,
        other => panic!("{other:?}"),
    }
}

#[test]
fn wrong_operands_are_named() {
    let t = random_case(2, 3, 2, 1);
    let weights = Weights::<f64>::new(&t);
    let x = t["x"].1.clone();
    let good = MambaInputs::new(weights.params(), View::new(&x, [2, 3, 3]));
    let p = weights.params();
    assert_eq!(named(good, |i| i.params.in_proj = p.x_proj), "in_proj");
    assert_eq!(named(good, |i| i.params.D = p.out_proj_bias.unwrap()), "D");
    assert_eq!(named(good, |i| i.params.A = Some(p.out_proj)), "A");
    assert_eq!(named(good, |i| i.params.x_proj = p.in_proj), "x_proj");
    assert_eq!(named(good, |i| i.params.conv_weight = p.conv_weight.slice(1, 0..0)), "conv_weight");
    assert_eq!(named(good, |i| i.x = i.x.slice(2, 0..2)), "x");
    assert_eq!(named(good, |i| i.initial_window = Some(i.x)), "initial_window");
    assert_eq!(named(good, |i| i.initial_state = Some(i.x)), "initial_state");
    assert_eq!(named(good, |i| i.x = View::new(&x[1..], [2, 3, 3])), "x");
}

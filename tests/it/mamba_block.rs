//! The Mamba block against central differences and its own identities, on every engine. The golden test has the reference cases.

use std::collections::BTreeMap;

use half::{bf16, f16};
use selective_scan::Error;
use selective_scan::arch::Isa;
use selective_scan::blelloch::Blelloch;
use selective_scan::block::HostEngine;
use selective_scan::block::mamba::{MambaBlock, MambaBwd, MambaFwd, MambaGrads, MambaInputs, MambaMemory, MambaSaved};
use selective_scan::buffer::{Buffer, Workspace};
use selective_scan::cpu::Cpu;
use selective_scan::element::Input;
use selective_scan::naive::Naive;
use selective_scan::view::{View, ViewMut};

use crate::harness::array::Array;
use crate::harness::mamba_block::typed::{Operands, Tensors, Weights, steps};
use crate::harness::operation::Named;
use crate::harness::tensor::Layout;
use crate::harness::transform::{Packing, Transform};
use crate::tensors::error;

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

/// Everything a call gives, in f64, under the names of the reference cases.
type Results = BTreeMap<String, Vec<f64>>;

fn by_name(results: Result<Vec<Named>, Error>) -> Results {
    results.unwrap().into_iter().map(|r| (r.name, r.array.data)).collect()
}

fn forward<I: Input, E: HostEngine>(engine: &E, t: &Tensors, packing: &Packing) -> Results {
    by_name(Operands::<I>::new(t, packing, Layout::Contiguous).forward(engine))
}

fn backward<I: Input, E: HostEngine>(engine: &E, t: &Tensors, packing: &Packing) -> Results {
    by_name(Operands::<I>::new(t, packing, Layout::Contiguous).run(engine))
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |most: f64, x| most.max(x.abs()))
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
        .map(|(name, dims, scale)| {
            let data = numbers(dims.iter().product(), scale, &mut seed);
            (name.to_string(), Array { dims, data, complex: false })
        })
        .collect()
}

fn differences<E: HostEngine>(engine: &E) {
    // Lengths below and above the window.
    for seqlen in [1, 2, 7] {
        let mut t = random_case(2, seqlen, 2, seqlen as u64);
        let results = backward::<f64, E>(engine, &t, &Packing::Rows);
        let loss = |t: &Tensors| -> f64 {
            let r = forward::<f64, E>(engine, t, &Packing::Rows);
            let dot = |a: &str, b: &str| r[a].iter().zip(&t[b].data).map(|(x, y)| x * y).sum::<f64>();
            dot("out", "grad_out") + dot("final_window", "grad_final_window") + dot("last_state", "grad_last_state")
        };
        let names: Vec<String> = results.keys().filter_map(|n| n.strip_prefix("grad.").map(String::from)).collect();
        assert_eq!(names.len(), 14);
        for name in names {
            let grad = &results[&format!("grad.{name}")];
            let scale = largest(grad).max(1e-3);
            for (i, &exact) in grad.iter().enumerate() {
                let step = 1e-5;
                let old = t[&name].data[i];
                let mut at = |x: f64| {
                    t.get_mut(&name).unwrap().data[i] = x;
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
fn cut(t: &Array, from: usize, to: usize) -> Array {
    Transform::slice(t.dims[0], from, to).positions(t)
}

/// The given entries of the first axis of some tensors.
fn entries(t: &Tensors, names: &[&str], which: usize) -> Tensors {
    let mut one = t.clone();
    one.extend(names.iter().map(|&name| (name.to_string(), t[name].take(&[which]))));
    one
}

fn prefill_then_steps<I: Input, E: HostEngine>(engine: &E, bound: f64) {
    let seqlen = 9;
    let t = random_case(3, seqlen, 3, 5);
    let whole = forward::<I, E>(engine, &t, &Packing::Rows);
    let reference = Array { data: whole["out"].clone(), ..t["x"].clone() };
    for split in 0..=seqlen {
        let mut first = t.clone();
        first.insert("x".into(), cut(&t["x"], 0, split));
        let prefill = forward::<I, E>(engine, &first, &Packing::Rows);
        assert!(error(&prefill["out"], &cut(&reference, 0, split).data) <= bound, "prefill of {split}");
        let mut second = t.clone();
        second.insert("x".into(), cut(&t["x"], split, seqlen));
        for (start, end) in [("window", "final_window"), ("h0", "last_state")] {
            second.get_mut(start).unwrap().data.clone_from(&prefill[end]);
        }
        for (name, got) in by_name(steps::<I, E>(engine, &second)) {
            let want = if name == "out" { &cut(&reference, split, seqlen).data } else { &whole[&name] };
            let e = error(&got, want);
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
    let offsets = vec![0, 3, 3, 4, 11, 13];
    let (seqlen, states) = (13, 5);
    let t = random_case(1, seqlen, states, 8);
    let together = backward::<f64, E>(engine, &t, &Packing::CuSeqlens(offsets.clone()));
    let mut shared: Results = BTreeMap::new();
    for k in 0..states {
        let mut one = entries(&t, &["window", "h0", "grad_final_window", "grad_last_state"], k);
        let (from, to) = (offsets[k] as usize, offsets[k + 1] as usize);
        for name in ["x", "grad_out"] {
            one.insert(name.into(), cut(&t[name], from, to));
        }
        let apart = backward::<f64, E>(engine, &one, &Packing::Rows);
        let hidden = t["x"].dims[2];
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
    let together = forward::<f32, E>(engine, &t, &Packing::Rows);
    for b in 0..3 {
        let one = entries(&t, &["x", "window", "h0", "grad_out"], b);
        for (name, values) in forward::<f32, E>(engine, &one, &Packing::Rows) {
            assert!(error(&values, &together[&name][b * values.len()..][..values.len()]) <= 1e-6, "{name} of row {b}");
        }
    }
}

#[test]
fn rows_are_independent() {
    on_engines!(rows_apart);
}

fn causal<E: HostEngine>(engine: &E) {
    let (seqlen, from) = (12, 7);
    let t = random_case(1, seqlen, 1, 13);
    let mut later = t.clone();
    let width = t["x"].dims[2];
    later.get_mut("x").unwrap().data[from * width..].iter_mut().for_each(|x| *x = 3.0 - *x);
    let (one, other) = (forward::<f32, E>(engine, &t, &Packing::Rows), forward::<f32, E>(engine, &later, &Packing::Rows));
    assert_eq!(one["out"][..from * width], other["out"][..from * width]);
    assert_ne!(one["out"][from * width..], other["out"][from * width..]);
}

#[test]
fn what_comes_later_changes_no_bit_before() {
    on_engines!(causal);
}

#[cfg(feature = "rayon")]
fn threads<E: HostEngine + Sync>(engine: &E) {
    let t = random_case(3, 70, 3, 17);
    let on = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(|| backward::<f32, E>(engine, &t, &Packing::Rows));
    let one = on(1);
    for n in [2, 3, 7] {
        assert!(on(n) == one, "{n} threads give other bits");
    }
}

#[cfg(feature = "rayon")]
#[test]
fn any_number_of_threads_gives_the_same_bits() {
    on_engines!(threads);
}

fn empty<E: HostEngine>(engine: &E) {
    for (batch, seqlen) in [(2, 0), (0, 3)] {
        let t = random_case(batch, seqlen, batch, 3);
        let results = backward::<f64, E>(engine, &t, &Packing::Rows);
        assert!(results["out"].is_empty());
        assert_eq!((&results["last_state"], &results["final_window"]), (&t["h0"].data, &t["window"].data));
        assert_eq!((&results["grad.h0"], &results["grad.window"]), (&t["grad_last_state"].data, &t["grad_final_window"].data));
        assert!(results["grad.in_proj.weight"].iter().chain(&results["grad.A_log"]).all(|&g| g == 0.0));
    }
}

#[test]
fn nothing_passes_states_through() {
    on_engines!(empty);
}

fn strided<E: HostEngine>(engine: &E) {
    let t = random_case(2, 5, 2, 4);
    let plain = backward::<f64, E>(engine, &t, &Packing::Rows);
    let alone = forward::<f64, E>(engine, &t, &Packing::Rows);
    assert!(alone.iter().all(|(name, values)| &plain[name] == values), "keeping activations changes the result");
    for layout in Layout::STRIDED {
        for (name, values) in by_name(Operands::<f64>::new(&t, &Packing::Rows, layout).run(engine)) {
            assert!(error(&values, &plain[&name]) <= 1e-13, "{name} in the {}", layout.name());
        }
    }
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
    let weights = Weights::<f64>::new(&t, Layout::Contiguous);
    let x = t["x"].data.clone();
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

/// ∂ℓ/∂x of Σ out, by what a forward call kept.
fn backward_of(inputs: MambaInputs<'_, f64>, saved: &MambaSaved<'_, f64>) -> Result<Vec<f64>, Error> {
    let (block, p, dims) = (MambaBlock { engine: &Naive }, inputs.check()?, inputs.x.dims());
    let ones = vec![1.0; dims.iter().product()];
    let mut grad = vec![f64::NAN; ones.len()];
    let args = MambaBwd {
        inputs,
        saved,
        grad_out: View::new(&ones, dims),
        grad_final_window: None,
        grad_last_state: None,
        grads: MambaGrads { x: Some(ViewMut::new(&mut grad, dims)), ..Default::default() },
    };
    block.backward(args, &mut Buffer::new().workspace(block.backward_workspace::<f64>(&p))).map(|()| grad)
}

fn forward_of(inputs: MambaInputs<'_, f64>, saved: &mut MambaSaved<'_, f64>) -> Result<(), Error> {
    let (block, p, dims) = (MambaBlock { engine: &Naive }, inputs.check()?, inputs.x.dims());
    let mut out = vec![0.0; dims.iter().product()];
    let args = MambaFwd { inputs, out: ViewMut::new(&mut out, dims), final_window: None, last_state: None };
    block.forward_saving(args, saved, &mut Buffer::new().workspace(block.saving_workspace::<f64>(&p)))
}

fn operand(result: Result<Vec<f64>, Error>) -> &'static str {
    match result {
        Err(Error::Value { operand, .. } | Error::Shape { operand, .. }) => operand,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_was_kept_serves_its_own_backward_only() {
    let t = random_case(2, 5, 2, 6);
    let weights = Weights::<f64>::new(&t, Layout::Contiguous);
    let inputs = |seqlen| MambaInputs::new(weights.params(), View::new(&t["x"].data, [2, seqlen, 3]));
    let [long, short] = [5, 3].map(|seqlen| inputs(seqlen).check().unwrap());
    let mut memory = MambaMemory::new();
    assert_eq!(operand(backward_of(inputs(5), &memory.saved(&long))), "saved");
    forward_of(inputs(5), &mut memory.saved(&long)).unwrap();
    let want = backward_of(inputs(5), &memory.saved(&long)).unwrap();
    assert_eq!(operand(backward_of(inputs(3), &memory.saved(&long))), "saved");
    // Twice from one call, and not after another had the memory.
    assert_eq!(backward_of(inputs(5), &memory.saved(&long)).unwrap(), want);
    forward_of(inputs(3), &mut memory.saved(&short)).unwrap();
    assert_eq!(operand(backward_of(inputs(5), &memory.saved(&long))), "saved");
    // Handing the memory to another is enough, since it may have been written or moved.
    forward_of(inputs(5), &mut memory.saved(&long)).unwrap();
    memory.saved(&short).x.fill(0.0);
    assert_eq!(operand(backward_of(inputs(5), &memory.saved(&long))), "saved");
    // Room for another problem is refused before anything is written.
    assert_eq!(operand(forward_of(inputs(5), &mut memory.saved(&short)).map(|()| Vec::new())), "saved.xz");
}

#[test]
fn what_is_kept_is_carved_from_any_workspace() {
    let t = random_case(2, 5, 2, 6);
    let weights = Weights::<f64>::new(&t, Layout::Contiguous);
    let inputs = MambaInputs::new(weights.params(), View::new(&t["x"].data, [2, 5, 3]));
    let p = inputs.check().unwrap();
    let mut memory = MambaMemory::new();
    let mut saved = memory.saved(&p);
    forward_of(inputs, &mut saved).unwrap();
    let want = backward_of(inputs, &saved).unwrap();
    let (mut buffer, mut kept) = (Buffer::new(), None);
    let bytes = p.saved_bytes::<f64>();
    let mut small = [0; 64];
    let refused = MambaSaved::<f64>::carve(&p, &mut Workspace::new(&mut small), &mut kept);
    assert!(matches!(refused, Err(Error::Workspace { .. })));
    forward_of(inputs, &mut MambaSaved::carve(&p, &mut buffer.workspace(bytes), &mut kept).unwrap()).unwrap();
    assert_eq!(kept, Some(p));
    // Carved anew, the tensors are where they were.
    let again = MambaSaved::carve(&p, &mut buffer.workspace(bytes), &mut kept).unwrap();
    assert_eq!(backward_of(inputs, &again).unwrap(), want);
}

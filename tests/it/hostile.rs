//! What a caller gets wrong, on every engine: one error that names the operand, before anything is written.

use selective_scan::Error;
use selective_scan::arch::Isa;
use selective_scan::blelloch::Blelloch;
use selective_scan::block::HostEngine;
use selective_scan::buffer::{Buffer, Workspace};
use selective_scan::cpu::Cpu;
use selective_scan::naive::Naive;
use selective_scan::par::Par;
use selective_scan::selective::{
    Coefficient, CoefficientGrad, SelectiveBwd, SelectiveFwd, SelectiveGrads, SelectiveInputs, SelectiveOptions, SelectiveScan as _,
    SelectiveStep,
};
use selective_scan::sequences::Sequences;
use selective_scan::view::{View, ViewMut};

const NUMBERS: [f32; 4096] = [0.5; 4096];
/// B, L, D, N of the sound problem.
const SIZES: [usize; 4] = [2, 5, 6, 3];

type Inputs = SelectiveInputs<'static, f32, f32>;

/// Calls a generic function with each engine of this machine.
macro_rules! on_engines {
    ($function:ident) => {{
        $function(&Naive);
        $function(&Blelloch::new());
        for isa in Isa::available() {
            $function(&Cpu::new().with_isa(isa).unwrap());
        }
    }};
}

fn tensor<const R: usize>(dims: [usize; R]) -> View<'static, f32, R> {
    View::new(&NUMBERS, dims)
}

fn inputs() -> Inputs {
    let [batch, seqlen, dim, dstate] = SIZES;
    SelectiveInputs {
        u: tensor([batch, seqlen, dim]),
        delta: tensor([batch, seqlen, dim]),
        A: tensor([dim, dstate]),
        B: Coefficient::Varying(tensor([batch, seqlen, 2, dstate])),
        C: Coefficient::Constant(tensor([dim, dstate])),
        D: Some(tensor([dim])),
        z: Some(tensor([batch, seqlen, dim])),
        delta_bias: Some(tensor([dim])),
        initial_state: Some(tensor([batch, dim, dstate])),
        sequences: Sequences::Rows,
        options: SelectiveOptions::default(),
    }
}

fn operand(error: Error) -> &'static str {
    match error {
        Error::Shape { operand, .. } | Error::Layout { operand, .. } | Error::Value { operand, .. } => operand,
        Error::Workspace { .. } => "workspace",
        other => panic!("{other}"),
    }
}

/// Every way in which inputs are wrong, and the operand that is to blame.
fn wrong_inputs() -> Vec<(&'static str, Inputs)> {
    let [batch, seqlen, dim, dstate] = SIZES;
    let far = View::strided(&NUMBERS, 0, [batch, seqlen, dim], [isize::MAX, 1, isize::MIN]);
    let before = View::strided(&NUMBERS, 3, [dim, dstate], [-4, 1]);
    let mut cases: Vec<(&'static str, Inputs)> = Vec::new();
    let mut wrong = |name, change: &dyn Fn(&mut Inputs)| {
        let mut one = inputs();
        change(&mut one);
        cases.push((name, one));
    };
    wrong("delta", &|i| i.delta = tensor([batch, seqlen + 1, dim]));
    wrong("delta", &|i| i.delta = far);
    wrong("u", &|i| i.u = View::new(&NUMBERS[..batch * seqlen * dim - 1], [batch, seqlen, dim]));
    wrong("A", &|i| i.A = tensor([dim + 1, dstate]));
    wrong("A", &|i| i.A = before);
    wrong("A", &|i| i.A = tensor([dim, 0]));
    wrong("B", &|i| i.B = Coefficient::Varying(tensor([batch, seqlen, 4, dstate])));
    wrong("B", &|i| i.B = Coefficient::Varying(tensor([batch, seqlen, 0, dstate])));
    wrong("B", &|i| i.B = Coefficient::Constant(tensor([dim, dstate + 1])));
    wrong("C", &|i| i.C = Coefficient::Varying(tensor([batch, seqlen, 7, dstate])));
    wrong("D", &|i| i.D = Some(tensor([dim - 1])));
    wrong("z", &|i| i.z = Some(tensor([seqlen, batch, dim])));
    wrong("delta_bias", &|i| i.delta_bias = Some(tensor([0])));
    wrong("initial_state", &|i| i.initial_state = Some(tensor([batch + 1, dim, dstate])));
    wrong("seq_idx", &|i| i.sequences = Sequences::SeqIdx(View::new(&[0, 0, 1, -1, 0, 0, 0, 0, 0, 0], [2, 5])));
    wrong("seq_idx", &|i| i.sequences = Sequences::SeqIdx(View::new(&[0; 8], [2, 4])));
    wrong("cu_seqlens", &|i| i.sequences = Sequences::CuSeqlens(View::new(&[0, 5], [2])));
    cases
}

/// Offsets that are wrong for one row of five positions.
fn wrong_offsets() -> [&'static [i64]; 6] {
    [&[], &[0], &[0, 4], &[1, 5], &[0, 3, 2, 5], &[0, -1, 5]]
}

/// The names that forward and backward give for these inputs; outputs must stay as they are.
fn names<E: HostEngine>(engine: &E, inputs: Inputs, states: usize) -> [&'static str; 2] {
    let [batch, seqlen, dim] = inputs.u.dims();
    let dims = [batch, seqlen, dim];
    let mut buffer = Buffer::new();
    let mut ws = buffer.workspace(1 << 20);
    let (mut out, mut last) = (vec![7.0f32; batch * seqlen * dim], vec![7.0f32; states * dim * SIZES[3]]);
    let last_state = Some(ViewMut::new(&mut last, [states, dim, SIZES[3]]));
    let forward = engine.selective_scan_fwd(SelectiveFwd { inputs, out: ViewMut::new(&mut out, dims), last_state }, &mut ws);
    assert!(out.iter().chain(&last).all(|&x| x == 7.0), "written before the check");
    let grads = SelectiveGrads { u: Some(ViewMut::new(&mut out, dims)), ..Default::default() };
    let bwd = SelectiveBwd { inputs, grad_out: tensor(dims), grad_last_state: None, grads };
    let backward = engine.selective_scan_bwd(bwd, &mut ws);
    assert!(out.iter().all(|&x| x == 7.0), "written before the check");
    [operand(forward.unwrap_err()), operand(backward.unwrap_err())]
}

fn inputs_are_named<E: HostEngine>(engine: &E) {
    for (name, inputs) in wrong_inputs() {
        assert_eq!(names(engine, inputs, SIZES[0]), [name; 2]);
    }
    for offsets in wrong_offsets() {
        let [_, seqlen, dim, dstate] = SIZES;
        let dims = [1, seqlen, dim];
        let one = SelectiveInputs {
            u: tensor(dims),
            delta: tensor(dims),
            B: Coefficient::Constant(tensor([dim, dstate])),
            z: None,
            initial_state: None,
            sequences: Sequences::CuSeqlens(View::new(offsets, [offsets.len()])),
            ..inputs()
        };
        assert_eq!(names(engine, one, 1), ["cu_seqlens"; 2], "{offsets:?}");
    }
}

#[test]
fn wrong_inputs_are_named() {
    on_engines!(inputs_are_named);
}

fn outputs_are_named<E: HostEngine>(engine: &E) {
    let [batch, seqlen, dim, dstate] = SIZES;
    let (dims, states) = ([batch, seqlen, dim], [batch, dim, dstate]);
    let mut numbers = [[0.0f32; 64]; 5];
    let [numbers, for_a, for_b, for_z, for_state] = &mut numbers;
    let mut buffer = Buffer::new();
    let overlap = [seqlen as isize, 1, 1];
    let fwd = SelectiveFwd { inputs: inputs(), out: ViewMut::strided(numbers, 0, dims, overlap), last_state: None };
    assert_eq!(operand(engine.selective_scan_fwd(fwd, &mut buffer.workspace(1 << 20)).unwrap_err()), "out");
    let (mut out, mut last) = (vec![0.0f32; 60], vec![0.0f32; 36]);
    let last_state = Some(ViewMut::strided(&mut last, 0, states, [18, 3, 0]));
    let fwd = SelectiveFwd { inputs: inputs(), out: ViewMut::new(&mut out, dims), last_state };
    assert_eq!(operand(engine.selective_scan_fwd(fwd, &mut buffer.workspace(1 << 20)).unwrap_err()), "last_state");

    let bwd = |inputs, grads| SelectiveBwd { inputs, grad_out: tensor(dims), grad_last_state: None, grads };
    let mut name = |inputs, grads| operand(engine.selective_scan_bwd(bwd(inputs, grads), &mut buffer.workspace(1 << 20)).unwrap_err());
    let grads = SelectiveGrads { A: Some(ViewMut::strided(for_a, 0, [dim, dstate], [1, 1])), ..Default::default() };
    assert_eq!(name(inputs(), grads), "grads.A");
    let grads = SelectiveGrads { B: Some(CoefficientGrad::Constant(ViewMut::new(for_b, [dim, dstate]))), ..Default::default() };
    assert_eq!(name(inputs(), grads), "grads.B");
    let grads = SelectiveGrads { z: Some(ViewMut::new(for_z, dims)), ..Default::default() };
    assert_eq!(name(SelectiveInputs { z: None, ..inputs() }, grads), "grads.z");
    let grads = SelectiveGrads { initial_state: Some(ViewMut::new(for_state, states)), ..Default::default() };
    assert_eq!(name(SelectiveInputs { initial_state: None, ..inputs() }, grads), "grads.initial_state");
}

#[test]
fn wrong_outputs_are_named() {
    on_engines!(outputs_are_named);
}

fn steps_are_named<E: HostEngine>(engine: &E) {
    let [batch, _, dim, dstate] = SIZES;
    let mut buffer = Buffer::new();
    let mut step = |slots: &[i32], held: usize, groups: usize| {
        let (mut state, mut out) = (vec![7.0f32; held * dim * dstate], vec![7.0f32; batch * dim]);
        let args = SelectiveStep {
            u: tensor([batch, dim]),
            delta: tensor([batch, dim]),
            A: tensor([dim, dstate]),
            B: Coefficient::Varying(tensor([batch, groups, dstate])),
            C: Coefficient::Constant(tensor([dim, dstate])),
            D: None,
            z: None,
            delta_bias: None,
            state: ViewMut::new(&mut state, [held, dim, dstate]),
            slots: (!slots.is_empty()).then(|| View::new(slots, [slots.len()])),
            out: ViewMut::new(&mut out, [batch, dim]),
            options: SelectiveOptions::default(),
        };
        let done = engine.selective_state_update(args, &mut buffer.workspace(1 << 20)).map_err(operand);
        assert!(done.is_ok() || out.iter().chain(&state).all(|&x| x == 7.0), "written before the check");
        done
    };
    assert_eq!(step(&[], batch, 1), Ok(()));
    assert_eq!(step(&[2, -1], 3, 1), Ok(()));
    assert_eq!(step(&[], batch + 1, 1), Err("state"));
    assert_eq!(step(&[0, 3], 3, 1), Err("slots"));
    assert_eq!(step(&[1, 1], 3, 1), Err("slots"));
    assert_eq!(step(&[1], 3, 1), Err("slots"));
    assert_eq!(step(&[1, 2], 3, 4), Err("B"));
}

#[test]
fn wrong_steps_are_named() {
    on_engines!(steps_are_named);
}

/// A workspace of one byte less than the query is refused; one at any address is not.
fn workspaces_are_measured<E: HostEngine>(engine: &E) {
    let [batch, seqlen, dim, _] = SIZES;
    let dims = [batch, seqlen, dim];
    let problem = inputs().check().unwrap();
    let bytes = engine.selective_scan_fwd_workspace::<f32, f32>(&problem);
    for (start, end) in [(0, bytes), (1, bytes + 1), (37, bytes + 37)] {
        let (mut room, mut out) = (vec![0xffu8; bytes + 64], vec![0.0f32; batch * seqlen * dim]);
        let fwd = SelectiveFwd { inputs: inputs(), out: ViewMut::new(&mut out, dims), last_state: None };
        assert_eq!(engine.selective_scan_fwd(fwd, &mut Workspace::new(&mut room[start..end])), Ok(()));
    }
    if bytes > 0 {
        let mut out = vec![7.0f32; batch * seqlen * dim];
        let fwd = SelectiveFwd { inputs: inputs(), out: ViewMut::new(&mut out, dims), last_state: None };
        let done = engine.selective_scan_fwd(fwd, &mut Workspace::new(&mut vec![0u8; bytes / 4]));
        assert!(matches!(done, Err(Error::Workspace { .. })), "{done:?}");
        assert!(out.iter().all(|&x| x == 7.0));
    }
}

#[test]
fn small_workspaces_are_refused() {
    on_engines!(workspaces_are_measured);
}

#[test]
fn parts_that_do_not_exist_are_refused() {
    let [batch, seqlen, dim, _] = SIZES;
    for (index, count, phase) in [(0, 0, 0), (2, 2, 0), (0, 1, 9)] {
        let par = Par::Part { index, count, phase };
        let (mut one, mut other) = (vec![7.0f32; batch * seqlen * dim], vec![7.0f32; batch * seqlen * dim]);
        let fwd = |out| SelectiveFwd { inputs: inputs(), out: ViewMut::new(out, [batch, seqlen, dim]), last_state: None };
        let mut buffer = Buffer::new();
        let cpu = Cpu::new().with_par(par).selective_scan_fwd(fwd(&mut one), &mut buffer.workspace(1 << 20));
        let tree = Blelloch::with_par(par).selective_scan_fwd(fwd(&mut other), &mut buffer.workspace(1 << 20));
        assert_eq!([operand(cpu.unwrap_err()), operand(tree.unwrap_err())], ["par"; 2]);
        assert!(one.iter().chain(&other).all(|&x| x == 7.0));
    }
}

//! Calls with a workspace allocate nothing, and the workspace of backward is as small as it is said to be. A binary of its own:
//! it counts what the allocator hands out.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use selective_scan::arch::Isa;
use selective_scan::buffer::Buffer;
use selective_scan::cpu::Cpu;
use selective_scan::par::Par;
use selective_scan::scan::{Scan, ScanFwd};
use selective_scan::selective::{
    Coefficient, CoefficientGrad, SelectiveBwd, SelectiveFwd, SelectiveGrads, SelectiveInputs, SelectiveOptions, SelectiveScan,
    SelectiveStep,
};
use selective_scan::sequences::Sequences;
use selective_scan::view::{View, ViewMut};

/// The system's allocator, counted.
struct Counting;

thread_local! {
    /// Allocations and bytes of this thread: the test harness has threads of its own.
    static COUNTED: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

// SAFETY: every call goes to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    // SAFETY: as the trait says.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNTED.with(|c| c.set((c.get().0 + 1, c.get().1 + layout.size())));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    // SAFETY: as the trait says.
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static GLOBAL: Counting = Counting;

/// How often and how much `work` allocates.
fn allocations(work: impl FnOnce()) -> (usize, usize) {
    let before = COUNTED.get();
    work();
    let after = COUNTED.get();
    (after.0 - before.0, after.1 - before.1)
}

/// Numbers for every operand of a problem.
struct Numbers {
    size: [usize; 4],
    steps: Vec<f32>,
    states: Vec<f32>,
    weights: Vec<f32>,
    coefficients: Vec<f32>,
    channels: Vec<f32>,
}

impl Numbers {
    fn new(size @ [batch, seqlen, dim, dstate]: [usize; 4]) -> Self {
        Numbers {
            size,
            steps: vec![0.3; batch * seqlen * dim],
            states: vec![0.2; batch * dim * dstate],
            weights: vec![-0.7; dim * dstate],
            coefficients: vec![0.4; batch * seqlen * dstate],
            channels: vec![0.1; dim],
        }
    }

    fn inputs<'a>(&'a self, sequences: Sequences<'a>) -> SelectiveInputs<'a, f32, f32> {
        let [batch, seqlen, dim, dstate] = self.size;
        let steps = View::new(&self.steps, [batch, seqlen, dim]);
        SelectiveInputs {
            u: steps,
            delta: steps,
            A: View::new(&self.weights, [dim, dstate]),
            B: Coefficient::Varying(View::new(&self.coefficients, [batch, seqlen, 1, dstate])),
            C: Coefficient::Varying(View::new(&self.coefficients, [batch, seqlen, 1, dstate])),
            D: Some(View::new(&self.channels, [dim])),
            z: Some(steps),
            delta_bias: Some(View::new(&self.channels, [dim])),
            initial_state: Some(View::new(&self.states, [batch, dim, dstate])),
            sequences,
            options: SelectiveOptions { delta_softplus: true, ..Default::default() },
        }
    }
}

fn engines() -> impl Iterator<Item = Cpu> {
    Isa::available().map(|isa| Cpu::new().with_isa(isa).unwrap().with_par(Par::Seq))
}

fn backward(cpu: &Cpu, numbers: &Numbers, sequences: Sequences<'_>, buffer: &mut Buffer) -> (usize, usize) {
    let [batch, seqlen, dim, dstate] = numbers.size;
    let dims = [batch, seqlen, dim];
    let [mut u, mut delta, mut z] = [(); 3].map(|()| numbers.steps.clone());
    let (mut a, mut d, mut bias, mut initial) =
        (numbers.weights.clone(), numbers.channels.clone(), numbers.channels.clone(), numbers.states.clone());
    let (mut b, mut c) = (numbers.coefficients.clone(), numbers.coefficients.clone());
    let grads = SelectiveGrads {
        u: Some(ViewMut::new(&mut u, dims)),
        delta: Some(ViewMut::new(&mut delta, dims)),
        A: Some(ViewMut::new(&mut a, [dim, dstate])),
        B: Some(CoefficientGrad::Varying(ViewMut::new(&mut b, [batch, seqlen, 1, dstate]))),
        C: Some(CoefficientGrad::Varying(ViewMut::new(&mut c, [batch, seqlen, 1, dstate]))),
        D: Some(ViewMut::new(&mut d, [dim])),
        z: Some(ViewMut::new(&mut z, dims)),
        delta_bias: Some(ViewMut::new(&mut bias, [dim])),
        initial_state: Some(ViewMut::new(&mut initial, [batch, dim, dstate])),
    };
    let inputs = numbers.inputs(sequences);
    let (grad_out, grad_last_state) = (View::new(&numbers.steps, dims), inputs.initial_state);
    let args = SelectiveBwd { inputs, grad_out, grad_last_state, grads };
    let bytes = cpu.selective_scan_bwd_workspace::<f32, f32>(&args.check().unwrap());
    allocations(|| cpu.selective_scan_bwd(args, &mut buffer.workspace(bytes)).unwrap())
}

fn forward(cpu: &Cpu, numbers: &Numbers, sequences: Sequences<'_>, buffer: &mut Buffer) -> (usize, usize) {
    let [batch, seqlen, dim, dstate] = numbers.size;
    let (mut out, mut last) = (numbers.steps.clone(), numbers.states.clone());
    let (out, last) = (ViewMut::new(&mut out, [batch, seqlen, dim]), ViewMut::new(&mut last, [batch, dim, dstate]));
    let args = SelectiveFwd { inputs: numbers.inputs(sequences), out, last_state: Some(last) };
    let bytes = cpu.selective_scan_fwd_workspace::<f32, f32>(&args.check().unwrap());
    allocations(|| cpu.selective_scan_fwd(args, &mut buffer.workspace(bytes)).unwrap())
}

fn step(cpu: &Cpu, numbers: &Numbers, buffer: &mut Buffer) -> (usize, usize) {
    let [batch, _, dim, dstate] = numbers.size;
    let row = View::new(&numbers.steps[..batch * dim], [batch, dim]);
    let coefficient = Coefficient::Varying(View::new(&numbers.coefficients[..batch * dstate], [batch, 1, dstate]));
    let (mut state, mut out) = (numbers.states.clone(), numbers.steps[..batch * dim].to_vec());
    let args = SelectiveStep::<f32, f32, f32> {
        u: row,
        delta: row,
        A: View::new(&numbers.weights, [dim, dstate]),
        B: coefficient,
        C: coefficient,
        D: None,
        z: Some(row),
        delta_bias: None,
        state: ViewMut::new(&mut state, [batch, dim, dstate]),
        slots: None,
        out: ViewMut::new(&mut out, [batch, dim]),
        options: SelectiveOptions::default(),
    };
    let bytes = cpu.selective_state_update_workspace::<f32, f32>(&args.check().unwrap());
    allocations(|| cpu.selective_state_update(args, &mut buffer.workspace(bytes)).unwrap())
}

fn scan(cpu: &Cpu, numbers: &Numbers, buffer: &mut Buffer) -> (usize, usize) {
    let [batch, seqlen, dim, _] = numbers.size;
    let view = View::new(&numbers.steps, [batch, seqlen, dim]);
    let mut h = numbers.steps.clone();
    let h = ViewMut::new(&mut h, [batch, seqlen, dim]);
    let args = ScanFwd { a: view, b: view, initial_state: None, h, last_state: None, reverse: true };
    let bytes = cpu.scan_fwd_workspace::<f32>(args.check().unwrap());
    allocations(|| cpu.scan_fwd(args, &mut buffer.workspace(bytes)).unwrap())
}

/// What the workspace of backward is made of, in numbers of f32 and with the constants stated: nothing by position and channel;
/// a partial ∂B and ∂C for each of at most 17 slices of channels; the states at the start of each tile of 64; partial sums of the
/// shared gradients in f64 for at most 64 groups of sequences; and one task's tiles, which do not grow with L but for two words a step.
fn bound([batch, seqlen, dim, dstate]: [usize; 4]) -> usize {
    let coefficients = 2 * 17 * batch * seqlen * dstate;
    let states = batch * dim * dstate * (seqlen / 64);
    let shared = 2 * batch.min(64) * dim * (dstate + 2);
    let slice = dim.div_ceil(16) + 16;
    let task = slice * (7 * 64 + 7 * dstate + 40) + 64 * dstate * 8 + 4 * seqlen + 65 * 16 * 40;
    4 * (coefficients + states + shared + task)
}

#[test]
fn nothing_is_allocated_and_backward_is_small() {
    for size in [[2, 300, 48, 16], [1, 2048, 256, 16], [3, 65, 100, 5], [70, 130, 33, 4]] {
        let numbers = Numbers::new(size);
        for cpu in engines() {
            let problem = numbers.inputs(Sequences::Rows).check().unwrap();
            let bytes = cpu.selective_scan_bwd_workspace::<f32, f32>(&problem);
            assert!(bytes <= bound(size), "{size:?}: {bytes} bytes of workspace, at most {}", bound(size));
            let state = 4 * size.iter().product::<usize>();
            assert!(size[1] < 1000 || bytes < state / 4, "{bytes} bytes beside {state} of all states");
            let mut buffer = Buffer::new();
            let (count, peak) = backward(&cpu, &numbers, Sequences::Rows, &mut buffer);
            assert!(count == 1 && peak.abs_diff(bytes) <= 64, "{count} allocations of {peak} bytes where the query says {bytes}");
            // The buffer is as large as any call wants now: from here on nothing at all may be allocated.
            let ids: Vec<i32> = (0..size[0] * size[1]).map(|i| (i % size[1] / 7) as i32).collect();
            let packed = Sequences::SeqIdx(View::new(&ids, [size[0], size[1]]));
            for sequences in [Sequences::Rows, packed] {
                assert_eq!(backward(&cpu, &numbers, sequences, &mut buffer), (0, 0));
                assert_eq!(forward(&cpu, &numbers, sequences, &mut buffer), (0, 0));
            }
            assert_eq!(step(&cpu, &numbers, &mut buffer), (0, 0));
            assert_eq!(scan(&cpu, &numbers, &mut buffer), (0, 0));
        }
    }
}

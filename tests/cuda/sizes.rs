//! Queries and plans for sizes that no call has checked: they are public, so whatever is asked they answer.

use half::bf16;
use num_complex::Complex;
use selective_scan::block::mamba::{MAMBA_OPTIONS, MambaBlock, MambaProblem};
use selective_scan::element::Dtype;
use selective_scan::ops::Rule;
use selective_scan::plan::{Call, Gpu, Plan, Problem};
use selective_scan::scan::{Scan, ScanProblem};
use selective_scan::selective::{Carry, SelectiveOptions, SelectiveProblem, SelectiveScan};

use super::engine;

const SIZES: [usize; 5] = [0, 1, 3, 1 << 33, usize::MAX];
const GROUPS: [Option<usize>; 5] = [None, Some(0), Some(1), Some(3), Some(usize::MAX)];

/// As many problems as make every pair of sizes and groups meet, and more.
fn problems() -> impl Iterator<Item = SelectiveProblem> {
    let some = |i: usize, by: usize| SIZES[i / by % 5];
    (0..3125).map(move |i| {
        let (rule, carry) = ([Rule::Euler, Rule::Bilinear][i % 2], [Carry::Plain, Carry::Compensated][i / 2 % 2]);
        SelectiveProblem {
            batch: some(i, 1),
            seqlen: some(i, 5),
            dim: some(i, 25),
            dstate: some(i, 125),
            states: some(i, 7),
            groups_b: GROUPS[i / 625],
            groups_c: GROUPS[(i / 625 + i) % 5],
            options: SelectiveOptions { rule, carry, ..SelectiveOptions::default() },
        }
    })
}

#[test]
fn queries_answer_whatever_is_asked() {
    for problem in problems() {
        engine().selective_scan_fwd_workspace::<f32, f32>(&problem);
        engine().selective_scan_fwd_workspace::<f64, Complex<f64>>(&problem);
        engine().selective_scan_bwd_workspace::<bf16, f32>(&problem);
        engine().selective_scan_bwd_workspace::<f32, Complex<f32>>(&problem);
        engine().selective_scan_saved_bytes::<f32, f32>(&problem);
        let SelectiveProblem { batch, seqlen, dim, dstate, states, .. } = problem;
        engine().scan_fwd_workspace::<f32>(ScanProblem { batch, seqlen, dim });
        let block =
            MambaProblem { batch, seqlen, hidden: dim, inner: states, dstate, rank: batch, width: 4, states, options: MAMBA_OPTIONS };
        let of = MambaBlock { engine: engine() };
        of.step_workspace::<f32>(&block);
        of.forward_workspace::<f32>(&block);
        of.backward_workspace::<bf16>(&block);
    }
}

#[test]
fn plans_answer_whatever_is_asked() {
    for (i, problem) in problems().enumerate() {
        let gpu = Gpu { multiprocessors: [0, 1, 132, u32::MAX][i % 4], capability: (8, 0) };
        for (complex, backward) in [(false, false), (true, false), (false, true)] {
            let call = Call { input: Dtype::F32, complex, backward, seq_idx: i % 3 == 0 };
            Plan::on_gpu(Problem::Selective(problem), call, &gpu);
            Plan::on_gpu(Problem::Scan(ScanProblem { batch: problem.batch, seqlen: problem.seqlen, dim: problem.dim }), call, &gpu);
        }
    }
}

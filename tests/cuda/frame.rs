//! Buffers, graphs and faults: what every operator stands on.

use half::bf16;
use num_complex::Complex;
use selective_scan::Error;
use selective_scan::element::{Dtype, Input, Weight};
use selective_scan::plan::{Call, Choice, Plan, Problem, Regime};
use selective_scan::scan::{Scan, ScanProblem};
use selective_scan::selective::{SelectiveOptions, SelectiveProblem, SelectiveScan};

use super::engine;

/// A split scan keeps the states before its chunks, a walk nothing: so the engine's workspace tells what it will do.
#[test]
fn what_is_planned_is_what_runs() {
    fn agree<I: Input, W: Weight<Real = I::Accum>>(input: Dtype) {
        let call = Call { input, complex: W::COMPLEX, ..Call::default() };
        let sizes = [(1, 16, 16), (1, 300, 16), (1, 8192, 2048), (1, 8192, 4096), (1, 8192, 6336), (8, 2048, 2048), (1, 8192, 12_672)];
        for ((batch, seqlen, dim), dstate) in sizes.into_iter().flat_map(|s| [3, 16, 64].map(|n| (s, n))) {
            let (groups_b, groups_c, options) = (Some(1), None, SelectiveOptions::default());
            let problem = SelectiveProblem { batch, seqlen, dim, dstate, states: batch, groups_b, groups_c, options };
            let split = engine().selective_scan_fwd_workspace::<I, W>(&problem) > 0;
            let plan = Plan::by_cuda(Problem::Selective(problem), call, engine());
            assert_eq!(plan.choice == Choice::Cuda(Regime::Split), split, "{problem:?} as {input:?}: {plan}");
        }
    }
    agree::<f32, f32>(Dtype::F32);
    agree::<bf16, f32>(Dtype::Bf16);
    agree::<f64, f64>(Dtype::F64);
    agree::<bf16, Complex<f32>>(Dtype::Bf16);
    for (batch, seqlen, dim) in [(1, 1 << 20, 4), (1, 1700, 4), (1, 1800, 4), (8, 8192, 1536), (1, 8192, 2048), (1, 8192, 2112)] {
        let problem = ScanProblem { batch, seqlen, dim };
        let plan = Plan::by_cuda(Problem::Scan(problem), Call::default(), engine());
        let split = engine().scan_fwd_workspace::<f32>(problem) > 0;
        assert_eq!(plan.choice == Choice::Cuda(Regime::Split), split, "{problem:?}: {plan}");
    }
    let asked = engine().clone().with_regime(Some(Regime::Split));
    let (few, call) = (Problem::Scan(ScanProblem { batch: 8, seqlen: 8, dim: 1536 }), Call::default());
    assert_eq!(Plan::by_cuda(few, call, &asked).choice, Choice::Cuda(Regime::Split));
    assert_eq!(Plan::by_cuda(few, call, engine()), Plan::on_gpu(few, call, &engine().gpu()));
}

#[test]
fn buffers_hold_what_they_are_given() {
    let data: Vec<f32> = (0..1000).map(|i| i as f32).collect();
    let mut buffer = engine().upload(&data).expect("a small buffer");
    assert_eq!(buffer.to_vec().expect("it can be read"), data);
    buffer.fill(0).expect("it can be written");
    assert_eq!(buffer.to_vec().expect("it can be read"), vec![0.0; 1000]);
    let empty = engine().upload::<f32>(&[]).expect("nothing");
    assert!(empty.is_empty() && empty.to_vec().expect("nothing").is_empty());
}

#[test]
fn too_much_memory_is_an_error_and_leaves_the_engine_whole() {
    assert!(matches!(engine().buffer::<f64>(1 << 46), Err(Error::Driver { .. })));
    assert!(matches!(engine().buffer::<f64>(usize::MAX), Err(Error::Driver { .. })));
    buffers_hold_what_they_are_given();
}

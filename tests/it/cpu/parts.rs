//! `Par::Part`: a call cut into parts has the bits of the whole, phase by phase, on the engines that have threads.

use selective_scan::blelloch::Blelloch;
use selective_scan::buffer::Buffer;
use selective_scan::par::Par;
use selective_scan::scan::{Scan, ScanFwd, ScanProblem};
use selective_scan::selective::{SelectiveFwd, SelectiveScan};
use selective_scan::view::{Host, View, ViewMut};

use super::case::{Case, Operands, Packing};
use super::engines;

const COUNTS: [usize; 4] = [1, 2, 5, 40];

/// Every call of one operation in `phases` phases cut into `count` parts, in the order in which threads might make them.
fn parts<E>(count: usize, phases: usize, with: impl Fn(Par) -> E) -> Vec<E> {
    (0..phases).flat_map(|phase| (0..count).rev().map(move |index| Par::Part { index, count, phase })).map(with).collect()
}

fn forward<E: SelectiveScan<Memory = Host>>(with: impl Fn(Par) -> E) {
    let case = Case { packing: Packing::Offsets(vec![0, 40, 130]), ..Case::full([1, 130, 99], 5) };
    let of = Operands::<f32, f32>::new::<f32, f32>(&case);
    let whole = of.forward(&with(Par::Seq));
    for count in COUNTS {
        let (mut out, mut last, mut buffer) = (of.u.like(), of.initial.like(), Buffer::new());
        for part in parts(count, 1, &with) {
            let args = SelectiveFwd { inputs: of.inputs(), out: out.view_mut(), last_state: Some(last.view_mut()) };
            let bytes = part.selective_scan_fwd_workspace::<f32, f32>(&args.check().unwrap());
            part.selective_scan_fwd(args, &mut buffer.workspace(bytes)).unwrap();
        }
        assert_eq!(out.numbers(), whole[0].1);
        assert_eq!(last.numbers(), whole[1].1);
    }
}

fn backward<E: SelectiveScan<Memory = Host>>(with: impl Fn(Par) -> E) {
    let case = Case { packing: Packing::Offsets(vec![0, 40, 130]), groups: [None, Some(3)], ..Case::full([1, 130, 99], 5) };
    let of = Operands::<f32, f32>::new::<f32, f32>(&case);
    let whole = of.backward(&with(Par::Seq));
    for count in COUNTS {
        assert_eq!(of.backward_by(&parts(count, 2, &with)), whole);
    }
}

/// The recurrence of layer 1 in `phases` phases, long enough for several blocks of a tree.
fn scan<E: Scan<Memory = Host>>(phases: usize, with: impl Fn(Par) -> E) {
    let dims @ [batch, seqlen, dim] = [2, 1100, 19];
    let numbers = |seed: usize| -> Vec<f32> { (0..batch * seqlen * dim).map(|i| ((i * 37 + seed) % 101) as f32 / 101.0).collect() };
    let (a, b) = (numbers(3), numbers(50));
    let run = |engines: &[E]| {
        let (mut h, mut last, mut buffer) = (vec![0.0f32; a.len()], vec![0.0f32; batch * dim], Buffer::new());
        for engine in engines {
            let (a, b) = (View::new(&a, dims), View::new(&b, dims));
            let last_state = Some(ViewMut::new(&mut last, [batch, dim]));
            let args = ScanFwd { a, b, initial_state: None, h: ViewMut::new(&mut h, dims), last_state, reverse: false };
            let bytes = engine.scan_fwd_workspace::<f32>(ScanProblem { batch, seqlen, dim });
            engine.scan_fwd(args, &mut buffer.workspace(bytes)).unwrap();
        }
        (h, last)
    };
    let whole = run(&[with(Par::Seq)]);
    for count in COUNTS {
        assert!(run(&parts(count, phases, &with)) == whole, "{count} parts");
    }
}

#[test]
fn parts_of_cpu_make_the_whole() {
    for cpu in engines() {
        forward(|par| cpu.with_par(par));
        backward(|par| cpu.with_par(par));
        scan(1, |par| cpu.with_par(par));
    }
}

#[test]
fn parts_of_blelloch_make_the_whole() {
    forward(Blelloch::with_par);
    backward(Blelloch::with_par);
    scan(3, Blelloch::with_par);
}

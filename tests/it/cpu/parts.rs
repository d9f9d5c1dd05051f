//! `Par::Part`: a call cut into parts has the bits of the whole, phase by phase.

use selective_scan::buffer::Buffer;
use selective_scan::par::Par;
use selective_scan::selective::{SelectiveFwd, SelectiveScan};

use super::case::{Case, Operands, Packing};
use super::engines;

#[test]
fn parts_make_the_whole() {
    let case = Case { packing: Packing::Offsets(vec![0, 40, 130]), ..Case::full([1, 130, 99], 5) };
    let of = Operands::<f32, f32>::new::<f32, f32>(&case);
    for cpu in engines() {
        let whole = of.forward(&cpu.with_par(Par::Seq));
        for count in [1, 3, 40] {
            let (mut out, mut last, mut buffer) = (of.u.like(), of.initial.like(), Buffer::new());
            for index in 0..count {
                let part = cpu.with_par(Par::Part { index, count, phase: 0 });
                let args = SelectiveFwd { inputs: of.inputs(), out: out.view_mut(), last_state: Some(last.view_mut()) };
                let bytes = part.selective_scan_fwd_workspace::<f32, f32>(&args.check().unwrap());
                part.selective_scan_fwd(args, &mut buffer.workspace(bytes)).unwrap();
            }
            assert_eq!(out.numbers(), whole[0].1);
            assert_eq!(last.numbers(), whole[1].1);
        }
    }
}

#[test]
fn parts_of_backward_make_the_whole() {
    let case = Case { packing: Packing::Offsets(vec![0, 40, 130]), groups: [None, Some(3)], ..Case::full([1, 130, 99], 5) };
    let of = Operands::<f32, f32>::new::<f32, f32>(&case);
    for cpu in engines() {
        let whole = of.backward(&cpu.with_par(Par::Seq));
        for count in [1, 3, 40] {
            let parts = |phase| (0..count).map(move |index| cpu.with_par(Par::Part { index, count, phase }));
            let calls: Vec<_> = parts(0).chain(parts(1)).collect();
            assert_eq!(of.backward_by(&calls), whole);
        }
    }
}

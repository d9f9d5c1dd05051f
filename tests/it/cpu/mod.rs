//! The SIMD engine against the specification in f64, and against itself in other layouts, orders and numbers of threads.

mod case;
mod layer1;
mod parts;
mod step;

use case::{C32, C64, Case, Order, Packing, close, run};
use half::{bf16, f16};
use selective_scan::arch::Isa;
use selective_scan::cpu::Cpu;
use selective_scan::naive::Naive;
use selective_scan::ops::Rule;
use selective_scan::par::Par;

fn engines() -> Vec<Cpu> {
    Isa::available().map(|isa| Cpu::new().with_isa(isa).unwrap()).collect()
}

/// Every instruction set and type against the specification in f64.
fn check(case: &Case) {
    let real = run::<f64, f64, f64, f64>(&Naive, case);
    let single = run::<f64, f64, f32, f32>(&Naive, case);
    let complex = run::<f64, C64, f32, C32>(&Naive, case);
    let complex_double = run::<f64, C64, f64, C64>(&Naive, case);
    for cpu in engines() {
        let what = |t: &str| format!("{} {t} {case:?}", cpu.isa().name());
        close(&what("f64"), &run::<f64, f64, f64, f64>(&cpu, case), &real, 1e-13, 0.0);
        close(&what("f32"), &run::<f32, f32, f32, f32>(&cpu, case), &single, 4e-6, 0.0);
        close(&what("c32"), &run::<f32, C32, f32, C32>(&cpu, case), &complex, 4e-6, 0.0);
        close(&what("c64"), &run::<f64, C64, f64, C64>(&cpu, case), &complex_double, 1e-13, 0.0);
    }
}

#[test]
fn sizes_agree_with_the_specification() {
    for (dims, dstate) in
        [([2, 1, 5], 1), ([1, 63, 17], 3), ([2, 64, 33], 16), ([1, 65, 16], 17), ([3, 130, 7], 64), ([1, 5, 40], 100), ([1, 3, 2100], 2)]
    {
        check(&Case::full(dims, dstate));
        check(&Case::bare(dims, dstate));
    }
}

#[test]
fn options_agree_with_the_specification() {
    let case = |seed: u64| Case { seed, ..Case::full([2, 70, 18], 5) };
    for rule in [Rule::Euler, Rule::Zoh, Rule::Bilinear] {
        let mut case = case(2);
        case.options.rule = rule;
        check(&case);
    }
    for groups in [[None, None], [None, Some(3)], [Some(2), None], [Some(3), Some(2)], [Some(18), Some(1)]] {
        check(&Case { groups, ..case(3) });
    }
    for order in [Order::Bdl, Order::Odd] {
        check(&Case { order, ..case(4) });
    }
    let c = case(5);
    for case in
        [Case { z: false, ..c.clone() }, Case { d: false, ..c.clone() }, Case { bias: false, ..c.clone() }, Case { initial: false, ..c }]
    {
        check(&case);
    }
}

#[test]
fn packed_sequences_agree_with_the_specification() {
    let ids: Vec<i32> = (0..300).map(|t| if t % 7 == 3 { -1 } else { [0, 0, 4, 5][t / 75 % 4] }).collect();
    for packing in [
        Packing::Offsets(vec![0, 0, 3, 70, 70, 300]),
        Packing::Offsets((0..=150).map(|i| 2 * i).collect()),
        Packing::Ids(ids),
        Packing::Ids(vec![-1; 300]),
        Packing::Ids((0..300).map(|t| t / 2).collect()),
    ] {
        for initial in [true, false] {
            check(&Case { packing: packing.clone(), initial, ..Case::full([1, 300, 9], 4) });
        }
    }
    let ids = (0..2).flat_map(|b| (0..80).map(move |t| (t + 10 * b) / 40)).collect();
    check(&Case { packing: Packing::Ids(ids), ..Case::full([2, 80, 20], 3) });
}

#[test]
fn nothing_to_do_passes_states_through() {
    check(&Case::full([2, 0, 3], 4));
    check(&Case::full([0, 5, 3], 4));
    check(&Case { packing: Packing::Offsets(vec![0]), ..Case::full([1, 0, 3], 4) });
    check(&Case { packing: Packing::Offsets(vec![0, 0, 0]), ..Case::bare([1, 0, 3], 4) });
}

#[test]
fn storage_of_16_bits_is_rounded_once() {
    let case = Case::full([2, 70, 35], 16);
    for cpu in engines() {
        let what = cpu.isa().name();
        let want = run::<f64, f64, f16, f32>(&Naive, &case);
        close(what, &run::<f16, f32, f16, f32>(&cpu, &case), &want, 4e-6, 1.0 / 2048.0);
        let want = run::<f64, f64, bf16, f32>(&Naive, &case);
        close(what, &run::<bf16, f32, bf16, f32>(&cpu, &case), &want, 4e-6, 1.0 / 256.0);
        let want = run::<f64, C64, bf16, C32>(&Naive, &case);
        close(what, &run::<bf16, C32, bf16, C32>(&cpu, &case), &want, 4e-6, 1.0 / 256.0);
    }
}

#[test]
fn a_compensated_carry_is_exact_to_rounding() {
    let mut case = Case::full([1, 500, 17], 3);
    case.options.carry = selective_scan::selective::Carry::Compensated;
    let want = run::<f64, f64, f32, f32>(&Naive, &case);
    for cpu in engines() {
        close(cpu.isa().name(), &run::<f32, f32, f32, f32>(&cpu, &case), &want, 1e-7, 0.0);
    }
}

fn in_pool<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
}

#[test]
fn threads_and_layouts_do_not_change_bits() {
    let case = Case { groups: [Some(1), Some(3)], ..Case::full([3, 130, 99], 5) };
    for cpu in engines() {
        let alone = run::<f32, f32, f32, f32>(&cpu.with_par(Par::Seq), &case);
        for threads in [1, 2, 3, 7] {
            assert_eq!(in_pool(threads, || run::<f32, f32, f32, f32>(&cpu, &case)), alone);
        }
        for order in [Order::Bdl, Order::Odd] {
            assert_eq!(run::<f32, f32, f32, f32>(&cpu, &Case { order, ..case.clone() }), alone);
        }
    }
}

/// The values of `name` that belong to entries `range` of `all`.
fn part<'r>(results: &'r case::Results, name: &str, all: usize, range: std::ops::Range<usize>) -> &'r [f64] {
    let values = &results.iter().find(|(n, _)| *n == name).unwrap().1;
    &values[range.start * values.len() / all..range.end * values.len() / all]
}

const BY_POSITION: [&str; 6] = ["out", "grad u", "grad delta", "grad z", "grad B", "grad C"];
const BY_STATE: [&str; 2] = ["last_state", "grad initial_state"];

#[test]
fn packed_sequences_have_the_bits_of_sequences_apart() {
    let offsets = [0, 3, 3, 70, 71, 230, 300];
    let packing = Packing::Offsets(offsets.to_vec());
    let packed = Case { packing, order: Order::Bdl, groups: [Some(1), Some(2)], ..Case::full([1, 300, 42], 5) };
    for cpu in engines() {
        let together = run::<f32, C32, f32, C32>(&cpu, &packed);
        for (k, w) in offsets.windows(2).enumerate() {
            let (start, end) = (w[0] as usize, w[1] as usize);
            let case = Case { dims: [1, end - start, 42], from: [start, k], packing: Packing::Rows, order: Order::Bld, ..packed.clone() };
            let apart = run::<f32, C32, f32, C32>(&cpu, &case);
            let what = format!("sequence {k} on {}", cpu.isa().name());
            for name in BY_POSITION.into_iter().filter(|_| end > start) {
                assert_eq!(part(&together, name, 300, start..end), part(&apart, name, 1, 0..1), "{name} of {what}");
            }
            for name in BY_STATE {
                assert_eq!(part(&together, name, 6, k..k + 1), part(&apart, name, 1, 0..1), "{name} of {what}");
            }
        }
    }
}

#[test]
fn ids_have_the_bits_of_offsets() {
    let (length, start) = (220, 90);
    let plain = Case { initial: false, ..Case::full([1, length, 21], 4) };
    let ids = |pad: bool| (0..length).map(|t| if pad && t == length - 1 { -1 } else { i32::from(t >= start) }).collect();
    for cpu in engines() {
        let offsets = Case { packing: Packing::Offsets(vec![0, start as i64, length as i64]), ..plain.clone() };
        let by_offsets = run::<f32, f32, f32, f32>(&cpu, &offsets);
        let by_ids = run::<f32, f32, f32, f32>(&cpu, &Case { packing: Packing::Ids(ids(false)), ..plain.clone() });
        assert_eq!(part(&by_offsets, "out", 1, 0..1), part(&by_ids, "out", 1, 0..1));
        for name in BY_POSITION {
            // The gradient of the last state enters one sequence only, the last, with either.
            let range = if name == "out" { 0..length } else { start..length };
            let last = |r| part(r, name, length, range.clone()).to_vec();
            let alone = Case { dims: [1, length - start, 21], from: [start, 0], ..plain.clone() };
            if range.start == start {
                assert_eq!(last(&by_ids), part(&run::<f32, f32, f32, f32>(&cpu, &alone), name, 1, 0..1), "{name}");
            }
        }
        let padded = run::<f32, f32, f32, f32>(&cpu, &Case { packing: Packing::Ids(ids(true)), ..plain.clone() });
        assert_eq!(part(&padded, "out", length, 0..length - 1), part(&by_ids, "out", length, 0..length - 1));
        for name in BY_POSITION {
            assert!(part(&padded, name, length, length - 1..length).iter().all(|&x| x == 0.0), "{name}");
        }
    }
}

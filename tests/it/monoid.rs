//! Scans over any associative operator: what they compute, how many combinations they take and how many stand in a chain.

use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use selective_scan::blelloch::{Schedule, scan_with, sweep};
use selective_scan::ops::{Affine, Monoid};
use selective_scan::par::Par;

const SCHEDULES: [Schedule; 3] = [Schedule::Sequential, Schedule::Blelloch, Schedule::Chunked];

/// Lengths around every power of two that matters, those of the blocks included.
const LENGTHS: [usize; 24] = [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 100, 255, 257, 1023, 1024, 1025, 2047, 2049, 4097, 5000];

/// Words: associative, and so far from commutative that any exchange shows.
struct Words;

impl Monoid for Words {
    type Element = String;
    fn identity(&self) -> String {
        String::new()
    }
    fn combine(&self, earlier: &String, later: &String) -> String {
        format!("{earlier}{later}")
    }
}

/// max-plus: (a₁,b₁) ∘ (a₂,b₂) = (a₁ + a₂, max(b₁ + a₂, b₂)).
struct MaxPlus;

impl Monoid for MaxPlus {
    type Element = (i64, i64);
    fn identity(&self) -> (i64, i64) {
        (0, i64::MIN / 4)
    }
    fn combine(&self, earlier: &(i64, i64), later: &(i64, i64)) -> (i64, i64) {
        (earlier.0 + later.0, (earlier.1 + later.0).max(later.1))
    }
}

/// Affine maps of the plane, h ↦ M h + v, in integers modulo 2⁶⁴ so that results are exact.
struct Affine2;

type Map2 = ([[u64; 2]; 2], [u64; 2]);

fn mul(m: &[[u64; 2]; 2], v: [u64; 2]) -> [u64; 2] {
    [0, 1].map(|i| m[i][0].wrapping_mul(v[0]).wrapping_add(m[i][1].wrapping_mul(v[1])))
}

impl Monoid for Affine2 {
    type Element = Map2;
    fn identity(&self) -> Map2 {
        ([[1, 0], [0, 1]], [0, 0])
    }
    fn combine(&self, earlier: &Map2, later: &Map2) -> Map2 {
        let column = |j: usize| mul(&later.0, [earlier.0[0][j], earlier.0[1][j]]);
        let (c, d, v) = (column(0), column(1), mul(&later.0, earlier.1));
        ([[c[0], d[0]], [c[1], d[1]]], [v[0].wrapping_add(later.1[0]), v[1].wrapping_add(later.1[1])])
    }
}

/// Counts combinations; an element carries how many stand in a chain above it, and the range of items it is the sum of.
struct Counting(AtomicUsize);

#[derive(Clone, Debug)]
struct Counted {
    depth: usize,
    range: (usize, usize),
}

impl Monoid for Counting {
    type Element = Counted;
    fn identity(&self) -> Counted {
        Counted { depth: 0, range: (0, 0) }
    }
    fn combine(&self, earlier: &Counted, later: &Counted) -> Counted {
        self.0.fetch_add(1, Ordering::Relaxed);
        let empty = |c: &Counted| c.range.0 == c.range.1;
        let range = match (empty(earlier), empty(later)) {
            (true, _) => later.range,
            (_, true) => earlier.range,
            _ => {
                assert_eq!(earlier.range.1, later.range.0, "neighbours only, the earlier one first");
                (earlier.range.0, later.range.1)
            }
        };
        Counted { depth: 1 + earlier.depth.max(later.depth), range }
    }
}

fn counted(n: usize) -> (Counting, Vec<Counted>) {
    (Counting(AtomicUsize::new(0)), (0..n).map(|i| Counted { depth: 0, range: (i, i + 1) }).collect())
}

fn log2_ceil(n: usize) -> usize {
    n.next_power_of_two().ilog2() as usize
}

#[test]
fn sweeps_are_work_efficient_and_shallow() {
    for n in (1..300).chain(LENGTHS).filter(|&n| n > 0) {
        let (op, mut items) = counted(n);
        sweep::scan_inclusive(&op, &mut items, Par::default());
        (0..n).for_each(|i| assert_eq!(items[i].range, (0, i + 1), "length {n}"));
        assert!(op.0.load(Ordering::Relaxed) <= 2 * n, "length {n}: {op:?}", op = op.0);
        let depth = items.iter().map(|c| c.depth).max().unwrap_or(0);
        assert!(depth <= 2 * log2_ceil(n), "length {n}: depth {depth}");

        let (op, mut items) = counted(n);
        let total = sweep::scan_exclusive(&op, &mut items, Par::default());
        (0..n).for_each(|i| assert!(items[i].range == (0, i) || i == 0, "length {n}"));
        assert_eq!(total.range, (0, n));
        assert!(op.0.load(Ordering::Relaxed) <= 2 * n, "length {n}: {op:?}", op = op.0);
        let depth = items.iter().map(|c| c.depth).max().unwrap_or(0);
        assert!(depth <= 2 * log2_ceil(n), "length {n}: depth {depth}");
    }
}

#[test]
fn the_chunked_schedule_counts() {
    for n in LENGTHS {
        let (op, mut items) = counted(n);
        scan_with(&op, &mut items, Schedule::Chunked, false, Par::default());
        (0..n).for_each(|i| assert_eq!(items[i].range, (0, i + 1), "length {n}"));
        assert!(op.0.load(Ordering::Relaxed) <= 2 * n + 2 * n.isqrt(), "length {n}: {op:?}", op = op.0);
    }
}

/// The scan by its definition: a fold for every prefix.
fn by_definition<O: Monoid>(op: &O, items: &[O::Element], reverse: bool) -> Vec<O::Element> {
    let mut items = items.to_vec();
    if reverse {
        items.reverse();
    }
    let mut sum = op.identity();
    let mut out: Vec<_> = items
        .iter()
        .map(|x| {
            sum = op.combine(&sum, x);
            sum.clone()
        })
        .collect();
    if reverse {
        out.reverse();
    }
    out
}

fn holds<O: Monoid>(op: &O, items: &[O::Element])
where
    O::Element: PartialEq + std::fmt::Debug,
{
    for reverse in [false, true] {
        let want = by_definition(op, items, reverse);
        for schedule in SCHEDULES {
            for par in [Par::Seq, Par::default()] {
                let mut got = items.to_vec();
                scan_with(op, &mut got, schedule, reverse, par);
                assert!(got == want, "{schedule:?}, length {}, reverse {reverse}", items.len());
            }
        }
    }
}

#[test]
fn every_schedule_scans_any_operator() {
    for n in LENGTHS {
        let mix = |i: usize| (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        if n < 300 {
            holds(&Words, &(0..n).map(|i| ((b'a' + (mix(i) >> 60) as u8) as char).to_string()).collect::<Vec<_>>());
        }
        holds(&MaxPlus, &(0..n).map(|i| ((mix(i) >> 54) as i64 - 512, (mix(i + 7) >> 50) as i64)).collect::<Vec<_>>());
        let entry = |i: usize, k: usize| mix(i * 6 + k) >> 40;
        let map = |i| ([[entry(i, 0), entry(i, 1)], [entry(i, 2), entry(i, 3)]], [entry(i, 4), entry(i, 5)]);
        holds(&Affine2, &(0..n).map(map).collect::<Vec<_>>());
    }
}

#[test]
fn affine_pairs_give_the_recurrence() {
    for n in LENGTHS {
        let a = |i: usize| 0.999 - 0.4 * ((i * 37 % 101) as f64 / 101.0);
        let b = |i: usize| (i * 53 % 97) as f64 / 97.0 - 0.5;
        let mut h = 0.0;
        let want: Vec<f64> = (0..n)
            .map(|i| {
                h = a(i) * h + b(i);
                h
            })
            .collect();
        for schedule in SCHEDULES {
            let mut pairs: Vec<(f64, f64)> = (0..n).map(|i| (a(i), b(i))).collect();
            scan_with(&Affine::<f64>::new(), &mut pairs, schedule, false, Par::default());
            for (t, (got, want)) in pairs.iter().zip(&want).enumerate() {
                assert!((got.1 - want).abs() < 1e-13, "{schedule:?}, length {n}, position {t}: {} is not {want}", got.1);
            }
        }
    }
}

proptest! {
    #[test]
    fn exclusive_is_inclusive_one_later(items in prop::collection::vec(any::<(i32, i32)>(), 0..3000)) {
        let items: Vec<(i64, i64)> = items.into_iter().map(|(a, b)| (i64::from(a), i64::from(b))).collect();
        let (mut inclusive, mut exclusive) = (items.clone(), items);
        sweep::scan_inclusive(&MaxPlus, &mut inclusive, Par::default());
        let total = sweep::scan_exclusive(&MaxPlus, &mut exclusive, Par::default());
        exclusive.push(total);
        prop_assert_eq!(exclusive[0], MaxPlus.identity());
        prop_assert_eq!(&exclusive[1..], &inclusive[..]);
    }
}

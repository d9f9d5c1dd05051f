//! Rows by token and the gradient of their table, against plain loops; the largest of a row.

use half::{bf16, f16};
use selective_scan::element::{Input, Real};

use super::engine;
use super::tensor::{LAYOUTS, Layout, Tensor, named, with_workspace};
use super::tensors::{assert_bits, numbers, stored, wide};

/// Tokens from a seed: most of them few ones, now and then none of the vocabulary.
fn tokens(rows: usize, vocab: usize, seed: u64) -> Vec<u32> {
    let draw = numbers(2 * rows, seed);
    let id = |i: usize| {
        let [a, b] = [draw[2 * i], draw[2 * i + 1]].map(|x| ((x + 2.0) * 64.0) as usize);
        match a % 8 {
            0 if b % 4 == 0 => u32::MAX,
            0 => (vocab + b) as u32,
            1..4 => (b % 3 % vocab) as u32,
            _ => ((a * 256 + b) * 7919 % vocab) as u32,
        }
    };
    (0..rows).map(id).collect()
}

/// rows, vocab, columns.
const SIZES: [[usize; 3]; 9] =
    [[1, 1, 1], [7, 3, 5], [0, 4, 3], [300, 300, 8], [900, 2, 33], [4100, 70_000, 2], [33, 17, 300], [5, 4, 0], [2500, 255, 1]];

fn forward<I: Input>() {
    for ([rows, vocab, columns], layout) in SIZES.into_iter().flat_map(|s| LAYOUTS.map(|l| (s, l))) {
        let (ids, values) = (tokens(rows, vocab, 3), stored::<I>(&numbers(vocab * columns, 4)));
        let table = Tensor::new([vocab, columns], layout, &values);
        let (device, mut out) =
            (Tensor::new([rows], layout, &ids), Tensor::filled([rows, columns], layout, I::store(I::Accum::from_f64(1.0))));
        engine().embedding_fwd(table.view(), device.view(), out.view_mut()).expect("it runs");
        let of = |id: &u32| (0..columns).map(|c| values.get(*id as usize * columns + c).copied().unwrap_or_default()).collect::<Vec<_>>();
        assert_bits("out", &out.values(), &ids.iter().flat_map(of).collect::<Vec<_>>());
    }
}

#[test]
fn rows_are_those_of_the_tokens() {
    forward::<f32>();
    forward::<f64>();
    forward::<bf16>();
}

fn backward<I: Input>(layouts: &[Layout]) {
    for ([rows, vocab, columns], layout) in SIZES.into_iter().flat_map(|s| layouts.iter().map(move |l| (s, *l))) {
        let (ids, values) = (tokens(rows, vocab, 5), stored::<I>(&numbers(rows * columns, 6)));
        let (device, grad) = (Tensor::new([rows], layout, &ids), Tensor::new([rows, columns], layout, &values));
        let mut want = vec![0.0; vocab * columns];
        for (row, id) in ids.iter().enumerate().filter(|(_, id)| (**id as usize) < vocab) {
            (0..columns).for_each(|c| want[*id as usize * columns + c] += values[row * columns + c].load().to_f64());
        }
        for add in [false, true] {
            // The sums are exact: multiples of 1/64.
            let mut table = Tensor::filled([vocab, columns], layout, I::Accum::from_f64(if add { 0.25 } else { f64::NAN }));
            with_workspace(engine().embedding_bwd_workspace(rows, vocab), |ws| {
                engine().embedding_bwd(grad.view(), device.view(), table.view_mut(), add, ws)
            })
            .expect("it runs");
            let want: Vec<f64> = want.iter().map(|x| if add { x + 0.25 } else { *x }).collect();
            assert_eq!(wide(&table.values()), want, "{rows} {vocab} {columns} {layout:?}");
        }
    }
}

#[test]
fn gradients_are_summed_by_token() {
    backward::<f32>(&LAYOUTS);
    backward::<f64>(&[Layout::Dense]);
    backward::<f16>(&[Layout::Dense]);
    backward::<bf16>(&[Layout::Transposed]);
}

/// More tiles than one turn of the sort's offsets has counters for.
#[test]
fn many_positions() {
    let (rows, vocab) = (70_000, 300);
    let (ids, values) = (tokens(rows, vocab, 11), stored::<f32>(&numbers(rows, 12)));
    let (device, grad) = (Tensor::new([rows], Layout::Dense, &ids), Tensor::new([rows, 1], Layout::Dense, &values));
    let mut want = vec![0.0; vocab];
    ids.iter().zip(&values).for_each(|(id, x)| {
        if let Some(sum) = want.get_mut(*id as usize) {
            *sum += f64::from(*x)
        }
    });
    let mut table = Tensor::filled([vocab, 1], Layout::Dense, f32::NAN);
    with_workspace(engine().embedding_bwd_workspace(rows, vocab), |ws| {
        engine().embedding_bwd(grad.view(), device.view(), table.view_mut(), false, ws)
    })
    .expect("it runs");
    assert_eq!(wide(&table.values()), want);
}

/// A token's sum has the same bits whatever the other tokens are, and neither it nor a repeat depends on them.
#[test]
fn bits_of_a_token_do_not_depend_on_the_others() {
    let (rows, vocab, columns) = (2000, 9, 3);
    let values = numbers(rows * columns, 8).iter().map(|x| (x * 1e3).exp2().min(1e30) as f32 / 3.0).collect::<Vec<_>>();
    let run = |ids: &[u32], values: &[f32]| {
        let (device, grad) = (Tensor::new([ids.len()], Layout::Dense, ids), Tensor::new([ids.len(), columns], Layout::Dense, values));
        let mut table = Tensor::filled([vocab, columns], Layout::Dense, f32::NAN);
        with_workspace(engine().embedding_bwd_workspace(ids.len(), vocab), |ws| {
            engine().embedding_bwd(grad.view(), device.view(), table.view_mut(), false, ws)
        })
        .expect("it runs");
        table.values()
    };
    let ids = tokens(rows, vocab, 9);
    let all = run(&ids, &values);
    assert_bits("again", &run(&ids, &values), &all);
    for token in [0, 1, 5] {
        let own: Vec<usize> = (0..rows).filter(|i| ids[*i] == token).collect();
        let alone: Vec<f32> = own.iter().flat_map(|i| values[i * columns..][..columns].to_vec()).collect();
        let got = run(&vec![token; own.len()], &alone);
        let at = token as usize * columns;
        assert_bits("alone", &got[at..][..columns], &all[at..][..columns]);
    }
}

#[test]
fn what_is_wrong_is_named() {
    let (table, ids) = (Tensor::filled([4, 3], Layout::Dense, 1f32), Tensor::filled([2], Layout::Dense, 1u32));
    let mut out = Tensor::filled([3, 3], Layout::Dense, 7f32);
    assert_eq!(named(engine().embedding_fwd(table.view(), ids.view(), out.view_mut())), "out");
    let grad = Tensor::filled([3, 3], Layout::Dense, 7f32);
    let result = with_workspace(1 << 16, |ws| engine().embedding_bwd(grad.view(), ids.view(), out.view_mut(), false, ws));
    assert_eq!(named(result), "tokens");
    assert_eq!(out.values(), [7.0; 9]);
}

/// As the host's `greedy`; `u32::MAX` where that is an error.
fn greedy<I: Real>(row: &[I]) -> u32 {
    let bad = |x: &f64| x.is_nan() || *x == f64::INFINITY;
    let row = wide(row);
    let best = (0..row.len()).fold(0, |best, id| if row[id] > row[best] { id } else { best });
    if row.iter().any(bad) || row[best] == f64::NEG_INFINITY { u32::MAX } else { best as u32 }
}

fn choices<I: Real>() {
    let mut rows: Vec<Vec<f64>> = Vec::new();
    for columns in [1, 2, 31, 33, 700] {
        rows.push(numbers(columns, 1));
        // Ties: the lowest of equal ones, also of the two zeros.
        rows.push((0..columns).map(|c| (c % 3) as f64).collect());
        rows.push((0..columns).map(|c| if c % 2 == 0 { -0.0 } else { 0.0 }).collect());
        rows.push((0..columns).map(|c| if c + 1 == columns { -5.0 } else { f64::NEG_INFINITY }).collect());
        for bad in [f64::NAN, f64::INFINITY] {
            rows.push((0..columns).map(|c| if c == columns / 2 { bad } else { 1.0 }).collect());
        }
        rows.push(vec![f64::NEG_INFINITY; columns]);
    }
    for (row, layout) in rows.iter().flat_map(|r| LAYOUTS.map(|l| (r, l))) {
        let values = stored::<I>(&[row.clone(), row.clone()].concat());
        let (logits, mut ids) = (Tensor::new([2, row.len()], layout, &values), Tensor::filled([2], layout, 7u32));
        engine().argmax(logits.view(), ids.view_mut()).expect("it runs");
        let want = greedy(&values[..row.len()]);
        #[cfg(feature = "model")]
        assert_eq!(selective_scan::model::greedy(&values[..row.len()]).unwrap_or(u32::MAX), want);
        assert_eq!(ids.values(), [want; 2], "{row:?}");
    }
}

#[test]
fn the_largest_is_what_greedy_takes() {
    choices::<f32>();
    choices::<f64>();
    let (logits, mut ids) =
        (Tensor::new([1, 3], Layout::Dense, &[bf16::ONE, bf16::MAX, bf16::MAX]), Tensor::filled([1], Layout::Dense, 0u32));
    engine().argmax(logits.view(), ids.view_mut()).expect("it runs");
    assert_eq!(ids.values(), [1]);
    // More rows than blocks.
    let rows = (1 << 16) + 40;
    let values: Vec<f32> = (0..2 * rows).map(|i| if i % 2 == (i / 6) % 2 { 1.0 } else { 0.0 }).collect();
    let (logits, mut ids) = (Tensor::new([rows, 2], Layout::Dense, &values), Tensor::filled([rows], Layout::Dense, 7u32));
    engine().argmax(logits.view(), ids.view_mut()).expect("it runs");
    assert_eq!(ids.values(), values.chunks(2).map(greedy).collect::<Vec<_>>());
    let mut ids = Tensor::filled([1], Layout::Dense, 0u32);
    let none = Tensor::<f32, 2>::filled([1, 0], Layout::Dense, 0.0);
    assert_eq!(named(engine().argmax(none.view(), ids.view_mut())), "logits");
    let mut nothing = Tensor::filled([0], Layout::Dense, 0u32);
    engine().argmax(Tensor::<f16, 2>::filled([0, 4], Layout::Dense, f16::ONE).view(), nothing.view_mut()).expect("nothing");
}

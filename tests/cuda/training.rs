//! Loss, gradient norm and optimiser against plain loops in f64, and recorded as a graph.

use selective_scan::cuda::{AdamWArgs, AdamWStep, Targets};
use selective_scan::element::Real;

use super::engine;
use super::tensor::{LAYOUTS, Layout, Tensor, named, with_workspace};
use super::tensors::{assert_bits, numbers, stored, wide};

/// A target that is none.
const IGNORE: u32 = u32::MAX;

#[cfg(feature = "model")]
#[test]
fn targets_to_ignore_are_the_models() {
    assert_eq!(IGNORE, selective_scan::model::IGNORE);
}

/// Loss of each row and gradient, in f64.
fn plain(logits: &[f64], vocab: usize, targets: &[u32]) -> (Vec<f64>, Vec<f64>) {
    let count = targets.iter().filter(|t| **t != IGNORE).count().max(1) as f64;
    let (mut losses, mut grad) = (Vec::new(), Vec::new());
    for (row, &target) in logits.chunks(vocab).zip(targets) {
        if target == IGNORE {
            losses.push(0.0);
            grad.extend(vec![0.0; vocab]);
            continue;
        }
        let largest = row.iter().fold(f64::NEG_INFINITY, |m, x| m.max(*x));
        let total: f64 = row.iter().map(|x| (x - largest).exp()).sum();
        losses.push(total.ln() - (row[target as usize] - largest));
        grad.extend(row.iter().enumerate().map(|(c, x)| ((x - largest).exp() / total - f64::from(c == target as usize)) / count));
    }
    (losses, grad)
}

fn count(targets: &Tensor<u32, 1>) -> Tensor<f64, 1> {
    let mut count = Tensor::filled([1], Layout::Dense, f64::NAN);
    let bytes = engine().sum_workspace(targets.view().dims()[0]);
    with_workspace(bytes, |ws| engine().count_targets(targets.view(), count.view_mut(), ws)).expect("it runs");
    count
}

fn losses<A: Real>(bound: f64) {
    for ([rows, vocab], layout) in [[1, 2], [3, 7], [4, 257], [2, 5000], [0, 3], [5, 1]].into_iter().flat_map(|s| LAYOUTS.map(|l| (s, l))) {
        let values: Vec<A> = stored(&numbers(rows * vocab, 2).iter().map(|x| x * 6.0).collect::<Vec<_>>());
        let ids: Vec<u32> = (0..rows).map(|r| if r == 2 { IGNORE } else { (r * 31 % vocab) as u32 }).collect();
        let targets = Tensor::new([rows], layout, &ids);
        let count = count(&targets);
        assert_eq!(count.values(), [ids.iter().filter(|t| **t != IGNORE).count() as f64]);
        let of = Targets { targets: targets.view(), count: count.view() };
        let (want_loss, want_grad) = plain(&wide(&values), vocab, &ids);
        let mut logits = Tensor::new([rows, vocab], layout, &values);
        let (mut loss, mut alone) = (Tensor::filled([rows], layout, f64::NAN), Tensor::filled([rows], layout, f64::NAN));
        let mut grad = Tensor::filled([rows, vocab], layout, A::from_f64(f64::NAN));
        engine().cross_entropy(logits.view(), of, loss.view_mut(), Some(grad.view_mut())).expect("it runs");
        engine().cross_entropy(logits.view(), of, alone.view_mut(), None).expect("it runs");
        for (got, want) in loss.values().iter().zip(&want_loss) {
            assert!((got - want).abs() <= bound * want.abs().max(1.0), "{got}, wanted {want}");
        }
        assert_bits("alone", &alone.values(), &loss.values());
        for (got, want) in wide(&grad.values()).iter().zip(&want_grad) {
            assert!((got - want).abs() <= 4.0 * bound * (want.abs() + 0.1), "{got}, wanted {want}");
        }
        engine().cross_entropy_in_place(logits.view_mut(), of, alone.view_mut()).expect("it runs");
        assert_bits("in place", &logits.values(), &grad.values());
        assert_bits("in place", &alone.values(), &loss.values());
    }
}

#[test]
fn loss_and_gradient_are_the_definition() {
    losses::<f64>(1e-15);
    losses::<f32>(1e-7);
}

/// One row of f32 with its loss and gradient.
fn one(row: &[f32], target: u32) -> (f64, Vec<f32>) {
    let (logits, targets) = (Tensor::new([1, row.len()], Layout::Dense, row), Tensor::new([1], Layout::Dense, &[target]));
    let (mut loss, mut grad) = (Tensor::filled([1], Layout::Dense, f64::NAN), Tensor::filled([1, row.len()], Layout::Dense, f32::NAN));
    let count = count(&targets);
    let of = Targets { targets: targets.view(), count: count.view() };
    engine().cross_entropy(logits.view(), of, loss.view_mut(), Some(grad.view_mut())).expect("it runs");
    (loss.values()[0], grad.values())
}

#[test]
fn extreme_logits() {
    let infinite = f32::NEG_INFINITY;
    // Whole threads and warps have nothing but minus infinity.
    let mut row = vec![infinite; 600];
    (row[3], row[599]) = (1.0, 1.0);
    let (loss, grad) = one(&row, 3);
    assert!((loss - 2f64.ln()).abs() < 1e-15 && grad[3] == -0.5 && grad[599] == 0.5 && grad[0] == 0.0);
    let (loss, grad) = one(&[-1e4, -1e4 - 1.0, infinite], 1);
    assert!((loss - (1f64 + 1f64.exp()).ln()).abs() < 1e-7 && grad[2] == 0.0);
    assert_eq!(one(&row, 4).0, f64::INFINITY);
    assert_eq!(one(&[3e38, -3e38], 0).0, 0.0);
    let (loss, _) = one(&[88.0, 0.0], 1);
    assert!((loss - 88.0).abs() < 1e-12);
    // What is not finite spoils the row, and so does a target that is no token.
    for (row, target) in [(vec![1.0, f32::NAN], 0), (vec![f32::INFINITY, 1.0], 1), (vec![infinite; 3], 0), (vec![1.0; 4], 4)] {
        let (loss, grad) = one(&row, target);
        assert!(loss.is_nan() && grad.iter().all(|g| g.is_nan()), "{row:?}");
    }
    let ignored = one(&[f32::NAN, 1.0], IGNORE);
    assert_eq!(ignored, (0.0, vec![0.0; 2]));
}

#[test]
fn more_rows_than_blocks() {
    let rows = (1 << 16) + 40;
    let (values, ids) = (numbers(rows * 2, 3), (0..rows).map(|r| if r % 7 == 0 { IGNORE } else { r as u32 % 2 }).collect::<Vec<_>>());
    let (want_loss, want_grad) = plain(&values, 2, &ids);
    let (logits, targets) = (Tensor::new([rows, 2], Layout::Dense, &values), Tensor::new([rows], Layout::Dense, &ids));
    let (mut loss, mut grad) = (Tensor::filled([rows], Layout::Dense, f64::NAN), Tensor::filled([rows, 2], Layout::Dense, f64::NAN));
    let count = count(&targets);
    let of = Targets { targets: targets.view(), count: count.view() };
    engine().cross_entropy(logits.view(), of, loss.view_mut(), Some(grad.view_mut())).expect("it runs");
    assert!(loss.values().iter().zip(&want_loss).all(|(got, want)| (got - want).abs() <= 4e-15));
    assert!(grad.values().iter().zip(&want_grad).all(|(got, want)| (got - want).abs() <= 1e-15));
}

#[test]
fn sums_do_not_lose_small_terms() {
    for n in [0, 1, 255, 8192, 8193, 40_000] {
        for layout in LAYOUTS {
            let values = numbers(n, 5);
            let (from, mut to) = (Tensor::new([n], layout, &values), Tensor::filled([1], layout, f64::NAN));
            with_workspace(engine().sum_workspace(n), |ws| engine().sum(from.view(), to.view_mut(), ws)).expect("it runs");
            assert_eq!(to.values(), [values.iter().sum::<f64>()]);
            let grad = Tensor::new([n], layout, &stored::<f32>(&values));
            with_workspace(engine().sum_workspace(n), |ws| engine().gradient_norm(grad.view(), to.view_mut(), ws)).expect("it runs");
            assert_eq!(to.values(), [values.iter().map(|x| x * x).sum::<f64>().sqrt()]);
        }
    }
    let mut values = vec![1e-4f32; 50_000];
    values[0] = 1e4;
    let want = (1e8 + 49_999.0 * f64::from(1e-4f32).powi(2)).sqrt();
    let (grad, mut norm) = (Tensor::new([50_000], Layout::Dense, &values), Tensor::filled([1], Layout::Dense, f64::NAN));
    with_workspace(engine().sum_workspace(50_000), |ws| engine().gradient_norm(grad.view(), norm.view_mut(), ws)).expect("it runs");
    assert!((norm.values()[0] / want - 1.0).abs() < 1e-14);
    let mut two = Tensor::filled([2], Layout::Dense, 0.0);
    assert_eq!(named(with_workspace(1 << 10, |ws| engine().gradient_norm(grad.view(), two.view_mut(), ws))), "norm");
}

const NUMBERS: AdamWStep =
    AdamWStep { beta1: 0.9, beta2: 0.95, epsilon: 1e-6, weight_decay: 0.2, clip: 0.75, rate: 0.01, correct1: 0.1, correct2: 0.05 };

/// An optimiser's memory.
struct Adam<A: Real> {
    p: Tensor<A, 1>,
    g: Tensor<A, 1>,
    m: Tensor<A, 1>,
    v: Tensor<A, 1>,
    segments: Tensor<u64, 2>,
    norm: Tensor<f64, 1>,
    refused: Tensor<u32, 1>,
}

impl<A: Real> Adam<A> {
    fn new(n: usize, layout: Layout, segments: &[[u64; 2]], norm: f64) -> Self {
        let of = |seed| Tensor::new([n], layout, &stored::<A>(&numbers(n, seed)));
        let v = Tensor::new([n], layout, &stored::<A>(&numbers(n, 4).iter().map(|x| x.abs()).collect::<Vec<_>>()));
        let segments = Tensor::new([segments.len(), 2], layout, segments.as_flattened());
        let (norm, refused) = (Tensor::filled([1], layout, norm), Tensor::filled([1], layout, 0));
        Adam { p: of(1), g: of(2), m: of(3), v, segments, norm, refused }
    }

    fn step(&mut self, numbers: AdamWStep, schedule: Option<&Tensor<f64, 1>>) -> Result<(), selective_scan::Error> {
        engine().adamw(AdamWArgs {
            parameters: self.p.view_mut(),
            gradients: self.g.view(),
            first: self.m.view_mut(),
            second: self.v.view_mut(),
            segments: self.segments.view(),
            norm: self.norm.view(),
            refused: self.refused.view_mut(),
            schedule: schedule.map(|s| s.view()),
            numbers,
        })
    }
}

/// As the host's, operation by operation.
fn update(s: &AdamWStep, scale: f64, decay: f64, [p, g, m, v]: [f64; 4]) -> [f64; 3] {
    let g = g * scale;
    let mean = s.beta1 * m + (1.0 - s.beta1) * g;
    let square = s.beta2 * v + (1.0 - s.beta2) * g * g;
    let way = (mean / s.correct1) / ((square / s.correct2).sqrt() + s.epsilon);
    [p - s.rate * decay * p - s.rate * way, mean, square]
}

fn steps<A: Real>() {
    let tables: [&[[u64; 2]]; 4] = [&[], &[[0, 1]], &[[0, 0], [3, 1], [700, 0], [701, 1], [1500, 0], [9000, 1]], &[[5, 1], [5, 0], [6, 1]]];
    for ((n, segments), layout) in [0, 1, 255, 2100].into_iter().flat_map(|n| tables.map(|t| (n, t))).flat_map(|c| LAYOUTS.map(|l| (c, l)))
    {
        for norm in [0.5, 3.0] {
            let mut adam = Adam::<A>::new(n, layout, segments, norm);
            let before = [&adam.p, &adam.g, &adam.m, &adam.v].map(|t| wide(&t.values()));
            adam.step(NUMBERS, None).expect("it runs");
            let scale = if norm > 0.75 { 0.75 / norm } else { 1.0 };
            for (i, got) in adam.p.values().into_iter().zip(adam.m.values()).zip(adam.v.values()).enumerate() {
                let decays = segments.iter().rev().find(|s| s[0] as usize <= i).is_some_and(|s| s[1] == 1);
                let at = [0, 1, 2, 3].map(|k| before[k][i]);
                let want = update(&NUMBERS, scale, if decays { 0.2 } else { 0.0 }, at).map(A::from_f64);
                assert_bits("p, m, v", &[got.0.0, got.0.1, got.1], &want);
            }
            assert_eq!(adam.refused.values(), [0]);
        }
    }
}

#[test]
fn adamw_has_the_bits_of_the_host() {
    steps::<f32>();
    steps::<f64>();
}

#[test]
fn a_bad_norm_changes_nothing_and_is_counted() {
    for norm in [f64::NAN, f64::INFINITY] {
        let mut adam = Adam::<f32>::new(1500, Layout::Dense, &[[0, 1]], norm);
        let before = [&adam.p, &adam.m, &adam.v].map(|t| t.values());
        (0..2).for_each(|_| adam.step(NUMBERS, None).expect("it runs"));
        assert_eq!([&adam.p, &adam.m, &adam.v].map(|t| t.values()), before);
        assert_eq!(adam.refused.values(), [2]);
    }
    let mut adam = Adam::<f32>::new(3, Layout::Dense, &[[0, 1]], 1.0);
    assert_eq!(named(adam.step(AdamWStep { beta1: 1.0, ..NUMBERS }, None)), "beta1");
    assert_eq!(named(adam.step(AdamWStep { rate: f64::NAN, ..NUMBERS }, None)), "rate");
    assert_eq!(named(adam.step(AdamWStep { correct2: 0.0, ..NUMBERS }, None)), "correct2");
    let short = Tensor::filled([2], Layout::Dense, 1.0);
    assert_eq!(named(adam.step(NUMBERS, Some(&short))), "schedule");
}

/// Loss, norm and step recorded once and run again, with a learning rate from memory.
#[test]
fn a_recorded_step_takes_new_numbers() {
    let run = |recorded: bool| {
        let mut adam = Adam::<f32>::new(600, Layout::Dense, &[[0, 1]], f64::NAN);
        let (logits, targets) = (Tensor::new([20, 30], Layout::Dense, &adam.p.values()), Tensor::new([20], Layout::Dense, &[4u32; 20]));
        let (mut loss, mut total) = (Tensor::filled([20], Layout::Dense, f64::NAN), Tensor::filled([1], Layout::Dense, f64::NAN));
        let mut count = Tensor::filled([1], Layout::Dense, f64::NAN);
        let schedule = Tensor::new([3], Layout::Dense, &[0.02, 0.3, 0.4]);
        let mut grad = Tensor::filled([20, 30], Layout::Dense, f32::NAN);
        let mut scratch = engine().upload(&vec![0xffu8; engine().sum_workspace(600)]).expect("memory");
        let mut work = |adam: &mut Adam<f32>| {
            engine().count_targets(targets.view(), count.view_mut(), &mut scratch.workspace())?;
            let of = Targets { targets: targets.view(), count: count.view() };
            engine().cross_entropy(logits.view(), of, loss.view_mut(), Some(grad.view_mut()))?;
            engine().sum(loss.view(), total.view_mut(), &mut scratch.workspace())?;
            engine().gradient_norm(adam.g.view(), adam.norm.view_mut(), &mut scratch.workspace())?;
            adam.step(NUMBERS, Some(&schedule))
        };
        work(&mut adam).expect("it runs");
        if recorded {
            let graph = engine().capture(|| work(&mut adam)).expect("nothing in it allocates or waits");
            // SAFETY: all buffers are still there.
            unsafe { graph.replay() }.expect("it runs");
        } else {
            work(&mut adam).expect("it runs");
        }
        assert_eq!(loss.values().iter().sum::<f64>() as f32, total.values()[0] as f32);
        (adam.p.values(), adam.norm.values(), total.values(), grad.values())
    };
    assert_eq!(run(false), run(true));
    let mut plain = Adam::<f32>::new(600, Layout::Dense, &[[0, 1]], 1.0);
    let mut scheduled = Adam::<f32>::new(600, Layout::Dense, &[[0, 1]], 1.0);
    plain.step(AdamWStep { rate: 0.02, correct1: 0.3, correct2: 0.4, ..NUMBERS }, None).expect("it runs");
    scheduled.step(NUMBERS, Some(&Tensor::new([3], Layout::Dense, &[0.02, 0.3, 0.4]))).expect("it runs");
    assert_bits("p", &scheduled.p.values(), &plain.p.values());
}

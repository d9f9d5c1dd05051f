//! The decode step of the SIMD engine: the bits of the forward scan, one position at a time.

use selective_scan::buffer::Buffer;
use selective_scan::cpu::Cpu;
use selective_scan::element::{Element, Input, Real, Weight};
use selective_scan::naive::Naive;
use selective_scan::selective::{Coefficient, SelectiveScan, SelectiveStep};
use selective_scan::view::{Host, View, ViewMut};

use super::case::{C32, Case, Coef, Operands};
use super::engines;

/// Row `t` of a (B, L, D) tensor, (B, D).
fn at<T: Copy>(v: View<'_, T, 3>, t: usize) -> (Vec<T>, [usize; 2]) {
    let [batch, _, dim] = v.dims();
    ((0..batch * dim).map(|i| v.get([i / dim, t, i % dim])).collect(), [batch, dim])
}

/// Position `t` of a varying coefficient, or the constant one.
fn coefficient<'a, I: Input, W: Weight<Real = I::Accum>>(
    of: &'a Coef<I, W>,
    t: usize,
    memory: &'a mut Vec<W::Stored<I>>,
) -> Coefficient<'a, I, W, 3> {
    match of {
        Coef::Constant(v) => Coefficient::Constant(v.view()),
        Coef::Varying(v) => {
            let v = v.view();
            let [batch, _, groups, n] = v.dims();
            *memory = (0..batch * groups * n).map(|i| v.get([i / (groups * n), t, i / n % groups, i % n])).collect();
            Coefficient::Varying(View::new(memory, [batch, groups, n]))
        }
    }
}

/// Every position as a step; out (L, B, D) and the last states as f64. Row b has slot `slots[b]` of `state`, which is (slots, D, N).
fn steps<I: Input, W: Weight<Real = I::Accum>, S: Element<Arith = W>>(
    engine: &impl SelectiveScan<Memory = Host>,
    of: &Operands<I, W>,
    slots: Option<&[i32]>,
    state: &mut [S],
    count: usize,
) -> Vec<f64> {
    let [dim, n] = of.inputs().A.dims();
    steps_on(engine, of, slots, ViewMut::new(state, [count, dim, n]))
}

/// The same on states that lie in any way.
fn steps_on<I: Input, W: Weight<Real = I::Accum>, S: Element<Arith = W>>(
    engine: &impl SelectiveScan<Memory = Host>,
    of: &Operands<I, W>,
    slots: Option<&[i32]>,
    mut state: ViewMut<'_, S, 3>,
) -> Vec<f64> {
    let inputs = of.inputs();
    let mut outs = vec![];
    for t in 0..inputs.u.dims()[1] {
        let ((u, dims), (delta, _), (z, _)) = (at(inputs.u, t), at(inputs.delta, t), at(of.z.view(), t));
        let (mut b, mut c, mut out) = (vec![], vec![], vec![I::default(); u.len()]);
        let args = SelectiveStep {
            u: View::new(&u, dims),
            delta: View::new(&delta, dims),
            A: inputs.A,
            B: coefficient(&of.b, t, &mut b),
            C: coefficient(&of.c, t, &mut c),
            D: inputs.D,
            z: inputs.z.map(|_| View::new(&z, dims)),
            delta_bias: inputs.delta_bias,
            state: state.reborrow(),
            slots: slots.map(|s| View::new(s, [s.len()])),
            out: ViewMut::new(&mut out, dims),
            options: inputs.options,
        };
        let bytes = engine.selective_state_update_workspace::<I, W>(&args.check().unwrap());
        engine.selective_state_update(args, &mut Buffer::new().workspace(bytes)).unwrap();
        outs.extend(out.iter().map(|x| x.load().to_f64()));
    }
    outs
}

/// (B, L, D) from (L, B, D).
fn turn(outs: &[f64], [batch, seqlen, dim]: [usize; 3]) -> Vec<f64> {
    (0..outs.len()).map(|i| outs[(i / dim % seqlen * batch + i / (dim * seqlen)) * dim + i % dim]).collect()
}

fn stored<S: Element>(view: View<'_, S::Arith, 3>) -> Vec<S> {
    let [a, b, c] = view.dims();
    (0..a * b * c).map(|i| S::store(view.get([i / (b * c), i / c % b, i % c]))).collect()
}

fn have_the_bits_of_forward<I: Input, W: Weight<Real = I::Accum>>(cpu: &Cpu, case: &Case) {
    let of = Operands::<I, W>::new::<I, W>(case);
    let mut state: Vec<W> = stored(of.initial.view());
    let outs = steps(cpu, &of, None, &mut state, case.dims[0]);
    let forward = of.forward(cpu);
    assert_eq!(turn(&outs, case.dims), forward[0].1, "{case:?} on {}", cpu.isa().name());
    let parts = |x: &W| [x.re().to_f64(), x.im().to_f64()];
    let last: Vec<f64> = state.iter().flat_map(|x| parts(x).into_iter().take(1 + usize::from(W::COMPLEX))).collect();
    assert_eq!(last, forward[1].1);
}

#[test]
fn steps_have_the_bits_of_forward() {
    for groups in [[Some(1), Some(3)], [None, Some(1)], [None, None]] {
        let case = Case { groups, ..Case::full([3, 5, 39], 7) };
        for cpu in engines() {
            have_the_bits_of_forward::<f32, f32>(&cpu, &case);
            have_the_bits_of_forward::<half::bf16, C32>(&cpu, &case);
            have_the_bits_of_forward::<f64, f64>(&cpu, &Case { z: false, d: false, bias: false, ..case.clone() });
        }
    }
    // As many states as fill vectors, and channels beside whole ones.
    for cpu in engines() {
        have_the_bits_of_forward::<f32, f32>(&cpu, &Case { groups: [Some(1), Some(1)], ..Case::full([2, 3, 70], 16) });
    }
}

#[test]
fn states_with_channels_side_by_side_give_the_same_bits() {
    let (case, [dim, n]) = (Case { groups: [Some(1), Some(1)], ..Case::full([2, 3, 70], 16) }, [70, 16]);
    for cpu in engines() {
        let of = Operands::<f32, f32>::new::<f32, f32>(&case);
        let mut plain: Vec<f32> = stored(of.initial.view());
        // (B, N, D).
        let from = |i: usize| i / (n * dim) * n * dim + i % dim * n + i / dim % n;
        let mut turned: Vec<f32> = (0..plain.len()).map(|i| plain[from(i)]).collect();
        let want = steps(&cpu, &of, None, &mut plain, 2);
        let got = steps_on(&cpu, &of, None, ViewMut::new(&mut turned, [2, n, dim]).permute([0, 2, 1]));
        assert_eq!(got, want, "{}", cpu.isa().name());
        assert!((0..plain.len()).all(|i| turned[i] == plain[from(i)]), "{}", cpu.isa().name());
    }
}

#[test]
fn slots_are_found_and_negative_ones_are_left_alone() {
    let case = Case::full([3, 1, 21], 4);
    let each = 21 * 4;
    for cpu in engines() {
        let of = Operands::<f32, f32>::new::<f32, f32>(&case);
        let mut plain: Vec<f32> = stored(of.initial.view());
        let mut state = vec![9.0f32; 5 * each];
        state[4 * each..].copy_from_slice(&plain[..each]);
        state[each..2 * each].copy_from_slice(&plain[2 * each..]);
        let out = steps(&cpu, &of, None, &mut plain, 3);
        let by_slot = steps(&cpu, &of, Some(&[4, -1, 1]), &mut state, 5);
        assert_eq!((&by_slot[..21], &by_slot[42..]), (&out[..21], &out[42..]));
        assert!(by_slot[21..42].iter().all(|&x| x == 0.0));
        assert_eq!((&state[4 * each..], &state[each..2 * each]), (&plain[..each], &plain[2 * each..]));
        for slot in [0, 2, 3] {
            assert!(state[slot * each..(slot + 1) * each].iter().all(|&x| x == 9.0));
        }
    }
}

#[test]
fn a_16_bit_state_is_rounded_once_a_step() {
    rounds_once(&Case::full([2, 1, 19], 6));
    // A turned by squares, as the states are not used where they lie.
    rounds_once(&Case { groups: [Some(1), Some(1)], ..Case::full([2, 1, 64], 16) });
}

fn rounds_once(case: &Case) {
    let single = Operands::<f32, f32>::new::<half::f16, f32>(case);
    let start: Vec<half::f16> = stored(single.initial.view());
    let double = Operands::<f64, f64>::new::<half::f16, f32>(case);
    let mut want: Vec<f64> = start.iter().map(|x| x.to_f64()).collect();
    steps(&Naive, &double, None, &mut want, 2);
    for cpu in engines() {
        let mut state = start.clone();
        steps(&cpu, &single, None, &mut state, 2);
        for (x, w) in state.iter().zip(&want) {
            assert!((x.to_f64() - w).abs() <= w.abs() / 2048.0 + 2e-6, "{x} {w} on {}", cpu.isa().name());
        }
    }
}

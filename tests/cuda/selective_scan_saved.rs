//! What the forward scan hands over to the backward one changes no bit of the gradients, but for the rounding of softplus.
#![allow(non_snake_case)]

use half::bf16;
use selective_scan::cuda::{Cuda, Regime};
use selective_scan::element::{Element, Input, Weight};
use selective_scan::selective::{
    Coefficient, CoefficientGrad, SelectiveBwd, SelectiveFwd, SelectiveGrads, SelectiveInputs, SelectiveOptions, SelectiveScan,
};
use selective_scan::sequences::Sequences;
use selective_scan::view::Device;

use super::arrays::{Draw, stored};
use super::tensor::{LAYOUTS, Layout, Tensor, named, with_workspace};

/// Operands of B rows, L steps, D channels and N states.
struct Operands<I: Input> {
    dims: [usize; 3],
    dstate: usize,
    by_position: [Tensor<I, 3>; 4],
    shared: [Tensor<I, 4>; 2],
    a: Tensor<f32, 2>,
    skip: Tensor<f32, 1>,
    initial: Tensor<f32, 3>,
    offsets: Option<Tensor<i64, 1>>,
    softplus: bool,
}

impl<I: Input<Accum = f32>> Operands<I>
where
    f32: Weight<Stored<I> = I>,
{
    fn new(dims: [usize; 3], dstate: usize, layout: Layout, offsets: Option<&[i64]>, softplus: bool) -> Self {
        let [b, l, d] = dims;
        let draw = &mut Draw(77);
        fn some<T: Element>(draw: &mut Draw, count: usize, low: f64, high: f64) -> Vec<T> {
            (0..count).map(|_| stored(draw.between(low, high), 0.0)).collect()
        }
        let states = offsets.map_or(b, |o| o.len() - 1);
        Operands {
            dims,
            dstate,
            // Δ, the second one, is positive where softplus does not make it so.
            by_position: core::array::from_fn(|i| {
                let low = if i == 1 && !softplus { 0.02 } else { -1.0 };
                Tensor::new(dims, layout, &some(draw, b * l * d, low, 1.0))
            }),
            shared: core::array::from_fn(|_| Tensor::new([b, l, 1, dstate], layout, &some(draw, b * l * dstate, -1.0, 1.0))),
            a: Tensor::new([d, dstate], layout, &some(draw, d * dstate, -2.0, -0.1)),
            skip: Tensor::new([d], layout, &some(draw, d, -1.0, 1.0)),
            initial: Tensor::new([states, d, dstate], layout, &some(draw, states * d * dstate, -1.0, 1.0)),
            offsets: offsets.map(|o| Tensor::new([o.len()], layout, o)),
            softplus,
        }
    }

    fn inputs(&self) -> SelectiveInputs<'_, I, f32, Device> {
        let [u, delta, z, _] = &self.by_position;
        let [b, c] = &self.shared;
        SelectiveInputs {
            u: u.view(),
            delta: delta.view(),
            A: self.a.view(),
            B: Coefficient::Varying(b.view()),
            C: Coefficient::Varying(c.view()),
            D: Some(self.skip.view()),
            z: Some(z.view()),
            delta_bias: None,
            initial_state: Some(self.initial.view()),
            sequences: self.offsets.as_ref().map_or(Sequences::Rows, |o| Sequences::CuSeqlens(o.view())),
            options: SelectiveOptions { delta_softplus: self.softplus, ..SelectiveOptions::default() },
        }
    }

    /// Bytes that the forward call saves; fewer are refused.
    fn save(&self, engine: &Cuda) -> Tensor<u8, 1> {
        let layout = LAYOUTS[0];
        let mut out = Tensor::filled(self.dims, layout, I::default());
        fn args<'a, I: Input<Accum = f32>>(operands: &'a Operands<I>, out: &'a mut Tensor<I, 3>) -> SelectiveFwd<'a, I, f32, Device>
        where
            f32: Weight<Stored<I> = I>,
        {
            SelectiveFwd { inputs: operands.inputs(), out: out.view_mut(), last_state: None }
        }
        let problem = args(self, &mut out).check().unwrap();
        let bytes = engine.selective_scan_saved_bytes::<I, f32>(&problem);
        assert!(bytes > 0, "there is something to save");
        let mut saved = Tensor::filled([bytes], layout, 0xffu8);
        let scratch = engine.selective_scan_fwd_saving_workspace::<I, f32>(&problem);
        let mut few = Tensor::filled([bytes - 1], layout, 0u8);
        let refused = with_workspace(scratch, |ws| engine.selective_scan_fwd_saving(args(self, &mut out), few.view_mut(), ws));
        assert_eq!(named(refused), "saved");
        with_workspace(scratch, |ws| engine.selective_scan_fwd_saving(args(self, &mut out), saved.view_mut(), ws)).unwrap();
        engine.synchronize().unwrap();
        saved
    }

    /// Every gradient, from what was saved or without it.
    fn gradients(&self, engine: &Cuda, saved: Option<&Tensor<u8, 1>>) -> Vec<Vec<f64>> {
        let ([b, l, d], n, layout) = (self.dims, self.dstate, LAYOUTS[0]);
        let zero = I::default();
        let mut by_position: [Tensor<I, 3>; 3] = core::array::from_fn(|_| Tensor::filled([b, l, d], layout, zero));
        let mut shared: [Tensor<I, 4>; 2] = core::array::from_fn(|_| Tensor::filled([b, l, 1, n], layout, zero));
        let (mut a, mut skip) = (Tensor::filled([d, n], layout, 0.0f32), Tensor::filled([d], layout, 0.0f32));
        let states = self.offsets.as_ref().map_or(b, |o| o.values().len() - 1);
        let mut initial = Tensor::filled([states, d, n], layout, 0.0f32);
        let ([u, delta, z], [gb, gc]) = (&mut by_position, &mut shared);
        let args = SelectiveBwd {
            inputs: self.inputs(),
            grad_out: self.by_position[3].view(),
            grad_last_state: None,
            grads: SelectiveGrads {
                u: Some(u.view_mut()),
                delta: Some(delta.view_mut()),
                A: Some(a.view_mut()),
                B: Some(CoefficientGrad::Varying(gb.view_mut())),
                C: Some(CoefficientGrad::Varying(gc.view_mut())),
                D: Some(skip.view_mut()),
                z: Some(z.view_mut()),
                delta_bias: None,
                initial_state: Some(initial.view_mut()),
            },
        };
        let bytes = engine.selective_scan_bwd_workspace::<I, f32>(&args.check().unwrap());
        with_workspace(bytes, |ws| match saved {
            Some(saved) => engine.selective_scan_bwd_from(args, saved.view(), ws),
            None => engine.selective_scan_bwd(args, ws),
        })
        .unwrap();
        engine.synchronize().unwrap();
        fn numbers<T: Element>(values: Vec<T>) -> Vec<f64> {
            values.into_iter().map(|x| super::arrays::parts(x)[0]).collect()
        }
        let mut all: Vec<Vec<f64>> = by_position.iter().map(|t| numbers(t.values())).collect();
        all.extend(shared.iter().map(|t| numbers(t.values())));
        all.extend([numbers(a.values()), numbers(skip.values()), numbers(initial.values())]);
        all
    }
}

/// Largest difference over the largest number of `want`.
fn apart(got: &[f64], want: &[f64]) -> f64 {
    let most = |of: &mut dyn Iterator<Item = f64>| of.fold(0.0, |m: f64, x| m.max(x.abs()));
    most(&mut got.iter().zip(want).map(|(x, y)| x - y)) / most(&mut want.iter().copied())
}

/// Saved states give the same bits in both regimes: those of states that are computed again, or with softplus in whole rows numbers within `bound` of them.
fn same<I: Input<Accum = f32>>(dims: [usize; 3], dstate: usize, layout: Layout, offsets: Option<&[i64]>, softplus: bool, bound: f64)
where
    f32: Weight<Stored<I> = I>,
{
    let operands = Operands::<I>::new(dims, dstate, layout, offsets, softplus);
    let exact = !softplus || offsets.is_some();
    let mut first: [Option<Vec<Vec<f64>>>; 2] = [None, None];
    for regime in [Regime::Walk, Regime::Split] {
        let engine = super::engine().clone().with_regime(Some(regime));
        let saved = operands.save(&engine);
        for (saved, first) in [None, Some(&saved)].into_iter().zip(&mut first) {
            let got = operands.gradients(&engine, saved);
            assert!(got.iter().flatten().all(|x| x.is_finite()) && got[0].iter().any(|x| *x != 0.0));
            let want = first.get_or_insert_with(|| got.clone());
            assert!(*want == got, "{dims:?} {dstate} {layout:?} {offsets:?} {regime:?}, saved: {}", saved.is_some());
        }
    }
    let [Some(again), Some(kept)] = first else { unreachable!("both ran") };
    assert!(!exact || again == kept, "{dims:?} {dstate} {layout:?} {offsets:?}");
    for (i, (got, want)) in kept.iter().zip(&again).enumerate() {
        let off = apart(got, want);
        assert!(off <= bound, "{dims:?} {dstate} {layout:?} {offsets:?}: gradient {i} is {off:.1e} away, {bound:.1e} is allowed");
    }
}

/// Of an f32 gradient, and of one that is rounded to bf16.
const BOUNDS: [f64; 2] = [4e-6, 5e-3];

#[test]
fn saved_states_give_the_same_gradients() {
    for softplus in [false, true] {
        same::<f32>([2, 150, 5], 16, LAYOUTS[1], None, softplus, BOUNDS[0]);
        same::<bf16>([1, 300, 72], 16, LAYOUTS[0], None, softplus, BOUNDS[1]);
        same::<f32>([1, 200, 3], 20, LAYOUTS[0], None, softplus, BOUNDS[0]);
        same::<f32>([1, 140, 2], 256, LAYOUTS[0], None, softplus, BOUNDS[0]);
        // No forward tile has so many states: a pass of its own keeps them.
        same::<f32>([1, 140, 2], 136, LAYOUTS[0], None, softplus, BOUNDS[0]);
        same::<bf16>([1, 260, 8], 16, LAYOUTS[1], Some(&[0, 7, 7, 140, 260]), softplus, BOUNDS[1]);
    }
}

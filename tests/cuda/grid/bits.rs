//! What must be the same bits: repeats, both regimes, a row alone, sequences apart, any layout.

use selective_scan::Error;
use selective_scan::cuda::Regime;
use selective_scan::element::{Dtype, Input, Weight};
use selective_scan::layers::norm::NormOptions;

use super::array::Array;
use super::carried_by;
use super::dense::{self, Norm};
use super::draws::accum;
use super::pairs::Draw;
use super::selective::{self, typed};
use super::tensor::Layout;
use super::transform::{Packing, Transform};
use super::{Engine, Faults, Found, LAYOUTS, Role, STORAGE, convolution, named, recurrence, refused, same_bits, selective_grid};

/// A problem of some operator, all of whose rows are as long.
trait Case {
    fn name(&self) -> String;
    /// Everything that the operator gives.
    fn run(&self, regime: Regime, layout: Layout) -> Result<Vec<Found>, Error>;
    /// B and L; L is 1 where there is no time.
    fn sizes(&self) -> [usize; 2];
    /// Row `b` alone.
    fn row(&self, b: usize) -> Box<dyn Case>;
    /// The same work arranged in another way; None where the operator knows no sequences.
    fn arranged(&self, by: &Transform) -> Option<Box<dyn Case>>;
    /// Whether states come in, or gradients of the last ones.
    fn has_states(&self) -> bool;
}

/// A problem in a storage type.
struct In<P>(Dtype, P);

fn alone(b: usize, seqlen: usize) -> Transform {
    let index = vec![(0..seqlen).map(|t| Some((b, t))).collect()];
    Transform { label: format!("row {b} alone"), index, packing: Packing::Rows, states: vec![b], whole: false }
}

impl Case for In<selective::Problem> {
    fn name(&self) -> String {
        let of = &self.1;
        let flags = [of.D.is_some(), of.z.is_some(), of.delta_bias.is_some(), of.h0.is_some(), of.grad_last.is_some()];
        let (kinds, dims) = ([of.B.dims.len(), of.C.dims.len()], (&of.u.dims, of.A.dims[1]));
        format!("selective {} {dims:?} complex {} {:?} {kinds:?} {flags:?}", self.0.name(), of.complex(), of.options)
    }

    fn run(&self, regime: Regime, layout: Layout) -> Result<Vec<Found>, Error> {
        selective::run_in(&carried_by(regime), self.0, &self.1, layout)
    }

    fn sizes(&self) -> [usize; 2] {
        [self.1.u.dims[0], self.1.u.dims[1]]
    }

    fn row(&self, b: usize) -> Box<dyn Case> {
        Box::new(In(self.0, self.1.transform(&alone(b, self.sizes()[1]))))
    }

    fn arranged(&self, by: &Transform) -> Option<Box<dyn Case>> {
        Some(Box::new(In(self.0, self.1.transform(by))))
    }

    fn has_states(&self) -> bool {
        self.1.h0.is_some() || self.1.grad_last.is_some()
    }
}

impl Case for In<convolution::Problem> {
    fn name(&self) -> String {
        format!("convolution {} {:?} {:?}", self.0.name(), self.1.x.dims, self.1.weight.dims)
    }

    fn run(&self, regime: Regime, layout: Layout) -> Result<Vec<Found>, Error> {
        convolution::run_in(&carried_by(regime), self.0, &self.1, layout)
    }

    fn sizes(&self) -> [usize; 2] {
        [self.1.x.dims[0], self.1.x.dims[1]]
    }

    fn row(&self, b: usize) -> Box<dyn Case> {
        Box::new(In(self.0, self.1.transform(&alone(b, self.sizes()[1]))))
    }

    fn arranged(&self, by: &Transform) -> Option<Box<dyn Case>> {
        Some(Box::new(In(self.0, self.1.transform(by))))
    }

    fn has_states(&self) -> bool {
        self.1.window.is_some() || self.1.grad_window.is_some()
    }
}

impl Case for In<recurrence::Problem> {
    fn name(&self) -> String {
        format!("recurrence {} {:?} complex {} reverse {}", self.0.name(), self.1.a.dims, self.1.a.complex, self.1.reverse)
    }

    fn run(&self, regime: Regime, layout: Layout) -> Result<Vec<Found>, Error> {
        recurrence::run_in(&carried_by(regime), self.0, &self.1, layout)
    }

    fn sizes(&self) -> [usize; 2] {
        [self.1.a.dims[0], self.1.a.dims[1]]
    }

    fn row(&self, b: usize) -> Box<dyn Case> {
        Box::new(In(self.0, self.1.row(b)))
    }

    fn arranged(&self, _: &Transform) -> Option<Box<dyn Case>> {
        None
    }

    fn has_states(&self) -> bool {
        true
    }
}

impl Case for In<Norm> {
    fn name(&self) -> String {
        format!("norm {} {:?} wide {}", self.0.name(), self.1.x.dims, self.1.wide)
    }

    fn run(&self, regime: Regime, layout: Layout) -> Result<Vec<Found>, Error> {
        dense::norm_in(&carried_by(regime), self.0, &self.1, layout)
    }

    fn sizes(&self) -> [usize; 2] {
        [self.1.x.dims[0], 1]
    }

    fn row(&self, b: usize) -> Box<dyn Case> {
        Box::new(In(self.0, self.1.rows(&[b])))
    }

    fn arranged(&self, _: &Transform) -> Option<Box<dyn Case>> {
        None
    }

    fn has_states(&self) -> bool {
        false
    }
}

/// One step of a selective scan and of a convolution.
struct Steps(selective::Problem, convolution::Problem);

fn step<E: Engine, I: Input, W: Weight<Real = I::Accum>>(engine: &E, of: &selective::Problem, layout: Layout) -> Result<Vec<Found>, Error> {
    selective::step::<E, I, W, W>(engine, of, 0, of.h0.as_ref().expect("a step has states"), None, layout)
}

impl Case for In<Steps> {
    fn name(&self) -> String {
        format!("steps {} {:?} complex {}", self.0.name(), self.1.0.u.dims, self.1.0.complex())
    }

    fn run(&self, regime: Regime, layout: Layout) -> Result<Vec<Found>, Error> {
        let (engine, Steps(scan, conv)) = (carried_by(regime), &self.1);
        let mut results = typed!(self.0, scan.complex(), step(&engine, scan, layout))?;
        let windows = conv.window.as_ref().expect("a step has windows");
        let moved = convolution::step_in(&engine, self.0, conv, 0, windows, None, layout)?;
        results.extend(moved.into_iter().zip(["conv.out", "conv.window"]).map(|(f, name)| Found { name, ..f }));
        Ok(results)
    }

    fn sizes(&self) -> [usize; 2] {
        [self.1.0.u.dims[0], 1]
    }

    fn row(&self, b: usize) -> Box<dyn Case> {
        let by = alone(b, 1);
        Box::new(In(self.0, Steps(self.1.0.transform(&by), self.1.1.transform(&by))))
    }

    fn arranged(&self, _: &Transform) -> Option<Box<dyn Case>> {
        None
    }

    fn has_states(&self) -> bool {
        true
    }
}

fn convolution_of(dtype: Dtype, [batch, seqlen, dim, width]: [usize; 4], states: bool, silu: bool) -> convolution::Problem {
    let mut draw = Draw(seqlen as u64);
    let state = [batch, width - 1, dim];
    convolution::Problem {
        x: draw.array(&[batch, seqlen, dim], false, dtype, -1.0, 1.0),
        weight: draw.array(&[dim, width], false, accum(dtype), -1.0, 1.0),
        bias: silu.then(|| draw.array(&[dim], false, accum(dtype), -1.0, 1.0)),
        window: states.then(|| draw.array(&state, false, dtype, -1.0, 1.0)),
        grad_out: draw.array(&[batch, seqlen, dim], false, dtype, -1.0, 1.0),
        grad_window: states.then(|| draw.array(&state, false, dtype, -1.0, 1.0)),
        packing: Packing::Rows,
        silu,
        last: true,
        parameters: false,
    }
}

fn recurrence_of(dtype: Dtype, dims @ [batch, _, dim]: [usize; 3], complex: bool, reverse: bool) -> recurrence::Problem {
    let mut draw = Draw(dims[1] as u64);
    let state = |draw: &mut Draw| Some(draw.array(&[batch, dim], complex, accum(dtype), -1.0, 1.0));
    recurrence::Problem {
        a: draw.array(&dims, complex, dtype, -0.5, 0.7),
        b: draw.array(&dims, complex, dtype, -1.0, 1.0),
        h0: state(&mut draw),
        grad_h: draw.array(&dims, complex, dtype, -1.0, 1.0),
        grad_last: state(&mut draw),
        reverse,
        last: true,
        only_a: false,
    }
}

fn norm_of(dtype: Dtype, dims: [usize; 2], wide: bool) -> Norm {
    let (mut draw, kept) = (Draw(dims[1] as u64), if wide { accum(dtype) } else { dtype });
    Norm {
        z: wide.then(|| draw.array(&dims, false, dtype, -4.0, 4.0)),
        options: NormOptions { norm_before_gate: dims[1].is_multiple_of(2), group_size: None },
        x: draw.array(&dims, false, dtype, -1.0, 1.0),
        residual: Some(draw.array(&dims, false, kept, -1.0, 1.0)),
        weight: draw.array(&dims[1..], false, accum(dtype), -1.0, 1.0),
        grad_out: draw.array(&dims, false, dtype, -1.0, 1.0),
        grad_stream: wide.then(|| draw.array(&dims, false, kept, -1.0, 1.0)),
        stream: draw.array(&dims, false, kept, -1.0, 1.0),
        wide,
    }
}

/// The operators, each in every storage type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    Selective,
    Convolution,
    Recurrence,
    Norm,
    Steps,
}

fn cases(of: Of) -> Vec<Box<dyn Case>> {
    let mut all: Vec<Box<dyn Case>> = Vec::new();
    if of == Of::Selective {
        return selective_grid::batches().into_iter().map(|(dtype, p)| Box::new(In(dtype, p)) as Box<dyn Case>).collect();
    }
    for (i, dtype) in STORAGE.into_iter().enumerate() {
        for flag in [false, true] {
            match of {
                Of::Convolution => {
                    all.push(Box::new(In(dtype, convolution_of(dtype, [3, 140, 9, 2 + i], flag, !flag))));
                    all.push(Box::new(In(dtype, convolution_of(dtype, [3, 2, 37, 4], !flag, flag))));
                }
                Of::Recurrence => {
                    all.push(Box::new(In(dtype, recurrence_of(dtype, [3, 300, 5], flag, i % 2 == 0))));
                    all.push(Box::new(In(dtype, recurrence_of(dtype, [2, 129, 40], !flag, i % 2 == 0))));
                }
                Of::Norm => {
                    all.push(Box::new(In(dtype, norm_of(dtype, [5, if flag { 37 } else { 256 }], flag))));
                    let options = NormOptions { norm_before_gate: i % 2 == 0, group_size: Some(16) };
                    all.push(Box::new(In(dtype, Norm { options, ..norm_of(dtype, [5, 48], flag) })));
                }
                _ => {
                    let (scan, conv) = (selective_grid::one_step(dtype, flag, 16 + i), convolution_of(dtype, [3, 1, 9, 4], true, flag));
                    all.push(Box::new(In(dtype, Steps(scan, conv))));
                }
            }
        }
    }
    all
}

/// Tries a property with every case of every operator; in the regimes by turns.
fn each(of: Of, property: impl Fn(&dyn Case, Regime) -> Result<(), String>) {
    let mut faults = Faults::default();
    for (i, case) in cases(of).iter().enumerate() {
        let regime = if i % 2 == 0 { Regime::Walk } else { Regime::Split };
        faults.case(&|| format!("{}, {regime:?}", case.name()), || property(case.as_ref(), regime));
    }
    faults.none();
}

fn all_same(got: &[Found], want: &[Found], how: &str) -> Result<(), String> {
    got.iter().try_for_each(|f| same_bits(f, &named(want, f.name).array)).map_err(|why| format!("{how}: {why}"))
}

/// The same call again, with whatever memory it gets.
fn repeats(case: &dyn Case, regime: Regime) -> Result<(), String> {
    let [one, two] = [0, 1].map(|_| case.run(regime, Layout::Contiguous).map_err(refused));
    all_same(&two?, &one?, "again")
}

fn regimes(case: &dyn Case, _: Regime) -> Result<(), String> {
    let [walk, split] = [Regime::Walk, Regime::Split].map(|r| case.run(r, Layout::Contiguous).map_err(refused));
    all_same(&split?, &walk?, "split, not walked")
}

/// Outputs, states and gradients by position of each row, whatever else is in the batch.
fn rows_alone(case: &dyn Case, regime: Regime) -> Result<(), String> {
    let whole = case.run(regime, Layout::Contiguous).map_err(refused)?;
    for b in 0..case.sizes()[0] {
        for found in case.row(b).run(regime, Layout::Contiguous).map_err(refused)?.iter().filter(|f| f.role != Role::Shared) {
            same_bits(found, &named(&whole, found.name).array.take(&[b])).map_err(|why| format!("row {b} alone: {why}"))?;
        }
    }
    Ok(())
}

/// Rows of a batch one after another by offsets; with padding by ids; and, without states, all in one row by ids with padding.
fn packed(case: &dyn Case, regime: Regime) -> Result<(), String> {
    let (whole, [batch, seqlen]) = (case.run(regime, Layout::Contiguous).map_err(refused)?, case.sizes());
    let mut ways = vec![Transform::pack(batch, seqlen), Transform::padded(batch, seqlen)];
    if !case.has_states() {
        ways.push(Transform::chain(&(0..batch).map(|b| (0..seqlen).map(|t| (b, t)).collect()).collect::<Vec<_>>()));
    }
    for by in ways {
        let Some(other) = case.arranged(&by) else { return Ok(()) };
        for found in other.run(regime, Layout::Contiguous).map_err(refused)? {
            let before: &Array = &named(&whole, found.name).array;
            match found.role {
                Role::Positions => same_bits(&found, &by.positions(before)),
                Role::States => same_bits(&found, &before.take(&by.states)),
                Role::Shared => Ok(()),
            }
            .map_err(|why| format!("{}: {why}", by.label))?;
        }
    }
    Ok(())
}

fn layouts(case: &dyn Case, regime: Regime) -> Result<(), String> {
    let plain = case.run(regime, Layout::Contiguous).map_err(refused)?;
    for layout in &LAYOUTS[1..] {
        all_same(&case.run(regime, *layout).map_err(refused)?, &plain, layout.name())?;
    }
    Ok(())
}

/// One test a property and operator.
macro_rules! properties {
    ($($operator:ident: $of:expr, [$($property:ident),+];)+) => {
        $(mod $operator {
            use super::Of;
            $(
                #[test]
                fn $property() {
                    super::each($of, super::$property);
                }
            )+
        })+
    };
}

properties! {
    of_selective_scan: Of::Selective, [repeats, regimes, rows_alone, packed, layouts];
    of_causal_conv1d: Of::Convolution, [repeats, rows_alone, packed, layouts];
    of_linear_scan: Of::Recurrence, [repeats, regimes, rows_alone, layouts];
    of_rms_norm: Of::Norm, [repeats, rows_alone, layouts];
    of_steps: Of::Steps, [repeats, rows_alone, layouts];
}

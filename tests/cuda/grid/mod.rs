//! The option grid: every operator of the engine, in tables where every pair of options occurs, against the specification in f64 computed
//! from the same stored numbers; what must be the same bits; and what a device adds, its memory, streams, graphs and faults.

#![allow(non_snake_case)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use selective_scan::Error;
use selective_scan::cuda::Regime;
use selective_scan::element::Dtype;
use selective_scan::layers::conv1d::CausalConv1d;
use selective_scan::layers::linear::Linear;
use selective_scan::layers::norm::RmsNorm;
use selective_scan::scan::Scan;
use selective_scan::selective::SelectiveScan;
use selective_scan::view::Host;

use super::carried::Carried;
use array::Array;
use compare::{Bound, compare, compare_bits};
use tensor::Layout;

#[path = "../../../examples/check/harness/array.rs"]
#[allow(dead_code)]
mod array;
#[path = "../../../examples/check/harness/compare.rs"]
#[allow(dead_code)]
mod compare;
#[path = "../../../examples/check/harness/tensor.rs"]
#[allow(dead_code)]
mod tensor;
#[path = "../../../examples/check/harness/transform.rs"]
#[allow(dead_code)]
mod transform;

mod bits;
mod convolution;
mod dense;
mod device;
mod draws;
mod large;
mod nan;
mod pairs;
mod recurrence;
mod selective;
mod selective_grid;
mod sequences;

/// The storage types.
pub const STORAGE: [Dtype; 4] = [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::Bf16];

/// The ways that memory is ordered.
pub const LAYOUTS: [Layout; 4] = [Layout::Contiguous, Layout::Transposed, Layout::Padded, Layout::Backwards];

/// An engine for host memory with all that is tested here.
pub trait Engine:
    SelectiveScan + Scan<Memory = Host> + CausalConv1d<Memory = Host> + RmsNorm<Memory = Host> + Linear<Memory = Host>
{
}

impl<E> Engine for E where
    E: SelectiveScan + Scan<Memory = Host> + CausalConv1d<Memory = Host> + RmsNorm<Memory = Host> + Linear<Memory = Host>
{
}

/// The engine under test with its scans run in one way.
pub fn carried_by(regime: Regime) -> Carried {
    static BOTH: OnceLock<[Carried; 2]> = OnceLock::new();
    let both = BOTH.get_or_init(|| {
        [Regime::Walk, Regime::Split].map(|regime| {
            // It lives as long as the tests.
            let engine = Box::leak(Box::new(super::engine().clone().with_regime(Some(regime))));
            super::carried().to(engine)
        })
    });
    both[usize::from(regime == Regime::Split)]
}

/// What the first axes of a result mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// (B, L, …), or (rows, …).
    Positions,
    /// One entry a state.
    States,
    /// A sum over the batch and time.
    Shared,
}

/// A result.
#[derive(Debug, Clone)]
pub struct Found {
    pub name: &'static str,
    pub array: Array,
    pub dtype: Dtype,
    pub role: Role,
}

/// Finds a result by name.
pub fn named<'a>(results: &'a [Found], name: &str) -> &'a Found {
    results.iter().find(|r| r.name == name).unwrap_or_else(|| panic!("there is no {name}"))
}

/// What is wrong with a result, if anything.
pub fn close(found: &Found, want: &[f64], bound: Bound) -> Result<(), String> {
    let deviation = compare(&found.array.data, want, bound);
    if deviation.used <= 1.0 {
        Ok(())
    } else {
        Err(format!("{}: error {:.2e}, {:.3} of the bound", found.name, deviation.error, deviation.used))
    }
}

/// Of results of so few numbers, the largest may be a sum that cancels.
pub const FEW: usize = 16;

/// The largest magnitude.
pub fn largest(of: &Array) -> f64 {
    of.data.iter().fold(0.0f64, |most, x| most.max(x.abs()))
}

/// An array with about half of its numbers 0.
pub fn masked(of: &Array, part: u64) -> Array {
    let mut draw = pairs::Draw(part);
    Array { data: of.data.iter().map(|x| if draw.unit() < 0.5 { 0.0 } else { *x }).collect(), ..of.clone() }
}

/// How large the terms of results are: of sums, the largest of a few partial sums, which `part` gives for a mask of the upstream gradients;
/// of the others what `absolute` says, the results with every factor's absolute value.
pub fn scales(part: impl Fn(u64) -> Vec<Found>, mut absolute: Vec<Found>) -> Vec<Found> {
    absolute.iter_mut().filter(|f| f.role == Role::Shared).for_each(|f| f.array.data.clear());
    for found in (0..8).flat_map(part).filter(|f| f.role == Role::Shared) {
        let scale = absolute.iter_mut().find(|f| f.name == found.name).expect("every run has the same results");
        scale.array.data.push(largest(&found.array));
    }
    absolute
}

/// What is wrong with results, if anything. Sums over many positions, and results of few numbers, are held to the size of their terms, which
/// `scale` has.
pub fn agree(got: &[Found], want: &[Found], scale: &[Found], n_eff: f64) -> Result<(), String> {
    let mut wrong = Vec::new();
    for found in got {
        let sum = found.role == Role::Shared || found.array.data.len() < FEW;
        let terms = if sum { largest(&named(scale, found.name).array) } else { 0.0 };
        let bound = Bound::new(found.dtype, n_eff, found.name.starts_with("grad.")).of_terms(terms);
        wrong.extend(close(found, &named(want, found.name).array.data, bound).err());
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
}

/// The rows that a step does not skip.
pub fn rest(batch: usize, slots: Option<&[i32]>) -> Vec<usize> {
    (0..batch).filter(|&b| slots.is_none_or(|s| s[b] >= 0)).collect()
}

/// Calls a generic function with a storage type: `real_typed!(dtype, function::<_, I>(arguments))`.
macro_rules! real_typed {
    ($dtype:expr, $function:ident($($argument:expr),* $(,)?)) => {{
        use half::{bf16, f16};
        use selective_scan::element::Dtype;
        match $dtype {
            Dtype::F64 => $function::<_, f64>($($argument),*),
            Dtype::F32 => $function::<_, f32>($($argument),*),
            Dtype::F16 => $function::<_, f16>($($argument),*),
            Dtype::Bf16 => $function::<_, bf16>($($argument),*),
            other => panic!("{other:?} is not a storage type of inputs"),
        }
    }};
}
use real_typed;

/// Where two results differ in bits, if they do.
pub fn same_bits(found: &Found, want: &Array) -> Result<(), String> {
    assert_eq!(found.array.dims, want.dims, "{}: the shapes are the same", found.name);
    if compare_bits(&found.array.data, &want.data).used == 0.0 {
        return Ok(());
    }
    let (at, (x, y)) = found.array.data.iter().zip(&want.data).enumerate().find(|(_, (x, y))| x != y).expect("something differs");
    Err(format!("{}: number {at} of shape {:?} is {x:e}, not {y:e}", found.name, want.dims))
}

/// Faults that are collected, so that one run shows all of them.
#[derive(Debug, Default)]
pub struct Faults {
    tried: usize,
    found: Vec<String>,
}

impl Faults {
    /// Runs one case; a panic in it is its fault and no end to the others.
    pub fn case(&mut self, what: &dyn Fn() -> String, run: impl FnOnce() -> Result<(), String>) {
        self.tried += 1;
        let why = match catch_unwind(AssertUnwindSafe(run)) {
            Ok(Ok(())) => return,
            Ok(Err(why)) => why,
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
                format!("panicked: {}", text.unwrap_or("?"))
            }
        };
        self.found.push(format!("{}\n      {why}", what()));
    }

    /// Panics where there were any.
    pub fn none(self) {
        let shown = self.found.iter().take(40).map(|f| format!("  {f}\n")).collect::<String>();
        assert!(self.found.is_empty(), "{} of {} cases are wrong:\n{shown}", self.found.len(), self.tried);
    }
}

/// An engine's error as a fault.
pub fn refused(error: Error) -> String {
    format!("refused: {error}")
}

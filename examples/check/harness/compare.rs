//! How far a result may be from the float64 reference, and how far it is.

use half::f16;
use selective_scan::element::Dtype;

/// The most an element may differ: `unit`·|reference| + `floor` + `share`·(largest reference of the tensor).
#[derive(Debug, Clone, Copy)]
pub struct Bound {
    unit: f64,
    floor: f64,
    share: f64,
    /// References beyond this round to infinity in the storage type.
    overflow: f64,
    /// The `share` is taken of this where every reference is smaller.
    scale: f64,
}

impl Bound {
    /// The bound for scans, selective scans, convolutions and steps. `n_eff` is how many steps the decay remembers.
    pub fn new(storage: Dtype, n_eff: f64, gradient: bool) -> Self {
        let single = 2e-6 + n_eff * f64::powi(2.0, -24);
        let plain = |share| Bound { unit: 0.0, floor: 0.0, share, overflow: f64::INFINITY, scale: 0.0 };
        match storage {
            Dtype::F64 | Dtype::C64 => plain(1e-13 + n_eff * f64::powi(2.0, -53)),
            Dtype::F32 | Dtype::C32 => plain(if gradient { 2.0 * single } else { single }),
            // Rounding to storage is correct: half a unit in the last place, or half the smallest subnormal.
            Dtype::F16 | Dtype::Cf16 => {
                Bound { unit: f64::powi(2.0, -11), floor: f64::powi(2.0, -25), share: single, overflow: f16::MAX.to_f64(), scale: 0.0 }
            }
            Dtype::Bf16 | Dtype::Cbf16 => {
                Bound { unit: f64::powi(2.0, -8), floor: 0.0, share: single, overflow: f64::from(f32::MAX), scale: 0.0 }
            }
        }
    }

    /// The bound for a whole block, whatever the type of the tensor: `storage` is that of the inputs.
    pub fn whole(storage: Dtype, n_eff: f64) -> Self {
        let share = match storage {
            Dtype::F64 | Dtype::C64 => 1e-12,
            Dtype::F32 | Dtype::C32 => 5e-6 + n_eff * f64::powi(2.0, -23),
            Dtype::F16 | Dtype::Cf16 => 6e-3,
            Dtype::Bf16 | Dtype::Cbf16 => 4e-2,
        };
        Bound { share, ..Bound::exact() }
    }

    /// The bound for a model: its reference was itself rounded to f32 on the way.
    pub fn published() -> Self {
        Bound { share: 5e-6, ..Bound::exact() }
    }

    /// No difference at all.
    pub fn exact() -> Self {
        Bound { unit: 0.0, floor: 0.0, share: 0.0, overflow: f64::INFINITY, scale: 0.0 }
    }

    /// The same for a sum whose terms may cancel: its error is a share of them, `scale`, where that is more than the sum.
    pub fn of_terms(self, scale: f64) -> Self {
        Bound { scale, ..self }
    }

    /// The same with so much more of the largest reference.
    pub fn and(self, share: f64) -> Self {
        Bound { share: self.share + share, ..self }
    }

    /// One decode step whose result is stored in 16 bits, from the same stored state.
    pub fn one_step(storage: Dtype) -> Self {
        Bound { share: 2e-6, ..Bound::new(storage, 0.0, false) }
    }
}

/// How far a tensor is from its reference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Deviation {
    /// The largest difference over the largest magnitude of the reference.
    pub error: f64,
    /// The largest share of what is allowed; above 1 it is too much.
    pub used: f64,
}

impl Deviation {
    /// No difference.
    pub const NONE: Deviation = Deviation { error: 0.0, used: 0.0 };
}

/// Compares element by element. A reference that is zero everywhere must be met exactly.
pub fn compare(got: &[f64], want: &[f64], bound: Bound) -> Deviation {
    assert_eq!(got.len(), want.len(), "a result has the length of its reference");
    let largest = want.iter().fold(0.0f64, |most, x| most.max(x.abs()));
    let mut worst = Deviation::NONE;
    for (&got, &want) in got.iter().zip(want) {
        let difference = (got - want).abs();
        // Also two equal infinities, whose difference is NaN.
        if got == want || (got.is_infinite() && got.signum() == want.signum() && want.abs() > bound.overflow) {
            continue;
        }
        let allowed = if largest == 0.0 { 0.0 } else { bound.unit * want.abs() + bound.floor + bound.share * largest.max(bound.scale) };
        let used = if difference.is_nan() { f64::INFINITY } else { difference / allowed };
        let error = if difference.is_nan() { f64::INFINITY } else { difference / largest };
        worst = Deviation { error: worst.error.max(error), used: worst.used.max(used) };
    }
    worst
}

/// Compares bits, NaN payloads aside.
pub fn compare_bits(got: &[f64], want: &[f64]) -> Deviation {
    assert_eq!(got.len(), want.len(), "both results have the same length");
    let same = |(a, b): (&f64, &f64)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
    if got.iter().zip(want).all(same) {
        return Deviation::NONE;
    }
    let largest = want.iter().fold(0.0f64, |most, x| most.max(x.abs()));
    let difference = got.iter().zip(want).fold(0.0f64, |most, (a, b)| most.max((a - b).abs()));
    Deviation { error: difference / largest, used: f64::INFINITY }
}

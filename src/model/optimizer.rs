//! AdamW with gradient clipping, and the learning rate's schedule.

use super::parameters::Parameters;
use crate::error::Error;
use crate::ops::Sum;

/// Squares are summed in blocks of this many elements, and the blocks with compensation.
const BLOCK: usize = 1024;

fn bad(operand: &'static str, why: String) -> Error {
    Error::Value { operand, why }
}

/// The Euclidean norm of all gradients together, summed in f64 in one fixed order.
pub fn gradient_norm(gradients: &Parameters<f32>) -> f64 {
    let mut sum = Sum::default();
    for (_, values) in gradients.tensors() {
        for block in values.chunks(BLOCK) {
            sum.add(block.iter().map(|&value| f64::from(value) * f64::from(value)).sum());
        }
    }
    sum.value().sqrt()
}

/// The options of [`AdamW`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWOptions {
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of their squares.
    pub beta2: f64,
    /// ε, added to the root.
    pub epsilon: f64,
    /// Weight decay λ, on the matrices only; see [`super::Kind::decays`].
    pub weight_decay: f64,
    /// Gradients are scaled so that their norm is at most this; infinity for none.
    pub clip: f64,
}

impl Default for AdamWOptions {
    /// β = (0.9, 0.95), ε = 1e-8, λ = 0.1, clipping at 1: as Mamba was trained (arXiv 2312.00752, appendix E.2).
    fn default() -> AdamWOptions {
        AdamWOptions { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: 0.1, clip: 1.0 }
    }
}

impl AdamWOptions {
    pub(super) fn check(&self) -> Result<(), Error> {
        for (name, beta) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            if !(0.0..1.0).contains(&beta) {
                return Err(bad(name, format!("{beta} is not at least 0 and below 1")));
            }
        }
        if !(self.epsilon > 0.0 && self.epsilon.is_finite()) {
            return Err(bad("epsilon", format!("{} is not a finite number above 0", self.epsilon)));
        }
        if !(self.weight_decay >= 0.0 && self.weight_decay.is_finite()) {
            return Err(bad("weight_decay", format!("{} is not a finite number of at least 0", self.weight_decay)));
        }
        if self.clip.is_nan() || self.clip <= 0.0 {
            return Err(bad("clip", format!("{} is not above 0", self.clip)));
        }
        Ok(())
    }

    /// 1 − β₁ᵗ and 1 − β₂ᵗ without cancellation.
    pub(super) fn corrections(&self, step: u64) -> [f64; 2] {
        [self.beta1, self.beta2].map(|beta| -(step as f64 * beta.ln()).exp_m1())
    }
}

/// Checks a learning rate.
pub(super) fn check_rate(rate: f64) -> Result<(), Error> {
    if rate >= 0.0 && rate.is_finite() { Ok(()) } else { Err(bad("rate", format!("{rate} is not a finite number of at least 0"))) }
}

/// AdamW (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2). With g the clipped gradient, t the step from 1 and η the learning rate:
///
/// m ← β₁m + (1−β₁)g,  v ← β₂v + (1−β₂)g²,  p ← p − ηλp − η·(m/(1−β₁ᵗ)) / (√(v/(1−β₂ᵗ)) + ε)
///
/// Arithmetic is f64, m, v and p are stored as f32. The moments and the step are the whole state: they can be saved and put back.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    /// The options.
    pub options: AdamWOptions,
    /// Mean of gradients, m.
    pub first: Parameters<f32>,
    /// Mean of squares, v.
    pub second: Parameters<f32>,
    /// Steps done.
    pub step: u64,
}

/// The factors of one step.
struct Factors {
    scale: f64,
    rate: f64,
    decay: f64,
    correct1: f64,
    correct2: f64,
}

impl AdamW {
    /// An optimiser that has done no step.
    ///
    /// # Errors
    /// [`Error::Value`] naming the option that is out of range.
    pub fn new(options: AdamWOptions, parameters: &Parameters<f32>) -> Result<AdamW, Error> {
        options.check()?;
        Ok(AdamW { options, first: parameters.zeros_like(), second: parameters.zeros_like(), step: 0 })
    }

    /// One step with learning rate `rate`. Returns the norm of the gradients before clipping.
    ///
    /// # Errors
    /// [`Error::Value`] where a structure differs, an option or the rate is out of range, or the norm is not finite; nothing is changed then.
    pub fn step(&mut self, parameters: &mut Parameters<f32>, gradients: &Parameters<f32>, rate: f64) -> Result<f64, Error> {
        self.options.check()?;
        let sizes = *parameters.sizes();
        parameters.check("parameters", &sizes)?;
        for (operand, same) in [("gradients", gradients), ("first", &self.first), ("second", &self.second)] {
            same.check(operand, &sizes)?;
        }
        check_rate(rate)?;
        let norm = gradient_norm(gradients);
        if !norm.is_finite() {
            return Err(bad("gradients", format!("their norm is {norm}")));
        }
        self.step += 1;
        let AdamWOptions { weight_decay, clip, .. } = self.options;
        let [correct1, correct2] = self.options.corrections(self.step);
        let mut factors = Factors { scale: if norm > clip { clip / norm } else { 1.0 }, rate, decay: 0.0, correct1, correct2 };
        let moments = self.first.tensors_mut().into_iter().zip(self.second.tensors_mut());
        for (((spec, p), (_, g)), ((_, m), (_, v))) in parameters.tensors_mut().into_iter().zip(gradients.tensors()).zip(moments) {
            factors.decay = if spec.kind.decays() { weight_decay } else { 0.0 };
            update(&self.options, &factors, p, g, m, v);
        }
        Ok(norm)
    }
}

fn update(options: &AdamWOptions, factors: &Factors, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
    let AdamWOptions { beta1, beta2, epsilon, .. } = *options;
    let Factors { scale, rate, decay, correct1, correct2 } = *factors;
    for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
        let (old, g) = (f64::from(*p), f64::from(g) * scale);
        let mean = beta1 * f64::from(*m) + (1.0 - beta1) * g;
        let square = beta2 * f64::from(*v) + (1.0 - beta2) * g * g;
        let way = (mean / correct1) / ((square / correct2).sqrt() + epsilon);
        *p = (old - rate * decay * old - rate * way) as f32;
        *m = mean as f32;
        *v = square as f32;
    }
}

/// Learning rate: linear from 0 to `peak` over `warmup` steps, then half a cosine down to `floor` at `total`, `floor` after it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// The largest rate.
    pub peak: f64,
    /// The last rate.
    pub floor: f64,
    /// Steps of warm-up.
    pub warmup: u64,
    /// Steps in all.
    pub total: u64,
}

impl Schedule {
    /// The rate of a step, counted from 0. The first is not 0: it is peak/warmup.
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * (step + 1) as f64 / self.warmup as f64;
        }
        if step >= self.total {
            return self.floor;
        }
        let part = (step - self.warmup) as f64 / (self.total - self.warmup) as f64;
        self.floor + (self.peak - self.floor) * 0.5 * (1.0 + (core::f64::consts::PI * part).cos())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::init::init;
    use crate::model::parameters::Kind;
    use crate::model::rng::Rng;
    use crate::model::testing::{random, small};

    #[test]
    fn three_steps_against_the_formula_in_f64() {
        let mut p = init::<f32>(&small(), 1).unwrap();
        let options = AdamWOptions { weight_decay: 0.2, clip: 0.75, epsilon: 1e-6, ..AdamWOptions::default() };
        let mut adam = AdamW::new(options, &p).unwrap();
        let mut plain: Vec<(Kind, f64, f64, f64)> = Vec::new();
        for (spec, values) in p.tensors() {
            plain.extend(values.iter().map(|&value| (spec.kind, f64::from(value), 0.0, 0.0)));
        }
        for step in 1..=3 {
            let (gradients, rate) = (random(p.sizes(), step), 0.01 * step as f64);
            let g: Vec<f64> = gradients.tensors().iter().flat_map(|(_, values)| values.iter().map(|&g| f64::from(g))).collect();
            let norm = g.iter().map(|g| g * g).sum::<f64>().sqrt();
            assert!(norm > options.clip);
            assert!((adam.step(&mut p, &gradients, rate).unwrap() / norm - 1.0).abs() < 1e-14);
            for ((kind, p, m, v), g) in plain.iter_mut().zip(g) {
                let g = g * options.clip / norm;
                let matrix = !matches!(kind, Kind::Norm | Kind::FinalNorm | Kind::ConvBias | Kind::DtBias | Kind::ALog | Kind::Skip);
                *m = 0.9 * *m + 0.1 * g;
                *v = 0.95 * *v + 0.05 * g * g;
                let m_hat = *m / (1.0 - 0.9f64.powi(step as i32));
                let v_hat = *v / (1.0 - 0.95f64.powi(step as i32));
                *p -= rate * (if matrix { 0.2 * *p } else { 0.0 } + m_hat / (v_hat.sqrt() + 1e-6));
            }
        }
        let stored = p.tensors().into_iter().flat_map(|(_, values)| values.iter().copied()).collect::<Vec<f32>>();
        // Three roundings of p and of m, v to f32, the latter times a rate of at most 0.03.
        let bound = |want: f64| 3.0 * 6e-8 * (want.abs() + 0.06) + 1e-8;
        assert!(stored.iter().zip(&plain).all(|(&got, &(_, want, _, _))| (f64::from(got) - want).abs() < bound(want)));
        assert_eq!(adam.step, 3);
    }

    #[test]
    fn without_gradient_only_matrices_decay() {
        let mut p = init::<f32>(&small(), 2).unwrap();
        let before = p.clone();
        let mut adam = AdamW::new(AdamWOptions::default(), &p).unwrap();
        let zeros = p.zeros_like();
        assert_eq!(adam.step(&mut p, &zeros, 0.5).unwrap(), 0.0);
        for ((spec, after), (_, before)) in p.tensors().into_iter().zip(before.tensors()) {
            let factor = if spec.dims.len() > 1 && spec.kind != Kind::ALog { 0.95 } else { 1.0 };
            assert!(after.iter().zip(before).all(|(a, b)| (a - factor * b).abs() <= 2e-7 * b.abs()), "{}", spec.name);
        }
    }

    #[test]
    fn a_bad_step_changes_nothing() {
        let mut p = init::<f32>(&small(), 3).unwrap();
        let mut adam = AdamW::new(AdamWOptions::default(), &p).unwrap();
        adam.step(&mut p, &random(&small().sizes().unwrap(), 1), 0.1).unwrap();
        let before = (p.clone(), adam.clone());
        for value in [f32::NAN, f32::INFINITY] {
            let mut gradients = p.zeros_like();
            gradients.layers[2].d[0] = value;
            assert!(matches!(adam.step(&mut p, &gradients, 0.1), Err(Error::Value { operand: "gradients", .. })));
        }
        let mut short = p.zeros_like();
        short.norm_f.pop();
        assert!(adam.step(&mut p, &short, 0.1).unwrap_err().to_string().contains("norm_f"));
        let zeros = p.zeros_like();
        assert!(adam.step(&mut p, &zeros, f64::NAN).is_err() && adam.step(&mut p, &zeros, -1.0).is_err());
        assert_eq!((p, adam), before);
        for spoil in [
            |o: &mut AdamWOptions| o.beta1 = 1.0,
            |o: &mut AdamWOptions| o.beta2 = f64::NAN,
            |o: &mut AdamWOptions| o.epsilon = 0.0,
            |o: &mut AdamWOptions| o.weight_decay = -1.0,
            |o: &mut AdamWOptions| o.clip = 0.0,
        ] {
            let mut options = AdamWOptions::default();
            spoil(&mut options);
            assert!(AdamW::new(options, &before.0).is_err(), "{options:?}");
        }
    }

    #[test]
    fn the_norm_does_not_lose_small_terms() {
        let mut config = small();
        config.vocab_size = 50_000;
        let mut g = Parameters::<f32>::zeros(config.sizes().unwrap());
        g.embeddings.fill(1e-4);
        g.embeddings[0] = 1e4;
        let want = (1e8 + (g.embeddings.len() - 1) as f64 * f64::from(1e-4f32).powi(2)).sqrt();
        // A block alone may lose 1024 · 2⁻⁵³; a plain sum over all loses a hundred times that here.
        assert!((gradient_norm(&g) / want - 1.0).abs() < 1.2e-13);
        let mut rng = Rng::new(1);
        g.embeddings.iter_mut().for_each(|value| *value = rng.normal() as f32 * 1e30);
        assert!(gradient_norm(&g).is_finite());
    }

    #[test]
    fn schedule() {
        let schedule = Schedule { peak: 1.0, floor: 0.1, warmup: 10, total: 110 };
        assert_eq!((schedule.rate(0), schedule.rate(4), schedule.rate(9), schedule.rate(10)), (0.1, 0.5, 1.0, 1.0));
        assert!((schedule.rate(60) - 0.55).abs() < 1e-15);
        assert_eq!((schedule.rate(110), schedule.rate(u64::MAX)), (0.1, 0.1));
        assert!((10..109).all(|step| schedule.rate(step) > schedule.rate(step + 1)));
        let none = Schedule { peak: 1.0, floor: 0.0, warmup: 0, total: 0 };
        assert_eq!(none.rate(0), 0.0);
        let short = Schedule { peak: 1.0, floor: 0.0, warmup: 10, total: 5 };
        assert!((0..20).all(|step| short.rate(step).is_finite()));
    }
}

//! The next token from logits: greedy, temperature, top-k, top-p, seeded.

use core::cmp::Ordering;

use super::rng::{Rng, exp};
use crate::element::Real;
use crate::error::Error;

/// How a token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 is greedy.
    pub temperature: f64,
    /// Only the k largest logits stay.
    pub top_k: Option<usize>,
    /// Only the most probable tokens stay, as few as reach this sum; applied after `top_k`, to the probabilities of what that left.
    pub top_p: Option<f64>,
}

impl Default for Sampling {
    /// The model's own distribution.
    fn default() -> Sampling {
        Sampling { temperature: 1.0, top_k: None, top_p: None }
    }
}

/// Draws tokens. The same seed and logits give the same tokens on every platform.
#[derive(Debug, Clone)]
pub struct Sampler {
    how: Sampling,
    rng: Rng,
    /// The candidates of the last call, kept for their storage: id and logit, then weight.
    candidates: Vec<(u32, f64)>,
}

fn bad(operand: &'static str, why: impl Into<String>) -> Error {
    Error::Value { operand, why: why.into() }
}

/// Refuses what has no distribution. −∞ is a token that never comes, as long as another may.
fn check<T: Real>(logits: &[T]) -> Result<(), Error> {
    if logits.is_empty() {
        return Err(bad("logits", "are empty"));
    }
    if u32::try_from(logits.len()).is_err() {
        return Err(bad("logits", format!("are {}, more than token ids", logits.len())));
    }
    let is_bad = |value: f64| value.is_nan() || value == f64::INFINITY;
    if let Some((id, value)) = logits.iter().map(|value| value.to_f64()).enumerate().find(|&(_, value)| is_bad(value)) {
        return Err(bad("logits", format!("token {id} has {value}")));
    }
    if logits.iter().all(|value| value.to_f64() == f64::NEG_INFINITY) {
        return Err(bad("logits", "are all −∞"));
    }
    Ok(())
}

/// The token of the largest logit; of equal ones the lowest id.
///
/// # Errors
/// [`Error::Value`] where the logits are empty, all −∞, or one is NaN or +∞.
pub fn greedy<T: Real>(logits: &[T]) -> Result<u32, Error> {
    check(logits)?;
    let mut best = 0;
    for (id, value) in logits.iter().enumerate() {
        if *value > logits[best] {
            best = id;
        }
    }
    Ok(best as u32)
}

/// Larger logits first; of equal ones the lower id.
fn order(a: &(u32, f64), b: &(u32, f64)) -> Ordering {
    b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal).then(a.0.cmp(&b.0))
}

impl Sampler {
    /// A sampler that starts from a seed.
    ///
    /// # Errors
    /// [`Error::Value`] where the temperature is negative or not finite, `top_k` is 0, or `top_p` is not in (0, 1].
    pub fn new(how: Sampling, seed: u64) -> Result<Sampler, Error> {
        if !how.temperature.is_finite() || how.temperature < 0.0 {
            return Err(bad("temperature", format!("{} is not a finite number of at least 0", how.temperature)));
        }
        if how.top_k == Some(0) {
            return Err(bad("top_k", "0 leaves no token"));
        }
        if let Some(p) = how.top_p.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
            return Err(bad("top_p", format!("{p} is not above 0 and at most 1")));
        }
        Ok(Sampler { how, rng: Rng::new(seed), candidates: Vec::new() })
    }

    /// Draws one token.
    ///
    /// # Errors
    /// As for [`greedy`]; the generator does not move then.
    pub fn next<T: Real>(&mut self, logits: &[T]) -> Result<u32, Error> {
        if self.how.temperature == 0.0 {
            return greedy(logits);
        }
        check(logits)?;
        self.candidates.clear();
        self.candidates.extend(logits.iter().enumerate().map(|(id, value)| (id as u32, value.to_f64())));
        self.keep_top_k();
        self.weigh();
        self.keep_top_p();
        Ok(self.draw())
    }

    /// Cuts to the k largest, sorted; sorts all where only `top_p` needs it.
    fn keep_top_k(&mut self) {
        if let Some(k) = self.how.top_k.filter(|&k| k < self.candidates.len()) {
            self.candidates.select_nth_unstable_by(k, order);
            self.candidates.truncate(k);
        }
        if self.how.top_k.is_some() || self.how.top_p.is_some() {
            self.candidates.sort_unstable_by(order);
        }
    }

    /// From logits to weights e^((logit − largest)/temperature). The difference is divided, so a tiny temperature does not overflow.
    fn weigh(&mut self) {
        let largest = self.candidates.iter().fold(f64::NEG_INFINITY, |most, &(_, logit)| most.max(logit));
        for (_, value) in &mut self.candidates {
            // The largest is 0 also where the quotient would be 0/0 by underflow of the temperature.
            let below = *value - largest;
            *value = if below == 0.0 { 1.0 } else { exp(below / self.how.temperature) };
        }
    }

    fn keep_top_p(&mut self) {
        let Some(p) = self.how.top_p.filter(|&p| p < 1.0) else { return };
        let goal = p * self.candidates.iter().map(|candidate| candidate.1).sum::<f64>();
        let mut sum = 0.0;
        let reached = self.candidates.iter().position(|candidate| {
            sum += candidate.1;
            sum >= goal
        });
        self.candidates.truncate(reached.map_or(self.candidates.len(), |last| last + 1));
    }

    /// A candidate with the probability of its weight.
    fn draw(&mut self) -> u32 {
        let total: f64 = self.candidates.iter().map(|candidate| candidate.1).sum();
        let mut left = self.rng.uniform() * total;
        let mut chosen = 0;
        for &(id, weight) in self.candidates.iter().filter(|candidate| candidate.1 > 0.0) {
            chosen = id;
            if left < weight {
                break;
            }
            left -= weight;
        }
        // Rounding may leave a little after the last one: it is taken.
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(how: Sampling, logits: &[f32], draws: u32) -> Vec<f64> {
        let mut sampler = Sampler::new(how, 9).unwrap();
        let mut counts = vec![0.0; logits.len()];
        (0..draws).for_each(|_| counts[sampler.next(logits).unwrap() as usize] += 1.0 / f64::from(draws));
        counts
    }

    /// Five standard deviations of a share.
    fn near(share: f64, want: f64, draws: u32) -> bool {
        (share - want).abs() <= 5.0 * (want * (1.0 - want) / f64::from(draws)).sqrt() + 1e-9
    }

    fn matches(how: Sampling, logits: &[f32], want: &[f64]) {
        let draws = 40_000;
        let shares = counts(how, logits, draws);
        assert!(shares.iter().zip(want).all(|(&share, &want)| near(share, want, draws)), "{how:?} {shares:?} {want:?}");
    }

    #[test]
    fn distributions() {
        let logits = [0.4f32, 0.1, 0.3, 0.2].map(f32::ln);
        let plain = Sampling::default();
        matches(plain, &logits, &[0.4, 0.1, 0.3, 0.2]);
        // At temperature ½ the probabilities are squared: their squares sum to 0.30.
        matches(Sampling { temperature: 0.5, ..plain }, &logits, &[0.16 / 0.3, 0.01 / 0.3, 0.09 / 0.3, 0.04 / 0.3]);
        matches(Sampling { top_k: Some(2), ..plain }, &logits, &[4.0 / 7.0, 0.0, 3.0 / 7.0, 0.0]);
        matches(Sampling { top_k: Some(99), ..plain }, &logits, &[0.4, 0.1, 0.3, 0.2]);
        matches(Sampling { top_p: Some(0.65), ..plain }, &logits, &[4.0 / 7.0, 0.0, 3.0 / 7.0, 0.0]);
        matches(Sampling { top_p: Some(1.0), ..plain }, &logits, &[0.4, 0.1, 0.3, 0.2]);
        matches(Sampling { top_p: Some(1e-9), ..plain }, &logits, &[1.0, 0.0, 0.0, 0.0]);
        // Of the two that top-k leaves the first has 4/7 and alone reaches 0.55.
        matches(Sampling { top_k: Some(2), top_p: Some(0.55), ..plain }, &logits, &[1.0, 0.0, 0.0, 0.0]);
        let masked = [f32::NEG_INFINITY, 0.0, 0.0];
        matches(plain, &masked, &[0.0, 0.5, 0.5]);
    }

    #[test]
    fn ties_go_to_the_lowest_id() {
        let logits = [1.0f32, 3.0, 3.0, 3.0];
        assert_eq!(greedy(&logits).unwrap(), 1);
        for how in [
            Sampling { temperature: 0.0, ..Sampling::default() },
            Sampling { top_k: Some(1), ..Sampling::default() },
            Sampling { top_p: Some(0.01), ..Sampling::default() },
        ] {
            assert_eq!(counts(how, &logits, 50)[1..2].iter().map(|share| share.round()).sum::<f64>(), 1.0, "{how:?}");
        }
    }

    #[test]
    fn extremes() {
        let how = |temperature| Sampling { temperature, ..Sampling::default() };
        let mut cold = Sampler::new(how(f64::MIN_POSITIVE), 1).unwrap();
        assert_eq!(cold.next(&[-1e38f32, 1e38, 3.0]).unwrap(), 1);
        let mut wide = Sampler::new(how(1.0), 1).unwrap();
        assert_eq!(wide.next(&[-f64::MAX, f64::MAX]).unwrap(), 1);
        assert_eq!(wide.next(&[7.0f32]).unwrap(), 0);
        matches(how(f64::MAX), &[0.0, 5.0], &[0.5, 0.5]);
    }

    #[test]
    fn the_seed_decides() {
        let run = |seed| {
            let mut sampler = Sampler::new(Sampling::default(), seed).unwrap();
            (0..64).map(|_| sampler.next(&[0.0f32; 50]).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn bad_input_is_an_error() {
        for logits in [&[][..], &[0.0, f32::NAN], &[f32::INFINITY, 0.0], &[f32::NEG_INFINITY; 3]] {
            assert!(matches!(greedy(logits), Err(Error::Value { operand: "logits", .. })));
            let mut sampler = Sampler::new(Sampling::default(), 1).unwrap();
            assert!(sampler.next(logits).is_err());
            assert_eq!(sampler.rng, Rng::new(1));
        }
        let plain = Sampling::default();
        for temperature in [-1.0, f64::NAN, f64::INFINITY] {
            assert!(Sampler::new(Sampling { temperature, ..plain }, 0).is_err());
        }
        for p in [0.0, -0.5, 1.5, f64::NAN] {
            assert!(Sampler::new(Sampling { top_p: Some(p), ..plain }, 0).is_err());
        }
        assert!(Sampler::new(Sampling { top_k: Some(0), ..plain }, 0).is_err());
    }
}

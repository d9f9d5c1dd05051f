//! Seeded random numbers that are the same on every platform, and the logarithm and exponential they need.
//!
//! The generator is SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014): a 64-bit counter
//! advances by the odd constant 0x9E3779B97F4A7C15, and a finaliser of two xor-shift-multiply rounds and one xor-shift mixes it. The whole
//! state is that counter, so a position is saved as one number. Everything derived from it uses only +, −, ×, ÷ and √, which IEEE 754 rounds
//! in one way; a platform's own `ln` and `exp` differ in the last bit, so they are not used here.

/// The golden ratio's fraction in 64 bits, odd: the counter's step.
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// A SplitMix64 generator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rng {
    state: u64,
}

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

impl Rng {
    /// A generator whose counter starts at `seed`.
    pub fn new(seed: u64) -> Rng {
        Rng { state: seed }
    }

    /// A generator for one named purpose: streams of different names are unrelated, and one may be drawn from without moving another.
    pub fn keyed(seed: u64, name: &str) -> Rng {
        let fold = |hash: u64, &byte: &u8| mix((hash ^ u64::from(byte)).wrapping_add(STEP));
        Rng { state: name.as_bytes().iter().fold(mix(seed.wrapping_add(STEP)), fold) }
    }

    /// The counter, to be given to [`Rng::new`] to go on from here.
    pub fn state(&self) -> u64 {
        self.state
    }

    /// 64 uniform bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(STEP);
        mix(self.state)
    }

    /// Uniform in [0, 1), a multiple of 2⁻⁵³.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in [−bound, bound).
    pub fn symmetric(&mut self, bound: f64) -> f64 {
        (2.0 * self.uniform() - 1.0) * bound
    }

    /// Uniform in 0..n without bias; 0 where n is 0.
    ///
    /// The high half of a 64 × 64-bit product, redrawn where the low half falls in the short last interval (Lemire, arXiv 1805.10941).
    pub fn below(&mut self, n: u64) -> u64 {
        if n == 0 {
            return 0;
        }
        let short = n.wrapping_neg() % n;
        loop {
            let wide = u128::from(self.next_u64()) * u128::from(n);
            if wide as u64 >= short {
                return (wide >> 64) as u64;
            }
        }
    }

    /// Standard normal by the polar method (Marsaglia and Bray 1964): one of the pair is used, so the state is the counter alone.
    pub fn normal(&mut self) -> f64 {
        loop {
            let (x, y) = (self.symmetric(1.0), self.symmetric(1.0));
            let s = x * x + y * y;
            if s > 0.0 && s < 1.0 {
                return x * (-2.0 * ln(s) / s).sqrt();
            }
        }
    }
}

/// ln 2 in two parts: the first has its low bits clear, so that a product with an exponent is exact.
const LN2_HIGH: f64 = f64::from_bits(0x3FE6_2E42_FEE0_0000);
const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;

/// Natural logarithm, within a few units of the last place. −∞ at 0, NaN below it.
///
/// x = 2ᵏ·m with m in [√½, √2), then ln m = 2·artanh(s) with s = (m − 1)/(m + 1), |s| < 0.172, as a series in s².
pub fn ln(x: f64) -> f64 {
    if x.is_nan() || x < 0.0 {
        return f64::NAN;
    }
    if x == 0.0 || x == f64::INFINITY {
        return if x == 0.0 { f64::NEG_INFINITY } else { x };
    }
    // A subnormal is scaled up first, exactly.
    let (x, shift) = if x < f64::MIN_POSITIVE { (x * (1u64 << 54) as f64, -54) } else { (x, 0) };
    let bits = x.to_bits();
    let mut k = (bits >> 52) as i64 - 1023 + shift;
    let mut m = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
    if m > core::f64::consts::SQRT_2 {
        m *= 0.5;
        k += 1;
    }
    let s = (m - 1.0) / (m + 1.0);
    let square = s * s;
    // 0.172²² < 2⁻⁵³: eleven terms.
    let tail = (1..12).rev().fold(0.0, |sum, j| square * (1.0 / f64::from(2 * j + 1) + sum));
    k as f64 * LN2_HIGH + (2.0 * (s + s * tail) + k as f64 * LN2_LOW)
}

/// e to the power of x, within a few units of the last place. Below −708 it is 0 and above 709 it is infinite; NaN passes.
///
/// x = k·ln 2 + r with |r| ≤ ½ ln 2, then Taylor's series of eʳ.
pub fn exp(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    if !(-708.0..=709.0).contains(&x) {
        return if x < 0.0 { 0.0 } else { f64::INFINITY };
    }
    let k = (x * core::f64::consts::LOG2_E).round();
    let r = (x - k * LN2_HIGH) - k * LN2_LOW;
    // 0.35¹⁶/16! < 2⁻⁶⁰.
    let series = (1..16).rev().fold(1.0, |sum, j| 1.0 + sum * r / f64::from(j));
    series * f64::from_bits(((k as i64 + 1023) as u64) << 52)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_sequence() {
        // The first outputs of SplitMix64 from seed 1234567, as its reference implementation prints them.
        let mut rng = Rng::new(1234567);
        assert_eq!(rng.next_u64(), 6457827717110365317);
        assert_eq!(rng.next_u64(), 3203168211198807973);
        assert_eq!(rng.next_u64(), 9817491932198370423);
    }

    #[test]
    fn state_is_the_position() {
        let mut rng = Rng::keyed(7, "backbone");
        rng.normal();
        let mut resumed = Rng::new(rng.state());
        assert_eq!(rng.next_u64(), resumed.next_u64());
        assert_ne!(Rng::keyed(7, "a").next_u64(), Rng::keyed(7, "b").next_u64());
        assert_ne!(Rng::keyed(7, "a").next_u64(), Rng::keyed(8, "a").next_u64());
    }

    #[test]
    fn ln_and_exp_match_the_platform() {
        let mut rng = Rng::new(1);
        for _ in 0..20_000 {
            let x = rng.symmetric(700.0);
            assert!((exp(x) / x.exp() - 1.0).abs() < 1e-15 * 4.0, "exp({x})");
            let y = x.exp();
            assert!((ln(y) - y.ln()).abs() <= 4e-16 * y.ln().abs().max(1e-3), "ln({y}) {} {}", ln(y), y.ln());
        }
        assert_eq!((ln(1.0), exp(0.0), ln(0.0)), (0.0, 1.0, f64::NEG_INFINITY));
        assert!(ln(-1.0).is_nan() && exp(f64::NAN).is_nan());
        assert_eq!((exp(-1e9), exp(1e9), ln(f64::INFINITY)), (0.0, f64::INFINITY, f64::INFINITY));
        assert!((ln(5e-324) - 5e-324f64.ln()).abs() < 1e-12);
    }

    #[test]
    fn moments() {
        let mut rng = Rng::new(3);
        let n = 200_000;
        let (mut sum, mut square, mut uniform) = (0.0, 0.0, 0.0);
        for _ in 0..n {
            let x = rng.normal();
            (sum, square) = (sum + x, square + x * x);
            uniform += rng.uniform();
        }
        let n = f64::from(n);
        // Five standard deviations of each mean.
        assert!((sum / n).abs() < 5.0 / n.sqrt());
        assert!((square / n - 1.0).abs() < 5.0 * (2.0 / n).sqrt());
        assert!((uniform / n - 0.5).abs() < 5.0 / (12.0 * n).sqrt());
    }

    #[test]
    fn below_covers_its_range() {
        let mut rng = Rng::new(5);
        let mut seen = [0u32; 7];
        (0..7000).for_each(|_| seen[rng.below(7) as usize] += 1);
        assert!(seen.iter().all(|&count| count > 800 && count < 1200), "{seen:?}");
        assert_eq!((rng.below(0), rng.below(1)), (0, 0));
    }
}

//! Sizes and numbers from bytes, out of dictionaries of what is hard.

use arbitrary::{Result, Unstructured};

/// Lengths around every vector and chunk width.
pub const LENGTHS: [usize; 20] = [0, 1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 257];
/// Channels around every vector width.
pub const DIMS: [usize; 11] = [1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 33];
/// States around every group of registers.
pub const STATES: [usize; 9] = [1, 2, 3, 4, 5, 8, 16, 17, 33];

/// Finite numbers that are hard one by one, and moderate in products.
const VALUES: [f32; 16] = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    1.0 + f32::EPSILON,
    1.0 - f32::EPSILON / 2.0,
    f32::MIN_POSITIVE,
    1e-45,
    -3e-42,
    0.5,
    -2.0,
    3.0,
    1e-3,
    -1e-7,
    20.0,
    -88.5,
];
/// Decay rates A: none, tiny, ordinary, and so strong that exp underflows.
const RATES: [f32; 8] = [0.0, -1e-8, -1e-3, -1.0, -4.0, -16.0, -104.0, -2000.0];
/// Steps Δ before softplus: where softplus is a tail, a curve and a line.
const STEPS: [f32; 10] = [0.0, -100.0, -20.0, -5.0, -0.5, 0.5, 1.0, 5.0, 20.0, 88.0];
/// Factors a of a recurrence: resets, decays, and a little beyond 1.
const FACTORS: [f32; 10] = [0.0, -0.0, 1.0, -1.0, 0.5, -0.9, 0.999, 1e-30, 1e-45, 1.001];

/// A kind of number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// u, B, C, D, z, biases, gradients.
    Value,
    /// A.
    Rate,
    /// Δ.
    Step,
    /// a of layer 1.
    Factor,
}

/// A source of sizes and numbers.
#[derive(Debug)]
pub struct Source<'a> {
    bytes: Unstructured<'a>,
    /// Mixes the numbers once the bytes have run out, so that short inputs give large problems too.
    state: u64,
}

impl<'a> Source<'a> {
    /// From the bytes of the fuzzer.
    pub fn new(bytes: &'a [u8]) -> Self {
        let state = bytes.iter().fold(0x9e37_79b9_7f4a_7c15, |s: u64, b| (s ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
        Source { bytes: Unstructured::new(bytes), state }
    }

    /// One of a list.
    pub fn pick<T: Copy>(&mut self, list: &[T]) -> Result<T> {
        self.bytes.choose(list).copied()
    }

    /// Yes or no.
    pub fn flag(&mut self) -> Result<bool> {
        self.bytes.arbitrary()
    }

    /// Any number up to and including `most`.
    pub fn upto(&mut self, most: usize) -> Result<usize> {
        self.bytes.int_in_range(0..=most)
    }

    /// Any signed number.
    pub fn stride(&mut self) -> Result<isize> {
        Ok(match self.upto(7)? {
            0 => isize::MIN,
            1 => isize::MAX,
            2 => self.bytes.arbitrary()?,
            _ => self.bytes.int_in_range(-9..=9)?,
        })
    }

    /// 64 bits.
    pub fn bits(&mut self) -> u64 {
        // xorshift64*.
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        let taken: u8 = self.bytes.arbitrary().unwrap_or(0);
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ u64::from(taken)
    }

    /// `count` numbers of a kind: one in four out of the dictionary, the others ordinary.
    pub fn numbers(&mut self, kind: Kind, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.number(kind)).collect()
    }

    fn number(&mut self, kind: Kind) -> f32 {
        let bits = self.bits();
        let list: &[f32] = match kind {
            Kind::Value => &VALUES,
            Kind::Rate => &RATES,
            Kind::Step => &STEPS,
            Kind::Factor => &FACTORS,
        };
        if bits & 3 == 0 {
            return list[(bits >> 2) as usize % list.len()];
        }
        // In (−1, 1), 24 bits.
        let unit = (bits >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
        match kind {
            Kind::Value | Kind::Factor => unit,
            Kind::Rate => -8.0 * unit.abs(),
            Kind::Step => 4.0 * unit - 2.0,
        }
    }
}

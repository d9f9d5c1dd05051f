//! What a card does a second at best, measured: bytes copied, exponentials, multiply-adds.

use super::Cuda;
use super::expression::Vars;
use super::launch::{Grid, Kernel};
use super::params::params;
use super::template::{Template, template};
use crate::error::Error;

/// Threads of a block.
const THREADS: usize = 256;
/// Bytes that a block copies.
const COPIED: usize = 1 << 14;
/// Operations of a thread in a round of the loop.
const ROUND: usize = 128;
/// Blocks a multiprocessor: all threads that it holds.
const BLOCKS: usize = 8;
/// Timings that a median is taken of.
const TIMINGS: usize = 7;

/// What a card does a second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ceilings {
    /// Bytes read and written by a copy of more than the caches hold.
    pub copy: f64,
    /// `ex2.approx` of the special function units.
    pub ex2: f64,
    /// Multiply-adds in f32: also what other instructions of that pipe do.
    pub fma: f64,
}

pub(super) struct Copy;
pub(super) struct Exponentials;
pub(super) struct MultiplyAdds;

params! {
    /// Two arrays whose bytes are a multiple of what a block copies.
    pub struct CopyParams {
        from: u64,
        to: u64,
    }
}

params! {
    /// A place for a number of each thread, and rounds, at least one.
    pub struct LoopParams {
        to: u64,
        rounds: u32,
        unused: u32,
    }
}

macro_rules! kernel {
    ($kernel:ident, $params:ident, $name:literal) => {
        impl Kernel for $kernel {
            const TEMPLATE: Template = template!($name);
            type Params = $params;

            fn entry(&self) -> String {
                $name.into()
            }

            fn vars(&self) -> Vars {
                Vars::new()
            }

            fn shipped() -> Vec<Self> {
                vec![$kernel]
            }
        }
    };
}

kernel!(Copy, CopyParams, "ceiling_copy");
kernel!(Exponentials, LoopParams, "ceiling_ex2");
kernel!(MultiplyAdds, LoopParams, "ceiling_fma");

impl Cuda {
    /// Measures them by kernels that do nothing else: a copy of `bytes` bytes (rounded up), and loops of `rounds` rounds on every multiprocessor; 256 MiB
    /// and 256 rounds take some 10 ms. Allocates, and waits for the device.
    ///
    /// # Errors
    /// What the driver says.
    pub fn ceilings(&self, bytes: usize, rounds: u32) -> Result<Ceilings, Error> {
        let (blocks, bytes) = (bytes.div_ceil(COPIED).max(1), bytes.div_ceil(COPIED).max(1) * COPIED);
        let mut from = self.buffer::<u8>(bytes)?;
        from.fill(1)?;
        let to = self.buffer::<u8>(bytes)?;
        let address = |buffer: &super::DeviceBuffer<u8>| buffer.view([bytes]).buffer().0 as u64;
        let params = CopyParams { from: address(&from), to: address(&to) };
        let copy = self.seconds(|| self.run(&Copy, Grid::new(blocks, THREADS as u32), &params))?;

        let (rounds, blocks) = (rounds.max(1), BLOCKS * self.properties().multiprocessors as usize);
        let ends = self.buffer::<f32>(blocks * THREADS)?;
        let params = LoopParams { to: ends.view([ends.len()]).buffer().0 as u64, rounds, unused: 0 };
        let grid = Grid::new(blocks, THREADS as u32);
        let count = (blocks * THREADS * ROUND) as f64 * f64::from(rounds);
        let ex2 = self.seconds(|| self.run(&Exponentials, grid, &params))?;
        let fma = self.seconds(|| self.run(&MultiplyAdds, grid, &params))?;
        Ok(Ceilings { copy: 2.0 * bytes as f64 / copy, ex2: count / ex2, fma: count / fma })
    }

    /// The median time of some work, after one time untimed.
    fn seconds(&self, mut work: impl FnMut() -> Result<(), Error>) -> Result<f64, Error> {
        work()?;
        self.synchronize()?;
        let mut all = (0..TIMINGS).map(|_| self.time(&mut work)).collect::<Result<Vec<_>, _>>()?;
        all.sort();
        Ok(all[TIMINGS / 2].as_secs_f64().max(1e-9))
    }
}

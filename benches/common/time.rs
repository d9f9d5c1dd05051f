//! How time is taken: calls one after another, on a GPU between two events and over sets of operands that take turns.

use std::time::{Duration, Instant};

use selective_scan::buffer::Buffer;
use selective_scan::error::Error;
use selective_scan::view::Host;

#[cfg(feature = "cuda")]
use selective_scan::cuda::{Cuda, DeviceBuffer};

use super::operator::{Family, Operator};
use super::place::{Engine, Here};
use super::shape::Shape;

/// Timings that a median is taken of.
const TIMINGS: usize = 15;
/// How long a timing is at least, and all of them at most, where one call allows it.
const SAMPLE: f64 = 5e-3;
const BUDGET: f64 = 1.0;
/// Sets of operands on a GPU take turns; together they are larger than its caches, and so many at most.
#[cfg(feature = "cuda")]
const ROTATED: f64 = 64e6;
#[cfg(feature = "cuda")]
const SETS: usize = 256;

/// Something that is called again and again.
pub trait Timed {
    /// The time of so many calls.
    fn time(&mut self, calls: u64) -> Result<Duration, Error>;
}

/// The median time of a call, in seconds.
pub fn median(timed: &mut dyn Timed) -> Result<f64, Error> {
    // The first call makes the workspace, and on a GPU loads kernels.
    timed.time(1)?;
    let once = timed.time(1)?.as_secs_f64().max(1e-8);
    let calls = (SAMPLE / once).ceil().max(1.0) as u64;
    let timings = ((BUDGET / (once * calls as f64)) as usize).clamp(3, TIMINGS);
    let mut all = Vec::new();
    for _ in 0..timings {
        all.push(timed.time(calls)?.as_secs_f64() / calls as f64);
    }
    all.sort_by(f64::total_cmp);
    Ok(all[timings / 2])
}

/// Threads of the host: the caller's own, or a pool.
pub struct Threads(Option<rayon::ThreadPool>);

impl Threads {
    /// So many.
    pub fn new(count: usize) -> Result<Self, String> {
        if count <= 1 {
            return Ok(Threads(None));
        }
        if cfg!(not(feature = "rayon")) {
            return Err("more than one thread wants the feature rayon".into());
        }
        rayon::ThreadPoolBuilder::new().num_threads(count).build().map(|p| Threads(Some(p))).map_err(|e| e.to_string())
    }

    /// Who runs the parts of an operation.
    pub fn par(&self) -> selective_scan::par::Par {
        if self.0.is_none() { selective_scan::par::Par::Seq } else { selective_scan::par::Par::default() }
    }

    /// Runs something on them.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match &self.0 {
            Some(pool) => pool.install(work),
            None => work(),
        }
    }
}

/// An operator on the host.
pub struct OnHost<'a, F: Family, E> {
    operands: F::On<Here>,
    engine: E,
    scratch: Buffer,
    threads: &'a Threads,
}

impl<'a, F: Family, E: Engine<Host>> OnHost<'a, F, E> {
    pub fn new(engine: E, shape: Shape, threads: &'a Threads) -> Result<Self, Error> {
        Ok(OnHost { operands: F::On::<Here>::new(&Here, shape)?, engine, scratch: Buffer::new(), threads })
    }
}

impl<F: Family, E: Engine<Host> + Sync> Timed for OnHost<'_, F, E>
where
    F::On<Here>: Send,
{
    fn time(&mut self, calls: u64) -> Result<Duration, Error> {
        let OnHost { operands, engine, scratch, threads } = self;
        threads.run(|| {
            let start = Instant::now();
            for _ in 0..calls {
                operands.call(&Here, &*engine, scratch)?;
            }
            Ok(start.elapsed())
        })
    }
}

/// An operator on a GPU.
#[cfg(feature = "cuda")]
pub struct OnGpu<'a, F: Family> {
    gpu: &'a Cuda,
    sets: Vec<F::On<Cuda>>,
    scratch: Option<DeviceBuffer<u8>>,
    next: usize,
    /// The range under which a profiler that waits for it is to see what is timed.
    pub profile: Option<String>,
}

#[cfg(feature = "cuda")]
impl<'a, F: Family> OnGpu<'a, F> {
    pub fn new(gpu: &'a Cuda, shape: Shape) -> Result<Self, Error> {
        let count = ((ROTATED / F::work(shape).bytes) as usize + 1).min(SETS);
        let sets = (0..count).map(|_| F::On::<Cuda>::new(gpu, shape)).collect::<Result<_, _>>()?;
        let mut all = OnGpu { gpu, sets, scratch: None, next: 0, profile: None };
        all.round()?;
        Ok(all)
    }

    /// Every set once, untimed: kernels are loaded, the workspace is made.
    fn round(&mut self) -> Result<(), Error> {
        self.sets.iter_mut().try_for_each(|set| set.call(self.gpu, self.gpu, &mut self.scratch))?;
        self.gpu.synchronize()
    }
}

#[cfg(feature = "cuda")]
impl<F: Family> Timed for OnGpu<'_, F> {
    fn time(&mut self, calls: u64) -> Result<Duration, Error> {
        let OnGpu { gpu, sets, scratch, next, profile } = self;
        if let Some(range) = profile {
            gpu.profile(Some(range))?;
        }
        let time = gpu.time(|| {
            for _ in 0..calls {
                sets[*next].call(gpu, *gpu, scratch)?;
                *next = (*next + 1) % sets.len();
            }
            Ok(())
        });
        if profile.is_some() {
            gpu.profile(None)?;
        }
        time
    }
}

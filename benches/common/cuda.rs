//! Operators whose operands live on the host or on a GPU, so that one piece of code is timed there and checked here.

use std::time::Duration;

use bytemuck::Pod;
use selective_scan::buffer::{Buffer, Workspace};
use selective_scan::cuda::{Cuda, DeviceBuffer};
use selective_scan::element::Element;
use selective_scan::error::Error;
use selective_scan::layers::conv1d::CausalConv1d;
use selective_scan::selective::SelectiveScan;
use selective_scan::view::{Device, Host, Memory, View, ViewMut};

/// Bytes a second of an H100's memory (`asm-notes/machines.md`): the floor is every input read once and every output written once at this rate.
const HBM: f64 = 2.95e12;
/// Sets of operands take turns; together they are larger than any cache.
const ROTATED: usize = 64 << 20;
/// Timings that a median is taken of.
const TIMINGS: usize = 15;

/// Where operands live.
pub trait Place {
    type Memory: Memory;
    type Array<T: Pod>;
    type Scratch: Default;
    fn array<T: Pod>(&self, data: Vec<T>) -> Result<Self::Array<T>, Error>;
    fn view<T: Pod, const R: usize>(of: &Self::Array<T>, dims: [usize; R]) -> View<'_, T, R, Self::Memory>;
    fn view_mut<T: Pod, const R: usize>(of: &mut Self::Array<T>, dims: [usize; R]) -> ViewMut<'_, T, R, Self::Memory>;
    fn back<T: Pod>(of: &Self::Array<T>) -> Result<Vec<T>, Error>;
    /// At least so many bytes; allocates where there are fewer.
    fn workspace<'a>(&self, scratch: &'a mut Self::Scratch, bytes: usize) -> Result<Workspace<'a, Self::Memory>, Error>;
}

/// This process's memory.
pub struct Here;

impl Place for Here {
    type Memory = Host;
    type Array<T: Pod> = Vec<T>;
    type Scratch = Buffer;

    fn array<T: Pod>(&self, data: Vec<T>) -> Result<Vec<T>, Error> {
        Ok(data)
    }

    fn view<T: Pod, const R: usize>(of: &Vec<T>, dims: [usize; R]) -> View<'_, T, R> {
        View::new(of, dims)
    }

    fn view_mut<T: Pod, const R: usize>(of: &mut Vec<T>, dims: [usize; R]) -> ViewMut<'_, T, R> {
        ViewMut::new(of, dims)
    }

    fn back<T: Pod>(of: &Vec<T>) -> Result<Vec<T>, Error> {
        Ok(of.clone())
    }

    fn workspace<'a>(&self, scratch: &'a mut Buffer, bytes: usize) -> Result<Workspace<'a>, Error> {
        Ok(scratch.workspace(bytes))
    }
}

impl Place for Cuda {
    type Memory = Device;
    type Array<T: Pod> = DeviceBuffer<T>;
    type Scratch = Option<DeviceBuffer<u8>>;

    fn array<T: Pod>(&self, data: Vec<T>) -> Result<DeviceBuffer<T>, Error> {
        self.upload(&data)
    }

    fn view<T: Pod, const R: usize>(of: &DeviceBuffer<T>, dims: [usize; R]) -> View<'_, T, R, Device> {
        of.view(dims)
    }

    fn view_mut<T: Pod, const R: usize>(of: &mut DeviceBuffer<T>, dims: [usize; R]) -> ViewMut<'_, T, R, Device> {
        of.view_mut(dims)
    }

    fn back<T: Pod>(of: &DeviceBuffer<T>) -> Result<Vec<T>, Error> {
        of.to_vec()
    }

    fn workspace<'a>(&self, scratch: &'a mut Self::Scratch, bytes: usize) -> Result<Workspace<'a, Device>, Error> {
        if scratch.as_ref().is_none_or(|s| s.len() < bytes) {
            *scratch = Some(self.buffer(bytes)?);
        }
        Ok(scratch.as_mut().expect("just made").workspace())
    }
}

/// An engine of layers 1 to 3 in one memory.
pub trait Engine<M: Memory>: SelectiveScan<Memory = M> + CausalConv1d<Memory = M> {}

impl<M: Memory, E: SelectiveScan<Memory = M> + CausalConv1d<Memory = M>> Engine<M> for E {}

/// Sizes of a case, and whether time is the contiguous axis in memory.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    pub batch: usize,
    pub seqlen: usize,
    pub dim: usize,
    /// N, or the window's width.
    pub extra: usize,
    pub time_contiguous: bool,
}

impl Sizes {
    /// Logical (B, L, D), channels contiguous in memory.
    pub fn new([batch, dim, seqlen, extra]: [usize; 4]) -> Self {
        Sizes { batch, seqlen, dim, extra, time_contiguous: false }
    }

    /// The same with time contiguous.
    pub fn turned(self) -> Self {
        Sizes { time_contiguous: true, ..self }
    }

    /// Elements of (B, L, D).
    pub fn count(&self) -> usize {
        self.batch * self.seqlen * self.dim
    }

    /// A (B, L, D) operand.
    pub fn view<'a, P: Place, T: Pod>(&self, of: &'a P::Array<T>) -> View<'a, T, 3, P::Memory> {
        if self.time_contiguous {
            P::view(of, [self.batch, self.dim, self.seqlen]).permute([0, 2, 1])
        } else {
            P::view(of, [self.batch, self.seqlen, self.dim])
        }
    }

    /// A (B, L, D) operand that is written.
    pub fn view_mut<'a, P: Place, T: Pod>(&self, of: &'a mut P::Array<T>) -> ViewMut<'a, T, 3, P::Memory> {
        if self.time_contiguous {
            P::view_mut(of, [self.batch, self.dim, self.seqlen]).permute([0, 2, 1])
        } else {
            P::view_mut(of, [self.batch, self.seqlen, self.dim])
        }
    }

    /// Small enough for the CPU, and unlike anything round.
    fn small(self) -> Self {
        Sizes { batch: self.batch.min(2), seqlen: self.seqlen.min(301), dim: self.dim.min(72), ..self }
    }
}

/// A set of operands of an operator, and its call.
pub trait Operator<P: Place>: Sized {
    fn new(place: &P, sizes: Sizes) -> Result<Self, Error>;
    fn call(&mut self, place: &P, engine: &impl Engine<P::Memory>, scratch: &mut P::Scratch) -> Result<(), Error>;
    /// Outputs, each as numbers.
    fn results(&self) -> Result<Vec<Vec<f64>>, Error>;
    /// Bytes of all operands: inputs once, outputs once, updated states twice.
    fn bytes(sizes: Sizes) -> usize;
}

/// Real parts as f64.
pub fn numbers<P: Place, T: Element>(of: &P::Array<T>) -> Result<Vec<f64>, Error> {
    use selective_scan::element::{Real, Weight};
    Ok(P::back(of)?.into_iter().map(|x| x.load().re().to_f64()).collect())
}

/// Small operands through the CPU engine and the GPU: the largest difference over the largest number of each output.
fn deviation<G: Operator<Cuda>, C: Operator<Here>>(gpu: &Cuda, cpu: &impl Engine<Host>, sizes: Sizes) -> Result<f64, Error> {
    let (mut there, mut here) = (G::new(gpu, sizes.small())?, C::new(&Here, sizes.small())?);
    there.call(gpu, gpu, &mut None)?;
    here.call(&Here, cpu, &mut Buffer::new())?;
    let mut worst = 0.0f64;
    for (got, want) in there.results()?.iter().zip(here.results()?) {
        let most = want.iter().fold(1e-30f64, |m, x| m.max(x.abs()));
        let far = got.iter().zip(&want).map(|(g, w)| if g.is_finite() { (g - w).abs() } else { f64::INFINITY });
        worst = worst.max(far.fold(0.0, f64::max) / most);
    }
    Ok(worst)
}

/// The median time of a call.
fn median<G: Operator<Cuda>>(gpu: &Cuda, sizes: Sizes) -> Result<Duration, Error> {
    let count = (ROTATED / G::bytes(sizes).max(1) + 1).max(2);
    let mut sets: Vec<G> = (0..count).map(|_| G::new(gpu, sizes)).collect::<Result<_, _>>()?;
    let mut scratch = None;
    let mut round = || sets.iter_mut().try_for_each(|set| set.call(gpu, gpu, &mut scratch));
    // The first round loads kernels and makes the workspace; a timing takes as many rounds as fill 2 ms.
    round()?;
    gpu.synchronize()?;
    let once = gpu.time(&mut round)?;
    let rounds = (0.002 / once.as_secs_f64().max(1e-6)).ceil().max(1.0) as usize;
    let timing = |_| gpu.time(|| (0..rounds).try_for_each(|_| round()));
    let mut all = (0..TIMINGS).map(timing).collect::<Result<Vec<_>, _>>()?;
    all.sort();
    Ok(all[TIMINGS / 2] / (rounds * count) as u32)
}

/// One line of a case whose id has `filter` in it.
pub fn case<G: Operator<Cuda>, C: Operator<Here>>(gpu: &Cuda, cpu: &impl Engine<Host>, filter: &str, id: &str, bound: f64, sizes: Sizes) {
    let Sizes { batch, seqlen, dim, extra, .. } = sizes;
    let turned = if sizes.time_contiguous { "_bdl" } else { "" };
    let id = format!("{id}/b{batch}_d{dim}_l{seqlen}_n{extra}{turned}");
    if !id.contains(filter) {
        return;
    }
    let line = deviation::<G, C>(gpu, cpu, sizes).and_then(|off| {
        if off > bound {
            return Ok(format!("WRONG: {off:.1e} of the largest number away from the CPU engine, {bound:.1e} is allowed"));
        }
        let (ms, bytes) = (median::<G>(gpu, sizes)?.as_secs_f64() * 1e3, G::bytes(sizes) as f64);
        let (rate, floor) = (bytes / ms / 1e6, ms / (bytes / HBM * 1e3));
        Ok(format!("{ms:9.4} ms {rate:7.0} GB/s {floor:6.2} of the HBM floor  deviation {off:.1e}"))
    });
    println!("{id:<64} {}", line.unwrap_or_else(|why| why.to_string()));
}

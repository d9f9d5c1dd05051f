//! Operands that live on the host or on a GPU.

use bytemuck::Pod;
use selective_scan::buffer::{Buffer, Workspace};
use selective_scan::element::{Element, Real, Weight};
use selective_scan::error::Error;
use selective_scan::scan::Scan;
use selective_scan::view::{Host, Memory, View, ViewMut};

#[cfg(feature = "cuda")]
use selective_scan::cuda::{Cuda, DeviceBuffer};
#[cfg(feature = "cuda")]
use selective_scan::view::Device;

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

    /// Zeros.
    fn zeros<T: Pod>(&self, count: usize) -> Result<Self::Array<T>, Error> {
        self.array(bytemuck::zeroed_vec(count))
    }

    /// [`data`] there.
    fn data<T: Element>(&self, count: usize, range: [f64; 2], seed: u64) -> Result<Self::Array<T>, Error> {
        self.array(data(count, range, seed))
    }
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

#[cfg(feature = "cuda")]
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

    fn zeros<T: Pod>(&self, count: usize) -> Result<DeviceBuffer<T>, Error> {
        let mut zeros = self.buffer(count)?;
        zeros.fill(0)?;
        Ok(zeros)
    }
}

/// An engine of layers 1 to 3 in one memory.
pub trait Engine<M: Memory>: selective_scan::block::Engine + Scan<Memory = M> {}

impl<M: Memory, E: selective_scan::block::Engine + Scan<Memory = M>> Engine<M> for E {}

/// `count` numbers in a range that look random, the same on every run and for every type. They repeat after some while, so that many are made fast.
pub fn data<T: Element>(count: usize, [low, high]: [f64; 2], seed: u64) -> Vec<T> {
    type R<T> = <<T as Element>::Arith as Weight>::Real;
    let mut state = 0x2545_f491_4f6c_dd1d ^ (seed << 32 | 1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        R::<T>::from_f64(low + (high - low) * ((state >> 40) as f64 / (1u64 << 24) as f64))
    };
    let mut number = || T::store(if T::Arith::COMPLEX { T::Arith::from_parts(next(), next()) } else { T::Arith::from_real(next()) });
    let mut all: Vec<T> = Vec::with_capacity(count);
    all.extend((0..count.min(999_983)).map(|_| number()));
    while all.len() < count {
        all.extend_from_within(..all.len().min(count - all.len()));
    }
    all
}

/// The numbers of an array as f64, imaginary parts after the real ones.
pub fn numbers<P: Place, T: Element>(of: &P::Array<T>) -> Result<Vec<f64>, Error> {
    let all = P::back(of)?;
    let re = all.iter().map(|x| x.load().re().to_f64());
    let im = all.iter().filter(|_| T::Arith::COMPLEX).map(|x| x.load().im().to_f64());
    Ok(re.chain(im).collect())
}

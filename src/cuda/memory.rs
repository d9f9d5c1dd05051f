//! Buffers on the device, and moving numbers to and from them.

use std::marker::PhantomData;
use std::sync::Arc;

use bytemuck::Pod;

use super::driver::Driver;
use crate::buffer::Workspace;
use crate::error::Error;
use crate::view::{Device, View, ViewMut, contiguous};

/// Owned elements on the device, written and read on the stream of the engine that made it. New ones are arbitrary.
pub struct DeviceBuffer<T> {
    driver: Arc<dyn Driver>,
    address: u64,
    len: usize,
    of: PhantomData<T>,
}

impl<T> core::fmt::Debug for DeviceBuffer<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "DeviceBuffer({} of {} bytes)", self.len, size_of::<T>())
    }
}

impl<T> Drop for DeviceBuffer<T> {
    fn drop(&mut self) {
        // SAFETY: the allocation is this buffer's own, and views of it borrow the buffer, so none is left.
        unsafe { self.driver.free(self.address) };
    }
}

impl<T: Pod> DeviceBuffer<T> {
    pub(crate) fn new(driver: &Arc<dyn Driver>, len: usize) -> Result<Self, Error> {
        let bytes = len
            .checked_mul(size_of::<T>())
            .ok_or_else(|| Error::Driver { why: format!("{len} elements are more bytes than an address has") })?;
        let address = driver.alloc(bytes)?;
        Ok(DeviceBuffer { driver: driver.clone(), address, len, of: PhantomData })
    }

    pub(crate) fn from_slice(driver: &Arc<dyn Driver>, data: &[T]) -> Result<Self, Error> {
        let mut buffer = Self::new(driver, data.len())?;
        buffer.upload(data)?;
        Ok(buffer)
    }

    /// How many elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies `data`, as long as the buffer, to it. Panics where the lengths differ.
    pub fn upload(&mut self, data: &[T]) -> Result<(), Error> {
        assert_eq!(data.len(), self.len);
        // SAFETY: the bytes are this buffer's, borrowed exclusively.
        unsafe { self.driver.upload(self.address, bytemuck::cast_slice(data)) }
    }

    /// Copies the buffer to `data`, as long as it. Panics where the lengths differ.
    pub fn download(&self, data: &mut [T]) -> Result<(), Error> {
        assert_eq!(data.len(), self.len);
        // SAFETY: the bytes are this buffer's, and not written meanwhile: it is borrowed.
        unsafe { self.driver.download(self.address, bytemuck::cast_slice_mut(data)) }
    }

    /// Copies `data` to the elements from `at` on. Panics where they are not the buffer's.
    pub fn upload_at(&mut self, at: usize, data: &[T]) -> Result<(), Error> {
        assert!(at.checked_add(data.len()).is_some_and(|end| end <= self.len));
        // SAFETY: the bytes are this buffer's, borrowed exclusively.
        unsafe { self.driver.upload(self.address + (at * size_of::<T>()) as u64, bytemuck::cast_slice(data)) }
    }

    /// Copies the elements from `at` on to `data`. Panics where they are not the buffer's.
    pub fn download_at(&self, at: usize, data: &mut [T]) -> Result<(), Error> {
        assert!(at.checked_add(data.len()).is_some_and(|end| end <= self.len));
        // SAFETY: the bytes are this buffer's, and not written meanwhile: it is borrowed.
        unsafe { self.driver.download(self.address + (at * size_of::<T>()) as u64, bytemuck::cast_slice_mut(data)) }
    }

    /// Copies the first `count` elements of another buffer to those from `at` on, on the device. Panics where either has not so many.
    pub fn copy_at(&mut self, at: usize, from: &DeviceBuffer<T>, count: usize) -> Result<(), Error> {
        assert!(count <= from.len && at.checked_add(count).is_some_and(|end| end <= self.len));
        let (to, bytes) = (self.address + (at * size_of::<T>()) as u64, count * size_of::<T>());
        // SAFETY: the bytes are these buffers', which are different ones: this one is borrowed exclusively.
        unsafe { self.driver.copy(from.address, to, bytes) }
    }

    /// A copy in this process's memory.
    pub fn to_vec(&self) -> Result<Vec<T>, Error> {
        let mut data = bytemuck::zeroed_vec(self.len);
        self.download(&mut data)?;
        Ok(data)
    }

    /// Sets every byte.
    pub fn fill(&mut self, byte: u8) -> Result<(), Error> {
        // SAFETY: the bytes are this buffer's, borrowed exclusively.
        unsafe { self.driver.fill(self.address, byte, self.len * size_of::<T>()) }
    }

    /// A contiguous tensor from its first element on.
    pub fn view<const R: usize>(&self, dims: [usize; R]) -> View<'_, T, R, Device> {
        self.strided(0, dims, contiguous(dims))
    }

    /// A tensor with any layout, as [`View::strided`].
    pub fn strided<const R: usize>(&self, offset: usize, dims: [usize; R], strides: [isize; R]) -> View<'_, T, R, Device> {
        View::at_address(self.address as usize, self.len, offset, dims, strides)
    }

    /// A contiguous tensor that is written.
    pub fn view_mut<const R: usize>(&mut self, dims: [usize; R]) -> ViewMut<'_, T, R, Device> {
        self.strided_mut(0, dims, contiguous(dims))
    }

    /// A tensor with any layout that is written.
    pub fn strided_mut<const R: usize>(&mut self, offset: usize, dims: [usize; R], strides: [isize; R]) -> ViewMut<'_, T, R, Device> {
        ViewMut::at_address(self.address as usize, self.len, offset, dims, strides)
    }
}

impl DeviceBuffer<u8> {
    /// All of it as a workspace.
    pub fn workspace(&mut self) -> Workspace<'_, Device> {
        let len = self.len;
        Workspace::over(self.view_mut([len])).expect("the whole of a buffer")
    }
}

//! Recorded sequences of launches.

#[cfg(feature = "model")]
use std::collections::HashMap;

use super::Cuda;
#[cfg(feature = "model")]
use super::DeviceBuffer;
use super::driver::GraphId;
use crate::error::Error;

/// A recording of what an engine was asked to do, to be run again with the same operands at the same addresses.
pub struct Graph {
    engine: Cuda,
    id: Option<GraphId>,
}

impl core::fmt::Debug for Graph {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Graph({:?})", self.id)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            self.engine.driver.forget(id);
        }
    }
}

/// A recording that a panic leaves: it is ended and thrown away.
struct Recording<'a>(&'a Cuda);

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        if let Ok(id) = self.0.driver.end_capture() {
            self.0.driver.forget(id);
        }
    }
}

impl Cuda {
    /// Records what `work` asks of this engine; it must neither allocate, nor load a kernel for the first time, nor copy to or from the host.
    /// So call it once plainly before. What other threads ask of this engine meanwhile waits until the recording ends; `work` must not wait for them.
    ///
    /// # Errors
    /// What `work` or the driver says.
    pub fn capture(&self, work: impl FnOnce() -> Result<(), Error>) -> Result<Graph, Error> {
        self.driver.begin_capture()?;
        let recording = Recording(self);
        let done = work();
        core::mem::forget(recording);
        let id = self.driver.end_capture();
        done?;
        Ok(Graph { engine: self.clone(), id: Some(id?) })
    }
}

impl Graph {
    /// Runs it.
    ///
    /// # Safety
    /// Every buffer that was used while it was recorded still exists, and nobody else uses them meanwhile.
    ///
    /// # Errors
    /// What the driver says.
    pub unsafe fn replay(&self) -> Result<(), Error> {
        match &self.id {
            Some(id) => self.engine.driver.replay(id),
            None => Ok(()),
        }
    }
}

/// What runs again and again on one device, in a few shapes: each shape is run plainly at first, recorded at its second use, and replayed
/// from then on. The memory that the work uses is held here with the recordings, so that they cannot outlive it.
#[cfg(feature = "model")]
pub(crate) struct Recordings<M> {
    /// Before `memory`: fields are dropped in order.
    graphs: HashMap<[usize; 2], Option<Graph>>,
    engine: Cuda,
    memory: M,
    work: fn(&Cuda, &mut M, [usize; 2]) -> Result<(), Error>,
    on: bool,
}

#[cfg(feature = "model")]
impl<M: core::fmt::Debug> core::fmt::Debug for Recordings<M> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Recordings").field("shapes", &self.graphs.len()).field("memory", &self.memory).finish()
    }
}

#[cfg(feature = "model")]
impl<M> Recordings<M> {
    /// Without recordings yet. `work` is a plain function, so whatever it uses is in `memory` or in the engine; it must leave every buffer where it is, and
    /// neither allocate nor wait nor copy to or from the host.
    pub fn new(engine: Cuda, memory: M, work: fn(&Cuda, &mut M, [usize; 2]) -> Result<(), Error>) -> Self {
        Recordings { graphs: HashMap::new(), engine, memory, work, on: true }
    }

    /// The engine.
    pub fn engine(&self) -> &Cuda {
        &self.engine
    }

    /// Whether shapes are recorded at all.
    pub fn record(&mut self, on: bool) {
        self.on = on;
    }

    /// The memory.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// The memory, to be changed in any way: recordings are forgotten.
    pub fn memory_mut(&mut self) -> &mut M {
        self.graphs.clear();
        &mut self.memory
    }

    /// A buffer of the memory to be given other content. It stays where it is, so recordings stay valid.
    pub fn upload<T: bytemuck::Pod>(&mut self, buffer: fn(&mut M) -> &mut DeviceBuffer<T>, data: &[T]) -> Result<(), Error> {
        buffer(&mut self.memory).upload_at(0, data)
    }

    /// Changes what buffers of the memory hold. They stay where they are, so recordings stay valid.
    pub fn with<R>(&mut self, change: impl FnOnce(&mut M) -> R) -> R {
        change(&mut self.memory)
    }

    /// Runs the work for a shape.
    pub fn run(&mut self, shape: [usize; 2]) -> Result<(), Error> {
        match self.graphs.get(&shape) {
            // SAFETY: what was recorded uses this engine and `memory` only, whose buffers are where they were: they are changed by `memory_mut`
            // alone, which forgets the recordings. `memory` is borrowed exclusively.
            Some(Some(graph)) if self.on => unsafe { graph.replay() },
            Some(None) if self.on => {
                let Recordings { engine, memory, work, .. } = self;
                let graph = engine.capture(|| work(engine, memory, shape))?;
                // SAFETY: as above.
                unsafe { graph.replay() }?;
                self.graphs.insert(shape, Some(graph));
                Ok(())
            }
            _ => {
                (self.work)(&self.engine, &mut self.memory, shape)?;
                self.graphs.entry(shape).or_insert(None);
                Ok(())
            }
        }
    }
}

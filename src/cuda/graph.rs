//! Recorded sequences of launches.

use super::Cuda;
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

impl Cuda {
    /// Records what `work` asks of this engine; it must neither allocate, nor load a kernel for the first time, nor copy to or from the host.
    /// So call it once plainly before.
    ///
    /// # Errors
    /// What `work` or the driver says.
    pub fn capture(&self, work: impl FnOnce() -> Result<(), Error>) -> Result<Graph, Error> {
        self.driver.begin_capture()?;
        let done = work();
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

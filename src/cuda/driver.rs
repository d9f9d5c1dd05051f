//! What the engine asks of a machine: load a kernel, launch it, move bytes. The real one is `module.rs`; tests bring an interpreter.

use std::time::Duration;

use crate::error::Error;

/// What a card is, as far as plans depend on it. No result's bits do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Properties {
    /// Its name.
    pub name: String,
    /// Compute capability, 9.0 as (9, 0).
    pub capability: (u32, u32),
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of memory.
    pub memory: usize,
    /// Bytes of shared memory that a block may ask for.
    pub shared: usize,
    /// The driver's version, 13000 for 13.0.
    pub driver: u32,
}

/// A loaded kernel, valid for the driver that gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Function(pub u64);

/// A captured graph, valid for the driver that gave it.
#[derive(Debug, PartialEq, Eq)]
pub struct GraphId(pub u64);

/// One launch.
#[derive(Debug)]
pub struct Launch<'a> {
    /// The kernel.
    pub function: Function,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// The block of parameters.
    pub params: &'a [u8],
}

/// A card, or something that behaves like one, with one stream on which everything below runs in order.
pub trait Driver: Send + Sync {
    /// What it is.
    fn properties(&self) -> &Properties;

    /// Compiles PTX and finds its entry. `Err` has the compiler's log.
    fn load(&self, ptx: &str, entry: &str) -> Result<Function, Error>;

    /// Allocates; address 0 for 0 bytes.
    fn alloc(&self, bytes: usize) -> Result<u64, Error>;

    /// Waits for everything that was asked for.
    fn synchronize(&self) -> Result<(), Error>;

    /// Begins to record launches, fills and copies on the device instead of running them.
    fn begin_capture(&self) -> Result<(), Error>;

    /// Ends the recording.
    fn end_capture(&self) -> Result<GraphId, Error>;

    /// Runs a recording.
    fn replay(&self, graph: &GraphId) -> Result<(), Error>;

    /// Forgets a recording.
    fn forget(&self, graph: GraphId);

    /// Time on the device that `work` takes on this stream.
    fn time(&self, work: &mut dyn FnMut() -> Result<(), Error>) -> Result<Duration, Error>;

    /// Handles for libraries that launch by themselves: the context and the stream as the driver's own numbers. None where there are none.
    fn handles(&self) -> Option<(u64, u64)>;

    /// Frees what `alloc` gave.
    ///
    /// # Safety
    /// Nobody uses it afterwards, and it is freed once.
    unsafe fn free(&self, address: u64);

    /// Launches.
    ///
    /// # Safety
    /// The parameters are those of the kernel, and the addresses in them are valid for what it does with them.
    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), Error>;

    /// Sets bytes.
    ///
    /// # Safety
    /// `bytes` bytes from `address` are an allocation's, and nobody else uses them meanwhile.
    unsafe fn fill(&self, address: u64, byte: u8, bytes: usize) -> Result<(), Error>;

    /// Copies to the device. The host's bytes may be reused on return.
    ///
    /// # Safety
    /// As for `fill`.
    unsafe fn upload(&self, to: u64, from: &[u8]) -> Result<(), Error>;

    /// Copies from the device, and waits for it.
    ///
    /// # Safety
    /// As for `fill`.
    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<(), Error>;

    /// Copies within the device.
    ///
    /// # Safety
    /// As for `fill`, both ends; they do not overlap.
    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), Error>;
}

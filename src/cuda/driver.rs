//! What the engine asks of a machine: load a kernel, launch it, move bytes. The real one is `module.rs`; tests bring an interpreter.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
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

    /// Tells profilers that wait for it to begin a range of this name, or to end it, after what was asked for so far.
    fn profile(&self, range: Option<&str>) -> Result<(), Error> {
        let _ = range;
        Ok(())
    }

    /// Runs launches that a library makes by itself on this stream.
    fn launches(&self, work: &mut dyn FnMut() -> Result<bool, Error>) -> Result<bool, Error> {
        work()
    }

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

    /// Copies to the device. The host's bytes may be reused on return, so it is an error while recording.
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

/// Who is at a driver's stream.
#[derive(Debug, Default)]
struct Users {
    /// The thread that records.
    recorder: Option<ThreadId>,
    /// Calls that are under way.
    calls: usize,
}

/// A driver whose stream belongs, while a thread records, to that thread: what others ask of it meanwhile waits, so that it is neither
/// recorded nor spoils the recording.
pub(super) struct Gated {
    driver: Arc<dyn Driver>,
    users: Mutex<Users>,
    changed: Condvar,
}

/// A call that is under way.
struct Call<'a>(&'a Gated);

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.0.users().calls -= 1;
        self.0.changed.notify_all();
    }
}

impl Gated {
    pub fn new(driver: Arc<dyn Driver>) -> Self {
        Gated { driver, users: Mutex::default(), changed: Condvar::new() }
    }

    fn users(&self) -> MutexGuard<'_, Users> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for as long as somebody is in the way.
    fn wait(&self, busy: impl Fn(&Users) -> bool) -> MutexGuard<'_, Users> {
        self.changed.wait_while(self.users(), |users| busy(users)).unwrap_or_else(PoisonError::into_inner)
    }

    fn call(&self) -> Call<'_> {
        let me = std::thread::current().id();
        self.wait(|users| users.recorder.is_some_and(|recorder| recorder != me)).calls += 1;
        Call(self)
    }
}

impl Driver for Gated {
    fn properties(&self) -> &Properties {
        self.driver.properties()
    }

    // Loading and allocating are not the stream's, and who records may wait for a kernel that another thread loads.
    fn load(&self, ptx: &str, entry: &str) -> Result<Function, Error> {
        self.driver.load(ptx, entry)
    }

    fn alloc(&self, bytes: usize) -> Result<u64, Error> {
        self.driver.alloc(bytes)
    }

    fn synchronize(&self) -> Result<(), Error> {
        let _call = self.call();
        self.driver.synchronize()
    }

    fn begin_capture(&self) -> Result<(), Error> {
        let me = std::thread::current().id();
        let mut users = self.wait(|users| users.recorder != Some(me) && (users.recorder.is_some() || users.calls > 0));
        if users.recorder.is_some() {
            return Err(Error::Driver { why: "beginning a capture within a capture".into() });
        }
        self.driver.begin_capture()?;
        users.recorder = Some(me);
        Ok(())
    }

    fn end_capture(&self) -> Result<GraphId, Error> {
        let graph = self.driver.end_capture();
        self.users().recorder = None;
        self.changed.notify_all();
        graph
    }

    fn replay(&self, graph: &GraphId) -> Result<(), Error> {
        let _call = self.call();
        self.driver.replay(graph)
    }

    fn forget(&self, graph: GraphId) {
        self.driver.forget(graph);
    }

    fn time(&self, work: &mut dyn FnMut() -> Result<(), Error>) -> Result<Duration, Error> {
        // Both marks are calls of their own. What `work` asks gates itself: it may record, which waits for every call that is under way.
        let mut call = Some(self.call());
        self.driver.time(&mut || {
            call = None;
            let done = work();
            call = Some(self.call());
            done
        })
    }

    fn profile(&self, range: Option<&str>) -> Result<(), Error> {
        let _call = self.call();
        self.driver.profile(range)
    }

    fn launches(&self, work: &mut dyn FnMut() -> Result<bool, Error>) -> Result<bool, Error> {
        let _call = self.call();
        self.driver.launches(work)
    }

    fn handles(&self) -> Option<(u64, u64)> {
        self.driver.handles()
    }

    unsafe fn free(&self, address: u64) {
        // SAFETY: what the caller promises is what this driver wants.
        unsafe { self.driver.free(address) }
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), Error> {
        let _call = self.call();
        // SAFETY: as for `free`.
        unsafe { self.driver.launch(launch) }
    }

    unsafe fn fill(&self, address: u64, byte: u8, bytes: usize) -> Result<(), Error> {
        let _call = self.call();
        // SAFETY: as for `free`.
        unsafe { self.driver.fill(address, byte, bytes) }
    }

    unsafe fn upload(&self, to: u64, from: &[u8]) -> Result<(), Error> {
        let _call = self.call();
        // SAFETY: as for `free`.
        unsafe { self.driver.upload(to, from) }
    }

    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<(), Error> {
        let _call = self.call();
        // SAFETY: as for `free`.
        unsafe { self.driver.download(from, to) }
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), Error> {
        let _call = self.call();
        // SAFETY: as for `free`.
        unsafe { self.driver.copy(from, to, bytes) }
    }
}

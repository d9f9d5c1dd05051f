//! A driver that runs kernels on the interpreter. Addresses are this process's own.

use std::alloc::{Layout, alloc, dealloc};
use std::collections::HashMap;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use ptx_sim::{Memory, Module};
use selective_scan::Error;
use selective_scan::cuda::Cuda;
use selective_scan::cuda::driver::{Driver, Function, GraphId, Launch, Properties};

use super::skip::here;

/// What the GPU's own allocations are aligned to.
const ALIGN: usize = 256;

/// Something that runs on the device.
#[derive(Debug, Clone)]
enum Task {
    Launch { function: Function, grid: [u32; 3], block: [u32; 3], shared: u32, params: Vec<u8> },
    Fill { address: u64, byte: u8, bytes: usize },
    Copy { from: u64, to: u64, bytes: usize },
}

#[derive(Default)]
struct State {
    memory: Memory,
    sizes: HashMap<u64, Layout>,
    kernels: Vec<(Module, usize)>,
    /// What is being recorded, and by whom: other threads may load and allocate.
    recording: Option<(ThreadId, Vec<Task>)>,
    graphs: Vec<Vec<Task>>,
    /// Bytes that are allocated now.
    used: usize,
}

/// The driver.
pub struct Interpreter {
    properties: Properties,
    state: Mutex<State>,
}

/// The GPU of this machine, or else the interpreter; and whether it is the interpreter, which checks every access.
pub fn engine() -> (&'static Cuda, bool) {
    static ENGINE: OnceLock<(Cuda, bool)> = OnceLock::new();
    let (engine, checked) = ENGINE.get_or_init(|| match here(Cuda::new(0)) {
        Ok(engine) => (engine, false),
        Err(why) => {
            let _ = writeln!(std::io::stderr(), "kernels run on the interpreter: {why}");
            (Cuda::with_driver(Arc::new(Interpreter::new())), true)
        }
    });
    (engine, *checked)
}

fn fault(why: impl ToString) -> Error {
    Error::Driver { why: why.to_string() }
}

impl Interpreter {
    /// With as much memory as a small card.
    pub fn new() -> Self {
        let (name, memory) = ("the interpreter".to_string(), 4 << 30);
        let properties = Properties { name, capability: (8, 0), multiprocessors: 108, memory, shared: 163 << 10, driver: 13000 };
        Interpreter { properties, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, task: Task) -> Result<(), Error> {
        let mut state = self.state();
        match &mut state.recording {
            Some((_, tasks)) => {
                tasks.push(task);
                Ok(())
            }
            None => state.run(&task),
        }
    }
}

impl State {
    /// Whether this thread records.
    fn records(&self) -> bool {
        self.recording.as_ref().is_some_and(|(recorder, _)| *recorder == std::thread::current().id())
    }

    fn inside(&self, address: u64, bytes: usize) -> Result<(), Error> {
        if self.memory.contains(address, bytes) { Ok(()) } else { Err(fault(format!("{bytes} bytes at {address:#x} are no allocation's"))) }
    }

    fn run(&self, task: &Task) -> Result<(), Error> {
        match task {
            Task::Launch { function, grid, block, shared, params } => {
                let (module, entry) = &self.kernels[function.0 as usize];
                let launch = ptx_sim::Launch { entry: *entry, grid: *grid, block: *block, shared: *shared as usize, params };
                // A kernel that does what it must not is a fault of the crate, so the test ends here.
                ptx_sim::run(module, &launch, &self.memory).unwrap_or_else(|why| panic!("{why}"));
                Ok(())
            }
            Task::Fill { address, byte, bytes } => {
                self.inside(*address, *bytes)?;
                // SAFETY: the bytes are an allocation's, as just checked.
                unsafe { core::ptr::write_bytes(*address as *mut u8, *byte, *bytes) };
                Ok(())
            }
            Task::Copy { from, to, bytes } => {
                self.inside(*from, *bytes)?;
                self.inside(*to, *bytes)?;
                // SAFETY: both ends are allocations', as just checked.
                unsafe { core::ptr::copy(*from as *const u8, *to as *mut u8, *bytes) };
                Ok(())
            }
        }
    }
}

impl Driver for Interpreter {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn load(&self, ptx: &str, entry: &str) -> Result<Function, Error> {
        let mut state = self.state();
        if state.records() {
            return Err(fault("a kernel was loaded while recording"));
        }
        let module = Module::parse(ptx).map_err(fault)?;
        let index = module.entry(entry).ok_or_else(|| fault(format!("no entry {entry}")))?;
        state.kernels.push((module, index));
        Ok(Function(state.kernels.len() as u64 - 1))
    }

    fn alloc(&self, bytes: usize) -> Result<u64, Error> {
        if bytes == 0 {
            return Ok(0);
        }
        let mut state = self.state();
        if state.records() {
            return Err(fault("memory was allocated while recording"));
        }
        if state.used.saturating_add(bytes) > self.properties.memory {
            return Err(fault(format!("allocating {bytes} bytes: out of memory")));
        }
        let layout = Layout::from_size_align(bytes, ALIGN).map_err(fault)?;
        // SAFETY: the layout has at least one byte.
        let address = unsafe { alloc(layout) } as u64;
        // SAFETY: as long as the allocation; new memory holds NaN.
        unsafe { core::ptr::write_bytes(address as *mut u8, 0xff, bytes) };
        state.memory.register(address, bytes);
        state.sizes.insert(address, layout);
        state.used += bytes;
        Ok(address)
    }

    fn synchronize(&self) -> Result<(), Error> {
        if self.state().recording.is_some() { Err(fault("the device was waited for while recording")) } else { Ok(()) }
    }

    fn begin_capture(&self) -> Result<(), Error> {
        self.state().recording = Some((std::thread::current().id(), Vec::new()));
        Ok(())
    }

    fn end_capture(&self) -> Result<GraphId, Error> {
        let mut state = self.state();
        let (_, tasks) = state.recording.take().ok_or_else(|| fault("nothing was being recorded"))?;
        state.graphs.push(tasks);
        Ok(GraphId(state.graphs.len() as u64 - 1))
    }

    fn replay(&self, graph: &GraphId) -> Result<(), Error> {
        let state = self.state();
        state.graphs[graph.0 as usize].iter().try_for_each(|task| state.run(task))
    }

    fn forget(&self, graph: GraphId) {
        self.state().graphs[graph.0 as usize].clear();
    }

    fn time(&self, work: &mut dyn FnMut() -> Result<(), Error>) -> Result<Duration, Error> {
        let start = Instant::now();
        work()?;
        Ok(start.elapsed())
    }

    fn handles(&self) -> Option<(u64, u64)> {
        None
    }

    unsafe fn free(&self, address: u64) {
        let mut state = self.state();
        if let Some(layout) = state.sizes.remove(&address) {
            state.memory.remove(address);
            state.used -= layout.size();
            // SAFETY: it was allocated with this layout and is forgotten now.
            unsafe { dealloc(address as *mut u8, layout) };
        }
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), Error> {
        let Launch { function, grid, block, shared, params } = *launch;
        self.ask(Task::Launch { function, grid, block, shared, params: params.to_vec() })
    }

    unsafe fn fill(&self, address: u64, byte: u8, bytes: usize) -> Result<(), Error> {
        if bytes == 0 { Ok(()) } else { self.ask(Task::Fill { address, byte, bytes }) }
    }

    unsafe fn upload(&self, to: u64, from: &[u8]) -> Result<(), Error> {
        let state = self.state();
        if from.is_empty() {
            return Ok(());
        }
        if state.recording.is_some() {
            return Err(fault("the host's memory was read while recording"));
        }
        state.inside(to, from.len())?;
        // SAFETY: the bytes are an allocation's, as just checked.
        unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) };
        Ok(())
    }

    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<(), Error> {
        let state = self.state();
        if to.is_empty() {
            return Ok(());
        }
        if state.recording.is_some() {
            return Err(fault("the host's memory was written while recording"));
        }
        state.inside(from, to.len())?;
        // SAFETY: the bytes are an allocation's, as just checked.
        unsafe { core::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), Error> {
        if bytes == 0 { Ok(()) } else { self.ask(Task::Copy { from, to, bytes }) }
    }
}

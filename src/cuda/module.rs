//! The driver itself, through cudarc: the caller's context and stream, compilation with its log, memory, launches, graphs.

use std::ffi::{CString, c_void};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::{CudaContext, CudaGraph, CudaStream, sys};

use super::driver::{Driver, Function, GraphId, Launch, Properties};
use crate::error::Error;

/// Bytes kept of the compiler's log.
const LOG: usize = 8192;

/// The oldest cards that kernels are written for.
const OLDEST: (u32, u32) = (8, 0);

/// The oldest driver that compiles what kernels are written in, PTX 8.0.
const OLDEST_DRIVER: u32 = 12000;

/// The oldest driver with the function that times are read by.
const OLDEST_TIMING: u32 = 12080;

/// Shared memory that every kernel may have without asking.
const SHARED: u32 = 48 << 10;

/// A context and a stream of it.
pub(super) struct Context {
    stream: Arc<CudaStream>,
    properties: Properties,
    /// Modules live as long as the context: kernels in them have no owner of their own.
    modules: Mutex<Vec<sys::CUmodule>>,
    graphs: Mutex<Vec<Option<CudaGraph>>>,
}

// SAFETY: modules and graphs are numbers of the driver, which may be used from any thread; the locks keep each to one thread at a time.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

fn fault(what: &str, error: DriverError) -> Error {
    Error::Driver { why: format!("{what}: {error}") }
}

/// Whether a driver is there at all.
pub(super) fn present() -> bool {
    // SAFETY: it loads the driver's library, whose initialisers are the vendor's, and looks for nothing in it.
    unsafe { sys::is_culib_present() }
}

/// An error where a driver is older than what wants it.
fn check_driver(has: u32, wants: u32, what: &str) -> Result<(), Error> {
    let name = |version: u32| format!("{}.{}", version / 1000, version % 1000 / 10);
    if has >= wants {
        return Ok(());
    }
    Err(Error::Unavailable { what: format!("{what}: it wants a driver for CUDA {} or newer, this one is for {}", name(wants), name(has)) })
}

/// The driver's version, which suffices for the kernels.
fn driver_version() -> Result<u32, Error> {
    let mut version = 0;
    // SAFETY: it writes one number to the place that it is given.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(|e| fault("asking the driver's version", e))?;
    let version = u32::try_from(version).unwrap_or(0);
    check_driver(version, OLDEST_DRIVER, "the GPU engine")?;
    Ok(version)
}

/// How many cards there are.
pub(super) fn count() -> Result<usize, Error> {
    if !present() {
        return Err(Error::Unavailable { what: "an NVIDIA driver: libcuda was not found".into() });
    }
    result::init().map_err(|e| Error::Unavailable { what: format!("an NVIDIA driver that works: {e}") })?;
    driver_version()?;
    let count = CudaContext::device_count().map_err(|e| fault("counting devices", e))?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// The primary context of a card, with a stream of its own.
pub(super) fn open(ordinal: usize) -> Result<Arc<CudaStream>, Error> {
    let count = count()?;
    if ordinal >= count {
        return Err(Error::Unavailable { what: format!("GPU {ordinal}: there are {count}") });
    }
    let context = CudaContext::new(ordinal).map_err(|e| fault("opening a context", e))?;
    context.new_stream().map_err(|e| fault("making a stream", e))
}

fn properties(context: &CudaContext, driver: u32) -> Result<Properties, DriverError> {
    use sys::CUdevice_attribute_enum::{CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT};
    let (major, minor) = context.compute_capability()?;
    Ok(Properties {
        name: context.name()?,
        capability: (major as u32, minor as u32),
        multiprocessors: context.attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32,
        memory: context.total_mem()?,
        shared: context.attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize,
        driver,
    })
}

impl Context {
    pub fn new(stream: Arc<CudaStream>) -> Result<Self, Error> {
        let context = stream.context();
        context.bind_to_thread().map_err(|e| fault("using a context", e))?;
        let properties = properties(context, driver_version()?).map_err(|e| fault("asking a device what it is", e))?;
        if properties.capability < OLDEST {
            let (name, (major, minor)) = (&properties.name, properties.capability);
            return Err(Error::Unavailable { what: format!("a GPU of compute capability 8.0 or newer: {name} has {major}.{minor}") });
        }
        Ok(Context { stream, properties, modules: Mutex::default(), graphs: Mutex::default() })
    }

    /// Whether the stream is recording.
    fn records(&self) -> Result<bool, Error> {
        let status = self.stream.capture_status().map_err(|e| fault("asking whether a stream records", e))?;
        Ok(status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
    }

    fn bind(&self) -> Result<sys::CUstream, Error> {
        self.stream.context().bind_to_thread().map_err(|e| fault("using a context", e))?;
        Ok(self.stream.cu_stream())
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.bind().is_err() {
            return;
        }
        self.graphs.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
        for module in self.modules.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // SAFETY: the module was loaded in this context, and its kernels go with this driver.
            let _ = unsafe { result::module::unload(module) };
        }
    }
}

/// Whether the driver knows nothing of this memory of the host: a copy from it is staged. What it has locked or manages itself is read later.
fn is_pageable(host: &[u8]) -> bool {
    let mut kind = sys::CUmemorytype::CU_MEMORYTYPE_HOST;
    let attribute = sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE;
    // SAFETY: it writes one value of this attribute's type to the place that it is given, and does not read at the address it is asked about.
    let known = unsafe { sys::cuPointerGetAttribute((&raw mut kind).cast(), attribute, host.as_ptr() as u64) };
    known == sys::cudaError_enum::CUDA_ERROR_INVALID_VALUE
}

/// Compiles PTX in the current context.
fn compile(ptx: &str) -> Result<sys::CUmodule, Error> {
    let image = CString::new(ptx).map_err(|_| Error::Driver { why: "PTX with a zero byte".into() })?;
    let mut log = vec![0u8; LOG];
    let mut options = [sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER, sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    let mut values = [log.as_mut_ptr().cast::<c_void>(), LOG as *mut c_void];
    let mut module = core::ptr::null_mut();
    // SAFETY: the image ends in a zero byte; two options and their values are given, the first a buffer as long as the second says.
    let done = unsafe { sys::cuModuleLoadDataEx(&mut module, image.as_ptr().cast(), 2, options.as_mut_ptr(), values.as_mut_ptr()) };
    done.result().map_err(|e| {
        let text = String::from_utf8_lossy(log.split(|b| *b == 0).next().unwrap_or_default()).trim().to_string();
        Error::Driver { why: format!("compiling a kernel: {e}\n{text}") }
    })?;
    Ok(module)
}

impl Driver for Context {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn load(&self, ptx: &str, entry: &str) -> Result<Function, Error> {
        self.bind()?;
        let module = compile(ptx)?;
        self.modules.lock().unwrap_or_else(PoisonError::into_inner).push(module);
        let name = CString::new(entry).map_err(|_| Error::Driver { why: format!("`{entry:?}` is no name of a kernel") })?;
        // SAFETY: the module is loaded, and stays so as long as this driver.
        let function =
            unsafe { result::module::get_function(module, name) }.map_err(|e| fault(&format!("finding the kernel {entry}"), e))?;
        // Kernels with more shared memory than every block may have must be told so once.
        let most = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let fixed = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
        let mut size = 0;
        // SAFETY: the function is loaded; both calls read or set a number of it.
        unsafe {
            sys::cuFuncGetAttribute(&mut size, fixed, function).result().map_err(|e| fault("asking a kernel's shared memory", e))?;
            let free = self.properties.shared as i32 - size;
            if free > SHARED as i32 {
                result::function::set_function_attribute(function, most, free).map_err(|e| fault("setting a kernel's shared memory", e))?;
            }
        }
        Ok(Function(function as u64))
    }

    fn alloc(&self, bytes: usize) -> Result<u64, Error> {
        if bytes == 0 {
            return Ok(0);
        }
        self.bind()?;
        // SAFETY: a plain allocation.
        unsafe { result::malloc_sync(bytes) }.map_err(|e| fault(&format!("allocating {bytes} bytes"), e))
    }

    fn synchronize(&self) -> Result<(), Error> {
        let stream = self.bind()?;
        // SAFETY: the stream is alive: this driver holds it.
        unsafe { result::stream::synchronize(stream) }.map_err(|e| fault("waiting for the device", e))
    }

    fn begin_capture(&self) -> Result<(), Error> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).map_err(|e| fault("beginning a capture", e))
    }

    fn end_capture(&self) -> Result<GraphId, Error> {
        let graph = self.stream.end_capture(sys::CUgraphInstantiate_flags(0)).map_err(|e| fault("ending a capture", e))?;
        let graph = graph.ok_or_else(|| Error::Driver { why: "a capture recorded nothing".into() })?;
        let mut graphs = self.graphs.lock().unwrap_or_else(PoisonError::into_inner);
        graphs.push(Some(graph));
        Ok(GraphId(graphs.len() as u64 - 1))
    }

    fn replay(&self, graph: &GraphId) -> Result<(), Error> {
        let graphs = self.graphs.lock().unwrap_or_else(PoisonError::into_inner);
        let graph = graphs.get(graph.0 as usize).and_then(Option::as_ref).ok_or_else(|| Error::Driver { why: "no such graph".into() })?;
        graph.launch().map_err(|e| fault("launching a graph", e))
    }

    fn forget(&self, graph: GraphId) {
        if let Some(slot) = self.graphs.lock().unwrap_or_else(PoisonError::into_inner).get_mut(graph.0 as usize) {
            *slot = None;
        }
    }

    fn time(&self, work: &mut dyn FnMut() -> Result<(), Error>) -> Result<Duration, Error> {
        // An older driver lacks the function, and looking for it would panic.
        check_driver(self.properties.driver, OLDEST_TIMING, "a time on the device")?;
        self.bind()?;
        let event = || self.stream.context().new_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT)).map_err(|e| fault("making an event", e));
        let (start, end) = (event()?, event()?);
        start.record(&self.stream).map_err(|e| fault("recording an event", e))?;
        work()?;
        end.record(&self.stream).map_err(|e| fault("recording an event", e))?;
        let ms = start.elapsed_ms(&end).map_err(|e| fault("reading a time", e))?;
        Ok(Duration::from_secs_f64(f64::from(ms.max(0.0)) / 1e3))
    }

    fn profile(&self, range: Option<&str>) -> Result<(), Error> {
        self.synchronize()?;
        // SAFETY: it only looks whether the library can be loaded, without which the calls below would panic.
        let nvtx = unsafe { cudarc::nvtx::sys::is_culib_present() };
        let name = std::ffi::CString::new(range.unwrap_or_default()).map_err(|e| Error::Driver { why: format!("naming a range: {e}") })?;
        if nvtx {
            match range {
                // SAFETY: the name ends in 0 and is read before the call returns.
                Some(_) => unsafe { cudarc::nvtx::sys::nvtxRangePushA(name.as_ptr()) },
                // SAFETY: it has no arguments; without a range that is open it does nothing.
                None => unsafe { cudarc::nvtx::sys::nvtxRangePop() },
            };
        }
        let told = if range.is_some() { cudarc::driver::profiler_start() } else { cudarc::driver::profiler_stop() };
        told.map_err(|e| fault("telling the profiler", e))
    }

    fn handles(&self) -> Option<(u64, u64)> {
        Some((self.stream.context().cu_ctx() as u64, self.stream.cu_stream() as u64))
    }

    unsafe fn free(&self, address: u64) {
        if address != 0 && self.bind().is_ok() {
            // SAFETY: the caller's promise: allocated here, used no more. The driver waits for kernels that still run.
            let _ = unsafe { result::free_sync(address) };
        }
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), Error> {
        let stream = self.bind()?;
        let [gx, gy, gz] = launch.grid;
        let [bx, by, bz] = launch.block;
        // One parameter, by value: its bytes are copied before the call returns.
        let mut params = [launch.params.as_ptr().cast_mut().cast::<c_void>()];
        let function = launch.function.0 as sys::CUfunction;
        // SAFETY: the caller's promise about function and parameters; the stream is alive.
        let done = unsafe {
            sys::cuLaunchKernel(function, gx, gy, gz, bx, by, bz, launch.shared, stream, params.as_mut_ptr(), core::ptr::null_mut())
        };
        done.result().map_err(|e| fault("launching a kernel", e))
    }

    unsafe fn fill(&self, address: u64, byte: u8, bytes: usize) -> Result<(), Error> {
        if bytes == 0 {
            return Ok(());
        }
        let stream = self.bind()?;
        // SAFETY: the caller's promise.
        unsafe { result::memset_d8_async(address, byte, bytes, stream) }.map_err(|e| fault("filling memory", e))
    }

    unsafe fn upload(&self, to: u64, from: &[u8]) -> Result<(), Error> {
        if from.is_empty() {
            return Ok(());
        }
        let stream = self.bind()?;
        if self.records()? {
            // The graph would read the host's memory when it is replayed.
            return Err(Error::Driver { why: "the host's memory was read while recording".into() });
        }
        // SAFETY: the caller's promise; pageable memory is staged before the call returns, and any other is waited for while `from` is borrowed.
        unsafe { result::memcpy_htod_async(to, from, stream) }.map_err(|e| fault("copying to the device", e))?;
        if is_pageable(from) { Ok(()) } else { self.synchronize() }
    }

    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<(), Error> {
        if to.is_empty() {
            return Ok(());
        }
        let stream = self.bind()?;
        // SAFETY: the caller's promise; the call is waited for while `to` is borrowed.
        unsafe { result::memcpy_dtoh_async(to, from, stream) }.map_err(|e| fault("copying from the device", e))?;
        self.synchronize()
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), Error> {
        if bytes == 0 {
            return Ok(());
        }
        let stream = self.bind()?;
        // SAFETY: the caller's promise.
        unsafe { result::memcpy_dtod_async(to, from, bytes, stream) }.map_err(|e| fault("copying on the device", e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_is_too_old_says_so() {
        assert_eq!(check_driver(12000, OLDEST_DRIVER, "it"), Ok(()));
        assert_eq!(check_driver(13020, OLDEST_DRIVER, "it"), Ok(()));
        let why = check_driver(11080, OLDEST_DRIVER, "the GPU engine").expect_err("it is older").to_string();
        assert_eq!(why, "unavailable: the GPU engine: it wants a driver for CUDA 12.0 or newer, this one is for 11.8");
    }
}

//! The GPU engine: PTX written by hand, one template an operator (`ptx/`), compiled by the driver at first use. Feature `cuda`.
//!
//! It builds on any machine and needs a driver to run, which is looked for when an engine is made: [`Cuda::new`] is an `Err` where there is
//! none. Tensors live in [`DeviceBuffer`]s, in cudarc's slices ([`Cuda::view`]) or at the caller's own addresses ([`View::from_address`]); views of them have
//! the type [`Device`] for their memory, so none reaches a CPU engine. Nothing tells whose a view is: what one engine's buffer is given to another engine for must be ordered by the
//! caller ([`Cuda::synchronize`]), and their contexts must reach each other's memory.
//!
//! Everything runs on one stream, the caller's where the engine was made by [`Cuda::on`], in order; calls return before the device is done,
//! and copies to the host wait. The calls of the engine's traits neither allocate nor synchronise after their first use of a kernel, so they can be captured ([`Cuda::capture`]).
//!
//! Results are the same bits on every repeat and whatever else is in the batch: no atomics on floating-point numbers, and sums in an order that depends
//! on a row's own sizes only, never on how many multiprocessors there are. Between generations of cards bits may differ where the maker promises a bound of the
//! error only, or nothing: the hardware's approximations of 2^x ([`Cuda::approximates_decay`]) and of 1/x, and the tensor cores, which sum inside an instruction in an order
//! that is not specified: products of 16-bit storage ([`Products::Plain`]) run on them, and with these blocks and models in 16 bits. Products by
//! cuBLASLt ([`Products::CublasLt`]) have bits of their own: the library picks an algorithm by its version, the card, layouts, alignment and the number of rows, so a row's bits there may depend on how
//! many rows there are. It is kept once picked, and repeats are the same bits.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytemuck::Pod;
use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut};

use crate::element::Dtype;
use crate::error::Error;
use crate::ops::Rule;
use crate::regime::{Call, Gpu, Reason};
use crate::scan::ScanProblem;
use crate::selective::{Carry, SelectiveOptions, SelectiveProblem};
use crate::view::{Device, View, ViewMut};

mod adamw;
mod argmax;
mod cast;
mod causal_conv1d;
mod ceilings;
mod chunks;
mod cross_entropy;
#[cfg(feature = "cublaslt")]
mod cublaslt;
pub mod driver;
mod elementwise;
mod embedding;
pub mod expression;
mod graph;
mod launch;
mod linear;
mod memory;
mod module;
mod params;
mod rms_norm;
mod scan;
mod selective;
mod selective_scan_bwd;
mod selective_scan_fwd;
mod selective_state_update;
mod shared;
mod sum;
pub mod template;
pub mod variants;

pub use crate::regime::Regime;
pub use adamw::{AdamWArgs, AdamWStep};
pub use ceilings::Ceilings;
pub use cross_entropy::Targets;
pub use graph::Graph;
#[cfg(feature = "model")]
pub(crate) use graph::Recordings;
pub use linear::{Products, ProductsLine};
pub use memory::DeviceBuffer;

use driver::{Driver, Function, Properties};

/// The engine. Clones share the context, the stream and the compiled kernels.
#[derive(Clone)]
pub struct Cuda {
    // Before the driver, because a library must go before the context that it lives in.
    choice: linear::Choice,
    driver: Arc<dyn Driver>,
    kernels: Arc<Mutex<HashMap<String, Function>>>,
    regime: Option<Regime>,
}

impl core::fmt::Debug for Cuda {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Cuda({})", self.driver.properties().name)
    }
}

/// How a recurrence runs on a card, and why. Calls go by the same function, and no bit depends on it.
pub(crate) fn scan_reason(problem: ScanProblem, call: Call, gpu: &Gpu) -> Reason {
    scan::planned(problem, call, gpu)
}

/// The same for a selective scan.
pub(crate) fn selective_reason(problem: &SelectiveProblem, call: Call, gpu: &Gpu) -> Reason {
    if call.backward { Reason::Chunks } else { selective_scan_fwd::planned(problem, call, gpu) }
}

/// How many GPUs there are. An `Err` where there is no driver, or one that is too old.
pub fn count() -> Result<usize, Error> {
    module::count()
}

impl Cuda {
    /// The GPU with this number, in its primary context, on a stream of its own.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where there is no driver, one older than CUDA 12.0, no such GPU, or one older than compute capability 8.0.
    pub fn new(ordinal: usize) -> Result<Self, Error> {
        Self::on(module::open(ordinal)?)
    }

    /// On the caller's stream, in its context.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where the driver is older than CUDA 12.0, or the GPU than compute capability 8.0.
    pub fn on(stream: Arc<CudaStream>) -> Result<Self, Error> {
        Ok(Self::with_driver(Arc::new(module::Context::new(stream)?)))
    }

    /// On anything that behaves like a card: tests bring an interpreter.
    #[doc(hidden)]
    pub fn with_driver(driver: Arc<dyn Driver>) -> Self {
        let driver = Arc::new(driver::Gated::new(driver));
        Cuda { choice: linear::Choice::default(), driver, kernels: Arc::default(), regime: None }
    }

    /// What it runs on, for tests of kernels by themselves.
    #[doc(hidden)]
    pub fn driver(&self) -> &dyn Driver {
        &*self.driver
    }

    /// The same engine with its scans run in one way, or as the planner's rule chooses where `None`. No bit depends on it.
    pub fn with_regime(mut self, regime: Option<Regime>) -> Self {
        self.regime = regime;
        self
    }

    /// The card as planners see it.
    pub fn gpu(&self) -> Gpu {
        let Properties { multiprocessors, capability, .. } = *self.properties();
        Gpu { multiprocessors, capability }
    }

    /// Whether a selective scan of inputs stored so takes its decay from the hardware's `ex2.approx`, whose error is up to 2⁻²² of the result: 16-bit storage,
    /// and f32 with real A under Euler's rule. There f32 is held to 2e-6 + 2⁻²²·n_eff of the largest value (gradients to twice that) in place of
    /// 2e-6 + 2⁻²⁴·n_eff. [`Carry::Compensated`] has the accurate exponential, as has the step ([`crate::selective::SelectiveScan::selective_state_update`]) in f32.
    pub fn approximates_decay(input: Dtype, complex: bool, options: SelectiveOptions) -> bool {
        let single = input == Dtype::F32 && !complex && options.rule == Rule::Euler;
        options.carry == Carry::Plain && (single || matches!(input, Dtype::F16 | Dtype::Bf16))
    }

    /// The rule's reason, or that of whoever made this engine.
    pub(crate) fn settle(&self, reason: Reason) -> Reason {
        reason.or_asked(self.regime)
    }

    /// What the card is.
    pub fn properties(&self) -> &Properties {
        self.driver.properties()
    }

    /// Waits for everything that was asked for.
    pub fn synchronize(&self) -> Result<(), Error> {
        self.driver.synchronize()
    }

    /// Time on the device that `work` takes, with what other threads ask of this engine meanwhile. `work` may record graphs.
    ///
    /// # Errors
    /// What `work` or the driver says; [`Error::Unavailable`] where the driver is older than CUDA 12.8.
    pub fn time(&self, mut work: impl FnMut() -> Result<(), Error>) -> Result<Duration, Error> {
        self.driver.time(&mut work)
    }

    /// Tells a profiler that waits for it (`nsys profile -c cudaProfilerApi`, `ncu --profile-from-start off`) to begin, or with None to end; waits for the
    /// device. An NVTX range of this name is opened and closed where libnvToolsExt is found.
    pub fn profile(&self, range: Option<&str>) -> Result<(), Error> {
        self.driver.profile(range)
    }

    /// A buffer of `len` arbitrary elements.
    pub fn buffer<T: Pod>(&self, len: usize) -> Result<DeviceBuffer<T>, Error> {
        DeviceBuffer::new(&self.driver, len)
    }

    /// A buffer with a copy of `data`.
    pub fn upload<T: Pod>(&self, data: &[T]) -> Result<DeviceBuffer<T>, Error> {
        DeviceBuffer::from_slice(&self.driver, data)
    }

    /// A view of a cudarc slice or of a view of one, which must belong to this engine's stream: it is freed there, in order, after what the engine does with
    /// it. The view does not hold cudarc's guard. So a caller who gives the slice to another stream afterwards must order that stream after this one. It may
    /// wait for an event of the slice, so take views before a [`Cuda::capture`].
    ///
    /// # Errors
    /// [`Error::Value`] where the slice is of another context or stream.
    pub fn view<'a, T: Pod, const R: usize>(
        &self,
        slice: &'a impl DevicePtr<T>,
        dims: [usize; R],
        strides: [isize; R],
    ) -> Result<View<'a, T, R, Device>, Error> {
        self.check_stream(slice.stream())?;
        let (address, _guard) = slice.device_ptr(slice.stream());
        Ok(View::at_address(address as usize, slice.len(), 0, dims, strides))
    }

    /// As [`Cuda::view`], of one that is written.
    ///
    /// # Errors
    /// As there.
    pub fn view_mut<'a, T: Pod, const R: usize>(
        &self,
        slice: &'a mut impl DevicePtrMut<T>,
        dims: [usize; R],
        strides: [isize; R],
    ) -> Result<ViewMut<'a, T, R, Device>, Error> {
        let (len, stream) = (slice.len(), slice.stream().clone());
        self.check_stream(&stream)?;
        let (address, _guard) = slice.device_ptr_mut(&stream);
        Ok(ViewMut::at_address(address as usize, len, 0, dims, strides))
    }

    /// Whether a stream is the engine's own.
    fn check_stream(&self, stream: &CudaStream) -> Result<(), Error> {
        let given = (stream.context().cu_ctx() as u64, stream.cu_stream() as u64);
        if self.driver.handles() == Some(given) {
            return Ok(());
        }
        Err(Error::Value { operand: "slice", why: "it belongs to another context or stream than the engine".into() })
    }
}

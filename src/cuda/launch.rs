//! Kernels by name, loaded once an engine (and its clones), and their launches.

use super::Cuda;
use super::driver::{Function, Launch};
use super::expression::Vars;
use super::params::Params;
use super::template::Template;
use crate::error::Error;

/// One variant of one operator's template: a struct of the template's axes.
pub trait Kernel: Sized {
    /// The template.
    const TEMPLATE: Template;
    /// Its block of parameters. The template knows the offsets as `@.field@` and the size as `@.size@`.
    type Params: Params;

    /// The variant's name, `selective_scan_fwd_bf16_f32_n16_z`: different for different axes. The template knows it as `@entry@`.
    fn entry(&self) -> String;

    /// The axes as variables of the template.
    fn vars(&self) -> Vars;

    /// Every variant that the engine can ask for.
    fn shipped() -> Vec<Self>;

    /// The expanded PTX.
    fn expand(&self) -> String {
        let vars = self.vars();
        let vars = Self::Params::FIELDS.iter().fold(vars, |vars, field| vars.int(&format!(".{}", field.name), field.offset));
        Self::TEMPLATE.expand(&vars.int(".size", size_of::<Self::Params>()).text("entry", self.entry()))
    }
}

/// Blocks along the first axis of a grid, at most.
const MAX_BLOCKS: u64 = (1 << 31) - 1;

/// Where and how wide a kernel runs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grid {
    /// Blocks, along one axis.
    pub blocks: u64,
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
}

impl Grid {
    /// So many blocks of so many threads.
    pub fn new(blocks: usize, threads: u32) -> Self {
        Grid { blocks: blocks as u64, threads, shared: 0 }
    }
}

impl Cuda {
    /// The variant, compiled at its first use by this engine or a clone.
    pub(crate) fn kernel<K: Kernel>(&self, kernel: &K) -> Result<Function, Error> {
        let entry = kernel.entry();
        let mut kernels = self.kernels.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(function) = kernels.get(&entry) {
            return Ok(*function);
        }
        let function = self.driver.load(&kernel.expand(), &entry)?;
        kernels.insert(entry, function);
        Ok(function)
    }

    /// Launches a variant, as [`Cuda::launch`].
    pub(crate) fn run<K: Kernel>(&self, kernel: &K, grid: Grid, params: &K::Params) -> Result<(), Error> {
        self.launch(self.kernel(kernel)?, grid, params)
    }

    /// Launches a kernel that takes `P`; nothing for no blocks.
    ///
    /// The addresses in `params` are those of checked views and of pieces of the workspace, which are borrowed by the caller.
    pub(crate) fn launch<P: Params>(&self, function: Function, grid: Grid, params: &P) -> Result<(), Error> {
        if grid.blocks == 0 {
            return Ok(());
        }
        if grid.blocks > MAX_BLOCKS {
            return Err(Error::Unsupported { what: format!("a grid of {} blocks, more than {MAX_BLOCKS}", grid.blocks) });
        }
        let params = bytemuck::bytes_of(params);
        let launch = Launch { function, grid: [grid.blocks as u32, 1, 1], block: [grid.threads, 1, 1], shared: grid.shared, params };
        // SAFETY: `function` was loaded from the template whose parameters `P` are, by its operator's own file; the operator has checked
        // its views, whose elements lie in their buffers, and the kernel stays inside the dimensions that it is given.
        unsafe { self.driver.launch(&launch) }
    }
}

//! Which way products are computed.

use core::fmt;
use std::sync::{Arc, OnceLock};

use super::{Product, Sizes};
use crate::buffer::Workspace;
use crate::cuda::Cuda;
#[cfg(feature = "cublaslt")]
use crate::cuda::cublaslt::Lt;
use crate::error::Error;
use crate::view::Device;

/// What computes the products of `linear`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Products {
    /// The kernels in `ptx/`, which need nothing but the driver. A row's bits depend on no other row.
    Plain,
    /// NVIDIA's library, where layouts and types are ones that it takes; the plain kernels serve the rest. A row's bits may depend on the
    /// number of rows, and on no repeat.
    CublasLt,
}

/// Stands for the library where the feature is off; there is none of it.
#[cfg(not(feature = "cublaslt"))]
pub(in crate::cuda) enum Lt {}

#[cfg(not(feature = "cublaslt"))]
impl Lt {
    pub const WORKSPACE: usize = 0;

    pub fn open(_handles: Option<(u64, u64)>) -> Result<Self, String> {
        Err("the feature `cublaslt` is off".into())
    }

    pub fn version(&self) -> String {
        match *self {}
    }

    pub fn takes(&self, _sizes: &Sizes, _params: &Product) -> bool {
        match *self {}
    }

    pub fn product(&self, _sizes: &Sizes, _params: &Product, _workspace: u64) -> Result<bool, Error> {
        match *self {}
    }
}

/// Where the library wants its workspace to begin: pieces of ours begin on narrower ones, and it refuses those.
const BOUNDARY: usize = 256;

/// The first boundary from an address on.
fn on_boundary(address: u64) -> u64 {
    address.next_multiple_of(BOUNDARY as u64)
}

/// What an engine knows of it.
#[derive(Clone, Default)]
pub(in crate::cuda) struct Choice {
    forced: Option<Products>,
    library: Arc<OnceLock<Result<Lt, String>>>,
}

/// What an engine computes its products with, in words.
pub struct ProductsLine<'a>(&'a Cuda);

impl fmt::Display for ProductsLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.choice.forced, self.0.library()) {
            (Some(Products::Plain), _) => f.write_str("plain PTX kernels, because they were asked for"),
            (_, Ok(library)) => write!(f, "cuBLASLt {}", library.version()),
            (_, Err(why)) => write!(f, "plain PTX kernels, because {why}"),
        }
    }
}

impl Cuda {
    fn library(&self) -> Result<&Lt, &str> {
        self.choice.library.get_or_init(|| Lt::open(self.driver.handles())).as_ref().map_err(String::as_str)
    }

    fn chosen(&self) -> Option<&Lt> {
        if self.choice.forced == Some(Products::Plain) { None } else { self.library().ok() }
    }

    /// What computes the products of `linear`: the library where there is one, unless the plain kernels were asked for.
    pub fn products(&self) -> Products {
        if self.chosen().is_some() { Products::CublasLt } else { Products::Plain }
    }

    /// The same in words, with the library's version or why it is not used.
    pub fn products_line(&self) -> ProductsLine<'_> {
        ProductsLine(self)
    }

    /// The same engine with its products computed in one way.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where the library is asked for and is not there.
    pub fn with_products(mut self, products: Products) -> Result<Self, Error> {
        if products == Products::CublasLt {
            self.library().map_err(|why| Error::Unavailable { what: format!("cuBLASLt: {why}") })?;
        }
        self.choice.forced = Some(products);
        Ok(self)
    }

    /// Bytes of workspace that the library wants.
    pub(super) fn library_bytes(&self) -> usize {
        if self.chosen().is_some() { Lt::WORKSPACE + BOUNDARY } else { 0 }
    }

    /// The product by the library; false where it has to be the plain kernels.
    pub(super) fn library_product(&self, sizes: Sizes, params: &Product, ws: &mut Workspace<'_, Device>) -> Result<bool, Error> {
        let Some(library) = self.chosen().filter(|library| !sizes.fine && library.takes(&sizes, params)) else { return Ok(false) };
        let mut ws = ws.reborrow();
        let workspace = on_boundary(ws.tensor::<u8, 1>([Lt::WORKSPACE + BOUNDARY])?.as_view().buffer().0 as u64);
        self.driver.launches(&mut || library.product(&sizes, params, workspace))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Wherever a piece of a workspace begins, the library's part of it begins on a boundary and ends inside.
    #[test]
    fn the_library_gets_an_aligned_piece() {
        for address in (4096..8192).step_by(crate::workspace::ALIGN) {
            let start = on_boundary(address);
            assert!(start.is_multiple_of(256) && start >= address && start - address < BOUNDARY as u64);
        }
    }
}

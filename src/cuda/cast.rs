//! Numbers from one storage type to another.

use super::Cuda;
use super::expression::Vars;
use super::launch::{Grid, Kernel};
use super::params::{STORAGE, Strided, params, storage, strided, strided_mut};
use super::template::{Template, template};
use crate::element::{Dtype, Input};
use crate::error::Error;
use crate::view::{Device, View, ViewMut};

/// Elements of a block.
const BLOCK: usize = 1024;

/// A variant.
pub(super) struct Cast {
    from: Dtype,
    to: Dtype,
}

params! {
    /// Two arrays of `count` elements.
    pub struct CastParams {
        from: Strided<2>,
        to: Strided<2>,
        count: u64,
    }
}

impl Kernel for Cast {
    const TEMPLATE: Template = template!("cast");
    type Params = CastParams;

    fn entry(&self) -> String {
        format!("cast_{}_{}", self.from.name(), self.to.name())
    }

    fn vars(&self) -> Vars {
        let arith = if self.to == Dtype::F64 { "f64" } else { "f32" };
        storage(Vars::new(), self.from).text("O", self.to.name()).text("OA", arith)
    }

    fn shipped() -> Vec<Self> {
        STORAGE.into_iter().flat_map(|from| STORAGE.map(|to| Cast { from, to })).collect()
    }
}

impl Cuda {
    /// to = from, both (n), rounded to nearest even where `O` is narrower.
    ///
    /// # Errors
    /// Where an operand does not fit.
    pub fn cast<I: Input, O: Input>(&self, from: View<'_, I, 1, Device>, to: ViewMut<'_, O, 1, Device>) -> Result<(), Error> {
        from.check("from", from.dims())?;
        to.check("to", from.dims())?;
        let [count] = from.dims();
        let params = CastParams { from: strided(&from), to: strided_mut(&to), count: count as u64 };
        self.run(&Cast { from: I::DTYPE, to: O::DTYPE }, Grid::new(count.div_ceil(BLOCK), 256), &params)
    }
}

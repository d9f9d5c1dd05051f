//! Parameters, gradients and moments on the device: one buffer with every tensor in the fixed order, so that a walk over all is one launch.

use std::sync::Arc;

use crate::block::mamba::{MambaGrads, MambaParams};
use crate::cuda::{Cuda, DeviceBuffer};
use crate::element::Real;
use crate::error::Error;
use crate::model::config::Sizes;
use crate::model::parameters::{Kind, Parameters, Spec, expected};
use crate::view::{Device, View, ViewMut, contiguous};

/// Tensors start at multiples of this many elements, so that wide loads are aligned. What lies between them is 0, and stays it.
const PLACE: usize = 16;

/// Where every tensor stands in the buffer.
#[derive(Debug)]
pub(super) struct Layout {
    specs: Vec<Spec>,
    /// Where each begins, and after them where the buffer ends.
    starts: Vec<usize>,
    /// Tensors of one block.
    each: usize,
}

impl Layout {
    fn new(sizes: &Sizes) -> Self {
        let specs: Vec<Spec> = expected(sizes).into_iter().filter(|spec| !spec.optional).collect();
        let mut starts = vec![0];
        for spec in &specs {
            starts.push(starts[starts.len() - 1] + spec.count().next_multiple_of(PLACE));
        }
        let own = 2 + usize::from(!sizes.tied);
        let each = (specs.len() - own).checked_div(sizes.layers).unwrap_or(0);
        Layout { specs, starts, each }
    }

    fn len(&self) -> usize {
        self.starts[self.specs.len()]
    }

    /// The number of a tensor: of a block's where `layer` is given. None where the model has no such tensor.
    fn index(&self, kind: Kind, layer: Option<usize>) -> Option<usize> {
        let range = match layer {
            Some(i) => 1 + i * self.each..1 + (i + 1) * self.each,
            None => 0..self.specs.len(),
        };
        range.into_iter().find(|&i| self.specs[i].kind == kind)
    }
}

/// All parameters of a model on a device. Gradients and moments have the same layout.
#[derive(Debug)]
pub struct GpuParameters<T> {
    sizes: Sizes,
    layout: Arc<Layout>,
    flat: DeviceBuffer<T>,
}

impl<T: Real> GpuParameters<T> {
    /// A copy of the host's.
    ///
    /// # Errors
    /// [`Error::Value`] where a tensor is not as long as its sizes want; what the driver says.
    pub fn upload(engine: &Cuda, parameters: &Parameters<T>) -> Result<Self, Error> {
        let sizes = *parameters.sizes();
        let layout = Arc::new(Layout::new(&sizes));
        let flat = engine.upload(&packed(&layout, parameters)?)?;
        Ok(GpuParameters { sizes, layout, flat })
    }

    /// Zeros of the same structure.
    ///
    /// # Errors
    /// What the driver says.
    pub fn zeros_like(&self, engine: &Cuda) -> Result<Self, Error> {
        let mut flat = engine.buffer(self.flat.len())?;
        flat.fill(0)?;
        Ok(GpuParameters { sizes: self.sizes, layout: self.layout.clone(), flat })
    }

    /// Takes the host's numbers.
    ///
    /// # Errors
    /// [`Error::Value`] where they are of another model.
    pub fn set(&mut self, parameters: &Parameters<T>) -> Result<(), Error> {
        parameters.check("parameters", &self.sizes)?;
        self.flat.upload(&packed(&self.layout, parameters)?)
    }

    /// A copy for the host; waits for the device.
    ///
    /// # Errors
    /// What the driver says.
    pub fn download(&self) -> Result<Parameters<T>, Error> {
        let (flat, mut starts) = (self.flat.to_vec()?, self.layout.starts.iter());
        Parameters::build(self.sizes, |spec| {
            let start = *starts.next().expect("both walk in the same order");
            Ok(flat[start..start + spec.count()].to_vec())
        })
    }

    /// The sizes that decide the dimensions.
    pub fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    /// All numbers, with the zeros between tensors.
    pub fn flat(&self) -> View<'_, T, 1, Device> {
        self.flat.view([self.flat.len()])
    }

    /// As [`GpuParameters::flat`], to be written.
    pub fn flat_mut(&mut self) -> ViewMut<'_, T, 1, Device> {
        let len = self.flat.len();
        self.flat.view_mut([len])
    }

    /// Checks that these are parameters of a model of `sizes`.
    pub(super) fn check(&self, operand: &'static str, sizes: &Sizes) -> Result<(), Error> {
        if self.sizes == *sizes {
            return Ok(());
        }
        Err(Error::Value { operand, why: format!("made for {:?}, wanted {sizes:?}", self.sizes) })
    }

    /// Ranges of [`GpuParameters::flat`], and whether weight decay applies to each.
    pub(super) fn ranges(&self) -> impl Iterator<Item = (core::ops::Range<usize>, bool)> + '_ {
        let Layout { specs, starts, .. } = &*self.layout;
        specs.iter().zip(starts.windows(2)).map(|(spec, ends)| (ends[0]..ends[1], spec.kind.decays()))
    }

    fn tensor<const R: usize>(&self, kind: Kind, layer: Option<usize>, dims: [usize; R]) -> Option<View<'_, T, R, Device>> {
        let at = self.layout.starts[self.layout.index(kind, layer)?];
        Some(self.flat.strided(at, dims, contiguous(dims)))
    }

    fn own<const R: usize>(&self, kind: Kind, layer: Option<usize>, dims: [usize; R]) -> View<'_, T, R, Device> {
        self.tensor(kind, layer, dims).expect("every model has this tensor")
    }

    /// (vocab, M).
    pub(super) fn embeddings(&self) -> View<'_, T, 2, Device> {
        self.own(Kind::Embedding, None, [self.sizes.vocab, self.sizes.hidden])
    }

    /// The head's weight, (vocab, M): its own or the embedding.
    pub(super) fn head(&self) -> View<'_, T, 2, Device> {
        self.tensor(Kind::LmHead, None, [self.sizes.vocab, self.sizes.hidden]).unwrap_or_else(|| self.embeddings())
    }

    /// The weight of the norm before a block, or after the last.
    pub(super) fn norm(&self, layer: Option<usize>) -> View<'_, T, 1, Device> {
        self.own(if layer.is_some() { Kind::Norm } else { Kind::FinalNorm }, layer, [self.sizes.hidden])
    }

    /// A_log of a block, (D, N).
    pub(super) fn a_log(&self, layer: usize) -> View<'_, T, 2, Device> {
        self.own(Kind::ALog, Some(layer), [self.sizes.inner, self.sizes.state])
    }

    /// The parameters of a block.
    pub(super) fn block<'a>(&'a self, layer: usize, decay: Option<View<'a, T, 2, Device>>) -> MambaParams<'a, T, Device> {
        let (Sizes { hidden, inner, state, rank, conv, .. }, i) = (self.sizes, Some(layer));
        MambaParams {
            in_proj: self.own(Kind::InProj, i, [2 * inner, hidden]),
            in_proj_bias: self.tensor(Kind::InProjBias, i, [2 * inner]),
            conv_weight: self.own(Kind::ConvWeight, i, [inner, conv]),
            conv_bias: self.tensor(Kind::ConvBias, i, [inner]),
            x_proj: self.own(Kind::XProj, i, [rank + 2 * state, inner]),
            dt_proj: self.own(Kind::DtProj, i, [inner, rank]),
            dt_bias: self.own(Kind::DtBias, i, [inner]),
            A_log: self.a_log(layer),
            A: decay,
            D: self.own(Kind::Skip, i, [inner]),
            out_proj: self.own(Kind::OutProj, i, [hidden, inner]),
            out_proj_bias: self.tensor(Kind::OutProjBias, i, [hidden]),
        }
    }

    /// The tensors apart, to be written.
    pub(super) fn pieces(&mut self) -> Pieces<'_, T> {
        let GpuParameters { sizes, layout, flat } = self;
        let len = flat.len();
        let (mut rest, mut tensors) = (flat.view_mut([len]), Vec::with_capacity(layout.specs.len()));
        for ends in layout.starts.windows(2) {
            let (piece, after) = rest.split(0, ends[1] - ends[0]);
            tensors.push(Some(piece));
            rest = after;
        }
        Pieces { sizes, layout, tensors }
    }
}

/// The tensors of a [`GpuParameters`], each to be taken once.
pub(super) struct Pieces<'a, T> {
    sizes: &'a Sizes,
    layout: &'a Layout,
    tensors: Vec<Option<ViewMut<'a, T, 1, Device>>>,
}

impl<'a, T: Real> Pieces<'a, T> {
    fn take<const R: usize>(&mut self, kind: Kind, layer: Option<usize>, dims: [usize; R]) -> Option<ViewMut<'a, T, R, Device>> {
        let piece = self.tensors[self.layout.index(kind, layer)?].take()?;
        Some(piece.reshape(dims, contiguous(dims)))
    }

    /// (vocab, M).
    pub fn embeddings(&mut self) -> ViewMut<'a, T, 2, Device> {
        self.take(Kind::Embedding, None, [self.sizes.vocab, self.sizes.hidden]).expect("it is taken once")
    }

    /// (vocab, M); None where it is tied to the embedding.
    pub fn head(&mut self) -> Option<ViewMut<'a, T, 2, Device>> {
        self.take(Kind::LmHead, None, [self.sizes.vocab, self.sizes.hidden])
    }

    /// The weight of the norm before a block, or after the last.
    pub fn norm(&mut self, layer: Option<usize>) -> Option<ViewMut<'a, T, 1, Device>> {
        self.take(if layer.is_some() { Kind::Norm } else { Kind::FinalNorm }, layer, [self.sizes.hidden])
    }

    /// Where the gradients of a block go.
    pub fn block<'b>(&mut self, layer: usize, x: ViewMut<'b, T, 3, Device>) -> MambaGrads<'b, T, Device>
    where
        'a: 'b,
    {
        let (Sizes { hidden, inner, state, rank, conv, .. }, i) = (*self.sizes, Some(layer));
        MambaGrads {
            x: Some(x),
            in_proj: self.take(Kind::InProj, i, [2 * inner, hidden]),
            in_proj_bias: self.take(Kind::InProjBias, i, [2 * inner]),
            conv_weight: self.take(Kind::ConvWeight, i, [inner, conv]),
            conv_bias: self.take(Kind::ConvBias, i, [inner]),
            x_proj: self.take(Kind::XProj, i, [rank + 2 * state, inner]),
            dt_proj: self.take(Kind::DtProj, i, [inner, rank]),
            dt_bias: self.take(Kind::DtBias, i, [inner]),
            A_log: self.take(Kind::ALog, i, [inner, state]),
            D: self.take(Kind::Skip, i, [inner]),
            out_proj: self.take(Kind::OutProj, i, [hidden, inner]),
            out_proj_bias: self.take(Kind::OutProjBias, i, [hidden]),
            initial_window: None,
            initial_state: None,
        }
    }
}

/// The host's numbers in the device's layout.
fn packed<T: Real>(layout: &Layout, parameters: &Parameters<T>) -> Result<Vec<T>, Error> {
    parameters.check("parameters", parameters.sizes())?;
    let mut flat = vec![T::ZERO; layout.len()];
    for ((_, values), &start) in parameters.tensors().into_iter().zip(&layout.starts) {
        flat[start..start + values.len()].copy_from_slice(values);
    }
    Ok(flat)
}

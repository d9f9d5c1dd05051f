//! The parameters of a Mamba model: every tensor, its published name, and one fixed order for all that walks over them.

use super::config::Sizes;
use crate::element::Real;
use crate::error::Error;

/// What a tensor is. It decides name, dimensions, initialisation and weight decay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Token embedding, (vocab, M).
    Embedding,
    /// RMSNorm weight before a block, (M).
    Norm,
    /// in_proj's weight, (2D, M): x first, then z.
    InProj,
    /// in_proj's bias, (2D).
    InProjBias,
    /// The convolution's weight, (D, 1, W).
    ConvWeight,
    /// The convolution's bias, (D).
    ConvBias,
    /// x_proj's weight, (R + 2N, D): δ, then B, then C.
    XProj,
    /// dt_proj's weight, (D, R).
    DtProj,
    /// dt_proj's bias, (D): the bias of Δ.
    DtBias,
    /// ln(−A), (D, N).
    ALog,
    /// The skip D, (D).
    Skip,
    /// out_proj's weight, (M, D).
    OutProj,
    /// out_proj's bias, (M).
    OutProjBias,
    /// RMSNorm weight after the last block, (M).
    FinalNorm,
    /// The head, (vocab, M); absent where it is tied to the embedding.
    LmHead,
}

/// The tensors of one block, in order.
const LAYER: [Kind; 12] = [
    Kind::Norm,
    Kind::InProj,
    Kind::InProjBias,
    Kind::ConvWeight,
    Kind::ConvBias,
    Kind::XProj,
    Kind::DtProj,
    Kind::DtBias,
    Kind::ALog,
    Kind::Skip,
    Kind::OutProj,
    Kind::OutProjBias,
];

impl Kind {
    /// The published name: whole for the model's own tensors, after `backbone.layers.I.` for a block's.
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Embedding => "backbone.embeddings.weight",
            Kind::Norm => "norm.weight",
            Kind::InProj => "mixer.in_proj.weight",
            Kind::InProjBias => "mixer.in_proj.bias",
            Kind::ConvWeight => "mixer.conv1d.weight",
            Kind::ConvBias => "mixer.conv1d.bias",
            Kind::XProj => "mixer.x_proj.weight",
            Kind::DtProj => "mixer.dt_proj.weight",
            Kind::DtBias => "mixer.dt_proj.bias",
            Kind::ALog => "mixer.A_log",
            Kind::Skip => "mixer.D",
            Kind::OutProj => "mixer.out_proj.weight",
            Kind::OutProjBias => "mixer.out_proj.bias",
            Kind::FinalNorm => "backbone.norm_f.weight",
            Kind::LmHead => "lm_head.weight",
        }
    }

    fn dims(self, sizes: &Sizes) -> Vec<usize> {
        let Sizes { vocab, hidden, inner, state, rank, conv, .. } = *sizes;
        match self {
            Kind::Embedding | Kind::LmHead => vec![vocab, hidden],
            Kind::Norm | Kind::FinalNorm | Kind::OutProjBias => vec![hidden],
            Kind::InProj => vec![2 * inner, hidden],
            Kind::InProjBias => vec![2 * inner],
            Kind::ConvWeight => vec![inner, 1, conv],
            Kind::XProj => vec![rank + 2 * state, inner],
            Kind::DtProj => vec![inner, rank],
            Kind::ConvBias | Kind::DtBias | Kind::Skip => vec![inner],
            Kind::ALog => vec![inner, state],
            Kind::OutProj => vec![hidden, inner],
        }
    }

    /// Whether a model of these sizes owns such a tensor.
    fn owned(self, sizes: &Sizes) -> bool {
        match self {
            Kind::InProjBias | Kind::OutProjBias => sizes.bias,
            Kind::ConvBias => sizes.conv_bias,
            Kind::LmHead => !sizes.tied,
            _ => true,
        }
    }

    /// Whether weight decay applies: to the matrices of projections, convolution, embedding and head, not to norms, biases, A_log and D.
    pub fn decays(self) -> bool {
        use Kind::{ConvWeight, DtProj, Embedding, InProj, LmHead, OutProj, XProj};
        matches!(self, Embedding | InProj | ConvWeight | XProj | DtProj | OutProj | LmHead)
    }
}

/// Name and dimensions of one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// Its published name.
    pub name: String,
    /// Its dimensions.
    pub dims: Vec<usize>,
    /// What it is.
    pub kind: Kind,
    /// A file may lack it: the head of a model whose head is tied. Such a tensor is not among the parameters.
    pub optional: bool,
}

impl Spec {
    fn new(kind: Kind, layer: Option<usize>, sizes: &Sizes) -> Spec {
        let name = layer.map_or(kind.name().to_string(), |i| format!("backbone.layers.{i}.{}", kind.name()));
        Spec { name, dims: kind.dims(sizes), kind, optional: !kind.owned(sizes) }
    }

    /// Number of elements.
    pub fn count(&self) -> usize {
        self.dims.iter().product()
    }
}

/// Every tensor that a file of a model of these sizes holds or may hold, in the order of [`Parameters`].
pub fn expected(sizes: &Sizes) -> Vec<Spec> {
    let blocks =
        (0..sizes.layers).flat_map(|i| LAYER.iter().filter(|kind| kind.owned(sizes)).map(move |&kind| Spec::new(kind, Some(i), sizes)));
    let own = |kind| Spec::new(kind, None, sizes);
    core::iter::once(own(Kind::Embedding)).chain(blocks).chain([own(Kind::FinalNorm), own(Kind::LmHead)]).collect()
}

/// The parameters of one block with its norm, each in row-major order; see [`Kind`] for the dimensions.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer<T> {
    /// RMSNorm weight before the block, (M).
    pub norm: Vec<T>,
    /// in_proj's weight, (2D, M): x first, then z.
    pub in_proj: Vec<T>,
    /// in_proj's bias, (2D).
    pub in_proj_bias: Option<Vec<T>>,
    /// The convolution's weight, (D, 1, W).
    pub conv_weight: Vec<T>,
    /// The convolution's bias, (D).
    pub conv_bias: Option<Vec<T>>,
    /// x_proj's weight, (R + 2N, D): δ, then B, then C.
    pub x_proj: Vec<T>,
    /// dt_proj's weight, (D, R).
    pub dt_proj: Vec<T>,
    /// dt_proj's bias, (D): the bias of Δ.
    pub dt_bias: Vec<T>,
    /// ln(−A), (D, N).
    pub a_log: Vec<T>,
    /// The skip D, (D).
    pub d: Vec<T>,
    /// out_proj's weight, (M, D).
    pub out_proj: Vec<T>,
    /// out_proj's bias, (M).
    pub out_proj_bias: Option<Vec<T>>,
}

impl<T> Layer<T> {
    /// The tensors in the order of `LAYER`.
    fn slots(&self) -> [Option<&Vec<T>>; 12] {
        [
            Some(&self.norm),
            Some(&self.in_proj),
            self.in_proj_bias.as_ref(),
            Some(&self.conv_weight),
            self.conv_bias.as_ref(),
            Some(&self.x_proj),
            Some(&self.dt_proj),
            Some(&self.dt_bias),
            Some(&self.a_log),
            Some(&self.d),
            Some(&self.out_proj),
            self.out_proj_bias.as_ref(),
        ]
    }

    fn slots_mut(&mut self) -> [Option<&mut Vec<T>>; 12] {
        [
            Some(&mut self.norm),
            Some(&mut self.in_proj),
            self.in_proj_bias.as_mut(),
            Some(&mut self.conv_weight),
            self.conv_bias.as_mut(),
            Some(&mut self.x_proj),
            Some(&mut self.dt_proj),
            Some(&mut self.dt_bias),
            Some(&mut self.a_log),
            Some(&mut self.d),
            Some(&mut self.out_proj),
            self.out_proj_bias.as_mut(),
        ]
    }
}

/// All parameters of a model. Gradients and optimiser moments have the same structure, so one walk serves them all.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameters<T> {
    sizes: Sizes,
    /// Token embedding, (vocab, M).
    pub embeddings: Vec<T>,
    /// The blocks.
    pub layers: Vec<Layer<T>>,
    /// RMSNorm weight after the last block, (M).
    pub norm_f: Vec<T>,
    /// The head, (vocab, M); `None` where it is tied to the embedding.
    pub lm_head: Option<Vec<T>>,
}

impl<T: Real> Parameters<T> {
    /// Builds every tensor by `make`, which is called in the fixed order and must return as many elements as the spec says.
    ///
    /// # Errors
    /// The first error of `make`.
    pub fn build<E>(sizes: Sizes, mut make: impl FnMut(&Spec) -> Result<Vec<T>, E>) -> Result<Parameters<T>, E> {
        let mut make = |kind, layer| {
            let spec = Spec::new(kind, layer, &sizes);
            let made = make(&spec)?;
            assert_eq!(made.len(), spec.count(), "{}", spec.name);
            Ok(made)
        };
        let embeddings = make(Kind::Embedding, None)?;
        let mut layers = Vec::with_capacity(sizes.layers);
        for i in 0..sizes.layers {
            let mut some = |kind| make(kind, Some(i));
            layers.push(Layer {
                norm: some(Kind::Norm)?,
                in_proj: some(Kind::InProj)?,
                in_proj_bias: sizes.bias.then(|| some(Kind::InProjBias)).transpose()?,
                conv_weight: some(Kind::ConvWeight)?,
                conv_bias: sizes.conv_bias.then(|| some(Kind::ConvBias)).transpose()?,
                x_proj: some(Kind::XProj)?,
                dt_proj: some(Kind::DtProj)?,
                dt_bias: some(Kind::DtBias)?,
                a_log: some(Kind::ALog)?,
                d: some(Kind::Skip)?,
                out_proj: some(Kind::OutProj)?,
                out_proj_bias: sizes.bias.then(|| some(Kind::OutProjBias)).transpose()?,
            });
        }
        let norm_f = make(Kind::FinalNorm, None)?;
        let lm_head = if sizes.tied { None } else { Some(make(Kind::LmHead, None)?) };
        Ok(Parameters { sizes, embeddings, layers, norm_f, lm_head })
    }

    /// Zeros for a model of these sizes.
    pub fn zeros(sizes: Sizes) -> Parameters<T> {
        let Ok(zeros) = Parameters::build::<core::convert::Infallible>(sizes, |spec| Ok(vec![T::ZERO; spec.count()]));
        zeros
    }

    /// Zeros of the same structure.
    pub fn zeros_like(&self) -> Parameters<T> {
        Parameters::zeros(self.sizes)
    }

    /// The same numbers as another type, rounded to nearest where it is narrower.
    pub fn convert<U: Real>(&self) -> Parameters<U> {
        let mut sources = self.tensors().into_iter();
        let Ok(converted) = Parameters::build::<core::convert::Infallible>(self.sizes, |spec| {
            let (own, values) = sources.next().expect("both walk in the same order");
            debug_assert_eq!(own.name, spec.name);
            Ok(values.iter().map(|value| U::from_f64(value.to_f64())).collect())
        });
        converted
    }

    /// The sizes that decide the dimensions.
    pub fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    /// Number of parameters.
    pub fn count(&self) -> usize {
        self.specs().map(|spec| spec.count()).sum()
    }

    fn specs(&self) -> impl Iterator<Item = Spec> + use<T> {
        expected(&self.sizes).into_iter().filter(|spec| !spec.optional)
    }

    /// Every tensor with its name and dimensions, in the fixed order: embedding, blocks, last norm, head.
    pub fn tensors(&self) -> Vec<(Spec, &[T])> {
        let blocks = self.layers.iter().flat_map(|layer| layer.slots().into_iter().flatten());
        let slots = core::iter::once(&self.embeddings).chain(blocks).chain([&self.norm_f]).chain(&self.lm_head);
        self.specs().zip(slots.map(Vec::as_slice)).collect()
    }

    /// Every tensor, to be changed, with its name and dimensions, in the order of [`Parameters::tensors`].
    pub fn tensors_mut(&mut self) -> Vec<(Spec, &mut [T])> {
        let specs = self.specs();
        let blocks = self.layers.iter_mut().flat_map(|layer| layer.slots_mut().into_iter().flatten());
        let slots = core::iter::once(&mut self.embeddings).chain(blocks).chain([&mut self.norm_f]).chain(&mut self.lm_head);
        specs.zip(slots.map(Vec::as_mut_slice)).collect()
    }

    /// Checks that every tensor has as many elements as a model of `sizes` wants: the fields are public and may have been replaced.
    ///
    /// # Errors
    /// [`Error::Value`] naming `operand` and the tensor.
    pub fn check(&self, operand: &'static str, sizes: &Sizes) -> Result<(), Error> {
        let bad = |why| Err(Error::Value { operand, why });
        if self.sizes != *sizes {
            return bad(format!("made for {:?}, wanted {sizes:?}", self.sizes));
        }
        let there = self.layers.iter().all(|layer| {
            let optional = [(&layer.in_proj_bias, sizes.bias), (&layer.conv_bias, sizes.conv_bias), (&layer.out_proj_bias, sizes.bias)];
            optional.iter().all(|(slot, wanted)| slot.is_some() == *wanted)
        });
        if self.layers.len() != sizes.layers || self.lm_head.is_none() != sizes.tied || !there {
            return bad("blocks, biases or head are not those that its sizes want".to_string());
        }
        match self.tensors().into_iter().find(|(spec, values)| values.len() != spec.count()) {
            Some((spec, values)) => bad(format!("`{}` has {} elements, wanted shape {:?}", spec.name, values.len(), spec.dims)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::testing::small;

    #[test]
    fn order_names_and_slots_agree() {
        for flags in 0..8 {
            let mut config = small();
            (config.use_bias, config.use_conv_bias, config.tie_word_embeddings) = (flags & 1 > 0, flags & 2 > 0, flags & 4 > 0);
            let sizes = config.sizes().unwrap();
            // Each tensor is filled with its place in the walk of `build`, so a slot in the wrong place shows.
            let mut place = 0.0;
            let mut built = Parameters::<f32>::build::<()>(sizes, |spec| {
                place += 1.0;
                Ok(vec![place; spec.count()])
            })
            .unwrap();
            built.check("parameters", &sizes).unwrap();
            for (i, (spec, values)) in built.tensors().into_iter().enumerate() {
                assert!(values.len() == spec.count() && values[0] == (i + 1) as f32, "{}", spec.name);
            }
            let order: Vec<f32> = built.tensors_mut().iter().map(|(_, values)| values[0]).collect();
            assert!(order.windows(2).all(|pair| pair[0] + 1.0 == pair[1]) && order.len() as f32 == place);
            assert_eq!(built.convert::<f64>().convert::<f32>(), built);
            assert_eq!(built.tensors().iter().map(|(_, values)| values.len()).sum::<usize>(), built.count());
            let names: Vec<String> = expected(&sizes).into_iter().map(|spec| spec.name).collect();
            assert_eq!(names.iter().any(|name| name.ends_with("in_proj.bias")), sizes.bias);
            assert_eq!(names.last().unwrap(), "lm_head.weight");
            assert_eq!(expected(&sizes).last().unwrap().optional, sizes.tied);
        }
    }

    #[test]
    fn a_replaced_tensor_is_found() {
        let sizes = small().sizes().unwrap();
        let good = Parameters::<f32>::zeros(sizes);
        let mut short = good.clone();
        short.layers[1].x_proj.pop();
        let error = short.check("gradients", &sizes).unwrap_err().to_string();
        assert!(error.contains("gradients") && error.contains("backbone.layers.1.mixer.x_proj.weight"), "{error}");
        let mut other = good.clone();
        other.layers.pop();
        assert!(other.check("gradients", &sizes).is_err());
        let mut other = good.clone();
        other.layers[0].conv_bias = None;
        assert!(other.check("gradients", &sizes).is_err());
        let sizes = Sizes { tied: !sizes.tied, ..sizes };
        assert!(good.check("gradients", &sizes).is_err());
    }
}

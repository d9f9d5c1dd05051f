//! The published initialisation (arXiv 2312.00752, section 3.6 and its code), seeded and the same on every platform.

use super::config::{ModelConfig, StepInit};
use super::parameters::{Kind, Parameters, Spec};
use super::rng::{Rng, exp, ln};
use crate::element::Real;
use crate::error::Error;

/// Standard deviation of the embedding.
const EMBEDDING_DEVIATION: f64 = 0.02;

/// Fresh parameters for a configuration.
///
/// A_log[d, n] = ln(n + 1) (S4D-Real), D = 1, norms 1; Δ's bias is softplus⁻¹(Δ₀), Δ₀ log-uniform in `time_step_min..time_step_max` and at least
/// `time_step_floor`; dt_proj's weight uniform in ±`time_step_scale`·R^(−1/2), or that constant; the embedding normal with deviation 0.02;
/// every other weight and the convolution's bias uniform in ±fan_in^(−1/2), out_proj divided by √layers; biases of in_proj and out_proj 0.
/// Each tensor has a stream of its own, keyed by seed and name, so its numbers do not depend on what else the model has.
///
/// # Errors
/// [`Error::Value`] naming the key of the configuration that makes no model.
pub fn init<T: Real>(config: &ModelConfig, seed: u64) -> Result<Parameters<T>, Error> {
    let sizes = config.sizes()?;
    Parameters::build(sizes, |spec| {
        let draw = drawer(spec, config);
        let mut rng = Rng::keyed(seed, &spec.name);
        Ok((0..spec.count()).map(|i| T::from_f64(draw(i, &mut rng))).collect())
    })
}

/// A distribution: from an element's place and the generator to its value.
type Draw = Box<dyn Fn(usize, &mut Rng) -> f64>;

/// The distribution of one tensor.
fn drawer(spec: &Spec, config: &ModelConfig) -> Draw {
    let root = |fan_in: usize| 1.0 / (fan_in as f64).sqrt();
    let uniform = |bound: f64| Box::new(move |_, rng: &mut Rng| rng.symmetric(bound));
    match spec.kind {
        Kind::Embedding => Box::new(|_, rng| EMBEDDING_DEVIATION * rng.normal()),
        Kind::Norm | Kind::FinalNorm | Kind::Skip => Box::new(|_, _| 1.0),
        Kind::InProjBias | Kind::OutProjBias => Box::new(|_, _| 0.0),
        Kind::ALog => {
            let states = config.state_size;
            Box::new(move |i, _| ln((i % states + 1) as f64))
        }
        Kind::DtBias => {
            let (low, high, floor) = (config.time_step_min, config.time_step_max, config.time_step_floor);
            Box::new(move |_, rng| softplus_inverse(exp(ln(low) + rng.uniform() * (ln(high) - ln(low))).max(floor)))
        }
        Kind::DtProj => {
            let scale = config.time_step_scale * root(config.time_step_rank);
            match config.time_step_init_scheme {
                StepInit::Random => uniform(scale),
                StepInit::Constant => Box::new(move |_, _| scale),
            }
        }
        Kind::ConvWeight | Kind::ConvBias => uniform(root(config.conv_kernel)),
        Kind::InProj | Kind::LmHead => uniform(root(config.hidden_size)),
        Kind::XProj => uniform(root(config.intermediate_size)),
        Kind::OutProj => uniform(root(config.intermediate_size) * root(config.num_hidden_layers)),
    }
}

/// x with softplus(x) = y for y > 0: y + ln(1 − e^−y), where small y takes the series of 1 − e^−y, which would cancel.
fn softplus_inverse(y: f64) -> f64 {
    let complement = if y < 1e-3 { y * (1.0 - y / 2.0 * (1.0 - y / 3.0 * (1.0 - y / 4.0))) } else { 1.0 - exp(-y) };
    y + ln(complement)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::testing::small;
    use crate::ops::softplus;

    #[test]
    fn softplus_and_back() {
        for y in [1e-30, 1e-4, 9.99e-4, 1.01e-3, 0.1, 1.0, 30.0, 1000.0] {
            let error = softplus(softplus_inverse(y)) / y - 1.0;
            assert!(error.abs() < 1e-12, "{y} {error}");
        }
    }

    #[test]
    fn bounds_and_constants() {
        let mut config = small();
        (config.use_bias, config.hidden_size, config.intermediate_size) = (true, 64, 128);
        let p = init::<f64>(&config, 3).unwrap();
        let most = |values: &[f64]| values.iter().fold(0.0f64, |most, value| most.max(value.abs()));
        for layer in &p.layers {
            assert!(layer.norm.iter().chain(&layer.d).all(|&one| one == 1.0));
            assert!(layer.in_proj_bias.iter().chain(&layer.out_proj_bias).flatten().all(|&zero| zero == 0.0));
            for (i, &a_log) in layer.a_log.iter().enumerate() {
                assert!((a_log.exp() - (i % config.state_size + 1) as f64).abs() < 1e-13);
            }
            for &bias in &layer.dt_bias {
                let step = softplus(bias);
                assert!((0.000_999_9..=0.100_001).contains(&step), "{step}");
            }
            let root = |n: usize| (n as f64).powf(-0.5);
            let bounded = [
                (&layer.dt_proj, root(config.time_step_rank)),
                (&layer.conv_weight, root(config.conv_kernel)),
                (layer.conv_bias.as_ref().unwrap(), root(config.conv_kernel)),
                (&layer.in_proj, root(64)),
                (&layer.x_proj, root(128)),
                (&layer.out_proj, root(128) / (config.num_hidden_layers as f64).sqrt()),
            ];
            for (values, bound) in bounded {
                assert!(most(values) <= bound && most(values) > 0.9 * bound, "{} {bound}", most(values));
            }
        }
        let square: f64 = p.embeddings.iter().map(|x| x * x).sum::<f64>() / p.embeddings.len() as f64;
        assert!((square.sqrt() / 0.02 - 1.0).abs() < 0.15, "{square}");
        config.time_step_init_scheme = StepInit::Constant;
        let constant = init::<f64>(&config, 3).unwrap();
        assert!(constant.layers[0].dt_proj.iter().all(|&w| (w - (config.time_step_rank as f64).powf(-0.5)).abs() < 1e-15));
        config.time_step_floor = 0.05;
        let floored = init::<f64>(&config, 3).unwrap();
        assert!(floored.layers[0].dt_bias.iter().all(|&bias| softplus(bias) > 0.0499));
    }

    #[test]
    fn the_log_of_the_steps_is_uniform() {
        let mut config = small();
        config.intermediate_size = 20_000;
        let p = init::<f64>(&config, 4).unwrap();
        let place = |bias: &f64| (softplus(*bias).ln() - 0.001f64.ln()) / 100f64.ln();
        let mean = p.layers[0].dt_bias.iter().map(place).sum::<f64>() / 20_000.0;
        assert!((mean - 0.5).abs() < 5.0 / (12.0f64 * 20_000.0).sqrt(), "{mean}");
    }

    #[test]
    fn seeded_and_the_same_on_every_platform() {
        let config = small();
        let p = init::<f32>(&config, 42).unwrap();
        assert_eq!(p, init::<f32>(&config, 42).unwrap());
        assert_ne!(p, init::<f32>(&config, 43).unwrap());
        assert_ne!(p.layers[0].in_proj, p.layers[1].in_proj);
        // A checksum over all bits, so that another platform or a change of the algorithm shows.
        let fold = |hash: u64, value: &f32| (hash ^ u64::from(value.to_bits())).wrapping_mul(0x0000_0100_0000_01B3);
        let hash = p.tensors().into_iter().flat_map(|(_, values)| values).fold(0xCBF2_9CE4_8422_2325, fold);
        assert_eq!(hash, 0xF956_2806_0A53_5B73, "{hash:#x}");
    }
}

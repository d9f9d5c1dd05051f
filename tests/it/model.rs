//! The language model against central differences, and generation in batches, on every engine. The golden test has the published
//! package's numbers.

use std::ops::ControlFlow;

use selective_scan::Error;
use selective_scan::arch::Isa;
use selective_scan::blelloch::Blelloch;
use selective_scan::block::HostEngine;
use selective_scan::cpu::Cpu;
use selective_scan::element::Real;
use selective_scan::model::{
    Decoder, Generation, IGNORE, LmMemory, MambaLm, ModelConfig, ModelState, Packing, Parameters, Rng, Sampling, generate, init,
};
use selective_scan::naive::Naive;
use selective_scan::par::Par;

use crate::tensors::error;

/// Calls a generic function with each engine of this machine.
macro_rules! on_engines {
    ($function:ident) => {{
        $function(Naive);
        $function(Blelloch::new());
        for isa in Isa::available() {
            $function(Cpu::new().with_isa(isa).unwrap());
        }
    }};
}

/// A small configuration with biases, tied or not.
fn small(tied: bool) -> ModelConfig {
    ModelConfig {
        vocab_size: 11,
        hidden_size: 6,
        intermediate_size: 10,
        state_size: 3,
        num_hidden_layers: 3,
        time_step_rank: 2,
        use_bias: true,
        tie_word_embeddings: tied,
        eos_token_id: vec![4],
        ..ModelConfig::default()
    }
}

/// Initial parameters with noise, so that no gradient is 0 by symmetry.
fn noisy<T: Real>(config: &ModelConfig) -> Parameters<T> {
    let mut parameters = init::<T>(config, 1).unwrap();
    let mut rng = Rng::new(9);
    for (_, values) in parameters.tensors_mut() {
        values.iter_mut().for_each(|x| *x += T::from_f64(rng.symmetric(0.3)));
    }
    parameters
}

fn tokens(count: usize, vocab: usize, seed: u64) -> Vec<u32> {
    let mut rng = Rng::new(seed);
    (0..count).map(|_| rng.below(vocab as u64) as u32).collect()
}

fn differences<E: HostEngine + Copy>(engine: E) {
    for tied in [false, true] {
        let config = small(tied);
        let mut parameters = noisy::<f64>(&config);
        let model = MambaLm::new(config, engine, Par::default()).unwrap();
        let (ids, mut targets) = (tokens(12, 11, 3), tokens(12, 11, 4));
        targets[5] = IGNORE;
        let mut memory = LmMemory::default();
        let mut gradients = parameters.zeros_like();
        let loss = model.loss_and_gradients(&parameters, &ids, &targets, 2, &mut gradients, &mut memory).unwrap();
        // A second call with the same memory gives the same bits.
        let mut again = parameters.zeros_like();
        assert_eq!(model.loss_and_gradients(&parameters, &ids, &targets, 2, &mut again, &mut memory).unwrap(), loss);
        assert!(again == gradients);
        let mut rng = Rng::new(7);
        for place in 0..parameters.tensors().len() {
            for _ in 0..6 {
                let i = rng.below(parameters.tensors()[place].1.len() as u64) as usize;
                let mut at = |change: f64| {
                    parameters.tensors_mut()[place].1[i] += change;
                    let loss = model.loss(&parameters, &ids, &targets, 2, None, &mut memory).unwrap().mean();
                    parameters.tensors_mut()[place].1[i] -= change;
                    loss
                };
                let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
                let (spec, grad) = &gradients.tensors()[place];
                assert!((slope - grad[i]).abs() < 1e-8, "{}[{i}]: {slope} and {}", spec.name, grad[i]);
            }
        }
    }
}

#[test]
fn central_differences() {
    on_engines!(differences);
}

/// A long text in windows with the state carried is the text in one piece.
fn windows<E: HostEngine + Copy>(engine: E) {
    let config = small(true);
    let parameters = noisy::<f64>(&config);
    let model = MambaLm::new(config, engine, Par::default()).unwrap();
    let (ids, targets) = (tokens(23, 11, 5), tokens(23, 11, 6));
    let mut memory = LmMemory::default();
    let whole = model.loss(&parameters, &ids, &targets, 1, None, &mut memory).unwrap();
    let mut state = ModelState::zeros(model.sizes(), 1);
    let mut sum = 0.0;
    for (ids, targets) in ids.chunks(4).zip(targets.chunks(4)) {
        sum += model.loss(&parameters, ids, targets, 1, Some(&mut state), &mut memory).unwrap().sum;
    }
    assert!((sum / whole.sum - 1.0).abs() < 1e-13);
}

#[test]
fn carried_state() {
    on_engines!(windows);
}

/// Rows of a batch, prompts of different lengths, against each prompt alone: tokens and logits.
fn alone<E: HostEngine + Copy>(engine: E) {
    let config = small(false);
    let parameters = noisy::<f32>(&config);
    let model = MambaLm::new(config, engine, Par::default()).unwrap();
    let texts = [tokens(1, 11, 1), tokens(9, 11, 2), tokens(2, 11, 3), tokens(70, 11, 4)];
    let prompts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    for (temperature, top_k, top_p, stop_at_eos) in [(0.0, None, None, false), (1.0, Some(5), Some(0.9), true), (0.7, None, None, true)] {
        let how = Generation { tokens: 20, sampling: Sampling { temperature, top_k, top_p }, seed: 5, stop_at_eos };
        let mut streamed = vec![Vec::new(); prompts.len()];
        let batch = generate(&model, &parameters, &prompts, &how, |row, token| {
            streamed[row].push(token);
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(batch, streamed);
        for (row, prompt) in prompts.iter().enumerate() {
            let one = generate(&model, &parameters, &[prompt], &how, |_, _| ControlFlow::Continue(())).unwrap();
            assert_eq!(one[0], batch[row], "row {row}");
            let ended = batch[row].iter().position(|&token| token == 4).filter(|_| stop_at_eos);
            assert_eq!(batch[row].len(), ended.map_or(20, |at| at + 1));
        }
    }
    let mut count = 0;
    let cut = generate(
        &model,
        &parameters,
        &prompts[..1],
        &Generation { tokens: 20, sampling: Sampling::default(), seed: 1, stop_at_eos: false },
        |_, _| {
            count += 1;
            if count == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        },
    );
    assert_eq!(cut.unwrap()[0].len(), 3);
}

#[test]
fn batch_is_alone() {
    on_engines!(alone);
}

/// Decoding gives the logits of one forward call.
fn decoding<E: HostEngine + Copy>(engine: E) {
    let config = small(true);
    let parameters = noisy::<f64>(&config);
    let model = MambaLm::new(config, engine, Par::default()).unwrap();
    let ids = tokens(12, 11, 8);
    let whole = model.logits(&parameters, &ids, 1, &mut LmMemory::default()).unwrap();
    for split in 1..ids.len() {
        let mut decoder = Decoder::new(&model, &parameters, &[&ids[..split]]).unwrap();
        for at in split..=ids.len() {
            assert!(error(&decoder.logits()[..11], &whole[(at - 1) * 11..at * 11]) <= 1e-12, "prompt {split}, position {at}");
            if at < ids.len() {
                decoder.step(&ids[at..=at], &[0]).unwrap();
            }
        }
    }
}

#[test]
fn decoding_is_forward() {
    on_engines!(decoding);
}

#[test]
fn wrong_operands_are_named() {
    let config = small(true);
    let parameters = noisy::<f32>(&config);
    let model = MambaLm::new(config.clone(), Naive, Par::Seq).unwrap();
    let mut memory = LmMemory::default();
    let name = |error: Error| match error {
        Error::Value { operand, .. } => operand,
        other => panic!("{other}"),
    };
    assert_eq!(name(model.logits(&parameters, &[11], 1, &mut memory).unwrap_err()), "tokens");
    assert_eq!(name(model.logits(&parameters, &[1, 2, 3], 2, &mut memory).unwrap_err()), "tokens");
    assert_eq!(name(model.logits(&parameters, &[1], 0, &mut memory).unwrap_err()), "tokens");
    assert_eq!(name(model.loss(&parameters, &[1], &[11], 1, None, &mut memory).unwrap_err()), "targets");
    assert_eq!(name(model.loss(&parameters, &[1], &[1, 2], 1, None, &mut memory).unwrap_err()), "targets");
    let mut state = ModelState::zeros(model.sizes(), 2);
    assert_eq!(name(model.loss(&parameters, &[1], &[1], 1, Some(&mut state), &mut memory).unwrap_err()), "state");
    let other = noisy::<f32>(&small(false));
    assert_eq!(name(model.logits(&other, &[1], 1, &mut memory).unwrap_err()), "parameters");
    assert_eq!(name(Decoder::new(&model, &parameters, &[&[1], &[]]).unwrap_err()), "prompts");
    let mut decoder = Decoder::new(&model, &parameters, &[&[1], &[2]]).unwrap();
    for (tokens, slots, operand) in
        [(&[11][..], &[0][..], "tokens"), (&[1], &[], "slots"), (&[1, 1], &[0, 0], "slots"), (&[1], &[2], "slots"), (&[1], &[-1], "slots")]
    {
        assert_eq!(name(decoder.step(tokens, slots).unwrap_err()), operand);
    }
    assert!(model.logits(&parameters, &[], 0, &mut memory).unwrap().is_empty());
    assert!(MambaLm::new(config, Naive, Par::Part { index: 0, count: 1, phase: 0 }).is_err());
}

/// A configuration of several parts of channels, the last of them padded, large enough for fused steps.
fn wide(tied: bool) -> ModelConfig {
    let use_bias = tied;
    ModelConfig { vocab_size: 75, hidden_size: 41, intermediate_size: 328, state_size: 5, time_step_rank: 51, use_bias, ..small(tied) }
}

/// What the fused steps of the SIMD engine give after a prompt each, with some rows a step: logits of all steps and the state.
fn fused<E: HostEngine + Copy>(
    engine: E,
    parameters: &Parameters<f32>,
    config: &ModelConfig,
    prompts: &[&[u32]],
    packing: Packing,
) -> (Vec<Vec<f32>>, ModelState<f32>) {
    let model = MambaLm::new(config.clone(), engine, Par::Seq).unwrap().with_packing(packing);
    let mut decoder = Decoder::new(&model, parameters, prompts).unwrap();
    let mut logits = vec![Vec::new(); prompts.len()];
    for step in 0..6u32 {
        let slots: Vec<i32> = (0..prompts.len() as i32).rev().filter(|slot| (*slot as u32 + step) % 3 != 2).collect();
        let tokens: Vec<u32> = slots.iter().map(|&slot| (7 * slot as u32 + 11 * step) % 75).collect();
        let out = decoder.step(&tokens, &slots).unwrap();
        slots.iter().zip(out.chunks(config.vocab_size)).for_each(|(&slot, row)| logits[slot as usize].extend_from_slice(row));
    }
    (logits, decoder.state().into_owned())
}

#[test]
fn fused_steps_have_one_result() {
    for (tied, packing) in [(true, Packing::Exact), (false, Packing::Bf16)] {
        let config = wide(tied);
        let mut parameters = noisy::<f32>(&config);
        if packing == Packing::Bf16 {
            // A prompt is read with the weights as they are given, so that they should be the packed ones.
            let round = |x: &mut f32| *x = half::bf16::from_f32(*x).to_f32();
            let product = |name: &str| name.contains("_proj.weight") || name.contains("lm_head");
            parameters
                .tensors_mut()
                .into_iter()
                .filter(|(spec, _)| product(&spec.name))
                .for_each(|(_, values)| values.iter_mut().for_each(round));
        }
        let texts: Vec<Vec<u32>> = (0..9).map(|i| tokens(1 + i % 3, 75, i as u64)).collect();
        let prompts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        for isa in Isa::available() {
            let cpu = Cpu::new().with_isa(isa).unwrap().with_par(Par::Seq);
            let all = fused(cpu, &parameters, &config, &prompts, packing);
            #[cfg(feature = "rayon")]
            for threads in [1, 2, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let run = || fused(cpu.with_par(Par::Rayon), &parameters, &config, &prompts, packing);
                assert!(pool.install(run) == all, "{isa:?}, {threads} threads, {packing:?}");
            }
            // Kept as f32, because one of them is no number of bf16, weights give the same as in pairs.
            if packing == Packing::Bf16 {
                let mut other = parameters.clone();
                other.lm_head.as_mut().unwrap()[0] = 0.1;
                let plain = fused(cpu, &other, &config, &prompts, Packing::Exact);
                let same = |a: &[f32], b: &[f32]| a.iter().zip(b).enumerate().all(|(i, (a, b))| i % config.vocab_size == 0 || a == b);
                assert!(plain.1 == all.1 && plain.0.iter().zip(&all.0).all(|(a, b)| same(a, b)), "{isa:?}, kept as f32");
            }
            // The operators of the specification.
            let general = fused(Naive, &parameters, &config, &prompts, Packing::Exact).1;
            let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
            for layer in 0..config.num_hidden_layers {
                assert!(error(&wide(&all.1.states[layer]), &wide(&general.states[layer])) <= 2e-5, "{isa:?}");
                assert!(error(&wide(&all.1.windows[layer]), &wide(&general.windows[layer])) <= 2e-5, "{isa:?}");
            }
        }
    }
}

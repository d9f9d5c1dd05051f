//! Models on the device against the specification in f64, and against themselves: prefill and steps, recorded and launched, saved and resumed.

use std::ops::ControlFlow;
use std::path::Path;

use selective_scan::Error;
use selective_scan::element::Real;
use selective_scan::model::{
    AdamW, AdamWOptions, Checkpoint, Generation, GpuDecoder, GpuLm, GpuMemory, GpuParameters, GpuState, GpuTrainer, IGNORE, LmMemory,
    MambaLm, ModelConfig, Parameters, Rng, Sampling, generate, init,
};
use selective_scan::naive::Naive;
use selective_scan::par::Par;

use super::{engine, real};

fn small(tied: bool) -> ModelConfig {
    ModelConfig {
        vocab_size: 32,
        hidden_size: 16,
        intermediate_size: 24,
        state_size: 8,
        num_hidden_layers: 2,
        time_step_rank: 3,
        use_bias: true,
        tie_word_embeddings: tied,
        eos_token_id: vec![4],
        ..ModelConfig::default()
    }
}

/// Initial parameters with noise, so that no gradient is 0 by symmetry; all are numbers of f32.
fn noisy(config: &ModelConfig) -> Parameters<f32> {
    let mut parameters = init::<f32>(config, 1).expect("a small model");
    let mut rng = Rng::new(9);
    for (_, values) in parameters.tensors_mut() {
        values.iter_mut().for_each(|x| *x += rng.symmetric(0.3) as f32);
    }
    parameters
}

fn tokens(count: usize, seed: u64) -> Vec<u32> {
    let mut rng = Rng::new(seed);
    (0..count).map(|_| rng.below(32) as u32).collect()
}

/// The largest difference over the largest magnitude.
fn error<T: Real>(got: &[T], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let most = want.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
    got.iter().zip(want).fold(0.0, |worst: f64, (got, want)| worst.max((got.to_f64() - want).abs())) / most
}

/// What a whole model may be off after so many positions, of which the scan remembers at most all.
fn bound<T: Real>(seqlen: usize) -> f64 {
    if T::UNIT < 1e-10 { 1e-12 } else { 5e-6 + 2.0 * T::UNIT * seqlen as f64 }
}

struct Case<T: Real> {
    host: MambaLm<Naive>,
    exact: Parameters<f64>,
    model: GpuLm,
    parameters: GpuParameters<T>,
}

impl<T: Real> Case<T> {
    fn new(config: ModelConfig) -> Self {
        let parameters = noisy(&config);
        Case {
            host: MambaLm::new(config.clone(), Naive, Par::Seq).expect("a small model"),
            exact: parameters.convert(),
            model: GpuLm::new(config, engine().clone()).expect("a small model"),
            parameters: GpuParameters::upload(engine(), &parameters.convert::<T>()).expect("room for it"),
        }
    }

    fn memory(&self) -> GpuMemory<T> {
        GpuMemory::new(engine()).expect("room for little")
    }
}

fn logits_of<T: Real>() {
    for tied in [true, false] {
        let case = Case::<T>::new(small(tied));
        let mut memory = case.memory();
        for (batch, seqlen) in [(2, 7), (1, 20), (3, 1)] {
            let ids = tokens(batch * seqlen, 3);
            let want = case.host.logits(&case.exact, &ids, batch, &mut LmMemory::default()).expect("it runs");
            let got = case.model.logits(&case.parameters, &ids, batch, &mut memory).expect("it runs");
            let off = error(&got, &want);
            assert!(off <= bound::<T>(seqlen), "{off} of {batch} rows of {seqlen}");
        }
        assert!(case.model.logits(&case.parameters, &[], 0, &mut memory).expect("nothing to do").is_empty());
    }
}

#[test]
fn logits_are_the_specifications() {
    logits_of::<f32>();
    logits_of::<f64>();
}

fn gradients_of<T: Real>() {
    for tied in [true, false] {
        let case = Case::<T>::new(small(tied));
        let (mut memory, mut host) = (case.memory(), LmMemory::default());
        let mut got = case.parameters.zeros_like(engine()).expect("room for it");
        let mut want = case.exact.zeros_like();
        for (batch, seqlen) in [(1, 5), (2, 9)] {
            let (ids, mut targets) = (tokens(batch * seqlen, 3), tokens(batch * seqlen, 4));
            targets[3] = IGNORE;
            let exact = case.host.loss_and_gradients(&case.exact, &ids, &targets, batch, &mut want, &mut host).expect("it runs");
            let loss = case.model.loss_and_gradients(&case.parameters, &ids, &targets, batch, &mut got, &mut memory).expect("it runs");
            assert_eq!(loss.count, exact.count);
            assert!((loss.sum / exact.sum - 1.0).abs() <= bound::<T>(seqlen), "{loss:?}, wanted {exact:?}");
            let alone = case.model.loss(&case.parameters, &ids, &targets, batch, None, &mut memory).expect("it runs");
            assert!((alone.sum / exact.sum - 1.0).abs() <= bound::<T>(seqlen));
            for ((spec, got), (_, want)) in got.download().expect("it can be read").tensors().iter().zip(want.tensors()) {
                let off = error(got, want);
                assert!(off <= 2.0 * bound::<T>(seqlen), "{}: {off}", spec.name);
            }
        }
    }
}

#[test]
fn gradients_are_the_specifications() {
    gradients_of::<f32>();
    gradients_of::<f64>();
}

#[test]
fn a_text_in_windows_is_the_text() {
    let case = Case::<f64>::new(small(true));
    let (ids, targets, mut memory) = (tokens(23, 5), tokens(23, 6), case.memory());
    let whole = case.host.loss(&case.exact, &ids, &targets, 1, None, &mut LmMemory::default()).expect("it runs");
    let mut state = GpuState::zeros(engine(), case.model.sizes(), 1).expect("room for little");
    let mut sum = 0.0;
    for (ids, targets) in ids.chunks(6).zip(targets.chunks(6)) {
        sum += case.model.loss(&case.parameters, ids, targets, 1, Some(&mut state), &mut memory).expect("it runs").sum;
    }
    assert!((sum / whole.sum - 1.0).abs() < 1e-12);
}

fn decoding_of<T: Real>() {
    let case = Case::<T>::new(small(false));
    let texts = [tokens(9, 1), tokens(12, 2), tokens(5, 3)];
    let split = [1, 7, 3];
    let prompts: Vec<&[u32]> = texts.iter().zip(split).map(|(text, at)| &text[..at]).collect();
    let want: Vec<Vec<f64>> =
        texts.iter().map(|ids| case.host.logits(&case.exact, ids, 1, &mut LmMemory::default()).expect("it runs")).collect();
    let mut decoder = GpuDecoder::new(&case.model, &case.parameters, &prompts).expect("it runs");
    let (mut slots, mut at) = (vec![0usize, 1, 2], split);
    loop {
        let logits = decoder.logits().expect("it can be read").to_vec();
        for (&slot, got) in slots.iter().zip(logits.chunks(32)) {
            let off = error(got, &want[slot][(at[slot] - 1) * 32..][..32]);
            assert!(off <= bound::<T>(12), "prompt {slot}, position {}: {off}", at[slot]);
        }
        // Rows whose text is at its end leave; the others change places.
        slots.retain(|&slot| at[slot] < texts[slot].len());
        slots.reverse();
        if slots.is_empty() {
            break;
        }
        let next: Vec<u32> = slots.iter().map(|&slot| texts[slot][at[slot]]).collect();
        let ids: Vec<i32> = slots.iter().map(|&slot| slot as i32).collect();
        decoder.step(&next, &ids).expect("it runs");
        slots.iter().for_each(|&slot| at[slot] += 1);
    }
}

#[test]
fn decoding_is_forward() {
    decoding_of::<f32>();
    decoding_of::<f64>();
}

#[test]
fn replayed_steps_are_launched_steps() {
    let case = Case::<f32>::new(small(true));
    let (first, second) = (tokens(3, 1), tokens(6, 2));
    let new = |record| {
        let mut decoder = GpuDecoder::new(&case.model, &case.parameters, &[&first, &second]).expect("it runs");
        decoder.record(record);
        decoder
    };
    let (mut replayed, mut launched, mut ahead) = (new(true), new(false), new(true));
    for step in 0..6 {
        let rows = if step % 3 == 2 { 1 } else { 2 };
        let (ids, slots) = (&tokens(2, step)[..rows], &[1, 0][..rows]);
        replayed.step(ids, slots).expect("it runs");
        launched.step(ids, slots).expect("it runs");
        assert_eq!(replayed.logits().expect("it can be read"), launched.logits().expect("it can be read"), "step {step}");
    }
    assert_eq!(replayed.state().expect("it can be read"), launched.state().expect("it can be read"));
    // Tokens that never leave the device are those that the host would send.
    let mut here = new(true);
    let taken = ahead.greedy(5).expect("it runs");
    for pair in taken.chunks(2) {
        assert_eq!(here.likeliest().expect("it can be read"), pair);
        here.step(pair, &[0, 1]).expect("it runs");
    }
    assert_eq!(ahead.logits().expect("it can be read"), here.logits().expect("it can be read"));
    // More than there is memory for.
    assert!(matches!(ahead.greedy(usize::MAX), Err(Error::Driver { .. })));
}

#[test]
fn generated_text_is_the_hosts() {
    let case = Case::<f64>::new(small(false));
    let texts = [tokens(1, 1), tokens(6, 2), tokens(2, 3)];
    let prompts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    for (temperature, stop_at_eos) in [(0.0, false), (1.0, true)] {
        let how = Generation { tokens: 6, sampling: Sampling { temperature, ..Sampling::default() }, seed: 5, stop_at_eos };
        let want = generate(&case.host, &case.exact, &prompts, &how, |_, _| ControlFlow::Continue(())).expect("it runs");
        let got = generate(&case.model, &case.parameters, &prompts, &how, |_, _| ControlFlow::Continue(())).expect("it runs");
        assert_eq!(got, want);
    }
}

/// Options under which a small difference of gradients makes a small difference of parameters.
const OPTIONS: AdamWOptions = AdamWOptions { beta1: 0.9, beta2: 0.95, epsilon: 1e-3, weight_decay: 0.1, clip: 0.5 };

fn trainer(config: &ModelConfig) -> (GpuTrainer, Parameters<f32>, AdamW) {
    let parameters = noisy(config);
    let optimizer = AdamW::new(OPTIONS, &parameters).expect("fine options");
    let model = GpuLm::new(config.clone(), engine().clone()).expect("a small model");
    (GpuTrainer::new(model, &parameters, &optimizer).expect("room for it"), parameters, optimizer)
}

#[test]
fn training_is_the_hosts() {
    trains(false);
    trains(true);
}

fn trains(record: bool) {
    let config = small(true);
    let (mut trainer, mut parameters, mut optimizer) = trainer(&config);
    trainer.record(record);
    let host = MambaLm::new(config.clone(), Naive, Par::Seq).expect("a small model");
    let (mut memory, mut gradients) = (LmMemory::default(), parameters.zeros_like());
    for step in 0..5 {
        let (ids, targets, rate) = (tokens(12, step), tokens(12, step + 9), 0.01 / (step + 1) as f64);
        let loss = host.loss_and_gradients(&parameters, &ids, &targets, 2, &mut gradients, &mut memory).expect("it runs");
        let norm = optimizer.step(&mut parameters, &gradients, rate).expect("finite gradients");
        trainer.step(&ids, &targets, 2, rate).expect("it runs");
        let report = trainer.report().expect("finite gradients");
        assert!((report.loss.sum / loss.sum - 1.0).abs() < 1e-5 && report.loss.count == loss.count);
        assert!((report.norm / norm - 1.0).abs() < 1e-4, "{} and {norm}", report.norm);
    }
    let (got, moments) = trainer.download().expect("it can be read");
    assert_eq!((moments.step, moments.options), (5, OPTIONS));
    for (got, want, bound) in
        [(&got, &parameters, 2e-5), (&moments.first, &optimizer.first, 2e-4), (&moments.second, &optimizer.second, 4e-4)]
    {
        for ((spec, got), (_, want)) in got.tensors().iter().zip(want.tensors()) {
            let off = error(got, &want.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
            assert!(off <= bound, "{}: {off}", spec.name);
        }
    }
}

#[test]
fn a_resumed_training_has_the_same_bits() {
    let config = small(false);
    let ((mut whole, ..), (mut parts, ..)) = (trainer(&config), trainer(&config));
    parts.record(false);
    let path = std::env::temp_dir().join(format!("selective-scan-gpu-{}.safetensors", std::process::id()));
    for step in 0..4 {
        let (ids, targets) = (tokens(8, step), tokens(8, step + 9));
        whole.step(&ids, &targets, 2, 0.01).expect("it runs");
        parts.step(&ids, &targets, 2, 0.01).expect("it runs");
        if step == 1 {
            let (parameters, optimizer) = parts.download().expect("it can be read");
            let saved = Checkpoint { config: config.clone(), parameters, optimizer, rng: 0, position: 2, notes: Default::default() };
            saved.save(&path).expect("a writable folder");
            let found = Checkpoint::load(&path).expect("what was written");
            let model = GpuLm::new(found.config, engine().clone()).expect("a small model");
            parts = GpuTrainer::new(model, &found.parameters, &found.optimizer).expect("room for it");
        }
    }
    assert!(whole.download().expect("it can be read") == parts.download().expect("it can be read"));
    std::fs::remove_file(path).expect("it is there");
}

#[test]
fn gradients_that_are_not_finite_change_nothing() {
    let config = small(true);
    let (_, mut parameters, optimizer) = trainer(&config);
    parameters.norm_f[3] = f32::INFINITY;
    let model = GpuLm::new(config, engine().clone()).expect("a small model");
    let mut trainer = GpuTrainer::new(model, &parameters, &optimizer).expect("room for it");
    trainer.step(&tokens(4, 1), &tokens(4, 2), 1, 0.1).expect("it runs");
    assert!(matches!(trainer.report(), Err(Error::Value { operand: "gradients", .. })));
    let (same, moments) = trainer.download().expect("it can be read");
    assert!(same == parameters && moments == optimizer);
}

#[test]
fn wrong_operands_are_named() {
    let case = Case::<f32>::new(small(true));
    let (model, parameters, mut memory) = (&case.model, &case.parameters, case.memory());
    let name = |error: Error| match error {
        Error::Value { operand, .. } => operand,
        other => panic!("{other}"),
    };
    assert_eq!(name(model.logits(parameters, &[32], 1, &mut memory).unwrap_err()), "tokens");
    assert_eq!(name(model.logits(parameters, &[1, 2, 3], 2, &mut memory).unwrap_err()), "tokens");
    assert_eq!(name(model.loss(parameters, &[1], &[32], 1, None, &mut memory).unwrap_err()), "targets");
    let mut state = GpuState::zeros(engine(), model.sizes(), 2).expect("room for little");
    assert_eq!(name(model.loss(parameters, &[1], &[1], 1, Some(&mut state), &mut memory).unwrap_err()), "state");
    let other = Case::<f32>::new(small(false));
    assert_eq!(name(model.logits(&other.parameters, &[1], 1, &mut memory).unwrap_err()), "parameters");
    assert_eq!(name(GpuDecoder::new(model, parameters, &[&[1], &[]]).unwrap_err()), "prompts");
    let mut decoder = GpuDecoder::new(model, parameters, &[&[1], &[2]]).expect("it runs");
    for (tokens, slots, operand) in
        [(&[32][..], &[0][..], "tokens"), (&[1], &[], "slots"), (&[1, 1], &[0, 0], "slots"), (&[1], &[2], "slots"), (&[1], &[-1], "slots")]
    {
        assert_eq!(name(decoder.step(tokens, slots).unwrap_err()), operand);
    }
    let (mut trainer, ..) = trainer(&small(true));
    assert_eq!(name(trainer.step(&[1], &[1], 1, f64::NAN).unwrap_err()), "rate");
    assert_eq!(name(trainer.step(&[1], &[1, 2], 1, 0.1).unwrap_err()), "targets");
}

/// The checked-in model writes the same text as on the CPU, and how long a token takes is said.
#[test]
fn shakespeare_is_the_hosts() {
    let Some(engine) = real("shakespeare_is_the_hosts") else { return };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/shakespeare");
    let (config, parameters) = selective_scan::model::load::<f32>(&folder).expect("the checked-in model");
    let how = Generation { tokens: 200, sampling: Sampling { temperature: 0.0, ..Sampling::default() }, seed: 1, stop_at_eos: false };
    let prompts: [&[u32]; 2] = [&b"ROMEO:".map(u32::from), &b"First Citizen:\n".map(u32::from)];
    let host = MambaLm::new(config.clone(), selective_scan::cpu::Cpu::new(), Par::default()).expect("the checked-in model");
    let want = generate(&host, &parameters, &prompts, &how, |_, _| ControlFlow::Continue(())).expect("it runs");
    let model = GpuLm::new(config, engine.clone()).expect("the checked-in model");
    let parameters = GpuParameters::upload(engine, &parameters).expect("room for it");
    let got = generate(&model, &parameters, &prompts, &how, |_, _| ControlFlow::Continue(())).expect("it runs");
    assert_eq!(got, want);
    let mut decoder = GpuDecoder::new(&model, &parameters, &prompts).expect("it runs");
    let taken = decoder.greedy(200).expect("it runs");
    assert!((0..2).all(|row| taken.iter().skip(row).step_by(2).eq(&want[row])));
    for record in [false, true] {
        decoder.record(record);
        let start = std::time::Instant::now();
        decoder.greedy(1000).expect("it runs");
        println!("{:.1} µs a token of 2 rows, {}", start.elapsed().as_secs_f64() * 1e3, if record { "replayed" } else { "launched" });
    }
}

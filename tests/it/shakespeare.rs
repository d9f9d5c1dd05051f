//! The checked-in model is what `models/shakespeare/README.md` says: small, good at its text, and a writer of English letters.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use selective_scan::cpu::Cpu;
use selective_scan::model::{Generation, LmMemory, MambaLm, Sampling, bytes_to_tokens, generate, load, tokens_to_bytes};
use selective_scan::par::Par;

use crate::train::run::judge;

/// Bytes of the validation text that are judged; the whole takes minutes on slow machines.
const JUDGED: usize = 16 << 10;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/shakespeare")
}

#[test]
fn it_predicts_plays_that_it_has_not_seen() {
    let (config, parameters) = load::<f32>(&folder()).unwrap();
    let model = MambaLm::new(config, Cpu::new(), Par::default()).unwrap();
    let text = std::fs::read(folder().join("valid.txt")).unwrap();
    assert_eq!((text.len(), text.is_ascii()), (201_872, true));
    let bits = |bytes: &[u8]| judge(&model, &parameters, &bytes_to_tokens(bytes), &mut LmMemory::default()).unwrap();
    let plain = bits(&text[..JUDGED]);
    assert!(plain < 2.3, "{plain} bits a byte");
    // The order of the bytes is what it has learnt: backwards it knows little.
    let backwards: Vec<u8> = text[..2048].iter().rev().copied().collect();
    assert!(bits(&backwards) > 1.3 * plain);
}

#[test]
fn it_writes_letters() {
    let (config, parameters) = load::<f32>(&folder()).unwrap();
    let model = MambaLm::new(config, Cpu::new(), Par::default()).unwrap();
    let prompt = bytes_to_tokens(b"ROMEO:");
    let sampling = Sampling { temperature: 0.8, top_k: None, top_p: Some(0.95) };
    let how = Generation { tokens: 300, sampling, seed: 1, stop_at_eos: false };
    let texts = generate(&model, &parameters, &[&prompt], &how, |_, _| ControlFlow::Continue(())).unwrap();
    let text = tokens_to_bytes(&texts[0]).unwrap();
    assert_eq!(text.len(), 300);
    assert!(text.iter().all(|&byte| byte == b'\n' || byte == b' ' || byte.is_ascii_graphic()), "{text:?}");
    let letters = text.iter().filter(|byte| byte.is_ascii_alphabetic() || **byte == b' ').count();
    assert!(letters * 10 >= 8 * text.len(), "{letters} of {}", text.len());
}

#[test]
fn it_is_small() {
    let size: u64 = std::fs::read_dir(folder()).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert!(size <= 4 << 20, "{size} bytes");
}

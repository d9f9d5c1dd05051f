//! Every reference case, on every engine, ISA and storage type of this machine, through the code of the `check` example.

use std::path::Path;

use half::bf16;
use selective_scan::element::Dtype;

use crate::harness::case::Case;
use crate::harness::compare::{Bound, compare};
use crate::harness::engines::{engines, naive};
use crate::harness::operation::Check;
use crate::harness::selective::Selective;
use crate::harness::suite::{Loaded, cases};

fn golden() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

#[test]
fn every_case_on_every_engine_in_every_type() {
    let paths = cases(&golden()).expect("the directory can be read");
    assert!(paths.len() > 40, "only {} cases were found", paths.len());
    let (mut failures, mut skipped) = (Vec::new(), 0);
    for path in &paths {
        let loaded = Loaded::read(path).expect("a case of this repository is well formed");
        let Some(problem) = loaded.problem else {
            skipped += 1;
            continue;
        };
        for (entry, &dtype) in engines().iter().flat_map(|e| problem.dtypes().iter().map(move |d| (e, d))) {
            for f in problem.on(entry, dtype).expect("the operands of a golden case are right").exceeding() {
                let (case, engine, isa, dtype) = (&loaded.name, entry.name, entry.isa, dtype.name());
                failures.push(format!("{case} on {engine}/{isa} in {dtype}: `{}` is off by {:e} ({})", f.tensor, f.worst.error, f.how));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    // Operators that are not built, and the model where its feature is off.
    assert_eq!(skipped, if cfg!(feature = "model") { 4 } else { 5 });
}

/// A reference that is wrong in one element by 1e-4 of its largest must be noticed, whichever tensor it is.
#[test]
fn a_changed_reference_is_noticed() {
    let cases = ["selective_scan-initial-state", "scan-complex", "selective_scan-packed", "conv1d-5-silu-window", "mamba_block-states"];
    for case in cases.map(|case| format!("{case}.safetensors")).iter().map(String::as_str).chain(model_case()) {
        let loaded = Loaded::read(&golden().join(case)).expect("well formed");
        changed(&mut *loaded.problem.expect("its operator is built"));
    }
}

fn model_case() -> Option<&'static str> {
    cfg!(feature = "model").then_some("mamba-tiny-hf")
}

fn changed(checked: &mut dyn Check) {
    let entry = &naive();
    for i in 0..checked.reference_mut().len() {
        let before = checked.reference_mut()[i].clone();
        let (name, array) = &mut checked.reference_mut()[i];
        let name = name.clone();
        let largest = array.data.iter().fold(0.0f64, |most, x| most.max(x.abs()));
        let middle = array.data.len() / 2;
        array.data[middle] += 1e-4 * largest;
        let findings = checked.on(entry, Dtype::F64).expect("the operands are right");
        let named: Vec<&str> = findings.exceeding().map(|f| f.tensor.as_str()).collect();
        assert_eq!(named, [name.as_str()]);
        checked.reference_mut()[i] = before;
    }
}

/// Rounding to storage is within the bound; truncation, one unit off in the last place, is not.
#[test]
fn truncated_storage_is_noticed() {
    let want: Vec<f64> = (1..200).map(|i| f64::from(i) * 0.7310585).collect();
    let rounded: Vec<f64> = want.iter().map(|&x| bf16::from_f64(x).to_f64()).collect();
    let truncated: Vec<f64> = want.iter().map(|&x| f64::from(f32::from_bits((x as f32).to_bits() & 0xffff_0000))).collect();
    let bound = Bound::new(Dtype::Bf16, 1.0, false);
    assert!(compare(&rounded, &want, bound).used <= 1.0);
    assert!(compare(&truncated, &want, bound).used > 1.0);
}

#[test]
fn a_zero_reference_is_met_exactly() {
    let bound = Bound::new(Dtype::F32, 10.0, true);
    assert!(compare(&[0.0, -0.0], &[0.0, 0.0], bound).used <= 1.0);
    assert!(compare(&[0.0, 1e-30], &[0.0, 0.0], bound).used > 1.0);
    assert!(compare(&[f64::NAN], &[1.0], bound).used > 1.0);
    assert!(compare(&[f64::NAN], &[0.0], bound).used > 1.0);
}

/// What is wrong with a file is said in one sentence that names it; nothing panics.
#[test]
fn malformed_files_are_errors() {
    let good = std::fs::read(golden().join("selective_scan-length-1.safetensors")).expect("readable");
    let read = |bytes: &[u8]| Case::parse("case".into(), bytes).and_then(|c| Selective::read(c).map(|_| ()));
    assert_eq!(read(&good), Ok(()));
    for cut in [0, 4, 8, 9, 100, good.len() / 2, good.len() - 1] {
        assert!(read(&good[..cut]).is_err(), "the first {cut} bytes alone");
    }
    let replaced = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let at = good.windows(from.len()).position(|w| w == from.as_bytes()).expect("it is there");
        let mut bytes = good.clone();
        bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
        read(&bytes).expect_err("malformed")
    };
    let faults = [
        ("\"grad.u\"", "\"grad.v\"", "grad.u"),
        ("\"delta\"", "\"dolta\"", "delta"),
        ("\"F64\"", "\"I64\"", "I64"),
        ("\\\"rule\\\": \\\"euler\\\"", "\\\"rule\\\": \\\"huler\\\"", "rule"),
        ("\\\"groups\\\": 1", "\\\"groups\\\": 3", "groups"),
        ("\\\"complex\\\": false", "\\\"complex\\\": 1    ", "complex"),
        ("\\\"op\\\"", "\\\"oq\\\"", "op"),
        ("\\\"cu_seqlens\\\": null", "\\\"cu_seqlens\\\": [-1]", "cu_seqlens"),
        ("\\\"cu_seqlens\\\": null", "\\\"cu_seqlens\\\": [{}]", "cu_seqlens"),
        ("\\\"complex\\\": false", "\\\"complex\\\": true ", "A"),
    ];
    for (from, to, named) in faults {
        let why = replaced(from, to);
        assert!(why.contains(named), "{from} → {to}: {why}");
    }
}

/// A small file cannot ask for much memory: sizes that no bytes stand for are limited, and so are their products.
#[test]
fn huge_sizes_are_errors() {
    let read = |shapes: &[(&str, &[usize])], options: &str| {
        let mut header = format!(r#"{{"__metadata__":{{"options":"{{\"op\":\"selective_scan\"{options}}}"}}"#);
        let mut end = 0;
        for (name, shape) in shapes {
            let start = end;
            end += 8 * shape.iter().product::<usize>();
            header += &format!(r#","{name}":{{"dtype":"F64","shape":{shape:?},"data_offsets":[{start},{end}]}}"#);
        }
        header += "}";
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + end, 0);
        Case::parse("case".into(), &bytes).and_then(|c| Selective::read(c).map(|_| ())).expect_err("huge")
    };
    let empty = read(&[("u", &[1 << 61, 0, 1])], "");
    assert!(empty.contains("`u`") && empty.contains("without elements"), "{empty}");
    let wide: &[usize] = &[1 << 14, 1, 1];
    let shapes = [("u", wide), ("delta", wide), ("grad_out", wide), ("A", &[1, 1 << 14]), ("B", &[1, 1 << 14]), ("C", &[1, 1 << 14])];
    let state = read(&shapes, r#",\"variable_B\":false,\"variable_C\":false"#);
    assert!(state.contains("`last_state`") && state.contains("16384"), "{state}");
}

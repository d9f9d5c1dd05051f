//! Who may import whom: each module only what stands to its left in `ORDER`, and outside crates only where they belong.

use crate::source::{Source, files, find_words};

/// The groups of top-level modules, left to right. A module may name its own group and any group before it.
const ORDER: [&[&str]; 9] = [
    &["element", "error", "ops", "workspace"],
    &["view", "buffer", "par"],
    &["sequences", "scan", "regime"],
    &["selective", "layers"],
    &["naive", "blelloch", "arch", "cpu", "cuda"],
    &["plan"],
    &["block", "lti"],
    &["model"],
    &["ffi"],
];
/// Within the group of engines nobody knows another, but for this.
const ENGINES: usize = 4;
const KNOWS: [(&str, &str); 1] = [("cpu", "arch")];
/// Named by these two only.
const PROFILE: &[&str] = &["cpu", "cuda"];
/// Re-exports of `lib.rs`, and where they come from.
const ROOT: [(&str, &str); 1] = [("Error", "error")];
/// Crates that are named in one place only: a file, or a folder where the name ends in `/`.
const OUTSIDE: [(&str, &[&str]); 6] = [
    ("rayon", &["src/par.rs"]),
    ("wide", &["src/arch/portable.rs"]),
    ("gemm", &["src/layers/linear.rs"]),
    ("safetensors", &["src/model/"]),
    ("serde_json", &["src/model/"]),
    ("cudarc", &["src/cuda/", "src/cuda.rs"]),
];
/// What `arch/generic` may not name: it knows registers and slices, nothing else.
const NOT_IN_GENERIC: [&str; 8] = ["View", "ViewMut", "Vec", "Box", "thread", "std", "Workspace", "Par"];

/// The module path of a file: `src/arch/generic/exp.rs` is arch, generic, exp.
fn module(path: &str) -> Vec<&str> {
    let inner = path.trim_start_matches("src/").trim_end_matches(".rs");
    inner.split('/').filter(|p| *p != "mod").collect()
}

fn group(module: &str) -> Option<usize> {
    ORDER.iter().position(|g| g.contains(&module))
}

/// The top-level modules that a file names by `crate::…` or by enough `super::`.
fn named(source: &Source) -> Vec<String> {
    let code = source.code();
    let mut found: Vec<String> =
        find_words(&code, "crate").iter().filter_map(|i| code[i + 5..].strip_prefix("::")).flat_map(heads).collect();
    let to_root = "super::".repeat(module(&source.path).len());
    for at in find_words(&code, "super").iter().filter(|at| !code[..**at].ends_with("::")) {
        found.extend(code[*at..].strip_prefix(&to_root).into_iter().flat_map(heads));
    }
    found
}

/// The first names of a path or of a `{…}` list of paths.
fn heads(path: &str) -> Vec<String> {
    let name = |s: &str| -> String { s.chars().take_while(|c| c.is_alphanumeric() || *c == '_' || *c == '*').collect() };
    let Some(list) = path.strip_prefix('{') else { return vec![name(path)] };
    let (mut depth, mut start, mut out) = (1, 0, Vec::new());
    for (i, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 || (depth == 1 && c == ',') {
            out.push(name(list[start..i].trim()));
            start = i + 1;
        }
        if depth == 0 {
            break;
        }
    }
    out.retain(|n| !n.is_empty());
    out
}

fn order_faults(source: &Source) -> Vec<String> {
    let source = source.without_tests();
    let from = module(&source.path)[0];
    let fault = |why: String| format!("{}: {why}", source.path);
    if from == "profile" {
        return named(&source).iter().map(|to| fault(format!("profile names {to}"))).collect();
    }
    let Some(rank) = group(from) else { return vec![fault(format!("module {from} has no place in the order"))] };
    let mut faults = Vec::new();
    for to in named(&source) {
        let to = ROOT.iter().find(|(name, _)| *name == to).map_or(to.as_str(), |(_, module)| module).to_string();
        let ok = match group(&to) {
            _ if to == from => true,
            Some(ENGINES) if rank == ENGINES => KNOWS.contains(&(from, to.as_str())),
            Some(other) => other <= rank,
            None => to == "profile" && PROFILE.contains(&from),
        };
        if !ok {
            faults.push(fault(format!("{from} may not name crate::{to}")));
        }
    }
    faults
}

fn outside_faults(source: &Source) -> Vec<String> {
    let code = source.code();
    let within = |places: &[&str]| places.iter().any(|p| source.path == *p || (p.ends_with('/') && source.path.starts_with(p)));
    // `name::<` is a function of ours.
    let path = |name: &str, i: usize| code[i + name.len()..].strip_prefix("::").is_some_and(|rest| !rest.starts_with('<'));
    let mut faults: Vec<String> = OUTSIDE
        .iter()
        .filter(|(name, places)| !within(places) && find_words(&code, name).iter().any(|&i| path(name, i)))
        .map(|(name, places)| format!("{}: {name} is named in {places:?} only", source.path))
        .collect();
    let isa_file = within(&["src/arch/x86_64/", "src/arch/aarch64/"]);
    if !isa_file && ["std::arch::", "core::arch::"].iter().any(|p| code.contains(p)) {
        faults.push(format!("{}: intrinsics stand in the files of their instruction set only", source.path));
    }
    if within(&["src/arch/generic/"]) {
        let code = source.without_tests().code();
        let bad = NOT_IN_GENERIC.iter().filter(|w| !find_words(&code, w).is_empty());
        faults.extend(bad.map(|w| format!("{}: a generic kernel may not name {w}", source.path)));
    }
    faults
}

/// Every file of `src` but `lib.rs`, which names them all, and unit tests.
fn modules() -> Vec<Source> {
    let mut all = files("src", "rs");
    all.retain(|s| s.path != "src/lib.rs" && !s.path.ends_with("/tests.rs"));
    assert!(!all.is_empty(), "run from the package root");
    all
}

#[test]
fn modules_import_to_the_left() {
    let faults: Vec<String> = modules().iter().flat_map(order_faults).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn outside_crates_stand_in_one_place() {
    let faults: Vec<String> = modules().iter().flat_map(outside_faults).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn wrong_imports_are_seen() {
    let faults = |path: &str, text: &str| order_faults(&Source::new(path, text)).len();
    assert_eq!(faults("src/cpu/scan.rs", "use crate::arch::Isa;\nuse crate::{Error, view::{View, Host}, par::Par};"), 0);
    assert_eq!(faults("src/cpu/scan.rs", "use crate::naive::Naive;"), 1);
    assert_eq!(faults("src/arch/mod.rs", "fn f() -> crate::cpu::Cpu { x }"), 1);
    assert_eq!(faults("src/ops.rs", "use crate::{element::Real, view::View};"), 1);
    assert_eq!(faults("src/layers/conv1d.rs", "use super::super::model::Model;"), 1);
    assert_eq!(faults("src/layers/conv1d.rs", "use super::norm::RmsNorm;"), 0);
    assert_eq!(faults("src/nowhere.rs", ""), 1);
    assert_eq!(faults("src/blelloch/sweep.rs", "// crate::naive\n#[cfg(test)]\nmod tests {\n    use crate::naive::Naive;\n}\n"), 0);
    assert_eq!(faults("src/scan.rs", "use crate::profile::range;"), 1);
}

#[test]
fn wrong_crates_are_seen() {
    let faults = |path: &str, text: &str| outside_faults(&Source::new(path, text)).len();
    assert_eq!(faults("src/par.rs", "rayon::scope(|s| x);"), 0);
    assert_eq!(faults("src/cpu/scan.rs", "use rayon::prelude::*;\nwide::<f32>();"), 1);
    assert_eq!(faults("src/cpu/scan.rs", "use core::arch::x86_64::*;"), 1);
    assert_eq!(faults("src/arch/x86_64/avx2.rs", "use core::arch::x86_64::*;"), 0);
    assert_eq!(faults("src/arch/generic/exp.rs", "fn f(v: Vec<f32>) {}"), 1);
}

#[test]
fn the_specification_is_safe() {
    let root = ["src/naive.rs", "src/naive/mod.rs"].iter().find_map(|p| std::fs::read_to_string(p).ok()).expect("the naive engine");
    assert!(Source::new("", &root).code().contains("#![forbid(unsafe_code)]"), "the naive engine forbids unsafe code");
}

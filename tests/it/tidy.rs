//! Limits on the source text itself: sizes, `unsafe`, leftovers, notes and commands that exist.

use std::collections::BTreeSet;
use std::path::Path;

use crate::source::{Source, block_end, files, find_words, rust};

/// Lines in a file.
const FILE_LINES: usize = 800;
/// Lines in a function, signature and closing brace included.
const FN_LINES: usize = 70;
/// Where `unsafe` may stand in `src`; a name that ends in `/` is a folder.
const UNSAFE: [&str; 13] = [
    "src/arch/",
    "src/view.rs",
    "src/view/tests.rs",
    "src/par.rs",
    "src/par/team.rs",
    "src/buffer.rs",
    "src/layers/linear.rs",
    "src/cuda/cublaslt.rs",
    "src/cuda/driver.rs",
    "src/cuda/graph.rs",
    "src/cuda/launch.rs",
    "src/cuda/memory.rs",
    "src/cuda/module.rs",
];
/// The sections that every kernel note has, in this order.
const SECTIONS: [&str; 9] =
    ["Computes", "Bytes and operations", "Mapping", "Registers", "Pipes", "Predicted", "Measured", "Tried and dropped", "Check it"];

/// Asserts that a check finds nothing in any file.
fn none(faults: impl IntoIterator<Item = String>) {
    let faults: Vec<String> = faults.into_iter().collect();
    assert!(faults.is_empty(), "{} fault(s):\n{}", faults.len(), faults.join("\n"));
}

fn size_faults(source: &Source) -> Vec<String> {
    let mut faults = Vec::new();
    if source.lines.len() > FILE_LINES {
        faults.push(format!("{}: {} lines, at most {FILE_LINES}", source.path, source.lines.len()));
    }
    for (i, line) in source.lines.iter().enumerate() {
        // `fn(` is a type, not a function.
        let starts = find_words(&line.code, "fn").iter().any(|at| line.code[at + 2..].starts_with(' '));
        if let Some(end) = starts.then(|| block_end(&source.lines, i)).flatten() {
            let len = end - i + 1;
            if len > FN_LINES {
                faults.push(format!("{}:{}: a function of {len} lines, at most {FN_LINES}", source.path, i + 1));
            }
        }
    }
    faults
}

#[test]
fn files_and_functions_are_short() {
    none(rust().iter().flat_map(size_faults));
}

#[test]
fn long_files_and_functions_are_seen() {
    let body = "    x;\n".repeat(FN_LINES - 1);
    assert_eq!(size_faults(&Source::new("x.rs", &format!("fn f() {{\n{body}}}"))).len(), 1);
    assert_eq!(size_faults(&Source::new("x.rs", &format!("fn f() {{\n{}}}", body.replacen("    x;\n", "", 1)))).len(), 0);
    assert_eq!(size_faults(&Source::new("x.rs", &"\n".repeat(FILE_LINES + 1))).len(), 1);
}

/// Whether the comment that belongs to line `i` has `word`: on the line, or above it within the same statement.
fn explained(source: &Source, i: usize, word: &str) -> bool {
    for (above, line) in source.lines[..=i].iter().rev().enumerate() {
        let code = line.code.trim();
        let other_statement = code.ends_with([';', '{', '}']) && !code.starts_with("#[");
        let blank = code.is_empty() && line.comment.is_empty();
        if above > 0 && (other_statement || blank) {
            return false;
        }
        if line.comment.contains(word) {
            return true;
        }
    }
    false
}

/// The names of the unsafe functions of a file that have a `# Safety` section.
fn documented(source: &Source) -> Vec<String> {
    unsafe_fns(source).filter(|(i, _)| explained(source, *i, "# Safety")).map(|(_, name)| name).collect()
}

/// Line and name of each `unsafe fn NAME`.
fn unsafe_fns(source: &Source) -> impl Iterator<Item = (usize, String)> {
    source.lines.iter().enumerate().filter_map(|(i, line)| {
        let at = line.code.find("unsafe fn ").or_else(|| line.code.find("unsafe extern \"\" fn "))?;
        let rest = line.code[at..].split_once("fn ")?.1;
        Some((i, rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_' || *c == '$').collect()))
    })
}

/// Every `unsafe` says why, and stands where it may. `named` are the functions whose safety is documented anywhere: a trait
/// documents a method for all its implementations.
fn unsafe_faults(source: &Source, named: &BTreeSet<String>) -> Vec<String> {
    let mut faults = Vec::new();
    let fns: Vec<(usize, String)> = unsafe_fns(source).collect();
    for (i, line) in source.lines.iter().enumerate() {
        if find_words(&line.code, "unsafe").is_empty() {
            continue;
        }
        let at = format!("{}:{}", source.path, i + 1);
        let allowed = |place: &str| source.path == place || (place.ends_with('/') && source.path.starts_with(place));
        let tool = source.path.starts_with("tests/") || source.path.starts_with("sim/src/memory.rs");
        if !tool && !UNSAFE.iter().any(|p| allowed(p)) {
            faults.push(format!("{at}: `unsafe` may not stand in this file"));
        }
        if line.code.contains("unsafe fn(") {
            continue;
        }
        let function = fns.iter().find(|(line, _)| *line == i);
        let said = match function {
            Some((_, name)) => named.contains(name) || explained(source, i, "SAFETY:"),
            None => explained(source, i, if line.code.contains("unsafe trait ") { "# Safety" } else { "SAFETY:" }),
        };
        if !said {
            faults.push(format!("{at}: `unsafe` without a `SAFETY:` comment or a `# Safety` section"));
        }
    }
    faults
}

#[test]
fn unsafe_is_explained_and_in_its_place() {
    let all = rust();
    let named: BTreeSet<String> = all.iter().flat_map(documented).collect();
    none(all.iter().flat_map(|s| unsafe_faults(s, &named)));
}

#[test]
fn bad_unsafe_is_seen() {
    let faults = |path: &str, text: &str| {
        let source = Source::new(path, text);
        unsafe_faults(&source, &documented(&source).into_iter().collect()).len()
    };
    assert_eq!(faults("src/par.rs", "fn f() {\n    // SAFETY: so.\n    let a = g(\n        unsafe { h() });\n}"), 0);
    assert_eq!(faults("src/par.rs", "fn f() {\n    // SAFETY: so.\n    a();\n    unsafe { h() };\n}"), 1);
    assert_eq!(faults("src/par.rs", "    a(); // SAFETY: of a.\n    unsafe { h() };"), 1);
    assert_eq!(faults("src/ops.rs", "// SAFETY: so.\nunsafe { h() };"), 1);
    assert_eq!(faults("src/arch/x.rs", "/// F.\n///\n/// # Safety\n/// So.\n#[inline]\nunsafe fn f() {}"), 0);
    assert_eq!(faults("src/arch/x.rs", "/// F.\nunsafe fn f() {}"), 1);
    assert_eq!(faults("src/arch/x.rs", "/// # Safety\nunsafe fn f();\n\nunsafe fn f() {}"), 0);
    assert_eq!(faults("src/arch/x.rs", "/// # Safety\n/// So.\npub unsafe trait T {}\n\npub unsafe trait U {}"), 1);
    assert_eq!(faults("src/arch/x.rs", "// SAFETY: so.\nunsafe impl Send for X {}\nunsafe impl Sync for X {}"), 1);
}

/// Leftovers, and words that have no meaning in this repository. Pieced together so that this file does not find itself.
fn leftovers() -> Vec<String> {
    let pairs = [
        ("to", "do!"),
        ("unimple", "mented!"),
        ("FIX", "ME"),
        ("XX", "X"),
        ("#[ign", "ore"),
        ("MATH", " section"),
        ("MATH", ".md"),
        ("DESIGN", ".md"),
        ("DESIGN", " section"),
        ("ANCH", "ORS"),
        ("/wo", "rk/"),
        ("../sha", "red"),
    ];
    pairs.iter().map(|(a, b)| format!("{a}{b}")).collect()
}

fn leftover_faults(source: &Source) -> Vec<String> {
    let line_of = |at: usize| source.text[..at].matches('\n').count() + 1;
    let fault = |word: &String| source.text.find(word.as_str()).map(|at| format!("{}:{}: `{word}`", source.path, line_of(at)));
    leftovers().iter().filter_map(fault).collect()
}

#[test]
fn nothing_is_left_over() {
    let text = ["toml", "md", "ptx"]
        .iter()
        .flat_map(|e| [".ci", "asm-notes", "docs", "ptx", "fuzz", "models", "sim"].iter().flat_map(|f| files(f, e)));
    none(rust().iter().chain(&text.collect::<Vec<_>>()).flat_map(leftover_faults));
    for name in ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Cargo.toml", ".ci/run", ".ci/neon.sh"] {
        let text = std::fs::read_to_string(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        none(leftover_faults(&Source::new(name, &text)));
    }
}

#[test]
fn leftovers_are_seen() {
    for word in leftovers() {
        assert_eq!(leftover_faults(&Source::new("x.rs", &format!("// {word}("))).len(), 1, "{word}");
    }
}

/// The kernels: files of `src/arch/generic` that compute something.
fn kernels() -> Vec<String> {
    let stem = |s: &Source| Path::new(&s.path).file_stem().unwrap().to_string_lossy().into_owned();
    files("src/arch/generic", "rs")
        .iter()
        .map(stem)
        .filter(|s| !["mod", "tiles", "tables", "number", "tests"].contains(&s.as_str()))
        .collect()
}

/// The sections of `SECTIONS` that a note lacks or has out of order.
fn note_faults(name: &str, text: &str) -> Vec<String> {
    let headings: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("## ")).collect();
    let mut at = 0;
    let mut faults = Vec::new();
    for section in SECTIONS {
        match headings[at..].iter().position(|h| h.starts_with(section)) {
            Some(i) => at += i + 1,
            None => faults.push(format!("{name}: no section `{section}`, or not in its place")),
        }
    }
    faults
}

/// Whether a note is about a kernel: it has its name, or that of the kernel whose special case this one is, and speaks of it.
fn covers(note: &Source, kernel: &str) -> bool {
    let stem = note.path.trim_start_matches("asm-notes/").trim_end_matches(".md");
    let special = kernel.strip_prefix(stem).is_some_and(|rest| rest.starts_with('_'));
    kernel == stem || (special && !find_words(&note.text, kernel).is_empty())
}

#[test]
fn every_kernel_has_a_note() {
    let notes = files("asm-notes", "md");
    let has = |kernel: &String| notes.iter().any(|n| covers(n, kernel));
    none(kernels().iter().filter(|k| !has(k)).map(|k| format!("src/arch/generic/{k}.rs has no note asm-notes/{k}.md")));
    let own = |n: &&Source| !["asm-notes/README.md", "asm-notes/machines.md"].contains(&n.path.as_str()) && !n.path.starts_with(PTX_NOTES);
    for note in notes.iter().filter(own) {
        none(note_faults(&note.path, &note.text));
        let stem = note.path.trim_start_matches("asm-notes/").trim_end_matches(".md").to_string();
        assert!(kernels().contains(&stem), "{} is about no kernel", note.path);
    }
}

/// Where notes of PTX templates stand: kernels of the CPU have some of the same names.
const PTX_NOTES: &str = "asm-notes/ptx/";

#[test]
fn every_template_has_a_note() {
    let notes = files(PTX_NOTES, "md");
    let stem = |path: &str| Path::new(path).file_stem().unwrap().to_string_lossy().into_owned();
    let templates: Vec<String> = files("ptx", "ptx").iter().filter(|s| !s.path.starts_with("ptx/shared/")).map(|s| stem(&s.path)).collect();
    let about = |note: &Source, template: &str| {
        let (name, special) = (stem(&note.path), template.strip_prefix(&stem(&note.path)).is_some_and(|rest| rest.starts_with('_')));
        name == template || (special && !find_words(&note.text, template).is_empty())
    };
    none(templates.iter().filter(|t| !notes.iter().any(|n| about(n, t))).map(|t| format!("ptx/{t}.ptx has no note {PTX_NOTES}{t}.md")));
    for note in notes.iter() {
        none(note_faults(&note.path, &note.text));
        let known = stem(&note.path) == "shared" || templates.iter().any(|t| about(note, t));
        assert!(known, "{} is about no template", note.path);
    }
}

#[test]
fn incomplete_notes_are_seen() {
    let full: String = SECTIONS.iter().map(|s| format!("## {s}\n")).collect();
    assert_eq!(note_faults("x", &full), Vec::<String>::new());
    let note = Source::new("asm-notes/scan.md", "see scan_mamba");
    assert!(covers(&note, "scan") && covers(&note, "scan_mamba") && !covers(&note, "scan_other") && !covers(&note, "exp"));
    assert_eq!(note_faults("x", &full.replace("## Pipes\n", "")).len(), 1);
    assert!(!note_faults("x", &full.replace("## Pipes\n", "").replace("## Computes\n", "## Computes\n## Pipes\n")).is_empty());
}

/// Commands in the text that name an example, a bench, a test, a fuzz target or a script that is not there.
fn command_faults(name: &str, text: &str, exists: impl Fn(&str) -> bool) -> Vec<String> {
    let mut faults = Vec::new();
    let mut want = |command: &str, options: &[String]| {
        if !options.iter().any(|o| exists(o)) {
            faults.push(format!("{name}: `{command}` wants one of {options:?}"));
        }
    };
    for line in text.lines().filter(|l| l.contains("cargo ") || l.contains(".ci/")) {
        let words: Vec<&str> = line.split(|c: char| c.is_whitespace() || "`|,;()".contains(c)).filter(|w| !w.is_empty()).collect();
        for pair in words.windows(2) {
            match pair[0] {
                "--example" => want(line, &[format!("examples/{}.rs", pair[1]), format!("examples/{}/main.rs", pair[1])]),
                "--bench" => want(line, &[format!("benches/{}.rs", pair[1])]),
                "--test" => want(line, &[format!("tests/{}.rs", pair[1]), format!("tests/{}/main.rs", pair[1])]),
                _ => {}
            }
        }
        for script in words.iter().filter(|w| w.starts_with(".ci/")) {
            want(line, &[script.to_string()]);
        }
    }
    faults
}

#[test]
fn commands_in_the_docs_exist() {
    let mut pages = files("asm-notes", "md");
    for name in ["README.md", "CONTRIBUTING.md"] {
        pages.push(Source::new(name, &std::fs::read_to_string(name).unwrap_or_else(|e| panic!("{name}: {e}"))));
    }
    none(pages.iter().flat_map(|p| command_faults(&p.path, &p.text, |file| Path::new(file).exists())));
    let readme = std::fs::read_to_string("README.md").unwrap();
    assert!(readme.lines().count() <= 150, "README.md has at most 150 lines");
    let commands: Vec<&str> = readme.lines().filter(|l| l.starts_with("cargo ")).take(2).collect();
    assert_eq!(commands, ["cargo run --release --example generate", "cargo test"], "the first two commands of README.md");
}

#[test]
fn missing_commands_are_seen() {
    let faults = |text: &str| command_faults("x", text, |file| file == "examples/generate.rs").len();
    assert_eq!(faults("`cargo run --release --example generate`"), 0);
    assert_eq!(faults("cargo run --release --example nothing"), 1);
    assert_eq!(faults("cargo bench --bench nothing\n.ci/nothing"), 2);
}

//! The repository's own source text, for the tests that read it: files, and lines split into code and comment.

use std::path::{Path, PathBuf};

/// One line: its code with the contents of strings and chars blanked, and the text of its comments.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Line {
    pub code: String,
    pub comment: String,
}

/// A file, its path relative to the package root with forward slashes.
#[derive(Debug, Clone)]
pub struct Source {
    pub path: String,
    pub text: String,
    pub lines: Vec<Line>,
}

impl Source {
    pub fn new(path: &str, text: &str) -> Self {
        Source { path: path.into(), text: text.into(), lines: split(text) }
    }

    /// All code, line by line.
    pub fn code(&self) -> String {
        self.lines.iter().map(|l| l.code.as_str()).collect::<Vec<_>>().join("\n")
    }

    /// The same file without its `#[cfg(test)] mod … { … }`.
    pub fn without_tests(&self) -> Source {
        let mut out = self.clone();
        let Some(start) = out.lines.iter().position(|l| l.code.trim() == "#[cfg(test)]") else { return out };
        if out.lines.get(start + 1).is_some_and(|l| l.code.trim_start().starts_with("mod ") && l.code.contains('{')) {
            let end = block_end(&out.lines, start + 1).unwrap_or(out.lines.len() - 1);
            out.lines.drain(start..=end);
        }
        out
    }
}

/// The line on which the first `{` from line `from` on is closed; None where a `;` comes first or nothing closes.
pub fn block_end(lines: &[Line], from: usize) -> Option<usize> {
    let (mut depth, mut round) = (0usize, 0usize);
    for (i, line) in lines.iter().enumerate().skip(from) {
        for c in line.code.chars() {
            match c {
                '(' | '[' => round += 1,
                ')' | ']' => round = round.saturating_sub(1),
                ';' if depth == 0 && round == 0 => return None,
                '{' => depth += 1,
                '}' if depth == 1 => return Some(i),
                '}' => depth = depth.checked_sub(1)?,
                _ => {}
            }
        }
    }
    None
}

/// What the lexer is inside of.
enum State {
    Code,
    Block(usize),
    Str { hashes: Option<usize> },
}

/// Splits a file into lines of code and comment.
fn split(text: &str) -> Vec<Line> {
    let mut state = State::Code;
    text.lines().map(|line| split_line(line, &mut state)).collect()
}

fn split_line(line: &str, state: &mut State) -> Line {
    let chars: Vec<char> = line.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut out = Line::default();
    let mut i = 0;
    while i < chars.len() {
        match state {
            State::Block(depth) => {
                let step = match (at(i), at(i + 1)) {
                    ('*', '/') => (2, *depth - 1),
                    ('/', '*') => (2, *depth + 1),
                    _ => (1, *depth),
                };
                out.comment.extend(&chars[i..i + step.0]);
                *state = if step.1 == 0 { State::Code } else { State::Block(step.1) };
                i += step.0;
            }
            State::Str { hashes } => {
                let closes = at(i) == '"' && (0..hashes.unwrap_or(0)).all(|k| at(i + 1 + k) == '#');
                if closes {
                    i += 1 + hashes.unwrap_or(0);
                    out.code.push('"');
                    *state = State::Code;
                } else {
                    i += if hashes.is_none() && at(i) == '\\' { 2 } else { 1 };
                }
            }
            State::Code => match (at(i), at(i + 1)) {
                ('/', '/') => {
                    out.comment.extend(&chars[i..]);
                    return out;
                }
                ('/', '*') => {
                    *state = State::Block(1);
                    i += 2;
                }
                ('"', _) => {
                    out.code.push('"');
                    *state = State::Str { hashes: raw_hashes(&chars, i) };
                    i += 1;
                }
                ('\'', next) => i += char_literal(&chars, i, next, &mut out.code),
                (c, _) => {
                    out.code.push(c);
                    i += 1;
                }
            },
        }
    }
    out
}

/// The number of `#` of the raw string that the quote at `quote` opens; None for an ordinary string.
fn raw_hashes(chars: &[char], quote: usize) -> Option<usize> {
    let hashes = chars[..quote].iter().rev().take_while(|c| **c == '#').count();
    let before = quote.checked_sub(hashes + 1)?;
    let start_of_word = |i: usize| i == 0 || !(chars[i - 1].is_alphanumeric() || chars[i - 1] == '_');
    let raw = chars[before] == 'r' && (start_of_word(before) || (matches!(chars[before - 1], 'b' | 'c') && start_of_word(before - 1)));
    raw.then_some(hashes)
}

/// How many chars to skip at a `'`: a whole char literal, or the quote of a lifetime.
fn char_literal(chars: &[char], i: usize, next: char, code: &mut String) -> usize {
    code.push('\'');
    if next == '\\' {
        let len = chars[i + 3..].iter().position(|c| *c == '\'').map_or(1, |p| p + 4);
        return len.max(4);
    }
    if chars.get(i + 2) == Some(&'\'') { 3 } else { 1 }
}

/// Whether `text` has `word` with no letter, digit or `_` on either side; the byte offsets where.
pub fn find_words(text: &str, word: &str) -> Vec<usize> {
    let inside = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let free = |i: &usize| !inside(text[..*i].chars().next_back()) && !inside(text[i + word.len()..].chars().next());
    text.match_indices(word).map(|(i, _)| i).filter(free).collect()
}

/// Every file below `folder` that ends in `extension`, sorted; none where there is no such folder.
pub fn files(folder: &str, extension: &str) -> Vec<Source> {
    let mut found = Vec::new();
    collect(Path::new(folder), extension, &mut found);
    found.sort();
    let read = |p: &PathBuf| std::fs::read_to_string(p).unwrap_or_else(|e| panic!("{}: {e}", p.display()));
    found.iter().map(|p| Source::new(&p.display().to_string().replace('\\', "/"), &read(p))).collect()
}

fn collect(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|e| e.path()) {
        if path.is_dir() {
            if !path.ends_with("target") {
                collect(&path, extension, found);
            }
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
}

/// Every Rust file of the repository.
pub fn rust() -> Vec<Source> {
    let all: Vec<Source> = ["src", "tests", "benches", "examples", "fuzz", "sim"].iter().flat_map(|f| files(f, "rs")).collect();
    assert!(all.iter().any(|s| s.path == "src/lib.rs"), "run from the package root");
    all
}

#[test]
fn comments_and_strings_are_not_code() {
    let text = "let a = \"unsafe // {\"; // unsafe\n/* fn /* x */ y */ let b = r#\"{\"}\"#;\nlet c = '{'; let d: &'a str = \"\\\"{\"; let e = '\\'';";
    let source = Source::new("x.rs", text);
    assert_eq!(source.lines[0], Line { code: "let a = \"\"; ".into(), comment: "// unsafe".into() });
    assert_eq!(source.lines[1].code, " let b = r#\"\";");
    assert_eq!(source.lines[2].code, "let c = '; let d: &'a str = \"\"; let e = ';");
}

#[test]
fn blocks_end_at_their_brace() {
    let lines = split("fn f(a: [u8; 2])\n{\n if x { y }\n}\nfn g();\n");
    assert_eq!(block_end(&lines, 0), Some(3));
    assert_eq!(block_end(&lines, 4), None);
}

#[test]
fn words_are_whole() {
    assert_eq!(find_words("unsafe_op unsafe {", "unsafe"), [10]);
}

#[test]
fn test_modules_are_left_out() {
    let source = Source::new("x.rs", "use a;\n#[cfg(test)]\nmod tests {\n use b;\n}\nuse c;");
    assert_eq!(source.without_tests().code(), "use a;\nuse c;");
}

//! PTX templates and their expansion: loops, conditions, shared snippets and substitutions. `ptx/README.md` describes the language.

use super::expression::{Value, Vars, evaluate};
use super::shared;

/// One operator's template.
#[derive(Debug, Clone, Copy)]
pub struct Template {
    /// The file's stem in `ptx/`.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

/// The template of `ptx/NAME.ptx`.
macro_rules! template {
    ($name:literal) => {
        $crate::cuda::template::Template { name: $name, text: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/ptx/", $name, ".ptx")) }
    };
}
pub(crate) use template;

/// Snippets may use others this deep.
const DEPTH: usize = 8;

impl Template {
    /// The PTX for these variables.
    ///
    /// # Panics
    /// Where the template is malformed: templates are part of the crate, and a test expands every one that ships.
    pub fn expand(&self, vars: &Vars) -> String {
        self.try_expand(vars).unwrap_or_else(|why| panic!("ptx/{}.ptx: {why}", self.name))
    }

    /// As [`Template::expand`]; an `Err` names the line.
    pub fn try_expand(&self, vars: &Vars) -> Result<String, String> {
        let mut out = String::with_capacity(2 * self.text.len());
        let lines: Vec<&str> = self.text.lines().collect();
        block(&lines, 0..lines.len(), &mut vars.clone(), 0, &mut out)?;
        Ok(out)
    }
}

/// A directive, if the line is one.
fn directive(line: &str) -> Option<(&str, &str)> {
    let text = line.trim().strip_prefix("//!")?.trim();
    Some(text.split_once(char::is_whitespace).map_or((text, ""), |(word, rest)| (word, rest.trim())))
}

/// The lines of the `//!else` and `//!end` that belong to the block that begins after line `start`.
fn closing(lines: &[&str], start: usize, end: usize) -> Result<(Option<usize>, usize), String> {
    let (mut depth, mut other) = (0, None);
    for (i, line) in lines.iter().enumerate().take(end).skip(start + 1) {
        match directive(line).map(|(word, _)| word) {
            Some("for" | "if") => depth += 1,
            Some("else") if depth == 0 => other = Some(i),
            Some("end") if depth == 0 => return Ok((other, i)),
            Some("end") => depth -= 1,
            _ => {}
        }
    }
    Err(format!("line {}: no //!end", start + 1))
}

fn block(lines: &[&str], range: core::ops::Range<usize>, vars: &mut Vars, depth: usize, out: &mut String) -> Result<(), String> {
    let mut i = range.start;
    while i < range.end {
        let at = |why: String| format!("line {}: {why}", i + 1);
        let Some((word, rest)) = directive(lines[i]) else {
            substitute(lines[i], vars, out).map_err(at)?;
            i += 1;
            continue;
        };
        match word {
            "for" => {
                let (_, end) = closing(lines, i, range.end)?;
                let words: Vec<&str> = rest.split_whitespace().collect();
                let [name, from, to] = words[..] else { return Err(at("//!for NAME FROM TO, expressions without spaces".into())) };
                let (from, to) = (int(from, vars).map_err(at)?, int(to, vars).map_err(at)?);
                let before = vars.clone();
                for n in from..to {
                    vars.set(name, Value::Int(n));
                    block(lines, i + 1..end, vars, depth, out)?;
                }
                *vars = before;
                i = end + 1;
            }
            "if" => {
                let (other, end) = closing(lines, i, range.end)?;
                if evaluate(rest, vars).map_err(at)?.holds() {
                    block(lines, i + 1..other.unwrap_or(end), vars, depth, out)?;
                } else if let Some(other) = other {
                    block(lines, other + 1..end, vars, depth, out)?;
                }
                i = end + 1;
            }
            "set" => {
                let (name, value) = rest.split_once('=').ok_or_else(|| at("//!set NAME = EXPRESSION".into()))?;
                let value = evaluate(value, vars).map_err(at)?;
                vars.set(name.trim(), value);
                i += 1;
            }
            "use" => {
                snippet(rest, vars, depth, out).map_err(at)?;
                i += 1;
            }
            _ => return Err(at(format!("`//!{word}` is no directive"))),
        }
    }
    Ok(())
}

fn int(text: &str, vars: &Vars) -> Result<i64, String> {
    match evaluate(text, vars)? {
        Value::Int(i) => Ok(i),
        Value::Text(t) => Err(format!("`{t}` is no number")),
    }
}

/// `NAME key=text key=text`: the snippet with these variables besides the user's own, in a scope of its own so that its registers and
/// labels are. The texts are substituted first, so `x=%f@n@` works.
fn snippet(text: &str, vars: &Vars, depth: usize, out: &mut String) -> Result<(), String> {
    if depth >= DEPTH {
        return Err("snippets use each other too deeply".into());
    }
    let mut line = String::new();
    substitute(text, vars, &mut line)?;
    let mut words = line.split_whitespace();
    let name = words.next().ok_or("//!use NAME key=text …")?;
    let text = shared::snippet(name).ok_or_else(|| format!("there is no snippet `{name}`"))?;
    let mut inner = vars.clone();
    for word in words {
        let (key, value) = word.split_once('=').ok_or_else(|| format!("`{word}` is not key=text"))?;
        inner.set(key, value.parse().map_or_else(|_| Value::Text(value.to_string()), Value::Int));
    }
    let lines: Vec<&str> = text.lines().collect();
    out.push_str("{\n");
    block(&lines, 0..lines.len(), &mut inner, depth + 1, out).map_err(|why| format!("ptx/shared/{name}.ptx: {why}"))?;
    out.push_str("}\n");
    Ok(())
}

/// A line with every `@expression@` replaced by its value. A guard, `@%p` or `@!%p`, is PTX's own use of the sign and stays.
fn substitute(line: &str, vars: &Vars, out: &mut String) -> Result<(), String> {
    // Comments of the template say why; the expansion is for the assembler.
    let mut rest = line.split("//").next().unwrap_or_default().trim_end();
    if rest.is_empty() {
        return Ok(());
    }
    while let Some(at) = rest.find('@') {
        let (before, after) = (&rest[..at], &rest[at + 1..]);
        out.push_str(before);
        if after.starts_with(['%', '!']) {
            out.push('@');
            rest = after;
            continue;
        }
        let end = after.find('@').ok_or_else(|| format!("`@{after}` has no closing @"))?;
        out.push_str(&evaluate(&after[..end], vars)?.to_string());
        rest = &after[end + 1..];
    }
    out.push_str(rest);
    out.push('\n');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expand(text: &'static str, vars: &Vars) -> Result<String, String> {
        Template { name: "test", text }.try_expand(vars)
    }

    #[test]
    fn loops_conditions_and_substitutions() {
        let text = "//!for n 0 N\nadd.@T@ %f@n@, %f@n+N@; // why\n//!if n == 0\nfirst;\n//!else\n@%p@n@ bra L;\n//!end\n//!end\n//!set M = N*2\n@M@\n";
        let vars = Vars::new().int("N", 2).text("T", "f32");
        assert_eq!(expand(text, &vars).unwrap(), "add.f32 %f0, %f2;\nfirst;\nadd.f32 %f1, %f3;\n@%p1 bra L;\n4\n");
    }

    #[test]
    fn faults_name_the_line() {
        let vars = Vars::new().int("N", 2);
        let cases = [
            ("a\n//!if N", "line 2: no //!end"),
            ("//!bad", "line 1: `//!bad`"),
            ("x @y", "line 1: `@y`"),
            ("//!use nothing", "no snippet"),
            ("//!for n 0 M\n//!end", "`M` is no number"),
        ];
        for (text, want) in cases {
            let why = expand(text, &vars).unwrap_err();
            assert!(why.contains(want), "{text}: {why}");
        }
    }
}

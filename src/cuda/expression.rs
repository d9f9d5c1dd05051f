//! The expressions of PTX templates: whole numbers, words, names of variables, arithmetic and comparisons.

use std::collections::BTreeMap;
use std::fmt;

/// What an expression is worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A whole number; 0 is false.
    Int(i64),
    /// A word, such as the name of a type.
    Text(String),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Int(i) => write!(f, "{i}"),
            Value::Text(t) => f.write_str(t),
        }
    }
}

impl Value {
    /// Whether a condition of this value holds.
    pub fn holds(&self) -> bool {
        !matches!(self, Value::Int(0)) && !matches!(self, Value::Text(t) if t.is_empty())
    }
}

/// Variables by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vars(BTreeMap<String, Value>);

impl Vars {
    /// None.
    pub fn new() -> Self {
        Vars::default()
    }

    /// These and a number.
    pub fn int(mut self, name: &str, value: impl TryInto<i64>) -> Self {
        let Ok(value) = value.try_into() else { panic!("`{name}` is no 64-bit number") };
        self.set(name, Value::Int(value));
        self
    }

    /// These and a number that is 0 or 1.
    pub fn flag(self, name: &str, value: bool) -> Self {
        self.int(name, i64::from(value))
    }

    /// These and a word.
    pub fn text(mut self, name: &str, value: impl Into<String>) -> Self {
        self.set(name, Value::Text(value.into()));
        self
    }

    /// Sets one.
    pub fn set(&mut self, name: &str, value: Value) {
        self.0.insert(name.to_string(), value);
    }

    /// One by name.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }
}

/// The operators by how tightly they bind, loosest first; within a level from left to right.
const LEVELS: [&[&str]; 5] = [&["||"], &["&&"], &["==", "!=", "<=", ">=", "<", ">"], &["+", "-"], &["*", "/", "%"]];

struct Reader<'a> {
    rest: &'a str,
    vars: &'a Vars,
}

/// The value of `text`.
///
/// A name that is no variable is a word. `a / b` and `a % b` round down. Identifiers may hold letters, digits, `_`, `.`.
pub fn evaluate(text: &str, vars: &Vars) -> Result<Value, String> {
    let mut reader = Reader { rest: text.trim(), vars };
    let value = reader.level(0)?;
    if reader.rest.is_empty() { Ok(value) } else { Err(format!("`{}` is left over of `{text}`", reader.rest)) }
}

fn number(value: Value) -> Result<i64, String> {
    match value {
        Value::Int(i) => Ok(i),
        Value::Text(t) => Err(format!("`{t}` is no number and no variable")),
    }
}

fn apply(left: Value, op: &str, right: Value) -> Result<Value, String> {
    let truth = |b: bool| Ok(Value::Int(i64::from(b)));
    match op {
        "==" => return truth(left == right),
        "!=" => return truth(left != right),
        "&&" => return truth(left.holds() && right.holds()),
        "||" => return truth(left.holds() || right.holds()),
        _ => {}
    }
    let (a, b) = (number(left)?, number(right)?);
    match op {
        "<" => truth(a < b),
        ">" => truth(a > b),
        "<=" => truth(a <= b),
        ">=" => truth(a >= b),
        "+" => Ok(Value::Int(a + b)),
        "-" => Ok(Value::Int(a - b)),
        "*" => Ok(Value::Int(a * b)),
        _ if b == 0 => Err("a division by 0".into()),
        "/" => Ok(Value::Int(a.div_euclid(b))),
        _ => Ok(Value::Int(a.rem_euclid(b))),
    }
}

impl Reader<'_> {
    fn take(&mut self, token: &str) -> bool {
        let Some(rest) = self.rest.strip_prefix(token) else { return false };
        self.rest = rest.trim_start();
        true
    }

    fn level(&mut self, level: usize) -> Result<Value, String> {
        let Some(ops) = LEVELS.get(level) else { return self.operand() };
        let mut value = self.level(level + 1)?;
        while let Some(op) = ops.iter().copied().find(|op| self.take(op)) {
            let right = self.level(level + 1)?;
            value = apply(value, op, right)?;
        }
        Ok(value)
    }

    fn operand(&mut self) -> Result<Value, String> {
        if self.take("(") {
            let value = self.level(0)?;
            return if self.take(")") { Ok(value) } else { Err("a `)` is missing".into()) };
        }
        if self.take("!") {
            return Ok(Value::Int(i64::from(!self.operand()?.holds())));
        }
        if self.take("-") {
            return Ok(Value::Int(-number(self.operand()?)?));
        }
        let end = self.rest.find(|c: char| !c.is_alphanumeric() && c != '_' && c != '.').unwrap_or(self.rest.len());
        let word = &self.rest[..end];
        if word.is_empty() {
            return Err(format!("an operand is missing before `{}`", self.rest));
        }
        self.rest = self.rest[end..].trim_start();
        if let Ok(number) = word.parse() {
            return Ok(Value::Int(number));
        }
        Ok(self.vars.get(word).cloned().unwrap_or_else(|| Value::Text(word.to_string())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        let vars = Vars::new().int("N", 16).text("T", "bf16").flag("has_z", true).int(".u", 8);
        let cases = [
            ("1 + 2 * 3", "7"),
            ("(1 + 2) * 3", "9"),
            ("N/2-1", "7"),
            ("N % 5", "1"),
            ("7 - 2 - 1", "4"),
            ("T == bf16 && !(N > 16)", "1"),
            ("T != bf16 || has_z", "1"),
            ("!has_z", "0"),
            (".u + 8", "16"),
            ("-N", "-16"),
            ("T", "bf16"),
        ];
        for (text, want) in cases {
            assert_eq!(evaluate(text, &vars).map(|v| v.to_string()).as_deref(), Ok(want), "{text}");
        }
        for text in ["", "1 +", "(1", "1 2", "M + 1", "1 / 0"] {
            assert!(evaluate(text, &vars).is_err(), "{text}");
        }
    }
}

//! Words, numbers and punctuation of PTX text, each with its line.

/// A number as written; what bits it stands for depends on the type of the instruction that uses it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Num {
    Int(i128),
    /// `0f…`: the bits of an f32.
    F32(u32),
    /// `0d…`: the bits of an f64.
    F64(u64),
    /// A decimal with a point or an exponent.
    Dec(f64),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Tok {
    /// Names, directives (`.reg`), opcodes with their suffixes (`ld.global.f32`), special registers (`%tid.x`).
    Word(String),
    Num(Num),
    Punct(char),
    Text(String),
}

#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub(crate) tok: Tok,
    pub(crate) line: u32,
}

/// Splits a module's text; the error carries its line.
pub(crate) fn tokens(text: &str) -> Result<Vec<Token>, (u32, String)> {
    let s: Vec<char> = text.chars().collect();
    let mut out = Vec::new();
    let mut line = 1;
    let mut i = 0;
    while i < s.len() {
        let c = s[i];
        let next = s.get(i + 1).copied().unwrap_or(' ');
        if c == '\n' {
            line += 1;
            i += 1;
        } else if c.is_whitespace() {
            i += 1;
        } else if c == '/' && next == '/' {
            while i < s.len() && s[i] != '\n' {
                i += 1;
            }
        } else if c == '/' && next == '*' {
            let start = line;
            i += 2;
            while i + 1 < s.len() && !(s[i] == '*' && s[i + 1] == '/') {
                line += (s[i] == '\n') as u32;
                i += 1;
            }
            if i + 1 >= s.len() {
                return Err((start, "comment without an end".into()));
            }
            i += 2;
        } else if c == '"' {
            let from = i + 1;
            i += 1;
            while i < s.len() && s[i] != '"' {
                i += 1;
            }
            out.push(Token { tok: Tok::Text(s[from..i.min(s.len())].iter().collect()), line });
            i += 1;
        } else if c.is_ascii_digit() {
            let from = i;
            i = number_end(&s, i);
            let word: String = s[from..i].iter().collect();
            let num = number(&word).ok_or_else(|| (line, format!("'{word}' is not a number")))?;
            out.push(Token { tok: Tok::Num(num), line });
        } else if word_char(c) {
            let from = i;
            while i < s.len() && (word_char(s[i]) || s[i].is_ascii_digit() || pair(&s, i)) {
                i += if pair(&s, i) { 2 } else { 1 };
            }
            out.push(Token { tok: Tok::Word(s[from..i].iter().collect()), line });
        } else {
            out.push(Token { tok: Tok::Punct(c), line });
            i += 1;
        }
    }
    Ok(out)
}

fn word_char(c: char) -> bool {
    c.is_ascii_alphabetic() || matches!(c, '_' | '$' | '%' | '.')
}

/// Two colons inside a word, as in `L1::no_allocate`; one colon ends a label.
fn pair(s: &[char], i: usize) -> bool {
    s[i] == ':' && s.get(i + 1) == Some(&':')
}

fn number_end(s: &[char], from: usize) -> usize {
    let prefixed = s[from] == '0' && matches!(s.get(from + 1), Some('x' | 'X' | 'f' | 'F' | 'd' | 'D' | 'b' | 'B'));
    let mut i = from;
    while i < s.len() {
        let exponent_sign = !prefixed && matches!(s[i], '+' | '-') && matches!(s[i - 1], 'e' | 'E');
        if !(s[i].is_ascii_alphanumeric() || s[i] == '.' || exponent_sign) {
            break;
        }
        i += 1;
    }
    i
}

fn number(word: &str) -> Option<Num> {
    let lower = word.to_ascii_lowercase();
    if let Some(h) = lower.strip_prefix("0f") {
        return (h.len() == 8).then(|| u32::from_str_radix(h, 16).ok().map(Num::F32))?;
    }
    if let Some(h) = lower.strip_prefix("0d") {
        return (h.len() == 16).then(|| u64::from_str_radix(h, 16).ok().map(Num::F64))?;
    }
    let int = |digits: &str, radix| u64::from_str_radix(digits.trim_end_matches('u'), radix).ok().map(|v| Num::Int(v as i128));
    if let Some(h) = lower.strip_prefix("0x") {
        return int(h, 16);
    }
    if let Some(b) = lower.strip_prefix("0b") {
        return int(b, 2);
    }
    if lower.contains('.') || lower.contains('e') {
        return lower.parse().ok().map(Num::Dec);
    }
    if lower.len() > 1 && lower.starts_with('0') {
        return int(&lower[1..], 8);
    }
    int(&lower, 10)
}

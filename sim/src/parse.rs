//! A module's structure: directives, declarations, kernels and their statements. Instructions themselves are decoded elsewhere.

use crate::decode;
use crate::lex::{Num, Tok, Token, tokens};
use crate::memory::Globals;
use crate::ops::Entry;
use crate::scope::{Arg, Func, Outer, Sym};
use crate::types::Ty;

/// A parsed PTX module.
pub struct Module {
    pub(crate) entries: Vec<Entry>,
    pub(crate) globals: Globals,
    pub(crate) lines: Vec<String>,
}

impl Module {
    /// Parses and decodes a module; the error names the line's number and text.
    pub fn parse(text: &str) -> Result<Module, String> {
        let lines: Vec<String> = text.lines().map(|l| l.trim().to_string()).collect();
        let at = |(line, what): (u32, String)| {
            let text = lines.get((line as usize).wrapping_sub(1)).map_or("", |l| l.as_str());
            format!("line {line}: {what}\n    {text}")
        };
        let tokens = tokens(text).map_err(at)?;
        let mut p = Parser { t: &tokens, i: 0 };
        let (mut outer, mut globals, mut entries) = (Outer::default(), Globals::default(), Vec::new());
        while p.i < tokens.len() {
            let line = p.line();
            p.item(&mut outer, &mut globals, &mut entries).map_err(|e| at(e.at(line)))?;
        }
        Ok(Module { entries, globals, lines })
    }

    /// The index of a kernel.
    pub fn entry(&self, name: &str) -> Option<usize> {
        self.entries.iter().position(|e| e.name == name)
    }

    /// The names of all kernels, by index.
    pub fn entries(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|e| e.name.as_str())
    }

    /// Bytes of shared memory that a kernel declares, beyond the dynamic ones.
    pub fn static_shared(&self, entry: usize) -> usize {
        self.entries[entry].shared
    }

    /// Bytes of parameters that a kernel declares.
    pub fn param_bytes(&self, entry: usize) -> usize {
        self.entries[entry].params
    }
}

/// An error with a line of its own, or with none yet.
pub(crate) struct Bad(Option<u32>, String);

impl Bad {
    fn at(self, line: u32) -> (u32, String) {
        (self.0.unwrap_or(line), self.1)
    }
}

impl From<String> for Bad {
    fn from(s: String) -> Bad {
        Bad(None, s)
    }
}

impl From<&str> for Bad {
    fn from(s: &str) -> Bad {
        Bad(None, s.into())
    }
}

type Res<T = ()> = Result<T, Bad>;

struct Parser<'t> {
    t: &'t [Token],
    i: usize,
}

/// A variable as declared.
struct Var {
    name: String,
    align: usize,
    bytes: usize,
    /// Declared as `name[]`.
    open: bool,
    init: Option<Vec<u8>>,
}

impl Parser<'_> {
    fn line(&self) -> u32 {
        self.t.get(self.i.min(self.t.len().saturating_sub(1))).map_or(0, |t| t.line)
    }

    fn peek(&self) -> Option<&Tok> {
        self.t.get(self.i).map(|t| &t.tok)
    }

    fn is(&self, c: char) -> bool {
        self.peek() == Some(&Tok::Punct(c))
    }

    fn eat(&mut self, c: char) -> bool {
        let yes = self.is(c);
        self.i += yes as usize;
        yes
    }

    fn expect(&mut self, c: char) -> Res {
        if self.eat(c) {
            return Ok(());
        }
        // A missing semicolon is noticed at the next line but belongs to the previous one.
        let line = self.t.get(self.i.wrapping_sub(1)).map(|t| t.line);
        Err(Bad(line, format!("'{c}' is expected before {:?}", self.peek())))
    }

    fn word(&mut self) -> Res<String> {
        match self.peek() {
            Some(Tok::Word(w)) => {
                let w = w.clone();
                self.i += 1;
                Ok(w)
            }
            other => Err(format!("a name is expected, not {other:?}").into()),
        }
    }

    fn next_word_is(&self, w: &str) -> bool {
        matches!(self.peek(), Some(Tok::Word(x)) if x == w)
    }

    /// A constant expression of integers, or one float.
    fn number(&mut self, level: u32) -> Res<Num> {
        let mut left = if self.eat('-') {
            match self.number(9)? {
                Num::Int(v) => Num::Int(-v),
                Num::F32(b) => Num::F32(b ^ 1 << 31),
                Num::F64(b) => Num::F64(b ^ 1 << 63),
                Num::Dec(v) => Num::Dec(-v),
            }
        } else if self.eat('~') {
            match self.number(9)? {
                Num::Int(v) => Num::Int(!v),
                _ => return Err("~ needs an integer".into()),
            }
        } else if self.eat('(') {
            let n = self.number(0)?;
            self.expect(')')?;
            n
        } else {
            match self.peek() {
                Some(Tok::Num(n)) => {
                    let n = *n;
                    self.i += 1;
                    n
                }
                other => return Err(format!("a number is expected, not {other:?}").into()),
            }
        };
        loop {
            let (c, next) = match (self.peek(), self.t.get(self.i + 1).map(|t| &t.tok)) {
                (Some(Tok::Punct(c)), n) => (*c, n),
                _ => return Ok(left),
            };
            let double = next == Some(&Tok::Punct(c));
            let (own, width) = match c {
                '*' | '/' | '%' => (5, 1),
                '+' | '-' => (4, 1),
                '<' | '>' if double => (3, 2),
                '&' if !double => (2, 1),
                _ => return Ok(left),
            };
            if own <= level {
                return Ok(left);
            }
            self.i += width;
            let (Num::Int(a), Num::Int(b)) = (left, self.number(own)?) else {
                return Err("constant expressions are of integers only".into());
            };
            left = Num::Int(match c {
                '*' => a * b,
                '/' if b != 0 => a / b,
                '%' if b != 0 => a % b,
                '+' => a + b,
                '-' => a - b,
                '<' => a << b,
                '>' => a >> b,
                '&' => a & b,
                _ => return Err("division by zero".into()),
            });
        }
    }

    fn int(&mut self) -> Res<i64> {
        match self.number(0)? {
            Num::Int(v) => Ok(v as i64),
            n => Err(format!("an integer is expected, not {n:?}").into()),
        }
    }

    fn item(&mut self, outer: &mut Outer, globals: &mut Globals, entries: &mut Vec<Entry>) -> Res {
        if self.eat(';') {
            return Ok(());
        }
        let line = self.line();
        let word = self.word()?;
        match word.as_str() {
            ".version" => {
                self.number(0)?;
            }
            ".target" => {
                let target = self.word()?;
                let digits: String = target.chars().filter(|c| c.is_ascii_digit()).collect();
                outer.target = digits.parse().map_err(|_| format!("target {target} is not known"))?;
                while self.eat(',') {
                    self.word()?;
                }
            }
            ".address_size" => {
                if self.int()? != 64 {
                    return Err("only 64-bit addresses are supported".into());
                }
            }
            ".visible" | ".weak" | ".extern" | ".common" => {}
            ".loc" | ".file" => self.skip_line(line),
            ".pragma" => self.skip_statement(),
            ".entry" => entries.push(self.entry(outer, globals)?),
            ".shared" => {
                for v in self.vars()? {
                    let sym = if v.open {
                        Sym::Dynamic
                    } else {
                        outer.shared.push((v.bytes, v.align));
                        Sym::ModuleShared(outer.shared.len() - 1)
                    };
                    outer.names.insert(v.name, sym);
                }
            }
            ".global" | ".const" => {
                for v in self.vars()? {
                    let sym = variable(globals, &v, word == ".const");
                    outer.names.insert(v.name, sym);
                }
            }
            _ => return Err(format!("{word} is not supported here").into()),
        }
        Ok(())
    }

    fn skip_line(&mut self, line: u32) {
        while self.i < self.t.len() && self.line() == line {
            self.i += 1;
        }
    }

    fn skip_statement(&mut self) {
        while self.i < self.t.len() && !self.eat(';') {
            self.i += 1;
        }
    }

    /// `[.align N] [.v2|.v4] .type name[dims] [= init], …;` after the state space.
    fn vars(&mut self) -> Res<Vec<Var>> {
        let (mut align, mut lanes) = (0, 1);
        let ty = loop {
            let w = self.word()?;
            match w.as_str() {
                ".align" => align = self.int()? as usize,
                ".v2" => lanes = 2,
                ".v4" => lanes = 4,
                _ => match w.strip_prefix('.').and_then(Ty::parse) {
                    Some(t) if t != Ty::Pred => break t,
                    _ => return Err(format!("{w} is not a variable's type").into()),
                },
            }
        };
        let mut out = Vec::new();
        loop {
            let name = self.word()?;
            let (mut count, mut open) = (lanes, false);
            while self.eat('[') {
                if self.eat(']') {
                    open = true;
                    continue;
                }
                count *= self.int()? as usize;
                self.expect(']')?;
            }
            let init = if self.eat('=') {
                let mut bytes = Vec::new();
                self.init(ty, &mut bytes)?;
                Some(bytes)
            } else {
                None
            };
            let mut size = count * ty.bytes();
            if let Some(init) = &init {
                if open {
                    size = init.len();
                }
                if init.len() > size {
                    return Err(format!("{name} has more initial values than room").into());
                }
            }
            let align = if align == 0 { ty.bytes() * lanes } else { align };
            out.push(Var { name, align, bytes: size, open: open && init.is_none(), init });
            if !self.eat(',') {
                self.expect(';')?;
                return Ok(out);
            }
        }
    }

    fn init(&mut self, ty: Ty, out: &mut Vec<u8>) -> Res {
        if self.eat('{') {
            while !self.eat('}') {
                self.init(ty, out)?;
                self.eat(',');
            }
            return Ok(());
        }
        let bits = match (self.number(0)?, ty) {
            (Num::Int(v), t) if !t.float() || t.bytes() == 2 => v as u64,
            (Num::F32(b), Ty::F32 | Ty::B32 | Ty::U32) => b as u64,
            (Num::F64(b), Ty::F64 | Ty::B64 | Ty::U64) => b,
            (Num::Dec(v), Ty::F32) => (v as f32).to_bits() as u64,
            (Num::Dec(v), Ty::F64) => v.to_bits(),
            (n, t) => return Err(format!("{n:?} cannot initialise a variable of type {t:?}").into()),
        };
        out.extend_from_slice(&bits.to_le_bytes()[..ty.bytes()]);
        Ok(())
    }

    fn entry(&mut self, outer: &Outer, globals: &mut Globals) -> Res<Entry> {
        let name = self.word()?;
        let mut func = Func::new(outer, &name);
        if self.eat('(') {
            while !self.eat(')') {
                self.param(&mut func)?;
                self.eat(',');
            }
        }
        while !self.is('{') {
            let w = self.word()?;
            match w.as_str() {
                ".maxntid" | ".reqntid" | ".minnctapersm" | ".maxnctapersm" | ".maxnreg" => {
                    let mut n = [1u32; 3];
                    n[0] = self.int()? as u32;
                    for n in &mut n[1..] {
                        if self.eat(',') {
                            *n = self.int()? as u32;
                        }
                    }
                    match w.as_str() {
                        ".maxntid" => func.entry.maxntid = Some(n.iter().product()),
                        ".reqntid" => func.entry.reqntid = Some(n),
                        _ => {}
                    }
                }
                ".pragma" => self.skip_statement(),
                _ => return Err(format!("{w} is not supported here").into()),
            }
        }
        self.expect('{')?;
        loop {
            let line = self.line();
            func.line = line;
            match self.statement(&mut func, globals) {
                Ok(true) => {}
                Ok(false) => break,
                Err(e) => {
                    let (line, what) = e.at(line);
                    return Err(Bad(Some(line), what));
                }
            }
        }
        func.finish().map_err(|(line, what)| Bad(Some(line), what))
    }

    fn param(&mut self, func: &mut Func) -> Res {
        let w = self.word()?;
        if w != ".param" {
            return Err(format!("{w}: .param is expected").into());
        }
        let (mut align, mut ty) = (0, None);
        let name = loop {
            let w = self.word()?;
            match w.as_str() {
                ".align" => align = self.int()? as usize,
                ".ptr" | ".global" | ".shared" | ".const" => {}
                _ if w.starts_with('.') => ty = Some(Ty::parse(&w[1..]).ok_or(format!("{w} is not a type"))?),
                _ => break w,
            }
        };
        let ty = ty.ok_or("the parameter has no type")?;
        let mut bytes = ty.bytes();
        while self.eat('[') {
            bytes *= self.int()? as usize;
            self.expect(']')?;
        }
        let align = if align == 0 { ty.bytes() } else { align };
        let at = func.entry.params.next_multiple_of(align.max(1));
        func.entry.params = at + bytes;
        Ok(func.declare(&name, Sym::Param(at))?)
    }

    /// One statement; false at the kernel's closing brace.
    fn statement(&mut self, func: &mut Func, globals: &mut Globals) -> Res<bool> {
        if self.eat('{') {
            func.open();
            return Ok(true);
        }
        if self.eat('}') {
            return Ok(func.close());
        }
        if self.eat(';') {
            return Ok(true);
        }
        if self.eat('@') {
            let neg = self.eat('!');
            let p = Arg::Word(self.word()?);
            func.guard = Some(func.pred(&if neg { Arg::Not(Box::new(p)) } else { p })?);
            self.instruction(func)?;
            return Ok(true);
        }
        func.guard = None;
        if matches!(self.peek(), Some(Tok::Word(w)) if w.starts_with('.')) {
            self.directive(func, globals)?;
            return Ok(true);
        }
        if self.t.get(self.i + 1).map(|t| &t.tok) == Some(&Tok::Punct(':')) {
            let name = self.word()?;
            self.i += 1;
            if self.next_word_is(".branchtargets") {
                self.i += 1;
                let mut list = vec![self.word()?];
                while self.eat(',') {
                    list.push(self.word()?);
                }
                self.expect(';')?;
                func.tables.insert(name, list);
                return Ok(true);
            }
            func.label(&name)?;
            return Ok(true);
        }
        self.instruction(func)?;
        Ok(true)
    }

    fn directive(&mut self, func: &mut Func, globals: &mut Globals) -> Res {
        let line = self.line();
        let w = self.word()?;
        match w.as_str() {
            ".reg" => self.registers(func)?,
            ".loc" | ".file" => self.skip_line(line),
            ".pragma" => self.skip_statement(),
            ".extern" => {}
            ".shared" | ".local" => {
                for v in self.vars()? {
                    let sym = if v.open {
                        Sym::Dynamic
                    } else if w == ".shared" {
                        Sym::Shared(func.place_shared(v.bytes, v.align))
                    } else {
                        let at = func.entry.local.next_multiple_of(v.align.max(1));
                        func.entry.local = at + v.bytes;
                        Sym::Local(at)
                    };
                    func.declare(&v.name, sym)?;
                }
            }
            ".global" | ".const" => {
                for v in self.vars()? {
                    let sym = variable(globals, &v, w == ".const");
                    func.declare(&v.name, sym)?;
                }
            }
            _ => return Err(format!("{w} is not supported here").into()),
        }
        Ok(())
    }

    fn registers(&mut self, func: &mut Func) -> Res {
        let w = self.word()?;
        let ty =
            w.strip_prefix('.').and_then(Ty::parse).filter(|t| !matches!(t, Ty::B8 | Ty::U8 | Ty::S8 | Ty::Tf32 | Ty::Bf16 | Ty::Bf16x2));
        let ty = ty.ok_or(format!("{w} is not a register's type"))?;
        loop {
            let name = self.word()?;
            if self.eat('<') {
                let n = self.int()?;
                self.expect('>')?;
                for k in 0..n {
                    func.declare_reg(&format!("{name}{k}"), ty)?;
                }
            } else {
                func.declare_reg(&name, ty)?;
            }
            if !self.eat(',') {
                return self.expect(';');
            }
        }
    }

    fn instruction(&mut self, func: &mut Func) -> Res {
        func.line = self.line();
        let opcode = self.word()?;
        let mut args = Vec::new();
        if !self.is(';') {
            args.push(self.arg()?);
            while self.eat(',') {
                args.push(self.arg()?);
            }
        }
        self.expect(';')?;
        decode::instruction(func, &opcode, &args).map_err(|e| Bad(Some(func.line), e))
    }

    fn arg(&mut self) -> Res<Arg> {
        if self.eat('!') {
            return Ok(Arg::Not(Box::new(self.arg()?)));
        }
        if self.eat('{') {
            let mut list = vec![self.arg()?];
            while self.eat(',') {
                list.push(self.arg()?);
            }
            self.expect('}')?;
            return Ok(Arg::List(list));
        }
        if self.eat('[') {
            let base = if matches!(self.peek(), Some(Tok::Word(_))) { Arg::Word(self.word()?) } else { Arg::Num(self.number(0)?) };
            let off = self.offset()?;
            self.expect(']')?;
            return Ok(Arg::Addr(Box::new(base), off));
        }
        if !matches!(self.peek(), Some(Tok::Word(_))) {
            return Ok(Arg::Num(self.number(0)?));
        }
        let w = self.word()?;
        if self.eat('|') {
            return Ok(Arg::Or(Box::new(Arg::Word(w)), Box::new(Arg::Word(self.word()?))));
        }
        match self.offset()? {
            0 => Ok(Arg::Word(w)),
            off => Ok(Arg::Offset(w, off)),
        }
    }

    /// `+ expression` or `- expression`, or nothing.
    fn offset(&mut self) -> Res<i64> {
        if self.eat('+') {
            self.int()
        } else if self.eat('-') {
            Ok(-self.int()?)
        } else {
            Ok(0)
        }
    }
}

/// Makes a module variable of a declaration.
fn variable(globals: &mut Globals, v: &Var, constant: bool) -> Sym {
    let mut bytes = v.init.clone().unwrap_or_default();
    bytes.resize(v.bytes, 0);
    let addr = globals.add(&bytes, constant);
    if constant { Sym::Const(addr) } else { Sym::Global(addr) }
}

//! From an opcode and its operands to a decoded instruction. Whatever is not understood, down to the last suffix, is an error.

mod arith;
mod logic;
mod mem;
mod sync;

pub(crate) use mem::{LOCAL_WINDOW, SHARED_WINDOW, WINDOW};
pub(crate) use sync::mma_registers;

use crate::float::Round;
use crate::scope::{Arg, Func};
use crate::types::Ty;

pub(crate) type Res<T = ()> = Result<T, String>;

/// An opcode's suffixes, each to be taken once.
pub(crate) struct Mods<'a> {
    list: Vec<&'a str>,
    taken: Vec<bool>,
}

impl<'a> Mods<'a> {
    fn new(list: Vec<&'a str>) -> Self {
        Mods { taken: vec![false; list.len()], list }
    }

    /// Takes a suffix if it is there.
    pub(crate) fn take(&mut self, name: &str) -> bool {
        self.take_any(&[name]).is_some()
    }

    /// Takes the first suffix that is one of these.
    pub(crate) fn take_any(&mut self, names: &[&str]) -> Option<&'a str> {
        let i = (0..self.list.len()).find(|&i| !self.taken[i] && names.contains(&self.list[i]))?;
        self.taken[i] = true;
        Some(self.list[i])
    }

    /// Takes the next suffix that is a type.
    pub(crate) fn ty(&mut self) -> Res<Ty> {
        for i in 0..self.list.len() {
            if !self.taken[i]
                && let Some(t) = Ty::parse(self.list[i])
            {
                self.taken[i] = true;
                return Ok(t);
            }
        }
        Err("a type is missing".into())
    }

    /// Takes the next suffix whatever it is.
    pub(crate) fn any(&mut self) -> Res<&'a str> {
        let i = (0..self.list.len()).find(|&i| !self.taken[i]).ok_or("a suffix is missing")?;
        self.taken[i] = true;
        Ok(self.list[i])
    }

    /// A rounding of float results.
    pub(crate) fn round(&mut self) -> Option<Round> {
        Some(match self.take_any(&["rn", "rz", "rm", "rp", "rna"])? {
            "rn" => Round::Near,
            "rz" => Round::Zero,
            "rm" => Round::Down,
            "rp" => Round::Up,
            _ => Round::Away,
        })
    }

    /// Every suffix must have been taken.
    pub(crate) fn done(&self) -> Res {
        match self.taken.iter().position(|t| !t) {
            Some(i) => Err(format!("suffix .{} is not supported here", self.list[i])),
            None => Ok(()),
        }
    }
}

/// The operands, if there are exactly `N`.
pub(crate) fn exactly<const N: usize>(args: &[Arg]) -> Res<&[Arg; N]> {
    args.try_into().map_err(|_| format!("{N} operands are expected, not {}", args.len()))
}

/// Decodes one instruction into the kernel.
pub(crate) fn instruction(f: &mut Func, opcode: &str, args: &[Arg]) -> Res {
    let mut parts = opcode.split('.');
    let name = parts.next().unwrap_or("");
    let mut m = Mods::new(parts.collect());
    let m = &mut m;
    match name {
        "add" | "sub" | "mul" | "mad" | "div" | "rem" | "min" | "max" | "fma" | "mul24" | "mad24" | "sad" | "addc" | "subc" | "madc"
        | "copysign" => arith::binary(f, name, m, args),
        "neg" | "abs" | "rcp" | "sqrt" | "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh" => arith::unary(f, name, m, args),
        "cvt" => arith::cvt(f, m, args),
        "and" | "or" | "xor" | "not" | "cnot" | "shl" | "shr" | "popc" | "clz" | "brev" | "bfind" | "bfe" | "bfi" | "prmt" | "shf"
        | "lop3" => logic::bits(f, name, m, args),
        "setp" => logic::setp(f, m, args),
        "set" => logic::set(f, m, args),
        "testp" => logic::testp(f, m, args),
        "selp" | "slct" => logic::select(f, name, m, args),
        "mov" => logic::mov(f, m, args),
        "cvta" => mem::cvta(f, m, args),
        "ld" | "ldu" => mem::ld(f, m, args),
        "st" => mem::st(f, m, args),
        "atom" | "red" => mem::atom(f, name == "red", m, args),
        "cp" => mem::cp_async(f, m, args),
        "prefetch" | "prefetchu" | "membar" | "fence" | "nanosleep" | "applypriority" | "discard" => sync::nothing(f),
        "ldmatrix" => mem::ldmatrix(f, m, args),
        "mma" => sync::mma(f, m, args),
        "bra" | "brx" | "ret" | "exit" | "trap" => sync::control(f, name, m, args),
        "bar" | "barrier" => sync::barrier(f, m, args),
        "shfl" => sync::shfl(f, m, args),
        "vote" => sync::vote(f, m, args),
        "match" => sync::matching(f, m, args),
        "redux" => sync::redux(f, m, args),
        "activemask" => sync::activemask(f, m, args),
        _ => Err(format!("instruction {name} is not supported")),
    }
}

//! Names inside a kernel: registers, variables, labels, and the slots that operands resolve to.

use crate::lex::Num;
use crate::ops::{Entry, Guard, Inst, Op, Slot, Space, Special};
use crate::types::Ty;
use std::collections::HashMap;

/// What a name stands for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sym {
    Reg {
        slot: Slot,
        ty: Ty,
    },
    Pred(u32),
    /// A `.shared` variable of the kernel, at this offset.
    Shared(usize),
    /// The module's n-th `.shared` variable, given an offset in each kernel that uses it.
    ModuleShared(usize),
    /// `.extern .shared`: all dynamic shared memory.
    Dynamic,
    /// A `.global` or `.const` variable's address.
    Global(u64),
    Const(u64),
    Local(usize),
    Param(usize),
}

/// An operand as written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Arg {
    Word(String),
    Num(Num),
    /// A variable's name plus a constant.
    Offset(String, i64),
    Addr(Box<Arg>, i64),
    List(Vec<Arg>),
    Not(Box<Arg>),
    Or(Box<Arg>, Box<Arg>),
}

/// The module's names that kernels may use.
#[derive(Default)]
pub(crate) struct Outer {
    pub(crate) names: HashMap<String, Sym>,
    /// Size and alignment of the module's `.shared` variables.
    pub(crate) shared: Vec<(usize, usize)>,
    /// The number in `.target sm_NN`.
    pub(crate) target: u32,
}

/// A branch whose label was not yet known.
struct Fixup {
    inst: usize,
    case: usize,
    scope: usize,
    label: String,
    line: u32,
}

/// A kernel while it is decoded.
pub(crate) struct Func<'m> {
    pub(crate) outer: &'m Outer,
    pub(crate) entry: Entry,
    scopes: Vec<(usize, HashMap<String, Sym>)>,
    parents: Vec<usize>,
    placed: HashMap<usize, usize>,
    constants: HashMap<u64, Slot>,
    specials: HashMap<Special, Slot>,
    labels: HashMap<(usize, String), u32>,
    /// Lists of labels for `brx.idx`.
    pub(crate) tables: HashMap<String, Vec<String>>,
    fixups: Vec<Fixup>,
    pub(crate) line: u32,
    pub(crate) guard: Option<Guard>,
}

type Res<T> = Result<T, String>;

impl<'m> Func<'m> {
    pub(crate) fn new(outer: &'m Outer, name: &str) -> Self {
        Func {
            outer,
            entry: Entry { name: name.into(), ..Default::default() },
            scopes: vec![(0, HashMap::new())],
            parents: vec![0],
            placed: HashMap::new(),
            constants: HashMap::new(),
            specials: HashMap::new(),
            labels: HashMap::new(),
            tables: HashMap::new(),
            fixups: Vec::new(),
            line: 0,
            guard: None,
        }
    }

    pub(crate) fn open(&mut self) {
        self.parents.push(self.scope());
        self.scopes.push((self.parents.len() - 1, HashMap::new()));
    }

    /// False at the outermost scope: the kernel's end.
    pub(crate) fn close(&mut self) -> bool {
        self.scopes.pop();
        !self.scopes.is_empty()
    }

    fn scope(&self) -> usize {
        self.scopes.last().map_or(0, |s| s.0)
    }

    pub(crate) fn declare(&mut self, name: &str, sym: Sym) -> Res<()> {
        let top = self.scopes.last_mut().ok_or("no scope is open")?;
        if top.1.insert(name.into(), sym).is_some() {
            return Err(format!("{name} is declared twice in one scope"));
        }
        Ok(())
    }

    pub(crate) fn declare_reg(&mut self, name: &str, ty: Ty) -> Res<()> {
        let sym = if ty == Ty::Pred {
            self.entry.pred_names.push(name.into());
            Sym::Pred(self.entry.pred_names.len() as u32 - 1)
        } else {
            Sym::Reg { slot: self.new_slot(name), ty }
        };
        self.declare(name, sym)
    }

    fn new_slot(&mut self, name: &str) -> Slot {
        self.entry.reg_names.push(name.into());
        self.entry.reg_names.len() as u32 - 1
    }

    /// Room for a shared variable; returns its offset.
    pub(crate) fn place_shared(&mut self, bytes: usize, align: usize) -> usize {
        let at = self.entry.shared.next_multiple_of(align.max(1));
        self.entry.shared = at + bytes;
        at
    }

    pub(crate) fn lookup(&mut self, name: &str) -> Res<Sym> {
        let found = self.scopes.iter().rev().find_map(|(_, s)| s.get(name)).or_else(|| self.outer.names.get(name)).copied();
        match found {
            Some(Sym::ModuleShared(i)) => {
                if let Some(&at) = self.placed.get(&i) {
                    return Ok(Sym::Shared(at));
                }
                let (bytes, align) = self.outer.shared[i];
                let at = self.place_shared(bytes, align);
                self.placed.insert(i, at);
                Ok(Sym::Shared(at))
            }
            Some(s) => Ok(s),
            None => Err(format!("{name} is not declared")),
        }
    }

    /// The slot of a constant.
    pub(crate) fn constant(&mut self, bits: u64) -> Slot {
        if let Some(&s) = self.constants.get(&bits) {
            return s;
        }
        let slot = self.new_slot(&format!("{bits:#x}"));
        self.constants.insert(bits, slot);
        self.entry.consts.push((slot, bits));
        slot
    }

    pub(crate) fn special(&mut self, which: Special) -> Slot {
        if let Some(&s) = self.specials.get(&which) {
            return s;
        }
        let slot = self.new_slot(&format!("{which:?}"));
        self.specials.insert(which, slot);
        self.entry.specials.push((slot, which));
        slot
    }

    fn number(&mut self, n: Num, ty: Ty) -> Res<Slot> {
        let bits = match (n, ty) {
            (Num::Int(v), t) if !t.float() || matches!(t, Ty::F16x2 | Ty::Bf16x2 | Ty::Tf32) => {
                let (lo, hi) = (-(1i128 << (t.bits().max(1) - 1)), (1i128 << t.bits()) - 1);
                if v < lo || v > hi {
                    return Err(format!("the number {v} does not fit type {t:?}"));
                }
                v as u64 & t.mask()
            }
            (Num::F32(b), Ty::F32 | Ty::B32) => b as u64,
            (Num::F32(b), Ty::F64) => (f32::from_bits(b) as f64).to_bits(),
            (Num::F64(b), Ty::F64 | Ty::B64) => b,
            (Num::F64(b), Ty::F32) => (f64::from_bits(b) as f32).to_bits() as u64,
            (Num::Dec(v), Ty::F32) => (v as f32).to_bits() as u64,
            (Num::Dec(v), Ty::F64) => v.to_bits(),
            _ => return Err(format!("{n:?} cannot be an operand of type {ty:?}")),
        };
        Ok(self.constant(bits))
    }

    /// A source operand of a type: a register, a number, a special register or a variable's address.
    pub(crate) fn src(&mut self, arg: &Arg, ty: Ty) -> Res<Slot> {
        self.src_by(arg, ty, Ty::fits).map(|(s, _)| s)
    }

    /// As [`Func::src`] with another rule for register types; also gives the register's type.
    pub(crate) fn src_by(&mut self, arg: &Arg, ty: Ty, fits: fn(Ty, Ty) -> bool) -> Res<(Slot, Ty)> {
        match arg {
            Arg::Num(n) => Ok((self.number(*n, ty)?, ty)),
            Arg::Word(w) | Arg::Offset(w, _) => {
                let off = if let Arg::Offset(_, o) = arg { *o } else { 0 };
                if w == "WARP_SZ" {
                    return Ok((self.constant(32), ty));
                }
                if let Some((s, sty)) = special_reg(w) {
                    if !fits(sty, ty) {
                        return Err(format!("special register {w} is not of type {ty:?}"));
                    }
                    return Ok((self.special(s), sty));
                }
                match self.lookup(w)? {
                    Sym::Reg { slot, ty: rty } if off == 0 => {
                        if !fits(rty, ty) {
                            return Err(format!("register {w} of type {rty:?} cannot be an operand of type {ty:?}"));
                        }
                        Ok((slot, rty))
                    }
                    Sym::Reg { .. } => Err(format!("register {w} cannot have an offset outside an address")),
                    Sym::Pred(_) => Err(format!("predicate {w} cannot be an operand of type {ty:?}")),
                    sym => Ok((self.address(sym, off)?, ty)),
                }
            }
            _ => Err(format!("{arg:?} cannot be an operand of type {ty:?}")),
        }
    }

    /// A variable's address as a constant.
    fn address(&mut self, sym: Sym, off: i64) -> Res<Slot> {
        Ok(match sym {
            Sym::Shared(at) | Sym::Local(at) | Sym::Param(at) => self.constant((at as u64).wrapping_add(off as u64)),
            Sym::Global(at) | Sym::Const(at) => self.constant(at.wrapping_add(off as u64)),
            Sym::Dynamic => self.special(Special::Dynamic(off)),
            _ => return Err("not a variable".into()),
        })
    }

    /// `[base + off]` for an access to `space`.
    pub(crate) fn addr(&mut self, arg: &Arg, space: Space) -> Res<crate::ops::Addr> {
        let Arg::Addr(base, off) = arg else { return Err("an address in brackets is expected".into()) };
        if let Arg::Word(w) = &**base
            && special_reg(w).is_none()
        {
            let sym = self.lookup(w)?;
            let own = match sym {
                Sym::Reg { slot, ty } if !ty.float() && ty.bytes() >= 4 => {
                    return Ok(crate::ops::Addr { base: slot, off: *off, mask: ty.mask() });
                }
                Sym::Reg { ty, .. } => return Err(format!("register {w} of type {ty:?} cannot hold an address")),
                Sym::Pred(_) => return Err(format!("predicate {w} cannot hold an address")),
                Sym::Shared(_) | Sym::ModuleShared(_) | Sym::Dynamic => Space::Shared,
                Sym::Global(_) => Space::Global,
                Sym::Const(_) => Space::Const,
                Sym::Local(_) => Space::Local,
                Sym::Param(_) => Space::Param,
            };
            if own != space && !(space == Space::Generic && own == Space::Global) {
                return Err(format!("{w} is not in {space:?} memory"));
            }
            return Ok(crate::ops::Addr { base: self.address(sym, *off)?, off: 0, mask: u64::MAX });
        }
        if let Arg::Num(Num::Int(v)) = &**base {
            return Ok(crate::ops::Addr { base: self.constant(*v as u64), off: *off, mask: u64::MAX });
        }
        Err("an address must be a register, a variable or a number".into())
    }

    /// A destination register.
    pub(crate) fn dst(&mut self, arg: &Arg, ty: Ty) -> Res<Slot> {
        self.dst_by(arg, ty, Ty::fits).map(|(s, _)| s)
    }

    pub(crate) fn dst_by(&mut self, arg: &Arg, ty: Ty, fits: fn(Ty, Ty) -> bool) -> Res<(Slot, Ty)> {
        let Arg::Word(w) = arg else { return Err("the destination must be a register".into()) };
        match self.lookup(w)? {
            Sym::Reg { slot, ty: rty } if fits(rty, ty) => Ok((slot, rty)),
            Sym::Reg { ty: rty, .. } => Err(format!("register {w} of type {rty:?} cannot take a result of type {ty:?}")),
            _ => Err(format!("{w} cannot take a result of type {ty:?}")),
        }
    }

    pub(crate) fn pred_dst(&mut self, arg: &Arg) -> Res<Option<u32>> {
        match arg {
            Arg::Word(w) if w == "_" => Ok(None),
            Arg::Word(w) => match self.lookup(w)? {
                Sym::Pred(p) => Ok(Some(p)),
                _ => Err(format!("{w} is not a predicate")),
            },
            _ => Err("a predicate register is expected".into()),
        }
    }

    /// A predicate operand, perhaps negated.
    pub(crate) fn pred(&mut self, arg: &Arg) -> Res<Guard> {
        let (arg, neg) = if let Arg::Not(a) = arg { (&**a, true) } else { (arg, false) };
        match self.pred_dst(arg)? {
            Some(pred) => Ok(Guard { pred, neg }),
            None => Err("the sink _ cannot be read".into()),
        }
    }

    pub(crate) fn emit(&mut self, op: Op) {
        self.entry.code.push(Inst { op, guard: self.guard, line: self.line });
    }

    pub(crate) fn label(&mut self, name: &str) -> Res<()> {
        match self.labels.insert((self.scope(), name.into()), self.entry.code.len() as u32) {
            Some(_) => Err(format!("label {name} appears twice in one scope")),
            None => Ok(()),
        }
    }

    /// Notes that the instruction about to be emitted branches to `label`.
    pub(crate) fn jump(&mut self, label: &str, case: usize) {
        let (inst, scope, line) = (self.entry.code.len(), self.scope(), self.line);
        self.fixups.push(Fixup { inst, case, scope, label: label.into(), line });
    }

    /// Resolves the labels; the error carries its line.
    pub(crate) fn finish(mut self) -> Result<Entry, (u32, String)> {
        self.guard = None;
        self.emit(Op::Exit);
        for f in &self.fixups {
            let mut scope = f.scope;
            let target = loop {
                if let Some(&pc) = self.labels.get(&(scope, f.label.clone())) {
                    break pc;
                }
                if scope == 0 {
                    return Err((f.line, format!("label {} does not exist", f.label)));
                }
                scope = self.parents[scope];
            };
            match &mut self.entry.code[f.inst].op {
                Op::Bra { target: t } => *t = target,
                Op::BrxIdx { targets, .. } => targets[f.case] = target,
                _ => unreachable!("only branches have labels"),
            }
        }
        if self.entry.shared > 48 * 1024 {
            return Err((
                0,
                format!("{} declares {} bytes of shared memory; only dynamic memory may exceed 48 KiB", self.entry.name, self.entry.shared),
            ));
        }
        if self.entry.code.len() >= 1 << 22 {
            return Err((0, format!("{} has too many instructions", self.entry.name)));
        }
        Ok(self.entry)
    }
}

/// The special registers, with their types.
fn special_reg(name: &str) -> Option<(Special, Ty)> {
    let axis = |rest: &str| ["x", "y", "z"].iter().position(|a| *a == rest);
    if let Some((base, rest)) = name.split_once('.') {
        let which: fn(usize) -> Special = match base {
            "%tid" => Special::Tid,
            "%ntid" => Special::Ntid,
            "%ctaid" => Special::Ctaid,
            "%nctaid" => Special::Nctaid,
            _ => return None,
        };
        return Some((which(axis(rest)?), Ty::U32));
    }
    Some(match name {
        "%laneid" => (Special::Lane, Ty::U32),
        "%warpid" => (Special::Warp, Ty::U32),
        "%nwarpid" => (Special::Nwarp, Ty::U32),
        "%smid" | "%nsmid" | "%gridid" | "%clock" | "%clock_hi" | "%globaltimer_lo" | "%globaltimer_hi" => (Special::Zero, Ty::U32),
        "%clock64" | "%globaltimer" => (Special::Zero, Ty::U64),
        "%lanemask_eq" => (Special::MaskEq, Ty::U32),
        "%lanemask_lt" => (Special::MaskLt, Ty::U32),
        "%lanemask_le" => (Special::MaskLe, Ty::U32),
        "%lanemask_gt" => (Special::MaskGt, Ty::U32),
        "%lanemask_ge" => (Special::MaskGe, Ty::U32),
        "%dynamic_smem_size" => (Special::DynamicSharedSize, Ty::U32),
        "%total_smem_size" => (Special::TotalSharedSize, Ty::U32),
        _ => return None,
    })
}

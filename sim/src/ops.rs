//! Instructions in decoded form: operands are slots, labels are indices, and the arithmetic is a pointer to a loop over 32 lanes.

/// One value for each thread of a warp.
pub(crate) type Lanes = [u64; 32];
/// Index of a register. Constants and special registers have slots too, filled at the start, so that no operand needs a case.
pub(crate) type Slot = u32;

pub(crate) type UnF = fn(&Lanes, &mut Lanes);
pub(crate) type BinF = fn(&Lanes, &Lanes, &mut Lanes);
pub(crate) type TerF = fn(&Lanes, &Lanes, &Lanes, &mut Lanes);
pub(crate) type QuadF = fn(&Lanes, &Lanes, &Lanes, &Lanes, &mut Lanes);
/// A comparison: the mask of lanes for which it holds.
pub(crate) type CmpF = fn(&Lanes, &Lanes) -> u32;

/// A predicate operand, perhaps negated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guard {
    pub(crate) pred: u32,
    pub(crate) neg: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    Param,
    Global,
    Shared,
    Const,
    Local,
    Generic,
}

/// How predicates are joined.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Join {
    And,
    Or,
    Xor,
}

/// `[reg + offset]`; `mask` cuts the sum to the register's width.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addr {
    pub(crate) base: Slot,
    pub(crate) off: i64,
    pub(crate) mask: u64,
}

/// How a loaded value widens into its register: sign-extended from `bits` when signed, then cut by `mask`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Widen {
    pub(crate) signed: bool,
    pub(crate) mask: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum ShflMode {
    Up,
    Down,
    Bfly,
    Idx,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum VoteMode {
    All,
    Any,
    Uni,
    Ballot,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum AtomOp {
    Add,
    Inc,
    Dec,
    Cas,
    Exch,
    Max,
    Min,
    And,
    Or,
    Xor,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum CarryOp {
    Add,
    Sub,
    /// The low half of a product plus an addend.
    MadLo,
    MadHi,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MmaShape {
    /// 16×8×16 of f16 or bf16 into f32.
    Half16,
    /// 16×8×8 of f16 or bf16 into f32.
    Half8,
    /// 16×8×8 of tf32 into f32.
    Tf8,
    /// 16×8×4 of tf32 into f32.
    Tf4,
    /// 8×8×4 of f64.
    Double,
}

/// What a special register or a launch-dependent constant holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Special {
    Tid(usize),
    Ntid(usize),
    Ctaid(usize),
    Nctaid(usize),
    Lane,
    Warp,
    Nwarp,
    MaskEq,
    MaskLt,
    MaskLe,
    MaskGt,
    MaskGe,
    DynamicSharedSize,
    TotalSharedSize,
    /// A constant in disguise (`%smid`, `%clock`).
    Zero,
    /// The first byte of dynamic shared memory, plus an offset.
    Dynamic(i64),
}

#[derive(Clone, Debug)]
pub(crate) enum Op {
    Un {
        f: UnF,
        d: Slot,
        a: Slot,
    },
    Bin {
        f: BinF,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    Ter {
        f: TerF,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    Quad {
        f: QuadF,
        d: Slot,
        s: [Slot; 4],
    },
    Cvt {
        spec: crate::cvt::Spec,
        d: Slot,
        a: Slot,
    },
    Setp {
        f: CmpF,
        p: Option<u32>,
        q: Option<u32>,
        a: Slot,
        b: Slot,
        join: Option<(Join, Guard)>,
    },
    Set {
        f: CmpF,
        d: Slot,
        a: Slot,
        b: Slot,
        join: Option<(Join, Guard)>,
        yes: u64,
    },
    Selp {
        d: Slot,
        a: Slot,
        b: Slot,
        p: Guard,
    },
    /// `d = a join b` on predicates; `mov` and `not` use the same operand twice.
    Pred {
        d: u32,
        a: Guard,
        b: Guard,
        join: Join,
    },
    /// Adds, subtracts or multiply-adds with the carry flag read and/or written.
    Carry {
        op: CarryOp,
        wide: bool,
        signed: bool,
        read: bool,
        write: bool,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Option<Slot>,
    },
    /// Splits a register into `n` parts of `bits`; `u32::MAX` is the sink `_`.
    Split {
        d: [Slot; 4],
        n: u8,
        bits: u8,
        a: Slot,
    },
    Merge {
        d: Slot,
        s: [Slot; 4],
        n: u8,
        bits: u8,
    },
    Ld {
        space: Space,
        bytes: u8,
        n: u8,
        d: [Slot; 4],
        addr: Addr,
        widen: Widen,
    },
    St {
        space: Space,
        bytes: u8,
        n: u8,
        s: [Slot; 4],
        addr: Addr,
    },
    Atom {
        space: Space,
        op: AtomOp,
        bytes: u8,
        signed: bool,
        d: Option<Slot>,
        addr: Addr,
        b: Slot,
        c: Slot,
    },
    CpAsync {
        dst: Addr,
        src: Addr,
        bytes: u8,
        size: Option<Slot>,
    },
    CpCommit,
    /// Waits until at most this many groups are pending.
    CpWait {
        keep: u32,
        all: bool,
    },
    /// An address checked by nobody: prefetches.
    Nop,
    Bra {
        target: u32,
    },
    BrxIdx {
        index: Slot,
        targets: Box<[u32]>,
    },
    Exit,
    Trap,
    Bar {
        id: Slot,
        count: Option<Slot>,
        arrive: bool,
    },
    BarRed {
        op: VoteMode,
        id: Slot,
        count: Option<Slot>,
        src: Guard,
        d: Slot,
    },
    WarpSync {
        mask: Slot,
    },
    Shfl {
        mode: ShflMode,
        d: Slot,
        p: Option<u32>,
        a: Slot,
        b: Slot,
        c: Slot,
        mask: Slot,
    },
    Vote {
        mode: VoteMode,
        d: Slot,
        src: Guard,
        mask: Slot,
    },
    Match {
        all: bool,
        d: Slot,
        p: Option<u32>,
        a: Slot,
        mask: Slot,
    },
    Redux {
        op: AtomOp,
        signed: bool,
        d: Slot,
        a: Slot,
        mask: Slot,
    },
    ActiveMask {
        d: Slot,
    },
    Mma {
        shape: MmaShape,
        bf16: bool,
        d: [Slot; 4],
        a: [Slot; 4],
        b: [Slot; 2],
        c: [Slot; 4],
    },
    LdMatrix {
        n: u8,
        trans: bool,
        d: [Slot; 4],
        addr: Addr,
    },
}

#[derive(Clone, Debug)]
pub(crate) struct Inst {
    pub(crate) op: Op,
    pub(crate) guard: Option<Guard>,
    pub(crate) line: u32,
}

/// A kernel, decoded.
#[derive(Clone, Debug, Default)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) code: Vec<Inst>,
    pub(crate) reg_names: Vec<String>,
    pub(crate) pred_names: Vec<String>,
    pub(crate) consts: Vec<(Slot, u64)>,
    pub(crate) specials: Vec<(Slot, Special)>,
    pub(crate) shared: usize,
    pub(crate) local: usize,
    pub(crate) params: usize,
    /// `.reqntid`, and the bound of `.maxntid`.
    pub(crate) reqntid: Option<[u32; 3]>,
    pub(crate) maxntid: Option<u32>,
}

//! The kernels of the backward scan: their parameters, their axes and every variant that ships.

use crate::cuda::expression::Vars;
use crate::cuda::launch::Kernel;
use crate::cuda::params::{STORAGE, Strided, params};
use crate::cuda::template::{Template, template};
use crate::element::Dtype;

/// Steps of an item, and of a carry chunk.
pub const CHUNK: usize = 128;

params! {
    /// Items and the sequences that they make up.
    pub struct PlanParams {
        /// Offsets, or ids by (row, position).
        sequences: Strided<3>,
        items: i64,
        ranges: i64,
        list: i64,
        count: i64,
        states: i64,
        seqlen: i64,
        per_row: i64,
        /// 0 rows, 1 offsets, 2 ids.
        kind: i32,
        /// Whether there is an initial state.
        initial: i32,
    }
}

params! {
    /// An item of a block of channels.
    pub struct WalkParams {
        u: Strided<4>,
        delta: Strided<4>,
        z: Strided<4>,
        gout: Strided<4>,
        A: Strided<3>,
        B: Strided<5>,
        C: Strided<5>,
        D: Strided<2>,
        bias: Strided<2>,
        gu: Strided<4>,
        gdelta: Strided<4>,
        gz: Strided<4>,
        items: i64,
        list: i64,
        prod: i64,
        state: i64,
        lambda: i64,
        part_b: i64,
        part_c: i64,
        rows: i64,
        dim: i64,
        dstate: i64,
        seqlen: i64,
        /// The first item of the launch.
        first: i64,
        /// Channels of a cell, of a group of B and of one of C.
        cell: i64,
        width_b: i64,
        width_c: i64,
        /// Blocks of channels, and those of a cell.
        blocks: i32,
        per_cell: i32,
        /// Items that the shares of B and C have room for.
        slab: i32,
        softplus: i32,
        rule: i32,
        /// Whether time lies closer in memory than channels or states.
        along: i32,
        along_b: i32,
        along_c: i32,
        vary_b: i32,
        vary_c: i32,
        /// States before tiles of 16 steps.
        kept: i64,
        /// Tiles of a row in `kept`; 0 where they are counted by items, eight each.
        kept_row: i64,
        /// Items of a row, for blocks that take all of them.
        per_row: i64,
        /// Products of decays for gradients.
        decay: i64,
        initial: Strided<4>,
        grad_last: Strided<4>,
        grad_initial: Strided<4>,
    }
}

params! {
    /// The carry over the items of each sequence.
    pub struct CarryParams {
        initial: Strided<4>,
        grad_last: Strided<4>,
        grad_initial: Strided<4>,
        items: i64,
        ranges: i64,
        prod: i64,
        state: i64,
        lambda: i64,
        states: i64,
        dim: i64,
        dstate: i64,
        /// Products of decays for gradients.
        decay: i64,
        /// 1 where states are known already, 2 where nobody asks for gradients.
        known: i64,
    }
}

params! {
    /// ∂B or ∂C of a slab.
    pub struct RowsParams {
        grad: Strided<5>,
        items: i64,
        list: i64,
        parts: i64,
        first: i64,
        slab: i64,
        stride: i64,
        per_group: i64,
        groups: i64,
        dstate: i64,
        seqlen: i64,
    }
}

params! {
    /// A sum over items.
    pub struct TotalsParams {
        grad: Strided<3>,
        items: i64,
        parts: i64,
        count: i64,
        /// Elements of the gradient, and of a row of it.
        inner: i64,
        columns: i64,
        /// Bytes from an item's shares to the next one's.
        stride: i64,
    }
}

params! {
    /// Padding.
    pub struct PaddingParams {
        ids: Strided<3>,
        grad: Strided<5>,
        rows: i64,
        seqlen: i64,
        outer: i64,
        inner: i64,
    }
}

/// The types of a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Types {
    /// How u is stored.
    pub storage: Dtype,
    /// Complex A.
    pub complex: bool,
    /// Computed in f64 whatever the storage.
    pub wide: bool,
}

impl Types {
    /// Bytes of a real number that is computed with.
    pub fn arith(self) -> usize {
        if self.wide || self.storage == Dtype::F64 { 8 } else { 4 }
    }

    /// Real numbers in one of A.
    pub fn parts(self) -> usize {
        1 + usize::from(self.complex)
    }

    fn weight(self) -> &'static str {
        if self.storage == Dtype::F64 { "f64" } else { "f32" }
    }

    fn name(self) -> String {
        let weight = match (self.complex, self.storage) {
            (false, _) => self.weight(),
            (true, Dtype::F64) => "c64",
            (true, _) => "c32",
        };
        format!("{}_{weight}{}", self.storage.name(), if self.wide { "_compensated" } else { "" })
    }

    fn vars(self) -> Vars {
        let bytes = match self.storage {
            Dtype::F64 => 8,
            Dtype::F32 => 4,
            _ => 2,
        };
        let vars = Vars::new().text("T", self.storage.name()).int("TB", bytes).text("R", self.weight());
        let vars = vars.int("RB", if self.weight() == "f64" { 8 } else { 4 }).int("AB", self.arith()).int("K", self.parts());
        // 0 as storage and weights have it.
        let zero = |double: bool| if double { "0d0000000000000000" } else { "0f00000000" };
        let vars = vars.text("none", zero(bytes == 8)).text("rnone", zero(self.weight() == "f64"));
        let vars = vars.text("A", if self.arith() == 8 { "f64" } else { "f32" }).flag("cx", self.complex);
        constants(vars, self.arith() == 8)
    }

    /// Every combination.
    fn all() -> Vec<Types> {
        let wide = STORAGE.into_iter().filter(|&s| s != Dtype::F64).map(|s| (s, true));
        let kinds = STORAGE.into_iter().map(|s| (s, false)).chain(wide);
        kinds.flat_map(|(storage, wide)| [false, true].map(|complex| Types { storage, complex, wide })).collect()
    }

    /// Those that differ in weights and arithmetic.
    fn weights() -> Vec<Types> {
        let kinds = [(Dtype::F32, false), (Dtype::F64, false), (Dtype::F32, true)];
        kinds.into_iter().flat_map(|(storage, wide)| [false, true].map(|complex| Types { storage, complex, wide })).collect()
    }

    /// The same as far as weights and arithmetic go.
    pub fn weights_only(self) -> Types {
        if self.storage == Dtype::F64 { self } else { Types { storage: Dtype::F32, ..self } }
    }
}

/// Numbers of the arithmetic type as PTX writes them.
fn constants(vars: Vars, double: bool) -> Vars {
    let numbers = [
        ("zero", 0.0),
        ("one", 1.0),
        ("half", 0.5),
        ("inf", f64::INFINITY),
        ("minf", f64::NEG_INFINITY),
        ("log2e", std::f64::consts::LOG2_E),
        ("ln2", std::f64::consts::LN_2),
        ("max", if double { f64::MAX } else { f64::from(f32::MAX) }),
        ("mmax", if double { f64::MIN } else { f64::from(f32::MIN) }),
    ];
    numbers.into_iter().fold(vars, |vars, (name, x)| {
        vars.text(name, if double { format!("0d{:016X}", x.to_bits()) } else { format!("0f{:08X}", (x as f32).to_bits()) })
    })
}

/// Items and sequences.
#[derive(Debug, Clone, Copy)]
pub struct Plan;

impl Kernel for Plan {
    const TEMPLATE: Template = template!("selective_scan_bwd_plan");
    type Params = PlanParams;

    fn entry(&self) -> String {
        "selective_scan_bwd_plan".into()
    }

    fn vars(&self) -> Vars {
        Vars::new()
    }

    fn shipped() -> Vec<Self> {
        vec![Plan]
    }
}

/// The walk over an item.
#[derive(Debug, Clone, Copy)]
pub struct Walk {
    /// Types.
    pub types: Types,
    /// Euler's rule, real, varying B and C: in registers.
    pub fast: bool,
    /// Lanes of a channel.
    pub lanes: usize,
    /// What the item does from zero, instead of the gradients.
    pub local: bool,
}

/// Where things lie in shared memory, in bytes.
struct Layout {
    coefficients: [usize; 2],
    kept: usize,
    history: usize,
    shares: usize,
    totals: usize,
    size: usize,
}

/// Where the tiles of numbers by (step, channel) begin: after 128 positions and their bits.
const TILES: usize = 1024 + 16;

impl Walk {
    /// For N states.
    pub fn new(types: Types, fast: bool, dstate: usize, local: bool) -> Self {
        let lanes = if fast {
            dstate.div_ceil(if types.arith() == 8 { 2 } else { 4 }).next_power_of_two().clamp(4, 32)
        } else if dstate <= 4 {
            4
        } else {
            16
        };
        Walk { types, fast, lanes, local }
    }

    /// Threads of a block.
    pub fn threads(&self) -> usize {
        if self.fast { 128 } else { 64 }
    }

    /// Channels of a block.
    pub fn channels(&self) -> usize {
        self.threads() / self.lanes
    }

    /// States of a lane.
    fn states(&self) -> usize {
        match (self.fast, self.types.arith()) {
            (false, _) => 1,
            (true, 8) => 2,
            (true, _) => 4,
        }
    }

    /// Steps that are staged together.
    fn steps(&self) -> usize {
        if self.lanes <= 8 { 16 } else { 8 }
    }

    /// Whether the states may take several passes.
    fn multi(&self) -> bool {
        self.lanes == if self.fast { 32 } else { 16 }
    }

    /// Registers of a thread, at most. Left to itself the assembler bounds them so that a few spill.
    fn registers(&self) -> usize {
        match (self.fast, self.local, self.lanes) {
            (true, true, _) if self.types.arith() == 4 => 96,
            (true, true, _) => 120,
            (true, false, 4 | 8) if self.types.arith() == 4 => 152,
            (true, false, _) => 240,
            (false, true, _) => 128,
            (false, false, _) => 168,
        }
    }

    /// Bytes of a tile of numbers by (step, channel).
    fn tile(&self) -> usize {
        self.steps() * (self.channels() + 1) * self.types.arith()
    }

    fn layout(&self) -> Layout {
        let (number, pass) = (self.types.arith(), self.lanes * self.states() * self.types.parts());
        let only = |wanted: bool, bytes: usize| if wanted { bytes } else { 0 };
        let staged = self.steps() * pass * number;
        let b = (TILES + if self.local { 3 } else { 9 } * self.tile()).next_multiple_of(16);
        let kept = b + 2 * staged;
        let slot = self.threads() * self.types.parts() * number;
        let history = kept + only(!self.local, CHUNK / 8 * self.states() * slot);
        let shares = history + only(!self.local && !self.fast, 8 * slot);
        let totals = shares + only(!self.local, self.threads() / 32 * 2 * staged);
        let size = totals + only(!self.local && self.multi(), 3 * CHUNK * self.channels() * number);
        Layout { coefficients: [b, b + staged], kept, history, shares, totals, size }
    }

    /// Bytes of dynamic shared memory.
    pub fn shared(&self) -> usize {
        self.layout().size
    }
}

impl Kernel for Walk {
    const TEMPLATE: Template = template!("selective_scan_bwd_walk");
    type Params = WalkParams;

    fn entry(&self) -> String {
        let (path, kind) = (if self.fast { "" } else { "_any" }, if self.local { "_local" } else { "" });
        format!("selective_scan_bwd_walk_{}_lanes{}{path}{kind}", self.types.name(), self.lanes)
    }

    fn vars(&self) -> Vars {
        let (lanes, states, steps, threads, channels) = (self.lanes, self.states(), self.steps(), self.threads(), self.channels());
        let (layout, parts) = (self.layout(), self.types.parts());
        // A step's shares over the channels of a warp: 2·S numbers, halved at each of so many stages as long as there are several.
        let (stages, numbers) = (5 - lanes.ilog2(), 2 * states);
        let spare = stages.saturating_sub(numbers.ilog2());
        let vars = self.types.vars().flag("fast", self.fast).flag("local", self.local).flag("multi", self.multi());
        let numbers = [
            ("P", lanes),
            ("S", states),
            ("SUB", steps),
            ("THREADS", threads),
            ("CPB", channels),
            ("PS", lanes * states),
            ("LP", lanes.ilog2() as usize),
            ("LC", channels.ilog2() as usize),
            ("LSUB", steps.ilog2() as usize),
            ("LPS", (lanes * states).ilog2() as usize),
            ("XR", channels + 1),
            ("XS", self.tile()),
            ("EX", (steps / lanes).max(1)),
            ("EB", steps * lanes * states / threads),
            ("FX", steps * 2 * lanes * states * parts / threads),
            ("GR", (numbers >> stages).max(1)),
            ("GX", spare as usize),
            ("GD", 1 << spare),
            ("TX", lanes.ilog2() as usize - 2),
            ("TD", lanes / 4),
            ("REGS", self.registers()),
            ("oPOS", 0),
            ("oFRESH", 1024),
            ("oX", TILES),
            ("oB", layout.coefficients[0]),
            ("oC", layout.coefficients[1]),
            ("oCK", layout.kept),
            ("oHIST", layout.history),
            ("oRED", layout.shares),
            ("oTOT", layout.totals),
        ];
        numbers.into_iter().fold(vars, |vars, (name, value)| vars.int(name, value))
    }

    fn shipped() -> Vec<Self> {
        let mut all = Vec::new();
        for types in Types::all() {
            // In f32 up to 16 states are the tiles' part.
            let fast: &[usize] = match (types.complex || types.wide, types.arith()) {
                (true, _) => &[],
                (false, 8) => &[4, 8, 16, 32],
                (false, _) => &[8, 16, 32],
            };
            let kinds = fast.iter().map(|&lanes| (true, lanes)).chain([(false, 4), (false, 16)]);
            all.extend(kinds.flat_map(|(fast, lanes)| [true, false].map(|local| Walk { types, fast, lanes, local })));
        }
        all
    }
}

/// What a tiles kernel does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The state that an item makes from zero.
    Local,
    /// The states before tiles.
    States,
    /// The gradient that an item sends to the state before it, from zero.
    Lambda,
    /// The gradients.
    Back,
}

/// Euler's rule, real A, varying B and C, at most 16 states, in f32.
#[derive(Debug, Clone, Copy)]
pub struct Tiles {
    /// How u is stored.
    pub storage: Dtype,
    /// What it does.
    pub kind: Kind,
    /// Whether a block takes all items of a row.
    pub walk: bool,
}

impl Tiles {
    /// Channels of a block.
    pub const CHANNELS: usize = 64;
    /// Steps of a tile.
    pub const STEPS: usize = 16;
    /// States of a channel, at most.
    pub const STATES: usize = 16;

    fn bytes(&self) -> usize {
        if self.storage == Dtype::F32 { 4 } else { 2 }
    }

    /// Bytes of a raw buffer: time along, a channel's 16 steps are padded by 16 bytes.
    fn raw(&self) -> usize {
        64 * (16 * self.bytes() + 16)
    }

    /// Where things lie in shared memory, in bytes: by name, and what it takes in all.
    fn layout(&self) -> (Vec<(&'static str, usize)>, usize) {
        let back = self.kind == Kind::Back;
        let only = |wanted: bool, bytes: usize| if wanted { bytes } else { 0 };
        let operands = if self.kind == Kind::Local || self.kind == Kind::States { 2 } else { 4 };
        let pieces = [
            ("oPOS", 1024),
            ("oFRESH", 16),
            ("oB", 1024),
            ("oC", 1024),
            ("oDD", 8192),
            ("oGY", only(back, 4096)),
            ("oU", only(back, 4096)),
            ("oSIG", only(back, 4096)),
            ("oZF", only(back, 4096)),
            ("oVS", only(back, 24576)),
            ("oRED", only(back, 16384)),
            ("oRAW", operands * self.raw()),
            ("oSTASH", only(back, 4096)),
            ("oLAM", only(back && self.walk, 4096)),
        ];
        let mut at = 0;
        let places = pieces.into_iter().map(|(name, bytes)| {
            at += bytes;
            (name, at - bytes)
        });
        let places = places.collect();
        (places, at)
    }

    /// Bytes of dynamic shared memory.
    pub fn shared(&self) -> usize {
        self.layout().1
    }
}

impl Kernel for Tiles {
    const TEMPLATE: Template = template!("selective_scan_bwd_tiles");
    type Params = WalkParams;

    fn entry(&self) -> String {
        let kind = match self.kind {
            Kind::Local => "local",
            Kind::States => "states",
            Kind::Lambda => "lambda",
            Kind::Back => "back",
        };
        format!("selective_scan_bwd_tiles_{}_f32_{kind}{}", self.storage.name(), if self.walk { "_walk" } else { "" })
    }

    fn vars(&self) -> Vars {
        let types = Types { storage: self.storage, complex: false, wide: false };
        let exact = self.storage == Dtype::F32;
        let vars = types.vars().flag("walk", self.walk).text("RAW", if exact { "f32" } else { "b16" });
        let bytes = self.bytes();
        let numbers = [
            ("KIND", self.kind as usize),
            ("NU", usize::from(self.kind != Kind::Lambda)),
            ("NB", usize::from(self.kind != Kind::Lambda)),
            ("NG", usize::from(matches!(self.kind, Kind::Lambda | Kind::Back))),
            ("SUB", 16),
            ("LSUB", 4),
            ("THREADS", 128),
            ("VE", 16 / bytes),
            ("LV", (4 * bytes).ilog2() as usize),
            ("LTB", bytes.ilog2() as usize),
            ("RAWSZ", self.raw()),
            ("REGS", if self.kind == Kind::Back { 255 } else { 128 }),
        ];
        let vars = numbers.into_iter().fold(vars, |vars, (name, value)| vars.int(name, value));
        self.layout().0.into_iter().fold(vars, |vars, (name, value)| vars.int(name, value))
    }

    fn shipped() -> Vec<Self> {
        let kinds = [
            (Kind::Local, false),
            (Kind::States, false),
            (Kind::States, true),
            (Kind::Lambda, false),
            (Kind::Back, false),
            (Kind::Back, true),
        ];
        let storage = STORAGE.into_iter().filter(|&s| s != Dtype::F64);
        storage.flat_map(|storage| kinds.map(|(kind, walk)| Tiles { storage, kind, walk })).collect()
    }
}

/// The carry.
#[derive(Debug, Clone, Copy)]
pub struct Carry(pub Types);

impl Kernel for Carry {
    const TEMPLATE: Template = template!("selective_scan_bwd_carry");
    type Params = CarryParams;

    fn entry(&self) -> String {
        format!("selective_scan_bwd_carry_{}", self.0.name())
    }

    fn vars(&self) -> Vars {
        self.0.vars()
    }

    fn shipped() -> Vec<Self> {
        Types::weights().into_iter().map(Carry).collect()
    }
}

/// ∂B or ∂C of a slab.
#[derive(Debug, Clone, Copy)]
pub struct Rows(pub Types);

impl Kernel for Rows {
    const TEMPLATE: Template = template!("selective_scan_bwd_rows");
    type Params = RowsParams;

    fn entry(&self) -> String {
        format!("selective_scan_bwd_rows_{}", self.0.name())
    }

    fn vars(&self) -> Vars {
        self.0.vars()
    }

    fn shipped() -> Vec<Self> {
        Types::all().into_iter().map(Rows).collect()
    }
}

/// A sum over items.
#[derive(Debug, Clone, Copy)]
pub struct Totals(pub Types);

impl Kernel for Totals {
    const TEMPLATE: Template = template!("selective_scan_bwd_totals");
    type Params = TotalsParams;

    fn entry(&self) -> String {
        format!("selective_scan_bwd_totals_{}", self.0.name())
    }

    fn vars(&self) -> Vars {
        self.0.vars()
    }

    fn shipped() -> Vec<Self> {
        Types::weights().into_iter().map(Totals).collect()
    }
}

/// Padding, by the bytes of a number and whether it is one of a pair.
#[derive(Debug, Clone, Copy)]
pub struct Padding {
    /// Bytes.
    pub bytes: usize,
    /// Complex.
    pub pair: bool,
}

impl Kernel for Padding {
    const TEMPLATE: Template = template!("selective_scan_bwd_padding");
    type Params = PaddingParams;

    fn entry(&self) -> String {
        format!("selective_scan_bwd_padding_{}{}", self.bytes, if self.pair { "_pair" } else { "" })
    }

    fn vars(&self) -> Vars {
        Vars::new().int("TB", self.bytes).flag("pair", self.pair)
    }

    fn shipped() -> Vec<Self> {
        [2, 4, 8].into_iter().flat_map(|bytes| [false, true].map(|pair| Padding { bytes, pair })).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_card_has_the_shared_memory() {
        // What a block may ask for on the smallest card, compute capability 8.9.
        for walk in Walk::shipped() {
            assert!(walk.shared() <= 99 << 10, "{}: {} bytes", walk.entry(), walk.shared());
        }
    }
}

//! Runs a launch: blocks one after another, the warps of a block in turn, the threads of a warp in lockstep.
//!
//! Where threads of a warp diverge, those at the lowest instruction run until they reach the others; for structured code that joins
//! them again at the first place they have in common.

use crate::cvt::convert;
use crate::memory::{Memory, View};
use crate::ops::{Entry, Guard, Join, Lanes, Op, Slot, Space, Special};
use crate::parse::Module;
use crate::shared::Shared;
use crate::warp::{Fault, Group, Res, Warp, fault, lanes};

/// A kernel launch.
pub struct Launch<'a> {
    /// Index of the kernel, from [`Module::entry`].
    pub entry: usize,
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block along x, y and z.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: usize,
    /// The parameters' bytes, laid out as the kernel declares them.
    pub params: &'a [u8],
}

/// What a launch did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Instructions executed, one for each thread.
    pub instructions: u64,
    /// Instructions executed, one for each warp.
    pub warp_instructions: u64,
    /// Blocks run.
    pub blocks: u64,
}

/// Thread instructions after which a launch counts as hung.
const LIMIT: u64 = 20_000_000_000;
/// Warp instructions after which another warp gets its turn, so that one may wait for another by polling.
const SLICE: u64 = 1 << 20;

/// Runs a kernel to its end, or to the first thing that it does wrong.
pub fn run(module: &Module, launch: &Launch, memory: &Memory) -> Result<Stats, String> {
    run_limited(module, launch, memory, LIMIT)
}

/// As [`run`], with a bound of its own on the thread instructions executed.
pub fn run_limited(module: &Module, launch: &Launch, memory: &Memory, limit: u64) -> Result<Stats, String> {
    let entry = module.entries.get(launch.entry).ok_or("there is no such kernel")?;
    let check = |bad: bool, what: String| if bad { Err(format!("{}: {what}", entry.name)) } else { Ok(()) };
    let threads: u64 = launch.block.iter().map(|&n| n as u64).product();
    check(threads == 0 || threads > 1024, format!("a block of {threads} threads"))?;
    check(launch.grid.contains(&0) || launch.grid[1] > 65535 || launch.grid[2] > 65535, format!("a grid of {:?}", launch.grid))?;
    check(launch.params.len() != entry.params, format!("{} bytes of parameters, not {}", launch.params.len(), entry.params))?;
    check(entry.reqntid.is_some_and(|r| r != launch.block), format!("block {:?} is not .reqntid", launch.block))?;
    check(entry.maxntid.is_some_and(|m| threads > m as u64), format!("a block of {threads} threads exceeds .maxntid"))?;
    let dynamic = if launch.shared > 0 { entry.shared.next_multiple_of(16) } else { entry.shared };
    let total = dynamic + launch.shared;
    check(total > 227 * 1024, format!("{total} bytes of shared memory in a block"))?;
    let count = (threads as usize).div_ceil(32);
    let env = Env {
        module,
        entry,
        launch,
        view: View::new(memory, &module.globals),
        shared: Shared::new(total, count, granule(entry)),
        stats: Stats::default(),
        limit,
        ctaid: [0; 3],
    };
    let warps = (0..count).map(|i| Warp::new(i, entry)).collect();
    let mut block = Block { env, warps, bars: Default::default(), threads: threads as u32 };
    for z in 0..launch.grid[2] {
        for y in 0..launch.grid[1] {
            for x in 0..launch.grid[0] {
                block.env.ctaid = [x, y, z];
                block.run()?;
            }
        }
    }
    Ok(block.env.stats)
}

/// The narrowest access that a kernel makes to shared memory, at most 4 bytes.
fn granule(entry: &Entry) -> usize {
    let width = |op: &Op| match op {
        Op::Ld { space: Space::Shared | Space::Generic, bytes, .. } | Op::St { space: Space::Shared | Space::Generic, bytes, .. } => *bytes,
        Op::LdMatrix { .. } => 2,
        _ => 4,
    };
    entry.code.iter().map(|i| width(&i.op)).min().unwrap_or(4).min(4) as usize
}

/// All that warps share.
pub(crate) struct Env<'a> {
    pub(crate) module: &'a Module,
    pub(crate) entry: &'a Entry,
    pub(crate) launch: &'a Launch<'a>,
    pub(crate) view: View<'a>,
    pub(crate) shared: Shared,
    pub(crate) stats: Stats,
    limit: u64,
    ctaid: [u32; 3],
}

/// A barrier: who has arrived, and for how many threads it waits.
#[derive(Default, Clone)]
pub(crate) struct Bar {
    /// Warps that wait, and the knowledge of those that only arrived.
    pub(crate) arrived: Vec<(usize, bool)>,
    pub(crate) knowledge: Vec<u32>,
    pub(crate) count: Option<u32>,
    /// For `barrier.red`: predicates gathered and where results go.
    pub(crate) votes: Vec<(u32, u32)>,
}

pub(crate) struct Block<'a> {
    pub(crate) env: Env<'a>,
    pub(crate) warps: Vec<Warp>,
    pub(crate) bars: [Bar; 16],
    threads: u32,
}

/// Why a warp stopped running.
pub(crate) enum Stop {
    Done,
    Slice,
    Barrier,
}

impl Block<'_> {
    fn run(&mut self) -> Result<(), String> {
        self.env.shared.restart();
        self.bars = Default::default();
        for i in 0..self.warps.len() {
            self.env.start(&mut self.warps[i], self.threads);
        }
        loop {
            let mut ran = false;
            for i in 0..self.warps.len() {
                if self.warps[i].live == 0 || self.warps[i].waiting.is_some() {
                    continue;
                }
                ran = true;
                let mut pc = 0;
                let w = &mut self.warps[i];
                match self.env.warp(w, &mut pc).and_then(|stop| self.stopped(i, stop, pc)) {
                    Ok(()) => {}
                    Err(f) => return Err(self.env.report(i, pc, &f)),
                }
            }
            if !ran {
                break;
            }
        }
        self.env.stats.blocks += 1;
        match self.warps.iter().find(|w| w.waiting.is_some()) {
            Some(w) => Err(self.deadlock(w)),
            None => Ok(()),
        }
    }

    fn deadlock(&self, first: &Warp) -> String {
        let waits: Vec<String> = self
            .warps
            .iter()
            .filter_map(|w| w.waiting.map(|x| format!("warp {} at barrier {} ({})", w.id, x.id, self.env.line(x.pc))))
            .collect();
        let pc = first.waiting.map_or(0, |x| x.pc);
        let text = format!("deadlock: {}", waits.join(", "));
        self.env.report(first.id, pc, &Fault { lane: 0, text })
    }
}

impl Env<'_> {
    /// A line's number and text.
    pub(crate) fn line(&self, pc: u32) -> String {
        let n = self.entry.code[pc as usize].line;
        format!("line {n} `{}`", self.module.lines.get(n as usize - 1).map_or("", |s| s.as_str()))
    }

    fn report(&self, warp: usize, pc: u32, f: &Fault) -> String {
        let t = warp as u32 * 32 + f.lane;
        let [bx, by, _] = self.launch.block;
        let tid = [t % bx, t / bx % by, t / bx / by];
        format!(
            "kernel {}, {}, block {:?}, thread {:?} (warp {warp}, lane {}): {}",
            self.entry.name,
            self.line(pc),
            self.ctaid,
            tid,
            f.lane,
            f.text
        )
    }

    /// Puts a warp at the kernel's beginning.
    fn start(&self, w: &mut Warp, threads: u32) {
        w.init.fill(0);
        w.pinit.fill(0);
        w.local_init.fill(false);
        w.carry_init = 0;
        w.waiting = None;
        w.open.iter_mut().for_each(Vec::clear);
        w.committed.iter_mut().for_each(|c| c.clear());
        let have = (threads - w.id as u32 * 32).min(32);
        w.live = if have == 32 { u32::MAX } else { (1 << have) - 1 };
        w.groups = vec![Group { pc: 0, mask: w.live }];
        for &(s, v) in &self.entry.consts {
            w.put(s, u32::MAX, &[v; 32]);
        }
        for &(s, which) in &self.entry.specials {
            w.put(s, u32::MAX, &self.special(w, which));
        }
    }

    fn special(&self, w: &Warp, which: Special) -> Lanes {
        let [bx, by, _] = self.launch.block;
        let stat = self.entry.shared;
        std::array::from_fn(|lane| {
            let t = w.id as u32 * 32 + lane as u32;
            let l = lane as u32;
            (match which {
                Special::Tid(k) => [t % bx, t / bx % by, t / bx / by][k],
                Special::Ntid(k) => self.launch.block[k],
                Special::Ctaid(k) => self.ctaid[k],
                Special::Nctaid(k) => self.launch.grid[k],
                Special::Lane => l,
                Special::Warp => w.id as u32,
                Special::Nwarp => self.launch.block.iter().product::<u32>().div_ceil(32),
                Special::MaskEq => 1 << l,
                Special::MaskLt => (1 << l) - 1,
                Special::MaskLe => ((2u64 << l) - 1) as u32,
                Special::MaskGt => !(((2u64 << l) - 1) as u32),
                Special::MaskGe => !((1 << l) - 1),
                Special::DynamicSharedSize => self.launch.shared as u32,
                Special::TotalSharedSize => self.shared.len() as u32,
                Special::Zero => 0,
                Special::Dynamic(off) => return (stat.next_multiple_of(16) as u64).wrapping_add(off as u64),
            }) as u64
        })
    }

    /// Runs a warp until it ends, waits, or has had its turn. `at` is left at the instruction that stopped it.
    fn warp(&mut self, w: &mut Warp, at: &mut u32) -> Res<Stop> {
        let entry = self.entry;
        let mut slice = 0;
        let mut held: Option<Group> = None;
        loop {
            let Some(g) = w.groups.pop() else {
                // All that the held threads waited for have left: now they are the whole warp.
                let Some(h) = held.take() else { break };
                w.park(h.pc, h.mask);
                continue;
            };
            let limit = w.groups.last().map_or(u32::MAX, |n| n.pc);
            let (mut pc, mut mask) = (g.pc, g.mask);
            while pc < limit {
                *at = pc;
                let inst = &entry.code[pc as usize];
                let exec = match inst.guard {
                    None => mask,
                    Some(guard) => w.pred(entry, guard, mask)? & mask,
                };
                slice += 1;
                self.stats.count(mask);
                if exec == 0 {
                    pc += 1;
                    continue;
                }
                match &inst.op {
                    Op::Bra { target } if exec == mask => pc = *target,
                    Op::Bra { .. } | Op::BrxIdx { .. } => {
                        send(w, entry, &inst.op, exec)?;
                        w.park(pc + 1, mask & !exec);
                        mask = 0;
                        break;
                    }
                    Op::Exit => {
                        w.live &= !exec;
                        mask &= !exec;
                        if mask == 0 {
                            break;
                        }
                        pc += 1;
                    }
                    Op::Bar { .. } | Op::BarRed { .. } => {
                        if exec == mask && exec != w.live && held.is_none() {
                            // The others may be on their way out, which is allowed; another barrier on that way is not.
                            held = Some(Group { pc, mask });
                            mask = 0;
                            break;
                        }
                        whole(exec, w.live)?;
                        w.park(pc + 1, mask);
                        return Ok(Stop::Barrier);
                    }
                    op => {
                        self.step(w, op, exec, pc)?;
                        pc += 1;
                    }
                }
                if slice >= SLICE {
                    break;
                }
            }
            w.park(pc, mask);
            if slice >= SLICE {
                held.into_iter().for_each(|h| w.park(h.pc, h.mask));
                return self.within_limit().map(|()| Stop::Slice);
            }
        }
        self.within_limit().map(|()| Stop::Done)
    }

    fn within_limit(&self) -> Res {
        if self.stats.instructions <= self.limit {
            return Ok(());
        }
        fault(0, format!("more than {} instructions executed: the kernel seems to hang", self.limit))
    }

    /// One instruction without control flow, for the lanes of `m`.
    #[inline(always)]
    fn step(&mut self, w: &mut Warp, op: &Op, m: u32, pc: u32) -> Res {
        let e = self.entry;
        match op {
            Op::Un { f, d, a } => {
                w.need(e, *a, m)?;
                let mut out = [0; 32];
                f(w.get(*a), &mut out);
                w.put(*d, m, &out);
            }
            Op::Bin { f, d, a, b } => {
                w.need(e, *a, m)?;
                w.need(e, *b, m)?;
                let mut out = [0; 32];
                f(w.get(*a), w.get(*b), &mut out);
                w.put(*d, m, &out);
            }
            Op::Ter { f, d, a, b, c } => {
                w.need(e, *a, m)?;
                w.need(e, *b, m)?;
                w.need(e, *c, m)?;
                let mut out = [0; 32];
                f(w.get(*a), w.get(*b), w.get(*c), &mut out);
                w.put(*d, m, &out);
            }
            Op::Quad { f, d, s } => {
                for s in s {
                    w.need(e, *s, m)?;
                }
                let mut out = [0; 32];
                f(w.get(s[0]), w.get(s[1]), w.get(s[2]), w.get(s[3]), &mut out);
                w.put(*d, m, &out);
            }
            Op::Cvt { spec, d, a } => {
                w.need(e, *a, m)?;
                let mut out = [0; 32];
                convert(spec, w.get(*a), &mut out);
                w.put(*d, m, &out);
            }
            Op::Ld { space, bytes, n, d, addr, widen } => {
                self.load(w, m, pc, (*space, *bytes as usize, *n as usize), d, addr, *widen)?;
            }
            Op::St { space, bytes, n, s, addr } => self.store(w, m, pc, (*space, *bytes as usize, *n as usize), s, addr)?,
            Op::Setp { f, p, q, a, b, join } => {
                w.need(e, *a, m)?;
                w.need(e, *b, m)?;
                let t = f(w.get(*a), w.get(*b));
                let (yes, no) = match join {
                    Some((j, g)) => {
                        let c = w.pred(e, *g, m)?;
                        (joined(*j, t, c), joined(*j, !t, c))
                    }
                    None => (t, !t),
                };
                if let Some(p) = p {
                    w.put_pred(*p, m, yes);
                }
                if let Some(q) = q {
                    w.put_pred(*q, m, no);
                }
            }
            op => return self.rare(w, op, m, pc),
        }
        Ok(())
    }

    /// The less common instructions, kept out of the loop above.
    #[inline(never)]
    fn rare(&mut self, w: &mut Warp, op: &Op, m: u32, pc: u32) -> Res {
        let e = self.entry;
        match op {
            Op::Set { f, d, a, b, join, yes } => {
                w.need(e, *a, m)?;
                w.need(e, *b, m)?;
                let mut t = f(w.get(*a), w.get(*b));
                if let Some((j, g)) = join {
                    t = joined(*j, t, w.pred(e, *g, m)?);
                }
                let out = std::array::from_fn(|i| if t >> i & 1 == 1 { *yes } else { 0 });
                w.put(*d, m, &out);
            }
            Op::Selp { d, a, b, p } => self.selp(w, m, *d, *a, *b, *p)?,
            Op::Pred { d, a, b, join } => {
                let v = joined(*join, w.pred(e, *a, m)?, w.pred(e, *b, m)?);
                w.put_pred(*d, m, v);
            }
            Op::Carry { .. } => carry(e, w, m, op)?,
            Op::Split { d, n, bits, a } => {
                w.need(e, *a, m)?;
                let (x, keep) = (*w.get(*a), (1u64 << bits) - 1);
                for (i, d) in d[..*n as usize].iter().enumerate().filter(|(_, d)| **d != u32::MAX) {
                    w.put(*d, m, &x.map(|v| v >> (i as u32 * *bits as u32) & keep));
                }
            }
            Op::Merge { d, s, n, bits } => {
                let mut out = [0; 32];
                for (i, s) in s[..*n as usize].iter().enumerate() {
                    w.need(e, *s, m)?;
                    for (o, v) in out.iter_mut().zip(w.get(*s)) {
                        *o |= v << (i as u32 * *bits as u32);
                    }
                }
                w.put(*d, m, &out);
            }
            Op::Atom { .. } => self.atom(w, m, pc, op)?,
            Op::CpAsync { dst, src, bytes, size } => self.copy_async(w, m, pc, dst, src, *bytes as usize, *size)?,
            Op::CpCommit => self.copy_commit(w, m),
            Op::CpWait { keep, all } => self.copy_wait(w, m, *keep as usize, *all),
            Op::LdMatrix { n, trans, d, addr } => self.load_matrix(w, m, pc, *n as usize, *trans, d, addr)?,
            Op::Mma { shape, bf16, d, a, b, c } => {
                if m != u32::MAX {
                    return fault(m.trailing_zeros(), format!("mma needs all 32 threads, not {m:#010x}"));
                }
                crate::mma::mma(w, e, *shape, *bf16, d, a, b, c)?;
            }
            Op::Trap => return fault(m.trailing_zeros(), "trap".into()),
            Op::Nop => {}
            op => self.exchange(w, m, op)?,
        }
        Ok(())
    }

    fn selp(&mut self, w: &mut Warp, m: u32, d: Slot, a: Slot, b: Slot, p: Guard) -> Res {
        let t = w.pred(self.entry, p, m)?;
        // Both operands must be there, as for the hardware's instruction, even where only one is taken.
        w.need(self.entry, a, m)?;
        w.need(self.entry, b, m)?;
        let (x, y) = (w.get(a), w.get(b));
        let out = std::array::from_fn(|i| if t >> i & 1 == 1 { x[i] } else { y[i] });
        w.put(d, m, &out);
        Ok(())
    }
}

fn joined(j: Join, a: u32, b: u32) -> u32 {
    match j {
        Join::And => a & b,
        Join::Or => a | b,
        Join::Xor => a ^ b,
    }
}

/// Adds and multiply-adds through the carry flag.
fn carry(e: &Entry, w: &mut Warp, m: u32, op: &Op) -> Res {
    use crate::ops::CarryOp;
    let Op::Carry { op, wide, signed, read, write, d, a, b, c } = op else { return Ok(()) };
    for s in [Some(*a), Some(*b), *c].into_iter().flatten() {
        w.need(e, s, m)?;
    }
    if *read && w.carry_init & m != m {
        return fault((m & !w.carry_init).trailing_zeros(), "the carry flag is read before it is written".into());
    }
    let bits = if *wide { 64 } else { 32 };
    let mask = (1i128 << bits) - 1;
    let ext = |v: u64| match (signed, wide) {
        (true, true) => v as i64 as i128,
        (true, false) => v as i32 as i128,
        _ => v as i128,
    };
    let (mut out, mut flags) = ([0; 32], 0u32);
    for lane in lanes(m) {
        let (x, y) = (w.get(*a)[lane], w.get(*b)[lane]);
        let cin = (*read && w.carry >> lane & 1 == 1) as i128;
        let addend = c.map_or(0, |c| w.get(c)[lane] as i128);
        let r = match op {
            CarryOp::Add => x as i128 + y as i128 + cin,
            CarryOp::Sub => x as i128 - y as i128 - cin,
            CarryOp::MadLo => (ext(x).wrapping_mul(ext(y)) & mask) + addend + cin,
            CarryOp::MadHi => ((ext(x).wrapping_mul(ext(y)) >> bits) & mask) + addend + cin,
        };
        out[lane] = (r & mask) as u64;
        flags |= ((r >> bits & 1) as u32) << lane;
    }
    w.put(*d, m, &out);
    if *write {
        w.carry = (w.carry & !m) | flags;
        w.carry_init |= m;
    }
    Ok(())
}

impl Stats {
    /// One instruction of a warp, with its threads.
    fn count(&mut self, mask: u32) {
        self.instructions += u64::from(mask.count_ones());
        self.warp_instructions += 1;
    }
}

/// Parks threads that branch where they go.
fn send(w: &mut Warp, entry: &Entry, op: &Op, exec: u32) -> Res {
    match op {
        Op::Bra { target } => w.park(*target, exec),
        Op::BrxIdx { index, targets } => {
            w.need(entry, *index, exec)?;
            scatter(w, *index, targets, exec)?;
        }
        _ => {}
    }
    Ok(())
}

/// Sends each thread where its index says.
fn scatter(w: &mut Warp, index: Slot, targets: &[u32], exec: u32) -> Res {
    for lane in lanes(exec) {
        let k = w.get(index)[lane] as usize;
        let Some(&target) = targets.get(k) else { return fault(lane as u32, format!("brx.idx {k} of {}", targets.len())) };
        w.park(target, 1 << lane);
    }
    Ok(())
}

/// A barrier wants every thread of the warp that still runs.
fn whole(exec: u32, live: u32) -> Res {
    if exec == live {
        return Ok(());
    }
    let missing = live & !exec;
    fault(
        exec.trailing_zeros(),
        format!("barrier reached by threads {exec:#010x} of the warp, but not by {missing:#010x}, which still run"),
    )
}

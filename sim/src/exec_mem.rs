//! Loads, stores, atomics and copies, with their checks.

use crate::decode::{LOCAL_WINDOW, SHARED_WINDOW, WINDOW};
use crate::exec::Env;
use crate::ops::{Addr, AtomOp, Op, Slot, Space, Widen};
use crate::shared::{Trouble, Who};
use crate::warp::{Copy, Fault, Res, Warp, fault, lanes};

const SINK: Slot = u32::MAX;

/// A resolved place.
#[derive(Clone, Copy)]
enum Place {
    Global(u64),
    Shared(usize),
    Local(usize),
    Param(usize),
}

impl Env<'_> {
    fn who(&self, w: &Warp, lane: usize, pc: u32) -> Who {
        Who { thread: (w.id * 32 + lane) as u32, clock: self.shared.clock(w.id), pc }
    }

    #[cold]
    fn trouble(&self, lane: usize, addr: usize, t: Trouble) -> Box<Fault> {
        let text = match t {
            Trouble::Unwritten(at) => format!("shared byte {at:#x} (access at {addr:#x}) is read before it is written"),
            Trouble::InFlight(at) => {
                format!("shared byte {at:#x} (access at {addr:#x}) is touched while a cp.async to it was not waited for by its thread")
            }
            Trouble::Race { byte, other, wrote } => format!(
                "race on shared byte {byte:#x} (access at {addr:#x}) with the {} of thread {} at {}: nothing orders the two",
                if wrote { "write" } else { "read" },
                other.thread,
                self.line(other.pc)
            ),
        };
        Box::new(Fault { lane: lane as u32, text })
    }

    /// Turns an address into a place, checked for alignment and bounds.
    #[inline(always)]
    fn place(&mut self, space: Space, w: &Warp, lane: usize, addr: &Addr, bytes: usize) -> Res<Place> {
        let at = w.get(addr.base)[lane].wrapping_add(addr.off as u64) & addr.mask;
        if at & (bytes as u64 - 1) != 0 {
            return fault(lane as u32, format!("{space:?} address {at:#x} is not aligned to {bytes} bytes"));
        }
        let end = at.wrapping_add(bytes as u64);
        match space {
            Space::Global | Space::Generic if self.view.contains(at, bytes) => Ok(Place::Global(at)),
            Space::Shared if end <= self.shared.len() as u64 && at < end => Ok(Place::Shared(at as usize)),
            Space::Const if self.view.contains(at, bytes) => Ok(Place::Global(at)),
            Space::Local if end <= self.entry.local as u64 && at < end => Ok(Place::Local(at as usize)),
            Space::Param if end <= self.launch.params.len() as u64 && at < end => Ok(Place::Param(at as usize)),
            Space::Generic if at.wrapping_sub(SHARED_WINDOW) < WINDOW => {
                let shifted = Addr { off: addr.off.wrapping_sub(SHARED_WINDOW as i64), ..*addr };
                self.place(Space::Shared, w, lane, &shifted, bytes)
            }
            Space::Generic if at.wrapping_sub(LOCAL_WINDOW) < WINDOW => {
                let shifted = Addr { off: addr.off.wrapping_sub(LOCAL_WINDOW as i64), ..*addr };
                self.place(Space::Local, w, lane, &shifted, bytes)
            }
            _ => self.outside(space, lane, at, bytes),
        }
    }

    #[cold]
    fn outside(&self, space: Space, lane: usize, at: u64, bytes: usize) -> Res<Place> {
        let where_ = match space {
            Space::Shared => format!("shared memory has {} bytes", self.shared.len()),
            Space::Local => format!("local memory has {} bytes", self.entry.local),
            Space::Param => format!("there are {} bytes of parameters", self.launch.params.len()),
            _ => self.view.describe(at),
        };
        fault(lane as u32, format!("{space:?} access of {bytes} bytes at {at:#x} is out of bounds: {where_}"))
    }

    #[inline(always)]
    fn read(&mut self, w: &Warp, lane: usize, place: Place, off: usize, bytes: usize, pc: u32) -> Res<u64> {
        match place {
            Place::Global(at) => match self.view.read(at + off as u64, bytes) {
                Some(v) => Ok(v),
                None => self.outside(Space::Global, lane, at, bytes).map(|_| 0),
            },
            Place::Shared(at) => {
                let who = self.who(w, lane, pc);
                match self.shared.read(at + off, bytes, who) {
                    Ok(()) => Ok(self.shared.fetch(at + off, bytes)),
                    Err(t) => Err(self.trouble(lane, at, t)),
                }
            }
            Place::Local(at) => {
                let from = lane * self.entry.local + at + off;
                if let Some(i) = w.local_init[from..from + bytes].iter().position(|x| !x) {
                    return fault(lane as u32, format!("local byte {:#x} is read before it is written", at + off + i));
                }
                Ok(little(&w.local[from..from + bytes]))
            }
            Place::Param(at) => Ok(little(&self.launch.params[at + off..at + off + bytes])),
        }
    }

    #[inline(always)]
    fn write(&mut self, w: &mut Warp, lane: usize, place: Place, off: usize, bytes: usize, v: u64, pc: u32) -> Res {
        match place {
            Place::Global(at) => {
                if self.view.write(at + off as u64, bytes, v) {
                    Ok(())
                } else {
                    self.outside(Space::Global, lane, at, bytes).map(|_| ())
                }
            }
            Place::Shared(at) => {
                let who = self.who(w, lane, pc);
                self.shared.write(at + off, bytes, v, who).map_err(|t| self.trouble(lane, at, t))
            }
            Place::Local(at) => {
                let from = lane * self.entry.local + at + off;
                w.local[from..from + bytes].copy_from_slice(&v.to_le_bytes()[..bytes]);
                w.local_init[from..from + bytes].fill(true);
                Ok(())
            }
            Place::Param(_) => fault(lane as u32, "parameters cannot be written".into()),
        }
    }

    pub(crate) fn load(
        &mut self,
        w: &mut Warp,
        mask: u32,
        pc: u32,
        what: (Space, usize, usize),
        d: &[Slot; 4],
        addr: &Addr,
        widen: Widen,
    ) -> Res {
        let (space, bytes, n) = what;
        w.need(self.entry, addr.base, mask)?;
        let mut out = [[0u64; 32]; 4];
        let clock = self.shared.clock(w.id);
        for lane in lanes(mask) {
            let place = self.place(space, w, lane, addr, bytes * n)?;
            // The common case, a vector at once.
            if let (Place::Shared(at), false) = (place, widen.signed) {
                let who = Who { thread: (w.id * 32 + lane) as u32, clock, pc };
                if let Err(t) = self.shared.read(at, bytes * n, who) {
                    return Err(self.trouble(lane, at, t));
                }
                for (j, out) in out[..n].iter_mut().enumerate() {
                    out[lane] = self.shared.fetch(at + j * bytes, bytes);
                }
                continue;
            }
            for (j, out) in out[..n].iter_mut().enumerate() {
                let v = self.read(w, lane, place, j * bytes, bytes, pc)?;
                let v = if widen.signed { sign(v, bytes) as u64 & widen.mask } else { v };
                out[lane] = v;
            }
        }
        for (d, out) in d[..n].iter().zip(&out) {
            if *d != SINK {
                w.put(*d, mask, out);
            }
        }
        Ok(())
    }

    pub(crate) fn store(&mut self, w: &mut Warp, mask: u32, pc: u32, what: (Space, usize, usize), s: &[Slot; 4], addr: &Addr) -> Res {
        let (space, bytes, n) = what;
        w.need(self.entry, addr.base, mask)?;
        for s in &s[..n] {
            w.need(self.entry, *s, mask)?;
        }
        for lane in lanes(mask) {
            let place = self.place(space, w, lane, addr, bytes * n)?;
            for (j, s) in s[..n].iter().enumerate() {
                let v = w.get(*s)[lane];
                self.write(w, lane, place, j * bytes, bytes, v, pc)?;
            }
        }
        Ok(())
    }

    pub(crate) fn atom(&mut self, w: &mut Warp, mask: u32, pc: u32, op: &Op) -> Res {
        let Op::Atom { space, op, bytes, signed, d, addr, b, c } = op else { return Ok(()) };
        let bytes = *bytes as usize;
        for s in [addr.base, *b, *c] {
            w.need(self.entry, s, mask)?;
        }
        let mut out = [0; 32];
        for lane in lanes(mask) {
            let (b, c) = (w.get(*b)[lane], w.get(*c)[lane]);
            let place = self.place(*space, w, lane, addr, bytes)?;
            if let Place::Shared(at) = place {
                let who = self.who(w, lane, pc);
                let code = &self.entry.code;
                let atomic = |pc: u32| matches!(code[pc as usize].op, Op::Atom { .. });
                let old = self.shared.atomic(at, bytes, who, atomic).map_err(|t| self.trouble(lane, at, t))?;
                out[lane] = old;
                self.shared.atomic_store(at, bytes, combine(*op, bytes, *signed, old, b, c), who);
            } else {
                let old = self.read(w, lane, place, 0, bytes, pc)?;
                out[lane] = old;
                self.write(w, lane, place, 0, bytes, combine(*op, bytes, *signed, old, b, c), pc)?;
            }
        }
        if let Some(d) = d {
            w.put(*d, mask, &out);
        }
        Ok(())
    }

    pub(crate) fn copy_async(&mut self, w: &mut Warp, mask: u32, pc: u32, dst: &Addr, src: &Addr, bytes: usize, size: Option<Slot>) -> Res {
        w.need(self.entry, dst.base, mask)?;
        w.need(self.entry, src.base, mask)?;
        if let Some(s) = size {
            w.need(self.entry, s, mask)?;
        }
        for lane in lanes(mask) {
            let take = size.map_or(bytes as u64, |s| w.get(s)[lane] & 0xffff_ffff) as usize;
            if take > bytes {
                return fault(lane as u32, format!("cp.async of {bytes} bytes with a source of {take} bytes"));
            }
            let Place::Shared(to) = self.place(Space::Shared, w, lane, dst, bytes)? else { return Ok(()) };
            let from = w.get(src.base)[lane].wrapping_add(src.off as u64);
            if from & (bytes as u64 - 1) != 0 {
                return fault(lane as u32, format!("Global address {from:#x} is not aligned to {bytes} bytes"));
            }
            if take > 0 && !self.view.contains(from, take) {
                return self.outside(Space::Global, lane, from, take).map(|_| ());
            }
            let who = self.who(w, lane, pc);
            for i in (0..bytes).step_by(4) {
                let mut v = 0;
                for k in i..take.min(i + 4) {
                    v |= self.view.read(from + k as u64, 1).unwrap_or(0) << (8 * (k - i));
                }
                self.shared.write(to + i, 4, v, who).map_err(|t| self.trouble(lane, to, t))?;
            }
            self.shared.depart(to, bytes);
            w.open[lane].push(Copy { addr: to, bytes, pc });
        }
        Ok(())
    }

    pub(crate) fn copy_commit(&mut self, w: &mut Warp, mask: u32) {
        for lane in lanes(mask) {
            let group = std::mem::take(&mut w.open[lane]);
            w.committed[lane].push_back(group);
        }
    }

    pub(crate) fn copy_wait(&mut self, w: &mut Warp, mask: u32, keep: usize, all: bool) {
        for lane in lanes(mask) {
            if all {
                self.copy_commit(w, 1 << lane);
            }
            while w.committed[lane].len() > keep {
                for c in w.committed[lane].pop_front().into_iter().flatten() {
                    let who = self.who(w, lane, c.pc);
                    self.shared.arrive(c.addr, c.bytes, who);
                }
            }
        }
    }

    /// `ldmatrix`: each lane receives two elements of each 8×8 matrix, whose rows the lanes' addresses name, eight to a matrix.
    pub(crate) fn load_matrix(&mut self, w: &mut Warp, mask: u32, pc: u32, n: usize, trans: bool, d: &[Slot; 4], addr: &Addr) -> Res {
        if mask != u32::MAX {
            return fault(mask.trailing_zeros(), "ldmatrix needs all 32 threads".into());
        }
        let used = if n == 4 { u32::MAX } else { (1 << (8 * n)) - 1 };
        w.need(self.entry, addr.base, used)?;
        let mut out = [[0; 32]; 4];
        for (m, out) in out[..n].iter_mut().enumerate() {
            let mut rows = [0; 8];
            for (r, row) in rows.iter_mut().enumerate() {
                let Place::Shared(at) = self.place(Space::Shared, w, 8 * m + r, addr, 16)? else { continue };
                *row = at;
            }
            for (lane, out) in out.iter_mut().enumerate() {
                let who = self.who(w, lane, pc);
                let (group, two) = (lane / 4, lane % 4 * 2);
                let places = if trans {
                    [rows[two] + 2 * group, rows[two + 1] + 2 * group]
                } else {
                    [rows[group] + 2 * two, rows[group] + 2 * two + 2]
                };
                for (j, at) in places.into_iter().enumerate() {
                    self.shared.read(at, 2, who).map_err(|t| self.trouble(lane, at, t))?;
                    *out |= self.shared.fetch(at, 2) << (16 * j);
                }
            }
        }
        for (d, out) in d[..n].iter().zip(&out) {
            w.put(*d, mask, out);
        }
        Ok(())
    }
}

fn little(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |v, b| v << 8 | *b as u64)
}

fn sign(v: u64, bytes: usize) -> i64 {
    let shift = 64 - 8 * bytes as u32;
    (v << shift) as i64 >> shift
}

/// The value an atomic (or a step of a reduction) leaves.
pub(crate) fn combine(op: AtomOp, bytes: usize, signed: bool, old: u64, b: u64, c: u64) -> u64 {
    let mask = if bytes == 8 { u64::MAX } else { 0xffff_ffff };
    let less = if signed { sign(old, bytes) < sign(b, bytes) } else { old < b };
    let v = match op {
        AtomOp::Add => old.wrapping_add(b),
        AtomOp::Inc => {
            if old >= b {
                0
            } else {
                old + 1
            }
        }
        AtomOp::Dec => {
            if old == 0 || old > b {
                b
            } else {
                old - 1
            }
        }
        AtomOp::Cas => {
            if old == b {
                c
            } else {
                old
            }
        }
        AtomOp::Exch => b,
        AtomOp::Max => {
            if less {
                b
            } else {
                old
            }
        }
        AtomOp::Min => {
            if less {
                old
            } else {
                b
            }
        }
        AtomOp::And => old & b,
        AtomOp::Or => old | b,
        AtomOp::Xor => old ^ b,
    };
    v & mask
}

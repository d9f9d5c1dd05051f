//! Barriers, and exchanges between the lanes of a warp.

use crate::exec::{Bar, Block, Env, Stop};
use crate::exec_mem::combine;
use crate::ops::{Guard, Op, ShflMode, Slot, VoteMode};
use crate::warp::{Res, Waiting, Warp, fault, lanes};

impl Block<'_> {
    /// Deals with why warp `i` stopped at instruction `pc`.
    pub(crate) fn stopped(&mut self, i: usize, stop: Stop, pc: u32) -> Res {
        match stop {
            Stop::Slice => Ok(()),
            Stop::Barrier => self.arrive(i, pc),
            Stop::Done => {
                // The last to leave may be all that a barrier waited for.
                for id in 0..self.bars.len() {
                    self.complete(id);
                }
                Ok(())
            }
        }
    }

    fn arrive(&mut self, i: usize, pc: u32) -> Res {
        let e = self.env.entry;
        let w = &mut self.warps[i];
        let (id, count, arrive, src) = match &e.code[pc as usize].op {
            Op::Bar { id, count, arrive } => (*id, *count, *arrive, None),
            Op::BarRed { id, count, src, .. } => (*id, *count, false, Some(*src)),
            _ => return Ok(()),
        };
        let id = uniform(w, e, id)? as usize;
        let count = if let Some(c) = count { Some(uniform(w, e, c)? as u32) } else { None };
        if id >= 16 {
            return fault(0, format!("barrier {id} does not exist"));
        }
        if count.is_some_and(|c| c == 0 || c % 32 != 0) {
            return fault(0, format!("barrier for {} threads, not a multiple of 32", count.unwrap_or(0)));
        }
        let vote = if let Some(g) = src { w.pred(e, g, w.live)? & w.live } else { 0 };
        let bar = &mut self.bars[id];
        if !bar.arrived.is_empty() && bar.count != count {
            return fault(0, format!("barrier {id} is waited for with {count:?} threads here and {:?} elsewhere", bar.count));
        }
        bar.count = count;
        bar.arrived.push((i, !arrive));
        bar.votes.push((vote, w.live));
        let mine = self.env.shared.knowledge(i);
        if bar.knowledge.is_empty() {
            bar.knowledge = mine;
        } else {
            bar.knowledge.iter_mut().zip(mine).for_each(|(k, m)| *k = (*k).max(m));
        }
        self.env.shared.meet(i);
        if !arrive {
            w.waiting = Some(Waiting { id, pc });
        }
        if count.is_some_and(|c| bar.arrived.len() as u32 * 32 > c) {
            return fault(0, format!("more warps at barrier {id} than the {count:?} threads it is for"));
        }
        self.complete(id);
        Ok(())
    }

    /// Lets the warps at a barrier go if all that it waits for have arrived.
    fn complete(&mut self, id: usize) {
        let bar = &self.bars[id];
        if bar.arrived.is_empty() {
            return;
        }
        let full = match bar.count {
            Some(c) => bar.arrived.len() as u32 * 32 >= c,
            None => self.warps.iter().all(|w| w.live == 0 || bar.arrived.iter().any(|a| a.0 == w.id)),
        };
        if !full {
            return;
        }
        let Bar { arrived, knowledge, votes, .. } = std::mem::take(&mut self.bars[id]);
        let ones: u32 = votes.iter().map(|v| v.0.count_ones()).sum();
        let all: u32 = votes.iter().map(|v| v.1.count_ones()).sum();
        for (i, waits) in arrived {
            if !waits {
                continue;
            }
            let w = &mut self.warps[i];
            if let Some(x) = w.waiting.take()
                && let Op::BarRed { op, d, .. } = self.env.entry.code[x.pc as usize].op
            {
                match op {
                    VoteMode::Ballot => w.put(d, w.live, &[ones as u64; 32]),
                    VoteMode::All => w.put_pred(d, w.live, if ones == all { u32::MAX } else { 0 }),
                    _ => w.put_pred(d, w.live, if ones > 0 { u32::MAX } else { 0 }),
                }
            }
            self.env.shared.learn(i, &knowledge);
        }
    }
}

/// A value that all live lanes must agree on.
fn uniform(w: &Warp, e: &crate::ops::Entry, slot: Slot) -> Res<u64> {
    w.need(e, slot, w.live)?;
    let first = w.get(slot)[w.live.trailing_zeros() as usize];
    match lanes(w.live).find(|&l| w.get(slot)[l] != first) {
        Some(l) => fault(l as u32, "a barrier's operands differ between the threads of a warp".into()),
        None => Ok(first),
    }
}

impl Env<'_> {
    /// The mask operand must name exactly the threads that execute.
    fn members(&self, w: &Warp, m: u32, slot: Slot) -> Res {
        w.need(self.entry, slot, m)?;
        for lane in lanes(m) {
            let named = w.get(slot)[lane] as u32;
            if named != m {
                let absent = named & !m;
                let text = if named >> lane & 1 == 0 {
                    format!("the member mask {named:#010x} does not name the executing thread")
                } else if absent != 0 {
                    format!("the member mask {named:#010x} names threads {absent:#010x} that do not execute this instruction")
                } else {
                    continue;
                };
                return fault(lane as u32, text);
            }
        }
        Ok(())
    }

    /// The executing threads by the mask they name, since disjoint groups may meet at one instruction.
    fn parts(&self, w: &Warp, m: u32, slot: Slot) -> Res<Vec<u32>> {
        self.members(w, m, slot)?;
        let (mut rest, mut out) = (m, Vec::with_capacity(1));
        while rest != 0 {
            let named = w.get(slot)[rest.trailing_zeros() as usize] as u32;
            if let Some(lane) = lanes(named).find(|&l| w.get(slot)[l] as u32 != named) {
                return fault(lane as u32, "the member masks of threads that name each other differ".into());
            }
            out.push(named);
            rest &= !named;
        }
        Ok(out)
    }

    /// Instructions that pass values between lanes; all but `activemask` also bring the lanes' memory accesses into order.
    pub(crate) fn exchange(&mut self, w: &mut Warp, m: u32, op: &Op) -> Res {
        match op {
            Op::WarpSync { mask } => {
                self.members(w, m, *mask)?;
                self.shared.meet(w.id);
            }
            Op::Shfl { .. } => {
                self.shfl(w, m, op)?;
                self.shared.meet(w.id);
            }
            Op::Vote { mode, d, src, mask } => {
                for part in self.parts(w, m, *mask)? {
                    self.vote(w, part, *mode, *d, *src)?;
                }
            }
            Op::Match { mask, .. } => {
                for part in self.parts(w, m, *mask)? {
                    self.matching(w, part, op)?;
                }
            }
            Op::Redux { op, signed, d, a, mask } => {
                for part in self.parts(w, m, *mask)? {
                    w.need(self.entry, *a, part)?;
                    let mut values = lanes(part).map(|l| w.get(*a)[l]);
                    let first = values.next().unwrap_or(0);
                    let total = values.fold(first, |x, y| combine(*op, 4, *signed, x, y, 0));
                    w.put(*d, part, &[total; 32]);
                }
            }
            Op::ActiveMask { d } => w.put(*d, m, &[m as u64; 32]),
            op => return fault(m.trailing_zeros(), format!("{op:?} cannot be executed")),
        }
        Ok(())
    }

    fn shfl(&mut self, w: &mut Warp, m: u32, op: &Op) -> Res {
        let Op::Shfl { mode, d, p, a, b, c, mask } = op else { return Ok(()) };
        self.parts(w, m, *mask)?;
        w.need(self.entry, *b, m)?;
        w.need(self.entry, *c, m)?;
        w.need(self.entry, *a, m)?;
        let (mut out, mut inside) = ([0; 32], 0u32);
        for lane in lanes(m) {
            let (l, b, c) = (lane as i32, (w.get(*b)[lane] & 31) as i32, w.get(*c)[lane]);
            let (clamp, seg) = ((c & 31) as i32, (c >> 8 & 31) as i32);
            let max = (l & seg) | (clamp & !seg);
            let (j, ok) = match mode {
                ShflMode::Up => (l - b, l - b >= max),
                ShflMode::Down => (l + b, l + b <= max),
                ShflMode::Bfly => (l ^ b, l ^ b <= max),
                ShflMode::Idx => {
                    let j = (l & seg) | (b & !seg);
                    (j, j <= max)
                }
            };
            let j = if ok { j } else { l };
            if w.get(*mask)[lane] >> j & 1 == 0 {
                return fault(lane as u32, format!("shfl reads from lane {j}, which does not take part"));
            }
            out[lane] = w.get(*a)[j as usize];
            inside |= (ok as u32) << lane;
        }
        w.put(*d, m, &out);
        if let Some(p) = p {
            w.put_pred(*p, m, inside);
        }
        Ok(())
    }

    fn vote(&mut self, w: &mut Warp, m: u32, mode: VoteMode, d: Slot, src: Guard) -> Res {
        let yes = w.pred(self.entry, src, m)? & m;
        let result = match mode {
            VoteMode::Ballot => {
                w.put(d, m, &[yes as u64; 32]);
                return Ok(());
            }
            VoteMode::All => yes == m,
            VoteMode::Any => yes != 0,
            VoteMode::Uni => yes == m || yes == 0,
        };
        w.put_pred(d, m, if result { u32::MAX } else { 0 });
        Ok(())
    }

    fn matching(&mut self, w: &mut Warp, m: u32, op: &Op) -> Res {
        let Op::Match { all, d, p, a, .. } = op else { return Ok(()) };
        w.need(self.entry, *a, m)?;
        let x = w.get(*a);
        let mut out = [0; 32];
        for lane in lanes(m) {
            out[lane] = lanes(m).filter(|&l| x[l] == x[lane]).fold(0u64, |s, l| s | 1 << l);
        }
        if *all {
            let same = lanes(m).all(|l| out[l] == m as u64);
            out = [if same { m as u64 } else { 0 }; 32];
            if let Some(p) = p {
                w.put_pred(*p, m, if same { u32::MAX } else { 0 });
            }
        }
        w.put(*d, m, &out);
        Ok(())
    }
}

//! A block's shared memory with a shadow for each byte: whether it was written, and who touched it last.
//!
//! Order between warps is a vector clock: a warp's clock grows at each of its barriers, and a barrier makes every warp that waits at
//! it know the clocks of all that arrived. An access is ordered after an earlier one of another warp if this warp knows a clock that
//! is not older. Inside a warp, accesses of different lanes are ordered only by a growth of the warp's own clock.

/// Who touches a byte.
#[derive(Clone, Copy)]
pub(crate) struct Who {
    /// Index of the thread in the block.
    pub(crate) thread: u32,
    pub(crate) clock: u32,
    pub(crate) pc: u32,
}

impl Who {
    fn pack(self) -> u64 {
        (self.clock as u64) << 32 | (self.thread as u64) << 22 | self.pc as u64
    }

    fn unpack(v: u64) -> Who {
        Who { clock: (v >> 32) as u32, thread: (v >> 22) as u32 & 1023, pc: v as u32 & 0x3f_ffff }
    }
}

/// What is wrong with an access.
pub(crate) enum Trouble {
    Unwritten(u64),
    InFlight(u64),
    Race { byte: u64, other: Who, wrote: bool },
}

const FRESH: u8 = 0;
const WRITTEN: u8 = 1;
const IN_FLIGHT: u8 = 2;

#[derive(Default)]
pub(crate) struct Shared {
    data: Vec<u8>,
    state: Vec<u8>,
    writer: Vec<u64>,
    reader: Vec<u64>,
    /// A reader of another thread than `reader`'s, so that a write of either is seen to conflict with the other.
    second: Vec<u64>,
    /// Clocks known to each warp: `known[w * warps + u]` is what warp `w` knows of warp `u`.
    known: Vec<u32>,
    warps: usize,
}

impl Shared {
    pub(crate) fn new(bytes: usize, warps: usize) -> Self {
        Shared {
            data: vec![0xff; bytes],
            state: vec![FRESH; bytes],
            writer: vec![0; bytes],
            reader: vec![0; bytes],
            second: vec![0; bytes],
            known: vec![0; warps * warps],
            warps,
        }
    }

    /// A new block: nothing is written, and what the last block did is ordered before all of this one.
    pub(crate) fn restart(&mut self) {
        self.data.fill(0xff);
        self.state.fill(FRESH);
        let top = self.known.iter().max().copied().unwrap_or(0);
        self.known.fill(top);
        for w in 0..self.warps {
            self.known[w * self.warps + w] = top + 1;
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.data.len()
    }

    pub(crate) fn clock(&self, warp: usize) -> u32 {
        self.known[warp * self.warps + warp]
    }

    /// The warp's lanes have met: what they did is ordered before what they do next.
    pub(crate) fn meet(&mut self, warp: usize) {
        self.known[warp * self.warps + warp] += 1;
    }

    /// What a warp knows, to hand on at a barrier.
    pub(crate) fn knowledge(&self, warp: usize) -> Vec<u32> {
        self.known[warp * self.warps..(warp + 1) * self.warps].to_vec()
    }

    /// Adds to what a warp knows.
    pub(crate) fn learn(&mut self, warp: usize, from: &[u32]) {
        for (k, &f) in self.known[warp * self.warps..].iter_mut().zip(from) {
            *k = (*k).max(f);
        }
    }

    /// Whether an earlier access is not ordered before one by `who`.
    #[inline(always)]
    fn clash(&self, earlier: u64, who: Who) -> bool {
        let (clock, thread) = ((earlier >> 32) as u32, (earlier >> 22) as u32 & 1023);
        if thread == who.thread {
            return false;
        }
        if thread / 32 == who.thread / 32 {
            return clock == who.clock;
        }
        self.known[(who.thread / 32) as usize * self.warps + (thread / 32) as usize] < clock
    }

    /// Reads up to 8 bytes that lie inside; the caller has checked the bounds.
    #[inline(always)]
    pub(crate) fn read(&mut self, addr: usize, len: usize, who: Who) -> Result<u64, Trouble> {
        let me = who.pack();
        let mut out = 0;
        for (i, at) in (addr..addr + len).enumerate() {
            match self.state[at] {
                WRITTEN => {}
                FRESH => return Err(Trouble::Unwritten(at as u64)),
                _ => return Err(Trouble::InFlight(at as u64)),
            }
            if self.clash(self.writer[at], who) {
                return Err(Trouble::Race { byte: at as u64, other: Who::unpack(self.writer[at]), wrote: true });
            }
            let last = self.reader[at];
            if last >> 22 != me >> 22 {
                // Keep the older one unless this warp's order already covers it.
                if self.clash(last, who) {
                    let (old, second) = (Who::unpack(last), self.second[at]);
                    if old.thread / 32 != who.thread / 32 || !self.clash(second, who) {
                        self.second[at] = last;
                    }
                }
                self.reader[at] = me;
            }
            out |= (self.data[at] as u64) << (8 * i);
        }
        Ok(out)
    }

    #[inline(always)]
    pub(crate) fn write(&mut self, addr: usize, len: usize, value: u64, who: Who) -> Result<(), Trouble> {
        let me = who.pack();
        for (i, at) in (addr..addr + len).enumerate() {
            let byte = (value >> (8 * i)) as u8;
            if self.state[at] == IN_FLIGHT {
                return Err(Trouble::InFlight(at as u64));
            }
            let w = self.writer[at];
            if self.clash(w, who) {
                let other = Who::unpack(w);
                // Lanes of one store that agree on the value do no harm.
                let same_store = other.pc == who.pc && other.thread / 32 == who.thread / 32 && self.data[at] == byte;
                if !same_store {
                    return Err(Trouble::Race { byte: at as u64, other, wrote: true });
                }
            }
            for r in [self.reader[at], self.second[at]] {
                if self.clash(r, who) {
                    return Err(Trouble::Race { byte: at as u64, other: Who::unpack(r), wrote: false });
                }
            }
            self.data[at] = byte;
            self.state[at] = WRITTEN;
            self.writer[at] = me;
        }
        Ok(())
    }

    /// A read-modify-write, which races with ordinary accesses but not with other atomics; those are let through by their marks.
    pub(crate) fn atomic(&mut self, addr: usize, len: usize, who: Who, is_atomic: impl Fn(u32) -> bool) -> Result<u64, Trouble> {
        let mut out = 0;
        for (i, at) in (addr..addr + len).enumerate() {
            match self.state[at] {
                WRITTEN => {}
                FRESH => return Err(Trouble::Unwritten(at as u64)),
                _ => return Err(Trouble::InFlight(at as u64)),
            }
            let w = self.writer[at];
            if self.clash(w, who) && !is_atomic(Who::unpack(w).pc) {
                return Err(Trouble::Race { byte: at as u64, other: Who::unpack(w), wrote: true });
            }
            for r in [self.reader[at], self.second[at]] {
                if self.clash(r, who) {
                    return Err(Trouble::Race { byte: at as u64, other: Who::unpack(r), wrote: false });
                }
            }
            out |= (self.data[at] as u64) << (8 * i);
        }
        Ok(out)
    }

    /// Stores an atomic's result, already checked by [`Shared::atomic`].
    pub(crate) fn atomic_store(&mut self, addr: usize, len: usize, value: u64, who: Who) {
        for (i, at) in (addr..addr + len).enumerate() {
            self.data[at] = (value >> (8 * i)) as u8;
            self.writer[at] = who.pack();
        }
    }

    /// Marks bytes just written as on their way: nobody may touch them until the issuing thread has waited.
    pub(crate) fn depart(&mut self, addr: usize, len: usize) {
        self.state[addr..addr + len].fill(IN_FLIGHT);
    }

    /// The copy is complete as of now, as a write of the thread that waited.
    pub(crate) fn arrive(&mut self, addr: usize, len: usize, who: Who) {
        self.state[addr..addr + len].fill(WRITTEN);
        self.writer[addr..addr + len].fill(who.pack());
    }
}

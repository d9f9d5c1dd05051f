//! A block's shared memory with a shadow for each granule: whether it was written, and who touched it last. A granule is as wide as
//! the kernel's narrowest access, so that no two accesses share one without sharing a byte.
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
    /// Binary logarithm of a granule's bytes.
    shift: u32,
}

impl Shared {
    pub(crate) fn new(bytes: usize, warps: usize, granule: usize) -> Self {
        let n = bytes.div_ceil(granule);
        Shared {
            data: vec![0xff; bytes],
            state: vec![FRESH; n],
            writer: vec![0; n],
            reader: vec![0; n],
            second: vec![0; n],
            known: vec![0; warps * warps],
            warps,
            shift: granule.trailing_zeros(),
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

    /// The granules of an access, which is aligned to its width.
    #[inline(always)]
    fn granules(&self, addr: usize, len: usize) -> std::ops::Range<usize> {
        addr >> self.shift..(addr + len) >> self.shift
    }

    /// The address of a granule.
    fn byte(&self, granule: usize) -> u64 {
        (granule << self.shift) as u64
    }

    /// Up to 8 bytes, without a check.
    #[inline(always)]
    pub(crate) fn fetch(&self, addr: usize, len: usize) -> u64 {
        match self.data[addr..addr + len] {
            [a, b, c, d] => u32::from_le_bytes([a, b, c, d]) as u64,
            [a, b] => u16::from_le_bytes([a, b]) as u64,
            ref all => all.iter().rev().fold(0, |v, b| v << 8 | *b as u64),
        }
    }

    #[inline(always)]
    fn written(&self, at: usize) -> Result<(), Trouble> {
        match self.state[at] {
            WRITTEN => Ok(()),
            FRESH => Err(Trouble::Unwritten(self.byte(at))),
            _ => Err(Trouble::InFlight(self.byte(at))),
        }
    }

    /// Checks a read that lies inside, and remembers it.
    #[inline(always)]
    pub(crate) fn read(&mut self, addr: usize, len: usize, who: Who) -> Result<(), Trouble> {
        let me = who.pack();
        for at in self.granules(addr, len) {
            self.written(at)?;
            if self.clash(self.writer[at], who) {
                return Err(Trouble::Race { byte: self.byte(at), other: Who::unpack(self.writer[at]), wrote: true });
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
        }
        Ok(())
    }

    /// Nobody unordered may have read a granule that is about to be written.
    #[inline(always)]
    fn unread(&self, at: usize, who: Who) -> Result<(), Trouble> {
        for r in [self.reader[at], self.second[at]] {
            if self.clash(r, who) {
                return Err(Trouble::Race { byte: self.byte(at), other: Who::unpack(r), wrote: false });
            }
        }
        Ok(())
    }

    /// Writes up to 8 bytes that lie inside.
    #[inline(always)]
    pub(crate) fn write(&mut self, addr: usize, len: usize, value: u64, who: Who) -> Result<(), Trouble> {
        let me = who.pack();
        let bytes = value.to_le_bytes();
        for at in self.granules(addr, len) {
            if self.state[at] == IN_FLIGHT {
                return Err(Trouble::InFlight(self.byte(at)));
            }
            let w = self.writer[at];
            if self.clash(w, who) {
                let other = Who::unpack(w);
                // Lanes of one store that agree on the value do no harm.
                let same_store = other.pc == who.pc && other.thread / 32 == who.thread / 32;
                if !(same_store && self.data[addr..addr + len] == bytes[..len]) {
                    return Err(Trouble::Race { byte: self.byte(at), other, wrote: true });
                }
            }
            self.unread(at, who)?;
            self.state[at] = WRITTEN;
            self.writer[at] = me;
        }
        self.data[addr..addr + len].copy_from_slice(&bytes[..len]);
        Ok(())
    }

    /// Checks a read-modify-write, which races with ordinary accesses but not with other atomics, known by their instructions.
    pub(crate) fn atomic(&mut self, addr: usize, len: usize, who: Who, is_atomic: impl Fn(u32) -> bool) -> Result<u64, Trouble> {
        for at in self.granules(addr, len) {
            self.written(at)?;
            let w = self.writer[at];
            if self.clash(w, who) && !is_atomic(Who::unpack(w).pc) {
                return Err(Trouble::Race { byte: self.byte(at), other: Who::unpack(w), wrote: true });
            }
            self.unread(at, who)?;
        }
        Ok(self.fetch(addr, len))
    }

    /// Stores an atomic's result, already checked by [`Shared::atomic`].
    pub(crate) fn atomic_store(&mut self, addr: usize, len: usize, value: u64, who: Who) {
        self.data[addr..addr + len].copy_from_slice(&value.to_le_bytes()[..len]);
        let granules = self.granules(addr, len);
        self.writer[granules].fill(who.pack());
    }

    /// Marks bytes just written as on their way: nobody may touch them until the issuing thread has waited.
    pub(crate) fn depart(&mut self, addr: usize, len: usize) {
        let granules = self.granules(addr, len);
        self.state[granules].fill(IN_FLIGHT);
    }

    /// The copy is complete as of now, as a write of the thread that waited.
    pub(crate) fn arrive(&mut self, addr: usize, len: usize, who: Who) {
        let granules = self.granules(addr, len);
        self.state[granules.clone()].fill(WRITTEN);
        self.writer[granules].fill(who.pack());
    }
}

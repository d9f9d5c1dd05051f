//! A warp's state: registers by lane, what is initialised, and where its threads stand.

use crate::ops::{Entry, Guard, Lanes, Slot};

/// Something a kernel did wrong, with the lane that did it.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) lane: u32,
    pub(crate) text: String,
}

pub(crate) type Res<T = ()> = Result<T, Box<Fault>>;

#[cold]
pub(crate) fn fault<T>(lane: u32, text: String) -> Res<T> {
    Err(Box::new(Fault { lane, text }))
}

/// Threads that stand at the same instruction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    pub(crate) pc: u32,
    pub(crate) mask: u32,
}

/// Where a warp waits, and for how many threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) id: usize,
    pub(crate) pc: u32,
}

/// A copy issued but not yet waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Copy {
    pub(crate) addr: usize,
    pub(crate) bytes: usize,
    pub(crate) pc: u32,
}

#[derive(Default, Clone)]
pub(crate) struct Warp {
    pub(crate) id: usize,
    pub(crate) regs: Vec<Lanes>,
    pub(crate) init: Vec<u32>,
    pub(crate) preds: Vec<u32>,
    pub(crate) pinit: Vec<u32>,
    pub(crate) carry: u32,
    pub(crate) carry_init: u32,
    /// Sorted by descending pc, so that the next group to run is the last.
    pub(crate) groups: Vec<Group>,
    pub(crate) waiting: Option<Waiting>,
    pub(crate) live: u32,
    /// Bytes of local memory of each lane, one lane after another, and which of them were written.
    pub(crate) local: Vec<u8>,
    pub(crate) local_init: Vec<bool>,
    /// For each lane, the copies not yet committed, then the committed groups.
    pub(crate) open: Vec<Vec<Copy>>,
    pub(crate) committed: Vec<std::collections::VecDeque<Vec<Copy>>>,
}

impl Warp {
    pub(crate) fn new(id: usize, entry: &Entry) -> Self {
        let (n, p) = (entry.reg_names.len(), entry.pred_names.len());
        Warp {
            id,
            regs: vec![[0; 32]; n],
            init: vec![0; n],
            preds: vec![0; p],
            pinit: vec![0; p],
            local: vec![0xff; entry.local * 32],
            local_init: vec![false; entry.local * 32],
            open: vec![Vec::new(); 32],
            committed: vec![Default::default(); 32],
            ..Default::default()
        }
    }

    /// Adds threads at `pc`, joining those already there.
    pub(crate) fn park(&mut self, pc: u32, mask: u32) {
        if mask == 0 {
            return;
        }
        let at = self.groups.partition_point(|g| g.pc > pc);
        match self.groups.get_mut(at) {
            Some(g) if g.pc == pc => g.mask |= mask,
            _ => self.groups.insert(at, Group { pc, mask }),
        }
    }

    #[cold]
    fn unset(&self, entry: &Entry, slot: Slot, mask: u32) -> Box<Fault> {
        let lane = (mask & !self.init[slot as usize]).trailing_zeros();
        Box::new(Fault { lane, text: format!("register {} is read before it is written", entry.reg_names[slot as usize]) })
    }

    /// The register must hold a value in every lane of `mask`.
    #[inline(always)]
    pub(crate) fn need(&self, entry: &Entry, slot: Slot, mask: u32) -> Res {
        if self.init[slot as usize] & mask == mask { Ok(()) } else { Err(self.unset(entry, slot, mask)) }
    }

    #[inline(always)]
    pub(crate) fn get(&self, slot: Slot) -> &Lanes {
        &self.regs[slot as usize]
    }

    /// Writes the lanes of `mask`.
    #[inline(always)]
    pub(crate) fn put(&mut self, slot: Slot, mask: u32, values: &Lanes) {
        let d = &mut self.regs[slot as usize];
        if mask == u32::MAX {
            *d = *values;
        } else {
            for (i, (d, v)) in d.iter_mut().zip(values).enumerate() {
                if mask >> i & 1 == 1 {
                    *d = *v;
                }
            }
        }
        self.init[slot as usize] |= mask;
    }

    /// The lanes for which a predicate operand holds; it must be set in every lane of `mask`.
    #[inline(always)]
    pub(crate) fn pred(&self, entry: &Entry, g: Guard, mask: u32) -> Res<u32> {
        let unset = mask & !self.pinit[g.pred as usize];
        if unset != 0 {
            let name = &entry.pred_names[g.pred as usize];
            return fault(unset.trailing_zeros(), format!("predicate {name} is read before it is written"));
        }
        let p = self.preds[g.pred as usize];
        Ok(if g.neg { !p } else { p })
    }

    #[inline(always)]
    pub(crate) fn put_pred(&mut self, pred: u32, mask: u32, values: u32) {
        let p = &mut self.preds[pred as usize];
        *p = (*p & !mask) | (values & mask);
        self.pinit[pred as usize] |= mask;
    }
}

/// The lanes of a mask, lowest first.
pub(crate) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut rest = mask;
    std::iter::from_fn(move || {
        (rest != 0).then(|| {
            let l = rest.trailing_zeros() as usize;
            rest &= rest - 1;
            l
        })
    })
}

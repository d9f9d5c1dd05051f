//! A team: threads that run one piece of work together and wait for one another in the middle of it.
//!
//! The threads of a pool cannot do that: a pool may run two pieces one after the other on one thread, and then the first waits for ever.
//! So a team has threads of its own. Between pieces of work they spin a little, then sleep.

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::Split;

/// Turns of spinning before a thread gives its core to others: some microseconds, longer than threads differ where each has a core.
const SPINS: usize = 1 << 10;
/// Turns of giving the core away before a thread without work sleeps.
const YIELDS: usize = 1 << 8;

/// Work whose lifetime is hidden; see [`Team::run`].
#[derive(Clone, Copy)]
struct Job(*const (dyn Fn(usize) + Sync));

// SAFETY: what it points to is shared between threads by `&`, and is `Sync`.
unsafe impl Send for Job {}

#[derive(Default)]
struct Slot {
    job: Option<Job>,
    /// How many pieces of work there were.
    count: usize,
    quit: bool,
}

#[derive(Default)]
struct Shared {
    slot: Mutex<Slot>,
    wake: Condvar,
    /// As `Slot::count`.
    count: AtomicUsize,
    /// Helpers that are done with the work.
    done: AtomicUsize,
    arrived: AtomicUsize,
    generation: AtomicUsize,
    panicked: AtomicBool,
}

/// Waits until `ready`: spins, then gives the core away again and again. False where it has waited for `yields` turns.
fn wait(ready: impl Fn() -> bool, yields: usize) -> bool {
    for _ in 0..SPINS {
        if ready() {
            return true;
        }
        core::hint::spin_loop();
    }
    for _ in 0..yields {
        if ready() {
            return true;
        }
        std::thread::yield_now();
    }
    ready()
}

impl Shared {
    fn slot(&self) -> std::sync::MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when all of `members` have called it.
    fn meet(&self, members: usize) {
        if members == 1 {
            return;
        }
        let generation = self.generation.load(Ordering::Acquire);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == members {
            self.arrived.store(0, Ordering::Relaxed);
            self.generation.store(generation.wrapping_add(1), Ordering::Release);
            return;
        }
        let over = || self.generation.load(Ordering::Acquire) != generation || self.panicked.load(Ordering::Acquire);
        wait(over, usize::MAX);
        assert!(self.generation.load(Ordering::Acquire) != generation, "another member of the team panicked");
    }

    /// What helper `index` does until the team is dropped.
    fn help(&self, index: usize) {
        let mut seen = 0;
        loop {
            wait(|| self.count.load(Ordering::Acquire) != seen, YIELDS);
            let mut slot = self.slot();
            while slot.count == seen && !slot.quit {
                slot = self.wake.wait(slot).unwrap_or_else(PoisonError::into_inner);
            }
            if slot.quit {
                return;
            }
            seen = slot.count;
            let job = slot.job.expect("work for the team");
            drop(slot);
            // SAFETY: `Team::run` returns only when every helper has counted itself as done, so the work is still borrowed.
            let work = unsafe { &*job.0 };
            if catch_unwind(AssertUnwindSafe(|| work(index))).is_err() {
                self.panicked.store(true, Ordering::Release);
            }
            self.done.fetch_add(1, Ordering::AcqRel);
        }
    }
}

/// One thread of a team at work.
pub(crate) struct Member<'t> {
    /// Which one.
    pub index: usize,
    /// Of how many.
    pub count: usize,
    shared: &'t Shared,
}

impl Member<'_> {
    /// Returns when all members have called it; what they wrote before is seen after.
    pub(crate) fn meet(&self) {
        self.shared.meet(self.count);
    }
}

/// Share `index` of `count` of `items` in order.
pub(crate) fn share(items: usize, index: usize, count: usize) -> core::ops::Range<usize> {
    let bound = |i: usize| (items as u128 * i as u128 / count as u128) as usize;
    bound(index)..bound(index + 1)
}

/// Threads that work together: the caller's and helpers.
pub(crate) struct Team {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
}

impl core::fmt::Debug for Team {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Team({})", self.count())
    }
}

impl Team {
    /// A team of `count` threads, or of fewer where the system gives no more.
    pub(crate) fn new(count: usize) -> Self {
        let shared = Arc::new(Shared::default());
        let helper = |index: usize| {
            let shared = shared.clone();
            std::thread::Builder::new().name("team".into()).spawn(move || shared.help(index)).ok()
        };
        let helpers = (1..count).map_while(helper).collect();
        Team { shared, helpers }
    }

    /// How many threads.
    pub(crate) fn count(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Calls `work` once on each thread, all at the same time, with its piece of `split`.
    ///
    /// # Panics
    /// Where a member panics.
    pub(crate) fn run<S: Split>(&mut self, split: S, work: impl Fn(Member<'_>, S::Piece) + Sync) {
        let count = self.count();
        assert!(split.pieces().is_none_or(|pieces| pieces == count), "a piece for each member");
        let shared = &*self.shared;
        let member = |index: usize| {
            // SAFETY: each member takes its own piece, once.
            let piece = unsafe { split.piece(index) };
            work(Member { index, count, shared }, piece);
        };
        if count == 1 {
            return member(0);
        }
        let job: &(dyn Fn(usize) + Sync) = &member;
        // SAFETY: only the lifetime changes. The borrow ends after all helpers are done with it, below; nothing between unwinds.
        let job = Job(unsafe { core::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const (dyn Fn(usize) + Sync + 'static)>(job) });
        shared.done.store(0, Ordering::Relaxed);
        shared.arrived.store(0, Ordering::Relaxed);
        {
            let mut slot = shared.slot();
            (slot.job, slot.count) = (Some(job), slot.count.wrapping_add(1));
            shared.count.store(slot.count, Ordering::Release);
        }
        shared.wake.notify_all();
        let own = catch_unwind(AssertUnwindSafe(|| member(0)));
        if own.is_err() {
            shared.panicked.store(true, Ordering::Release);
        }
        wait(|| shared.done.load(Ordering::Acquire) == count - 1, usize::MAX);
        shared.slot().job = None;
        let panicked = shared.panicked.swap(false, Ordering::AcqRel);
        if let Err(panic) = own {
            resume_unwind(panic);
        }
        assert!(!panicked, "a member of the team panicked");
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.slot().quit = true;
        self.shared.count.fetch_add(1, Ordering::Release);
        self.shared.wake.notify_all();
        for helper in self.helpers.drain(..) {
            helper.join().unwrap_or(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::{Cut, ViewMut};

    #[test]
    fn members_meet_and_own_their_pieces() {
        for count in 1..5 {
            let mut team = Team::new(count);
            assert_eq!(team.count(), count);
            for round in 0..20 {
                let (mut sums, turns) = (vec![0; count], AtomicUsize::new(0));
                let tiles = ViewMut::new(&mut sums, [count]).tiles(Cut::Every(0, 1), Cut::Whole);
                team.run((tiles,), |member, (mut sum,)| {
                    for turn in 0..50 {
                        turns.fetch_add(1, Ordering::Relaxed);
                        member.meet();
                        assert_eq!(turns.load(Ordering::Relaxed), (turn + 1) * member.count);
                        member.meet();
                    }
                    sum.set([0], round + member.index);
                });
                assert_eq!(sums, (round..round + count).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller() {
        let mut team = Team::new(3);
        for bad in 0..3 {
            let run = catch_unwind(AssertUnwindSafe(|| {
                team.run((), |member, ()| {
                    assert!(member.index != bad, "as asked");
                    member.meet();
                });
            }));
            assert!(run.is_err());
            team.run((), |member, ()| member.meet());
        }
    }

    #[test]
    fn shares_cover_all() {
        for (items, count) in [(0, 3), (7, 3), (2, 5), (16, 2)] {
            let all: Vec<usize> = (0..count).flat_map(|i| share(items, i, count)).collect();
            assert_eq!(all, (0..items).collect::<Vec<_>>());
        }
    }
}

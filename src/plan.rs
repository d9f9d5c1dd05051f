//! The planner: from a problem and a machine to an engine, and why. The choice is data that can be printed and tested.
//!
//! Engines have no opinion on when they should run; this is the one place that has. Whoever wants another engine takes it
//! directly: every engine computes every problem.
//!
//! A plan on the host is for tensors in the host's memory, [`Plan::new`]; one on a GPU for tensors that are there, [`Plan::on_gpu`]: nothing is moved
//! from one to the other on a planner's word. The GPU engine asks the same rules, so what a plan says is what runs.

use core::fmt;

use crate::arch::Isa;
use crate::blelloch::Blelloch;
use crate::cpu::Cpu;
use crate::error::Error;
use crate::par::Par;
pub use crate::regime::{Call, Gpu, Reason, Regime};
use crate::scan::ScanProblem;
use crate::selective::SelectiveProblem;

/// Elements (channel, step, state) below which waking other threads costs more than it saves: some 10 µs of work.
pub const SERIAL_BELOW: usize = crate::par::SERIAL_BELOW;

/// Steps from which a plain recurrence of few rows is worth a tree over time.
pub const TREE_FROM: usize = 1 << 14;

/// Rows up to which the tree wins on any number of threads: below, most lanes of a vector would be idle.
pub const TREE_ROWS: usize = 2;

/// Rows up to which it wins on four threads or more: below, there are too few blocks of lanes to share out (`asm-notes/scan.md`).
pub const TREE_ROWS_THREADED: usize = 64;

/// What a machine has, as far as the choice depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Instruction sets that it has and that are allowed, weakest first; never empty.
    pub isas: Vec<Isa>,
    /// Threads that may be used.
    pub threads: usize,
}

impl Machine {
    /// This machine, its instruction sets capped by the environment variable `SELECTIVE_SCAN_ISA`. An error where that is not a name.
    pub fn here() -> Result<Self, Error> {
        let cap = Isa::cap()?;
        let isas = Isa::available().filter(|&isa| isa <= cap || isa == Isa::Portable).collect();
        Ok(Machine { isas, threads: Par::default().workers() })
    }

    /// The strongest allowed instruction set.
    pub fn best(&self) -> Isa {
        self.isas.iter().copied().max().unwrap_or(Isa::Portable)
    }
}

/// A problem to be planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Problem {
    /// Layer 1.
    Scan(ScanProblem),
    /// Layer 2, forward, backward or, with L = 1, the step.
    Selective(SelectiveProblem),
}

/// Which engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// [`Blelloch`]: a tree over time.
    Blelloch,
    /// [`Cpu`] with this instruction set.
    Cpu(Isa),
    /// `Cuda`, walking time or with time split.
    Cuda(Regime),
}

/// A choice and its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The engine.
    pub choice: Choice,
    /// Threads that it will use: 1, or all of the machine's.
    pub threads: usize,
    /// Why this engine.
    pub engine_why: String,
    /// Why this many threads.
    pub threads_why: String,
}

impl Problem {
    /// (rows of independent recurrences, steps, states a row).
    fn sizes(self) -> (usize, usize, usize) {
        match self {
            Problem::Scan(ScanProblem { batch, seqlen, dim }) => (batch.saturating_mul(dim), seqlen, 1),
            Problem::Selective(SelectiveProblem { batch, states, seqlen, dim, dstate, .. }) => {
                (batch.max(states).saturating_mul(dim), seqlen, dstate)
            }
        }
    }
}

#[cfg(feature = "cuda")]
impl Problem {
    /// The rule of the GPU engine.
    fn reason(self, call: Call, gpu: &Gpu) -> Reason {
        match self {
            Problem::Scan(problem) => crate::cuda::scan_reason(problem, call, gpu),
            Problem::Selective(problem) => crate::cuda::selective_reason(&problem, call, gpu),
        }
    }
}

impl Plan {
    /// Plans a problem for a machine.
    pub fn new(problem: Problem, machine: &Machine) -> Plan {
        let (rows, seqlen, dstate) = problem.sizes();
        let elements = rows.saturating_mul(seqlen).saturating_mul(dstate);
        let (threads, threads_why) = if machine.threads <= 1 {
            (1, "there is one".to_string())
        } else if elements < SERIAL_BELOW {
            (1, format!("{elements} elements are less work than waking a thread, which pays from {SERIAL_BELOW}"))
        } else {
            (machine.threads, format!("{elements} elements, at least {SERIAL_BELOW}"))
        };
        let isa = machine.best();
        let few = if threads >= 4 { TREE_ROWS_THREADED } else { TREE_ROWS };
        let (choice, engine_why) = if matches!(problem, Problem::Scan(_)) && rows <= few && seqlen >= TREE_FROM {
            (Choice::Blelloch, format!("{rows} row(s) of {seqlen} steps leave lanes or threads idle unless time itself is cut"))
        } else {
            (
                Choice::Cpu(isa),
                format!("{rows} independent rows fill the lanes of {}, the strongest instruction set allowed here", isa.name()),
            )
        };
        Plan { choice, threads, engine_why, threads_why }
    }

    /// Plans a problem for a GPU.
    #[cfg(feature = "cuda")]
    pub fn on_gpu(problem: Problem, call: Call, gpu: &Gpu) -> Plan {
        Plan::because(problem.reason(call, gpu))
    }

    /// How this engine runs a problem: as its card asks for, or as it was told.
    #[cfg(feature = "cuda")]
    pub fn by_cuda(problem: Problem, call: Call, engine: &crate::cuda::Cuda) -> Plan {
        Plan::because(engine.settle(problem.reason(call, &engine.gpu())))
    }

    #[cfg(feature = "cuda")]
    fn because(reason: Reason) -> Plan {
        let threads_why = "the calling thread launches".to_string();
        Plan { choice: Choice::Cuda(reason.regime()), threads: 1, engine_why: reason.to_string(), threads_why }
    }

    /// Who runs the parts.
    pub fn par(&self) -> Par {
        if self.threads > 1 { Par::default() } else { Par::Seq }
    }

    /// The engine, where the choice is `Cpu`.
    pub fn cpu(&self) -> Option<Result<Cpu, Error>> {
        match self.choice {
            Choice::Cpu(isa) => Some(Cpu::new().with_par(self.par()).with_isa(isa)),
            Choice::Blelloch | Choice::Cuda(_) => None,
        }
    }

    /// The engine, where the choice is `Blelloch`.
    pub fn blelloch(&self) -> Option<Blelloch> {
        (self.choice == Choice::Blelloch).then(|| Blelloch::with_par(self.par()))
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Choice::Blelloch => write!(f, "blelloch"),
            Choice::Cpu(isa) => write!(f, "cpu, {}", isa.name()),
            Choice::Cuda(Regime::Walk) => write!(f, "cuda, walking"),
            Choice::Cuda(Regime::Split) => write!(f, "cuda, split"),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Choice::Cuda(_) = self.choice {
            return write!(f, "{}\n  engine:  {}", self.choice, self.engine_why);
        }
        let plural = if self.threads == 1 { "" } else { "s" };
        writeln!(f, "{}, {} thread{plural}", self.choice, self.threads)?;
        writeln!(f, "  engine:  {}", self.engine_why)?;
        write!(f, "  threads: {}", self.threads_why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selective::SelectiveOptions;

    fn machine(threads: usize) -> Machine {
        Machine { isas: vec![Isa::Portable, Isa::Avx2], threads }
    }

    fn selective(batch: usize, seqlen: usize, dim: usize, dstate: usize) -> Problem {
        let options = SelectiveOptions::default();
        Problem::Selective(SelectiveProblem { batch, seqlen, dim, dstate, states: batch, groups_b: Some(1), groups_c: Some(1), options })
    }

    #[test]
    fn large_problems_take_every_thread() {
        let plan = Plan::new(selective(1, 2048, 1536, 16), &machine(4));
        assert_eq!((plan.choice, plan.threads), (Choice::Cpu(Isa::Avx2), 4));
        assert_eq!(Plan::new(selective(1, 2048, 1536, 16), &machine(1)).threads, 1);
    }

    #[test]
    fn small_ones_stay_on_one() {
        assert_eq!(Plan::new(selective(1, 1, 1536, 16), &machine(4)).threads, 1);
        assert_eq!(Plan::new(selective(64, 1, 1536, 16), &machine(4)).threads, 4);
        assert_eq!(Plan::new(selective(0, 0, 1, 1), &machine(4)).threads, 1);
        assert_eq!(Plan::new(selective(usize::MAX, usize::MAX, 1, 1), &machine(4)).threads, 4);
    }

    #[test]
    fn few_long_recurrences_are_cut_in_time() {
        let chosen = |dim, seqlen, threads| Plan::new(Problem::Scan(ScanProblem { batch: 1, seqlen, dim }), &machine(threads));
        let plan = chosen(1, 1 << 20, 1);
        assert_eq!((plan.choice, plan.threads), (Choice::Blelloch, 1));
        assert!(plan.blelloch().is_some() && plan.cpu().is_none());
        assert_eq!(chosen(64, 1 << 20, 4).choice, Choice::Blelloch);
        assert_eq!(chosen(64, 1 << 20, 1).choice, Choice::Cpu(Isa::Avx2));
        assert_eq!(chosen(512, 1 << 20, 4).choice, Choice::Cpu(Isa::Avx2));
        assert_eq!(chosen(1, 1 << 10, 4).choice, Choice::Cpu(Isa::Avx2));
    }

    #[test]
    fn a_plan_says_why() {
        let text = Plan::new(selective(1, 2048, 1536, 16), &machine(4)).to_string();
        assert!(text.starts_with("cpu, avx2, 4 threads") && text.contains("50331648 elements"), "{text}");
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn a_gpu_walks_many_rows_and_splits_the_time_of_few() {
        let h100 = Gpu { multiprocessors: 132, capability: (9, 0) };
        let chosen = |problem, gpu| Plan::on_gpu(problem, Call::default(), gpu).choice;
        let [walk, split] = [Regime::Walk, Regime::Split].map(Choice::Cuda);
        assert_eq!(chosen(selective(8, 2048, 2048, 16), &h100), walk);
        assert_eq!(chosen(selective(1, 8192, 2048, 16), &h100), split);
        // A step, or a few of them, is walked on any card.
        assert_eq!(chosen(selective(1, 1, 16, 16), &h100), walk);
        assert_eq!(chosen(selective(0, 0, 16, 16), &h100), walk);
        // What leaves a large card idle fills a small one.
        let small = Gpu { multiprocessors: 8, capability: (8, 9) };
        assert_eq!(chosen(selective(1, 8192, 2048, 16), &small), walk);
        // Ids are walked, and so are more states than lanes hold.
        let ids = Call { seq_idx: true, ..Call::default() };
        assert_eq!(Plan::on_gpu(selective(1, 8192, 2048, 16), ids, &h100).choice, walk);
        assert_eq!(chosen(selective(1, 8192, 16, 4096), &h100), walk);
        let scan = |batch, seqlen, dim| Problem::Scan(ScanProblem { batch, seqlen, dim });
        assert_eq!(chosen(scan(8, 8192, 1536), &h100), walk);
        assert_eq!(chosen(scan(1, 1 << 20, 4), &h100), split);
        assert_eq!(chosen(scan(usize::MAX, usize::MAX, 4), &h100), walk);
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn a_plan_on_a_gpu_says_why() {
        let gpu = Gpu { multiprocessors: 132, capability: (9, 0) };
        let plan = Plan::on_gpu(selective(1, 8192, 2048, 16), Call::default(), &gpu);
        let text = plan.to_string();
        assert!(text.starts_with("cuda, split\n") && text.contains("leave the card idle"), "{text}");
        assert!(plan.cpu().is_none() && plan.blelloch().is_none());
    }

    #[test]
    fn this_machine_can_run_its_plan() {
        let here = Machine { isas: Isa::available().collect(), threads: 1 };
        let cpu = Plan::new(selective(1, 8, 4, 2), &here).cpu().expect("the cpu engine").expect("an available instruction set");
        assert_eq!(cpu.isa(), here.best());
    }
}

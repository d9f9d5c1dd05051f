//! Cases for criterion: each checked once, timed as criterion asks for, then compared with the ceilings of the moment.

use std::time::Duration;

use criterion::{Criterion, Throughput};
use selective_scan::arch::{Isa, Kernels};
use selective_scan::blelloch::Blelloch;
use selective_scan::cpu::Cpu;
use selective_scan::naive::Naive;
use selective_scan::view::Host;

use super::ceilings::{Floor, host_floor};
use super::line::short;
use super::operator::{Family, Work, checked, types};
use super::place::{Engine, Here};
use super::shape::Shape;
use super::time::{OnHost, Threads, Timed};

/// Criterion with the machine's engines.
///
/// With `--profile-time SECONDS` a profiler that waits for it sees what is timed, and not the checks before.
pub struct Bench {
    c: Criterion,
    profile: bool,
    #[cfg(feature = "cuda")]
    gpu: Option<selective_scan::cuda::Cuda>,
}

impl Default for Bench {
    fn default() -> Self {
        Bench {
            c: Criterion::default().sample_size(10).configure_from_args(),
            profile: std::env::args().any(|word| word == "--profile-time"),
            #[cfg(feature = "cuda")]
            gpu: match selective_scan::cuda::Cuda::new(0) {
                Ok(gpu) => Some(gpu),
                Err(why) => {
                    println!("nothing is timed on a GPU: {why}");
                    None
                }
            },
        }
    }
}

impl Bench {
    /// One case. `make` is called where the case is not filtered away, `floor` where it was timed.
    pub fn case<'a>(
        &mut self,
        op: &str,
        id: &str,
        work: Work,
        make: impl FnOnce() -> Result<Box<dyn Timed + 'a>, String>,
        floor: impl FnOnce() -> Floor,
    ) {
        let (mut make, mut timed, mut samples) = (Some(make), None, Vec::<f64>::new());
        let mut group = self.c.benchmark_group(op);
        group.throughput(Throughput::ElementsAndBytes { elements: work.elements as u64, bytes: work.bytes as u64 });
        group.bench_function(id, |b| {
            let timed = timed.get_or_insert_with(|| {
                let made = make.take().expect("it is made once")();
                made.unwrap_or_else(|why| panic!("{op}/{id}: {why}"))
            });
            b.iter_custom(|calls| {
                let time: Duration = timed.time(calls).unwrap_or_else(|why| panic!("{op}/{id}: {why}"));
                samples.push(time.as_secs_f64() / calls as f64);
                time
            });
        });
        group.finish();
        samples.sort_by(f64::total_cmp);
        let Some(seconds) = samples.get(samples.len() / 2) else { return };
        let (rate, floor) = (work.elements / seconds, floor());
        let (ceiling, limit) = (work.elements / floor.seconds, floor.limit);
        println!("  {}elements/s, {:.2} of the {limit} ceiling, {}/s", short(rate), rate / ceiling, short(ceiling));
    }

    fn host<F: Family>(
        &mut self,
        name: &str,
        engine: impl Engine<Host> + Copy + Sync,
        other: &impl Engine<Host>,
        threads: &Threads,
        count: usize,
        k: Kernels,
        shape: Shape,
    ) where
        F::On<Here>: Send,
    {
        let (work, id) = (F::work(shape), format!("{name}/{}/{shape}{}", types::<F>(), F::SUFFIX));
        let make = || {
            checked::<F, Here>(&Here, &engine, other, shape)?;
            Ok(Box::new(OnHost::<F, _>::new(engine, shape, threads).map_err(|e| e.to_string())?) as Box<dyn Timed>)
        };
        self.case(F::OP, &id, work, make, || host_floor(&work, k, count));
    }

    /// The engine `Cpu` in each instruction set on one thread, in the best one on all threads; and the GPU.
    pub fn fast<F: Family>(&mut self, shapes: &[Shape])
    where
        F::On<Here>: Send,
    {
        let all = if cfg!(feature = "rayon") { std::thread::available_parallelism().map_or(1, usize::from) } else { 1 };
        let (one, many) = (Threads::new(1).expect("one"), Threads::new(all).expect("a pool"));
        for &shape in shapes {
            for k in Kernels::available() {
                let cpu = Cpu::new().with_isa(k.isa()).expect("it is available").with_par(one.par());
                self.host::<F>(&format!("cpu_{}", k.isa().name()), cpu, &Naive, &one, 1, k, shape);
            }
            if all > 1 {
                let (k, cpu) = (Kernels::best(), Cpu::new().with_par(many.par()));
                self.host::<F>(&format!("cpu_{}_threads{all}", k.isa().name()), cpu, &Naive, &many, all, k, shape);
            }
            #[cfg(feature = "cuda")]
            self.gpu::<F>(shape);
        }
    }

    /// The engines that are there to be read.
    pub fn plain<F: Family>(&mut self, shapes: &[Shape])
    where
        F::On<Here>: Send,
    {
        let one = Threads::new(1).expect("one");
        let (k, cpu) = (Kernels::new(Isa::Portable).expect("it runs anywhere"), Cpu::new().with_par(one.par()));
        for &shape in shapes {
            self.host::<F>("naive", Naive, &cpu, &one, 1, k, shape);
            self.host::<F>("blelloch", Blelloch::with_par(one.par()), &cpu, &one, 1, k, shape);
        }
    }

    /// The GPU alone, where there is one: shapes that a host takes long for.
    pub fn fast_gpu<F: Family>(&mut self, shapes: &[Shape]) {
        #[cfg(feature = "cuda")]
        shapes.iter().for_each(|shape| self.gpu::<F>(*shape));
        let _ = shapes;
    }

    #[cfg(feature = "cuda")]
    fn gpu<F: Family>(&mut self, shape: Shape) {
        use super::ceilings::gpu_floor;
        use super::time::OnGpu;
        let (Some(gpu), profile) = (self.gpu.clone(), self.profile) else { return };
        let (work, id) = (F::work(shape), format!("cuda/{}/{shape}{}", types::<F>(), F::SUFFIX));
        let range = id.clone();
        let make = || {
            checked::<F, _>(&gpu, &gpu, &Cpu::new(), shape)?;
            let mut made = OnGpu::<F>::new(&gpu, shape).map_err(|e| e.to_string())?;
            made.profile = profile.then(|| format!("{}/{range}", F::OP));
            Ok(Box::new(made) as Box<dyn Timed>)
        };
        self.case(F::OP, &id, work, make, || gpu_floor::<F>(&work, &gpu.ceilings(256 << 20, 256).expect("the ceilings are measured")));
    }
}

//! From the words of the command line to types, engines and measurements.

#[cfg(feature = "cuda")]
use std::cell::OnceCell;

use half::{bf16, f16};
use num_complex::Complex;
use selective_scan::arch::{Isa, Kernels};
use selective_scan::blelloch::Blelloch;
use selective_scan::cpu::Cpu;
use selective_scan::naive::Naive;
use selective_scan::view::Host;

use crate::bench::block::{self, Block};
use crate::bench::ceilings::{Floor, host_floor, host_lines};
use crate::bench::conv1d::{self, Conv};
use crate::bench::exp::{Function, NAMES};
use crate::bench::layers::{Norm, Product};
use crate::bench::line::Line;
use crate::bench::operator::{Family, checked};
use crate::bench::place::{Engine, Here};
use crate::bench::scan::Linear;
use crate::bench::selective::{Bwd, Fwd, Step};
use crate::bench::time::{OnHost, Threads, median};
use crate::options::Options;

/// What stays from one measurement to the next.
#[derive(Default)]
pub struct Machine {
    #[cfg(feature = "cuda")]
    gpu: OnceCell<selective_scan::cuda::Cuda>,
    /// The last model that was put on the GPU, with its name.
    #[cfg(all(feature = "cuda", feature = "model"))]
    pub model: std::cell::RefCell<Option<(String, selective_scan::model::GpuParameters<f32>)>>,
}

#[cfg(feature = "cuda")]
impl Machine {
    pub fn gpu(&self) -> Result<&selective_scan::cuda::Cuda, String> {
        if self.gpu.get().is_none() {
            let made = selective_scan::cuda::Cuda::new(0).map_err(|e| e.to_string())?;
            _ = self.gpu.set(made);
        }
        self.gpu.get().ok_or_else(|| "there is no GPU".into())
    }

    /// The card's ceilings at this moment, and its architecture.
    pub fn gpu_ceilings(&self) -> Result<(selective_scan::cuda::Ceilings, String), String> {
        let gpu = self.gpu()?;
        let (major, minor) = gpu.properties().capability;
        Ok((gpu.ceilings(256 << 20, 256).map_err(|e| e.to_string())?, format!("sm_{major}{minor}")))
    }
}

/// The kernels that are asked for.
pub fn kernels(o: &Options) -> Result<Kernels, String> {
    let Some(name) = &o.isa else {
        Isa::cap().map_err(|e| e.to_string())?;
        return Ok(Kernels::best());
    };
    let isa = Isa::parse(name).ok_or_else(|| format!("--isa is portable, neon, avx2 or avx512, not `{name}`"))?;
    Kernels::new(isa).ok_or_else(|| format!("this machine has no {name}"))
}

/// Measures what is asked for.
pub fn measure(o: &Options, machine: &Machine) -> Result<Vec<Line>, String> {
    match o.op.as_str() {
        "ceilings" => ceilings(o, machine),
        "generate" => crate::models::generate(o, machine),
        op => match NAMES.iter().position(|name| *name == op) {
            Some(which) => function(o, which),
            None => operator(o, machine).map(|line| vec![line]),
        },
    }
}

fn ceilings(o: &Options, machine: &Machine) -> Result<Vec<Line>, String> {
    #[cfg(feature = "cuda")]
    if o.engine == "cuda" {
        let (ceilings, isa) = machine.gpu_ceilings()?;
        return Ok(crate::bench::ceilings::gpu_lines(&ceilings, &isa));
    }
    let _ = machine;
    Ok(host_lines(kernels(o)?, o.threads))
}

fn function(o: &Options, which: usize) -> Result<Vec<Line>, String> {
    let k = kernels(o)?;
    let mut function = Function::new(k, which);
    let (work, deviation) = (function.work(), function.checked()?);
    let floor = host_floor(&work, k, 1);
    let seconds = median(&mut function).map_err(|e| e.to_string())?;
    let Floor { seconds: least, limit } = floor;
    Ok(vec![Line {
        op: NAMES[which].into(),
        engine: "cpu".into(),
        isa: k.isa().name().into(),
        input: "f32".into(),
        weight: "f32".into(),
        shape: format!("n{}", work.elements),
        threads: 1,
        seconds,
        elements: work.elements,
        bytes: work.bytes,
        ceiling: work.elements / least,
        limit,
        deviation: Some(deviation),
    }])
}

/// An operator of layers 1 to 4 in the types that are asked for.
fn operator(o: &Options, machine: &Machine) -> Result<Line, String> {
    macro_rules! inputs {
        ($family:ident, $which:expr) => {
            match o.input.as_str() {
                "f32" => every::<$family<f32, { $which }>>(o, machine),
                "f64" => fast::<$family<f64, { $which }>>(o, machine),
                "f16" => fast::<$family<f16, { $which }>>(o, machine),
                "bf16" => fast::<$family<bf16, { $which }>>(o, machine),
                other => Err(format!("{} is timed in f32, f64, f16 and bf16, not `{other}`", o.op)),
            }
        };
    }
    macro_rules! weights {
        ($family:ident) => {
            match (o.input.as_str(), o.weight.as_str()) {
                ("f32", "f32") => every::<$family<f32, f32>>(o, machine),
                ("f64", "f64") => fast::<$family<f64, f64>>(o, machine),
                ("f16", "f32") => fast::<$family<f16, f32>>(o, machine),
                ("bf16", "f32") => fast::<$family<bf16, f32>>(o, machine),
                ("f32", "c32") => fast::<$family<f32, Complex<f32>>>(o, machine),
                (input, weight) => Err(format!("{} is not timed in {input} with a weight of {weight}", o.op)),
            }
        };
    }
    macro_rules! saved {
        ($family:ident) => {
            match (o.input.as_str(), o.weight.as_str()) {
                ("f32", "f32") => fast::<$family<f32, f32, true>>(o, machine),
                ("f16", "f32") => fast::<$family<f16, f32, true>>(o, machine),
                ("bf16", "f32") => fast::<$family<bf16, f32, true>>(o, machine),
                (input, weight) => Err(format!("{} is not timed in {input} with a weight of {weight}", o.op)),
            }
        };
    }
    match o.op.as_str() {
        "selective_scan_fwd" => weights!(Fwd),
        "selective_scan_bwd" => weights!(Bwd),
        "selective_scan_fwd_saving" => saved!(Fwd),
        "selective_scan_bwd_from" => saved!(Bwd),
        "selective_state_update" => step(o, machine),
        "causal_conv1d_fwd" => inputs!(Conv, conv1d::FWD),
        "causal_conv1d_bwd" => inputs!(Conv, conv1d::BWD),
        "causal_conv1d_update" => inputs!(Conv, conv1d::UPDATE),
        "linear_scan_fwd" if o.input == "c32" => fast::<Linear<Complex<f32>, false>>(o, machine),
        "linear_scan_bwd" if o.input == "c32" => fast::<Linear<Complex<f32>, true>>(o, machine),
        "linear_scan_fwd" => inputs!(Linear, false),
        "linear_scan_bwd" => inputs!(Linear, true),
        "rms_norm_fwd" => inputs!(Norm, false),
        "rms_norm_bwd" => inputs!(Norm, true),
        "linear_fwd" => inputs!(Product, false),
        "linear_bwd" => inputs!(Product, true),
        "mamba_block_fwd" => inputs!(Block, block::FWD),
        "mamba_block_bwd" => inputs!(Block, block::BWD),
        "mamba_block_step" => inputs!(Block, block::STEP),
        other => Err(format!("`{other}` is no operator")),
    }
}

/// The decode step, whose states have a type of their own.
fn step(o: &Options, machine: &Machine) -> Result<Line, String> {
    match (o.input.as_str(), o.weight.as_str(), o.state.as_str()) {
        ("f32", "f32", "f32") => every::<Step<f32, f32, f32>>(o, machine),
        ("f32", "f32", "bf16") => fast::<Step<f32, f32, bf16>>(o, machine),
        ("f64", "f64", "f64") => fast::<Step<f64, f64, f64>>(o, machine),
        ("f16", "f32", "f32") => fast::<Step<f16, f32, f32>>(o, machine),
        ("f16", "f32", "f16") => fast::<Step<f16, f32, f16>>(o, machine),
        ("bf16", "f32", "f32") => fast::<Step<bf16, f32, f32>>(o, machine),
        ("bf16", "f32", "bf16") => fast::<Step<bf16, f32, bf16>>(o, machine),
        ("f32", "c32", "c32") => fast::<Step<f32, Complex<f32>, Complex<f32>>>(o, machine),
        (input, weight, state) => Err(format!("{} is not timed in {input} with a weight of {weight} and a state of {state}", o.op)),
    }
}

/// On any engine: for the type that all of them are timed in.
fn every<F: Family>(o: &Options, machine: &Machine) -> Result<Line, String>
where
    F::On<Here>: Send,
{
    if o.engine != "blelloch" {
        return fast::<F>(o, machine);
    }
    let threads = Threads::new(o.threads)?;
    host::<F, _>(o, Blelloch::with_par(threads.par()), &Cpu::new(), &threads, Kernels::new(Isa::Portable).expect("it runs anywhere"))
}

/// On any engine but Blelloch's.
fn fast<F: Family>(o: &Options, machine: &Machine) -> Result<Line, String>
where
    F::On<Here>: Send,
{
    let _ = machine;
    match o.engine.as_str() {
        "cpu" => {
            let (k, threads) = (kernels(o)?, Threads::new(o.threads)?);
            let cpu = Cpu::new().with_isa(k.isa()).map_err(|e| e.to_string())?.with_par(threads.par());
            host::<F, _>(o, cpu, &Naive, &threads, k)
        }
        "naive" => host::<F, _>(o, Naive, &Cpu::new(), &Threads::new(1)?, Kernels::new(Isa::Portable).expect("it runs anywhere")),
        #[cfg(feature = "cuda")]
        "cuda" => gpu::<F>(o, machine),
        #[cfg(not(feature = "cuda"))]
        "cuda" => Err("--engine cuda is not in this build, which is made without `--features cuda`".into()),
        other => Err(format!("{} in {} is not timed on the engine {other}", o.op, o.input)),
    }
}

fn line<F: Family>(o: &Options, isa: &str, threads: usize, seconds: f64, floor: Floor, deviation: f64) -> Line {
    let work = F::work(o.shape);
    Line {
        op: F::OP.into(),
        engine: o.engine.clone(),
        isa: isa.into(),
        input: F::INPUT.name().into(),
        weight: F::WEIGHT.name().into(),
        shape: format!("{}{}{}", o.shape, F::SUFFIX, o.regime.as_ref().map_or(String::new(), |name| format!("_{name}"))),
        threads,
        seconds,
        elements: work.elements,
        bytes: work.bytes,
        ceiling: work.elements / floor.seconds,
        limit: floor.limit,
        deviation: Some(deviation),
    }
}

fn host<F: Family, E: Engine<Host> + Sync>(
    o: &Options,
    engine: E,
    other: &impl Engine<Host>,
    threads: &Threads,
    k: Kernels,
) -> Result<Line, String>
where
    F::On<Here>: Send,
{
    let deviation = checked::<F, Here>(&Here, &engine, other, o.shape)?;
    let count = if o.engine == "naive" { 1 } else { o.threads };
    let mut timed = OnHost::<F, E>::new(engine, o.shape, threads).map_err(|e| e.to_string())?;
    let floor = host_floor(&F::work(o.shape), k, count);
    let seconds = median(&mut timed).map_err(|e| e.to_string())?;
    let isa = if o.engine == "cpu" { k.isa().name() } else { "scalar" };
    Ok(line::<F>(o, isa, count, seconds, floor, deviation))
}

#[cfg(feature = "cuda")]
fn gpu<F: Family>(o: &Options, machine: &Machine) -> Result<Line, String> {
    use crate::bench::{ceilings::gpu_floor, time::OnGpu};
    use selective_scan::cuda::Regime;
    let regime = o.regime.as_ref().map(|name| if name == "walk" { Regime::Walk } else { Regime::Split });
    let gpu = machine.gpu()?.clone().with_regime(regime);
    let deviation = checked::<F, _>(&gpu, &gpu, &Cpu::new(), o.shape)?;
    let (ceilings, isa) = machine.gpu_ceilings()?;
    let mut timed = OnGpu::<F>::new(&gpu, o.shape).map_err(|e| e.to_string())?;
    let seconds = median(&mut timed).map_err(|e| e.to_string())?;
    Ok(line::<F>(o, &isa, 1, seconds, gpu_floor::<F>(&F::work(o.shape), &ceilings), deviation))
}

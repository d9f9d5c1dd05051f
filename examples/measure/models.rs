//! `generate`: whole models.

use crate::bench::line::Line;
use crate::operators::Machine;
use crate::options::Options;

#[cfg(not(feature = "model"))]
pub fn generate(_: &Options, _: &Machine) -> Result<Vec<Line>, String> {
    Err("generate is not in this build, which is made without the feature model".into())
}

#[cfg(feature = "model")]
pub fn generate(o: &Options, machine: &Machine) -> Result<Vec<Line>, String> {
    use selective_scan::cpu::Cpu;
    use selective_scan::model::Packing;

    use crate::bench::ceilings::host_floor;
    use crate::bench::generate::Plan;
    use crate::bench::time::Threads;
    use crate::operators::kernels;

    let packing = match (o.weight.as_str(), o.engine.as_str()) {
        ("f32", _) => Packing::Exact,
        ("bf16", "cpu") => Packing::Bf16,
        (other, engine) => return Err(format!("models on the engine {engine} have no weights in {other}")),
    };
    if o.input != "f32" {
        return Err(format!("models are timed in f32, not in {}; --weight bf16 rounds the weights of a decoder on the host", o.input));
    }
    let plan = Plan { model: o.model.clone(), batch: o.shape.batch, prompt: o.shape.seqlen, tokens: o.tokens, packing };
    let config = plan.config()?;
    let works = [plan.work(&config, plan.prompt), plan.work(&config, 1)];
    if o.engine == "cuda" {
        return gpu(o, machine, &plan, &config);
    }
    if o.engine != "cpu" {
        return Err("generate is timed on the engines cpu and cuda".into());
    }
    let (k, threads, parameters) = (kernels(o)?, Threads::new(o.threads)?, plan.parameters(&config).map_err(|e| e.to_string())?);
    let cpu = Cpu::new().with_isa(k.isa()).map_err(|e| e.to_string())?.with_par(threads.par());
    let floors = works.map(|work| host_floor(&work, k, o.threads));
    let taken = threads.run(|| plan.host(cpu, threads.par(), &config, &parameters)).map_err(|e| e.to_string())?;
    let seconds = [taken.prefill, taken.step];
    Ok((0..2).map(|i| line(o, &plan, i, k.isa().name(), o.threads, seconds[i], &works[i], floors[i])).collect())
}

#[cfg(feature = "model")]
fn line(
    o: &Options,
    plan: &crate::bench::generate::Plan,
    which: usize,
    isa: &str,
    threads: usize,
    seconds: f64,
    work: &crate::bench::operator::Work,
    floor: crate::bench::ceilings::Floor,
) -> Line {
    Line {
        op: ["generate_prefill", "generate_decode"][which].into(),
        engine: o.engine.clone(),
        isa: isa.into(),
        input: "f32".into(),
        // Prompts are read with the weights as they are.
        weight: if which == 0 { "f32".into() } else { o.weight.clone() },
        shape: plan.shape(),
        threads,
        seconds,
        elements: work.elements,
        bytes: work.bytes,
        ceiling: work.elements / floor.seconds,
        limit: floor.limit,
        deviation: None,
    }
}

#[cfg(all(feature = "model", not(feature = "cuda")))]
fn gpu(_: &Options, _: &Machine, _: &crate::bench::generate::Plan, _: &selective_scan::model::ModelConfig) -> Result<Vec<Line>, String> {
    Err("--engine cuda is not in this build, which is made without `--features cuda`".into())
}

#[cfg(all(feature = "model", feature = "cuda"))]
fn gpu(
    o: &Options,
    machine: &Machine,
    plan: &crate::bench::generate::Plan,
    config: &selective_scan::model::ModelConfig,
) -> Result<Vec<Line>, String> {
    use crate::bench::ceilings::gpu_floor;
    use crate::bench::layers::Product;
    let (gpu, (ceilings, isa)) = (machine.gpu()?, machine.gpu_ceilings()?);
    let mut model = machine.model.borrow_mut();
    if model.as_ref().is_none_or(|(name, _)| *name != plan.model) {
        *model = None;
        let upload = |parameters| selective_scan::model::GpuParameters::upload(gpu, &parameters);
        let parameters = plan.parameters(config).and_then(upload).map_err(|e| e.to_string())?;
        *model = Some((plan.model.clone(), parameters));
    }
    let parameters = &model.as_ref().expect("it has just been put there").1;
    let taken = plan.gpu(gpu, config, parameters).map_err(|e| e.to_string())?;
    let (works, seconds) = ([plan.work(config, plan.prompt), plan.work(config, 1)], [taken.prefill, taken.step]);
    let floor = |i: usize| gpu_floor::<Product<f32, false>>(&works[i], &ceilings);
    Ok((0..2).map(|i| line(o, plan, i, &isa, 1, seconds[i], &works[i], floor(i))).collect())
}

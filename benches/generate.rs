//! Whole models with random weights: a prompt that is read, and tokens one after another. `-- MODEL` takes another one than 130m, of random weights.
//! No criterion: one run has both times, and a large model takes long.

#[cfg(feature = "model")]
mod common;

#[cfg(not(feature = "model"))]
fn main() {
    println!("nothing is timed without the feature model");
}

#[cfg(feature = "model")]
fn main() -> Result<(), String> {
    use common::ceilings::host_floor;
    use common::generate::Plan;
    use common::line::short;
    use selective_scan::arch::Kernels;
    use selective_scan::cpu::Cpu;

    let model = std::env::args().skip(1).find(|word| !word.starts_with('-')).unwrap_or_else(|| "130m".into());
    let quick = std::env::args().any(|word| word == "--quick" || word == "--test");
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    let say = |engine: String, plan: &Plan, seconds: [f64; 2], least: [f64; 2]| {
        let tokens = [(plan.batch * plan.prompt) as f64, plan.batch as f64];
        for (i, what) in ["prefill", "decode"].iter().enumerate() {
            let (rate, ratio) = (short(tokens[i] / seconds[i]), least[i] / seconds[i]);
            println!("generate_{what}/{engine}/f32_f32/{:<24} {rate}tokens/s, {ratio:.2} of the ceiling", plan.shape());
        }
    };
    for batch in [1, 16] {
        let plan = Plan {
            model: model.clone(),
            batch,
            prompt: if quick { 64 } else { 512 },
            tokens: if quick { 4 } else { 32 },
            packing: selective_scan::model::Packing::Exact,
        };
        let config = plan.config()?;
        let parameters = plan.parameters(&config).map_err(|e| e.to_string())?;
        let works = [plan.work(&config, plan.prompt), plan.work(&config, 1)];
        for count in [1, all] {
            let (threads, k) = (common::time::Threads::new(count)?, Kernels::best());
            let least = works.map(|work| host_floor(&work, k, count).seconds);
            let cpu = Cpu::new().with_par(threads.par());
            let taken = threads.run(|| plan.host(cpu, threads.par(), &config, &parameters)).map_err(|e| e.to_string())?;
            say(format!("cpu_{}_threads{count}", k.isa().name()), &plan, [taken.prefill, taken.step], least);
        }
        #[cfg(feature = "cuda")]
        if let Ok(gpu) = selective_scan::cuda::Cuda::new(0) {
            let ceilings = gpu.ceilings(256 << 20, 256).map_err(|e| e.to_string())?;
            let least = works.map(|w| common::ceilings::gpu_floor::<common::layers::Product<f32, false>>(&w, &ceilings).seconds);
            let there = selective_scan::model::GpuParameters::upload(&gpu, &parameters).map_err(|e| e.to_string())?;
            let taken = plan.gpu(&gpu, &config, &there).map_err(|e| e.to_string())?;
            say("cuda".into(), &plan, [taken.prefill, taken.step], least);
        }
    }
    Ok(())
}

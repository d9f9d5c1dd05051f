//! What this machine allows: multiply-adds and exponentials in each instruction set, reads from each cache and from memory, and a GPU's copies,
//! exponentials and multiply-adds. No criterion: these are what other benches compare with.

use selective_scan::arch::Kernels;

mod common;

fn main() {
    for k in Kernels::available() {
        common::ceilings::host_lines(k, 1).iter().for_each(|line| println!("{line}"));
    }
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    if all > 1 {
        common::ceilings::host_lines(Kernels::best(), all).iter().for_each(|line| println!("{line}"));
    }
    #[cfg(feature = "cuda")]
    match selective_scan::cuda::Cuda::new(0).and_then(|gpu| Ok((gpu.ceilings(256 << 20, 256)?, gpu.properties().capability))) {
        Ok((ceilings, (major, minor))) => {
            common::ceilings::gpu_lines(&ceilings, &format!("sm_{major}{minor}")).iter().for_each(|line| println!("{line}"));
        }
        Err(why) => println!("no GPU is measured: {why}"),
    }
}

//! The whole block of the 130m and 1.4b models, forward, backward and decode step, and its norms and products by themselves.

use common::block::{BWD, Block, FWD, STEP};
use common::criterion::Bench;
use common::layers::{Norm, Product};
use common::shape::Shape;

mod common;

fn main() {
    let mut bench = Bench::default();
    let [small, step, steps] = [[1, 1536, 512, 16], [1, 1536, 1, 16], [16, 1536, 1, 16]].map(Shape::new);
    bench.fast::<Block<f32, FWD>>(&[small]);
    bench.fast::<Block<f32, BWD>>(&[small]);
    bench.fast::<Block<f32, STEP>>(&[step, steps]);
    bench.fast::<Norm<f32, false>>(&[Shape::new([1, 768, 512, 1])]);
    bench.fast::<Norm<f32, true>>(&[Shape::new([1, 768, 512, 1])]);
    // in_proj of many positions and of one, out_proj.
    bench.fast::<Product<f32, false>>(&[[1, 3072, 512, 768], [1, 3072, 1, 768], [1, 768, 512, 1536]].map(Shape::new));
    bench.fast::<Product<f32, true>>(&[Shape::new([1, 3072, 512, 768])]);
    bench.fast_gpu::<Block<f32, FWD>>(&[Shape::new([8, 4096, 2048, 16])]);
    bench.fast_gpu::<Block<f32, BWD>>(&[Shape::new([8, 4096, 2048, 16])]);
}

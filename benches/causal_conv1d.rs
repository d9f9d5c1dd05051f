//! The causal convolution with bias and SiLU: forward, backward, decode step. n is the number of taps.

use common::conv1d::{BWD, Conv, FWD, UPDATE};
use common::criterion::Bench;
use common::shape::Shape;
use half::bf16;

mod common;

fn main() {
    let mut bench = Bench::default();
    let [shape, step, large] = [[1, 1536, 512, 4], [16, 1536, 1, 4], [8, 2048, 2048, 4]].map(Shape::new);
    bench.fast::<Conv<f32, FWD>>(&[shape, shape.turned()]);
    bench.fast::<Conv<f32, BWD>>(&[shape]);
    bench.fast::<Conv<f32, UPDATE>>(&[step]);
    bench.fast_gpu::<Conv<bf16, FWD>>(&[large, large.turned()]);
    bench.fast_gpu::<Conv<bf16, BWD>>(&[large]);
}

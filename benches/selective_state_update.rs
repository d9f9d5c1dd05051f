//! A decode step with everything on.

use common::criterion::Bench;
use common::selective::Step;
use common::shape::Shape;
use half::bf16;

mod common;

fn main() {
    let mut bench = Bench::default();
    let [one, wide, many] = [[1, 1536, 1, 16], [1, 5120, 1, 16], [64, 1536, 1, 16]].map(Shape::new);
    bench.plain::<Step<f32, f32, f32>>(&[one]);
    bench.fast::<Step<f32, f32, f32>>(&[one, one.turned(), wide, many]);
    bench.fast_gpu::<Step<bf16, f32, f32>>(&[Shape::new([256, 5120, 1, 16])]);
    bench.fast_gpu::<Step<bf16, f32, bf16>>(&[Shape::new([256, 5120, 1, 16])]);
}

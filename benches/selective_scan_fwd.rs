//! The forward scan with everything on.

use common::criterion::Bench;
use common::selective::Fwd;
use common::shape::Shape;
use half::bf16;

mod common;

fn main() {
    let mut bench = Bench::default();
    let (small, large, wide) = (Shape::new([1, 256, 128, 16]), Shape::new([1, 1536, 2048, 16]), Shape::new([1, 5120, 512, 16]));
    bench.plain::<Fwd<f32, f32>>(&[small]);
    bench.fast::<Fwd<f32, f32>>(&[small, large, large.turned(), wide]);
    bench.fast::<Fwd<bf16, f32>>(&[large]);
    bench.fast_gpu::<Fwd<bf16, f32>>(&[Shape::new([8, 2048, 2048, 16]), Shape::new([1, 2048, 8192, 16])]);
}

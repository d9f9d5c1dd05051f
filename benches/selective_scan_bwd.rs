//! The backward scan with every gradient; states are recomputed.

use common::criterion::Bench;
use common::selective::Bwd;
use common::shape::Shape;
use half::bf16;

mod common;

fn main() {
    let mut bench = Bench::default();
    let (small, large) = (Shape::new([1, 256, 128, 16]), Shape::new([1, 1536, 2048, 16]));
    bench.plain::<Bwd<f32, f32>>(&[small]);
    bench.fast::<Bwd<f32, f32>>(&[small, large]);
    bench.fast::<Bwd<bf16, f32>>(&[large]);
    bench.fast_gpu::<Bwd<bf16, f32>>(&[Shape::new([8, 2048, 2048, 16]), Shape::new([1, 2048, 8192, 16])]);
}

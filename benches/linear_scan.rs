//! The affine recurrence of layer 1 and its adjoint.

use common::criterion::Bench;
use common::scan::Linear;
use common::shape::Shape;
use half::bf16;

mod common;

fn main() {
    let mut bench = Bench::default();
    let [one, few, many] = [[1, 1, 1 << 20, 1], [1, 64, 1 << 16, 1], [8, 512, 2048, 1]].map(Shape::new);
    bench.plain::<Linear<f32, false>>(&[few]);
    bench.fast::<Linear<f32, false>>(&[one, few, many]);
    bench.fast::<Linear<f32, true>>(&[many]);
    bench.fast_gpu::<Linear<f32, false>>(&[Shape::new([8, 1536, 8192, 1])]);
    bench.fast_gpu::<Linear<bf16, false>>(&[Shape::new([8, 1536, 8192, 1])]);
}

//! Buffers, graphs and faults: what every operator stands on.

use selective_scan::Error;

use super::engine;

#[test]
fn buffers_hold_what_they_are_given() {
    let data: Vec<f32> = (0..1000).map(|i| i as f32).collect();
    let mut buffer = engine().upload(&data).expect("a small buffer");
    assert_eq!(buffer.to_vec().expect("it can be read"), data);
    buffer.fill(0).expect("it can be written");
    assert_eq!(buffer.to_vec().expect("it can be read"), vec![0.0; 1000]);
    let empty = engine().upload::<f32>(&[]).expect("nothing");
    assert!(empty.is_empty() && empty.to_vec().expect("nothing").is_empty());
}

#[test]
fn too_much_memory_is_an_error_and_leaves_the_engine_whole() {
    assert!(matches!(engine().buffer::<f64>(1 << 46), Err(Error::Driver { .. })));
    assert!(matches!(engine().buffer::<f64>(usize::MAX), Err(Error::Driver { .. })));
    buffers_hold_what_they_are_given();
}

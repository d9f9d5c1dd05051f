use super::*;

#[test]
fn strides_decide_memory_and_indices_the_meaning() {
    let data: Vec<i32> = (0..24).collect();
    let v = View::strided(&data, 0, [2, 3, 4], [12, 1, 3]);
    assert_eq!(v.check("v", [2, 3, 4]), Ok(()));
    assert_eq!(v.get([1, 2, 3]), 12 + 2 + 9);
    assert_eq!(v.permute([0, 2, 1]).get([1, 3, 2]), v.get([1, 2, 3]));
    assert_eq!(v.flip(2).get([1, 2, 0]), v.get([1, 2, 3]));
    assert_eq!(v.flip(2).flip(2).get([0, 1, 2]), v.get([0, 1, 2]));
    assert_eq!(v.slice(1, 1..3).get([1, 1, 0]), v.get([1, 2, 0]));
    assert_eq!(v.row([0, 0, 0]), None);
    assert_eq!(v.permute([0, 2, 1]).row([1, 1, 0]), Some(&data[15..18]));
}

#[test]
fn views_that_leave_their_buffer_are_refused_by_name() {
    let data = [0u8; 10];
    let layout = |r: Result<(), Error>| matches!(r, Err(Error::Layout { operand: "u", .. }));
    assert!(layout(View::new(&data, [11]).check("u", [11])));
    assert!(layout(View::strided(&data, 9, [2], [1]).check("u", [2])));
    assert!(layout(View::strided(&data, 0, [2], [-1]).check("u", [2])));
    assert!(layout(View::strided(&data, 0, [usize::MAX, usize::MAX], [isize::MAX, isize::MAX]).check("u", [usize::MAX; 2])));
    assert!(layout(View::new(&data, [usize::MAX, 3]).check("u", [usize::MAX, 3])));
    assert_eq!(View::strided(&data, 9, [10], [-1]).check("u", [10]), Ok(()));
    assert_eq!(View::strided(&data, 99, [0, 7], [1, 1]).check("u", [0, 7]), Ok(()));
    let shape = View::new(&data, [10]).check("u", [9]);
    assert_eq!(shape, Err(Error::Shape { operand: "u", got: vec![10], want: vec![9] }));
}

#[test]
fn outputs_that_overlap_are_refused() {
    let mut data = [0f32; 100];
    let mut ok = |dims: [usize; 2], strides: [isize; 2]| ViewMut::strided(&mut data, 20, dims, strides).check("out", dims).is_ok();
    assert!(ok([3, 4], [4, 1]));
    assert!(ok([3, 4], [1, 3]));
    assert!(ok([3, 4], [5, -1]));
    assert!(ok([1, 4], [0, 1]));
    assert!(!ok([3, 4], [3, 1]));
    assert!(!ok([2, 4], [0, 1]));
    assert!(!ok([4, 4], [1, 1]));
}

#[test]
fn tiles_cover_every_element_once() {
    let mut data = vec![0u32; 7 * 3 * 10];
    let offsets = [0, 0, 4, 7];
    let cut = |outer| {
        let mut data = data.clone();
        let tiles = ViewMut::new(&mut data, [7, 3, 10]).tiles(outer, Cut::Every(2, 4));
        for i in 0..tiles.count() {
            // SAFETY: each index once.
            let mut tile = unsafe { tiles.tile(i) };
            let [a, b, c] = tile.dims();
            for at in (0..a * b * c).map(|j| [j / (b * c), j / c % b, j % c]) {
                tile.set(at, tile.get(at) + 1);
            }
        }
        data
    };
    for outer in [Cut::Whole, Cut::Every(0, 2), Cut::Every(1, 1), Cut::At(0, &offsets)] {
        assert!(cut(outer).iter().all(|&x| x == 1), "{outer:?}");
    }
    data.clear();
}

#[test]
#[should_panic(expected = "outside shape")]
fn an_index_outside_a_tile_panics_though_the_buffer_goes_on() {
    let mut data = [0u32; 8];
    ViewMut::new(&mut data, [8]).slice(0, 0..4).set([4], 1);
}

#[test]
fn fill_reaches_strided_elements_only() {
    let mut data = [0u8; 12];
    ViewMut::strided(&mut data, 1, [2, 3], [6, 2]).fill(7);
    assert_eq!(data, [0, 7, 0, 7, 0, 7, 0, 7, 0, 7, 0, 7]);
    ViewMut::strided(&mut data, 0, [1, 3], [6, 2]).fill(1);
    assert_eq!(data, [1, 7, 1, 7, 1, 7, 0, 7, 0, 7, 0, 7]);
}

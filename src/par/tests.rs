use super::*;
use crate::buffer::Buffer;
use crate::view::Cut;

/// Squares of 0..n, each tile of 3 by its own piece of work, with scratch memory that every piece overwrites.
fn squares(par: Par, n: usize, data: &mut [u64], ws: &mut Workspace<'_>) -> Result<(), Error> {
    let tiles = ViewMut::new(data, [n]).tiles(Cut::Every(0, 3), Cut::Whole);
    par.run(0, n.div_ceil(3), (tiles, None::<Tiles<'_, '_, u8, 1>>), ws, 256, |i, (mut tile, none), ws| {
        assert!(none.is_none());
        let scratch = ws.slice::<u64>(3).expect("scratch");
        for (j, square) in scratch.iter_mut().enumerate().take(tile.dims()[0]) {
            *square = ((i * 3 + j) as u64).pow(2);
            tile.set([j], *square);
        }
    })
}

#[test]
fn every_piece_runs_once_whoever_runs_it() {
    let n = 100;
    let want: Vec<u64> = (0..n as u64).map(|x| x * x).collect();
    let mut pars = vec![Par::Seq, Par::default()];
    pars.push(Par::Part { index: 0, count: 1, phase: 0 });
    for par in pars {
        let mut data = vec![0; n];
        let mut buffer = Buffer::new();
        squares(par, n, &mut data, &mut buffer.workspace(par.scratch_bytes(256))).expect("runs");
        assert_eq!(data, want, "{par:?}");
    }
}

#[test]
fn parts_together_do_it_all() {
    let n = 50;
    let mut data = vec![0u64; n];
    for index in 0..7 {
        let par = Par::Part { index, count: 7, phase: 0 };
        let mut buffer = Buffer::new();
        squares(par, n, &mut data, &mut buffer.workspace(par.scratch_bytes(256))).expect("runs");
    }
    assert_eq!(data, (0..n as u64).map(|x| x * x).collect::<Vec<_>>());
}

#[test]
fn a_small_workspace_is_an_error_and_nothing_runs() {
    let mut data = vec![0u64; 9];
    let mut bytes = [0u8; 10];
    let got = squares(Par::Seq, 9, &mut data, &mut Workspace::new(&mut bytes));
    assert!(matches!(got, Err(Error::Workspace { .. })));
    assert_eq!(data, [0; 9]);
}

#[test]
fn impossible_parts_are_refused() {
    assert!(Par::Part { index: 2, count: 2, phase: 0 }.check(1).is_err());
    assert!(Par::Part { index: 0, count: 2, phase: 1 }.check(1).is_err());
    assert!(Par::Part { index: 1, count: 2, phase: 1 }.check(2).is_ok());
}

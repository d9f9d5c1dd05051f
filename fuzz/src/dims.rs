//! Hostile shapes, strides and offsets: an error or a result, never a panic, and nothing is written but the output's elements.

use arbitrary::Result;
use selective_scan::buffer::Buffer;
use selective_scan::scan::{Scan, ScanFwd, ScanProblem};
use selective_scan::view::{View, ViewMut};

use super::compare::each_engine;
use super::input::Source;

/// Numbers in each buffer.
const LEN: usize = 64;
/// What an untouched number is.
const UNTOUCHED: f32 = 1234.5;

struct Layout {
    offset: usize,
    dims: [usize; 3],
    strides: [isize; 3],
}

impl Layout {
    /// Mostly the wanted shape, with any strides.
    fn new(from: &mut Source<'_>, want: [usize; 3]) -> Result<Self> {
        let mut dims = want;
        if from.upto(7)? == 0 {
            dims[from.upto(2)?] = from.upto(5)?;
        }
        Ok(Layout { offset: from.upto(LEN + 1)?, dims, strides: [from.stride()?, from.stride()?, from.stride()?] })
    }

    /// Every index that the layout reaches.
    fn indices(&self) -> Vec<usize> {
        let mut all = Vec::new();
        for i in 0..self.dims[0] {
            for j in 0..self.dims[1] {
                for k in 0..self.dims[2] {
                    let at = [i, j, k].iter().zip(self.strides).map(|(&x, s)| x as i128 * s as i128).sum::<i128>();
                    all.push((self.offset as i128 + at) as usize);
                }
            }
        }
        all
    }
}

fn check(bytes: &[u8]) -> Result<()> {
    let mut from = Source::new(bytes);
    let want = [from.upto(3)?, from.upto(5)?, from.upto(5)?];
    let (a, b, h) = (Layout::new(&mut from, want)?, Layout::new(&mut from, want)?, Layout::new(&mut from, want)?);
    let reverse = from.flag()?;
    let short = from.upto(7)? == 0;
    let data: Vec<f32> = (0..LEN).map(|i| 0.5 + i as f32 / 128.0).collect();
    each_engine!(engine, name, {
        let mut out = vec![UNTOUCHED; LEN];
        let args = ScanFwd {
            a: View::strided(&data, a.offset, a.dims, a.strides),
            b: View::strided(&data, b.offset, b.dims, b.strides),
            initial_state: None,
            h: ViewMut::strided(&mut out, h.offset, h.dims, h.strides),
            last_state: None,
            reverse,
        };
        let bytes = engine.scan_fwd_workspace::<f32>(ScanProblem { batch: b.dims[0], seqlen: b.dims[1], dim: b.dims[2] });
        let mut buffer = Buffer::new();
        let done = engine.scan_fwd(args, &mut buffer.workspace(if short { bytes / 2 } else { bytes }));
        let written = if done.is_ok() { h.indices() } else { Vec::new() };
        for (i, &x) in out.iter().enumerate() {
            assert!(written.contains(&i) || x == UNTOUCHED, "{name}: element {i} of {h:?} was written", h = h.dims);
            assert!(!written.contains(&i) || x != UNTOUCHED, "{name}: element {i} was not written");
        }
    });
    Ok(())
}

/// The target.
pub fn run(bytes: &[u8]) {
    let _ = check(bytes);
}

//! Matrix products across a warp, with the fragments laid out as the ISA lays them out.

use crate::decode::mma_registers as registers;
use crate::float::{b, from_bf16, from_f16};
use crate::ops::{Entry, Lanes, MmaShape, Slot};
use crate::warp::{Res, Warp};

/// Rows and columns of the operands: (m, n, k).
fn size(shape: MmaShape) -> (usize, usize, usize) {
    match shape {
        MmaShape::Half16 => (16, 8, 16),
        MmaShape::Half8 | MmaShape::Tf8 => (16, 8, 8),
        MmaShape::Tf4 => (16, 8, 4),
        MmaShape::Double => (8, 8, 4),
    }
}

/// (row, column) of element `i` that a lane holds of A.
fn place_a(shape: MmaShape, lane: usize, i: usize) -> (usize, usize) {
    let (group, four) = (lane / 4, lane % 4);
    match shape {
        MmaShape::Half16 | MmaShape::Half8 => (group + 8 * (i / 2 % 2), four * 2 + i % 2 + 8 * (i / 4)),
        MmaShape::Tf8 | MmaShape::Tf4 => (group + 8 * (i % 2), four + 4 * (i / 2)),
        MmaShape::Double => (group, four),
    }
}

/// (row, column) of element `i` that a lane holds of B.
fn place_b(shape: MmaShape, lane: usize, i: usize) -> (usize, usize) {
    let (group, four) = (lane / 4, lane % 4);
    match shape {
        MmaShape::Half16 | MmaShape::Half8 => (four * 2 + i % 2 + 8 * (i / 2), group),
        MmaShape::Tf8 | MmaShape::Tf4 => (four + 4 * i, group),
        MmaShape::Double => (four, group),
    }
}

/// (row, column) of element `i` that a lane holds of C and D.
fn place_c(lane: usize, i: usize) -> (usize, usize) {
    (lane / 4 + 8 * (i / 2), lane % 4 * 2 + i % 2)
}

/// The elements in a register of A or B.
fn elements(shape: MmaShape, bf16: bool, bits: u64) -> ([f64; 2], usize) {
    match shape {
        MmaShape::Half16 | MmaShape::Half8 => {
            let get = |h: u64| if bf16 { from_bf16(h as u16) } else { from_f16(h as u16) };
            ([get(bits), get(bits >> 16)], 2)
        }
        // The low 13 bits of a tf32 operand are not looked at.
        MmaShape::Tf8 | MmaShape::Tf4 => ([f32::from_bits(bits as u32 & !0x1fff) as f64, 0.0], 1),
        MmaShape::Double => ([f64::from_bits(bits), 0.0], 1),
    }
}

/// `d = a · b + c`. Sums are kept in f64 and rounded once; hardware sums in an order and precision that are not specified.
pub(crate) fn mma(
    w: &mut Warp,
    e: &Entry,
    shape: MmaShape,
    bf16: bool,
    d: &[Slot; 4],
    a: &[Slot; 4],
    bs: &[Slot; 2],
    c: &[Slot; 4],
) -> Res {
    let (m, n, k) = size(shape);
    let [nd, na, nb, nc] = registers(shape);
    for &s in a[..na].iter().chain(&bs[..nb]).chain(&c[..nc]) {
        w.need(e, s, u32::MAX)?;
    }
    let (mut ma, mut mb) = ([[0.0f64; 16]; 16], [[0.0f64; 8]; 16]);
    for lane in 0..32 {
        for (r, &s) in a[..na].iter().enumerate() {
            let (v, per) = elements(shape, bf16, w.get(s)[lane]);
            for (j, v) in v[..per].iter().enumerate() {
                let (row, col) = place_a(shape, lane, r * per + j);
                ma[row][col] = *v;
            }
        }
        for (r, &s) in bs[..nb].iter().enumerate() {
            let (v, per) = elements(shape, bf16, w.get(s)[lane]);
            for (j, v) in v[..per].iter().enumerate() {
                let (row, col) = place_b(shape, lane, r * per + j);
                mb[row][col] = *v;
            }
        }
    }
    let double = shape == MmaShape::Double;
    let mut out: [Lanes; 4] = [[0; 32]; 4];
    for (i, out) in out[..nd].iter_mut().enumerate() {
        for (lane, out) in out.iter_mut().enumerate() {
            let (row, col) = place_c(lane, i);
            debug_assert!(row < m && col < n);
            let start = w.get(c[i])[lane];
            let mut sum = if double { f64::from_bits(start) } else { f32::from_bits(start as u32) as f64 };
            for (x, y) in ma[row][..k].iter().zip(&mb[..k]) {
                // Products of the short formats are exact in f64, so that only doubles need the fused form.
                sum = if double { x.mul_add(y[col], sum) } else { x * y[col] + sum };
            }
            *out = if double { sum.to_bits() } else { b(sum as f32) };
        }
    }
    for (d, out) in d[..nd].iter().zip(&out) {
        w.put(*d, u32::MAX, out);
    }
    Ok(())
}

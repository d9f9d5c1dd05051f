//! The decode step in Mamba's own case, over many blocks of channels at once: the arithmetic of the forward scan's tile, in the
//! same order, with blocks in the place of steps. A and the states are used where they lie.

use crate::arch::generic::exp::exp_of_negative;
use crate::arch::generic::selective_scan::{SUBTOTAL, group};
use crate::arch::generic::silu::silu;
use crate::arch::generic::softplus::softplus_of;
use crate::arch::generic::tables::Tables;
use crate::arch::generic::tiles::{Lines, LinesMut, STRIP, StepRow, Turn};
use crate::arch::generic::vector::{Loose, Op, Part, Vector, loose, loose_mut, rows, rows_mut};

/// The recurrence of a strip of blocks.
struct Walk<'r, V: Vector, A, H> {
    /// The first of them.
    first: usize,
    dstate: usize,
    /// `bounds` is there.
    prepared: bool,
    a: &'r A,
    h: &'r mut H,
    b: &'r [V::Real],
    c: &'r [V::Real],
    dt: &'r [V],
    u: &'r [V],
    /// Σ C·h.
    out: &'r mut [V],
    /// An upper bound of (A·log₂e)²; infinite where one is, or is NaN.
    bounds: &'r mut [V],
    sums: [&'r mut [V]; 2],
    subtotal: &'r mut [V],
    columns: &'r mut [V],
}

/// Whether the exponents of a block are small: see [`Vector::exp2_small`]. Squares cost no sign, and their sum no second look at NaN.
#[inline(always)]
fn small<V: Vector>(dt: V, bound: V) -> bool {
    (dt * dt * bound).all_below(V::Real::EXP2_SMALL * V::Real::EXP2_SMALL)
}

#[inline(always)]
fn exp2<V: Vector, const SMALL: bool>(x: V) -> V {
    if SMALL { x.exp2_small() } else { x.exp2() }
}

/// [`Walk`] where a line of A and of the states is a state's channels: few lines at a time over all blocks.
struct Along<'r, V: Vector, A, H>(Walk<'r, V, A, H>);

impl<V: Vector, A: Lines<V::Real>, H: LinesMut<V::Real>> Along<'_, V, A, H> {
    /// `NB` lines from `n` on; `ends` says whether their group of states begins, and ends, with them.
    #[inline(always)]
    fn lines<const NB: usize, const SMALL: bool>(&mut self, zero: V, n: usize, ends: [bool; 2]) {
        let (count, first, walk) = (self.0.out.len(), self.0.first * V::LANES, &mut self.0);
        let (mut a, mut b, mut c) = ([&[][..]; NB], [zero; NB], [zero; NB]);
        let lines = walk.a.lines::<NB>(n);
        for j in 0..NB {
            a[j] = loose(zero, &lines[j][first..], count);
            (b[j], c[j]) = (zero.splat(walk.b[n + j]), zero.splat(walk.c[n + j]));
        }
        let h = walk.h.lines_mut::<NB>(n).map(|line| loose_mut(zero, &mut line[first..], count));
        let y = if n < SUBTOTAL { &mut walk.out[..count] } else { &mut walk.subtotal[..count] };
        let [even, odd] = &mut walk.sums;
        let (dt, u, even, odd) = (&walk.dt[..count], &walk.u[..count], &mut even[..count], &mut odd[..count]);
        for k in 0..count {
            let (dt, du) = (dt[k], dt[k] * u[k]);
            let mut sums = if ends[0] { [zero; 2] } else { [even[k], odd[k]] };
            for j in 0..NB {
                let x = dt * (a[j][k].get() * zero.splat(V::Real::LOG2_E));
                let new = exp2::<V, SMALL>(x).mul_add(h[j][k].get(), du * b[j]);
                h[j][k].set(new);
                sums[j % 2] = new.mul_add(c[j], sums[j % 2]);
            }
            if ends[1] {
                y[k] = y[k] + (sums[0] + sums[1]);
            } else {
                [even[k], odd[k]] = sums;
            }
        }
    }

    /// All lines.
    #[inline(always)]
    fn all<const SMALL: bool>(mut self, zero: V) {
        let (dstate, mut n) = (self.0.dstate, 0);
        self.0.out.fill(zero);
        while n < dstate {
            let size = group(V::STATES, dstate - n);
            if n.is_multiple_of(SUBTOTAL) {
                self.0.subtotal.fill(zero);
            }
            match size {
                1 => self.lines::<1, SMALL>(zero, n, [true; 2]),
                2 => self.lines::<2, SMALL>(zero, n, [true; 2]),
                _ => {
                    for at in (0..size).step_by(4) {
                        self.lines::<4, SMALL>(zero, n + at, [at == 0, at + 4 == size]);
                    }
                }
            }
            n += size;
            if n > SUBTOTAL && (n.is_multiple_of(SUBTOTAL) || n == dstate) {
                for (y, subtotal) in self.0.out.iter_mut().zip(&*self.0.subtotal) {
                    *y = *y + *subtotal;
                }
            }
        }
    }

    /// Fills `bounds`.
    #[inline(always)]
    fn prepare(&mut self, zero: V) {
        let Walk { first, dstate, a, bounds, .. } = &mut self.0;
        bounds.fill(zero);
        let (first, mut n) = (*first * V::LANES, 0);
        while n + 4 <= *dstate {
            squares::<V, 4>(zero, a.lines(n).map(|line| &line[first..]), bounds);
            n += 4;
        }
        while n < *dstate {
            squares::<V, 1>(zero, a.lines(n).map(|line| &line[first..]), bounds);
            n += 1;
        }
        for bound in bounds.iter_mut() {
            *bound = *bound * zero.splat(V::Real::LOG2_E * V::Real::LOG2_E);
        }
    }
}

/// Adds A² to each channel's sum.
#[inline(always)]
fn squares<V: Vector, const NB: usize>(zero: V, lines: [&[V::Real]; NB], sums: &mut [V]) {
    let a = lines.map(|line| loose(zero, line, sums.len()));
    for (k, sum) in sums.iter_mut().enumerate() {
        for a in a {
            *sum = a[k].get().mul_add(a[k].get(), *sum);
        }
    }
}

impl<V: Vector, A: Lines<V::Real>, H: LinesMut<V::Real>> Part<V> for Along<'_, V, A, H> {
    type Out = ();
    #[inline(always)]
    fn run(mut self, zero: V) {
        if !self.0.prepared {
            self.prepare(zero);
        }
        let mut all = true;
        for (dt, bound) in self.0.dt.iter().zip(&*self.0.bounds) {
            all &= small(*dt, *bound);
        }
        if all { self.all::<true>(zero) } else { self.all::<false>(zero) }
    }
}

/// [`Walk`] where a channel's states, a multiple of the lanes, follow another's: one block after another, which is turned once.
struct Across<'r, V: Vector, A, H>(Walk<'r, V, A, H>);

/// The numbers of block `k` of channels.
#[inline(always)]
fn block<V: Vector>(zero: V, line: &[V::Real], k: usize, dstate: usize) -> &[Loose<V>] {
    loose(zero, &line[k * V::LANES * dstate..], dstate)
}

impl<V: Vector, A: Lines<V::Real>, H: LinesMut<V::Real>> Across<'_, V, A, H> {
    #[inline(always)]
    fn block<const SMALL: bool>(&mut self, zero: V, k: usize) {
        let Walk { first, dstate, a, h, b, c, dt, u, out, columns, .. } = &mut self.0;
        let (at, chunks, du) = (*first + k, *dstate / V::LANES, dt[k] * u[k]);
        let ([a], [h]) = (a.lines::<1>(0), h.lines_mut::<1>(0));
        let a = block(zero, a, at, *dstate);
        let h = loose_mut(zero, &mut h[at * V::LANES * *dstate..], *dstate);
        let (b, columns) = (loose(zero, b, chunks), &mut columns[..*dstate]);
        let (dt, du) = (dt[k].lanes(), du.lanes());
        for chunk in 0..chunks {
            let (b, columns) = (b[chunk].get(), &mut columns[chunk * V::LANES..][..V::LANES]);
            for i in 0..V::LANES {
                let at = i * chunks + chunk;
                let x = zero.splat(dt[i]) * (a[at].get() * zero.splat(V::Real::LOG2_E));
                let new = exp2::<V, SMALL>(x).mul_add(h[at].get(), zero.splat(du[i]) * b);
                h[at].set(new);
                columns[i] = new;
            }
            V::square(columns);
        }
        out[k] = contract(zero, columns, c);
    }

    /// Fills `bounds[k]`.
    #[inline(always)]
    fn prepare(&mut self, zero: V, k: usize) {
        let Walk { first, dstate, a, bounds, .. } = &mut self.0;
        let ([line], mut sums) = (a.lines::<1>(0), [zero; 4]);
        for (i, a) in block(zero, line, *first + k, *dstate).iter().enumerate() {
            sums[i % 4] = a.get().mul_add(a.get(), sums[i % 4]);
        }
        let total = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        // A NaN is not the largest of anything.
        let most = if total.all_below(V::Real::MAX) { total.largest() } else { V::Real::MAX };
        bounds[k] = zero.splat(most) * zero.splat(V::Real::LOG2_E * V::Real::LOG2_E);
    }
}

/// Σ C·h over `NB` states.
#[inline(always)]
fn dot<V: Vector, const NB: usize>(zero: V, h: &[V], c: &[V::Real]) -> V {
    let (h, c, mut sums) = (&h[..NB], &c[..NB], [zero; 2]);
    for j in 0..NB {
        sums[j % 2] = h[j].mul_add(zero.splat(c[j]), sums[j % 2]);
    }
    sums[0] + sums[1]
}

/// Σ C·h over one block, in the order of [`Along`].
#[inline(always)]
fn contract<V: Vector>(zero: V, h: &[V], c: &[V::Real]) -> V {
    let (mut y, mut subtotal, mut n) = (zero, zero, 0);
    while n < h.len() {
        let size = group(V::STATES, h.len() - n);
        let part = match size {
            16 => dot::<V, 16>(zero, &h[n..], &c[n..]),
            8 => dot::<V, 8>(zero, &h[n..], &c[n..]),
            4 => dot::<V, 4>(zero, &h[n..], &c[n..]),
            2 => dot::<V, 2>(zero, &h[n..], &c[n..]),
            _ => dot::<V, 1>(zero, &h[n..], &c[n..]),
        };
        if n < SUBTOTAL {
            y = y + part;
        } else {
            subtotal = subtotal + part;
        }
        n += size;
        if n > SUBTOTAL && (n.is_multiple_of(SUBTOTAL) || n == h.len()) {
            (y, subtotal) = (y + subtotal, zero);
        }
    }
    y
}

impl<V: Vector, A: Lines<V::Real>, H: LinesMut<V::Real>> Part<V> for Across<'_, V, A, H> {
    type Out = ();
    #[inline(always)]
    fn run(mut self, zero: V) {
        assert!(self.0.dstate.is_multiple_of(V::LANES), "lines of {} states", self.0.dstate);
        for k in 0..self.0.out.len() {
            if !self.0.prepared {
                self.prepare(zero, k);
            }
            if small(self.0.dt[k], self.0.bounds[k]) {
                self.block::<true>(zero, k);
            } else {
                self.block::<false>(zero, k);
            }
        }
    }
}

/// What a strip's blocks have of their own, as vectors.
struct Strip<'r, V> {
    first: usize,
    u: &'r [V],
    delta: &'r [V],
    bias: Option<&'r [V]>,
    z: Option<&'r [V]>,
    d: Option<&'r [V]>,
    out: &'r mut [V],
    bounds: &'r mut [V],
}

impl<R: Tables, A: Lines<R>, H: LinesMut<R>> StepRow<'_, R, A, H> {
    /// One strip.
    #[inline(always)]
    fn strip<V: Vector<Real = R>>(&mut self, zero: V, strip: Strip<'_, V>) {
        let (Strip { first, u, delta, bias, z, d, out, bounds }, dstate) = (strip, self.dstate);
        let count = out.len();
        let (dt, scratch) = rows_mut(zero, self.scratch, 4 * STRIP).split_at_mut(STRIP);
        let (even, scratch) = scratch.split_at_mut(STRIP);
        let (odd, subtotal) = scratch.split_at_mut(STRIP);
        let dt = &mut dt[..count];
        for k in 0..count {
            dt[k] = delta[k] + bias.map_or(zero, |bias| bias[k]);
        }
        if self.softplus {
            for k in 0..count {
                out[k] = exp_of_negative(-dt[k].abs());
            }
            for k in 0..count {
                dt[k] = softplus_of(dt[k], out[k]);
            }
        }
        let walk = Walk {
            first,
            dstate,
            prepared: self.prepared,
            a: self.a,
            h: &mut *self.h,
            b: &self.b[..dstate],
            c: &self.c[..dstate],
            dt,
            u,
            out: &mut *out,
            bounds,
            sums: [even, odd],
            subtotal,
            columns: rows_mut(zero, self.columns, if self.by_channel { dstate } else { 0 }),
        };
        if self.by_channel {
            zero.outline(Across(walk))
        } else {
            zero.outline(Along(walk))
        }
        if let Some(d) = d {
            for k in 0..count {
                out[k] = d[k].mul_add(u[k], out[k]);
            }
        }
        if let Some(z) = z {
            for k in 0..count {
                out[k] = out[k] * silu(z[k]);
            }
        }
    }
}

impl<R: Tables, A: Lines<R>, H: LinesMut<R>> Op<R> for StepRow<'_, R, A, H> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector<Real = R>>(mut self, zero: V) {
        let all = self.blocks;
        let [u, delta] = [self.u, self.delta].map(|x| rows(zero, x, all));
        let [bias, z, d] = [self.delta_bias, self.z, self.d].map(|x| x.map(|x| rows(zero, x, all)));
        let out = rows_mut(zero, core::mem::take(&mut self.out), all);
        let bounds = rows_mut(zero, core::mem::take(&mut self.bounds), all);
        for (i, (out, bounds)) in out.chunks_mut(STRIP).zip(bounds.chunks_mut(STRIP)).enumerate() {
            let (first, end) = (i * STRIP, i * STRIP + out.len());
            let [bias, z, d] = [bias, z, d].map(|x| x.map(|x| &x[first..end]));
            self.strip(zero, Strip { first, u: &u[first..end], delta: &delta[first..end], bias, z, d, out, bounds });
        }
    }
}

impl<R: Tables> Op<R> for Turn<'_, R> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector<Real = R>>(self, zero: V) {
        let (dstate, chunks) = (self.dstate, self.dstate / V::LANES);
        let to = rows_mut(zero, self.to, dstate * self.blocks);
        for k in 0..self.blocks {
            let from = block(zero, self.from, k, dstate);
            for chunk in 0..chunks {
                let mut square = [zero; 16];
                for i in 0..V::LANES {
                    square[i] = from[i * chunks + chunk].get();
                }
                V::square(&mut square[..V::LANES]);
                for i in 0..V::LANES {
                    to[(chunk * V::LANES + i) * self.blocks + k] = square[i];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::testing::Staged;
    use crate::arch::testing_scan::{case, run_fwd};
    use crate::arch::{Kernels, Lanes, step_scratch};
    use crate::ops::Rule;

    struct Rows<'a, R>(&'a mut [R], usize);

    impl<R> Lines<R> for Rows<'_, R> {
        fn lines<const C: usize>(&self, first: usize) -> [&[R]; C] {
            core::array::from_fn(|i| &self.0[(first + i) * self.1..][..self.1])
        }
    }
    impl<R> LinesMut<R> for Rows<'_, R> {
        fn lines_mut<const C: usize>(&mut self, first: usize) -> [&mut [R]; C] {
            let mut lines = self.0[first * self.1..].chunks_exact_mut(self.1);
            core::array::from_fn(|_| lines.next().unwrap())
        }
    }

    /// A row of blocks has the bits of as many tiles of one step, in either order of A and the states.
    fn check<R: Lanes>(dstate: usize, delta: f64, by_channel: bool) {
        for k in Kernels::available() {
            let lanes = k.lanes::<R>();
            if by_channel && !dstate.is_multiple_of(lanes) {
                continue;
            }
            let mut cases: Vec<_> = (0..3).map(|_| case(lanes, 1, dstate, Rule::Euler, 0b1110_0010)).collect();
            for (i, case) in cases.iter_mut().enumerate() {
                case.delta.iter_mut().for_each(|x| *x += delta * i as f64);
                case.u.iter_mut().for_each(|x| *x += i as f64);
            }
            let flat = |pick: &dyn Fn(usize) -> Vec<f64>| Staged::<R>::from(&(0..3).flat_map(pick).collect::<Vec<_>>());
            let place = |i: usize, n: usize, w: usize| if by_channel { (i * lanes + w) * dstate + n } else { (n * 3 + i) * lanes + w };
            let line = if by_channel { 3 * lanes * dstate } else { 3 * lanes };
            let planes = |pick: &dyn Fn(usize) -> Vec<f64>| {
                let mut all = vec![0.0; 3 * dstate * lanes];
                for i in 0..3 {
                    pick(i).iter().enumerate().for_each(|(j, x)| all[place(i, j / lanes, j % lanes)] = *x);
                }
                Staged::<R>::from(&all)
            };
            let real = |x: &[num_complex::Complex<f64>]| x.iter().map(|x| x.re).collect::<Vec<_>>();
            let (mut u, mut delta) = (flat(&|i| cases[i].u.clone()), flat(&|i| cases[i].delta.clone()));
            let (mut z, mut d) = (flat(&|i| cases[i].z.clone().unwrap()), flat(&|i| cases[i].d.clone().unwrap()));
            let mut bias = flat(&|i| cases[i].bias.clone().unwrap());
            let (mut a, mut h) = (planes(&|i| real(&cases[i].a)), planes(&|i| real(&cases[i].h)));
            let (mut b, mut c) = (Staged::<R>::from(&real(&cases[0].b)), Staged::<R>::from(&real(&cases[0].c)));
            let [mut out, mut bounds] = [(); 2].map(|()| Staged::<R>::new(3 * lanes));
            let mut scratch = Staged::<R>::new(step_scratch(lanes));
            let mut columns = Staged::<R>::new(dstate * lanes);
            k.selective_state_update(StepRow {
                blocks: 3,
                dstate,
                by_channel,
                softplus: true,
                prepared: false,
                u: u.get(),
                delta: delta.get(),
                delta_bias: Some(bias.get()),
                z: Some(z.get()),
                d: Some(d.get()),
                a: &Rows(a.get(), line),
                b: b.get(),
                c: c.get(),
                h: &mut Rows(h.get(), line),
                out: out.get(),
                bounds: bounds.get(),
                scratch: scratch.get(),
                columns: columns.get(),
            });
            for (i, case) in cases.iter().enumerate() {
                let (want, states) = run_fwd::<R>(k, case);
                let got: Vec<f64> = out.get()[i * lanes..][..lanes].iter().map(|x| x.to_f64()).collect();
                assert_eq!(got, want, "{:?}", k.isa());
                let h = h.get();
                let got: Vec<f64> = (0..dstate * lanes).map(|j| h[place(i, j / lanes, j % lanes)].to_f64()).collect();
                assert_eq!(got, real(&states), "{:?}", k.isa());
            }
        }
    }

    #[test]
    fn has_the_bits_of_tiles() {
        for dstate in [1, 3, 16, 37, 64, 100] {
            // The last has exponents that are not small.
            for delta in [0.0, 0.5, 150.0] {
                for by_channel in [false, true] {
                    check::<f32>(dstate, delta, by_channel);
                    check::<f64>(dstate, delta, by_channel);
                }
            }
        }
    }
}

//! Where tensors live (`Memory`), and borrowed views of them with dimensions and strides.
//!
//! Strides count elements, may be negative or 0 (a broadcast, for inputs), and decide the memory order; the logical order is
//! always the one the operand states, (B, L, D) for sequences. Constructors accept anything; each operation checks its
//! operands first and names the one that is wrong.

use core::any::TypeId;
use core::marker::PhantomData;
use core::ops::Range;

use bytemuck::Pod;

use crate::error::Error;

/// Where tensors live. Views over different memories are different types, so no device pointer reaches a CPU engine.
pub trait Memory: Copy + Send + Sync + 'static {}

/// Memory of this process.
#[derive(Debug, Clone, Copy)]
pub struct Host;

impl Memory for Host {}

/// Memory of a GPU: a view's pointer is an address on the device, which nothing in this process reads.
#[derive(Debug, Clone, Copy)]
pub struct Device;

impl Memory for Device {}

/// A borrowed tensor of rank `R`.
pub struct View<'a, T, const R: usize, M: Memory = Host> {
    ptr: *const T,
    len: usize,
    offset: usize,
    dims: [usize; R],
    strides: [isize; R],
    life: PhantomData<(&'a [T], M)>,
}

impl<T, const R: usize, M: Memory> Clone for View<'_, T, R, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T, const R: usize, M: Memory> Copy for View<'_, T, R, M> {}

/// A borrowed tensor of rank `R` that is written.
pub struct ViewMut<'a, T, const R: usize, M: Memory = Host> {
    ptr: *mut T,
    len: usize,
    offset: usize,
    dims: [usize; R],
    strides: [isize; R],
    life: PhantomData<(&'a mut [T], M)>,
}

// SAFETY: a View stands for `&'a [T]`, which is Send and Sync where T is Sync.
unsafe impl<T: Sync, const R: usize, M: Memory> Send for View<'_, T, R, M> {}
// SAFETY: as above.
unsafe impl<T: Sync, const R: usize, M: Memory> Sync for View<'_, T, R, M> {}
// SAFETY: a ViewMut stands for exclusive access to its own elements, as `&'a mut [T]` does.
unsafe impl<T: Send, const R: usize, M: Memory> Send for ViewMut<'_, T, R, M> {}
// SAFETY: through a shared ViewMut elements can only be read.
unsafe impl<T: Sync, const R: usize, M: Memory> Sync for ViewMut<'_, T, R, M> {}

/// Row-major strides: the last axis is contiguous. Saturates where the product overflows; the check then refuses the view.
pub fn contiguous<const R: usize>(dims: [usize; R]) -> [isize; R] {
    let mut strides = [1isize; R];
    for i in (1..R).rev() {
        strides[i - 1] = strides[i].saturating_mul(isize::try_from(dims[i].max(1)).unwrap_or(isize::MAX));
    }
    strides
}

/// Lowest and highest index a layout reaches, or None for an empty tensor.
fn extent<const R: usize>(offset: usize, dims: [usize; R], strides: [isize; R]) -> Option<(i128, i128)> {
    if dims.contains(&0) {
        return None;
    }
    let (mut low, mut high) = (offset as i128, offset as i128);
    for (dim, stride) in dims.into_iter().zip(strides) {
        let reach = (dim as i128 - 1).saturating_mul(stride as i128);
        if reach < 0 { low = low.saturating_add(reach) } else { high = high.saturating_add(reach) }
    }
    Some((low, high))
}

fn check_bounds<const R: usize>(
    operand: &'static str,
    len: usize,
    offset: usize,
    dims: [usize; R],
    strides: [isize; R],
) -> Result<(), Error> {
    match extent(offset, dims, strides) {
        Some((low, high)) if low < 0 || high >= len as i128 => Err(Error::Layout {
            operand,
            why: format!(
                "shape {dims:?} with strides {strides:?} from offset {offset} reaches indices {low}..={high} of a buffer of {len} elements"
            ),
        }),
        _ => Ok(()),
    }
}

fn check_shape<const R: usize>(operand: &'static str, got: [usize; R], want: [usize; R]) -> Result<(), Error> {
    if got == want { Ok(()) } else { Err(Error::Shape { operand, got: got.to_vec(), want: want.to_vec() }) }
}

/// Whether no two index tuples share an element: sorted by stride, each axis steps over all that is inside it.
fn nests<const R: usize>(dims: [usize; R], strides: [isize; R]) -> bool {
    if dims.contains(&0) {
        return true;
    }
    let mut axes: [(usize, usize); R] = core::array::from_fn(|i| (strides[i].unsigned_abs(), dims[i]));
    axes.sort_unstable();
    let mut inside = 0u128;
    for (stride, dim) in axes {
        if dim > 1 {
            if (stride as u128) <= inside {
                return false;
            }
            inside = inside.saturating_add((dim as u128 - 1).saturating_mul(stride as u128));
        }
    }
    true
}

/// The layout with the first two axes merged into one, where one stride reaches all their elements.
fn merged([batch, seqlen, dim]: [usize; 3], [outer, inner, last]: [isize; 3]) -> Option<([usize; 2], [isize; 2])> {
    let rows = batch.checked_mul(seqlen)?;
    let stride = if seqlen == 1 { outer } else { inner };
    let fits = rows == 0 || batch == 1 || seqlen == 1 || inner.checked_mul(isize::try_from(seqlen).ok()?) == Some(outer);
    fits.then_some(([rows, dim], [stride, last]))
}

/// The rows of a matrix, see [`View::lines`].
pub(crate) struct Rows<'v, T> {
    start: *const T,
    stride: isize,
    n: usize,
    end: usize,
    of: PhantomData<&'v [T]>,
}

impl<'v, T> Rows<'v, T> {
    /// Rows `first..first + C`.
    #[inline(always)]
    pub(crate) fn several<const C: usize>(&self, first: usize) -> [&'v [T]; C] {
        assert!(C <= self.end && first <= self.end - C, "a matrix lacks {C} rows from {first} on");
        core::array::from_fn(|i| {
            // SAFETY: `matrix_rows` checked the bounds of all rows; they are borrowed for 'v and not written meanwhile.
            unsafe { core::slice::from_raw_parts(self.start.offset((first + i) as isize * self.stride), self.n) }
        })
    }
}

/// The rows of a matrix, see [`ViewMut::matrix_rows_mut`].
pub(crate) struct RowsMut<'v, T> {
    start: *mut T,
    stride: isize,
    n: usize,
    at: usize,
    end: usize,
    of: PhantomData<&'v mut [T]>,
}

impl<T> RowsMut<'_, T> {
    /// Row `i`, for as long as no other is asked for: rows may share elements.
    #[inline(always)]
    pub(crate) fn row(&mut self, i: usize) -> &mut [T] {
        assert!(i < self.end, "a matrix has no row {i}");
        // SAFETY: `matrix_rows` checked the bounds of all rows; the elements are borrowed exclusively, and the row before was let go.
        unsafe { core::slice::from_raw_parts_mut(self.start.offset(i as isize * self.stride), self.n) }
    }

    /// Rows `first..first + C`, which must not share elements.
    #[inline(always)]
    pub(crate) fn several<const C: usize>(&mut self, first: usize) -> [&mut [T]; C] {
        assert!(C <= self.end && first <= self.end - C, "a matrix lacks {C} rows from {first} on");
        assert!(C <= 1 || self.stride.unsigned_abs() >= self.n, "rows overlap");
        core::array::from_fn(|i| {
            // SAFETY: as in `row`; so far apart, rows of `n` elements are disjoint.
            unsafe { core::slice::from_raw_parts_mut(self.start.offset((first + i) as isize * self.stride), self.n) }
        })
    }

    /// The row after the one that it gave before.
    #[inline(always)]
    pub(crate) fn next(&mut self) -> Option<&mut [T]> {
        (self.at < self.end).then(|| {
            self.at += 1;
            self.row(self.at - 1)
        })
    }
}

fn linear<const R: usize>(offset: usize, dims: [usize; R], strides: [isize; R], index: [usize; R]) -> usize {
    let mut at = offset as isize;
    for i in 0..R {
        assert!(index[i] < dims[i], "index {index:?} outside shape {dims:?}");
        at += index[i] as isize * strides[i];
    }
    at as usize
}

macro_rules! shared {
    ($view:ident) => {
        impl<T, const R: usize, M: Memory> core::fmt::Debug for $view<'_, T, R, M> {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, concat!(stringify!($view), "({:?}, strides {:?})"), self.dims, self.strides)
            }
        }

        impl<'a, T, const R: usize, M: Memory> $view<'a, T, R, M> {
            /// Dimensions.
            pub fn dims(&self) -> [usize; R] {
                self.dims
            }

            /// Strides in elements.
            pub fn strides(&self) -> [isize; R] {
                self.strides
            }

            /// The part with `range` along `axis`. Panics where the range leaves the axis.
            pub fn slice(mut self, axis: usize, range: Range<usize>) -> Self {
                assert!(range.start <= range.end && range.end <= self.dims[axis], "range {range:?} outside axis {axis} of {:?}", self.dims);
                self.dims[axis] = range.end - range.start;
                if !self.dims.contains(&0) {
                    self.offset = (self.offset as isize + range.start as isize * self.strides[axis]) as usize;
                }
                self
            }

            /// The same elements with `axis` walked backwards: its stride is negated.
            pub fn flip(mut self, axis: usize) -> Self {
                if !self.dims.contains(&0) {
                    self.offset = (self.offset as isize + (self.dims[axis] as isize - 1) * self.strides[axis]) as usize;
                }
                // An axis of one element may have any stride, the lowest number too.
                self.strides[axis] = self.strides[axis].wrapping_neg();
                self
            }

            /// The axes in another order: axis i of the result is axis `axes[i]` of this.
            pub fn permute(mut self, axes: [usize; R]) -> Self {
                let mut seen = [false; R];
                axes.iter().for_each(|&a| assert!(!core::mem::replace(&mut seen[a], true), "{axes:?} is not a permutation"));
                (self.dims, self.strides) = (axes.map(|a| self.dims[a]), axes.map(|a| self.strides[a]));
                self
            }
        }
    };
}

shared!(View);
shared!(ViewMut);

impl<'a, T: Copy, const R: usize> View<'a, T, R> {
    /// A contiguous row-major tensor.
    pub fn new(data: &'a [T], dims: [usize; R]) -> Self {
        Self::strided(data, 0, dims, contiguous(dims))
    }

    /// A tensor with any layout; element (i, j, …) stands at `offset + i·strides[0] + j·strides[1] + …`.
    pub fn strided(data: &'a [T], offset: usize, dims: [usize; R], strides: [isize; R]) -> Self {
        View { ptr: data.as_ptr(), len: data.len(), offset, dims, strides, life: PhantomData }
    }

    /// One element. Panics outside the shape.
    #[inline]
    pub fn get(&self, index: [usize; R]) -> T {
        let at = linear(self.offset, self.dims, self.strides, index);
        assert!(at < self.len);
        // SAFETY: `at` is inside the borrowed buffer; it may be shared with parts that only read it.
        unsafe { *self.ptr.add(at) }
    }

    /// The elements along a contiguous last axis, from `index` with last coordinate 0. None where the axis is not contiguous.
    #[inline]
    pub fn row(&self, index: [usize; R]) -> Option<&'a [T]> {
        let n = self.dims[R - 1];
        if n == 0 || (n > 1 && self.strides[R - 1] != 1) {
            return None;
        }
        let at = linear(self.offset, self.dims, self.strides, index);
        assert!(index[R - 1] == 0 && at.checked_add(n).is_some_and(|end| end <= self.len));
        // SAFETY: the n elements from `at` are inside the buffer, borrowed for 'a and not written meanwhile.
        Some(unsafe { core::slice::from_raw_parts(self.ptr.add(at), n) })
    }

    /// Address of the element with all coordinates 0, and bytes from one to the next along each of the last two axes: for hints.
    pub(crate) fn addresses(&self) -> (usize, [isize; 2]) {
        let size = size_of::<T>() as isize;
        let at = (self.ptr as usize).wrapping_add_signed(self.offset as isize * size);
        (at, [self.strides[R - 2] * size, self.strides[R - 1] * size])
    }

    /// The rows of one matrix, which is all that the tensor holds: its leading axes have one element each. None where rows are
    /// not contiguous. Bounds are checked once for all rows.
    pub(crate) fn matrix_rows(&self) -> Option<impl Iterator<Item = &'a [T]> + use<'a, T, R>> {
        let (count, n) = (self.dims[R - 2], self.dims[R - 1]);
        if self.dims.contains(&0) || (n > 1 && self.strides[R - 1] != 1) {
            return None;
        }
        assert!(self.dims[..R - 2].iter().all(|&d| d == 1));
        check_bounds("rows", self.len, self.offset, self.dims, self.strides).expect("a checked view is read");
        let (ptr, offset, stride) = (self.ptr, self.offset as isize, self.strides[R - 2]);
        // SAFETY: every element of the tensor lies inside the buffer, as checked, so the n from the start of each row do; they
        // are borrowed for 'a and not written meanwhile.
        Some((0..count).map(move |r| unsafe { core::slice::from_raw_parts(ptr.offset(offset + r as isize * stride), n) }))
    }

    /// As [`View::matrix_rows`], in any order.
    pub(crate) fn lines(&self) -> Option<Rows<'a, T>> {
        let _ = self.matrix_rows()?;
        let (n, stride) = (self.dims[R - 1], self.strides[R - 2]);
        Some(Rows { start: self.ptr.wrapping_add(self.offset), stride, n, end: self.dims[R - 2], of: PhantomData })
    }

    /// The whole tensor as a slice where it is contiguous in row-major order.
    pub fn as_slice(&self) -> Option<&'a [T]> {
        let n = self.dims.iter().product::<usize>();
        let dense = (0..R).all(|i| self.dims[i] <= 1 || self.strides[i] == contiguous(self.dims)[i]);
        if n == 0 {
            return Some(&[]);
        }
        assert!(!dense || self.offset.checked_add(n).is_some_and(|end| end <= self.len));
        // SAFETY: the n elements from `offset` are inside the buffer, borrowed for 'a and not written meanwhile.
        dense.then(|| unsafe { core::slice::from_raw_parts(self.ptr.add(self.offset), n) })
    }

    /// Address of the element with all coordinates 0, for kernels. Only meaningful for a checked view with elements.
    #[cfg(feature = "gemm")]
    pub(crate) fn as_ptr(&self) -> *const T {
        self.ptr.wrapping_add(self.offset)
    }
}

impl<'a, T: Copy, const R: usize, M: Memory> View<'a, T, R, M> {
    /// A tensor in a buffer of `len` elements at an address of memory `M`, borrowed for 'a.
    ///
    /// # Safety
    /// The buffer must be valid for reads there, by whoever reads views of `M`, for 'a.
    pub unsafe fn from_address(address: usize, len: usize, offset: usize, dims: [usize; R], strides: [isize; R]) -> Self {
        Self::at_address(address, len, offset, dims, strides)
    }

    /// As [`View::from_address`], for owners of such buffers; what reads a view is what must be sure of it.
    pub(crate) fn at_address(address: usize, len: usize, offset: usize, dims: [usize; R], strides: [isize; R]) -> Self {
        View { ptr: core::ptr::with_exposed_provenance(address), len, offset, dims, strides, life: PhantomData }
    }

    /// Address of the buffer's first element, and how many elements the buffer has; the tensor's own first element stands at [`View::offset`].
    pub fn buffer(&self) -> (usize, usize) {
        (self.ptr.expose_provenance(), self.len)
    }

    /// Index in the buffer of the element with all coordinates 0.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// This tensor where it lives in this process's memory.
    pub(crate) fn on_host(self) -> Option<View<'a, T, R>> {
        let View { ptr, len, offset, dims, strides, .. } = self;
        (TypeId::of::<M>() == TypeId::of::<Host>()).then_some(View { ptr, len, offset, dims, strides, life: PhantomData })
    }

    /// Checks that every element lies in the buffer and that the shape is `want`; else an error that names `operand`.
    pub fn check(&self, operand: &'static str, want: [usize; R]) -> Result<(), Error> {
        check_shape(operand, self.dims, want)?;
        check_bounds(operand, self.len, self.offset, self.dims, self.strides)
    }

    /// This tensor as one of `U`, where `T` is `U`.
    pub(crate) fn same<U: 'static>(self) -> Option<View<'a, U, R, M>>
    where
        T: 'static,
    {
        let View { ptr, len, offset, dims, strides, .. } = self;
        (TypeId::of::<T>() == TypeId::of::<U>()).then_some(View { ptr: ptr.cast(), len, offset, dims, strides, life: PhantomData })
    }

    /// The same buffer and offset seen with other dimensions; the caller keeps to elements of this view.
    pub(crate) fn reshape<const S: usize>(self, dims: [usize; S], strides: [isize; S]) -> View<'a, T, S, M> {
        View { ptr: self.ptr, len: self.len, offset: self.offset, dims, strides, life: PhantomData }
    }
}

impl<'a, T: Copy, M: Memory> View<'a, T, 3, M> {
    /// The first two axes as one, (B·L, D); None where strides do not allow it.
    pub fn rows(&self) -> Option<View<'a, T, 2, M>> {
        let (dims, strides) = merged(self.dims, self.strides)?;
        Some(View { ptr: self.ptr, len: self.len, offset: self.offset, dims, strides, life: PhantomData })
    }
}

impl<'a, T: Copy, M: Memory> ViewMut<'a, T, 3, M> {
    /// The first two axes as one, as [`View::rows`].
    pub fn rows_mut(&mut self) -> Option<ViewMut<'_, T, 2, M>> {
        let (dims, strides) = merged(self.dims, self.strides)?;
        Some(self.reborrow().reshape(dims, strides))
    }
}

impl<'a, T: Copy, const R: usize> ViewMut<'a, T, R> {
    /// A contiguous row-major tensor.
    pub fn new(data: &'a mut [T], dims: [usize; R]) -> Self {
        Self::strided(data, 0, dims, contiguous(dims))
    }

    /// A tensor with any layout whose elements do not overlap.
    pub fn strided(data: &'a mut [T], offset: usize, dims: [usize; R], strides: [isize; R]) -> Self {
        ViewMut { ptr: data.as_mut_ptr(), len: data.len(), offset, dims, strides, life: PhantomData }
    }

    /// A tensor that several threads hold, each to run its own part of one call (`Par::Part`).
    ///
    /// # Safety
    /// `ptr` must be valid for reads and writes of `len` elements for 'a, and whoever else holds the memory meanwhile may
    /// only run other parts of the same call.
    pub unsafe fn from_raw(ptr: *mut T, len: usize, offset: usize, dims: [usize; R], strides: [isize; R]) -> Self {
        ViewMut { ptr, len, offset, dims, strides, life: PhantomData }
    }

    /// One element. Panics outside the shape.
    #[inline]
    pub fn get(&self, index: [usize; R]) -> T {
        self.as_view().get(index)
    }

    /// Writes one element. Panics outside the shape.
    #[inline]
    pub fn set(&mut self, index: [usize; R], value: T) {
        let at = linear(self.offset, self.dims, self.strides, index);
        assert!(at < self.len);
        // SAFETY: `at` is inside the buffer and one of this view's own elements.
        unsafe { *self.ptr.add(at) = value }
    }

    /// Writes every element.
    pub fn fill(&mut self, value: T) {
        if let Some(all) = self.as_mut_slice() {
            all.fill(value);
            return;
        }
        let mut index = [0; R];
        let count: usize = self.dims.iter().product();
        for _ in 0..count {
            self.set(index, value);
            for axis in (0..R).rev() {
                index[axis] += 1;
                if index[axis] < self.dims[axis] {
                    break;
                }
                index[axis] = 0;
            }
        }
    }

    /// The elements along a contiguous last axis, as `View::row`.
    #[inline]
    pub fn row_mut(&mut self, index: [usize; R]) -> Option<&mut [T]> {
        let row = self.as_view().row(index)?;
        let at = (row.as_ptr() as usize - self.ptr as usize) / size_of::<T>().max(1);
        // SAFETY: `row` checked the bounds; the elements are this view's own and borrowed exclusively through `&mut self`.
        Some(unsafe { core::slice::from_raw_parts_mut(self.ptr.add(at), row.len()) })
    }

    /// The rows of one matrix, as [`View::matrix_rows`], lent one after another.
    pub(crate) fn matrix_rows_mut(&mut self) -> Option<RowsMut<'_, T>> {
        self.reborrow().into_rows()
    }

    /// As [`ViewMut::matrix_rows_mut`], for as long as the view lasts.
    pub(crate) fn into_rows(self) -> Option<RowsMut<'a, T>> {
        let _ = self.as_view().matrix_rows()?;
        let (n, stride) = (self.dims[R - 1], self.strides[R - 2]);
        Some(RowsMut { start: self.ptr.wrapping_add(self.offset), stride, n, at: 0, end: self.dims[R - 2], of: PhantomData })
    }

    /// The whole tensor as a slice where it is contiguous in row-major order.
    pub fn as_mut_slice(&mut self) -> Option<&mut [T]> {
        let n = self.as_view().as_slice()?.len();
        if n == 0 {
            return Some(&mut []);
        }
        // SAFETY: `as_slice` checked that the n elements from `offset` are this view's own; the borrow is exclusive.
        Some(unsafe { core::slice::from_raw_parts_mut(self.ptr.add(self.offset), n) })
    }

    /// Cuts the tensor into disjoint tiles, one for each pair of an outer and an inner cut, for `Par::run`.
    pub fn tiles<'c>(self, outer: Cut<'c>, inner: Cut<'c>) -> Tiles<'a, 'c, T, R> {
        self.check("tiles", self.dims).expect("a checked view is cut");
        Tiles { view: self, cuts: [outer, inner, Cut::Whole] }
    }
}

impl<'a, T: Copy, const R: usize, M: Memory> ViewMut<'a, T, R, M> {
    /// A tensor that is written, in a buffer of `len` elements at an address of memory `M`, borrowed for 'a.
    ///
    /// # Safety
    /// The buffer must be valid for reads and writes there, by whoever writes views of `M`, for 'a, and nobody else may use it meanwhile.
    pub unsafe fn from_address(address: usize, len: usize, offset: usize, dims: [usize; R], strides: [isize; R]) -> Self {
        Self::at_address(address, len, offset, dims, strides)
    }

    /// As [`ViewMut::from_address`], for owners of such buffers; what writes a view is what must be sure of it.
    pub(crate) fn at_address(address: usize, len: usize, offset: usize, dims: [usize; R], strides: [isize; R]) -> Self {
        ViewMut { ptr: core::ptr::with_exposed_provenance_mut(address), len, offset, dims, strides, life: PhantomData }
    }

    /// This tensor as one of `U`, where `T` is `U`.
    pub(crate) fn same<U: 'static>(self) -> Option<ViewMut<'a, U, R, M>>
    where
        T: 'static,
    {
        let ViewMut { ptr, len, offset, dims, strides, .. } = self;
        (TypeId::of::<T>() == TypeId::of::<U>()).then_some(ViewMut { ptr: ptr.cast(), len, offset, dims, strides, life: PhantomData })
    }

    /// The same elements, for reading.
    pub fn as_view(&self) -> View<'_, T, R, M> {
        View { ptr: self.ptr, len: self.len, offset: self.offset, dims: self.dims, strides: self.strides, life: PhantomData }
    }

    /// The same elements, for reading, for as long as this was to be written.
    pub fn into_view(self) -> View<'a, T, R, M> {
        View { ptr: self.ptr, len: self.len, offset: self.offset, dims: self.dims, strides: self.strides, life: PhantomData }
    }

    /// The same elements for a shorter time.
    pub fn reborrow(&mut self) -> ViewMut<'_, T, R, M> {
        ViewMut { ptr: self.ptr, len: self.len, offset: self.offset, dims: self.dims, strides: self.strides, life: PhantomData }
    }

    /// Checks bounds, that the shape is `want` and that no two elements overlap; else an error that names `operand`.
    pub fn check(&self, operand: &'static str, want: [usize; R]) -> Result<(), Error> {
        self.as_view().check(operand, want)?;
        if nests(self.dims, self.strides) {
            return Ok(());
        }
        Err(Error::Layout {
            operand,
            why: format!("the elements of an output overlap: shape {:?} with strides {:?}", self.dims, self.strides),
        })
    }

    /// The parts below and from `at` along `axis`. Panics where `at` leaves the axis.
    pub fn split(self, axis: usize, at: usize) -> (Self, Self) {
        self.check("split", self.dims).expect("a checked view is split");
        let ViewMut { ptr, len, offset, dims, strides, life } = self;
        // No element belongs to two index tuples, which `check` made sure of, so the two parts are disjoint.
        let whole = || ViewMut { ptr, len, offset, dims, strides, life };
        (whole().slice(axis, 0..at), whole().slice(axis, at..dims[axis]))
    }

    /// The same buffer and offset seen with other dimensions; the caller keeps to elements of this view.
    pub(crate) fn reshape<const S: usize>(self, dims: [usize; S], strides: [isize; S]) -> ViewMut<'a, T, S, M> {
        ViewMut { ptr: self.ptr, len: self.len, offset: self.offset, dims, strides, life: PhantomData }
    }
}

impl<'a, T: Copy, const R: usize> ViewMut<'a, T, R> {
    /// The elements of a contiguous tensor. Panics where it is not contiguous.
    pub(crate) fn into_slice(mut self) -> &'a mut [T] {
        let slice = self.as_mut_slice().expect("contiguous");
        let (ptr, len) = (slice.as_mut_ptr(), slice.len());
        // SAFETY: the view owned these elements for 'a and is consumed here.
        unsafe { core::slice::from_raw_parts_mut(ptr, len) }
    }
}

impl<'a, M: Memory> ViewMut<'a, u8, 1, M> {
    /// Takes `count` elements of `T` from the front, aligned to `align` bytes; None, and nothing taken, where they do not fit.
    pub(crate) fn carve<T: Pod>(&mut self, count: usize, align: usize) -> Option<ViewMut<'a, T, 1, M>> {
        assert!(align.is_power_of_two() && align >= align_of::<T>());
        let start = self.ptr.wrapping_add(self.offset);
        let skip = start.addr().wrapping_neg() & (align - 1);
        let need = skip.checked_add(count.checked_mul(size_of::<T>())?)?;
        if need > self.dims[0] {
            return None;
        }
        let ptr = start.wrapping_add(skip).cast::<T>();
        self.offset += need;
        self.dims[0] -= need;
        Some(ViewMut { ptr, len: count, offset: 0, dims: [count], strides: [1], life: PhantomData })
    }
}

/// One way to cut an axis into parts.
#[derive(Debug, Clone, Copy)]
pub enum Cut<'c> {
    /// Not at all: every part has the whole of it, so it may be used with one part only along this cut.
    Whole,
    /// Parts of a fixed width along an axis, the last one shorter.
    Every(usize, usize),
    /// Part i along an axis is `offsets[i]..offsets[i + 1]`; the offsets do not decrease.
    At(usize, &'c [usize]),
    /// As `At`, with the offsets of packed sequences.
    Packed(usize, View<'c, i64, 1>),
}

impl Cut<'_> {
    /// How many parts this cut makes of a tensor with dimensions `dims`.
    fn parts(self, dims: &[usize]) -> usize {
        match self {
            Cut::Whole => 1,
            Cut::Every(axis, width) => dims[axis].div_ceil(width),
            Cut::At(_, offsets) => offsets.len().saturating_sub(1),
            Cut::Packed(_, offsets) => offsets.dims()[0].saturating_sub(1),
        }
    }

    fn axis(self) -> Option<usize> {
        match self {
            Cut::Whole => None,
            Cut::Every(axis, _) | Cut::At(axis, _) | Cut::Packed(axis, _) => Some(axis),
        }
    }

    fn range(self, dims: &[usize], part: usize) -> Option<(usize, Range<usize>)> {
        match self {
            Cut::Whole => None,
            Cut::Every(axis, width) => Some((axis, part * width..(part * width + width).min(dims[axis]))),
            Cut::At(axis, offsets) => Some((axis, offsets[part]..offsets[part + 1])),
            Cut::Packed(axis, offsets) => Some((axis, offsets.get([part]) as usize..offsets.get([part + 1]) as usize)),
        }
    }
}

/// Disjoint tiles of one tensor, numbered outer · (inner parts) + inner, and so on for a third cut.
pub struct Tiles<'a, 'c, T, const R: usize> {
    view: ViewMut<'a, T, R>,
    cuts: [Cut<'c>; 3],
}

impl<'a, 'c, T: Copy, const R: usize> Tiles<'a, 'c, T, R> {
    /// Cuts each tile once more, innermost.
    pub(crate) fn cut(mut self, cut: Cut<'c>) -> Self {
        self.cuts[2] = cut;
        self
    }

    /// How many tiles there are.
    pub(crate) fn count(&self) -> usize {
        for (i, cut) in self.cuts.iter().enumerate() {
            let again = |other: &Cut<'_>| other.axis().is_some() && other.axis() == cut.axis();
            assert!(!self.cuts[..i].iter().any(again), "two cuts along one axis");
            match cut {
                Cut::At(_, offsets) => assert!(offsets.is_sorted(), "offsets decrease"),
                Cut::Packed(_, offsets) => {
                    assert!((1..offsets.dims()[0]).all(|i| offsets.get([i - 1]) <= offsets.get([i])), "offsets decrease")
                }
                _ => {}
            }
        }
        self.cuts.iter().map(|cut| cut.parts(&self.view.dims)).product()
    }

    /// Tile `index`.
    ///
    /// # Safety
    /// Each index may be taken once only, while `self` is borrowed.
    pub(crate) unsafe fn tile(&self, mut index: usize) -> ViewMut<'a, T, R> {
        let dims = self.view.dims;
        let ViewMut { ptr, len, offset, strides, .. } = self.view;
        let mut tile = ViewMut { ptr, len, offset, dims, strides, life: PhantomData };
        for cut in self.cuts.iter().rev() {
            let parts = cut.parts(&dims);
            if let Some((axis, range)) = cut.range(&dims, index % parts) {
                tile = tile.slice(axis, range);
            }
            index /= parts;
        }
        assert!(index == 0, "there are fewer tiles");
        tile
    }
}

#[cfg(test)]
mod tests;

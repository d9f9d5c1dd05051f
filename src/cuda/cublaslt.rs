//! Products by NVIDIA's library cuBLASLt, found at run time. Feature `cublaslt`.
//!
//! For every shape, layout and type the library's first choice of an algorithm is kept, so repeats have the same bits. Sums split over
//! blocks are joined in the arithmetic type; f32 is never multiplied in tf32.

use core::ffi::c_void;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, PoisonError};

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use cudarc::driver::result::ctx;

use super::linear::{Product, Sizes};
use crate::element::Dtype;
use crate::error::Error;

/// Terms that one call sums where the output is f32; the results of more calls are added to each other, so that the error of a
/// long sum does not grow with its length.
const PIECE: usize = 8192;

/// The library's `cublasOperation_t`, which the bindings leave out.
const AS_IT_IS: i32 = 0;
const TURNED: i32 = 1;

/// The library, in one context and on one stream.
pub(super) struct Lt {
    handle: sys::cublasLtHandle_t,
    context: u64,
    stream: u64,
    plans: Mutex<HashMap<Key, Option<Plan>>>,
}

// SAFETY: the handle may be used from any thread, as the library's manual says, and the lock keeps every plan to one at a time.
unsafe impl Send for Lt {}
// SAFETY: as above.
unsafe impl Sync for Lt {}

/// A matrix in the library's order, columns one after the other: rows, columns, elements from one column to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Matrix {
    rows: usize,
    columns: usize,
    step: usize,
    /// Whether the product wants its transpose.
    turned: bool,
}

/// All that a choice of an algorithm depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    dtype: Dtype,
    wide: bool,
    bias: bool,
    left: Matrix,
    right: Matrix,
    out: Matrix,
    /// Bytes that left, right, out and the bias are aligned to.
    aligned: [u32; 4],
}

/// An algorithm with its descriptions.
struct Plan {
    what: sys::cublasLtMatmulDesc_t,
    left: sys::cublasLtMatrixLayout_t,
    right: sys::cublasLtMatrixLayout_t,
    out: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

fn fault(what: &str, error: CublasError) -> Error {
    Error::Driver { why: format!("cuBLASLt, {what}: {error}") }
}

/// (rows, depth) with these strides in bytes, as the transpose of a matrix of the library where `rows` are contiguous in memory, else as
/// the matrix itself: columns of length depth. None where neither axis is contiguous or columns overlap.
fn matrix([_, row, column]: [i64; 3], rows: usize, depth: usize, size: i64) -> Option<Matrix> {
    let step = |bytes: i64, length: usize, count: usize| {
        let step = if count == 1 { length } else { usize::try_from(bytes / size).ok().filter(|_| bytes % size == 0)? };
        (step >= length && step <= i32::MAX as usize).then_some(step)
    };
    let along = (depth == 1 || column == size).then(|| step(row, depth, rows)).flatten();
    if let Some(step) = along {
        return Some(Matrix { rows: depth, columns: rows, step, turned: false });
    }
    let across = (rows == 1 || row == size).then(|| step(column, rows, depth)).flatten();
    across.map(|step| Matrix { rows, columns: depth, step, turned: true })
}

/// The largest power of two up to 256 that an address is a multiple of.
fn alignment(address: i64) -> u32 {
    1 << (address | 256).trailing_zeros()
}

/// The product as the library knows it; None where it cannot be one of its.
fn key(sizes: &Sizes, params: &Product) -> Option<Key> {
    let Sizes { m, n, k, dtype, wide, .. } = *sizes;
    let size = match dtype {
        Dtype::F64 => 8,
        Dtype::F32 => 4,
        _ => 2,
    };
    let out_size = if wide { 4 } else { size };
    if k == 0 || [m, n, k].into_iter().any(|d| d > i32::MAX as usize) {
        return None;
    }
    let (a, b) = (matrix(params.a, m, k, size)?, matrix(params.b, n, k, size)?);
    // (m, n) with contiguous rows is the library's (n, m): b·aᵀ. With contiguous columns it is (m, n): a·bᵀ.
    let out = matrix(params.out, m, n, out_size)?;
    let flip = |matrix: Matrix| Matrix { turned: !matrix.turned, ..matrix };
    let (left, right, addresses) =
        if out.turned { (flip(a), b, [params.a[0], params.b[0]]) } else { (flip(b), a, [params.b[0], params.a[0]]) };
    let bias = params.bias[0] != 0;
    // Its bias lies along the columns of its output and has the output's type.
    if bias && (dtype != Dtype::F32 || out.turned || (n > 1 && params.bias[1] != size)) {
        return None;
    }
    let aligned = [addresses[0], addresses[1], params.out[0], params.bias[0]].map(alignment);
    Some(Key { dtype, wide, bias, left, right, out, aligned })
}

/// The library's type of a storage type.
fn data_type(dtype: Dtype) -> sys::cudaDataType {
    match dtype {
        Dtype::F64 => sys::cudaDataType_t::CUDA_R_64F,
        Dtype::F16 => sys::cudaDataType_t::CUDA_R_16F,
        Dtype::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
        _ => sys::cudaDataType_t::CUDA_R_32F,
    }
}

/// Sets an attribute of a product's description.
fn set<T>(what: sys::cublasLtMatmulDesc_t, attribute: sys::cublasLtMatmulDescAttributes_t, value: T) -> Result<(), CublasError> {
    // SAFETY: the description is alive, and the value is there for the call with the size that is told.
    unsafe { result::set_matmul_desc_attribute(what, attribute, (&raw const value).cast::<c_void>(), size_of::<T>()) }
}

/// Sets an attribute of what an algorithm must be.
fn prefer<T>(
    preference: sys::cublasLtMatmulPreference_t,
    attribute: sys::cublasLtMatmulPreferenceAttributes_t,
    value: T,
) -> Result<(), CublasError> {
    // SAFETY: as for `set`.
    unsafe { result::set_matmul_pref_attribute(preference, attribute, (&raw const value).cast::<c_void>(), size_of::<T>()) }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: each description was made for this plan and is used no more; null is what was not made.
        unsafe {
            let _ = result::destroy_matmul_desc(self.what);
            for layout in [self.left, self.right, self.out].into_iter().filter(|layout| !layout.is_null()) {
                let _ = result::destroy_matrix_layout(layout);
            }
        }
    }
}

impl Plan {
    /// Descriptions, and the library's first choice; None where it has no algorithm.
    fn new(handle: sys::cublasLtHandle_t, key: &Key, bias: i64) -> Result<Option<Plan>, CublasError> {
        use sys::cublasLtMatmulDescAttributes_t as Desc;
        let double = key.dtype == Dtype::F64;
        let (compute, scale) = if double {
            (sys::cublasComputeType_t::CUBLAS_COMPUTE_64F, sys::cudaDataType_t::CUDA_R_64F)
        } else {
            (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType_t::CUDA_R_32F)
        };
        let mut plan = Plan {
            what: result::create_matmul_desc(compute, scale)?,
            left: core::ptr::null_mut(),
            right: core::ptr::null_mut(),
            out: core::ptr::null_mut(),
            algorithm: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
        };
        for (attribute, matrix) in [(Desc::CUBLASLT_MATMUL_DESC_TRANSA, key.left), (Desc::CUBLASLT_MATMUL_DESC_TRANSB, key.right)] {
            set(plan.what, attribute, if matrix.turned { TURNED } else { AS_IT_IS })?;
        }
        if key.bias {
            set(plan.what, Desc::CUBLASLT_MATMUL_DESC_EPILOGUE, sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS)?;
            set(plan.what, Desc::CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias)?;
        }
        let layout =
            |m: Matrix, dtype: Dtype| result::create_matrix_layout(data_type(dtype), m.rows as u64, m.columns as u64, m.step as i64);
        plan.left = layout(key.left, key.dtype)?;
        plan.right = layout(key.right, key.dtype)?;
        plan.out = layout(key.out, if key.wide { Dtype::F32 } else { key.dtype })?;
        let preference = result::create_matmul_pref()?;
        let found = plan.choose(handle, preference, key);
        // SAFETY: it was made above and is used no more.
        unsafe { result::destroy_matmul_pref(preference) }?;
        match found {
            Ok(algorithm) => {
                plan.algorithm = algorithm;
                Ok(Some(plan))
            }
            Err(CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn choose(
        &self,
        handle: sys::cublasLtHandle_t,
        preference: sys::cublasLtMatmulPreference_t,
        key: &Key,
    ) -> Result<sys::cublasLtMatmulAlgo_t, CublasError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Pref;
        prefer(preference, Pref::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, Lt::WORKSPACE)?;
        let joined = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        prefer(preference, Pref::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, joined)?;
        let [left, right, out, _] = key.aligned;
        prefer(preference, Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, left)?;
        prefer(preference, Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, right)?;
        prefer(preference, Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, out)?;
        prefer(preference, Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, out)?;
        // SAFETY: handle, descriptions and preference are alive.
        let found = unsafe { result::get_matmul_algo_heuristic(handle, self.what, self.left, self.right, self.out, self.out, preference) }?;
        Ok(found.algo)
    }
}

impl Drop for Lt {
    fn drop(&mut self) {
        self.plans.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
        let _ = bind(self.context);
        // SAFETY: the handle was made by `open` and is used no more.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

impl Lt {
    /// Bytes of workspace that every call may use.
    pub const WORKSPACE: usize = 8 << 20;

    /// The library for a context and a stream of it; why not, where it is not there.
    pub fn open(handles: Option<(u64, u64)>) -> Result<Self, String> {
        let (context, stream) = handles.ok_or("there is no GPU")?;
        // SAFETY: it loads the library, whose initialisers are the vendor's, and looks for nothing in it.
        if !unsafe { sys::is_culib_present() } {
            return Err("libcublasLt was not found".into());
        }
        bind(context).map_err(|e| e.to_string())?;
        let handle = result::create_handle().map_err(|e| format!("cuBLASLt does not start: {e}"))?;
        Ok(Lt { handle, context, stream, plans: Mutex::default() })
    }

    /// The library's version, 12.8.4.
    pub fn version(&self) -> String {
        // SAFETY: it has no arguments and answers with a number.
        let version = unsafe { sys::cublasLtGetVersion() };
        let (major, minor, patch) = (version / 10_000, version / 100 % 100, version % 100);
        format!("{major}.{minor}.{patch}")
    }

    /// Whether the product's layouts and types are ones of the library.
    pub fn takes(&self, sizes: &Sizes, params: &Product) -> bool {
        key(sizes, params).is_some()
    }

    /// The product; false where the library has no algorithm for it. `workspace` has [`Lt::WORKSPACE`] bytes.
    pub fn product(&self, sizes: &Sizes, params: &Product, workspace: u64) -> Result<bool, Error> {
        let single = sizes.dtype == Dtype::F32 || sizes.wide;
        let step = if single { PIECE } else { sizes.k.max(1) };
        bind(self.context)?;
        for start in (0..sizes.k).step_by(step) {
            let mut part = *params;
            part.a[0] += start as i64 * part.a[2];
            part.b[0] += start as i64 * part.b[2];
            if start > 0 {
                part.bias = [0; 2];
            }
            let sizes = Sizes { k: step.min(sizes.k - start), ..*sizes };
            if !self.piece(&sizes, &part, start > 0, workspace)? {
                // The plain kernels begin anew, so what is there already does not matter.
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// One call, whose result is added to the output where `more`.
    fn piece(&self, sizes: &Sizes, params: &Product, more: bool, workspace: u64) -> Result<bool, Error> {
        let Some(key) = key(sizes, params) else { return Ok(false) };
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = match plans.entry(key) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(Plan::new(self.handle, &key, params.bias[0]).map_err(|e| fault("choosing an algorithm", e))?),
        };
        let Some(plan) = plan else { return Ok(false) };
        if key.bias {
            let pointer = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
            set(plan.what, pointer, params.bias[0]).map_err(|e| fault("setting the bias", e))?;
        }
        let (left, right) = if key.out.turned { (params.a[0], params.b[0]) } else { (params.b[0], params.a[0]) };
        let ([one, add], [one_double, add_double]) = ([1f32, if more { 1.0 } else { 0.0 }], [1f64, if more { 1.0 } else { 0.0 }]);
        let (alpha, beta) = match key.dtype {
            Dtype::F64 => ((&raw const one_double).cast::<c_void>(), (&raw const add_double).cast::<c_void>()),
            _ => ((&raw const one).cast::<c_void>(), (&raw const add).cast::<c_void>()),
        };
        // SAFETY: handle and descriptions are alive, the factors on the host have the scale's type; the addresses are those of checked views,
        // which the descriptions match, and of a workspace as long as was promised, all borrowed by the caller; the stream is the engine's.
        let done = unsafe {
            result::matmul(
                self.handle,
                plan.what,
                alpha,
                beta,
                left as *const c_void,
                plan.left,
                right as *const c_void,
                plan.right,
                params.out[0] as *const c_void,
                plan.out,
                params.out[0] as *mut c_void,
                plan.out,
                &plan.algorithm,
                workspace as *mut c_void,
                Lt::WORKSPACE,
                self.stream as sys::cudaStream_t,
            )
        };
        done.map_err(|e| fault("multiplying", e))?;
        Ok(true)
    }
}

/// Makes the engine's context this thread's.
fn bind(context: u64) -> Result<(), Error> {
    // SAFETY: the context is the one of the engine's driver, which outlives this library's use.
    unsafe { ctx::set_current(context as cudarc::driver::sys::CUcontext) }
        .map_err(|e| Error::Driver { why: format!("using a context: {e}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: [usize; 3] = [3, 5, 4];

    /// Element (row, column) of what the library makes of a matrix.
    fn at(matrix: Matrix, row: usize, column: usize) -> usize {
        let [row, column] = if matrix.turned { [column, row] } else { [row, column] };
        assert!(row < matrix.rows && column < matrix.columns && matrix.step >= matrix.rows);
        row + column * matrix.step
    }

    /// Bytes from one element to the next along both axes, contiguous along the second or the first, with gaps.
    fn strides(rows: usize, columns: usize, turned: bool) -> [i64; 3] {
        if turned { [256, 4, 4 * (rows as i64 + 2)] } else { [256, 4 * (columns as i64 + 1), 4] }
    }

    /// Every element that the library multiplies and writes is the one that the product means.
    #[test]
    fn matrices_are_those_of_the_product() {
        let [m, n, k] = SIZES;
        for case in 0..8 {
            let params = Product {
                a: strides(m, k, case & 1 > 0),
                b: strides(n, k, case & 2 > 0),
                out: strides(m, n, case & 4 > 0),
                ..Product::default()
            };
            let sizes = Sizes { m, n, k, dtype: Dtype::F32, fine: false, wide: false };
            let key = key(&sizes, &params).expect("every axis pair has a contiguous one");
            assert_eq!((key.out.turned, key.aligned[..3].to_vec()), (case & 4 > 0, vec![256; 3]));
            let index = |of: [i64; 3], row: usize, column: usize| (row as i64 * of[1] + column as i64 * of[2]) as usize / 4;
            let out = Matrix { turned: false, ..key.out };
            for (i, j, p) in (0..m * n * k).map(|x| (x / (n * k), x / k % n, x % k)) {
                let (a, b) = (index(params.a, i, p), index(params.b, j, p));
                // Its rows are the columns of the output unless the output is contiguous along them.
                let (row, column, left, right) = if key.out.turned { (i, j, a, b) } else { (j, i, b, a) };
                assert_eq!((at(key.left, row, p), at(key.right, p, column)), (left, right), "case {case}");
                assert_eq!(at(out, row, column), index(params.out, i, j), "case {case}");
            }
        }
    }

    #[test]
    fn what_it_cannot_take_is_left_to_the_plain_kernels() {
        let sizes = Sizes { m: 3, n: 5, k: 4, dtype: Dtype::F32, fine: false, wide: false };
        let good = Product { a: strides(3, 4, false), b: strides(5, 4, false), out: strides(3, 5, false), ..Product::default() };
        let taken = |sizes: Sizes, params: Product| key(&sizes, &params).is_some();
        assert!(taken(sizes, good) && taken(sizes, Product { bias: [256, 4], ..good }));
        assert!(!taken(Sizes { k: 0, ..sizes }, good));
        assert!(!taken(sizes, Product { a: [256, 40, 8], ..good }) && !taken(sizes, Product { a: [256, -16, 4], ..good }));
        assert!(!taken(sizes, Product { a: [256, 0, 4], ..good }) && !taken(sizes, Product { bias: [256, 8], ..good }));
        assert!(!taken(sizes, Product { bias: [256, 4], out: strides(3, 5, true), ..good }));
        assert_eq!([1 << 40, 260, 258, 257, 0].map(alignment), [256, 4, 2, 1, 256]);
    }
}

//! Sizes of scratch memory, which compose by addition.

/// Alignment in bytes of everything taken from a workspace: a cache line and a 512-bit vector.
pub const ALIGN: usize = 64;

/// Bytes that `count` elements of `T` take in a workspace, padding included. Saturates.
pub const fn bytes_of<T>(count: usize) -> usize {
    match count.saturating_mul(size_of::<T>()).checked_add(ALIGN - 1) {
        Some(padded) => padded / ALIGN * ALIGN,
        None => usize::MAX,
    }
}

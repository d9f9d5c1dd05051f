//! Parameters of kernels: one `#[repr(C)]` block by value, whose offsets templates know by `@.field@`.

use super::expression::Vars;
use crate::element::Dtype;
use crate::view::{Device, View, ViewMut};

/// A field of a block: a number, or an array of numbers.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Its name, by which templates know its offset.
    pub name: &'static str,
    /// Bytes before it.
    pub offset: usize,
    /// Bytes of the whole field.
    pub size: usize,
    /// Bytes of one number.
    pub width: usize,
}

/// A block of parameters.
pub trait Params: bytemuck::Pod {
    /// Every field.
    const FIELDS: &'static [Field];
}

/// Declares a block: `params! { /// Docs. pub struct Name { field: type, … } }`. Padding is refused by the derive of `Pod`.
macro_rules! params {
    ($(#[$doc:meta])* pub struct $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
        #[repr(C)]
        #[allow(missing_docs, non_snake_case)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)+ }
        impl $crate::cuda::params::Params for $name {
            const FIELDS: &'static [$crate::cuda::params::Field] = &[$($crate::cuda::params::Field {
                name: stringify!($field),
                offset: core::mem::offset_of!($name, $field),
                size: core::mem::size_of::<$type>(),
                width: core::mem::align_of::<$type>(),
            },)+];
        }
    };
}
pub(crate) use params;

/// An operand of rank R in a block: its address, then the bytes from one element to the next along each axis. S is R + 1. An absent or
/// empty operand has address 0.
pub type Strided<const S: usize> = [i64; S];

/// The operand as a block takes it. Along an axis of one element any stride is allowed and none is used, so it is 0 here.
pub fn strided<T: Copy, const R: usize, const S: usize>(v: &View<'_, T, R, Device>) -> Strided<S> {
    assert!(S == R + 1);
    let ((address, _), size, dims) = (v.buffer(), size_of::<T>() as i64, v.dims());
    let mut out = [0; S];
    if dims.contains(&0) {
        return out;
    }
    out[0] = address as i64 + v.offset() as i64 * size;
    for i in 0..R {
        out[i + 1] = if dims[i] == 1 { 0 } else { v.strides()[i] as i64 * size };
    }
    out
}

/// As [`strided`], for an operand that is written.
pub fn strided_mut<T: Copy, const R: usize, const S: usize>(v: &ViewMut<'_, T, R, Device>) -> Strided<S> {
    strided(&v.as_view())
}

/// As [`strided`], for one that may be absent.
pub fn optional<T: Copy, const R: usize, const S: usize>(v: Option<&View<'_, T, R, Device>>) -> Strided<S> {
    v.map_or([0; S], strided)
}

/// As [`optional`], for one that is written.
pub fn optional_mut<T: Copy, const R: usize, const S: usize>(v: Option<&ViewMut<'_, T, R, Device>>) -> Strided<S> {
    v.map_or([0; S], strided_mut)
}

/// Adds what templates know of a real storage type: `T` its name, `TB` its bytes; of the type it is computed in `A`, f32 or f64, and
/// `AB` its bytes.
pub fn storage(vars: Vars, dtype: Dtype) -> Vars {
    let (bytes, arith) = match dtype {
        Dtype::F64 => (8, "f64"),
        Dtype::F32 => (4, "f32"),
        Dtype::F16 | Dtype::Bf16 => (2, "f32"),
        other => panic!("{other:?} is no real storage type"),
    };
    vars.text("T", dtype.name()).int("TB", bytes).text("A", arith).int("AB", if arith == "f64" { 8 } else { 4 })
}

/// The real storage types, in the order of tables.
pub const STORAGE: [Dtype; 4] = [Dtype::F32, Dtype::F64, Dtype::F16, Dtype::Bf16];

//! NumPy's scalars and arrays.

use std::sync::Arc;

use fnet_common::Result;

use super::arena::{Arena, Id, Object};
use crate::lazy::{LazyTensor, Storage};

/// Whether `module` is a NumPy module with constructors, in any version.
pub(super) fn is_module(module: &str) -> bool {
    matches!(
        module,
        "numpy" | "numpy.core.multiarray" | "numpy._core.multiarray" | "numpy.core.numeric" | "numpy._core.numeric"
    )
}

/// `scalar(dtype, bytes)` as a plain number.
pub(super) fn scalar(arena: &Arena, arguments: &[Id]) -> Option<Object> {
    let &[dtype, bytes] = arguments else { return None };
    let Object::Dtype(dtype) = arena.get(dtype) else { return None };
    let bytes = raw(arena, bytes)?;
    if bytes.len() != dtype.width || (dtype.big_endian && dtype.width > 1) {
        return None;
    }
    let mut wide = [0; 8];
    wide.get_mut(..bytes.len())?.copy_from_slice(&bytes);
    let unsigned = u64::from_le_bytes(wide);
    Some(match (dtype.class, dtype.width) {
        ('b', 1) => Object::Bool(unsigned != 0),
        ('u', 1 | 2 | 4 | 8) => Object::Int(unsigned.into()),
        ('i', 1 | 2 | 4 | 8) => {
            let unused = 64 - 8 * dtype.width as u32;
            Object::Int(i128::from((unsigned << unused).cast_signed() >> unused))
        }
        ('f', 4) => Object::Float(f32::from_bits(unsigned as u32).into()),
        ('f', 8) => Object::Float(f64::from_bits(unsigned)),
        _ => return None,
    })
}

/// The state (version, shape, dtype, column-major, bytes) of an array.
pub(super) fn array(arena: &Arena, state: Id) -> Result<Option<Object>> {
    let Some(&[_, shape, dtype, column_major, bytes]) = arena.items(state) else { return Ok(None) };
    let column_major = matches!(arena.get(column_major), Object::Bool(true) | Object::Int(1));
    tensor(arena, shape, dtype, bytes, column_major)
}

/// `_frombuffer(bytes, dtype, shape, order)`.
pub(super) fn from_buffer(arena: &Arena, arguments: &[Id]) -> Result<Option<Object>> {
    let &[bytes, dtype, shape, order] = arguments else { return Ok(None) };
    let column_major = arena.text(order).is_some_and(|order| &**order == "F");
    tensor(arena, shape, dtype, bytes, column_major)
}

fn tensor(arena: &Arena, shape: Id, dtype: Id, bytes: Id, column_major: bool) -> Result<Option<Object>> {
    let Object::Dtype(dtype) = arena.get(dtype) else { return Ok(None) };
    let (Some(kind), Some(size), Some(bytes)) = (dtype.kind(), arena.ints(shape), raw(arena, bytes)) else {
        return Ok(None);
    };
    let storage = Storage::in_memory(bytes);
    if !column_major {
        return LazyTensor::contiguous(storage, kind, size).map(|tensor| Some(Object::Tensor(tensor.into())));
    }
    let mut stride = vec![1_i64; size.len()];
    for axis in 1..size.len() {
        stride[axis] = stride[axis - 1].saturating_mul(size[axis - 1].max(1));
    }
    LazyTensor::new(storage, kind, 0, size, stride).map(|tensor| Some(Object::Tensor(tensor.into())))
}

fn raw(arena: &Arena, id: Id) -> Option<Arc<[u8]>> {
    match arena.get(id) {
        Object::Bytes(bytes) => Some(Arc::clone(bytes)),
        _ => None,
    }
}

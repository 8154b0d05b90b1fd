//! Tensors as bytes in the layout of safetensors: row-major, little-endian.

use safetensors::Dtype;
use tch::{Device, Kind, Tensor};

use fnet_common::{Context, Error, Result};

const _: () =
    assert!(cfg!(target_endian = "little"), "safetensors files are little-endian, so the machine must be, too");

const DTYPES: [(Kind, Dtype); 10] = [
    (Kind::Float, Dtype::F32),
    (Kind::Double, Dtype::F64),
    (Kind::Half, Dtype::F16),
    (Kind::BFloat16, Dtype::BF16),
    (Kind::Int64, Dtype::I64),
    (Kind::Int, Dtype::I32),
    (Kind::Int16, Dtype::I16),
    (Kind::Int8, Dtype::I8),
    (Kind::Uint8, Dtype::U8),
    (Kind::Bool, Dtype::BOOL),
];

/// The safetensors type of a kind of tensor.
pub(crate) fn dtype_of(kind: Kind) -> Option<Dtype> {
    DTYPES.iter().find(|(known, _)| *known == kind).map(|(_, dtype)| *dtype)
}

/// The kind of tensor that holds a safetensors type.
pub(crate) fn kind_of(dtype: Dtype) -> Option<Kind> {
    DTYPES.iter().find(|(_, known)| *known == dtype).map(|(kind, _)| *kind)
}

/// The safetensors type of a tensor of a checkpoint.
pub(crate) fn dtype(tensor: &Tensor, name: &str) -> Result<Dtype> {
    let kind = tensor.kind();
    dtype_of(kind)
        .ok_or_else(|| Error::bug(format!("tensor {name} has kind {kind:?}, which a checkpoint cannot store")))
}

/// The kind of a tensor of a checkpoint.
pub(crate) fn kind(dtype: Dtype, name: &str) -> Result<Kind> {
    kind_of(dtype).ok_or_else(|| Error::data(format!("tensor {name} has the type {dtype}, which fnet does not use")))
}

/// The tensor itself if it is on the host and row-major, otherwise a copy that is.
pub(crate) fn on_host(tensor: &Tensor, name: &str) -> Result<Tensor> {
    let convert = || tensor.f_detach()?.f_to_device(Device::Cpu)?.f_contiguous();
    convert().with_context(|| format!("copying tensor {name} to host memory"))
}

/// A copy on the host that shares no memory with `tensor`.
pub(crate) fn host_copy(tensor: &Tensor, name: &str) -> Result<Tensor> {
    let host = on_host(tensor, name)?;
    if host.data_ptr() != tensor.data_ptr() {
        return Ok(host);
    }
    let copy = || {
        let mut fresh = host.f_empty_like()?;
        fresh.f_copy_(&host).map(|()| fresh)
    };
    copy().with_context(|| format!("copying tensor {name} in host memory"))
}

/// Calls `use_bytes` with the bytes of a host tensor.
pub(crate) fn with_bytes<T>(tensor: &Tensor, use_bytes: impl FnOnce(&[u8]) -> T) -> T {
    debug_assert!(tensor.device() == Device::Cpu && tensor.is_contiguous());
    let length = tensor.numel() * tensor.kind().elt_size_in_bytes();
    let pointer = tensor.data_ptr().cast::<u8>().cast_const();
    if length == 0 || pointer.is_null() {
        return use_bytes(&[]);
    }
    // SAFETY: the tensor is contiguous and on the host, so `length` initialized bytes follow its data pointer; it is
    // borrowed as long as the slice lives.
    use_bytes(unsafe { std::slice::from_raw_parts(pointer, length) })
}

/// A new host tensor with bytes written by `fill`, which writes all of them unless it fails.
pub(crate) fn filled(
    shape: &[i64],
    kind: Kind,
    fill: impl FnOnce(&mut [u8]) -> std::io::Result<()>,
) -> Result<std::io::Result<Tensor>> {
    let tensor = Tensor::f_zeros(shape, (kind, Device::Cpu))?;
    let length = tensor.numel() * kind.elt_size_in_bytes();
    let pointer = tensor.data_ptr().cast::<u8>();
    if length == 0 || pointer.is_null() {
        return Ok(fill(&mut []).map(|()| tensor));
    }
    // SAFETY: the tensor is new: contiguous, on the host, zeroed, and nothing else refers to its memory.
    let bytes = unsafe { std::slice::from_raw_parts_mut(pointer, length) };
    Ok(fill(bytes).map(|()| tensor))
}

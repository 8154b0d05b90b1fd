//! Tensors that stay in a file until they are loaded.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use tch::{Kind, Tensor};

use fnet_common::{Error, Result};

/// The bytes behind one or more tensors.
#[derive(Debug, Clone)]
pub struct Storage {
    source: StorageSource,
    /// Number of bytes, uncompressed.
    len: u64,
    /// CRC-32 of all bytes, if the file has one.
    checksum: Option<u32>,
}

#[derive(Debug, Clone)]
enum StorageSource {
    /// Uncompressed, from this byte of the file on.
    File { file: Arc<File>, start: u64 },
    /// Deflated to `compressed` bytes of the file.
    Deflated { file: Arc<File>, start: u64, compressed: u64 },
    /// Inside the pickle itself.
    Memory(Arc<[u8]>),
}

impl Storage {
    /// `len` bytes of `file` from `start` on.
    pub(super) fn in_file(file: &Arc<File>, start: u64, len: u64) -> Self {
        Self { source: StorageSource::File { file: Arc::clone(file), start }, len, checksum: None }
    }

    /// `compressed` bytes of `file` from `start` on, which inflate to `len` bytes.
    pub(super) fn deflated(file: &Arc<File>, start: u64, compressed: u64, len: u64) -> Self {
        Self { source: StorageSource::Deflated { file: Arc::clone(file), start, compressed }, len, checksum: None }
    }

    pub(super) fn in_memory(bytes: Arc<[u8]>) -> Self {
        Self { len: bytes.len() as u64, source: StorageSource::Memory(bytes), checksum: None }
    }

    /// Verifies this CRC-32 whenever all bytes are read.
    pub(super) fn with_checksum(mut self, checksum: Option<u32>) -> Self {
        self.checksum = checksum;
        self
    }

    /// `len` bytes of an uncompressed storage in a file, from `start` on; `None` if they are out of range.
    pub(super) fn part(&self, start: u64, len: u64) -> Option<Self> {
        match &self.source {
            StorageSource::File { file, start: base } if start.checked_add(len)? <= self.len => {
                Some(Self::in_file(file, base.checked_add(start)?, len))
            }
            _ => None,
        }
    }

    /// Number of bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Reads `len` bytes from `start` on, which must be in range.
    pub(super) fn read(&self, start: u64, len: u64) -> Result<Vec<u8>> {
        if start.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(Error::data(format!("bytes {start} + {len} are outside a storage of {} bytes", self.len)));
        }
        let whole = len == self.len;
        let bytes = match &self.source {
            StorageSource::Memory(bytes) => bytes[start as usize..(start + len) as usize].to_vec(),
            StorageSource::File { file, start: base } => {
                let mut bytes = allocate(len)?;
                bytes.resize(len as usize, 0);
                file.read_exact_at(&mut bytes, base + start).map_err(unreadable)?;
                bytes
            }
            StorageSource::Deflated { file, start: base, compressed } => {
                let mut bytes = allocate(self.len)?;
                let section = Section { file, position: *base, left: *compressed };
                let limit = self.len + 1;
                flate2::read::DeflateDecoder::new(section).take(limit).read_to_end(&mut bytes).map_err(unreadable)?;
                if bytes.len() as u64 != self.len {
                    return Err(Error::data(format!(
                        "a compressed entry does not contain the {} bytes that its header says",
                        self.len
                    )));
                }
                bytes.drain(..start as usize);
                bytes.truncate(len as usize);
                bytes
            }
        };
        match self.checksum {
            Some(expected) if whole && crc32fast::hash(&bytes) != expected => {
                Err(Error::data("the data does not match its checksum: the file is damaged. Copy or download it again"))
            }
            _ => Ok(bytes),
        }
    }
}

/// Allocates `len` bytes, or returns an error.
fn allocate(len: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let room = usize::try_from(len).ok().and_then(|len| bytes.try_reserve_exact(len).ok());
    room.ok_or_else(|| Error::environment(format!("not enough memory for a tensor of {len} bytes")))?;
    Ok(bytes)
}

fn unreadable(error: std::io::Error) -> Error {
    Error::data(format!("cannot read the data of a tensor: {error}"))
}

/// A reader for a part of a file that does not use the file's position.
struct Section<'a> {
    file: &'a File,
    position: u64,
    left: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = self.file.read_at(&mut buffer[..wanted], self.position)?;
        self.position += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

/// A tensor with a known and checked location, but with data that has not been read yet.
#[derive(Debug, Clone)]
pub struct LazyTensor {
    storage: Storage,
    kind: Kind,
    offset: u64,
    size: Vec<i64>,
    stride: Vec<i64>,
}

/// libtorch's maximum number of dimensions.
const MAX_DIMENSIONS: usize = 64;

impl LazyTensor {
    /// A view of `storage`: `offset` and `stride` in elements.
    /// Errors: if an element is outside the storage, or the view has more elements than the storage (an expanded tensor
    /// of a small file could otherwise fill the memory).
    pub(super) fn new(storage: Storage, kind: Kind, offset: u64, size: Vec<i64>, stride: Vec<i64>) -> Result<Self> {
        let width = kind.elt_size_in_bytes() as u64;
        let place = extent(&size, &stride)
            .ok_or_else(|| Error::data(format!("a tensor of shape {size:?} and strides {stride:?} is impossible")))?;
        let available = storage.len() / width;
        let inside = place.count == 0 || offset.checked_add(place.span).is_some_and(|end| end <= available);
        if !inside || place.count > available {
            return Err(Error::data(format!(
                "a tensor of shape {size:?}, strides {stride:?} and offset {offset} does not fit its storage of \
                 {available} elements: the file is damaged or hostile"
            )));
        }
        Ok(Self { storage, kind, offset, size, stride })
    }

    /// A contiguous tensor of the whole `storage`.
    pub(super) fn contiguous(storage: Storage, kind: Kind, size: Vec<i64>) -> Result<Self> {
        let stride =
            strides(&size).ok_or_else(|| Error::data(format!("a tensor of shape {size:?} has too many elements")))?;
        Self::new(storage, kind, 0, size, stride)
    }

    /// Type of an element.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Shape.
    pub fn size(&self) -> &[i64] {
        &self.size
    }

    /// Number of elements.
    pub fn count(&self) -> u64 {
        extent(&self.size, &self.stride).map_or(0, |place| place.count)
    }

    /// Number of bytes of the elements.
    pub fn bytes(&self) -> u64 {
        self.count().saturating_mul(self.kind.elt_size_in_bytes() as u64)
    }

    /// Number of bytes that must be decompressed or held in memory to read it.
    pub(super) fn cost(&self) -> u64 {
        match self.storage.source {
            StorageSource::Deflated { .. } => self.storage.len.max(self.bytes()),
            StorageSource::File { .. } | StorageSource::Memory(_) => self.bytes(),
        }
    }

    /// Reads the data into a contiguous tensor on the CPU.
    /// Errors: if the file cannot be read, or does not match its checksum.
    pub fn load(&self) -> Result<Tensor> {
        let width = self.kind.elt_size_in_bytes() as u64;
        let span = match extent(&self.size, &self.stride) {
            Some(place) if place.count > 0 => place.span,
            _ => return Ok(Tensor::f_zeros(&self.size[..], (self.kind, tch::Device::Cpu))?),
        };
        let bytes = self.storage.read(self.offset * width, span * width)?;
        if Some(&self.stride) == strides(&self.size).as_ref() {
            return Ok(Tensor::f_from_data_size(&bytes, &self.size, self.kind)?);
        }
        let flat = Tensor::f_from_data_size(&bytes, &[span as i64], self.kind)?;
        Ok(flat.f_as_strided(&self.size[..], &self.stride[..], 0)?.f_contiguous()?)
    }
}

/// Number of elements, and distance from the first to the last element plus one.
struct Extent {
    count: u64,
    span: u64,
}

/// `None` if the numbers are negative, inconsistent, or overflow.
fn extent(size: &[i64], stride: &[i64]) -> Option<Extent> {
    if size.len() != stride.len() || size.len() > MAX_DIMENSIONS {
        return None;
    }
    let (mut count, mut span, mut bound) = (1_i64, 1_i64, 1_i64);
    for (&size, &stride) in size.iter().zip(stride) {
        if size < 0 || stride < 0 {
            return None;
        }
        // Even if one size is zero, the others must not overflow libtorch's strides.
        bound = bound.checked_mul(size.max(1))?;
        count = count.checked_mul(size)?;
        span = span.checked_add(stride.checked_mul((size - 1).max(0))?)?;
    }
    Some(Extent { count: u64::try_from(count).ok()?, span: u64::try_from(span).ok()? })
}

/// Strides of a contiguous tensor.
fn strides(size: &[i64]) -> Option<Vec<i64>> {
    let mut stride = vec![1; size.len()];
    for axis in (1..size.len()).rev() {
        stride[axis - 1] = i64::checked_mul(stride[axis], size[axis].max(1))?;
    }
    Some(stride)
}

/// A limit on the total size of the tensors of a file: tensors may share data and a file may be compressed, but a small
/// file must not fill the memory or keep a reader busy.
pub(super) struct Budget {
    left: u64,
}

impl Budget {
    /// Four times the size of the file, plus 1 MiB.
    pub(super) fn of(file: &File) -> Self {
        let len = file.metadata().map_or(0, |metadata| metadata.len());
        Self { left: len.saturating_mul(4).saturating_add(1 << 20) }
    }

    /// Subtracts the cost of reading `tensor`.
    pub(super) fn spend(&mut self, tensor: &LazyTensor) -> Result<()> {
        self.left = self.left.checked_sub(tensor.cost()).ok_or_else(|| {
            Error::data("the tensors are far larger than the file because they share data: the file is hostile")
        })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(values: &[f32]) -> Storage {
        Storage::in_memory(values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    #[test]
    fn a_view_is_read_with_its_offset_and_strides() {
        let storage = floats(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let view = LazyTensor::new(storage, Kind::Float, 1, vec![3, 2], vec![1, 3]).unwrap();
        assert_eq!(view.load().unwrap(), Tensor::from_slice(&[1.0_f32, 4.0, 2.0, 5.0, 3.0, 6.0]).reshape([3, 2]));
        assert_eq!((view.count(), view.bytes()), (6, 24));
    }

    #[test]
    fn tensors_without_elements_and_scalars_are_read() {
        let empty = LazyTensor::contiguous(floats(&[]), Kind::Float, vec![0, 3]).unwrap();
        assert_eq!(empty.load().unwrap().size(), [0, 3]);
        let scalar = LazyTensor::contiguous(floats(&[2.5]), Kind::Float, vec![]).unwrap();
        assert_eq!(scalar.load().unwrap(), Tensor::from(2.5_f32));
    }

    #[test]
    fn damaged_data_is_detected_by_its_checksum() {
        let storage = floats(&[1.0, 2.0]).with_checksum(Some(7));
        let error = LazyTensor::contiguous(storage, Kind::Float, vec![2]).unwrap().load().unwrap_err();
        assert!(error.to_string().contains("checksum"), "{error}");
    }
}

//! The small tables of a step, which reach the device in one copy.

use tch::{Device, Kind, Tensor};
use torch_ext::transfer::{self, Lane};

use fnet_common::Result;

/// Tables begin at multiples of this, as tensors of their own would.
const ALIGNMENT: usize = 64;

/// The few values of a tensor on the host, on `device`. The device is not waited for: up to 64 KB of ordinary host memory
/// are copied to the driver's own before this returns. What may be more goes by [`Pack`] or as images do.
pub fn upload(x: &Tensor, device: Device) -> Result<Tensor> {
    Ok(x.f_to_device_(device, x.kind(), true, false)?)
}

/// A number that tables are made of.
pub trait Value: Copy {
    /// Its type in a tensor.
    const KIND: Kind;
}

impl Value for f32 {
    const KIND: Kind = Kind::Float;
}

impl Value for i64 {
    const KIND: Kind = Kind::Int64;
}

impl Value for u8 {
    const KIND: Kind = Kind::Uint8;
}

impl Value for i8 {
    const KIND: Kind = Kind::Int8;
}

/// Tables on the host, one after the other.
#[derive(Debug, Default)]
pub struct Pack {
    bytes: Vec<u8>,
}

/// Which part of a [`Pack`] is a table.
#[derive(Debug)]
pub struct Table {
    start: usize,
    bytes: usize,
    kind: Kind,
    shape: Vec<i64>,
}

impl Pack {
    /// Adds a table of `shape`, row by row.
    pub fn add<T: Value>(&mut self, values: &[T], shape: &[i64]) -> Table {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
        let start = self.bytes.len();
        // SAFETY: the values are numbers without padding, so each of their bytes is initialized; the slice ends with them.
        let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) };
        self.bytes.extend_from_slice(bytes);
        Table { start, bytes: bytes.len(), kind: T::KIND, shape: shape.to_vec() }
    }

    /// Adds a table of one dimension.
    pub fn list<T: Value>(&mut self, values: &[T]) -> Table {
        self.add(values, &[values.len() as i64])
    }

    /// All tables on `device`; the host does not wait.
    pub fn send(&self, device: Device) -> Result<Sent> {
        Ok(Sent { bytes: transfer::upload(&self.bytes, device, Lane::InTurn)? })
    }
}

/// Tables on the device.
#[derive(Debug)]
pub struct Sent {
    bytes: Tensor,
}

impl Sent {
    /// A table of the pack that was sent.
    /// Errors: if it is of another pack.
    pub fn table(&self, table: &Table) -> Result<Tensor> {
        let part = self.bytes.f_narrow(0, table.start as i64, table.bytes as i64)?;
        Ok(part.f_view_dtype(table.kind)?.f_reshape(&table.shape[..])?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_each_kind_come_back_from_one_copy() {
        let mut pack = Pack::default();
        let bytes = pack.add(&[1u8, 2, 3], &[3, 1]);
        let empty = pack.add::<f32>(&[], &[0, 4]);
        let floats = pack.add(&[0.5f32, -1.0, f32::MIN_POSITIVE, 4.0], &[2, 2]);
        let integers = pack.list(&[i64::MIN, 7]);
        let none = pack.list::<i64>(&[]);
        let sent = pack.send(Device::Cpu).unwrap();
        assert_eq!(sent.table(&bytes).unwrap(), Tensor::from_slice(&[1u8, 2, 3]).reshape([3, 1]));
        assert_eq!(sent.table(&empty).unwrap().size(), [0, 4]);
        let expected = Tensor::from_slice(&[0.5f32, -1.0, f32::MIN_POSITIVE, 4.0]).reshape([2, 2]);
        assert_eq!(sent.table(&floats).unwrap(), expected);
        assert_eq!(sent.table(&integers).unwrap(), Tensor::from_slice(&[i64::MIN, 7]));
        assert_eq!(sent.table(&none).unwrap().size(), [0]);
    }
}

//! Writes pickles with protocol 2.

use tch::{Kind, Tensor};

use fnet_common::{Error, Result};

use crate::pickle::KINDS;

/// A pickle under construction, and the tensors that it refers to by number.
pub(crate) struct Pickler {
    out: Vec<u8>,
    tensors: Vec<Tensor>,
}

impl Pickler {
    pub(crate) fn new() -> Self {
        Self { out: vec![0x80, 2], tensors: Vec::new() }
    }

    /// Returns the pickle, and the tensors in the order of their keys.
    pub(crate) fn finish(mut self) -> (Vec<u8>, Vec<Tensor>) {
        self.out.push(b'.');
        (self.out, self.tensors)
    }

    pub(crate) fn none(&mut self) {
        self.out.push(b'N');
    }

    pub(crate) fn bool(&mut self, value: bool) {
        self.out.push(if value { 0x88 } else { 0x89 });
    }

    pub(crate) fn float(&mut self, value: f64) {
        self.out.push(b'G');
        self.out.extend(value.to_be_bytes());
    }

    pub(crate) fn int(&mut self, value: u64) {
        match i32::try_from(value) {
            Ok(value) => {
                self.out.push(b'J');
                self.out.extend(value.to_le_bytes());
            }
            // The ninth byte keeps the sign positive.
            Err(_) => {
                self.out.extend([0x8a, 9]);
                self.out.extend(value.to_le_bytes());
                self.out.push(0);
            }
        }
    }

    pub(crate) fn text(&mut self, text: &str) {
        self.out.push(b'X');
        self.out.extend((text.len() as u32).to_le_bytes());
        self.out.extend(text.as_bytes());
    }

    pub(crate) fn tuple(&mut self, items: impl FnOnce(&mut Self)) {
        self.out.push(b'(');
        items(self);
        self.out.push(b't');
    }

    pub(crate) fn list(&mut self, items: impl FnOnce(&mut Self)) {
        self.out.extend(b"](");
        items(self);
        self.out.push(b'e');
    }

    /// A dictionary; `entries` writes keys and values alternately.
    pub(crate) fn dict(&mut self, entries: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        self.out.extend(b"}(");
        entries(self)?;
        self.out.push(b'u');
        Ok(())
    }

    /// A dictionary with entries that cannot fail.
    pub(crate) fn plain_dict(&mut self, entries: impl FnOnce(&mut Self)) {
        self.out.extend(b"}(");
        entries(self);
        self.out.push(b'u');
    }

    pub(crate) fn ordered_dict(&mut self, entries: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        self.global("collections", "OrderedDict");
        self.out.extend(b")R(");
        entries(self)?;
        self.out.push(b'u');
        Ok(())
    }

    /// Attributes of the object on top of the stack.
    pub(crate) fn state(&mut self, entries: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        self.dict(entries)?;
        self.out.push(b'b');
        Ok(())
    }

    pub(crate) fn global(&mut self, module: &str, name: &str) {
        self.out.extend(format!("c{module}\n{name}\n").as_bytes());
    }

    /// The tensor as a contiguous one on the CPU, regardless of its layout and device.
    pub(crate) fn tensor(&mut self, tensor: &Tensor) -> Result<()> {
        let class = class_of(tensor.f_kind()?)?;
        let (key, size) = (self.tensors.len(), tensor.size());
        self.tensors.push(tensor.shallow_clone());
        self.global("torch._utils", "_rebuild_tensor_v2");
        self.tuple(|pickler| {
            pickler.tuple(|pickler| {
                pickler.text("storage");
                pickler.global("torch", class);
                pickler.text(&key.to_string());
                pickler.text("cpu");
                pickler.int(tensor.numel() as u64);
            });
            pickler.out.push(b'Q');
            pickler.int(0);
            pickler.tuple(|pickler| size.iter().for_each(|&size| pickler.int(size.unsigned_abs())));
            pickler.tuple(|pickler| {
                for axis in 0..size.len() {
                    pickler.int(size[axis + 1..].iter().map(|&size| size.unsigned_abs().max(1)).product());
                }
            });
            pickler.bool(false);
            pickler.global("collections", "OrderedDict");
            pickler.out.extend(b")R");
        });
        self.out.push(b'R');
        Ok(())
    }
}

/// PyTorch's storage class for elements of type `kind`.
fn class_of(kind: Kind) -> Result<&'static str> {
    let found = KINDS.iter().find(|(known, ..)| *known == kind).map(|(_, class, _)| *class);
    found.ok_or_else(|| Error::data(format!("elements of type {kind:?} cannot be exported")))
}

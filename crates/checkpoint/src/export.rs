//! Exports weights: `.pth` for MMDetection and PyTorch, `.safetensors` for other programs.
//!
//! The `.pth` file is like one of `torch.save`: a zip archive with a pickle of protocol 2 and one entry per tensor. It
//! names only classes that PyTorch's restricted loader allows, so a plain `torch.load(f)` opens it.

pub(super) mod pickler;

use std::io::Write;
use std::path::Path;

use indexmap::IndexMap;
use tch::{Device, Kind, Tensor};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use fnet_common::atomic;
use fnet_common::{Context, Error, Result};

use self::pickler::Pickler;
use super::mmdet::{MmdetCheckpoint, Moments, OptimizerState, ParameterGroup};
use super::{bytes, safetensors};

/// Alignment of each tensor's data in bytes, as in PyTorch.
const ALIGNMENT: u16 = 64;

/// Whether `path` names a safetensors file; otherwise `.pth`.
/// Errors: a usage error for another extension.
pub fn is_safetensors(path: &Path) -> Result<bool> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("pth" | "pt") => Ok(false),
        Some("safetensors") => Ok(true),
        _ => Err(Error::usage(format!(
            "{}: an export needs a name that ends in .pth (PyTorch, MMDetection) or .safetensors",
            path.display()
        ))),
    }
}

/// Writes `checkpoint` to `path` in the format of its extension: `.pth` and `.pt` for PyTorch, `.safetensors` (only the
/// weights, with classes, epoch and iteration in its metadata). The file is either complete or not written at all.
/// Errors: if the extension is another one, a tensor has an unsupported type, or the file cannot be written.
pub fn write(path: &Path, checkpoint: &MmdetCheckpoint) -> Result<()> {
    if is_safetensors(path)? { write_safetensors(path, checkpoint) } else { write_pth(path, checkpoint) }
}

/// Writes `checkpoint` as `torch.save` would: `meta`, `state_dict` and, if there is one, `optimizer`.
/// Errors: if a tensor has an unsupported type, or the file cannot be written.
pub(crate) fn write_pth(path: &Path, checkpoint: &MmdetCheckpoint) -> Result<()> {
    let mut pickler = Pickler::new();
    pickler.dict(|pickler| {
        pickler.text("meta");
        write_meta(pickler, checkpoint);
        pickler.text("state_dict");
        write_state(pickler, &checkpoint.state)?;
        if let Some(optimizer) = &checkpoint.optimizer {
            pickler.text("optimizer");
            write_optimizer(pickler, optimizer)?;
        }
        Ok(())
    })?;
    let (pickle, tensors) = pickler.finish();
    atomic::create(path, |out| write_archive(out, &pickle, &tensors))
}

/// Writes the weights of `checkpoint` as safetensors.
/// Errors: if a tensor has an unsupported type, or the file cannot be written.
pub fn write_safetensors(path: &Path, checkpoint: &MmdetCheckpoint) -> Result<()> {
    let tensors = || checkpoint.state.iter().map(|(name, tensor)| (name.as_str(), tensor));
    atomic::create(path, |out| safetensors::write(out, &checkpoint.meta, tensors()))
}

fn write_archive(out: &mut dyn Write, pickle: &[u8], tensors: &[Tensor]) -> Result<()> {
    let failed = |error: zip::result::ZipError| Error::environment(format!("writing failed: {error}"));
    let disk = |error: std::io::Error| Error::environment(format!("writing failed: {error}"));
    let mut archive = ZipWriter::new_stream(out);
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored).with_alignment(ALIGNMENT);
    for (name, bytes) in [("data.pkl", pickle), ("byteorder", b"little"), ("version", b"3\n")] {
        archive.start_file(format!("archive/{name}"), options).map_err(failed)?;
        archive.write_all(bytes).map_err(disk)?;
    }
    for (key, tensor) in tensors.iter().enumerate() {
        let name = format!("archive/data/{key}");
        let tensor = bytes::on_host(tensor, &name)?;
        let length = tensor.numel() * tensor.kind().elt_size_in_bytes();
        archive.start_file(&name, options.large_file(length >= u32::MAX as usize)).map_err(failed)?;
        bytes::with_bytes(&tensor, |bytes| archive.write_all(bytes)).map_err(disk)?;
    }
    archive.finish().map_err(failed).map(drop)
}

fn write_meta(pickler: &mut Pickler, checkpoint: &MmdetCheckpoint) {
    let meta = &checkpoint.meta;
    pickler.plain_dict(|pickler| {
        pickler.text("CLASSES");
        if meta.classes.is_empty() {
            pickler.none();
        } else {
            pickler.tuple(|pickler| meta.classes.iter().for_each(|class| pickler.text(class)));
        }
        for (name, count) in [("epoch", meta.epoch), ("iter", meta.iter)] {
            if let Some(count) = count {
                pickler.text(name);
                pickler.int(count);
            }
        }
    });
}

/// An OrderedDict of tensors. Its `_metadata` has the version of every module, as in `module.state_dict()`.
fn write_state(pickler: &mut Pickler, state: &IndexMap<String, Tensor>) -> Result<()> {
    pickler.ordered_dict(|pickler| {
        for (name, tensor) in state {
            pickler.text(name);
            pickler.tensor(tensor).with_context(|| name.clone())?;
        }
        Ok(())
    })?;
    let mut versions: IndexMap<&str, u64> = IndexMap::from([("", 1)]);
    for name in state.keys() {
        for (end, _) in name.match_indices('.') {
            versions.entry(&name[..end]).or_insert(1);
        }
        // BatchNorm has a batch counter since version 2.
        if let Some(module) = name.strip_suffix(".num_batches_tracked") {
            versions.insert(module, 2);
        }
    }
    pickler.state(|pickler| {
        pickler.text("_metadata");
        pickler.ordered_dict(|pickler| {
            for (module, version) in versions {
                pickler.text(module);
                pickler.plain_dict(|pickler| {
                    pickler.text("version");
                    pickler.int(version);
                });
            }
            Ok(())
        })
    })
}

fn write_optimizer(pickler: &mut Pickler, optimizer: &OptimizerState) -> Result<()> {
    pickler.dict(|pickler| {
        pickler.text("state");
        pickler.dict(|pickler| {
            for (&index, moments) in &optimizer.moments {
                pickler.int(index as u64);
                write_moments(pickler, moments).with_context(|| format!("optimizer state {index}"))?;
            }
            Ok(())
        })?;
        pickler.text("param_groups");
        pickler.list(|pickler| optimizer.groups.iter().for_each(|group| write_group(pickler, group)));
        Ok(())
    })
}

fn write_moments(pickler: &mut Pickler, moments: &Moments) -> Result<()> {
    pickler.dict(|pickler| {
        pickler.text("step");
        // PyTorch stores the count as a float32 scalar.
        pickler.tensor(&Tensor::f_full([0_i64; 0], moments.step as f64, (Kind::Float, Device::Cpu))?)?;
        pickler.text("exp_avg");
        pickler.tensor(&moments.exp_avg)?;
        pickler.text("exp_avg_sq");
        pickler.tensor(&moments.exp_avg_sq)
    })
}

/// A group with all settings that PyTorch's AdamW expects.
fn write_group(pickler: &mut Pickler, group: &ParameterGroup) {
    pickler.plain_dict(|pickler| {
        pickler.text("lr");
        pickler.float(group.lr);
        pickler.text("betas");
        pickler.tuple(|pickler| {
            pickler.float(group.betas.0);
            pickler.float(group.betas.1);
        });
        pickler.text("eps");
        pickler.float(group.eps);
        pickler.text("weight_decay");
        pickler.float(group.weight_decay);
        for (name, value) in [
            ("amsgrad", Some(false)),
            ("maximize", Some(false)),
            ("foreach", None),
            ("capturable", Some(false)),
            ("differentiable", Some(false)),
            ("fused", None),
            ("decoupled_weight_decay", Some(true)),
        ] {
            pickler.text(name);
            match value {
                Some(value) => pickler.bool(value),
                None => pickler.none(),
            }
        }
        if let Some(lr) = group.initial_lr {
            pickler.text("initial_lr");
            pickler.float(lr);
        }
        pickler.text("params");
        pickler.list(|pickler| group.params.iter().for_each(|&index| pickler.int(index as u64)));
    });
}

#[cfg(test)]
mod tests;

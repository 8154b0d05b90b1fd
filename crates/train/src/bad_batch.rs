//! Reports and saves batches whose loss is not finite.

use std::path::{Path, PathBuf};

use serde_json::json;
use tch::Tensor;

use fnet_common::atomic;
use fnet_common::{Context, Error, Result};
use fnet_data::{Batch, InstanceMask};
use fnet_distributed::Communicator;

use super::progress::StepIndex;

/// Maximum number of batches that one rank saves; a job that skips them may see many.
const MAX_SAVED: usize = 16;

/// Saves batches with a loss that is not finite.
#[derive(Debug, Default)]
pub struct BadBatches {
    folder: Option<PathBuf>,
    kept: usize,
}

impl BadBatches {
    /// Saves batches in `folder`, which is created for the first one.
    pub fn kept_in(folder: PathBuf) -> Self {
        Self { folder: Some(folder), kept: 0 }
    }

    /// After a step in which some rank had a loss that is not finite: saves the batch of each such rank, and returns a text
    /// with the ranks, losses and images. All ranks call this together.
    /// Errors: a lost peer. A batch that cannot be saved is only mentioned in the text.
    pub fn examine(
        &mut self,
        named: &[(&'static str, f64)],
        batch: &Batch,
        index: StepIndex,
        communicator: &Communicator,
    ) -> Result<String> {
        let bad: Vec<String> = named
            .iter()
            .filter(|(_, value)| !value.is_finite())
            .map(|(name, value)| format!("{name} = {value}"))
            .collect();
        let mut own = String::new();
        if !bad.is_empty() {
            own = format!("rank {}: {} with images {}", communicator.rank(), bad.join(", "), names(batch));
            if let Some(folder) = self.folder.as_ref().filter(|_| self.kept < MAX_SAVED) {
                self.kept += 1;
                own += &match keep(folder, named, batch, index, communicator.rank()) {
                    Ok(path) => format!(" (batch saved in {})", path.display()),
                    Err(error) => format!(" (the batch could not be saved: {error})"),
                };
            }
        }
        let all = communicator.all_gather_bytes(own.as_bytes()).context("gathering what was not finite")?;
        let parts: Vec<_> =
            all.iter().filter(|text| !text.is_empty()).map(|text| String::from_utf8_lossy(text)).collect();
        Ok(parts.join("; "))
    }
}

/// Names and ids of the images of a batch, for messages.
pub fn names(batch: &Batch) -> String {
    let names: Vec<_> = batch.metas.iter().map(|meta| format!("{} (id {})", meta.file_name, meta.image_id)).collect();
    names.join(", ")
}

/// Writes `step_S_rank_R.safetensors` (`images`, and for each image `boxes.I`, `labels.I`, `masks.I` if it has masks) and a
/// JSON file with the losses and the properties of the images.
fn keep(folder: &Path, losses: &[(&str, f64)], batch: &Batch, index: StepIndex, rank: usize) -> Result<PathBuf> {
    std::fs::create_dir_all(folder).map_err(|error| Error::environment(format!("{}: {error}", folder.display())))?;
    let stem = format!("step_{}_rank_{rank}", index.step + 1);
    let mut tensors = vec![("images".to_owned(), batch.images.values(tch::Device::Cpu)?.f_contiguous()?)];
    for (index, target) in batch.targets.iter().enumerate() {
        let boxes = Tensor::f_from_slice(&target.boxes.concat())?.f_reshape([-1, 4])?;
        tensors.push((format!("boxes.{index}"), boxes));
        tensors.push((format!("labels.{index}"), Tensor::f_from_slice(&target.labels)?));
        if !target.masks.is_empty() {
            tensors.push((format!("masks.{index}"), masks(&target.masks)?));
        }
    }
    let path = folder.join(format!("{stem}.safetensors"));
    Tensor::write_safetensors(&tensors, &path).with_context(|| path.display().to_string())?;
    let images: Vec<_> = batch
        .metas
        .iter()
        .map(|meta| {
            json!({
                "file_name": meta.file_name, "image_id": meta.image_id, "original_size": meta.original_size,
                "image_size": meta.image_size, "padded_size": meta.padded_size, "flipped": meta.flipped,
            })
        })
        .collect();
    let losses: serde_json::Map<String, serde_json::Value> =
        losses.iter().map(|&(name, value)| (name.to_owned(), value.to_string().into())).collect();
    let description = json!({
        "epoch": index.epoch + 1, "iter": index.step_in_epoch + 1, "step": index.step + 1, "rank": rank,
        "losses": losses, "images": images,
    });
    atomic::create(&folder.join(format!("{stem}.json")), |out| {
        serde_json::to_writer_pretty(out, &description).map_err(|error| Error::environment(error.to_string()))
    })?;
    Ok(path)
}

/// The masks as a tensor `[objects, height, width]` of 0 and 1; an object without one has zeros.
fn masks(masks: &[Option<InstanceMask>]) -> Result<Tensor> {
    let (height, width) = masks.iter().flatten().next().map_or((0, 0), |mask| mask.frame);
    let mut pixels = vec![0_u8; masks.len() * height * width];
    for (mask, bitmap) in masks.iter().zip(pixels.chunks_exact_mut((height * width).max(1))) {
        mask.iter().for_each(|mask| mask.mark(bitmap));
    }
    Ok(Tensor::f_from_slice(&pixels)?.f_reshape([masks.len() as i64, height as i64, width as i64])?)
}

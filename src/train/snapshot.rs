//! Between a learner and a checkpoint: what is stored, and how it is put back.

use std::path::Path;

use indexmap::IndexMap;
use tch::{Device, Tensor};

use super::LossScale;
use super::checkpoint::{self, Checkpoint, CheckpointMeta, EMA, MODEL, OPTIMIZER, rank_prefix};
use super::learner::Learner;
use crate::config;
use crate::distributed::World;
use crate::error::{Context, Error, Result};
use crate::model::{LoadReport, Parameters};
use crate::weights::{MmdetCheckpoint, Need, Weights};

/// Key of the dynamic loss scale among the scalars of a checkpoint.
const LOSS_SCALE: &str = "loss_scale";
/// Key of the number of updates that the moving average has seen.
const EMA_UPDATES: &str = "ema_updates";

impl Learner<'_> {
    /// The state of the whole job: `Some` on rank 0. All ranks call this together, for each holds its own BatchNorm
    /// statistics.
    ///
    /// # Errors
    /// If a rank is lost, or for lack of memory.
    pub fn capture(&self, world: &World, mut meta: CheckpointMeta) -> Result<Option<Checkpoint>> {
        let buffers = world.all_gather_bytes(&buffer_bytes(&self.parameters)?)?;
        if world.rank() != 0 {
            return Ok(None);
        }
        let mut tensors = IndexMap::new();
        for (name, _, tensor) in self.parameters.iter() {
            tensors.insert(format!("{MODEL}{name}"), tensor.detach());
        }
        for (name, tensor) in self.optimizer.state() {
            tensors.insert(format!("{OPTIMIZER}{name}"), tensor);
        }
        for (rank, bytes) in buffers.iter().enumerate().skip(1) {
            for (name, tensor) in buffers_from_bytes(&self.parameters, bytes, rank)? {
                tensors.insert(format!("{}{name}", rank_prefix(rank)), tensor);
            }
        }
        if let Some(ema) = &self.ema {
            meta.state.insert(EMA_UPDATES.into(), ema.updates().into());
            for (name, tensor) in ema.averages() {
                tensors.insert(format!("{EMA}{name}"), tensor.shallow_clone());
            }
        }
        if let Some(scale) = &self.loss_scale {
            let value = serde_json::to_value(scale).map_err(|error| Error::bug(error.to_string()))?;
            meta.state.insert(LOSS_SCALE.into(), value);
        }
        meta.world_size = world.world_size();
        Ok(Some(Checkpoint { tensors, meta }))
    }

    /// Loads the weights that a new job starts from: those of `load_from`, else the pretrained backbone of the config.
    /// Returns what to tell.
    ///
    /// # Errors
    /// A data error if the file cannot be read, is of another model, or has less than `need` asks for.
    pub fn load_initial_weights(
        &mut self,
        config: &config::Model,
        load_from: Option<&Path>,
        need: Need,
    ) -> Result<String> {
        let pretrained = Path::new(&config.backbone.pretrained);
        let told = if let Some(path) = load_from {
            open_weights(path)?.load_detector(&self.parameters, need)?.to_string()
        } else if !config.backbone.pretrained.is_empty() {
            open_weights(pretrained)?.load_backbone(&self.parameters, need)?.to_string()
        } else {
            "No pre-trained weights, training starts from scratch".to_owned()
        };
        if let Some(ema) = &mut self.ema {
            ema.restart(&self.trained)?;
        }
        Ok(told)
    }

    /// Goes on from an MMDetection checkpoint: weights, BatchNorm statistics (the file's on every rank) and AdamW's
    /// moments. A moving average begins with this run. Returns the weights' report; none is missing.
    ///
    /// # Errors
    /// A data error if the checkpoint is of another model or has no AdamW state.
    pub fn restore_mmdet(&mut self, checkpoint: &MmdetCheckpoint) -> Result<LoadReport> {
        let report = checkpoint.fill(&self.parameters)?;
        self.optimizer.restore_moments(&checkpoint.moments(&self.parameters)?)?;
        if let Some(ema) = &mut self.ema {
            ema.restart(&self.trained)?;
        }
        Ok(report)
    }

    /// Goes on from a stored state: weights, optimizer, moving average, and the BatchNorm statistics of this rank
    /// (rank 0's if there were fewer ranks).
    ///
    /// # Errors
    /// A data error if the checkpoint is of another model.
    pub fn restore(&mut self, checkpoint: &Checkpoint, rank: usize) -> Result<()> {
        self.parameters.load(checkpoint.section(MODEL))?.require_complete()?;
        if rank > 0 && rank < checkpoint.meta.world_size {
            self.parameters.load(checkpoint.section(&rank_prefix(rank)))?;
        }
        self.optimizer.restore(|name| checkpoint.tensors.get(&format!("{OPTIMIZER}{name}")))?;
        if let Some(ema) = &mut self.ema {
            let averages: IndexMap<String, Tensor> =
                checkpoint.section(EMA).map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone())).collect();
            if averages.is_empty() {
                // The average begins with this run, from the stored weights.
                ema.restart(&self.trained)?;
            } else {
                let updates = checkpoint.meta.state.get(EMA_UPDATES).and_then(serde_json::Value::as_u64);
                ema.restore(updates.unwrap_or(0), &averages)?;
            }
        }
        if let (Some(scale), Some(stored)) = (&mut self.loss_scale, checkpoint.meta.state.get(LOSS_SCALE)) {
            *scale = LossScale::from_stored(stored).context(LOSS_SCALE)?;
        }
        Ok(())
    }
}

/// Opens weights of any maker. Of a checkpoint of this program every byte is checked first.
fn open_weights(path: &Path) -> Result<Weights> {
    let path = checkpoint::resolve(path);
    if !checkpoint::is_of_another_maker(&path) {
        checkpoint::verify(&path)?;
    }
    Weights::open(&path)
}

/// All buffers, one after the other, in the order of the parameters.
fn buffer_bytes(parameters: &Parameters) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for (_, buffer) in parameters.buffers() {
        let buffer = buffer.f_to_device(Device::Cpu)?.f_contiguous()?;
        let start = bytes.len();
        bytes.resize(start + byte_count(&buffer), 0);
        buffer.f_copy_data_u8(&mut bytes[start..], buffer.numel())?;
    }
    Ok(bytes)
}

/// The buffers of `rank` by name, from what it sent.
fn buffers_from_bytes(parameters: &Parameters, bytes: &[u8], rank: usize) -> Result<Vec<(String, Tensor)>> {
    let mut rest = bytes;
    let mut tensors = Vec::new();
    for (name, like) in parameters.buffers() {
        let (own, after) = rest
            .split_at_checked(byte_count(like))
            .ok_or_else(|| Error::bug(format!("the buffers of rank {rank} end before {name}")))?;
        rest = after;
        tensors.push((name.to_owned(), Tensor::f_from_data_size(own, &like.size(), like.kind())?));
    }
    Ok(tensors)
}

fn byte_count(tensor: &Tensor) -> usize {
    tensor.numel() * tensor.kind().elt_size_in_bytes()
}

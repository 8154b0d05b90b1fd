//! Between a learner and a checkpoint: what is stored, and how it is put back.

use std::path::Path;

use indexmap::IndexMap;
use tch::{Device, Tensor};

use super::checkpoint::{self, Checkpoint, CheckpointMeta, EMA, MODEL, OPTIMIZER, rank_prefix};
use super::learner::Learner;
use super::{LossScale, buffers};
use crate::config;
use crate::distributed::World;
use crate::error::{Context, Error, Result};
use crate::model::LoadReport;
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
    pub fn capture(&self, world: &World, meta: CheckpointMeta) -> Result<Option<Checkpoint>> {
        let packed = buffers::pack(&self.parameters)?;
        let bytes = Vec::<u8>::try_from(packed.f_to_device(Device::Cpu)?)?;
        let gathered = world.all_gather_bytes(&bytes)?;
        if world.rank() != 0 {
            return Ok(None);
        }
        let others = gathered.iter().enumerate().skip(1);
        let others =
            others.map(|(rank, bytes)| Ok((rank, Tensor::f_from_slice(bytes)?))).collect::<Result<Vec<_>>>()?;
        self.assemble(&packed, &others, meta).map(Some)
    }

    /// The state after the last update as this rank alone knows it, when others are lost: with rank 0's BatchNorm
    /// statistics, which are the model's, and its own. To be called after [`Learner::roll_back`].
    ///
    /// # Errors
    /// For lack of memory.
    pub fn capture_alone(&self, rank: usize, meta: CheckpointMeta) -> Result<Checkpoint> {
        let own = (rank > 0).then(|| (rank, self.held.own.shallow_clone()));
        self.assemble(&self.held.first, own.as_slice(), meta)
    }

    /// The checkpoint of the present weights, with packed buffers of rank 0 and of other ranks.
    fn assemble(&self, first: &Tensor, others: &[(usize, Tensor)], mut meta: CheckpointMeta) -> Result<Checkpoint> {
        let mut first: IndexMap<String, Tensor> = buffers::unpack(&self.parameters, first)?.into_iter().collect();
        let mut tensors = IndexMap::new();
        for (name, _, tensor) in self.parameters.iter() {
            let tensor = first.swap_remove(name).unwrap_or_else(|| tensor.detach());
            tensors.insert(format!("{MODEL}{name}"), tensor);
        }
        for (name, tensor) in self.optimizer.state() {
            tensors.insert(format!("{OPTIMIZER}{name}"), tensor);
        }
        for (rank, packed) in others {
            for (name, tensor) in buffers::unpack(&self.parameters, packed)? {
                tensors.insert(format!("{}{name}", rank_prefix(*rank)), tensor);
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
        Ok(Checkpoint { tensors, meta })
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
        self.hold(None)?;
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
        self.hold(None)?;
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
        let first = buffers::pack(&self.parameters)?;
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
        self.hold(Some(first))
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

//! Converts a train state to a checkpoint and back.

use std::path::Path;
use std::time::Instant;

use indexmap::IndexMap;
use tch::{Device, Tensor};

use fnet_checkpoint::native::{self as checkpoint, Checkpoint, CheckpointMeta, EMA, MODEL, OPTIMIZER, rank_prefix};
use fnet_checkpoint::{Classes, MmdetCheckpoint, Need, Weights};
use fnet_common::{Error, Result};
use fnet_config::Config;
use fnet_distributed::Communicator;
use fnet_model::{LoadReport, is_frozen};

use super::buffers;
use super::train_state::TrainState;
use super::{Ema, LossScale};

/// Packed BatchNorm buffers of the last update, on the host: this rank's and rank 0's.
pub struct LastBuffers {
    first: Tensor,
    own: Tensor,
}

impl TrainState<'_> {
    /// The state of the whole job: `Some` on rank 0. All ranks call this together, because each has its own BatchNorm
    /// statistics.
    pub fn capture(&self, communicator: &Communicator, mut meta: CheckpointMeta) -> Result<Option<Checkpoint>> {
        let packed = buffers::pack(&self.parameters)?.f_to_device(Device::Cpu)?;
        let bytes = Vec::<u8>::try_from(&packed)?;
        let gathered = communicator.all_gather_bytes(&bytes)?;
        if communicator.rank() != 0 {
            return Ok(None);
        }
        let others = gathered.iter().enumerate().skip(1);
        let others =
            others.map(|(rank, bytes)| Ok((rank, Tensor::f_from_slice(bytes)?))).collect::<Result<Vec<_>>>()?;
        meta.state.loss_scale = self.loss_scale.as_ref().map(|scale| scale.state().clone());
        self.assemble(&packed, &others, meta, &|tensor| Ok(tensor.shallow_clone())).map(Some)
    }

    /// The first, small part of [`TrainState::capture_alone`]. It checks that this rank's state belongs to a step and that
    /// its device still responds. Before an evaluation, every rank has rank 0's buffers.
    /// Errors: if the job was aborted during the update itself, or the device fails or has not finished the last update
    /// by `deadline`.
    pub fn last_buffers(&self, precedes_evaluation: bool, deadline: Instant) -> Result<LastBuffers> {
        if self.update_in_progress {
            return Err(Error::bug("the update of the weights was aborted, so this rank's weights belong to no step"));
        }
        if let (Some(downloader), Some(reached)) = (&self.downloader, &self.last_good.reached) {
            downloader.follow(reached)?;
        }
        let first = self.beside_collectives(&self.last_good.first, deadline)?;
        let own = match precedes_evaluation {
            true => first.shallow_clone(),
            false => self.beside_collectives(&self.last_good.own, deadline)?,
        };
        Ok(LastBuffers { first, own })
    }

    /// The state after the last update, captured by this rank alone when others are lost: with rank 0's BatchNorm
    /// statistics, which belong to the model, and its own. Changes of an aborted step to statistics and loss scale are
    /// undone, and swapped averages are stored as averages. On a GPU, the state is copied to the host without waiting for
    /// the work that is queued.
    /// Errors: for lack of memory; if the device fails or does not finish by `deadline`.
    pub fn capture_alone(
        &self,
        rank: usize,
        buffers: LastBuffers,
        mut meta: CheckpointMeta,
        deadline: Instant,
    ) -> Result<Checkpoint> {
        meta.state.loss_scale = self.last_good.loss_scale.as_ref().map(|scale| scale.state().clone());
        let own = (rank > 0).then_some((rank, buffers.own));
        self.assemble(&buffers.first, own.as_slice(), meta, &|tensor| self.beside_collectives(tensor, deadline))
    }

    /// The tensor as it is after the last update, on the host.
    fn beside_collectives(&self, tensor: &Tensor, deadline: Instant) -> Result<Tensor> {
        match &self.downloader {
            Some(downloader) => Ok(downloader.download(tensor, deadline)?),
            None => Ok(tensor.shallow_clone()),
        }
    }

    /// Builds a checkpoint of the current weights with the packed buffers of rank 0 and of other ranks. `fetch` copies every
    /// other tensor.
    fn assemble(
        &self,
        first: &Tensor,
        others: &[(usize, Tensor)],
        mut meta: CheckpointMeta,
        fetch: &dyn Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Checkpoint> {
        let mut first: IndexMap<String, Tensor> = buffers::unpack(&self.parameters, first)?.into_iter().collect();
        // During an evaluation, weights and averages are swapped.
        let exchanged = self.ema.as_ref().filter(|_| self.averaged).map(Ema::averages);
        let mut tensors = IndexMap::new();
        for (name, _, tensor) in self.parameters.iter() {
            let weight = exchanged.and_then(|averages| averages.get(name)).unwrap_or(tensor);
            let tensor = first.swap_remove(name).map_or_else(|| fetch(&weight.detach()), Ok)?;
            tensors.insert(format!("{MODEL}{name}"), tensor);
        }
        for (name, tensor) in self.optimizer.state() {
            tensors.insert(format!("{OPTIMIZER}{name}"), fetch(&tensor)?);
        }
        for (rank, packed) in others {
            for (name, tensor) in buffers::unpack(&self.parameters, packed)? {
                tensors.insert(format!("{}{name}", rank_prefix(*rank)), tensor);
            }
        }
        if let Some(ema) = &self.ema {
            meta.state.ema_updates = Some(ema.updates());
            for ((name, average), (_, weight)) in ema.averages().iter().zip(&self.trained) {
                let average = if self.averaged { &weight.detach() } else { average };
                tensors.insert(format!("{EMA}{name}"), fetch(average)?);
            }
        }
        Ok(Checkpoint { tensors, meta })
    }

    /// Loads the initial weights of a new job: those of `load_from`, else the pretrained backbone of the config. `classes` are
    /// the names of the model's classes. Returns a message for the log.
    /// Errors: a data error if the file cannot be read, belongs to another model, or has less than `need` requires.
    pub fn load_initial_weights(
        &mut self,
        config: &Config,
        load_from: Option<&Path>,
        need: Need,
        classes: &[String],
    ) -> Result<String> {
        let pretrained = Path::new(&config.model.backbone.pretrained);
        let message = if let Some(path) = load_from {
            let (weights, names) = open_weights(path)?;
            let classes = Classes { file: &names, model: classes, match_names: config.train.match_classes };
            weights.load_to_train(&self.parameters, need, classes)?.to_string()
        } else if !config.model.backbone.pretrained.is_empty() {
            open_weights(pretrained)?.0.load_backbone(&self.parameters, need)?.to_string()
        } else {
            "No pretrained weights; training starts from scratch".to_owned()
        };
        if let Some(ema) = &mut self.ema {
            ema.restart(&self.trained)?;
        }
        self.hold(None)?;
        Ok(message)
    }

    /// Restores an MMDetection checkpoint: weights, BatchNorm statistics (the same on every rank) and AdamW's moments. A
    /// moving average starts with this run. Returns the report of the weights; none is missing.
    /// Errors: a data error if the checkpoint belongs to another model or has no AdamW state.
    pub fn restore_mmdet(&mut self, checkpoint: &MmdetCheckpoint) -> Result<LoadReport> {
        let report = checkpoint.fill(&self.parameters)?;
        self.optimizer.restore_moments(&checkpoint.moments(&self.parameters)?)?;
        if let Some(ema) = &mut self.ema {
            ema.restart(&self.trained)?;
        }
        self.hold(None)?;
        Ok(report)
    }

    /// Restores a checkpoint: weights, optimizer, moving average, and the BatchNorm statistics of this rank (rank 0's if
    /// there were fewer ranks).
    /// Errors: a data error if the checkpoint belongs to another model.
    pub fn restore(&mut self, checkpoint: &Checkpoint, rank: usize) -> Result<()> {
        self.parameters.load(checkpoint.section(MODEL))?.require_complete()?;
        let first = buffers::pack(&self.parameters)?;
        if rank > 0 && rank < checkpoint.meta.world_size {
            self.restore_own_buffers(checkpoint, &rank_prefix(rank))?;
        }
        // Which parameters are frozen may have changed.
        let before = checkpoint.meta.config(Path::new("the checkpoint")).ok();
        let was_frozen = |name: &str| before.as_ref().is_some_and(|before| is_frozen(&before.model, name));
        self.optimizer.restore(|name| checkpoint.tensors.get(&format!("{OPTIMIZER}{name}")), was_frozen)?;
        if let Some(ema) = &mut self.ema {
            let mut averages = checkpoint.averages()?;
            if averages.is_empty() {
                // The average starts with this run, from the stored weights.
                ema.restart(&self.trained)?;
            } else {
                let updates = checkpoint.meta.state.ema_updates.ok_or_else(|| {
                    Error::data(
                        "damaged: it has a moving average of the weights, but fnet.meta has no state.ema_updates",
                    )
                })?;
                averages.retain(|name, _| !self.parameters.is_frozen(name));
                for (name, weight) in self.trained.iter().filter(|(name, _)| was_frozen(name)) {
                    averages.insert(name.clone(), weight.f_detach_copy()?);
                }
                ema.restore(updates, &averages)?;
            }
        }
        if let (Some(scale), Some(stored)) = (&mut self.loss_scale, &checkpoint.meta.state.loss_scale) {
            *scale = LossScale::from_state(stored.clone());
        }
        self.hold(Some(first))
    }

    /// Loads this rank's BatchNorm statistics, named `prefix`*. There may be none: a rank that wrote an emergency checkpoint
    /// alone knew only its own.
    fn restore_own_buffers(&self, checkpoint: &Checkpoint, prefix: &str) -> Result<()> {
        let report = self.parameters.load(checkpoint.section(prefix))?;
        let lacking = self.parameters.buffers().find(|(name, _)| report.missing.iter().any(|missing| missing == name));
        let is_partial = !report.loaded.is_empty() && lacking.is_some();
        if is_partial || !report.unexpected.is_empty() || !report.conflicts.is_empty() {
            let first = lacking.map_or(String::new(), |(name, _)| format!("; {prefix}{name} is missing"));
            return Err(Error::data(format!("damaged: {prefix}* are not statistics of this model: {report}{first}")));
        }
        Ok(())
    }
}

/// Opens weights of any supported format, with the names of their classes. fnet's own checkpoints are verified completely
/// first.
fn open_weights(path: &Path) -> Result<(Weights, Vec<String>)> {
    let path = checkpoint::resolve(path);
    let verified = if checkpoint::is_third_party(&path) { None } else { Some(checkpoint::verify(&path)?) };
    let weights = Weights::open(&path)?;
    let classes = verified.map_or_else(|| weights.meta().classes.clone(), |meta| meta.classes);
    Ok((weights, classes))
}

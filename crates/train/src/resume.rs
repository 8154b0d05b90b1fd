//! Resuming from a checkpoint of fnet or MMDetection.

use std::path::{Path, PathBuf};

use fnet_checkpoint::native::{Best, Checkpoint, CheckpointMeta, EarlyStopState, MODEL, TrainProgress, latest};
use fnet_checkpoint::{MmdetCheckpoint, ParameterGroup, Summary};
use fnet_common::{Context, Error, Result};
use fnet_config::{self as config, Config};
use fnet_data::{Dataset, ShardSegment};
use fnet_distributed::Communicator;
use fnet_protocol::cli::Resume;
use fnet_protocol::client::Client;
use fnet_protocol::message::Phase;
use fnet_protocol::work_dir::is_pytorch_file;

use super::changed_ranks::{Continued, go_on};
use super::elastic::full_world_size;
use super::progress::TrainSchedule;
use super::train_state::TrainState;
use crate::run_log::Window;

/// What rank 0 tells the others if the job trains from scratch; no path of a file.
const NOTHING: &str = "/";
/// What rank 0 tells them before its error, if there is none to resume from; no path of a file either.
const FAILED: &str = "/\n";

/// A checkpoint to resume from.
pub struct ResumeSource {
    pub path: PathBuf,
    kind: Kind,
}

enum Kind {
    Native(Box<Checkpoint>),
    Mmdet(Box<MmdetCheckpoint>),
}

/// Where a job starts.
#[derive(Debug, Default)]
pub struct StartPoint {
    pub progress: TrainProgress,
    /// How other ranks trained the first part of the epoch.
    pub segments: Vec<ShardSegment>,
    /// The best evaluation so far.
    pub best: Option<Best>,
    /// How long evaluations have not become better.
    pub early_stop: Option<EarlyStopState>,
    /// The values for the next log line.
    pub window: Option<Window>,
    /// Nothing of the epoch before `progress` is left to train, but it was not ended.
    pub epoch_is_over: bool,
    /// The checkpoint was written before the evaluation of its epoch.
    pub precedes_evaluation: bool,
    /// The checkpoint is a third-party one, so the work folder has none yet.
    pub is_third_party: bool,
    pub notes: Vec<String>,
    pub warnings: Vec<String>,
}

impl ResumeSource {
    /// Loads the checkpoint that `resume` names. Rank 0 chooses it, and every rank reads it.
    /// Errors: a data error if there is none to resume from, or it is damaged.
    pub fn find(
        resume: Option<Resume>,
        folders: &[PathBuf],
        communicator: &Communicator,
        control: &Client,
    ) -> Result<Option<Self>> {
        let path = match resume {
            None => return Ok(None),
            Some(Resume::From(path)) => path,
            Some(resume) => {
                control.phase(Phase::Checkpoint);
                let chosen = if communicator.rank() == 0 { source(Some(resume), folders, control) } else { Ok(None) };
                let name = match &chosen {
                    Ok(Some(path)) => path.to_string_lossy().into_owned(),
                    Ok(None) => NOTHING.to_owned(),
                    Err(error) => format!("{FAILED}{error}"),
                };
                let names = communicator.all_gather_bytes(name.as_bytes())?;
                let _ = chosen?;
                let name = String::from_utf8_lossy(names.first().map(Vec::as_slice).unwrap_or_default());
                match &*name {
                    NOTHING => return Ok(None),
                    // The launcher prints the error that comes first, so all ranks have the same one.
                    name => match name.strip_prefix(FAILED) {
                        Some(error) => return Err(Error::data(error)),
                        None => PathBuf::from(name),
                    },
                }
            }
        };
        let kind = if is_pytorch_file(&path) {
            Kind::Mmdet(Box::new(MmdetCheckpoint::open(&path)?))
        } else {
            Kind::Native(Box::new(Checkpoint::load(&path)?))
        };
        Ok(Some(Self { path, kind }))
    }

    /// Restores the train state and returns where the job resumes. If other ranks began the epoch, `schedule` is changed.
    /// Errors: a data error if the checkpoint belongs to another model or optimizer.
    pub fn restore(
        &self,
        train_state: &mut TrainState<'_>,
        schedule: &mut TrainSchedule,
        config: &Config,
        training_set: &Dataset,
        communicator: &Communicator,
    ) -> Result<StartPoint> {
        self.check_masks(config).with_context(|| format!("resuming from {}", self.path.display()))?;
        let restored = match &self.kind {
            Kind::Native(checkpoint) => {
                self.restore_native(checkpoint, train_state, schedule, config, training_set, communicator)
            }
            Kind::Mmdet(checkpoint) => self.restore_mmdet(checkpoint, train_state, schedule, &config.optimizer),
        };
        restored.with_context(|| format!("resuming from {}", self.path.display()))
    }

    fn check_masks(&self, config: &Config) -> Result<()> {
        let has_masks = match &self.kind {
            Kind::Native(checkpoint) => checkpoint.section(MODEL).any(|(name, _)| is_of_mask_head(name)),
            Kind::Mmdet(checkpoint) => checkpoint.state.keys().any(|name| is_of_mask_head(name)),
        };
        same_masks(has_masks, config)
    }

    fn restore_native(
        &self,
        checkpoint: &Checkpoint,
        train_state: &mut TrainState<'_>,
        schedule: &mut TrainSchedule,
        config: &Config,
        training_set: &Dataset,
        communicator: &Communicator,
    ) -> Result<StartPoint> {
        train_state.restore(checkpoint, communicator.rank())?;
        let meta = &checkpoint.meta;
        let flags = training_set.aspect_flags();
        let Continued { progress, segments, epoch_is_over, mut warnings } =
            go_on(meta, config, &flags, communicator.world_size(), schedule, &self.path)?;
        let mut notes =
            vec![format!("resumed epoch {}, iter {} from {}", progress.epoch, progress.step, self.path.display())];
        if let Some(scale) = &train_state.loss_scale {
            notes.push(format!("loss scale {}, {} updates skipped so far", scale.scale(), scale.skipped()));
        }
        warnings.extend(other_config(meta, config, &self.path));
        warnings.extend(training_set.other_validation_part(meta.state.validation_part.as_deref()));
        let window = log_window(meta).unwrap_or_else(|warning| {
            warnings.push(warning);
            None
        });
        Ok(StartPoint {
            progress,
            segments,
            epoch_is_over,
            best: meta.best.clone(),
            early_stop: meta.state.early_stop.clone(),
            precedes_evaluation: meta.state.evaluation_due,
            window,
            notes,
            warnings,
            ..StartPoint::default()
        })
    }

    fn restore_mmdet(
        &self,
        checkpoint: &MmdetCheckpoint,
        train_state: &mut TrainState<'_>,
        schedule: &TrainSchedule,
        config: &config::Optimizer,
    ) -> Result<StartPoint> {
        let (epoch, iter) = finished(checkpoint.meta.epoch, checkpoint.meta.iter)?;
        let report = train_state.restore_mmdet(checkpoint)?;
        let (progress, recounted) = schedule.adopt(epoch, iter)?;
        let summary = Summary { path: self.path.clone(), report, note: None };
        let mut notes =
            vec![format!("resumed epoch {}, iter {} with AdamW's state: {summary}", progress.epoch, progress.step)];
        notes.extend(recounted);
        let groups = checkpoint.optimizer.as_ref().map(|optimizer| optimizer.groups.as_slice()).unwrap_or_default();
        let warnings = other_settings(groups, config).into_iter().collect();
        Ok(StartPoint { progress, is_third_party: true, notes, warnings, ..StartPoint::default() })
    }
}

pub(super) fn is_of_mask_head(name: &str) -> bool {
    name.starts_with("roi_head.mask_head.")
}

/// Checks that a checkpoint's model finds masks if the config's does.
/// Errors: a data error if only one of the two has a mask head.
pub(super) fn same_masks(has_masks: bool, config: &Config) -> Result<()> {
    if has_masks == config.model.mask {
        return Ok(());
    }
    let head = if has_masks { "has a mask head" } else { "has no mask head" };
    Err(Error::data(format!(
        "the checkpoint's model {head}, but model.mask is {}: set model.mask to {has_masks} to resume, or start a new training \
         from its weights with --load-from",
        config.model.mask
    )))
}

/// The stored values for the next log line, or a warning if they cannot be read, which may happen with another version.
fn log_window(meta: &CheckpointMeta) -> Result<Option<Window>, String> {
    let Some(stored) = &meta.state.log_window else { return Ok(None) };
    serde_path_to_error::deserialize(stored).map(Some).map_err(|error| {
        format!(
            "the checkpoint's fnet.meta: state.log_window cannot be read ({error}): the next log line averages over this \
             run only"
        )
    })
}

/// A warning that names the relevant fields in which the config differs from that of the checkpoint.
fn other_config(meta: &CheckpointMeta, now: &Config, path: &Path) -> Option<String> {
    let differences = match meta.config(path).and_then(|before| Ok(before.differences(now)?)) {
        // A job whose nodes come and go changes these itself.
        Ok(all) if full_world_size().is_some() => {
            let is_own = |line: &String| line.starts_with("train.accumulate ") || line.starts_with("optimizer.lr ");
            all.into_iter().filter(|line| !is_own(line)).collect()
        }
        Ok(differences) => differences,
        Err(error) => {
            return Some(format!("the config in the checkpoint cannot be compared with this job's: {error}"));
        }
    };
    (!differences.is_empty()).then(|| {
        format!(
            "this job continues with another config than the checkpoint was written with: {}",
            differences.join(", ")
        )
    })
}

/// The finished epochs and iterations of an MMDetection checkpoint.
/// Errors: a data error if its `meta` does not contain them.
pub fn finished(epoch: Option<u64>, iter: Option<u64>) -> Result<(u64, u64)> {
    epoch.zip(iter).ok_or_else(|| {
        Error::data(
            "its meta has no epoch and iter, as MMDetection's checkpoints do; load only its weights with --load-from",
        )
    })
}

/// A warning if the file's AdamW settings differ from the config's, which are used. With `optimizer.paramwise`, MMDetection
/// writes a group for each parameter, whose rate and decay are products.
fn other_settings(groups: &[ParameterGroup], config: &config::Optimizer) -> Option<String> {
    let mut differences = Vec::new();
    for group in groups {
        let pairs = [
            ("lr", group.initial_lr.unwrap_or(config.lr), config.lr),
            ("betas[0]", group.betas.0, config.betas[0]),
            ("betas[1]", group.betas.1, config.betas[1]),
            ("eps", group.eps, config.eps),
            ("weight_decay", group.weight_decay, config.weight_decay),
        ];
        let is_product =
            |name: &str| config.paramwise != config::Paramwise::default() && ["lr", "weight_decay"].contains(&name);
        for (name, stored, current) in pairs.into_iter().filter(|(name, ..)| !is_product(name)) {
            let text = format!("optimizer.{name} = {current} ({stored})");
            if stored != current && !differences.contains(&text) {
                differences.push(text);
            }
        }
    }
    (!differences.is_empty()).then(|| {
        format!(
            "this job uses its own config where the checkpoint (in parentheses) was trained with other values: {}",
            differences.join(", ")
        )
    })
}

/// The checkpoint that a job resumes from: the given one, or the newest intact one of the folders. Reports the ones that were
/// skipped.
/// Errors: a data error if there is none. An automatic resume trains from scratch then, unless the folders have damaged
/// checkpoints: a new start would replace them.
pub fn source(resume: Option<Resume>, folders: &[PathBuf], control: &Client) -> Result<Option<PathBuf>> {
    let otherwise = match resume {
        None => return Ok(None),
        Some(Resume::From(path)) => return Ok(Some(path)),
        Some(Resume::Newest) => None,
        Some(Resume::Auto(path)) => Some(path),
    };
    let found = latest(folders)?;
    for skipped in &found.skipped {
        control.note(format!("{} is skipped: {}", skipped.path.display(), skipped.reason));
    }
    let all = || folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>();
    match (found.found, otherwise) {
        (Some((path, _)), _) => Ok(Some(path)),
        (None, Some(path)) if found.skipped.is_empty() => Ok(path),
        (None, Some(_)) => Err(Error::data(format!(
            "no checkpoint of {} is intact; move them away to train from scratch, or name another with --resume=CKPT",
            all().join(" and ")
        ))),
        (None, None) => Err(Error::data(format!(
            "{} has no checkpoint to resume from; name one with --resume=CKPT, start without --resume, or take \
             --auto-resume, which does what is possible",
            all().join(", nor ")
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unreadable_log_window_is_a_warning_that_names_the_field() {
        let mut meta = CheckpointMeta::default();
        assert_eq!(log_window(&meta), Ok(None));
        let mut stored = serde_json::to_value(Window::new(5)).unwrap();
        meta.state.log_window = Some(stored.clone());
        assert_eq!(log_window(&meta), Ok(Some(Window::new(5))));
        stored["interval"] = "many".into();
        meta.state.log_window = Some(stored);
        let warning = log_window(&meta).unwrap_err();
        assert!(warning.contains("state.log_window") && warning.contains("interval: invalid type"), "{warning}");
    }

    #[test]
    fn different_settings_are_named_with_both_values() {
        let config = config::Optimizer::default();
        let mut group = ParameterGroup {
            lr: 2e-5,
            initial_lr: Some(config.lr),
            betas: (0.9, 0.999),
            eps: 1e-8,
            weight_decay: 1e-4,
            params: vec![0],
        };
        assert_eq!(other_settings(&[group.clone()], &config), None);
        group.initial_lr = Some(0.001);
        group.weight_decay = 0.05;
        let text = other_settings(&[group.clone(), group], &config).unwrap();
        assert!(text.ends_with("optimizer.lr = 0.0002 (0.001), optimizer.weight_decay = 0.0001 (0.05)"), "{text}");
    }
}

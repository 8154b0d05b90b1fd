//! The emergency checkpoint: after an error, one rank saves the state after the last completed update.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use fnet_checkpoint::native::{self as checkpoint, file_name};
use fnet_common::{Error, Result};
use fnet_protocol::message::Phase;
use fnet_protocol::stop;

use super::saver::Saver;
use super::trainer::Trainer;

/// How long a rank waits for the launcher's choice. In practice the launcher stops it, or exits itself, much earlier.
const CHOICE_TIMEOUT: Duration = Duration::from_secs(86_400);
/// How long writing to a disk that accepts nothing is retried.
const DISK_TIMEOUT: Duration = Duration::from_secs(20);
/// How long copying the state from a GPU may take.
const DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(20);

impl Trainer<'_> {
    /// Called after `error` aborted the job on this rank. Reports the error to the launcher, and writes the state after the
    /// last completed update if the launcher chooses this rank (the one with the highest step). Without a launcher, rank 0
    /// writes.
    ///
    /// A failure to save is only logged: the job ends with `error`.
    pub fn write_emergency_checkpoint(&mut self, folders: &[PathBuf], error: &Error) {
        self.control.failed(error.failure());
        if self.updated.step > 0
            && let Err(error) = self.try_emergency_checkpoint(folders)
        {
            log::error!("the state after step {} of the job could not be saved: {error}", self.updated.step);
        }
        // A checkpoint that is still being written is valid, whatever happened to the state since.
        if let Some(saver) = &self.saver
            && let Err(error) = saver.finish(DISK_TIMEOUT, &|| self.control.made_progress())
        {
            log::error!("{error}");
        }
    }

    fn try_emergency_checkpoint(&mut self, folders: &[PathBuf]) -> Result<()> {
        self.control.at(Phase::Checkpoint, self.updated.epoch as u64 + 1, self.updated.step as u64);
        self.communicator.abort()?;
        let buffers = self.train_state.last_buffers(self.evaluation_due, Instant::now() + DOWNLOAD_TIMEOUT)?;
        self.progress = self.updated;
        let is_chosen = match self.control.is_connected() {
            true => self.control.state_ready(self.updated.step as u64, CHOICE_TIMEOUT),
            false => self.communicator.is_first() && stop::requested().is_none(),
        };
        if !is_chosen {
            return Ok(());
        }
        let progress = self.progress;
        let file = file_name(progress);
        let is_current = |path: &PathBuf| checkpoint::verify(path).is_ok_and(|meta| meta.progress == progress);
        let existing = folders.iter().map(|folder| folder.join(&file)).find(is_current);
        // A previous job may have left a file of the same name.
        if let Some(path) = existing.filter(|_| self.saved == Some(self.progress)) {
            self.control.saved(&path, progress.step as u64);
            log::info!("{} holds all completed steps", path.display());
            return Ok(());
        }
        let since = Instant::now();
        let (meta, deadline) = (self.meta(!self.is_regular())?, since + DOWNLOAD_TIMEOUT);
        let state = self.train_state.capture_alone(self.communicator.rank(), buffers, meta, deadline)?;
        // Rank 0's saver may still be writing an older checkpoint; this one replaces it.
        let mut saver = match self.saver.take() {
            Some(saver) => saver,
            None => Saver::beside_others(folders, &self.config.checkpoint, self.control)?,
        };
        saver.save(&state, since)?;
        if let Some(best) =
            self.best.as_ref().filter(|best| (best.epoch, 0) == (self.progress.epoch, self.progress.step_in_epoch))
        {
            saver.keep_best(self.progress, &best.metric);
        }
        saver.finish(DISK_TIMEOUT, &|| self.control.made_progress())?;
        self.control.note(format!(
            "rank {} saved the state after step {} of the job: no completed step is lost",
            self.communicator.rank(),
            self.progress.step
        ));
        // The launcher waits for no further message.
        self.control.flush(Duration::from_secs(2));
        Ok(())
    }
}

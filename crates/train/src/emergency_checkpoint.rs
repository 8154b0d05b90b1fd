//! What a rank does with its state when the job has broken off: nothing that was completed is lost.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use fnet_checkpoint::native::{self as checkpoint, file_name};
use fnet_common::{Error, Result};
use fnet_protocol::message::Phase;
use fnet_protocol::stop;

use super::saver::Saver;
use super::trainer::Trainer;

/// How long a rank waits for the launcher's choice: until the launcher ends it, or is gone.
const CHOICE_TIMEOUT: Duration = Duration::from_secs(86_400);
/// How long a disk that takes nothing is tried.
const DISK_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a GPU may take to give its state away.
const DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(20);

impl Trainer<'_> {
    /// After `error` has broken the job off on this rank: tells the launcher, and writes the state after the last completed
    /// update if the launcher chooses this rank (the one with the highest step). Without a launcher rank 0 writes, which
    /// speaks for the job.
    ///
    /// A failure to do so is only told, for `error` is what the job ends with.
    pub fn write_emergency_checkpoint(&mut self, folders: &[PathBuf], error: &Error) {
        self.control.failed(error.failure());
        if self.updated.step > 0
            && let Err(error) = self.try_emergency_checkpoint(folders)
        {
            log::error!("the state after step {} of the job could not be saved: {error}", self.updated.step);
        }
        // A checkpoint that is still being written is sound, whatever has become of the state since.
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
        let is_it = |path: &PathBuf| checkpoint::verify(path).is_ok_and(|meta| meta.progress == progress);
        let there = folders.iter().map(|folder| folder.join(&file)).find(is_it);
        // A former job may have left one of the same name.
        if let Some(path) = there.filter(|_| self.saved == Some(self.progress)) {
            self.control.saved(&path, progress.step as u64);
            log::info!("{} holds all completed steps", path.display());
            return Ok(());
        }
        let since = Instant::now();
        let (meta, deadline) = (self.meta(!self.is_regular())?, since + DOWNLOAD_TIMEOUT);
        let state = self.train_state.capture_alone(self.communicator.rank(), buffers, meta, deadline)?;
        // Rank 0's own saver may still be at an older checkpoint, which gives way to this one.
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
        // Nothing is left to say that the launcher waits for.
        self.control.flush(Duration::from_secs(2));
        Ok(())
    }
}

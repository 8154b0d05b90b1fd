//! The log per rank, written by a thread of its own: a full or slow disk must not stop the supervision.

use std::fs::File;
use std::io::Write;
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

/// Pieces of output that may wait for the disk, each up to 64 KiB.
const QUEUE: usize = 1024;

enum Task {
    Write(Arc<File>, Vec<u8>),
    /// Answers once everything before is written.
    Flush(SyncSender<()>),
}

// One process has one writer, so that any number of workers costs one thread.
static WRITER: OnceLock<Option<SyncSender<Task>>> = OnceLock::new();

fn writer() -> Option<&'static SyncSender<Task>> {
    let start = || {
        let (sender, tasks) = mpsc::sync_channel(QUEUE);
        thread::Builder::new().name("logs".into()).spawn(move || write_all(&tasks)).ok().map(|_| sender)
    };
    WRITER.get_or_init(start).as_ref()
}

fn write_all(tasks: &Receiver<Task>) {
    for task in tasks {
        match task {
            // A full disk must not end the job on account of a log; the checkpoint will say so.
            Task::Write(file, bytes) => {
                let _ = (&*file).write_all(&bytes);
            }
            Task::Flush(done) => {
                let _ = done.try_send(());
            }
        }
    }
}

/// One stream's way into its file.
pub struct Log {
    file: Arc<File>,
    /// Bytes that found no room, since the last that did.
    left_out: usize,
}

impl Log {
    /// A log that is open for appending.
    pub fn new(file: File) -> Self {
        Self { file: Arc::new(file), left_out: 0 }
    }

    /// Hands lines to the writer. If the disk is too slow for so much output, they are left out, and the log says so.
    pub fn write(&mut self, lines: &[u8]) {
        let mut bytes = Vec::with_capacity(lines.len());
        if self.left_out > 0 {
            bytes.extend(format!("=== {} bytes were left out: the disk was too slow\n", self.left_out).into_bytes());
        }
        bytes.extend_from_slice(lines);
        match writer() {
            Some(writer) => match writer.try_send(Task::Write(Arc::clone(&self.file), bytes)) {
                Ok(()) => self.left_out = 0,
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => self.left_out += lines.len(),
            },
            // The system had no thread for it; to write here could block.
            None => self.left_out += lines.len(),
        }
    }
}

/// Waits until everything that was handed over is written, but not longer than `patience`.
pub fn flush(patience: Duration) {
    let Some(Some(writer)) = WRITER.get() else { return };
    let deadline = Instant::now() + patience;
    let (done, answer) = mpsc::sync_channel(1);
    let mut task = Task::Flush(done);
    while let Err(TrySendError::Full(back)) = writer.try_send(task) {
        if Instant::now() >= deadline {
            return;
        }
        task = back;
        thread::sleep(Duration::from_millis(10));
    }
    let _ = answer.recv_timeout(deadline.saturating_duration_since(Instant::now()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_waits_for_all_that_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = Log::new(File::create(&path).unwrap());
        for number in 0..500 {
            log.write(format!("line {number}\n").as_bytes());
        }
        flush(Duration::from_secs(30));
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 500);
    }

    #[test]
    fn lines_without_room_are_counted_and_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = Log { file: Arc::new(File::create(&path).unwrap()), left_out: 7 };
        log.write(b"next\n");
        flush(Duration::from_secs(30));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "=== 7 bytes were left out: the disk was too slow\nnext\n");
    }
}

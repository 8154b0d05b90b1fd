//! The logs, one per rank, written by a separate thread: a full or slow disk must not block the supervision.

use std::fs::File;
use std::io::Write;
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

/// Capacity of the queue in pieces of up to 64 KiB.
const QUEUE: usize = 1024;

enum Task {
    Write(Arc<File>, Vec<u8>),
    /// Replies once everything before is written.
    Flush(SyncSender<()>),
}

// One thread for any number of workers.
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
            // A full disk must not end the job because of a log; writing a checkpoint will report it.
            Task::Write(file, bytes) => {
                let _ = (&*file).write_all(&bytes);
            }
            Task::Flush(done) => {
                let _ = done.try_send(());
            }
        }
    }
}

/// The log of one stream.
pub struct Log {
    file: Arc<File>,
    /// Bytes dropped since the last write.
    dropped: usize,
}

impl Log {
    /// Writes to a file that is open for appending.
    pub fn new(file: File) -> Self {
        Self { file: Arc::new(file), dropped: 0 }
    }

    /// Queues lines. If the disk is too slow, they are dropped, and the log notes that.
    pub fn write(&mut self, lines: &[u8]) {
        let mut bytes = Vec::with_capacity(lines.len());
        if self.dropped > 0 {
            bytes.extend(format!("=== {} bytes were dropped: the disk was too slow\n", self.dropped).into_bytes());
        }
        bytes.extend_from_slice(lines);
        match writer() {
            Some(writer) => match writer.try_send(Task::Write(Arc::clone(&self.file), bytes)) {
                Ok(()) => self.dropped = 0,
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => self.dropped += lines.len(),
            },
            // The thread could not be started, and writing here could block.
            None => self.dropped += lines.len(),
        }
    }
}

/// Waits until everything is written, at most `timeout`.
pub fn flush(timeout: Duration) {
    let Some(Some(writer)) = WRITER.get() else { return };
    let deadline = Instant::now() + timeout;
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
    fn a_flush_waits_for_all_writes() {
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
    fn dropped_lines_are_counted_and_noted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = Log { file: Arc::new(File::create(&path).unwrap()), dropped: 7 };
        log.write(b"next\n");
        flush(Duration::from_secs(30));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "=== 7 bytes were dropped: the disk was too slow\nnext\n");
    }
}

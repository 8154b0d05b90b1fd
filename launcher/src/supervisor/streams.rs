//! Reads the output of workers: whole lines go to the log of the rank, to the user, and into memory for a report.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use fnet_protocol::message::{self, FromWorker};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};

use super::logs::Log;

/// Number of stderr lines in a report.
pub const TAIL: usize = 20;
/// Longer lines are split.
const MAX_LINE: usize = 1 << 20;

/// The last lines of a stream.
pub type Tail = Rc<RefCell<VecDeque<String>>>;

/// Copies whole lines of a stream to its log and to `show`, until its end.
pub async fn copy(stream: impl AsyncRead + Unpin, mut log: Log, tail: Option<Tail>, mut show: impl FnMut(&[u8])) {
    let mut stream = stream;
    let mut buffer: Vec<u8> = Vec::with_capacity(1 << 16);
    loop {
        let read = stream.read_buf(&mut buffer).await;
        let ended = !matches!(read, Ok(count) if count > 0);
        if ended && !buffer.is_empty() && !buffer.ends_with(b"\n") {
            buffer.push(b'\n');
        }
        let whole = match buffer.iter().rposition(|&byte| byte == b'\n') {
            Some(last) => last + 1,
            None if buffer.len() >= MAX_LINE => buffer.len(),
            None => 0,
        };
        if whole > 0 {
            log.write(&buffer[..whole]);
            if let Some(tail) = &tail {
                keep(&mut tail.borrow_mut(), &buffer[..whole]);
            }
            show(&buffer[..whole]);
            buffer.drain(..whole);
        }
        if ended {
            return;
        }
    }
}

fn keep(tail: &mut VecDeque<String>, lines: &[u8]) {
    let text = String::from_utf8_lossy(lines);
    // Only the last lines of a flood are needed.
    let last: Vec<&str> = text.lines().rev().take(TAIL).collect();
    for line in last.into_iter().rev() {
        if tail.len() == TAIL {
            tail.pop_front();
        }
        tail.push_back(line.to_owned());
    }
}

/// Delivers the messages of a worker until it closes the channel. Other lines are skipped.
pub async fn messages(stream: impl AsyncRead + Unpin, mut deliver: impl AsyncFnMut(FromWorker)) {
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        let limit = u64::try_from(MAX_LINE).unwrap_or(u64::MAX);
        match (&mut reader).take(limit).read_until(b'\n', &mut line).await {
            Ok(count) if count > 0 => {
                if let Ok(message) = message::from_line(&line) {
                    deliver(message).await;
                }
            }
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    fn on_one_thread<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
    }

    #[test]
    fn lines_arrive_whole_and_the_last_ones_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let tail = Tail::default();
        let mut shown = Vec::new();
        on_one_thread(async {
            let (mut ours, theirs) = tokio::io::duplex(64);
            let write = async move {
                for number in 0..100 {
                    ours.write_all(format!("line {number}").as_bytes()).await.unwrap();
                    ours.write_all(if number == 99 { b"" } else { b"\n" }).await.unwrap();
                }
            };
            let log = Log::new(std::fs::File::create(&path).unwrap());
            let read = copy(theirs, log, Some(Rc::clone(&tail)), |lines| {
                assert!(lines.ends_with(b"\n"));
                shown.extend_from_slice(lines);
            });
            tokio::join!(write, read);
        });
        super::super::logs::flush(std::time::Duration::from_secs(30));
        assert_eq!(std::fs::read(&path).unwrap(), shown);
        assert_eq!(shown.iter().filter(|&&byte| byte == b'\n').count(), 100);
        let tail = tail.borrow();
        assert_eq!((tail.len(), tail[0].as_str(), tail[19].as_str()), (TAIL, "line 80", "line 99"));
    }

    #[test]
    fn lines_without_a_message_are_skipped() {
        let mut received = Vec::new();
        on_one_thread(messages(
            &b"garbage\n{\"type\":\"done\"}\n{\"type\":\"note\",\"text\":\"a\"}\n{\"ty"[..],
            async |message| {
                received.push(message);
            },
        ));
        assert_eq!(received, [FromWorker::Done, FromWorker::Note { text: "a".into() }]);
    }
}

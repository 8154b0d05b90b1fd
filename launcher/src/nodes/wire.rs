//! Messages over a connection between launchers.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use fnet_protocol::message;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::mpsc;

use super::message::MAX_LINE;

/// Time for the other side to read the remaining messages.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Reads lines from a connection.
pub struct Reader<R> {
    stream: BufReader<R>,
    line: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// Reads from `stream`.
    pub fn new(stream: R) -> Self {
        Self { stream: BufReader::new(stream), line: Vec::new() }
    }

    /// The next line; `None` at the end of the connection. Cancel safe.
    pub async fn line(&mut self) -> io::Result<Option<Vec<u8>>> {
        let room = MAX_LINE.saturating_sub(self.line.len()) as u64;
        let read = (&mut self.stream).take(room).read_until(b'\n', &mut self.line).await?;
        if self.line.ends_with(b"\n") || (read == 0 && self.line.len() < MAX_LINE) {
            let line = std::mem::take(&mut self.line);
            return Ok((!line.is_empty()).then_some(line));
        }
        if self.line.len() >= MAX_LINE {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a line is too long"));
        }
        // The connection ended within a line.
        Ok(Some(std::mem::take(&mut self.line)))
    }

    /// The next message; other lines are skipped. `None` at the end of the connection.
    pub async fn message<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        while let Some(line) = self.line().await? {
            if let Ok(message) = message::from_line(&line) {
                return Ok(Some(message));
            }
        }
        Ok(None)
    }
}

/// Writes one message.
pub async fn write<T: Serialize>(stream: &mut (impl AsyncWrite + Unpin), message: &T) -> io::Result<()> {
    let line = message::to_line(message)?;
    stream.write_all(&line).await
}

/// Writes messages until all senders are dropped, then closes the connection. Messages that the other side does not read in
/// time are lost.
pub async fn write_all<T: Serialize>(mut stream: impl AsyncWrite + Unpin, mut messages: mpsc::Receiver<T>) {
    while let Some(message) = messages.recv().await {
        let writing = write(&mut stream, &message);
        tokio::pin!(writing);
        let written = tokio::select! {
            written = &mut writing => written,
            // All senders are gone, and the other side does not read.
            () = closed_for(&messages, FLUSH_TIMEOUT) => return,
        };
        if written.is_err() {
            return;
        }
    }
    let _ = stream.shutdown().await;
}

/// Returns some time after all senders are dropped.
async fn closed_for<T>(messages: &mpsc::Receiver<T>, time: Duration) {
    while !messages.is_closed() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::time::sleep(time).await;
}

/// The host of an address in the usual notation, with the scope of a link-local address.
pub fn host(address: SocketAddr) -> String {
    match address {
        SocketAddr::V6(v6) if v6.ip().to_ipv4_mapped().is_none() && v6.scope_id() != 0 => {
            format!("{}%{}", v6.ip(), v6.scope_id())
        }
        other => other.ip().to_canonical().to_string(),
    }
}

/// The text for a broken connection.
pub fn broken(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => ENDED.to_owned(),
        _ => format!("the connection broke: {error}"),
    }
}

/// The text for the end of a connection.
pub const ENDED: &str = "its launcher ended unexpectedly";

#[cfg(test)]
mod tests {
    use super::*;

    fn on_one_thread<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
    }

    #[test]
    fn lines_without_a_message_are_skipped_and_endless_ones_refused() {
        on_one_thread(async {
            let mut reader = Reader::new(&b"garbage\n\x00\xff\n{\"a\":1}\n[2]"[..]);
            assert_eq!(reader.message::<serde_json::Value>().await.unwrap(), Some(serde_json::json!({ "a": 1 })));
            assert_eq!(reader.message::<serde_json::Value>().await.unwrap(), Some(serde_json::json!([2])));
            assert_eq!(reader.message::<serde_json::Value>().await.unwrap(), None);
            let endless = vec![b'x'; MAX_LINE + 7];
            let mut reader = Reader::new(&endless[..]);
            assert_eq!(reader.message::<serde_json::Value>().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        });
    }

    #[test]
    fn a_cancelled_read_loses_nothing() {
        on_one_thread(async {
            let (mut ours, theirs) = tokio::io::duplex(64);
            let mut reader = Reader::new(theirs);
            ours.write_all(b"{\"a\":").await.unwrap();
            assert!(tokio::time::timeout(Duration::from_millis(20), reader.line()).await.is_err());
            ours.write_all(b"1}\n").await.unwrap();
            assert_eq!(reader.line().await.unwrap().unwrap(), b"{\"a\":1}\n");
        });
    }

    #[test]
    fn queued_messages_are_written_before_the_end() {
        on_one_thread(async {
            let (ours, theirs) = tokio::io::duplex(64);
            let (sender, receiver) = mpsc::channel(50);
            for number in 0..50 {
                sender.try_send(number).unwrap();
            }
            drop(sender);
            let mut reader = Reader::new(theirs);
            let read = async {
                let mut all = Vec::new();
                while let Some(number) = reader.message::<i32>().await.unwrap() {
                    all.push(number);
                }
                all
            };
            let (read, ()) = tokio::join!(read, write_all(ours, receiver));
            assert_eq!(read, (0..50).collect::<Vec<_>>());
        });
    }

    #[test]
    fn hosts_are_in_the_usual_notation() {
        for (address, expected) in [
            ("10.0.0.1:1", "10.0.0.1"),
            ("[::ffff:10.0.0.1]:1", "10.0.0.1"),
            ("[fd00::1]:1", "fd00::1"),
            ("[fe80::1%3]:1", "fe80::1%3"),
        ] {
            assert_eq!(host(address.parse().unwrap()), expected);
        }
    }
}

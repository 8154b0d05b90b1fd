//! Messages over a connection between launchers.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use fnet_protocol::message;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::mpsc;

use super::key::{Key, OVERHEAD};
use super::message::MAX_LINE;

/// Time for the other side to read the remaining messages.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Reads lines from a connection.
pub struct Reader<R> {
    stream: BufReader<R>,
    line: Vec<u8>,
    /// Maximum length of a line.
    max: usize,
    key: Option<Key>,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// Reads lines of up to `max` bytes from `stream`.
    pub fn new(stream: R, max: usize) -> Self {
        Self { stream: BufReader::new(stream), line: Vec::new(), max, key: None }
    }

    /// Expects all further lines to be authenticated, and lets them be as long as messages are.
    pub fn authenticate(&mut self, key: Key) {
        (self.key, self.max) = (Some(key), MAX_LINE + OVERHEAD);
    }

    /// What follows the last line, as it is.
    pub fn stream(&mut self) -> &mut BufReader<R> {
        &mut self.stream
    }

    /// The next line; `None` at the end of the connection. Cancel safe.
    /// Errors: the connection broke, the line is too long, or is not authentic.
    pub async fn line(&mut self) -> io::Result<Option<Vec<u8>>> {
        let line = self.any_line().await?;
        let (Some(key), Some(line)) = (&mut self.key, &line) else { return Ok(line) };
        if !line.ends_with(b"\n") {
            return Ok(None);
        }
        let text = key.open(line).map(<[u8]>::to_vec);
        let forged = || io::Error::new(io::ErrorKind::InvalidData, "a message is forged, altered or repeated");
        text.ok_or_else(forged).map(Some)
    }

    async fn any_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        let room = self.max.saturating_sub(self.line.len()) as u64;
        let read = (&mut self.stream).take(room).read_until(b'\n', &mut self.line).await?;
        if self.line.ends_with(b"\n") || (read == 0 && self.line.len() < self.max) {
            let line = std::mem::take(&mut self.line);
            return Ok((!line.is_empty()).then_some(line));
        }
        if self.line.len() >= self.max {
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

/// Writes lines to a connection.
pub struct Writer<W> {
    stream: W,
    key: Option<Key>,
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    /// Writes to `stream`.
    pub fn new(stream: W) -> Self {
        Self { stream, key: None }
    }

    /// Authenticates all further messages.
    pub fn authenticate(&mut self, key: Key) {
        self.key = Some(key);
    }

    /// Writes one message.
    pub async fn write<T: Serialize>(&mut self, message: &T) -> io::Result<()> {
        let line = message::to_line(message)?;
        let line = match &mut self.key {
            Some(key) => key.seal(&line),
            None => line,
        };
        self.raw(&line).await
    }

    /// Where the lines go.
    pub fn stream(&mut self) -> &mut W {
        &mut self.stream
    }

    /// Writes bytes as they are.
    pub async fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }
}

/// Writes messages until all senders are dropped, then closes the connection. Messages that the other side does not read in
/// time are lost.
pub async fn write_all<T: Serialize>(mut writer: Writer<impl AsyncWrite + Unpin>, mut messages: mpsc::Receiver<T>) {
    while let Some(message) = messages.recv().await {
        let writing = writer.write(&message);
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
    let _ = writer.stream.shutdown().await;
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
            let mut reader = Reader::new(&b"garbage\n\x00\xff\n{\"a\":1}\n[2]"[..], MAX_LINE);
            assert_eq!(reader.message::<serde_json::Value>().await.unwrap(), Some(serde_json::json!({ "a": 1 })));
            assert_eq!(reader.message::<serde_json::Value>().await.unwrap(), Some(serde_json::json!([2])));
            assert_eq!(reader.message::<serde_json::Value>().await.unwrap(), None);
            let endless = vec![b'x'; MAX_LINE + 7];
            let mut reader = Reader::new(&endless[..], MAX_LINE);
            assert_eq!(reader.message::<serde_json::Value>().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        });
    }

    #[test]
    fn a_cancelled_read_loses_nothing() {
        on_one_thread(async {
            let (mut ours, theirs) = tokio::io::duplex(64);
            let mut reader = Reader::new(theirs, MAX_LINE);
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
            let mut reader = Reader::new(theirs, MAX_LINE);
            let read = async {
                let mut all = Vec::new();
                while let Some(number) = reader.message::<i32>().await.unwrap() {
                    all.push(number);
                }
                all
            };
            let (read, ()) = tokio::join!(read, write_all(Writer::new(ours), receiver));
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

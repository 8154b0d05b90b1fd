//! How both sides of a connection prove that they know the secret of the job, before anything else is sent.
//!
//! Each side sends a fresh nonce. Both nonces, the version of the messages and the direction make the key of each direction,
//! by an HMAC with the secret. From then on, every line begins with an HMAC of its number in its direction and its text, so
//! that none can be forged, altered, left out, repeated, sent back, or taken from another connection. The node proves first;
//! whoever reaches the port of node 0 learns nothing without the secret. Nothing is encrypted.

use std::io;

use hmac::Mac;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

use super::key::{DIGITS, Key, bytes, hex};
use super::message::PROTOCOL;
use super::wire::{Reader, Writer};
use crate::plan::secret::Secret;

/// What the keys are for; the last word is the version of this exchange.
const PURPOSE: &[u8] = b"fnet launchers 1";
/// A line that only says that its sender knows the secret.
const PROOF: &[u8] = b"{}\n";

/// The lines of this exchange that are not authenticated.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Opening {
    /// The first line of a side that has a secret.
    Challenge { protocol: u32, nonce: String },
    /// Node 0 has another secret.
    Denied,
}

/// The side of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Node 0.
    Coordinator,
    /// Another node.
    Node,
}

/// Why the other side is not let in.
#[derive(Debug)]
pub enum Denial {
    /// The secrets differ.
    OtherSecret,
    /// Another version of these messages.
    Protocol(u32),
    /// It sent this line instead.
    Stranger(Vec<u8>),
    /// It closed the connection.
    Closed,
    /// The connection broke.
    Io(io::Error),
}

impl From<io::Error> for Denial {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// The keys of the lines that this side writes and of those that it reads, given the nonces of both sides.
pub fn keys(secret: &Secret, side: Side, ours: &str, theirs: &str) -> (Key, Key) {
    let is_node = side == Side::Node;
    let (of_coordinator, of_node) = if is_node { (theirs, ours) } else { (ours, theirs) };
    let key = |from_node: bool| {
        let mac = Key::new(secret.key()).mac.chain_update(PURPOSE).chain_update(PROTOCOL.to_be_bytes());
        let mac = mac.chain_update([u8::from(from_node)]).chain_update(of_coordinator).chain_update(of_node);
        Key::new(&mac.finalize().into_bytes().into())
    };
    (key(is_node), key(!is_node))
}

/// Proves to the other side that this one knows the secret, and has it prove the same. All further lines are authenticated.
pub async fn exchange<R, W>(
    secret: &Secret,
    side: Side,
    reader: &mut Reader<R>,
    writer: &mut Writer<W>,
) -> Result<(), Denial>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let ours = random()?;
    writer.write(&Opening::Challenge { protocol: PROTOCOL, nonce: ours.clone() }).await?;
    let first = reader.line().await?.ok_or(Denial::Closed)?;
    let theirs = match serde_json::from_slice(&first) {
        Ok(Opening::Challenge { protocol: PROTOCOL, nonce }) if bytes(nonce.as_bytes()).is_some() => nonce,
        Ok(Opening::Challenge { protocol, .. }) => return Err(Denial::Protocol(protocol)),
        _ => return Err(Denial::Stranger(first)),
    };
    let (mut write, mut read) = keys(secret, side, &ours, &theirs);
    if side == Side::Node {
        writer.raw(&write.seal(PROOF)).await?;
    }
    let proof = reader.line().await?.ok_or(Denial::Closed)?;
    if read.open(&proof) != Some(PROOF) {
        if side == Side::Coordinator {
            writer.write(&Opening::Denied).await?;
        }
        return Err(Denial::OtherSecret);
    }
    if side == Side::Coordinator {
        writer.raw(&write.seal(PROOF)).await?;
    }
    reader.authenticate(read);
    writer.authenticate(write);
    Ok(())
}

/// Whether a line is the first one of a side that has a secret.
pub fn is_challenge(line: &[u8]) -> bool {
    matches!(serde_json::from_slice(line), Ok(Opening::Challenge { .. }))
}

/// 32 random bytes in hexadecimal digits.
pub fn random() -> io::Result<String> {
    let mut bytes = [0; DIGITS / 2];
    getrandom::fill(&mut bytes).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(hex(&bytes))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, DuplexStream, ReadHalf, WriteHalf, duplex, split};

    use super::super::message::MAX_LINE;
    use super::*;

    type Lines = (Reader<ReadHalf<DuplexStream>>, Writer<WriteHalf<DuplexStream>>);

    fn secret(text: &str) -> Secret {
        Secret::of(&text.repeat(16)).unwrap()
    }

    fn lines(stream: DuplexStream) -> Lines {
        let (reading, writing) = split(stream);
        (Reader::new(reading, MAX_LINE), Writer::new(writing))
    }

    fn on_one_thread<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
    }

    /// Node 0 and another node, with these secrets.
    async fn meet(first: &str, second: &str) -> [(Result<(), Denial>, Lines); 2] {
        let (a, b) = duplex(4096);
        let (mut a, mut b) = (lines(a), lines(b));
        let (first, second) = (secret(first), secret(second));
        let (one, two) = tokio::join!(
            exchange(&first, Side::Coordinator, &mut a.0, &mut a.1),
            exchange(&second, Side::Node, &mut b.0, &mut b.1)
        );
        [(one, a), (two, b)]
    }

    #[test]
    fn only_the_next_line_of_the_other_side_of_this_connection_is_accepted() {
        let (ours, theirs) = ("1".repeat(DIGITS), "2".repeat(DIGITS));
        let node = || keys(&secret("a"), Side::Node, &ours, &theirs);
        let coordinator = || keys(&secret("a"), Side::Coordinator, &theirs, &ours).1;
        let (mut write, mut own) = node();
        let sealed: Vec<Vec<u8>> = [b"{}\n".as_slice(), b"{}\n", b"[1]\n"].map(|line| write.seal(line)).into();
        let mut read = coordinator();
        for (line, text) in sealed.iter().zip(["{}\n", "{}\n", "[1]\n"]) {
            assert_eq!(read.open(line), Some(text.as_bytes()));
        }
        // Another order, repeated, left out, altered anywhere, sent back, of another connection, of another secret.
        assert_eq!(coordinator().open(&sealed[1]), None);
        let mut read = coordinator();
        assert!(read.open(&sealed[0]).is_some() && read.open(&sealed[0]).is_none());
        for position in 0..sealed[0].len() {
            for bit in 0..8 {
                let mut altered = sealed[0].clone();
                altered[position] ^= 1 << bit;
                let is_case = position < DIGITS && altered[position].eq_ignore_ascii_case(&sealed[0][position]);
                assert_eq!(coordinator().open(&altered).is_some(), is_case, "{position} {bit}");
            }
            assert_eq!(coordinator().open(&sealed[0][..position]), None);
        }
        assert_eq!(own.open(&sealed[0]), None);
        for mut other in [
            keys(&secret("a"), Side::Coordinator, &"3".repeat(DIGITS), &ours).1,
            keys(&secret("a"), Side::Coordinator, &theirs, &"3".repeat(DIGITS)).1,
            keys(&secret("b"), Side::Coordinator, &theirs, &ours).1,
        ] {
            assert_eq!(other.open(&sealed[0]), None);
        }
    }

    #[test]
    fn both_sides_prove_the_secret_and_all_that_follows_is_authenticated() {
        on_one_thread(async {
            let [(one, mut a), (two, mut b)] = meet("a", "a").await;
            assert!(one.is_ok() && two.is_ok());
            for number in 0..3 {
                a.1.write(&number).await.unwrap();
                b.1.write(&(number + 10)).await.unwrap();
                assert_eq!(b.0.message::<i32>().await.unwrap(), Some(number));
                assert_eq!(a.0.message::<i32>().await.unwrap(), Some(number + 10));
            }
            a.1.raw(b"7\n").await.unwrap();
            let error = b.0.message::<i32>().await.unwrap_err();
            assert!(error.to_string().contains("forged"), "{error}");
            for [first, second] in [["a", "b"], ["b", "a"]] {
                let [(one, _), (two, _)] = meet(first, second).await;
                assert!(matches!((one, two), (Err(Denial::OtherSecret), Err(Denial::OtherSecret))));
            }
        });
    }

    #[test]
    fn whoever_does_not_know_the_secret_is_told_nothing_but_a_nonce() {
        let challenge =
            format!("{{\"type\":\"challenge\",\"protocol\":{PROTOCOL},\"nonce\":\"{}\"}}\n", "7".repeat(DIGITS));
        let other = challenge.replace(&format!(":{PROTOCOL},"), ":99,");
        for (says, expected) in [
            ("GET / HTTP/1.1\r\n".to_owned(), "Stranger"),
            (String::new(), "Closed"),
            (challenge.clone(), "Closed"),
            (challenge.replace('7', "x"), "Protocol"),
            (other, "Protocol(99)"),
            (challenge.clone() + "{}\n", "OtherSecret"),
            (challenge.clone() + &"0".repeat(DIGITS) + " {}\n", "OtherSecret"),
        ] {
            on_one_thread(async {
                let (ours, mut theirs) = duplex(4096);
                let mut ours = lines(ours);
                tokio::io::AsyncWriteExt::write_all(&mut theirs, says.as_bytes()).await.unwrap();
                tokio::io::AsyncWriteExt::shutdown(&mut theirs).await.unwrap();
                let denial = exchange(&secret("a"), Side::Coordinator, &mut ours.0, &mut ours.1).await.unwrap_err();
                assert!(format!("{denial:?}").starts_with(expected), "{says:?}: {denial:?}");
                drop(ours);
                let mut told = String::new();
                theirs.read_to_string(&mut told).await.unwrap();
                let (nonce, rest) = told.split_once('\n').unwrap();
                assert!(nonce.len() < 120 && matches!(rest, "" | "{\"type\":\"denied\"}\n"), "{told}");
            });
        }
    }
}

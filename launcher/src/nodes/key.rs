//! The keys of a connection between launchers, which authenticate its lines.

use hmac::{Hmac, Mac};
use sha2::Sha256;

/// Length of a nonce and of an HMAC in hexadecimal digits.
pub const DIGITS: usize = 64;
/// Bytes that an authenticated line has before its text.
pub const OVERHEAD: usize = DIGITS + 1;

/// The key of one direction of a connection.
pub struct Key {
    pub(super) mac: Hmac<Sha256>,
    /// Number of the next line.
    next: u64,
}

impl Key {
    /// Authenticates lines with these bytes.
    pub fn new(key: &[u8; 32]) -> Self {
        // A shorter key is padded with zeros by definition.
        let mut block = [0; 64];
        block[..32].copy_from_slice(key);
        Self { mac: <Hmac<Sha256> as Mac>::new(&block.into()), next: 0 }
    }

    fn mac(&mut self, text: &[u8]) -> Hmac<Sha256> {
        let mac = self.mac.clone().chain_update(self.next.to_be_bytes()).chain_update(text);
        self.next += 1;
        mac
    }

    /// The authenticated form of the next line, which ends with a line break as this one does.
    pub fn seal(&mut self, line: &[u8]) -> Vec<u8> {
        let tag = self.mac(line).finalize().into_bytes();
        [hex(&tag).as_bytes(), b" ", line].concat()
    }

    /// The text of the next line, if it is authentic.
    pub fn open<'a>(&mut self, line: &'a [u8]) -> Option<&'a [u8]> {
        let (tag, text) = line.split_at_checked(DIGITS)?;
        let text = text.strip_prefix(b" ")?;
        self.mac(text).verify_slice(&bytes(tag)?).ok()?;
        Some(text)
    }
}

/// In hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of [`DIGITS`] hexadecimal digits.
pub fn bytes(digits: &[u8]) -> Option<[u8; DIGITS / 2]> {
    let mut bytes = [0; DIGITS / 2];
    if digits.len() != DIGITS || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

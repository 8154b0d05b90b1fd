//! The secret of a job on several nodes, from FNET_JOB_SECRET or a file.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use fnet_protocol::cli::LaunchOptions;
use fnet_protocol::env;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// Minimum length in characters: a shorter one can be guessed from a recorded connection.
const MIN_LENGTH: usize = 16;
/// Maximum size of the file in bytes.
const MAX_SIZE: u64 = 4096;
/// What to do if the nodes have different ones.
pub const SAME_REMEDY: &str = "give all nodes the same (FNET_JOB_SECRET or --secret-file)";
/// How to make one.
const REMEDY: &str = "make one with `openssl rand -hex 32` and give it to all nodes";

/// What all launchers of a job know, and nobody else.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 32]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    /// The secret of `--secret-file`, else that of the environment, if there is one.
    /// Errors: it is too short, or others can read the file (exit code 2).
    pub fn find(options: &LaunchOptions, lookup: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        if let Some(path) = &options.secret_file {
            let wrong = |what: String| Error::usage(format!("--secret-file {}: {what}", path.display()));
            let text = read(path).map_err(wrong)?;
            return Self::of(&text).map(Some).map_err(wrong);
        }
        let Some(text) = lookup(env::JOB_SECRET) else { return Ok(None) };
        Self::of(&text).map(Some).map_err(|what| Error::usage(format!("{}: {what}", env::JOB_SECRET)))
    }

    /// The secret of a text, or what is wrong with it.
    pub fn of(text: &str) -> Result<Self, String> {
        match text.trim() {
            "" => Err(format!("the secret is empty: {REMEDY}, or remove it to run without one")),
            text if text.len() < MIN_LENGTH => {
                Err(format!("the secret has only {} characters, expected {MIN_LENGTH} or more: {REMEDY}", text.len()))
            }
            text => Ok(Self(Sha256::digest(text).into())),
        }
    }

    /// A key that only those have who know the secret.
    pub fn key(&self) -> &[u8; 32] {
        &self.0
    }
}

/// The text of a file that nobody else can read.
fn read(path: &Path) -> Result<String, String> {
    let mut file = File::open(path).map_err(|error| error.to_string())?;
    let metadata = file.metadata().map_err(|error| error.to_string())?;
    let (mode, us) = (metadata.mode() & 0o7777, rustix::process::geteuid().as_raw());
    if !metadata.is_file() || metadata.len() > MAX_SIZE {
        return Err(format!("expected a file of {MAX_SIZE} bytes at most with one line, the secret"));
    }
    if metadata.uid() != us {
        return Err(format!(
            "it belongs to user {}, and this program runs as user {us}: copy it to a file of your own with mode 0600",
            metadata.uid()
        ));
    }
    if mode & 0o077 != 0 {
        return Err(format!("its mode is {mode:04o}, so others may read it: chmod 600 {}", path.display()));
    }
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(|error| error.to_string())?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use fnet_protocol::cli::Launch;

    use super::*;

    const TEXT: &str = "0123456789abcdef";

    fn find(flags: &str, variable: Option<&str>) -> Result<Option<Secret>> {
        let line = format!("fnet-launch {flags} train cfg.toml");
        let options = Launch::from_arguments(line.split_whitespace().map(OsString::from)).unwrap().options;
        Secret::find(&options, |name| variable.filter(|_| name == env::JOB_SECRET).map(str::to_owned))
    }

    #[test]
    fn a_secret_is_long_and_its_file_is_for_its_owner_only() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let flags = format!("--secret-file {}", file.path().display());
        for (mode, text, expected) in [
            (0o600, &*format!("{TEXT}\n"), None),
            (0o400, TEXT, None),
            (0o640, TEXT, Some("its mode is 0640, so others may read it: chmod 600 /")),
            (0o604, TEXT, Some("its mode is 0604")),
            (0o600, "short", Some("has only 5 characters, expected 16 or more: make one with `openssl rand -hex 32`")),
            (0o600, "\n", Some("is empty")),
            (0o600, &"x".repeat(5000), Some("expected a file of 4096 bytes at most")),
        ] {
            fs::set_permissions(file.path(), Permissions::from_mode(0o600)).unwrap();
            fs::write(file.path(), text).unwrap();
            fs::set_permissions(file.path(), Permissions::from_mode(mode)).unwrap();
            // The file takes precedence.
            let found = find(&flags, Some("x"));
            match expected {
                None => assert_eq!(found, find("", Some(TEXT))),
                Some(expected) => {
                    let error = found.unwrap_err();
                    assert_eq!(error.code, fnet_protocol::exit::USAGE);
                    assert!(error.message().contains(expected), "{error}");
                }
            }
        }
        assert!(find("--secret-file /no/such", None).unwrap_err().message().contains("No such file"));
        assert!(find("--secret-file /dev/null", None).unwrap_err().message().contains("expected a file"));
        assert_eq!(find("", None), Ok(None));
        // A generator that failed must not turn authentication off.
        let empty = find("", Some("")).unwrap_err();
        assert!(empty.message().starts_with("FNET_JOB_SECRET: the secret is empty"), "{empty}");
        let known = find("", Some(TEXT)).unwrap();
        assert_eq!(format!("{known:?}"), "Some(Secret)");
    }
}

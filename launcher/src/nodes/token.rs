//! Whether all nodes of a training see the same work folder: node 0 writes a file to it, which the others must find.

use std::path::{Path, PathBuf};
use std::time::Duration;

use fnet_protocol::work_dir::{TEMPORARY, Writer, temporary_prefix};

use crate::error::{Doing, Error, Result};

/// Time for a file to be seen by other nodes; network file systems may be slow to show it.
const VISIBLE_TIMEOUT: Duration = Duration::from_secs(5);

/// The file of node 0, until this is dropped. Its name is one of those that are removed if the launcher is killed.
pub struct Token(tempfile::NamedTempFile);

impl Token {
    /// Writes the file to an existing folder.
    /// Errors: the folder takes no file.
    pub fn create(folder: &Path) -> Result<Self> {
        let prefix = temporary_prefix("nodes", &Writer::this());
        let file = tempfile::Builder::new().prefix(&prefix).suffix(TEMPORARY).tempfile_in(folder);
        Ok(Self(file.doing(|| format!("writing to {}", folder.display()))?))
    }

    /// Its name in the folder.
    pub fn name(&self) -> String {
        self.0.path().file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// Looks for the file of node 0 in the work folder of this node.
/// Errors: it is not there: the folders are not the same.
pub async fn find(folder: PathBuf, name: String) -> Result<()> {
    let path = folder.join(&name);
    // Only a file of this folder, whatever node 0 says.
    let is_name = Path::new(&name).file_name().is_some_and(|last| last == name.as_str());
    let seen = async {
        loop {
            let path = path.clone();
            // A folder that does not respond must not block the launcher.
            if is_name && tokio::task::spawn_blocking(move || path.exists()).await.unwrap_or(false) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(VISIBLE_TIMEOUT, seen).await.map_err(|_| {
        Error::environment(format!(
            "the work folder {} of this node is not that of node 0: the file {name}, which node 0 wrote to it, does not \
             appear here within {} s; mount the same shared folder on all nodes, or choose one with --work-dir",
            folder.display(),
            VISIBLE_TIMEOUT.as_secs()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_found_in_its_folder_until_it_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let token = Token::create(folder.path()).unwrap();
        let name = token.name();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(find(folder.path().to_owned(), name.clone())).unwrap();
        drop(token);
        assert!(!folder.path().join(name).exists());
        assert!(Token::create(&folder.path().join("none")).is_err());
    }
}

//! Finds image files by the names in an annotation file, including names in the spelling of other systems.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs::DirEntry;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use unicode_normalization::UnicodeNormalization;

use fnet_common::text::{list, quoted};

/// The file that a name in the annotation file refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// The file of that name.
    Named(PathBuf),
    /// The only possible file, and how its name differs.
    Meant(PathBuf, &'static str),
    /// No file has the name, and several files are possible.
    Unclear { named: PathBuf, others: Vec<String> },
    /// There is none.
    Missing(PathBuf),
}

impl Found {
    /// The file to open. If it is unclear or missing, the path from the annotation file.
    pub fn into_path(self) -> PathBuf {
        match self {
            Self::Named(path) | Self::Meant(path, _) | Self::Unclear { named: path, .. } | Self::Missing(path) => path,
        }
    }
}

/// The file names in image folders. Each folder is read once, on first use.
#[derive(Debug, Default)]
pub(super) struct Folders {
    known: Mutex<HashMap<PathBuf, Arc<Listing>>>,
}

#[derive(Debug)]
struct Listing {
    names: HashSet<OsString>,
    /// Folded form -> names.
    folded: OnceLock<HashMap<String, Vec<OsString>>>,
}

impl Listing {
    fn of(folder: &Path) -> Self {
        // Folders, pipes and dangling links are not images.
        let is_file = |entry: &DirEntry| match entry.file_type() {
            Ok(kind) if kind.is_symlink() => entry.path().is_file(),
            kind => kind.is_ok_and(|kind| kind.is_file()),
        };
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let names = entries.filter(is_file).map(|entry| entry.file_name()).collect();
        Self { names, folded: OnceLock::new() }
    }

    /// Names that differ from `name` only by case or Unicode form.
    fn like(&self, name: &str) -> &[OsString] {
        let folded = self.folded.get_or_init(|| {
            let mut folded: HashMap<String, Vec<OsString>> = HashMap::with_capacity(self.names.len());
            for name in &self.names {
                folded.entry(fold(&name.to_string_lossy())).or_default().push(name.clone());
            }
            folded.values_mut().for_each(|names| names.sort_unstable());
            folded
        });
        folded.get(&fold(name)).map_or(&[], Vec::as_slice)
    }
}

/// A key that ignores case and the Unicode form of accents.
fn fold(name: &str) -> String {
    name.nfc().collect::<String>().to_lowercase().nfc().collect()
}

impl Folders {
    /// The file that `name` refers to in `folder`.
    pub fn find(&self, folder: &Path, name: &str) -> Found {
        let named = folder.join(name);
        if named.is_file() {
            return Found::Named(named);
        }
        let slashes = name.replace('\\', "/");
        let spellings = [
            (slashes.clone(), "with slashes instead of backslashes"),
            (percent_decoded(&slashes), "with its percent signs decoded"),
        ];
        for (spelling, how) in &spellings {
            let path = folder.join(spelling);
            if spelling != name && path.is_file() {
                return Found::Meant(path, how);
            }
        }
        for (spelling, _) in &spellings {
            let path = folder.join(spelling);
            let (Some(parent), Some(file)) = (path.parent(), path.file_name()) else { continue };
            let listing = self.listing(parent);
            match listing.like(&file.to_string_lossy()) {
                [] => {}
                [only] => return Found::Meant(parent.join(only), "which differs in case or Unicode form"),
                several => {
                    let others = several.iter().map(|name| name.to_string_lossy().into_owned()).collect();
                    return Found::Unclear { named, others };
                }
            }
        }
        Found::Missing(named)
    }

    /// Whether there is a file `name` in `folder`. Reads the folder once instead of querying each file.
    pub fn has(&self, folder: &Path, name: &str) -> bool {
        let path = folder.join(name);
        match (path.parent(), path.file_name()) {
            (Some(parent), Some(file)) => self.listing(parent).names.contains(file),
            _ => false,
        }
    }

    fn listing(&self, folder: &Path) -> Arc<Listing> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(known.entry(folder.to_owned()).or_insert_with(|| Arc::new(Listing::of(folder))))
    }
}

/// Decodes percent codes such as `%20`. Returns the name unchanged if the result is not text.
fn percent_decoded(name: &str) -> String {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let [first, after @ ..] = rest {
        let code = match (first, after) {
            (b'%', [high, low, ..]) => hexadecimal(*high).zip(hexadecimal(*low)),
            _ => None,
        };
        match code {
            Some((high, low)) => {
                bytes.push(high * 16 + low);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).ok().filter(|decoded| !decoded.contains('\0')).unwrap_or_else(|| name.to_owned())
}

fn hexadecimal(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

/// Maximum number of subfolders that are searched for a missing file.
const SEARCHED_FOLDERS: usize = 100;

impl Folders {
    /// Suggests where the missing file `name` of `folder` may be: in another folder below `root`, or under another name.
    /// `set` is the name of the set in the config.
    pub fn offer(&self, name: &str, folder: &Path, root: &Path, set: &str) -> Option<String> {
        let name = name.replace('\\', "/");
        // Label Studio serves files under such URLs.
        let name = name.split_once("?d=").map_or(name.as_str(), |(_, path)| path);
        let name = percent_decoded(name);
        let parts: Vec<&str> = name.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        let relative = parts.join("/");
        let field = format!("{set}.img_prefix");
        let prefix = |folder: &Path| match folder.strip_prefix(root).unwrap_or(folder) {
            inner if inner.as_os_str().is_empty() => ".".to_owned(),
            inner => inner.display().to_string(),
        };
        // The name already contains the folder.
        let above = folder.ancestors().skip(1).take_while(|folder| folder.starts_with(root)).take(4);
        for folder in above.chain([root]) {
            if folder.join(&relative).is_file() {
                return Some(format!("file_name already contains a folder of {field}: set it to {:?}", prefix(folder)));
            }
        }
        // A folder between the two is missing.
        for folder in [folder, root].into_iter().flat_map(subfolders) {
            if folder.join(&relative).is_file() {
                return Some(format!("it is in {}: set {field} to {:?}", folder.display(), prefix(&folder)));
            }
        }
        // The folders in the name are from another machine.
        for start in 1..parts.len() {
            let rest = parts[start..].join("/");
            if folder.join(&rest).is_file() {
                return Some(format!("{} exists there: correct file_name", quoted(&rest)));
            }
        }
        let base = parts.last()?;
        // Label Studio prefixes the names of uploaded files with eight letters.
        let uploaded = base.split_once('-').filter(|(mark, _)| mark.len() == 8).map(|(_, rest)| rest);
        if let Some(rest) = uploaded.filter(|rest| folder.join(rest).is_file()) {
            return Some(format!("{} exists there: correct file_name", quoted(rest)));
        }
        for folder in subfolders(folder).into_iter().chain(subfolders(root)) {
            let path = folder.join(base);
            if path.is_file() {
                return Some(format!("{} has a file of this name: correct file_name or {field}", folder.display()));
            }
        }
        let stem = |name: &Path| name.file_stem().map(|stem| fold(&stem.to_string_lossy()));
        let listing = self.listing(folder);
        let wanted = [fold(base), stem(Path::new(base)).unwrap_or_default()];
        let mut like: Vec<String> = listing
            .names
            .iter()
            .filter(|name| stem(Path::new(name)).is_some_and(|stem| wanted.contains(&stem)))
            .map(|name| quoted(&name.to_string_lossy()))
            .collect();
        like.sort_unstable();
        (!like.is_empty()).then(|| format!("with another extension there is {}: correct file_name", list(like, 3)))
    }
}

/// The first subfolders of a folder, sorted.
fn subfolders(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path());
    let mut folders: Vec<PathBuf> = folders.take(SEARCHED_FOLDERS).collect();
    folders.sort_unstable();
    folders
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnostics::{Code, Diagnostics};
    use crate::{Dataset, Split};
    use fnet_test_support::SmallSet;

    #[test]
    fn suggestions_for_a_missing_file() {
        let mut small = SmallSet::new(&[(64, 48)]);
        let at = |name: &str| small.folder.path().join(name);
        std::fs::create_dir_all(at("images/deep")).unwrap();
        std::fs::rename(at("0.png"), at("images/deep/0.png")).unwrap();
        let text = std::fs::read_to_string(at("a.json")).unwrap();
        for (img_prefix, name, expected) in [
            (
                "images",
                "images/deep/0.png",
                Some("already contains a folder of data.train.img_prefix: set it to \".\""),
            ),
            ("images/deep", "deep/0.png", Some("set it to \"images\"")),
            ("images", "0.png", Some("set data.train.img_prefix to \"images/deep\"")),
            (".", "deep/0.png", Some("set data.train.img_prefix to \"images\"")),
            ("images/deep", "C:\\\\data\\\\0.png", Some("\"0.png\" exists there")),
            ("images/deep", "/data/upload/3/0.png", Some("\"0.png\" exists there")),
            ("images/deep", "/data/upload/3/1a2b3c4d-0.png", Some("\"0.png\" exists there")),
            ("images/deep", "/data/local-files/?d=sets%2F0.png", Some("\"0.png\" exists there")),
            ("images/deep", "0", Some("with another extension there is \"0.png\"")),
            ("images/deep", "0.jpg", Some("with another extension there is \"0.png\"")),
            ("images/deep", "1.png", None),
        ] {
            std::fs::write(small.folder.path().join("a.json"), text.replace("0.png", name)).unwrap();
            small.config.train[0].img_prefix = img_prefix.into();
            let mut diagnostics = Diagnostics::default();
            Dataset::open(&small.config, Split::Train).unwrap().check_files(&mut diagnostics);
            let diagnostic = &diagnostics.kept()[0];
            assert_eq!(diagnostic.code, Code::ImageMissing, "{diagnostic}");
            let offered = diagnostic.message.split_once("; ").map(|(_, offer)| offer);
            assert_eq!(offered.is_some(), expected.is_some(), "{img_prefix} {name}: {diagnostic}");
            assert!(expected.is_none_or(|part| diagnostic.message.contains(part)), "{img_prefix} {name}: {diagnostic}");
        }
    }

    fn folder_with(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        folder
    }

    #[test]
    fn names_from_other_systems_match_the_only_similar_file() {
        let folder =
            folder_with(&["sub/a.JPG", "b c.png", "caf\u{e9}.jpg", "100%25.jpg", "d.jpg", "D.jpg", "e%20.jpg"]);
        let folders = Folders::default();
        let find = |name: &str| folders.find(folder.path(), name);
        let meant =
            |name: &str, file: &str| matches!(find(name), Found::Meant(path, _) if path == folder.path().join(file));
        assert_eq!(find("sub/a.JPG"), Found::Named(folder.path().join("sub/a.JPG")));
        assert_eq!(find("e%20.jpg"), Found::Named(folder.path().join("e%20.jpg")));
        assert!(meant("sub\\a.JPG", "sub/a.JPG"));
        assert!(meant("sub/A.jpg", "sub/a.JPG"));
        assert!(meant("sub\\a.jpg", "sub/a.JPG"));
        assert!(meant("b%20c.png", "b c.png"));
        assert!(meant("cafe\u{301}.jpg", "caf\u{e9}.jpg"));
        assert_eq!(find("d.jpg"), Found::Named(folder.path().join("d.jpg")));
        assert!(matches!(find("d.JPG"), Found::Unclear { others, .. } if others == ["D.jpg", "d.jpg"]));
        assert_eq!(find("f.jpg"), Found::Missing(folder.path().join("f.jpg")));
        assert_eq!(find("none/f.jpg"), Found::Missing(folder.path().join("none/f.jpg")));
        assert!(folders.has(folder.path(), "sub/a.JPG") && !folders.has(folder.path(), "a.JPG"));
    }

    #[test]
    fn dangling_links_and_folders_are_not_images() {
        let folder = folder_with(&["a.jpg", "folder.jpg/x"]);
        let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, folder.path().join(name)).unwrap();
        link("a.jpg", "sound.jpg");
        link("nothing.jpg", "broken.jpg");
        let folders = Folders::default();
        for (name, expected) in [("a.jpg", true), ("sound.jpg", true), ("broken.jpg", false), ("folder.jpg", false)] {
            assert_eq!(folders.has(folder.path(), name), expected, "{name}");
            let found = folders.find(folder.path(), name);
            assert_eq!(matches!(found, Found::Named(_)), expected, "{found:?}");
        }
        assert!(!folders.has(folder.path(), "..") && matches!(folders.find(folder.path(), ".."), Found::Missing(_)));
    }

    #[test]
    fn invalid_percent_codes_are_kept() {
        for (name, decoded) in [("a%20b", "a b"), ("50%", "50%"), ("%zz", "%zz"), ("%ff", "%ff"), ("%00", "%00")] {
            assert_eq!(percent_decoded(name), decoded);
        }
    }
}

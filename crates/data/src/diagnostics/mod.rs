//! Problems in a data set. Each diagnostic has a code, a location and a remedy.
//!
//! The rule: what MMDetection accepts is used the same way, with a warning if it looks wrong. What it would crash on is
//! repaired if only one meaning is possible. Anything else is an error. `docs/data-codes.md` is generated from
//! [`Code::description`].

mod code;
#[cfg(test)]
mod documentation;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use fnet_common::text::printable;
use fnet_common::{Error, Result};

pub use code::{Code, CodeDescription, Severity};

/// Location of a diagnostic in a file. Ids are written as in the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Location {
    /// Line, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// Id of an image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Id of an annotation. Without an id: `#` and its position in the list, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub annotation: Option<String>,
    /// Id of a category.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub category: Option<String>,
}

impl Location {
    /// The file as a whole.
    pub fn file() -> Self {
        Self::default()
    }

    /// A line of a text file, from 1.
    pub fn line(line: u64) -> Self {
        Self { line: Some(line), ..Self::default() }
    }

    /// The image with this id.
    pub fn image(id: impl fmt::Display) -> Self {
        Self { image: Some(id.to_string()), ..Self::default() }
    }

    /// The annotation with this id.
    pub fn annotation(id: impl fmt::Display) -> Self {
        Self { annotation: Some(id.to_string()), ..Self::default() }
    }

    /// The category with this id.
    pub fn category(id: impl fmt::Display) -> Self {
        Self { category: Some(id.to_string()), ..Self::default() }
    }

    /// The same location, in the image with this id.
    #[must_use]
    pub fn of_image(mut self, id: impl fmt::Display) -> Self {
        self.image = Some(id.to_string());
        self
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            self.line.map(|line| format!("line {line}")),
            self.image.as_ref().map(|id| format!("image {id}")),
            self.annotation.as_ref().map(|id| format!("annotation {id}")),
            self.category.as_ref().map(|id| format!("category {id}")),
        ];
        f.write_str(&parts.into_iter().flatten().collect::<Vec<_>>().join(", "))
    }
}

/// One problem in a data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// The kind of problem.
    pub code: Code,
    /// The data set, as named in the config.
    pub set: Option<&'static str>,
    /// The annotation file or image.
    pub file: PathBuf,
    /// The location in the file.
    pub place: Location,
    /// What was found, with the values.
    pub message: String,
}

impl Serialize for Diagnostic {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Flat<'a> {
            code: Code,
            severity: Severity,
            #[serde(skip_serializing_if = "Option::is_none")]
            set: Option<&'static str>,
            file: std::borrow::Cow<'a, str>,
            #[serde(flatten)]
            place: &'a Location,
            message: &'a str,
            remedy: &'static str,
        }
        let CodeDescription { severity, remedy, .. } = self.code.description();
        let file = self.file.to_string_lossy();
        Flat { code: self.code, severity, set: self.set, file, place: &self.place, message: &self.message, remedy }
            .serialize(serializer)
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CodeDescription { severity, remedy, .. } = self.code.description();
        write!(f, "{severity}: {}: ", self.code.name())?;
        if let Some(set) = self.set {
            write!(f, "data.{set}: ")?;
        }
        write!(f, "{}: ", printable(&self.file.to_string_lossy()))?;
        if self.place != Location::default() {
            write!(f, "{}: ", printable(&self.place.to_string()))?;
        }
        write!(f, "{}; {remedy}", printable(&self.message))
    }
}

/// A collection of diagnostics. All are counted; the first of each code are kept.
#[derive(Debug, Clone)]
pub struct Diagnostics {
    keep: usize,
    /// The set of new diagnostics.
    set: Option<&'static str>,
    counts: BTreeMap<Code, usize>,
    kept: Vec<Diagnostic>,
}

impl Default for Diagnostics {
    /// Keeps as many as the start of a job prints.
    fn default() -> Self {
        Self::keeping(Self::KEPT_AT_START)
    }
}

impl Diagnostics {
    /// Diagnostics of each code that are kept at the start of a job.
    pub const KEPT_AT_START: usize = 3;

    /// Keeps the first `keep` diagnostics of each code and counts the rest.
    pub fn keeping(keep: usize) -> Self {
        Self { keep, set: None, counts: BTreeMap::new(), kept: Vec::new() }
    }

    /// Sets the data set (`train` or `val`) of new diagnostics.
    #[must_use]
    pub fn of(mut self, set: &'static str) -> Self {
        self.set = Some(set);
        self
    }

    /// An empty collection with the same limit and set.
    pub fn none(&self) -> Self {
        Self { set: self.set, ..Self::keeping(self.keep) }
    }

    /// Adds a diagnostic. `place` and `message` are called only if the diagnostic is kept.
    pub fn add(&mut self, code: Code, file: &Path, place: impl FnOnce() -> Location, message: impl FnOnce() -> String) {
        let count = self.counts.entry(code).or_default();
        *count += 1;
        if *count <= self.keep {
            self.kept.push(Diagnostic {
                code,
                set: self.set,
                file: file.to_owned(),
                place: place(),
                message: message(),
            });
        }
    }

    /// Adds the diagnostics of another collection after these.
    pub fn append(&mut self, other: Self) {
        let mut room: BTreeMap<Code, usize> =
            other.counts.keys().map(|&code| (code, self.keep.saturating_sub(self.count(code)))).collect();
        for diagnostic in other.kept {
            let room = room.entry(diagnostic.code).or_default();
            if *room > 0 {
                *room -= 1;
                self.kept.push(diagnostic);
            }
        }
        for (code, count) in other.counts {
            *self.counts.entry(code).or_default() += count;
        }
    }

    /// Removes all diagnostics of a code.
    pub fn remove(&mut self, code: Code) {
        self.counts.remove(&code);
        self.kept.retain(|diagnostic| diagnostic.code != code);
    }

    /// Changes the code of all diagnostics from `from` to `to`.
    pub fn rename(&mut self, from: Code, to: Code) {
        if let Some(count) = self.counts.remove(&from) {
            *self.counts.entry(to).or_default() += count;
            self.kept
                .iter_mut()
                .filter(|diagnostic| diagnostic.code == from)
                .for_each(|diagnostic| diagnostic.code = to);
        }
    }

    /// How often `code` was found.
    pub fn count(&self, code: Code) -> usize {
        self.counts.get(&code).copied().unwrap_or(0)
    }

    /// How often each code was found, most severe first.
    pub fn counts(&self) -> Vec<(Code, usize)> {
        let mut counts: Vec<_> = self.counts.iter().map(|(&code, &count)| (code, count)).collect();
        counts.sort_by_key(|&(code, _)| (std::cmp::Reverse(code.description().severity), code));
        counts
    }

    /// The diagnostics that are kept, in the order in which they were added.
    pub fn kept(&self) -> &[Diagnostic] {
        &self.kept
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// Number of diagnostics of a severity.
    pub fn number_of(&self, severity: Severity) -> usize {
        self.counts.iter().filter(|(code, _)| code.description().severity == severity).map(|(_, count)| count).sum()
    }

    /// Fails if there is an error among the diagnostics.
    /// Errors: a data error with a line for each code of that severity.
    pub fn refuse_errors(&self) -> Result<()> {
        match self.lines(Severity::Error) {
            lines if lines.is_empty() => Ok(()),
            // The caller that prints the error adds this prefix.
            lines => Err(Error::data(lines.join("\n").trim_start_matches("error: "))),
        }
    }

    /// One line for each code of a severity: the first diagnostic, and how many more there are.
    pub fn lines(&self, severity: Severity) -> Vec<String> {
        let line = |(code, count): (Code, usize)| {
            let first = self.kept.iter().find(|diagnostic| diagnostic.code == code)?;
            let more = match count {
                1 => String::new(),
                _ => format!(" ({count} of this kind; `fnet-launch check-data` lists them)"),
            };
            Some(format!("{first}{more}"))
        };
        self.counts().into_iter().filter(|(code, _)| code.description().severity == severity).filter_map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(codes: &[Code], keep: usize) -> Diagnostics {
        let mut diagnostics = Diagnostics::keeping(keep);
        for (i, &code) in codes.iter().enumerate() {
            diagnostics.add(code, Path::new("a.json"), || Location::annotation(i), || format!("number {i}"));
        }
        diagnostics
    }

    #[test]
    fn all_are_counted_and_the_first_of_each_code_are_kept() {
        let diagnostics = found(&[Code::BoxOutside, Code::BoxOutside, Code::BoxMissing, Code::BoxOutside], 2);
        assert_eq!((diagnostics.count(Code::BoxOutside), diagnostics.count(Code::BoxMissing)), (3, 1));
        assert_eq!(diagnostics.kept().len(), 3);
        let joined = {
            let mut first = found(&[Code::BoxOutside], 2);
            first.append(diagnostics);
            first
        };
        assert_eq!(joined.count(Code::BoxOutside), 4);
        let messages: Vec<_> = joined.kept().iter().map(|diagnostic| diagnostic.message.as_str()).collect();
        assert_eq!(messages, ["number 0", "number 0", "number 2"]);
    }

    #[test]
    fn a_line_contains_code_file_location_and_remedy() {
        let line = &found(&[Code::BoxOutside, Code::BoxOutside], 1).lines(Severity::Warning)[0];
        for part in ["box-outside", "a.json", "annotation 0", Code::BoxOutside.description().remedy, "2 of this kind"] {
            assert!(line.contains(part), "{line}");
        }
    }
}

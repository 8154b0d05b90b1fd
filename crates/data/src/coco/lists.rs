//! Reads the lists of an annotation file in parallel, with bounded memory.

use std::path::Path;

use rayon::prelude::*;

use super::elements::{Broken, Chunk, Sink, walk};
use super::source::Source;
use crate::findings::{Code, Findings, Place};

/// What becomes of an element: the name of its list, its text, where that starts in the file, its number in the list.
pub(super) type Parse<'p, T> = dyn Fn(&str, &[u8], u64, usize, &mut Findings) -> Option<T> + Sync + 'p;

/// Takes what was made of the elements, in the order of the file: the name of the list and a value, or `None` when a
/// list begins. One that begins again replaces the earlier one, as in Python's reader.
pub(super) type Take<'t, T> = dyn FnMut(&str, Option<T>) + 't;

/// Reads the lists that `wanted` names by `parse`, which may run on several elements at once. Returns the keys of the
/// outermost object with the first byte of their values.
pub(super) fn read<T: Send>(
    source: &Source,
    path: &Path,
    wanted: &[&str],
    parse: &Parse<T>,
    take: &mut Take<T>,
    findings: &mut Findings,
) -> Result<Vec<(String, u8)>, Broken> {
    let mut reader = Reader {
        source,
        path,
        wanted,
        parse,
        take,
        findings,
        waiting: Vec::new(),
        rows: 0,
        list: None,
        keys: Vec::new(),
    };
    walk(source, &mut reader)?;
    reader.flush();
    Ok(reader.keys)
}

struct Reader<'r, T> {
    source: &'r Source,
    path: &'r Path,
    wanted: &'r [&'r str],
    parse: &'r Parse<'r, T>,
    take: &'r mut Take<'r, T>,
    findings: &'r mut Findings,
    /// Chunks of the present list that are not parsed yet, with the row of their first element.
    waiting: Vec<(usize, Chunk)>,
    rows: usize,
    /// The list whose elements come now.
    list: Option<String>,
    keys: Vec<(String, u8)>,
}

impl<T: Send> Sink for Reader<'_, T> {
    fn key(&mut self, key: &str, first: u8) -> bool {
        self.flush();
        if self.keys.iter().any(|(known, _)| known == key) {
            self.keys.retain(|(known, _)| known != key);
            if self.wanted.contains(&key) {
                self.findings.add(Code::FileKeyRepeated, self.path, Place::file, || format!("the list {key:?} again"));
            }
        }
        self.keys.push((key.to_owned(), first));
        self.rows = 0;
        let wanted = self.wanted.contains(&key) && first == b'[';
        if wanted {
            (self.take)(key, None);
        }
        self.list = wanted.then(|| key.to_owned());
        wanted
    }

    fn chunk(&mut self, chunk: Chunk) {
        let row = self.rows;
        self.rows += chunk.elements.len();
        self.waiting.push((row, chunk));
        if self.waiting.len() >= 2 * rayon::current_num_threads() {
            self.flush();
        }
    }
}

impl<T: Send> Reader<'_, T> {
    /// Parses the chunks that wait.
    fn flush(&mut self) {
        let Some(name) = &self.list else { return };
        let (source, path, parse) = (self.source, self.path, self.parse);
        let none = self.findings.none();
        let parsed: Vec<(Vec<T>, Findings)> = std::mem::take(&mut self.waiting)
            .par_iter()
            .map(|(start, chunk)| {
                let mut findings = none.clone();
                not_utf8(chunk, source, path, &mut findings);
                let elements = chunk.iter().enumerate();
                let values = elements
                    .filter_map(|(i, (text, offset))| parse(name, text, offset, start + i, &mut findings))
                    .collect();
                (values, findings)
            })
            .collect();
        for (values, findings) in parsed {
            values.into_iter().for_each(|value| (self.take)(name, Some(value)));
            self.findings.append(findings);
        }
    }
}

/// Reports text that is not UTF-8; where it is used, its entry is reported too.
fn not_utf8(chunk: &Chunk, source: &Source, path: &Path, findings: &mut Findings) {
    if let Err(error) = std::str::from_utf8(&chunk.bytes) {
        let offset = chunk.offset + error.valid_up_to() as u64;
        let bytes = &chunk.bytes[error.valid_up_to()..];
        findings.add(
            Code::FileNotUtf8,
            path,
            || Place::line(source.line(offset)),
            || format!("the byte 0x{:02x} is not UTF-8", bytes.first().copied().unwrap_or(0)),
        );
    }
}

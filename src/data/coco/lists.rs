//! Reads the lists of an annotation file in parallel, with bounded memory.

use std::path::Path;

use rayon::prelude::*;

use super::elements::{Broken, Chunk, Sink, walk};
use super::source::Source;
use crate::data::findings::{Code, Findings, Place};

/// What becomes of an element: the name of its list, its text, where that starts in the file, its number in the list.
pub(super) type Parse<'p, T> = dyn Fn(&str, &[u8], u64, usize, &mut Findings) -> Option<T> + Sync + 'p;

/// What was read of the wanted lists.
pub(super) struct Lists<T> {
    /// What was made of the elements, list by list in the order of the file.
    pub values: Vec<T>,
    /// Keys of the outermost object that are there, with the first byte of their values.
    pub keys: Vec<(String, u8)>,
}

/// Reads the lists that `wanted` names by `parse`, which may run on several elements at once. Of a list that stands
/// twice the last counts, as in Python's reader.
pub(super) fn read<T: Send>(
    source: &Source,
    path: &Path,
    wanted: &[&str],
    parse: &Parse<T>,
    findings: &mut Findings,
) -> Result<Lists<T>, Broken> {
    let mut reader = Reader {
        source,
        path,
        wanted,
        parse,
        findings,
        waiting: Vec::new(),
        rows: 0,
        lists: Vec::new(),
        keys: Vec::new(),
    };
    walk(source, &mut reader)?;
    reader.flush();
    let mut lists = reader.lists.into_iter().map(|(_, values)| values);
    let mut values = lists.next().unwrap_or_default();
    lists.for_each(|list| values.extend(list));
    Ok(Lists { values, keys: reader.keys })
}

struct Reader<'r, T> {
    source: &'r Source,
    path: &'r Path,
    wanted: &'r [&'r str],
    parse: &'r Parse<'r, T>,
    findings: &'r mut Findings,
    /// Chunks of the present list that are not parsed yet, with the row of their first element.
    waiting: Vec<(usize, Chunk)>,
    rows: usize,
    lists: Vec<(String, Vec<T>)>,
    keys: Vec<(String, u8)>,
}

impl<T: Send> Sink for Reader<'_, T> {
    fn key(&mut self, key: &str, first: u8) -> bool {
        self.flush();
        if self.keys.iter().any(|(known, _)| known == key) {
            self.keys.retain(|(known, _)| known != key);
            if self.wanted.contains(&key) {
                self.findings.add(Code::FileKeyRepeated, self.path, Place::file, || format!("the list {key:?} again"));
                self.lists.retain(|(name, _)| name != key);
            }
        }
        self.keys.push((key.to_owned(), first));
        self.rows = 0;
        let wanted = self.wanted.contains(&key) && first == b'[';
        if wanted {
            self.lists.push((key.to_owned(), Vec::new()));
        }
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
        let Some((name, values)) = self.lists.last_mut() else { return };
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
        for (found, findings) in parsed {
            values.extend(found);
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

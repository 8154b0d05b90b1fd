//! Reads the lists of an annotation file in parallel, with bounded memory.

use std::path::Path;

use rayon::prelude::*;

use super::elements::{Broken, Chunk, Sink, walk};
use super::source::AnnotationSource;
use crate::diagnostics::{Code, Diagnostics, Location};

/// Parses an element. Takes the name of its list, its text, the offset of the text in the file, and its index in the
/// list.
pub(super) type Parse<'p, T> = dyn Fn(&str, &[u8], u64, usize, &mut Diagnostics) -> Option<T> + Sync + 'p;

/// Receives the parsed elements in the order of the file: the name of the list and a value, or `None` when a list
/// begins. A repeated list replaces the earlier one, as in Python.
pub(super) type Take<'t, T> = dyn FnMut(&str, Option<T>) + 't;

/// Reads the lists in `wanted` with `parse`, which may run on several elements at once. Returns the keys of the
/// outermost object with the first byte of their values.
pub(super) fn read<T: Send>(
    source: &AnnotationSource,
    path: &Path,
    wanted: &[&str],
    parse: &Parse<T>,
    take: &mut Take<T>,
    diagnostics: &mut Diagnostics,
) -> Result<Vec<(String, u8)>, Broken> {
    let mut reader = Reader {
        source,
        path,
        wanted,
        parse,
        take,
        diagnostics,
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
    source: &'r AnnotationSource,
    path: &'r Path,
    wanted: &'r [&'r str],
    parse: &'r Parse<'r, T>,
    take: &'r mut Take<'r, T>,
    diagnostics: &'r mut Diagnostics,
    /// Chunks of the current list that are not parsed yet, with the row of their first element.
    waiting: Vec<(usize, Chunk)>,
    rows: usize,
    /// The current list.
    list: Option<String>,
    keys: Vec<(String, u8)>,
}

impl<T: Send> Sink for Reader<'_, T> {
    fn key(&mut self, key: &str, first: u8) -> bool {
        self.flush();
        if self.keys.iter().any(|(known, _)| known == key) {
            self.keys.retain(|(known, _)| known != key);
            if self.wanted.contains(&key) {
                self.diagnostics
                    .add(Code::FileKeyRepeated, self.path, Location::file, || format!("the list {key:?} is repeated"));
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
    /// Parses the waiting chunks.
    fn flush(&mut self) {
        let Some(name) = &self.list else { return };
        let (source, path, parse) = (self.source, self.path, self.parse);
        let none = self.diagnostics.none();
        let parsed: Vec<(Vec<T>, Diagnostics)> = std::mem::take(&mut self.waiting)
            .par_iter()
            .map(|(start, chunk)| {
                let mut diagnostics = none.clone();
                not_utf8(chunk, source, path, &mut diagnostics);
                let elements = chunk.iter().enumerate();
                let values = elements
                    .filter_map(|(i, (text, offset))| parse(name, text, offset, start + i, &mut diagnostics))
                    .collect();
                (values, diagnostics)
            })
            .collect();
        for (values, diagnostics) in parsed {
            values.into_iter().for_each(|value| (self.take)(name, Some(value)));
            self.diagnostics.append(diagnostics);
        }
    }
}

/// Reports text that is not UTF-8. If it is used, its entry is reported as well.
fn not_utf8(chunk: &Chunk, source: &AnnotationSource, path: &Path, diagnostics: &mut Diagnostics) {
    if let Err(error) = std::str::from_utf8(&chunk.bytes) {
        let offset = chunk.offset + error.valid_up_to() as u64;
        let bytes = &chunk.bytes[error.valid_up_to()..];
        diagnostics.add(
            Code::FileNotUtf8,
            path,
            || Location::line(source.line(offset)),
            || format!("the byte 0x{:02x} is not UTF-8", bytes.first().copied().unwrap_or(0)),
        );
    }
}

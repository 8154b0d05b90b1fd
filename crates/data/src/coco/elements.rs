//! The elements of the lists of an annotation file, in chunks that can be parsed in parallel.

use std::io;
use std::ops::Range;

use super::json::{Scan, string};
use super::source::{AnnotationSource, Pieces};

/// A chunk is passed on when it has this many bytes.
const CHUNK: usize = 1 << 18;
/// The maximum length of an element. A longer one has no end.
const LONGEST: usize = 64 << 20;

/// Some elements of one list.
#[derive(Debug)]
pub(super) struct Chunk {
    /// Offset of `bytes` in the text.
    pub offset: u64,
    pub bytes: Vec<u8>,
    /// Ranges of the elements in `bytes`.
    pub elements: Vec<Range<usize>>,
}

impl Chunk {
    /// Each element with its offset in the text.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], u64)> {
        self.elements.iter().map(|range| (&self.bytes[range.clone()], self.offset + range.start as u64))
    }
}

/// Receives the members of the outermost object.
pub(super) trait Sink {
    /// A member whose value starts with byte `first`. Returns whether to pass its elements to [`Self::chunk`], if it is
    /// a list.
    fn key(&mut self, key: &str, first: u8) -> bool;
    /// Elements of the last member, in the order of the text.
    fn chunk(&mut self, chunk: Chunk);
}

/// Why a text could not be read completely.
#[derive(Debug)]
pub(super) enum Broken {
    /// Invalid JSON at this offset.
    NotJson { offset: u64, what: &'static str },
    /// It ends too early.
    CutOff { offset: u64 },
    /// Not an object. Holds the first byte, or `None` for an empty text.
    NoObject { first: Option<u8> },
    /// It cannot be read.
    Unreadable(io::Error),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Unreadable(error)
    }
}

/// Reads the outermost object of the text. Memory is bounded by the chunks that `sink` keeps.
pub(super) fn walk(source: &AnnotationSource, sink: &mut dyn Sink) -> Result<(), Broken> {
    let pieces = source.reader(source.start);
    let mut walker = Walker { pieces, buffer: Vec::new(), base: source.start, at: 0 };
    match walker.peek()? {
        Some(b'{') => walker.at += 1,
        first => return Err(Broken::NoObject { first }),
    }
    let mut first = true;
    loop {
        walker.forget();
        match walker.peek()? {
            Some(b'}') => break,
            Some(b',') if !first => walker.at += 1,
            Some(_) if first => {}
            None => return Err(walker.cut_off()),
            Some(_) => return Err(walker.no_json("expected a comma or the end of the object")),
        }
        first = false;
        walker.member(sink)?;
    }
    walker.at += 1;
    match walker.peek()? {
        None => Ok(()),
        Some(_) => Err(walker.no_json("text after the end of the object")),
    }
}

struct Walker<'s> {
    pieces: Pieces<'s>,
    buffer: Vec<u8>,
    /// Offset of `buffer` in the text.
    base: u64,
    /// The next byte in `buffer`.
    at: usize,
}

impl Walker<'_> {
    fn offset(&self) -> u64 {
        self.base + self.at as u64
    }

    fn no_json(&self, what: &'static str) -> Broken {
        Broken::NotJson { offset: self.offset(), what }
    }

    fn cut_off(&self) -> Broken {
        Broken::CutOff { offset: self.base + self.buffer.len() as u64 }
    }

    /// Drops the bytes before `at`.
    fn forget(&mut self) {
        if self.at > CHUNK || self.at == self.buffer.len() {
            self.buffer.drain(..self.at);
            self.base += self.at as u64;
            self.at = 0;
        }
    }

    /// The next byte that is not white space; `None` at the end of the text.
    fn peek(&mut self) -> Result<Option<u8>, Broken> {
        loop {
            match self.buffer[self.at..].iter().position(|b| !b.is_ascii_whitespace()) {
                Some(spaces) => {
                    self.at += spaces;
                    return Ok(Some(self.buffer[self.at]));
                }
                None => {
                    self.at = self.buffer.len();
                    if self.at > 2 * LONGEST {
                        return Err(self.no_json("nothing but white space"));
                    }
                    if !self.pieces.append_to(&mut self.buffer)? {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Skips the value that starts here and returns its range in the buffer.
    fn value(&mut self) -> Result<Range<usize>, Broken> {
        let start = self.at;
        let Some(first) = self.peek()? else { return Err(self.cut_off()) };
        self.skip(first, true)?;
        Ok(start..self.at)
    }

    /// Skips the value that starts here. With `keep`, all of it stays in the buffer; otherwise it may have any length.
    fn skip(&mut self, first: u8, keep: bool) -> Result<(), Broken> {
        if matches!(first, b',' | b']' | b'}' | b':') {
            return Err(self.no_json("expected a value"));
        }
        let start = self.at;
        let mut scan = Scan::start(first);
        self.at += 1;
        loop {
            if let Some(length) = scan.advance(&self.buffer[self.at..]) {
                self.at += length;
                return Ok(());
            }
            self.at = self.buffer.len();
            if !keep {
                self.forget();
            } else if self.at - start > LONGEST {
                self.at = start;
                return Err(self.no_json("a value of more than 64 MB, or without an end"));
            }
            if !self.pieces.append_to(&mut self.buffer)? {
                return if scan == Scan::Plain { Ok(()) } else { Err(self.cut_off()) };
            }
        }
    }

    fn member(&mut self, sink: &mut dyn Sink) -> Result<(), Broken> {
        match self.peek()? {
            Some(b'"') => {}
            None => return Err(self.cut_off()),
            Some(_) => return Err(self.no_json("expected a key in quotes")),
        }
        let range = self.value()?;
        let key = string(&self.buffer[range]).map(std::borrow::Cow::into_owned).map_err(|what| self.no_json(what))?;
        match self.peek()? {
            Some(b':') => self.at += 1,
            None => return Err(self.cut_off()),
            Some(_) => return Err(self.no_json("expected a colon")),
        }
        let Some(first) = self.peek()? else { return Err(self.cut_off()) };
        if sink.key(&key, first) && first == b'[' { self.list(sink) } else { self.skip(first, false) }
    }

    fn list(&mut self, sink: &mut dyn Sink) -> Result<(), Broken> {
        self.at += 1;
        self.buffer.drain(..self.at);
        self.base += self.at as u64;
        self.at = 0;
        let mut elements = Vec::new();
        let mut first = true;
        loop {
            match self.peek()? {
                Some(b']') => break,
                Some(b',') if !first => {
                    self.at += 1;
                    if self.peek()?.is_none() {
                        return Err(self.cut_off());
                    }
                }
                Some(_) if first => {}
                None => return Err(self.cut_off()),
                Some(_) => return Err(self.no_json("expected a comma or the end of the list")),
            }
            first = false;
            elements.push(self.value()?);
            if self.at >= CHUNK {
                sink.chunk(self.take(std::mem::take(&mut elements)));
            }
        }
        self.at += 1;
        sink.chunk(self.take(elements));
        Ok(())
    }

    /// The bytes before `at`, as a chunk.
    fn take(&mut self, elements: Vec<Range<usize>>) -> Chunk {
        let rest = self.buffer.split_off(self.at);
        let bytes = std::mem::replace(&mut self.buffer, rest);
        let offset = self.base;
        self.base += self.at as u64;
        self.at = 0;
        Chunk { offset, bytes, elements }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Collected(Vec<(String, Vec<String>)>);

    impl Sink for Collected {
        fn key(&mut self, key: &str, _: u8) -> bool {
            self.0.push((key.into(), Vec::new()));
            key.starts_with("list")
        }
        fn chunk(&mut self, chunk: Chunk) {
            let texts = chunk.iter().map(|(bytes, _)| String::from_utf8_lossy(bytes).into_owned());
            self.0.last_mut().unwrap().1.extend(texts);
        }
    }

    fn collect(text: &str) -> Result<Vec<(String, Vec<String>)>, Broken> {
        let mut collected = Collected::default();
        walk(&AnnotationSource::memory(text.as_bytes().to_vec()), &mut collected)?;
        Ok(collected.0)
    }

    #[test]
    fn selected_lists_are_passed_on_element_by_element() {
        let found =
            collect(" {\"a\": {\"x\": [\"}\"]}, \"list\" : [1 , {\"b\": [2]},\n\"c\"], \"list2\":[], \"b\":[1]} \n");
        let expected = [("a", vec![]), ("list", vec!["1", "{\"b\": [2]}", "\"c\""]), ("list2", vec![]), ("b", vec![])];
        let expected =
            expected.map(|(key, list)| (key.to_owned(), list.into_iter().map(str::to_owned).collect::<Vec<_>>()));
        assert_eq!(found.unwrap(), expected);
    }

    #[test]
    fn a_long_list_comes_in_chunks_with_the_right_offsets() {
        struct Offsets(Vec<u64>, usize);
        impl Sink for Offsets {
            fn key(&mut self, _: &str, _: u8) -> bool {
                true
            }
            fn chunk(&mut self, chunk: Chunk) {
                self.1 += 1;
                self.0.extend(chunk.iter().map(|(_, offset)| offset));
            }
        }
        let item = format!("{{\"text\": \"{}\"}}", "x\\\"".repeat(50_000));
        let text = format!("{{\"list\": [{}]}}", vec![item.clone(); 60].join(",\n"));
        let mut offsets = Offsets(Vec::new(), 0);
        let source = AnnotationSource::memory(text.clone().into_bytes());
        walk(&source, &mut offsets).unwrap();
        assert!(offsets.1 > 3, "{} chunks", offsets.1);
        assert_eq!(offsets.0.len(), 60);
        for (i, &offset) in offsets.0.iter().enumerate() {
            assert!(text[offset as usize..].starts_with(&item), "{i}");
            assert_eq!(source.line(offset), i as u64 + 1);
        }
    }

    #[test]
    fn invalid_text_is_an_error() {
        let cut_off = [
            "{\"list\": [1,",
            "{\"list\": [{\"a\": 1",
            "{\"a\"",
            "{\"a\": \"b",
            "{",
            "{\"list\": [1",
            "{\"a\": {\"b\": 1}",
        ];
        for text in cut_off {
            assert!(matches!(collect(text), Err(Broken::CutOff { .. })), "{text}: {:?}", collect(text));
        }
        for text in ["{\"a\" 1}", "{\"list\": [1 2]}", "{\"list\": [,]}", "{\"a\": 1} 2", "{1: 2}", "{\"a\":,}"] {
            assert!(matches!(collect(text), Err(Broken::NotJson { .. })), "{text}: {:?}", collect(text));
        }
        assert!(matches!(collect(" [1]"), Err(Broken::NoObject { first: Some(b'[') })));
        assert!(matches!(collect(" \n"), Err(Broken::NoObject { first: None })));
    }

    proptest! {
        #[test]
        fn reading_any_bytes_terminates(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let text = [b"{\"list\": ".as_slice(), &bytes].concat();
            let _ = walk(&AnnotationSource::memory(text), &mut Collected::default());
            let _ = walk(&AnnotationSource::memory(bytes), &mut Collected::default());
        }
    }
}

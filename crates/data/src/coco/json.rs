//! A lenient, lazy JSON reader: members and items are slices of the text.
//!
//! Annotation files contain hundreds of megabytes of polygon points that are needed only image by image. Skipping them
//! only searches for brackets. Numbers may be `NaN` and `Infinity`, as in Python.

use std::borrow::Cow;

use memchr::{memchr2, memchr3};

/// The byte offset of invalid JSON and a description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Syntax {
    pub at: usize,
    pub what: &'static str,
}

/// Finds the end of a value, even if its text arrives in pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scan {
    /// A number or word.
    Plain,
    /// A string. `escaped` says whether the last byte was an escaping backslash.
    Text { escaped: bool },
    /// An object or list with the delimiters `open` and `close`, at nesting level `depth`, perhaps inside a string.
    Nested { open: u8, close: u8, depth: u32, text: Option<bool> },
}

impl Scan {
    /// Starts the scan of a value after its first byte, `first`.
    pub fn start(first: u8) -> Self {
        match first {
            b'"' => Self::Text { escaped: false },
            b'{' => Self::Nested { open: b'{', close: b'}', depth: 1, text: None },
            b'[' => Self::Nested { open: b'[', close: b']', depth: 1, text: None },
            _ => Self::Plain,
        }
    }

    /// Scans `bytes`. Returns how many of them belong to the value if it ends there.
    pub fn advance(&mut self, bytes: &[u8]) -> Option<usize> {
        match self {
            Self::Plain => bytes.iter().position(|&b| ends_plain(b)),
            Self::Text { escaped } => end_of_text(bytes, 0, escaped),
            Self::Nested { open, close, depth, text } => {
                let mut at = 0;
                loop {
                    if let Some(escaped) = text {
                        at = end_of_text(bytes, at, escaped)?;
                        *text = None;
                    }
                    at += memchr3(*open, *close, b'"', &bytes[at..])? + 1;
                    let found = bytes[at - 1];
                    if found == b'"' {
                        *text = Some(false);
                    } else if found == *open {
                        *depth = depth.saturating_add(1);
                    } else {
                        *depth -= 1;
                        if *depth == 0 {
                            return Some(at);
                        }
                    }
                }
            }
        }
    }
}

fn ends_plain(byte: u8) -> bool {
    byte.is_ascii_whitespace() || matches!(byte, b',' | b']' | b'}' | b':')
}

/// One past the closing quote, from `at` inside a string.
fn end_of_text(bytes: &[u8], mut at: usize, escaped: &mut bool) -> Option<usize> {
    if *escaped {
        bytes.get(at)?;
        at += 1;
        *escaped = false;
    }
    loop {
        at += memchr2(b'"', b'\\', &bytes[at..])? + 1;
        if bytes[at - 1] == b'"' {
            return Some(at);
        }
        if at == bytes.len() {
            *escaped = true;
            return None;
        }
        at += 1;
    }
}

/// Index of the first byte from `at` that is not white space.
fn skip_space(bytes: &[u8], at: usize) -> usize {
    bytes[at..].iter().position(|b| !b.is_ascii_whitespace()).map_or(bytes.len(), |length| at + length)
}

/// One past the value that starts at `at`.
fn value_end(bytes: &[u8], at: usize) -> Result<usize, Syntax> {
    let wrong = |what| Syntax { at, what };
    match bytes.get(at) {
        None => Err(wrong("a value is missing")),
        Some(b',' | b']' | b'}' | b':') => Err(wrong("expected a value")),
        Some(&first) => {
            let mut scan = Scan::start(first);
            match scan.advance(&bytes[at + 1..]) {
                Some(length) => Ok(at + 1 + length),
                None if scan == Scan::Plain => Ok(bytes.len()),
                None => Err(wrong("a value without an end")),
            }
        }
    }
}

/// Calls `take` with the key, value and value offset of each member of the object `text`.
/// Errors: if the text is not an object.
pub(super) fn members<'t>(text: &'t [u8], mut take: impl FnMut(&str, &'t [u8], usize)) -> Result<(), Syntax> {
    let mut at = open(text, b'{', "expected an object")?;
    let mut first = true;
    loop {
        at = skip_space(text, at);
        match text.get(at) {
            Some(b'}') => return closed(text, at),
            Some(b',') if !first => at = skip_space(text, at + 1),
            Some(_) if first => {}
            _ => return Err(Syntax { at, what: "expected a comma or the end of the object" }),
        }
        first = false;
        if text.get(at) != Some(&b'"') {
            return Err(Syntax { at, what: "expected a key in quotes" });
        }
        let end = value_end(text, at)?;
        let key = string(&text[at..end]).map_err(|_| Syntax { at, what: "a key that is not a valid string" })?;
        at = skip_space(text, end);
        if text.get(at) != Some(&b':') {
            return Err(Syntax { at, what: "expected a colon" });
        }
        at = skip_space(text, at + 1);
        let end = value_end(text, at)?;
        take(&key, &text[at..end], at);
        at = end;
    }
}

/// Calls `take` with each item of the list `text`.
/// Errors: if the text is not a list.
pub(super) fn items<'t>(text: &'t [u8], mut take: impl FnMut(&'t [u8])) -> Result<(), Syntax> {
    let mut at = open(text, b'[', "expected a list")?;
    let mut first = true;
    loop {
        at = skip_space(text, at);
        match text.get(at) {
            Some(b']') if first => return closed(text, at),
            Some(b']') => return closed(text, at),
            Some(b',') if !first => at = skip_space(text, at + 1),
            Some(_) if first => {}
            _ => return Err(Syntax { at, what: "expected a comma or the end of the list" }),
        }
        first = false;
        let end = value_end(text, at)?;
        take(&text[at..end]);
        at = end;
    }
}

fn open(text: &[u8], bracket: u8, what: &'static str) -> Result<usize, Syntax> {
    let at = skip_space(text, 0);
    if text.get(at) == Some(&bracket) { Ok(at + 1) } else { Err(Syntax { at, what }) }
}

fn closed(text: &[u8], at: usize) -> Result<(), Syntax> {
    let rest = skip_space(text, at + 1);
    if rest == text.len() { Ok(()) } else { Err(Syntax { at: rest, what: "text after the end" }) }
}

/// The content of a string in quotes.
/// Errors: says what is wrong with it.
pub(super) fn string(text: &[u8]) -> Result<Cow<'_, str>, &'static str> {
    let inner = match text {
        [b'"', inner @ .., b'"'] => inner,
        _ => return Err("expected a string in quotes"),
    };
    if memchr2(b'\\', b'"', inner).is_none() {
        return std::str::from_utf8(inner).map(Cow::Borrowed).map_err(|_| "it is not UTF-8");
    }
    if std::str::from_utf8(inner).is_err() {
        return Err("it is not UTF-8");
    }
    // Unpaired surrogates, which Python accepts, are not valid in file names.
    serde_json::from_slice::<String>(text).map(Cow::Owned).map_err(|_| "it has invalid escapes")
}

/// The number of a plain value: a JSON number, `NaN`, `Infinity` or `-Infinity`. `None` for anything else.
pub(super) fn number(text: &[u8]) -> Option<f64> {
    match text {
        b"NaN" => Some(f64::NAN),
        b"Infinity" => Some(f64::INFINITY),
        b"-Infinity" => Some(f64::NEG_INFINITY),
        [b'-' | b'0'..=b'9', ..] => std::str::from_utf8(text).ok()?.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys_and_values(text: &str) -> Result<Vec<(String, String)>, Syntax> {
        let mut found = Vec::new();
        members(text.as_bytes(), |key, value, at| {
            let value = String::from_utf8(value.to_vec()).unwrap();
            assert_eq!(&text[at..at + value.len()], value);
            found.push((key.to_owned(), value));
        })?;
        Ok(found)
    }

    #[test]
    fn members_and_items_are_slices_of_the_text() {
        let text = r#" { "a" : [1, {"b": "]}\""}], "c\n":-1.5e3 ,"d":"x, y" } "#;
        let found = keys_and_values(text).unwrap();
        let expected = [("a", r#"[1, {"b": "]}\""}]"#), ("c\n", "-1.5e3"), ("d", r#""x, y""#)];
        assert_eq!(found, expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
        let mut list = Vec::new();
        items(b"[1,[2, 3] , \"a\", NaN]", |item| list.push(std::str::from_utf8(item).unwrap())).unwrap();
        assert_eq!(list, ["1", "[2, 3]", "\"a\"", "NaN"]);
    }

    #[test]
    fn invalid_json_is_an_error_with_its_position() {
        for (text, at) in
            [("{\"a\" 1}", 5), ("{\"a\":}", 5), ("{\"a\":1 \"b\":2}", 7), ("{a:1}", 1), ("[1]", 0), ("{} x", 3)]
        {
            assert_eq!(keys_and_values(text).unwrap_err().at, at, "{text}");
        }
        for text in ["[1 2]", "[,1]", "[1,]", "[1", "1", "[\"a]"] {
            assert!(items(text.as_bytes(), |_| {}).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_are_read_as_in_python() {
        assert_eq!(number(b"-1.5e3"), Some(-1500.0));
        assert!(number(b"NaN").unwrap().is_nan());
        for wrong in ["nan", "inf", "+1", ".5", "1,", "", "true", "\"1\"", "1x"] {
            assert_eq!(number(wrong.as_bytes()), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn reading_any_bytes_terminates(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = members(&bytes, |_, _, _| {});
            let _ = items(&bytes, |_| {});
        }

        #[test]
        fn a_value_ends_at_the_same_place_in_one_piece_or_many(text in "[\\[\\]{}\",:\\\\a1 ]{1,40}", cut in 1usize..39) {
            let bytes = text.as_bytes();
            let mut whole = Scan::start(bytes[0]);
            let end = whole.advance(&bytes[1..]);
            let cut = cut.min(bytes.len());
            let mut pieces = Scan::start(bytes[0]);
            let end_in_pieces = match pieces.advance(&bytes[1..cut]) {
                Some(end) => Some(end),
                None => pieces.advance(&bytes[cut..]).map(|end| end + cut - 1),
            };
            prop_assert_eq!(end, end_in_pieces);
        }
    }
}

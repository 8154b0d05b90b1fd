//! Text for messages: numbers with nouns, shortened lists, escaped user text.

use std::borrow::Cow;

pub use fnet_protocol::text::count;

/// The first `most` items, and the number of further ones.
pub fn list(items: impl IntoIterator<Item = String>, most: usize) -> String {
    let mut items = items.into_iter();
    let shown: Vec<String> = items.by_ref().take(most).collect();
    match items.count() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// Text in quotes, escaped and shortened.
pub fn quoted(text: &str) -> String {
    const MOST: usize = 80;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// Text with line breaks and other control characters escaped.
pub fn printable(text: &str) -> Cow<'_, str> {
    let is_odd = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    if !text.contains(is_odd) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if is_odd(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_shortened_and_text_stays_on_one_line() {
        let names = || ["a", "b", "c"].map(str::to_owned);
        assert_eq!(list(names(), 3), "a, b, c");
        assert_eq!(list(names(), 1), "a and 2 more");
        assert_eq!(printable("caf\u{e9} \u{1f600}.jpg"), "caf\u{e9} \u{1f600}.jpg");
        assert_eq!(printable("a\n\u{1b}[2J\u{202e}.jpg"), "a\\n\\u{1b}[2J\\u{202e}.jpg");
        assert_eq!(quoted("a\"b"), "\"a\\\"b\"");
        assert!(quoted(&"x".repeat(999)).len() < 100);
    }
}

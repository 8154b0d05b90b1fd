//! Text for messages: numbers with nouns, shortened lists, escaped user text.

use std::borrow::Cow;

/// A number and its noun: "1 image", "2 images", "0 classes".
pub fn count(number: usize, one: &str) -> String {
    if number == 1 {
        return format!("1 {one}");
    }
    match one {
        _ if one.ends_with(['s', 'x']) => format!("{number} {one}es"),
        _ if one.ends_with('y') => format!("{number} {}ies", &one[..one.len() - 1]),
        _ => format!("{number} {one}s"),
    }
}

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

/// One word for a shell, in quotes if it needs them.
pub fn shell_word(text: &str) -> String {
    let is_plain = |letter: char| letter.is_alphanumeric() || "/._-+,:=@%".contains(letter);
    let plain = !text.is_empty() && text.chars().all(is_plain);
    if plain { text.to_owned() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

/// A line of the text log as in MMDetection: `2026-11-25 01:41:17,570 - fnet - INFO - message`.
pub fn log_line(time: &jiff::Zoned, name: &str, level: &str, message: &str) -> String {
    let milliseconds = time.subsec_nanosecond() / 1_000_000;
    format!("{},{milliseconds:03} - {name} - {level} - {message}\n", time.strftime("%Y-%m-%d %H:%M:%S"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nouns_are_singular_or_plural() {
        for (number, one, text) in [
            (1, "image", "1 image"),
            (0, "image", "0 images"),
            (2, "class", "2 classes"),
            (3, "category", "3 categories"),
        ] {
            assert_eq!(count(number, one), text);
        }
    }

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

    #[test]
    fn a_line_has_time_name_level_and_message() {
        let time: jiff::Zoned = "2026-11-25T01:41:07.0705[UTC]".parse().unwrap();
        assert_eq!(log_line(&time, "fnet", "WARNING", "x"), "2026-11-25 01:41:07,070 - fnet - WARNING - x\n");
    }
}

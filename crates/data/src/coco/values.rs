//! Reads JSON values of annotation files. A number may be written as a number, a string or a boolean.

use fnet_common::text::printable;

use super::json::{items, number, string};

/// 2^53. Larger integers are not exact as floats.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// Numbers below this represent ids that are names.
const LEAST_ID: i64 = i64::MIN / 2;

/// A value, and whether it was written as a string, which MMDetection does not accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Written<T> {
    pub value: T,
    pub as_text: bool,
}

/// An id: `7` and `"7"` are equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum RawId {
    Number(i64),
    /// A string that is not a number.
    Name(String),
}

/// Reads `7`, `7.0` and `"7"`.
pub(super) fn integer(text: &[u8]) -> Result<Written<i64>, String> {
    let wrong = || match is_whole(text) {
        true => format!("{} is too large", shown(text)),
        false => format!("{} is not a whole number", shown(text)),
    };
    if text.first() == Some(&b'"') {
        let content = string(text)?;
        return content.trim().parse().map(|value| Written { value, as_text: true }).map_err(|_| wrong());
    }
    if let Some(value) = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()) {
        return Ok(Written { value, as_text: false });
    }
    let float = number(text).filter(|value| value.fract() == 0.0 && value.abs() <= EXACT).ok_or_else(wrong)?;
    Ok(Written { value: float as i64, as_text: false })
}

/// Whether the text is a whole number of any size, perhaps in quotes.
pub(super) fn is_whole(text: &[u8]) -> bool {
    let text = text.strip_prefix(b"\"").and_then(|text| text.strip_suffix(b"\"")).unwrap_or(text).trim_ascii();
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let is_float = || number(text).is_some_and(|value| value.is_finite() && value.fract() == 0.0);
    !digits.is_empty() && (digits.iter().all(u8::is_ascii_digit) || is_float())
}

/// Reads an id. A string that is not the canonical form of a number is a name, because "007" and "7" may be different
/// ids.
pub(super) fn id(text: &[u8]) -> Result<Written<RawId>, String> {
    match integer(text) {
        Ok(number) if number.value < LEAST_ID => Err(format!("{} is too small", shown(text))),
        Ok(Written { value, as_text }) if !as_text || string(text)? == value.to_string() => {
            Ok(Written { value: RawId::Number(value), as_text })
        }
        Ok(_) | Err(_) if text.first() == Some(&b'"') => {
            Ok(Written { value: RawId::Name(string(text)?.into_owned()), as_text: true })
        }
        Ok(_) => Err(format!("{} is not an id", shown(text))),
        Err(message) => Err(message),
    }
}

/// Reads a number, which may be in quotes.
pub(super) fn float(text: &[u8]) -> Result<Written<f64>, String> {
    let wrong = || format!("{} is not a number", shown(text));
    if text.first() == Some(&b'"') {
        let content = string(text)?;
        let value = number(content.trim().as_bytes()).ok_or_else(wrong)?;
        return Ok(Written { value, as_text: true });
    }
    number(text).map(|value| Written { value, as_text: false }).ok_or_else(wrong)
}

/// Reads a flag: a number (nonzero is true), `true`, `false`, or null for false. A string is an error, because its
/// meaning is ambiguous: in Python, "0" is true.
pub(super) fn flag(text: &[u8]) -> Result<bool, String> {
    match text {
        b"true" => return Ok(true),
        b"false" | b"null" => return Ok(false),
        _ => {}
    }
    number(text).map(|value| value != 0.0).ok_or_else(|| format!("{} is neither 0 nor 1", shown(text)))
}

/// Reads a box `[x, y, width, height]`. `None` for null or an empty list.
pub(super) fn bbox(text: &[u8]) -> Result<Option<Written<[f64; 4]>>, String> {
    if text == b"null" {
        return Ok(None);
    }
    let mut sides = [0.0; 4];
    let (mut count, mut as_text, mut wrong) = (0, false, None);
    let list = items(text, |item| {
        match float(item) {
            Ok(side) => {
                as_text |= side.as_text;
                if let Some(slot) = sides.get_mut(count) {
                    *slot = side.value;
                }
            }
            Err(message) => wrong = Some(message),
        }
        count += 1;
    });
    match (list, count, wrong) {
        (Ok(()), 0, _) => Ok(None),
        (Ok(()), 4, None) => Ok(Some(Written { value: sides, as_text })),
        (Ok(()), _, Some(message)) => Err(message),
        _ => Err(format!("{} is not a box of four numbers [x, y, width, height]", shown(text))),
    }
}

/// The start of a text, on one line, for messages.
pub(super) fn shown(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(&text[..text.len().min(160)]);
    let words: Vec<&str> = text.split_whitespace().collect();
    let line = printable(&words.join(" ")).into_owned();
    if line.chars().count() > 40 { format!("{}...", line.chars().take(40).collect::<String>()) } else { line }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_integer_may_be_written_as_a_whole_float_or_a_string() {
        assert_eq!(integer(b"7"), Ok(Written { value: 7, as_text: false }));
        assert_eq!(integer(b"-7.0"), Ok(Written { value: -7, as_text: false }));
        assert_eq!(integer(b"\" 7\""), Ok(Written { value: 7, as_text: true }));
        for wrong in ["7.5", "\"a\"", "null", "[7]", "1e300", "18446744073709551615", "NaN", "true", ""] {
            assert!(integer(wrong.as_bytes()).is_err(), "{wrong}");
        }
        for large in ["9223372036854775808", "-9223372036854775809", "1e300", "\"9223372036854775808\""] {
            assert!(integer(large.as_bytes()).unwrap_err().ends_with("is too large"), "{large}");
        }
        assert_eq!(id(b"\"7\""), Ok(Written { value: RawId::Number(7), as_text: true }));
        for name in ["a-1", "007", "+7", " 7", "-0"] {
            assert_eq!(
                id(format!("\"{name}\"").as_bytes()),
                Ok(Written { value: RawId::Name(name.into()), as_text: true })
            );
        }
        assert!(id(b"null").is_err() && id(b"-9223372036854775808").is_err());
    }

    #[test]
    fn flags_are_read_in_every_spelling() {
        let table = [("0", false), ("1", true), ("true", true), ("false", false), ("null", false), ("2", true)];
        for (text, value) in table.into_iter().chain([("0.0", false), ("NaN", true)]) {
            assert_eq!(flag(text.as_bytes()), Ok(value), "{text}");
        }
        for wrong in ["\"yes\"", "\"0\"", "[]"] {
            assert!(flag(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_box_has_four_numbers_or_none() {
        let value = |text: &str| bbox(text.as_bytes()).map(|found| found.map(|found| found.value));
        assert_eq!(value("[1,2.5,3,4]"), Ok(Some([1.0, 2.5, 3.0, 4.0])));
        assert_eq!(value("[]"), Ok(None));
        assert_eq!(value("null"), Ok(None));
        assert!(value("[1,2,3]").unwrap_err().contains("[x, y, width, height]"));
        assert!(value("[1,2,3,4,5]").is_err());
        assert!(value("[1,2,3,null]").unwrap_err().contains("null"));
        assert!(value("{}").is_err());
        assert_eq!(bbox(b"[\"1\",2,3,4]"), Ok(Some(Written { value: [1.0, 2.0, 3.0, 4.0], as_text: true })));
        assert!(value("[NaN,2,3,4]").unwrap().unwrap()[0].is_nan());
    }
}

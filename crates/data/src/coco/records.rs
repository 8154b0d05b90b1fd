//! Reads entries of `images` and `categories`.

use std::path::Path;

use super::json::{Syntax, members, string};
use super::values::{RawId, Written, id, integer};
use crate::diagnostics::{Code, Diagnostics, Location};

/// One entry of `images`.
#[derive(Debug, Clone)]
pub(super) struct RawImage {
    pub id: Written<RawId>,
    pub file_name: String,
    /// `[width, height]` in pixels, or an error message.
    pub size: Result<[u32; 2], Box<str>>,
    /// Whether a side was written as a string.
    pub size_as_text: bool,
}

/// One entry of `categories`.
#[derive(Debug, Clone)]
pub(super) struct RawCategory {
    pub id: Written<RawId>,
    pub name: String,
}

/// The id for messages. For an entry without one: `#` and its position in the list, from 1.
pub(super) fn shown_id(id: Option<&Written<RawId>>, row: usize) -> String {
    match id.map(|id| &id.value) {
        Some(RawId::Number(number)) => number.to_string(),
        Some(RawId::Name(name)) => name.clone(),
        None => format!("#{}", row + 1),
    }
}

/// The message of a syntax error in an element.
pub(super) fn syntax_message(error: &Syntax) -> String {
    format!("{} at byte {}", error.what, error.at + 1)
}

/// The id and the name of an entry. Errors: the id, if known, and a message.
type Named = Result<(Written<RawId>, String), (Option<Written<RawId>>, String)>;

/// Reads the id and the string `name_key` of an entry. Passes other members to `other`.
fn named<'t>(text: &'t [u8], name_key: &str, mut other: impl FnMut(&str, &'t [u8])) -> Named {
    let (mut own_id, mut name, mut wrong) = (None, None, None);
    let walked = members(text, |key, value, _| {
        let taken = match key {
            "id" => id(value).map(|value| own_id = Some(value)),
            _ if key == name_key => string(value).map(|value| name = Some(value.into_owned())).map_err(str::to_owned),
            _ => {
                other(key, value);
                Ok(())
            }
        };
        if let Err(message) = taken {
            wrong.get_or_insert(format!("{key}: {message}"));
        }
    });
    match (walked.map_err(|error| syntax_message(&error)), wrong, own_id, name) {
        (Err(message), _, id, _) | (_, Some(message), id, _) => Err((id, message)),
        (_, _, None, _) => Err((None, "no id".into())),
        (_, _, id, None) => Err((id, format!("no {name_key}"))),
        (_, _, Some(id), Some(name)) => Ok((id, name)),
    }
}

/// Reads an entry of `images`. Returns `None` and adds a diagnostic if it cannot be used.
pub(super) fn image(text: &[u8], row: usize, path: &Path, diagnostics: &mut Diagnostics) -> Option<RawImage> {
    let (mut width, mut height) = (Err("no width".to_owned()), Err("no height".to_owned()));
    let read = named(text, "file_name", |key, value| match key {
        "width" => width = side(value).map_err(|message| format!("width: {message}")),
        "height" => height = side(value).map_err(|message| format!("height: {message}")),
        _ => {}
    });
    let read = read.and_then(|(id, name)| match name.is_empty() || name.contains('\0') {
        true => Err((Some(id), "file_name has no file name".into())),
        false => Ok((id, name)),
    });
    let (id, file_name) = match read {
        Ok(read) => read,
        Err((id, message)) => {
            diagnostics.add(Code::ImageMalformed, path, || Location::image(shown_id(id.as_ref(), row)), || message);
            return None;
        }
    };
    let size_as_text = [&width, &height].iter().any(|side| side.as_ref().is_ok_and(|side| side.as_text));
    let size = match (width, height) {
        (Ok(width), Ok(height)) => Ok([width.value, height.value]),
        (Err(message), Ok(_)) | (Ok(_), Err(message)) => Err(message.into()),
        (Err(width), Err(height)) => Err(format!("{width}, {height}").into()),
    };
    Some(RawImage { id, file_name, size, size_as_text })
}

/// Reads a width or height in pixels.
fn side(text: &[u8]) -> Result<Written<u32>, String> {
    let Written { value, as_text } = integer(text)?;
    match u32::try_from(value) {
        Ok(value @ 1..) => Ok(Written { value, as_text }),
        Err(_) if value > 0 => Err(format!("{value} is too large")),
        _ => Err(format!("{value} is not above 0")),
    }
}

/// Reads an entry of `categories`. Returns `None` and adds a diagnostic if it cannot be used.
pub(super) fn category(text: &[u8], row: usize, path: &Path, diagnostics: &mut Diagnostics) -> Option<RawCategory> {
    match named(text, "name", |_, _| {}) {
        Ok((id, name)) => Some(RawCategory { id, name }),
        Err((id, message)) => {
            diagnostics.add(
                Code::CategoryMalformed,
                path,
                || Location::category(shown_id(id.as_ref(), row)),
                || message,
            );
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_needs_an_id_and_a_name() {
        let mut diagnostics = Diagnostics::keeping(9);
        let mut read = |text: &str| image(text.as_bytes(), 4, Path::new("a.json"), &mut diagnostics);
        let sound =
            read(r#"{"id": "3", "file_name": "a\u00e9/b.jpg", "width": 4.0, "height": "5", "x": [{}]}"#).unwrap();
        assert_eq!((sound.file_name.as_str(), sound.size, sound.size_as_text), ("a\u{e9}/b.jpg", Ok([4, 5]), true));
        for (sides, message) in [
            (r#""width": 0, "height": 5"#, "width: 0 is not above 0"),
            (r#""width": 5, "height": 5000000000"#, "height: 5000000000 is too large"),
            (r#""width": 9223372036854775808, "height": 5"#, "width: 9223372036854775808 is too large"),
            (
                r#""width": "a", "height": null"#,
                "width: \"a\" is not a whole number, height: null is not a whole number",
            ),
            (r#""height": 5"#, "no width"),
            (r#""x": 5"#, "no width, no height"),
        ] {
            let size = read(&format!(r#"{{"id": 3, "file_name": "a", {sides}}}"#)).unwrap().size;
            assert_eq!(size.unwrap_err().as_ref(), message);
        }
        for wrong in
            [r#"{"id": 3}"#, r#"{"file_name": "a"}"#, r#"{"id": null, "file_name": "a"}"#, "7", r#"{"id": 3,}"#]
        {
            assert!(read(wrong).is_none(), "{wrong}");
        }
        let places: Vec<_> =
            diagnostics.kept().iter().map(|diagnostic| diagnostic.place.image.clone().unwrap()).collect();
        assert_eq!(places, ["3", "#5", "#5", "#5", "3"]);
    }

    #[test]
    fn a_category_needs_an_id_and_a_name() {
        let mut diagnostics = Diagnostics::keeping(9);
        let mut read = |text: &str| category(text.as_bytes(), 0, Path::new("a.json"), &mut diagnostics);
        assert_eq!(read(r#"{"id": 0, "name": "cat"}"#).unwrap().name, "cat");
        for wrong in [r#"{"id": 3}"#, r#"{"name": "a"}"#, "\"cat\"", r#"{"id": 1.5, "name": "a"}"#] {
            assert!(read(wrong).is_none(), "{wrong}");
        }
        assert_eq!(diagnostics.count(Code::CategoryMalformed), 4);
    }
}

//! Entries of `images` and `categories` as they are written.

use std::path::Path;

use super::json::{Syntax, members, string};
use super::values::{RawId, Written, id, integer};
use crate::data::findings::{Code, Findings, Place};

/// One entry of `images`.
#[derive(Debug, Clone)]
pub(super) struct RawImage {
    pub id: RawId,
    pub file_name: String,
    /// `[width, height]` in pixels; `None` where the file does not say, or says nonsense.
    pub size: Option<[u32; 2]>,
    /// Whether a side was written as a string.
    pub size_as_text: bool,
}

/// One entry of `categories`.
#[derive(Debug, Clone)]
pub(super) struct RawCategory {
    pub id: RawId,
    pub name: String,
}

/// The id for messages; for an entry without one, its number in the list, from 1.
pub(super) fn shown_id(id: Option<&RawId>, row: usize) -> String {
    match id {
        Some(RawId::Number(number)) => number.value.to_string(),
        Some(RawId::Name(name)) => name.clone(),
        None => format!("#{}", row + 1),
    }
}

/// What a syntax error in an element says.
pub(super) fn syntax_message(error: &Syntax) -> String {
    format!("{} at its byte {}", error.what, error.at + 1)
}

/// Reads an entry of `images`; `None`, with a finding, if it cannot be used.
pub(super) fn image(text: &[u8], row: usize, path: &Path, findings: &mut Findings) -> Option<RawImage> {
    let (mut own_id, mut name, mut sides) = (None, None, [None, None]);
    let mut wrong = Vec::new();
    let walked = members(text, |key, value, _| match key {
        "id" => match id(value) {
            Ok(value) => own_id = Some(value),
            Err(message) => wrong.push(format!("id: {message}")),
        },
        "file_name" => match string(value) {
            Ok(value) => name = Some(value.into_owned()),
            Err(message) => wrong.push(format!("file_name: {message}")),
        },
        "width" => sides[0] = integer(value).ok(),
        "height" => sides[1] = integer(value).ok(),
        _ => {}
    });
    let malformed = match (walked, wrong.first(), &own_id, &name) {
        (Err(error), ..) => Some(syntax_message(&error)),
        (_, Some(message), ..) => Some(message.clone()),
        (_, _, None, _) => Some("no id".into()),
        (_, _, _, None) => Some("no file_name".into()),
        (_, _, _, Some(name)) if name.is_empty() || name.contains('\0') => Some("file_name names no file".into()),
        _ => None,
    };
    if let Some(message) = malformed {
        findings.add(Code::ImageMalformed, path, || Place::image(shown_id(own_id.as_ref(), row)), || message);
        return None;
    }
    let side =
        |side: Option<Written<i64>>| side.and_then(|side| u32::try_from(side.value).ok()).filter(|&side| side > 0);
    let size = side(sides[0]).zip(side(sides[1])).map(|(width, height)| [width, height]);
    let size_as_text = size.is_some() && sides.iter().flatten().any(|side| side.as_text);
    Some(RawImage { id: own_id?, file_name: name?, size, size_as_text })
}

/// Reads an entry of `categories`; `None`, with a finding, if it cannot be used.
pub(super) fn category(text: &[u8], row: usize, path: &Path, findings: &mut Findings) -> Option<RawCategory> {
    let (mut own_id, mut name) = (None, None);
    let mut wrong = Vec::new();
    let walked = members(text, |key, value, _| match key {
        "id" => match id(value) {
            Ok(value) => own_id = Some(value),
            Err(message) => wrong.push(format!("id: {message}")),
        },
        "name" => match string(value) {
            Ok(value) => name = Some(value.into_owned()),
            Err(message) => wrong.push(format!("name: {message}")),
        },
        _ => {}
    });
    let malformed = match (walked, wrong.first(), &own_id, &name) {
        (Err(error), ..) => Some(syntax_message(&error)),
        (_, Some(message), ..) => Some(message.clone()),
        (_, _, None, _) => Some("no id".into()),
        (_, _, _, None) => Some("no name".into()),
        _ => None,
    };
    if let Some(message) = malformed {
        findings.add(Code::CategoryMalformed, path, || Place::category(shown_id(own_id.as_ref(), row)), || message);
        return None;
    }
    Some(RawCategory { id: own_id?, name: name? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_needs_an_id_and_a_name() {
        let mut findings = Findings::keeping(9);
        let mut read = |text: &str| image(text.as_bytes(), 4, Path::new("a.json"), &mut findings);
        let sound =
            read(r#"{"id": "3", "file_name": "a\u00e9/b.jpg", "width": 4.0, "height": "5", "x": [{}]}"#).unwrap();
        assert_eq!((sound.file_name.as_str(), sound.size, sound.size_as_text), ("a\u{e9}/b.jpg", Some([4, 5]), true));
        assert_eq!(read(r#"{"id": 3, "file_name": "a", "width": 0, "height": 5}"#).unwrap().size, None);
        for wrong in
            [r#"{"id": 3}"#, r#"{"file_name": "a"}"#, r#"{"id": null, "file_name": "a"}"#, "7", r#"{"id": 3,}"#]
        {
            assert!(read(wrong).is_none(), "{wrong}");
        }
        let places: Vec<_> = findings.kept().iter().map(|finding| finding.place.image.clone().unwrap()).collect();
        assert_eq!(places, ["3", "#5", "#5", "#5", "3"]);
    }

    #[test]
    fn a_category_needs_an_id_and_a_name() {
        let mut findings = Findings::keeping(9);
        let mut read = |text: &str| category(text.as_bytes(), 0, Path::new("a.json"), &mut findings);
        assert_eq!(read(r#"{"id": 0, "name": "cat"}"#).unwrap().name, "cat");
        for wrong in [r#"{"id": 3}"#, r#"{"name": "a"}"#, "\"cat\"", r#"{"id": 1.5, "name": "a"}"#] {
            assert!(read(wrong).is_none(), "{wrong}");
        }
        assert_eq!(findings.count(Code::CategoryMalformed), 4);
    }
}

//! Reads an annotation file in one pass into columns: no string and no mask of an annotation is kept, only where in
//! the file its mask stands.

use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::values::{BoxValue, Flag, Integer};
use crate::error::{Error, Result};

/// One entry of `images`.
#[derive(Debug, Deserialize)]
pub(super) struct RawImage {
    pub id: Integer,
    pub file_name: String,
    pub width: Option<Integer>,
    pub height: Option<Integer>,
}

/// One entry of `categories`.
#[derive(Debug, Deserialize)]
pub(super) struct RawCategory {
    pub id: Integer,
    pub name: String,
}

/// Where the JSON text of a value stands in the file, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Span {
    pub offset: u64,
    pub length: u32,
}

/// One entry of `annotations`, as far as it is kept.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RawAnnotation {
    pub id: Option<i64>,
    pub image_id: i64,
    pub category_id: Option<i64>,
    /// `[x, y, width, height]`.
    pub bbox: Option<[f64; 4]>,
    pub area: Option<f64>,
    pub is_crowd: bool,
    pub ignore: bool,
    /// The mask; `None` where it is absent, null, or an empty list or string.
    pub segmentation: Option<Span>,
}

/// The content of an annotation file.
#[derive(Debug, Default)]
pub(super) struct RawFile {
    pub images: Option<Vec<RawImage>>,
    pub annotations: Option<Vec<RawAnnotation>>,
    pub categories: Option<Vec<RawCategory>>,
    /// How many ids were written as strings.
    pub text_ids: usize,
}

/// Parses the bytes of the annotation file at `path`.
pub(super) fn parse(bytes: &[u8], path: &Path) -> Result<RawFile> {
    let wrong = |message: String| Error::data(format!("{}: {message}", path.display()));
    let start = match bytes {
        [0xef, 0xbb, 0xbf, ..] => 3,
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => {
            return Err(wrong("the file is UTF-16, expected UTF-8; save it as UTF-8".into()));
        }
        _ => 0,
    };
    if bytes[start..].iter().all(u8::is_ascii_whitespace) {
        return Err(wrong("the file is empty, expected COCO annotations; copy or download it again".into()));
    }
    let mut file = RawFile::default();
    let mut reader = serde_json::Deserializer::from_slice(&bytes[start..]);
    let top = TopLevel { base: bytes.as_ptr() as usize, file: &mut file };
    top.deserialize(&mut reader)
        .and_then(|()| reader.end())
        .map_err(|error| wrong(format!("line {}, column {}: {}", error.line(), error.column(), plain(&error))))?;
    Ok(file)
}

/// The message of a JSON error without its position, with a remedy where the cause is known.
fn plain(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(message, _)| message);
    if error.is_eof() {
        format!("{text}: the file is cut off; copy or download it again")
    } else if error.is_data() {
        format!("{text}; mend the annotation file")
    } else {
        format!("{text}: not JSON; mend the file or export it again")
    }
}

struct TopLevel<'f> {
    base: usize,
    file: &'f mut RawFile,
}

impl<'de> DeserializeSeed<'de> for TopLevel<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for TopLevel<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("COCO annotations, an object with the keys images, annotations and categories")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        // A repeated key replaces the earlier one, as in Python's reader.
        while let Some(key) = map.next_key::<std::borrow::Cow<str>>()? {
            match key.as_ref() {
                "images" => self.file.images = Some(map.next_value()?),
                "categories" => self.file.categories = Some(map.next_value()?),
                "annotations" => {
                    let seed = Annotations { base: self.base, text_ids: &mut self.file.text_ids };
                    self.file.annotations = Some(map.next_value_seed(seed)?);
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        let texts = |ids: &mut dyn Iterator<Item = Integer>| ids.filter(|id| id.was_text).count();
        self.file.text_ids += texts(&mut self.file.images.iter().flatten().map(|image| image.id))
            + texts(&mut self.file.categories.iter().flatten().map(|category| category.id));
        Ok(())
    }
}

struct Annotations<'f> {
    base: usize,
    text_ids: &'f mut usize,
}

impl<'de> DeserializeSeed<'de> for Annotations<'_> {
    type Value = Vec<RawAnnotation>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Annotations<'_> {
    type Value = Vec<RawAnnotation>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a list of annotations")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut annotations = Vec::new();
        while let Some(text) = list.next_element::<AnnotationText>()? {
            let ids = [text.id, text.image_id, text.category_id];
            *self.text_ids += ids.iter().flatten().filter(|id| id.was_text).count();
            let Some(image_id) = text.image_id else {
                let id = text.id.map_or_else(|| "without id".into(), |id| id.value.to_string());
                return Err(de::Error::custom(format!("annotation {id} has no image_id")));
            };
            annotations.push(RawAnnotation {
                id: text.id.map(|id| id.value),
                image_id: image_id.value,
                category_id: text.category_id.map(|id| id.value),
                bbox: text.bbox.0,
                area: text.area,
                is_crowd: text.iscrowd.0,
                ignore: text.ignore.0,
                segmentation: span(text.segmentation, self.base).map_err(de::Error::custom)?,
            });
        }
        Ok(annotations)
    }
}

/// An annotation as it is written. Absent fields are the defaults; unknown fields are passed over.
#[derive(Deserialize, Default)]
#[serde(default, expecting = "an annotation, an object with image_id, category_id, bbox and segmentation")]
struct AnnotationText<'a> {
    id: Option<Integer>,
    image_id: Option<Integer>,
    category_id: Option<Integer>,
    bbox: BoxValue,
    area: Option<f64>,
    iscrowd: Flag,
    ignore: Flag,
    #[serde(borrow)]
    segmentation: Option<&'a RawValue>,
}

/// The place of `value` in the text that starts at address `base`; `None` for an empty list, object or string.
fn span(value: Option<&RawValue>, base: usize) -> Result<Option<Span>, String> {
    let Some(text) = value.map(RawValue::get) else { return Ok(None) };
    let inner = text.trim_matches(|c: char| c.is_ascii_whitespace() || matches!(c, '[' | ']' | '{' | '}' | '"'));
    if inner.is_empty() || inner == "null" {
        return Ok(None);
    }
    let offset = (text.as_ptr() as usize - base) as u64;
    let length = u32::try_from(text.len()).map_err(|_| "a segmentation of more than 4 GB".to_string())?;
    Ok(Some(Span { offset, length }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<RawFile> {
        parse(text.as_bytes(), Path::new("a.json"))
    }

    #[test]
    fn fields_may_come_in_any_order_and_unknown_ones_are_passed_over() {
        let text = r#"{"annotations": [{"segmentation": [[1, 2, 3, 4, 5, 6]], "extra": {"a": [1]}, "id": 5, "bbox":
            [1, 2, 3, 4], "category_id": 1, "image_id": 9, "iscrowd": true}], "info": null, "images": [{"id": 9,
            "file_name": "a.jpg", "width": 3, "height": 4}], "categories": [{"id": 1, "name": "cat"}]}"#;
        let file = read(text).unwrap();
        let annotation = file.annotations.unwrap()[0];
        assert_eq!((annotation.id, annotation.image_id, annotation.is_crowd), (Some(5), 9, true));
        let span = annotation.segmentation.unwrap();
        let start = span.offset as usize;
        assert_eq!(&text[start..start + span.length as usize], "[[1, 2, 3, 4, 5, 6]]");
        assert_eq!(file.categories.unwrap()[0].name, "cat");
    }

    #[test]
    fn a_byte_order_mark_does_not_shift_the_spans() {
        let text = "\u{feff}{\"annotations\":[{\"image_id\":1,\"segmentation\":[[1,2,3,4,5,6]]}]}";
        let span = read(text).unwrap().annotations.unwrap()[0].segmentation.unwrap();
        assert_eq!(&text[span.offset as usize..][..span.length as usize], "[[1,2,3,4,5,6]]");
    }

    #[test]
    fn an_empty_segmentation_is_none() {
        for empty in ["[]", "[[]]", "null", "\"\"", "{}", "[ ]"] {
            let text = format!("{{\"annotations\":[{{\"image_id\":1,\"segmentation\":{empty}}}]}}");
            assert_eq!(read(&text).unwrap().annotations.unwrap()[0].segmentation, None, "{empty}");
        }
    }

    #[test]
    fn errors_name_the_file_the_line_and_the_remedy() {
        let cases = [
            ("{\"images\": [\n{\"id\": 1,", "a.json: line 2"),
            ("", "empty"),
            ("[1]", "images, annotations and categories"),
            ("{\"annotations\": [{\"id\": 3}]}", "annotation 3 has no image_id"),
            ("{\"annotations\": [{\"image_id\": 3, \"bbox\": [1, 2]}]}", "[x, y, width, height]"),
            ("{} x", "not JSON"),
        ];
        for (text, expected) in cases {
            let message = read(text).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
        let error = parse(&[0xff, 0xfe, 0x7b, 0], Path::new("a.json")).unwrap_err();
        assert!(error.to_string().contains("UTF-8"), "{error}");
    }

    #[test]
    fn ids_written_as_strings_are_counted() {
        let file = read(r#"{"images":[{"id":"1","file_name":"a"}],"annotations":[{"id":"1","image_id":1}]}"#).unwrap();
        assert_eq!(file.text_ids, 2);
    }
}

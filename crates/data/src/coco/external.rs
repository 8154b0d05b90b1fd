//! Recognizes third-party formats that are used instead of COCO annotations.

use std::path::Path;

use super::json::members;
use super::lists;
use super::source::AnnotationSource;
use crate::diagnostics::Diagnostics;

/// Length of the inspected start of a text.
const HEAD: usize = 1 << 16;

/// The format of a JSON object with these keys that is not COCO instances. `None` if unknown.
pub(super) fn of_keys(keys: &[(String, u8)], source: &AnnotationSource) -> Option<&'static str> {
    let has = |name: &str| keys.iter().any(|(key, _)| key == name);
    if has("shapes") && (has("imagePath") || has("imageData")) {
        return Some("LabelMe JSON of one image; convert the folder with labelme2coco");
    }
    if keys.iter().any(|(key, _)| key.starts_with("_via_")) {
        return Some("a project of the VGG Image Annotator (VIA); export it as COCO there");
    }
    if has("annotation") && !has("annotations") {
        let head = head(source);
        if contains(&head, "\"bndbox\"") || contains(&head, "\"folder\"") {
            return Some("Pascal VOC converted to JSON, one image; convert the annotations to COCO instances");
        }
    }
    if has("videos") && !has("images") {
        return Some(
            "COCO annotations of videos (CocoVID, YouTube-VIS) without images; convert it to COCO instances of frames",
        );
    }
    if has("___sa_version___") || (has("metadata") && has("instances")) {
        return Some("annotations of SuperAnnotate; export them as COCO there, or convert them with its converter");
    }
    if has("asset") && has("regions") {
        return Some("VoTT JSON of one image; export the project as COCO or convert it");
    }
    if has("info") && has("items") && has("categories") {
        return Some("Datumaro JSON; export it with `datum convert -f coco_instances`");
    }
    let first_value_has = |name: &str| contains(&head(source), name);
    if !has("images")
        && !has("annotations")
        && first_value_has("\"regions\"")
        && first_value_has("\"shape_attributes\"")
    {
        return Some("annotations of the VGG Image Annotator (VIA); export them as COCO there");
    }
    let by_name = keys.iter().filter(|(key, _)| is_image_name(key)).count();
    if by_name * 2 > keys.len()
        && ["\"classId\"", "\"className\"", "\"instances\""].iter().any(|key| first_value_has(key))
    {
        return Some(
            "annotations of SuperAnnotate, by file name; export them as COCO there, or convert them with its converter",
        );
    }
    None
}

fn is_image_name(key: &str) -> bool {
    let ending = key.rsplit_once('.').map_or("", |(_, ending)| ending).to_ascii_lowercase();
    ["jpg", "jpeg", "png", "bmp", "tif", "tiff", "webp", "gif"].contains(&ending.as_str())
}

/// The kind of a COCO file that is not instances, according to all its annotations.
pub(super) fn of_annotations(source: &AnnotationSource, path: &Path) -> Option<&'static str> {
    let kind = |list: &str, text: &[u8], _: u64, _: usize, _: &mut Diagnostics| match list {
        "annotations" => Some(annotation(text)),
        "images" => Some(Element::Image),
        _ => Some(Element::Category),
    };
    let wanted = ["images", "categories", "annotations"];
    let mut elements = Vec::new();
    let mut take = |_: &str, element| elements.extend(element);
    let keys = lists::read(source, path, &wanted, &kind, &mut take, &mut Diagnostics::keeping(0)).ok()?;
    let of_videos = keys.iter().any(|(key, _)| key == "videos");
    let has_mask = |element: &Element| matches!(element, Element::Annotation { has_mask: true, .. });
    if of_videos && !elements.iter().any(has_mask) {
        return Some(
            "CocoVID, objects that are tracked in videos with boxes only; add masks, or convert it to COCO instances",
        );
    }
    let mut kinds = elements.iter().filter_map(|element| match element {
        Element::Annotation { kind, .. } => Some(*kind),
        Element::Image | Element::Category => None,
    });
    match kinds.next() {
        Some(first) => first.filter(|_| kinds.all(|kind| kind == first)),
        None if elements.contains(&Element::Image) && !elements.contains(&Element::Category) => {
            Some("only a list of images (COCO image info), without categories and annotations")
        }
        None => None,
    }
}

/// An element of a list in a COCO file.
#[derive(PartialEq)]
enum Element {
    Image,
    Category,
    Annotation {
        /// The kind of the file if all annotations are like this one.
        kind: Option<&'static str>,
        has_mask: bool,
    },
}

fn annotation(text: &[u8]) -> Element {
    let mut keys = Vec::new();
    let walked = members(text, |key, _, _| keys.push(key.to_owned()));
    let has = |name: &str| keys.iter().any(|key| key == name);
    let kind = match () {
        () if walked.is_err() => None,
        () if has("bbox") || has("segmentation") => None,
        () if has("segments_info") => Some("COCO panoptic segmentation; convert it to COCO instances"),
        () if has("caption") => Some("COCO captions; use the instances file"),
        () if has("category_id") && !has("area") => {
            Some("classes of whole images, without boxes and masks; use the instances file")
        }
        () => None,
    };
    Element::Annotation { kind, has_mask: has("segmentation") }
}

/// The format of a text that is not a JSON object. `None` if unknown.
pub(super) fn of_text(source: &AnnotationSource) -> Option<&'static str> {
    let head = head(source);
    let start = head.iter().position(|b| !b.is_ascii_whitespace()).unwrap_or(head.len());
    let text = &head[start..];
    let has = |name: &str| contains(text, name);
    match text {
        [b'[', ..] => Some(if has("\"bbox_mode\"") {
            "dataset dicts of Detectron2; convert them with detectron2.data.datasets.convert_to_coco_json"
        } else if has("\"score\"") && has("\"image_id\"") {
            "COCO results (detections), not annotations; use the annotation file"
        } else if has("\"completions\"") || (has("\"annotations\"") && has("\"data\"")) || has("\"from_name\"") {
            "Label Studio tasks; export them as COCO there"
        } else {
            "a list, not an object with images, annotations and categories"
        }),
        [b'<', ..] => Some(if has("<annotation") {
            if has("<bndbox") || has("<folder") {
                "Pascal VOC XML; convert the annotations to COCO instances"
            } else {
                "CVAT XML; export the task as COCO there"
            }
        } else {
            "XML or HTML, perhaps the error page of a download; download it again"
        }),
        [b'P', b'K', 3, 4, ..] => Some("a ZIP archive; unpack it"),
        [0x1f, 0x8b, ..] => Some("compressed with gzip; unpack it with gunzip"),
        [0, 5, 0x16, 7, ..] => Some("AppleDouble metadata of macOS; use the file without the prefix `._`"),
        [0x80, 2..=5, ..] => Some("a Python pickle; save the annotations as COCO JSON"),
        _ if text.starts_with(b"version https://git-lfs") => Some("a Git LFS pointer; run `git lfs pull`"),
        _ if is_yolo(text) => Some("YOLO labels, one line per object; convert the folder to COCO instances"),
        _ if text.starts_with(b"filename,") || text.starts_with(b"image_id,") || text.starts_with(b"image,") => {
            Some("a CSV table; convert it to COCO instances")
        }
        _ if text.starts_with(b"names:") || text.starts_with(b"train:") || text.starts_with(b"path:") => {
            Some("a YOLO data set description; convert the set to COCO instances")
        }
        _ => None,
    }
}

/// Whether the first line is a class and at least four fractions.
fn is_yolo(text: &[u8]) -> bool {
    let line = text.split(|&b| b == b'\n').next().unwrap_or_default();
    let numbers: Option<Vec<f64>> =
        std::str::from_utf8(line).ok().and_then(|line| line.split_whitespace().map(|word| word.parse().ok()).collect());
    numbers.is_some_and(|numbers| numbers.len() >= 5 && numbers[1..].iter().all(|n| (0.0..=1.0).contains(n)))
}

fn head(source: &AnnotationSource) -> Vec<u8> {
    let mut head = Vec::new();
    // Read errors were already reported.
    let _ = source.reader(source.start).append_to(&mut head);
    head.truncate(HEAD);
    head
}

fn contains(text: &[u8], part: &str) -> bool {
    memchr::memmem::find(text, part.as_bytes()).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_of_other_tools_are_named() {
        let table: [(&[u8], &str); 12] = [
            (b"[{\"file_name\": \"a\", \"annotations\": [{\"bbox_mode\": 0}]}]", "Detectron2"),
            (b"[{\"image_id\": 1, \"bbox\": [1, 2, 3, 4], \"score\": 0.5}]", "COCO results"),
            (b"[{\"id\": 1, \"data\": {}, \"annotations\": []}]", "Label Studio"),
            (b"[1, 2]", "a list"),
            (b"<annotation><folder>a</folder></annotation>", "Pascal VOC XML"),
            (b"<?xml version=\"1.0\"?><annotations>", "CVAT"),
            (b"<!DOCTYPE html>", "error page"),
            (b"PK\x03\x04", "ZIP"),
            (b"\x1f\x8b\x08", "gunzip"),
            (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
            (b"0 0.5 0.5 0.1 0.2\n", "YOLO"),
            (b"\x00\x05\x16\x07", "AppleDouble"),
        ];
        for (text, name) in table {
            let found = of_text(&AnnotationSource::memory(text.to_vec())).unwrap();
            assert!(found.contains(name), "{found}");
        }
        assert_eq!(of_text(&AnnotationSource::memory(b"hello".to_vec())), None);
    }

    #[test]
    fn json_objects_of_other_tools_are_named() {
        let of = |text: &str, keys: &[&str]| {
            let keys: Vec<_> = keys.iter().map(|key| ((*key).to_owned(), b'[')).collect();
            of_keys(&keys, &AnnotationSource::memory(text.as_bytes().to_vec()))
        };
        assert!(of("{}", &["version", "shapes", "imagePath"]).unwrap().contains("LabelMe"));
        assert!(of("{\"annotation\": {\"folder\": \"a\"}}", &["annotation"]).unwrap().contains("VOC"));
        assert!(of("{}", &["_via_settings", "_via_img_metadata"]).unwrap().contains("VIA"));
        assert!(of("{\"a\": {\"regions\": [{\"shape_attributes\": 1}]}}", &["a"]).unwrap().contains("VIA"));
        assert!(of("{}", &["videos", "annotations", "categories"]).unwrap().contains("CocoVID"));
        assert!(of("{\"a.jpg\": [{\"classId\": 1}]}", &["a.jpg"]).unwrap().contains("SuperAnnotate"));
        assert!(of("{}", &["a.jpg", "___sa_version___"]).unwrap().contains("SuperAnnotate"));
        assert!(of("{}", &["metadata", "instances"]).unwrap().contains("SuperAnnotate"));
        assert_eq!(of("{\"a.jpg\": []}", &["a.jpg", "b.jpg"]), None);
        assert_eq!(of("{}", &["images", "annotation", "categories"]), None);
    }
}

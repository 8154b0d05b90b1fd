//! docs/data-codes.md: the table of all codes, generated from their descriptions.

use super::{Code, CodeDescription};

const INTRODUCTION: &str = "\
# Data diagnostics by code

This page lists the diagnostics of `fnet-launch check-data CONFIG`. Training and testing run the same checks at startup,
except for the content of image files. The page is generated from the source, and a test keeps it up to date.

The rule behind every row: what [MMDetection 2.25](https://github.com/open-mmlab/mmdetection/tree/v2.25.0) (with
pycocotools and OpenCV) accepts is used the same way, with a warning if it looks wrong. What MMDetection would crash on
is repaired with a warning if only one meaning is possible. Anything ambiguous is an error. There is one deliberate
difference: fnet does not train on objects with an empty mask. With `model.mask = false`, masks are not read: there are no
codes about them, and boxes are used as they are.

An object has no mask (`mask-missing` and what it becomes with other settings, `mask-needed`) if pycocotools 2.0.11 raises an
exception for its segmentation: `[]`, `[[]]`, or a first polygon of one point or of four numbers. An object has an empty mask
(`mask-empty`) and is left out of training if pycocotools draws a mask without pixels: a polygon of five numbers, without
area, or outside of the image.

An **error** stops training and testing with exit code 3 before they start. A **warning** means that something looks
wrong or was repaired. A **note** is informational. Warnings and notes do not stop a job.
";

/// The expected page.
fn page() -> String {
    let mut page = INTRODUCTION.to_owned();
    let mut group = "";
    for &code in Code::ALL {
        let prefix = code.name().split('-').next().unwrap_or_default();
        if heading(prefix) != group {
            group = heading(prefix);
            page += &format!(
                "\n## {}\n\n| code | severity | found | action | MMDetection | remedy |\n{}\n",
                group, "| --- | --- | --- | --- | --- | --- |"
            );
        }
        let CodeDescription { severity, what, action, reference, remedy } = code.description();
        page += &format!("| `{code}` | {severity} | {what} | {action} | {reference} | {remedy} |\n");
    }
    page
}

fn heading(group: &str) -> &str {
    match group {
        "file" => "Annotation files and folders",
        "class" | "category" => "Classes",
        "image" => "Entries of `images`, and image files",
        "annotation" => "Entries of `annotations`",
        "box" => "Boxes",
        "mask" => "Masks",
        "split" => "Training and validation set together",
        other => panic!("no heading for codes that start with {other:?}"),
    }
}

#[test]
fn the_page_is_up_to_date() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/data-codes.md");
    let expected = page();
    if std::env::var_os("FNET_UPDATE_DOCS").is_some() {
        std::fs::write(&path, &expected).unwrap();
    }
    let actual = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(actual == expected, "docs/data-codes.md is out of date; run this test with FNET_UPDATE_DOCS=1");
}

#[test]
fn names_are_unique_and_grouped() {
    let names: Vec<_> = Code::ALL.iter().map(|code| code.name()).collect();
    let mut groups: Vec<_> = names.iter().map(|name| name.split('-').next().unwrap()).collect();
    groups.dedup();
    let mut sorted = groups.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(sorted.len(), groups.len(), "codes of one group stand together: {groups:?}");
    let mut sorted = names.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(sorted.len(), names.len());
}

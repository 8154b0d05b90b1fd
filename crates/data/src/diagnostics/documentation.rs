//! docs/data-codes.md: the table of all codes, made from their facts.

use super::{Code, CodeDescription};

const INTRODUCTION: &str = "\
# What can be wrong with data, by code

`fnet-launch check-data CONFIG` prints these codes, and so does every training and test when it starts (it checks all but
the content of the image files). This page is made from the source; a test keeps it true.

The rule behind every row: what the reference (MMDetection 2.25 with pycocotools and OpenCV) accepts is used exactly as
the reference uses it, with a warning where it looks wrong. What the reference would crash on is repaired if only one
meaning is possible, with a warning. What could mean two things is an error. One departure is deliberate: no object is
trained on an empty mask.

Of some masks nothing is left to draw. What counts is what pycocotools 2.0.11 does with it: where it raises an exception
(`[]`, `[[]]`, a first polygon of one point or of four numbers), the object has no mask (`mask-missing`,
`mask-missing-evaluated`, `mask-needed`); where it draws an empty mask (a polygon of five numbers, without area, or outside
of the image), the object has an empty one (`mask-empty`), and is left out of training.

An **error** stops training and testing with exit code 3 before they start. A **warning** looks wrong or was repaired; a
**note** is worth knowing. Neither stops anything.
";

/// The page as it should be.
fn page() -> String {
    let mut page = INTRODUCTION.to_owned();
    let mut group = "";
    for &code in Code::ALL {
        let prefix = code.name().split('-').next().unwrap_or_default();
        if heading(prefix) != group {
            group = heading(prefix);
            page += &format!(
                "\n## {}\n\n| code | severity | found | done about it | the reference | remedy |\n{}\n",
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
        other => panic!("a heading for the codes that start with {other:?}"),
    }
}

#[test]
fn the_page_is_made_from_the_codes() {
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

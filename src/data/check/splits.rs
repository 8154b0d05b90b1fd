//! How the sets fit together and to the model.

use std::collections::HashSet;

use crate::config::Config;
use crate::data::coco::{Dataset, Split};
use crate::data::findings::{Code, Findings, Place};

/// Compares the classes of the sets with the model and with each other, and looks for pictures that are in both.
pub(super) fn check(config: &Config, sets: &[&Dataset], findings: &mut Findings) {
    for dataset in sets {
        let (found, expected) = (dataset.categories().len(), config.model.num_classes);
        if found != expected {
            findings.add(Code::ClassCount, dataset.annotation_file(), Place::file, || {
                format!("{found} classes, but model.num_classes is {expected}")
            });
        }
    }
    let of = |split| sets.iter().find(|dataset| dataset.split() == split);
    if let (Some(train), Some(val)) = (of(Split::Train), of(Split::Val)) {
        categories(train, val, findings);
        pictures(train, val, findings);
    }
}

/// Labels are places in the list of classes, so both sets must have the same names in the same order.
fn categories(train: &Dataset, val: &Dataset, findings: &mut Findings) {
    let names = |dataset: &Dataset| dataset.categories().iter().map(|c| c.name.clone()).collect::<Vec<_>>();
    let (trained, tested) = (names(train), names(val));
    if trained != tested {
        let message = || difference(&trained, &tested, &train.annotation_file().display().to_string());
        findings.add(Code::SplitCategories, val.annotation_file(), Place::file, message);
        return;
    }
    let pairs = train.categories().iter().zip(val.categories());
    for (trained, tested) in pairs.filter(|(trained, tested)| trained.id != tested.id) {
        let place = || Place::category(tested.id);
        findings.add(Code::SplitCategoryIds, val.annotation_file(), place, || {
            format!("{:?} has the id {}, and {} in the training set", tested.name, tested.id, trained.id)
        });
    }
}

/// What one list of class names has that the other lacks, or where their orders part.
fn difference(trained: &[String], tested: &[String], training_file: &str) -> String {
    let missing = |from: &[String], list: &[String]| {
        let names: Vec<_> = list.iter().filter(|name| !from.contains(name)).map(|name| format!("{name:?}")).collect();
        if names.len() > 5 {
            format!("{} and {} more", names[..5].join(", "), names.len() - 5)
        } else {
            names.join(", ")
        }
    };
    let (lacks, adds) = (missing(tested, trained), missing(trained, tested));
    let mut parts = Vec::new();
    if !lacks.is_empty() {
        parts.push(format!("lacks {lacks}"));
    }
    if !adds.is_empty() {
        parts.push(format!("adds {adds}"));
    }
    if parts.is_empty() {
        let place = trained.iter().zip(tested).position(|(a, b)| a != b).unwrap_or(trained.len().min(tested.len()));
        let name = |list: &[String]| list.get(place).map_or("nothing".into(), |name| format!("{name:?}"));
        parts.push(format!("has {} as label {place}, where that has {}", name(tested), name(trained)));
    }
    format!("compared with {training_file}, this set {}", parts.join(" and "))
}

fn pictures(train: &Dataset, val: &Dataset, findings: &mut Findings) {
    // A set that is trained and tested on whole is meant so.
    if train.folder() != val.folder() || train.annotation_file() == val.annotation_file() {
        return;
    }
    let trained: HashSet<&str> = (0..train.len()).map(|index| train.image(index).file_name).collect();
    for index in 0..val.len() {
        let image = val.image(index);
        if trained.contains(image.file_name) {
            let place = || Place::image(image.id);
            findings.add(Code::SplitSharedPictures, val.annotation_file(), place, || {
                format!("{:?} is trained on too", image.file_name)
            });
        }
    }
}

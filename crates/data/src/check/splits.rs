//! Checks that the sets are consistent with each other and with the model.

use std::collections::HashSet;
use std::path::Path;

use fnet_common::text::{self, count, quoted};
use fnet_config::Config;

use crate::coco::{Dataset, Split, data_root};
use crate::diagnostics::{Code, Diagnostics, Location};

/// Compares the classes of the sets with the model and with each other, and finds images that are in both sets.
pub(super) fn check(config: &Config, sets: &[&Dataset], diagnostics: &mut Diagnostics) {
    check_classes(config, sets, diagnostics);
    if let (Some(train), Some(val)) = (of(sets, Split::Train), of(sets, Split::Val)) {
        let mut own = diagnostics.none().of(Split::Val.name());
        images(train, val, &mut own);
        diagnostics.append(own);
    }
}

fn of<'d>(sets: &[&'d Dataset], split: Split) -> Option<&'d Dataset> {
    sets.iter().copied().find(|dataset| dataset.split() == split)
}

/// Compares the classes of the sets with the model and with each other.
pub(super) fn check_classes(config: &Config, sets: &[&Dataset], diagnostics: &mut Diagnostics) {
    for dataset in sets {
        let (found, expected) = (dataset.categories().len(), config.model.num_classes);
        // With "auto", the training set defines the number. The other set is compared with it below.
        if found != expected && !config.data.classes_are_auto {
            let mut own = diagnostics.none().of(dataset.split().name());
            own.add(Code::ClassCount, dataset.annotation_file(), Location::file, || {
                format!("{}, but model.num_classes is {expected}", count(found, "class"))
            });
            diagnostics.append(own);
        }
    }
    let mut own = diagnostics.none().of(Split::Val.name());
    match (of(sets, Split::Train), of(sets, Split::Val)) {
        (Some(train), Some(val)) => categories(train, val, &mut own),
        (None, Some(val)) if config.data.classes_are_auto && !config.data.classes.is_empty() => {
            let file = data_root(&config.data).join(&config.data.train.ann_file);
            compare(&config.data.classes, val, &file, &mut own);
        }
        _ => {}
    }
    diagnostics.append(own);
}

fn names(dataset: &Dataset) -> Vec<String> {
    dataset.categories().iter().map(|category| category.name.clone()).collect()
}

/// Labels are indices into the list of classes, so both sets must have the same names in the same order.
fn compare(trained: &[String], val: &Dataset, training_file: &Path, diagnostics: &mut Diagnostics) -> bool {
    let tested = names(val);
    if trained != tested {
        let message = || difference(trained, &tested, &training_file.display().to_string());
        diagnostics.add(Code::SplitCategories, val.annotation_file(), Location::file, message);
    }
    trained == tested
}

fn categories(train: &Dataset, val: &Dataset, diagnostics: &mut Diagnostics) {
    if !compare(&names(train), val, train.annotation_file(), diagnostics) {
        return;
    }
    let pairs = train.categories().iter().zip(val.categories());
    for (trained, tested) in pairs.filter(|(trained, tested)| trained.id != tested.id) {
        let place = || Location::category(tested.id);
        diagnostics.add(Code::SplitCategoryIds, val.annotation_file(), place, || {
            format!("{:?} has the id {} here and {} in the training set", tested.name, tested.id, trained.id)
        });
    }
}

/// Describes missing and extra class names, or the first difference in order.
fn difference(trained: &[String], tested: &[String], training_file: &str) -> String {
    let missing = |from: &[String], list: &[String]| {
        text::list(list.iter().filter(|name| !from.contains(name)).map(|name| quoted(name)), 5)
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
        parts.push(format!("has {} as label {place} instead of {}", name(tested), name(trained)));
    }
    format!("compared with {training_file}, this set {}", parts.join(" and "))
}

fn images(train: &Dataset, val: &Dataset, diagnostics: &mut Diagnostics) {
    // Training and testing on one whole set is intended.
    if train.folder() != val.folder() || train.annotation_file() == val.annotation_file() {
        return;
    }
    let trained: HashSet<&str> = (0..train.len()).map(|index| train.image(index).file_name).collect();
    for index in 0..val.len() {
        let image = val.image(index);
        if trained.contains(image.file_name) {
            let place = || Location::image(image.id);
            diagnostics.add(Code::SplitSharedImages, val.annotation_file(), place, || {
                format!("{:?} is also in the training set", image.file_name)
            });
        }
    }
}

//! Checks that the sets are consistent with each other and with the model.

use std::collections::HashSet;

use fnet_common::text::count;
use fnet_config::Config;

use crate::coco::{CocoDataset, Split, compare_classes, data_root};
use crate::dataset::Dataset;
use crate::diagnostics::{Code, Diagnostics, Location};

/// Compares the classes of the sets with the model and with each other, and finds images that are trained on and evaluated.
pub(super) fn check(config: &Config, sets: &[&Dataset], diagnostics: &mut Diagnostics) {
    check_classes(config, sets, diagnostics);
    let Some(train) = training_set(sets) else { return };
    for evaluated in sets.iter().filter(|set| set.split() != Split::Train) {
        let mut own = diagnostics.none().of(evaluated.split().name());
        for (part, _) in evaluated.parts() {
            train.parts().for_each(|(train, _)| images(train, part, &mut own));
        }
        diagnostics.append(own);
    }
}

fn training_set<'d>(sets: &[&'d Dataset]) -> Option<&'d Dataset> {
    sets.iter().copied().find(|dataset| dataset.split() == Split::Train)
}

/// Compares the classes of the sets with the model and with each other. Opening a set has compared its files.
pub(super) fn check_classes(config: &Config, sets: &[&Dataset], diagnostics: &mut Diagnostics) {
    let first = |dataset: &Dataset| dataset.parts().next().map(|(part, _)| part.annotation_file().to_owned());
    for dataset in sets {
        let (found, expected) = (dataset.categories().len(), config.model.num_classes);
        // With "auto", the training set defines the number. The other sets are compared with it below.
        if found != expected && !config.data.classes_are_auto {
            let mut own = diagnostics.none().of(dataset.split().name());
            own.add(Code::ClassCount, &first(dataset).unwrap_or_default(), Location::file, || {
                format!("{}, but model.num_classes is {expected}", count(found, "class"))
            });
            diagnostics.append(own);
        }
    }
    let train = training_set(sets).and_then(|train| Some(train.parts().next()?.0));
    for evaluated in sets.iter().filter(|set| set.split() != Split::Train) {
        let mut own = diagnostics.none().of(evaluated.split().name());
        let Some((part, _)) = evaluated.parts().next() else { continue };
        match train {
            Some(train) => categories(train, part, &mut own),
            None if config.data.classes_are_auto && !config.data.classes.is_empty() => {
                let file = config.data.train.first().map_or("", |set| &set.ann_file);
                let file = data_root(&config.data).join(file);
                compare_classes(&config.data.classes, &file, part, &mut own);
            }
            None => {}
        }
        diagnostics.append(own);
    }
}

fn categories(train: &CocoDataset, val: &CocoDataset, diagnostics: &mut Diagnostics) {
    if !compare_classes(&train.class_names(), train.annotation_file(), val, diagnostics) {
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

fn images(train: &CocoDataset, val: &CocoDataset, diagnostics: &mut Diagnostics) {
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

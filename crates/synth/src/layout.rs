//! The file layout of a set, and the numbering of images, annotations and classes.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::random::Random;
use crate::shape::Class;

/// The file layout of a set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// COCO's layout: `annotations/instances_train.json`, `annotations/instances_val.json`, and images in `train/` and
    /// `val/`.
    #[default]
    Coco,
    /// Roboflow's export layout: `_annotations.coco.json` next to the images in each of `train/`, `valid/` and `test/`;
    /// ids from 0; category 0 is the name of the project, which no annotation uses; no crowd regions.
    Roboflow,
}

/// Name of the project in Roboflow's layout.
const PROJECT: &str = "shapes";

impl Layout {
    /// Whether it is COCO's layout.
    pub(crate) fn is_coco(&self) -> bool {
        *self == Self::Coco
    }

    /// Folders of the training, validation and, if any, test images.
    pub(crate) fn folders(self) -> &'static [&'static str] {
        match self {
            Self::Coco => &["train", "val"],
            Self::Roboflow => &["train", "valid", "test"],
        }
    }

    /// The annotation file of a folder of images, relative to the set.
    pub(crate) fn annotation_file(self, folder: &str) -> PathBuf {
        match self {
            Self::Coco => Path::new("annotations").join(format!("instances_{folder}.json")),
            Self::Roboflow => Path::new(folder).join("_annotations.coco.json"),
        }
    }

    /// The name of image `image`.
    pub(crate) fn file_name(self, image: u64, seed: u64) -> String {
        match self {
            Self::Coco => format!("{image:012}.jpg"),
            Self::Roboflow => {
                let mut random = Random::new(seed, &[image, u64::MAX - 2]);
                let mark: String = (0..32).filter_map(|_| char::from_digit(random.below(16) as u32, 16)).collect();
                format!("{image:012}_jpg.rf.{mark}.jpg")
            }
        }
    }

    /// Whether the ids of images and annotations begin from 0 in each file.
    pub(crate) fn ids_start_from_zero(self) -> bool {
        self == Self::Roboflow
    }

    /// The `categories` of an annotation file.
    pub(crate) fn categories(self) -> Vec<CategoryRecord> {
        let (project, supercategory) = match self {
            Self::Coco => (None, "shape"),
            Self::Roboflow => (Some(CategoryRecord { supercategory: "none", id: 0, name: PROJECT }), PROJECT),
        };
        let classes = Class::ALL.iter().map(|&class| CategoryRecord {
            supercategory,
            id: self.category_id(class),
            name: class.name(),
        });
        project.into_iter().chain(classes).collect()
    }

    pub(crate) fn category_id(self, class: Class) -> u32 {
        match self {
            Self::Coco => class.category_id(),
            Self::Roboflow => Class::ALL.iter().zip(1..).find(|(known, _)| **known == class).map_or(0, |(_, id)| id),
        }
    }
}

/// A class.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct CategoryRecord {
    pub(crate) supercategory: &'static str,
    pub(crate) id: u32,
    pub(crate) name: &'static str,
}

//! COCO data sets: images and objects, by the rules of [MMDetection
//! 2.25](https://github.com/open-mmlab/mmdetection/tree/v2.25.0).
//!
//! Only a few dozen bytes per object are kept in memory. Masks are read from the annotation file when an image is
//! loaded, so that the ranks of a node share them through the page cache.

mod annotations;
mod check;
mod classes;
mod elements;
mod external;
mod files;
mod header;
mod index;
mod json;
mod lists;
mod open;
mod record;
mod records;
mod segmentation;
mod source;
mod truth;
mod values;

use std::path::{Path, PathBuf};

use serde_json::Value;

pub use classes::category_names;
pub(crate) use classes::compare_classes;
pub use header::Category;
pub(crate) use open::{Opening, SetFiles};
pub use record::Record;
pub use segmentation::Segmentation;
pub use truth::TrueObject;

use files::Folders;
use index::{IdNames, Images, ObjectColumns};
use source::AnnotationSource;

use fnet_config::{self as config, WithoutMask};
/// One of the configured sets.
pub use fnet_protocol::cli::SplitName as Split;

/// The entry of one image in the annotation file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageInfo<'d> {
    /// The `id` in the annotation file.
    pub id: i64,
    /// Relative to the folder of the set.
    pub file_name: &'d str,
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
}

/// The objects of one image that are trained on, without crowds, as slices of equal length.
#[derive(Debug, Clone, Copy)]
pub struct Objects<'d> {
    /// `[x1, y1, x2, y2]` in pixels of the original image.
    pub boxes: &'d [[f32; 4]],
    /// Index of the class in [`crate::Dataset::categories`].
    pub labels: &'d [u16],
    /// The `id` of each annotation, or without one its position in the list, from 1.
    pub ids: &'d [i64],
    mask_offsets: &'d [u64],
    mask_lengths: &'d [u32],
}

/// The images and objects of one annotation file. [`crate::Dataset`] opens it.
///
/// Images are numbered `0..len()` in the file's order after filtering.
#[derive(Debug)]
pub struct CocoDataset {
    split: Split,
    /// Its name in the config.
    field: String,
    path: PathBuf,
    folder: PathBuf,
    /// The value of `data.root`.
    root: PathBuf,
    source: AnnotationSource,
    /// The selected classes; empty for all.
    classes: Vec<String>,
    /// What to do with objects without a mask; `None` if masks are not used.
    masks: Option<WithoutMask>,
    categories: Vec<Category>,
    listed: Listed,
    /// The images of the file that belong to this set, if it has only a part of them.
    side: Option<Vec<bool>>,
    images: Images,
    objects: ObjectColumns,
    id_names: IdNames,
    folders: Folders,
}

/// The number of entries in the lists of an annotation file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed {
    /// In `images`.
    pub images: usize,
    /// In `annotations`.
    pub annotations: usize,
}

/// The folder that dataset paths are relative to. FNET_DATA_ROOT is already applied.
pub fn data_root(config: &config::Data) -> PathBuf {
    PathBuf::from(&config.root)
}

impl CocoDataset {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.images.ids.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Which set this is.
    pub fn split(&self) -> Split {
        self.split
    }

    /// Its name in the config: `data.val`, or one of several training sets, `data.train[1]`.
    pub fn field(&self) -> &str {
        &self.field
    }

    /// Whether the masks of the objects are used; otherwise only their boxes.
    pub fn has_masks(&self) -> bool {
        self.masks.is_some()
    }

    /// The annotation file.
    pub fn annotation_file(&self) -> &Path {
        &self.path
    }

    /// The folder of the images.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The classes in the order of the labels, which is the order of the annotation file.
    pub fn categories(&self) -> &[Category] {
        &self.categories
    }

    /// The number of images and annotations in the file, used or not.
    pub fn listed(&self) -> Listed {
        self.listed
    }

    /// Number of objects that are trained on.
    pub fn object_count(&self) -> usize {
        self.objects.boxes.len()
    }

    /// The entry of image `index` in the annotation file.
    ///
    /// # Panics
    /// If `index` is not below [`Self::len`], like a slice.
    pub fn image(&self, index: usize) -> ImageInfo<'_> {
        let [width, height] = self.images.sizes[index];
        let end = self.images.name_ends[index] as usize;
        let start = if index == 0 { 0 } else { self.images.name_ends[index - 1] as usize };
        ImageInfo {
            id: self.images.ids[index],
            file_name: &self.images.names[start..end],
            width: width as usize,
            height: height as usize,
        }
    }

    /// The `id` of every image, in the order of their numbers.
    pub fn image_ids(&self) -> &[i64] {
        &self.images.ids
    }

    /// Whether the ids of images are strings in the file.
    pub(crate) fn image_ids_are_text(&self) -> bool {
        self.id_names.are_text[0]
    }

    /// The classes of the annotations of every image, crowds too, if [`SetFiles::keeps_classes`].
    pub(crate) fn classes_of(&self) -> &[Vec<u16>] {
        &self.images.classes
    }

    /// The objects of image `index`.
    ///
    /// # Panics
    /// As [`Self::image`].
    pub fn objects(&self, index: usize) -> Objects<'_> {
        let range = self.images.first_object[index] as usize..self.images.first_object[index + 1] as usize;
        Objects {
            boxes: &self.objects.boxes[range.clone()],
            labels: &self.objects.labels[range.clone()],
            ids: &self.objects.ids[range.clone()],
            mask_offsets: &self.objects.mask_offsets[range.clone()],
            mask_lengths: &self.objects.mask_lengths[range],
        }
    }

    /// An image id as written in the annotation file: a number or a string.
    pub fn written_image_id(&self, id: i64) -> Value {
        self.id_names.written(id, self.id_names.are_text[0])
    }

    /// A category id as written in the annotation file: a number or a string.
    pub fn written_category_id(&self, id: i64) -> Value {
        self.id_names.written(id, self.id_names.are_text[1])
    }
}

#[cfg(test)]
mod attack_tests;
#[cfg(test)]
mod code_tests;
#[cfg(test)]
mod reference_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod wild_tests;
#[cfg(test)]
mod without_mask_tests;

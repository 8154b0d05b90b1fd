//! COCO data sets: which pictures and objects there are, by the reference's rules.
//!
//! What is kept in memory is a few dozen bytes per object; masks are read from the annotation file when a picture is
//! loaded, so that ranks of one node share them through the page cache.

mod classes;
mod file;
mod index;
mod segmentation;
mod values;

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

pub use classes::category_names;
pub use segmentation::Segmentation;

use crate::config;
use crate::error::{Error, Result};

use file::Span;

/// Which of the configured sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// `data.train`: every object needs a mask.
    Train,
    /// `data.val`.
    Val,
}

impl Split {
    /// The name in the config.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Val => "val",
        }
    }
}

/// One class; its label is its place in [`Dataset::categories`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Category {
    /// The `id` in the annotation file.
    pub id: i64,
    /// Its name.
    pub name: String,
}

/// What the annotation file says about one picture.
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

/// The objects of one picture that are trained on, as slices of equal length; crowds are not among them.
#[derive(Debug, Clone, Copy)]
pub struct Objects<'d> {
    /// `[x1, y1, x2, y2]` in pixels of the original picture.
    pub boxes: &'d [[f32; 4]],
    /// Place of the class in [`Dataset::categories`].
    pub labels: &'d [u16],
    /// The `id` of each annotation; where the file has none, its place in the list, from 1.
    pub ids: &'d [i64],
    masks: &'d [Span],
}

/// The pictures and objects of one annotation file.
///
/// Pictures are numbered `0..len()` in the file's order after filtering.
#[derive(Debug)]
pub struct Dataset {
    split: Split,
    path: PathBuf,
    folder: PathBuf,
    file: File,
    stamp: Stamp,
    categories: Vec<Category>,
    images: index::Images,
    objects: index::ObjectColumns,
    warnings: Vec<String>,
}

/// Tells whether the annotation file is still the one that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    length: u64,
    modified: Option<SystemTime>,
}

impl Stamp {
    fn of(file: &File) -> std::io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self { length: metadata.len(), modified: metadata.modified().ok() })
    }
}

/// The folder that relative paths of the sets start from; loading the config has put FNET_DATA_ROOT into it.
pub fn data_root(config: &config::Data) -> PathBuf {
    PathBuf::from(&config.root)
}

impl Dataset {
    /// Opens the set `split` of `config`: reads the annotation file and checks that the folder of pictures exists.
    ///
    /// # Errors
    /// Data errors that name the file and what to mend: unreadable or malformed files, classes that the file lacks,
    /// duplicate image ids, and, in the training set, objects without a box or a mask.
    pub fn open(config: &config::Data, split: Split) -> Result<Self> {
        let root = data_root(config);
        let set = match split {
            Split::Train => &config.train,
            Split::Val => &config.val,
        };
        let (path, folder) = (root.join(&set.ann_file), root.join(&set.img_prefix));
        let unreadable = |error: std::io::Error| {
            Error::data(format!(
                "cannot read the annotation file {} (data.{}.ann_file): {error}; data.root is {}, and the variable \
                 FNET_DATA_ROOT replaces it",
                path.display(),
                split.name(),
                root.display()
            ))
        };
        let file = File::open(&path).map_err(unreadable)?;
        let stamp = Stamp::of(&file).map_err(unreadable)?;
        let mut bytes = Vec::with_capacity(usize::try_from(stamp.length).unwrap_or(0));
        (&file).read_to_end(&mut bytes).map_err(unreadable)?;
        let raw = file::parse(&bytes, &path)?;
        drop(bytes);
        if !folder.is_dir() {
            return Err(Error::data(format!(
                "the folder of pictures {} (data.{}.img_prefix) does not exist; put the pictures there or change the \
                 field",
                folder.display(),
                split.name()
            )));
        }
        let rules = index::Rules { path: &path, split, classes: &config.classes, filter_empty: set.filter_empty };
        let index::Index { categories, images, objects, warnings } = index::build(raw, &rules)?;
        Ok(Self { split, path, folder, file, stamp, categories, images, objects, warnings })
    }

    /// Number of pictures.
    pub fn len(&self) -> usize {
        self.images.ids.len()
    }

    /// Whether there is no picture.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Which set this is.
    pub fn split(&self) -> Split {
        self.split
    }

    /// The annotation file, for evaluation.
    pub fn annotation_file(&self) -> &Path {
        &self.path
    }

    /// The folder of the pictures.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The classes in the order of the labels, which is the order of the annotation file.
    pub fn categories(&self) -> &[Category] {
        &self.categories
    }

    /// What was repaired or looks wrong in the annotation file, one sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Number of objects that are trained on.
    pub fn object_count(&self) -> usize {
        self.objects.boxes.len()
    }

    /// What the annotation file says about picture `index`.
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

    /// The `id` of every picture, in the order of their numbers.
    pub fn image_ids(&self) -> &[i64] {
        &self.images.ids
    }

    /// The file of picture `index`.
    ///
    /// # Panics
    /// As [`Self::image`].
    pub fn picture_path(&self, index: usize) -> PathBuf {
        self.folder.join(self.image(index).file_name)
    }

    /// 1 for a picture wider than high, else 0: pictures of one step have equal flags.
    pub fn aspect_flags(&self) -> Vec<u8> {
        self.images.sizes.iter().map(|&[width, height]| u8::from(width > height)).collect()
    }

    /// The objects of picture `index`.
    ///
    /// # Panics
    /// As [`Self::image`].
    pub fn objects(&self, index: usize) -> Objects<'_> {
        let range = self.images.first_object[index] as usize..self.images.first_object[index + 1] as usize;
        Objects {
            boxes: &self.objects.boxes[range.clone()],
            labels: &self.objects.labels[range.clone()],
            ids: &self.objects.ids[range.clone()],
            masks: &self.objects.masks[range],
        }
    }

    /// The masks of the objects of picture `index`, read from the annotation file.
    ///
    /// # Errors
    /// If the file cannot be read or was changed since it was opened, or a mask is malformed.
    ///
    /// # Panics
    /// As [`Self::image`].
    pub fn segmentations(&self, index: usize) -> Result<Vec<Segmentation>> {
        let objects = self.objects(index);
        if objects.masks.is_empty() {
            return Ok(Vec::new());
        }
        let unreadable =
            |error| Error::data(format!("cannot read the annotation file {}: {error}", self.path.display()));
        if Stamp::of(&self.file).map_err(unreadable)? != self.stamp {
            return Err(Error::data(format!(
                "the annotation file {} was changed after it was opened; start again",
                self.path.display()
            )));
        }
        let mut text = Vec::new();
        let mut segmentations = Vec::with_capacity(objects.masks.len());
        for (span, id) in objects.masks.iter().zip(objects.ids) {
            if span.length == 0 {
                segmentations.push(Segmentation::Polygons(Vec::new()));
                continue;
            }
            text.resize(span.length as usize, 0);
            self.file.read_exact_at(&mut text, span.offset).map_err(unreadable)?;
            segmentations.push(Segmentation::parse(&text).map_err(|message| {
                Error::data(format!(
                    "{}: annotation {id}: segmentation: {message}; mend or remove the annotation",
                    self.path.display()
                ))
            })?);
        }
        Ok(segmentations)
    }

    /// Classes that no object of this set is of.
    pub fn classes_without_objects(&self) -> Vec<&Category> {
        let mut seen = vec![false; self.categories.len()];
        for &label in &self.objects.labels {
            seen[usize::from(label)] = true;
        }
        self.categories.iter().zip(seen).filter(|(_, seen)| !seen).map(|(category, _)| category).collect()
    }

    /// Checks that the detector has one output per class of this set.
    ///
    /// # Errors
    /// A data error that names both numbers.
    pub fn check_class_count(&self, num_classes: usize) -> Result<()> {
        let found = self.categories.len();
        if found == num_classes {
            return Ok(());
        }
        Err(Error::data(format!(
            "{} has {found} classes, model.num_classes is {num_classes}; set model.num_classes to {found} or name the \
             wanted classes in data.classes",
            self.path.display()
        )))
    }
}

#[cfg(test)]
mod tests;

//! One image of a data set with its objects.

use std::path::{Path, PathBuf};

use fnet_common::{Error, Result};

use super::{CocoDataset, ImageInfo, Objects, Segmentation};

/// One image of a data set with its objects, from [`crate::Dataset::record`].
#[derive(Debug, Clone, Copy)]
pub struct Record<'d> {
    pub(super) dataset: &'d CocoDataset,
    /// The entry of the image in the annotation file.
    pub image: ImageInfo<'d>,
    /// Its objects that are trained on.
    pub objects: Objects<'d>,
}

impl<'d> Record<'d> {
    /// The file of the image. If no file has this name, the only similar one, if there is exactly one.
    pub fn path(&self) -> PathBuf {
        self.dataset.folders.find(&self.dataset.folder, self.image.file_name).into_path()
    }

    /// The annotation file of the image.
    pub fn annotation_file(&self) -> &'d Path {
        &self.dataset.path
    }

    /// The set and the image, for error messages.
    pub fn place(&self) -> String {
        let id = self.dataset.written_image_id(self.image.id);
        format!("{} (image {id} of {})", self.dataset.split().name(), self.dataset.path.display())
    }

    /// An error that names the annotation file.
    pub(crate) fn annotation_error(&self, message: impl std::fmt::Display) -> Error {
        Error::data(format!("{}: {message}", self.dataset.path.display()))
    }

    /// Reads the masks of the objects from the annotation file; `None` for an object without one.
    /// Errors: if the file cannot be read or was changed since it was opened, or a mask is malformed.
    pub fn segmentations(&self) -> Result<Vec<Option<Segmentation>>> {
        let (objects, file) = (&self.objects, self.dataset.path.display());
        let unreadable = |error| Error::data(format!("cannot read the annotation file {file}: {error}"));
        let mut text = Vec::new();
        let mut segmentations = Vec::with_capacity(objects.ids.len());
        let places = objects.mask_offsets.iter().zip(objects.mask_lengths);
        for ((&offset, &length), id) in places.zip(objects.ids) {
            if length == 0 {
                segmentations.push(None);
                continue;
            }
            text.resize(length as usize, 0);
            self.dataset.source.read_exact_at(&mut text, offset).map_err(unreadable)?;
            let segmentation = Segmentation::parse(&text).map_err(|message| {
                self.annotation_error(format!("annotation {id}: segmentation: {message}; fix or remove the annotation"))
            })?;
            segmentations.push(Some(segmentation).filter(|mask| mask.refusal(&text).is_none()));
        }
        Ok(segmentations)
    }
}

impl CocoDataset {
    /// Image `index` with its objects.
    ///
    /// # Panics
    /// If `index` is not below [`Self::len`], like a slice.
    pub fn record(&self, index: usize) -> Record<'_> {
        Record { dataset: self, image: self.image(index), objects: self.objects(index) }
    }

    /// The file of image `index`. If no file has this name, the only similar one, if there is exactly one.
    ///
    /// # Panics
    /// As [`Self::image`].
    pub fn image_path(&self, index: usize) -> PathBuf {
        self.record(index).path()
    }
}

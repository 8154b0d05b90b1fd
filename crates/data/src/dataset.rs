//! The set of a split: one annotation file or several in a row, with the images of an epoch in MMDetection's order
//! (`ConcatDataset`, `RepeatDataset`, `ClassBalancedDataset`).

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use serde_json::Value;

use fnet_common::text::list;
use fnet_common::{Error, Result};
use fnet_config as config;

use super::class_balance;
use super::coco::{
    Category, CocoDataset, ImageInfo, Objects, Opening, Record, SetFiles, Split, TrueObject, compare_classes,
};
use super::diagnostics::{Diagnostics, Severity};
use super::split::validation_part;

/// The images of `data.train`, `data.val` or `data.test`.
///
/// Samples are numbered `0..len()`: the images of an epoch, file by file. Only in a training set can several samples be the
/// same image.
#[derive(Debug)]
pub struct Dataset {
    split: Split,
    parts: Vec<CocoDataset>,
    /// The image of each sample in its part, if it is not its number.
    images: Vec<Option<Vec<u32>>>,
    /// The number of samples before each part, then that of all.
    sample_starts: Vec<usize>,
    /// The number of images before each part.
    image_starts: Vec<usize>,
    /// Whether images are numbered from 1, because the ids of several files are not unique.
    is_renumbered: bool,
    /// See [`Self::validation_part`].
    validation_part: Option<String>,
    diagnostics: Diagnostics,
}

impl Dataset {
    /// Opens the set `split` of `config`: reads the annotation files and checks that the folders of images exist. Without
    /// `data.test`, that is `data.val`.
    /// Errors: a data error with the first diagnostic of each kind that makes the set unusable.
    pub fn open(config: &config::Data, split: Split) -> Result<Self> {
        let (dataset, diagnostics) = Self::inspect(config, split, Diagnostics::KEPT_AT_START);
        match dataset {
            // The training set has the same files and reports them.
            Some(dataset) if dataset.is_validation_part() && diagnostics.number_of(Severity::Error) == 0 => Ok(dataset),
            Some(dataset) if diagnostics.number_of(Severity::Error) == 0 => Ok(Self { diagnostics, ..dataset }),
            _ => {
                diagnostics.refuse_errors()?;
                Err(Error::bug("a data set cannot be opened, but there is no diagnostic"))
            }
        }
    }

    /// Opens the set `split` of `config` and reports its problems, the first `keep` diagnostics of each code in full.
    /// Returns a set of the valid entries if the lists of all files could be read. With errors among the diagnostics, use it
    /// only for further checks.
    pub fn inspect(config: &config::Data, split: Split, keep: usize) -> (Option<Self>, Diagnostics) {
        let split = if split == Split::Test && config.test.ann_file.is_empty() { Split::Val } else { split };
        let mut diagnostics = Diagnostics::keeping(keep).of(split.name());
        let (parts, validation_part) = match config.val_is_fraction() && split != Split::Test {
            true => parts_of_fraction(config, split, &mut diagnostics),
            false => {
                let sets = files(config, split).into_iter();
                let open = |set| Opening::read(config, split, set, &mut diagnostics)?.finish(None, &mut diagnostics);
                (sets.map(open).collect(), None)
            }
        };
        let parts: Vec<Option<CocoDataset>> = parts;
        let Some(parts) = parts.into_iter().collect::<Option<Vec<CocoDataset>>>() else { return (None, diagnostics) };
        for part in parts.iter().skip(1) {
            compare_classes(&parts[0].class_names(), parts[0].annotation_file(), part, &mut diagnostics);
        }
        let images = match split {
            Split::Train => parts.iter().zip(&config.train).map(|(part, set)| samples(part, set)).collect(),
            Split::Val | Split::Test => parts.iter().map(|_| None).collect(),
        };
        let mut dataset = Self::join(split, parts, images);
        dataset.diagnostics = diagnostics.none();
        dataset.validation_part = validation_part;
        (Some(dataset), diagnostics)
    }

    fn join(split: Split, parts: Vec<CocoDataset>, images: Vec<Option<Vec<u32>>>) -> Self {
        let (mut sample_starts, mut image_starts) = (vec![0], vec![0]);
        for (part, images) in parts.iter().zip(&images) {
            let (sample, image) = (sample_starts[image_starts.len() - 1], image_starts[image_starts.len() - 1]);
            sample_starts.push(sample + images.as_ref().map_or(part.len(), Vec::len));
            image_starts.push(image + part.len());
        }
        let mut seen = HashSet::new();
        let is_renumbered = parts.len() > 1
            && parts
                .iter()
                .any(|part| part.image_ids_are_text() || part.image_ids().iter().any(|&id| !seen.insert(id)));
        let (validation_part, diagnostics) = (None, Diagnostics::default());
        Self { split, parts, images, sample_starts, image_starts, is_renumbered, validation_part, diagnostics }
    }

    /// Number of samples: the images of an epoch, with repetitions.
    pub fn len(&self) -> usize {
        self.sample_starts.last().copied().unwrap_or(0)
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Which set this is.
    pub fn split(&self) -> Split {
        self.split
    }

    /// The set of each annotation file, and how many samples it has.
    pub fn parts(&self) -> impl Iterator<Item = (&CocoDataset, usize)> {
        self.parts.iter().zip(self.sample_starts.windows(2)).map(|(part, starts)| (part, starts[1] - starts[0]))
    }

    /// Whether the masks of the objects are used; otherwise only their boxes.
    pub fn has_masks(&self) -> bool {
        self.parts.iter().any(CocoDataset::has_masks)
    }

    /// The names of the annotation files, for messages.
    pub fn annotation_files(&self) -> String {
        list(self.parts.iter().map(|part| part.annotation_file().display().to_string()), 4)
    }

    /// The classes in the order of the labels, which is the order of the annotation files.
    pub fn categories(&self) -> &[Category] {
        self.parts.first().map_or(&[], CocoDataset::categories)
    }

    /// The problems of the annotation files that were found when they were opened.
    pub fn diagnostics(&self) -> &Diagnostics {
        &self.diagnostics
    }

    /// Number of objects that are trained on, without repetitions.
    pub fn object_count(&self) -> usize {
        self.parts.iter().map(CocoDataset::object_count).sum()
    }

    /// Identifies the images that `data.val.fraction` takes, if it is set.
    pub fn validation_part(&self) -> Option<&str> {
        self.validation_part.as_deref()
    }

    /// A warning if `data.val.fraction` now takes other images than those of a checkpoint, which stores `trained`.
    pub fn other_validation_part(&self, trained: Option<&str>) -> Option<String> {
        let (now, trained) = (self.validation_part()?, trained?);
        (now != trained).then(|| {
            format!(
                "data.val.fraction takes other images of {} than when the checkpoint was trained, because the files, \
                 data.classes, fraction or seed are others: the model may be evaluated on images that it was trained on",
                self.annotation_files()
            )
        })
    }

    /// Whether it consists of images that `data.val.fraction` takes from the training set.
    pub fn is_validation_part(&self) -> bool {
        self.validation_part.is_some() && self.split != Split::Train
    }

    /// The part and image of a sample.
    fn place(&self, sample: usize) -> (usize, usize) {
        let part = self.sample_starts.partition_point(|&start| start <= sample) - 1;
        let within = sample - self.sample_starts[part];
        (part, self.images[part].as_ref().map_or(within, |images| images[within] as usize))
    }

    /// The image of a sample with its objects.
    ///
    /// # Panics
    /// If `sample` is not below [`Self::len`], like a slice.
    pub fn record(&self, sample: usize) -> Record<'_> {
        let (part, image) = self.place(sample);
        self.parts[part].record(image)
    }

    /// The entry of the image in its annotation file.
    ///
    /// # Panics
    /// As [`Self::record`].
    pub fn image(&self, sample: usize) -> ImageInfo<'_> {
        self.record(sample).image
    }

    /// The file of the image. If no file has this name, the only similar one, if there is exactly one.
    ///
    /// # Panics
    /// As [`Self::record`].
    pub fn image_path(&self, sample: usize) -> PathBuf {
        self.record(sample).path()
    }

    /// The objects of the image.
    ///
    /// # Panics
    /// As [`Self::record`].
    pub fn objects(&self, sample: usize) -> Objects<'_> {
        self.record(sample).objects
    }

    /// Whether two samples are the same image.
    ///
    /// # Panics
    /// As [`Self::record`].
    pub fn is_same_image(&self, sample: usize, other: usize) -> bool {
        self.place(sample) == self.place(other)
    }

    /// A number for the image of a sample that no other image of the set has: its `id` in the annotation file, or if ids
    /// occur in several files, the number of the image from 1.
    ///
    /// # Panics
    /// As [`Self::record`].
    pub fn image_id(&self, sample: usize) -> i64 {
        let (part, image) = self.place(sample);
        self.unique_id(part, image)
    }

    fn unique_id(&self, part: usize, image: usize) -> i64 {
        match self.is_renumbered {
            true => (self.image_starts[part] + image) as i64 + 1,
            false => self.parts[part].image_ids()[image],
        }
    }

    /// [`Self::image_id`] of every sample.
    pub fn image_ids(&self) -> Vec<i64> {
        (0..self.len()).map(|sample| self.image_id(sample)).collect()
    }

    /// Whether [`Self::image_id`] is not the `id` in the annotation files.
    pub fn is_renumbered(&self) -> bool {
        self.is_renumbered
    }

    /// The name of an image in messages of a batch: its file, with several annotation files also its id in which of them.
    ///
    /// # Panics
    /// As [`Self::record`].
    pub fn image_name(&self, sample: usize) -> String {
        let (part, image) = self.place(sample);
        let (part, image) = (&self.parts[part], self.parts[part].image(image));
        match self.parts.len() {
            1 => image.file_name.to_owned(),
            _ => {
                let id = part.written_image_id(image.id);
                format!("{} (image {id} of {})", image.file_name, part.annotation_file().display())
            }
        }
    }

    /// 1 for an image wider than high, otherwise 0, of every sample. Images of one step have equal flags.
    pub fn aspect_flags(&self) -> Vec<u8> {
        let flag = |image: ImageInfo<'_>| u8::from(image.width > image.height);
        (0..self.len()).map(|sample| flag(self.image(sample))).collect()
    }

    /// The first sample of each image.
    pub fn first_samples(&self) -> Vec<usize> {
        let mut seen = HashSet::new();
        (0..self.len()).filter(|&sample| seen.insert(self.place(sample))).collect()
    }

    /// The set with each image once, for evaluation.
    #[must_use]
    pub fn without_repetitions(self) -> Self {
        let Self { split, parts, validation_part, diagnostics, .. } = self;
        let images = parts.iter().map(|_| None).collect();
        Self { validation_part, diagnostics, ..Self::join(split, parts, images) }
    }

    /// All annotations of selected classes, including crowds and small objects, as in pycocotools: in the order of the
    /// files, the last one of equal ids of a file in place of all.
    /// Errors: a data error that describes the problem in the annotation file.
    pub fn true_objects(&self) -> Result<Vec<TrueObject>> {
        let mut all = Vec::new();
        for (number, part) in self.parts.iter().enumerate() {
            let mut objects = part.true_objects()?;
            if self.is_renumbered {
                let places: HashMap<i64, usize> =
                    part.image_ids().iter().zip(0..).map(|(&id, image)| (id, image)).collect();
                objects.retain_mut(|object| match places.get(&object.image_id) {
                    Some(&image) => {
                        object.image_id = self.unique_id(number, image);
                        true
                    }
                    None => false,
                });
            }
            all.append(&mut objects);
        }
        Ok(all)
    }

    /// [`Self::image_id`] as written in the annotation file: a number or a string.
    pub fn written_image_id(&self, id: i64) -> Value {
        match self.parts.as_slice() {
            [only] => only.written_image_id(id),
            // With strings in several files, images are numbered.
            _ => Value::from(id),
        }
    }

    /// A category id as written in the first annotation file: a number or a string.
    pub fn written_category_id(&self, id: i64) -> Value {
        self.parts.first().map_or(Value::Null, |part| part.written_category_id(id))
    }

    /// Reads every mask and reports malformed and unusual ones.
    pub fn check_masks(&self, diagnostics: &mut Diagnostics) {
        self.parts.iter().for_each(|part| part.check_masks(diagnostics));
    }

    /// Checks that every image has a file.
    pub fn check_files(&self, diagnostics: &mut Diagnostics) {
        self.parts.iter().for_each(|part| part.check_files(diagnostics));
    }
}

/// The files of a split, as the config names them.
fn files<'c>(config: &'c config::Data, split: Split) -> Vec<SetFiles<'c>> {
    let train =
        || config.train.iter().map(|set| (&set.ann_file, &set.img_prefix, set.filter_empty, set.class_balanced > 0.0));
    let (val, test) = (&config.val, &config.test);
    let sets = match split {
        Split::Train => train().collect(),
        Split::Val => vec![(&val.ann_file, &val.img_prefix, val.filter_empty, false)],
        Split::Test => vec![(&test.ann_file, &test.img_prefix, test.filter_empty, false)],
    };
    let named =
        |(index, (ann_file, img_prefix, filter_empty, keeps_classes)): (usize, (&'c String, &'c String, _, _))| {
            let field =
                if split == Split::Train { config.train_field(index) } else { format!("data.{}", split.name()) };
            SetFiles { ann_file, img_prefix, filter_empty, keeps_classes, field }
        };
    sets.into_iter().enumerate().map(named).collect()
}

/// The training sets without the images that `data.val.fraction` takes, or only these, and what identifies them. All files
/// are divided together, before `filter_empty`.
fn parts_of_fraction(
    config: &config::Data,
    split: Split,
    diagnostics: &mut Diagnostics,
) -> (Vec<Option<CocoDataset>>, Option<String>) {
    let mut sets = files(config, Split::Train);
    if split == Split::Val {
        // Evaluation includes images without objects unless data.val leaves them out.
        for set in &mut sets {
            (set.filter_empty, set.keeps_classes) = (config.val.filter_empty, false);
        }
    }
    let openings: Vec<Option<Opening<'_>>> =
        sets.into_iter().map(|set| Opening::read(config, split, set, diagnostics)).collect();
    let classes: Vec<Vec<u16>> = openings.iter().flatten().flat_map(Opening::classes).collect();
    let taken = validation_part(&classes, config.val.fraction, config.val.seed);
    drop(classes);
    let mut hash = Fnv::default();
    let mut rest = taken.as_slice();
    let mut parts = Vec::with_capacity(openings.len());
    for opening in openings {
        parts.push(opening.and_then(|opening| {
            let names: Vec<&str> = opening.file_names().collect();
            let (own, after) = rest.split_at(names.len());
            rest = after;
            hash.add(&names.len().to_le_bytes());
            names.iter().zip(own).filter(|(_, taken)| **taken).for_each(|(name, _)| hash.add(name.as_bytes()));
            let side = own.iter().map(|&taken| taken == (split == Split::Val)).collect();
            opening.finish(Some(side), diagnostics)
        }));
    }
    (parts, Some(format!("{:016x}", hash.0)))
}

/// The hash FNV-1a of some texts.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn add(&mut self, text: &[u8]) {
        // Each text ends with a byte that is in no UTF-8.
        for byte in text.iter().chain(&[0xff]) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

/// The images of an epoch of one training set; `None` for each image once. Rare classes are repeated first, image by image,
/// then the whole list.
fn samples(part: &CocoDataset, set: &config::TrainSet) -> Option<Vec<u32>> {
    if set.repeat <= 1 && set.class_balanced <= 0.0 {
        return None;
    }
    let images = 0..part.len() as u32;
    let balanced: Vec<u32> = match set.class_balanced > 0.0 {
        true => {
            let repeats = class_balance::repeats(part.classes_of(), set.class_balanced, !set.filter_empty);
            images.zip(repeats).flat_map(|(image, times)| std::iter::repeat_n(image, times)).collect()
        }
        false => images.collect(),
    };
    Some(balanced.repeat(set.repeat))
}

#[cfg(test)]
mod tests;

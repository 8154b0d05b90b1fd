//! Opens a data set: reads the annotation file and reports all of its problems at once.

use std::path::{Path, PathBuf};

use rayon::prelude::*;

use fnet_common::process;
use fnet_common::text::{list, quoted};
use fnet_config as config;

use super::annotations::{self, Context, Row, UNKNOWN_SIZE, Usage};
use super::elements::Broken;
use super::files::Folders;
use super::header::{self, Header, NoHeader};
use super::index::Rows;
use super::records::{RawImage, shown_id};
use super::source::AnnotationSource;
use super::{CocoDataset, Listed, Split, data_root, external, index, lists};
use crate::decode::{DecodedImage, ImageHeader};
use crate::diagnostics::{Code, Diagnostics, Location, Severity};

/// The files of one set, as a config names them.
#[derive(Debug)]
pub(crate) struct SetFiles<'c> {
    /// Relative to `data.root`, as the folder.
    pub ann_file: &'c str,
    pub img_prefix: &'c str,
    pub filter_empty: bool,
    /// Whether the classes of each image are kept, for [`CocoDataset::classes_of`].
    pub keeps_classes: bool,
    /// The name of the set in the config: `data.val`, `data.train[1]`.
    pub field: String,
}

/// A set whose annotation file is read, before its images are selected.
pub(crate) struct Opening<'c> {
    set: SetFiles<'c>,
    split: Split,
    root: PathBuf,
    path: PathBuf,
    folder: PathBuf,
    source: AnnotationSource,
    folders: Folders,
    classes: Vec<String>,
    /// What to do with objects without a mask; `None` if masks are not used.
    masks: Option<config::WithoutMask>,
    header: Header,
    sizes: Vec<[u32; 2]>,
    rows: Rows,
    found: Diagnostics,
}

impl<'c> Opening<'c> {
    /// Reads the annotation file of `set` and checks that the folder of images exists. `None` if its lists cannot be read.
    pub fn read(config: &config::Data, split: Split, set: SetFiles<'c>, diagnostics: &mut Diagnostics) -> Option<Self> {
        let root = data_root(config);
        let (path, folder) = (root.join(set.ann_file), root.join(set.img_prefix));
        if !folder.is_dir() {
            diagnostics
                .add(Code::FileFolderMissing, &folder, Location::file, || format!("set by {}.img_prefix", set.field));
        }
        let source = match AnnotationSource::open(&path) {
            Ok(source) => source,
            Err(error) => {
                diagnostics.add(Code::FileUnreadable, &path, Location::file, || {
                    format!("set by {}.ann_file: {error}", set.field)
                });
                return None;
            }
        };
        if let Some(encoding) = source.repaired {
            diagnostics.add(Code::FileEncoding, &path, Location::file, || format!("the file is {encoding}"));
        }
        let folders = Folders::default();
        let mut found = diagnostics.none();
        // The first training set defines the classes of the model. The other sets are compared with it later.
        let classes = if config.classes_are_auto { Vec::new() } else { config.classes.clone() };
        let masks = (!config.boxes_only).then_some(config.without_mask);
        let contents = read_header(&source, &path, split, &classes, &mut found).and_then(|header| {
            process::return_memory();
            let sizes = sizes(&header.images, &path, &folder, &folders, &mut found);
            let rows = read_rows(&source, header.context(&path, split, &sizes, masks), &mut found)?;
            Some((header, sizes, rows))
        });
        let Some((header, sizes, rows)) = contents else {
            report(found, &source, &path, diagnostics);
            return None;
        };
        Some(Self { set, split, root, path, folder, source, folders, classes, masks, header, sizes, rows, found })
    }

    /// The file name of every image of the file.
    pub fn file_names(&self) -> impl Iterator<Item = &str> {
        self.header.images.iter().map(|image| &*image.file_name)
    }

    /// The classes of the objects of every image of the file, without crowds.
    pub fn classes(&self) -> Vec<Vec<u16>> {
        self.rows.classes(self.header.images.len(), |usage| usage == Usage::Trained)
    }

    /// Selects the images that are used: those of the mask `side` over the images of the file, if it is given. `None` if the
    /// file has another format.
    pub fn finish(self, side: Option<Vec<bool>>, diagnostics: &mut Diagnostics) -> Option<CocoDataset> {
        let Self { set, split, root, path, folder, source, folders, classes, masks, header, sizes, rows, mut found } =
            self;
        let (categories, listed) =
            (header.categories.clone(), Listed { images: header.listed_images, annotations: rows.len() });
        let options = index::Selection {
            path: &path,
            split,
            filter_empty: set.filter_empty,
            keeps_classes: set.keeps_classes,
            side: side.as_deref(),
        };
        let index::Index { images, objects, id_names } =
            index::build(header, &sizes, rows, &options, &source, &mut found);
        if !report(found, &source, &path, diagnostics) {
            return None;
        }
        let field = set.field;
        Some(CocoDataset {
            split,
            field,
            path,
            folder,
            root,
            source,
            classes,
            masks,
            categories,
            listed,
            side,
            images,
            objects,
            id_names,
            folders,
        })
    }
}

/// Adds what was found in a file. If that are errors and the file has another format, adds only the format, because
/// diagnostics of single entries would be redundant, and returns false.
fn report(found: Diagnostics, source: &AnnotationSource, path: &Path, diagnostics: &mut Diagnostics) -> bool {
    let format = match found.number_of(Severity::Error) {
        0 => None,
        _ => external::of_annotations(source, path),
    };
    match format {
        Some(format) => diagnostics.add(Code::FileOtherFormat, path, Location::file, || format.into()),
        None => diagnostics.append(found),
    }
    format.is_none()
}

/// Reads images and categories, or reports why they cannot be read.
pub(super) fn read_header(
    source: &AnnotationSource,
    path: &Path,
    split: Split,
    classes: &[String],
    diagnostics: &mut Diagnostics,
) -> Option<Header> {
    let lists = ["images", "categories", "annotations"];
    let (keys, missing) = match header::read(source, path, classes, diagnostics) {
        Ok(header) if header.has_annotations || split != Split::Train => return Some(header),
        Ok(_) => (Vec::new(), vec!["annotations"]),
        Err(NoHeader::Reported) => return None,
        Err(NoHeader::Broken(broken)) => {
            report_broken(broken, source, path, diagnostics);
            return None;
        }
        Err(NoHeader::KeysMissing(keys)) => {
            let has = |name: &str| keys.iter().any(|(key, first)| key == name && *first == b'[');
            let missing = lists.into_iter().filter(|name| !has(name)).collect();
            (keys, missing)
        }
    };
    if let Some(format) = external::of_keys(&keys, source) {
        diagnostics.add(Code::FileOtherFormat, path, Location::file, || format.into());
        return None;
    }
    for name in missing.into_iter().filter(|&name| name != "annotations" || split == Split::Train) {
        diagnostics.add(Code::FileKeyMissing, path, Location::file, || match keys.is_empty() {
            true => format!("no list {name:?}"),
            false => format!("no list {name:?} among the keys {}", list(keys.iter().map(|(key, _)| quoted(key)), 6)),
        });
    }
    None
}

/// Reports a text that could not be read completely.
pub(super) fn report_broken(broken: Broken, source: &AnnotationSource, path: &Path, diagnostics: &mut Diagnostics) {
    let line = |offset| move || Location::line(source.line(offset));
    match broken {
        Broken::NotJson { offset, what } => match external::of_text(source) {
            Some(format) => diagnostics.add(Code::FileOtherFormat, path, Location::file, || format.into()),
            None => diagnostics.add(Code::FileNotJson, path, line(offset), || what.into()),
        },
        Broken::CutOff { offset } => {
            diagnostics.add(Code::FileCutOff, path, line(offset), || format!("it ends after {offset} bytes"));
        }
        Broken::NoObject { first: None } => {
            diagnostics.add(Code::FileEmpty, path, Location::file, || "the file is empty".into());
        }
        Broken::NoObject { .. } => {
            let format = external::of_text(source)
                .unwrap_or("neither an object with images, annotations and categories, nor another known format");
            diagnostics.add(Code::FileOtherFormat, path, Location::file, || format.into());
        }
        Broken::Unreadable(error) => diagnostics.add(Code::FileUnreadable, path, Location::file, || error.to_string()),
    }
}

/// The size of every image. Sizes that are missing in the annotation file are read from the image files.
fn sizes(
    images: &[RawImage],
    path: &Path,
    folder: &Path,
    folders: &Folders,
    diagnostics: &mut Diagnostics,
) -> Vec<[u32; 2]> {
    let mut sizes: Vec<[u32; 2]> = images.iter().map(|image| *image.size.as_ref().unwrap_or(&UNKNOWN_SIZE)).collect();
    let missing = images.iter().enumerate().filter_map(|(place, image)| Some((place, image.size.as_ref().err()?)));
    let missing: Vec<_> = missing.collect();
    let read = |&(place, wrong): &(usize, _)| {
        let file = folders.find(folder, &images[place].file_name).into_path();
        (place, wrong, DecodedImage::header(&file), file)
    };
    let headers: Vec<_> = missing.par_iter().map(read).collect();
    for (place, wrong, header, file) in headers {
        let of_image = || Location::image(shown_id(Some(&images[place].id), place));
        match header {
            Ok(ImageHeader { width, height, .. }) => {
                diagnostics.add(Code::ImageSizeMissing, path, of_image, || {
                    format!("{wrong}; {} has {width}x{height}", file.display())
                });
                sizes[place] = [width as u32, height as u32];
            }
            Err(error) => diagnostics.add(Code::ImageSizeUnknown, path, of_image, || format!("{wrong}, and {error}")),
        }
    }
    sizes
}

fn read_rows(source: &AnnotationSource, context: Context<'_>, diagnostics: &mut Diagnostics) -> Option<Rows> {
    let parse = |_: &str, text: &[u8], offset: u64, row: usize, diagnostics: &mut Diagnostics| {
        Some(annotations::row(text, offset, row, &context, diagnostics))
    };
    let mut rows = Rows::for_text(source.length());
    let mut take = |_: &str, row: Option<Row>| match row {
        Some(row) => rows.push(row),
        None => rows = Rows::for_text(source.length()),
    };
    match lists::read(source, context.path, &["annotations"], &parse, &mut take, diagnostics) {
        Ok(_) => Some(rows),
        Err(broken) => {
            report_broken(broken, source, context.path, diagnostics);
            None
        }
    }
}

//! Opens a data set: reads the annotation file and reports all of its problems at once.

use std::path::Path;

use rayon::prelude::*;

use fnet_common::Result;
use fnet_common::text::{list, quoted};
use fnet_config as config;

use super::annotations::{self, Context, Row, UNKNOWN_SIZE};
use super::elements::Broken;
use super::files::Folders;
use super::header::{self, Header, NoHeader};
use super::index::Rows;
use super::records::{RawImage, shown_id};
use super::source::AnnotationSource;
use super::{Dataset, Listed, Split, data_root, external, index, lists};
use crate::decode::{DecodedImage, ImageHeader};
use crate::diagnostics::{Code, Diagnostics, Location, Severity};

impl Dataset {
    /// Opens the set `split` of `config`: reads the annotation file and checks that the folder of images exists.
    ///
    /// # Errors
    /// A data error with the first diagnostic of each kind that makes the set unusable.
    pub fn open(config: &config::Data, split: Split) -> Result<Self> {
        let (dataset, diagnostics) = Self::inspect(config, split, Diagnostics::KEPT_AT_START);
        match dataset {
            Some(dataset) if diagnostics.number_of(Severity::Error) == 0 => Ok(Self { diagnostics, ..dataset }),
            _ => {
                diagnostics.refuse_errors()?;
                Err(fnet_common::Error::bug("a data set cannot be opened, but there is no diagnostic"))
            }
        }
    }

    /// Opens the set `split` of `config` and reports its problems, the first `keep` diagnostics of each code in full.
    /// Returns a set of the valid entries if its lists could be read. With errors among the diagnostics, use it only
    /// for further checks.
    pub fn inspect(config: &config::Data, split: Split, keep: usize) -> (Option<Self>, Diagnostics) {
        let mut diagnostics = Diagnostics::keeping(keep).of(split.name());
        let dataset = read(config, split, &mut diagnostics);
        (dataset, diagnostics)
    }
}

fn read(config: &config::Data, split: Split, diagnostics: &mut Diagnostics) -> Option<Dataset> {
    let root = data_root(config);
    let set = match split {
        Split::Train => &config.train,
        Split::Val => &config.val,
    };
    let (path, folder) = (root.join(&set.ann_file), root.join(&set.img_prefix));
    if !folder.is_dir() {
        diagnostics.add(Code::FileFolderMissing, &folder, Location::file, || {
            format!("set by data.{}.img_prefix", split.name())
        });
    }
    let source = match AnnotationSource::open(&path) {
        Ok(source) => source,
        Err(error) => {
            diagnostics.add(Code::FileUnreadable, &path, Location::file, || {
                format!("set by data.{}.ann_file: {error}", split.name())
            });
            return None;
        }
    };
    if let Some(encoding) = source.repaired {
        diagnostics.add(Code::FileEncoding, &path, Location::file, || format!("the file is {encoding}"));
    }
    let folders = Folders::default();
    let mut found = diagnostics.none();
    // The training set defines the classes of the model. The other set is compared with it later.
    let classes: &[String] = if config.classes_are_auto { &[] } else { &config.classes };
    let masks = (!config.boxes_only).then_some(config.without_mask);
    let contents = read_header(&source, &path, split, classes, &mut found).and_then(|header| {
        index::give_back_memory();
        let sizes = sizes(&header.images, &path, &folder, &folders, &mut found);
        let rows = read_rows(&source, header.context(&path, split, &sizes, masks), &mut found)?;
        let (categories, listed) =
            (header.categories.clone(), Listed { images: header.listed_images, annotations: rows.len() });
        let options = (&*path, split, set.filter_empty);
        Some((categories, listed, index::build(header, &sizes, rows, options, &source, &mut found)))
    });
    if found.number_of(Severity::Error) > 0
        && let Some(format) = external::of_annotations(&source, &path)
    {
        // Diagnostics of single entries would be redundant.
        diagnostics.add(Code::FileOtherFormat, &path, Location::file, || format.into());
        return None;
    }
    diagnostics.append(found);
    let (categories, listed, index::Index { images, objects, id_names }) = contents?;
    let classes = classes.to_vec();
    let diagnostics = diagnostics.none();
    Some(Dataset {
        split,
        path,
        folder,
        root,
        source,
        classes,
        masks,
        categories,
        listed,
        images,
        objects,
        id_names,
        folders,
        diagnostics,
    })
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
        Ok(header) if header.has_annotations || split == Split::Val => return Some(header),
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

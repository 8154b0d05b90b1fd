//! Generates a whole data set.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::options::Options;
use crate::outline::{Outline, library};
use crate::random::Random;
use crate::records::{self, AnnotationRecord, ImageRecord, Owner};
use crate::scene;
use crate::writer::AnnotationFile;

/// Progress of the generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Images done.
    pub done: u64,
    /// Total images, including images that are only described in an annotations-only set.
    pub total: u64,
}

/// A summary of the output folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Whether the folder already contained the same set and nothing was written.
    #[serde(skip)]
    pub reused: bool,
    /// The annotation files, relative to the output folder.
    pub annotation_files: Vec<PathBuf>,
    /// Images, described or written.
    pub images: u64,
    /// Images without any annotation.
    pub empty_images: u64,
    /// Annotations, crowd regions included.
    pub annotations: u64,
    /// Crowd regions.
    pub crowds: u64,
    /// Generation time in seconds.
    pub seconds: f64,
}

/// Marks a folder as a generated set and stores its options.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    options: Options,
    /// `None` while the set is incomplete.
    summary: Option<Summary>,
}

/// Name of the manifest in the output folder.
const MANIFEST: &str = "synth.json";
/// Number of images whose annotations are in memory at the same time.
const CHUNK: u64 = 512;
/// Numbers of the first training, validation and test image, within 31 bits. The numbers of validation images do not
/// depend on the number of training images, so sets with equal seeds have the same validation images.
const FIRST_IMAGES: [u64; 3] = [1, 1_000_000_001, 1_500_000_001];
/// Mean number of annotations per image in an annotations-only set. COCO has 7.3.
const ANNOTATIONS_PER_IMAGE: u64 = 7;

/// Generates the data set of `options` in `options.out`, with the layout [`Options::layout`]. `progress` is called from
/// several threads, not always in order. A folder that already contains the same set does not change.
/// Errors: options out of range; a folder with other contents; a disk that is full or not writable.
pub fn generate(options: &Options, progress: &(dyn Fn(Progress) + Sync)) -> Result<Summary> {
    options.check()?;
    if let Some(summary) = prepare(options)? {
        return Ok(summary);
    }
    write_manifest(options, None)?;
    let started = Instant::now();
    let mut summary = Summary {
        reused: false,
        annotation_files: Vec::new(),
        images: 0,
        empty_images: 0,
        annotations: 0,
        crowds: 0,
        seconds: 0.0,
    };
    let splits = splits(options);
    let total = splits.iter().map(|split| split.images).sum();
    let done = std::sync::atomic::AtomicU64::new(0);
    let tick = || {
        let done = done.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
        progress(Progress { done, total });
    };
    // Roboflow has no crowd regions, so images must not have unannotated crowds.
    let drawn =
        Options { crowds: if options.layout == Layout::Roboflow { 0.0 } else { options.crowds }, ..options.clone() };
    let outlines = if options.annotations_only.is_some() { library(options.seed) } else { Vec::new() };
    for split in &splits {
        write_split(&drawn, split, &outlines, &tick, &mut summary)?;
    }
    summary.seconds = started.elapsed().as_secs_f64();
    write_manifest(options, Some(&summary))?;
    Ok(summary)
}

/// Checks the output folder. Returns the summary of a finished set, or `None` if the set must be generated.
fn prepare(options: &Options) -> Result<Option<Summary>> {
    let folder = &options.out;
    fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let path = folder.join(MANIFEST);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let mut entries = fs::read_dir(folder).map_err(Error::io("read", folder))?;
            return match entries.next() {
                None => Ok(None),
                Some(_) => Err(Error::Usage(format!(
                    "{} is not empty and contains no generated set (no {MANIFEST} in it); choose another folder for --out",
                    folder.display()
                ))),
            };
        }
        Err(e) => return Err(Error::io("read", &path)(e)),
    };
    let manifest: Manifest = serde_json::from_str(&text).map_err(Error::manifest(&path))?;
    let same = manifest.format == crate::FORMAT_VERSION
        && Options { out: folder.clone(), ..manifest.options.clone() } == *options;
    match manifest.summary {
        Some(summary) if same => Ok(Some(Summary { reused: true, ..summary })),
        // An interrupted run of the same set is simply repeated.
        None if same => Ok(None),
        _ => Err(Error::Usage(format!(
            "{} contains a set generated with other options ({}; requested: {}); remove it or choose another folder for --out",
            folder.display(),
            tell(&manifest.options, manifest.format),
            tell(options, crate::FORMAT_VERSION)
        ))),
    }
}

/// The options in one line, for errors.
fn tell(options: &Options, format: u32) -> String {
    let text = serde_json::to_string(options).unwrap_or_else(|_| format!("{options:?}"));
    format!("format {format}, {text}")
}

fn write_manifest(options: &Options, summary: Option<&Summary>) -> Result<()> {
    let path = options.out.join(MANIFEST);
    let manifest = Manifest { format: crate::FORMAT_VERSION, options: options.clone(), summary: summary.cloned() };
    let text = serde_json::to_string_pretty(&manifest).map_err(Error::manifest(&path))?;
    let temporary = path.with_extension("json.part");
    fs::write(&temporary, text + "\n").map_err(Error::io("write", &temporary))?;
    fs::rename(&temporary, &path).map_err(Error::io("rename", &temporary))
}

/// Training or validation images.
#[derive(Debug, Clone, Copy)]
struct Split {
    name: &'static str,
    /// Number of the first image.
    first: u64,
    images: u64,
}

fn splits(options: &Options) -> Vec<Split> {
    let images = match options.annotations_only {
        Some(annotations) => vec![annotations.div_ceil(ANNOTATIONS_PER_IMAGE)],
        None => vec![u64::from(options.images), u64::from(options.val_images), u64::from(options.val_images)],
    };
    let folders = options.layout.folders().iter().zip(FIRST_IMAGES);
    folders.zip(images).map(|((&name, first), images)| Split { name, first, images }).collect()
}

/// Writes a split's images and its annotation file.
fn write_split(
    options: &Options,
    split: &Split,
    outlines: &[Outline],
    tick: &(dyn Fn() + Sync),
    summary: &mut Summary,
) -> Result<()> {
    let layout = options.layout;
    let relative = layout.annotation_file(split.name);
    let path = options.out.join(&relative);
    let folder = path.parent().unwrap_or(&options.out);
    fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let folder = options.out.join(split.name);
    if options.annotations_only.is_none() {
        fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
    }
    let mut file = AnnotationFile::create(&path, options)?;
    // The offset that is subtracted from image numbers, and the next annotation id.
    let (less, mut next_id) =
        if layout.ids_start_from_zero() { (split.first, 0) } else { (0, summary.annotations + 1) };
    for image in split.first..split.first + split.images {
        let (width, height) = scene::size(options, image);
        let file_name = layout.file_name(image, options.seed);
        file.entry(&ImageRecord { id: image - less, file_name, width, height, license: 1 })?;
    }
    file.annotations()?;
    let end = split.first + split.images;
    let mut next = split.first;
    while next < end {
        let last = (next + CHUNK).min(end);
        let chunk: Vec<Vec<AnnotationRecord>> = (next..last)
            .into_par_iter()
            .map(|image| {
                let found = match options.annotations_only {
                    Some(annotations) => invent(options, image, annotations, split.images, outlines)?,
                    None => write_image(options, image, &folder)?,
                };
                tick();
                Ok(found)
            })
            .collect::<Result<_>>()?;
        for mut annotation in
            chunk.into_iter().inspect(|found| summary.empty_images += u64::from(found.is_empty())).flatten()
        {
            summary.annotations += 1;
            summary.crowds += u64::from(annotation.iscrowd);
            annotation.id = next_id;
            annotation.image_id -= less;
            next_id += 1;
            file.entry(&annotation)?;
        }
        next = last;
    }
    file.finish()?;
    summary.images += split.images;
    summary.annotation_files.push(relative);
    Ok(())
}

/// Draws and writes one image, and annotates the visible objects.
fn write_image(options: &Options, image: u64, folder: &Path) -> Result<Vec<AnnotationRecord>> {
    let scene = scene::draw(options, image);
    let path = folder.join(options.layout.file_name(image, options.seed));
    let failed = |reason: String| Error::Bug(format!("cannot encode {}: {reason}", path.display()));
    let side = |length: usize| u16::try_from(length).map_err(|e| failed(e.to_string()));
    let quality = Random::new(options.seed, &[image, u64::MAX]).within(&(80..=95)) as u8;
    let mut jpeg = Vec::new();
    jpeg_encoder::Encoder::new(&mut jpeg, quality)
        .encode(&scene.pixels, side(scene.width)?, side(scene.height)?, jpeg_encoder::ColorType::Rgb)
        .map_err(|e| failed(e.to_string()))?;
    fs::write(&path, jpeg).map_err(Error::io("write", &path))?;
    let size = (scene.width as u32, scene.height as u32);
    let describe = |seen: &scene::Visible| {
        records::describe(
            &seen.mask,
            Owner { image, size, class: seen.class, crowd: seen.crowd, layout: options.layout },
        )
    };
    scene.visible.iter().filter_map(|seen| describe(seen).transpose()).collect()
}

/// Annotates objects of an image that is not drawn.
fn invent(
    options: &Options,
    image: u64,
    annotations: u64,
    images: u64,
    outlines: &[Outline],
) -> Result<Vec<AnnotationRecord>> {
    let index = image - 1;
    let count = annotations / images + u64::from(index < annotations % images);
    let size = scene::size(options, image);
    let mut random = Random::new(options.seed, &[image, u64::MAX - 1]);
    let mut found = Vec::new();
    while (found.len() as u64) < count {
        let outline = &outlines[random.below(outlines.len())];
        let length = f64::from(random.between(0.1, 0.6)) * f64::from(size.0.min(size.1));
        let sides = (length * outline.aspect.min(1.0), length / outline.aspect.max(1.0));
        let corner = (
            f64::from(random.unit()) * (f64::from(size.0) - sides.0),
            f64::from(random.unit()) * (f64::from(size.1) - sides.1),
        );
        let crowd = random.chance(0.01) && options.layout == Layout::Coco;
        let owner = Owner { image, size, class: outline.class, crowd, layout: options.layout };
        let (parts, holes) = outline.place(corner, sides);
        let described = if holes.is_empty() && !owner.crowd {
            records::describe_polygons(parts, owner)?
        } else {
            records::describe_difference(&parts, &holes, owner)?
        };
        found.extend(described);
    }
    Ok(found)
}

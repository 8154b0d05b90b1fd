//! `predict`: draws detections on the user's images and writes the results.

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::json;

use fnet_common::atomic;
use fnet_common::text::count;
use fnet_common::{Context, Error, Result};
use fnet_config::OnError;
use fnet_data::{DecodedImage, evaluation_indices, single_image};
use fnet_evaluate::inference::{Found, Outcome, Share, detect, gather};
use fnet_evaluate::paint::{Painter, painted_path, save, unused};
use fnet_evaluate::results::xywh;
use fnet_protocol::{cli, stop};

use super::detector::{Host, Wanted, load, name_of, to_paint};
use super::test::into_image;

/// Extensions of images in a folder; a file that is given by name may have any extension.
const EXTENSIONS: [&str; 14] =
    ["jpg", "jpeg", "png", "bmp", "webp", "tif", "tiff", "gif", "jp2", "j2k", "pbm", "pgm", "ppm", "pnm"];

/// An input image.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Input {
    path: PathBuf,
    /// Its name in the results, relative to the given folder.
    name: String,
    /// The output image.
    painted: PathBuf,
}

/// Draws detections on images, and writes `results.json` into the same folder: COCO results with additional names of files
/// and classes. `image_id` counts the images and `category_id` the classes from 1.
///
/// # Errors
/// If the checkpoint, the config or an image is wrong, a file cannot be written, a rank is lost, or memory runs out.
pub fn predict(arguments: &cli::Predict, host: &mut Host<'_>) -> Result<Outcome<()>> {
    let inputs = find(&arguments.images, &arguments.out)?;
    let wanted = Wanted {
        checkpoint: &arguments.checkpoint,
        config: arguments.config.as_deref(),
        overrides: &arguments.set,
        allow_partial: arguments.allow_partial,
    };
    let trained = load(&wanted, host)?;
    let painter = Painter::new()?;
    let indices = evaluation_indices(inputs.len(), host.ranks.rank(), host.ranks.world_size());
    let mut share = Share::default();
    for (done, &index) in (1..).zip(&indices) {
        if stop::requested().is_some() {
            break;
        }
        let input = &inputs[index];
        let decoded = match DecodedImage::read(&input.path) {
            Ok(decoded) => decoded,
            Err(error) if trained.config.data.on_error == OnError::Skip => {
                share.skipped.push(error.to_string());
                continue;
            }
            Err(error) => return Err(error),
        };
        let image_id = index as i64 + 1;
        let batch = single_image(decoded.clone(), image_id, &input.name, &trained.config.data.pipeline);
        for result in detect(&trained.model, &batch, &trained.config)? {
            let objects = to_paint(&result, &trained.classes, arguments.score_thr)?;
            let painted = painter.paint(&into_image(decoded.clone())?, &objects)?;
            save(&painted, &input.painted).with_context(|| format!("drawing {}", input.path.display()))?;
            share.results.push(result);
        }
        (host.progress)(done, indices.len());
    }
    let places: HashMap<i64, usize> = (0..inputs.len()).map(|index| (index as i64 + 1, index)).collect();
    gather(share, &places, host.ranks)?.and_then(|found| finish(&found, &inputs, &trained.classes, arguments, host))
}

/// Writes the results and prints a summary.
fn finish(
    found: &Found,
    inputs: &[Input],
    classes: &[String],
    arguments: &cli::Predict,
    host: &mut Host<'_>,
) -> Result<()> {
    let path = arguments.out.join("results.json");
    atomic::create(&path, |out| write(found, inputs, classes, out))?;
    for skipped in &found.skipped {
        (host.say)(&format!("skipped: {skipped}"));
    }
    let objects: usize = found.results.iter().map(|result| result.detections.len()).sum();
    (host.say)(&format!(
        "{} in {}; images and results.json are in {}",
        count(objects, "object"),
        count(found.results.len(), "image"),
        arguments.out.display()
    ));
    Ok(())
}

fn write(found: &Found, inputs: &[Input], classes: &[String], out: &mut dyn Write) -> Result<()> {
    let mut entries = Vec::new();
    for result in &found.results {
        for detection in &result.detections {
            let mut entry = json!({
                "image_id": result.image_id,
                "file_name": inputs[result.image_id as usize - 1].name,
                "category_id": detection.label + 1,
                "category_name": name_of(detection, classes),
                "bbox": xywh(detection.bbox),
                "score": f64::from(detection.score),
            });
            if let Some(segmentation) = result.segmentation(detection) {
                entry["segmentation"] = segmentation;
            }
            entries.push(entry);
        }
    }
    let text = entries.iter().map(ToString::to_string).collect::<Vec<_>>().join(",\n");
    writeln!(out, "[{text}]").map_err(|error| Error::environment(format!("writing failed: {error}")))
}

/// The images of the arguments in a fixed order: files as given, folders sorted by path.
fn find(arguments: &[PathBuf], out: &Path) -> Result<Vec<Input>> {
    let mut inputs = Vec::new();
    let mut taken = HashSet::new();
    for argument in arguments {
        let unreadable = |path: &Path, error: std::io::Error| Error::data(format!("{}: {error}", path.display()));
        let mut paths = Vec::new();
        let base = if std::fs::metadata(argument).map_err(|error| unreadable(argument, error))?.is_dir() {
            list(argument, out, &mut paths).map_err(|(path, error)| unreadable(&path, error))?;
            paths.sort();
            if paths.is_empty() {
                return Err(Error::data(format!(
                    "the folder {} has no images: expected files with the extension .{}",
                    argument.display(),
                    EXTENSIONS.join(", .")
                )));
            }
            argument.as_path()
        } else {
            paths.push(argument.clone());
            argument.parent().unwrap_or(Path::new(""))
        };
        for path in paths {
            let name = path.strip_prefix(base).unwrap_or(&path).to_string_lossy().into_owned();
            let painted = unused(painted_path(out, &name), &mut taken);
            inputs.push(Input { path, name, painted });
        }
    }
    Ok(inputs)
}

/// All images below a folder, except hidden files and the output of this command.
fn list(folder: &Path, out: &Path, found: &mut Vec<PathBuf>) -> Result<(), (PathBuf, std::io::Error)> {
    let at = |error| (folder.to_path_buf(), error);
    for entry in std::fs::read_dir(folder).map_err(at)? {
        let entry = entry.map_err(at)?;
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with('.') || path == out {
            continue;
        }
        let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase());
        if entry.file_type().map_err(at)?.is_dir() {
            list(&path, out, found)?;
        } else if ending.is_some_and(|ending| EXTENSIONS.contains(&ending.as_str())) {
            found.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_searched_in_order_and_equal_names_get_unique_outputs() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir_all(at("in/deep")).unwrap();
        for name in ["in/b.JPG", "in/a.png", "in/deep/c.webp", "in/._b.jpg", "in/notes.txt", "b.JPG"] {
            std::fs::write(at(name), "x").unwrap();
        }
        let inputs = find(&[at("in"), at("b.JPG")], &at("out")).unwrap();
        let names: Vec<&str> = inputs.iter().map(|input| input.name.as_str()).collect();
        assert_eq!(names, ["a.png", "b.JPG", "deep/c.webp", "b.JPG"]);
        assert_eq!(inputs[1].painted, at("out/b.JPG"));
        assert_eq!(inputs[2].painted, at("out/deep/c.webp.jpg"));
        assert_eq!(inputs[3].painted, at("out/b_2.JPG"));
    }

    #[test]
    fn a_folder_without_images_and_a_missing_file_are_data_errors() {
        let folder = tempfile::tempdir().unwrap();
        for argument in [folder.path().to_path_buf(), folder.path().join("none.jpg")] {
            let error = find(std::slice::from_ref(&argument), Path::new("out")).unwrap_err();
            assert_eq!(error.kind(), fnet_common::ErrorKind::Data);
            assert!(error.to_string().contains(argument.to_str().unwrap()), "{error}");
        }
    }
}

//! Saves drawn images.

use std::collections::HashSet;
use std::path::{Component, Path, PathBuf};

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder, RgbImage};

use fnet_common::atomic;
use fnet_common::{Error, Result};

/// The path of the drawn copy of an image: its name and subfolders inside `folder`, never outside of it.
///
/// JPEG and PNG keep their names. Other formats are saved as JPEG with `.jpg` appended.
pub fn painted_path(folder: &Path, file_name: &str) -> PathBuf {
    let mut path = folder.to_path_buf();
    // Annotation files from Windows may have backslashes.
    for component in Path::new(&file_name.replace('\\', "/")).components() {
        if let Component::Normal(name) = component {
            path.push(name);
        }
    }
    if path == folder {
        path.push("image");
    }
    if is_png(&path) || has_extension(&path, &["jpg", "jpeg"]) {
        return path;
    }
    let mut name = path.into_os_string();
    name.push(".jpg");
    name.into()
}

/// An unused name: `cat.jpg`, `cat_2.jpg`, ...
pub fn unused(wanted: PathBuf, taken: &mut HashSet<PathBuf>) -> PathBuf {
    let stem = wanted.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let ending = wanted.extension().unwrap_or_default().to_string_lossy().into_owned();
    let mut path = wanted.clone();
    let mut number = 2;
    while !taken.insert(path.clone()) {
        path = wanted.with_file_name(format!("{stem}_{number}.{ending}"));
        number += 1;
    }
    path
}

/// Writes an image as PNG or JPEG, depending on the extension. Creates missing folders.
///
/// # Errors
///
/// The file cannot be written.
pub fn save(image: &RgbImage, path: &Path) -> Result<()> {
    let failed = |error: image::ImageError| Error::environment(format!("cannot encode {}: {error}", path.display()));
    let (width, height) = image.dimensions();
    let mut bytes = Vec::new();
    if is_png(path) {
        PngEncoder::new(&mut bytes).write_image(image, width, height, ExtendedColorType::Rgb8).map_err(failed)?;
    } else {
        JpegEncoder::new_with_quality(&mut bytes, 92).encode_image(image).map_err(failed)?;
    }
    atomic::create(path, |out| {
        out.write_all(&bytes).map_err(|error| Error::environment(format!("cannot write {}: {error}", path.display())))
    })
}

fn is_png(path: &Path) -> bool {
    has_extension(path, &["png"])
}

fn has_extension(path: &Path, wanted: &[&str]) -> bool {
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
    extension.is_some_and(|extension| wanted.contains(&extension.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawn_images_keep_their_names_and_stay_in_their_folder() {
        let place = |name: &str| painted_path(Path::new("out"), name).to_string_lossy().into_owned();
        assert_eq!(place("a/b.jpg"), "out/a/b.jpg");
        assert_eq!(place("a\\b.PNG"), "out/a/b.PNG");
        assert_eq!(place("../../etc/b.webp"), "out/etc/b.webp.jpg");
        assert_eq!(place("/abs/b.jpeg"), "out/abs/b.jpeg");
        assert_eq!(place(".."), "out/image.jpg");
        assert_eq!(place("фото/汽车 🚗#%20.jpg"), "out/фото/汽车 🚗#%20.jpg");
        assert_eq!(place("C:\\x\\..\\..\\y.bmp"), "out/C:/x/y.bmp.jpg");
    }

    #[test]
    fn images_with_the_same_name_do_not_overwrite_each_other() {
        let mut taken = HashSet::new();
        let mut place = |name: &str| unused(painted_path(Path::new("out"), name), &mut taken);
        let names =
            ["a/x.jpg", "b/x.jpg", "a/x.jpg", "../a/x.jpg", "a/x_2.jpg", "y.webp", "y.webp.jpg"].map(&mut place);
        let expected = ["a/x.jpg", "b/x.jpg", "a/x_2.jpg", "a/x_3.jpg", "a/x_2_2.jpg", "y.webp.jpg", "y.webp_2.jpg"];
        assert_eq!(names, expected.map(|name| Path::new("out").join(name)));
    }

    #[test]
    fn files_have_the_format_of_their_extension() {
        let folder = tempfile::tempdir().unwrap();
        let image = RgbImage::from_pixel(4, 3, image::Rgb([10, 200, 30]));
        for (name, format) in [("x/a.png", image::ImageFormat::Png), ("x/a.jpg", image::ImageFormat::Jpeg)] {
            let path = folder.path().join(name);
            save(&image, &path).unwrap();
            let bytes = std::fs::read(&path).unwrap();
            assert_eq!(image::guess_format(&bytes).unwrap(), format);
            assert_eq!(image::load_from_memory(&bytes).unwrap().to_rgb8().dimensions(), (4, 3));
        }
    }
}

//! Saves drawn images.

use std::collections::HashSet;
use std::io::Cursor;
use std::path::{Component, Path, PathBuf};

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::{ImageFormat, RgbImage};

use fnet_common::{Error, Result, atomic};

/// Quality of JPEGs inside of other files.
const EMBEDDED_QUALITY: u8 = 80;

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
    if matches!(ImageFormat::from_path(&path), Ok(ImageFormat::Jpeg | ImageFormat::Png)) {
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
/// Errors: the file cannot be written.
pub fn save(image: &RgbImage, path: &Path) -> Result<()> {
    atomic::create(path, |out| {
        let written = match ImageFormat::from_path(path) {
            Ok(ImageFormat::Png) => image.write_with_encoder(PngEncoder::new(out)),
            _ => image.write_with_encoder(JpegEncoder::new_with_quality(out, 92)),
        };
        written.map_err(|error| Error::environment(format!("cannot write {}: {error}", path.display())))
    })
}

/// The image as JPEG, for a page or an event file.
/// Errors: a bug: an image that JPEG does not have.
pub fn jpeg(image: &RgbImage) -> Result<Vec<u8>> {
    let mut jpeg = Cursor::new(Vec::new());
    let written = image.write_with_encoder(JpegEncoder::new_with_quality(&mut jpeg, EMBEDDED_QUALITY));
    written.map_err(|error| Error::bug(format!("an image as JPEG: {error}")))?;
    Ok(jpeg.into_inner())
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
        for (name, format) in [("x/a.png", ImageFormat::Png), ("x/a.jpg", ImageFormat::Jpeg)] {
            let path = folder.path().join(name);
            save(&image, &path).unwrap();
            let bytes = std::fs::read(&path).unwrap();
            assert_eq!(image::guess_format(&bytes).unwrap(), format);
            assert_eq!(image::load_from_memory(&bytes).unwrap().to_rgb8().dimensions(), (4, 3));
        }
    }
}

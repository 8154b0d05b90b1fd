//! Decodes image files to RGB pixels like OpenCV's `IMREAD_COLOR`: EXIF rotation applied, transparency dropped, 16-bit
//! values truncated to 8 bits.

mod content;
mod header;
mod jpeg;
mod jpeg2000;
mod other;
mod tiff;

use std::path::Path;

use image::metadata::Orientation;
use image::{DynamicImage, RgbImage};

use fnet_protocol::contain;

use content::{CONVERT, Decoded, no_image, regular};
pub use header::ImageHeader;

use fnet_common::text::printable;
use fnet_common::{Error, Result};

/// A decoded image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodedImage {
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// `width * height * 3` bytes, row-major: red, green, blue.
    pub rgb: Vec<u8>,
    /// A warning about damage that the decoder tolerated, like OpenCV: the missing part of a truncated JPEG is gray.
    pub warning: Option<String>,
}

impl DecodedImage {
    /// Reads and decodes the file at `path`. The format is detected from the content, not from the name.
    /// Data errors that name the file and the remedy.
    pub fn read(path: &Path) -> Result<Self> {
        Self::from_bytes(path, &Self::bytes(path)?)
    }

    /// Reads the file at `path`.
    pub(super) fn bytes(path: &Path) -> Result<Vec<u8>> {
        let read = || {
            regular(path)?;
            std::fs::read(path)
        };
        read().map_err(|error| wrong(path, &error.to_string()))
    }

    /// Decodes the content of the file at `path`.
    pub(super) fn from_bytes(path: &Path, bytes: &[u8]) -> Result<Self> {
        Self::decode(bytes).map_err(|message| wrong(path, &message))
    }

    /// Decodes the content of an image file, by what it is.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        contained(|| {
            if let Some(message) = no_image(bytes) {
                return Err(message.into());
            }
            let decoded = if jpeg::is_jpeg(bytes) {
                jpeg::decode(bytes)?
            } else if jpeg2000::is_jpeg2000(bytes) {
                jpeg2000::decode(bytes)?
            } else {
                other::decode(bytes)?
            };
            rotate(decoded)
        })
    }

    /// Whether JPEG is decoded with SIMD: about twice as fast, with the same pixels.
    pub fn jpeg_simd() -> bool {
        jpeg::has_simd()
    }

    /// Reads format, size and orientation of the file at `path`, not its pixels.
    /// Data errors that name the file and the remedy.
    pub fn header(path: &Path) -> Result<ImageHeader> {
        contained(|| header::read(path)).map_err(|message| wrong(path, &message))
    }
}

/// Runs a third-party decoder. A panic becomes an error.
fn contained<T>(decode: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    let result = contain::run(decode).unwrap_or_else(|panic| {
        Err(format!("cannot be decoded: the decoder panicked ({panic}); replace the file, or {CONVERT}"))
    });
    // Some decoders return messages of several lines.
    result.map_err(|message| message.split_whitespace().collect::<Vec<_>>().join(" ").replace(" ;", ";"))
}

fn wrong(path: &Path, message: &str) -> Error {
    Error::data(format!("image {}: {}", printable(&path.to_string_lossy()), message.trim_end()))
}

/// Rotates an image upright.
fn rotate(decoded: Decoded) -> Result<DecodedImage, String> {
    let Decoded { mut width, mut height, mut rgb, orientation, warning } = decoded;
    if orientation != Orientation::NoTransforms {
        let image = RgbImage::from_raw(width as u32, height as u32, rgb);
        let mut image = DynamicImage::from(image.ok_or("the decoder returned too few pixels")?);
        image.apply_orientation(orientation);
        (width, height) = (image.width() as usize, image.height() as usize);
        rgb = image.into_rgb8().into_raw();
    }
    Ok(DecodedImage { width, height, rgb, warning })
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image::{ImageBuffer, ImageFormat, Luma, LumaA, Rgb, Rgba};
    use proptest::prelude::*;

    use super::*;
    use fnet_test_support::fixture;

    fn encoded(image: DynamicImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn alpha_is_dropped_and_16_bit_values_are_truncated() {
        let rgba = ImageBuffer::from_pixel(2, 1, Rgba([10u8, 20, 30, 0]));
        let deep = ImageBuffer::from_pixel(1, 1, Luma([0x12ffu16]));
        let gray = ImageBuffer::from_pixel(1, 1, LumaA([7u8, 128]));
        for (image, expected) in [
            (DynamicImage::from(rgba), vec![10, 20, 30, 10, 20, 30]),
            (DynamicImage::from(deep), vec![0x12; 3]),
            (DynamicImage::from(gray), vec![7; 3]),
        ] {
            assert_eq!(DecodedImage::decode(&encoded(image, ImageFormat::Png)).unwrap().rgb, expected);
        }
    }

    #[test]
    fn files_that_are_not_images_are_recognized() {
        for (bytes, expected) in [
            (&b""[..], "empty"),
            (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
            (b"\x00\x05\x16\x07\x00\x02", "AppleDouble"),
            (b"hello world, not an image", "not a known image format"),
            (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
            (b"\0\0\0\x18ftypavif\0\0\0\0", "AVIF"),
            (b"\n <!DOCTYPE html><html>", "HTML"),
            (b"%PDF-1.7", "PDF"),
            (b"\0\0\0\x0cjP  \r\n\x87\n", "cannot be decoded"),
        ] {
            let message = DecodedImage::decode(bytes).unwrap_err();
            assert!(message.contains(expected), "{message}");
        }
        let message = DecodedImage::read(Path::new("/nowhere/a.jpg")).unwrap_err().to_string();
        assert!(message.contains("/nowhere/a.jpg"), "{message}");
    }

    #[test]
    fn a_decoder_that_panics_is_an_error_with_the_remedy() {
        let message = contained(|| Ok::<u8, String>(b""[std::hint::black_box(3)])).unwrap_err();
        assert!(message.contains("panicked") && message.contains("index out of bounds"), "{message}");
        assert!(message.contains("magick") && !message.contains('\n'), "{message}");
    }

    #[test]
    fn simple_netpbm_formats_are_decoded() {
        for (text, expected) in
            [(&b"P2 2 1 255 3 200"[..], vec![3, 3, 3, 200, 200, 200]), (b"P6 1 1 255 \x01\x02\x03", vec![1, 2, 3])]
        {
            assert_eq!(DecodedImage::decode(text).unwrap().rgb, expected);
        }
    }

    #[test]
    fn pixels_match_opencv() {
        let Some(root) = fixture("") else { return };
        let list = include_str!("../../tests/fixtures/opencv_pixels.json");
        let list: serde_json::Value = serde_json::from_str(list).unwrap();
        let mut different = Vec::new();
        for (name, expected) in list["images"].as_object().unwrap() {
            let bytes = std::fs::read(root.join("data").join(name)).unwrap();
            let found = match DecodedImage::decode(&bytes) {
                Ok(p) => serde_json::json!([p.width, p.height, crc32fast::hash(&p.rgb)]),
                Err(_) => serde_json::Value::Null,
            };
            if found != *expected {
                different.push(format!("{name}: {found}, OpenCV {expected}"));
            }
        }
        assert!(different.is_empty(), "{}", different.join("\n"));
    }

    /// Image files below `folder`, sorted by name.
    fn images_below(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
        let endings = ["jpg", "jpeg", "png", "bmp", "webp", "tif", "tiff", "gif"];
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let ending = path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
            if path.is_dir() {
                images_below(&path, found);
            } else if ending.is_some_and(|ending| endings.contains(&ending.as_str())) {
                found.push(path);
            }
        }
    }

    /// The checksum covers width, height and pixel checksum of each image, or "none" without an image.
    #[test]
    fn pixels_of_whole_folders_match_opencv() {
        let Some(root) = fixture("") else { return };
        let list = include_str!("../../tests/fixtures/opencv_pixels.json");
        let list: serde_json::Value = serde_json::from_str(list).unwrap();
        for (name, expected) in list["folders"].as_object().unwrap() {
            let mut paths = Vec::new();
            images_below(&root.join("data").join(name), &mut paths);
            paths.sort();
            let mut checksum = crc32fast::Hasher::new();
            for path in &paths {
                match DecodedImage::read(path) {
                    Ok(p) => [p.width as u32, p.height as u32, crc32fast::hash(&p.rgb)]
                        .iter()
                        .for_each(|number| checksum.update(&number.to_le_bytes())),
                    Err(_) => checksum.update(b"none"),
                }
            }
            assert_eq!(serde_json::json!([paths.len(), checksum.finalize()]), *expected, "{name}");
        }
    }

    #[test]
    fn a_truncated_png_is_an_error() {
        let bytes = encoded(ImageBuffer::from_pixel(64, 64, Rgb([1u8, 2, 3])).into(), ImageFormat::Png);
        assert!(DecodedImage::decode(&bytes[..bytes.len() / 2]).unwrap_err().contains("replace the file"));
    }

    proptest! {
        #[test]
        fn damaged_files_give_an_image_or_a_message(at in 0usize..600, value in any::<u8>(), cut in 0usize..600) {
            let image = ImageBuffer::from_fn(16, 16, |x, y| Rgb([(x * 16) as u8, (y * 16) as u8, 77]));
            for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::Bmp] {
                let mut bytes = encoded(image.clone().into(), format);
                let at = at % bytes.len();
                bytes[at] = value;
                bytes.truncate(bytes.len() - cut % bytes.len());
                if let Ok(decoded) = DecodedImage::decode(&bytes) {
                    prop_assert_eq!(decoded.rgb.len(), decoded.width * decoded.height * 3);
                }
            }
        }
    }
}

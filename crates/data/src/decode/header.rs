//! Reads the header of image files.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use image::metadata::Orientation;
use image::{ImageDecoder, ImageFormat};

use super::content::{check_size, no_image, regular};
use super::{jpeg, jpeg2000, other, tiff};

/// Size of the first read. It covers most headers, but a JPEG may have a long EXIF block with a preview.
const START: usize = 64 << 10;

/// The format of an image file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A format of the crate `image`.
    Known(ImageFormat),
    /// A JPEG 2000 file or codestream.
    Jpeg2000,
}

impl Format {
    pub fn mime_type(self) -> &'static str {
        match self {
            Self::Known(format) => format.to_mime_type(),
            Self::Jpeg2000 => "image/jp2",
        }
    }

    /// File extensions of the format.
    fn endings(self) -> Vec<&'static str> {
        match self {
            Self::Known(format) => {
                let more: &[&str] = if format == ImageFormat::Jpeg { &["jfif", "jpe", "mpo"] } else { &[] };
                [format.extensions_str(), more].concat()
            }
            Self::Jpeg2000 => vec!["jp2", "j2k", "j2c", "jpc", "jpf", "jpx"],
        }
    }
}

/// The header of an image file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageHeader {
    /// The format, detected from the content.
    pub format: Format,
    /// Width in pixels, after the EXIF rotation.
    pub width: usize,
    /// Height in pixels, after the EXIF rotation.
    pub height: usize,
    /// The EXIF orientation that the decoder applies, 1 (upright) to 8.
    pub orientation: u8,
}

impl ImageHeader {
    pub(super) fn new(format: Format, (width, height): (u32, u32), orientation: Orientation) -> Self {
        let (width, height) = (width as usize, height as usize);
        let orientation = orientation.to_exif();
        let (width, height) = if orientation >= 5 { (height, width) } else { (width, height) };
        Self { format, width, height, orientation }
    }

    /// Whether the extension of `path` matches the format. A file without an extension matches.
    pub fn fits_name(&self, path: &Path) -> bool {
        let Some(ending) = path.extension() else { return true };
        let ending = ending.to_string_lossy().to_ascii_lowercase();
        self.format.endings().contains(&ending.as_str())
    }
}

/// Reads the header of the file at `path`.
/// Errors: a message without the file name.
pub(super) fn read(path: &Path) -> Result<ImageHeader, String> {
    let wrong = |error: std::io::Error| error.to_string();
    regular(path).map_err(wrong)?;
    let mut file = File::open(path).map_err(wrong)?;
    let mut bytes = Vec::with_capacity(START);
    (&mut file).take(START as u64).read_to_end(&mut bytes).map_err(wrong)?;
    if let Some(message) = no_image(&bytes) {
        return Err(message.into());
    }
    if jpeg::is_jpeg(&bytes) {
        let header = match jpeg::header(&bytes) {
            Ok(jpeg) if !jpeg.damaged => jpeg,
            found if bytes.len() < START => found?,
            // The header continues beyond the first read.
            _ => {
                file.read_to_end(&mut bytes).map_err(wrong)?;
                jpeg::header(&bytes)?
            }
        };
        check_size(header.width, header.height)?;
        return Ok(ImageHeader::new(
            Format::Known(ImageFormat::Jpeg),
            (header.width, header.height),
            header.orientation,
        ));
    }
    if jpeg2000::is_jpeg2000(&bytes) {
        file.read_to_end(&mut bytes).map_err(wrong)?;
        return Ok(ImageHeader::new(Format::Jpeg2000, jpeg2000::header(&bytes)?, Orientation::NoTransforms));
    }
    file.seek(SeekFrom::Start(0)).map_err(wrong)?;
    let (format, size, orientation) = if tiff::is_tiff(&bytes) {
        let (size, orientation) = tiff::header(BufReader::new(file))?;
        (ImageFormat::Tiff, size, orientation)
    } else {
        let (format, mut decoder) = other::open(BufReader::new(file), &bytes)?;
        (format, decoder.dimensions(), decoder.orientation().unwrap_or(Orientation::NoTransforms))
    };
    check_size(size.0, size.1)?;
    Ok(ImageHeader::new(Format::Known(format), size, orientation))
}

#[cfg(test)]
mod tests {
    use image::{DynamicImage, ImageBuffer, Rgb};

    use super::*;
    use fnet_test_support::fixture;

    use crate::DecodedImage;

    #[test]
    fn the_header_matches_the_decoded_image() {
        let Some(root) = fixture("") else { return };
        let list = include_str!("../../tests/fixtures/opencv_pixels.json");
        let list: serde_json::Value = serde_json::from_str(list).unwrap();
        let mut upright = 0;
        for name in list["images"].as_object().unwrap().keys() {
            let path = root.join("data").join(name);
            let Ok(image) = DecodedImage::read(&path) else { continue };
            let header = DecodedImage::header(&path).unwrap();
            assert_eq!((header.width, header.height), (image.width, image.height), "{name}");
            upright += usize::from(header.orientation == 1);
        }
        assert!(upright > 100);
        let turned = DecodedImage::header(&root.join("data/odd_images/exif_landscape_6.jpg")).unwrap();
        assert_eq!((turned.width, turned.height, turned.orientation), (1800, 1200, 6));
    }

    #[test]
    fn long_headers_and_headers_without_pixels_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jpg");
        let image = DynamicImage::from(ImageBuffer::from_pixel(40, 30, Rgb([1u8, 2, 3])));
        let mut bytes = std::io::Cursor::new(Vec::new());
        image.write_to(&mut bytes, ImageFormat::Jpeg).unwrap();
        let bytes = bytes.into_inner();
        // Starts with two comments of the maximum length.
        let comment = [&[0xff, 0xfe, 0xff, 0xff], vec![b'x'; 0xfffd].as_slice()].concat();
        let long = [&bytes[..2], &comment, &comment, &bytes[2..]].concat();
        for content in [&long[..], &bytes[..bytes.len() - 20]] {
            std::fs::write(&path, content).unwrap();
            let header = DecodedImage::header(&path).unwrap();
            assert_eq!((header.format, header.width, header.height), (Format::Known(ImageFormat::Jpeg), 40, 30));
        }
        std::fs::write(&path, &long[..0x1_0100]).unwrap();
        let message = DecodedImage::header(&path).unwrap_err().to_string();
        assert!(message.contains("a.jpg") && message.contains("replace the file"), "{message}");
    }

    #[test]
    fn extensions_match_the_format() {
        let header = ImageHeader::new(Format::Known(ImageFormat::Jpeg), (4, 3), Orientation::Rotate90);
        assert_eq!((header.width, header.height, header.orientation), (3, 4, 6));
        for (name, fits) in [("a.jpg", true), ("a.JPEG", true), ("a.png", false), ("a", true), ("a.b.jpe", true)] {
            assert_eq!(header.fits_name(Path::new(name)), fits, "{name}");
        }
    }
}

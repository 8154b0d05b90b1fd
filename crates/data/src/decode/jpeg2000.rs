//! Decodes JPEG 2000 with the crate `hayro-jpeg2000`.

use hayro_jpeg2000::{ColorSpace, DecodeSettings, Image};
use image::metadata::Orientation;

use super::content::{CONVERT, Decoded, check_size};

/// Whether the content starts like a JPEG 2000 file or codestream.
pub(super) fn is_jpeg2000(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\0\0\0\x0cjP  ") || bytes.starts_with(&[0xff, 0x4f, 0xff, 0x51])
}

fn open(bytes: &[u8]) -> Result<Image<'_>, String> {
    let image = Image::new(bytes, &DecodeSettings::default()).map_err(broken)?;
    check_size(image.width(), image.height())?;
    Ok(image)
}

fn broken(error: impl std::fmt::Display) -> String {
    format!("cannot be decoded: {error}; replace the file, or {CONVERT}")
}

/// Width and height.
pub(super) fn header(bytes: &[u8]) -> Result<(u32, u32), String> {
    let image = open(bytes)?;
    Ok((image.width(), image.height()))
}

/// Decodes the content of a file.
pub(super) fn decode(bytes: &[u8]) -> Result<Decoded, String> {
    let image = open(bytes)?;
    let colors = usize::from(image.color_space().num_channels());
    let channels = colors + usize::from(image.has_alpha());
    if channels == 0 || channels > 5 {
        return Err(format!("cannot be decoded: a JPEG 2000 file with {channels} channels; {CONVERT}"));
    }
    let samples = image.decode().map_err(broken)?;
    let pixels = samples.chunks_exact(channels);
    let rgb = match (image.color_space(), colors) {
        (ColorSpace::CMYK, _) => {
            let mix = |ink: u8, key: u8| ((255 - u32::from(ink)) * (255 - u32::from(key)) / 255) as u8;
            pixels.flat_map(|p| [p[0], p[1], p[2]].map(|ink| mix(ink, p[3]))).collect()
        }
        (_, 0..=2) => pixels.flat_map(|p| [p[0]; 3]).collect(),
        _ => pixels.flat_map(|p| [p[0], p[1], p[2]]).collect(),
    };
    let (width, height) = (image.width() as usize, image.height() as usize);
    Ok(Decoded { width, height, rgb, orientation: Orientation::NoTransforms, warning: None })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::decode::DecodedImage;

    const FILE: &[u8] = include_bytes!("../../tests/fixtures/tiny.jp2");

    #[test]
    fn a_lossless_file_is_decoded_exactly() {
        let image = DecodedImage::decode(FILE).unwrap();
        let expected: Vec<u8> = (0..8u8).flat_map(|i| [i * 30, 255 - i * 20, i * 7]).collect();
        assert_eq!((image.width, image.height, image.rgb), (4, 2, expected));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jp2");
        std::fs::write(&path, FILE).unwrap();
        let header = DecodedImage::header(&path).unwrap();
        assert_eq!((header.width, header.height, header.format.mime_type()), (4, 2, "image/jp2"));
        assert!(header.fits_name(&path));
    }

    proptest! {
        #[test]
        fn damaged_files_give_an_image_or_a_message(at in 0usize..900, value in any::<u8>(), cut in 0usize..900) {
            let mut bytes = FILE.to_vec();
            let at = at % bytes.len();
            bytes[at] = value;
            bytes.truncate(bytes.len() - cut % bytes.len());
            if let Ok(image) = DecodedImage::decode(&bytes) {
                prop_assert_eq!(image.rgb.len(), image.width * image.height * 3);
            }
        }
    }
}

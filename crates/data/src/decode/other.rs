//! Decodes formats other than JPEG and JPEG 2000 with the crate `image`; some kinds of TIFF with [`super::tiff`].

use std::io::{BufRead, Cursor, Seek};

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};

use super::content::{CONVERT, Decoded, MAX_PIXELS, check_size};
use super::tiff;

/// The supported formats, including JPEG.
const FORMATS: [ImageFormat; 7] = [
    ImageFormat::Jpeg,
    ImageFormat::Png,
    ImageFormat::WebP,
    ImageFormat::Bmp,
    ImageFormat::Gif,
    ImageFormat::Tiff,
    ImageFormat::Pnm,
];

/// Decoder memory in addition to the pixels: strips, palettes, frames.
const WORKING_MEMORY: u64 = 64 << 20;

fn broken(error: ImageError) -> String {
    match error {
        ImageError::Unsupported(_) => format!("cannot be decoded: {error}; {CONVERT}"),
        ImageError::Limits(_) => {
            format!("it needs more memory than an image of {MAX_PIXELS} pixels, the limit; make the image smaller")
        }
        _ => format!("cannot be decoded: {error}; replace the file"),
    }
}

/// Starts the decoder for `start`, the first bytes of the content. It has read only the header.
pub(super) fn open<'a, R: BufRead + Seek + 'a>(
    content: R,
    start: &[u8],
) -> Result<(ImageFormat, Box<dyn ImageDecoder + 'a>), String> {
    let guessed = image::guess_format(start).ok();
    // The crate does not recognize BigTIFF.
    let Some(format) = guessed.or_else(|| tiff::is_tiff(start).then_some(ImageFormat::Tiff)) else {
        return Err(format!("the content is not a known image format; {CONVERT}"));
    };
    if !FORMATS.contains(&format) {
        return Err(format!("the content is {format:?}, which is not supported; {CONVERT}"));
    }
    let mut reader = ImageReader::with_format(content, format);
    let mut limits = Limits::no_limits();
    // 16 bits of red, green, blue and alpha.
    limits.max_alloc = Some(MAX_PIXELS * 8 + WORKING_MEMORY);
    reader.limits(limits);
    Ok((format, Box::new(reader.into_decoder().map_err(broken)?)))
}

/// Decodes the content of a file.
pub(super) fn decode(bytes: &[u8]) -> Result<Decoded, String> {
    if tiff::is_tiff(bytes)
        && let Some(decoded) = tiff::decode(bytes)?
    {
        return Ok(decoded);
    }
    let (_, mut decoder) = open(Cursor::new(bytes), bytes)?;
    let (width, height) = decoder.dimensions();
    check_size(width, height)?;
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(u64::from(width) * u64::from(height) * 8 + WORKING_MEMORY);
    decoder.set_limits(limits).map_err(broken)?;
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let rgb = to_rgb(DynamicImage::from_decoder(decoder).map_err(broken)?);
    Ok(Decoded { width: width as usize, height: height as usize, rgb, orientation, warning: None })
}

/// 16-bit channels lose their low byte, like libpng's `strip_16`. Alpha is dropped without blending.
fn to_rgb(image: DynamicImage) -> Vec<u8> {
    let high = |value: &u16| (value >> 8) as u8;
    match image {
        DynamicImage::ImageRgb8(buffer) => buffer.into_raw(),
        DynamicImage::ImageRgb16(buffer) => buffer.as_raw().iter().map(high).collect(),
        DynamicImage::ImageRgba16(buffer) => buffer.pixels().flat_map(|p| [&p[0], &p[1], &p[2]].map(high)).collect(),
        DynamicImage::ImageLuma16(buffer) => buffer.as_raw().iter().flat_map(|v| [high(v); 3]).collect(),
        DynamicImage::ImageLumaA16(buffer) => buffer.pixels().flat_map(|p| [high(&p[0]); 3]).collect(),
        other => other.into_rgb8().into_raw(),
    }
}

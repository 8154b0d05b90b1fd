//! What the decoders share: the decoded pixels, limits, and content that is no image.

use std::path::Path;

use image::metadata::Orientation;

/// Maximum number of pixels, because a small file can claim any size.
pub(super) const MAX_PIXELS: u64 = 1 << 28;

/// The remedy for unsupported formats.
pub(super) const CONVERT: &str = "convert it to PNG or JPEG, for example with `magick FILE FILE.png`";

/// A decoded file, before its EXIF rotation.
pub(super) struct Decoded {
    pub width: usize,
    pub height: usize,
    /// Red, green, blue.
    pub rgb: Vec<u8>,
    pub orientation: Orientation,
    /// The first warning of the decoder about damaged data.
    pub warning: Option<String>,
}

/// Fails for anything but a regular file, because opening a pipe would block.
pub(super) fn regular(path: &Path) -> std::io::Result<()> {
    if std::fs::metadata(path)?.is_file() { Ok(()) } else { Err(std::io::Error::other("it is not a regular file")) }
}

pub(super) fn check_size(width: u32, height: u32) -> Result<(), String> {
    if width == 0 || height == 0 {
        return Err(format!("the image has {width}x{height} pixels; replace the file"));
    }
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(format!("{width}x{height} pixels exceed the limit of {MAX_PIXELS}; make the image smaller"));
    }
    Ok(())
}

/// Recognizes content that is often found in place of an image.
pub(super) fn no_image(bytes: &[u8]) -> Option<&'static str> {
    if bytes.is_empty() {
        Some("the file is empty; copy or download it again")
    } else if bytes.starts_with(b"version https://git-lfs") {
        Some("the file is a Git LFS pointer, not the image; run `git lfs pull`")
    } else if bytes.starts_with(&[0, 5, 0x16, 7]) {
        Some("the file is AppleDouble metadata of macOS, not an image; delete it and remove it from the annotations")
    } else if bytes.get(4..8) == Some(b"ftyp") {
        Some(match bytes.get(8..12) {
            Some(b"avif" | b"avis") => {
                "the content is AVIF, which is not supported; convert it to JPEG, for example with `magick FILE FILE.jpg`"
            }
            Some(b"heic" | b"heix" | b"hevc" | b"hevx" | b"heim" | b"heis" | b"mif1" | b"msf1") => {
                "the content is HEIC (HEIF), which is not supported; convert it to JPEG, for example with `heif-convert FILE FILE.jpg`"
            }
            _ => "the content is a video (MP4 or QuickTime), not an image; extract frames, for example with ffmpeg",
        })
    } else if is_html(bytes) {
        Some("the content is HTML, perhaps the error page of a download; download the image again")
    } else if bytes.starts_with(b"%PDF") {
        Some("the content is PDF, not an image; convert it to PNG, for example with `pdftoppm -png FILE NAME`")
    } else if bytes.starts_with(b"PK\x03\x04") {
        Some("the content is a ZIP archive, not an image; unpack it")
    } else {
        None
    }
}

/// Whether content is a web page, or the XML error response of a server.
fn is_html(bytes: &[u8]) -> bool {
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii_start();
    let start = text[..text.len().min(16)].to_ascii_lowercase();
    ["<!doctype", "<html", "<head", "<body", "<?xml"].iter().any(|tag| start.starts_with(tag.as_bytes()))
}

//! Decodes TIFF files that the crate `image` decodes incorrectly or not at all: palettes, YCbCr and CIELab colors,
//! tiled planes, reversed bits, fax.
//!
//! Each plane is rewritten in memory as a plain TIFF of samples without color information, which the crate `tiff`
//! decodes. This module converts the samples to colors, like libtiff does for OpenCV.

use std::io::{BufRead, Cursor, Seek};

use fax::BitReader;
use fax::maps::{black, white};
use image::metadata::Orientation;
use tiff::decoder::{Decoder, DecodingResult, Limits};
use tiff::tags::Tag;
use tiff::{ColorType, TiffError};

use super::content::{CONVERT, Decoded, MAX_PIXELS, check_size};

/// Memory for the longest list of strips or tiles.
const LONGEST_TAG: usize = 64 << 20;
/// Maximum number of samples per pixel.
const MOST_SAMPLES: u64 = 8;

const FAX_RUNS: u64 = 2;
const FAX_3: u64 = 3;
const LZW: u64 = 5;
const JPEG: u64 = 7;

const WHITE_IS_ZERO: u64 = 0;
const BLACK_IS_ZERO: u64 = 1;
const RGB: u64 = 2;
const PALETTE: u64 = 3;
const CMYK: u64 = 5;
const YCBCR: u64 = 6;
const CIELAB: u64 = 8;

/// Whether the content starts like a TIFF or BigTIFF file.
pub(super) fn is_tiff(bytes: &[u8]) -> bool {
    [b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"].iter().any(|start| bytes.starts_with(*start))
}

fn broken(error: TiffError) -> String {
    match error {
        TiffError::UnsupportedError(_) => format!("cannot be decoded: {error}; {CONVERT}"),
        TiffError::LimitsExceeded => {
            format!("it needs more memory than an image of {MAX_PIXELS} pixels, the limit; make the image smaller")
        }
        _ => format!("cannot be decoded: {error}; replace the file"),
    }
}

fn unsupported(what: impl std::fmt::Display) -> String {
    format!("cannot be decoded: it is a TIFF file with {what}; {CONVERT}")
}

/// Width, height and orientation.
pub(super) fn header(content: impl BufRead + Seek) -> Result<((u32, u32), Orientation), String> {
    let mut decoder = Decoder::new(content).map_err(broken)?;
    let orientation = orientation(&mut decoder);
    Ok((decoder.dimensions().map_err(broken)?, orientation))
}

fn orientation(decoder: &mut Decoder<impl BufRead + Seek>) -> Orientation {
    let value = decoder.find_tag_unsigned::<u8>(Tag::Orientation).ok().flatten();
    value.and_then(Orientation::from_exif).unwrap_or(Orientation::NoTransforms)
}

/// Decodes the content of a file. `None` if the crate `image` can decode it.
pub(super) fn decode(bytes: &[u8]) -> Result<Option<Decoded>, String> {
    let limits = |most: usize| {
        let mut limits = Limits::default();
        (limits.decoding_buffer_size, limits.intermediate_buffer_size) = (most, most);
        limits.ifd_value_size = LONGEST_TAG;
        limits
    };
    let mut decoder = Decoder::new(Cursor::new(bytes)).map_err(broken)?.with_limits(limits(LONGEST_TAG));
    let (width, height) = decoder.dimensions().map_err(broken)?;
    check_size(width, height)?;
    let file = Directory::read(&mut decoder, bytes)?;
    if !file.is_special() {
        return Ok(None);
    }
    file.check()?;
    let pixels = width as usize * height as usize;
    let wanted = file.wanted_samples();
    let mut samples = vec![0u8; pixels * wanted];
    for (plane, chunks) in file.planes(bytes)?.into_iter().enumerate().take(if file.planar { wanted } else { 1 }) {
        let view = file.view(&chunks);
        let most = pixels * file.samples as usize * 2 + LONGEST_TAG;
        let mut decoder = Decoder::new(Cursor::new(view)).map_err(broken)?.with_limits(limits(most));
        let kind = decoder.colortype().map_err(broken)?;
        let values = decoder.read_image().map_err(broken)?;
        file.spread(&values, kind, plane, &mut samples)?;
    }
    let (rgb, orientation) = (file.to_rgb(&samples), orientation(&mut decoder));
    Ok(Some(Decoded { width: width as usize, height: height as usize, rgb, orientation, warning: None }))
}

/// Layout of samples in the strips or tiles of a plane.
struct Layout {
    samples: u64,
    width: u64,
    height: u64,
    rows: u64,
    tile: Option<(u64, u64)>,
}

/// The tags of the first image.
struct Directory {
    big_endian: bool,
    width: u64,
    height: u64,
    bits: u64,
    samples: u64,
    format: u64,
    photometric: u64,
    compression: u64,
    predictor: u64,
    fax_options: u64,
    planar: bool,
    reversed: bool,
    /// Width and height of the tiles.
    tile: Option<(u64, u64)>,
    rows_per_strip: u64,
    chunks: Vec<(u64, u64)>,
    jpeg_tables: Vec<u8>,
    palette: Vec<u16>,
    /// Horizontal and vertical.
    subsampling: (u64, u64),
}

impl Directory {
    fn read(decoder: &mut Decoder<Cursor<&[u8]>>, bytes: &[u8]) -> Result<Self, String> {
        let mut one = |tag: Tag, default: u64| {
            let values = decoder.find_tag_unsigned_vec::<u64>(tag).map_err(broken)?;
            Ok::<u64, String>(values.and_then(|values| values.first().copied()).unwrap_or(default))
        };
        let (width, height) = (one(Tag::ImageWidth, 0)?, one(Tag::ImageLength, 0)?);
        let tile = (one(Tag::TileWidth, 0)?, one(Tag::TileLength, 0)?);
        let is_tiled = tile.0 > 0 && tile.1 > 0;
        let mut file = Self {
            big_endian: bytes.starts_with(b"MM"),
            width,
            height,
            bits: one(Tag::BitsPerSample, 1)?,
            samples: one(Tag::SamplesPerPixel, 1)?,
            format: one(Tag::SampleFormat, 1)?,
            photometric: one(Tag::PhotometricInterpretation, 0)?,
            compression: one(Tag::Compression, 1)?,
            predictor: one(Tag::Predictor, 1)?,
            fax_options: one(Tag::Unknown(292), 0)?,
            planar: one(Tag::PlanarConfiguration, 1)? == 2,
            reversed: one(Tag::FillOrder, 1)? == 2,
            tile: is_tiled.then_some(tile),
            rows_per_strip: one(Tag::RowsPerStrip, height)?.clamp(1, height.max(1)),
            chunks: Vec::new(),
            jpeg_tables: Vec::new(),
            palette: Vec::new(),
            subsampling: (2, 2),
        };
        file.planar &= file.samples > 1;
        let mut list = |tag: Tag| decoder.find_tag_unsigned_vec::<u64>(tag).map_err(broken);
        let (offsets, lengths) = match is_tiled {
            true => (list(Tag::TileOffsets)?, list(Tag::TileByteCounts)?),
            false => (list(Tag::StripOffsets)?, list(Tag::StripByteCounts)?),
        };
        file.chunks = offsets.unwrap_or_default().into_iter().zip(lengths.unwrap_or_default()).collect();
        if let Some([horizontal, vertical]) = list(Tag::ChromaSubsampling)?.as_deref() {
            file.subsampling = (*horizontal, *vertical);
        }
        file.palette = list(Tag::ColorMap)?.unwrap_or_default().into_iter().map(|value| value as u16).collect();
        if file.compression == JPEG {
            file.jpeg_tables =
                list(Tag::JPEGTables)?.unwrap_or_default().into_iter().map(|value| value as u8).collect();
        }
        Ok(file)
    }

    /// Whether the crate `image` cannot decode it correctly.
    fn is_special(&self) -> bool {
        let gray = [WHITE_IS_ZERO, BLACK_IS_ZERO].contains(&self.photometric);
        self.reversed
            || [PALETTE, YCBCR, CIELAB].contains(&self.photometric)
            || [FAX_RUNS, FAX_3].contains(&self.compression)
            || (self.planar && (self.tile.is_some() || self.photometric == CMYK))
            || (self.bits == 16 && !gray)
            // The crate treats the end of the data as an error.
            || (self.compression == LZW && self.tile.is_some())
            || (gray && (self.samples > 1 || [2, 4].contains(&self.bits)))
    }

    /// Whether several pixels share their chroma. The JPEG decoder upsamples it by itself.
    fn is_subsampled(&self) -> bool {
        self.photometric == YCBCR && self.compression != JPEG && self.subsampling != (1, 1)
    }

    /// Number of color samples; the others are alpha.
    fn wanted_samples(&self) -> usize {
        match self.photometric {
            WHITE_IS_ZERO | BLACK_IS_ZERO | PALETTE => 1,
            CMYK => 4,
            _ => 3,
        }
    }

    ///
    /// Errors: a message about the unsupported feature.
    fn check(&self) -> Result<(), String> {
        let photometrics = [WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, CIELAB];
        if !photometrics.contains(&self.photometric) {
            return Err(unsupported(format!("color type {}", self.photometric)));
        }
        if ![1, 2, 4, 8, 16].contains(&self.bits)
            || (self.bits < 8 && self.samples > 1)
            || (self.bits > 8 && [PALETTE, YCBCR].contains(&self.photometric))
        {
            return Err(unsupported(format!("{} samples of {} bits", self.samples, self.bits)));
        }
        // Undefined counts as unsigned; a and b of CIELab are always signed.
        if ![1, 4].contains(&self.format) && self.photometric != CIELAB {
            return Err(unsupported(format!("samples of format {} in an unusual arrangement", self.format)));
        }
        if self.samples > MOST_SAMPLES || (self.samples as usize) < self.wanted_samples() {
            return Err(unsupported(format!("{} samples per pixel", self.samples)));
        }
        if [FAX_RUNS, FAX_3].contains(&self.compression) && (self.bits, self.samples) != (1, 1) {
            return Err(unsupported("fax compression of an image that is not black and white"));
        }
        if self.compression == FAX_3 && self.fax_options & 1 == 1 {
            return Err(unsupported("two-dimensional fax compression of group 3"));
        }
        if self.is_subsampled() && (self.planar || self.bits != 8 || self.predictor != 1 || !self.is_even()) {
            return Err(unsupported(format!("chroma subsampled by {:?} in an unusual arrangement", self.subsampling)));
        }
        let (width, height) = self.tile.unwrap_or((self.width, self.rows_per_strip));
        if width.saturating_mul(height) > MAX_PIXELS {
            return Err(unsupported(format!("tiles of {width}x{height} pixels")));
        }
        let across = self.tile.map_or(1, |(width, _)| self.width.div_ceil(width));
        let expected = across * self.height.div_ceil(height) * if self.planar { self.samples } else { 1 };
        if self.chunks.len() as u64 != expected {
            let found = self.chunks.len();
            return Err(format!("cannot be decoded: {found} strips or tiles, expected {expected}; replace the file"));
        }
        Ok(())
    }

    /// Whether strips and tiles contain complete groups of pixels that share their chroma.
    fn is_even(&self) -> bool {
        let (horizontal, vertical) = self.subsampling;
        let sound = |value: u64| [1, 2, 4].contains(&value);
        let even = match self.tile {
            Some((width, height)) => width.is_multiple_of(horizontal.max(1)) && height.is_multiple_of(vertical.max(1)),
            None => self.rows_per_strip == self.height || self.rows_per_strip.is_multiple_of(vertical.max(1)),
        };
        sound(horizontal) && sound(vertical) && even
    }

    /// The layout of the samples of a plane. A group that shares its chroma is treated as a row of single samples.
    fn layout(&self) -> Layout {
        let samples = if self.planar { 1 } else { self.samples };
        let plain =
            Layout { samples, width: self.width, height: self.height, rows: self.rows_per_strip, tile: self.tile };
        if !self.is_subsampled() {
            return plain;
        }
        let (horizontal, vertical) = self.subsampling;
        let wide = |width: u64| width.div_ceil(horizontal) * (horizontal * vertical + 2);
        Layout {
            samples: 1,
            width: wide(self.width),
            height: self.height.div_ceil(vertical),
            rows: self.rows_per_strip.div_ceil(vertical),
            tile: self.tile.map(|(width, height)| (wide(width), height / vertical)),
        }
    }

    /// The strips or tiles of each plane, in a form that the crate can decode.
    fn planes(&self, bytes: &[u8]) -> Result<Vec<Vec<Vec<u8>>>, String> {
        let layout = self.layout();
        let per_plane = self.chunks.len() / if self.planar { self.samples as usize } else { 1 };
        let chunk = |(number, &(offset, length)): (usize, &(u64, u64))| {
            let range = usize::try_from(offset).ok().zip(usize::try_from(length).ok());
            let content = range.and_then(|(offset, length)| bytes.get(offset..offset.checked_add(length)?));
            let mut content = content.ok_or("cannot be decoded: it ends too early; replace the file")?.to_vec();
            // The bit order does not apply to JPEG data.
            if self.reversed && self.compression != JPEG {
                content.iter_mut().for_each(|byte| *byte = byte.reverse_bits());
            }
            let (width, height) = layout.tile.unwrap_or_else(|| {
                let above = (number % per_plane.max(1)) as u64 * layout.rows;
                (layout.width, layout.rows.min(layout.height.saturating_sub(above)))
            });
            match self.compression {
                FAX_RUNS | FAX_3 => fax_rows(&content, width as usize, height as usize, self.compression == FAX_3),
                LZW => lzw(&content, (width * layout.samples * self.bits).div_ceil(8) as usize * height as usize),
                _ => Ok(content),
            }
        };
        let chunks = self.chunks.iter().enumerate().map(chunk).collect::<Result<Vec<_>, String>>()?;
        Ok(chunks.chunks(per_plane.max(1)).map(<[_]>::to_vec).collect())
    }

    /// A TIFF of `chunks` without color information.
    fn view(&self, chunks: &[Vec<u8>]) -> Vec<u8> {
        let Layout { samples, width, height, rows, tile } = self.layout();
        let is_plain = [FAX_RUNS, FAX_3, LZW].contains(&self.compression);
        let (mut out, places, lengths) = Writer::start(self.big_endian, chunks);
        // Tag, bytes per number, numbers.
        let mut tags = vec![
            (256, 4, vec![width]),
            (257, 4, vec![height]),
            (258, 2, vec![self.bits]),
            (259, 2, vec![if is_plain { 1 } else { self.compression }]),
            (262, 2, vec![BLACK_IS_ZERO]),
            (277, 2, vec![samples]),
            (284, 2, vec![1]),
            (317, 2, vec![self.predictor]),
        ];
        match tile {
            None => tags.extend([(273, 8, places), (278, 4, vec![rows]), (279, 8, lengths)]),
            Some((width, height)) => {
                tags.extend([(322, 4, vec![width]), (323, 4, vec![height]), (324, 8, places), (325, 8, lengths)]);
            }
        }
        if !self.jpeg_tables.is_empty() {
            tags.push((347, 1, self.jpeg_tables.iter().map(|&byte| u64::from(byte)).collect()));
        }
        out.directory(tags);
        out.bytes
    }

    /// Stores the decoded samples of `plane` where [`Self::to_rgb`] expects them, as 8 bits. Samples of fewer bits are
    /// not scaled.
    fn spread(&self, values: &DecodingResult, kind: ColorType, plane: usize, samples: &mut [u8]) -> Result<(), String> {
        let bytes: Vec<u8> = match values {
            DecodingResult::U8(values) => values.clone(),
            // OpenCV truncates gray values; libtiff rounds colors.
            DecodingResult::U16(values) if self.wanted_samples() == 1 => {
                values.iter().map(|value| (value >> 8) as u8).collect()
            }
            DecodingResult::U16(values) => values.iter().map(|&value| ((u32::from(value) + 128) / 257) as u8).collect(),
            _ => return Err(unsupported(format!("samples of type {kind:?}"))),
        };
        let (width, wanted) = (self.width as usize, self.wanted_samples());
        if self.is_subsampled() {
            self.spread_chroma(&bytes, samples);
        } else if self.bits < 8 {
            let row = (width * self.bits as usize).div_ceil(8);
            let mask = (1u8 << self.bits) - 1;
            for (row, out) in bytes.chunks_exact(row).zip(samples.chunks_exact_mut(width)) {
                for (x, sample) in out.iter_mut().enumerate() {
                    let at = x * self.bits as usize;
                    *sample = (row[at / 8] >> (8 - self.bits as usize - at % 8)) & mask;
                }
            }
        } else if self.planar {
            samples.chunks_exact_mut(wanted).zip(&bytes).for_each(|(pixel, &value)| pixel[plane] = value);
        } else {
            let pixels = bytes.chunks_exact(self.samples as usize);
            samples.chunks_exact_mut(wanted).zip(pixels).for_each(|(out, pixel)| out.copy_from_slice(&pixel[..wanted]));
        }
        Ok(())
    }

    /// Converts groups of pixels, each followed by its chroma, to three samples per pixel.
    fn spread_chroma(&self, bytes: &[u8], samples: &mut [u8]) {
        let (horizontal, vertical) = (self.subsampling.0 as usize, self.subsampling.1 as usize);
        let (width, group) = (self.width as usize, horizontal * vertical + 2);
        let row_length = width.div_ceil(horizontal) * group;
        for (y, out) in samples.chunks_exact_mut(width * 3).enumerate() {
            let Some(row) = bytes.chunks_exact(row_length).nth(y / vertical) else { return };
            for (x, pixel) in out.chunks_exact_mut(3).enumerate() {
                let group = &row[x / horizontal * group..][..group];
                let luma = group[y % vertical * horizontal + x % horizontal];
                pixel.copy_from_slice(&[luma, group[horizontal * vertical], group[horizontal * vertical + 1]]);
            }
        }
    }

    fn to_rgb(&self, samples: &[u8]) -> Vec<u8> {
        let pixels = samples.chunks_exact(self.wanted_samples());
        match self.photometric {
            PALETTE => {
                let length = self.palette.len() / 3;
                // Some writers use only 8 bits in the palette.
                let shift = if self.palette.iter().any(|&value| value > 255) { 8 } else { 0 };
                let color = |index: u8, channel: usize| {
                    let place = usize::from(index).min(length.saturating_sub(1)) + channel * length;
                    self.palette.get(place).map_or(0, |value| (value >> shift) as u8)
                };
                pixels.flat_map(|p| [0, 1, 2].map(|channel| color(p[0], channel))).collect()
            }
            WHITE_IS_ZERO | BLACK_IS_ZERO => {
                let most = if self.bits < 8 { (1u32 << self.bits) - 1 } else { 255 };
                let inverted = self.photometric == WHITE_IS_ZERO;
                let level = |value: u8| (u32::from(value) * 255 / most) as u8;
                pixels.flat_map(|p| [if inverted { 255 - level(p[0]) } else { level(p[0]) }; 3]).collect()
            }
            CMYK => {
                let mix = |ink: u8, key: u8| ((255 - u32::from(ink)) * (255 - u32::from(key)) / 255) as u8;
                pixels.flat_map(|p| [p[0], p[1], p[2]].map(|ink| mix(ink, p[3]))).collect()
            }
            YCBCR => pixels.flat_map(|p| ycbcr_to_rgb([p[0], p[1], p[2]])).collect(),
            CIELAB => pixels.flat_map(|p| cielab_to_rgb([p[0], p[1], p[2]])).collect(),
            _ => samples.to_vec(),
        }
    }
}

/// ITU-R BT.601 with full range, as in JPEG.
fn ycbcr_to_rgb([y, cb, cr]: [u8; 3]) -> [u8; 3] {
    let (y, cb, cr) = (f32::from(y), f32::from(cb) - 128.0, f32::from(cr) - 128.0);
    [y + 1.402 * cr, y - 0.344_136 * cb - 0.714_136 * cr, y + 1.772 * cb].map(|value| (value + 0.5) as u8)
}

/// libtiff's conversion: D50 white point, sRGB display.
fn cielab_to_rgb([l, a, b]: [u8; 3]) -> [u8; 3] {
    const WHITE: [f32; 3] = [96.4250, 100.0, 82.4680];
    const DISPLAY: [[f32; 3]; 3] = [[3.2410, -1.5374, -0.4986], [-0.9692, 1.8760, 0.0416], [0.0556, -0.2040, 1.0570]];
    /// Entries of the display luminance table.
    const STEPS: f32 = 1500.0;
    let l = f32::from(l) * 100.0 / 255.0;
    let (a, b) = (f32::from(a as i8), f32::from(b as i8));
    let (y, fy) = if l < 8.856 {
        let y = l * WHITE[1] / 903.292;
        (y, 7.787 * (y / WHITE[1]) + 16.0 / 116.0)
    } else {
        let fy = (l + 16.0) / 116.0;
        (WHITE[1] * fy * fy * fy, fy)
    };
    let other = |f: f32, white: f32| if f < 0.2069 { white * (f - 0.13793) / 7.787 } else { white * f * f * f };
    let xyz = [other(a / 500.0 + fy, WHITE[0]), y, other(fy - b / 200.0, WHITE[2])];
    DISPLAY.map(|row| {
        let light: f32 = row.iter().zip(xyz).map(|(factor, value)| factor * value).sum();
        let step = ((light.clamp(1.0, 100.0) - 1.0) / (99.0 / STEPS)).floor();
        (255.0 * (step / STEPS).powf(1.0 / 2.4)).round() as u8
    })
}

/// Writes numbers in one byte order.
struct Writer {
    big_endian: bool,
    bytes: Vec<u8>,
}

impl Writer {
    /// The header and data of a BigTIFF, and the offsets and lengths of `chunks`.
    fn start(big_endian: bool, chunks: &[impl AsRef<[u8]>]) -> (Self, Vec<u64>, Vec<u64>) {
        let mut out = Self { big_endian, bytes: Vec::new() };
        out.bytes.extend(if big_endian { b"MM\0+\0\x08\0\0" } else { b"II+\0\x08\0\0\0" });
        out.number(0, 8);
        let mut place = |chunk: &[u8]| {
            let start = out.bytes.len() as u64;
            out.bytes.extend_from_slice(chunk);
            (start, chunk.len() as u64)
        };
        let (places, lengths) = chunks.iter().map(|chunk| place(chunk.as_ref())).unzip();
        (out, places, lengths)
    }

    fn number(&mut self, value: u64, length: usize) {
        match self.big_endian {
            true => self.bytes.extend_from_slice(&value.to_be_bytes()[8 - length..]),
            false => self.bytes.extend_from_slice(&value.to_le_bytes()[..length]),
        }
    }

    /// Writes a BigTIFF directory, and its offset into the header.
    fn directory(&mut self, mut tags: Vec<(u64, usize, Vec<u64>)>) {
        tags.sort_by_key(|(tag, ..)| *tag);
        let mut entries = Vec::new();
        for (tag, length, values) in tags {
            let start = self.bytes.len();
            values.iter().for_each(|&value| self.number(value, length));
            let place = if self.bytes.len() - start <= 8 { Err(self.bytes.split_off(start)) } else { Ok(start as u64) };
            entries.push((tag, length, values.len() as u64, place));
        }
        let directory = self.bytes.len() as u64;
        self.number(entries.len() as u64, 8);
        for (tag, length, count, place) in entries {
            self.number(tag, 2);
            // BYTE, SHORT, LONG, LONG8.
            self.number([1, 3, 4, 16][length.ilog2() as usize], 2);
            self.number(count, 8);
            match place {
                Ok(offset) => self.number(offset, 8),
                Err(mut content) => {
                    content.resize(8, 0);
                    self.bytes.extend_from_slice(&content);
                }
            }
        }
        self.number(0, 8);
        let end = self.bytes.split_off(8);
        self.bytes.truncate(8);
        self.number(directory, 8);
        self.bytes.extend_from_slice(&end[8..]);
    }
}

/// Decodes LZW data to `length` bytes.
fn lzw(bytes: &[u8], length: usize) -> Result<Vec<u8>, String> {
    let mut decoder = weezl::decode::Decoder::with_tiff_size_switch(weezl::BitOrder::Msb, 8);
    let mut out = vec![0; length];
    let (mut read, mut written) = (0, 0);
    while written < length {
        let step = decoder.decode_bytes(&bytes[read..], &mut out[written..]);
        (read, written) = (read + step.consumed_in, written + step.consumed_out);
        if !matches!(step.status, Ok(weezl::LzwStatus::Ok)) {
            break;
        }
    }
    if written == length {
        Ok(out)
    } else {
        Err("cannot be decoded: its LZW data is truncated; replace the file".into())
    }
}

/// Bits of fax data, followed by zeros.
struct FaxBits<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl BitReader for FaxBits<'_> {
    type Error = ();

    fn peek(&self, bits: u8) -> Option<u16> {
        if self.at >= self.bytes.len() * 8 {
            return None;
        }
        let byte = |place: usize| u32::from(self.bytes.get(place).copied().unwrap_or(0));
        let start = self.at / 8;
        let window = byte(start) << 16 | byte(start + 1) << 8 | byte(start + 2);
        let value = window >> (24 - self.at % 8 - usize::from(bits));
        Some((value & ((1 << bits) - 1)) as u16)
    }

    fn consume(&mut self, bits: u8) -> Result<(), ()> {
        self.at += usize::from(bits);
        Ok(())
    }

    fn bits_to_byte_boundary(&self) -> u8 {
        (self.at.wrapping_neg() % 8) as u8
    }
}

/// Decodes one-dimensional fax data to rows of bits, white is 0. With `marked`, each row follows an end-of-line mark,
/// as in group 3.
fn fax_rows(bytes: &[u8], width: usize, height: usize, marked: bool) -> Result<Vec<u8>, String> {
    let mut bits = FaxBits { bytes, at: 0 };
    let row_length = width.div_ceil(8);
    let mut rows = vec![0u8; row_length * height];
    for (number, row) in rows.chunks_exact_mut(row_length).enumerate() {
        if marked {
            // Fill bits, then eleven zeros and a one.
            while bits.peek(12) == Some(0) {
                bits.at += 1;
            }
            if bits.peek(12) == Some(1) {
                bits.at += 12;
            }
        }
        let (mut x, mut is_black) = (0, false);
        while x < width {
            let run = fax_run(&mut bits, is_black).ok_or_else(|| {
                format!("cannot be decoded: its fax data is truncated in row {number}; replace the file")
            })?;
            if is_black {
                (x..width.min(x + run)).for_each(|x| row[x / 8] |= 0x80 >> (x % 8));
            }
            x += run;
            is_black = !is_black;
        }
        if !marked {
            bits.at = bits.at.next_multiple_of(8);
        }
    }
    Ok(rows)
}

fn fax_run(bits: &mut FaxBits<'_>, is_black: bool) -> Option<usize> {
    let mut run = 0;
    loop {
        let part = if is_black { black::decode(bits) } else { white::decode(bits) }?;
        run += usize::from(part);
        if part < 64 {
            return Some(run);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::decode::DecodedImage;

    type Tags = Vec<(u64, usize, Vec<u64>)>;

    /// A BigTIFF of 4x2 pixels in one strip or tile per plane. `more` tags replace those of the same number.
    fn file(big_endian: bool, chunks: &[&[u8]], more: &[(u64, usize, &[u64])]) -> Vec<u8> {
        let (mut out, places, lengths) = Writer::start(big_endian, chunks);
        let is_tiled = more.iter().any(|(tag, ..)| *tag == 322);
        let [offsets, counts] = if is_tiled { [324, 325] } else { [273, 279] };
        let mut tags: Tags = vec![(256, 4, vec![4]), (257, 4, vec![2]), (258, 2, vec![8]), (offsets, 8, places)];
        tags.push((counts, 8, lengths));
        for (tag, length, values) in more {
            tags.retain(|(known, ..)| known != tag);
            tags.push((*tag, *length, values.to_vec()));
        }
        out.directory(tags);
        out.bytes
    }

    fn rgb(file: &[u8]) -> Vec<[u8; 3]> {
        let image = DecodedImage::decode(file).unwrap();
        assert_eq!((image.width, image.height), (4, 2));
        image.rgb.as_chunks().0.to_vec()
    }

    const GRAY: [u8; 8] = [0, 10, 20, 30, 40, 50, 60, 255];

    fn gray(values: [u8; 8]) -> Vec<[u8; 3]> {
        values.iter().map(|&value| [value; 3]).collect()
    }

    #[test]
    fn every_byte_and_bit_order_is_read() {
        let reversed = GRAY.map(u8::reverse_bits);
        for big_endian in [false, true] {
            assert_eq!(rgb(&file(big_endian, &[&GRAY], &[(262, 2, &[1])])), gray(GRAY));
            assert_eq!(rgb(&file(big_endian, &[&GRAY], &[(262, 2, &[0])])), gray(GRAY.map(|value| 255 - value)));
            assert_eq!(rgb(&file(big_endian, &[&reversed], &[(262, 2, &[1]), (266, 2, &[2])])), gray(GRAY));
        }
    }

    #[test]
    fn planes_of_tiles_are_combined() {
        // Tiles of 16x16; the image is the top left corner.
        let plane = |add: u8| {
            let mut tile = vec![7u8; 256];
            for (y, row) in GRAY.chunks(4).enumerate() {
                row.iter().enumerate().for_each(|(x, value)| tile[y * 16 + x] = value.wrapping_add(add));
            }
            tile
        };
        let planes = [plane(0), plane(1), plane(2)];
        let tags: [(u64, usize, &[u64]); 5] =
            [(262, 2, &[2]), (277, 2, &[3]), (284, 2, &[2]), (322, 4, &[16]), (323, 4, &[16])];
        let expected: Vec<_> = GRAY.iter().map(|&v| [v, v.wrapping_add(1), v.wrapping_add(2)]).collect();
        assert_eq!(rgb(&file(false, &planes.each_ref().map(Vec::as_slice), &tags)), expected);
        let packed = planes.map(|plane| {
            weezl::encode::Encoder::with_tiff_size_switch(weezl::BitOrder::Msb, 8).encode(&plane).unwrap()
        });
        let tags = [&tags[..], &[(259, 2, &[5])]].concat();
        assert_eq!(rgb(&file(true, &packed.each_ref().map(Vec::as_slice), &tags)), expected);
    }

    #[test]
    fn colors_match_libtiff() {
        let table: Vec<u64> = (0..768).map(|i| (i % 256) * 257 / if i < 256 { 1 } else { 2 }).collect();
        let expected: Vec<_> = GRAY.iter().map(|&v| [v, v / 2, v / 2]).collect();
        assert_eq!(rgb(&file(false, &[&GRAY], &[(262, 2, &[3]), (320, 2, &table)])), expected);
        let three = |color: [u8; 3]| color.repeat(8);
        for (kind, color, expected) in [
            (6, [100, 128, 128], [100, 100, 100]),
            (6, [76, 85, 255], [254, 0, 0]),
            (8, [0, 0, 0], [0, 0, 0]),
            (8, [128, 0, 0], [133, 123, 107]),
            (8, [200, 20, 216], [218, 185, 236]),
        ] {
            let tags: [(u64, usize, &[u64]); 3] = [(262, 2, &[kind]), (277, 2, &[3]), (530, 2, &[1, 1])];
            assert_eq!(rgb(&file(false, &[&three(color)], &tags)), vec![expected; 8], "{kind} {color:?}");
        }
        // Groups of four by two pixels share their chroma.
        let shared = [1, 2, 3, 4, 5, 6, 7, 8, 128, 128];
        let tags: [(u64, usize, &[u64]); 3] = [(262, 2, &[6]), (277, 2, &[3]), (530, 2, &[4, 2])];
        assert_eq!(rgb(&file(false, &[&shared], &tags)), gray([1, 2, 3, 4, 5, 6, 7, 8]));
    }

    #[test]
    fn fax_is_read() {
        // White 2, black 2 (0111 11, filled up); white 0, black 4 (00110101 011).
        let runs = [0b0111_1100, 0b0011_0101, 0b0110_0000];
        let white = [255, 255, 0, 0, 0, 0, 0, 0];
        let tags = |compression| -> [(u64, usize, Vec<u64>); 3] {
            [(258, 2, vec![1]), (259, 2, vec![compression]), (262, 2, vec![0])]
        };
        let read = |bytes: &[u8], compression: u64, order: u64| {
            let mut all: Vec<_> = tags(compression).into();
            all.push((266, 2, vec![order]));
            let all: Vec<_> = all.iter().map(|(tag, length, values)| (*tag, *length, values.as_slice())).collect();
            rgb(&file(false, &[bytes], &all))
        };
        assert_eq!(read(&runs, 2, 1), gray(white));
        assert_eq!(read(&runs.map(u8::reverse_bits), 2, 2), gray(white));
        // The same rows after marks: 000000000001 011111, 000000000001 00110101 011.
        let marked = [0, 0b0001_0111, 0b1100_0000, 0b0000_0100, 0b1101_0101, 0b1000_0000];
        assert_eq!(read(&marked, 3, 1), gray(white));
        let broken = file(false, &[&[0u8, 0][..]], &[(258, 2, &[1]), (259, 2, &[2]), (262, 2, &[0])]);
        assert!(DecodedImage::decode(&broken).unwrap_err().contains("fax"));
    }

    #[test]
    fn unsupported_features_are_named_with_the_remedy() {
        let of = |tags: &[(u64, usize, &[u64])]| DecodedImage::decode(&file(false, &[&GRAY], tags)).unwrap_err();
        for (message, expected) in [
            (of(&[(262, 2, &[3]), (277, 2, &[9])]), "9 samples per pixel"),
            (of(&[(258, 2, &[1]), (259, 2, &[3]), (262, 2, &[0]), (292, 4, &[1])]), "two-dimensional fax"),
            (of(&[(262, 2, &[6]), (277, 2, &[3]), (530, 2, &[3, 1])]), "chroma subsampled"),
        ] {
            assert!(message.contains(expected) && message.contains("magick"), "{message}");
        }
    }

    proptest! {
        #[test]
        fn damaged_files_give_an_image_or_a_message(at in 0usize..900, value in any::<u8>(), kind in 0u64..10, planar in 1u64..3) {
            let tags: [(u64, usize, &[u64]); 6] =
                [(262, 2, &[kind]), (277, 2, &[3]), (284, 2, &[planar]), (322, 4, &[16]), (323, 4, &[16]), (266, 2, &[2])];
            let planes = [vec![5u8; 768], vec![6u8; 256], vec![7u8; 256]];
            let count = if planar == 2 { 3 } else { 1 };
            let mut bytes = file(false, &planes.each_ref().map(Vec::as_slice)[..count], &tags);
            let at = bytes.len() - 1 - at % bytes.len();
            bytes[at] = value;
            if let Ok(image) = DecodedImage::decode(&bytes) {
                prop_assert_eq!(image.rgb.len(), image.width * image.height * 3);
            }
        }
    }
}

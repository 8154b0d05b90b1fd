//! Batches for the model: images, their geometry and target objects.

use std::sync::Arc;

use super::Images;

/// The geometry of one preprocessed image. Sizes are (height, width) in pixels.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageMeta {
    /// The `id` of the image in the annotation file, or another number of [`crate::Dataset::image_id`].
    pub image_id: i64,
    /// Its file name in the annotation file; of several files, with the id in which of them.
    pub file_name: String,
    /// Size of the decoded image, after the EXIF rotation.
    pub original_size: (usize, usize),
    /// Size after resizing, before padding. Boxes are clipped to it.
    pub image_size: (usize, usize),
    /// Size after padding this image to the divisor. Anchors beyond it are invalid.
    pub padded_size: (usize, usize),
    /// Ratio of resized to original size, as `[w, h, w, h]` in float32: MMDetection's `scale_factor`.
    pub scale_factor: [f32; 4],
    /// Whether it was flipped horizontally.
    pub flipped: bool,
}

impl ImageMeta {
    /// An image of `size` that is neither resized nor padded.
    pub fn plain(image_id: i64, file_name: impl Into<String>, size: (usize, usize)) -> Self {
        Self {
            image_id,
            file_name: file_name.into(),
            original_size: size,
            image_size: size,
            padded_size: size,
            scale_factor: [1.0; 4],
            flipped: false,
        }
    }
}

/// The mask of one instance in the resized and padded image. Only the window with foreground pixels is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceMask {
    /// (height, width) of the full bitmap.
    pub frame: (usize, usize),
    /// Left edge of the window in pixels.
    pub x: usize,
    /// Top edge of the window in pixels.
    pub y: usize,
    /// Width of the window in pixels.
    pub width: usize,
    /// Height of the window in pixels.
    pub height: usize,
    /// Pixels of the window: `width * height` values of 0 or 1, row-major.
    pub pixels: Arc<[u8]>,
}

impl InstanceMask {
    /// The full bitmap, row-major.
    pub fn bitmap(&self) -> Vec<u8> {
        let mut bitmap = vec![0; self.frame.0 * self.frame.1];
        self.mark(&mut bitmap);
        bitmap
    }

    /// Marks the pixels of the mask in `bitmap`, which has the size of its frame.
    pub fn mark(&self, bitmap: &mut [u8]) {
        for (row, pixels) in self.pixels.chunks_exact(self.width.max(1)).enumerate() {
            let start = (self.y + row) * self.frame.1 + self.x;
            bitmap[start..start + self.width].iter_mut().zip(pixels).for_each(|(out, pixel)| *out |= pixel);
        }
    }
}

/// The objects of one image, in coordinates of the resized and padded image.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Target {
    /// Boxes as `[x1, y1, x2, y2]` in pixels.
    pub boxes: Vec<[f32; 4]>,
    /// Class of each box, from 0.
    pub labels: Vec<i64>,
    /// Mask of each box, if it has one; empty if masks were not read.
    pub masks: Vec<Option<InstanceMask>>,
}

/// The input of one step on one rank.
#[derive(Debug)]
pub struct Batch {
    /// The images, all padded to one size.
    pub images: Images,
    /// One per image.
    pub metas: Vec<ImageMeta>,
    /// One per image; empty vectors for an image without objects.
    pub targets: Vec<Target>,
}

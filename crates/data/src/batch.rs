//! What the data path hands to the model: images, their geometry, and the objects to learn.

use std::sync::Arc;

use super::Images;

/// How one image was changed on its way into the model. Sizes are (height, width) in pixels.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageMeta {
    /// The `id` of the image in the annotation file.
    pub image_id: i64,
    /// Its file name as the annotation file gives it.
    pub file_name: String,
    /// Size of the decoded image, after the EXIF rotation.
    pub original_size: (usize, usize),
    /// Size after resizing, before padding: boxes are clipped to it.
    pub image_size: (usize, usize),
    /// Size after this image's own padding to the divisor: anchors beyond it are invalid.
    pub padded_size: (usize, usize),
    /// Resized over original width and height, as `[w, h, w, h]` in float32: the reference's `scale_factor`.
    pub scale_factor: [f32; 4],
    /// Whether it was mirrored left to right.
    pub flipped: bool,
}

/// The mask of one instance in the frame of the resized and padded image: only the window that holds pixels is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceMask {
    /// (height, width) of the full bitmap that the window is a part of.
    pub frame: (usize, usize),
    /// Left edge of the window in pixels.
    pub x: usize,
    /// Upper edge of the window in pixels.
    pub y: usize,
    /// Width of the window in pixels.
    pub width: usize,
    /// Height of the window in pixels.
    pub height: usize,
    /// Row-major 0 or 1 of the window, `width * height` values.
    pub pixels: Arc<[u8]>,
}

/// The objects of one image, in the frame of the resized and padded image.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Target {
    /// Boxes as `[x1, y1, x2, y2]` in pixels.
    pub boxes: Vec<[f32; 4]>,
    /// Class of each box, from 0.
    pub labels: Vec<i64>,
    /// Mask of each box.
    pub masks: Vec<InstanceMask>,
}

/// One step's input of one rank.
#[derive(Debug)]
pub struct Batch {
    /// In frames of one size.
    pub images: Images,
    /// One per image.
    pub metas: Vec<ImageMeta>,
    /// One per image; empty vectors for an image without objects.
    pub targets: Vec<Target>,
}

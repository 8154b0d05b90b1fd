//! The pixels of a training image while it is augmented.

use crate::resize::{Bilinear, resize_floats};

/// Height and width in pixels.
pub(crate) type Size = (usize, usize);

/// A part of an image in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    pub y: usize,
    pub x: usize,
    pub height: usize,
    pub width: usize,
}

impl Window {
    /// A whole image.
    pub fn whole((height, width): Size) -> Self {
        Self { y: 0, x: 0, height, width }
    }
}

/// RGB values, 3 for each pixel, row-major.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Values {
    Bytes(Vec<u8>),
    /// 0 to 255, and beyond: nothing clips them.
    Floats(Vec<f32>),
}

impl Values {
    fn into_floats(self) -> Vec<f32> {
        match self {
            Self::Bytes(bytes) => bytes.into_iter().map(f32::from).collect(),
            Self::Floats(floats) => floats,
        }
    }
}

/// An image. Resizing waits for the next change of pixels, so that what a crop removes is never computed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Raster {
    values: Values,
    source: Size,
    /// The size that `values` is to be resized to, and the part of that image that is used.
    target: Size,
    window: Window,
}

impl Raster {
    pub fn new(values: Values, size: Size) -> Self {
        Self { values, source: size, target: size, window: Window::whole(size) }
    }

    pub fn size(&self) -> Size {
        (self.window.height, self.window.width)
    }

    pub fn resize(&mut self, target: Size) {
        self.values();
        (self.target, self.window) = (target, Window::whole(target));
    }

    /// Keeps the part `window`, which must be inside the image.
    pub fn crop(&mut self, window: Window) {
        self.window = Window { y: self.window.y + window.y, x: self.window.x + window.x, ..window };
    }

    /// The values, resized and cropped.
    pub fn values(&mut self) -> &mut Values {
        let Self { source, target, window, .. } = *self;
        if source != target || window != Window::whole(source) {
            let (rows, columns) = (window.y..window.y + window.height, window.x..window.x + window.width);
            let values = match &self.values {
                Values::Bytes(bytes) => {
                    Values::Bytes(Bilinear::part(source, target, rows, columns, false).apply(bytes))
                }
                Values::Floats(floats) => Values::Floats(resize_floats(floats, source, target, rows, columns)),
            };
            *self = Self::new(values, self.size());
        }
        &mut self.values
    }

    /// Changes the values as floats.
    pub fn change_floats(&mut self, change: impl FnOnce(&mut [f32])) {
        let values = self.values();
        let mut floats = std::mem::replace(values, Values::Floats(Vec::new())).into_floats();
        change(&mut floats);
        *values = Values::Floats(floats);
    }

    pub fn flip(&mut self, horizontal: bool, vertical: bool) {
        let row = self.size().1 * 3;
        match self.values() {
            Values::Bytes(bytes) => flip(bytes, row, horizontal, vertical),
            Values::Floats(floats) => flip(floats, row, horizontal, vertical),
        }
    }

    /// Pads to `size` with zeros on the right and below.
    pub fn pad(&mut self, size: Size) {
        let old = self.size();
        if size != old {
            let values = match self.values() {
                Values::Bytes(bytes) => Values::Bytes(padded(bytes, old, size)),
                Values::Floats(floats) => Values::Floats(padded(floats, old, size)),
            };
            *self = Self::new(values, size);
        }
    }

    /// Copies the pixels of `other`, an image of the same size, where `mask` (row-major) is not 0.
    pub fn paste(&mut self, other: &mut Raster, mask: &[u8]) {
        match (self.values(), other.values()) {
            (Values::Bytes(own), Values::Bytes(other)) => paste(own, other, mask),
            (_, other) => {
                let other = other.clone().into_floats();
                self.change_floats(|own| paste(own, &other, mask));
            }
        }
    }

    /// The finished pixels.
    pub fn into_values(mut self) -> Values {
        self.values();
        self.values
    }
}

fn flip<T>(values: &mut [T], row: usize, horizontal: bool, vertical: bool) {
    if horizontal {
        values.chunks_exact_mut(row.max(1)).for_each(|row| row.as_chunks_mut::<3>().0.reverse());
    }
    if vertical {
        let rows = values.len() / row.max(1);
        for y in 0..rows / 2 {
            let (upper, lower) = values.split_at_mut((rows - 1 - y) * row);
            upper[y * row..(y + 1) * row].swap_with_slice(&mut lower[..row]);
        }
    }
}

fn padded<T: Copy + Default>(values: &[T], old: Size, new: Size) -> Vec<T> {
    let mut out = vec![T::default(); new.0 * new.1 * 3];
    for (row, out) in values.chunks_exact((old.1 * 3).max(1)).zip(out.chunks_exact_mut(new.1 * 3)) {
        out[..row.len()].copy_from_slice(row);
    }
    out
}

fn paste<T: Copy>(own: &mut [T], other: &[T], mask: &[u8]) {
    for ((own, other), _) in
        own.chunks_exact_mut(3).zip(other.chunks_exact(3)).zip(mask).filter(|(_, mask)| **mask != 0)
    {
        own.copy_from_slice(other);
    }
}

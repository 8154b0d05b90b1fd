//! The images of a batch: bytes until they are on the model's device.

use std::borrow::Cow;
use std::sync::Arc;

use rayon::prelude::*;
use tch::{Device, Kind, Tensor};
use torch_ext::memory::channels_last;
use torch_ext::transfer::{Lane, upload};

use fnet_common::Result;
use fnet_config::Pipeline;

use super::normalize::Normalization;

/// The images of a batch.
#[derive(Debug)]
pub enum Images {
    /// Decoded and resized bytes: a quarter of the memory and of the transfer to a device.
    Pixels(Arc<Pixels>),
    /// `[images, 3, height, width]`, float32, normalized RGB, zero-padded.
    Values(Tensor),
}

/// RGB images of bytes, or of floats after augmentations that make such, padded to frames of one size.
#[derive(Debug)]
pub struct Pixels {
    /// Height and width of the frames.
    frame: (usize, usize),
    /// Height and width of each image, which is in the upper left corner of its frame.
    sizes: Vec<(usize, usize)>,
    normalization: Normalization,
    /// Whether the values are float32.
    floats: bool,
    /// The frames, row-major, then the constants of the normalization.
    bytes: Vec<u8>,
}

impl From<Tensor> for Images {
    fn from(values: Tensor) -> Self {
        Self::Values(values)
    }
}

impl From<Pixels> for Images {
    fn from(pixels: Pixels) -> Self {
        Self::Pixels(Arc::new(pixels))
    }
}

impl Images {
    /// Number of images, and height and width of the frames.
    /// Errors: if the values do not have 4 dimensions.
    pub fn size(&self) -> Result<(usize, (usize, usize))> {
        match self {
            Self::Pixels(pixels) => Ok((pixels.sizes.len(), pixels.frame)),
            Self::Values(values) => {
                let (count, _, height, width) = values.size4()?;
                Ok((count as usize, (height as usize, width as usize)))
            }
        }
    }

    /// `[images, 3, height, width]` on `device`, channels-last: `(value - mean) / std` in float32, computed as in
    /// MMDetection, and 0 in the padding. The host does not wait for the device.
    pub fn values(&self, device: Device) -> Result<Tensor> {
        match self {
            Self::Pixels(pixels) if device == Device::Cpu => pixels.on_host(),
            Self::Pixels(pixels) => pixels.by_operators(&upload(&pixels.bytes, device, Lane::Beside)?),
            Self::Values(values) => Ok(channels_last(&values.f_to_device_(device, values.kind(), true, false)?)?),
        }
    }

    /// Another reference to the same images, without a copy.
    #[must_use]
    pub fn share(&self) -> Self {
        match self {
            Self::Pixels(pixels) => Self::Pixels(Arc::clone(pixels)),
            Self::Values(values) => Self::Values(values.shallow_clone()),
        }
    }
}

impl Pixels {
    /// Black images of `sizes` in frames of size `frame`.
    pub fn black(frame: (usize, usize), sizes: Vec<(usize, usize)>, pipeline: &Pipeline) -> Self {
        Self::black_of(frame, sizes, pipeline, false)
    }

    /// Black images whose values are float32 if `floats`.
    pub(super) fn black_of(
        frame: (usize, usize),
        sizes: Vec<(usize, usize)>,
        pipeline: &Pipeline,
        floats: bool,
    ) -> Self {
        let normalization = Normalization::new(pipeline);
        let pixels = sizes.len() * frame.0 * frame.1 * 3 * if floats { size_of::<f32>() } else { 1 };
        let mut bytes = vec![0; pixels.next_multiple_of(size_of::<f32>()) + 6 * size_of::<f32>()];
        let constants = normalization.mean().into_iter().chain(normalization.std());
        for (place, value) in bytes.rchunks_exact_mut(size_of::<f32>()).take(6).zip(constants.rev()) {
            place.copy_from_slice(&value.to_ne_bytes());
        }
        Self { frame, sizes, normalization, floats, bytes }
    }

    /// The bytes of the frames, row-major.
    pub fn frames_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        let frame = self.frame_bytes();
        self.bytes.chunks_exact_mut(frame.max(1)).take(self.sizes.len())
    }

    /// The rows of frame `index`, if there is one. Floats are rounded, and clipped to 0 to 255.
    pub fn frame(&self, index: usize) -> Option<Cow<'_, [u8]>> {
        let bytes = self.bytes.chunks_exact(self.frame_bytes().max(1)).take(self.sizes.len()).nth(index)?;
        if !self.floats {
            return Some(Cow::Borrowed(bytes));
        }
        let (values, _) = bytes.as_chunks();
        Some(values.iter().map(|&value| f32::from_ne_bytes(value).round() as u8).collect())
    }

    fn frame_bytes(&self) -> usize {
        self.frame.0 * self.frame.1 * 3 * self.value_bytes()
    }

    fn value_bytes(&self) -> usize {
        if self.floats { size_of::<f32>() } else { 1 }
    }

    fn shape(&self) -> [i64; 4] {
        [self.sizes.len() as i64, self.frame.0 as i64, self.frame.1 as i64, 3]
    }

    fn on_host(&self) -> Result<Tensor> {
        let images = Tensor::f_empty(self.shape(), (Kind::Float, Device::Cpu))?;
        let row_length = self.frame.1 * 3;
        let rows = self.sizes.len() * self.frame.0;
        if row_length > 0 {
            // SAFETY: `images` is a fresh contiguous float32 tensor of this length on the CPU, alive and seen by nobody else
            // while the slice is. Every f32 bit pattern is valid, and the slice is written before it is read.
            let values = unsafe { std::slice::from_raw_parts_mut(images.data_ptr().cast::<f32>(), rows * row_length) };
            let bytes = self.bytes.par_chunks_exact(row_length * self.value_bytes());
            let rows = values.par_chunks_exact_mut(row_length).zip(bytes);
            rows.enumerate().with_min_len(8).for_each(|(row, (values, bytes))| {
                let (height, width) = self.sizes[row / self.frame.0];
                let used = if row % self.frame.0 < height { 3 * width } else { 0 };
                if self.floats {
                    self.normalization.row_of_floats(bytes, &mut values[..used]);
                } else {
                    self.normalization.row(&bytes[..used], &mut values[..used]);
                }
                values[used..].fill(0.0);
            });
        }
        Ok(images.f_permute([0, 3, 1, 2])?)
    }

    /// The same bits, computed with libtorch's operators on the device of `bytes`.
    fn by_operators(&self, bytes: &Tensor) -> Result<Tensor> {
        let _guard = tch::no_grad_guard();
        let constants =
            bytes.f_narrow(0, (self.bytes.len() - 6 * size_of::<f32>()) as i64, 6 * size_of::<f32>() as i64)?;
        let constants = constants.f_view_dtype(Kind::Float)?;
        let pixels = bytes.f_narrow(0, 0, (self.sizes.len() * self.frame_bytes()) as i64)?;
        let pixels = if self.floats { pixels.f_view_dtype(Kind::Float)? } else { pixels };
        let pixels = pixels.f_reshape(&self.shape()[..])?;
        let mut values = pixels.f_sub(&constants.f_narrow(0, 0, 3)?)?.f_div_(&constants.f_narrow(0, 3, 3)?)?;
        for (image, &(height, width)) in (0..).zip(&self.sizes) {
            let frame = values.f_select(0, image)?;
            if width < self.frame.1 {
                let _ = frame.f_narrow(1, width as i64, (self.frame.1 - width) as i64)?.f_zero_()?;
            }
            if height < self.frame.0 {
                let _ = frame.f_narrow(0, height as i64, (self.frame.0 - height) as i64)?.f_zero_()?;
            }
        }
        values = values.f_permute([0, 3, 1, 2])?;
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_normalized_as_bytes_are_and_shown_as_bytes() {
        let pipeline = Pipeline::default();
        let sizes = vec![(3, 5), (2, 4)];
        let mut bytes = Pixels::black((3, 6), sizes.clone(), &pipeline);
        let mut floats = Pixels::black_of((3, 6), sizes, &pipeline, true);
        for (bytes, floats) in bytes.frames_mut().zip(floats.frames_mut()) {
            for (i, (byte, float)) in bytes.iter_mut().zip(floats.as_chunks_mut::<4>().0).enumerate() {
                *byte = (i * 37) as u8;
                *float = f32::from(*byte).to_ne_bytes();
            }
        }
        let values = |pixels: &Pixels| Vec::<f32>::try_from(pixels.on_host().unwrap().reshape([-1])).unwrap();
        assert_eq!(values(&floats), values(&bytes));
        let uploaded = floats.by_operators(&Tensor::from_slice(&floats.bytes)).unwrap();
        assert_eq!(Vec::<f32>::try_from(uploaded.reshape([-1])).unwrap(), values(&bytes));
        assert_eq!(floats.frame(1), bytes.frame(1));
        floats.frames_mut().next().unwrap()[..8]
            .copy_from_slice([(-3.5f32).to_ne_bytes(), 300f32.to_ne_bytes()].as_flattened());
        assert_eq!(floats.frame(0).unwrap()[..2], [0, 255]);
    }

    #[test]
    fn device_operators_give_the_same_bits_as_the_host() {
        let pipeline = Pipeline::default();
        for (frame, sizes) in [
            ((7, 9), vec![(7, 9), (5, 9), (7, 4), (3, 2)]),
            ((96, 64), vec![(96, 64)]),
            ((1, 1), vec![(1, 1)]),
            ((32, 32), Vec::new()),
        ] {
            let mut pixels = Pixels::black(frame, sizes.clone(), &pipeline);
            // Also in the padding, which must have no effect.
            for (seed, bytes) in pixels.frames_mut().enumerate() {
                bytes.iter_mut().enumerate().for_each(|(i, byte)| *byte = (i * 31 + i / 256 + 7 * seed) as u8);
            }
            let host = pixels.on_host().unwrap();
            let other = pixels.by_operators(&Tensor::from_slice(&pixels.bytes)).unwrap();
            assert_eq!((host.size(), host.stride()), (other.size(), other.stride()));
            let bits = |tensor: &Tensor| {
                Vec::<i32>::try_from(tensor.permute([0, 2, 3, 1]).reshape([-1]).view_dtype(Kind::Int))
            };
            assert_eq!(bits(&host).unwrap(), bits(&other).unwrap());
            for (image, &(height, width)) in sizes.iter().enumerate() {
                let frame = pixels.frame(image).unwrap();
                for (y, x) in [(0, 0), (height - 1, width - 1)] {
                    let value = f32::from(frame[(y * pixels.frame.1 + x) * 3 + 1]);
                    let expected = (value - pipeline.mean[1] as f32) / pipeline.std[1] as f32;
                    let found = host.double_value(&[image as i64, 1, y as i64, x as i64]) as f32;
                    assert_eq!(found.to_bits(), expected.to_bits());
                }
                if height < pixels.frame.0 {
                    assert_eq!(host.double_value(&[image as i64, 2, height as i64, 0]), 0.0);
                }
            }
            assert_eq!(Images::from(pixels).size().unwrap(), (sizes.len(), frame));
        }
    }
}

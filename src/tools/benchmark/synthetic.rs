//! Pictures and objects made for measurements: the same for every run, so that two measurements compare.

use std::sync::Arc;

use tch::Tensor;

use crate::data::{Batch, ImageMeta, InstanceMask, Target};
use crate::error::Result;
use crate::random::{Generator, Purpose};

/// Objects in each picture.
pub const OBJECTS: usize = 7;

/// A batch of `count` noise pictures of `height` x `width`, each with [`OBJECTS`] elliptic objects of random classes;
/// `variant` gives others of the same kind.
///
/// # Errors
/// For lack of memory.
pub fn batch(count: usize, (height, width): (usize, usize), num_classes: usize, variant: u64) -> Result<Batch> {
    let mut targets = Vec::with_capacity(count);
    for image in 0..count {
        let mut random = Generator::derived(0, Purpose::Synthetic, &[variant, image as u64]);
        targets.push(target(&mut random, (height, width), num_classes));
    }
    Ok(Batch { images: images(count, (height, width), variant)?, metas: metas(count, (height, width)), targets })
}

/// Normal noise `[count, 3, height, width]`, as normalised pictures have it, channels-last in memory.
///
/// # Errors
/// For lack of memory.
pub fn images(count: usize, (height, width): (usize, usize), variant: u64) -> Result<Tensor> {
    let mut random = Generator::derived(1, Purpose::Synthetic, &[variant]);
    // The sum of three uniform numbers is near enough to a normal one, with variance 1/4.
    let mut noise = || (0..3).map(|_| random.next_u32() as f32 / u32::MAX as f32).sum::<f32>() * 2.0 - 3.0;
    let values: Vec<f32> = (0..count * height * width * 3).map(|_| noise()).collect();
    let shape = [count as i64, height as i64, width as i64, 3];
    Ok(Tensor::f_from_slice(&values)?.f_view(shape)?.f_permute([0, 3, 1, 2])?)
}

/// Facts of pictures that were neither resized nor padded.
pub fn metas(count: usize, size: (usize, usize)) -> Vec<ImageMeta> {
    (0..count)
        .map(|image| ImageMeta {
            image_id: image as i64,
            file_name: format!("synthetic {image}"),
            original_size: size,
            image_size: size,
            padded_size: (size.0.next_multiple_of(32), size.1.next_multiple_of(32)),
            scale_factor: [1.0; 4],
            flipped: false,
        })
        .collect()
}

fn target(random: &mut Generator, (height, width): (usize, usize), num_classes: usize) -> Target {
    let mut target = Target::default();
    for _ in 0..OBJECTS {
        // Sides from an eighth to a half of the shorter side.
        let shorter = height.min(width);
        let mut side = || shorter / 8 + random.below((shorter * 3 / 8).max(1)).max(1);
        let (w, h) = (side(), side());
        let (x, y) = (random.below(width - w), random.below(height - h));
        target.boxes.push([x as f32, y as f32, (x + w) as f32, (y + h) as f32]);
        target.labels.push(random.below(num_classes) as i64);
        target.masks.push(ellipse((height, width), (x, y), (w, h)));
    }
    target
}

fn ellipse(frame: (usize, usize), (x, y): (usize, usize), (width, height): (usize, usize)) -> InstanceMask {
    let inside = |column: usize, row: usize| {
        let dx = (column as f64 + 0.5) / width as f64 * 2.0 - 1.0;
        let dy = (row as f64 + 0.5) / height as f64 * 2.0 - 1.0;
        u8::from(dx * dx + dy * dy <= 1.0)
    };
    let pixels: Arc<[u8]> = (0..height)
        .flat_map(|row| {
            (0..width).map({
                let inside = &inside;
                move |column| inside(column, row)
            })
        })
        .collect();
    InstanceMask { frame, x, y, width, height, pixels }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn a_synthetic_batch_is_the_same_each_time_and_its_objects_lie_inside() {
        let (first, second) = (batch(2, (96, 128), 5, 3).unwrap(), batch(2, (96, 128), 5, 3).unwrap());
        assert_eq!(first.images.size(), [2, 3, 96, 128]);
        assert_eq!(first.images.kind(), Kind::Float);
        assert_eq!(first.images.device(), Device::Cpu);
        assert_eq!(first.images, second.images);
        assert_eq!(first.targets, second.targets);
        for target in &first.targets {
            assert_eq!(target.boxes.len(), OBJECTS);
            for (bounds, mask) in target.boxes.iter().zip(&target.masks) {
                assert!(bounds[0] >= 0.0 && bounds[2] <= 128.0 && bounds[3] <= 96.0 && bounds[2] > bounds[0]);
                assert_eq!(mask.pixels.len(), mask.width * mask.height);
                assert!(mask.pixels.contains(&1));
            }
        }
    }
}

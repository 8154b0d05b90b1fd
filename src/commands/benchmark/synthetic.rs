//! Synthetic images and objects for benchmarks. They are the same in every run, so results are comparable.

use std::sync::Arc;

use fnet_common::random::{Generator, Purpose};
use fnet_config::Pipeline;
use fnet_data::{ImageMeta, Images, InstanceMask, Pixels, Target};

/// Objects in each image.
pub const OBJECTS: usize = 7;
/// Minimum side of an object in pixels.
const MIN_SIDE: f32 = 16.0;

/// Images of noise that is approximately normal after normalization.
pub fn images(count: usize, (height, width): (usize, usize), variant: u64) -> Images {
    let mut random = Generator::derived(1, Purpose::Synthetic, &[variant]);
    // The sum of three uniform numbers is close to normal, with variance 1/4.
    let mut noise = || (0..3).map(|_| random.next_u32() as f32 / u32::MAX as f32).sum::<f32>() * 2.0 - 3.0;
    let pipeline = Pipeline::default();
    let mut pixels = Pixels::black((height, width), vec![(height, width); count], &pipeline);
    let constants: [(f32, f32); 3] =
        std::array::from_fn(|channel| (pipeline.mean[channel] as f32, pipeline.std[channel] as f32));
    for frame in pixels.frames_mut() {
        for (value, (mean, std)) in frame.iter_mut().zip(constants.iter().cycle()) {
            *value = noise().mul_add(*std, *mean).round().clamp(0.0, 255.0) as u8;
        }
    }
    pixels.into()
}

/// Metadata of images that were neither resized nor padded.
pub fn metas(count: usize, size: (usize, usize)) -> Vec<ImageMeta> {
    let padded_size = (size.0.next_multiple_of(32), size.1.next_multiple_of(32));
    let meta = |image| ImageMeta { padded_size, ..ImageMeta::plain(image as i64, format!("synthetic {image}"), size) };
    (0..count).map(meta).collect()
}

/// Elliptic objects of random classes in [`OBJECTS`] of an image's proposals (`[x1, y1, x2, y2]` in pixels, best first);
/// `None` if there are too few separate ones. A proposal with the box of an object is a positive one, whatever the network
/// has learned.
pub fn objects(proposals: &[[f32; 4]], (height, width): (usize, usize), num_classes: usize) -> Option<Target> {
    let mut random = Generator::derived(0, Purpose::Synthetic, &[]);
    let mut target = Target::default();
    for bounds in proposals {
        let [x1, y1, x2, y2] = *bounds;
        if x2 - x1 < MIN_SIDE || y2 - y1 < MIN_SIDE || target.boxes.iter().any(|taken| overlap(taken, bounds)) {
            continue;
        }
        let (x, y) = (x1.floor() as usize, y1.floor() as usize);
        let (right, bottom) = ((x2.ceil() as usize).min(width), (y2.ceil() as usize).min(height));
        target.boxes.push(*bounds);
        target.labels.push(random.below(num_classes) as i64);
        target.masks.push(Some(ellipse((height, width), (x, y), (right - x, bottom - y))));
        if target.boxes.len() == OBJECTS {
            return Some(target);
        }
    }
    None
}

/// Separate boxes in an image, for measurements without proposals.
pub fn boxes((height, width): (usize, usize)) -> Vec<[f32; 4]> {
    let side = width as f32 / OBJECTS as f32;
    let bottom = (height as f32).min(side * 2.0);
    (0..OBJECTS).map(|index| [side * index as f32, 0.0, side * (index + 1) as f32, bottom]).collect()
}

/// Whether the boxes share more than half of the smaller one's area.
fn overlap(a: &[f32; 4], b: &[f32; 4]) -> bool {
    let area = |[x1, y1, x2, y2]: [f32; 4]| (x2 - x1).max(0.0) * (y2 - y1).max(0.0);
    let common = [a[0].max(b[0]), a[1].max(b[1]), a[2].min(b[2]), a[3].min(b[3])];
    area(common) > 0.5 * area(*a).min(area(*b))
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
    use tch::{Device, Kind, Tensor};

    use super::*;

    #[test]
    fn synthetic_images_are_the_same_each_time() {
        let values = |variant| -> Tensor { images(2, (96, 128), variant).values(Device::Cpu).unwrap() };
        let first = values(3);
        assert_eq!((first.size(), first.kind()), (vec![2, 3, 96, 128], Kind::Float));
        assert_eq!(first, values(3));
        assert_ne!(first, values(4));
        assert!((first.std(true).double_value(&[]) - 1.0).abs() < 0.02);
    }

    #[test]
    fn objects_fill_separate_proposal_boxes() {
        let near = (0..40).map(|step| [10.5 + step as f32 * 0.1, 10.0, 50.0, 60.0]);
        let apart = (0..10).map(|step| [step as f32 * 30.0, 100.0, step as f32 * 30.0 + 24.5, 128.0]);
        let proposals: Vec<[f32; 4]> = near.chain(apart).collect();
        let target = objects(&proposals, (128, 320), 5).unwrap();
        assert_eq!(target.boxes.len(), OBJECTS);
        assert_eq!(target.boxes[..2], [proposals[0], proposals[40]]);
        assert!(target.labels.iter().all(|&label| (0..5).contains(&label)));
        for (bounds, mask) in target.boxes.iter().zip(target.masks.iter().flatten()) {
            assert_eq!((mask.x, mask.y), (bounds[0] as usize, bounds[1] as usize));
            assert_eq!(mask.pixels.len(), mask.width * mask.height);
            assert!(mask.x + mask.width <= 320 && mask.y + mask.height <= 128);
            assert!(mask.pixels.contains(&1));
        }
        assert!(objects(&proposals[..40], (128, 320), 5).is_none());
    }
}

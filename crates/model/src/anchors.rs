//! Anchors: the boxes of fixed sizes and shapes that the region proposal network refines.

use std::sync::Arc;

use fnet_config as config;

use super::boxes::BoxColumns;

/// Height and width of a feature map.
pub type Size = (usize, usize);

/// Generates the anchors of every pyramid level.
#[derive(Debug)]
pub struct AnchorGenerator {
    strides: Vec<usize>,
    /// Per level: the anchors around the point (0, 0).
    base: Vec<Vec<[f32; 4]>>,
}

impl AnchorGenerator {
    /// Anchors of side `stride * scale`, stretched to each aspect ratio (height / width) with equal area.
    pub fn new(rpn: &config::Rpn) -> Self {
        let base = rpn.anchor_strides.iter().map(|&stride| base_anchors(stride, rpn)).collect();
        Self { strides: rpn.anchor_strides.clone(), base }
    }

    /// Number of anchors per position.
    pub fn per_place(&self) -> usize {
        self.base.first().map_or(0, Vec::len)
    }

    /// All anchors, by level, row and position.
    pub fn boxes(&self, levels: &[Size]) -> Vec<[f32; 4]> {
        let count: usize = levels.iter().map(|size| size.0 * size.1).sum();
        let mut boxes = Vec::with_capacity(count * self.per_place());
        for ((&(height, width), &stride), base) in levels.iter().zip(&self.strides).zip(&self.base) {
            for y in 0..height {
                let y = (y * stride) as f32;
                for x in 0..width {
                    let x = (x * stride) as f32;
                    boxes.extend(base.iter().map(|a| [a[0] + x, a[1] + y, a[2] + x, a[3] + y]));
                }
            }
        }
        boxes
    }

    /// Indices into [`AnchorGenerator::boxes`] of the anchors with a position in an image of `padded` pixels (height,
    /// width). The rest of the batch's frame belongs to larger images.
    pub fn valid(&self, levels: &[Size], padded: Size) -> Vec<u32> {
        let mut indices = Vec::new();
        let mut start = 0;
        for (&(height, width), &stride) in levels.iter().zip(&self.strides) {
            let per_row = width * self.per_place();
            let valid_width = padded.1.div_ceil(stride).min(width) * self.per_place();
            for y in 0..padded.0.div_ceil(stride).min(height) {
                let row = start + y * per_row;
                indices.extend(row as u32..(row + valid_width) as u32);
            }
            start += height * per_row;
        }
        indices
    }
}

fn base_anchors(stride: usize, rpn: &config::Rpn) -> Vec<[f32; 4]> {
    let mut anchors = Vec::with_capacity(rpn.anchor_ratios.len() * rpn.anchor_scales.len());
    for &ratio in &rpn.anchor_ratios {
        let height_ratio = (ratio as f32).sqrt();
        let width_ratio = 1.0 / height_ratio;
        for &scale in &rpn.anchor_scales {
            let half_width = 0.5 * (stride as f32 * width_ratio * scale as f32);
            let half_height = 0.5 * (stride as f32 * height_ratio * scale as f32);
            anchors.push([-half_width, -half_height, half_width, half_height]);
        }
    }
    anchors
}

/// The anchors of one set of level sizes.
#[derive(Debug)]
pub struct Anchors {
    /// Sizes of the levels.
    pub levels: Vec<Size>,
    /// All anchors.
    pub boxes: Vec<[f32; 4]>,
    /// The same by coordinate.
    pub columns: BoxColumns,
}

/// A cache of anchors, because batches come in few sizes.
#[derive(Debug, Default)]
pub struct AnchorCache {
    sets: Vec<Arc<Anchors>>,
}

impl AnchorCache {
    const CAPACITY: usize = 4;

    /// The anchors for `levels`, from the cache or newly generated.
    pub fn get(&mut self, generator: &AnchorGenerator, levels: &[Size]) -> Arc<Anchors> {
        if let Some(place) = self.sets.iter().position(|set| set.levels == levels) {
            let set = self.sets.remove(place);
            self.sets.push(Arc::clone(&set));
            return set;
        }
        let boxes = generator.boxes(levels);
        let columns = boxes.iter().collect();
        let set = Arc::new(Anchors { levels: levels.to_vec(), boxes, columns });
        if self.sets.len() == Self::CAPACITY {
            self.sets.remove(0);
        }
        self.sets.push(Arc::clone(&set));
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generator() -> AnchorGenerator {
        AnchorGenerator::new(&config::Rpn::default())
    }

    #[test]
    fn anchors_of_one_position_have_equal_area_and_the_three_ratios() {
        let boxes = generator().boxes(&[(1, 2)]);
        assert_eq!(boxes.len(), 6);
        for (one, ratio) in boxes.iter().zip([0.5, 1.0, 2.0]) {
            let (width, height) = (one[2] - one[0], one[3] - one[1]);
            assert!((width * height - 32.0 * 32.0).abs() < 0.1 && (height / width - ratio).abs() < 1e-5, "{one:?}");
            assert_eq!(one[0] + one[2], 0.0);
        }
        assert_eq!(boxes[4], [-12.0, -16.0, 20.0, 16.0], "the square anchor of the second position, 4 pixels right");
    }

    #[test]
    fn anchors_outside_an_images_own_padding_are_invalid() {
        let generator = generator();
        // A batch of 32 x 32, an image of 32 high and 17 wide: 5 of 8 columns at stride 4, 3 of 4 at stride 8.
        let valid = generator.valid(&[(8, 8), (4, 4)], (32, 17));
        assert_eq!(valid.len(), 3 * (8 * 5 + 4 * 3));
        assert_eq!(&valid[..16], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 24]);
        assert_eq!(valid[3 * 40], 3 * 64);
    }

    #[test]
    fn the_cache_keeps_the_latest_sets() {
        let (generator, mut cache) = (generator(), AnchorCache::default());
        let first = cache.get(&generator, &[(2, 3)]);
        assert!(Arc::ptr_eq(&first, &cache.get(&generator, &[(2, 3)])));
        for side in 4..8 {
            assert_eq!(cache.get(&generator, &[(side, side)]).boxes.len(), 3 * side * side);
        }
        assert!(!Arc::ptr_eq(&first, &cache.get(&generator, &[(2, 3)])), "the oldest set was dropped");
        assert_eq!(first.boxes, cache.get(&generator, &[(2, 3)]).boxes);
    }
}

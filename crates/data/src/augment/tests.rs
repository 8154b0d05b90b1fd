use fnet_common::random::Generator;
use fnet_config::ScaleMode;
use fnet_config::augment::{ColorJitter, CopyPaste, CropType, Direction, Flip, Pad, RandomCrop, Resize};
use proptest::prelude::*;

use super::raster::{Raster, Size, Window};
use super::*;
use crate::batch::{InstanceMask, Target};
use crate::resize::{Bilinear, nearest};
use crate::transform::rescaled_size;

/// An image with objects as plain lists of all pixels: the form in which MMDetection's rules are written.
#[derive(Debug, Clone, PartialEq)]
struct Plain {
    size: Size,
    pixels: Vec<[f32; 3]>,
    boxes: Vec<[f32; 4]>,
    labels: Vec<i64>,
    masks: Vec<Vec<u8>>,
}

fn plain(frame: &Frame) -> Plain {
    let mut frame = frame.clone();
    frame.settle_padding();
    let size = frame.raster.size();
    assert!(frame.target.masks.iter().flatten().all(|mask| mask.frame == size));
    let mut pixels = Vec::new();
    frame.raster.change_floats(|values| pixels = values.as_chunks::<3>().0.to_vec());
    let Target { boxes, labels, masks } = frame.target;
    Plain { size, pixels, boxes, labels, masks: masks.iter().flatten().map(InstanceMask::bitmap).collect() }
}

impl Plain {
    /// The image whose pixel at a place is the pixel of this one at another place.
    fn taken(&self, size: Size, from: impl Fn(usize, usize) -> (usize, usize)) -> Self {
        let place = |i: usize| {
            let (y, x) = from(i / size.1, i % size.1);
            y * self.size.1 + x
        };
        let places: Vec<usize> = (0..size.0 * size.1).map(place).collect();
        Self {
            size,
            pixels: places.iter().map(|&at| self.pixels[at]).collect(),
            masks: self.masks.iter().map(|mask| places.iter().map(|&at| mask[at]).collect()).collect(),
            ..self.clone()
        }
    }

    /// `BitmapMasks.get_bboxes`.
    fn bounds(&self, mask: &[u8]) -> [f32; 4] {
        let set = || (0..mask.len()).filter(|&i| mask[i] == 1).map(|i| (i / self.size.1, i % self.size.1));
        let (Some(top), Some(left)) = (set().map(|p| p.0).min(), set().map(|p| p.1).min()) else { return [0.0; 4] };
        let (bottom, right) = (set().map(|p| p.0).max().unwrap() + 1, set().map(|p| p.1).max().unwrap() + 1);
        [left, top, right, bottom].map(|side| side as f32)
    }

    fn kept(&self, keep: impl Fn(usize) -> bool) -> Self {
        let numbers: Vec<usize> = (0..self.boxes.len()).filter(|&i| keep(i)).collect();
        Self {
            boxes: numbers.iter().map(|&i| self.boxes[i]).collect(),
            labels: numbers.iter().map(|&i| self.labels[i]).collect(),
            masks: numbers.iter().map(|&i| self.masks[i].clone()).collect(),
            ..self.clone()
        }
    }
}

/// Noise with `objects` rectangles (or noisy masks inside them), whose boxes are those of the masks.
fn frame(random: &mut Generator, size: Size, objects: usize, solid: bool) -> Frame {
    let rgb = (0..size.0 * size.1 * 3).map(|_| random.below(256) as u8).collect();
    let mut target = Target::default();
    for label in 0..objects {
        let (y, x) = (random.below(size.0), random.below(size.1));
        let (height, width) = (1 + random.below(size.0 - y), 1 + random.below(size.1 - x));
        let mut pixels: Vec<u8> = (0..height * width).map(|_| u8::from(solid || random.below(3) > 0)).collect();
        (pixels[0], pixels[height * width - 1]) = (1, 1);
        target.masks.push(Some(InstanceMask { frame: size, x, y, width, height, pixels: pixels.into() }));
        target.boxes.push([x, y, x + width, y + height].map(|side| side as f32));
        target.labels.push(label as i64);
    }
    Frame::new(rgb, size, target)
}

fn choice<A: Augment>(augmentation: &A, frame: &Frame, random: &mut Generator) -> A::Choice {
    let mut other = |_: &mut Generator| Err(fnet_common::Error::bug("no other image"));
    augmentation.draw(frame, &mut Draws { random, other: &mut other }).unwrap()
}

fn flipped(before: &Plain, direction: Direction) -> Plain {
    let (height, width) = before.size;
    let (h, w) = (height as f32, width as f32);
    let from = |y: usize, x: usize| match direction {
        Direction::Horizontal => (y, width - 1 - x),
        Direction::Vertical => (height - 1 - y, x),
        Direction::Diagonal => (height - 1 - y, width - 1 - x),
    };
    let map = |&[x1, y1, x2, y2]: &[f32; 4]| match direction {
        Direction::Horizontal => [w - x2, y1, w - x1, y2],
        Direction::Vertical => [x1, h - y2, x2, h - y1],
        Direction::Diagonal => [w - x2, h - y2, w - x1, h - y1],
    };
    Plain { boxes: before.boxes.iter().map(map).collect(), ..before.taken(before.size, from) }
}

fn cropped(before: &Plain, crop: &RandomCrop, window: Window) -> Option<Plain> {
    let (left, top) = (window.x as f32, window.y as f32);
    let (height, width) = (window.height as f32, window.width as f32);
    let mut after = before.taken((window.height, window.width), |y, x| (y + window.y, x + window.x));
    for b in &mut after.boxes {
        *b = [b[0] - left, b[1] - top, b[2] - left, b[3] - top];
        if crop.bbox_clip_border {
            *b = [b[0].clamp(0.0, width), b[1].clamp(0.0, height), b[2].clamp(0.0, width), b[3].clamp(0.0, height)];
        }
    }
    let boxes = after.boxes.clone();
    after = after.kept(|i| boxes[i][2] > boxes[i][0] && boxes[i][3] > boxes[i][1]);
    if after.boxes.is_empty() && !crop.allow_negative_crop {
        return None;
    }
    if crop.recompute_bbox {
        after.boxes = after.masks.iter().map(|mask| after.bounds(mask)).collect();
        let masks = after.masks.clone();
        after = after.kept(|i| masks[i].contains(&1));
    }
    Some(after)
}

fn pasted(before: &Plain, source: &Plain, selected: &[usize], paste: &CopyPaste) -> Plain {
    if selected.is_empty() {
        return before.clone();
    }
    let any = |at: usize| selected.iter().any(|&i| source.masks[i][at] == 1);
    let mut after = before.clone();
    for at in 0..before.pixels.len() {
        if any(at) {
            after.pixels[at] = source.pixels[at];
            after.masks.iter_mut().for_each(|mask| mask[at] = 0);
        }
    }
    after.boxes = after.masks.iter().map(|mask| after.bounds(mask)).collect();
    let (boxes, masks) = (after.boxes.clone(), after.masks.clone());
    after = after.kept(|i| {
        let near =
            (0..4).all(|side| f64::from((boxes[i][side] - before.boxes[i][side]).abs()) <= paste.bbox_occluded_thr);
        near || masks[i].iter().map(|&pixel| usize::from(pixel)).sum::<usize>() > paste.mask_occluded_thr
    });
    for &i in selected {
        after.boxes.push(source.boxes[i]);
        after.labels.push(source.labels[i]);
        after.masks.push(source.masks[i].clone());
    }
    after
}

/// `PhotoMetricDistortion` step by step in float64.
fn jittered(pixel: [f32; 3], choice: &color_jitter::Choice) -> [f64; 3] {
    let mut rgb = pixel.map(f64::from);
    let eps = f64::from(f32::EPSILON);
    rgb = rgb.map(|v| v + f64::from(choice.brightness.unwrap_or(0.0)));
    let factor = f64::from(choice.contrast.unwrap_or(1.0));
    if choice.contrast_first {
        rgb = rgb.map(|v| v * factor);
    }
    let [r, g, b] = rgb;
    let value = r.max(g).max(b);
    let distance = value - r.min(g).min(b);
    let mut saturation = distance / (value.abs() + eps);
    let mut hue = match value {
        _ if value == r => 60.0 * (g - b) / (distance + eps),
        _ if value == g => 120.0 + 60.0 * (b - r) / (distance + eps),
        _ => 240.0 + 60.0 * (r - g) / (distance + eps),
    };
    hue += if hue < 0.0 { 360.0 } else { 0.0 };
    saturation *= f64::from(choice.saturation.unwrap_or(1.0));
    hue += f64::from(choice.hue.unwrap_or(0.0));
    hue = if hue > 360.0 { hue - 360.0 } else { hue };
    hue = if hue < 0.0 { hue + 360.0 } else { hue };
    // The textbook's form: each channel has a phase on the color circle.
    rgb = [5.0, 3.0, 1.0].map(|phase: f64| {
        let k = (phase + hue / 60.0) % 6.0;
        value - value * saturation * k.min(4.0 - k).clamp(0.0, 1.0)
    });
    if !choice.contrast_first {
        rgb = rgb.map(|v| v * factor);
    }
    if let Some(order) = choice.swap {
        let bgr = [rgb[2], rgb[1], rgb[0]];
        let swapped = order.map(|from| bgr[from]);
        rgb = [swapped[2], swapped[1], swapped[0]];
    }
    rgb
}

const DIRECTIONS: [Direction; 3] = [Direction::Horizontal, Direction::Vertical, Direction::Diagonal];

fn sizes() -> impl Strategy<Value = Size> {
    (1usize..24, 1usize..24)
}

proptest! {
    #[test]
    fn a_flip_moves_pixels_boxes_and_masks_and_a_second_one_restores_them(
        seed: u64, size in sizes(), objects in 0usize..4, direction in 0usize..3
    ) {
        let before = frame(&mut Generator::from_seed(seed), size, objects, false);
        let direction = DIRECTIONS[direction];
        let mut after = before.clone();
        prop_assert!(Flip::default().apply(Some(direction), &mut after));
        prop_assert_eq!(plain(&after), flipped(&plain(&before), direction));
        prop_assert_eq!(after.flipped, direction != Direction::Vertical);
        prop_assert!(Flip::default().apply(Some(direction), &mut after));
        prop_assert_eq!(plain(&after), plain(&before));
        prop_assert!(!after.flipped);
    }

    #[test]
    fn a_resized_image_has_scaled_boxes_and_the_nearest_pixels_of_masks(
        seed: u64, size in sizes(), objects in 0usize..4, scale in (1usize..60, 1usize..60), keep_ratio: bool
    ) {
        let resize = Resize { keep_ratio, ..Resize::default() };
        let before = frame(&mut Generator::from_seed(seed), size, objects, false);
        let mut after = before.clone();
        prop_assert!(resize.apply([scale.0, scale.1], &mut after));
        let new = if keep_ratio { rescaled_size(size, [scale.0, scale.1]) } else { (scale.1, scale.0) };
        let (rows, columns) = (nearest(size.0, new.0), nearest(size.1, new.1));
        let mut expected = plain(&before).taken(new, |y, x| (rows[y], columns[x]));
        let (sx, sy) = ((new.1 as f64 / size.1 as f64) as f32, (new.0 as f64 / size.0 as f64) as f32);
        for b in &mut expected.boxes {
            let x = |x: f32| (x * sx).max(0.0).min(new.1 as f32);
            let y = |y: f32| (y * sy).max(0.0).min(new.0 as f32);
            *b = [x(b[0]), y(b[1]), x(b[2]), y(b[3])];
        }
        let Values::Bytes(rgb) = before.raster.clone().into_values() else { panic!("no bytes") };
        let resized = Bilinear::new(size, new).apply(&rgb);
        expected.pixels = resized.chunks_exact(3).map(|p| [p[0], p[1], p[2]].map(f32::from)).collect();
        prop_assert_eq!(plain(&after), expected);
        prop_assert_eq!(after.scale_factor, [sx, sy, sx, sy]);
    }

    #[test]
    fn a_crop_keeps_what_the_rule_says(
        seed: u64, size in sizes(), objects in 0usize..4, kind in 0usize..4, flags: [bool; 3], part in (0.1f64..1.0, 0.1f64..1.0),
        pixels in (1usize..30, 1usize..30), resized: bool
    ) {
        let crop_type = [CropType::Absolute, CropType::AbsoluteRange, CropType::Relative, CropType::RelativeRange][kind];
        let [allow_negative_crop, bbox_clip_border, recompute_bbox] = flags;
        let (low, high) = (pixels.0.min(pixels.1), pixels.0.max(pixels.1));
        let crop_size = match crop_type {
            CropType::Absolute => [pixels.0 as f64, pixels.1 as f64],
            CropType::AbsoluteRange => [low as f64, high as f64],
            _ => [part.0, part.1],
        };
        let crop = RandomCrop { crop_type, crop_size, allow_negative_crop, bbox_clip_border, recompute_bbox };
        let mut random = Generator::from_seed(seed);
        let mut before = frame(&mut random, size, objects, false);
        if resized {
            // The crop then computes its part only.
            before.target = Target::default();
            before.raster.resize((size.0 * 2 + 1, size.1 + 3));
        }
        let (height, width) = before.raster.size();
        let window = choice(&crop, &before, &mut random);
        let (h, w) = (window.height, window.width);
        prop_assert!(h >= 1 && w >= 1 && window.y + h <= height && window.x + w <= width);
        match crop_type {
            CropType::Absolute => prop_assert_eq!((h, w), (pixels.0.min(height), pixels.1.min(width))),
            CropType::AbsoluteRange => {
                prop_assert!((low.min(height)..=high.min(height)).contains(&h) && (low.min(width)..=high.min(width)).contains(&w));
            }
            CropType::Relative => {
                let part = |side: usize, part: f64| ((side as f64 * part + 0.5) as usize).max(1);
                prop_assert_eq!((h, w), (part(height, part_of(&crop, 0)), part(width, part_of(&crop, 1))));
            }
            CropType::RelativeRange => {
                prop_assert!(h as f64 + 0.51 >= height as f64 * crop_size[0] && w as f64 + 0.51 >= width as f64 * crop_size[1]);
            }
        }
        let mut after = before.clone();
        let used = crop.apply(window, &mut after);
        match cropped(&plain(&before), &crop, window) {
            Some(expected) => prop_assert!(used && plain(&after) == expected),
            None => prop_assert!(!used),
        }
    }

    #[test]
    fn pasted_objects_cover_what_was_there(
        seed: u64, size in sizes(), objects in 0usize..5, others in 0usize..5, moved in 0usize..12, area in 0usize..60, max in 1usize..6,
        selected: bool, floats: bool
    ) {
        let paste = CopyPaste {
            max_num_pasted: max, bbox_occluded_thr: moved as f64, mask_occluded_thr: area, selected,
        };
        let mut random = Generator::from_seed(seed);
        let before = frame(&mut random, size, objects, false);
        let mut source = frame(&mut random, size, others, false);
        source.target.labels.iter_mut().for_each(|label| *label += 100);
        if floats {
            source.raster.change_floats(|values| values.iter_mut().for_each(|value| *value += 0.5));
        }
        let mut other = |_: &mut Generator| Ok(source.clone());
        let drawn = paste.draw(&before, &mut Draws { random: &mut random, other: &mut other }).unwrap();
        let mut numbers = drawn.selected.clone();
        let count = numbers.len();
        let fits = if selected { count < max && count <= others } else { count == others };
        prop_assert!(fits, "{} of {}", count, others);
        numbers.sort_unstable();
        numbers.dedup();
        prop_assert_eq!(numbers.len(), drawn.selected.len());
        let expected = pasted(&plain(&before), &plain(&source), &drawn.selected, &paste);
        let mut after = before.clone();
        prop_assert!(paste.apply(drawn, &mut after));
        prop_assert_eq!(plain(&after), expected);
    }

    #[test]
    fn colors_change_as_the_steps_one_by_one_say(seed: u64, tint in 0usize..4) {
        let mut random = Generator::from_seed(seed);
        let mut before = frame(&mut random, (4, 5), 0, true);
        // Also gray pixels and pixels of the primary colors, which have no hue or one at a border.
        before.raster.change_floats(|values| values.as_chunks_mut::<3>().0.iter_mut().for_each(|pixel| match tint {
            0 => *pixel = [pixel[0]; 3],
            1 => *pixel = pixel.map(|value| if value > 128.0 { 255.0 } else { 0.0 }),
            _ => {}
        }));
        let jitter = ColorJitter::default();
        let choice = choice(&jitter, &before, &mut random);
        let mut after = before.clone();
        prop_assert!(jitter.apply(choice.clone(), &mut after));
        for (new, old) in plain(&after).pixels.iter().zip(&plain(&before).pixels) {
            for (new, expected) in new.iter().zip(jittered(*old, &choice)) {
                prop_assert!((f64::from(*new) - expected).abs() < 2e-3 * (1.0 + expected.abs()), "{:?} {:?} {:?}", new, expected, choice);
            }
        }
    }

    #[test]
    fn boxes_are_those_of_the_masks_within_a_pixel_after_any_chain(
        seed: u64, size in sizes(), steps in prop::collection::vec(0usize..5, 0..6), scale in 8usize..40, objects in 1usize..5
    ) {
        let mut random = Generator::from_seed(seed);
        let resize = Resize { scales: vec![[scale, scale]], ratio_range: [0.5, 2.0], ..Resize::default() };
        let crop = RandomCrop {
            crop_type: CropType::RelativeRange, crop_size: [0.4, 0.4], allow_negative_crop: true,
            // Covered masks are no rectangles any more.
            recompute_bbox: steps.contains(&4), ..RandomCrop::default()
        };
        let paste = CopyPaste { bbox_occluded_thr: 1.0, mask_occluded_thr: 3, ..CopyPaste::default() };
        let flip = Flip { probabilities: vec![0.3; 3], directions: DIRECTIONS.to_vec() };
        let mut list = vec![Augmentation::Resize(resize)];
        for step in steps {
            match step {
                0 | 1 => list.push(Augmentation::Flip(flip.clone())),
                2 => list.push(Augmentation::RandomCrop(crop.clone())),
                3 => list.push(Augmentation::ColorJitter(ColorJitter::default())),
                _ => list.extend([
                    Augmentation::Pad(Pad { size: [90, 100] }), Augmentation::CopyPaste(paste.clone()),
                ]),
            }
        }
        let mut result = frame(&mut random, size, objects, true);
        let mut other = |random: &mut Generator| {
            let mut other = frame(random, (90, 100), 3, true);
            other.raster.change_floats(|_| {});
            Ok(other)
        };
        let used = run(&list, &mut result, Draws { random: &mut random, other: &mut other });
        prop_assert!(used.unwrap());
        let result = plain(&result);
        prop_assert_eq!(result.boxes.len(), result.masks.len());
        for (b, mask) in result.boxes.iter().zip(&result.masks) {
            prop_assert!(b[0] >= 0.0 && b[1] >= 0.0 && b[2] <= result.size.1 as f32 && b[3] <= result.size.0 as f32);
            if mask.contains(&1) {
                let bounds = result.bounds(mask);
                prop_assert!(b.iter().zip(bounds).all(|(a, b)| (a - b).abs() <= 1.001), "{:?} {:?}", b, bounds);
            } else {
                prop_assert!(b[2] - b[0] <= 1.001 || b[3] - b[1] <= 1.001, "{:?} has no pixel", b);
            }
        }
    }
}

fn part_of(crop: &RandomCrop, side: usize) -> f64 {
    crop.crop_size[side]
}

#[test]
fn flips_are_drawn_with_their_probabilities() {
    let flip = Flip { probabilities: vec![0.1, 0.2, 0.3], directions: DIRECTIONS.to_vec() };
    let image = frame(&mut Generator::from_seed(0), (3, 4), 0, true);
    let mut random = Generator::from_seed(1);
    let mut counts = [0; 4];
    for _ in 0..4000 {
        let mut copy = random.clone();
        let number = copy.uniform();
        let drawn = choice(&flip, &image, &mut random);
        assert_eq!(
            drawn,
            [(0.1, 0), (0.3, 1), (0.6, 2)].iter().find(|(end, _)| number < *end).map(|&(_, i)| DIRECTIONS[i])
        );
        counts[drawn.map_or(3, |direction| DIRECTIONS.iter().position(|other| *other == direction).unwrap())] += 1;
    }
    for (count, expected) in counts.into_iter().zip([400, 800, 1200, 1600]) {
        assert!((expected - 150..expected + 150).contains(&count), "{counts:?}");
    }
}

#[test]
fn a_ratio_multiplies_the_scale_and_is_rounded_down() {
    let resize = Resize { scales: vec![[1024, 512]], ratio_range: [0.1, 2.0], ..Resize::default() };
    let image = frame(&mut Generator::from_seed(0), (3, 4), 0, true);
    let mut random = Generator::from_seed(1);
    for _ in 0..200 {
        let ratio = 0.1 + (2.0 - 0.1) * random.clone().uniform();
        let drawn = choice(&resize, &image, &mut random);
        assert_eq!(drawn, [(1024.0 * ratio) as usize, (512.0 * ratio) as usize]);
    }
    let doubled = Resize { ratio_range: [2.0, 2.0], ..resize.clone() };
    assert_eq!(choice(&doubled, &image, &mut random), [2048, 1024]);
    let modes = [(ScaleMode::Value, 2), (ScaleMode::Range, 100)];
    for (scale_mode, least) in modes {
        let several = Resize { scales: vec![[1000, 400], [1333, 800]], scale_mode, ..Resize::default() };
        let drawn: Vec<_> = (0..400).map(|_| choice(&several, &image, &mut random)).collect();
        assert!(drawn.iter().all(|s| (1000..=1333).contains(&s[0]) && (400..=800).contains(&s[1])));
        let different: std::collections::HashSet<_> = drawn.iter().collect();
        assert!(different.len() >= least && (scale_mode == ScaleMode::Range || different.len() == 2));
    }
}

/// The order of all random numbers, written down from MMDetection.
#[test]
fn color_changes_are_drawn_in_order() {
    let jitter = ColorJitter::default();
    let image = frame(&mut Generator::from_seed(0), (3, 4), 0, true);
    let mut seen = [0; 6];
    for seed in 0..300 {
        let mut numbers = Generator::from_seed(seed);
        let number = |numbers: &mut Generator, low: f64, high: f64| {
            (numbers.next_u32() % 2 == 1).then(|| (low + (high - low) * numbers.uniform()) as f32)
        };
        let brightness = number(&mut numbers, -32.0, 32.0);
        let first = numbers.next_u32() % 2 == 1;
        let early = if first { number(&mut numbers, 0.5, 1.5) } else { None };
        let saturation = number(&mut numbers, 0.5, 1.5);
        let hue = number(&mut numbers, -18.0, 18.0);
        let late = if first { None } else { number(&mut numbers, 0.5, 1.5) };
        let swap = (numbers.next_u32() % 2 == 1).then(|| <[usize; 3]>::try_from(numbers.permutation(3)).unwrap());
        let drawn = choice(&jitter, &image, &mut Generator::from_seed(seed));
        let expected =
            color_jitter::Choice { brightness, contrast_first: first, contrast: early.or(late), saturation, hue, swap };
        assert_eq!(drawn, expected);
        let on = [
            brightness.is_some(),
            first,
            drawn.contrast.is_some(),
            saturation.is_some(),
            hue.is_some(),
            swap.is_some(),
        ];
        seen.iter_mut().zip(on).for_each(|(count, on)| *count += i32::from(on));
    }
    assert!(seen.iter().all(|count| (110..190).contains(count)), "{seen:?}");
}

/// Numbers of OpenCV 4.10: `cvtColor` of float32 values to HSV and back, with saturation times 1.4 and hue plus 15.
#[test]
fn colors_equal_those_of_opencv() {
    let choice = color_jitter::Choice { saturation: Some(1.4), hue: Some(15.0), ..color_jitter::Choice::default() };
    let cases: Vec<[[f32; 3]; 2]> = serde_json::from_str(include_str!("../../tests/fixtures/opencv_hsv.json")).unwrap();
    let rgb: Vec<f32> = cases.iter().flat_map(|case| case[0]).collect();
    let mut image = Frame::new(Vec::new(), (1, cases.len()), Target::default());
    image.raster = Raster::new(Values::Floats(rgb), (1, cases.len()));
    assert!(ColorJitter::default().apply(choice, &mut image));
    for (new, [old, expected]) in plain(&image).pixels.iter().zip(&cases) {
        for (new, expected) in new.iter().zip(expected) {
            assert!((new - expected).abs() <= 1e-4 * (1.0 + expected.abs()), "{old:?}: {new} for {expected}");
        }
    }
    assert!(cases.len() > 50);
}

#[test]
fn padding_stays_zero_at_the_end_and_is_part_of_the_image_for_what_follows() {
    let mut random = Generator::from_seed(3);
    let pad = Pad { size: [10, 12] };
    let mut image = frame(&mut random, (6, 7), 1, true);
    let before = plain(&image);
    assert!(pad.apply((), &mut image));
    assert_eq!((image.raster.size(), image.padding), ((6, 7), Some((10, 12))));
    let flip = Flip { probabilities: vec![1.0], directions: vec![Direction::Horizontal] };
    let mut other = |_: &mut Generator| Err(fnet_common::Error::bug("no other image"));
    let draws = Draws { random: &mut random, other: &mut other };
    assert!(run(&[Augmentation::Flip(flip)], &mut image, draws).unwrap());
    let after = plain(&image);
    assert_eq!((after.size, image.padding), ((10, 12), None));
    assert_eq!(after.pixels[0], [0.0; 3]);
    assert_eq!(after.pixels[11], before.pixels[0]);
    assert_eq!(
        after.boxes[0],
        [12.0 - before.boxes[0][2], before.boxes[0][1], 12.0 - before.boxes[0][0], before.boxes[0][3]]
    );
}

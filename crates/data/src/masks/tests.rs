use hotcoco::mask::{decode, encode};
use proptest::prelude::*;

use super::*;

#[test]
fn a_box_inside_its_mask_is_foreground_and_a_box_outside_is_background() {
    let mask = InstanceMask { frame: (64, 64), x: 10, y: 10, width: 20, height: 20, pixels: vec![1; 400].into() };
    let boxes = [[12.0, 12.0, 28.0, 28.0], [40.0, 40.0, 60.0, 60.0], [10.0, 10.0, 10.0, 10.0]];
    let targets = mask_targets(&[&mask, &mask, &mask], &boxes, 28);
    assert!(targets[..784].iter().all(|&v| v == 1));
    assert!(targets[784..].iter().all(|&v| v == 0), "an empty box has no sample, so its average is 0");
}

/// RoIAlign of the whole bitmap, straight from the definition.
fn pooled(mask: &InstanceMask, b: [f32; 4], size: usize) -> Vec<f32> {
    let full = mask.bitmap();
    let (h, w) = mask.frame;
    let (x1, y1) = (b[0].clamp(0.0, w as f32) - 0.5, b[1].clamp(0.0, h as f32) - 0.5);
    let (bw, bh) =
        ((b[2].clamp(0.0, w as f32) - 0.5 - x1) / size as f32, (b[3].clamp(0.0, h as f32) - 0.5 - y1) / size as f32);
    let (nx, ny) = (bw.ceil().max(0.0) as usize, bh.ceil().max(0.0) as usize);
    let value = |y: f32, x: f32| {
        if y < -1.0 || y > h as f32 || x < -1.0 || x > w as f32 {
            return 0.0;
        }
        let (y, x) = (y.max(0.0).min((h - 1) as f32), x.max(0.0).min((w - 1) as f32));
        let at = |y: usize, x: usize| f32::from(full[y.min(h - 1) * w + x.min(w - 1)]);
        let (y0, x0, fy, fx) = (y as usize, x as usize, y.fract(), x.fract());
        at(y0, x0) * (1.0 - fy) * (1.0 - fx)
            + at(y0, x0 + 1) * (1.0 - fy) * fx
            + at(y0 + 1, x0) * fy * (1.0 - fx)
            + at(y0 + 1, x0 + 1) * fy * fx
    };
    let mut out = Vec::new();
    for i in 0..size {
        for j in 0..size {
            let mut sum = 0.0;
            for iy in 0..ny {
                for ix in 0..nx {
                    sum += value(
                        y1 + (i as f32 + (iy as f32 + 0.5) / ny as f32) * bh,
                        x1 + (j as f32 + (ix as f32 + 0.5) / nx as f32) * bw,
                    );
                }
            }
            out.push(sum / (nx * ny).max(1) as f32);
        }
    }
    out
}

proptest! {
    #[test]
    fn the_window_equals_resizing_the_whole_bitmap(
        h in 1usize..20, w in 1usize..20, new_h in 1usize..40, new_w in 1usize..40, flip: bool, seed: u64, density in 1usize..9
    ) {
        let mut random = fnet_common::random::Generator::from_seed(seed);
        let column_major: Vec<u8> = (0..h * w).map(|_| u8::from(random.below(10) < density)).collect();
        let rle = encode(&column_major, h as u32, w as u32).unwrap();
        prop_assert_eq!(decode(&rle), column_major.clone());
        let frame = (new_h + 3, new_w + 5);
        let mask = instance_mask(&rle, (new_h, new_w), flip, frame);
        let full = mask.bitmap();
        let (rows, columns) = (nearest(h, new_h), nearest(w, new_w));
        for y in 0..frame.0 {
            for x in 0..frame.1 {
                let expected = if y < new_h && x < new_w {
                    let x = if flip { new_w - 1 - x } else { x };
                    column_major[columns[x] * h + rows[y]]
                } else { 0 };
                prop_assert_eq!(full[y * frame.1 + x], expected, "{} {}", y, x);
            }
        }
        // If no row is lost, the window is tight.
        if mask.width > 0 && new_h >= h && new_w >= w {
            let row = |y: usize| mask.pixels[y * mask.width..(y + 1) * mask.width].contains(&1);
            prop_assert!(row(0) && row(mask.height - 1));
        }
    }

    #[test]
    fn targets_equal_pooling_the_whole_bitmap(
        seed: u64, x in -5f32..40.0, y in -5f32..40.0, w in 0f32..60.0, h in 0f32..60.0
    ) {
        let mut random = fnet_common::random::Generator::from_seed(seed);
        let pixels: Vec<u8> = (0..12 * 9).map(|_| random.below(2) as u8).collect();
        let mask = InstanceMask { frame: (40, 48), x: 20, y: 15, width: 12, height: 9, pixels: pixels.into() };
        let object = [x, y, x + w, y + h];
        let targets = mask_targets(&[&mask], &[object], 7);
        for (target, average) in targets.iter().zip(pooled(&mask, object, 7)) {
            // Near the threshold, rounding may give either value.
            prop_assert!((average - 0.5).abs() < 1e-4 || *target == u8::from(average >= 0.5));
        }
    }
}

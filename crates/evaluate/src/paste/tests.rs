use hotcoco::mask;
use proptest::prelude::*;

use super::*;

/// The whole image, sampled pixel by pixel by MMDetection's rule.
fn naive(square: &[f32], side: usize, [x1, y1, x2, y2]: [f32; 4], size: (usize, usize), threshold: f32) -> Vec<u8> {
    let (height, width) = size;
    let value = |row: f32, column: f32| {
        let range = 0.0..side as f32;
        if range.contains(&row) && range.contains(&column) {
            square[row as usize * side + column as usize]
        } else {
            0.0
        }
    };
    let locate = |pixel: usize, low: f32, high: f32| {
        let grid = (pixel as f32 + 0.5 - low) / (high - low) * 2.0 - 1.0;
        let grid = if grid.is_infinite() { 0.0 } else { grid };
        (grid + 1.0) * (side as f32 / 2.0) - 0.5
    };
    let (left, right) = ((x1.floor() - 1.0).max(0.0), (x2.ceil() + 1.0).min(width as f32));
    let (top, bottom) = ((y1.floor() - 1.0).max(0.0), (y2.ceil() + 1.0).min(height as f32));
    let mut bitmap = vec![0; height * width];
    for column in left as usize..(right.max(0.0) as usize) {
        for row in top as usize..(bottom.max(0.0) as usize) {
            let (x, y) = (locate(column, x1, x2), locate(row, y1, y2));
            let (west, north) = (x.floor(), y.floor());
            let (w, n) = (x - west, y - north);
            let (e, s) = (1.0 - w, 1.0 - n);
            let sampled = value(north, west) * (s * e)
                + value(north, west + 1.0) * (s * w)
                + value(north + 1.0, west) * (n * e)
                + value(north + 1.0, west + 1.0) * (n * w);
            bitmap[column * height + row] = u8::from(sampled >= threshold);
        }
    }
    bitmap
}

fn squares(side: usize) -> impl Strategy<Value = Vec<f32>> {
    let cell = prop_oneof![3 => 0.0..1.0_f32, 2 => Just(0.0), 2 => Just(1.0), 1 => Just(0.5), 1 => Just(f32::NAN)];
    prop::collection::vec(cell, side * side)
}

fn boxes() -> impl Strategy<Value = [f32; 4]> {
    let coordinate = prop_oneof![4 => -20.0..90.0_f32, 1 => (0_u8..80).prop_map(f32::from)];
    let extent = prop_oneof![4 => 0.0..90.0_f32, 1 => Just(0.0), 1 => 0.0..0.01_f32];
    (coordinate.clone(), coordinate, extent.clone(), extent).prop_map(|(x, y, w, h)| [x, y, x + w, y + h])
}

proptest! {
    #[test]
    fn run_lengths_equal_an_image_sampled_pixel_by_pixel(
        square in squares(5), bounds in boxes(), height in 1_usize..70, width in 1_usize..70,
        threshold in prop_oneof![Just(0.5_f32), 0.01..0.99_f32],
    ) {
        let pasted = paste(&square, 5, bounds, (height, width), threshold);
        let expected = naive(&square, 5, bounds, (height, width), threshold);
        prop_assert_eq!(pasted.counts.iter().map(|&c| c as usize).sum::<usize>(), height * width);
        prop_assert_eq!(&mask::encode(&expected, height as u32, width as u32).unwrap().counts, &pasted.counts);
    }

    #[test]
    fn boxes_of_any_bits_give_run_lengths_that_cover_the_image(
        bits in prop::array::uniform4(any::<u32>()), height in 1_usize..40, width in 1_usize..40,
    ) {
        let pasted = paste(&[0.9; 16], 4, bits.map(f32::from_bits), (height, width), 0.5);
        prop_assert_eq!(pasted.counts.iter().map(|&c| c as usize).sum::<usize>(), height * width);
    }
}

#[test]
fn a_full_mask_covers_its_box() {
    let pasted = paste(&[1.0; 784], 28, [10.0, 20.0, 30.0, 60.0], (100, 50), 0.5);
    assert_eq!(mask::area(&pasted), 20 * 40);
    assert_eq!(mask::to_bbox(&pasted), [10.0, 20.0, 20.0, 40.0]);
}

#[test]
fn an_image_too_large_for_run_lengths_is_an_error() {
    let probabilities = Probabilities { values: &[1.0; 4], side: 2 };
    let error = paste_all(probabilities, &[[0.0, 0.0, 9.0, 9.0]], (70_000, 70_000), 0.5).unwrap_err();
    assert_eq!(error.kind(), fnet_common::ErrorKind::Data);
}

#[test]
fn a_hundred_masks_of_a_huge_image_have_a_few_runs_per_column() {
    let blob: Vec<f32> = (0..784)
        .map(|cell| {
            let (x, y) = ((cell % 28) as f32 - 13.5, (cell / 28) as f32 - 13.5);
            1.0 / (1.0 + (x.hypot(y) - 11.0).exp())
        })
        .collect();
    let values = blob.repeat(100);
    let boxes = vec![[0.0, 0.0, 6000.0, 6000.0]; 100];
    let pasted = paste_all(Probabilities { values: &values, side: 28 }, &boxes, (6000, 6000), 0.5).unwrap();
    for rle in &pasted {
        assert_eq!(rle.counts.iter().map(|&c| u64::from(c)).sum::<u64>(), 36_000_000);
        assert!(rle.counts.len() < 2 * 6000, "{} runs", rle.counts.len());
        let share = mask::area(rle) as f64 / 36e6;
        assert!((share - std::f64::consts::PI * (11.0_f64 / 28.0).powi(2)).abs() < 0.01, "share {share}");
    }
}

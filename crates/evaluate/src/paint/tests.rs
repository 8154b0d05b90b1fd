use hotcoco::mask;
use image::Rgb;

use super::*;

fn object(label: usize, name: &str, bbox: [f32; 4], size: (u32, u32)) -> Object {
    let [x1, y1, x2, y2] = bbox.map(f64::from);
    let mask = mask::fr_bbox(&[x1, y1, x2 - x1, y2 - y1], size.1, size.0).unwrap();
    Object { label, name: name.into(), score: Some(0.87), bbox, mask: Some(mask), crowd: false }
}

#[test]
fn images_of_any_size_are_drawn_large_enough_for_text() {
    let painter = Painter::new().unwrap();
    for (width, height) in [(1, 1), (40, 50), (640, 480), (3000, 20), (20, 3000), (3000, 2000)] {
        let decoded = RgbImage::from_pixel(width, height, Rgb([90, 90, 90]));
        let bbox = [0.0, 0.0, width as f32 * 0.8, height as f32 * 0.8];
        let painted = painter.paint(&decoded, &[object(0, "cat", bbox, (width, height))]).unwrap();
        let (w, h) = painted.dimensions();
        assert!(w.min(h) >= 160 && (720..=2400).contains(&w.max(h)), "{width} x {height}: {w} x {h}");
        let color = color::of_class(0);
        let near =
            |p: &Rgb<u8>| p[0].abs_diff(color[0]) < 30 && p[1].abs_diff(color[1]) < 30 && p[2].abs_diff(color[2]) < 30;
        assert!(painted.pixels().filter(|pixel| near(pixel)).count() > 300, "{width} x {height}");
    }
}

#[test]
fn objects_with_nan_are_ignored_and_those_outside_do_no_harm() {
    let decoded = RgbImage::from_fn(800, 600, |x, y| Rgb([x as u8, y as u8, 7]));
    let mut objects = vec![object(3, "far", [10.0, 10.0, 20.0, 20.0], (800, 600)); 4];
    objects[0].bbox = [-1e9, -1e9, 1e9, 1e9];
    objects[1].bbox = [f32::NAN; 4];
    objects[3].bbox = [50.0, 50.0, 50.0, 50.0];
    objects[2].bbox = [2000.0, 2000.0, 2600.0, 2600.0];
    let painter = Painter::new().unwrap();
    assert_eq!(painter.paint(&decoded, &objects[1..2]).unwrap(), decoded);
    assert_eq!(painter.paint(&decoded, &objects).unwrap().dimensions(), (800, 600));
}

#[test]
fn masks_are_translucent_and_the_outside_is_unchanged() {
    let decoded = RgbImage::from_pixel(800, 600, Rgb([0, 0, 0]));
    let painted =
        Painter::new().unwrap().paint(&decoded, &[object(1, "dog", [200.0, 200.0, 600.0, 500.0], (800, 600))]).unwrap();
    let color = color::of_class(1);
    let inside = painted.get_pixel(400, 400);
    assert!(inside[1].abs_diff((f32::from(color[1]) * 0.38) as u8) < 4, "{inside:?} of {color:?}");
    assert_eq!(painted.get_pixel(100, 100), &Rgb([0, 0, 0]));
}

#[test]
fn ground_truth_and_prediction_are_side_by_side() {
    let decoded = RgbImage::from_pixel(720, 720, Rgb([9, 9, 9]));
    let painter = Painter::new().unwrap();
    let one = [object(0, "cat", [10.0, 10.0, 700.0, 700.0], (720, 720))];
    let both = painter.panels(&decoded, &[(&one, "ground truth"), (&[], "prediction")]).unwrap();
    assert!(both.width() > 1440 && both.height() > 720 && both.height() < 800);
    let below_the_title = both.height() - 360;
    assert_ne!(both.get_pixel(360, below_the_title), &Rgb([9, 9, 9]));
    assert_eq!(both.get_pixel(both.width() - 360, below_the_title), &Rgb([9, 9, 9]));
    let alone = painter.panels(&RgbImage::from_pixel(800, 300, Rgb([9; 3])), &[(&[], "a.jpg")]).unwrap();
    assert!(alone.width() == 800 && (301..400).contains(&alone.height()));
}

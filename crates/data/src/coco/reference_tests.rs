//! Compares real and unusual annotation files with numbers from pycocotools and from MMDetection's rules for training
//! objects.

use super::*;
use crate::Dataset;
use fnet_test_support::fixture;

/// Images, boxes, the sum of their right sides in float32, pixels of all masks.
type Train = (usize, usize, f64, u64);
/// Images, boxes, the sum of their right sides.
type Val = (usize, usize, f64);
/// Annotations, the sum of their areas, crowds.
type Truth = (usize, f64, usize);

/// The compared numbers of a set. `None` if MMDetection crashes.
struct Expected {
    /// Below `data/` of the test data.
    file: &'static str,
    train: Option<Train>,
    val: Option<Val>,
    truth: Option<Truth>,
}

/// One row of the table.
const fn row(file: &'static str, train: Option<Train>, val: Option<Val>, truth: Option<Truth>) -> Expected {
    Expected { file, train, val, truth }
}

/// The numbers of the valid set, in any spelling.
const SOUND: (Option<Train>, Option<Val>, Option<Truth>) =
    (Some((5, 12, 4037.1, 198_217)), Some((5, 12, 4037.1)), Some((12, 198_221.6, 0)));

#[rustfmt::skip]
const TABLE: &[Expected] = &[
    row("derived/broken_values/dup_image_dup_ann_orphan.json", Some((5, 13, 4277.4, 201_097)), Some((5, 13, 4277.4)), Some((13, 201_105.9, 0))),
    row("derived/broken_values/swapped_width_height.json", Some((5, 12, 4037.1, 168_646)), Some((5, 12, 4037.1)), Some((12, 198_221.6, 0))),
    row("derived/encodings/annotations.json", Some((20, 40, 12461.0, 1_326_400)), Some((20, 40, 12461.0)), Some((40, 1_325_981.9, 0))),
    row("derived/exif_rotated/display_coords.json", Some((1, 3, 745.5, 79304)), Some((1, 3, 745.5)), Some((3, 79325.3, 0))),
    row("derived/exif_rotated/stored_coords.json", Some((1, 3, 902.8, 79324)), Some((1, 3, 902.8)), Some((3, 79325.3, 0))),
    row("wild/coco_annotator_bools/coco.json", Some((4, 5, 3870.0, 1_348_067)), Some((4, 5, 3870.0)), Some((5, 1_348_067.0, 0))),
    row("wild/cvat_bbox_garbage/annotations/instances_default.json", Some((6, 28, 20166.0, 1_283_737)), Some((6, 28, 20166.0)), Some((29, 7_516_177.0, 0))),
    row("wild/datumaro_assets/coco_dataset/coco/annotations/instances_train.json", Some((0, 0, 0.0, 0)), Some((1, 1, 5.0)), Some((1, 3.0, 0))),
    row("wild/datumaro_assets/coco_dataset/coco/annotations/instances_val.json", Some((0, 0, 0.0, 0)), Some((1, 1, 1.0)), Some((2, 22.0, 1))),
    row("wild/datumaro_assets/coco_dataset/coco_roboflow/train/_annotations.coco.json", Some((0, 0, 0.0, 0)), Some((1, 1, 5.0)), Some((1, 3.0, 0))),
    row("wild/datumaro_assets/coco_dataset/coco_roboflow/val/_annotations.coco.json", Some((0, 0, 0.0, 0)), Some((1, 1, 1.0)), Some((2, 22.0, 1))),
    row("wild/deepsport_rle_folders/annotations/challenge.json", Some((0, 0, 0.0, 0)), Some((84, 0, 0.0)), Some((0, 0.0, 0))),
    row("wild/deepsport_rle_folders/annotations/val.json", Some((37, 344, 372_098.0, 2_207_219)), Some((37, 344, 372_098.0)), Some((344, 2_207_219.0, 0))),
    row("wild/labelme2coco_fruit/trainval.json", Some((18, 165, 72402.0, 1_781_490)), Some((18, 165, 72402.0)), Some((165, 1_781_449.2, 0))),
    row("wild/labelstudio_boxes_jpeg_as_png/result.json", None, Some((11, 11, 1076.8)), Some((11, 91431.6, 0))),
    row("wild/mmyolo_coco_sample/coco_sample.json", None, Some((4, 2, 40.0)), Some((7, 1600.1, 1))),
    row("wild/mmyolo_coco_sample/coco_sample_color.json", None, Some((4, 2, 40.0)), Some((7, 1600.1, 1))),
    row("wild/roboflow_applejunk/test/_annotations.coco.json", Some((12, 761, 224_363.0, 27348)), Some((12, 761, 224_363.0)), Some((761, 51669.5, 0))),
    row("wild/roboflow_applejunk/train/_annotations.coco.json", None, Some((7, 24, 7010.0)), Some((24, 1835.0, 0))),
    row("wild/roboflow_mixed_missing/train/_annotations.coco.json", None, Some((458, 389, 212_693.7)), Some((389, 92_048_707.4, 0))),
    row("wild/roboflow_size_off_by_one/test/_annotations.coco.json", None, Some((10, 88, 51255.7)), Some((88, 122_964.5, 0))),
    row("wild/roboflow_size_off_by_one/train/_annotations.coco.json", Some((8, 71, 81176.8, 71553)), Some((8, 71, 81176.8)), Some((71, 139_214.4, 0))),
    row("wild/roboflow_size_off_by_one/valid/_annotations.coco.json", Some((21, 277, 145_181.2, 219_002)), Some((21, 277, 145_181.2)), Some((277, 460_050.8, 0))),
    row("wild/roboflow_tiny_buildings/test/_annotations.coco.json", Some((23, 23, 1343.0, 47514)), Some((32, 32, 1589.0)), Some((32, 84722.0, 0))),
    row("wild/roboflow_tiny_buildings/train/_annotations.coco.json", Some((78, 78, 4749.0, 215_428)), Some((117, 117, 6010.0)), Some((118, 330_397.3, 0))),
    row("wild/roboflow_tiny_buildings/valid/_annotations.coco.json", Some((8, 8, 582.0, 30509)), Some((9, 9, 607.0)), Some((9, 43540.0, 0))),
    row("wild/sahi_terrain/combined_coco.json", Some((2, 12, 10307.0, 146_258)), Some((2, 12, 10307.0)), Some((12, 23_060_480.0, 0))),
    row("wild/sahi_terrain/terrain1_coco.json", Some((1, 7, 6904.0, 89398)), Some((1, 7, 6904.0)), Some((7, 19_568_640.0, 0))),
    row("wild/sahi_terrain/terrain2_coco.json", Some((1, 5, 3403.0, 56860)), Some((1, 5, 3403.0)), Some((5, 3_491_840.0, 0))),
    row("wild/taco_dup_ann_ids/annotations.json", Some((51, 148, 180_020.6, 29_005_841)), Some((51, 148, 180_020.6)), Some((148, 28_990_749.7, 0))),
];

/// Files equivalent to the valid one. MMDetection crashes on the last three or loses their objects.
const AS_SOUND: &[&str] = &[
    "derived/00_reference/annotations.json",
    "derived/mask_kinds/polygons.json",
    "derived/mask_kinds/rle_list.json",
    "derived/mask_kinds/rle_str.json",
    "derived/string_ids/annotations.json",
    "derived/string_ids/annotations_nonnumeric_ids.json",
    "derived/unicode_names/annotations.json",
    "derived/string_ids/annotations_mixed_str_int.json",
    "derived/unicode_names/annotations_raw_utf8_bom_crlf.json",
    "derived/broken_values/utf16.json",
];

fn open(file: &Path, split: Split) -> Dataset {
    let mut config = config::Data { root: "/".into(), ..Default::default() };
    let (name, folder) = (file.display().to_string(), file.parent().unwrap().display().to_string());
    (config.train[0].ann_file, config.train[0].img_prefix) = (name.clone(), folder.clone());
    (config.val.ann_file, config.val.img_prefix) = (name, folder);
    let (dataset, diagnostics) = Dataset::inspect(&config, split, 3);
    dataset.unwrap_or_else(|| panic!("{}: {:?}", file.display(), diagnostics.kept()))
}

fn right_sides(dataset: &Dataset) -> f64 {
    (0..dataset.len()).flat_map(|index| dataset.objects(index).boxes).map(|&[.., x2, _]| f64::from(x2)).sum()
}

fn mask_pixels(dataset: &Dataset) -> u64 {
    let of = |index| {
        let image = dataset.image(index);
        let draw = |mask: Segmentation| hotcoco::mask::area(&mask.to_rle((image.height, image.width)).unwrap());
        dataset.record(index).segmentations().unwrap().into_iter().flatten().map(draw).sum::<u64>()
    };
    (0..dataset.len()).map(of).sum()
}

/// Sums in the table have one decimal.
fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 0.051 + 1e-7 * b.abs()
}

fn compare(root: &Path, expected: &Expected) {
    let file = root.join("data").join(expected.file);
    let name = expected.file;
    if let Some((images, boxes, sum, pixels)) = expected.train {
        let set = open(&file, Split::Train);
        assert_eq!((set.len(), set.object_count()), (images, boxes), "{name}: images and boxes in training");
        assert!(close(right_sides(&set), sum), "{name}: right sides {}, expected {sum}", right_sides(&set));
        assert_eq!(mask_pixels(&set), pixels, "{name}: pixels of the masks");
    }
    if let Some((images, boxes, sum)) = expected.val {
        let set = open(&file, Split::Val);
        assert_eq!((set.len(), set.object_count()), (images, boxes), "{name}: images and boxes in validation");
        assert!(close(right_sides(&set), sum), "{name}: right sides {}, expected {sum}", right_sides(&set));
    }
    if let Some((count, area, crowds)) = expected.truth {
        let objects = open(&file, Split::Val).true_objects().unwrap();
        let found = (objects.len(), objects.iter().filter(|object| object.is_crowd).count());
        assert_eq!(found, (count, crowds), "{name}: objects and crowds of the ground truth");
        let sum = objects.iter().map(|object| object.area).sum();
        assert!(close(sum, area), "{name}: areas {sum}, expected {area}");
    }
}

#[test]
fn real_unusual_sets_are_read_as_in_mmdetection() {
    let Some(root) = fixture("") else { return };
    TABLE.iter().for_each(|expected| compare(&root, expected));
    let (train, val, truth) = SOUND;
    AS_SOUND.iter().for_each(|file| compare(&root, &Expected { file, train, val, truth }));
}

//! Stage "image transform": from the image to the network's input, with its boxes, labels and masks.

use tch::{Device, Tensor};

use fnet_data::{Batch, Bilinear, DecodedImage, ImageMeta, InstanceMask};

use super::compare::STAGE;
use super::fixtures::{Fixtures, Tensors, skip};
use super::image_files::{ImageFiles, rgb};
use super::report::Comparison;

const NAME: &str = "image transform";

fn check_geometry(compare: &Comparison<'_>, actual: &[ImageMeta], expected: &[ImageMeta]) {
    let facts = |meta: &ImageMeta| (meta.original_size, meta.image_size, meta.padded_size, meta.scale_factor);
    let facts = |metas: &[ImageMeta]| metas.iter().map(facts).collect::<Vec<_>>();
    compare.equal("sizes and scale factors", &facts(actual), &facts(expected));
}

/// `prefix` is the prefix of the stored objects.
fn check_objects(compare: &Comparison<'_>, files: &ImageFiles, batch: &Batch, data: &Tensors, prefix: &str) {
    if !files.annotated {
        skip(
            "the comparison of masks: the fixtures have no data/instances.json; fixtures_ops has masks from polygons on",
        );
    }
    for (image, target) in batch.targets.iter().enumerate() {
        let boxes = Tensor::from_slice(target.boxes.as_flattened()).reshape([-1, 4]);
        compare.tensor("boxes", &boxes, &data.get(&format!("{prefix}gt_bboxes.{image}")), STAGE);
        compare.equal("labels", &target.labels, &data.integers(&format!("{prefix}gt_labels.{image}")));
        if files.annotated {
            let bitmaps: Vec<u8> = target.masks.iter().flatten().flat_map(InstanceMask::bitmap).collect();
            let expected = data.get(&format!("{prefix}gt_masks.{image}")).reshape([-1]);
            compare.equal("masks", &bitmaps, &Vec::<u8>::try_from(expected).unwrap());
        }
    }
}

#[test]
fn parity_image_decoding() {
    let Some(fixtures) = Fixtures::open() else { return };
    let files = ImageFiles::open(&fixtures);
    if !files.annotated {
        return skip("the fixtures have no data/images");
    }
    let data = fixtures.tensors("data");
    for (image, path) in files.paths().iter().enumerate() {
        let decoded = DecodedImage::read(path).unwrap();
        fixtures.compare(NAME).equal("decoded pixels", &decoded.rgb, &rgb(&data, image).2);
    }
}

#[test]
fn parity_image_resizing() {
    let Some(fixtures) = Fixtures::open() else { return };
    let data = fixtures.tensors("data");
    for image in 0..fixtures.metas("img_metas").len() {
        let (width, height, pixels) = rgb(&data, image);
        let expected = data.get(&format!("resized_bgr_u8.{image}"));
        let (new_height, new_width, _) = expected.size3().unwrap();
        let plan = Bilinear::new((height as usize, width as usize), (new_height as usize, new_width as usize));
        let expected: Vec<u8> = Vec::try_from(expected.flip([2]).reshape([-1])).unwrap();
        fixtures.compare(NAME).equal("resized pixels", &plan.apply(&pixels), &expected);
    }
}

#[test]
fn parity_image_batch() {
    let Some(fixtures) = Fixtures::open() else { return };
    let (files, data, compare) = (ImageFiles::open(&fixtures), fixtures.tensors("data"), fixtures.compare(NAME));
    let batch = files.batch(false);
    compare.tensor("normalized and padded batch", &batch.images.values(Device::Cpu).unwrap(), &data.get("img"), STAGE);
    check_geometry(&compare, &batch.metas, &fixtures.metas("img_metas"));
    check_objects(&compare, &files, &batch, &data, "");
    let flags: Vec<u8> = serde_json::from_value(fixtures.meta["group_flag"].clone()).unwrap();
    compare.equal("aspect groups", &files.flags(), &flags);
}

#[test]
fn parity_image_mirrored_batch() {
    let Some(fixtures) = Fixtures::open() else { return };
    let (files, data, compare) = (ImageFiles::open(&fixtures), fixtures.tensors("data"), fixtures.compare(NAME));
    let batch = files.batch(true);
    check_geometry(&compare, &batch.metas, &fixtures.metas("flip.img_metas"));
    check_objects(&compare, &files, &batch, &data, "flip.");
    let stored = &fixtures.meta["flip.img_stats"];
    let length = stored["l2"].as_f64().unwrap();
    let images = batch.images.values(Device::Cpu).unwrap();
    let off = (super::compare::length(&images) - length).abs() / length;
    compare.at_most("mirrored batch, length, relative", off, STAGE);
    let row: Vec<Vec<f32>> = serde_json::from_value(stored["row100_col0_8"].clone()).unwrap();
    let row = Tensor::from_slice(&row.concat()).reshape([3, -1]);
    let actual = images.get(0).select(1, 100).narrow(1, 0, row.size()[1]);
    compare.tensor("mirrored batch, row 100", &actual, &row, STAGE);
}

#[test]
fn parity_image_single_images() {
    let Some(fixtures) = Fixtures::open() else { return };
    let (files, data, compare) = (ImageFiles::open(&fixtures), fixtures.tensors("data"), fixtures.compare(NAME));
    let expected = fixtures.metas("single_img_metas");
    let singles = files.singles();
    assert_eq!(singles.len(), expected.len());
    for (image, (batch, expected)) in singles.iter().zip(&expected).enumerate() {
        compare.tensor(
            "normalized single image",
            &batch.images.values(Device::Cpu).unwrap(),
            &data.get(&format!("single_img.{image}")),
            STAGE,
        );
        check_geometry(&compare, &batch.metas, std::slice::from_ref(expected));
    }
}

//! The fixtures' images as files with an annotation file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};
use tch::Tensor;
use tempfile::TempDir;

use fnet_config as config;
use fnet_data::{Batch, Dataset, Loader, Split, TestOptions, TrainOptions};

use super::fixtures::{Fixtures, Tensors};

/// Images on disk. If the fixtures contain the files (`data/images`, `data/instances.json`), these are used. Otherwise
/// the decoded pixels are written as PNG, with the boxes as annotations.
pub(super) struct ImageFiles {
    config: config::Data,
    dataset: Arc<Dataset>,
    /// Indices of the fixtures' images in the data set.
    indices: Vec<usize>,
    /// Whether the annotations are the original ones, with masks.
    pub(super) annotated: bool,
    _made: Option<TempDir>,
}

impl ImageFiles {
    pub(super) fn open(fixtures: &Fixtures) -> Self {
        let metas = fixtures.metas("img_metas");
        let own = fixtures.folder().join("data");
        let names: Vec<&str> = metas.iter().map(|meta| meta.file_name.as_str()).collect();
        let annotated =
            own.join("instances.json").is_file() && names.iter().all(|n| own.join("images").join(n).is_file());
        let made = (!annotated).then(|| write(fixtures, &names));
        let root = made.as_ref().map_or(own.as_path(), TempDir::path);
        let config = config(fixtures, root);
        let dataset = Arc::new(Dataset::open(&config, Split::Train).unwrap());
        let place = |name: &&str| {
            let found = (0..dataset.len()).find(|&index| dataset.image(index).file_name == *name);
            found.unwrap_or_else(|| panic!("{} has no image {name}", dataset.annotation_files()))
        };
        let indices = names.iter().map(place).collect();
        Self { config, dataset, indices, annotated, _made: made }
    }

    /// One batch of all images.
    pub(super) fn batch(&self, mirrored: bool) -> Batch {
        let mut config = self.config.clone();
        config.samples_per_gpu = self.indices.len();
        config.pipeline.flip_probability = f64::from(u8::from(mirrored));
        let options = TrainOptions::default();
        Loader::train(Arc::clone(&self.dataset), &config, &self.indices, &options).unwrap().next().unwrap().unwrap()
    }

    /// Each image separately, as at evaluation.
    pub(super) fn singles(&self) -> Vec<Batch> {
        let options = TestOptions::default();
        let loader = Loader::test(Arc::clone(&self.dataset), &self.config, &self.indices, &options).unwrap();
        loader.map(Result::unwrap).collect()
    }

    /// The aspect group of each image.
    pub(super) fn flags(&self) -> Vec<u8> {
        let flags = self.dataset.aspect_flags();
        self.indices.iter().map(|&index| flags[index]).collect()
    }

    /// The file of each image.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        self.indices.iter().map(|&index| self.dataset.image_path(index)).collect()
    }
}

fn config(fixtures: &Fixtures, root: &Path) -> config::Data {
    let mut config = config::Data { root: root.display().to_string(), workers_per_gpu: 0, ..Default::default() };
    config.classes = serde_json::from_value(fixtures.meta["classes"].clone()).unwrap();
    config.train[0].ann_file = "instances.json".into();
    config.train[0].img_prefix = "images".into();
    config.train[0].filter_empty = false;
    let scale = scale(fixtures);
    (config.pipeline.scales, config.pipeline.test_scale) = (vec![scale], scale);
    config
}

/// The scale `[long side, short side]` of the resized images. Together they touch both bounds.
fn scale(fixtures: &Fixtures) -> [usize; 2] {
    let sizes: Vec<_> = fixtures.metas("img_metas").iter().map(|meta| meta.image_size).collect();
    let maximum = |side: fn(&(usize, usize)) -> usize| sizes.iter().map(side).max().unwrap_or(1);
    [maximum(|size| size.0.max(size.1)), maximum(|size| size.0.min(size.1))]
}

/// Writes the decoded pixels as lossless images, with MMDetection's boxes as annotations. The masks are rectangles,
/// because the fixtures have only resized masks.
fn write(fixtures: &Fixtures, names: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let data = fixtures.tensors("data");
    std::fs::create_dir(folder.path().join("images")).unwrap();
    let ids: Vec<i64> = serde_json::from_value(fixtures.meta["cat_ids"].clone()).unwrap();
    let (mut images, mut annotations) = (Vec::new(), Vec::new());
    for (image, name) in names.iter().enumerate() {
        let (width, height, rgb) = rgb(&data, image);
        let path = folder.path().join("images").join(Path::new(name).with_extension("png"));
        image::RgbImage::from_raw(width, height, rgb).unwrap().save(&path).unwrap();
        std::fs::rename(&path, folder.path().join("images").join(name)).unwrap();
        images.push(json!({"id": image, "file_name": name, "width": width, "height": height}));
        let read = &fixtures.meta["train_get_ann_info"][image];
        let boxes: Vec<[f64; 4]> = serde_json::from_value(read["bboxes"].clone()).unwrap();
        let labels: Vec<usize> = serde_json::from_value(read["labels"].clone()).unwrap();
        for ([x1, y1, x2, y2], label) in boxes.into_iter().zip(labels) {
            annotations.push(json!({
                "id": annotations.len() + 1, "image_id": image, "category_id": ids[label], "iscrowd": 0,
                "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1),
                "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
            }));
        }
    }
    let classes = fixtures.meta["classes"].as_array().unwrap();
    let categories: Vec<Value> = ids.iter().zip(classes).map(|(id, name)| json!({"id": id, "name": name})).collect();
    let file = json!({"images": images, "annotations": annotations, "categories": categories});
    std::fs::write(folder.path().join("instances.json"), file.to_string()).unwrap();
    folder
}

/// Width, height and pixels of a decoded image.
pub(super) fn rgb(data: &Tensors, image: usize) -> (u32, u32, Vec<u8>) {
    let bgr: Tensor = data.get(&format!("original_bgr_u8.{image}"));
    let (height, width, _) = bgr.size3().unwrap();
    let rgb = Vec::<u8>::try_from(bgr.flip([2]).reshape([-1])).unwrap();
    (width as u32, height as u32, rgb)
}

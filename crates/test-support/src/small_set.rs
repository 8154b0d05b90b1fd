//! Small data sets.

/// A small data set in a temporary folder: image `i` has the size `sizes[i]` (width, height) and one polygon object.
pub struct SmallSet {
    /// The folder, which is removed on drop.
    pub folder: tempfile::TempDir,
    /// A data config that uses it as the training and validation set.
    pub config: fnet_config::Data,
}

impl SmallSet {
    /// Writes the images and the annotation file.
    ///
    /// # Panics
    /// If writing fails.
    pub fn new(sizes: &[(u32, u32)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut images = Vec::new();
        let mut annotations = Vec::new();
        for (i, &(width, height)) in sizes.iter().enumerate() {
            let name = format!("{i}.png");
            let pixel = |x: u32, y: u32| image::Rgb([(x * 2) as u8, (y * 2) as u8, i as u8 * 40]);
            image::ImageBuffer::from_fn(width, height, pixel).save(folder.path().join(&name)).unwrap();
            images.push(serde_json::json!({"id": i + 100, "file_name": name, "width": width, "height": height}));
            annotations.push(serde_json::json!({
                "id": i + 1, "image_id": i + 100, "category_id": 7, "bbox": [4, 5, 20, 10], "area": 200, "iscrowd": 0,
                "segmentation": [[4, 5, 24, 5, 24, 15, 4, 15]]
            }));
        }
        let file = serde_json::json!({
            "images": images, "annotations": annotations, "categories": [{"id": 7, "name": "box"}]
        });
        let mut config =
            fnet_config::Data { root: folder.path().display().to_string(), workers_per_gpu: 2, ..Default::default() };
        config.pipeline.scales = vec![[96, 64]];
        config.pipeline.test_scale = [96, 64];
        (config.train[0].ann_file, config.train[0].img_prefix) = ("a.json".into(), ".".into());
        (config.val.ann_file, config.val.img_prefix) = ("a.json".into(), ".".into());
        let small = Self { folder, config };
        small.write(&file);
        small
    }

    /// Replaces the annotation file.
    ///
    /// # Panics
    /// If writing fails.
    pub fn write(&self, file: &serde_json::Value) {
        std::fs::write(self.folder.path().join("a.json"), file.to_string()).unwrap();
    }
}

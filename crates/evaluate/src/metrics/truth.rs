//! The ground truth of an evaluation.

use std::sync::Arc;

use hotcoco::COCO;

use fnet_common::Result;
use fnet_config::Metric;
use fnet_data::{Category, Dataset};

/// The ground truth: the objects of the annotation file, ready for evaluation.
#[derive(Clone)]
pub struct GroundTruth {
    coco: Arc<COCO>,
    pub(super) image_ids: Vec<u64>,
    pub(super) categories: Vec<Category>,
}

impl GroundTruth {
    /// The objects and images of a set.
    /// Errors: a data error that describes the problem in the annotation file.
    pub fn of(dataset: &Dataset) -> Result<Self> {
        let categories = dataset.categories();
        let annotations = dataset.true_objects()?.into_iter().map(|object| hotcoco::Annotation {
            image_id: unsigned(object.image_id),
            category_id: unsigned(categories[object.label].id),
            bbox: Some(object.bbox),
            area: Some(object.area),
            segmentation: object.mask,
            iscrowd: object.is_crowd,
            ..Default::default()
        });
        let images = (0..dataset.len()).map(|index| {
            let image = dataset.image(index);
            hotcoco::Image {
                id: unsigned(dataset.image_id(index)),
                file_name: image.file_name.to_owned(),
                width: image.width as u32,
                height: image.height as u32,
                ..Default::default()
            }
        });
        let named = categories.iter().map(|category| hotcoco::Category {
            id: unsigned(category.id),
            name: category.name.clone(),
            ..Default::default()
        });
        let truth = hotcoco::Dataset {
            images: images.collect(),
            annotations: annotations.collect(),
            categories: named.collect(),
            ..Default::default()
        };
        Ok(Self::new(truth, &dataset.image_ids(), categories))
    }

    /// Creates the ground truth from an annotation file in memory. `image_ids` are the evaluated images, `categories`
    /// the classes in the order of the labels.
    ///
    /// Annotations are renumbered from 1, because pycocotools treats the id 0 as "not matched" and a repeated id as one
    /// object.
    pub fn new(mut dataset: hotcoco::Dataset, image_ids: &[i64], categories: &[Category]) -> Self {
        for (id, annotation) in (1..).zip(&mut dataset.annotations) {
            annotation.id = id;
        }
        let image_ids = image_ids.iter().map(|&id| unsigned(id)).collect();
        Self { coco: Arc::new(COCO::from_dataset(dataset)), image_ids, categories: categories.to_vec() }
    }

    /// The classes in the order of the labels.
    pub fn categories(&self) -> &[Category] {
        &self.categories
    }

    /// The `category_id` of every label.
    pub fn category_ids(&self) -> Vec<i64> {
        self.categories.iter().map(|category| category.id).collect()
    }

    /// The objects of one metric. For masks, an object without one is a region like a crowd, with its box as the mask, because
    /// a detection in it may be right.
    pub(super) fn of_kind(&self, kind: Metric) -> Arc<COCO> {
        if kind != Metric::Segm || self.without_mask() == 0 {
            return Arc::clone(&self.coco);
        }
        let mut dataset = self.coco.dataset.clone();
        for object in dataset.annotations.iter_mut().filter(|object| object.segmentation.is_none()) {
            object.segmentation = object.bbox.map(hotcoco::Segmentation::Rect);
            object.iscrowd = true;
        }
        Arc::new(COCO::from_dataset(dataset))
    }

    /// Number of objects without a mask.
    pub(super) fn without_mask(&self) -> usize {
        self.coco.dataset.annotations.iter().filter(|object| object.segmentation.is_none()).count()
    }

    /// The annotations and their masks.
    pub fn coco(&self) -> &COCO {
        &self.coco
    }
}

/// An id for hotcoco. Negative ids become large ones, so that ids stay unique.
pub(super) fn unsigned(id: i64) -> u64 {
    id as u64
}

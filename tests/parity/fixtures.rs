//! Finds and reads MMDetection's numbers.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use tch::{Device, Tensor};

use fnet_checkpoint::{Need, Weights};
use fnet_config::{self as config, Activation};
use fnet_data::{Batch, ImageMeta, InstanceMask, Target};
use fnet_model::{MaskRcnn, Parameters};
use fnet_test_support::fixture;
pub(super) use fnet_test_support::skip;

use super::compare::{integers, rows_of_four};
use super::report::Comparison;

const FIXTURES: &str = "FNET_PARITY_FIXTURES";
const TEST_DATA: &str = "FNET_TEST_DATA";

/// One model of MMDetection: architecture, weights, and the inputs and outputs of every stage.
pub(super) struct Fixtures {
    folder: PathBuf,
    name: String,
    pub(super) meta: Value,
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// A file or folder with MMDetection's numbers below FNET_TEST_DATA. If the variable is unset, prints that the test is
/// skipped.
pub(super) fn reference(name: &str) -> Option<PathBuf> {
    fixture(&format!("reference/{name}"))
}

/// Inputs and outputs of the operators: below FNET_TEST_DATA, or next to the folder of FNET_PARITY_FIXTURES.
pub(super) struct Operators {
    pub(super) tensors: Tensors,
    pub(super) facts: Value,
}

impl Operators {
    pub(super) fn open() -> Option<Self> {
        let beside = || variable(FIXTURES).and_then(|folder| Some(folder.canonicalize().ok()?.parent()?.to_owned()));
        let folders = [variable(TEST_DATA).map(|root| root.join("reference")), beside()];
        let folders = folders.into_iter().flatten().map(|folder| folder.join("fixtures_ops"));
        let Some(folder) = folders.into_iter().find(|folder| folder.is_dir()) else {
            skip(&format!("there is no fixtures_ops below {TEST_DATA} or next to {FIXTURES}"));
            return None;
        };
        let facts = read_json(&required(&folder, "ops.json"));
        Some(Self { tensors: Tensors::read(&required(&folder, "ops.safetensors")), facts })
    }

    pub(super) fn compare(&self, stage: &'static str) -> Comparison<'_> {
        Comparison::new(stage, "fixtures_ops")
    }
}

fn required(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    assert!(path.is_file(), "the fixtures in {} lack the file {name}, which this test needs", folder.display());
    path
}

fn read_json(path: &Path) -> Value {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{} is not valid JSON: {error}", path.display()))
}

/// Named tensors of one file.
pub(super) struct Tensors {
    path: PathBuf,
    map: HashMap<String, Tensor>,
}

impl Tensors {
    pub(super) fn read(path: &Path) -> Self {
        let read = Tensor::read_safetensors(path);
        let map = read.unwrap_or_else(|error| panic!("{} is not a safetensors file: {error}", path.display()));
        Self { path: path.to_owned(), map: map.into_iter().collect() }
    }

    pub(super) fn find(&self, name: &str) -> Option<&Tensor> {
        self.map.get(name)
    }

    /// The tensor called `name`. If it is not stored, prints that a part of the test is skipped.
    pub(super) fn optional(&self, name: &str) -> Option<&Tensor> {
        if self.find(name).is_none() {
            skip(&format!("the comparison of {name}, which is not in {}", self.path.display()));
        }
        self.find(name)
    }

    pub(super) fn get(&self, name: &str) -> Tensor {
        let found = self.find(name);
        found.unwrap_or_else(|| panic!("{} has no tensor {name}", self.path.display())).shallow_clone()
    }

    /// `name.0`, `name.1`, ...
    pub(super) fn series(&self, name: &str, count: usize) -> Vec<Tensor> {
        (0..count).map(|index| self.get(&format!("{name}.{index}"))).collect()
    }

    pub(super) fn boxes(&self, name: &str) -> Vec<[f32; 4]> {
        rows_of_four(&self.get(name))
    }

    pub(super) fn integers(&self, name: &str) -> Vec<i64> {
        integers(&self.get(name))
    }
}

impl Fixtures {
    /// The folder FNET_PARITY_FIXTURES, or else the tiny model's folder below FNET_TEST_DATA.
    pub(super) fn open() -> Option<Self> {
        let folder = match variable(FIXTURES) {
            Some(folder) => {
                assert!(folder.is_dir(), "{FIXTURES} is {}, which is not a folder", folder.display());
                folder
            }
            None => reference("fixtures_tiny")?,
        };
        let meta = read_json(&required(&folder, "meta.json"));
        let name = folder.canonicalize().ok().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
        Some(Self { name: name.unwrap_or_else(|| "?".into()), folder, meta })
    }

    pub(super) fn compare(&self, stage: &'static str) -> Comparison<'_> {
        Comparison::new(stage, &self.name)
    }

    /// An optional file of the folder. If it does not exist, prints that the test is skipped.
    pub(super) fn optional(&self, name: &str) -> Option<PathBuf> {
        let path = self.folder.join(name);
        if path.is_file() {
            return Some(path);
        }
        skip(&format!("there is no {name} in {}", self.folder.display()));
        None
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn tensors(&self, name: &str) -> Tensors {
        Tensors::read(&required(&self.folder, &format!("{name}.safetensors")))
    }

    pub(super) fn json(&self, name: &str) -> Value {
        read_json(&required(&self.folder, &format!("{name}.json")))
    }

    /// The architecture. Fields that are not in `arch` are as in MMDetection's configs. No branch is dropped, as in the
    /// run that produced the numbers.
    pub(super) fn config(&self) -> config::Model {
        let arch = &self.meta["arch"];
        assert!(arch.is_object(), "{}: meta.json has no arch", self.folder.display());
        let mut model = config::Model::default();
        let set = |field: &mut usize, name: &str| {
            if let Some(value) = arch.get(name) {
                *field = value.as_u64().unwrap_or_else(|| panic!("arch.{name} of meta.json is {value}")) as usize;
            }
        };
        set(&mut model.num_classes, "num_classes");
        set(&mut model.backbone.embed_dim, "embed_dim");
        set(&mut model.backbone.n_div, "n_div");
        set(&mut model.neck.out_channels, "fpn_channels");
        set(&mut model.rpn.feat_channels, "rpn_feat_channels");
        set(&mut model.roi_head.bbox_fc_channels, "bbox_fc_channels");
        set(&mut model.roi_head.mask_channels, "mask_conv_channels");
        if let Some(depths) = arch.get("depths") {
            model.backbone.depths = serde_json::from_value(depths.clone()).expect("arch.depths has four numbers");
        }
        if let Some(ratio) = arch.get("mlp_ratio") {
            model.backbone.mlp_ratio = ratio.as_f64().expect("arch.mlp_ratio is a number");
        }
        model.backbone.activation = match arch.get("act_layer").and_then(Value::as_str) {
            None | Some("RELU") => Activation::Relu,
            Some("GELU") => Activation::Gelu,
            Some(other) => panic!("arch.act_layer of meta.json is {other:?}; expected RELU or GELU"),
        };
        model.backbone.drop_path_rate = 0.0;
        model
    }

    /// The model with MMDetection's weights: `ckpt.safetensors`, or else `ckpt.pth`.
    pub(super) fn model(&self) -> (MaskRcnn, Parameters) {
        self.model_of(&self.config())
    }

    pub(super) fn model_of(&self, config: &config::Model) -> (MaskRcnn, Parameters) {
        let mut parameters = Parameters::new();
        let model = MaskRcnn::build(config, &mut parameters, Device::Cpu).unwrap();
        let path =
            ["ckpt.safetensors", "ckpt.pth"].map(|name| self.folder.join(name)).into_iter().find(|p| p.is_file());
        let path = path.unwrap_or_else(|| {
            panic!("the fixtures in {} lack the file ckpt.safetensors or ckpt.pth", self.folder.display())
        });
        load_all(&path, &parameters);
        (model, parameters)
    }

    /// Geometry of the images. `key` is `img_metas` or `single_img_metas`.
    pub(super) fn metas(&self, key: &str) -> Vec<ImageMeta> {
        let metas = self.meta[key].as_array().unwrap_or_else(|| panic!("meta.json has no list {key}"));
        metas.iter().map(|meta| image_meta(if meta.is_array() { &meta[0] } else { meta })).collect()
    }

    /// The training batch.
    pub(super) fn batch(&self) -> Batch {
        let data = self.tensors("data");
        let metas = self.metas("img_metas");
        let targets = (0..metas.len()).map(|image| target(&data, image)).collect();
        Batch { images: data.get("img").into(), metas, targets }
    }
}

/// Loads every tensor of the model from `path`, which must contain no others.
pub(super) fn load_all(path: &Path, parameters: &Parameters) {
    let summary = Weights::open(path).and_then(|weights| weights.load_detector(parameters, Need::All));
    let summary = summary.unwrap_or_else(|error| panic!("{error}"));
    assert!(summary.report.is_complete(), "{summary}");
}

fn target(data: &Tensors, image: usize) -> Target {
    let bitmaps = data.get(&format!("gt_masks.{image}"));
    let (count, height, width) = bitmaps.size3().unwrap();
    let (height, width) = (height as usize, width as usize);
    let masks = (0..count).map(|index| {
        let pixels = Arc::from(Vec::<u8>::try_from(bitmaps.get(index).reshape([-1])).unwrap());
        Some(InstanceMask { frame: (height, width), x: 0, y: 0, width, height, pixels })
    });
    Target {
        boxes: data.boxes(&format!("gt_bboxes.{image}")),
        labels: data.integers(&format!("gt_labels.{image}")),
        masks: masks.collect(),
    }
}

fn image_meta(meta: &Value) -> ImageMeta {
    let size = |key: &str| {
        let value = |axis: usize| meta[key][axis].as_u64().unwrap_or_else(|| panic!("an image's {key} is not a size"));
        (value(0) as usize, value(1) as usize)
    };
    ImageMeta {
        image_id: 0,
        file_name: meta["ori_filename"].as_str().unwrap_or_default().to_owned(),
        original_size: size("ori_shape"),
        image_size: size("img_shape"),
        padded_size: size("pad_shape"),
        scale_factor: std::array::from_fn(|axis| meta["scale_factor"][axis].as_f64().unwrap() as f32),
        flipped: false,
    }
}

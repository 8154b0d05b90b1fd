//! Reads the reference's inputs and outputs.

use std::path::PathBuf;
use std::sync::Arc;

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::*;
use crate::data::InstanceMask;
use tch::Kind;

/// The reference's tiny model: architecture, weights, inputs and outputs.
pub(super) struct Fixtures {
    folder: PathBuf,
    pub(super) meta: Value,
}

/// The folder of the tiny model's numbers: FNET_PARITY_FIXTURES, or its place below FNET_TEST_DATA.
fn folder(name: &str) -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("FNET_PARITY_FIXTURES").filter(|_| name == "fixtures_tiny") {
        return Some(folder.into());
    }
    let Some(root) = std::env::var_os("FNET_TEST_DATA").filter(|root| !root.is_empty()) else {
        eprintln!("SKIPPED {}: FNET_TEST_DATA is unset", std::thread::current().name().unwrap_or("a test"));
        return None;
    };
    Some(PathBuf::from(root).join("reference").join(name))
}

/// Named tensors of one file.
pub(super) struct Tensors(Vec<(String, Tensor)>);

impl Tensors {
    fn read(path: PathBuf) -> Self {
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensor = |view: safetensors::tensor::TensorView| {
            let kind = match view.dtype() {
                Dtype::F32 => Kind::Float,
                Dtype::I64 => Kind::Int64,
                Dtype::U8 => Kind::Uint8,
                other => panic!("{other:?} is not read"),
            };
            let shape: Vec<i64> = view.shape().iter().map(|&size| size as i64).collect();
            Tensor::from_data_size(view.data(), &shape, kind)
        };
        Self(file.iter().map(|(name, view)| (name.to_owned(), tensor(view))).collect())
    }

    /// The operators' numbers.
    pub(super) fn operators() -> Option<Self> {
        Some(Self::read(folder("fixtures_ops")?.join("ops.safetensors")))
    }

    pub(super) fn get(&self, name: &str) -> Tensor {
        let found = self.0.iter().find(|(known, _)| known == name);
        found.unwrap_or_else(|| panic!("no tensor {name}")).1.shallow_clone()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.0.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// `name.0`, `name.1`, ...
    pub(super) fn series(&self, name: &str, count: usize) -> Vec<Tensor> {
        (0..count).map(|index| self.get(&format!("{name}.{index}"))).collect()
    }

    pub(super) fn boxes(&self, name: &str) -> Vec<[f32; 4]> {
        floats(&self.get(name)).as_chunks::<4>().0.to_vec()
    }

    pub(super) fn integers(&self, name: &str) -> Vec<i64> {
        integers(&self.get(name))
    }
}

impl Fixtures {
    pub(super) fn open() -> Option<Self> {
        let folder = folder("fixtures_tiny")?;
        let meta = serde_json::from_slice(&std::fs::read(folder.join("meta.json")).unwrap()).unwrap();
        Some(Self { folder, meta })
    }

    pub(super) fn tensors(&self, name: &str) -> Tensors {
        Tensors::read(self.folder.join(format!("{name}.safetensors")))
    }

    pub(super) fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.folder.join(format!("{name}.json"))).unwrap()).unwrap()
    }

    pub(super) fn config(&self) -> config::Model {
        let arch = &self.meta["arch"];
        let number = |name: &str| arch[name].as_u64().unwrap() as usize;
        let mut model = config::Model { num_classes: number("num_classes"), ..Default::default() };
        model.backbone.embed_dim = number("embed_dim");
        model.backbone.depths = serde_json::from_value(arch["depths"].clone()).unwrap();
        model.backbone.mlp_ratio = arch["mlp_ratio"].as_f64().unwrap();
        model.backbone.n_div = number("n_div");
        model.backbone.drop_path_rate = arch["drop_path_rate"].as_f64().unwrap();
        model.neck.out_channels = number("fpn_channels");
        model.rpn.feat_channels = number("rpn_feat_channels");
        model.roi_head.bbox_fc_channels = number("bbox_fc_channels");
        model.roi_head.mask_channels = number("mask_conv_channels");
        model
    }

    /// The model with the reference's weights.
    pub(super) fn model(&self) -> (MaskRcnn, Parameters) {
        self.model_of(&self.config())
    }

    pub(super) fn model_of(&self, config: &config::Model) -> (MaskRcnn, Parameters) {
        let mut parameters = Parameters::new();
        let model = MaskRcnn::new(config, &mut parameters, Device::Cpu, 0).unwrap();
        let report = parameters.load(self.tensors("ckpt").iter()).unwrap();
        assert!(report.is_complete(), "{report}");
        (model, parameters)
    }

    /// Geometry of the images; `key` is `img_metas` or `single_img_metas`.
    pub(super) fn metas(&self, key: &str) -> Vec<ImageMeta> {
        self.meta[key].as_array().unwrap().iter().map(image_meta).collect()
    }

    /// The training batch.
    pub(super) fn batch(&self) -> Batch {
        let data = self.tensors("data");
        let target = |image: usize| {
            let bitmaps = data.get(&format!("gt_masks.{image}"));
            let (count, height, width) = bitmaps.size3().unwrap();
            let (height, width) = (height as usize, width as usize);
            let masks = (0..count).map(|index| InstanceMask {
                frame: (height, width),
                x: 0,
                y: 0,
                width,
                height,
                pixels: Arc::from(Vec::<u8>::try_from(bitmaps.get(index).view([-1])).unwrap()),
            });
            Target {
                boxes: data.boxes(&format!("gt_bboxes.{image}")),
                labels: data.integers(&format!("gt_labels.{image}")),
                masks: masks.collect(),
            }
        };
        let metas = self.metas("img_metas");
        let targets = (0..metas.len()).map(target).collect();
        Batch { images: data.get("img"), metas, targets }
    }
}

fn image_meta(meta: &Value) -> ImageMeta {
    let size = |key: &str| {
        let value = |axis: usize| meta[key][axis].as_u64().unwrap() as usize;
        (value(0), value(1))
    };
    ImageMeta {
        image_id: 0,
        file_name: meta["ori_filename"].as_str().unwrap().to_owned(),
        original_size: size("ori_shape"),
        image_size: size("img_shape"),
        padded_size: size("pad_shape"),
        scale_factor: std::array::from_fn(|axis| meta["scale_factor"][axis].as_f64().unwrap() as f32),
        flipped: false,
    }
}

pub(super) fn floats(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.to_kind(Kind::Float).contiguous().view([-1])).unwrap()
}

pub(super) fn integers(tensor: &Tensor) -> Vec<i64> {
    Vec::try_from(tensor.to_kind(Kind::Int64).contiguous().view([-1])).unwrap()
}

/// Greatest difference over the greatest expected value.
pub(super) fn difference(actual: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(actual.size(), expected.size());
    if expected.numel() == 0 {
        return 0.0;
    }
    let most = |tensor: Tensor| f64::try_from(tensor.abs().max()).unwrap();
    most(actual.to_kind(Kind::Double) - expected.to_kind(Kind::Double))
        / most(expected.to_kind(Kind::Double)).max(1e-30)
}

/// Fails if the difference over the greatest expected value is above `tolerance`.
#[track_caller]
pub(super) fn assert_close(what: &str, actual: &Tensor, expected: &Tensor, tolerance: f64) {
    let difference = difference(actual, expected);
    assert!(difference <= tolerance, "{what} differs by {difference:e} of its greatest value");
}

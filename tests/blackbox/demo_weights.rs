//! The generated set distinguishes good models from bad ones: the demo's detections lose much of their mask AP if their
//! labels, mask shapes or mask directions are wrong. FNET_DEMO_DIR is the work folder of `make demo`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use hotcoco::params::IouType;
use hotcoco::{Annotation, COCO, COCOeval, mask};
use serde_json::{Value, json};

/// Minimum fraction of mask AP that a corruption must cost.
const LOSS: f64 = 0.4;

/// A detection whose mask has been decoded.
#[derive(Clone)]
struct Detection {
    image: u64,
    category: u64,
    score: f64,
    size: [u32; 2],
    /// Column-major.
    pixels: Vec<u8>,
}

impl Detection {
    fn new(entry: &Value) -> Self {
        let segmentation = &entry["segmentation"];
        let size: [u32; 2] = serde_json::from_value(segmentation["size"].clone()).unwrap();
        let rle = mask::rle_from_string(segmentation["counts"].as_str().unwrap(), size[0], size[1]).unwrap();
        Self {
            image: entry["image_id"].as_u64().unwrap(),
            category: entry["category_id"].as_u64().unwrap(),
            score: entry["score"].as_f64().unwrap(),
            size,
            pixels: mask::decode(&rle),
        }
    }

    /// Columns `left..right` and rows `top..bottom` of the mask. `None` for an empty mask.
    fn bounds(&self) -> Option<[usize; 4]> {
        let rle = mask::encode(&self.pixels, self.size[0], self.size[1]).unwrap();
        let [x, y, width, height] = mask::to_bbox(&rle).map(|edge| edge as usize);
        (width > 0 && height > 0).then_some([x, y, x + width, y + height])
    }

    fn with_box_as_mask(mut self) -> Self {
        if let Some([left, top, right, bottom]) = self.bounds() {
            for x in left..right {
                self.pixels[x * self.size[0] as usize..][top..bottom].fill(1);
            }
        }
        self
    }

    fn mirrored(mut self) -> Self {
        if let Some([left, top, right, bottom]) = self.bounds() {
            let height = self.size[0] as usize;
            for x in left..left + (right - left) / 2 {
                for y in top..bottom {
                    self.pixels.swap(x * height + y, (left + right - 1 - x) * height + y);
                }
            }
        }
        self
    }

    fn annotation(&self) -> Annotation {
        let rle = mask::encode(&self.pixels, self.size[0], self.size[1]).unwrap();
        serde_json::from_value(json!({
            "image_id": self.image,
            "category_id": self.category,
            "score": self.score,
            "segmentation": { "size": self.size, "counts": mask::rle_to_string(&rle) },
        }))
        .unwrap()
    }
}

/// Mask AP over IoU .50 to .95.
fn mask_ap(ground_truth: &Arc<COCO>, detections: &[Detection]) -> f64 {
    let found = ground_truth.load_res_anns(detections.iter().map(Detection::annotation).collect()).unwrap();
    let mut evaluation = COCOeval::new(Arc::clone(ground_truth), found, IouType::Segm);
    evaluation.evaluate().unwrap();
    evaluation.accumulate();
    evaluation.summarize_lines();
    evaluation.stats().unwrap()[0]
}

/// The detections in the validation images, from the command that a user would run.
fn detect(checkpoint: &Path) -> Vec<Detection> {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_fnet-worker"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env_remove("FNET_DATA_ROOT")
        .arg("test")
        .arg(checkpoint)
        .args(["--format-only", "--out"])
        .arg(folder.path().join("results.json"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let file = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.to_string_lossy().ends_with(".segm.json"))
        .expect("test --format-only wrote no .segm.json");
    let entries: Vec<Value> = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    entries.iter().map(Detection::new).collect()
}

#[test]
fn wrong_labels_box_masks_and_mirrored_masks_each_cost_two_fifths_of_mask_ap() {
    let Some(folder) = std::env::var_os("FNET_DEMO_DIR").map(PathBuf::from) else {
        return crate::support::skip("FNET_DEMO_DIR is unset (run `make demo`, then set it to work_dirs/demo)");
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let config = fnet_data::load_config(folder.join("config.toml"), &[]).unwrap().config;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(&config.data.root);
    let ground_truth = Arc::new(COCO::new(&root.join(&config.data.val.ann_file)).unwrap());
    let categories = ground_truth.get_cat_ids(&[], &[], &[]);
    let detections = detect(&folder.join("latest.ckpt"));

    let sound = mask_ap(&ground_truth, &detections);
    let corrupted = |change: &dyn Fn(Detection) -> Detection| {
        mask_ap(&ground_truth, &detections.iter().cloned().map(change).collect::<Vec<_>>())
    };
    let shifted = corrupted(&|mut detection| {
        let label = categories.iter().position(|&id| id == detection.category).unwrap();
        detection.category = categories[(label + 1) % categories.len()];
        detection
    });
    let boxes = corrupted(&Detection::with_box_as_mask);
    let mirrored = corrupted(&Detection::mirrored);
    println!("mask AP {sound:.3}; labels shifted {shifted:.3}, boxes for masks {boxes:.3}, mirrored {mirrored:.3}");

    assert!(sound > 0.2, "the demo's weights have a mask AP of only {sound:.3}");
    for (name, value) in [("labels shifted", shifted), ("boxes for masks", boxes), ("mirrored masks", mirrored)] {
        assert!(value <= (1.0 - LOSS) * sound, "{name}: mask AP is still {value:.3} of {sound:.3}");
    }
}

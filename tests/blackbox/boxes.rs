//! Models and data sets without masks, and trainings that start from a detector for other classes.

use std::fs;

use serde_json::{Value, json};

use crate::outputs::{floats, losses, object, tensors};
use crate::support::Scene;

fn change(scene: &Scene, set: &str, mut change: impl FnMut(usize, &mut Value)) {
    scene.edit(set, |content| {
        let annotations = content["annotations"].as_array_mut().unwrap().iter_mut();
        annotations.enumerate().for_each(|(index, one)| change(index, one));
    });
}

fn boxes_only() -> Scene {
    let scene = Scene::with_own_images();
    for set in ["train", "val"] {
        change(&scene, set, |index, annotation| {
            // As tools write them.
            match index % 2 {
                0 => annotation["segmentation"] = json!([]),
                _ => drop(annotation.as_object_mut().unwrap().remove("segmentation")),
            }
        });
    }
    scene
}

const MASK_HEAD: &str = "model.roi_head.mask_head.conv_logits.weight";

#[test]
fn a_set_of_boxes_is_trained_on_evaluated_and_used_without_masks() {
    let scene = boxes_only();
    let remedy = "model.mask = false for a model of boxes only";
    scene.launch("check-data cfg.toml").expect(3, &["mask-missing", "mask-needed", remedy]);
    scene.launch("--device cpu --nproc 1 train cfg.toml").expect(3, &["mask-missing", remedy]);

    scene.extend_config("[checkpoint]\nsave_best = \"bbox_mAP\"\n");
    let config = fs::read_to_string(scene.path("cfg.toml")).unwrap();
    fs::write(scene.path("cfg.toml"), config.replacen("[model]\n", "[model]\nmask = false\n", 1)).unwrap();
    let ended = scene.launch("check-data cfg.toml --decode");
    ended.expect(0, &["No errors"]);
    assert!(!ended.stderr.contains("mask-"), "{}", ended.stderr);
    assert!(scene.launch("print-config cfg.toml").stdout.contains("metrics = [\"bbox\"]  # cfg.toml:"));
    scene.launch("--dry-run --device cpu --nproc 2 train cfg.toml").expect(0, &[]);

    // A job of two epochs, and one that is continued after the first.
    scene.two("train cfg.toml").expect(0, &["bbox_mAP", "best bbox_mAP"]);
    scene.two("train cfg.toml --work-dir parts --set train.epochs=1");
    scene.two("train cfg.toml --work-dir parts --resume");
    let whole = losses(&scene.path("work_dirs/cfg"));
    assert_eq!(losses(&scene.path("parts")), whole);
    assert!(whole.iter().all(|line| line["loss_bbox"].is_number() && !line.contains_key("loss_mask")));
    let stored = tensors(&scene.path("work_dirs/cfg/latest.ckpt"));
    assert!(stored.keys().all(|name| !name.contains("mask_head")) && stored.len() > 100);

    let test = "test work_dirs/cfg/latest.ckpt";
    scene.two(&format!("{test} --out found.json --metrics m.json --show-dir shown"));
    let metrics = object(&scene.path("m.json"));
    assert!(metrics.contains_key("bbox_mAP") && !metrics.contains_key("segm_mAP"), "{metrics:?}");
    assert!(scene.path("found.bbox.json").is_file() && !scene.path("found.segm.json").exists());
    assert!(fs::read_dir(scene.path("shown")).unwrap().count() > 0);
    for line in ["--device cpu --nproc 2", "--dry-run --device cpu --nproc 1"] {
        scene.launch(&format!("{line} {test} --eval segm bbox")).expect(2, &["--eval segm", "use --eval bbox"]);
    }
    scene.one("predict work_dirs/cfg/latest.ckpt data/val --out drawn --score-thr 0.0");
    let found: Value = serde_json::from_slice(&fs::read(scene.path("drawn/results.json")).unwrap()).unwrap();
    let found = found.as_array().unwrap();
    assert!(!found.is_empty() && found.iter().all(|one| one["bbox"].is_array() && one["segmentation"].is_null()));

    for split in ["train", "val"] {
        scene.launch(&format!("browse cfg.toml --out seen_{split} --split {split}")).expect(0, &["objects are in"]);
    }
    let report: Value =
        serde_json::from_str(&scene.launch("benchmark data cfg.toml --images 8 --json").stdout).unwrap();
    assert_eq!(report["masks"], false);
    scene.one("benchmark infer cfg.toml work_dirs/cfg/latest.ckpt --shape 96 96 --max-iter 6");
    scene.one("benchmark train cfg.toml --batch 1 --shape 256 256 --iters 1");
    let report: Value = serde_json::from_str(&scene.launch("flops cfg.toml --shape 96 --json").stdout).unwrap();
    assert!(report["per_module"]["roi_head.bbox_head"].is_object());
    assert!(report["per_module"]["roi_head.mask_head"].is_null());
    scene.launch("export work_dirs/cfg/latest.ckpt boxes.pth --with-optimizer --config cfg.toml").expect(0, &[]);
    scene.one("test boxes.pth --config cfg.toml --metrics again.json");
    assert_eq!(object(&scene.path("again.json")), metrics);
}

#[test]
fn weights_go_from_masks_to_boxes_and_back_and_a_training_is_not_continued_across() {
    let scene = Scene::with_own_images();
    let job = "train cfg.toml --no-validate --set train.epochs=1 optimizer.lr=0.0";
    scene.one(&format!("{job} --work-dir masks"));
    let ended = scene.one(&format!("{job} model.mask=false --work-dir boxes --load-from masks/latest.ckpt"));
    ended.expect(0, &["the file's mask head is left out", "new: 0"]);
    let ended = scene.one(&format!("{job} train.seed=7 --work-dir back --load-from boxes/latest.ckpt"));
    ended.expect(0, &["the mask head is re-initialized", "unused: 0"]);
    let [masks, boxes, back] = ["masks", "boxes", "back"].map(|name| tensors(&scene.path(name).join("latest.ckpt")));
    for name in ["model.roi_head.bbox_head.fc_cls.weight", "model.neck.fpn_convs.0.conv.weight"] {
        assert!(masks[name] == boxes[name] && boxes[name] == back[name], "{name}");
    }
    assert!(!boxes.contains_key(MASK_HEAD) && masks[MASK_HEAD] != back[MASK_HEAD]);

    let refused = |line: &str, texts: &[&str]| {
        for start in ["--device cpu --nproc 1", "--dry-run --device cpu --nproc 1"] {
            scene.launch(&format!("{start} {line}")).expect(3, texts);
        }
    };
    let [with, without] = [&["has a mask head", "--load-from"][..], &["has no mask head", "set model.mask to false"]];
    refused("train cfg.toml --work-dir masks --resume --set model.mask=false", with);
    refused("train cfg.toml --work-dir boxes --resume", without);
    scene.launch("export masks/latest.ckpt masks.pth --with-optimizer").expect(0, &[]);
    refused("train cfg.toml --work-dir other --resume=masks.pth --set model.mask=false", with);
}

#[test]
fn objects_without_masks_stop_a_job_are_skipped_or_train_the_box_head() {
    let scene = Scene::with_own_images();
    for set in ["train", "val"] {
        change(&scene, set, |index, annotation| {
            if index % 2 == 0 {
                annotation["segmentation"] = json!([]);
            }
        });
    }
    scene.launch("--device cpu --nproc 2 train cfg.toml").expect(3, &["mask-missing", "data.without_mask = \"box\""]);
    let of = |mode: &str, code: &str| {
        let set = format!("--set data.without_mask={mode} train.epochs=1");
        let checked = scene.launch(&format!("check-data cfg.toml {set} --json"));
        checked.expect(0, &[code, "mask-missing-ignored"]);
        let report: Value = serde_json::from_str(&checked.stdout).unwrap();
        scene.two(&format!("train cfg.toml --work-dir {mode} {set}")).expect(0, &["segm_mAP", "do not count"]);
        scene.two(&format!("test {mode}/latest.ckpt --metrics {mode}.json"));
        assert!(object(&scene.path(&format!("{mode}.json"))).contains_key("segm_mAP"));
        let lines = losses(&scene.path(mode));
        assert!(lines.iter().all(|line| line["loss_mask"].is_number()));
        report["sets"][0]["objects"].as_u64().unwrap()
    };
    let [skipped, boxes] = [of("skip", "mask-missing-skipped"), of("box", "mask-missing-box")];
    assert!(0 < skipped && skipped < boxes, "{skipped} of {boxes}");
    scene.one("predict box/latest.ckpt data/val --out drawn");
    scene.launch("browse cfg.toml --out seen --set data.without_mask=box").expect(0, &["objects are in"]);

    // Ranks whose images have no mask at all do not make others wait.
    change(&scene, "train", |_, annotation| annotation["segmentation"] = json!([]));
    scene.two("train cfg.toml --work-dir none --no-validate --set data.without_mask=box train.epochs=1");
    assert!(losses(&scene.path("none")).iter().all(|line| line["loss_mask"] == 0.0));
}

#[test]
fn a_detector_for_other_classes_keeps_the_rows_of_equal_names() {
    let scene = Scene::with_own_images();
    scene.one("train cfg.toml --no-validate --work-dir first --set train.epochs=1");
    // Five of the eight classes, of which one has another name.
    let [names, _] = ["train", "val"].map(|set| {
        scene.edit(set, |content| {
            content["categories"][6]["name"] = json!("new");
            let names =
                content["categories"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap().to_owned());
            names.collect::<Vec<String>>()
        })
    });
    let wanted = [&names[1], &names[2], &names[4], &names[5], "new"];
    let job = "train cfg.toml --no-validate --load-from first/latest.ckpt --set train.epochs=1 optimizer.lr=0.0 train.seed=9 \
               model.num_classes=5";
    let run = |folder: &str, more: &str| {
        let classes = format!("data.classes={}", serde_json::to_string(&wanted).unwrap());
        let ended = scene.one(&format!("{job} {classes} --work-dir {folder} {more}"));
        (ended, tensors(&scene.path(folder).join("latest.ckpt")))
    };
    let (ended, matched) = run("matched", "--match-classes");
    let kept = format!(
        "classes kept: 4 (\"{}\", \"{}\", \"{}\", \"{}\"); new classes: 1 (\"new\")",
        wanted[0], wanted[1], wanted[2], wanted[3]
    );
    ended.expect(0, &[&kept, "new: 0; unused: 0"]);
    let (ended, anew) = run("anew", "");
    ended.expect(0, &["the class layers are re-initialized, for 5 classes in place of 8", "--match-classes"]);
    let first = tensors(&scene.path("first/latest.ckpt"));
    for (layer, rows, background) in
        [("bbox_head.fc_cls", 1, true), ("bbox_head.fc_reg", 4, false), ("mask_head.conv_logits", 1, false)]
    {
        for tensor in ["weight", "bias"] {
            let name = format!("model.roi_head.{layer}.{tensor}");
            let [old, new, plain] = [&first, &matched, &anew].map(|all| floats(&all[&name]));
            let width = old.len() / (rows * if background { 9 } else { 8 });
            let row = |values: &[f32], class: usize| values[class * rows * width..(class + 1) * rows * width].to_vec();
            for (to, from) in [1, 2, 4, 5].into_iter().enumerate() {
                assert_eq!(row(&new, to), row(&old, from), "{name}: class {to}");
            }
            if background {
                assert_eq!(row(&new, 5), row(&old, 8), "{name}: the background");
            }
            assert_eq!(row(&new, 4), row(&plain, 4), "{name}: the new class starts as without the option");
            // Biases start with zeros, and may stay so.
            let is_other = tensor == "bias" || row(&plain, 0) != row(&old, 1);
            assert!(is_other, "{name}: without the option, rows are re-initialized");
        }
    }
    let name = "model.roi_head.bbox_head.shared_fcs.0.weight";
    assert!(matched[name] == first[name] && anew[name] == first[name]);

    scene.launch("--device cpu --nproc 1 train cfg.toml --match-classes").expect(2, &["--load-from"]);
}

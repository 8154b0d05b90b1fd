//! `test`: the same results on any number of workers, and the reference's options of evaluation.

use std::fs;

use crate::outputs::object;
use crate::support::Scene;

#[test]
fn any_number_of_workers_writes_the_same_bytes() {
    let scene = Scene::with_pictures(8, 21);
    scene.one("train cfg.toml --no-validate --set train.epochs=2 optimizer.lr=0.003");
    let files = |workers: usize| {
        scene
            .launch(&format!(
                "--device cpu --nproc {workers} test work_dirs/cfg/latest.ckpt --eval bbox segm proposal \
                 --out found_{workers}.json --metrics metrics_{workers}.json --set evaluation.classwise=true"
            ))
            .expect(0, &["21 pictures"]);
        [format!("found_{workers}.bbox.json"), format!("found_{workers}.segm.json"), format!("metrics_{workers}.json")]
            .map(|name| fs::read(scene.path(&name)).unwrap())
    };
    let alone = files(1);
    let found: Vec<serde_json::Value> = serde_json::from_slice(&alone[1]).unwrap();
    let pictures: std::collections::BTreeSet<_> = found.iter().map(|entry| entry["image_id"].as_u64()).collect();
    assert!(
        found.len() > 100 && pictures.len() > 15,
        "{} objects in {} pictures prove little",
        found.len(),
        pictures.len()
    );
    for workers in [2, 4, 8] {
        assert!(files(workers) == alone, "{workers} workers wrote other bytes than one");
    }
}

#[test]
fn thresholds_limits_and_items_are_those_of_the_config() {
    let scene = Scene::with_pictures(4, 4);
    scene.one("train cfg.toml --no-validate --set train.epochs=1");
    let told = scene.one(
        "test work_dirs/cfg/latest.ckpt --eval bbox proposal --metrics metrics.json --set evaluation.classwise=true \
         evaluation.iou_thrs=[0.1,0.5] evaluation.proposal_nums=[3,50] evaluation.metric_items=[\"mAP_50\",\"AR@3\",\"AR_l@50\"]",
    );
    told.expect(0, &["AP with 50 detections a picture", "AR@3 ", "AR@50 ", "class     bbox AP\nring "]);
    let metrics = object(&scene.path("metrics.json"));
    let names: Vec<&String> = metrics.keys().collect();
    assert_eq!(names, ["bbox_mAP_50", "bbox_AR@3", "bbox_AR_l@50", "mAP_50", "AR@3", "AR_l@50", "classwise"]);
    assert_eq!(metrics["classwise"]["bbox"].as_object().unwrap().len(), 8);
    assert!(metrics["classwise"].get("proposal").is_none(), "classes do not count for proposals");

    let told = scene.one("test work_dirs/cfg/latest.ckpt --eval proposal --metrics recall.json");
    told.expect(0, &["recall whatever the class"]);
    let names: Vec<String> = object(&scene.path("recall.json")).keys().cloned().collect();
    assert_eq!(names, ["AR@100", "AR@300", "AR@1000", "AR_s@1000", "AR_m@1000", "AR_l@1000"]);

    let wrong =
        scene.launch("--device cpu --nproc 1 test work_dirs/cfg/latest.ckpt --set evaluation.proposal_nums=[5,5]");
    wrong.expect(2, &["evaluation.proposal_nums is [5, 5]", "rising"]);
    scene.launch("--device cpu --nproc 1 test work_dirs/cfg/latest.ckpt --eval proposal_fast").expect(2, &["proposal"]);
}

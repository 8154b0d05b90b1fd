//! Other programs that start workers or read what they leave.

use std::net::TcpListener;

use serde_json::Value;

use crate::outputs::{files, losses, tensors};
use crate::support::{Scene, finish, python_tool, steps, worker_program};

#[test]
fn torchrun_starts_the_same_job() {
    let Some(torchrun) = python_tool("torchrun", "torchrun_starts_the_same_job") else { return };
    let scene = Scene::new();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let worker = worker_program();
    let line = format!(
        "--no-python --nproc-per-node 2 --master-port {port} {} train cfg.toml --work-dir by_torchrun --set train.epochs=1",
        worker.display()
    );
    let mut command = scene.command(&torchrun, &line);
    command.env("CUDA_VISIBLE_DEVICES", "");
    finish(command).expect(0, &[&format!("Epoch [1][{0}/{0}]", steps(2)), "Saved by_torchrun/epoch_1.ckpt"]);
    scene.assert_nothing_left();

    scene.two("train cfg.toml --work-dir by_fnet --set train.epochs=1");
    assert_eq!(losses(&scene.path("by_torchrun")), losses(&scene.path("by_fnet")));
    let [a, b] = ["by_torchrun", "by_fnet"].map(|name| tensors(&scene.path(name).join("latest.ckpt")));
    assert!(a == b, "the weights differ");
}

const READ_BOARD: &str = "
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
board = EventAccumulator(sys.argv[1], size_guidance={'scalars': 0, 'tensors': 0})
board.Reload()
scalars = {tag: [[event.step, event.value] for event in board.Scalars(tag)] for tag in board.Tags()['scalars']}
texts = {tag: [[event.step, event.tensor_proto.string_val[0].decode()] for event in board.Tensors(tag)]
         for tag in board.Tags()['tensors']}
print(json.dumps({'scalars': scalars, 'texts': texts}))
";

#[test]
fn tensorboard_itself_reads_the_references_tags() {
    let test = "tensorboard_itself_reads_the_references_tags";
    let Some(python) = python_tool("python", test) else { return };
    let scene = Scene::new();
    let mut import = scene.command(&python, "-c");
    import.arg("import tensorboard");
    if finish(import).code != 0 {
        println!("SKIPPED {test}: {} has no package tensorboard", python.display());
        return;
    }
    scene.two("train cfg.toml");
    let mut read = scene.command(&python, "-c");
    read.arg(READ_BOARD).arg(scene.path("work_dirs/cfg/tensorboard"));
    let ended = finish(read);
    let board: Value = serde_json::from_str(&ended.expect(0, &[]).stdout).unwrap();

    let mut expected: Vec<String> =
        ["rpn_cls", "rpn_bbox", "cls", "bbox", "mask"].map(|name| format!("train/loss_{name}")).into();
    expected.extend(["train/loss", "train/acc", "learning_rate", "momentum"].map(String::from));
    for kind in ["bbox", "segm"] {
        expected.extend(["", "_50", "_75", "_s", "_m", "_l"].map(|suffix| format!("val/{kind}_mAP{suffix}")));
    }
    expected.sort();
    let scalars = board["scalars"].as_object().unwrap();
    let mut tags: Vec<&String> = scalars.keys().collect();
    tags.sort();
    assert_eq!(tags, expected.iter().collect::<Vec<_>>());

    let count = steps(2) as u64;
    let places = |tag: &str| -> Vec<u64> {
        scalars[tag].as_array().unwrap().iter().map(|event| event[0].as_u64().unwrap()).collect()
    };
    assert_eq!(places("train/loss"), (1..=2 * count).collect::<Vec<_>>());
    assert_eq!(places("val/bbox_mAP"), [count + 1, 2 * count + 1], "one after the last step of the epoch");
    assert_eq!(scalars["momentum"][0][1].as_f64().unwrap() as f32, 0.9, "AdamW's first decay");

    let texts = board["texts"].as_object().unwrap();
    let row = texts.iter().find(|(tag, _)| tag.starts_with("val/bbox_mAP_copypaste")).unwrap().1;
    assert_eq!(row[0][1].as_str().unwrap().split(' ').count(), 6, "{row}");

    // The board and the JSON lines tell the same story.
    let folder = scene.path("work_dirs/cfg");
    for (line, event) in losses(&folder).iter().zip(scalars["train/loss"].as_array().unwrap()) {
        assert!((line["loss"].as_f64().unwrap() - event[1].as_f64().unwrap()).abs() < 1e-4);
    }
    assert_eq!(files(&folder.join("tensorboard"), "").len(), 1);
}

#[test]
fn without_tensorboard_no_folder_is_made() {
    let scene = Scene::new();
    scene.one("train cfg.toml --no-validate --set train.epochs=1 log.tensorboard=false");
    assert!(!scene.path("work_dirs/cfg/tensorboard").exists());
}

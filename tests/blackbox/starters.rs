//! Other programs that start workers or read what they leave.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use fnet_protocol::env;
use fnet_protocol::work_dir::{self, Lock};
use serde_json::Value;

use crate::outputs::{files, losses, object, tensors};
use crate::processes::free_port;
use crate::support::{Running, Scene, finish, python_tool, skip, until, worker_program};

/// Each rank would otherwise train alone, all of them in one folder.
#[test]
fn ranks_of_mpirun_are_refused_by_a_worker_without_mpi() {
    let scene = Scene::new();
    let mut command = scene.command(&worker_program(), "train cfg.toml");
    command.env("OMPI_COMM_WORLD_RANK", "1").env("OMPI_COMM_WORLD_SIZE", "2").env(env::MPI_LIBRARY, "/nowhere");
    finish(command).expect(2, &["mpirun started 2 ranks", "`make mpi`", "fnet-launch"]);
    assert!(!scene.path("work_dirs").exists());
}

/// The variables of two tasks of one step, as srun sets them.
fn srun(scene: &Scene, rank: usize, line: &str) -> Command {
    let mut command = scene.command(&worker_program(), line);
    let rank = rank.to_string();
    for (name, value) in [
        ("SLURM_STEP_ID", "0"),
        ("SLURM_STEP_NUM_TASKS", "2"),
        ("SLURM_STEP_NUM_NODES", "1"),
        ("SLURM_PROCID", &rank),
        ("SLURM_LOCALID", &rank),
        ("CUDA_VISIBLE_DEVICES", ""),
    ] {
        command.env(name, value);
    }
    command
}

/// Two ranks that srun has started.
fn tasks(scene: &Scene, line: &str) -> [Running; 2] {
    let port = free_port();
    [0, 1].map(|rank| {
        let mut command = srun(scene, rank, line);
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
        Running::start(command, scene.path(&format!("stderr_{rank}.txt")))
    })
}

#[test]
fn ranks_that_another_program_starts_lock_their_work_folder() {
    let scene = Scene::small();
    let folder = scene.path("work_dirs/cfg");
    fs::create_dir_all(&folder).unwrap();
    let line = "train cfg.toml --no-validate --set train.epochs=1";
    let Lock::Held(held) = work_dir::lock(&folder) else { panic!("cannot lock {}", folder.display()) };
    for task in tasks(&scene, line) {
        task.wait().expect(2, &["another job trains into work_dirs/cfg"]);
    }
    drop(held);
    for (task, texts) in tasks(&scene, line).into_iter().zip([&["Saved work_dirs/cfg/epoch_1.ckpt"][..], &[]]) {
        task.wait().expect(0, texts);
    }
    assert!(matches!(work_dir::lock(&folder), Lock::Held(_)));
}

#[test]
fn a_terminal_that_takes_nothing_holds_nobody_up() {
    let scene = Scene::small();
    let line = "train cfg.toml --no-validate --set train.epochs=1";
    for (code, line) in [
        (0, line.to_owned()),
        (2, "train none.toml".to_owned()),
        (1, format!("{line} --work-dir panics --fault panic:rank=0,phase=forward")),
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut filler = writer.try_clone().unwrap();
        let mut command = scene.command(&worker_program(), &line);
        let mut child = command.env("CUDA_VISIBLE_DEVICES", "").stdout(Stdio::null()).stderr(writer).spawn().unwrap();
        // Only drops the pipe's writing end in this process.
        drop(command);
        let full = std::thread::spawn(move || while filler.write(&[b' '; 4096]).is_ok() {});
        let mut status = None;
        until(&line, || {
            status = child.try_wait().unwrap();
            status.is_some()
        });
        drop(reader);
        full.join().unwrap();
        assert_eq!(status.unwrap().code(), Some(code), "{line}");
    }
    let folder = scene.path("work_dirs/cfg");
    let log = fs::read_to_string(&files(&folder, ".log")[0]).unwrap();
    let last = format!("Epoch [1][{0}/{0}]", scene.steps(1));
    assert!(log.contains(&last) && log.contains("Saved work_dirs/cfg/epoch_1.ckpt"), "{log}");
    assert_eq!(losses(&folder).len(), scene.steps(1));
}

#[test]
fn tasks_of_srun_without_an_address_are_refused() {
    let scene = Scene::new();
    let command = srun(&scene, 1, "train cfg.toml");
    finish(command).expect(2, &["srun started 2 tasks", "no MASTER_ADDR and no MASTER_PORT", "scontrol"]);
    assert!(!scene.path("work_dirs").exists());
}

#[test]
fn srun_and_torchrun_start_the_same_job() {
    let scene = Scene::small();
    scene.two("train cfg.toml --work-dir by_fnet --set train.epochs=1");
    let is_the_same = |name: &str| {
        let of = |name: &str| (losses(&scene.path(name)), tensors(&scene.path(name).join("latest.ckpt")));
        assert!(of(name) == of("by_fnet"), "{name}: the losses or the weights differ");
    };
    let tasks = tasks(&scene, "train cfg.toml --work-dir by_srun --set train.epochs=1");
    for (task, texts) in tasks.into_iter().zip([&["Saved by_srun/epoch_1.ckpt"][..], &[]]) {
        task.wait().expect(0, texts);
    }
    is_the_same("by_srun");

    let Some(torchrun) = python_tool("torchrun") else { return };
    let line = format!(
        "--no-python --nproc-per-node 2 --master-port {} {} train cfg.toml --work-dir by_torchrun --set train.epochs=1",
        free_port(),
        worker_program().display()
    );
    let mut command = scene.command(&torchrun, &line);
    command.env("CUDA_VISIBLE_DEVICES", "");
    finish(command).expect(0, &[&format!("Epoch [1][{0}/{0}]", scene.steps(2)), "Saved by_torchrun/epoch_1.ckpt"]);
    scene.assert_nothing_left();
    is_the_same("by_torchrun");
}

const READ_BOARD: &str = "
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
board = EventAccumulator(sys.argv[1], size_guidance={'scalars': 0, 'tensors': 0})
board.Reload()
scalars = {tag: [[event.step, event.value] for event in board.Scalars(tag)] for tag in board.Tags()['scalars']}
texts = {tag: [[event.step, event.tensor_proto.string_val[0].decode()] for event in board.Tensors(tag)]
         for tag in board.Tags()['tensors'] if board.SummaryMetadata(tag).plugin_data.plugin_name == 'text'}
print(json.dumps({'scalars': scalars, 'texts': texts, 'images': board.Tags()['images']}))
";

#[test]
fn tensorboard_itself_reads_the_references_tags() {
    let Some(python) = python_tool("python") else { return };
    let scene = Scene::small();
    let mut import = scene.command(&python, "-c");
    import.arg("import tensorboard");
    if finish(import).code != 0 {
        return skip(&format!("{} has no package tensorboard", python.display()));
    }
    scene.two("train cfg.toml --set log.tensorboard=true");
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
    // Undefined metrics are left out.
    let metrics = object(&scene.path("work_dirs/cfg/results/epoch_2.metrics.json"));
    expected.retain(|tag| tag.strip_prefix("val/").is_none_or(|name| metrics[name].as_f64() != Some(-1.0)));
    expected.sort();
    let scalars = board["scalars"].as_object().unwrap();
    let own = ["time/", "speed/", "memory/"];
    let mut tags: Vec<&String> = scalars.keys().filter(|tag| !own.iter().any(|start| tag.starts_with(start))).collect();
    tags.sort();
    assert_eq!(tags, expected.iter().collect::<Vec<_>>());

    let count = scene.steps(2) as u64;
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
    let own = files(&folder.join("tensorboard"), "");
    assert_eq!(own.iter().filter(|path| path.is_file()).count(), 1);
    assert_eq!(places("speed/images_per_second"), places("train/loss"));
    assert!(["time/forward", "time/waiting", "memory/peak_MiB"].iter().all(|tag| scalars.contains_key(*tag)));
    assert!(texts["config/text_summary"][0][1].as_str().unwrap().contains("embed_dim = 8"));

    let mut read = scene.command(&python, "-c");
    read.arg(READ_BOARD).arg(scene.path("work_dirs/cfg/tensorboard/by_epoch"));
    let board: Value = serde_json::from_str(&finish(read).expect(0, &[]).stdout).unwrap();
    for tag in ["val_by_epoch/bbox_mAP", "straggler/rank"] {
        let epochs: Vec<&Value> = board["scalars"][tag].as_array().unwrap().iter().map(|event| &event[0]).collect();
        assert_eq!(epochs, [1, 2], "{tag}");
    }
    assert_eq!(board["images"].as_array().unwrap().len(), 4, "{}", board["images"]);
}

//! The commands in docs/custom-data.md and docs/guide.md do what the pages say.

use std::fs;
use std::path::Path;

use crate::outputs::{files, object};
use crate::simulated::Gpus;
use crate::support::{Scene, finish, worker_program};

/// How long the pages train and on how many images, and the short form: the same commands, on few images.
const LENGTH: [(&str, &str); 2] =
    [("epochs = 18", "epochs = 1"), ("--images 300 --val-images 40", "--images 20 --val-images 8")];

/// The shell command blocks of a page.
fn blocks(page: &str) -> Vec<String> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(page)).unwrap();
    let parts = text.split("\n```sh\n").skip(1);
    parts.map(|part| part.split_once("\n```").expect("an open block").0.to_owned()).collect()
}

/// Copies the configs of this repository.
fn copy_configs(to: &Path) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
    for folder in ["", "_base_"] {
        fs::create_dir_all(to.join(folder)).unwrap();
        for file in files(&from.join(folder), ".toml") {
            fs::copy(&file, to.join(folder).join(file.file_name().unwrap())).unwrap();
        }
    }
}

#[test]
fn the_commands_of_the_custom_data_page_and_of_the_guide_run() {
    let (tutorial, guide) = (blocks("custom-data.md"), blocks("guide.md"));
    let is_full = std::env::var_os("FNET_FULL_TUTORIAL").is_some();
    for (length, _) in LENGTH {
        assert!(tutorial.iter().any(|block| block.contains(length)), "the page has no `{length}`");
    }
    let (on_gpus, guide): (Vec<_>, Vec<_>) = guide.into_iter().partition(|block| block.contains("--gpus"));
    assert!(on_gpus.len() >= 2 && guide.len() >= 6, "{guide:?}");
    let scene = Scene::new();
    copy_configs(&scene.path("configs"));
    let gpus = Gpus::of(|| scene.beside());
    let programs = worker_program().parent().unwrap().to_owned();
    let mut output = String::new();
    for block in tutorial.iter().chain(&guide).chain(&on_gpus) {
        let mut block = block.clone();
        if !is_full {
            block = LENGTH.iter().fold(block, |block, (length, short)| block.replace(length, short));
        }
        let (bash, options) = (Path::new("bash"), "-euo pipefail -c");
        let (mut command, folder) = match (&gpus, block.contains("--gpus")) {
            (Some(gpus), true) => (gpus.command(bash, options, &[]), gpus.path_of_programs()),
            (None, true) => continue,
            _ => (scene.command(bash, options), programs.clone()),
        };
        let path = command.get_envs().find(|(name, _)| *name == "PATH").and_then(|(_, value)| value);
        let path = path.map_or_else(|| std::env::var_os("PATH").unwrap(), ToOwned::to_owned);
        let path = format!("{}:{}", folder.display(), path.display());
        command.arg(block).current_dir(scene.path(".")).env("PATH", path);
        let ended = finish(command);
        ended.expect(0, &[]);
        scene.assert_nothing_left();
        output += &format!("{}\n{}\n", ended.stdout, ended.stderr);
    }
    assert!(gpus.is_none() || scene.path("work_dirs/bf16/latest.ckpt").is_file());
    let kept = "classes kept: 2 (\"ring\", \"crescent\"); new classes: 0";
    for text in ["\"shapes\", \"ring\", \"crescent\"", "num_classes = 9", "category-unused", kept] {
        assert!(output.contains(text), "{text:?} was not printed:\n{output}");
    }
    let work = scene.path("work_dirs/shapes");
    assert_eq!(files(&work.join("browsed"), ".jpg").len(), 8);
    let images = if is_full { 40 } else { 8 };
    assert_eq!(files(&work.join("shown"), ".jpg").len(), images);
    assert_eq!(files(&work.join("predicted"), ".jpg").len(), images);
    assert!(work.join("shapes.pth").is_file());
    let metrics = object(&work.join("valid.json"));
    assert_eq!(metrics["classwise"]["segm"]["shapes"], -1.0, "nothing to find");
    assert_eq!(metrics["classwise"]["segm"].as_object().unwrap().len(), 9);
    let least = if is_full { 0.3 } else { 0.0 };
    assert!(metrics["segm_mAP"].as_f64().unwrap() >= least, "it does not find things: {metrics:?}");
    assert!(object(&work.join("test.json"))["bbox_mAP"].as_f64().unwrap() >= 0.0);
}

//! The commands in docs/custom-data.md do what the page says.

use std::fs;
use std::path::Path;

use crate::outputs::{files, object};
use crate::support::{Scene, finish, worker_program};

/// How long the page trains and on how many images, and the short form: the same commands, in a tenth of the time.
const LENGTH: [(&str, &str); 2] =
    [("epochs = 18", "epochs = 1"), ("--images 300 --val-images 40", "--images 60 --val-images 8")];

/// The shell command blocks of a page.
fn blocks(page: &str) -> Vec<String> {
    let parts = page.split("\n```sh\n").skip(1);
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
fn the_commands_of_the_custom_data_page_run() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/custom-data.md")).unwrap();
    let blocks = blocks(&page);
    let scene = Scene::new();
    copy_configs(&scene.path("configs"));
    let programs = worker_program().parent().unwrap().to_owned();
    let search = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let is_full = std::env::var_os("FNET_FULL_TUTORIAL").is_some();
    for (length, _) in LENGTH {
        assert!(blocks.iter().any(|block| block.contains(length)), "the page has no `{length}`");
    }
    let mut output = String::new();
    for block in &blocks {
        let short = LENGTH.iter().fold(block.clone(), |block, (length, short)| block.replace(length, short));
        let block = if is_full { block } else { &short };
        let mut command = scene.command(Path::new("bash"), "-euo pipefail -c");
        command.arg(block).env("PATH", &search);
        let ended = finish(command);
        ended.expect(0, &[]);
        scene.assert_nothing_left();
        output += &format!("{}\n{}\n", ended.stdout, ended.stderr);
    }
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

//! Jobs with all augmentations of `data.pipeline.train`.

use std::fs;

use crate::outputs::{differences, files, losses, tensors};
use crate::support::Scene;

/// Every kind, for images of at most 144 pixels.
const ALL_KINDS: [&str; 6] = [
    r#"{kind = "resize", scales = [[96, 64]], ratio_range = [0.5, 1.5]}"#,
    r#"{kind = "flip", probabilities = [0.3, 0.3, 0.3], directions = ["horizontal", "vertical", "diagonal"]}"#,
    r#"{kind = "random_crop", crop_type = "absolute_range", crop_size = [48, 80]}"#,
    r#"{kind = "color_jitter"}"#,
    r#"{kind = "pad", size = [96, 96]}"#,
    r#"{kind = "copy_paste", mask_occluded_thr = 20}"#,
];

/// Writes `augmented.toml`, which replaces the fields of the scene's config by the list.
fn write_config(scene: &Scene, kinds: &[&str]) {
    let text = format!("base = \"cfg.toml\"\ndata.pipeline.train = [{}]\n", kinds.join(", "));
    fs::write(scene.path("augmented.toml"), text).unwrap();
}

#[test]
fn a_job_with_all_augmentations_resumes_to_the_same_weights() {
    let scene = Scene::with_images(8, 4);
    write_config(&scene, &ALL_KINDS);
    let job = "train augmented.toml --no-validate --set train.epochs=2";
    let run = |folder: &str, workers: usize, rest: &str| {
        scene.launch(&format!(
            "--device cpu --nproc 2 --max-restarts 0 {job} data.workers_per_gpu={workers} --work-dir {folder} {rest}"
        ))
    };
    run("whole", 1, "").expect(0, &[]);
    let (weights, losses_of) = (tensors(&scene.path("whole/latest.ckpt")), losses(&scene.path("whole")));
    assert!(losses_of.len() >= 8, "{losses_of:?}");
    for (step, workers) in [(2, 3), (7, 0)] {
        let folder = format!("step{step}");
        run(&folder, workers, &format!("--fault term:rank=1,phase=forward,step={step}")).expect(75, &[]);
        run(&folder, workers, "--resume").expect(0, &[]);
        assert_eq!(differences(&tensors(&scene.path(&folder).join("latest.ckpt")), &weights), Vec::<String>::new());
        assert_eq!(losses(&scene.path(&folder)), losses_of);
    }
    // The augmentations matter.
    run("other", 1, "--set data.pipeline.train=[{kind=\"resize\",scales=[[96,64]]}]").expect(0, &[]);
    assert_ne!(losses(&scene.path("other")), losses_of);
}

#[test]
fn browse_and_dry_run_know_the_augmentations() {
    let scene = Scene::with_images(5, 2);
    let drawn = |folder: &str| -> Vec<Vec<u8>> {
        files(&scene.path(folder), ".jpg").into_iter().map(|path| fs::read(path).unwrap()).collect()
    };
    let pad = r#"{kind = "pad", size = [192, 192]}"#;
    let resize = r#"{kind = "resize", scales = [[96, 64]]}"#;
    write_config(&scene, &[resize]);
    scene.launch("browse augmented.toml --out plain").expect(0, &["5 of the 5 images"]);
    let cases: [(&str, &[&str]); 6] = [
        ("jitter_of_scale", &ALL_KINDS[..1]),
        ("flip", &[resize, ALL_KINDS[1]]),
        ("crop", &[resize, ALL_KINDS[2]]),
        ("color", &[resize, ALL_KINDS[3]]),
        ("pad", &[resize, pad]),
        ("paste", &[resize, pad, r#"{kind = "copy_paste", selected = false}"#]),
    ];
    for (folder, kinds) in cases {
        write_config(&scene, kinds);
        scene.launch(&format!("browse augmented.toml --out {folder}")).expect(0, &["5 of the 5 images"]);
        let images = drawn(folder);
        let changed = images.iter().zip(drawn("plain")).filter(|(image, plain)| *image != plain).count();
        assert!(images.len() == 5 && changed >= 3, "{folder}: {changed} of {}", images.len());
    }
    scene.launch("browse augmented.toml --out again").expect(0, &[]);
    assert_eq!(drawn("again"), drawn("paste"));
    assert_ne!(drawn("pad"), drawn("paste"));
    scene.launch("--device cpu --nproc 1 --dry-run train augmented.toml").expect(0, &["192x192"]);
    let wrong = "browse augmented.toml --out x --set data.pipeline.train=[{kind=\"flip\"}]";
    scene.launch(wrong).expect(2, &["data.pipeline.train", "an augmentation that limits the size"]);
    scene.launch("browse cfg.toml --out x --set data.pipeline.train=[{kind=\"rotate\"}]").expect(2, &["train[0].kind"]);
}

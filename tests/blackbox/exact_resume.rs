//! A job that is stopped after any step, or loses a rank in it, and resumes equals the job that never stopped.

use crate::outputs::{differences, losses, of_mode, progress, tensors};
use crate::support::Scene;

/// All settings with randomness or state are on; evaluation runs after each epoch, and warm-up ends in the second.
const JOB: &str = "train cfg.toml --set train.epochs=2 train.ema=0.9 optimizer.grad_clip=5.0 \
    model.backbone.drop_path_rate=0.2 data.pipeline.scales=[[96,64],[128,96]] schedule.steps=[1] \
    checkpoint.interval=2";

/// For every step of a job of `ranks` ranks on `images` images with a log line every `interval` steps: injects `fault`, which
/// ends the launcher with `code`, and resumes with another launch. Of two jobs, one is interrupted in the odd steps and one in the
/// even ones, so each part but the last trains two steps.
fn interruptions_change_nothing(ranks: usize, images: u32, interval: usize, fault: &str, code: i32) {
    let scene = Scene::with_images(images, 4);
    let place = format!("--device cpu --nproc {ranks}");
    let job = format!("{JOB} log.interval={interval}");
    scene.launch(&format!("{place} {job} --work-dir whole")).expect(0, &[]);
    let whole = scene.path("whole");
    let (expected, expected_losses) = (tensors(&whole.join("latest.ckpt")), losses(&whole));
    let steps = progress(&whole.join("latest.ckpt"));
    assert!(steps >= 4 && !expected_losses.is_empty(), "{steps} steps");
    for first in [1, 2] {
        // A rank that is lost in the first step leaves nothing to resume from.
        let job = format!("{job} --auto-resume --work-dir from{first}");
        for step in (first..=steps).step_by(2) {
            let broken = format!("{place} --max-restarts 0 {job} --fault {fault},step={step}");
            scene.launch(&broken).expect(code, &[]);
        }
        scene.launch(&format!("{place} {job}")).expect(0, &[]);
        let resumed = scene.path(&format!("from{first}"));
        assert_eq!(
            differences(&tensors(&resumed.join("latest.ckpt")), &expected),
            Vec::<String>::new(),
            "from {first}"
        );
        assert_eq!(losses(&resumed), expected_losses, "from {first}");
        assert_eq!(of_mode(&resumed, "val"), of_mode(&whole, "val"), "from {first}");
    }
}

#[test]
fn two_ranks_are_stopped_after_any_step() {
    interruptions_change_nothing(2, 4, 2, "term:rank=1,phase=forward", 75);
}

#[test]
fn three_ranks_are_stopped_after_any_step() {
    interruptions_change_nothing(3, 6, 1, "term:rank=2,phase=backward", 75);
}

#[test]
fn one_of_four_ranks_is_lost_in_any_step() {
    interruptions_change_nothing(4, 6, 1, "kill:rank=2,phase=backward", 4);
}

/// Rank 0's state is the saved model; the others must not need what only rank 0 had.
#[test]
fn the_first_rank_is_lost_in_any_step() {
    interruptions_change_nothing(2, 4, 1, "kill:rank=0,phase=forward", 4);
}

/// Rank 0's missing log line is written when the job resumes.
#[test]
fn the_first_rank_is_lost_after_the_others_have_completed_the_step() {
    interruptions_change_nothing(2, 4, 2, "kill:rank=0,phase=optimizer", 4);
}

#[test]
fn the_only_rank_panics_in_any_step() {
    interruptions_change_nothing(1, 2, 1, "panic:rank=0,phase=backward", 1);
}

#[test]
fn another_number_of_workers_resumes_within_an_epoch_and_sees_each_image_once() {
    let scene = Scene::with_images(16, 4);
    let job = "train cfg.toml --work-dir changed --set train.epochs=2";
    let on = |ranks: usize, rest: &str| scene.launch(&format!("--device cpu --nproc {ranks} {job} {rest}"));
    on(4, "--fault term:rank=0,phase=forward,step=1").expect(75, &[]);
    let ended = on(2, "--resume --fault term:rank=0,phase=forward,step=3");
    ended.expect(75, &["4 workers with 4 images per update, and this job has 2 workers with 2", "train.accumulate=2"]);
    on(4, "--resume").expect(0, &["2 workers with 2 images per update, and this job has 4 workers with 4"]);
    let epoch_of = |number: u64| losses(&scene.path("changed")).iter().filter(|line| line["epoch"] == number).count();
    // One step of 4 ranks, two of 2 ranks, then the rest in steps of 4 ranks (at least 8 images); then whole epochs.
    assert!((5..=6).contains(&epoch_of(1)), "{}", epoch_of(1));
    assert!((4..=5).contains(&epoch_of(2)), "{}", epoch_of(2));
}

//! The memory of a worker that trains with images of many sizes grows at first, because libtorch keeps what it has prepared for
//! a size, and is flat then.

use std::fs;
use std::thread;
use std::time::Duration;

use crate::outputs::losses;
use crate::support::{Scene, until};

/// The resident memory in MiB of a worker after each of the numbers of steps.
fn after(steps: [usize; 2], set: &str) -> [u64; 2] {
    let scene = Scene::of(1);
    let sizes = "data.pipeline.scale_mode=range log.interval=10 train.epochs=100000 checkpoint.interval=100000";
    let running = scene.start(&format!("--device cpu --nproc 1 train cfg.toml --no-validate --set {sizes} {set}"));
    until("training begins", || !losses(&scene.path("work_dirs/cfg")).is_empty());
    let measured = steps.map(|steps| {
        while losses(&scene.path("work_dirs/cfg")).len() < steps / 10 {
            assert!(scene.find_process("RANK", 0).is_some(), "the job has ended");
            thread::sleep(Duration::from_millis(50));
        }
        let status = fs::read_to_string(format!("/proc/{}/status", scene.worker(0))).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
    });
    running.signal("TERM");
    running.wait().expect(75, &[]);
    measured
}

fn assert_flat([before, now]: [u64; 2]) {
    assert!(now < before + before / 20, "{before} MiB, and now {now} MiB");
}

#[test]
fn a_worker_does_not_grow_from_step_to_step() {
    assert_flat(after([100, 400], "data.pipeline.scales=[[64,64],[160,96]]"));
}

#[test]
#[ignore = "takes five minutes; run by make drill"]
fn a_worker_is_flat_after_a_thousand_steps_of_a_model_that_fills_the_cache_of_convolutions() {
    let model = "model.backbone.embed_dim=32 model.neck.out_channels=64 model.rpn.feat_channels=64 \
                 model.roi_head.mask_channels=64 data.samples_per_gpu=2";
    assert_flat(after([1000, 2000], &format!("data.pipeline.scales=[[96,96],[480,320]] {model}")));
}

//! What is known of a training from outside: `status`, `metrics.prom`, the lines in its log, `log.command`, and what its
//! terminal says.

use std::fs;

use serde_json::Value;

use crate::outputs::{files, object};
use crate::support::{Scene, finish, launcher, until};

/// Reads `metrics.prom` with Prometheus' own parser.
const METRICS: &str = r"
import json
from prometheus_client.parser import text_string_to_metric_families
families = list(text_string_to_metric_families(open('work_dirs/cfg/metrics.prom').read()))
samples = [(s.name, s.labels, s.value) for f in families for s in f.samples]
assert all(f.documentation and f.type in ('gauge', 'counter') for f in families)
assert all(labels['work_dir'].endswith('work_dirs/cfg') for _, labels, _ in samples)
print(json.dumps({name + str(labels.get('name', labels.get('rank', ''))): value for name, labels, value in samples}))
";

#[test]
fn a_finished_job_is_told_by_its_terminal_its_status_its_metrics_and_its_tracker() {
    let scene = Scene::small();
    let ended = scene.two("train cfg.toml --set log.command=cat>got.jsonl log.tensorboard=true");
    let screen: Vec<&str> = ended.stderr.lines().skip_while(|line| !line.ends_with(" - Training cfg")).collect();
    for (name, text) in [
        ("model", "Mask R-CNN, fasternet with 8 channels and 1-1-1-1 blocks, "),
        ("data", "8 images for training, 4 images for validation, 8 classes"),
        ("steps", "2 epochs of "),
        ("batch", "2 images per update (2 workers, 1 image each)"),
        ("learning rate", "0.001 (adamw), policy step, warm-up of 4 steps"),
        ("precision", "float32"),
        ("devices", "2 x CPU, 1 thread each, gloo"),
        ("memory", "about "),
        ("outputs", "work_dirs/cfg, a checkpoint every epoch"),
    ] {
        let line = format!("  {name:<14} {text}");
        assert!(screen.iter().take(12).any(|shown| shown.starts_with(&line)), "{line}\n{}", ended.stderr);
    }
    let folder = scene.path("work_dirs/cfg");
    let log = fs::read_to_string(&files(&folder, ".log")[0]).unwrap();
    for text in
        ["Environment info:\n", "Config:\n[model]", " - Training cfg\n", " - fnet-launch - INFO - start: fnet-launch "]
    {
        assert!(log.contains(text), "{text} is not in the log");
        assert!(!ended.stderr.contains(text) || text.contains("Training"), "{text} is on the terminal");
    }
    assert!(log.lines().last().unwrap().contains(" - fnet-launch - INFO - end after 0:"), "{log}");
    let last: Vec<&str> =
        ended.stderr.lines().skip_while(|line| !line.starts_with("fnet-launch: done in 0:")).collect();
    let evaluate = "  evaluate    fnet-launch --device cpu --nproc 2 test work_dirs/cfg/latest.ckpt";
    assert!(last.len() == 6 && last.contains(&evaluate), "{last:?}");

    let lines = fs::read_to_string(&files(&folder, ".log.json")[0]).unwrap();
    assert_eq!(fs::read_to_string(scene.path("got.jsonl")).unwrap(), lines);

    let page = scene.launch("status work_dirs/cfg").expect(0, &["ended: done", "epoch 2: bbox_mAP "]).stdout.clone();
    assert!(page.contains("loss_rpn_cls ") && page.contains("latest.ckpt") || page.contains("epoch_2.ckpt"), "{page}");
    let status = object(&folder.join("status.json"));
    assert_eq!(status["training"]["step"], status["training"]["total_steps"]);
    if let Some(metrics) = scene.python(METRICS) {
        let metrics: Value = serde_json::from_str(&metrics).unwrap();
        let number = |name: &str| metrics[name].as_f64().unwrap_or_else(|| panic!("{name}: {metrics}"));
        assert_eq!((number("fnet_steps_done"), number("fnet_job_running")), (number("fnet_steps"), 0.0));
        assert_eq!(
            (number("fnet_epoch"), number("fnet_job_exit_code"), number("fnet_restarts_total")),
            (2.0, 0.0, 0.0)
        );
        assert!(number("fnet_lossloss") > 0.0 && number("fnet_images_per_second") > 0.0);
        assert!(number("fnet_metricbbox_mAP") >= 0.0);
    }
}

#[test]
fn a_hang_is_seen_in_the_status_and_a_program_that_ends_early_stops_no_job() {
    let scene = Scene::of(1);
    let fault = "--fault sleep:rank=1,phase=forward,step=3";
    let line = format!("--device cpu --nproc 2 --max-restarts 0 --step-timeout 12 --grace 2 train cfg.toml {fault}");
    let running = scene.start(&format!("{line} --no-validate --set log.command=false"));
    let mut page = String::new();
    until("the status shows the hang", || {
        page = finish(scene.command(&launcher(), "status work_dirs/cfg")).stdout;
        page.contains("no progress for")
    });
    for text in ["running", "waiting for the other ranks in all-reduce", "forward, epoch 1, step 3, no progress for"] {
        assert!(page.contains(text), "{text}: {page}");
    }
    let ended = running.wait();
    ended.expect(5, &["the program of log.command has ended (exit status: "]);
    let page = scene.launch("status work_dirs/cfg").expect(0, &["failed with code 5 (a worker hung)"]).stdout.clone();
    assert!(page.contains("cause        rank 1 failed: has been in forward, epoch 1, step 3"), "{page}");
}

use std::fs;

use fnet_protocol::exit;
use fnet_protocol::message::{Phase, Progress, WorkerStatus};
use serde_json::{Map, Value, json};

use super::*;
use crate::attempt::status::JobStage;
use crate::plan::nvml::GpuState;

/// A status of a launcher that is this process.
fn status() -> JobStatus {
    let training = Progress {
        phase: Phase::Backward,
        epoch: 2,
        epochs: 12,
        step: 120,
        total_steps: 400,
        loss: Some(0.51234),
        losses: Map::from_iter([("loss_cls".into(), 0.25.into()), ("loss".into(), Value::Null)]),
        learning_rate: Some(2e-4),
        images_per_second: Some(8.125),
        memory_bytes: Some(3 << 29),
        eta_seconds: Some(3723.0),
        ..Progress::default()
    };
    let working =
        WorkerStatus { phase: Phase::Forward, epoch: 2, step: 121, idle_seconds: 0.5, ..WorkerStatus::default() };
    let rank =
        |rank| RankState { rank, silent_seconds: Some(0.5), status: Some(working.clone()), usage: Usage::default() };
    JobStatus {
        version: "1".into(),
        command: "fnet-launch train a.toml".into(),
        work_dir: "/data/\"a\"".into(),
        host: "node0".into(),
        launcher: Writer::this(),
        world_size: 2,
        started: 1000.0,
        updated: 2000.0,
        stage: JobStage::Running,
        log: Some("a.log".into()),
        training: Some(training),
        evaluation: Some(Evaluated {
            epoch: 1,
            metrics: Map::from_iter([("bbox_mAP".into(), 0.4.into()), ("bbox_mAP_l".into(), Value::Null)]),
        }),
        slowest: Some((1, 0.25)),
        membership: vec![MembershipChange { at: 1500.0, text: "node 2 (c) has left".into() }],
        restarts: vec![Restart { at: 1500.0, rank: 1, exit_code: 4, reason: "killed by SIGKILL".into() }],
        lost_seconds: 100.0,
        ranks: vec![rank(0), rank(1)],
        ..JobStatus::default()
    }
}

#[test]
fn the_live_line_fits_any_width_and_keeps_what_matters_most() {
    let training = status();
    let images = Progress {
        phase: Phase::Evaluation,
        epoch: 2,
        epochs: 12,
        step: 120,
        total_steps: 5000,
        ..Progress::default()
    };
    let evaluating = JobStatus { evaluating: Some(images), ..status() };
    let starting = JobStatus { training: None, ..status() };
    for job in [&training, &evaluating, &starting] {
        for width in 1..=300 {
            let line = show::line(job, Some(width));
            assert!((1..=width).contains(&line.chars().count()), "{width}: {line}");
        }
    }
    assert_eq!(show::line(&training, Some(37)), "train 2/12 120/400 ETA 1:02:03");
    let medium = "train epoch 2/12 120/400 loss 0.5123, 8.1 img/s, 1.5 GiB, ETA 1:02:03";
    assert_eq!(show::line(&training, Some(77)), medium);
    let bar = format!("{}{}", "█".repeat(12), "░".repeat(28));
    let wide = "120/400 loss 0.5123, 8.1 img/s, 1.5 GiB, slowest rank 1 (+0.25 s), ETA 1:02:03";
    assert_eq!(show::line(&training, Some(197)), format!("train epoch 2/12 {bar} {wide}"));
    assert_eq!(show::line(&training, None), format!("train epoch 2/12 {wide}"));
    assert_eq!(show::line(&evaluating, Some(35)), "evaluate 2/12 120/5000 images");
    assert_eq!(show::line(&starting, None), "start: forward, 0:00");
    let mut stuck = status();
    stuck.ranks.iter_mut().flat_map(|rank| &mut rank.status).for_each(|of| of.idle_seconds = 45.0);
    assert_eq!(show::line(&stuck, Some(45)), "train 2/12 120/400 no progress for 0:45");
    let page = show::page(&stuck, JobState::Running, 2001.0);
    assert!(page.contains("forward, epoch 2, step 121, no progress for 0:45"), "{page}");
}

#[test]
fn a_reader_concludes_whether_the_job_runs() {
    let change = |key: &str, value: Value| {
        let mut json = serde_json::to_value(status()).unwrap();
        *json.pointer_mut(key).unwrap() = value;
        serde_json::from_value::<JobStatus>(json).unwrap()
    };
    let waiting = JobStatus { stage: JobStage::Waiting, ..status() };
    let end = |exit_code| Some(JobEnd { at: 2000.0, exit_code, reason: Some("rank 1 failed".into()) });
    let other_host = change("/launcher/host", "elsewhere".into());
    for (job, age, expected, text) in [
        (&status(), 1.0, JobState::Running, "running"),
        (&status(), 60.0, JobState::Stalled, "silent for 1:00: its launcher"),
        (&waiting, 1.0, JobState::Running, "about to restart"),
        (&waiting, 60.0, JobState::Stalled, "silent for 1:00: its launcher"),
        (&change("/launcher/started", 1.into()), 1.0, JobState::Killed, "killed: its launcher"),
        (&other_host, 1.0, JobState::Running, "running"),
        (&other_host, 60.0, JobState::Unknown, "on node0) was killed"),
        (
            &JobStatus { end: end(exit::HANG), ..other_host.clone() },
            60.0,
            JobState::Ended,
            "failed with code 5 (a worker hung)",
        ),
        (&JobStatus { end: end(exit::STOPPED), ..status() }, 60.0, JobState::Ended, "run again with --resume"),
    ] {
        let now = 2000.0 + age;
        assert_eq!(job.judge(age), expected, "{text}");
        let page = show::page(job, expected, now);
        assert!(page.contains(text), "{page}");
        for known in
            ["loss_cls 0.2500", "bbox_mAP 0.4000", "rank 1 failed, code 4: killed by SIGKILL", "1:40 lost (10.0 %)"]
        {
            assert!(page.contains(known) || age > 1.0 && known.contains('%'), "{known}: {page}");
        }
        assert!(!page.contains("bbox_mAP_l"), "it is undefined");
        assert!(page.contains("forward, epoch 2, step 121\n"), "{page}");
    }
}

#[test]
fn a_folder_without_a_sound_status_is_refused_with_a_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for name in ["other", "unstarted", "damaged", "future", "pipe/status.json"] {
        fs::create_dir_all(at(name)).unwrap();
    }
    fs::write(at("a.toml"), "").unwrap();
    fs::write(at("unstarted/config.toml"), "").unwrap();
    fs::write(at("damaged/status.json"), "{\"version\": \"1\"").unwrap();
    // A newer version may know more.
    let mut newer = serde_json::to_value(status()).unwrap();
    newer["mood"] = json!("good");
    newer["stage"] = json!("dreaming");
    fs::write(at("future/status.json"), newer.to_string()).unwrap();
    assert_eq!(read(&at("future")).unwrap().stage, JobStage::Unknown);
    for (name, code, text) in [
        ("none", exit::USAGE, "no such folder; give the work folder"),
        ("a.toml", exit::USAGE, "a file, not a work folder; give the work folder of a training, such as work_dirs/a"),
        ("other", exit::USAGE, "neither status.json nor config.toml"),
        ("unstarted", exit::DATA, "status.json does not exist: only trainings under fnet-launch write it"),
        ("damaged", exit::DATA, "not the status of a training: EOF while parsing"),
        ("pipe", exit::DATA, "not a regular file"),
    ] {
        let error = read(&at(name)).unwrap_err();
        assert!(error.code == code && error.message().contains(text), "{name}: {error}");
    }
}

#[test]
fn each_rank_has_the_use_of_its_own_gpu() {
    let gpu = |uuid: &str, used: u64| GpuState {
        uuid: Some(uuid.to_owned()),
        memory_total: 10,
        memory_free: 10 - used,
        ..GpuState::default()
    };
    let entries = ["GPU-a", "MIG-x", "GPU-b"].map(str::to_owned);
    let uses = keeper::gpu_uses(&[4, 5, 6], &entries, &[gpu("GPU-b", 2), gpu("GPU-a", 1)], true);
    let uses: Vec<_> = uses.iter().map(|of| (of.rank, of.device.as_str(), of.memory_used_bytes)).collect();
    assert_eq!(uses, [(4, "GPU-a", 1), (6, "GPU-b", 2)]);
}

#[test]
fn the_metrics_leave_out_what_is_not_known() {
    let text = prometheus::text(&status());
    assert!(text.contains("fnet_loss{work_dir=\"/data/\\\"a\\\"\",name=\"loss_cls\"} 0.25\n"), "{text}");
    assert!(text.contains("fnet_restarts_total{work_dir=\"/data/\\\"a\\\"\"} 1\n"), "{text}");
    for unknown in ["name=\"loss\"", "exit_code", "gpu", "NaN"] {
        assert!(!text.contains(unknown), "{unknown}: {text}");
    }
}

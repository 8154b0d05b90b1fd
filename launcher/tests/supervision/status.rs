//! What is known of a job from outside: `status`, its files, the lines in the log, the live line.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;

use crate::support::{Scene, TIMEOUT, code, signal, stderr, until};

const TWO: &str = "--device cpu --nproc 2 --max-restarts 0 train cfg.toml";

/// The answer of `status --json`.
fn status(scene: &Scene) -> Value {
    let output = scene.run("", "status work_dirs/cfg --json");
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn page(scene: &Scene) -> String {
    String::from_utf8(scene.run("", "status work_dirs/cfg").stdout).unwrap()
}

#[test]
fn the_status_tells_a_running_job_from_one_whose_launcher_was_killed() {
    let scene = Scene::new();
    let running = scene.start("pace", TWO, 2);
    let progress = || {
        fs::read_to_string(scene.path("work_dirs/cfg/status.json")).is_ok_and(|text| text.contains("\"ranks\": [\n"))
    };
    until("the ranks are in the status", TIMEOUT, progress);
    let now = status(&scene);
    assert_eq!((&now["verdict"], &now["stage"], &now["world_size"]), (&"running".into(), &"running".into(), &2.into()));
    let ranks = now["ranks"].as_array().unwrap();
    assert!(ranks.iter().all(|rank| rank["status"]["phase"] == "backward" && rank["memory_bytes"].as_u64() > Some(0)));
    assert!(page(&scene).contains("backward, epoch 1, step "), "{}", page(&scene));
    let check = || scene.run("", "status work_dirs/cfg --check");
    assert_eq!((code(&check()), check().stdout), (0, b"running\n".to_vec()));
    running.signal("KILL");
    running.wait();
    assert_eq!(status(&scene)["verdict"], "killed");
    assert_eq!(code(&check()), 4);
    assert!(page(&scene).contains("killed: its launcher"), "{}", page(&scene));
    until("the workers are gone", TIMEOUT, || scene.processes().is_empty());
}

#[test]
fn a_launcher_on_another_host_runs_if_it_writes_whatever_its_clock_says() {
    let scene = Scene::new();
    assert_eq!(code(&scene.run("finish", TWO)), 0);
    let file = scene.path("work_dirs/cfg/status.json");
    let mut status: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    (status["end"], status["launcher"]["host"]) = (Value::Null, "elsewhere".into());
    for ahead in [-3600.0, 3600.0] {
        let clock = status["updated"].as_f64().unwrap() + ahead;
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let mut status = status.clone();
        let file = file.clone();
        let writer = std::thread::spawn(move || {
            for second in 0.. {
                status["updated"] = (clock + f64::from(second)).into();
                fs::write(file.with_extension("new"), status.to_string()).unwrap();
                fs::rename(file.with_extension("new"), &file).unwrap();
                if stopped.recv_timeout(Duration::from_secs(1)) != Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                    return;
                }
            }
        });
        let output = scene.run("", "status work_dirs/cfg --check");
        assert_eq!((code(&output), output.stdout), (0, b"running\n".to_vec()), "{ahead}");
        drop(stop);
        writer.join().unwrap();
    }
}

#[test]
fn an_ended_job_is_shown_with_its_restarts_and_its_cause_and_both_are_in_the_log() {
    let scene = Scene::new();
    assert_eq!(code(&scene.run("restart", "--device cpu --nproc 2 --max-restarts 2 train cfg.toml --seed 3")), 0);
    for rank in 0..2 {
        let arguments = scene.read(&format!("arguments_{rank}"));
        assert_eq!(arguments, "train --seed=3 cfg.toml\ntrain --resume --seed=3 cfg.toml\n");
    }
    let ended = status(&scene);
    assert_eq!((&ended["verdict"], &ended["end"]["exit_code"]), (&"ended".into(), &0.into()));
    assert_eq!((&ended["restarts"][0]["rank"], &ended["restarts"][0]["exit_code"]), (&1.into(), &4.into()));
    assert!(ended["lost_seconds"].as_f64() > Some(0.0) && ended["ranks"].as_array().unwrap().is_empty(), "{ended}");
    let metrics = scene.read("work_dirs/cfg/metrics.prom");
    assert!(
        metrics.contains("# TYPE fnet_restarts_total counter\n") && metrics.contains("fnet_job_exit_code"),
        "{metrics}"
    );
    let log = scene.read("work_dirs/cfg/run.log");
    for (level, text) in [
        ("INFO", "start: fnet-launch --device cpu --nproc 2"),
        ("ERROR", "rank 1 failed: killed by SIGKILL"),
        ("WARNING", "restarting in 0 s (restart 1 of 2)"),
        ("INFO", "restart 1 after rank 1 failed: killed by SIGKILL"),
        ("INFO", "end after 0:0"),
    ] {
        let is_it = |line: &str| line.contains(&format!(" - fnet-launch - {level} - {text}"));
        assert!(log.lines().any(is_it), "{level} {text}: {log}");
    }

    let scene = Scene::new();
    assert_eq!(code(&scene.run("code=3@1", TWO)), 3);
    let ended = status(&scene);
    assert_eq!((&ended["verdict"], &ended["end"]["exit_code"]), (&"ended".into(), &3.into()));
    assert_eq!(code(&scene.run("", "status work_dirs/cfg --check")), 3);
    assert!(ended["end"]["reason"].as_str().unwrap().contains("rank 1 failed: exited with code 3"), "{ended}");
    assert!(
        page(&scene).contains("failed with code 3 (the data or a checkpoint is wrong or missing)"),
        "{}",
        page(&scene)
    );
    let watched = scene.run("", "status work_dirs/cfg --watch --json");
    assert_eq!(
        (code(&watched), watched.stdout.iter().filter(|&&byte| byte == b'\n').count()),
        (0, 1),
        "the job has ended"
    );
    assert_eq!(code(&scene.run("", "status .")), 2);
}

#[test]
fn a_live_line_fits_the_terminal_and_leaves_nothing_behind() {
    let scene = Scene::new();
    let program = env!("CARGO_BIN_EXE_fnet-launch");
    let inside = format!("stty rows 24 cols 40; echo $$ > pid; exec {program} --device cpu --nproc 1 train cfg.toml");
    let mut script = scene.program("script", "pace");
    script.args(["-qefc", &inside, "typescript"]).env("SHELL", "/bin/sh");
    let mut child = script.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let typed = || String::from_utf8_lossy(&fs::read(scene.path("typescript")).unwrap_or_default()).into_owned();
    until("steps are shown", TIMEOUT, || typed().matches("\r\x1b[2K").count() > 3 && typed().contains("train 1/3 "));
    signal(scene.read("pid").trim().parse().unwrap(), "INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let text = typed();
    let live: Vec<&str> = text.split("\r\x1b[2K").filter_map(|part| part.split(['\r', '\n']).next()).collect();
    assert!(live.iter().any(|line| line.starts_with("train 1/3 ") && line.contains("ETA")), "{live:?}");
    for line in live.iter().filter(|line| line.starts_with("train") || line.starts_with("start:")) {
        assert!(line.chars().count() < 40, "{line}");
    }
    // The last state of the line is removed, and whole lines follow.
    let after = text.rsplit("\r\x1b[2K").next().unwrap();
    assert!(!after.contains("train 1/3") && after.contains("stopped on request"), "{after:?}");
    scene.assert_nothing_left();
}

//! The launcher looks after its workers: causes, exit codes, signals, nothing left behind.

use std::time::{Duration, Instant};

use crate::support::{Scene, code, finish, restarts, stderr, until};

const TWO: &str = "--device cpu --nproc 2 --max-restarts 0 train cfg.toml";

#[test]
fn a_workers_code_becomes_the_jobs_and_its_rank_is_named() {
    for (own, expected) in [(1, 1), (2, 2), (3, 3), (6, 6), (17, 4), (101, 1)] {
        let scene = Scene::new();
        let output = scene.run(&format!("code={own}@1"), TWO);
        assert_eq!(code(&output), expected, "{}", stderr(&output));
        assert!(stderr(&output).contains(&format!("rank 1 failed: exited with code {own}")), "{}", stderr(&output));
        assert!(stderr(&output).contains("| last words of rank 1"), "{}", stderr(&output));
        assert!(stderr(&output).contains("after it, rank 0: connection closed by peer"), "{}", stderr(&output));
        scene.assert_nothing_left();
    }
}

#[test]
fn a_killed_rank_is_named_within_five_seconds_even_if_the_others_do_not_listen() {
    let scene = Scene::new();
    let running = scene.start("deaf kill@1", &format!("--grace 8 {TWO}"), 1);
    let named = || {
        let text = scene.read("stderr.txt");
        text.contains("rank 1 failed: killed by SIGKILL") && text.contains("waiting for the last completed step")
    };
    until("rank 1 is named", Duration::from_secs(5), named);
    assert_eq!(running.wait().code(), Some(4));
    let text = scene.read("stderr.txt");
    assert_eq!(text.matches("rank 1 failed: killed by SIGKILL").count(), 2, "{text}");
    assert!(text.contains("last seen in: backward, epoch 1, step 7"), "{text}");
    assert!(text.contains("not restarted: --max-restarts is 0"), "{text}");
    let report: serde_json::Value = serde_json::from_str(&scene.read("work_dirs/cfg/logs/failure.json")).unwrap();
    assert_eq!((&report["rank"], &report["exit_code"]), (&1.into(), &4.into()));
    assert_eq!(report["stderr"][0], "last words of rank 1");
    scene.assert_nothing_left();
}

#[test]
fn what_a_worker_reports_is_the_reason_and_is_not_tried_again() {
    let scene = Scene::new();
    let output = scene.run("usage@0", "--device cpu --nproc 2 train cfg.toml");
    let text = stderr(&output);
    assert_eq!(code(&output), 2, "{text}");
    assert!(text.contains("rank 0 failed: cfg.toml:3: no field named lrr; did you mean lr?"), "{text}");
    assert!(text.contains("not restarted: the command line or the config is wrong"), "{text}");
}

#[test]
fn sigterm_and_ctrl_c_together_are_one_request() {
    for (first, second) in [("TERM", "INT"), ("INT", "TERM"), ("TERM", "INT")] {
        let scene = Scene::new();
        let running = scene.start("work", TWO, 2);
        running.signal("STOP");
        [first, second, "CONT"].into_iter().for_each(|signal| running.signal(signal));
        // Which one is seen first is up to the kernel.
        let code = running.wait().code();
        assert!(matches!(code, Some(75 | 130)), "{first}, {second}: {code:?} {}", scene.read("stderr.txt"));
        assert!(!scene.read("stderr.txt").contains("stopping now"), "{}", scene.read("stderr.txt"));
        assert!(scene.path("saved_0").exists() && scene.path("saved_1").exists());
        scene.assert_nothing_left();
    }
}

#[test]
fn ctrl_c_twice_stops_at_once() {
    let scene = Scene::new();
    let running = scene.start("deaf", TWO, 2);
    running.signal("INT");
    std::thread::sleep(Duration::from_millis(300));
    let second = Instant::now();
    running.signal("INT");
    assert_eq!(running.wait().code(), Some(130));
    assert!(second.elapsed() < Duration::from_secs(3), "{:?}", second.elapsed());
    scene.assert_nothing_left();
}

#[test]
fn a_signal_saves_and_stops_with_its_code() {
    for (signal, code) in [("INT", 130), ("TERM", 75), ("USR1", 75)] {
        let scene = Scene::new();
        let running = scene.start("work", TWO, 2);
        running.signal(signal);
        assert_eq!(running.wait().code(), Some(code), "{signal}");
        assert!(scene.path("saved_0").exists() && scene.path("saved_1").exists());
        scene.assert_nothing_left();
    }
}

#[test]
fn ctrl_z_pauses_the_workers_with_the_launcher() {
    let scene = Scene::new();
    let running = scene.start("work", TWO, 2);
    let paused = || scene.states().iter().filter(|&&state| state == 'T').count();
    running.signal("TSTP");
    until("launcher and workers are stopped", Duration::from_secs(10), || paused() == 3);
    running.signal("CONT");
    until("they go on", Duration::from_secs(10), || paused() == 0);
    running.signal("INT");
    assert_eq!(running.wait().code(), Some(130));
    scene.assert_nothing_left();
}

#[test]
fn sixty_four_workers_start_and_stop_cleanly() {
    let scene = Scene::new();
    let running = scene.start("work", "--device cpu --nproc 64 train cfg.toml", 64);
    running.signal("TERM");
    assert_eq!(running.wait().code(), Some(75));
    assert!((0..64).all(|rank| scene.path(&format!("saved_{rank}")).exists()));
    scene.assert_nothing_left();
}

#[test]
fn workers_that_do_not_stop_are_ended_after_the_grace_period() {
    let scene = Scene::new();
    let running = scene.start("deaf", &format!("--grace 0.5 {TWO}"), 2);
    running.signal("TERM");
    let asked = Instant::now();
    assert_eq!(running.wait().code(), Some(75));
    assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
    scene.assert_nothing_left();
}

#[test]
fn workers_and_what_they_started_are_gone_two_seconds_after_the_launcher_was_killed() {
    let scene = Scene::new();
    let running = scene.start("children", TWO, 2);
    assert!(scene.processes().len() >= 8, "launcher, reaper, two workers, four children: {:?}", scene.processes());
    running.signal("KILL");
    assert_eq!(running.wait().code(), None);
    until("all are gone", Duration::from_secs(2), || scene.processes().is_empty());
}

#[test]
fn what_a_finished_worker_leaves_behind_is_ended() {
    let scene = Scene::new();
    let mut command = scene.command("children", TWO);
    command.env("QUICK", "1");
    let start = Instant::now();
    let output = finish(command);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(start.elapsed() < Duration::from_secs(10), "it does not wait for them");
    scene.assert_nothing_left();
}

#[test]
fn a_log_that_cannot_be_opened_is_not_blamed_on_the_program() {
    let scene = Scene::new();
    let output = scene.run("vanish", "--device cpu --nproc 1 train cfg.toml");
    let told = stderr(&output);
    assert_eq!(code(&output), 6, "{told}");
    let expected =
        "fnet-launch: opening the log work_dirs/cfg/logs/rank_0.log (is the work folder still there?): Not a directory";
    assert!(told.contains(expected) && !told.contains("starting rank"), "{told}");
}

#[test]
fn a_worker_lost_while_it_starts_again_uses_up_a_restart_and_the_job_goes_on() {
    let scene = Scene::new();
    let output = scene.run("relapse", "--device cpu --nproc 2 train cfg.toml");
    let told = stderr(&output);
    assert_eq!(code(&output), 0, "{told}");
    assert!(told.contains("(restart 1 of 3)") && told.contains("(restart 2 of 3)"), "{told}");
}

#[test]
fn a_stopped_worker_one_without_progress_and_one_that_never_connects_are_told_apart() {
    let one = "--device cpu --nproc 1 --max-restarts 0 train cfg.toml";
    for (deed, limit, expected) in [
        ("freeze", "--silence-timeout 1", "rank 0 failed: sent no heartbeat for "),
        ("absent", "--start-timeout 1", "rank 0 failed: sent no message within "),
        ("deaf", "--step-timeout 1", "rank 0 failed: has been in backward, epoch 1, step 7 for "),
    ] {
        let scene = Scene::new();
        let output = scene.run(deed, &format!("{limit} {one}"));
        let text = stderr(&output);
        assert_eq!(code(&output), 5, "{text}");
        assert!(text.contains(expected), "{text}");
        scene.assert_nothing_left();
    }
}

#[test]
fn ctrl_c_during_the_pause_before_a_restart_ends_the_job() {
    let scene = Scene::new();
    let running = scene.start("fall", "--device cpu --nproc 2 --max-restarts 2 train cfg.toml", 1);
    let report = scene.path("work_dirs/cfg/logs/failure.json");
    until("rank 1 is lost for the second time", Duration::from_secs(20), || restarts(&report) == Some(1));
    running.signal("INT");
    assert_eq!(running.wait().code(), Some(130));
    scene.assert_nothing_left();
}

//! Nobody reads what the launcher prints: it looks after its workers all the same.

use std::io::{BufRead, BufReader, PipeReader, Write};
use std::process::{Child, Command, Stdio};
use std::thread;

use crate::processes;
use crate::support::{Scene, TIMEOUT, signal, until};

const NOISY: &str = "--device cpu --nproc 2 --max-restarts 0 --tee 1";

/// The writing end of a pipe that is full, and stays so as long as the reading end lives.
fn full_pipe() -> (Stdio, PipeReader) {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut filling = writer.try_clone().unwrap();
    // Fills it to the last byte, and waits for room until the reader is gone.
    thread::spawn(move || filling.write_all(&vec![b'-'; 4 << 20]));
    (writer.into(), reader)
}

struct Stalled {
    child: Child,
    _unread: [PipeReader; 2],
}

/// Starts a job with both streams stuck from the beginning; its workers print more than the pipes hold.
fn start(scene: &Scene, deeds: &str, line: &str) -> Stalled {
    let mut command: Command = scene.command(&format!("{deeds} noise"), &format!("{NOISY} {line}"));
    let ((out, unread_out), (err, unread_err)) = (full_pipe(), full_pipe());
    let child = command.stdout(out).stderr(err).spawn().unwrap();
    Stalled { child, _unread: [unread_out, unread_err] }
}

impl Stalled {
    fn expect(mut self, scene: &Scene, code: i32) {
        assert_eq!(processes::wait(&mut self.child, TIMEOUT).code(), Some(code));
        scene.assert_nothing_left();
    }
}

impl Drop for Stalled {
    fn drop(&mut self) {
        let _ = self.child.kill();
    }
}

#[test]
fn a_time_limit_holds() {
    let scene = Scene::new();
    start(&scene, "work", "--time-limit 1s train cfg.toml").expect(&scene, 75);
}

#[test]
fn a_request_to_stop_is_heard() {
    for (name, code) in [("TERM", 75), ("INT", 130)] {
        let scene = Scene::new();
        let stalled = start(&scene, "work", "train cfg.toml");
        until("both ranks work", TIMEOUT, || (0..2).all(|rank| scene.path(&format!("ready_{rank}")).exists()));
        signal(stalled.child.id(), name);
        stalled.expect(&scene, code);
    }
}

#[test]
fn a_hang_is_found() {
    let scene = Scene::new();
    start(&scene, "beat freeze@1", "--silence-timeout 2 train cfg.toml").expect(&scene, 5);
}

#[test]
fn a_killed_rank_ends_the_job() {
    let scene = Scene::new();
    start(&scene, "kill@1", "train cfg.toml").expect(&scene, 4);
    let report: serde_json::Value = serde_json::from_str(&scene.read("work_dirs/cfg/logs/failure.json")).unwrap();
    assert_eq!((report["rank"].as_u64(), report["exit_code"].as_i64()), (Some(1), Some(4)));
    // The logs are complete: their disk is no stuck terminal.
    assert_eq!(scene.read("work_dirs/cfg/logs/rank_0.log").matches("a line of noise").count(), 40_000);
}

#[test]
fn a_reader_that_comes_back_is_told_what_it_missed() {
    let scene = Scene::new();
    let mut command = scene.command("work noise", "--device cpu --nproc 1 train cfg.toml");
    command.env("NOISE", "400000");
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    // More than the launcher keeps is printed before anybody reads.
    until("all is printed", TIMEOUT, || scene.path("noise_0").exists());
    let notice = " lines were dropped here because stderr was blocked";
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let told = lines.find(|line| line.as_ref().unwrap().contains(notice));
    let count =
        told.unwrap().unwrap().strip_prefix("fnet-launch: ").and_then(|text| text.strip_suffix(notice)?.parse().ok());
    assert!(count.is_some_and(|count: usize| (1..400_000).contains(&count)), "{count:?}");
    // From then on everything comes again.
    signal(child.id(), "TERM");
    assert!(lines.any(|line| line.unwrap().contains("stopped on request")));
    assert_eq!(child.wait().unwrap().code(), Some(75));
}

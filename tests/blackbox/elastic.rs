//! Nodes that come and go: several launchers on one machine.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::outputs::{differences, generation, losses, of_mode, without_ranks};
use crate::processes::free_port;
use crate::support::{Ended, Running, Scene, launcher, signal, until};

/// One node after the other, each with one worker.
struct Nodes {
    scene: Scene,
    port: u16,
    line: String,
    started: usize,
}

impl Nodes {
    fn new(line: &str) -> Self {
        Self { scene: Scene::of(3), port: free_port(), line: line.to_owned(), started: 0 }
    }

    fn start(&mut self, rank: usize) -> Running {
        let line = format!(
            "--device cpu --nproc 1 --node-rank {rank} --master-addr 127.0.0.1 --master-port {} {}",
            self.port, self.line
        );
        self.started += 1;
        let stderr = self.scene.path(&format!("stderr_{}.txt", self.started));
        Running::start(self.scene.command(&launcher(), &line), stderr)
    }

    fn folder(&self) -> PathBuf {
        self.scene.path("work_dirs/cfg")
    }

    /// Waits until `count` steps are logged.
    fn until_steps(&self, count: usize) {
        until("some steps are done", || losses(&self.folder()).len() >= count);
    }

    /// The steps of the log must be all in a row: none was lost or trained again. They are those of an epoch, of which the first
    /// four were of `first` images, those up to `change` of `second`, and the others of `third`; each part of it fills both groups
    /// of images up to the number of workers.
    fn assert_steps(&self, first: u64, second: u64, change: u64, third: u64) {
        let steps: Vec<u64> = losses(&self.folder()).iter().map(|line| line["iter"].as_u64().unwrap()).collect();
        let count = steps.len() as u64;
        assert_eq!(steps, (1..=count).collect::<Vec<_>>());
        let seen = 4 * first + (change - 4) * second + (count - change) * third;
        let (images, filled) = (self.scene.steps(1) as u64, 2 * (first + second + third - 3));
        assert!((images..=images + filled).contains(&seen), "{count} steps, {seen} of {images} images");
    }
}

/// Three nodes, of which one is lost in step 5 and comes back before step 10, where a checkpoint is due.
fn shrink_and_grow() -> (Nodes, Vec<Ended>) {
    let mut nodes = Nodes::new(
        "--nnodes 2:3 --elastic-settle 60 train cfg.toml --no-validate --set train.epochs=1 \
         --set train.elastic_batch=\"as-is\" --fault sleep:rank=2,phase=forward,step=5",
    );
    nodes.scene.extend_config("[checkpoint]\ninterval = \"10 steps\"\n");
    let [first, second, lost] = [0, 1, 2].map(|rank| nodes.start(rank));
    nodes.until_steps(4);
    lost.signal("KILL");
    nodes.until_steps(5);
    let worker = nodes.scene.worker(0);
    signal(worker, "STOP");
    let again = nodes.start(2);
    until("the node is back", || first.told().contains("the attempt ends at its next checkpoint"));
    signal(worker, "CONT");
    let ended = [first, second, again].map(Running::wait);
    assert_eq!(lost.wait().code, -1);
    nodes.scene.assert_nothing_left();
    (nodes, ended.into())
}

#[test]
fn a_job_that_shrinks_and_grows_at_given_steps_is_the_same_to_the_last_bit_when_repeated() {
    let (nodes, ended) = shrink_and_grow();
    for one in &ended[..2] {
        one.expect(
            0,
            &["node 2 (", "has left", "going on without node 2 (", "has joined", "going on with other nodes"],
        );
    }
    ended[2].expect(0, &["attempt 3 on nodes 0, 1, 2, 3 workers"]);
    nodes.assert_steps(3, 2, 10, 3);
    let batches: Vec<[u64; 2]> = of_mode(&nodes.folder(), "elastic")
        .iter()
        .map(|line| ["workers", "images_per_update"].map(|name| line[name].as_u64().unwrap()))
        .collect();
    assert_eq!(batches, [[3, 3], [2, 2], [3, 3]]);
    let status: Value = serde_json::from_slice(&std::fs::read(nodes.folder().join("status.json")).unwrap()).unwrap();
    let changes: Vec<&str> =
        status["membership"].as_array().unwrap().iter().map(|change| change["text"].as_str().unwrap()).collect();
    assert!(changes.iter().any(|text| text.contains("has left")), "{changes:?}");
    assert!(status["restarts"].as_array().unwrap().len() == 1 && status["world_size"] == 3, "{status}");

    let (repeated, _) = shrink_and_grow();
    assert_eq!(losses(&repeated.folder()), losses(&nodes.folder()));
    let [first, second] = [&nodes, &repeated].map(|nodes| without_ranks(&nodes.folder().join("latest.ckpt")));
    assert_eq!(differences(&first, &second), Vec::<String>::new());
}

#[test]
fn without_node_0_the_others_save_and_end_with_75_and_go_on_with_another_node_0() {
    for nnodes in ["2", "1:2"] {
        let mut nodes = Nodes::new(&format!(
            "--nnodes {nnodes} --elastic-settle 60 train cfg.toml --no-validate --auto-resume --set train.epochs=1 \
             --fault sleep:rank=0,phase=forward,step=5"
        ));
        let [first, second] = [0, 1].map(|rank| nodes.start(rank));
        nodes.until_steps(4);
        // Rank 0 has done the step when it logs it; rank 1, which is to save it, adds it to its weights at that time.
        thread::sleep(Duration::from_secs(2));
        first.signal("KILL");
        second.wait().expect(75, &["rank 0 failed: its node 0 (127.0.0.1) is lost", "saved the state after step 4"]);
        assert_eq!(first.wait().code, -1);
        let written = generation(&nodes.folder().join("latest.ckpt"));
        nodes.line = nodes.line.replace("--fault sleep:rank=0,phase=forward,step=5", "");
        nodes.line = nodes.line.replace("--elastic-settle 60", "--elastic-settle 0.5");
        let count = if nnodes == "2" { 2 } else { 1 };
        let again: Vec<Running> = (0..count).map(|rank| nodes.start(rank)).collect();
        for running in again {
            running.wait().expect(0, &[]);
        }
        let steps = losses(&nodes.folder()).len();
        nodes.assert_steps(2, 1, 4, count as u64);
        assert!(generation(&nodes.folder().join("latest.ckpt")) > written, "{steps} steps");
        nodes.scene.assert_nothing_left();
    }
}

//! Several hosts, made of network namespaces and cables between them, run one job with the real programs.
//!
//! Making them takes root and the `ip` program; without, these tests are skipped and say so.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::outputs::{differences, losses, tensors, without_ranks};
use crate::support::{Ended, Running, Scene, finish, launcher, signal, until};

const TRAIN: &str = "train cfg.toml --no-validate";
/// Port of the nodes; the hosts of a test have all ports for themselves.
const PORT: &str = "29500";
/// Longer than a job takes from one step to the next on a busy machine, shorter than what would be noticed otherwise.
const NODE_TIMEOUT: u32 = 4;

/// Hosts with cables between them, and what runs on them.
struct Hosts {
    names: Vec<String>,
    scene: Scene,
}

/// Runs `ip` with these words.
fn ip(words: &str) -> Result<(), String> {
    match Command::new("ip").args(words.split(' ')).output() {
        Err(error) => Err(format!("the program `ip` does not start: {error}")),
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("ip {words}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

impl Hosts {
    /// Two hosts.
    fn new(test: &str) -> Option<Self> {
        Self::of(test, 2)
    }

    /// Host 0 is 10.77.0.1 and fd77::1, host 1 is 10.77.0.2 and fd77::2. `None` if this machine cannot have them.
    fn of(test: &str, count: usize) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let names = (0..count).map(|host| format!("fnet-{}-{number}-{host}", std::process::id())).collect();
        let hosts = Self { names, scene: Scene::new() };
        match hosts.connect() {
            Ok(()) => Some(hosts),
            Err(why) => {
                println!("SKIPPED {test}: this machine cannot have network namespaces ({why})");
                None
            }
        }
    }

    fn connect(&self) -> Result<(), String> {
        self.names.iter().try_for_each(|name| ip(&format!("netns add {name}")))?;
        let a = &self.names[0];
        // So that the cable has another number on each host.
        ip(&format!("-n {a} link add spare type veth peer name spare2"))?;
        if let [_, b] = &self.names[..] {
            ip(&format!("-n {a} link add cable type veth peer name cable netns {b}"))?;
        } else {
            // Host 0 is the switch.
            ip(&format!("-n {a} link add cable type bridge"))?;
            for (number, name) in self.names.iter().enumerate().skip(1) {
                ip(&format!("-n {a} link add port{number} type veth peer name cable netns {name}"))?;
                ip(&format!("-n {a} link set port{number} master cable up"))?;
            }
        }
        for (number, name) in (1..).zip(&self.names) {
            ip(&format!("-n {name} addr add 10.77.0.{number}/24 dev cable"))?;
            ip(&format!("-n {name} addr add fd77::{number}/64 dev cable nodad"))?;
            ip(&format!("-n {name} link set lo up"))?;
            ip(&format!("-n {name} link set cable up"))?;
        }
        Ok(())
    }

    /// What both hosts' /etc/hosts says.
    fn know(&self, lines: &str) {
        for name in &self.names {
            let folder = Path::new("/etc/netns").join(name);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("hosts"), format!("127.0.0.1 localhost\n{lines}\n")).unwrap();
        }
    }

    /// The address that host 0 has without being given one, with the way there.
    fn link_local(&self) -> String {
        let words = ["-n", &self.names[0], "-6", "-o", "addr", "show", "dev", "cable", "scope", "link"];
        let mut address = None;
        until("the cable has an address of its own", || {
            let output = Command::new("ip").args(words).output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            let found = text.lines().find(|line| !line.contains("tentative"));
            address = found.and_then(|line| Some(line.split_once("inet6 ")?.1.split_once('/')?.0.to_owned()));
            address.is_some()
        });
        format!("{}%cable", address.unwrap())
    }

    /// The launcher of one node on its host, with one worker.
    fn command(&self, node: usize, address: &str, line: &str) -> Command {
        let flags = format!("--device cpu --nproc 1 --nnodes {}", self.names.len());
        let launcher = launcher();
        let line = format!(
            "netns exec {} {} {flags} --node-rank {node} --master-addr {address} --master-port {PORT} {line}",
            self.names[node],
            launcher.display()
        );
        self.scene.command(Path::new("ip"), &line)
    }

    fn start(&self, node: usize, address: &str, line: &str) -> Running {
        Running::start(self.command(node, address, line), self.scene.path(&format!("stderr_{node}.txt")))
    }

    fn start_both(&self, line: &str) -> [Running; 2] {
        [0, 1].map(|node| self.start(node, "10.77.0.1", line))
    }

    /// Starts both nodes and waits until they have trained `count` steps.
    fn start_training(&self, line: &str, count: usize) -> [Running; 2] {
        let running = self.start_both(line);
        let folder = self.scene.path("work_dirs/cfg");
        until("some steps are done", || losses(&folder).len() >= count);
        running
    }

    /// Waits for both ends; nothing may be left running.
    fn wait(&self, running: [Running; 2]) -> [Ended; 2] {
        let ended = running.map(Running::wait);
        self.scene.assert_nothing_left();
        ended
    }

    /// Runs both nodes to their ends, which must be good, and returns what they told.
    fn run(&self, address: &str, line: &str) -> [Ended; 2] {
        let ended = self.wait([0, 1].map(|node| self.start(node, address, line)));
        ended.iter().for_each(|ended| {
            ended.expect(0, &[]);
        });
        ended
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for name in &self.names {
            // What was not made, or is gone already, needs no clearing.
            let _ = Command::new("ip").args(["netns", "del", name]).output();
            let _ = fs::remove_dir_all(Path::new("/etc/netns").join(name));
        }
    }
}

#[test]
fn two_nodes_train_as_one_node_with_two_workers_does_to_the_last_bit() {
    let Some(hosts) = Hosts::new("two_nodes_train_as_one_node_with_two_workers_does_to_the_last_bit") else { return };
    hosts.scene.two(&format!("{TRAIN} --work-dir one"));
    let ended = hosts.run("10.77.0.1", &format!("{TRAIN} --work-dir two"));
    ended[0].expect(0, &["node 1 (", "10.77.0.2) has joined; all nodes have"]);
    let [one, two] = ["one", "two"].map(|folder| tensors(&hosts.scene.path(folder).join("latest.ckpt")));
    assert!(one.keys().any(|name| name.starts_with("rank1.")), "the statistics of both ranks are compared");
    assert_eq!(differences(&one, &two), Vec::<String>::new());
    assert_eq!(losses(&hosts.scene.path("one")), losses(&hosts.scene.path("two")));
}

#[test]
fn nodes_meet_by_every_way_to_write_an_address() {
    let Some(hosts) = Hosts::new("nodes_meet_by_every_way_to_write_an_address") else { return };
    // Of the addresses of `several` only the last leads anywhere.
    hosts.know("fd77::1 six\n10.77.0.99 several\nfd99::1 several\n10.77.0.1 several");
    let line = "train cfg.toml --no-validate --set train.epochs=1 data.train.img_prefix=val \
        data.train.ann_file=annotations/instances_val.json --work-dir";
    let link_local = hosts.link_local();
    for (number, address) in ["fd77::1", "[fd77::1]", "six", "several", &link_local].into_iter().enumerate() {
        hosts.run(address, &format!("{line} ip{number}"));
    }
    // With the interface by name on each host.
    hosts.run("10.77.0.1", &format!("--iface cable {line} iface"));
}

#[test]
fn a_worker_lost_on_one_node_restarts_both_and_is_named_on_both() {
    let Some(hosts) = Hosts::new("a_worker_lost_on_one_node_restarts_both_and_is_named_on_both") else { return };
    hosts.scene.two(&format!("{TRAIN} --work-dir whole --set train.epochs=3"));
    let running = hosts.start_training(&format!("{TRAIN} --set train.epochs=3"), 20);
    signal(hosts.scene.worker(1), "KILL");
    for ended in hosts.wait(running) {
        ended.expect(0, &["rank 1 failed: killed by SIGKILL", "on node 1 (", "restarting in 0 s (restart 1 of 3)"]);
    }
    let [whole, restarted] =
        ["whole", "work_dirs/cfg"].map(|folder| without_ranks(&hosts.scene.path(folder).join("latest.ckpt")));
    assert_eq!(differences(&whole, &restarted), Vec::<String>::new());
}

#[test]
fn a_launcher_that_is_killed_is_a_lost_node_and_takes_its_workers_along() {
    let Some(hosts) = Hosts::new("a_launcher_that_is_killed_is_a_lost_node_and_takes_its_workers_along") else {
        return;
    };
    for lost in [1, 0] {
        let folder = format!("lost{lost}");
        let running = hosts.start_both(&format!("{TRAIN} --set train.epochs=500 --work-dir {folder}"));
        until("some steps are done", || losses(&hosts.scene.path(&folder)).len() >= 3);
        let killed = Instant::now();
        running[lost].signal("KILL");
        let ended = hosts.wait(running);
        assert!(killed.elapsed() < Duration::from_secs(30), "{:?}", killed.elapsed());
        let text = format!("rank {lost} failed: its node {lost} (");
        ended[1 - lost].expect(4, &[&text, "is lost: its launcher ended unexpectedly", "not restarted: node"]);
    }
}

#[test]
fn a_pulled_cable_is_noticed_on_both_sides_in_time() {
    let Some(hosts) = Hosts::new("a_pulled_cable_is_noticed_on_both_sides_in_time") else { return };
    let line = format!("--node-timeout {NODE_TIMEOUT} {TRAIN} --set train.epochs=500");
    let running = hosts.start_training(&line, 3);
    let pulled = Instant::now();
    ip(&format!("-n {} link set cable down", hosts.names[1])).unwrap();
    let ended = hosts.wait(running);
    assert!(pulled.elapsed() < Duration::from_secs(u64::from(NODE_TIMEOUT) + 30), "{:?}", pulled.elapsed());
    let silent = format!("sent no heartbeat for {NODE_TIMEOUT} s (--node-timeout)");
    ended[0].expect(4, &["its node 1 (", "10.77.0.2) is lost", &silent]);
    ended[1].expect(4, &["its node 0 (10.77.0.1) is lost", &silent]);
}

#[test]
fn ctrl_c_on_one_node_saves_and_stops_both() {
    let Some(hosts) = Hosts::new("ctrl_c_on_one_node_saves_and_stops_both") else { return };
    for (node, name, code) in [(1, "INT", 130), (0, "TERM", 75)] {
        let folder = format!("stopped{node}");
        let running = hosts.start_both(&format!("{TRAIN} --set train.epochs=500 --work-dir {folder}"));
        until("some steps are done", || losses(&hosts.scene.path(&folder)).len() >= 3);
        running[node].signal(name);
        for ended in hosts.wait(running) {
            ended.expect(code, &["saving and stopping", "stopped on request; run again with --resume"]);
        }
        let saved = fs::read_dir(hosts.scene.path(&folder)).unwrap();
        let saved = saved.filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|end| end == "ckpt"));
        assert!(saved.count() > 0, "nothing was saved in {folder}");
    }
}

/// The step never ends, since one rank sleeps in it.
#[test]
fn a_step_that_outlasts_the_grace_period_costs_no_completed_step() {
    let scene = Scene::of(1);
    let line =
        "--device cpu --nproc 2 --grace 8 train cfg.toml --no-validate --fault sleep:rank=1,phase=forward,step=4";
    let running = scene.start(line);
    let folder = scene.path("work_dirs/cfg");
    until("three steps are done", || losses(&folder).len() >= 3);
    running.signal("TERM");
    let ended = running.wait();
    ended.expect(
        75,
        &["half of --grace", "rank 0 saved the state after step 3", "stopped on request; run again with --resume"],
    );
    scene.assert_nothing_left();
    scene.two("train cfg.toml --no-validate --resume --set train.epochs=1");
    let steps: Vec<u64> = losses(&folder).iter().map(|line| line["iter"].as_u64().unwrap()).collect();
    assert_eq!(steps[..4], [1, 2, 3, 4], "no step is trained twice");
}

#[test]
fn data_that_differs_on_one_node_is_an_error_on_both() {
    let Some(hosts) = Hosts::new("data_that_differs_on_one_node_is_an_error_on_both") else { return };
    let (images, other) = (hosts.scene.images(), hosts.scene.path("other"));
    fs::create_dir_all(other.join("annotations")).unwrap();
    for folder in ["train", "val"] {
        std::os::unix::fs::symlink(images.join(folder), other.join(folder)).unwrap();
        let name = format!("annotations/instances_{folder}.json");
        fs::copy(images.join(&name), other.join(&name)).unwrap();
    }
    // One side of one box.
    let file = other.join("annotations/instances_train.json");
    let mut set: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let annotation = set["annotations"].as_array_mut().unwrap().iter_mut().find(|one| one["iscrowd"] == 0).unwrap();
    annotation["bbox"][2] = (annotation["bbox"][2].as_f64().unwrap() - 1.0).into();
    fs::write(&file, set.to_string()).unwrap();
    let line = format!("{TRAIN} --set data.root={}", other.display());
    let running = [hosts.start(0, "10.77.0.1", TRAIN), hosts.start(1, "10.77.0.1", &line)];
    for ended in hosts.wait(running) {
        ended.expect(3, &["rank 1 has other data than rank 0: it has data.train of "]);
    }
}

#[test]
fn every_kind_of_dead_end_is_told_apart_with_its_address() {
    let Some(hosts) = Hosts::new("every_kind_of_dead_end_is_told_apart_with_its_address") else { return };
    hosts.know("10.77.0.1 dead\n10.77.0.99 dead\n10.99.0.1 dead\nfd77::1 dead");
    // Answers of host 0 to host 1 over IPv6 vanish.
    ip(&format!("-n {} route add blackhole fd77::2/128", hosts.names[0])).unwrap();
    let started = Instant::now();
    let running = hosts.start(1, "dead", &format!("--join-timeout 8 {TRAIN}"));
    until("node 1 says what it waits for", || running.told().contains("waiting for node 0, at most 8 s"));
    let ended = running.wait();
    assert!(started.elapsed() < Duration::from_secs(40), "{:?}", started.elapsed());
    ended.expect(
        6,
        &[
            "  10.77.0.1:29500: nothing listens there",
            "  10.77.0.99:29500: No route to host",
            "  10.99.0.1:29500: Network is unreachable",
            "  [fd77::1]:29500: no answer within 5 s",
            "not reached within 8 s (--join-timeout)",
        ],
    );
    hosts.scene.assert_nothing_left();
}

#[test]
fn a_slow_network_is_named_before_the_start_and_refused_if_more_is_expected() {
    const NAME: &str = "a_slow_network_is_named_before_the_start_and_refused_if_more_is_expected";
    let Some(hosts) = Hosts::of(NAME, 3) else { return };
    let limit = "tc qdisc add dev cable root tbf rate 20mbit burst 32kb latency 100ms";
    if let Err(why) = ip(&format!("netns exec {} {limit}", hosts.names[2])) {
        println!("SKIPPED {NAME}: this machine cannot limit a network ({why})");
        return;
    }
    let run = |line: &str| {
        let ended: Vec<Ended> = thread::scope(|scope| {
            let run = |node| {
                scope.spawn({
                    let hosts = &hosts;
                    move || finish(hosts.command(node, "10.77.0.1", line))
                })
            };
            [0, 1, 2].map(run).into_iter().map(|one| one.join().unwrap()).collect()
        });
        hosts.scene.assert_nothing_left();
        ended
    };
    let slow = "the network of node 2 (";
    let doctors = run("doctor");
    doctors[0].expect(0, &["warn links", slow, "above the diagonal", "ok   nodes          all 3 are there"]);
    doctors[2].expect(0, &["node 0 shows what was found"]);
    for ended in run("--expect-bandwidth 1 train cfg.toml --no-validate") {
        ended.expect(
            6,
            &[slow, "is too slow: 0.0", "than a tenth of the 1 Gbit/s that are expected (--expect-bandwidth)"],
        );
    }
    assert!(!hosts.scene.path("work_dirs/cfg/logs/rank_0.log").exists(), "a worker was started");
    let measured = run("--expect-bandwidth 0.001 benchmark comm --max-bytes 4 --iters 1 --warm-up 0 --json");
    measured.iter().for_each(|ended| {
        ended.expect(0, &[&format!("warning: {slow}"), "network of 3 pairs of nodes: median "]);
    });
    let report: serde_json::Value = serde_json::from_str(&measured[0].stdout).unwrap();
    let pairs = report["links"]["pairs"].as_array().unwrap();
    let gbit = |nodes: [u64; 2]| {
        let pair = pairs.iter().find(|pair| pair["nodes"] == serde_json::json!(nodes)).unwrap();
        pair["gbit_per_s"].as_f64().unwrap()
    };
    // The last node is limited to 0.02.
    assert!(gbit([0, 1]) > 4.0 * gbit([0, 2]) && gbit([0, 2]) < 0.1 && gbit([1, 2]) < 0.1, "{pairs:?}");
}

//! Several nodes on one machine: how they meet, what they are told when they do not, and what strangers can do.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{CHECKPOINT, Scene, TIMEOUT, code, finish, free_port, restarts, signal, stderr, until};

/// Nodes of one worker each, which all run the same.
pub struct Nodes {
    pub scene: Scene,
    pub port: u16,
}

impl Nodes {
    pub fn new() -> Self {
        let scene = Scene::new();
        fs::write(scene.path("a.ckpt"), CHECKPOINT).unwrap();
        Self { scene, port: free_port() }
    }

    /// Node `rank` of `count`; `more` is added to the line.
    pub fn node(&self, deeds: &str, rank: usize, count: impl std::fmt::Display, more: &str) -> Command {
        self.node_at(self.port, deeds, rank, count, more)
    }

    /// The same with another port for node 0.
    pub fn node_at(&self, port: u16, deeds: &str, rank: usize, count: impl std::fmt::Display, more: &str) -> Command {
        let line = format!(
            "--device cpu --nproc 1 --nnodes {count} --node-rank {rank} --master-addr 127.0.0.1 --master-port {port} {more}"
        );
        self.scene.command(deeds, &line)
    }

    /// Starts a node, and waits until its words, in `NAME.txt`, contain `text`.
    pub fn start(&self, name: &str, mut command: Command, text: &str) -> Child {
        let words = fs::File::create(self.scene.path(&format!("{name}.txt"))).unwrap();
        let child = command.stdout(Stdio::null()).stderr(words).spawn().unwrap();
        self.hear(name, text);
        child
    }

    /// Waits until a node has said something.
    pub fn hear(&self, name: &str, text: &str) {
        until(text, TIMEOUT, || self.scene.read(&format!("{name}.txt")).contains(text));
    }

    pub fn wait(&self, name: &str, child: &mut Child, expected: i32) {
        assert_eq!(child.wait().unwrap().code(), Some(expected), "{}", self.scene.read(&format!("{name}.txt")));
    }

    /// Waits until `ranks` workers work, each for the first time since the last call.
    pub fn until_they_work(&self, ranks: std::ops::Range<usize>) {
        for rank in ranks {
            let ready = self.scene.path(&format!("ready_{rank}"));
            until("the workers work", TIMEOUT, || ready.exists());
            fs::remove_file(ready).unwrap();
        }
    }

    /// Runs nodes together to their ends.
    fn run(&self, commands: Vec<Command>) -> Vec<Output> {
        self.run_late(commands, &[])
    }

    /// The same, with nodes at these positions that start after the others have waited a while.
    fn run_late(&self, commands: Vec<Command>, late: &[usize]) -> Vec<Output> {
        let outputs = thread::scope(|scope| {
            let start = |(index, command)| {
                let pause = Duration::from_secs(if late.contains(&index) { 2 } else { 0 });
                scope.spawn(move || {
                    thread::sleep(pause);
                    finish(command)
                })
            };
            let running: Vec<_> = commands.into_iter().enumerate().map(start).collect();
            running.into_iter().map(|running| running.join().unwrap()).collect()
        });
        self.scene.assert_nothing_left();
        outputs
    }
}

fn expect(output: &Output, expected: i32, texts: &[&str]) {
    let text = stderr(output);
    assert_eq!(code(output), expected, "{text}");
    for part in texts {
        assert!(text.contains(part), "{part:?} is missing in:\n{text}");
    }
}

#[test]
fn a_node_that_comes_late_is_waited_for_and_the_others_say_so_once() {
    let nodes = Nodes::new();
    let mut commands: Vec<_> = (0..3).map(|rank| nodes.node("finish", rank, 3, "test a.ckpt")).collect();
    commands[0].arg("-v");
    let outputs = nodes.run_late(commands, &[0]);
    expect(&outputs[0], 0, &["has joined; all nodes have"]);
    for output in &outputs[1..] {
        let port = nodes.port;
        expect(output, 0, &[&format!("127.0.0.1:{port}: nothing listens there: is node 0 running")]);
        assert_eq!(stderr(output).matches("waiting for node 0").count(), 1, "{}", stderr(output));
    }
}

// https://github.com/pytorch/pytorch/issues/107021: every node dials and times out without a hint.
#[test]
fn a_node_that_finds_nobody_says_where_it_looked_within_the_join_time() {
    let nodes = Nodes::new();
    let started = Instant::now();
    let alone = nodes.node("finish", 1, 2, "--join-timeout 2 test a.ckpt");
    let mut from_variable = nodes.node("finish", 0, 2, "test a.ckpt");
    from_variable.env("FNET_JOIN_TIMEOUT", "1");
    let nameless = nodes.scene.command(
        "finish",
        "--device cpu --nnodes 2 --node-rank 1 --master-addr no-such-host.invalid --join-timeout 1 test a.ckpt",
    );
    expect(
        &finish(alone),
        6,
        &[&format!("127.0.0.1:{}: nothing listens there", nodes.port), "not reached within 2 s (--join-timeout)"],
    );
    expect(&finish(from_variable), 6, &["node 1 of 2 did not join within 1 s (--join-timeout)"]);
    expect(
        &finish(nameless),
        6,
        &["no-such-host.invalid (--master-addr, MASTER_ADDR) cannot be resolved on this machine"],
    );
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    nodes.scene.assert_nothing_left();
}

#[test]
fn a_program_on_the_port_that_is_no_fnet_job_is_told_apart() {
    for (says, expected) in [
        (
            Some("SSH-2.0-OpenSSH_9.2\r\n"),
            "another program listens there, not an fnet job; it says \"SSH-2.0-OpenSSH_9.2\"",
        ),
        (None, "the port is open, but the connection was closed"),
    ] {
        let nodes = Nodes::new();
        let listener = TcpListener::bind(("127.0.0.1", nodes.port)).unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                // A hello is read, so that the end of the connection is no reset.
                let _ = stream.read(&mut [0; 4096]);
                if let Some(text) = says {
                    let _ = stream.write_all(text.as_bytes());
                }
            }
        });
        expect(&finish(nodes.node("finish", 1, 2, "--join-timeout 2 test a.ckpt")), 6, &[expected]);
    }
}

#[test]
fn what_differs_between_the_nodes_is_named_on_all_of_them() {
    let nodes = Nodes::new();
    let cases = [
        ("train cfg.toml --seed 3", "train cfg.toml --seed 4", "the command is `train --seed=4 cfg.toml` there and"),
        ("--max-restarts 2 train cfg.toml", "train cfg.toml", "--max-restarts is `3` there and `2` on node 0"),
        (
            "train cfg.toml --set optimizer.lr=0.5",
            "train cfg.toml --set optimizer.lr=0.25 data.root=/elsewhere",
            "optimizer.lr is `0.25` there and `0.5` on node 0",
        ),
    ];
    for (first, second, expected) in cases {
        let outputs = nodes.run(vec![nodes.node("finish", 0, 2, first), nodes.node("finish", 1, 2, second)]);
        for output in &outputs {
            expect(output, 2, &[expected, "node 1 ("]);
        }
    }
    let outputs = nodes.run(vec![
        nodes.node("finish", 0, 3, "train cfg.toml"),
        nodes.node("finish", 1, 3, "train cfg.toml"),
        nodes.node("finish", 1, 3, "train cfg.toml"),
    ]);
    for output in &outputs {
        expect(output, 2, &["two nodes were started with --node-rank 1 (NODE_RANK)"]);
    }
    let outputs =
        nodes.run(vec![nodes.node("finish", 0, 3, "train cfg.toml"), nodes.node("finish", 1, 2, "train cfg.toml")]);
    for output in &outputs {
        expect(output, 2, &["was started with --nnodes 2, node 0 ("]);
    }
}

/// Ways in which a node fails before it meets the others: what its folder lacks, the code, and a part of the message.
const EARLY_FAILURES: [(&str, i32, &str); 2] = [
    ("config", 2, "failed: config cfg.toml: no such file"),
    ("folder", 6, "failed: reading work_dirs/cfg: Not a directory"),
];

/// Runs three nodes of which one fails before it meets the others, `late` of them after the others have waited a while.
fn fail_early(failing: usize, lack: &str, late: &[usize]) -> Vec<Output> {
    let (nodes, elsewhere) = (Nodes::new(), tempfile::tempdir().unwrap());
    let folder = elsewhere.path();
    match lack {
        "config" => {}
        _ => {
            fs::write(folder.join("cfg.toml"), "").unwrap();
            fs::write(folder.join("work_dirs"), "no folder").unwrap();
        }
    }
    let command = |rank: usize| {
        let mut command = nodes.node("finish", rank, 3, "train cfg.toml");
        if rank == failing {
            command.current_dir(folder);
        }
        command
    };
    nodes.run_late((0..3).map(command).collect(), late)
}

#[test]
fn a_node_that_fails_before_it_meets_the_others_tells_them_why_at_once() {
    for (lack, expected, text) in EARLY_FAILURES {
        // One of the others, and node 0; and one that waits for others to come.
        let late: &[(usize, &[usize])] = if lack == "config" { &[(2, &[0]), (0, &[1, 2])] } else { &[] };
        for &(failing, late) in [(1, &[][..]), (0, &[])].iter().chain(late) {
            // The join timeout is longer than the tests wait.
            let outputs = fail_early(failing, lack, late);
            for (rank, output) in outputs.iter().enumerate() {
                let text = if rank == failing { text.trim_start_matches("failed: ") } else { text };
                expect(output, expected, &[text]);
                let name = format!("node {failing} (");
                assert!(rank == failing || stderr(output).contains(&name), "{}", stderr(output));
            }
        }
    }
}

#[test]
fn a_work_folder_that_the_nodes_do_not_share_is_refused_before_the_start() {
    let (nodes, elsewhere) = (Nodes::new(), tempfile::tempdir().unwrap());
    fs::write(elsewhere.path().join("cfg.toml"), "").unwrap();
    let mut second = nodes.node("finish", 1, 2, "train cfg.toml");
    second.current_dir(elsewhere.path());
    let outputs = nodes.run(vec![nodes.node("finish", 0, 2, "train cfg.toml"), second]);
    for output in &outputs {
        expect(output, 6, &["the work folder work_dirs/cfg of this node is not that of node 0", "--work-dir"]);
    }
    expect(&outputs[0], 6, &["node 1 ("]);
    for folder in [nodes.scene.path("work_dirs/cfg"), elsewhere.path().join("work_dirs/cfg")] {
        let files = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let left: Vec<String> = files.filter(|name| name.ends_with(".tmp")).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn a_node_whose_disk_is_blocked_is_released_by_the_checkpoint_of_another() {
    let nodes = Nodes::new();
    let node = |rank: usize, workers: usize| {
        let line = format!(
            "--device cpu --nproc {workers} --nnodes 2 --node-rank {rank} --master-addr 127.0.0.1 --master-port {} \
             --max-restarts 0 train cfg.toml",
            nodes.port
        );
        nodes.scene.command("survive kill@1 blocked@2", &line)
    };
    for output in nodes.run(vec![node(0, 1), node(1, 2)]) {
        expect(&output, 4, &["rank 1 failed: killed by SIGKILL", "on node 1 ("]);
    }
}

#[test]
fn several_lost_nodes_are_named_in_one_sentence() {
    let nodes = Nodes::new();
    let start = |rank: usize| nodes.start(&rank.to_string(), nodes.node("deaf", rank, 3, "train cfg.toml"), "");
    let [mut first, mut second, mut third] = [0, 1, 2].map(start);
    nodes.until_they_work(0..3);
    for lost in [&mut second, &mut third] {
        lost.kill().unwrap();
    }
    for lost in [&mut second, &mut third] {
        lost.wait().unwrap();
    }
    nodes.wait("0", &mut first, 4);
    let told = nodes.scene.read("0.txt");
    let sentence = told.lines().find_map(|line| line.split_once("not restarted: ")).map(|(_, sentence)| sentence);
    let sentence = sentence.unwrap_or_else(|| panic!("{told}"));
    let in_order = |first, second| sentence.starts_with(first) && sentence.contains(second);
    assert!(in_order("node 1 (", ") and node 2 (") || in_order("node 2 (", ") and node 1 ("), "{sentence}");
    assert!(sentence.ends_with(") are lost; start the job again on all nodes"), "{sentence}");
    nodes.scene.assert_nothing_left();
}

#[test]
fn a_spare_replaces_a_lost_node_and_without_one_the_job_ends_for_whatever_starts_it_again() {
    let nodes = Nodes::new();
    let start = |rank: usize, text| {
        let line = "--elastic-settle 60 --join-timeout 2 train cfg.toml";
        nodes.start(&rank.to_string(), nodes.node("survive", rank, "2:2", line), text)
    };
    let [mut first, mut second] = [0, 1].map(|rank| start(rank, ""));
    nodes.until_they_work(0..2);
    let mut spare = start(7, "it replaces a node that leaves");
    let lose = |lost: &mut Child| {
        lost.kill().unwrap();
        lost.wait().unwrap();
    };
    lose(&mut second);
    nodes.until_they_work(1..2);
    lose(&mut spare);
    nodes.wait("0", &mut first, 75);
    let told = nodes.scene.read("0.txt");
    for text in [
        "going on without node 1 (",
        "attempt 2 on nodes 0, 2",
        "1 node of at least 2 (--nnodes) left, and no other joined within 2 s",
    ] {
        assert!(told.contains(text), "{text}: {told}");
    }
    nodes.scene.assert_nothing_left();
}

#[test]
fn a_newcomer_that_cannot_take_part_is_sent_away_and_the_job_goes_on() {
    let nodes = Nodes::new();
    let start = |rank: usize, deeds| {
        let line = "--max-restarts 0 --elastic-settle 0.5 --elastic-grow-after 0.1 train cfg.toml";
        nodes.start(&rank.to_string(), nodes.node(deeds, rank, "2:3", line), "")
    };
    let mut old = [0, 1].map(|rank| start(rank, "survive"));
    nodes.until_they_work(0..2);
    for (code, deeds) in [(3, "mute=3"), (6, "mute=6")] {
        let mut newcomer = start(2, deeds);
        nodes.wait("2", &mut newcomer, code);
        nodes.hear("0", &format!("cannot take part: rank 2 failed: exited with code {code}"));
        nodes.hear("0", "going on with other nodes");
        nodes.until_they_work(0..2);
    }
    signal(old[0].id(), "INT");
    old.iter_mut().enumerate().for_each(|(rank, child)| nodes.wait(&rank.to_string(), child, 130));
    nodes.scene.assert_nothing_left();
}

#[test]
fn a_job_whose_folder_another_one_has_ends_with_one_reason_on_all_nodes() {
    let nodes = Nodes::new();
    let other = nodes.scene.start("work", "--device cpu --nproc 1 train cfg.toml", 1);
    let line = "--join-timeout 4 train cfg.toml --auto-resume";
    let outputs = thread::scope(|scope| {
        let command = |rank| nodes.node("finish", rank, 2, line);
        let running = [command(0), command(1)].map(|command| scope.spawn(|| finish(command)));
        running.map(|running| running.join().unwrap())
    });
    outputs.iter().for_each(|output| expect(output, 2, &["another job trains into work_dirs/cfg"]));
    expect(&outputs[1], 2, &["node 0 waits: another job trains into work_dirs/cfg"]);
    other.signal("INT");
    assert_eq!(other.wait().code(), Some(130));
    nodes.scene.assert_nothing_left();
}

#[test]
fn a_node_0_that_waits_alone_leaves_the_folder_to_the_others_and_ends_when_they_have_gone_on() {
    let mut nodes = Nodes::new();
    let start = |nodes: &Nodes, name: &str, deeds: &str, rank: usize| {
        let line = "--elastic-settle 60 --join-timeout 60 train cfg.toml --auto-resume";
        nodes.start(name, nodes.node(deeds, rank, "2:2", line), "")
    };
    let mut first = start(&nodes, "first", "survive", 0);
    let mut lost = start(&nodes, "lost", "survive", 1);
    nodes.until_they_work(0..2);
    lost.kill().unwrap();
    lost.wait().unwrap();
    nodes.hear("first", "; waiting for others");
    // The others have chosen another node 0, which the first one does not reach.
    let port = std::mem::replace(&mut nodes.port, free_port());
    let status = |nodes: &Nodes| nodes.scene.read("work_dirs/cfg/status.json");
    signal(first.id(), "STOP");
    let others = [0, 1].map(|rank| start(&nodes, &rank.to_string(), "finish", rank));
    nodes.hear("0", "another job trains into work_dirs/cfg");
    signal(first.id(), "CONT");
    for mut other in others {
        nodes.wait("0", &mut other, 0);
    }
    let last = status(&nodes);
    nodes.port = port;
    let mut late = start(&nodes, "late", "finish", 1);
    for ended in [&mut first, &mut late] {
        nodes.wait("first", ended, 75);
    }
    let text = "work_dirs/cfg belongs to a newer attempt of the job, from which this node was cut off";
    nodes.hear("first", text);
    assert_eq!(status(&nodes), last, "the status is that of the newer attempt");
    nodes.scene.assert_nothing_left();
}

#[test]
fn strangers_at_the_port_do_no_harm() {
    let nodes = Nodes::new();
    let port = nodes.port;
    let first = nodes.node("finish", 0, 2, "test a.ckpt");
    let outputs = thread::scope(|scope| {
        let first = scope.spawn(|| finish(first));
        let mut held = Vec::new();
        until("node 0 listens", Duration::from_secs(20), || {
            TcpStream::connect(("127.0.0.1", port)).map(|stream| held.push(stream)).is_ok()
        });
        let sound = r#"{"type":"hello","protocol":5,"node":1,"nodes":2,"workers":1,"host":"x","job":"train other","settings":{}}"#;
        for words in [
            "GET / HTTP/1.1\r\n\r\n".to_owned(),
            "\n".to_owned(),
            "\0\u{1}\u{2}".to_owned(),
            "x".repeat(3 << 20),
            "{\"type\":\"hello\"}\n".to_owned(),
            "{\"type\":\"stop\",\"reason\":\"interrupted\",\"again\":true}\n".to_owned(),
            format!("{}\n", sound.replace("\"workers\":1", "\"workers\":0")),
            format!("{sound}\n{{\"type\":\"broken\",\"code\":1,\"message\":\"boo\"}}\n"),
        ] {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            // The launcher may have hung up already.
            let _ = stream.write_all(words.as_bytes());
            held.push(stream);
        }
        let second = finish(nodes.node("finish", 1, 2, "test a.ckpt"));
        drop(held);
        [first.join().unwrap(), second]
    });
    outputs.iter().for_each(|output| expect(output, 0, &[]));
    nodes.scene.assert_nothing_left();
}

#[test]
fn a_node_of_another_job_is_sent_away_and_the_job_goes_on() {
    let nodes = Nodes::new();
    fs::write(nodes.scene.path("other.toml"), "").unwrap();
    let first = nodes.node("finish", 0, 2, "train cfg.toml");
    let outputs = thread::scope(|scope| {
        let first = scope.spawn(|| finish(first));
        let other = finish(nodes.node("finish", 1, 2, "train other.toml"));
        expect(&other, 2, &["runs `train other`, but this port belongs to `train cfg`", "its own --master-port"]);
        let second = finish(nodes.node("finish", 1, 2, "train cfg.toml"));
        [first.join().unwrap(), second]
    });
    outputs.iter().for_each(|output| expect(output, 0, &[]));
    // Where it listens, nobody else can.
    let taken = TcpListener::bind(("0.0.0.0", nodes.port)).unwrap();
    expect(
        &finish(nodes.node("finish", 0, 2, "train cfg.toml")),
        6,
        &["cannot listen on port", "--master-port on every node"],
    );
    drop(taken);
    nodes.scene.assert_nothing_left();
}

#[test]
fn a_worker_that_fails_on_one_node_is_named_on_all_with_one_code() {
    for (deed, expected, text) in [
        ("code=17@1", 4, "rank 1 failed: exited with code 17"),
        ("usage@0", 2, "no field named lrr"),
        ("kill@1", 4, "SIGKILL"),
    ] {
        let nodes = Nodes::new();
        let outputs =
            nodes.run((0..2).map(|rank| nodes.node(deed, rank, 2, "--max-restarts 0 train cfg.toml")).collect());
        let failing = if deed.ends_with('0') { "on node 0 (" } else { "on node 1 (" };
        outputs.iter().for_each(|output| expect(output, expected, &[text, failing]));
    }
}

#[test]
fn a_worker_that_hangs_on_one_node_is_named_on_all_with_one_code() {
    let nodes = Nodes::new();
    let line = "--max-restarts 0 --silence-timeout 4 train cfg.toml";
    let outputs = nodes.run((0..2).map(|rank| nodes.node("beat freeze@1", rank, 2, line)).collect());
    outputs.iter().for_each(|output| expect(output, 5, &["rank 1 failed: sent no heartbeat for", "on node 1 ("]));
}

#[test]
fn ctrl_c_on_one_node_stops_all_also_before_they_meet_while_they_wait_and_in_the_pause_before_a_restart() {
    let nodes = Nodes::new();
    let start = |deeds, rank: usize, count: usize| {
        nodes.start(&rank.to_string(), nodes.node(deeds, rank, count, "train cfg.toml"), "")
    };
    // Node 0 comes when node 1 has been stopped.
    let mut early = start("finish", 1, 2);
    nodes.hear("1", "node 0");
    signal(early.id(), "INT");
    nodes.hear("1", "reporting this");
    let mut late = start("finish", 0, 2);
    nodes.wait("0", &mut late, 130);
    nodes.wait("1", &mut early, 130);
    assert!(nodes.scene.read("0.txt").contains("node 1 ("), "{}", nodes.scene.read("0.txt"));
    // One of three is missing.
    let mut waiting = [0, 1].map(|rank| start("finish", rank, 3));
    until("node 0 listens", Duration::from_secs(20), || TcpStream::connect(("127.0.0.1", nodes.port)).is_ok());
    thread::sleep(Duration::from_secs(2));
    signal(waiting[1].id(), "INT");
    assert_eq!(waiting.each_mut().map(|child| child.wait().unwrap().code()), [Some(130); 2]);
    // A worker is lost for the second time, and the job would go on after a second.
    let mut pausing = [0, 1].map(|rank| start("fall", rank, 2));
    let report = nodes.scene.path("work_dirs/cfg/logs/failure_node_0.json");
    until("the failure is reported", Duration::from_secs(20), || restarts(&report) == Some(1));
    signal(pausing[0].id(), "INT");
    assert_eq!(pausing.each_mut().map(|child| child.wait().unwrap().code()), [Some(130); 2]);
    nodes.scene.assert_nothing_left();
}

#[test]
fn all_nodes_restart_together_from_the_newest_checkpoint() {
    let nodes = Nodes::new();
    let outputs = nodes.run((0..2).map(|rank| nodes.node("restart", rank, 2, "train cfg.toml")).collect());
    outputs.iter().for_each(|output| expect(output, 0, &["restarting in 0 s (restart 1 of 3)"]));
    for rank in 0..2 {
        let arguments = nodes.scene.read(&format!("arguments_{rank}"));
        assert_eq!(arguments, "train cfg.toml\ntrain --resume cfg.toml\n");
    }
    // The network between them was measured once.
    for output in &outputs {
        assert_eq!(stderr(output).matches("network between node 0 (").count(), 1, "{}", stderr(output));
    }
    let status: serde_json::Value = serde_json::from_str(&nodes.scene.read("work_dirs/cfg/status.json")).unwrap();
    assert!(status["network"]["gbit_per_s"].as_f64().unwrap() > 0.0, "{status}");
}

#[test]
fn an_interface_that_is_not_there_is_refused_with_those_that_are() {
    let nodes = Nodes::new();
    expect(
        &finish(nodes.node("finish", 0, 2, "--iface eth77 --join-timeout 1 test a.ckpt")),
        6,
        &["--iface eth77: no such network interface", "lo (127.0.0.1"],
    );
    let output = finish(nodes.scene.command("environment", "--device cpu --nproc 1 --iface lo train cfg.toml"));
    expect(&output, 0, &[]);
    let variables = nodes.scene.read("environment_0");
    for name in ["GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"] {
        assert!(variables.lines().any(|line| line == format!("{name}=lo")), "{variables}");
    }
}

// https://github.com/pytorch/pytorch/issues/69197: node 0 is not recognized as the machine that the address belongs to.
#[test]
fn an_address_that_is_not_node_0s_is_noticed_there() {
    let nodes = Nodes::new();
    let line = format!(
        "--device cpu --nnodes 2 --node-rank 0 --master-addr 192.0.2.7 --master-port {} --join-timeout 1 test a.ckpt",
        nodes.port
    );
    expect(
        &finish(nodes.scene.command("finish", &line)),
        6,
        &["warning: --master-addr 192.0.2.7 is not an address of this machine, which is node 0 and has lo (127.0.0.1"],
    );
}

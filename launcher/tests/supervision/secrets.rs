//! Launchers of several nodes that share a secret, and strangers who do not know it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::nodes::Nodes;
use crate::support::{TIMEOUT, code, finish, signal, stderr, until};

const SECRET: &str = "a secret of the tests 1";
const OTHER: &str = "a secret of the tests 2";

/// The same node with this secret.
fn with(mut node: Command, secret: Option<&str>) -> Command {
    match secret {
        Some(secret) => node.env("FNET_JOB_SECRET", secret),
        None => node.env_remove("FNET_JOB_SECRET"),
    };
    node
}

#[test]
fn secrets_that_differ_are_named_on_both_sides_and_the_waiting_job_goes_on() {
    let file = |nodes: &Nodes, mode| {
        let path = nodes.scene.path("secret");
        fs::write(&path, format!("{SECRET}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    };
    thread::scope(|scope| {
        for (first, second, there, here) in [
            (
                Some(SECRET),
                Some(OTHER),
                "node 0 has another job secret than this node",
                "it has another job secret than node 0",
            ),
            (
                Some(SECRET),
                None,
                "node 0 has a job secret, and this node has none",
                "it has no job secret, and node 0 has one",
            ),
            (
                None,
                Some(SECRET),
                "node 0 has no job secret, and this node has one",
                "it has a job secret, and node 0 has none",
            ),
        ] {
            scope.spawn(move || {
                let nodes = Nodes::new();
                let trust = if first.is_some() { "with a job secret" } else { "without a job secret: whoever" };
                let listening = format!("listening at 127.0.0.1, port {}, {trust}", nodes.port);
                let mut waiting =
                    nodes.start("0", with(nodes.node("environment", 0, 2, "test a.ckpt"), first), &listening);
                let refused = finish(with(nodes.node("environment", 1, 2, "test a.ckpt"), second));
                assert_eq!(code(&refused), 2, "{}", stderr(&refused));
                let remedy = "; give all nodes the same (FNET_JOB_SECRET or --secret-file)";
                for text in [there, remedy] {
                    assert!(stderr(&refused).contains(text), "{}", stderr(&refused));
                }
                nodes.hear("0", &format!("a connection from 127.0.0.1 was refused: {here}{remedy}"));
                // The file takes precedence over the variable, and others must not be able to read it.
                file(&nodes, 0o644);
                let options = if first.is_some() { "--secret-file secret test a.ckpt" } else { "test a.ckpt" };
                let variable = first.map(|_| OTHER);
                let open = finish(with(nodes.node("environment", 1, 2, "--secret-file secret test a.ckpt"), variable));
                assert_eq!(code(&open), 2);
                assert!(stderr(&open).contains("mode is 0644"), "{}", stderr(&open));
                file(&nodes, 0o600);
                let joined = finish(with(nodes.node("environment", 1, 2, options), variable));
                assert_eq!(code(&joined), 0, "{}", stderr(&joined));
                nodes.wait("0", &mut waiting, 0);
                for text in [nodes.scene.read("0.txt"), stderr(&refused), stderr(&joined)] {
                    assert!(!text.contains("of the tests"), "{text}");
                }
                for rank in 0..2 {
                    let variables = nodes.scene.read(&format!("environment_{rank}"));
                    assert!(!variables.contains("FNET_JOB_SECRET"), "workers need no secret");
                }
                nodes.scene.assert_nothing_left();
            });
        }
    });
}

/// A network between node 1 and node 0 in which everything can be read and changed.
struct Tap {
    port: u16,
    /// The lines of node 1, and those of node 0.
    heard: [Arc<Mutex<Vec<String>>>; 2],
    /// Repeats the next line of node 1.
    repeat: Arc<AtomicBool>,
}

impl Tap {
    fn new(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let tap =
            Self { port: listener.local_addr().unwrap().port(), heard: Default::default(), repeat: Arc::default() };
        let (heard, repeat) = (tap.heard.clone(), Arc::clone(&tap.repeat));
        thread::spawn(move || {
            for node in listener.incoming() {
                let node = node.unwrap();
                let Ok(first) = TcpStream::connect(("127.0.0.1", to)) else { continue };
                let never = Arc::default();
                for (from, to, heard, repeat) in
                    [(&node, &first, &heard[0], &repeat), (&first, &node, &heard[1], &never)]
                {
                    let (from, mut to) = (BufReader::new(from.try_clone().unwrap()), to.try_clone().unwrap());
                    let (heard, repeat) = (Arc::clone(heard), Arc::clone(repeat));
                    thread::spawn(move || {
                        for line in from.lines().map_while(Result::ok) {
                            let times = if repeat.swap(false, Ordering::SeqCst) { 2 } else { 1 };
                            let _ = to.write_all(format!("{line}\n").repeat(times).as_bytes());
                            heard.lock().unwrap().push(line);
                        }
                        let _ = to.shutdown(Shutdown::Write);
                    });
                }
            }
        });
        tap
    }
}

#[test]
fn what_was_recorded_or_repeated_on_the_way_is_not_accepted() {
    let nodes = Nodes::new();
    let tap = Tap::new(nodes.port);
    let node = |port, rank| with(nodes.node_at(port, "pace", rank, 2, "--max-restarts 0 train cfg.toml"), Some(SECRET));
    let first = || nodes.start("0", node(nodes.port, 0), "listening at");
    let second = |port| node(port, 1);
    let mut node_0 = first();
    let mut node_1 = nodes.start("1", second(tap.port), "");
    nodes.until_they_work(0..2);
    let recorded = tap.heard.each_ref().map(|lines| lines.lock().unwrap().join("\n") + "\n");
    // Nothing of the job is sent before both have proven to know the secret.
    for text in &recorded {
        assert!(text.lines().take(2).all(|line| !line.contains("cpu") && !line.contains("version")), "{text}");
    }
    tap.repeat.store(true, Ordering::SeqCst);
    nodes.wait("0", &mut node_0, 4);
    nodes.wait("1", &mut node_1, 4);
    let told = nodes.scene.read("0.txt");
    assert!(told.contains("is lost: the connection broke: a message is forged, altered or repeated"), "{told}");

    // The same lines again, to node 0 of the next job, and to a node that takes their sender for node 0.
    let mut node_0 = first();
    let mut replay = TcpStream::connect(("127.0.0.1", nodes.port)).unwrap();
    replay.write_all(recorded[0].as_bytes()).unwrap();
    nodes.hear("0", "it has another job secret than node 0");
    let impostor = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = impostor.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut stream = impostor.accept().unwrap().0;
        let _ = stream.write_all(recorded[1].as_bytes());
        let _ = BufReader::new(stream).lines().count();
    });
    let deceived = finish(second(port));
    assert_eq!(code(&deceived), 2);
    assert!(stderr(&deceived).contains("node 0 has another job secret"), "{}", stderr(&deceived));
    let mut node_1 = nodes.start("1", second(nodes.port), "");
    nodes.until_they_work(0..2);
    signal(node_1.id(), "TERM");
    nodes.wait("1", &mut node_1, 75);
    nodes.wait("0", &mut node_0, 75);
    nodes.scene.assert_nothing_left();
}

#[test]
fn a_flood_of_strangers_delays_no_job_and_costs_a_few_lines() {
    let nodes = Nodes::new();
    let node = |rank| with(nodes.node("pace", rank, 2, "train cfg.toml"), Some(SECRET));
    let mut node_0 = nodes.start("0", node(0), "listening at");
    let port = nodes.port;
    let end = AtomicBool::new(false);
    let open_files = |process: u32| fs::read_dir(format!("/proc/{process}/fd")).unwrap().count();
    let at_first = open_files(node_0.id());
    thread::scope(|scope| {
        for words in
            ["", "{\"type\":", "GET / HTTP/1.1\r\n\r\n", "{\"type\":\"challenge\",\"protocol\":3,\"nonce\":\"0\"}\n"]
        {
            let end = &end;
            // Each keeps its connections open, as long as node 0 does.
            scope.spawn(move || {
                let mut held = Vec::new();
                while !end.load(Ordering::SeqCst) {
                    if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) {
                        let _ = stream.write_all(words.as_bytes());
                        held.push(stream);
                    }
                    held.drain(..held.len().saturating_sub(100));
                    thread::sleep(Duration::from_millis(1));
                }
            });
        }
        nodes.hear("0", "it is not a node of this job (");
        let mut node_1 = nodes.start("1", node(1), "");
        nodes.until_they_work(0..2);
        thread::sleep(Duration::from_secs(2));
        assert!(node_0.try_wait().unwrap().is_none() && node_1.try_wait().unwrap().is_none());
        let files = open_files(node_0.id());
        assert!(files < at_first + 100, "{files} open files");
        signal(node_1.id(), "TERM");
        nodes.wait("1", &mut node_1, 75);
        nodes.wait("0", &mut node_0, 75);
        end.store(true, Ordering::SeqCst);
    });
    let told = nodes.scene.read("0.txt");
    assert!(told.lines().filter(|line| line.contains("was refused")).count() < 10, "{told}");
    nodes.scene.assert_nothing_left();
}

#[test]
fn the_ports_of_a_job_are_open_at_its_own_address_only() {
    let nodes = Nodes::new();
    let line = |rank| {
        let port = nodes.port;
        format!(
            "--device cpu --nproc 1 --nnodes 2 --node-rank {rank} --master-addr 127.0.0.2 --master-port {port} train cfg.toml"
        )
    };
    let mut running = [0, 1].map(|rank| {
        let command = nodes.scene.command("connect@1", &line(rank));
        nodes.start(&rank.to_string(), command, "")
    });
    let file = nodes.scene.path("port_1");
    // Its own launcher has seen the store at the address of the job.
    until("rank 1 has reached the store", TIMEOUT, || fs::read_to_string(&file).is_ok_and(|text| text.ends_with('\n')));
    let store: u16 = nodes.scene.read("port_1").trim().parse().unwrap();
    for port in [store, nodes.port] {
        assert!(TcpStream::connect(("127.0.0.2", port)).is_ok(), "{port}");
        for other in ["127.0.0.1", "::1"] {
            assert!(TcpStream::connect((other, port)).is_err(), "{other}, port {port}");
        }
    }
    signal(running[0].id(), "TERM");
    for child in &mut running {
        child.wait().unwrap();
    }
    nodes.scene.assert_nothing_left();
}

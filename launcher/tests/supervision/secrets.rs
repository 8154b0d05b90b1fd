//! Launchers of several nodes that share a secret, and strangers who do not know it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::nodes::free_port;
use crate::support::{CHECKPOINT, Scene, code, finish, signal, stderr, until};

const SECRET: &str = "a secret of the tests 1";
const OTHER: &str = "a secret of the tests 2";
const DEADLINE: Duration = Duration::from_secs(60);

/// Two nodes of one worker each.
struct Pair {
    scene: Scene,
    port: u16,
}

impl Pair {
    fn new() -> Self {
        let scene = Scene::new();
        fs::write(scene.path("a.ckpt"), CHECKPOINT).unwrap();
        Self { scene, port: free_port() }
    }

    fn node(&self, deeds: &str, rank: usize, secret: Option<&str>, more: &str) -> Command {
        self.node_at(self.port, deeds, rank, secret, more)
    }

    fn node_at(&self, port: u16, deeds: &str, rank: usize, secret: Option<&str>, more: &str) -> Command {
        let line = format!(
            "--device cpu --nproc 1 --nnodes 2 --node-rank {rank} --master-port {port} {more} --master-addr 127.0.0.1"
        );
        let mut command = self.scene.command(deeds, &line);
        match secret {
            Some(secret) => command.env("FNET_JOB_SECRET", secret),
            None => command.env_remove("FNET_JOB_SECRET"),
        };
        command
    }

    /// Starts a node, and waits until its words, in `NAME.txt`, contain `text`.
    fn start(&self, name: &str, mut command: Command, text: &str) -> Child {
        let words = fs::File::create(self.scene.path(&format!("{name}.txt"))).unwrap();
        let child = command.stdout(Stdio::null()).stderr(words).spawn().unwrap();
        self.hear(name, text);
        child
    }

    fn hear(&self, name: &str, text: &str) {
        until(text, DEADLINE, || self.scene.read(&format!("{name}.txt")).contains(text));
    }

    fn wait(&self, name: &str, child: &mut Child, expected: i32) {
        assert_eq!(child.wait().unwrap().code(), Some(expected), "{}", self.scene.read(&format!("{name}.txt")));
    }
}

#[test]
fn secrets_that_differ_are_named_on_both_sides_and_the_waiting_job_goes_on() {
    let file = |pair: &Pair, mode| {
        let path = pair.scene.path("secret");
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
                let pair = Pair::new();
                let trust = if first.is_some() { "with a job secret" } else { "without a job secret: whoever" };
                let listening = format!("listening at 127.0.0.1, port {}, {trust}", pair.port);
                let mut waiting = pair.start("0", pair.node("environment", 0, first, "test a.ckpt"), &listening);
                let refused = finish(pair.node("environment", 1, second, "test a.ckpt"));
                assert_eq!(code(&refused), 2, "{}", stderr(&refused));
                let remedy = "; give all nodes the same (FNET_JOB_SECRET or --secret-file)";
                for text in [there, remedy] {
                    assert!(stderr(&refused).contains(text), "{}", stderr(&refused));
                }
                pair.hear("0", &format!("a connection from 127.0.0.1 was refused: {here}{remedy}"));
                // The file takes precedence over the variable, and others must not be able to read it.
                file(&pair, 0o644);
                let options = if first.is_some() { "--secret-file secret test a.ckpt" } else { "test a.ckpt" };
                let variable = first.map(|_| OTHER);
                let open = finish(pair.node("environment", 1, variable, "--secret-file secret test a.ckpt"));
                assert_eq!(code(&open), 2);
                assert!(stderr(&open).contains("mode is 0644"), "{}", stderr(&open));
                file(&pair, 0o600);
                let joined = finish(pair.node("environment", 1, variable, options));
                assert_eq!(code(&joined), 0, "{}", stderr(&joined));
                pair.wait("0", &mut waiting, 0);
                for text in [pair.scene.read("0.txt"), stderr(&refused), stderr(&joined)] {
                    assert!(!text.contains("of the tests"), "{text}");
                }
                for rank in 0..2 {
                    let variables = pair.scene.read(&format!("environment_{rank}"));
                    assert!(!variables.contains("FNET_JOB_SECRET"), "workers need no secret");
                }
                pair.scene.assert_nothing_left();
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
    let pair = Pair::new();
    let tap = Tap::new(pair.port);
    let first =
        || pair.start("0", pair.node("pace", 0, Some(SECRET), "--max-restarts 0 train cfg.toml"), "listening at");
    let second = |port| pair.node_at(port, "pace", 1, Some(SECRET), "--max-restarts 0 train cfg.toml");
    let is_running = || {
        for rank in 0..2 {
            let ready = pair.scene.path(&format!("ready_{rank}"));
            until("the workers work", DEADLINE, || ready.exists());
            fs::remove_file(ready).unwrap();
        }
    };
    let mut node_0 = first();
    let mut node_1 = pair.start("1", second(tap.port), "");
    is_running();
    let recorded = tap.heard.each_ref().map(|lines| lines.lock().unwrap().join("\n") + "\n");
    // Nothing of the job is sent before both have proven to know the secret.
    for text in &recorded {
        assert!(text.lines().take(2).all(|line| !line.contains("cpu") && !line.contains("version")), "{text}");
    }
    tap.repeat.store(true, Ordering::SeqCst);
    pair.wait("0", &mut node_0, 4);
    pair.wait("1", &mut node_1, 4);
    let told = pair.scene.read("0.txt");
    assert!(told.contains("is lost: the connection broke: a message is forged, altered or repeated"), "{told}");

    // The same lines again, to node 0 of the next job, and to a node that takes their sender for node 0.
    let mut node_0 = first();
    let mut replay = TcpStream::connect(("127.0.0.1", pair.port)).unwrap();
    replay.write_all(recorded[0].as_bytes()).unwrap();
    pair.hear("0", "it has another job secret than node 0");
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
    let mut node_1 = pair.start("1", second(pair.port), "");
    is_running();
    signal(node_1.id(), "TERM");
    pair.wait("1", &mut node_1, 75);
    pair.wait("0", &mut node_0, 75);
    pair.scene.assert_nothing_left();
}

#[test]
fn a_flood_of_strangers_delays_no_job_and_costs_a_few_lines() {
    let pair = Pair::new();
    let mut node_0 = pair.start("0", pair.node("pace", 0, Some(SECRET), "train cfg.toml"), "listening at");
    let port = pair.port;
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
        pair.hear("0", "it is not a node of this job (");
        let mut node_1 = pair.start("1", pair.node("pace", 1, Some(SECRET), "train cfg.toml"), "");
        for rank in 0..2 {
            let ready = pair.scene.path(&format!("ready_{rank}"));
            until("the workers work", DEADLINE, || ready.exists());
        }
        thread::sleep(Duration::from_secs(2));
        assert!(node_0.try_wait().unwrap().is_none() && node_1.try_wait().unwrap().is_none());
        let files = open_files(node_0.id());
        assert!(files < at_first + 100, "{files} open files");
        signal(node_1.id(), "TERM");
        pair.wait("1", &mut node_1, 75);
        pair.wait("0", &mut node_0, 75);
        end.store(true, Ordering::SeqCst);
    });
    let told = pair.scene.read("0.txt");
    assert!(told.lines().filter(|line| line.contains("was refused")).count() < 10, "{told}");
    pair.scene.assert_nothing_left();
}

#[test]
fn the_ports_of_a_job_are_open_at_its_own_address_only() {
    let pair = Pair::new();
    let line = |rank| {
        let port = pair.port;
        format!(
            "--device cpu --nproc 1 --nnodes 2 --node-rank {rank} --master-addr 127.0.0.2 --master-port {port} train cfg.toml"
        )
    };
    let mut running = [0, 1].map(|rank| {
        let command = pair.scene.command("connect@1", &line(rank));
        pair.start(&rank.to_string(), command, "")
    });
    let file = pair.scene.path("port_1");
    // Its own launcher has seen the store at the address of the job.
    until("rank 1 has reached the store", DEADLINE, || {
        fs::read_to_string(&file).is_ok_and(|text| text.ends_with('\n'))
    });
    let store: u16 = pair.scene.read("port_1").trim().parse().unwrap();
    for port in [store, pair.port] {
        assert!(TcpStream::connect(("127.0.0.2", port)).is_ok(), "{port}");
        for other in ["127.0.0.1", "::1"] {
            assert!(TcpStream::connect((other, port)).is_err(), "{other}, port {port}");
        }
    }
    signal(running[0].id(), "TERM");
    for child in &mut running {
        child.wait().unwrap();
    }
    pair.scene.assert_nothing_left();
}

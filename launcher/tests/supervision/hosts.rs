//! `--hosts`: nodes that are started over ssh, with a stand-in for it and with the real one.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::support::{CHECKPOINT, Scene, TIMEOUT, code, finish, free_port, signal, stderr, until};

/// A folder with an `ssh` that runs the command here, in another folder and almost without variables, unless the host is
/// `away`.
fn scene() -> Scene {
    let scene = Scene::new();
    fs::write(scene.path("a.ckpt"), CHECKPOINT).unwrap();
    let text = "#!/bin/bash\nwhile [[ $1 == -* ]]; do [ $1 != -o ] || shift; shift; done\necho \"$*\" >> ssh_words\n\
                [ $1 != away ] || { echo 'ssh: connect to host away port 22: No route to host' >&2; exit 255; }\n\
                echo welcome; cd /; exec env -i SCENE=\"$SCENE\" PATH=\"$PATH\" sh -c \"$2\"\n";
    fs::write(scene.path("ssh"), text).unwrap();
    fs::set_permissions(scene.path("ssh"), fs::Permissions::from_mode(0o755)).unwrap();
    scene
}

fn command(scene: &Scene, deeds: &str, hosts: &str, line: &str) -> Command {
    let line = format!(
        "{hosts} --pass-env FNET_,FAKE,SCENE --device cpu --nproc 1 --master-addr 127.0.0.1 --master-port {} {line}",
        free_port()
    );
    let mut command = scene.command(deeds, &line);
    command.env("FNET_SSH", scene.path("ssh")).env_remove("FNET_JOB_SECRET");
    command
}

#[test]
fn the_nodes_start_over_ssh_with_a_secret_that_is_on_no_command_line() {
    let scene = scene();
    let output = finish(command(&scene, "environment", "--hosts a,b", "test a.ckpt"));
    let told = stderr(&output);
    assert_eq!(code(&output), 0, "{told}");
    for text in
        ["[a] fnet-launch: listening at 127.0.0.1, port", "with a job secret", "[b] fnet-launch: test on 1 worker"]
    {
        assert!(told.contains(text), "{text}: {told}");
    }
    let words = scene.read("ssh_words");
    let program = env!("CARGO_BIN_EXE_fnet-launch");
    // They run at the same time.
    let mut started: Vec<&str> = words.lines().collect();
    started.sort_unstable();
    assert_eq!(started, [format!("a exec {program} __remote"), format!("b exec {program} __remote")]);
    assert!(scene.read("environment_1").contains("GROUP_RANK=1\n"));
    // Numbers of workers per host; without one, as the line says.
    fs::write(scene.path("hosts"), "# nodes\na slots=2\n\nb slots=1 # small\n").unwrap();
    let mut command = scene.command(
        "environment",
        &format!(
            "--hostfile hosts --device cpu --master-addr 127.0.0.1 --master-port {} --pass-env FNET_,FAKE,SCENE test a.ckpt",
            free_port()
        ),
    );
    command.env("FNET_SSH", scene.path("ssh"));
    let output = finish(command);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(scene.read("environment_2").contains("WORLD_SIZE=3\n"));
    scene.assert_nothing_left();
}

#[test]
fn one_signal_or_a_lost_connection_stops_all_nodes_and_the_code_is_that_of_the_job() {
    for (name, expected) in [("INT", Some(130)), ("TERM", Some(75)), ("KILL", None)] {
        let scene = scene();
        let mut command = command(&scene, "work", "--hosts a,b", "train cfg.toml");
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        for rank in 0..2 {
            let ready = scene.path(&format!("ready_{rank}"));
            until("the workers work", TIMEOUT, || ready.exists());
        }
        signal(child.id(), name);
        assert_eq!(child.wait().unwrap().code(), expected, "{name}");
        // Without this program, the helpers see the end of their input.
        until("both save and end", TIMEOUT, || scene.processes().is_empty());
        assert!(scene.path("saved_0").exists() && scene.path("saved_1").exists(), "{name}");
    }
    let scene = scene();
    let output = finish(command(&scene, "kill@1", "--hosts a,b", "--max-restarts 0 train cfg.toml"));
    assert_eq!(code(&output), 4);
    assert!(stderr(&output).contains("rank 1 failed: killed by SIGKILL"), "{}", stderr(&output));
}

#[test]
fn a_host_that_cannot_be_reached_is_named_with_the_last_line_of_ssh() {
    let scene = scene();
    for (hosts, more, expected, text) in [
        ("--hosts a,away", "", 6, "host away cannot run node 1: ssh: connect to host away port 22: No route to host"),
        ("--hosts away,b", "", 6, "host away cannot run node 0: ssh: connect"),
        (
            "--hosts a,b",
            "--remote-program /no/such",
            6,
            "install fnet at the same path there, or name it with --remote-program",
        ),
        ("--hosts a,-b", "", 2, "--hosts: `-b`: expected a host, such as"),
        ("--hosts a,b,a", "", 2, "--hosts: `a`: this host is listed twice"),
        ("--hosts a,b", "--nnodes 2", 2, "cannot be used with"),
        ("--hostfile cfg.toml", "", 2, "--hostfile cfg.toml: it has no hosts"),
        ("--hosts a,b", "--ssh /no/such", 2, "--ssh: starting /no/such: No such file"),
    ] {
        let output = finish(command(&scene, "work", hosts, &format!("{more} train cfg.toml")));
        assert_eq!(code(&output), expected, "{hosts} {more}: {}", stderr(&output));
        assert!(stderr(&output).contains(text), "{text}: {}", stderr(&output));
    }
    scene.assert_nothing_left();
}

/// A real sshd for this user, at a port and with keys of its own.
struct Sshd {
    server: Child,
    ssh: String,
}

impl Sshd {
    fn start(scene: &Scene) -> Option<Self> {
        let program = "/usr/sbin/sshd";
        if !Path::new(program).exists() || Command::new("ssh").arg("-V").output().is_err() {
            return None;
        }
        let _ = fs::create_dir("/run/sshd");
        let (folder, port) = (scene.path(""), free_port());
        let folder = folder.display().to_string();
        for key in ["host_key", "user_key"] {
            let words = ["-q", "-t", "ed25519", "-N", "", "-f", &format!("{folder}{key}")];
            assert!(Command::new("ssh-keygen").args(words).status().unwrap().success());
        }
        fs::copy(scene.path("user_key.pub"), scene.path("authorized")).unwrap();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.2\nListenAddress 127.0.0.3\nHostKey {folder}host_key\nPidFile none\n\
             AuthorizedKeysFile {folder}authorized\nStrictModes no\nUsePAM no\n"
        );
        fs::write(scene.path("sshd_config"), config).unwrap();
        let mut command = Command::new(program);
        command.args(["-D", "-e", "-f"]).arg(scene.path("sshd_config")).stderr(Stdio::null());
        let mut server = command.spawn().unwrap();
        until("sshd listens", TIMEOUT, || {
            server.try_wait().unwrap().is_some() || TcpStream::connect(("127.0.0.2", port)).is_ok()
        });
        let ssh = format!(
            "ssh -F none -p {port} -i {folder}user_key -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
        );
        let sshd = Self { server, ssh };
        let words: Vec<&str> = sshd.ssh.split(' ').skip(1).collect();
        let works = Command::new("ssh").args(words).args(["-o", "BatchMode=yes", "127.0.0.2", "true"]).status();
        works.is_ok_and(|status| status.success()).then_some(sshd)
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

#[test]
fn with_the_real_ssh_the_nodes_train_and_stop_when_the_starter_is_gone() {
    let scene = Scene::new();
    let Some(sshd) = Sshd::start(&scene) else {
        println!("SKIPPED: this machine has no sshd that lets this user in");
        return;
    };
    let mut command = command(&scene, "work", "--hosts 127.0.0.2,127.0.0.3", "train cfg.toml");
    command.env("FNET_SSH", &sshd.ssh);
    let words = fs::File::create(scene.path("stderr.txt")).unwrap();
    let mut child = command.stdout(Stdio::null()).stderr(words).spawn().unwrap();
    for rank in 0..2 {
        let ready = scene.path(&format!("ready_{rank}"));
        until("the workers work", TIMEOUT, || ready.exists() || child.try_wait().unwrap().is_some());
    }
    assert!(child.try_wait().unwrap().is_none(), "{}", scene.read("stderr.txt"));
    signal(child.id(), "KILL");
    child.wait().unwrap();
    for rank in 0..2 {
        let saved = scene.path(&format!("saved_{rank}"));
        until("the workers save", TIMEOUT, || saved.exists());
    }
    until("nothing is left", TIMEOUT, || scene.processes().is_empty());
}

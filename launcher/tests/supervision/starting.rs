//! The launcher starts its workers: devices, environment, ports, logs, and what it refuses.

use std::collections::HashMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{CHECKPOINT, Scene, TIMEOUT, code, finish, free_port, stderr, until};

const TWO: &str = "--device cpu --nproc 2 train cfg.toml";

fn environment(scene: &Scene, rank: usize) -> HashMap<String, String> {
    let text = scene.read(&format!("environment_{rank}"));
    text.lines().filter_map(|line| line.split_once('=')).map(|(name, value)| (name.into(), value.into())).collect()
}

#[test]
fn without_a_gpu_it_ends_at_once_with_the_line_to_run_instead() {
    let scene = Scene::new();
    let mut command = scene.command("finish", "--gpus 8 train cfg.toml --seed 3");
    command.env("CUDA_VISIBLE_DEVICES", "");
    let start = Instant::now();
    let output = finish(command);
    let text = stderr(&output);
    assert_eq!(code(&output), 6, "{text}");
    assert!(text.contains("no GPU found for --gpus 8. Looked for:\n  /dev/nvidia0"), "{text}");
    assert!(text.contains("\n  fnet-launch --device cpu --nproc 2 train --seed=3 cfg.toml\n"), "{text}");
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert!(!scene.path("work_dirs").exists(), "nothing was begun");
}

#[test]
fn workers_find_their_place_in_the_environment_and_leaked_variables_do_no_harm() {
    let scene = Scene::new();
    let mut command = scene.command("environment", TWO);
    command.env("PORT", "22").env("MASTER_PORT", "22").env("MASTER_ADDR", "gone.example").env("FNET_STORE_FD", "0");
    command.env("RANK", "9").env("WORLD_SIZE", "99").env("LOCAL_WORLD_SIZE", "99");
    let output = finish(command);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    for rank in 0..2 {
        let variables = environment(&scene, rank);
        let number = rank.to_string();
        for (name, expected) in [
            ("RANK", number.as_str()),
            ("LOCAL_RANK", &number),
            ("WORLD_SIZE", "2"),
            ("LOCAL_WORLD_SIZE", "2"),
            ("MASTER_ADDR", "127.0.0.1"),
            ("FNET_DEVICE", "cpu"),
            ("FNET_RESTART_COUNT", "0"),
        ] {
            assert_eq!(variables.get(name).map(String::as_str), Some(expected), "{name}");
        }
        assert!(variables["MASTER_PORT"].parse::<u16>().unwrap() >= 1024);
        assert!(variables["OMP_NUM_THREADS"].parse::<usize>().unwrap() >= 1);
        assert!(!variables.contains_key("PORT"));
        assert_eq!(variables.contains_key("FNET_STORE_FD"), rank == 0);
    }
    assert_eq!(environment(&scene, 0)["MASTER_PORT"], environment(&scene, 1)["MASTER_PORT"]);
}

#[test]
fn nodes_with_different_numbers_of_workers_meet_and_their_ranks_go_on() {
    let scene = Scene::new();
    let port = free_port().to_string();
    let node = |rank: &str, workers: usize| {
        let mut command = scene.command("environment", &format!("--device cpu --nproc {workers} test a.ckpt"));
        command.env("NNODES", "2").env("NODE_RANK", rank).env("MASTER_ADDR", "[::1]").env("PORT", &port);
        finish(command)
    };
    fs::write(scene.path("a.ckpt"), CHECKPOINT).unwrap();
    let (first, second) = std::thread::scope(|scope| {
        let second = scope.spawn(|| node("1", 2));
        (node("0", 1), second.join().unwrap())
    });
    for output in [&first, &second] {
        assert_eq!(code(output), 0, "{}{}", stderr(&first), stderr(&second));
    }
    let variables: Vec<_> = (0..3).map(|rank| environment(&scene, rank)).collect();
    for (rank, local, count) in [(0, "0", "1"), (1, "0", "2"), (2, "1", "2")] {
        for (name, expected) in
            [("LOCAL_RANK", local), ("LOCAL_WORLD_SIZE", count), ("WORLD_SIZE", "3"), ("MASTER_ADDR", "::1")]
        {
            assert_eq!(variables[rank].get(name).map(String::as_str), Some(expected), "{name} of rank {rank}");
        }
        assert_eq!(variables[rank]["MASTER_PORT"], variables[0]["MASTER_PORT"], "one store");
        assert_eq!(variables[rank].contains_key("FNET_STORE_FD"), rank == 0);
    }
    assert_ne!(variables[0]["MASTER_PORT"], port, "the store has a port of its own");
    scene.assert_nothing_left();
}

#[test]
fn one_of_several_nodes_never_trains_alone_unless_told_to() {
    let scene = Scene::new();
    let mut command = scene.command("finish", TWO);
    command.env("SLURM_NNODES", "2");
    let output = finish(command);
    let told = stderr(&output);
    let remedy = "scripts/slurm/train.sh";
    assert!(code(&output) == 2 && told.contains("SLURM_NNODES=2: 2 nodes") && told.contains(remedy), "{told}");
    assert!(!scene.path("work_dirs").exists(), "nothing was begun");
    let mut command = scene.command("finish", &format!("--nnodes 1 {TWO}"));
    command.env("SLURM_NNODES", "2");
    assert_eq!(code(&finish(command)), 0);
}

#[test]
fn the_workers_of_a_single_node_meet_whatever_address_is_given() {
    for address in ["no-such-host.invalid", "192.0.2.7", "::1", "[fd00::7]"] {
        let scene = Scene::new();
        let output = scene.run("connect", &format!("--nnodes 1 --master-addr {address} {TWO}"));
        assert_eq!(code(&output), 0, "{address}: {}", stderr(&output));
    }
}

#[test]
fn what_the_user_has_set_wins() {
    let scene = Scene::new();
    let mut command = scene.command("environment", TWO);
    command.env("OMP_NUM_THREADS", "7");
    assert_eq!(code(&finish(command)), 0);
    assert_eq!(environment(&scene, 1)["OMP_NUM_THREADS"], "7");
}

#[test]
fn the_stores_port_is_open_from_the_start_and_two_jobs_do_not_collide() {
    let scenes = [Scene::new(), Scene::new()];
    std::thread::scope(|scope| {
        for scene in &scenes {
            scope.spawn(|| {
                let output = scene.run("connect", TWO);
                assert_eq!(code(&output), 0, "{}", stderr(&output));
            });
        }
    });
    for scene in &scenes {
        assert_eq!(scene.read("port_0"), scene.read("port_1"));
    }
}

#[test]
fn logs_hold_every_line_whole() {
    let scene = Scene::new();
    let output = scene.run("flood", "--device cpu --nproc 4 train cfg.toml");
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    for rank in 0..4 {
        let log = scene.read(&format!("work_dirs/cfg/logs/rank_{rank}.log"));
        let lines: Vec<_> = log.lines().skip(1).collect();
        assert_eq!(lines.len(), 3000);
        for (number, line) in lines.iter().enumerate() {
            assert_eq!(*line, format!("rank {rank} line {number} of a flood"));
        }
    }
    let passed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(passed.lines().count(), 3000, "rank 0 writes for programs too");
}

#[test]
fn tee_shows_a_rank_line_by_line() {
    let scene = Scene::new();
    let output = scene.run("flood@1 finish@0", &format!("--tee 1 {TWO}"));
    let text = stderr(&output);
    assert!(text.contains("\n[rank 1] rank 1 line 2999 of a flood\n"), "{text}");
    assert!(output.stdout.is_empty());
}

#[test]
fn a_worker_that_is_missing_or_broken_says_so() {
    let scene = Scene::new();
    let mut command = scene.command("finish", TWO);
    command.env("FNET_WORKER", scene.path("no-such-worker"));
    let output = finish(command);
    assert_eq!(code(&output), 6);
    assert!(stderr(&output).contains("no-such-worker: no such file"), "{}", stderr(&output));
    let mut command = scene.command("finish", TWO);
    command.env("FNET_WORKER", scene.path("cfg.toml"));
    let output = finish(command);
    assert_eq!(code(&output), 6);
    assert!(
        stderr(&output).contains("cfg.toml): Permission denied (os error 13); run `fnet-launch doctor`"),
        "{}",
        stderr(&output)
    );
    scene.assert_nothing_left();
}

#[test]
fn wrong_lines_are_refused_before_anything_starts() {
    let scene = Scene::new();
    for (line, expected) in [
        ("train no-such.toml --device cpu", 2),
        ("test no-such.ckpt --device cpu", 3),
        ("export no-such.ckpt a.pth", 3),
        ("train cfg.toml --device cpu --gpus 1", 2),
        ("train cfg.toml --device cpu --nnodes 2", 2),
        ("train cfg.toml --device tpu", 2),
        ("train", 2),
        ("tain cfg.toml", 2),
    ] {
        let output = scene.run("finish", line);
        assert_eq!(code(&output), expected, "{line}: {}", stderr(&output));
        assert!(!stderr(&output).is_empty());
    }
    assert!(!scene.path("work_dirs").exists());
}

#[test]
fn commands_for_one_process_become_the_worker() {
    let scene = Scene::new();
    let output = scene.run("", "print-config cfg.toml --set a=1 b=2");
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "arguments: print-config --set=a=1 --set=b=2 cfg.toml\n");
    let output = scene.run("", "flops cfg.toml --json --shape 320 320");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "arguments: flops --shape 320 320 --json cfg.toml\n");
}

#[test]
fn one_worker_predicts() {
    let scene = Scene::new();
    fs::write(scene.path("a.ckpt"), CHECKPOINT).unwrap();
    let output = scene.run("environment", "--device cpu --nproc 3 predict a.ckpt cfg.toml --out painted");
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(environment(&scene, 0)["WORLD_SIZE"], "1");
    assert!(scene.path("painted/logs/rank_0.log").exists());
}

#[test]
fn help_completions_and_synthetic_sets_need_no_worker() {
    let scene = Scene::new();
    for (line, expected) in [("--help", "train"), ("train --help", "Example"), ("completions bash", "complete")] {
        let output = scene.run("", line);
        assert_eq!(code(&output), 0);
        assert!(String::from_utf8_lossy(&output.stdout).contains(expected), "{line}");
    }
    let output = scene.run("", "synth --out set --images 2 --val-images 1 --seed 5");
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(scene.path("set/annotations/instances_train.json").exists());
    let output = scene.run("", "synth --out set --images 2 --val-images 1 --seed 6");
    assert_eq!(code(&output), 2, "another set is there: {}", stderr(&output));
}

/// What a real bash offers after `words`, the last of which is being typed.
fn bash_offers(scene: &Scene, words: &[&str]) -> String {
    let script = scene.run("", "completions bash");
    fs::write(scene.path("completions.bash"), script.stdout).unwrap();
    let [.., previous, last] = words else { panic!("{words:?}") };
    let line = format!(
        "source completions.bash; COMP_WORDS=({}); COMP_CWORD={}; _fnet__launch fnet-launch '{last}' '{previous}'; echo \"${{COMPREPLY[*]}}\"",
        words.join(" "),
        words.len() - 1,
    );
    let output = Command::new("bash").args(["-c", &line]).current_dir(scene.path(".")).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn bash_completes_commands_and_their_options() {
    let scene = Scene::new();
    assert!(bash_offers(&scene, &["fnet-launch", "tr"]).contains("train"));
    assert!(bash_offers(&scene, &["fnet-launch", "train", "--re"]).contains("--resume"));
    assert!(bash_offers(&scene, &["fnet-launch", "check-data", "--de"]).contains("--decode"));
    assert!(bash_offers(&scene, &["fnet-launch", "benchmark", "train", "--sh"]).contains("--shape"));
}

#[test]
fn documents_may_be_read_in_part() {
    let scene = Scene::new();
    for line in ["completions bash", "completions zsh", "--help"] {
        let mut command = scene.command("", line);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert!(code(&output) == 0 && output.stderr.is_empty(), "{line}: {}", stderr(&output));
    }
}

#[test]
fn every_command_has_a_manual_page_and_help_that_is_short() {
    let scene = Scene::new();
    assert_eq!(code(&scene.run("", "man pages")), 0);
    let page = |name: &str| fs::read_to_string(scene.path("pages").join(name)).unwrap();
    assert!(page("fnet-launch-train.1").contains("work\\-dir") && page("fnet-launch.1").contains("max\\-restarts"));
    assert!(!page("fnet-launch-train.1").contains("max\\-restarts"));
    let stdout = |line: &str| String::from_utf8(scene.run("", line).stdout).unwrap();
    let help = stdout("train --help");
    assert!(
        help.contains("--resume") && help.contains("fnet-launch --help") && !help.contains("--max-restarts"),
        "{help}"
    );
    assert_eq!(stdout("help train"), help);
    assert!(stdout("--help").contains("--max-restarts"));
    fs::write(scene.path("file"), "").unwrap();
    let output = scene.run("", "man file");
    assert!(code(&output) == 6 && stderr(&output).contains("file"), "{}", stderr(&output));
}

#[test]
fn doctor_names_what_is_wrong_and_the_remedy() {
    let scene = Scene::new();
    let mut command = scene.command("", "doctor");
    command.env("FNET_WORKER", scene.path("no-such-worker"));
    let output = finish(command);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(code(&output), 6, "{text}");
    assert!(text.contains("BAD  worker") && text.contains("make setup"), "{text}");
}

/// `kill` for the whole process group that a process leads, as a batch system sends it.
fn signal_group(leader: u32, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), "--", &format!("-{leader}")]).status().unwrap();
    assert!(status.success());
}

/// Whether this program, and so what it starts, ignores SIGHUP.
fn hang_up_is_ignored() -> bool {
    signals(std::process::id(), "SigIgn:") & 1 != 0
}

/// The signals of one of the sets of a process.
fn signals(process: u32, set: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix(set)).unwrap_or("0");
    u64::from_str_radix(mask.trim(), 16).unwrap()
}

#[test]
fn a_signal_to_the_whole_group_in_the_first_moment_is_a_request_to_stop() {
    for (name, code) in [("USR1", 75), ("TERM", 75), ("HUP", 75), ("INT", 130)] {
        // The launcher lets a job go on for which nohup ignores SIGHUP, and so may these tests be run.
        if name == "HUP" && hang_up_is_ignored() {
            continue;
        }
        let scene = Scene::new();
        let words = fs::File::create(scene.path("stderr.txt")).unwrap();
        let mut command = scene.command("work", TWO);
        let mut child = command.stdout(Stdio::null()).stderr(words).process_group(0).spawn().unwrap();
        until("signals are handled", TIMEOUT, || signals(child.id(), "SigCgt:") & (1 << 14) != 0);
        signal_group(child.id(), name);
        assert_eq!(child.wait().unwrap().code(), Some(code), "{name}");
        assert!(scene.read("stderr.txt").contains("stopped on request"), "{name}");
        scene.assert_nothing_left();
    }
}

#[test]
fn a_mistake_in_the_config_is_told_once_before_anything_is_begun() {
    let scene = Scene::new();
    fs::write(scene.path("cfg.toml"), "[optimizer]\n\nlrr = 1.0\n").unwrap();
    let output = scene.run("finish", TWO);
    assert_eq!(code(&output), 2);
    assert_eq!(
        stderr(&output),
        "fnet-launch: cfg.toml:3:1: unknown field `optimizer.lrr`; did you mean `optimizer.lr`?\n"
    );
    assert!(!scene.path("work_dirs").exists(), "nothing was begun");
}

#[test]
fn a_worker_that_ends_before_its_first_word_is_never_a_success_and_never_without_a_reason() {
    for (how, expected, text) in [
        ("0", 6, "exited with code 0 before it had started"),
        ("2", 2, "exited with code 2"),
        ("127", 4, "exited with code 127"),
        ("KILL", 4, "killed by SIGKILL"),
        ("TERM", 4, "killed by SIGTERM"),
        ("USR1", 4, "killed by SIGUSR1"),
    ] {
        let scene = Scene::new();
        let output = scene.run(&format!("mute={how}"), "--device cpu --nproc 1 --max-restarts 0 train cfg.toml");
        let told = stderr(&output);
        assert!(code(&output) == expected && told.contains(&format!("rank 0 failed: {text}")), "{how}: {told}");
    }
}

#[test]
fn a_file_of_another_kind_is_named_with_the_command_that_takes_it_before_anything_is_begun() {
    let scene = Scene::new();
    fs::write(scene.path("results.json"), "{\"images\": []}").unwrap();
    fs::write(scene.path("a.png"), b"\x89PNG\r\n\x1a\n").unwrap();
    for (line, expected, text) in [
        ("train results.json", 2, "config results.json: this is a JSON file"),
        ("test a.png", 3, "checkpoint a.png: this is an image (PNG)"),
        ("predict a.png a.png --out out", 3, "fnet-launch predict CHECKPOINT a.png --out FOLDER"),
        ("train cfg.toml --resume=results.json", 3, "checkpoint results.json"),
        ("train cfg.toml --load-from a.png", 3, "checkpoint a.png"),
    ] {
        let output = scene.run("finish", &format!("--device cpu --nproc 2 {line}"));
        let told = stderr(&output);
        assert!(code(&output) == expected && told.contains(text) && told.lines().count() == 1, "{line}: {told}");
        assert!(!scene.path("work_dirs").exists() && !scene.path("out").exists(), "{line}: nothing was begun");
    }
}

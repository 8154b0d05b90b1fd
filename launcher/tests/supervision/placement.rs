//! Where workers run: CPUs, threads, limits.

use std::fs;

use crate::support::{Scene, code, finish, stderr};

/// The CPUs that this process may use.
fn allowed() -> Vec<usize> {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim().to_owned();
    list.split(',')
        .flat_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            first.parse::<usize>().unwrap()..=last.parse().unwrap()
        })
        .collect()
}

fn cpus(scene: &Scene, rank: usize) -> String {
    scene.read(&format!("cpus_{rank}")).trim().to_owned()
}

#[test]
fn the_listed_cpus_are_those_of_the_workers() {
    let scene = Scene::new();
    let all = allowed();
    let (first, last) = (all[0], all[all.len() - 1]);
    let output = scene.run("cpus", &format!("--device cpu --nproc 2 --bind {last};{first} -v train cfg.toml"));
    let text = stderr(&output);
    assert_eq!(code(&output), 0, "{text}");
    assert_eq!((cpus(&scene, 0), cpus(&scene, 1)), (last.to_string(), first.to_string()));
    assert!(text.contains(&format!("worker 0: CPUs {last}")), "{text}");
}

#[test]
fn without_binding_every_worker_has_all_cpus() {
    let scene = Scene::new();
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim();
    for line in ["--bind none", ""] {
        let nproc = allowed().len() + 1;
        // More workers than CPUs are not bound by --bind auto either.
        let nproc = if line.is_empty() { nproc } else { 2 };
        assert_eq!(code(&scene.run("cpus", &format!("--device cpu --nproc {nproc} {line} train cfg.toml"))), 0);
        assert_eq!((cpus(&scene, 0), cpus(&scene, 1)), (own.to_owned(), own.to_owned()), "{line:?}");
    }
}

#[test]
fn workers_on_the_cpu_have_equal_parts() {
    let scene = Scene::new();
    if allowed().len() < 2 {
        println!("SKIPPED workers_on_the_cpu_have_equal_parts: one CPU");
        return;
    }
    assert_eq!(code(&scene.run("cpus", "--device cpu --nproc 2 train cfg.toml")), 0);
    assert_ne!(cpus(&scene, 0), cpus(&scene, 1));
}

#[test]
fn lists_that_do_not_fit_are_refused() {
    let scene = Scene::new();
    for (line, expected) in [
        ("--nproc 3 --bind 0;0", "2 lists for 3 workers"),
        ("--nproc 1 --bind 8000", "may not use 8000"),
        ("--nproc 1 --bind 3-1", "neither a CPU nor a range"),
    ] {
        let output = scene.run("finish", &format!("--device cpu {line} train cfg.toml"));
        assert_eq!(code(&output), 2, "{line}: {}", stderr(&output));
        assert!(stderr(&output).contains(expected), "{line}: {}", stderr(&output));
    }
    assert!(!scene.path("work_dirs").exists());
}

#[test]
fn a_small_limit_of_open_files_is_raised_for_the_workers_or_named() {
    let scene = Scene::new();
    let launcher = env!("CARGO_BIN_EXE_fnet-launch");
    let under = |limits: &str| {
        let mut command = scene.command("cpus", "");
        let environment: Vec<_> =
            command.get_envs().map(|(name, value)| (name.to_owned(), value.map(ToOwned::to_owned))).collect();
        let line = format!("{limits}; exec {launcher} --device cpu --nproc 2 train cfg.toml");
        command = std::process::Command::new("/bin/bash");
        command.args(["-c", &line]).current_dir(scene.path(""));
        for (name, value) in environment {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        finish(command)
    };
    let output = under("ulimit -Sn 100; ulimit -Hn 2000");
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(scene.read("files_0").trim(), "2000");
    let output = under("ulimit -n 100");
    assert_eq!(code(&output), 6, "{}", stderr(&output));
    assert!(stderr(&output).contains("the limit is 100; raise it"), "{}", stderr(&output));
}

#[test]
fn a_folder_that_cannot_be_written_to_is_named_before_anything_starts() {
    let scene = Scene::new();
    fs::write(scene.path("work_dirs"), "").unwrap();
    let output = scene.run("finish", "--device cpu --nproc 2 benchmark comm");
    assert_eq!(code(&output), 6, "{}", stderr(&output));
    assert!(stderr(&output).contains("cannot write to work_dirs: it is not a folder"), "{}", stderr(&output));
}

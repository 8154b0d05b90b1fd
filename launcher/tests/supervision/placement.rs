//! Where workers run: CPUs, threads, limits.

use std::fs;

use fnet_protocol::cli::CpuList;

use crate::support::{Scene, code, finish, stderr};

/// The CPUs that this process may use.
fn allowed() -> CpuList {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
    list.parse().unwrap()
}

fn cpus(scene: &Scene, rank: usize) -> String {
    scene.read(&format!("cpus_{rank}")).trim().to_owned()
}

#[test]
fn the_listed_cpus_are_those_of_the_workers() {
    let scene = Scene::new();
    let all = allowed();
    let (first, last) = (all.iter().next().unwrap(), all.iter().last().unwrap());
    let output = scene.run("cpus", &format!("--device cpu --nproc 2 --bind {last};{first} -v train cfg.toml"));
    let text = stderr(&output);
    assert_eq!(code(&output), 0, "{text}");
    assert_eq!((cpus(&scene, 0), cpus(&scene, 1)), (last.to_string(), first.to_string()));
    assert!(text.contains(&format!("worker 0: CPUs {last}")), "{text}");
}

#[test]
fn without_binding_every_worker_has_all_cpus() {
    let scene = Scene::new();
    let own = allowed().to_string();
    for line in ["--bind none", ""] {
        let nproc = allowed().len() + 1;
        // More workers than CPUs are not bound by --bind auto either.
        let nproc = if line.is_empty() { nproc } else { 2 };
        assert_eq!(code(&scene.run("cpus", &format!("--device cpu --nproc {nproc} {line} train cfg.toml"))), 0);
        assert_eq!((cpus(&scene, 0), cpus(&scene, 1)), (own.clone(), own.clone()), "{line:?}");
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
fn a_small_limit_of_open_files_is_raised_for_the_workers_or_named() {
    let scene = Scene::new();
    let launcher = env!("CARGO_BIN_EXE_fnet-launch");
    let under = |limits: &str| {
        let mut command = scene.program("/bin/bash", "cpus");
        let line = format!("{limits}; exec {launcher} --device cpu --nproc 2 train cfg.toml");
        command.args(["-c", &line]);
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
    let told = stderr(&output);
    assert!(told.contains("cannot write to work_dirs: it is not a folder") && told.contains("--work-dir"), "{told}");
}

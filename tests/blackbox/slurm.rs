//! The script for Slurm, with stand-ins for Slurm's programs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

/// Runs the script with these arguments on `nodes` nodes. Returns its exit code, the rank, the length of the secret and the
/// words that `fnet-launch` got, and what was put back into the queue.
fn run(arguments: &[&str], nodes: &str, code: i32) -> (i32, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let program = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, format!("#!/usr/bin/env bash\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    program("srun", "while [[ $1 == --* ]]; do shift; done\nSLURM_NODEID=1 exec \"$@\"");
    program("fnet-launch", &format!("echo \"$NODE_RANK ${{#FNET_JOB_SECRET}} $*\" > launched; exit {code}"));
    program("scontrol", "if [ $1 = show ]; then echo host7; else echo \"$*\" > queued; fi");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/slurm/train.sh");
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let ended = Command::new("bash")
        .arg(script)
        .args(arguments)
        .current_dir(folder.path())
        .env("PATH", path)
        .env_remove("WORK_DIR")
        .env_remove("FNET_JOB_SECRET")
        .envs([("SLURM_JOB_NUM_NODES", nodes), ("SLURM_JOB_NODELIST", "host[7-8]"), ("SLURM_JOB_ID", "30042")])
        .output()
        .unwrap();
    let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap_or_default().trim_end().to_owned();
    (ended.status.code().unwrap(), read("launched"), read("queued"))
}

#[test]
fn the_same_line_serves_each_start_on_gpus_and_cpus() {
    for (arguments, nodes, expected) in [
        (vec!["a/cfg.toml"], "1", "1 0 --gpus all train a/cfg.toml --work-dir work_dirs/cfg --auto-resume"),
        (
            vec!["cfg.toml", "--load-from", "m.ckpt"],
            "2",
            "1 64 --gpus all --nnodes 2 --master-addr host7 --master-port 20042 train cfg.toml --work-dir work_dirs/cfg \
             --auto-resume --load-from m.ckpt",
        ),
        (
            vec!["cfg.toml", "--device", "cpu", "--nproc=4"],
            "1",
            "1 0 train cfg.toml --work-dir work_dirs/cfg --auto-resume --device cpu --nproc=4",
        ),
        (vec!["cfg.toml", "--gpus=2"], "1", "1 0 train cfg.toml --work-dir work_dirs/cfg --auto-resume --gpus=2"),
    ] {
        let (code, launched, _) = run(&arguments, nodes, 0);
        assert_eq!((code, launched.as_str()), (0, expected));
    }
}

#[test]
fn only_a_job_that_saved_and_stopped_goes_back_into_the_queue() {
    assert_eq!(run(&["cfg.toml"], "1", 75).2, "requeue 30042");
    let (code, _, queued) = run(&["cfg.toml"], "1", 3);
    assert_eq!((code, queued.as_str()), (3, ""));
    assert_eq!(run(&[], "1", 0).0, 2);
}

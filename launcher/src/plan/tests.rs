use std::ffi::OsString;
use std::fs;
use std::time::SystemTime;

use fnet_protocol::cli::{LaunchCommand, Train};
use fnet_protocol::exit;

use super::inputs::{check, check_overwrite};
use super::*;

/// Writes a file of the kernel below `root`.
pub fn write(root: &Path, file: &str, text: &str) {
    let path = root.join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn parse(line: &str) -> Launch {
    Launch::from_arguments(line.split_whitespace().map(OsString::from)).unwrap()
}

fn command(launch: &Launch) -> &WorkerCommand {
    match &launch.command {
        LaunchCommand::Worker(command) => command,
        other => panic!("{other:?}"),
    }
}

fn train(launch: &Launch) -> &Train {
    match command(launch) {
        WorkerCommand::Train(train) => train,
        other => panic!("{other:?}"),
    }
}

fn plan(devices: Devices, nodes: Nodes) -> Plan {
    let launch = parse("fnet-launch train a.toml --load-from m.pth --seed 3");
    Plan {
        program: "fnet-worker".into(),
        command: command(&launch).clone(),
        line: launch.line,
        resume: false,
        devices,
        nodes,
        logs: "logs".into(),
        binding: Binding { threads: Some(2), ..Binding::default() },
        verbosity: 0,
        tune_memory: true,
        by_bus: false,
    }
}

fn value<'a>(variables: &'a [(String, String)], name: &str) -> Option<&'a str> {
    variables.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

#[test]
fn every_worker_has_its_rank_and_sees_its_own_gpu_only() {
    let nodes = Nodes { count: 2, rank: 1, address: "a".into(), port: Some(29_500), ..Nodes::default() };
    let plan = plan(Devices::Cuda(vec!["5".into(), "3".into()]), nodes);
    assert_eq!(plan.ranks(), [2, 3]);
    let variables = plan.variables(1, 29_500, 4, Some(7));
    for (name, expected) in [
        (env::RANK, "3"),
        (env::LOCAL_RANK, "1"),
        (env::WORLD_SIZE, "4"),
        (env::LOCAL_WORLD_SIZE, "2"),
        (env::MASTER_ADDR, "a"),
        (env::MASTER_PORT, "29500"),
        (env::RESTART_COUNT, "4"),
        (env::DEVICE, "cuda"),
        (env::CUDA_VISIBLE_DEVICES, "3"),
        (env::OMP_NUM_THREADS, "2"),
        (env::GENERATION, "7"),
    ] {
        assert_eq!(value(&variables, name), Some(expected), "{name}");
    }
    assert_eq!(value(&variables, "CUDA_DEVICE_ORDER"), None);
}

#[test]
fn the_allocator_of_each_device_is_set_up_unless_the_user_decides() {
    let (cpu, gpu) = (Devices::Cpu(2), Devices::Cuda(vec!["0".into()]));
    let found = |devices: &Devices, tune_memory| {
        let nodes = Nodes { count: 1, address: "127.0.0.1".into(), ..Nodes::default() };
        let variables = Plan { tune_memory, ..plan(devices.clone(), nodes) }.variables(0, 1, 0, None);
        [env::GLIBC_TUNABLES, env::PYTORCH_ALLOC_CONF].map(|name| value(&variables, name).map(str::to_owned))
    };
    assert_eq!(found(&cpu, true), [Some(CPU_ALLOCATOR.to_owned()), None]);
    assert_eq!(found(&gpu, true), [None, Some("expandable_segments:True".to_owned())]);
    for devices in [&cpu, &gpu] {
        assert_eq!(found(devices, false), [None, None]);
    }
    for (devices, name, expected) in [
        (&cpu, env::GLIBC_TUNABLES, false),
        (&cpu, env::PYTORCH_ALLOC_CONF, true),
        (&gpu, env::GLIBC_TUNABLES, true),
        (&gpu, env::PYTORCH_ALLOC_CONF, false),
        (&gpu, env::PYTORCH_CUDA_ALLOC_CONF, false),
    ] {
        assert_eq!(may_tune_memory(devices, |other| other == name), expected, "{devices:?} {name}");
    }
}

#[test]
fn logs_lie_with_the_outputs() {
    let of = |line: &str| logs(command(&parse(line)));
    assert_eq!(of("fnet-launch train c/a.toml"), Path::new("work_dirs/a/logs"));
    assert_eq!(of("fnet-launch train c/a.toml --work-dir w"), Path::new("w/logs"));
    assert_eq!(of("fnet-launch test m.pth --config c/a.toml"), Path::new("work_dirs/a/logs/test"));
    assert_eq!(of("fnet-launch predict m.ckpt a.jpg --out o"), Path::new("o/logs"));
    assert_eq!(of("fnet-launch benchmark infer c/a.toml"), Path::new("work_dirs/a/logs/benchmark"));
}

#[test]
fn checkpoints_in_the_folder_need_a_decision() {
    let found = [CheckpointFile { path: "work_dirs/a/epoch_3.ckpt".into(), modified: SystemTime::UNIX_EPOCH }];
    let launch = parse("fnet-launch --device cpu --nproc 2 train c/a.toml --seed 3");
    let error = check_overwrite(&launch, train(&launch), &found).unwrap_err();
    assert_eq!(error.code, exit::USAGE);
    assert!(error.message().contains("epoch_3.ckpt"), "{error}");
    let lines = [
        "\n  fnet-launch --device cpu --nproc 2 train --resume --seed=3 c/a.toml",
        "\n  fnet-launch --device cpu --nproc 2 train --work-dir=work_dirs/a_2 --seed=3 c/a.toml",
    ];
    for line in lines {
        assert!(error.message().contains(line), "{error}");
    }
    assert_eq!(check_overwrite(&launch, train(&launch), &[]), Ok(()));
    let launch = parse("fnet-launch train c/a.toml --resume");
    assert_eq!(check_overwrite(&launch, train(&launch), &found), Ok(()));
}

#[test]
fn a_restart_resumes_instead_of_loading_weights() {
    let plan = plan(Devices::Cpu(2), Nodes { count: 1, ..Nodes::default() });
    let words = |plan: &Plan| text::shell_line(&plan.worker_line().words());
    assert_eq!(words(&plan), "train --load-from=m.pth --seed=3 a.toml");
    assert_eq!(words(&Plan { resume: true, ..plan }), "train --resume --seed=3 a.toml");
}

#[test]
fn the_worker_is_found_beside_the_launcher_then_on_path() {
    let folder = tempfile::tempdir().unwrap();
    let (bin, other) = (folder.path().join("bin"), folder.path().join("other"));
    for place in [&bin, &other] {
        fs::create_dir(place).unwrap();
        fs::write(place.join("fnet-worker"), "").unwrap();
    }
    let launcher = bin.join("fnet-launch");
    let find =
        |own: Option<&Path>| inputs::find_worker(own.map(Path::as_os_str), Some(&launcher), Some(other.as_os_str()));
    assert_eq!(find(None), Ok(bin.join("fnet-worker")));
    fs::remove_file(bin.join("fnet-worker")).unwrap();
    assert_eq!(find(None), Ok(other.join("fnet-worker")));
    assert_eq!(find(Some(&folder.path().join("none"))).unwrap_err().code, exit::ENVIRONMENT);
    fs::remove_file(other.join("fnet-worker")).unwrap();
    assert!(find(None).unwrap_err().message().contains("bin/fnet-worker"));
}

#[test]
fn a_pytorch_file_without_its_config_is_refused_with_the_line_to_run() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.pth");
    fs::write(&file, b"PK\x03\x04").unwrap();
    let launch = parse(&format!("fnet-launch --device cpu --nproc 2 test {}", file.display()));
    let error = check(&launch, command(&launch)).unwrap_err();
    assert_eq!(error.code, exit::USAGE);
    assert!(error.message().contains("\n  fnet-launch --device cpu --nproc 2 test --config=CONFIG.toml /"), "{error}");
    let launch = parse(&format!("fnet-launch export {} a.safetensors", file.display()));
    assert_eq!(check(&launch, command(&launch)), Ok(()));
}

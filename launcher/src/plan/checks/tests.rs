use fnet_protocol::exit;

use super::*;
use crate::plan::nvml::GpuProcess;

const GIB: u64 = 1 << 30;

fn state() -> MachineState {
    MachineState {
        workers: 2,
        world_size: 2,
        gpus: Some(Ok(vec![("0".into(), gpu(70 * GIB)), ("1".into(), gpu(70 * GIB))])),
        shared_memory: Some(8 * GIB),
        nccl_uses_shm: true,
        open_files: (Some(1024), Some(4096)),
        folder: Some(("work_dirs".into(), None)),
    }
}

fn gpu(free: u64) -> GpuState {
    GpuState {
        name: "Card".into(),
        memory_total: 80 * GIB,
        memory_free: free,
        shared: Some(true),
        ..GpuState::default()
    }
}

fn used(free: u64, shared: bool) -> GpuState {
    let process = GpuProcess { pid: 4711, program: Some("/usr/bin/python".into()), memory: Some(10 * GIB) };
    GpuState { processes: vec![process], shared: Some(shared), ..gpu(free) }
}

fn with_gpu(gpu: GpuState) -> Result<CheckResult> {
    judge(&MachineState { gpus: Some(Ok(vec![("3".into(), gpu)])), ..state() })
}

fn refused(state: &MachineState) -> String {
    let error = judge(state).unwrap_err();
    assert_eq!(error.code, exit::ENVIRONMENT);
    error.message().to_owned()
}

#[test]
fn a_healthy_machine_gives_no_warnings() {
    assert_eq!(judge(&state()), Ok(CheckResult::default()));
    assert_eq!(judge(&MachineState { gpus: None, shared_memory: None, ..state() }), Ok(CheckResult::default()));
    let silent = MachineState { gpus: Some(Err("no answer".into())), ..state() };
    assert_eq!(judge(&silent), Ok(CheckResult::default()), "a slow driver does not prevent a job");
}

#[test]
fn another_program_on_a_gpu_is_named_and_stops_only_jobs_that_cannot_run() {
    let warnings = with_gpu(used(60 * GIB, true)).unwrap().warnings;
    assert_eq!(
        warnings,
        ["GPU 3 (Card) is also used by process 4711 (/usr/bin/python, 10.0 GiB); 60.0 GiB of 80.0 GiB are free"]
    );
    for gpu in [used(GIB / 2, true), used(60 * GIB, false)] {
        let error = with_gpu(gpu).unwrap_err();
        assert_eq!(error.code, exit::ENVIRONMENT);
        assert!(error.message().contains("process 4711 (/usr/bin/python, 10.0 GiB)"), "{error}");
        assert!(error.message().contains("--gpus"), "{error}");
    }
    // In a container the driver may not name those outside.
    let error = with_gpu(gpu(GIB / 2)).unwrap_err();
    assert!(error.message().contains("processes that the driver does not name"), "{error}");
}

#[test]
fn damaged_memory_of_a_gpu_is_reported() {
    let warnings = with_gpu(GpuState { ecc_errors: Some(2), ..gpu(70 * GIB) }).unwrap().warnings;
    assert!(warnings[0].contains("GPU 3") && warnings[0].contains("2 uncorrectable memory errors"), "{warnings:?}");
}

#[test]
fn a_small_dev_shm_matters_to_several_gpus_only() {
    // https://github.com/pytorch/pytorch/issues/2244: docker's default is 64 MB.
    let with = |free, workers| MachineState { shared_memory: free, workers, ..state() };
    assert!(judge(&with(Some(64 << 20), 2)).unwrap().warnings[0].contains("--shm-size"));
    assert!(refused(&with(None, 2)).contains("--shm-size"));
    assert_eq!(judge(&with(None, 1)), Ok(CheckResult::default()));
    assert_eq!(judge(&MachineState { nccl_uses_shm: false, ..with(None, 2) }), Ok(CheckResult::default()));
    assert_eq!(judge(&MachineState { gpus: None, ..with(None, 2) }), Ok(CheckResult::default()));
}

#[test]
fn the_limit_on_open_files_is_raised_if_possible() {
    let with = |soft, hard, workers| {
        judge(&MachineState { open_files: (soft, hard), workers, world_size: workers, gpus: None, ..state() })
    };
    assert_eq!(with(Some(1024), Some(4096), 8).unwrap().open_files, None);
    assert_eq!(with(Some(256), Some(4096), 8).unwrap().open_files, Some(4096));
    assert_eq!(with(Some(256), None, 8).unwrap().open_files, Some(1 << 20));
    assert_eq!(with(None, None, 8).unwrap().open_files, None);
    let error = with(Some(256), Some(512), 64).unwrap_err();
    assert_eq!(error.code, exit::ENVIRONMENT);
    assert!(error.message().contains("the limit is 512") && error.message().contains("nofile=1024"), "{error}");
}

#[test]
fn the_parent_folder_counts_if_the_output_folder_does_not_exist() {
    let root = tempfile::tempdir().unwrap();
    assert_eq!(writable(&root.path().join("a/b")), (root.path().to_path_buf(), None));
    assert_eq!(writable(Path::new("surely/not/there")), (PathBuf::from("."), None));
    let file = root.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert_eq!(writable(&file.join("a")).1, Some("it is not a folder"));
}

#[test]
fn each_worker_has_the_state_of_its_own_gpu() {
    let named = |name: &str, uuid: &str| GpuState { name: name.into(), uuid: Some(uuid.into()), ..GpuState::default() };
    let report = DriverReport { gpus: vec![named("A", "GPU-aa"), named("B", "GPU-bb")], ..DriverReport::default() };
    let of = |entries: &[&str], by_bus| -> Vec<String> {
        let devices = Devices::Cuda(entries.iter().map(ToString::to_string).collect());
        of_workers(&devices, &report, by_bus).into_iter().map(|(entry, gpu)| format!("{entry} {}", gpu.name)).collect()
    };
    assert_eq!(of(&["1", "0"], true), ["1 B", "0 A"]);
    assert_eq!(of(&["1", "GPU-bb"], false), ["GPU-bb B"], "without the order of the bus a number may mean another");
}

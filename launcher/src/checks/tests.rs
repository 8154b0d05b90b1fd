use fnet_protocol::exit;

use super::*;
use crate::nvml::GpuProcess;

const GIB: u64 = 1 << 30;

fn facts() -> Facts {
    Facts {
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

fn with_gpu(state: GpuState) -> Result<Judgement> {
    judge(&Facts { gpus: Some(Ok(vec![("3".into(), state)])), ..facts() })
}

fn refused(facts: &Facts) -> String {
    let error = judge(facts).unwrap_err();
    assert_eq!(error.code, exit::ENVIRONMENT);
    error.message().to_owned()
}

#[test]
fn a_machine_in_order_gives_nothing_to_say() {
    assert_eq!(judge(&facts()), Ok(Judgement::default()));
    assert_eq!(judge(&Facts { gpus: None, shared_memory: None, ..facts() }), Ok(Judgement::default()));
    let silent = Facts { gpus: Some(Err("no answer".into())), ..facts() };
    assert_eq!(judge(&silent), Ok(Judgement::default()), "a slow driver is no fault of the job");
}

#[test]
fn another_program_on_a_gpu_is_named_and_only_stops_what_cannot_run() {
    let warnings = with_gpu(used(60 * GIB, true)).unwrap().warnings;
    assert_eq!(
        warnings,
        ["GPU 3 (Card) is used by process 4711 (/usr/bin/python, 10.0 GiB) too; 60.0 GiB of 80.0 GiB are free"]
    );
    for state in [used(GIB / 2, true), used(60 * GIB, false)] {
        let error = with_gpu(state).unwrap_err();
        assert_eq!(error.code, exit::ENVIRONMENT);
        assert!(error.message().contains("process 4711 (/usr/bin/python, 10.0 GiB)"), "{error}");
        assert!(error.message().contains("--gpus"), "{error}");
    }
    // In a container the driver may not name those outside.
    let error = with_gpu(gpu(GIB / 2)).unwrap_err();
    assert!(error.message().contains("processes that the driver does not name"), "{error}");
}

#[test]
fn damaged_memory_of_a_gpu_is_told() {
    let warnings = with_gpu(GpuState { ecc_errors: Some(2), ..gpu(70 * GIB) }).unwrap().warnings;
    assert!(warnings[0].contains("GPU 3") && warnings[0].contains("2 memory errors"), "{warnings:?}");
}

#[test]
fn a_small_dev_shm_matters_to_several_gpus_only() {
    // https://github.com/pytorch/pytorch/issues/2244: docker gives 64 MB unless told otherwise.
    let with = |free, workers| Facts { shared_memory: free, workers, ..facts() };
    assert!(judge(&with(Some(64 << 20), 2)).unwrap().warnings[0].contains("--shm-size"));
    assert!(refused(&with(None, 2)).contains("--shm-size"));
    assert_eq!(judge(&with(None, 1)), Ok(Judgement::default()));
    assert_eq!(judge(&Facts { nccl_uses_shm: false, ..with(None, 2) }), Ok(Judgement::default()));
    assert_eq!(judge(&Facts { gpus: None, ..with(None, 2) }), Ok(Judgement::default()));
}

#[test]
fn the_limit_of_open_files_is_raised_where_that_suffices() {
    let with = |soft, hard, workers| {
        judge(&Facts { open_files: (soft, hard), workers, world_size: workers, gpus: None, ..facts() })
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
fn a_folder_that_cannot_be_written_to_is_named() {
    let text = refused(&Facts { folder: Some(("/data".into(), Some("permission denied"))), ..facts() });
    assert!(text.contains("cannot write to /data: permission denied") && text.contains("--work-dir"), "{text}");
}

#[test]
fn the_folder_above_counts_where_the_outputs_have_none_yet() {
    let root = tempfile::tempdir().unwrap();
    assert_eq!(writable(&root.path().join("a/b")), (root.path().to_path_buf(), None));
    assert_eq!(writable(Path::new("surely/not/there")), (PathBuf::from("."), None));
    let file = root.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert_eq!(writable(&file.join("a")).1, Some("it is no folder"));
}

#[test]
fn each_worker_has_the_state_of_its_own_gpu() {
    let named = |name: &str, uuid: &str| GpuState { name: name.into(), uuid: Some(uuid.into()), ..GpuState::default() };
    let report = Report { gpus: vec![named("A", "GPU-aa"), named("B", "GPU-bb")], ..Report::default() };
    let of = |entries: &[&str], by_bus| -> Vec<String> {
        let devices = Devices::Cuda(entries.iter().map(ToString::to_string).collect());
        of_workers(&devices, &report, by_bus).into_iter().map(|(entry, gpu)| format!("{entry} {}", gpu.name)).collect()
    };
    assert_eq!(of(&["1", "0"], true), ["1 B", "0 A"]);
    assert_eq!(of(&["1", "GPU-bb"], false), ["GPU-bb B"], "without the order of the bus a number may mean another");
}

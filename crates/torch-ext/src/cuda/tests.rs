use std::process::Command;

use super::driver::probe;
use super::*;

/// A library with the driver's functions that answers as given.
fn driver(folder: &Path, version: i32, init: i32, devices: i32) -> PathBuf {
    let source = folder.join("driver.c");
    let library = folder.join(format!("libcuda_{version}_{init}_{devices}.so"));
    let code = format!(
        "int cuDriverGetVersion(int *v) {{ *v = {version}; return 0; }}\n\
         int cuInit(unsigned f) {{ (void)f; return {init}; }}\n\
         int cuDeviceGetCount(int *n) {{ *n = {devices}; return 0; }}\n\
         int cuDeviceGet(int *d, int i) {{ *d = 40 + i; return 0; }}\n\
         int cuDeviceGetAttribute(int *v, int which, int d) {{\n\
           if (d == 43) return 101;\n\
           *v = which == 75 ? 7 + d - 40 : which == 76 ? 5 : -1; return 0; }}\n"
    );
    std::fs::write(&source, code).unwrap();
    let status = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status().unwrap();
    assert!(status.success());
    library
}

#[test]
fn a_missing_driver_is_reported_with_the_line_to_run_instead() {
    let error = probe(Path::new("/nowhere/libcuda.so.1"), "13.0").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Environment);
    assert!(error.message().starts_with("no NVIDIA driver on this machine (cannot load /nowhere/libcuda.so.1"));
    assert!(error.message().ends_with("run with `--device cpu --nproc N`"));
}

#[test]
fn an_old_driver_is_reported_with_both_versions() {
    let folder = tempfile::tempdir().unwrap();
    let error = probe(&driver(folder.path(), 12040, 0, 1), "13.0").unwrap_err();
    assert!(error.message().contains("supports CUDA 12.4, this libtorch needs CUDA 13.0"), "{error}");
}

#[test]
fn a_driver_without_a_device_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    for (init, devices) in [(100, 0), (0, 0)] {
        let error = probe(&driver(folder.path(), 13000, init, devices), "13.0").unwrap_err();
        assert!(error.message().starts_with("the NVIDIA driver sees no GPU"), "{error}");
    }
    let error = probe(&driver(folder.path(), 13000, 803, 0), "13.0").unwrap_err();
    assert!(error.message().contains("cuInit returned 803"), "{error}");
}

#[test]
fn a_good_driver_tells_its_version_and_its_devices_capabilities() {
    let folder = tempfile::tempdir().unwrap();
    let found = probe(&driver(folder.path(), 13010, 0, 4), "13.0").unwrap();
    assert_eq!(found, Driver { cuda: (13, 1), devices: vec![Some((7, 5)), Some((8, 5)), Some((9, 5)), None] });
}

#[test]
fn a_libtorch_without_cuda_is_reported() {
    let error = probe(Path::new("libcuda.so.1"), "").unwrap_err();
    assert!(error.message().contains("built without CUDA"), "{error}");
}

#[test]
fn an_absent_object_is_reported_with_the_folders_searched() {
    let error = find_in("libfnet_nccl.so", &[PathBuf::from("/nowhere"), PathBuf::from("/elsewhere")]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Environment);
    assert!(error.message().contains("libfnet_nccl.so is absent, looked in /nowhere, /elsewhere"), "{error}");
}

#[test]
fn the_libtorch_in_use_is_the_one_built_against() {
    assert!(libtorch_folder().unwrap().join("libtorch_cpu.so").is_file());
}

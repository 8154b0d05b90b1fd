//! Whether CUDA's libraries are mapped, seen from outside: each test runs in a process of its own.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::process::{Command, Output};

use tch::{Device, Kind, Tensor};
use torch_ext::{autocast, cuda, ops, optim};

/// Runs one of this file's ignored tests as its own process.
fn run_alone(test: &str) -> Output {
    let program = std::env::current_exe().unwrap();
    Command::new(program).args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"]).output().unwrap()
}

fn assert_success(test: &str) {
    let output = run_alone(test);
    let (stdout, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // A name that matches no test would run none and succeed.
    assert!(output.status.success() && stdout.contains("1 passed"), "{stdout}{errors}");
}

fn mapped(library: &str) -> bool {
    std::fs::read_to_string("/proc/self/maps").unwrap().contains(library)
}

#[test]
fn a_process_on_the_cpu_never_maps_libtorch_cuda() {
    assert_success("body_on_the_cpu");
}

#[test]
fn cuda_libraries_and_torchvisions_operators_load_on_demand() {
    assert_success("body_loading_cuda");
}

#[test]
#[ignore = "run by another test, in a process of its own"]
fn body_on_the_cpu() {
    let _region = autocast::Guard::new(Device::Cpu, Kind::BFloat16).unwrap();
    let level = Tensor::ones([1, 8, 8, 8], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let rois = Tensor::from_slice(&[0.0f32, 1.0, 1.0, 20.0, 20.0]).reshape([1, 5]);
    let out = ops::roi_align(&[level.shallow_clone()], &rois, &Tensor::from_slice(&[0i64]), &[4], 7).unwrap();
    torch_ext::autograd::backward(&out.sum(Kind::Float)).unwrap();
    assert_eq!(ops::nms(&rois.narrow(1, 1, 4), &Tensor::from_slice(&[1.0f32]), 0.5).unwrap().size(), [1]);
    let options = optim::AdamWOptions { betas: (0.9, 0.999), eps: 1e-8, weight_decay: 0.0 };
    optim::AdamW::new(&[level], options).unwrap().step(0.1).unwrap();
    assert!(mapped("libtorch_cpu"));
    assert!(!mapped("libtorch_cuda"));
}

#[test]
#[ignore = "run by another test, in a process of its own"]
fn body_loading_cuda() {
    match cuda::probe_driver() {
        Ok(_) => {
            cuda::load_libraries().unwrap();
            assert!(mapped("libtorch_cuda") && cuda::device_count().unwrap() > 0);
        }
        Err(error) => {
            assert_eq!(error.kind(), torch_ext::ErrorKind::Environment);
            assert_eq!(cuda::load_libraries().unwrap_err().message(), error.message());
            assert!(!mapped("libtorch_cuda"));
        }
    }
}

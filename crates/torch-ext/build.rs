//! Builds the C++ bridge and tells dependents where libtorch lies.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Child;

/// Arithmetic without libtorch: compiled apart, so that its vector code is optimized without the headers' weight.
const KERNELS: &[&str] = &["cpp/batch_norm_kernel.cpp", "cpp/roi_align_kernel.cpp"];

/// What torch 2.11.0+cu130 was built with, for a libtorch whose wheel does not say so.
const NCCL: &str = "2.28.9";

fn main() {
    println!("cargo::rerun-if-env-changed=LIBTORCH");
    println!("cargo::rerun-if-changed=cpp");
    let torch = libtorch();
    let library_folder = torch.join("lib");

    let objects = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let nccl = start_nccl_part(&torch, &objects);
    bridge(&torch, 2).file("cpp/bridge_unit.cpp").compile("fnet_torch_ext");
    bridge(&torch, 3).files(KERNELS).compile("fnet_torch_ext_kernels");
    build_python_stand_in(&objects);
    if !nccl.is_none_or(|mut compiler| compiler.wait().is_ok_and(|status| status.success())) {
        fail("cannot build the NCCL part from cpp/nccl.cpp; the compiler's message is above");
    }

    // Before those that torch-sys links: libtorch_cuda defines symbols of libtorch_cpu too, and a program that took one
    // of them from there would load CUDA at its start.
    println!("cargo::rustc-link-search=native={}", library_folder.display());
    println!("cargo::rustc-link-lib=dylib=torch_cpu");

    println!("cargo::rustc-env=FNET_OBJECTS={}", objects.display());
    println!("cargo::rustc-env=FNET_TORCH_CUDA_VERSION={}", cuda_version(&torch));

    println!("cargo::metadata=objects={}", objects.display());
    println!("cargo::metadata=libtorch_lib={}", library_folder.display());
    // For the tests of this package; the root package does the same for its own programs.
    println!("cargo::rustc-link-arg=-Wl,--enable-new-dtags,-rpath,{}", library_folder.display());
}

/// The libtorch folder, resolved, so that a moved link does not change what built programs load.
fn libtorch() -> PathBuf {
    let Some(folder) = env::var_os("LIBTORCH") else {
        fail(
            "LIBTORCH is unset: run `make setup`, which links .libtorch, or name the torch folder of a Python environment",
        )
    };
    let folder = PathBuf::from(folder);
    match folder.canonicalize() {
        Ok(resolved) if resolved.join("include/ATen/core/Tensor.h").is_file() => resolved,
        _ => fail(&format!("LIBTORCH={} holds no include/ATen/core/Tensor.h: run `make setup`", folder.display())),
    }
}

/// An empty library with the name of libtorch_python, which torchvision's library asks for without using it.
fn build_python_stand_in(objects: &Path) {
    let source = objects.join("python_stand_in.c");
    let written = std::fs::write(&source, "int fnet_python_stand_in;\n");
    let compiler = cc::Build::new().get_compiler();
    let status = compiler
        .to_command()
        .args(["-shared", "-fPIC", "-Wl,-soname,libtorch_python.so", "-o"])
        .arg(objects.join("libfnet_python_stand_in.so"))
        .arg(&source)
        .status();
    if written.is_err() || !status.is_ok_and(|status| status.success()) {
        fail("cannot build the stand-in for libtorch_python.so");
    }
}

/// Starts the compiler of the NCCL part, where the headers of CUDA and NCCL are in the environment; without it there is
/// only Gloo.
fn start_nccl_part(torch: &Path, objects: &Path) -> Option<Child> {
    let target = objects.join("libfnet_nccl.so");
    let headers = ["../nvidia/cu13/include", "../nvidia/nccl/include"].map(|folder| torch.join(folder));
    let needed = [
        headers[0].join("cuda_runtime_api.h"),
        headers[0].join("crt/host_defines.h"),
        headers[1].join("nccl.h"),
        torch.join("lib/libtorch_cuda.so"),
    ];
    if let Some(missing) = needed.iter().find(|file| !file.is_file()) {
        println!("cargo::warning=no NCCL part: {} is missing", missing.display());
        // An object of an earlier build must not outlive its headers.
        let _ = std::fs::remove_file(target);
        return None;
    }
    check_nccl(torch, &headers[1].join("nccl.h"));
    let mut command = bridge(torch, 2).get_compiler().to_command();
    command.arg("-shared");
    for folder in &headers {
        command.arg("-isystem").arg(folder);
    }
    command.arg("cpp/nccl_unit.cpp").arg("-o").arg(&target).arg("-L").arg(torch.join("lib"));
    command.args(["-ltorch_cuda", "-lc10_cuda", "-ltorch_cpu", "-lc10"]);
    Some(command.spawn().unwrap_or_else(|error| fail(&format!("cannot start the C++ compiler: {error}"))))
}

/// The options of c10d's backend hold a struct of NCCL's by value: with another release's header they would be laid out in
/// another way than in libtorch_cuda.
fn check_nccl(torch: &Path, header: &Path) {
    println!("cargo::rerun-if-changed={}", header.display());
    let text = std::fs::read_to_string(header).unwrap_or_default();
    let number = |name: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix("#define ")?.strip_prefix(name))?;
        rest.trim().parse::<u32>().ok()
    };
    let found =
        ["NCCL_MAJOR ", "NCCL_MINOR ", "NCCL_PATCH "].map(|name| number(name).map_or("?".into(), |n| n.to_string()));
    let (found, expected) = (found.join("."), wheels_nccl(torch).unwrap_or_else(|| NCCL.to_owned()));
    if found != expected {
        fail(&format!(
            "{} is of NCCL {found}, and this libtorch was built with {expected}: pip install nvidia-nccl-cu13=={expected}",
            header.display()
        ));
    }
}

/// The NCCL that the wheel of libtorch asks for.
fn wheels_nccl(torch: &Path) -> Option<String> {
    let is_torch = |path: &PathBuf| {
        path.file_name().is_some_and(|name| {
            let name = name.to_string_lossy();
            name.starts_with("torch-") && name.ends_with(".dist-info")
        })
    };
    let folder = std::fs::read_dir(torch.parent()?).ok()?.flatten().map(|entry| entry.path()).find(is_torch)?;
    let text = std::fs::read_to_string(folder.join("METADATA")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Requires-Dist: nvidia-nccl-cu13=="))?;
    line.split(|c: char| c == ';' || c.is_whitespace()).next().map(str::to_owned)
}

/// The compiler's settings for every part of the bridge.
fn bridge(torch: &Path, opt_level: u32) -> cc::Build {
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .opt_level(opt_level)
        .debug(false)
        .pic(true)
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .flag("-fopenmp")
        .flag("-fvisibility=hidden")
        .flag_if_supported("-Wno-psabi")
        .flag("-Wno-unused-parameter")
        // As libtorch was built: some of its classes have more members otherwise.
        .define("NDEBUG", None)
        .include("cpp")
        .include("cpp/gloo_declarations");
    for folder in [torch.join("include"), torch.join("include/torch/csrc/api/include")] {
        build.flag("-isystem").flag(folder.display().to_string());
    }
    build
}

/// The CUDA version that the wheel was built for; empty without CUDA.
fn cuda_version(torch: &Path) -> String {
    let text = std::fs::read_to_string(torch.join("version.py")).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("cuda"));
    let value = line.and_then(|line| line.split_once('=')).map(|(_, value)| value.trim().trim_matches('\''));
    value.filter(|value| *value != "None").unwrap_or_default().to_owned()
}

fn fail(message: &str) -> ! {
    println!("cargo::error={message}");
    std::process::exit(1)
}

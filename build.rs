//! Run paths of the programs: an installed copy finds libtorch in `../lib/fnet`, one in the build folder where it was
//! built against. As a RUNPATH, so that LD_LIBRARY_PATH comes first.

fn main() {
    println!("cargo::rerun-if-env-changed=DEP_FNET_TORCH_EXT_LIBTORCH_LIB");
    println!("cargo::rustc-link-arg=-Wl,--enable-new-dtags,-rpath,$ORIGIN/../lib/fnet");
    // See src/getnameinfo_numeric.rs.
    println!("cargo::rustc-link-arg-bins=-Wl,--export-dynamic-symbol=getnameinfo");
    if let Ok(folder) = std::env::var("DEP_FNET_TORCH_EXT_LIBTORCH_LIB") {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{folder}");
        println!("cargo::rustc-env=FNET_TORCH_VERSION={}", torch_version(&folder));
    }
}

/// The version of libtorch that is built against, from the wheel's `version.py` beside its folder of libraries.
fn torch_version(libraries: &str) -> String {
    let text = std::fs::read_to_string(std::path::Path::new(libraries).join("../version.py")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("__version__"));
    let value = line.and_then(|line| line.split_once('=')).map(|(_, value)| value.trim().trim_matches('\''));
    value.unwrap_or("unknown").to_owned()
}

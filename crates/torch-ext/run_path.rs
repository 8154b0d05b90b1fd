//! Build script of the crates that libtorch is linked into: their tests find it where it was built against.

fn main() {
    println!("cargo::rerun-if-env-changed=DEP_FNET_TORCH_EXT_LIBTORCH_LIB");
    if let Ok(folder) = std::env::var("DEP_FNET_TORCH_EXT_LIBTORCH_LIB") {
        println!("cargo::rustc-link-arg=-Wl,--enable-new-dtags,-rpath,{folder}");
    }
}

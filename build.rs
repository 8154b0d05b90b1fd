//! Run paths of the programs: an installed copy finds libtorch in `../lib/fnet`, one in the build folder where it was
//! built against. As a RUNPATH, so that LD_LIBRARY_PATH comes first.

fn main() {
    println!("cargo::rerun-if-env-changed=DEP_FNET_TORCH_EXT_LIBTORCH_LIB");
    println!("cargo::rustc-link-arg=-Wl,--enable-new-dtags,-rpath,$ORIGIN/../lib/fnet");
    if let Ok(folder) = std::env::var("DEP_FNET_TORCH_EXT_LIBTORCH_LIB") {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{folder}");
    }
    #[cfg(feature = "mpi")]
    find_mpi();
}

/// The MPI library that the crate `mpi` was built against, by the same search.
#[cfg(feature = "mpi")]
fn find_mpi() {
    println!("cargo::rerun-if-env-changed=MPICC");
    let folders = build_probe_mpi::probe().map(|library| library.lib_paths).unwrap_or_default();
    for folder in folders {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{}", folder.display());
    }
}

//! Run path of the library: the MPI that it was built against.

fn main() {
    println!("cargo::rerun-if-env-changed=MPICC");
    println!("cargo::rustc-link-arg=-Wl,--enable-new-dtags");
    let folders = build_probe_mpi::probe().map(|library| library.lib_paths).unwrap_or_default();
    for folder in folders {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{}", folder.display());
    }
}

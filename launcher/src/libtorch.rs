//! The libtorch that the workers load.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use fnet_protocol::env::{LIBRARY_PATH, LIBRARY_PATH_BEFORE};

use crate::error::{Error, Result};

const NAME: &str = "libtorch_cpu.so";
const REQUIREMENTS: &str = include_str!("../../scripts/requirements.txt");

/// What to do if a worker does not find its libraries.
pub fn remedy() -> String {
    let wanted: Vec<&str> =
        REQUIREMENTS.lines().filter(|line| ["torch", "pillow"].iter().any(|name| line.starts_with(name))).collect();
    format!(
        "fnet needs libtorch: run `pip install {}`, then name the folder `torch` of that Python's packages with --libtorch or \
         FNET_LIBTORCH; in a checkout, `make setup` does all of it",
        wanted.join(" ")
    )
}

/// Makes the programs that this process starts load libtorch from `folder`. Must be called before there are other threads.
/// Errors: a usage error if there is no libtorch.
pub fn use_folder(folder: &Path) -> Result<()> {
    let found = [folder.join("lib"), folder.to_path_buf()].into_iter().find(|folder| folder.join(NAME).is_file());
    let absolute = found.and_then(|folder| folder.canonicalize().ok()).ok_or_else(|| {
        Error::usage(format!(
            "--libtorch {}: neither it nor its folder lib holds {NAME}; {}",
            folder.display(),
            remedy()
        ))
    })?;
    let before = std::env::var_os(LIBRARY_PATH).filter(|path| !path.is_empty());
    let folders = std::iter::once(absolute.clone()).chain(before.iter().flat_map(std::env::split_paths));
    let path: OsString = std::env::join_paths(folders)
        .map_err(|_| Error::usage(format!("--libtorch {}: the path must not contain a colon", absolute.display())))?;
    // SAFETY: no other thread exists that could read the environment.
    unsafe {
        std::env::set_var(LIBRARY_PATH_BEFORE, before.unwrap_or_default());
        std::env::set_var(LIBRARY_PATH, path);
    }
    Ok(())
}

/// Refuses a program that lacks a library, which the loader would say in words of its own.
/// Errors: an error of the machine with the libraries that are missing.
pub fn check(program: &Path) -> Result<()> {
    // The loader lists the libraries and where they are, and runs nothing.
    let Ok(listed) = Command::new(program).env("LD_TRACE_LOADED_OBJECTS", "1").output() else { return Ok(()) };
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let missing: Vec<&str> =
        listed.lines().filter_map(|line| line.trim().strip_suffix("not found")?.split(' ').next()).collect();
    match missing.as_slice() {
        [] => Ok(()),
        missing => Err(Error::environment(format!("{} lacks {}; {}", program.display(), missing.join(", "), remedy()))),
    }
}

//! The worker and its libraries.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use fnet_protocol::estimate::Libraries;

use super::diagnosis::Diagnosis;
use crate::child::{self, Failure};
use crate::{error, libtorch};

/// Time for the worker to load its libraries.
const LOAD_TIMEOUT: Duration = Duration::from_secs(60);

/// Whether the worker starts, and the versions of its libraries.
pub fn diagnose(worker: error::Result<PathBuf>) -> Vec<Diagnosis> {
    let remedy = "run `make setup`, which installs libtorch and builds the worker";
    let program = match worker {
        Ok(program) => program,
        Err(error) => return vec![Diagnosis::bad("worker", error.message(), remedy)],
    };
    if let Err(error) = libtorch::check(&program) {
        return vec![Diagnosis::bad(
            "worker",
            error.message(),
            "`fnet-launch --libtorch FOLDER doctor` tries a folder",
        )];
    }
    match answer(&program) {
        Ok(libraries) => judge(&program, &libraries),
        Err(why) => vec![Diagnosis::bad("worker", format!("{} {why}", program.display()), remedy)],
    }
}

fn judge(program: &Path, libraries: &Libraries) -> Vec<Diagnosis> {
    let Libraries { version, libtorch, cuda, nccl, cuda_error } = libraries;
    let cuda_part = if cuda.is_empty() { "without CUDA".to_owned() } else { format!("for CUDA {cuda}") };
    let mut diagnoses = vec![
        Diagnosis::good("worker", format!("{version} loads its libraries: {}", program.display())),
        Diagnosis::good("libtorch", format!("{libtorch}, {cuda_part}")),
    ];
    match (cuda_error, nccl) {
        (Some(error), _) => {
            let remedy = "jobs run with --device cpu; for GPUs run `make setup` again (`make install` for a copy)";
            diagnoses.push(Diagnosis::doubtful("CUDA libraries", error.clone(), remedy));
        }
        (None, Some(nccl)) => diagnoses.push(Diagnosis::good("NCCL", nccl.clone())),
        (None, None) => {}
    }
    if *version != env!("CARGO_PKG_VERSION") {
        diagnoses.push(Diagnosis::doubtful(
            "worker",
            format!("its version is {version}, and that of fnet-launch is {}", env!("CARGO_PKG_VERSION")),
            "install both together: `make install`",
        ));
    }
    diagnoses
}

/// The libraries that the worker reports, which shows that libtorch can be loaded.
fn answer(program: &Path) -> Result<Libraries, String> {
    let mut command = Command::new(program);
    command.arg(fnet_protocol::estimate::LIBRARIES).env_remove(fnet_protocol::env::CONTROL);
    let answer = child::ask_blocking(command, LOAD_TIMEOUT).and_then(|answer| {
        serde_json::from_slice(&answer.stdout).map_err(|_| Failure::NoAnswer("did not report its libraries"))
    });
    answer.map_err(|failure| failure.text())
}

#[cfg(test)]
mod tests {
    use super::super::diagnosis::Rating;
    use super::*;

    #[test]
    fn cuda_libraries_that_cannot_be_loaded_matter_to_gpus_only() {
        let libraries = Libraries {
            version: env!("CARGO_PKG_VERSION").into(),
            libtorch: "2.11.0".into(),
            cuda: "13.0".into(),
            nccl: Some("2.28.9".into()),
            cuda_error: None,
        };
        let ratings = |libraries: &Libraries| -> Vec<Rating> {
            judge(Path::new("w"), libraries).iter().map(|diagnosis| diagnosis.rating).collect()
        };
        assert_eq!(ratings(&libraries), [Rating::Good; 3]);
        let broken = Libraries { cuda_error: Some("libcudnn.so.9: cannot open".into()), ..libraries.clone() };
        assert_eq!(ratings(&broken), [Rating::Good, Rating::Good, Rating::Doubtful]);
        let old = Libraries { version: "0.0.1".into(), ..libraries };
        assert_eq!(ratings(&old).last(), Some(&Rating::Doubtful));
    }

    #[test]
    fn another_program_is_recognized() {
        assert!(answer(Path::new("/bin/true")).unwrap_err().contains("did not report its libraries"));
        assert!(answer(Path::new("/bin/false")).unwrap_err().contains("exited with code 1"));
    }
}

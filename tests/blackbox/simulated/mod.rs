//! The main job on simulated GPUs: the same programs with `--gpus N`, on the devices of `tests/simulated_cuda`, which
//! `scripts/sim.sh` builds. Without them these tests say SKIPPED.

mod budgets;
mod faults;
mod lost_ranks;
mod machine;
mod main_job;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;

use crate::support::{Ended, Running, Scene, finish, launcher, skip, worker_program};

/// A scene in which the programs see simulated GPUs.
pub struct Gpus {
    pub scene: Scene,
    folder: PathBuf,
}

/// Variables of the simulated machine, as (name, value); see tests/simulated_cuda/README.md.
pub type Settings<'a> = &'a [(&'a str, &'a str)];

impl Gpus {
    /// `scene` on the simulated machine; none if it was not built.
    pub fn of(scene: impl FnOnce() -> Scene) -> Option<Self> {
        let folder = worker_program().ancestors().nth(2)?.join("sim");
        if !folder.join("env.sh").is_file() {
            skip(&format!("{} is not there, scripts/sim.sh makes it", folder.display()));
            return None;
        }
        static LINKED: Once = Once::new();
        LINKED.call_once(|| {
            for program in [worker_program(), launcher()] {
                link(&program, &folder.join("bin").join(program.file_name().unwrap()));
            }
        });
        Some(Self { scene: scene(), folder })
    }

    /// The folder of the product's programs on the simulated machine.
    pub fn path_of_programs(&self) -> PathBuf {
        self.folder.join("bin")
    }

    /// A program of the product on the simulated machine.
    pub fn program(&self, name: &str) -> PathBuf {
        self.path_of_programs().join(name)
    }

    /// A command on the simulated machine.
    pub fn command(&self, program: &Path, line: &str, settings: Settings<'_>) -> Command {
        let mut command = self.scene.command(program, line);
        let [driver, libraries] = ["driver", "torch/lib"].map(|name| self.folder.join(name).display().to_string());
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("LD_LIBRARY_PATH", format!("{libraries}:{driver}")).env("PATH", format!("{driver}:{path}"));
        command.env_remove("CUDA_VISIBLE_DEVICES").envs(settings.iter().copied());
        command
    }

    /// Runs `fnet-launch` to its end; nothing may be left running, and no rule of the devices broken.
    pub fn launch(&self, line: &str, settings: Settings<'_>) -> Ended {
        self.run(&self.program("fnet-launch"), line, settings)
    }

    /// Runs `program`, as [`Self::launch`] does.
    pub fn run(&self, program: &Path, line: &str, settings: Settings<'_>) -> Ended {
        let ended = finish(self.command(program, line, settings));
        self.scene.assert_nothing_left();
        self.assert_sound(&ended);
        ended
    }

    /// Starts `fnet-launch`.
    pub fn start(&self, line: &str, settings: Settings<'_>) -> Running {
        Running::start(self.command(&self.program("fnet-launch"), line, settings), self.scene.path("stderr.txt"))
    }

    /// Fails if a process broke a rule of the devices.
    pub fn assert_sound(&self, ended: &Ended) {
        let broken = ended.stderr.lines().find(|line| line.contains("simulated CUDA: "));
        assert!(broken.is_none(), "{}", ended.stderr);
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.scene.path(name)
    }
}

/// Makes `path` another name of `program`, if it is not.
fn link(program: &Path, path: &Path) {
    let inode = |path: &Path| fs::metadata(path).map(|data| (data.dev(), data.ino())).ok();
    if inode(program) == inode(path) {
        return;
    }
    let new = path.with_extension(format!("new{}", std::process::id()));
    fs::hard_link(program, &new).or_else(|_| fs::copy(program, &new).map(drop)).unwrap();
    fs::rename(new, path).unwrap();
}

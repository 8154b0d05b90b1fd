//! Fault injection: the faults that `train --fault` asks for.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::ValueEnum;

use crate::cgroup::{self, Version};
use crate::message::{Phase, WorkerStatus, name_of};

/// Prefix of the control group, followed by a process id, in which a worker runs out of memory.
const CONTROL_GROUP: &str = "fnet-fault-";

/// A fault, and when it happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What happens.
    pub kind: Kind,
    /// On which rank.
    pub rank: usize,
    /// On entering this phase.
    pub phase: Phase,
    /// In this step of the job, from 1; if unset, on first entering the phase.
    pub step: Option<u64>,
    /// In this attempt of the job, from 0; `None` for every attempt.
    pub attempt: Option<u64>,
}

/// The kinds of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum)]
pub enum Kind {
    /// A panic.
    Panic,
    /// An exit with [`EXIT_CODE`].
    Exit,
    /// SIGABRT, as from native code.
    Abort,
    /// SIGKILL.
    Kill,
    /// SIGSTOP.
    Stop,
    /// The working thread sleeps.
    Sleep,
    /// A read that never returns, as on an unreachable network drive.
    Read,
    /// Running out of memory, in a separate control group.
    #[value(name = "oom")]
    OutOfMemory,
    /// A collective in which the other ranks do not take part.
    Collective,
    /// SIGTERM, as from a batch system: the worker saves at the end of the step and exits.
    #[value(name = "term")]
    Terminate,
}

/// The exit code of [`Kind::Exit`], which fnet does not use itself.
pub const EXIT_CODE: i32 = 17;

impl Fault {
    /// Whether the fault is due on this rank, in this attempt, with this status on entering a phase.
    pub fn is_due(&self, rank: usize, attempt: u64, status: &WorkerStatus) -> bool {
        self.rank == rank
            && self.phase == status.phase
            && self.step.is_none_or(|step| step == status.step)
            && self.attempt.is_none_or(|wanted| wanted == attempt)
    }
}

/// The value with this name.
/// Errors: there is none; the text has the names of all.
fn read<T: ValueEnum>(name: &str) -> Result<T, String> {
    T::from_str(name, false).map_err(|_| {
        let names: Vec<String> = T::value_variants().iter().cloned().map(name_of).collect();
        names.join(", ")
    })
}

impl FromStr for Fault {
    type Err = String;

    /// `kill`, `kill:rank=1,step=3,phase=backward,attempt=any`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
        let kind = read(kind).map_err(|names| format!("unknown fault {kind}; expected one of {names}"))?;
        let mut fault = Self { kind, rank: 0, phase: Phase::Forward, step: None, attempt: Some(0) };
        for part in rest.split(',').filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').ok_or_else(|| format!("{part}: expected KEY=VALUE"))?;
            let number = || value.parse::<u64>().map_err(|_| format!("{key}={value}: expected a whole number"));
            match key {
                "rank" => fault.rank = usize::try_from(number()?).unwrap_or(usize::MAX),
                "step" => fault.step = Some(number()?),
                "phase" => {
                    fault.phase =
                        read(value).map_err(|names| format!("unknown phase {value}; expected one of {names}"))?;
                }
                "attempt" if value == "any" => fault.attempt = None,
                "attempt" => fault.attempt = Some(number()?),
                _ => return Err(format!("{key}: expected rank, step, phase or attempt")),
            }
        }
        Ok(fault)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:rank={},phase={}", name_of(self.kind), self.rank, name_of(self.phase))?;
        if let Some(step) = self.step {
            write!(f, ",step={step}")?;
        }
        match self.attempt {
            Some(0) => Ok(()),
            Some(attempt) => write!(f, ",attempt={attempt}"),
            None => f.write_str(",attempt=any"),
        }
    }
}

/// The control group in which a worker runs out of memory: its folder below `root` (`/sys/fs/cgroup`) and the names of
/// its limits, in version 1 or 2. `groups` is the text of /proc/PID/cgroup of a process of the job.
pub fn control_group(groups: &str, root: &Path, process: u32) -> Option<(PathBuf, &'static [&'static str])> {
    let name = format!("{CONTROL_GROUP}{process}");
    let groups: Vec<_> = cgroup::groups(groups, "memory").collect();
    // A controller is active in one version only, and only version 1 lists it here.
    let &(version, path) = groups.iter().find(|(version, _)| *version == Version::One).or(groups.first())?;
    Some(match version {
        Version::One => {
            (root.join("memory").join(path).join(name), &["memory.limit_in_bytes", "memory.swappiness"] as &[_])
        }
        // A group with processes cannot have limited children, so the new group is its sibling.
        Version::Two => {
            (root.join(path.parent().unwrap_or(Path::new(""))).join(name), &["memory.max", "memory.swap.max"])
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_of_control_groups_are_known() {
        let root = Path::new("/g");
        let (folder, limits) = control_group("4:memory:/a/b\n0::/c\n", root, 7).unwrap();
        assert_eq!((folder.as_path(), limits[0]), (Path::new("/g/memory/a/b/fnet-fault-7"), "memory.limit_in_bytes"));
        let (folder, limits) = control_group("0::/system/job\n", root, 7).unwrap();
        assert_eq!((folder.as_path(), limits[0]), (Path::new("/g/system/fnet-fault-7"), "memory.max"));
        assert_eq!(control_group("3:cpu:/\n", root, 7), None);
    }

    #[test]
    fn a_fault_is_read_as_it_is_written() {
        for text in [
            "kill:rank=0,phase=forward",
            "oom:rank=2,phase=evaluation,step=7,attempt=any",
            "exit:rank=1,phase=all_reduce,step=3,attempt=2",
        ] {
            assert_eq!(text.parse::<Fault>().unwrap().to_string(), text);
        }
        let short: Fault = "stop".parse().unwrap();
        assert_eq!((short.rank, short.phase, short.step, short.attempt), (0, Phase::Forward, None, Some(0)));
        for wrong in ["explode", "kill:rank=x", "kill:phase=lunch", "kill:when=now", "kill:rank"] {
            assert!(wrong.parse::<Fault>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_fault_is_due_at_its_rank_step_phase_and_attempt_only() {
        let fault: Fault = "kill:rank=1,step=3,phase=backward".parse().unwrap();
        let status = WorkerStatus { phase: Phase::Backward, epoch: 1, step: 3, ..WorkerStatus::default() };
        assert!(fault.is_due(1, 0, &status));
        assert!(!fault.is_due(0, 0, &status) && !fault.is_due(1, 1, &status));
        assert!(!fault.is_due(1, 0, &WorkerStatus { step: 2, ..status.clone() }));
        assert!(!fault.is_due(1, 0, &WorkerStatus { phase: Phase::Data, ..status }));
    }
}

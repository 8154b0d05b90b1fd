//! Faults on request, for fire drills: what operators ask for with `train --fault`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::cgroup::{self, Version};
use crate::message::{Heartbeat, Phase};

/// Name of the control group, followed by the process id, that a worker makes to run out of memory in.
const CONTROL_GROUP: &str = "fnet-fault-";

/// What a worker does to itself, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What happens.
    pub kind: Kind,
    /// On which rank.
    pub rank: usize,
    /// When it enters this phase.
    pub phase: Phase,
    /// In this step of the job, counted from 1; the first time in the phase if unset.
    pub step: Option<u64>,
    /// In this start of the job, counted from 0 (restarts come after); `None` for each.
    pub attempt: Option<u64>,
}

/// Ways to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A bug: the program panics.
    Panic,
    /// The process ends with a code of its own.
    Exit,
    /// Native code gives up (SIGABRT).
    Abort,
    /// Killed from outside (SIGKILL).
    Kill,
    /// Stopped from outside (SIGSTOP).
    Stop,
    /// The working thread sleeps.
    Sleep,
    /// A read never ends, as on a network drive that is gone.
    Read,
    /// Memory is used up, in a control group of its own.
    OutOfMemory,
    /// A collective that the other ranks do not take part in.
    Collective,
    /// Asked to stop, as by a batch system that wants its node back (SIGTERM): saves at the end of the step and ends.
    Terminate,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 10] = [
        Kind::Panic,
        Kind::Exit,
        Kind::Abort,
        Kind::Kill,
        Kind::Stop,
        Kind::Sleep,
        Kind::Read,
        Kind::OutOfMemory,
        Kind::Collective,
        Kind::Terminate,
    ];

    /// As it is written on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Panic => "panic",
            Kind::Exit => "exit",
            Kind::Abort => "abort",
            Kind::Kill => "kill",
            Kind::Stop => "stop",
            Kind::Sleep => "sleep",
            Kind::Read => "read",
            Kind::OutOfMemory => "oom",
            Kind::Collective => "collective",
            Kind::Terminate => "term",
        }
    }
}

/// The code that [`Kind::Exit`] ends with; none of fnet's own.
pub const EXIT_CODE: i32 = 17;

impl Fault {
    /// Whether it is due on this rank, in this start of the job, in the state that it has just entered.
    pub fn is_due(&self, rank: usize, attempt: u64, state: &Heartbeat) -> bool {
        self.rank == rank
            && self.phase == state.phase
            && self.step.is_none_or(|step| step == state.step)
            && self.attempt.is_none_or(|wanted| wanted == attempt)
    }
}

impl FromStr for Fault {
    type Err = String;

    /// `kill`, `kill:rank=1,step=3,phase=backward,attempt=any`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
        let names = || Kind::ALL.map(Kind::name).join(", ");
        let kind = Kind::ALL
            .into_iter()
            .find(|known| known.name() == kind)
            .ok_or_else(|| format!("no fault named {kind}; expected one of {}", names()))?;
        let mut fault = Self { kind, rank: 0, phase: Phase::Forward, step: None, attempt: Some(0) };
        for part in rest.split(',').filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').ok_or_else(|| format!("{part}: expected KEY=VALUE"))?;
            let number = || value.parse::<u64>().map_err(|_| format!("{key}={value}: expected a whole number"));
            match key {
                "rank" => fault.rank = usize::try_from(number()?).unwrap_or(usize::MAX),
                "step" => fault.step = Some(number()?),
                "phase" => {
                    fault.phase = Phase::from_wire(value).ok_or_else(|| {
                        let names: Vec<_> = Phase::KNOWN.map(Phase::wire).into();
                        format!("no phase named {value}; expected one of {}", names.join(", "))
                    })?;
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
        write!(f, "{}:rank={},phase={}", self.kind.name(), self.rank, self.phase.wire())?;
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

/// The control group that a worker makes to run out of memory in: its folder below `root` (`/sys/fs/cgroup`) and the
/// names of its limits, in version 1 or 2. `groups` is the text of the /proc/PID/cgroup of a process of the job.
pub fn control_group(groups: &str, root: &Path, process: u32) -> Option<(PathBuf, &'static [&'static str])> {
    let name = format!("{CONTROL_GROUP}{process}");
    let groups: Vec<_> = cgroup::groups(groups, "memory").collect();
    // A controller is in one version only, and only version 1 tells here that it has it.
    let &(version, path) = groups.iter().find(|(version, _)| *version == Version::One).or(groups.first())?;
    Some(match version {
        Version::One => {
            (root.join("memory").join(path).join(name), &["memory.limit_in_bytes", "memory.swappiness"] as &[_])
        }
        // A group that holds processes takes no limited groups below it, so the new one is its sibling.
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
    fn it_is_due_at_its_rank_step_phase_and_start_only() {
        let fault: Fault = "kill:rank=1,step=3,phase=backward".parse().unwrap();
        let state = Heartbeat { phase: Phase::Backward, epoch: 1, step: 3, ..Heartbeat::default() };
        assert!(fault.is_due(1, 0, &state));
        assert!(!fault.is_due(0, 0, &state) && !fault.is_due(1, 1, &state));
        assert!(!fault.is_due(1, 0, &Heartbeat { step: 2, ..state.clone() }));
        assert!(!fault.is_due(1, 0, &Heartbeat { phase: Phase::Data, ..state }));
    }
}

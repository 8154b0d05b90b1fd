//! The introduction of a node: its host, its job, and the settings that must be equal on all nodes.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use fnet_protocol::cli::{CommandLine, LaunchOptions};

use super::message::{EarlyFailure, Hello, PROTOCOL};
use crate::error::Error;
use crate::plan::Plan;
use crate::plan::rendezvous::Nodes;
use crate::text;

/// Config fields that may differ between machines.
const LOCAL_FIELDS: [&str; 1] = ["data.root"];

/// The introduction of this node; `config` has the fields of its resolved config.
pub fn of(options: &LaunchOptions, plan: &Plan, config: &BTreeMap<String, String>) -> Hello {
    let hello = empty(&plan.nodes, job(&plan.line, &plan.logs));
    Hello { workers: plan.devices.workers(), settings: settings(options, plan, config), ..hello }
}

/// The introduction of a node that fails before it has joined, with its command and the folder of its logs.
pub fn of_failed(nodes: &Nodes, line: &CommandLine, logs: &Path, error: &Error) -> Hello {
    let failed = EarlyFailure { code: error.code, message: error.message().to_owned() };
    Hello { failed: Some(failed), ..empty(nodes, job(line, logs)) }
}

/// The introduction of this node to the others that run `doctor`.
pub fn of_doctor(nodes: &Nodes) -> Hello {
    Hello { settings: [version()].into(), ..empty(nodes, "doctor".to_owned()) }
}

/// A digest of this program and of the `worker`, which tells builds of one version apart.
pub fn build(worker: &Path) -> String {
    let mut hasher = DefaultHasher::new();
    for program in [Path::new("/proc/self/exe"), worker] {
        std::fs::read(program).unwrap_or_default().hash(&mut hasher);
    }
    format!("{:016x}", hasher.finish())
}

fn version() -> (String, String) {
    ("version of fnet".to_owned(), env!("CARGO_PKG_VERSION").to_owned())
}

fn empty(nodes: &Nodes, job: String) -> Hello {
    let uname = rustix::system::uname();
    let host = uname.nodename().to_str().ok().filter(|name| !name.is_empty()).unwrap_or("unnamed").to_owned();
    let (node, count, settings) = (nodes.rank, nodes.count, BTreeMap::new());
    let min_nodes = nodes.min;
    let (build, failed) = (String::new(), None);
    Hello { protocol: PROTOCOL, node, nodes: count, min_nodes, workers: 1, host, job, build, settings, failed }
}

/// `train cfg`: the command and the name of the work folder, whose parent folders may differ.
fn job(line: &CommandLine, logs: &Path) -> String {
    let name = line.name();
    let folder = logs.ancestors().nth(1).and_then(Path::file_name).unwrap_or_default();
    format!("{name} {}", folder.to_string_lossy()).chars().filter(|c| !c.is_control()).take(1000).collect()
}

/// The command without what may differ: the folders of config and outputs, and the overrides, which are in the config.
fn common(line: &CommandLine) -> CommandLine {
    if line.name() != "train" {
        return line.clone();
    }
    let mut line = line.clone().without("work-dir").without("set");
    for path in line.positional_mut() {
        *path = Path::new(path).file_name().map_or_else(|| path.clone(), OsString::from);
    }
    line
}

fn settings(options: &LaunchOptions, plan: &Plan, config: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut settings = config.clone();
    settings.retain(|name, _| !LOCAL_FIELDS.contains(&name.as_str()));
    let seconds = [
        ("--refill-after", options.refill_after),
        ("--grace", options.grace),
        ("--node-timeout", options.node_timeout),
        ("--start-timeout", options.start_timeout),
        ("--step-timeout", options.step_timeout),
        ("--eval-timeout", options.eval_timeout),
        ("--save-timeout", options.save_timeout),
        ("--silence-timeout", options.silence_timeout),
    ];
    settings.extend(seconds.map(|(name, value)| (name.to_owned(), value.to_string())));
    settings.extend([version()]);
    settings.extend(
        [
            ("--device", plan.devices.kind().name().to_owned()),
            ("--max-restarts", options.max_restarts.to_string()),
            ("the command", text::shell_line(&common(&plan.line).words())),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    );
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folders_and_the_overrides_are_not_part_of_the_compared_command() {
        let line = "fnet-launch train /a/cfg.toml --work-dir /b/out --seed 3 --set optimizer.lr=1";
        let launch = fnet_protocol::cli::Launch::from_arguments(line.split(' ').map(Into::into)).unwrap();
        assert_eq!(text::shell_line(&common(&launch.line).words()), "train --seed=3 cfg.toml");
    }
}

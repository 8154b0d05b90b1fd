//! What a node says of itself: its machine, its job, and what must be equal on all nodes.

use std::collections::BTreeMap;
use std::path::Path;

use fnet_protocol::cli::{Place, Train, WorkerCommand};

use super::message::{Hello, PROTOCOL};
use crate::plan::{self, Plan};
use crate::text;

/// Fields of a config that may differ from machine to machine.
const LOCAL_FIELDS: [&str; 1] = ["data.root"];

/// What this node says; `config` is the text of its resolved config.
pub fn of(place: &Place, plan: &Plan, config: &str) -> Hello {
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).filter(|name| !name.is_empty());
    Hello {
        protocol: PROTOCOL,
        node: plan.nodes.rank,
        nodes: plan.nodes.count,
        workers: plan.devices.workers(),
        host: host.unwrap_or_else(|| "unnamed".to_owned()),
        job: job(plan),
        terms: terms(place, plan, config),
    }
}

/// `train work_dirs/cfg` without the folders above, which may differ.
fn job(plan: &Plan) -> String {
    let name = plan.command.to_args().first().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let folder = plan::logs(&plan.command);
    let folder = folder.ancestors().nth(1).and_then(Path::file_name).unwrap_or_default();
    format!("{name} {}", folder.to_string_lossy()).chars().filter(|c| !c.is_control()).take(1000).collect()
}

/// The command without what may differ: where the config and the work folder are.
fn common(command: &WorkerCommand) -> WorkerCommand {
    let name = |path: &Path| path.file_name().map_or_else(|| path.to_path_buf(), Into::into);
    match command {
        WorkerCommand::Train(train) => WorkerCommand::Train(Train {
            config: name(&train.config),
            work_dir: None,
            set: Vec::new(),
            ..train.clone()
        }),
        other => other.clone(),
    }
}

fn terms(place: &Place, plan: &Plan, config: &str) -> BTreeMap<String, String> {
    let mut terms = config_terms(config);
    let seconds = [
        ("--refill-after", place.refill_after),
        ("--grace", place.grace),
        ("--node-timeout", place.node_timeout),
        ("--start-timeout", place.start_timeout),
        ("--step-timeout", place.step_timeout),
        ("--eval-timeout", place.eval_timeout),
        ("--save-timeout", place.save_timeout),
        ("--silence-timeout", place.silence_timeout),
    ];
    terms.extend(seconds.map(|(name, value)| (name.to_owned(), value.to_string())));
    terms.extend(
        [
            ("version of fnet", env!("CARGO_PKG_VERSION").to_owned()),
            ("--device", plan.devices.kind().name().to_owned()),
            ("--max-restarts", place.max_restarts.to_string()),
            ("the command", text::shell_line(&common(&plan.command).to_args())),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    );
    terms
}

/// Field and value of each line of `print-config`, without where the value came from.
fn config_terms(config: &str) -> BTreeMap<String, String> {
    let mut section = String::new();
    let mut terms = BTreeMap::new();
    for line in config.lines().map(|line| line.rsplit_once("  # ").map_or(line, |(value, _)| value).trim()) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = format!("{name}.");
        } else if let Some((key, value)) = line.split_once(" = ") {
            terms.insert(format!("{section}{key}"), value.to_owned());
        }
    }
    terms.retain(|name, _| !LOCAL_FIELDS.contains(&name.as_str()));
    terms
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_a_config_are_compared_by_name_and_value() {
        let text = "[model]\nnum_classes = 8  # a.toml:6\n\n[data]\nroot = \"/x  # y\"  # default\n\
                    [data.train]\nann_file = \"a  # b.json\"  # a.toml:3\n";
        let terms = config_terms(text);
        let expected = [("data.train.ann_file", "\"a  # b.json\""), ("model.num_classes", "8")];
        let expected: BTreeMap<String, String> = expected.map(|(a, b)| (a.to_owned(), b.to_owned())).into();
        assert_eq!(terms, expected, "where the pictures lie is each machine's own affair");
    }

    #[test]
    fn where_a_config_lies_and_what_the_overrides_come_to_is_not_part_of_the_command() {
        let line = "fnet-launch train /a/cfg.toml --work-dir /b/out --seed 3 --set optimizer.lr=1";
        let launch = fnet_protocol::cli::Launch::from_arguments(line.split(' ').map(Into::into)).unwrap();
        let fnet_protocol::cli::LaunchCommand::Worker(command) = launch.command else { panic!("no worker's command") };
        assert_eq!(text::shell_line(&common(&command).to_args()), "train --seed=3 cfg.toml");
    }
}

//! The last lines of a training: how long it took, where its outputs are, and what to run next.

use fnet_protocol::cli::{Launch, Train};
use fnet_protocol::work_dir::LATEST;

use crate::status::JobStatus;
use crate::text;

/// The lines; the first one says that the job is done.
pub fn lines(launch: &Launch, train: &Train, status: &JobStatus) -> Vec<String> {
    let folder = train.folder();
    let took = status.end.as_ref().map_or(0.0, |end| end.at - status.started);
    let restarts = match status.restarts.len() {
        0 => String::new(),
        count => format!(", {}, {} lost", text::count(count, "restart"), text::clock(status.lost_seconds)),
    };
    let latest = folder.join(LATEST);
    let mut lines = vec![format!("fnet-launch: done in {}{restarts}", text::clock(took))];
    let mut add = |name: &str, value: String| lines.push(format!("  {name:<11} {value}"));
    add("checkpoint", latest.display().to_string());
    if let Some(log) = &status.log {
        add("log", log.display().to_string());
    }
    if folder.join("tensorboard").is_dir() {
        add("curves", text::shell_line(&["tensorboard".into(), "--logdir".into(), folder.into_os_string()]));
    }
    let line = |words: &[&str]| {
        let command = words.iter().map(std::ffi::OsString::from);
        let mut line = [vec!["fnet-launch".into()], launch.option_words.clone()].concat();
        line.extend(command);
        text::shell_line(&line)
    };
    let latest = latest.to_string_lossy();
    add("evaluate", line(&["test", &latest]));
    add("predict", line(&["predict", &latest, "IMAGES", "--out", "predicted"]));
    lines
}

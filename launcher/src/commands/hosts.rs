//! `--hosts`: starts the launchers of all nodes over ssh, passes their output on, and ends them with this one.
//!
//! On each host, ssh starts this program as a helper ([`run_remote`]), which gets everything in one line of ssh's standard
//! input: the folder, the arguments and the variables, the secret of the job among them. So only the path of the program is on
//! a command line. Further lines are signals for the launcher that the helper starts; the end of the input is SIGTERM, so
//! the job saves and stops if the connection or this program is lost.

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use fnet_protocol::cli::{Device, Launch, LaunchCommand, LaunchOptions};
use fnet_protocol::message::StopReason;
use fnet_protocol::{env, exit};
use rustix::process::{PidfdFlags, Signal};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;

use crate::console::Console;
use crate::error::{Doing, Error, Result};
use crate::signals::{self, Request, Signals};
use crate::{nodes, plan};

/// First argument with which this program is the helper on a host.
pub const ARGUMENT: &str = "__remote";
/// The helper's first line on stdout; what a login script prints before it is skipped.
const STARTED: &str = "fnet-launch: started by ssh";
/// Options of ssh, after those of the user, which take precedence.
const SSH_OPTIONS: [&str; 7] = ["-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=15"];
/// The exit code of ssh itself.
const SSH_FAILED: i32 = 255;
/// Options that are not for the hosts; each has a value.
const LOCAL_OPTIONS: [&str; 5] = ["--hosts", "--hostfile", "--ssh", "--remote-program", "--pass-env"];
/// Time for the other hosts to end after one could not be reached.
const END_TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum length of a line of output that is passed on in one piece.
const MAX_LINE: u64 = 1 << 16;

/// One host, for one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// As ssh takes it: `name` or `user@name`.
    name: String,
    /// Number of its workers, if the hostfile says so.
    slots: Option<usize>,
}

/// What the helper on a host needs to start its node.
#[derive(Debug, Serialize, Deserialize)]
struct NodeStart {
    folder: PathBuf,
    arguments: Vec<String>,
    variables: BTreeMap<String, String>,
}

/// The hosts of `--hosts` or `--hostfile`; none without them.
/// Errors: a host is listed twice or is no name, or the file cannot be read (exit code 2).
pub fn find(options: &LaunchOptions) -> Result<Vec<Host>> {
    let mut hosts = Vec::new();
    let listed = options.hosts.iter().map(|name| ("--hosts".to_owned(), name.clone()));
    let mut lines: Vec<(String, String)> = listed.collect();
    if let Some(path) = &options.hostfile {
        let text = std::fs::read_to_string(path);
        let text = text.map_err(|error| Error::usage(format!("--hostfile {}: {error}", path.display())))?;
        let numbered = (1..).zip(text.lines()).map(|(number, line)| (format!("{}:{number}", path.display()), line));
        let lines_of_file = numbered.map(|(at, line)| (at, line.split('#').next().unwrap_or("").trim().to_owned()));
        lines.extend(lines_of_file.filter(|(_, line)| !line.is_empty()));
        if lines.is_empty() {
            return Err(Error::usage(format!("--hostfile {}: it has no hosts", path.display())));
        }
    }
    for (at, line) in lines {
        let wrong = |what: &str| Error::usage(format!("{at}: `{line}`: {what}"));
        let mut words = line.split_whitespace();
        let name = words.next().unwrap_or("").to_owned();
        let slots = match words.next().map(|word| word.strip_prefix("slots=").and_then(|count| count.parse().ok())) {
            None => None,
            Some(Some(count @ 1..)) => Some(count),
            Some(_) => return Err(wrong("expected `host` or `host slots=N`")),
        };
        // ssh would take it for an option.
        if name.is_empty() || name.starts_with('-') || name.chars().any(char::is_control) || words.next().is_some() {
            return Err(wrong("expected a host, such as `node1` or `user@node1`"));
        }
        if hosts.iter().any(|host: &Host| host.name == name) {
            return Err(wrong("this host is listed twice; there is one launcher per host"));
        }
        hosts.push(Host { name, slots });
    }
    Ok(hosts)
}

/// Starts the nodes and returns the exit code of the job.
/// Errors: the command line is wrong (exit code 2), or a host is not reached (exit code 6).
pub fn run(launch: &Launch, hosts: &[Host]) -> Result<i32> {
    match &launch.command {
        LaunchCommand::Worker(command) if !plan::is_single(command) => {}
        LaunchCommand::Doctor(_) => {}
        _ => return Err(Error::usage("--hosts is for commands with several workers and for doctor; remove it")),
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.doing(|| "starting the event loop".to_owned())?;
    tokio::task::LocalSet::new().block_on(&runtime, supervise(launch, hosts))
}

/// How a host ended.
struct Ended {
    node: usize,
    status: ExitStatus,
    /// Whether the helper had started there.
    started: bool,
    /// The last line of stderr.
    last: String,
}

async fn supervise(launch: &Launch, hosts: &[Host]) -> Result<i32> {
    let mut signals = Signals::install().doing(|| "installing the signal handlers".to_owned())?;
    let console = Console::new(&launch.options);
    let (sender, mut ends) = mpsc::channel(hosts.len());
    let mut inputs: Vec<Option<ChildStdin>> = Vec::new();
    let secret = secret()?;
    for (node, host) in hosts.iter().enumerate() {
        let start = serde_json::to_string(&start(launch, hosts, node, &secret)?);
        let start = start.map_err(|error| Error::usage(format!("--hosts: the working folder: {error}")))? + "\n";
        let mut child = ssh(&launch.options, host)?;
        let mut input = child.stdin.take();
        if let Some(input) = &mut input {
            // If ssh has failed already, its exit says so.
            let _ = input.write_all(start.as_bytes()).await;
        }
        inputs.push(input);
        let (name, console, sender) = (host.name.clone(), Console::new(&launch.options), sender.clone());
        let watch = watch(node, name, child, console);
        tokio::task::spawn_local(async move { sender.send(watch.await).await });
    }
    let (mut codes, mut failure) = (vec![None; hosts.len()], None);
    while codes.iter().any(Option::is_none) {
        let ended = tokio::select! {
            ended = ends.recv() => ended,
            request = signals.next() => {
                match request {
                    // The other nodes learn it from this one.
                    Request::Stop(reason) => {
                        let line = if reason == StopReason::Interrupted { "INT\n" } else { "TERM\n" };
                        let alive = inputs.iter_mut().zip(&codes).find(|(_, code)| code.is_none());
                        if let Some((Some(input), _)) = alive {
                            let _ = input.write_all(line.as_bytes()).await;
                        }
                    }
                    Request::Pause => signals::stop_self(),
                }
                continue;
            }
            () = tokio::time::sleep(END_TIMEOUT), if failure.is_some() => None,
        };
        let Some(Ended { node, status, started, last }) = ended else { break };
        let code = status.code().unwrap_or(SSH_FAILED);
        codes[node] = Some(code);
        let name = &hosts[node].name;
        if !started {
            let how = if last.is_empty() { format!("ssh ended with code {code}") } else { last };
            let remedy = match code {
                126 | 127 => "; install fnet at the same path there, or name it with --remote-program",
                _ => "",
            };
            failure.get_or_insert(format!("host {name} cannot run node {node}: {how}{remedy}"));
            inputs.clear();
        } else if code == SSH_FAILED {
            console.error(&format!("the connection to host {name} (node {node}) is lost: {last}"));
        }
    }
    if let Some(failure) = failure {
        return Err(Error::environment(failure));
    }
    let of_job = codes.iter().flatten().find(|&&code| code != SSH_FAILED);
    Ok(of_job.copied().unwrap_or(exit::WORKER_LOST))
}

/// The secret that the user gave, or a new one.
fn secret() -> Result<String> {
    if let Ok(secret) = std::env::var(env::JOB_SECRET) {
        return Ok(secret);
    }
    nodes::random().doing(|| "making a secret".to_owned())
}

fn start(launch: &Launch, hosts: &[Host], node: usize, secret: &str) -> Result<NodeStart> {
    let options = &launch.options;
    let mut arguments = Vec::new();
    // Numbers of workers in the hostfile are defaults.
    if let (Some(slots), None, None) = (hosts[node].slots, options.nproc, &options.gpus) {
        let option = if options.device == Some(Device::Cpu) { "--nproc" } else { "--gpus" };
        arguments.extend([option.to_owned(), slots.to_string()]);
    }
    let mut words = std::env::args_os().skip(1);
    while let Some(word) = words.next() {
        let word =
            word.into_string().map_err(|word| Error::usage(format!("--hosts: {} is not UTF-8", word.display())))?;
        let name = word.split('=').next().unwrap_or("");
        match LOCAL_OPTIONS.contains(&name) {
            true if name == word => drop(words.next()),
            true => {}
            false => arguments.push(word),
        }
    }
    let is_passed = |name: &str| options.pass_env.iter().any(|prefix| !prefix.is_empty() && name.starts_with(prefix));
    let given =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let mut variables: BTreeMap<String, String> = given.filter(|(name, _)| is_passed(name)).collect();
    let first = hosts.first().map_or("", |host| host.name.as_str());
    let address = first.rsplit_once('@').map_or(first, |(_, name)| name);
    variables.extend(
        [
            (env::JOB_SECRET, secret.to_owned()),
            (env::NNODES, hosts.len().to_string()),
            (env::NODE_RANK, node.to_string()),
            (env::MASTER_ADDR, address.to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    );
    let folder = std::env::current_dir().doing(|| "finding the working folder".to_owned())?;
    Ok(NodeStart { folder, arguments, variables })
}

/// Starts the helper on a host.
fn ssh(options: &LaunchOptions, host: &Host) -> Result<Child> {
    let words = shlex::split(&options.ssh).filter(|words| !words.is_empty());
    let words = words.ok_or_else(|| Error::usage(format!("--ssh `{}`: expected a command", options.ssh)))?;
    let program = match &options.remote_program {
        Some(program) => program.clone(),
        None => std::env::current_exe().doing(|| "finding this program".to_owned())?,
    };
    let quoted = program.to_str().and_then(|program| shlex::try_quote(program).ok());
    let quoted = quoted.ok_or_else(|| Error::usage(format!("{}: not a path for a shell", program.display())))?;
    let mut command = Command::new(&words[0]);
    command
        .args(&words[1..])
        .args(SSH_OPTIONS)
        .args([&host.name, &format!("exec {quoted} {ARGUMENT}")])
        // Ctrl-C in the terminal is for this program only.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command.spawn().map_err(|error| Error::usage(format!("--ssh: starting {}: {error}", words[0])))
}

/// Passes the output of a host on until ssh ends. Results are those of the first host.
async fn watch(node: usize, name: String, mut child: Child, console: Console) -> Ended {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (mut started, mut last) = (false, String::new());
    let results = each_line(stdout, |line| {
        if !started {
            started = line.trim_end() == STARTED;
        } else if node == 0 {
            console.result(line);
        } else {
            console.print(&format!("[{name}] {line}"));
        }
    });
    let messages = each_line(stderr, |line| {
        console.print(&format!("[{name}] {line}"));
        if !line.trim().is_empty() {
            last = line.trim().to_owned();
        }
    });
    tokio::join!(results, messages);
    let status = child.wait().await.unwrap_or_else(|_| ExitStatus::from_raw(SSH_FAILED << 8));
    Ended { node, status, started, last }
}

async fn each_line(stream: Option<impl AsyncRead + Unpin>, mut take: impl FnMut(&str)) {
    let Some(stream) = stream else { return };
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    while let Ok(1..) = (&mut stream).take(MAX_LINE).read_until(b'\n', &mut line).await {
        take(String::from_utf8_lossy(&line).trim_end_matches('\n'));
        line.clear();
    }
}

/// The helper on a host: runs the launcher until it ends, and returns its exit code.
pub fn run_remote() -> i32 {
    remote().unwrap_or_else(|error| {
        eprintln!("fnet-launch: {error}");
        error.code
    })
}

fn remote() -> Result<i32> {
    let mut input = std::io::stdin().lock();
    let mut line = String::new();
    input.read_line(&mut line).doing(|| "reading the start line".to_owned())?;
    let start: NodeStart = serde_json::from_str(&line).doing(|| "reading the start line".to_owned())?;
    let folder = |path: &Path| format!("the working folder {} of the first host does not exist here", path.display());
    std::env::set_current_dir(&start.folder).doing(|| folder(&start.folder))?;
    println!("{STARTED}");
    let _ = std::io::stdout().flush();
    let program = std::env::current_exe().doing(|| "finding this program".to_owned())?;
    let mut command = std::process::Command::new(program);
    command.args(start.arguments).envs(start.variables).stdin(Stdio::null());
    // SAFETY: a single system call between fork and exec. The main thread starts the launcher, and it waits below.
    unsafe {
        command.pre_exec(|| Ok(rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?));
    }
    let mut child = command.spawn().doing(|| "starting the launcher".to_owned())?;
    let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    let pidfd =
        pid.ok_or(rustix::io::Errno::SRCH).and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()));
    let pidfd = pidfd.doing(|| "watching the launcher".to_owned())?;
    drop(input);
    std::thread::spawn(move || {
        // A launcher that has ended needs no signal.
        let send = |signal| rustix::process::pidfd_send_signal(&pidfd, signal).unwrap_or_default();
        for line in std::io::stdin().lines().map_while(std::io::Result::ok) {
            match line.as_str() {
                "INT" => send(Signal::INT),
                "TERM" => send(Signal::TERM),
                _ => {}
            }
        }
        send(Signal::TERM);
    });
    let status = child.wait().doing(|| "waiting for the launcher".to_owned())?;
    Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
}

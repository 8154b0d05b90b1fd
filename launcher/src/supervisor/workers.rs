//! The running workers of this node: started, watched and controlled for one attempt.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use fnet_protocol::cli::{Benchmark, BenchmarkCommand, LaunchOptions, WorkerCommand};
use fnet_protocol::message::{FromWorker, WorkerStatus};
use fnet_protocol::{env, message, status};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::logs::Log;
use super::oom::OomKills;
use super::process::{self, ProcessHandle, Spawn, Spawned};
use super::procfs;
use super::reaper::Reaper;
use super::streams::{self, Tail};
use crate::attempt::cause::ProcessExit;
use crate::attempt::{Action, Attempt, Event, WorkerExit};
use crate::console::Console;
use crate::error::{Doing, Error, Result};
use crate::nodes::AttemptStart;
use crate::plan::{self, Plan};
use crate::{signals, text};

/// Time for the remaining output of a worker that has exited; a process that left its group may keep the pipe open.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);

/// Maximum length of a variable; Linux accepts few more bytes. The links of all pairs of some 40 nodes are shorter.
const MAX_VARIABLE: usize = 128_000;

/// Sends events, with the index of the worker.
type Events = mpsc::Sender<(usize, Event)>;

/// The running workers of this node.
pub struct Workers(Vec<Worker>);

struct Worker {
    handle: ProcessHandle,
    control: OwnedWriteHalf,
    /// The page with its current status.
    status_page: OwnedFd,
}

impl Workers {
    /// The process group of a worker.
    pub fn group(&self, index: usize) -> Option<i32> {
        self.0.get(index).map(|worker| worker.handle.id())
    }

    /// Passes the current status of a worker to the attempt.
    pub fn read_status(&self, index: usize, attempt: &mut Attempt) {
        let Some(worker) = self.0.get(index) else { return };
        if let Some(status) = read_page(&worker.status_page) {
            attempt.on_event(index, Event::Status(status), Instant::now());
        }
        attempt.set_memory(index, procfs::resident_bytes(worker.handle.id()));
    }

    /// Executes an action of the attempt.
    pub fn execute(&self, action: Action, attempt: &mut Attempt, console: &Console) {
        let worker = |index: usize| self.0.get(index);
        match action {
            Action::Send(index, message) => {
                if let (Some(worker), Ok(line)) = (worker(index), message::to_line(&message)) {
                    // A worker that is gone or does not read will be signalled.
                    let _ = worker.control.try_write(&line);
                }
            }
            Action::Terminate(index) => worker(index).into_iter().for_each(|worker| worker.handle.terminate()),
            Action::Kill(index) => worker(index).into_iter().for_each(|worker| worker.handle.kill_group()),
            Action::Inspect(index) => {
                if let Some(found) = worker(index).and_then(|worker| procfs::describe_blocked(worker.handle.id())) {
                    attempt.on_event(index, Event::Inspected(found), Instant::now());
                }
            }
            Action::Note(text) => console.talk(&text),
            // The supervisor does these.
            Action::Say(_) | Action::Progress(..) => {}
        }
    }

    /// Stops the workers and the launcher, as Ctrl-Z does, until SIGCONT.
    pub fn pause(&self) {
        self.0.iter().for_each(|worker| worker.handle.signal_group(rustix::process::Signal::STOP));
        signals::stop_self();
        self.0.iter().for_each(|worker| worker.handle.signal_group(rustix::process::Signal::CONT));
    }
}

fn read_page(page: &OwnedFd) -> Option<WorkerStatus> {
    let mut bytes = [0; status::BYTES];
    rustix::io::pread(page, &mut bytes, 0).ok().and_then(|_| status::from_bytes(&bytes))
}

/// Opens each log thrice: for the launcher, and for stdout and stderr of the worker.
pub fn open_logs(paths: &[PathBuf]) -> Result<Vec<[File; 3]>> {
    let all = paths.iter().map(|path| {
        let doing = || format!("opening the log {} (is the work folder still there?)", path.display());
        let open = || process::open_log(path).doing(doing);
        Ok([open()?, open()?, open()?])
    });
    all.collect()
}

/// Starts the workers of an attempt.
pub struct Starter<'a> {
    options: &'a LaunchOptions,
    plan: &'a Plan,
    start: &'a AttemptStart,
    console: &'a Rc<Console>,
    oom_kills: Rc<OomKills>,
    events: Events,
}

impl<'a> Starter<'a> {
    /// Events of the workers go to `events`.
    pub fn new(
        options: &'a LaunchOptions,
        plan: &'a Plan,
        start: &'a AttemptStart,
        console: &'a Rc<Console>,
        events: Events,
    ) -> Self {
        Self { options, plan, start, console, oom_kills: Rc::new(OomKills::from_now()), events }
    }

    /// Starts all workers of this node, with their logs. If one fails, those before it are killed.
    pub fn start_all(&self, logs: Vec<[File; 3]>, reaper: &mut Reaper) -> Result<Workers> {
        let mut workers = Workers(Vec::new());
        for ((index, rank), [head, stdout, stderr]) in self.plan.ranks().into_iter().enumerate().zip(logs) {
            let doing = || format!("starting rank {rank} ({})", self.plan.program.display());
            let (spawned, control, status_page) = match self.start(index, rank, head).doing(doing) {
                Ok(started) => started,
                Err(error) => {
                    for worker in &workers.0 {
                        worker.handle.kill_group();
                        reaper.remove(worker.handle.id());
                    }
                    return Err(Error::environment(format!("{error}; run `fnet-launch doctor`")));
                }
            };
            reaper.add(spawned.handle.id());
            let (reading, writing) = control.into_split();
            let page = status_page.try_clone().ok();
            workers.0.push(Worker { handle: spawned.handle.clone(), control: writing, status_page });
            self.watch((index, rank), spawned, reading, page, (stdout, stderr));
        }
        Ok(workers)
    }

    fn start(&self, index: usize, rank: usize, log: File) -> io::Result<(Spawned, UnixStream, OwnedFd)> {
        let AttemptStart { number, port, .. } = *self.start;
        // Its disk must not block the start.
        let mut log = Log::new(log);
        let (control, their_control) = process::control_pair()?;
        let (status_page, their_page) = process::shared_page(status::BYTES)?;
        let mut variables = self.plan.variables(index, port, number, self.start.wanted.generation);
        variables.push((env::CONTROL.to_owned(), their_control.as_raw_fd().to_string()));
        variables.push((env::STATUS_FD.to_owned(), their_page.as_raw_fd().to_string()));
        let is_comm =
            matches!(&self.plan.command, WorkerCommand::Benchmark(Benchmark { what: BenchmarkCommand::Comm(_) }));
        if let (0, Some(links), true) = (rank, &self.start.links, is_comm) {
            let links = serde_json::to_string(links).unwrap_or_default();
            variables.extend((links.len() < MAX_VARIABLE).then(|| (env::LINKS.to_owned(), links)));
        }
        let mut inherited: Vec<OwnedFd> = vec![their_control, their_page];
        // Only rank 0 inherits the socket, so that the port closes with it.
        if let Some(store) = self.start.store.as_ref().filter(|_| index == 0) {
            let store = process::duplicate(store)?;
            variables.push((env::STORE_FD.to_owned(), store.as_raw_fd().to_string()));
            inherited.push(store);
        }
        let arguments = self.plan.worker_line().words();
        log.write(format!("=== rank {rank}, restart {number}: {}\n", text::shell_line(&arguments)).as_bytes());
        let spawned = process::spawn(Spawn {
            program: &self.plan.program,
            arguments: &arguments,
            variables: &variables,
            removed: &plan::NOT_INHERITED,
            inherited,
            share: self.plan.binding.shares.get(index),
        })?;
        Ok((spawned, control, status_page))
    }

    /// Reads the output and the messages of a worker, and reports its exit after all of them.
    fn watch(
        &self,
        (index, rank): (usize, usize),
        spawned: Spawned,
        control: OwnedReadHalf,
        page: Option<OwnedFd>,
        logs: (File, File),
    ) {
        let Spawned { waiter, stdout, stderr, handle } = spawned;
        let shown = Shown::new(self.options, index, rank, self.console);
        let tail = Tail::default();
        let (reason, end_of_log) = (Rc::new(RefCell::new(None)), logs.1.try_clone().ok());
        let mut readers: Vec<JoinHandle<()>> = Vec::new();
        if let Ok(stdout) = tokio::process::ChildStdout::from_std(stdout) {
            let shown = shown.clone();
            let copy = streams::copy(stdout, Log::new(logs.0), None, move |lines| shown.stdout(lines));
            readers.push(tokio::task::spawn_local(copy));
        }
        if let Ok(stderr) = tokio::process::ChildStderr::from_std(stderr) {
            let log = Log::new(logs.1);
            let copy = streams::copy(stderr, log, Some(Rc::clone(&tail)), move |lines| shown.stderr(lines));
            readers.push(tokio::task::spawn_local(copy));
        }
        let (messages, group, kills) = (self.events.clone(), handle.clone(), Rc::clone(&self.oom_kills));
        let reported = Rc::clone(&reason);
        readers.push(tokio::task::spawn_local(streams::messages(control, async move |message| {
            if let FromWorker::Failed(failure) = &message {
                *reported.borrow_mut() = Some(failure.message.clone());
            }
            // The receiver is gone only when the attempt is over.
            let _ = messages.send((index, Event::Message(message))).await;
        })));
        let watcher = tokio::task::spawn_local(async move {
            let (exit, groups) = waiter.wait().await.unwrap_or((ProcessExit::Signal(0), String::new()));
            let is_killed = exit == ProcessExit::Signal(9);
            let out_of_memory = if is_killed { kills.explain(handle.id(), &groups) } else { None };
            kills.remove_fault_group(handle.id());
            let deadline = tokio::time::Instant::now() + DRAIN_TIMEOUT;
            for reader in &mut readers {
                if tokio::time::timeout_at(deadline, &mut *reader).await.is_err() {
                    reader.abort();
                }
            }
            if let (Some(reason), Some(log)) = (reason.borrow().as_ref(), end_of_log) {
                Log::new(log).write(format!("error: {reason}\n").as_bytes());
            }
            let tail = tail.borrow().iter().cloned().collect();
            WorkerExit { exit, tail, out_of_memory, status: page.as_ref().and_then(read_page) }
        });
        tokio::task::spawn_local(report_exit(index, watcher, group, self.events.clone()));
    }
}

/// Reports the exit of a worker. If its watcher fails, the worker is killed and counts as lost, so that the attempt does not
/// wait forever.
async fn report_exit(index: usize, watcher: JoinHandle<WorkerExit>, worker: ProcessHandle, events: Events) {
    let exited = watcher.await.unwrap_or_else(|error| {
        worker.kill_group();
        let tail = vec![format!("the launcher could not watch it: {error}")];
        WorkerExit { exit: ProcessExit::Signal(0), tail, out_of_memory: None, status: None }
    });
    // The receiver is gone only when the attempt is over.
    let _ = events.send((index, Event::Exited(exited))).await;
}

/// How the output of a worker is shown.
#[derive(Clone)]
struct Shown {
    console: Rc<Console>,
    /// The first worker's stderr is for the user, and its stdout for programs.
    is_first: bool,
    /// Prefix of the lines of a rank in `--tee`.
    prefix: Option<String>,
    quiet: bool,
}

impl Shown {
    fn new(options: &LaunchOptions, index: usize, rank: usize, console: &Rc<Console>) -> Self {
        let prefix = options.tee.contains(&rank).then(|| format!("[rank {rank}] "));
        Self { console: Rc::clone(console), is_first: index == 0, prefix, quiet: options.quiet }
    }

    fn stdout(&self, lines: &[u8]) {
        if self.is_first {
            self.console.pass_through(lines);
        } else {
            self.tee(lines);
        }
    }

    fn stderr(&self, lines: &[u8]) {
        if self.prefix.is_some() {
            self.tee(lines);
        } else if self.is_first && !self.quiet {
            self.console.print(String::from_utf8_lossy(lines).trim_end_matches('\n'));
        }
    }

    fn tee(&self, lines: &[u8]) {
        if let Some(prefix) = &self.prefix {
            let text = String::from_utf8_lossy(lines);
            let lines: Vec<String> = text.lines().map(|line| format!("{prefix}{line}")).collect();
            self.console.print(&lines.join("\n"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_whose_watcher_fails_is_killed_and_reported_as_lost() {
        let run = async {
            let spawned = process::spawn(Spawn {
                program: std::path::Path::new("/bin/sleep"),
                arguments: &["1000".into()],
                variables: &[],
                removed: &[],
                inherited: Vec::new(),
                share: None,
            });
            let spawned = spawned.unwrap();
            let (sender, mut events) = mpsc::channel(8);
            let watcher: JoinHandle<WorkerExit> = tokio::task::spawn_local(std::future::pending());
            watcher.abort();
            report_exit(3, watcher, spawned.handle.clone(), sender).await;
            let Some((3, Event::Exited(exited))) = events.recv().await else { panic!("no exit of worker 3") };
            assert_eq!(exited.exit, ProcessExit::Signal(0));
            assert!(exited.tail[0].contains("the launcher could not watch it"), "{:?}", exited.tail);
            assert_eq!(events.recv().await, None);
            assert_eq!(spawned.waiter.wait().await.unwrap().0, ProcessExit::Signal(9));
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, run);
    }
}

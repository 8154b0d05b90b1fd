//! Runs a job: starts the workers, carries events to the state machine and its decisions out, restarts.

use std::cell::RefCell;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use fnet_protocol::cli::{Place, Train, WorkerCommand};
use fnet_protocol::message::{self, Heartbeat, StopReason};
use fnet_protocol::work_dir::{self, CheckpointFile};
use fnet_protocol::{env, exit, state};
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::cause::{Cause, Ending};
use crate::error::{Doing, Error, Result};
use crate::guard::Guard;
use crate::hang::Limits;
use crate::job::{Action, Death, Event, Job, Outcome};
use crate::logs::{self, Log};
use crate::memory::KillCount;
use crate::nodes::{self, Agreed, Begun, Cluster, Meeting, Met};
use crate::plan::{self, Plan};
use crate::process::{self, Handle, Start};
use crate::restart::{self, Decision, Facts};
use crate::show::Show;
use crate::signals::{Request, Signals};
use crate::streams::{self, Tail};
use crate::{claim, config, inspect, report, signals};

/// Time for the rest of a dead worker's output to arrive; a process that left its group may hold the pipe open.
const DRAIN: Duration = Duration::from_millis(500);
/// Time for the logs to reach a slow disk at the end.
const LAST_WRITES: Duration = Duration::from_secs(5);
/// Events that may wait for the dispatcher.
const QUEUE: usize = 1024;

type SharedShow = Rc<RefCell<Show>>;

/// A worker as the dispatcher needs it.
struct Member {
    handle: Handle,
    control: OwnedWriteHalf,
    /// Where the worker says what it does.
    page: OwnedFd,
}

impl Member {
    /// What the worker does now, or did when it ended.
    fn state(&self) -> Option<Heartbeat> {
        let mut bytes = [0; state::BYTES];
        rustix::io::pread(&self.page, &mut bytes, 0).ok()?;
        state::from_bytes(&bytes)
    }
}

/// Makes the plan of a job, runs it to its end and returns the exit code.
///
/// # Errors
/// If there is no plan, the config is wrong, or the system cannot start workers, open logs or bind the port.
pub fn run(place: &Place, plan: impl FnOnce() -> Result<Plan>) -> Result<i32> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .doing(|| "starting the event loop".to_owned())?;
    // Handlers first: from here on a signal is a request, which waits until the plan is made.
    let signals = {
        let _inside = runtime.enter();
        Signals::install().doing(|| "installing the signal handlers".to_owned())?
    };
    let ended = tokio::task::LocalSet::new().block_on(&runtime, supervise(place, plan()?, signals));
    // A name that is still being looked up must not hold the end up.
    runtime.shutdown_background();
    ended
}

async fn supervise(place: &Place, plan: Plan, mut signals: Signals) -> Result<i32> {
    let show: SharedShow = Rc::new(RefCell::new(Show::new(place)));
    if let Some(limit) = place.time_limit {
        let show = Rc::clone(&show);
        let text = format!("the time limit of {} is reached (--time-limit)", humantime::format_duration(limit));
        signals.limit_time(limit, move || show.borrow().say(&text));
    }
    let config = match signals.unless_stopped(config::resolve(&plan)).await {
        Ok(config) => config?,
        Err(reason) => return Ok(say_stopped_early(&show.borrow(), reason)),
    };
    std::fs::create_dir_all(&plan.logs).doing(|| format!("creating {}", plan.logs.display()))?;
    let _claim = claim::work_folder(&plan, &show.borrow())?;
    report::remove(&plan);
    let mut guard = Guard::start().doing(|| "starting the guard process".to_owned())?;
    show.borrow().say(&plan.summary());
    if place.verbosity() > 0 {
        plan.binding.lines().iter().for_each(|line| show.borrow().say(line));
    }
    let mut cluster = match nodes::meet(place, &plan, &config, &show, &mut signals).await? {
        Met::Ready(cluster) => cluster,
        Met::Stopped(reason) => return Ok(say_stopped_early(&show.borrow(), reason)),
    };
    let ended = see_to_its_end(place, plan, &show, &mut signals, &mut guard, &mut cluster).await;
    logs::flush(LAST_WRITES);
    cluster.leave(ended.as_ref().err()).await;
    ended
}

/// Starts the job, and starts it again as long as that makes sense.
async fn see_to_its_end(
    place: &Place,
    mut plan: Plan,
    show: &SharedShow,
    signals: &mut Signals,
    guard: &mut Guard,
    cluster: &mut Cluster,
) -> Result<i32> {
    let given = plan.command.clone();
    let before = checkpoints_of_command(&given)?;
    let (mut used, mut restarts, mut saved_step) = (0, 0, None);
    loop {
        let goes_on = plan.command != given;
        let meeting = match cluster.begin(&plan.nodes, restarts, goes_on, show, signals).await? {
            Begun::Start(meeting) => meeting,
            Begun::Stopped(reason) => return Ok(say_stopped(&show.borrow(), reason, true, &given)),
        };
        plan.nodes = meeting.nodes.clone();
        if let Some(resume) = meeting.resume {
            plan.command = if resume { plan::from_newest(&given) } else { given.clone() };
        }
        let attempt = attempt(place, &plan, meeting, show, signals, guard, cluster).await?;
        show.borrow_mut().clear();
        let cause = match attempt.outcome {
            Outcome::Done => return Ok(exit::SUCCESS),
            Outcome::Stopped { reason, saved } => return Ok(say_stopped(&show.borrow(), reason, saved, &given)),
            Outcome::Failed(ref cause) => cause,
        };
        let is_plain = report::is_plain(cause, &plan);
        report_failure(show, &plan, cause, restarts, is_plain).await;
        if let Some(gone) = &attempt.gone {
            show.borrow().error(&format!("not restarted: {gone} is gone; start the job again on all nodes"));
            return Ok(cause.exit_code);
        }
        let decision = restart::decide(&Facts {
            is_train: matches!(plan.command, WorkerCommand::Train(_)),
            code: cause.exit_code,
            was_ready: attempt.was_ready,
            stop_requested: attempt.stop_requested,
            used,
            got_on: attempt.saved_step > saved_step,
            allowed: place.max_restarts,
            ran: attempt.ran,
            refill: Duration::from_secs_f64(place.refill_after),
        });
        match decision {
            Decision::GiveUp(reason) => {
                if matches!(given, WorkerCommand::Train(_)) && !is_plain {
                    show.borrow().error(&format!("not restarted: {reason}"));
                }
                return Ok(cause.exit_code);
            }
            Decision::Restart { pause, used: now_used, reason } => {
                used = now_used;
                restarts += 1;
                saved_step = saved_step.max(attempt.saved_step);
                plan.command = next_command(&given, saved_step.is_some(), &before);
                let allowed = place.max_restarts;
                let text = format!("restarting in {} s (restart {used} of {allowed}): {reason}", pause.as_secs());
                show.borrow().error(&text);
                if let Err(reason) = signals.unless_stopped(tokio::time::sleep(pause)).await {
                    cluster.stop(reason, false).await;
                    return Ok(say_stopped(&show.borrow(), reason, true, &given));
                }
            }
        }
    }
}

/// The command of a restart: goes on from the newest checkpoint if there is one of this job, else as it was given.
fn next_command(given: &WorkerCommand, saved: bool, before: &[CheckpointFile]) -> WorkerCommand {
    let WorkerCommand::Train(train) = given else { return given.clone() };
    if saved {
        return plan::from_newest(given);
    }
    let found = checkpoints_of(train).unwrap_or_default();
    WorkerCommand::Train(plan::resumed(train, &found, before))
}

/// The checkpoints that a job finds in its folder, if it is one that writes any.
fn checkpoints_of_command(command: &WorkerCommand) -> Result<Vec<CheckpointFile>> {
    match command {
        WorkerCommand::Train(train) => checkpoints_of(train),
        _ => Ok(Vec::new()),
    }
}

/// The checkpoints in the folder of a `train`.
///
/// # Errors
/// If the folder cannot be read.
pub fn checkpoints_of(train: &Train) -> Result<Vec<CheckpointFile>> {
    let folder = train.folder();
    work_dir::checkpoints(&folder).doing(|| format!("reading {}", folder.display()))
}

/// Removes what workers that were killed have left half-written in their work folder.
fn remove_leftovers(plan: &Plan, show: &Show) {
    let WorkerCommand::Train(train) = &plan.command else { return };
    if let Err(error) = work_dir::remove_leftovers(&train.folder()) {
        show.say(&format!("half-written files are left in {}: {error}", train.folder().display()));
    }
}

/// A stop was requested before a worker was started.
fn say_stopped_early(show: &Show, reason: StopReason) -> i32 {
    show.error("stopped on request before anything was started; run the same command again");
    reason.exit_code()
}

fn say_stopped(show: &Show, reason: StopReason, saved: bool, given: &WorkerCommand) -> i32 {
    let how = if saved { "" } else { "; not every worker came to the point of saving" };
    let next = if matches!(given, WorkerCommand::Train(_)) { "; run again with --resume" } else { "" };
    show.error(&format!("stopped on request{how}{next}"));
    reason.exit_code()
}

async fn report_failure(show: &RefCell<Show>, plan: &Plan, cause: &Cause, restarts: u32, is_plain: bool) {
    let lines = if is_plain { vec![cause.reason.clone()] } else { report::lines(cause, &plan.log(cause.rank)) };
    if let Some((headline, details)) = lines.split_first() {
        show.borrow().error(headline);
        details.iter().for_each(|line| show.borrow().print(line));
    }
    let (file, text) = (report::file(plan), report::json(plan, cause, restarts));
    // A disk that hangs must not hold up the rest.
    let written = tokio::task::spawn_blocking(move || std::fs::write(file, text));
    let problem = match tokio::time::timeout(LAST_WRITES, written).await {
        Ok(Ok(Ok(()))) => return,
        Ok(Ok(Err(error))) => error.to_string(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("the disk does not answer within {} s", LAST_WRITES.as_secs()),
    };
    show.borrow().error(&format!("the report could not be written to {}: {problem}", plan.logs.display()));
}

/// Starts the workers once and sees them to their end.
async fn attempt(
    place: &Place,
    plan: &Plan,
    meeting: Meeting,
    show: &SharedShow,
    signals: &mut Signals,
    guard: &mut Guard,
    cluster: &mut Cluster,
) -> Result<Agreed> {
    let started = Instant::now();
    let kills = Rc::new(KillCount::now());
    let (sender, mut events) = mpsc::channel(QUEUE);
    let members = start_all(place, plan, &meeting, show, guard, &kills, &sender)?;
    drop((sender, meeting));
    let seconds = Duration::from_secs_f64;
    let limits = Limits {
        start: seconds(place.start_timeout),
        step: seconds(place.step_timeout),
        evaluation: seconds(place.eval_timeout),
        save: seconds(place.save_timeout),
        silence: seconds(place.silence_timeout),
    };
    let is_train = matches!(plan.command, WorkerCommand::Train(_));
    let mut job = Job::new(&plan.ranks(), is_train, seconds(place.grace), limits, started);
    loop {
        // In this order: what was said is heard before anybody is judged for silence.
        let actions = tokio::select! {
            biased;
            request = signals.next() => match request {
                Request::Stop(reason) => {
                    cluster.stop(reason, job.stop_requested()).await;
                    job.stop(reason, Instant::now())
                }
                Request::Pause => { pause(&members); Vec::new() }
            },
            event = events.recv() => {
                // Each worker's end is reported before the sender is gone, and the last one ends this loop.
                let Some((index, event)) = event else {
                    return Err(Error::bug("nobody watches the workers any more, although not all have ended"));
                };
                if matches!(event, Event::Ended(..)) && let Some(member) = members.get(index) {
                    guard.remove(member.handle.id());
                    // Its last word may be a second old.
                    observe(&mut job, index, member);
                }
                job.on(index, event, Instant::now())
            }
            news = cluster.next() => cluster.react(news, &mut job, Instant::now()),
            () = tokio::time::sleep_until(job.next_tick().into()) => {
                members.iter().enumerate().for_each(|(index, member)| observe(&mut job, index, member));
                job.tick(Instant::now())
            }
        };
        cluster.observe(&job, Instant::now()).await;
        for action in actions {
            carry_out(action, &mut job, &members, show);
        }
        if let Some(outcome) = job.outcome() {
            remove_leftovers(plan, &show.borrow());
            let (was_ready, stop_requested) = (job.was_ready(), job.stop_requested());
            let (saved_step, ran) = (job.saved_step(), started.elapsed());
            let here = Agreed { outcome, was_ready, stop_requested, saved_step, ran, gone: None };
            return Ok(cluster.agree(here, job.only_echoes(), signals).await);
        }
    }
}

/// Tells the job what a worker's page says, if the worker writes it.
fn observe(job: &mut Job, index: usize, member: &Member) {
    if let Some(state) = member.state() {
        job.on(index, Event::State(state), Instant::now());
    }
}

fn carry_out(action: Action, job: &mut Job, members: &[Member], show: &SharedShow) {
    match action {
        Action::Tell(index, what) => {
            if let (Some(member), Ok(line)) = (members.get(index), message::to_line(&what)) {
                // A worker that is gone, or that does not read, is dealt with by signals.
                let _ = member.control.try_write(&line);
            }
        }
        Action::Terminate(index) => {
            if let Some(member) = members.get(index) {
                member.handle.terminate();
            }
        }
        Action::Kill(index) => {
            if let Some(member) = members.get(index) {
                member.handle.kill_group();
            }
        }
        Action::Say(text) => show.borrow().say(&text),
        Action::Progress(progress, slowest) => show.borrow_mut().progress(&progress, slowest, Instant::now()),
        Action::Inspect(index) => {
            if let Some(facts) = members.get(index).and_then(|member| inspect::facts(member.handle.id())) {
                job.on(index, Event::Inspected(facts), Instant::now());
            }
        }
        Action::Note(text) => show.borrow().print(&text),
    }
}

/// Ctrl-Z: the workers stop with the launcher and go on with it.
fn pause(members: &[Member]) {
    members.iter().for_each(|member| member.handle.signal_group(rustix::process::Signal::STOP));
    signals::stop_self();
    members.iter().for_each(|member| member.handle.signal_group(rustix::process::Signal::CONT));
}

/// Starts every worker of this node; if one cannot be started, those before it are ended.
fn start_all(
    place: &Place,
    plan: &Plan,
    meeting: &Meeting,
    show: &SharedShow,
    guard: &mut Guard,
    kills: &Rc<KillCount>,
    events: &mpsc::Sender<(usize, Event)>,
) -> Result<Vec<Member>> {
    let mut members: Vec<Member> = Vec::new();
    for (index, rank) in plan.ranks().into_iter().enumerate() {
        // Only rank 0 gets the socket; when it dies, nobody else keeps the port open.
        let store = meeting.store.as_ref().filter(|_| index == 0);
        let started = start_one(plan, index, rank, meeting.port, meeting.attempt, store)
            .doing(|| format!("starting rank {rank} ({})", plan.program.display()));
        let (started, control, page) = match started {
            Ok(started) => started,
            Err(error) => {
                for member in &members {
                    member.handle.kill_group();
                    guard.remove(member.handle.id());
                }
                return Err(error);
            }
        };
        guard.add(started.handle.id());
        let (reading, writing) = control.into_split();
        members.push(Member { handle: started.handle.clone(), control: writing, page });
        let log =
            |what: &str| process::open_log(&plan.log(rank)).doing(|| format!("opening the {what} log of rank {rank}"));
        let (out, err) = (log("output")?, log("error")?);
        let shown = show_of(place, index, rank, show);
        watch(index, started, reading, (out, err), shown, Rc::clone(kills), events.clone());
    }
    Ok(members)
}

fn start_one(
    plan: &Plan,
    index: usize,
    rank: usize,
    port: u16,
    restarts: u32,
    store: Option<&TcpListener>,
) -> io::Result<(process::Started, tokio::net::UnixStream, OwnedFd)> {
    // A full disk is no reason not to start, and a slow one none to wait.
    let mut log = Log::new(process::open_log(&plan.log(rank))?);
    let (control, theirs) = process::control_pair()?;
    let mut variables = plan.variables(index, port, restarts);
    variables.push((env::CONTROL.to_owned(), theirs.as_raw_fd().to_string()));
    let (page, their_page) = process::shared_page(state::BYTES)?;
    variables.push((env::STATE_FD.to_owned(), their_page.as_raw_fd().to_string()));
    let mut inherited: Vec<OwnedFd> = vec![theirs, their_page];
    if let Some(store) = store {
        let store = process::duplicate(store)?;
        variables.push((env::STORE_FD.to_owned(), store.as_raw_fd().to_string()));
        inherited.push(store);
    }
    let arguments = plan.command.to_args();
    log.write(format!("=== rank {rank}, restart {restarts}: {}\n", crate::text::shell_line(&arguments)).as_bytes());
    let started = process::start(Start {
        program: &plan.program,
        arguments: &arguments,
        variables: &variables,
        removed: &plan::NOT_INHERITED,
        inherited,
        share: plan.binding.shares.get(index),
    })?;
    Ok((started, control, page))
}

/// How a worker's output is shown.
#[derive(Clone)]
struct Shown {
    show: SharedShow,
    /// Rank 0's output is for people (stderr) and programs (stdout).
    is_first: bool,
    /// Prefix of lines of a rank named by `--tee`.
    prefix: Option<String>,
    quiet: bool,
}

fn show_of(place: &Place, index: usize, rank: usize, show: &SharedShow) -> Shown {
    let is_tee = place.tee.contains(&rank);
    Shown {
        show: Rc::clone(show),
        is_first: index == 0,
        prefix: is_tee.then(|| format!("[rank {rank}] ")),
        quiet: place.quiet,
    }
}

impl Shown {
    fn stdout(&self, lines: &[u8]) {
        if self.is_first {
            self.show.borrow().pass(lines);
        } else {
            self.tee(lines);
        }
    }

    fn stderr(&self, lines: &[u8]) {
        if self.prefix.is_some() {
            self.tee(lines);
        } else if self.is_first && !self.quiet {
            self.show.borrow().print(String::from_utf8_lossy(lines).trim_end_matches('\n'));
        }
    }

    fn tee(&self, lines: &[u8]) {
        if let Some(prefix) = &self.prefix {
            let text = String::from_utf8_lossy(lines);
            let lines: Vec<String> = text.lines().map(|line| format!("{prefix}{line}")).collect();
            self.show.borrow().print(&lines.join("\n"));
        }
    }
}

/// Reads everything a worker says, waits for its end, and reports that last.
fn watch(
    index: usize,
    started: process::Started,
    control: tokio::net::unix::OwnedReadHalf,
    logs: (std::fs::File, std::fs::File),
    shown: Shown,
    kills: Rc<KillCount>,
    events: mpsc::Sender<(usize, Event)>,
) {
    let process::Started { waiter, stdout, stderr, handle } = started;
    let tail = Tail::default();
    let mut readers: Vec<JoinHandle<()>> = Vec::new();
    if let Ok(stdout) = tokio::process::ChildStdout::from_std(stdout) {
        let shown = shown.clone();
        let copy = streams::copy(stdout, Log::new(logs.0), None, move |lines| shown.stdout(lines));
        readers.push(tokio::task::spawn_local(copy));
    }
    if let Ok(stderr) = tokio::process::ChildStderr::from_std(stderr) {
        let copy = streams::copy(stderr, Log::new(logs.1), Some(Rc::clone(&tail)), move |lines| shown.stderr(lines));
        readers.push(tokio::task::spawn_local(copy));
    }
    let (messages, group) = (events.clone(), handle.clone());
    readers.push(tokio::task::spawn_local(streams::messages(control, async move |message| {
        // The dispatcher is gone only when the job is over.
        let _ = messages.send((index, Event::Message(message))).await;
    })));
    let watcher = tokio::task::spawn_local(async move {
        // A worker that cannot be waited for counts as ended by an unknown signal.
        let (ending, groups) = waiter.wait().await.unwrap_or((Ending::Signal(0), String::new()));
        let memory = if ending == Ending::Signal(9) { kills.finding(handle.id(), &groups) } else { None };
        kills.remove_drill(handle.id());
        let deadline = tokio::time::Instant::now() + DRAIN;
        for reader in &mut readers {
            if tokio::time::timeout_at(deadline, &mut *reader).await.is_err() {
                reader.abort();
            }
        }
        let tail = tail.borrow().iter().cloned().collect();
        Death { ending, tail, memory }
    });
    tokio::task::spawn_local(report_end(index, watcher, group, events));
}

/// Reports the end of a worker when its watcher has seen it. Should the watcher itself fall over, the worker is ended and
/// counts as lost: the job must not wait for news that never comes.
async fn report_end(index: usize, watcher: JoinHandle<Death>, worker: Handle, events: mpsc::Sender<(usize, Event)>) {
    let death = watcher.await.unwrap_or_else(|error| {
        worker.kill_group();
        let tail = vec![format!("the launcher lost sight of it: {error}")];
        Death { ending: Ending::Signal(0), tail, memory: None }
    });
    // The dispatcher is gone only when the job is over.
    let _ = events.send((index, Event::Ended(death))).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watcher_that_falls_over_reports_its_worker_as_lost_and_ends_it() {
        let run = async {
            let started = process::start(Start {
                program: std::path::Path::new("/bin/sleep"),
                arguments: &["1000".into()],
                variables: &[],
                removed: &[],
                inherited: Vec::new(),
                share: None,
            });
            let started = started.unwrap();
            let (sender, mut events) = mpsc::channel(QUEUE);
            let watcher: JoinHandle<Death> = tokio::task::spawn_local(std::future::pending());
            watcher.abort();
            report_end(3, watcher, started.handle.clone(), sender).await;
            let Some((3, Event::Ended(death))) = events.recv().await else { panic!("no end of worker 3") };
            assert_eq!(death.ending, Ending::Signal(0));
            assert!(death.tail[0].contains("the launcher lost sight of it"), "{:?}", death.tail);
            assert_eq!(events.recv().await, None);
            assert_eq!(started.waiter.wait().await.unwrap().0, Ending::Signal(9));
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, run);
    }
}

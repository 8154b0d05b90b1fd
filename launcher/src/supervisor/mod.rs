//! Supervises a job: starts the workers, passes events to the [`Attempt`], executes its actions, restarts.

mod disk;
mod logs;
mod next;
mod oom;
mod process;
mod procfs;
pub mod reaper;
mod report;
mod resolved_config;
mod streams;
mod workdir_lock;
mod workers;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use fnet_protocol::cli::{Launch, LaunchOptions, WorkerCommand};
use fnet_protocol::message::StopReason;
use fnet_protocol::work_dir::CheckpointFile;
use fnet_protocol::{exit, generation, work_dir};
use tokio::sync::mpsc;

use self::reaper::Reaper;
use self::workers::Starter;
use crate::attempt::cause::Cause;
use crate::attempt::hang::Limits;
use crate::attempt::restart::{Decision, RestartBudget, code_of_loss};
use crate::attempt::result::{AttemptEnd, AttemptResult};
use crate::attempt::status::JobStage;
use crate::attempt::{Action, Attempt, Event, KILL_TIMEOUT};
use crate::console::Console;
use crate::error::{BEFORE_START, Doing, Error, Result};
use crate::nodes::{self, AttemptStart, Cluster, Token, Wanted};
use crate::plan::{self, Plan};
use crate::signals::{OrStop, Request, Signals};
use crate::status::{ERROR, INFO, Keeper, WARNING, show};
use crate::{libtorch, text};

/// Time for logs and reports to reach a slow disk.
const DISK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a node 0 that waits for others after an attempt keeps the lock of the work folder from them.
const LOCK_GRACE: Duration = Duration::from_secs(2);
/// Capacity of the event queue.
const QUEUE: usize = 1024;

/// Plans a job, runs it and returns the exit code.
/// Errors: signals cannot be handled, or the nodes do not meet.
pub fn run(launch: &Launch, command: &WorkerCommand) -> Result<i32> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .doing(|| "starting the event loop".to_owned())?;
    // Signals are requests from here on.
    let signals = {
        let _inside = runtime.enter();
        Signals::install().doing(|| "installing the signal handlers".to_owned())?
    };
    let code = tokio::task::LocalSet::new().block_on(&runtime, supervise(launch, command, signals));
    // A name lookup or a folder that does not answer must not delay the exit.
    runtime.shutdown_background();
    code
}

/// What a job needs before it meets other nodes.
struct Prepared {
    plan: Plan,
    /// The fields of the resolved config.
    config: BTreeMap<String, String>,
    /// The lock of the work folder, or why another job has it, if this one waits for that.
    lock: Result<Option<File>>,
    /// With several nodes: node 0's file in the work folder.
    token: Option<Token>,
    reaper: Reaper,
}

async fn prepare(launch: &Launch, command: &WorkerCommand, console: &Console) -> Result<Prepared> {
    let options = &launch.options;
    let doing = format!("reading the inputs of `{}`", text::shell_line(&launch.line.words()));
    let plan = {
        let (launch, command) = (launch.clone(), command.clone());
        disk::within(resolved_config::READ_TIMEOUT, doing, move || Plan::new(&launch, &command)).await??
    };
    let program = plan.program.clone();
    let checking = tokio::task::spawn_blocking(move || libtorch::check(&program));
    let config = resolved_config::read(&plan.command).await?;
    checking.await.unwrap_or_else(|panic| Err(Error::bug(format!("looking for libtorch: {panic}"))))?;
    let time = Duration::from_secs_f64(options.node_timeout);
    let (logs, doing) = (plan.logs.clone(), format!("creating {}", plan.logs.display()));
    let created = disk::within(time, doing.clone(), || std::fs::create_dir_all(logs)).await?;
    created.doing(|| doing)?;
    let lock = match workdir_lock::lock(&plan, time, console).await {
        Err(error) if error.code != exit::USAGE || !workdir_lock::may_wait(&plan) => return Err(error),
        lock => lock,
    };
    let token = match &plan.command {
        WorkerCommand::Train(train) if plan.nodes.count > 1 && plan.nodes.rank == 0 => {
            Some(Token::create(&train.folder())?)
        }
        _ => None,
    };
    report::remove(&plan);
    let reaper = Reaper::start().doing(|| "starting the reaper process".to_owned())?;
    Ok(Prepared { plan, config, lock, token, reaper })
}

async fn supervise(launch: &Launch, command: &WorkerCommand, mut signals: Signals) -> Result<i32> {
    let options = &launch.options;
    let console = Rc::new(Console::new(options));
    if let Some(limit) = options.time_limit {
        let console = Rc::clone(&console);
        let text = format!("the time limit of {} is reached (--time-limit)", humantime::format_duration(limit));
        signals.set_time_limit(limit, move || console.say(&text));
    }
    let prepared = signals.unless_stopped(prepare(launch, command, &console)).await;
    let Prepared { plan, config, lock, mut token, reaper } =
        match prepared.unwrap_or_else(|reason| Err(Error::stopped(reason))) {
            Ok(prepared) => prepared,
            Err(error) => return Ok(end_before_start(launch, command, &error, &console, &mut signals).await),
        };
    console.say(&plan.summary());
    if options.verbosity() > 0 {
        plan.binding.lines().iter().for_each(|line| console.say(line));
    }
    let (lock, cluster) = match lock {
        Err(busy) => workdir_lock::wait(options, &plan, &config, &mut token, &busy, &console, &mut signals).await,
        lock => (lock, None),
    };
    let (lock, early) = match (lock, cluster) {
        (Ok(lock), cluster) => (lock, cluster),
        (Err(error), None) => return Ok(end_before_start(launch, command, &error, &console, &mut signals).await),
        (Err(error), Some(cluster)) => {
            console.error(error.message());
            let _ = signals.unless_stopped(cluster.leave(Some(&error))).await;
            return Ok(error.code);
        }
    };
    // Not before the folder is locked: its status is that of the job that has it.
    let mut keeper = Keeper::new(&plan);
    let joined = async {
        match early {
            Some(cluster) => Ok(Ok(cluster)),
            None => nodes::join(options, &plan, &config, &mut token, &console, &mut signals).await,
        }
    };
    let cluster = match keeper.during(joined).await {
        Ok(Ok(cluster)) => cluster,
        Ok(Err(reason)) => {
            keeper.end(reason.exit_code(), None);
            keeper.flush(DISK_TIMEOUT);
            return Ok(end_before_start(launch, command, &Error::stopped(reason), &console, &mut signals).await);
        }
        Err(error) => {
            keeper.end(error.code, Some(error.message()));
            keeper.flush(DISK_TIMEOUT);
            return Err(error);
        }
    };
    keeper.watch_membership(cluster.membership());
    let mut supervisor =
        Supervisor { options, plan, console: Rc::clone(&console), signals, reaper, cluster, keeper, lock };
    let ended = supervisor.run().await;
    console.clear_line();
    if let Err(error) = &ended {
        console.error(error.message());
    }
    match &ended {
        Ok(code) => supervisor.keeper.end(*code, None),
        Err(error) => supervisor.keeper.end(error.code, Some(error.message())),
    }
    let is_first = supervisor.plan.nodes.rank == 0;
    if let (Ok(exit::SUCCESS), WorkerCommand::Train(train), true) = (&ended, command, is_first) {
        next::lines(launch, train, supervisor.keeper.status()).iter().for_each(|line| console.talk(line));
    }
    logs::flush(DISK_TIMEOUT);
    supervisor.keeper.flush(DISK_TIMEOUT);
    // A stop that is requested now ends the wait for the other nodes.
    let _ = supervisor.signals.unless_stopped(supervisor.cluster.leave(ended.as_ref().err())).await;
    Ok(ended.unwrap_or_else(|error| error.code))
}

/// Says why this node ends before the job has started, also to the other nodes, which would wait for it.
/// A stop that is requested meanwhile ends the report.
async fn end_before_start(
    launch: &Launch,
    command: &WorkerCommand,
    error: &Error,
    console: &Console,
    signals: &mut Signals,
) -> i32 {
    console.error(error.message());
    if !plan::is_single(command) {
        let logs = plan::logs(command);
        let report = nodes::report_failure(&launch.options, &launch.line, &logs, error, console);
        let _ = signals.unless_stopped(report).await;
    }
    error.code
}

/// Takes the next generation of the work folder of a training, on node 0, after the one that the last attempt had.
async fn take_generation(plan: Plan, last: Option<u64>, time: Duration) -> Result<Option<u64>> {
    let folder = match &plan.command {
        WorkerCommand::Train(train) if plan.nodes.rank == 0 => train.folder(),
        _ => return Ok(None),
    };
    let (path, doing) = (folder.clone(), format!("counting the attempts in {}", folder.display()));
    let taken = disk::within(time, doing.clone(), move || generation::take(&path, last)).await?;
    taken.doing(|| doing)?.map(Some).ok_or_else(|| cut_off(&folder))
}

/// The checkpoints in the folder of a training.
async fn checkpoints(plan: Plan, time: Duration) -> Result<Result<Vec<CheckpointFile>>> {
    let doing = format!("reading {}", plan.logs.parent().unwrap_or(&plan.logs).display());
    disk::within(time, doing, move || plan.checkpoints()).await
}

fn cut_off(folder: &Path) -> Error {
    let text = format!("{} belongs to a newer attempt of the job, from which this node was cut off", folder.display());
    Error::new(exit::WORKER_LOST, text)
}

/// A job in progress.
struct Supervisor<'a> {
    options: &'a LaunchOptions,
    plan: Plan,
    console: Rc<Console>,
    signals: Signals,
    reaper: Reaper,
    cluster: Cluster,
    keeper: Keeper,
    /// The lock of the work folder.
    lock: Option<File>,
}

impl Supervisor<'_> {
    /// Runs attempts until the job is done, stopped, or not worth a restart.
    async fn run(&mut self) -> Result<i32> {
        let old_checkpoints = match self.unless_stopped(checkpoints(self.plan.clone(), self.answer_time())).await {
            Ok(found) => found??,
            Err(reason) => return Ok(self.say_stopped(reason, true, false)),
        };
        let mut budget = RestartBudget::new(self.options);
        let mut generation = None;
        for number in 0.. {
            self.keeper.set_stage(JobStage::Waiting);
            let taken = take_generation(self.plan.clone(), generation, self.answer_time());
            generation = match self.unless_stopped(taken).await {
                Ok(taken) => taken.map_err(|error| self.of_loss(&error))?,
                Err(reason) => return Ok(self.say_stopped(reason, true, self.plan.resume)),
            };
            if let (WorkerCommand::Train(train), Some(own)) = (&self.plan.command, generation) {
                self.keeper.set_generation(train.folder(), own);
            }
            let wanted = Wanted { resume: self.plan.resume, generation, budget: budget.clone() };
            let start = self.cluster.begin(&self.plan.nodes, number, wanted, &self.console, &mut self.signals);
            let (lock, mut is_unlocked) = (&mut self.lock, false);
            // Others may go on without this node while it waits for them.
            let start = async {
                tokio::pin!(start);
                tokio::select! {
                    biased;
                    start = &mut start => return start,
                    () = tokio::time::sleep(LOCK_GRACE), if number > 0 => is_unlocked = lock.take().is_some(),
                }
                start.await
            };
            let start = match self.keeper.during(start).await {
                Ok(Ok(start)) => start,
                Ok(Err(reason)) => return Ok(self.say_stopped(reason, true, self.plan.resume)),
                Err(error) => return Err(self.of_loss(&error)),
            };
            if is_unlocked {
                self.lock_again(generation).await?;
            }
            self.plan.nodes = start.nodes.clone();
            (self.plan.resume, budget) = (start.wanted.resume, start.wanted.budget.clone());
            let result = self.attempt(start).await?;
            self.console.clear_line();
            let cause = match &result.end {
                AttemptEnd::Done => return Ok(exit::SUCCESS),
                AttemptEnd::Stopped { .. } if result.goes_on => {
                    budget.note(&result);
                    match self.has_new_checkpoint(&budget, &old_checkpoints).await {
                        Ok(is_there) => self.plan.resume = is_there?,
                        Err(reason) => return Ok(self.say_stopped(reason, true, true)),
                    }
                    self.tell("going on with other nodes");
                    continue;
                }
                AttemptEnd::Stopped { reason, saved } => return Ok(self.say_stopped(*reason, *saved, true)),
                AttemptEnd::Failed { cause, .. } => cause,
            };
            let is_plain = report::is_plain(cause, &self.plan);
            self.keeper.on_failure(cause);
            self.report(cause, budget.total(), is_plain).await;
            match budget.decide(self.plan.is_train(), self.plan.starts_again(), &result, cause) {
                Decision::GiveUp { reason, code } => {
                    if self.plan.is_train() && !is_plain || !result.lost_nodes.is_empty() {
                        self.tell(&format!("not restarted: {reason}"));
                    }
                    return Ok(code);
                }
                Decision::Restart { pause, reason } => {
                    self.keeper.on_restart(cause);
                    match self.has_new_checkpoint(&budget, &old_checkpoints).await {
                        Ok(is_there) => self.plan.resume = is_there?,
                        Err(reason) => return Ok(self.say_stopped(reason, true, true)),
                    }
                    let (seconds, position) = (pause.as_secs(), budget.position());
                    match reason {
                        Some(reason) => self.tell(&format!("restarting in {seconds} s ({position}): {reason}")),
                        None => self.tell(&format!("going on without {}", text::list(&result.lost_nodes))),
                    }
                    if let Err(reason) = self.unless_stopped(tokio::time::sleep(pause)).await {
                        return Ok(self.say_stopped(reason, true, true));
                    }
                }
            }
        }
        Err(Error::bug("there are no more numbers for attempts"))
    }

    /// How long a folder may take to answer: a node that is silent for longer counts as lost.
    fn answer_time(&self) -> Duration {
        Duration::from_secs_f64(self.options.node_timeout)
    }

    /// The result of `work`, unless a stop is requested first, of which the other nodes hear.
    async fn unless_stopped<T>(&mut self, work: impl Future<Output = T>) -> OrStop<T> {
        let done = self.keeper.during(self.signals.unless_stopped(work)).await;
        if let Err(reason) = &done {
            self.cluster.stop(*reason, false).await;
        }
        done
    }

    /// Whether this job has written a checkpoint from which it can go on.
    async fn has_new_checkpoint(&mut self, budget: &RestartBudget, before: &[CheckpointFile]) -> OrStop<Result<bool>> {
        if budget.has_checkpoint() {
            return Ok(Ok(true));
        }
        let found = self.unless_stopped(checkpoints(self.plan.clone(), self.answer_time())).await?;
        // The folder before and after is compared, because the clock of a file server may differ.
        let is_new = |found: Vec<CheckpointFile>| found.first().is_some_and(|newest| !before.contains(newest));
        Ok(found.map(|found| is_new(found.unwrap_or_default())))
    }

    /// Locks the work folder again, unless the job has gone on without this node.
    async fn lock_again(&mut self, generation: Option<u64>) -> Result<()> {
        let (WorkerCommand::Train(train), Some(own)) = (&self.plan.command, generation) else { return Ok(()) };
        let folder = train.folder();
        let (fence, time) = (generation::Fence { folder: folder.clone(), own }, self.answer_time());
        let doing = format!("reading {}", folder.display());
        let is_newest = disk::within(time, doing, move || fence.permit().is_ok()).await?;
        match workdir_lock::lock(&self.plan, time, &self.console).await {
            Ok(lock) if is_newest => self.lock = lock,
            Err(error) if error.code == exit::ENVIRONMENT => return Err(error),
            _ => return Err(self.of_loss(&cut_off(&folder))),
        }
        Ok(())
    }

    fn of_loss(&self, error: &Error) -> Error {
        Error::new(code_of_loss(self.plan.starts_again(), error.code), error.message())
    }

    /// Runs the workers once.
    async fn attempt(&mut self, start: AttemptStart) -> Result<AttemptResult> {
        let (sender, mut events) = mpsc::channel(QUEUE);
        let starter = Starter::new(self.options, &self.plan, &start, &self.console, sender);
        let paths: Vec<PathBuf> = self.plan.ranks().into_iter().map(|rank| self.plan.log(rank)).collect();
        let doing = format!("opening the logs in {}", self.plan.logs.display());
        let logs = disk::within(self.answer_time(), doing, move || workers::open_logs(&paths));
        let workers = starter.start_all(self.keeper.during(logs).await??, &mut self.reaper)?;
        self.keeper.begin_attempt(self.plan.world_size(), start.links.as_ref());
        // Only rank 0 keeps the port of the store open.
        drop(starter);
        drop(start);
        let seconds = Duration::from_secs_f64;
        let limits = Limits {
            start: seconds(self.options.start_timeout),
            step: seconds(self.options.step_timeout),
            evaluation: seconds(self.options.eval_timeout),
            save: seconds(self.options.save_timeout),
            silence: seconds(self.options.silence_timeout),
        };
        let (ranks, grace) = (self.plan.ranks(), seconds(self.options.grace));
        let mut attempt = Attempt::new(&ranks, self.plan.is_train(), grace, limits, Instant::now());
        loop {
            // In this order, messages are processed before a worker is judged for its silence.
            let actions = tokio::select! {
                biased;
                request = self.signals.next() => match request {
                    Request::Stop(reason) => {
                        self.keeper.event(INFO, "a stop was requested");
                        let at_once = self.signals.is_second_interrupt(reason);
                        self.cluster.stop(reason, at_once).await;
                        attempt.on_stop(reason, at_once, Instant::now())
                    }
                    Request::Pause => { workers.pause(); Vec::new() }
                },
                event = events.recv() => {
                    // The exit of the last worker ends this loop before the last sender is gone.
                    let Some((index, event)) = event else {
                        return Err(Error::bug("the workers are no longer watched, although not all have exited"));
                    };
                    if matches!(event, Event::Exited(..)) {
                        workers.group(index).into_iter().for_each(|group| self.reaper.remove(group));
                    }
                    self.keeper.on_event(&event);
                    attempt.on_event(index, event, Instant::now())
                }
                message = self.cluster.next() => self.cluster.deliver(message, &mut attempt, &self.console, Instant::now()),
                () = tokio::time::sleep_until(attempt.next_tick().into()) => {
                    (0..ranks.len()).for_each(|index| workers.read_status(index, &mut attempt));
                    let actions = attempt.on_tick(Instant::now());
                    self.keeper.on_tick(&attempt, Instant::now());
                    if self.console.is_live() {
                        self.show_progress(false);
                    }
                    actions
                }
            };
            self.cluster.report(&attempt, Instant::now()).await;
            for action in actions {
                match action {
                    Action::Say(text) => {
                        self.console.say(&text);
                        self.keeper.event(WARNING, &text);
                    }
                    Action::Progress(progress, slowest) => {
                        self.keeper.on_progress(*progress, slowest, &attempt, Instant::now());
                        let is_last = self.keeper.is_just_complete(&attempt, Instant::now());
                        self.show_progress(is_last);
                    }
                    action => workers.execute(action, &mut attempt, &self.console),
                }
            }
            // The last images of an evaluation may be those of another rank than the first.
            if self.keeper.is_just_complete(&attempt, Instant::now()) {
                self.show_progress(true);
            }
            if let Some(rank) = attempt.unkillable_rank(Instant::now()) {
                return Err(Error::environment(format!(
                    "rank {rank} has not ended {} s after it was killed: the kernel waits for a disk or driver that does not \
                     answer; the process is left behind",
                    KILL_TIMEOUT.as_secs()
                )));
            }
            if let Some(result) = attempt.result(Instant::now()) {
                self.remove_leftovers().await;
                let finished = self.cluster.finish(result, &self.console, &mut self.signals);
                return Ok(self.keeper.during(finished).await);
            }
        }
    }

    /// Removes files that killed workers have left half-written.
    async fn remove_leftovers(&mut self) {
        let WorkerCommand::Train(train) = &self.plan.command else { return };
        let folder = train.folder();
        let doing = format!("removing half-written files in {}", folder.display());
        let removed = disk::within(DISK_TIMEOUT, doing.clone(), move || work_dir::remove_leftovers(&folder));
        if let Err(error) = self.keeper.during(removed).await.and_then(|removed| removed.doing(|| doing)) {
            self.console.say(error.message());
        }
    }

    fn show_progress(&self, is_last: bool) {
        let status = self.keeper.status();
        self.console.progress(show::key(status), is_last, Instant::now(), |width| show::line(status, width));
    }

    /// Prints a line even with --quiet, and adds it to the text log.
    fn tell(&mut self, line: &str) {
        self.console.error(line);
        self.keeper.event(WARNING, line);
    }

    fn say_stopped(&mut self, reason: StopReason, saved: bool, has_started: bool) -> i32 {
        let how = if saved { "" } else { "; not every worker reached the point of saving" };
        let next = match has_started {
            false => BEFORE_START,
            true if self.plan.is_train() => "; run again with --resume",
            true => "",
        };
        self.tell(&format!("stopped on request{how}{next}"));
        reason.exit_code()
    }

    /// Prints the cause of a failure, and writes the report for programs.
    async fn report(&mut self, cause: &Cause, restarts: u32, is_plain: bool) {
        let log = self.plan.log(cause.rank);
        self.keeper.event(ERROR, &format!("rank {} failed: {}", cause.rank, cause.reason));
        let lines = if is_plain { vec![cause.reason.clone()] } else { report::lines(cause, &log) };
        if let Some((headline, details)) = lines.split_first() {
            self.console.error(headline);
            details.iter().for_each(|line| self.console.print(line));
        }
        let (file, text) = (report::file(&self.plan), report::json(&self.plan, cause, restarts));
        let doing = format!("writing the report to {}", self.plan.logs.display());
        let written = disk::within(DISK_TIMEOUT, doing.clone(), move || std::fs::write(file, text));
        if let Err(error) = written.await.and_then(|written| written.doing(|| doing)) {
            self.console.error(error.message());
        }
    }
}

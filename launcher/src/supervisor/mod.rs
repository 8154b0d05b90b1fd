//! Supervises a job: starts the workers, passes events to the [`Attempt`], executes its actions, restarts.

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
use std::path::Path;
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
use crate::attempt::restart::{Decision, RestartBudget};
use crate::attempt::result::{AttemptEnd, AttemptResult};
use crate::attempt::status::JobStage;
use crate::attempt::{Action, Attempt, Event};
use crate::console::Console;
use crate::error::{Doing, Error, Result};
use crate::nodes::{self, AttemptStart, Cluster, Token, Wanted};
use crate::plan::{self, Plan};
use crate::signals::{Request, Signals};
use crate::status::{ERROR, INFO, Keeper, WARNING, show};
use crate::{libtorch, text};

/// Time for logs and reports to reach a slow disk.
const DISK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a node 0 that waits for others after an attempt keeps the lock of the work folder from them.
const LOCK_GRACE: Duration = Duration::from_secs(2);
/// Capacity of the event queue.
const QUEUE: usize = 1024;

/// The end of the message about a stop before the first attempt.
const BEFORE_START: &str = " before anything was started; run the same command again";

/// Plans a job, runs it and returns the exit code.
/// Errors: signals cannot be handled, or the nodes do not meet.
pub fn run(launch: &Launch, command: &WorkerCommand) -> Result<i32> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .doing(|| "starting the event loop".to_owned())?;
    // Signals are requests from here on, and wait until the plan is made.
    let signals = {
        let _inside = runtime.enter();
        Signals::install().doing(|| "installing the signal handlers".to_owned())?
    };
    // Outside the event loop, because it waits for other programs.
    let plan = Plan::new(launch, command);
    let code = tokio::task::LocalSet::new().block_on(&runtime, supervise(launch, command, plan, signals));
    // A name lookup in progress must not delay the exit.
    runtime.shutdown_background();
    code
}

/// What a job needs before it meets other nodes.
struct Prepared {
    plan: Plan,
    /// The fields of the resolved config.
    config: BTreeMap<String, String>,
    lock: Option<File>,
    /// With several nodes: node 0's file in the work folder.
    token: Option<Token>,
    reaper: Reaper,
}

async fn prepare(options: &LaunchOptions, plan: Result<Plan>, console: &Console) -> Result<Prepared> {
    let plan = plan?;
    let program = plan.program.clone();
    let checking = tokio::task::spawn_blocking(move || libtorch::check(&program));
    let config = resolved_config::read(&plan.command).await?;
    checking.await.unwrap_or_else(|panic| Err(Error::bug(format!("looking for libtorch: {panic}"))))?;
    std::fs::create_dir_all(&plan.logs).doing(|| format!("creating {}", plan.logs.display()))?;
    let lock = workdir_lock::wait(&plan, options.join_timeout, console).await?;
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

async fn supervise(launch: &Launch, command: &WorkerCommand, plan: Result<Plan>, mut signals: Signals) -> Result<i32> {
    let options = &launch.options;
    let console = Rc::new(Console::new(options));
    if let Some(limit) = options.time_limit {
        let console = Rc::clone(&console);
        let text = format!("the time limit of {} is reached (--time-limit)", humantime::format_duration(limit));
        signals.set_time_limit(limit, move || console.say(&text));
    }
    let stopped = |reason: StopReason| Error::new(reason.exit_code(), format!("stopped on request{BEFORE_START}"));
    let prepared = signals.unless_stopped(prepare(options, plan, &console)).await;
    let Prepared { plan, config, lock, token, reaper } = match prepared.unwrap_or_else(|reason| Err(stopped(reason))) {
        Ok(prepared) => prepared,
        Err(error) => return Ok(end_before_start(launch, command, &error, &console, &mut signals).await),
    };
    console.say(&plan.summary());
    if options.verbosity() > 0 {
        plan.binding.lines().iter().for_each(|line| console.say(line));
    }
    let mut keeper = Keeper::new(&plan);
    let joined = nodes::join(options, &plan, &config, token, &console, &mut signals);
    let cluster = match keeper.during(joined).await {
        Ok(Ok(cluster)) => cluster,
        Ok(Err(reason)) => {
            keeper.end(reason.exit_code(), None);
            keeper.flush(DISK_TIMEOUT);
            return Ok(end_before_start(launch, command, &stopped(reason), &console, &mut signals).await);
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
async fn take_generation(plan: &Plan, last: Option<u64>) -> Result<Option<u64>> {
    let folder = match &plan.command {
        WorkerCommand::Train(train) if plan.nodes.rank == 0 => train.folder(),
        _ => return Ok(None),
    };
    let file = folder.clone();
    let taken = tokio::task::spawn_blocking(move || generation::take(&file, last)).await;
    let taken = taken.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    let taken = taken.doing(|| format!("counting the attempts in {}", folder.display()))?;
    taken.map(Some).ok_or_else(|| cut_off(&folder))
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
        let old_checkpoints = self.plan.checkpoints()?;
        let mut budget = RestartBudget::new(self.options);
        let mut generation = None;
        for number in 0.. {
            self.keeper.set_stage(JobStage::Waiting);
            let taken = self.signals.unless_stopped(take_generation(&self.plan, generation));
            generation = match self.keeper.during(taken).await {
                Ok(taken) => taken.map_err(|error| self.of_loss(&error))?,
                Err(reason) => {
                    self.cluster.stop(reason, false).await;
                    return Ok(self.say_stopped(reason, true, self.plan.resume));
                }
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
                self.lock_again(generation)?;
            }
            self.plan.nodes = start.nodes.clone();
            (self.plan.resume, budget) = (start.wanted.resume, start.wanted.budget.clone());
            let result = self.attempt(start).await?;
            self.console.clear_line();
            let cause = match &result.end {
                AttemptEnd::Done => return Ok(exit::SUCCESS),
                AttemptEnd::Stopped { .. } if result.goes_on => {
                    budget.note(&result);
                    self.plan.resume = self.has_new_checkpoint(&budget, &old_checkpoints);
                    self.tell("going on with other nodes");
                    continue;
                }
                AttemptEnd::Stopped { reason, saved } => return Ok(self.say_stopped(*reason, *saved, true)),
                AttemptEnd::Failed { cause, .. } => cause,
            };
            let is_plain = report::is_plain(cause, &self.plan);
            self.keeper.on_failure(cause);
            self.report(cause, budget.total(), is_plain).await;
            if !result.lost_nodes.is_empty() && !result.goes_on {
                let lost = text::list(&result.lost_nodes);
                let are = if result.lost_nodes.len() == 1 { "is" } else { "are" };
                self.tell(&format!("not restarted: {lost} {are} lost; start the job again on all nodes"));
                return Ok(self.code_of_loss(cause.exit_code));
            }
            match budget.decide(self.plan.is_train(), &result, cause) {
                Decision::GiveUp(reason) => {
                    if self.plan.is_train() && !is_plain {
                        self.tell(&format!("not restarted: {reason}"));
                    }
                    return Ok(cause.exit_code);
                }
                Decision::Restart { pause, reason } => {
                    self.plan.resume = self.has_new_checkpoint(&budget, &old_checkpoints);
                    self.keeper.on_restart(cause);
                    let (seconds, position) = (pause.as_secs(), budget.position());
                    match reason {
                        Some(reason) => self.tell(&format!("restarting in {seconds} s ({position}): {reason}")),
                        None => self.tell(&format!("going on without {}", text::list(&result.lost_nodes))),
                    }
                    let paused = self.signals.unless_stopped(tokio::time::sleep(pause));
                    if let Err(reason) = self.keeper.during(paused).await {
                        self.cluster.stop(reason, false).await;
                        return Ok(self.say_stopped(reason, true, true));
                    }
                }
            }
        }
        Err(Error::bug("there are no more numbers for attempts"))
    }

    /// Whether this job has written a checkpoint from which it can go on.
    fn has_new_checkpoint(&self, budget: &RestartBudget, before: &[CheckpointFile]) -> bool {
        let newest = self.plan.checkpoints().unwrap_or_default().into_iter().next();
        // The folder before and after is compared, because the clock of a file server may differ.
        budget.has_checkpoint() || newest.is_some_and(|newest| !before.contains(&newest))
    }

    /// Locks the work folder again, unless the job has gone on without this node.
    fn lock_again(&mut self, generation: Option<u64>) -> Result<()> {
        let (WorkerCommand::Train(train), Some(own)) = (&self.plan.command, generation) else { return Ok(()) };
        let folder = train.folder();
        let is_newest = generation::Fence { folder: folder.clone(), own }.permit().is_ok();
        match workdir_lock::lock(&self.plan, &self.console) {
            Ok(lock) if is_newest => self.lock = lock,
            _ => return Err(self.of_loss(&cut_off(&folder))),
        }
        Ok(())
    }

    /// The exit code if a node is lost without which the job cannot go on: with `--auto-resume` or MIN:MAX whatever started the
    /// job shall start it again.
    fn code_of_loss(&self, code: i32) -> i32 {
        if self.plan.starts_again() && code == exit::WORKER_LOST { exit::STOPPED } else { code }
    }

    fn of_loss(&self, error: &Error) -> Error {
        Error::new(self.code_of_loss(error.code), error.message())
    }

    /// Runs the workers once.
    async fn attempt(&mut self, start: AttemptStart) -> Result<AttemptResult> {
        let (sender, mut events) = mpsc::channel(QUEUE);
        let starter = Starter::new(self.options, &self.plan, &start, &self.console, sender);
        let workers = starter.start_all(&mut self.reaper)?;
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
                        self.cluster.stop(reason, attempt.stop_reason().is_some()).await;
                        attempt.on_stop(reason, Instant::now())
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
                        // Its last heartbeat may be a second old.
                        workers.read_status(index, &mut attempt);
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
            if let Some(result) = attempt.result(Instant::now()) {
                self.remove_leftovers();
                let finished = self.cluster.finish(result, &self.console, &mut self.signals);
                return Ok(self.keeper.during(finished).await);
            }
        }
    }

    /// Removes files that killed workers have left half-written.
    fn remove_leftovers(&self) {
        let WorkerCommand::Train(train) = &self.plan.command else { return };
        let folder = train.folder();
        if let Err(error) = work_dir::remove_leftovers(&folder) {
            self.console.say(&format!("cannot remove half-written files in {}: {error}", folder.display()));
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
        // A blocked disk must not delay the rest.
        let written = tokio::task::spawn_blocking(move || std::fs::write(file, text));
        let problem = match tokio::time::timeout(DISK_TIMEOUT, written).await {
            Ok(Ok(Ok(()))) => return,
            Ok(Ok(Err(error))) => error.to_string(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("the disk does not respond within {} s", DISK_TIMEOUT.as_secs()),
        };
        self.console.error(&format!("cannot write the report to {}: {problem}", self.plan.logs.display()));
    }
}

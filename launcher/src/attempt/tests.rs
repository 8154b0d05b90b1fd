use fnet_protocol::message::{Operation, Phase};

use super::cause::Cause;
use super::hang::tests::LIMITS;
use super::*;

/// An attempt of two workers with a clock that the test advances.
struct Scene {
    attempt: Attempt,
    now: Instant,
}

/// Advances the time, with a tick whenever one is due.
pub(super) fn tick_for(attempt: &mut Attempt, now: &mut Instant, seconds: f64) -> Vec<Action> {
    let end = *now + Duration::from_secs_f64(seconds);
    let mut actions = Vec::new();
    while attempt.next_tick() <= end {
        *now = attempt.next_tick();
        actions.extend(attempt.on_tick(*now));
    }
    *now = end;
    actions
}

impl Scene {
    fn new() -> Self {
        let now = Instant::now();
        Self { attempt: Attempt::new(&[0, 1], false, Duration::from_secs(30), LIMITS, now), now }
    }

    fn wait(&mut self, seconds: f64) -> Vec<Action> {
        tick_for(&mut self.attempt, &mut self.now, seconds)
    }

    fn heartbeat(&mut self, index: usize, phase: Phase, step: u64) {
        let status = WorkerStatus { phase, epoch: 1, step, ..WorkerStatus::default() };
        self.attempt.on_event(index, Event::Message(FromWorker::Heartbeat(status)), self.now);
    }

    fn ended(&mut self, index: usize, exit: ProcessExit) -> Vec<Action> {
        let exited = WorkerExit { exit, tail: vec!["last words".into()], out_of_memory: None, status: None };
        self.attempt.on_event(index, Event::Exited(exited), self.now)
    }

    fn failed(&mut self, index: usize, kind: FailureKind, message: &str) -> Vec<Action> {
        let failure = Failure { kind, message: message.into(), backtrace: None, at: None };
        self.attempt.on_event(index, Event::Message(FromWorker::Failed(failure)), self.now)
    }

    /// The cause once the launcher has killed both.
    fn killed(&mut self) -> Cause {
        self.ended(0, ProcessExit::Signal(9));
        self.ended(1, ProcessExit::Signal(9));
        self.cause()
    }

    fn end(&self) -> Option<AttemptEnd> {
        self.attempt.result(self.now).map(|result| result.end)
    }

    fn cause(&self) -> Cause {
        let Some(AttemptEnd::Failed { cause, .. }) = self.end() else { panic!("no failure") };
        *cause
    }
}

#[test]
fn an_attempt_is_done_when_every_worker_is() {
    let mut scene = Scene::new();
    scene.heartbeat(0, Phase::Start, 0);
    scene.heartbeat(1, Phase::Start, 0);
    assert_eq!(scene.ended(0, ProcessExit::Code(0)), []);
    assert_eq!(scene.end(), None);
    scene.ended(1, ProcessExit::Code(0));
    assert_eq!(scene.end(), Some(AttemptEnd::Done));
    assert!(!scene.attempt.was_ready);
}

#[test]
fn a_killed_worker_ends_the_job_within_seconds_and_is_named() {
    let mut scene = Scene::new();
    scene.heartbeat(1, Phase::Backward, 7);
    assert_eq!(scene.ended(1, ProcessExit::Signal(9)), [Action::Send(0, ToWorker::PeerLost { rank: 1 })]);
    assert_eq!(scene.wait(1.5), []);
    assert_eq!(scene.wait(1.0), [Action::Kill(0)]);
    scene.ended(0, ProcessExit::Signal(9));
    let cause = scene.cause();
    assert_eq!((cause.rank, cause.exit_code, cause.others.len()), (1, exit::WORKER_LOST, 0));
    assert_eq!(cause.stderr, ["last words"]);
    assert!(scene.attempt.was_ready);
}

#[test]
fn a_worker_that_reports_a_failure_and_does_not_exit_is_killed() {
    let mut scene = Scene::new();
    assert_eq!(scene.failed(0, FailureKind::Usage, "no field lr"), [Action::Send(1, ToWorker::PeerLost { rank: 0 })]);
    assert_eq!(scene.wait(3.0), [Action::Kill(0), Action::Kill(1)]);
    let cause = scene.killed();
    assert_eq!((cause.rank, cause.exit_code, cause.reason.as_str()), (0, exit::USAGE, "no field lr"));
}

#[test]
fn ctrl_c_saves_and_stops() {
    let mut scene = Scene::new();
    let actions = scene.attempt.on_stop(StopReason::Interrupted, false, scene.now);
    let stop = ToWorker::Stop { reason: StopReason::Interrupted };
    assert_eq!(
        actions[1..],
        [Action::Send(0, stop.clone()), Action::Terminate(0), Action::Send(1, stop), Action::Terminate(1)]
    );
    scene.ended(0, ProcessExit::Code(130));
    scene.ended(1, ProcessExit::Code(75));
    let stopped = AttemptEnd::Stopped { reason: StopReason::Interrupted, saved: true };
    assert_eq!(scene.end(), Some(stopped));
}

#[test]
fn ctrl_c_twice_stops_now() {
    let mut scene = Scene::new();
    scene.attempt.on_stop(StopReason::Terminated, false, scene.now);
    assert_eq!(
        scene.attempt.on_stop(StopReason::Terminated, false, scene.now),
        [],
        "batch systems repeat their signals"
    );
    let first = scene.attempt.on_stop(StopReason::Interrupted, false, scene.now);
    assert!(matches!(first[..], [Action::Say(_)]), "it may have come together with the first signal: {first:?}");
    let actions = scene.attempt.on_stop(StopReason::Interrupted, true, scene.now);
    assert_eq!(actions[1..], [Action::Kill(0), Action::Kill(1)]);
    scene.ended(0, ProcessExit::Signal(9));
    scene.wait(59.0);
    assert_eq!(scene.attempt.unkillable_rank(scene.now), None);
    scene.wait(2.0);
    assert_eq!(scene.attempt.unkillable_rank(scene.now), Some(1), "its disk does not answer");
    scene.ended(1, ProcessExit::Signal(9));
    assert_eq!(scene.attempt.unkillable_rank(scene.now), None);
    assert_eq!(scene.end(), Some(AttemptEnd::Stopped { reason: StopReason::Terminated, saved: false }));
}

#[test]
fn after_the_grace_period_workers_are_killed_but_not_while_they_save() {
    let mut scene = Scene::new();
    scene.attempt.on_stop(StopReason::Terminated, false, scene.now);
    scene.wait(29.0);
    scene.heartbeat(0, Phase::Checkpoint, 7);
    assert!(matches!(scene.wait(2.0)[..], [Action::Say(_)]), "a checkpoint is being written");
    scene.heartbeat(0, Phase::Data, 7);
    let actions = scene.wait(31.0);
    assert_eq!(actions[1..], [Action::Kill(0), Action::Kill(1)]);
}

#[test]
fn a_launcher_that_was_stopped_itself_gives_workers_the_rest_of_the_grace_period() {
    let mut scene = Scene::new();
    scene.attempt.on_stop(StopReason::Terminated, false, scene.now);
    scene.now += Duration::from_secs(500);
    assert_eq!(scene.attempt.on_tick(scene.now), []);
    assert_eq!(scene.wait(29.0), []);
    assert_eq!(scene.wait(2.0)[1..], [Action::Kill(0), Action::Kill(1)]);
}

#[test]
fn a_worker_without_signal_handlers_is_stopped_by_the_signal() {
    let mut scene = Scene::new();
    scene.attempt.on_stop(StopReason::Interrupted, false, scene.now);
    scene.ended(0, ProcessExit::Signal(15));
    scene.failed(1, FailureKind::PeerLost, "rank 0 is gone");
    scene.ended(1, ProcessExit::Code(4));
    let stopped = AttemptEnd::Stopped { reason: StopReason::Interrupted, saved: false };
    assert_eq!(scene.end(), Some(stopped));
}

#[test]
fn an_error_while_saving_is_an_error() {
    let mut scene = Scene::new();
    scene.attempt.on_stop(StopReason::Interrupted, false, scene.now);
    scene.failed(0, FailureKind::Environment, "no space left on the disk");
    scene.ended(0, ProcessExit::Code(6));
    scene.ended(1, ProcessExit::Code(130));
    assert_eq!(scene.cause().exit_code, exit::ENVIRONMENT);
}

#[test]
fn workers_that_stop_by_themselves_stop_the_job() {
    let mut scene = Scene::new();
    let actions = scene.ended(1, ProcessExit::Code(75));
    assert!(actions.contains(&Action::Terminate(0)), "{actions:?}");
    scene.ended(0, ProcessExit::Code(75));
    assert_eq!(scene.end(), Some(AttemptEnd::Stopped { reason: StopReason::Terminated, saved: true }));
}

#[test]
fn a_hanging_worker_is_named_and_the_attempt_ends() {
    let mut scene = Scene::new();
    for second in 0..150 {
        let idle_seconds = f64::from(second);
        for (index, phase) in [(0, Phase::AllReduce), (1, Phase::Data)] {
            let operation = if index == 0 { Operation::GradientAllReduce } else { Operation::None };
            let status = WorkerStatus { phase, epoch: 1, step: 3, idle_seconds, operation, ..WorkerStatus::default() };
            scene.attempt.on_event(index, Event::Message(FromWorker::Heartbeat(status)), scene.now);
        }
        scene.wait(1.0);
    }
    let cause = scene.killed();
    assert_eq!((cause.rank, cause.exit_code), (1, exit::HANG));
    assert!(cause.reason.contains("waiting for data"), "{}", cause.reason);
    assert!(cause.reason.contains("rank 0 waits in all-reduce"), "{}", cause.reason);
}

#[test]
fn a_launcher_that_was_stopped_does_not_blame_the_workers() {
    let mut scene = Scene::new();
    scene.heartbeat(0, Phase::Forward, 1);
    scene.heartbeat(1, Phase::Forward, 1);
    scene.now += Duration::from_secs(3600);
    assert_eq!(scene.attempt.on_tick(scene.now), []);
    scene.heartbeat(0, Phase::Forward, 1);
    scene.heartbeat(1, Phase::Forward, 1);
    assert_eq!(scene.wait(50.0), []);
}

#[test]
fn only_the_first_workers_progress_is_shown() {
    let mut scene = Scene::new();
    let message = || Event::Message(FromWorker::Progress(Progress::default()));
    assert_eq!(scene.attempt.on_event(0, message(), scene.now), [Action::Progress(Box::default(), None)]);
    assert_eq!(scene.attempt.on_event(1, message(), scene.now), []);
}

#[test]
fn the_rank_that_waits_least_is_the_slowest() {
    let mut scene = Scene::new();
    let waited = |seconds| Progress { waited_seconds: Some(seconds), ..Progress::default() };
    scene.attempt.on_event(1, Event::Message(FromWorker::Progress(waited(0.5))), scene.now);
    let actions = scene.attempt.on_event(0, Event::Message(FromWorker::Progress(waited(0.125))), scene.now);
    assert_eq!(actions, [Action::Progress(Box::new(waited(0.125)), Some((0, 0.375)))]);
    // One of another node waits even less.
    let usage = Usage { wait_seconds: Some(0.0), ..Usage::default() };
    scene.attempt.on_remote_statuses(vec![RankStatus { rank: 7, usage, ..RankStatus::default() }], scene.now);
    let actions = scene.attempt.on_event(0, Event::Message(FromWorker::Progress(waited(0.125))), scene.now);
    assert_eq!(actions, [Action::Progress(Box::new(waited(0.125)), Some((7, 0.5)))]);
}

#[test]
fn a_hang_is_reported_with_what_the_kernel_and_the_worker_itself_know() {
    let mut scene = Scene::new();
    let mut actions = Vec::new();
    for second in 0..150 {
        for index in 0..2 {
            let idle_seconds = if index == 0 { 0.0 } else { f64::from(second) };
            let status =
                WorkerStatus { phase: Phase::Data, epoch: 1, step: 3, idle_seconds, ..WorkerStatus::default() };
            scene.attempt.on_event(index, Event::Message(FromWorker::Heartbeat(status)), scene.now);
        }
        actions.extend(scene.wait(1.0));
    }
    assert_eq!(actions[..2], [Action::Inspect(1), Action::Send(1, ToWorker::Stack)]);
    scene.attempt.on_event(1, Event::Inspected("its thread loader-0 is in a read of a.jpg".into()), scene.now);
    let stack = FromWorker::Stack { text: "0: wait\n".into() };
    scene.attempt.on_event(1, Event::Message(stack), scene.now);
    let cause = scene.killed();
    assert!(cause.reason.ends_with("; its thread loader-0 is in a read of a.jpg"), "{}", cause.reason);
    assert_eq!(cause.backtrace.as_deref(), Some("0: wait\n"));
}

#[test]
fn an_out_of_memory_kill_is_the_cause_unless_the_launcher_killed() {
    let mut scene = Scene::new();
    let exited = WorkerExit {
        exit: ProcessExit::Signal(9),
        tail: Vec::new(),
        out_of_memory: Some("out of memory".into()),
        status: None,
    };
    scene.attempt.on_event(1, Event::Exited(exited.clone()), scene.now);
    scene.wait(3.0);
    scene.attempt.on_event(0, Event::Exited(exited), scene.now);
    let cause = scene.cause();
    assert_eq!((cause.rank, cause.others.len()), (1, 0));
    assert!(cause.reason.ends_with("out of memory"), "{}", cause.reason);
}

#[test]
fn a_batch_system_that_signals_every_process_stops_the_job() {
    let mut scene = Scene::new();
    scene.ended(1, ProcessExit::Signal(15));
    scene.attempt.on_stop(StopReason::Terminated, false, scene.now);
    scene.ended(0, ProcessExit::Code(75));
    let stopped = AttemptEnd::Stopped { reason: StopReason::Terminated, saved: false };
    assert_eq!(scene.end(), Some(stopped));
    let mut scene = Scene::new();
    scene.ended(1, ProcessExit::Signal(9));
    scene.attempt.on_stop(StopReason::Terminated, false, scene.now);
    scene.ended(0, ProcessExit::Code(75));
    assert_eq!(scene.cause().rank, 1, "SIGKILL is not a request to stop");
}

// A launcher that had no CPU time for some seconds blamed workers whose messages it had not read.
#[test]
fn a_launcher_without_cpu_time_does_not_blame_workers_whose_messages_it_has_not_read() {
    let mut scene = Scene::new();
    scene.now += Duration::from_secs(899);
    assert_eq!(scene.attempt.on_tick(scene.now), []);
    scene.now += Duration::from_secs(10);
    assert_eq!(scene.attempt.on_tick(scene.now), [], "the time without CPU does not count");
    assert_eq!(scene.wait(60.0), []);
}

// The launcher reported a healthy rank as silent: it had had no CPU time to read its messages.
#[test]
fn a_worker_whose_shared_status_shows_progress_is_alive_without_messages() {
    let mut scene = Scene::new();
    for _ in 0..1000 {
        for index in 0..2 {
            let status = WorkerStatus { phase: Phase::Forward, epoch: 1, step: 3, ..WorkerStatus::default() };
            scene.attempt.on_event(index, Event::Status(status), scene.now);
        }
        assert_eq!(scene.wait(1.0), []);
    }
    for second in 0..120 {
        let status = WorkerStatus { phase: Phase::Forward, idle_seconds: f64::from(second), ..WorkerStatus::default() };
        scene.heartbeat(0, Phase::Forward, 3);
        scene.attempt.on_event(1, Event::Status(status), scene.now);
        scene.wait(1.0);
    }
    let cause = scene.killed();
    assert_eq!((cause.rank, cause.exit_code), (1, exit::HANG));
    assert!(cause.reason.contains("sent no heartbeat for 61 s"), "{}", cause.reason);
}

/// A worker of another node that has been idle for some seconds.
fn remote(phase: Phase, idle: u32) -> Vec<RankStatus> {
    let status = WorkerStatus { phase, epoch: 1, step: 5, idle_seconds: f64::from(idle), ..WorkerStatus::default() };
    let (age, silent) = (Duration::from_secs(idle.into()), Some(Duration::from_millis(10)));
    vec![RankStatus { rank: 2, age, silent, status: Some(status), ..RankStatus::default() }]
}

// https://github.com/open-mmlab/mmdetection/issues/11096: one rank evaluates, the others' time runs out.
#[test]
fn workers_may_wait_for_one_that_evaluates_on_another_node() {
    let mut scene = Scene::new();
    for second in 0..250 {
        for index in 0..2 {
            let status = WorkerStatus { phase: Phase::AllReduce, epoch: 1, step: 5, ..WorkerStatus::default() };
            let status = WorkerStatus { idle_seconds: f64::from(second), ..status };
            scene.attempt.on_event(index, Event::Message(FromWorker::Heartbeat(status)), scene.now);
        }
        scene.attempt.on_remote_statuses(remote(Phase::Evaluation, 1), scene.now);
        assert_eq!(scene.wait(1.0), [], "after {second} s");
    }
}

#[test]
fn a_hang_on_another_node_is_left_to_that_node_and_its_failure_ends_the_attempt_here() {
    let mut scene = Scene::new();
    scene.heartbeat(0, Phase::AllReduce, 5);
    scene.heartbeat(1, Phase::AllReduce, 5);
    scene.attempt.on_remote_statuses(remote(Phase::Data, 101), scene.now);
    assert_eq!(scene.wait(2.0), []);
    assert_eq!(scene.attempt.failed_rank(), None);
    let sent = scene.attempt.on_peer_failed(2, scene.now);
    assert_eq!(sent, [0, 1].map(|index| Action::Send(index, ToWorker::PeerLost { rank: 2 })));
    assert!(scene.attempt.on_peer_failed(2, scene.now).is_empty(), "it is passed on once");
    scene.failed(0, FailureKind::PeerLost, "rank 2 is gone");
    assert_eq!(scene.wait(2.5), [Action::Kill(0), Action::Kill(1)]);
    scene.ended(0, ProcessExit::Signal(9));
    scene.ended(1, ProcessExit::Signal(9));
    assert!(
        matches!(scene.end(), Some(AttemptEnd::Failed { is_echo: true, .. })) && scene.attempt.failed_rank() == Some(0)
    );
}

#[test]
fn a_failure_always_has_a_reason() {
    for kind in
        [FailureKind::Bug, FailureKind::Usage, FailureKind::Data, FailureKind::PeerLost, FailureKind::OutOfMemory]
    {
        for ending in [ProcessExit::Code(kind.exit_code()), ProcessExit::Signal(9), ProcessExit::Signal(0)] {
            let mut scene = Scene::new();
            scene.failed(0, kind, " \n");
            scene.ended(0, ending);
            scene.ended(1, ProcessExit::Signal(9));
            assert!(!scene.cause().reason.trim().is_empty(), "{kind:?} {ending:?}");
        }
    }
}

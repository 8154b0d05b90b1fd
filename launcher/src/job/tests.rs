use fnet_protocol::message::{Operation, Phase};

use super::*;
use crate::hang::tests::LIMITS;

/// A job of two with a clock that the test moves.
struct Scene {
    job: Job,
    now: Instant,
}

/// Lets so much time pass, with a tick whenever one is due.
pub(super) fn tick_for(job: &mut Job, now: &mut Instant, seconds: f64) -> Vec<Action> {
    let end = *now + Duration::from_secs_f64(seconds);
    let mut actions = Vec::new();
    while job.next_tick() <= end {
        *now = job.next_tick();
        actions.extend(job.tick(*now));
    }
    *now = end;
    actions
}

impl Scene {
    fn new() -> Self {
        let now = Instant::now();
        Self { job: Job::new(&[0, 1], false, Duration::from_secs(30), LIMITS, now), now }
    }

    fn wait(&mut self, seconds: f64) -> Vec<Action> {
        tick_for(&mut self.job, &mut self.now, seconds)
    }

    fn beat(&mut self, index: usize, phase: Phase, step: u64) {
        let beat = Heartbeat { phase, epoch: 1, step, ..Heartbeat::default() };
        self.job.on(index, Event::Message(FromWorker::Heartbeat(beat)), self.now);
    }

    fn ended(&mut self, index: usize, ending: Ending) -> Vec<Action> {
        let death = Death { ending, tail: vec!["last words".into()], memory: None };
        self.job.on(index, Event::Ended(death), self.now)
    }

    fn failed(&mut self, index: usize, kind: FailureKind, message: &str) -> Vec<Action> {
        let failure = Failure { kind, message: message.into(), backtrace: None, at: None };
        self.job.on(index, Event::Message(FromWorker::Failed(failure)), self.now)
    }

    /// The cause once the launcher has killed both.
    fn killed(&mut self) -> Cause {
        self.ended(0, Ending::Signal(9));
        self.ended(1, Ending::Signal(9));
        self.cause()
    }

    fn cause(&self) -> Cause {
        match self.job.outcome() {
            Some(Outcome::Failed(cause)) => *cause,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_job_is_done_when_every_worker_is() {
    let mut scene = Scene::new();
    scene.beat(0, Phase::Start, 0);
    scene.beat(1, Phase::Start, 0);
    assert_eq!(scene.ended(0, Ending::Code(0)), []);
    assert_eq!(scene.job.outcome(), None);
    scene.ended(1, Ending::Code(0));
    assert_eq!(scene.job.outcome(), Some(Outcome::Done));
    assert!(!scene.job.was_ready());
}

#[test]
fn a_killed_worker_ends_the_job_within_seconds_and_is_named() {
    let mut scene = Scene::new();
    scene.beat(1, Phase::Backward, 7);
    assert_eq!(scene.ended(1, Ending::Signal(9)), [Action::Tell(0, ToWorker::PeerLost { rank: 1 })]);
    assert_eq!(scene.wait(1.5), []);
    assert_eq!(scene.wait(1.0), [Action::Kill(0)]);
    scene.ended(0, Ending::Signal(9));
    let cause = scene.cause();
    assert_eq!((cause.rank, cause.exit_code, cause.others.len()), (1, exit::WORKER_LOST, 0));
    assert_eq!(cause.stderr, ["last words"]);
    assert!(scene.job.was_ready());
}

#[test]
fn a_worker_that_reports_and_does_not_end_is_ended() {
    let mut scene = Scene::new();
    assert_eq!(scene.failed(0, FailureKind::Usage, "no field lr"), [Action::Tell(1, ToWorker::PeerLost { rank: 0 })]);
    assert_eq!(scene.wait(3.0), [Action::Kill(0), Action::Kill(1)]);
    let cause = scene.killed();
    assert_eq!((cause.rank, cause.exit_code, cause.reason.as_str()), (0, exit::USAGE, "no field lr"));
}

#[test]
fn ctrl_c_saves_and_stops() {
    let mut scene = Scene::new();
    let actions = scene.job.stop(StopReason::Interrupted, scene.now);
    let stop = ToWorker::Stop { reason: StopReason::Interrupted };
    assert_eq!(
        actions[1..],
        [Action::Tell(0, stop.clone()), Action::Terminate(0), Action::Tell(1, stop), Action::Terminate(1)]
    );
    scene.ended(0, Ending::Code(130));
    scene.ended(1, Ending::Code(75));
    let stopped = Outcome::Stopped { reason: StopReason::Interrupted, saved: true };
    assert_eq!(scene.job.outcome(), Some(stopped));
}

#[test]
fn ctrl_c_twice_stops_now() {
    let mut scene = Scene::new();
    scene.job.stop(StopReason::Terminated, scene.now);
    assert_eq!(scene.job.stop(StopReason::Terminated, scene.now), [], "batch systems repeat themselves");
    let actions = scene.job.stop(StopReason::Interrupted, scene.now);
    assert_eq!(actions[1..], [Action::Kill(0), Action::Kill(1)]);
    scene.ended(0, Ending::Signal(9));
    scene.ended(1, Ending::Signal(9));
    assert_eq!(scene.job.outcome(), Some(Outcome::Stopped { reason: StopReason::Terminated, saved: false }));
}

#[test]
fn after_the_grace_period_workers_are_ended_but_not_while_they_save() {
    let mut scene = Scene::new();
    scene.job.stop(StopReason::Terminated, scene.now);
    scene.wait(29.0);
    scene.beat(0, Phase::Checkpoint, 7);
    assert!(matches!(scene.wait(2.0)[..], [Action::Say(_)]), "a checkpoint is being written");
    scene.beat(0, Phase::Data, 7);
    let actions = scene.wait(31.0);
    assert_eq!(actions[1..], [Action::Kill(0), Action::Kill(1)]);
}

#[test]
fn a_worker_that_was_not_listening_yet_is_stopped_by_the_signal() {
    let mut scene = Scene::new();
    scene.job.stop(StopReason::Interrupted, scene.now);
    scene.ended(0, Ending::Signal(15));
    scene.failed(1, FailureKind::PeerLost, "rank 0 is gone");
    scene.ended(1, Ending::Code(4));
    let stopped = Outcome::Stopped { reason: StopReason::Interrupted, saved: false };
    assert_eq!(scene.job.outcome(), Some(stopped));
}

#[test]
fn an_error_while_saving_is_an_error() {
    let mut scene = Scene::new();
    scene.job.stop(StopReason::Interrupted, scene.now);
    scene.failed(0, FailureKind::Environment, "no space left on the disk");
    scene.ended(0, Ending::Code(6));
    scene.ended(1, Ending::Code(130));
    assert_eq!(scene.cause().exit_code, exit::ENVIRONMENT);
}

#[test]
fn workers_that_stop_by_themselves_stop_the_job() {
    let mut scene = Scene::new();
    let actions = scene.ended(1, Ending::Code(75));
    assert!(actions.contains(&Action::Terminate(0)), "{actions:?}");
    scene.ended(0, Ending::Code(75));
    assert_eq!(scene.job.outcome(), Some(Outcome::Stopped { reason: StopReason::Terminated, saved: true }));
}

#[test]
fn a_hanging_worker_is_named_and_the_job_ended() {
    let mut scene = Scene::new();
    for second in 0..150 {
        let idle_seconds = f64::from(second);
        for (index, phase) in [(0, Phase::AllReduce), (1, Phase::Data)] {
            let operation = if index == 0 { Operation::Gradients } else { Operation::None };
            let beat = Heartbeat { phase, epoch: 1, step: 3, idle_seconds, operation, ..Heartbeat::default() };
            scene.job.on(index, Event::Message(FromWorker::Heartbeat(beat)), scene.now);
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
    scene.beat(0, Phase::Forward, 1);
    scene.beat(1, Phase::Forward, 1);
    scene.now += Duration::from_secs(3600);
    assert_eq!(scene.job.tick(scene.now), []);
    scene.beat(0, Phase::Forward, 1);
    scene.beat(1, Phase::Forward, 1);
    assert_eq!(scene.wait(50.0), []);
}

#[test]
fn only_the_first_workers_progress_is_shown() {
    let mut scene = Scene::new();
    let message = || Event::Message(FromWorker::Progress(Progress::default()));
    assert_eq!(scene.job.on(0, message(), scene.now), [Action::Progress(Progress::default(), None)]);
    assert_eq!(scene.job.on(1, message(), scene.now), []);
}

#[test]
fn the_rank_that_waits_least_is_the_slowest() {
    let mut scene = Scene::new();
    let waited = |seconds| Progress { waited_seconds: Some(seconds), ..Progress::default() };
    scene.job.on(1, Event::Message(FromWorker::Progress(waited(0.5))), scene.now);
    let actions = scene.job.on(0, Event::Message(FromWorker::Progress(waited(0.125))), scene.now);
    assert_eq!(actions, [Action::Progress(waited(0.125), Some((0, 0.375)))]);
}

#[test]
fn a_hang_is_reported_with_what_the_system_and_the_worker_itself_know() {
    let mut scene = Scene::new();
    let mut actions = Vec::new();
    for second in 0..150 {
        for index in 0..2 {
            let idle_seconds = if index == 0 { 0.0 } else { f64::from(second) };
            let beat = Heartbeat { phase: Phase::Data, epoch: 1, step: 3, idle_seconds, ..Heartbeat::default() };
            scene.job.on(index, Event::Message(FromWorker::Heartbeat(beat)), scene.now);
        }
        actions.extend(scene.wait(1.0));
    }
    assert_eq!(actions[..2], [Action::Inspect(1), Action::Tell(1, ToWorker::Stack)]);
    scene.job.on(1, Event::Inspected("its thread loader-0 is in a read of a.jpg".into()), scene.now);
    let stack = FromWorker::Stack { text: "0: wait\n".into() };
    scene.job.on(1, Event::Message(stack), scene.now);
    let cause = scene.killed();
    assert!(cause.reason.ends_with("; its thread loader-0 is in a read of a.jpg"), "{}", cause.reason);
    assert_eq!(cause.backtrace.as_deref(), Some("0: wait\n"));
}

#[test]
fn the_kernels_memory_killer_is_believed_unless_the_launcher_killed() {
    let mut scene = Scene::new();
    let death = Death { ending: Ending::Signal(9), tail: Vec::new(), memory: Some("out of memory".into()) };
    scene.job.on(1, Event::Ended(death.clone()), scene.now);
    scene.wait(3.0);
    scene.job.on(0, Event::Ended(death), scene.now);
    let cause = scene.cause();
    assert_eq!((cause.rank, cause.others.len()), (1, 0));
    assert!(cause.reason.ends_with("out of memory"), "{}", cause.reason);
}

#[test]
fn a_batch_system_that_signals_every_process_stops_the_job() {
    let mut scene = Scene::new();
    scene.ended(1, Ending::Signal(15));
    scene.job.stop(StopReason::Terminated, scene.now);
    scene.ended(0, Ending::Code(75));
    let stopped = Outcome::Stopped { reason: StopReason::Terminated, saved: false };
    assert_eq!(scene.job.outcome(), Some(stopped));
    let mut scene = Scene::new();
    scene.ended(1, Ending::Signal(9));
    scene.job.stop(StopReason::Terminated, scene.now);
    scene.ended(0, Ending::Code(75));
    assert_eq!(scene.cause().rank, 1, "SIGKILL is no request to stop");
}

// A launcher without a processor for some seconds judged workers whose messages were waiting to be read.
#[test]
fn a_launcher_that_had_no_processor_does_not_miss_workers_that_it_did_not_hear() {
    let mut scene = Scene::new();
    scene.now += Duration::from_secs(899);
    assert_eq!(scene.job.tick(scene.now), []);
    scene.now += Duration::from_secs(10);
    assert_eq!(scene.job.tick(scene.now), [], "they have not been started so long ago in its own time");
    assert_eq!(scene.wait(60.0), []);
}

// A rank that trained was said never to have answered: the launcher had had no time to read what it had written.
#[test]
fn a_worker_whose_page_shows_headway_lives_even_if_nothing_was_heard() {
    let mut scene = Scene::new();
    for _ in 0..1000 {
        for index in 0..2 {
            let state = Heartbeat { phase: Phase::Forward, epoch: 1, step: 3, ..Heartbeat::default() };
            scene.job.on(index, Event::State(state), scene.now);
        }
        assert_eq!(scene.wait(1.0), []);
    }
    for second in 0..120 {
        let state = Heartbeat { phase: Phase::Forward, idle_seconds: f64::from(second), ..Heartbeat::default() };
        scene.beat(0, Phase::Forward, 3);
        scene.job.on(1, Event::State(state), scene.now);
        scene.wait(1.0);
    }
    let cause = scene.killed();
    assert_eq!((cause.rank, cause.exit_code), (1, exit::HANG));
    assert!(cause.reason.contains("gave no sign of life for 61 s"), "{}", cause.reason);
}

/// A worker of another node, idle for so long.
fn elsewhere(phase: Phase, idle: u64) -> Vec<Seen> {
    let beat = Heartbeat { phase, epoch: 1, step: 5, ..Heartbeat::default() };
    let (moment, idle) = (Duration::from_millis(10), Duration::from_secs(idle));
    let beat = Heartbeat { idle_seconds: idle.as_secs_f64(), ..beat };
    vec![Seen { rank: 2, age: idle, silent: Some(moment), beat: Some((beat, moment)) }]
}

// https://github.com/open-mmlab/mmdetection/issues/11096: one rank evaluates, the others' time runs out.
#[test]
fn workers_may_wait_for_one_that_evaluates_on_another_node() {
    let mut scene = Scene::new();
    for second in 0..250 {
        for index in 0..2 {
            let beat = Heartbeat { phase: Phase::AllReduce, epoch: 1, step: 5, ..Heartbeat::default() };
            let beat = Heartbeat { idle_seconds: f64::from(second), ..beat };
            scene.job.on(index, Event::Message(FromWorker::Heartbeat(beat)), scene.now);
        }
        scene.job.hear_of_others(elsewhere(Phase::Evaluation, 1), scene.now);
        assert_eq!(scene.wait(1.0), [], "after {second} s");
    }
}

#[test]
fn a_hang_on_another_node_is_left_to_that_node_and_its_failure_ends_the_attempt_here() {
    let mut scene = Scene::new();
    scene.beat(0, Phase::AllReduce, 5);
    scene.beat(1, Phase::AllReduce, 5);
    scene.job.hear_of_others(elsewhere(Phase::Data, 101), scene.now);
    assert_eq!(scene.wait(2.0), []);
    assert_eq!(scene.job.failed_rank(), None);
    let told = scene.job.peer_failed(2, scene.now);
    assert_eq!(told, [0, 1].map(|index| Action::Tell(index, ToWorker::PeerLost { rank: 2 })));
    assert!(scene.job.peer_failed(2, scene.now).is_empty(), "it is told once");
    scene.failed(0, FailureKind::PeerLost, "rank 2 is gone");
    assert_eq!(scene.wait(2.5), [Action::Kill(0), Action::Kill(1)]);
    assert!(scene.job.only_echoes() && scene.job.failed_rank() == Some(0));
}

#[test]
fn a_worker_that_ends_well_without_a_word_has_done_nothing() {
    let mut scene = Scene::new();
    scene.ended(0, Ending::Code(0));
    scene.ended(1, Ending::Code(0));
    let cause = scene.cause();
    assert_eq!((cause.rank, cause.exit_code), (0, exit::ENVIRONMENT));
    assert!(cause.reason.contains("before it had begun"), "{}", cause.reason);
}

#[test]
fn a_failure_always_has_a_reason() {
    for kind in
        [FailureKind::Bug, FailureKind::Usage, FailureKind::Data, FailureKind::PeerLost, FailureKind::OutOfMemory]
    {
        for ending in [Ending::Code(kind.exit_code()), Ending::Signal(9), Ending::Signal(0)] {
            let mut scene = Scene::new();
            scene.failed(0, kind, " \n");
            scene.ended(0, ending);
            scene.ended(1, Ending::Signal(9));
            assert!(!scene.cause().reason.trim().is_empty(), "{kind:?} {ending:?}");
        }
    }
}

use fnet_protocol::message::Phase;

use super::hang::tests::LIMITS;
use super::*;

const GRACE: f64 = 30.0;

/// A training of three ranks in step 7, with a clock that the test advances.
struct Scene {
    attempt: Attempt,
    now: Instant,
    said: Vec<Action>,
}

impl Scene {
    fn new() -> Self {
        let now = Instant::now();
        let attempt = Attempt::new(&[0, 1, 2], true, Duration::from_secs_f64(GRACE), LIMITS, now);
        let mut scene = Self { attempt, now, said: Vec::new() };
        (0..3).for_each(|index| scene.heartbeat(index, Phase::Backward, 0.0));
        scene
    }

    fn heartbeat(&mut self, index: usize, phase: Phase, idle_seconds: f64) {
        let status = WorkerStatus { phase, epoch: 1, step: 7, idle_seconds, ..WorkerStatus::default() };
        self.attempt.on_event(index, Event::Message(FromWorker::Heartbeat(status)), self.now);
    }

    fn says(&mut self, index: usize, message: FromWorker) -> Vec<Action> {
        self.attempt.on_event(index, Event::Message(message), self.now)
    }

    fn lost_a_peer(&mut self, index: usize) {
        let failure = Failure { kind: FailureKind::PeerLost, message: "gone".into(), backtrace: None, at: None };
        self.says(index, FromWorker::Failed(failure));
    }

    fn ended(&mut self, index: usize, exit: ProcessExit) -> Vec<Action> {
        let exited = WorkerExit { exit, tail: Vec::new(), out_of_memory: None, status: None };
        self.attempt.on_event(index, Event::Exited(exited), self.now)
    }

    fn end(&self) -> Option<AttemptEnd> {
        self.attempt.result(self.now).map(|result| result.end)
    }

    fn tick_for(&mut self, seconds: f64) -> Vec<Action> {
        let actions = tests::tick_for(&mut self.attempt, &mut self.now, seconds);
        let (said, others): (Vec<Action>, _) = actions.into_iter().partition(|action| matches!(action, Action::Say(_)));
        self.said.extend(said);
        others
    }
}

#[test]
fn a_launcher_that_was_stopped_after_a_failure_still_waits_for_the_states_of_the_others() {
    let mut scene = Scene::new();
    scene.ended(2, ProcessExit::Signal(9));
    scene.now += Duration::from_secs(500);
    assert_eq!(scene.attempt.on_tick(scene.now), []);
    scene.lost_a_peer(0);
    scene.lost_a_peer(1);
    scene.says(0, FromWorker::StateReady { step: 7 });
    assert_eq!(scene.says(1, FromWorker::StateReady { step: 7 }), emergency(0));
}

fn saved(step: u64) -> FromWorker {
    FromWorker::Saved { path: format!("iter_{step}.ckpt").into(), step }
}

fn emergency(index: usize) -> Vec<Action> {
    vec![Action::Send(index, ToWorker::EmergencyCheckpoint)]
}

#[test]
fn the_survivor_with_the_most_steps_writes_then_the_others_are_killed() {
    let mut scene = Scene::new();
    scene.ended(0, ProcessExit::Signal(9));
    scene.lost_a_peer(1);
    scene.lost_a_peer(2);
    assert_eq!(scene.says(1, FromWorker::StateReady { step: 6 }), [], "rank 2 may have more");
    assert_eq!(scene.says(2, FromWorker::StateReady { step: 7 }), emergency(2));
    for _ in 0..20 {
        scene.heartbeat(2, Phase::Checkpoint, 0.5);
        assert_eq!(scene.tick_for(1.0), [], "writing may take long");
    }
    assert_eq!(scene.says(2, saved(7)), [Action::Kill(1)]);
    assert_eq!(scene.attempt.saved_step, Some(7));
    scene.ended(1, ProcessExit::Signal(9));
    scene.ended(2, ProcessExit::Code(4));
    let Some(AttemptEnd::Failed { cause, .. }) = scene.end() else { panic!("no failure") };
    assert_eq!(cause.rank, 0);
}

#[test]
fn an_older_checkpoint_that_was_still_being_written_is_not_the_emergency_checkpoint() {
    let mut scene = Scene::new();
    scene.ended(2, ProcessExit::Signal(9));
    scene.says(0, FromWorker::StateReady { step: 7 });
    assert_eq!(scene.says(1, FromWorker::StateReady { step: 6 }), emergency(0));
    assert_eq!(scene.says(0, saved(5)), []);
    assert_eq!(scene.says(0, saved(7)), [Action::Kill(1)]);
}

#[test]
fn of_equal_survivors_the_lowest_rank_writes() {
    let mut scene = Scene::new();
    scene.ended(2, ProcessExit::Signal(9));
    scene.says(1, FromWorker::StateReady { step: 7 });
    assert_eq!(scene.says(0, FromWorker::StateReady { step: 7 }), emergency(0));
}

#[test]
fn a_rank_that_fails_by_itself_may_write_its_state() {
    let mut scene = Scene::new();
    let failure = Failure { kind: FailureKind::Data, message: "damaged".into(), backtrace: None, at: None };
    scene.says(1, FromWorker::Failed(failure));
    scene.says(1, FromWorker::StateReady { step: 7 });
    scene.says(0, FromWorker::StateReady { step: 6 });
    assert_eq!(scene.says(2, FromWorker::StateReady { step: 6 }), emergency(1));
}

#[test]
fn if_the_writer_is_lost_the_next_rank_writes() {
    let mut scene = Scene::new();
    scene.ended(0, ProcessExit::Signal(9));
    scene.says(1, FromWorker::StateReady { step: 7 });
    assert_eq!(scene.says(2, FromWorker::StateReady { step: 7 }), emergency(1));
    assert_eq!(scene.ended(1, ProcessExit::Signal(9)), emergency(2));
    scene.says(2, saved(7));
    scene.ended(2, ProcessExit::Code(4));
    assert!(matches!(scene.end(), Some(AttemptEnd::Failed { .. })));
}

#[test]
fn a_rank_in_a_long_step_is_waited_for_as_long_as_the_grace_period() {
    let mut scene = Scene::new();
    scene.ended(0, ProcessExit::Signal(9));
    scene.says(1, FromWorker::StateReady { step: 7 });
    let mut actions = Vec::new();
    for _ in 0..40 {
        scene.heartbeat(1, Phase::Checkpoint, 1.0);
        scene.heartbeat(2, Phase::Forward, 1.0);
        actions.extend(scene.tick_for(1.0));
        if !actions.is_empty() {
            break;
        }
    }
    assert_eq!(actions, [Action::Send(1, ToWorker::EmergencyCheckpoint), Action::Kill(2)]);
    let [Action::Say(text)] = &scene.said[..] else { panic!("{:?}", scene.said) };
    assert!(text.starts_with("rank 0 failed: killed by SIGKILL"), "{text}");
    assert!(text.contains("which rank 1, 2 may still save (at most 30 s, --grace"), "{text}");
}

#[test]
fn a_rank_that_hangs_is_not_waited_for() {
    let mut scene = Scene::new();
    let mut actions = Vec::new();
    for second in 0..1000 {
        for index in [0, 1] {
            scene.heartbeat(index, Phase::AllReduce, f64::from(second));
        }
        actions.extend(scene.tick_for(1.0));
        if !actions.is_empty() {
            break;
        }
    }
    assert!(actions.contains(&Action::Inspect(2)), "{actions:?}");
    scene.says(0, FromWorker::StateReady { step: 6 });
    scene.heartbeat(1, Phase::AllReduce, 1.0);
    assert_eq!(scene.tick_for(2.5), [Action::Kill(2)]);
    assert_eq!(scene.says(1, FromWorker::StateReady { step: 6 }), emergency(0));
}

#[test]
fn a_blocked_disk_does_not_delay_the_end_forever() {
    let mut scene = Scene::new();
    scene.ended(0, ProcessExit::Signal(9));
    scene.ended(2, ProcessExit::Signal(9));
    assert_eq!(scene.says(1, FromWorker::StateReady { step: 7 }), emergency(1));
    let mut killed = false;
    for second in 0..2000 {
        scene.heartbeat(1, Phase::Checkpoint, f64::from(second));
        killed |= scene.tick_for(1.0).contains(&Action::Kill(1));
        if killed {
            break;
        }
    }
    assert!(killed);
}

#[test]
fn a_rank_lost_while_the_job_stops_does_not_keep_the_others_from_saving() {
    let mut scene = Scene::new();
    scene.attempt.on_stop(StopReason::Terminated, false, scene.now);
    let sent = [1, 2].map(|index| Action::Send(index, ToWorker::PeerLost { rank: 0 }));
    assert_eq!(scene.ended(0, ProcessExit::Signal(9)), sent);
    scene.says(1, FromWorker::StateReady { step: 7 });
    assert_eq!(scene.says(2, FromWorker::StateReady { step: 7 }), emergency(1));
    assert_eq!(scene.says(1, saved(7)), [Action::Kill(2)]);
}

#[test]
fn a_loss_on_another_node_while_the_job_stops_is_passed_on_once() {
    let mut scene = Scene::new();
    scene.attempt.on_stop(StopReason::Terminated, false, scene.now);
    let sent = [0, 1, 2].map(|index| Action::Send(index, ToWorker::PeerLost { rank: 9 }));
    assert_eq!(scene.attempt.on_peer_failed(9, scene.now), sent);
    assert_eq!(scene.attempt.on_peer_failed(8, scene.now), []);
}

#[test]
fn a_rank_that_writes_the_last_checkpoint_of_the_job_is_not_killed_while_it_makes_progress() {
    let mut scene = Scene::new();
    scene.ended(2, ProcessExit::Signal(9));
    for _ in 0..100 {
        scene.heartbeat(0, Phase::Checkpoint, 1.0);
        scene.heartbeat(1, Phase::Checkpoint, 1.0);
        assert_eq!(scene.tick_for(1.0), []);
    }
    scene.says(1, FromWorker::StateReady { step: 7 });
    assert_eq!(scene.says(0, FromWorker::StateReady { step: 7 }), emergency(0));
}

#[test]
fn a_checkpoint_before_the_failure_kills_nobody() {
    let mut scene = Scene::new();
    assert_eq!(scene.says(0, saved(5)), []);
    assert_eq!(scene.attempt.saved_step, Some(5));
    assert_eq!(scene.end(), None);
}

#[test]
fn a_step_longer_than_half_of_the_grace_period_is_given_up_and_the_last_completed_one_saved() {
    let mut scene = Scene::new();
    scene.attempt.on_stop(StopReason::Terminated, false, scene.now);
    let broken_off = [0, 1, 2].map(|index| Action::Send(index, ToWorker::BreakOff));
    assert_eq!(scene.tick_for(GRACE / 2.0), broken_off);
    assert!(scene.said.iter().any(|action| matches!(action, Action::Say(text) if text.contains("half of --grace"))));
    (0..2).for_each(|index| scene.lost_a_peer(index));
    (0..2).for_each(|index| assert_eq!(scene.says(index, FromWorker::StateReady { step: 6 }), []));
    // Rank 2 does not come back from its computation in time.
    scene.heartbeat(2, Phase::Forward, 20.0);
    assert_eq!(scene.tick_for(GRACE / 4.0 + 1.0), emergency(0));
    assert_eq!(scene.says(0, saved(6)), [Action::Kill(1)]);
    scene.ended(0, ProcessExit::Code(4));
    scene.ended(1, ProcessExit::Signal(9));
    assert_eq!(scene.tick_for(GRACE / 4.0), [Action::Kill(2)]);
    scene.ended(2, ProcessExit::Signal(9));
    assert_eq!(scene.end(), Some(AttemptEnd::Stopped { reason: StopReason::Terminated, saved: true }));
}

#[test]
fn workers_that_save_before_they_stop_are_not_broken_off() {
    let mut scene = Scene::new();
    scene.attempt.on_stop(StopReason::Terminated, false, scene.now);
    (0..3).for_each(|index| scene.heartbeat(index, Phase::Checkpoint, 1.0));
    assert_eq!(scene.tick_for(GRACE - 1.0), []);
    // Nor is anything but a training, or one that has not begun.
    for is_train in [false, true] {
        let now = Instant::now();
        let mut attempt = Attempt::new(&[0], is_train, Duration::from_secs(8), LIMITS, now);
        attempt.on_stop(StopReason::Terminated, false, now);
        assert!(matches!(attempt.on_tick(now + Duration::from_secs(5))[..], []));
    }
}

#[test]
fn a_state_that_another_node_has_saved_need_not_be_saved_again() {
    let mut scene = Scene::new();
    scene.ended(2, ProcessExit::Signal(9));
    scene.says(0, FromWorker::StateReady { step: 7 });
    assert_eq!(scene.attempt.on_peer_saved(6, scene.now), []);
    assert_eq!(scene.attempt.on_peer_saved(7, scene.now), [], "rank 1 may have more");
    assert_eq!(scene.says(1, FromWorker::StateReady { step: 6 }), [0, 1].map(Action::Kill));
    assert_eq!((scene.attempt.saved_step, scene.attempt.emergency_step()), (Some(7), None));
}

#[test]
fn a_writer_on_a_blocked_disk_is_released_by_the_file_of_another_node() {
    let mut scene = Scene::new();
    scene.ended(2, ProcessExit::Signal(9));
    scene.says(0, FromWorker::StateReady { step: 7 });
    assert_eq!(scene.says(1, FromWorker::StateReady { step: 7 }), emergency(0));
    scene.heartbeat(0, Phase::Checkpoint, 50.0);
    assert_eq!(scene.attempt.on_peer_saved(7, scene.now), [0, 1].map(Action::Kill));
    let mut scene = Scene::new();
    scene.ended(2, ProcessExit::Signal(9));
    scene.says(0, FromWorker::StateReady { step: 8 });
    assert_eq!(scene.says(1, FromWorker::StateReady { step: 7 }), emergency(0));
    assert_eq!(scene.attempt.on_peer_saved(7, scene.now), [], "step 8 is nowhere else");
    assert_eq!((scene.says(0, saved(8)), scene.attempt.saved_step), (vec![Action::Kill(1)], Some(8)));
}

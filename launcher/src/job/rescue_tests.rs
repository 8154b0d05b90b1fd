use fnet_protocol::message::Phase;

use super::*;
use crate::hang::tests::LIMITS;

const GRACE: f64 = 30.0;

/// A training of three ranks, in step 7, with a clock that the test moves.
struct Scene {
    job: Job,
    now: Instant,
    words: Vec<Action>,
}

impl Scene {
    fn new() -> Self {
        let now = Instant::now();
        let job = Job::new(&[0, 1, 2], true, Duration::from_secs_f64(GRACE), LIMITS, now);
        let mut scene = Self { job, now, words: Vec::new() };
        (0..3).for_each(|index| scene.beat(index, Phase::Backward, 0.0));
        scene
    }

    fn beat(&mut self, index: usize, phase: Phase, idle_seconds: f64) {
        let beat = Heartbeat { phase, epoch: 1, step: 7, idle_seconds, ..Heartbeat::default() };
        self.job.on(index, Event::Message(FromWorker::Heartbeat(beat)), self.now);
    }

    fn says(&mut self, index: usize, message: FromWorker) -> Vec<Action> {
        self.job.on(index, Event::Message(message), self.now)
    }

    fn lost_a_peer(&mut self, index: usize) {
        let failure = Failure { kind: FailureKind::PeerLost, message: "gone".into(), backtrace: None, at: None };
        self.says(index, FromWorker::Failed(failure));
    }

    fn ended(&mut self, index: usize, ending: Ending) -> Vec<Action> {
        let death = Death { ending, tail: Vec::new(), memory: None };
        self.job.on(index, Event::Ended(death), self.now)
    }

    fn tick_for(&mut self, seconds: f64) -> Vec<Action> {
        let actions = tests::tick_for(&mut self.job, &mut self.now, seconds);
        let (words, deeds): (Vec<Action>, _) = actions.into_iter().partition(|action| matches!(action, Action::Say(_)));
        self.words.extend(words);
        deeds
    }
}

fn saved(step: u64) -> FromWorker {
    FromWorker::Saved { path: format!("iter_{step}.ckpt").into(), step }
}

fn rescue(index: usize) -> Vec<Action> {
    vec![Action::Tell(index, ToWorker::Rescue)]
}

#[test]
fn the_survivor_with_most_steps_writes_and_the_others_end_then() {
    let mut scene = Scene::new();
    scene.ended(0, Ending::Signal(9));
    scene.lost_a_peer(1);
    scene.lost_a_peer(2);
    assert_eq!(scene.says(1, FromWorker::Holds { step: 6 }), [], "rank 2 may hold more");
    assert_eq!(scene.says(2, FromWorker::Holds { step: 7 }), rescue(2));
    for _ in 0..20 {
        scene.beat(2, Phase::Checkpoint, 0.5);
        assert_eq!(scene.tick_for(1.0), [], "it may take its time");
    }
    assert_eq!(scene.says(2, saved(7)), [Action::Kill(1)]);
    assert_eq!(scene.job.saved_step(), Some(7));
    scene.ended(1, Ending::Signal(9));
    scene.ended(2, Ending::Code(4));
    let Some(Outcome::Failed(cause)) = scene.job.outcome() else { panic!("no failure") };
    assert_eq!(cause.rank, 0);
}

#[test]
fn an_older_checkpoint_that_was_still_being_written_is_not_that_of_the_last_step() {
    let mut scene = Scene::new();
    scene.ended(2, Ending::Signal(9));
    scene.says(0, FromWorker::Holds { step: 7 });
    assert_eq!(scene.says(1, FromWorker::Holds { step: 6 }), rescue(0));
    assert_eq!(scene.says(0, saved(5)), []);
    assert_eq!(scene.says(0, saved(7)), [Action::Kill(1)]);
}

#[test]
fn of_equal_survivors_the_lowest_rank_writes() {
    let mut scene = Scene::new();
    scene.ended(2, Ending::Signal(9));
    scene.says(1, FromWorker::Holds { step: 7 });
    assert_eq!(scene.says(0, FromWorker::Holds { step: 7 }), rescue(0));
}

#[test]
fn a_rank_that_fails_by_itself_holds_its_state_too() {
    let mut scene = Scene::new();
    let failure = Failure { kind: FailureKind::Data, message: "damaged".into(), backtrace: None, at: None };
    scene.says(1, FromWorker::Failed(failure));
    scene.says(1, FromWorker::Holds { step: 7 });
    scene.says(0, FromWorker::Holds { step: 6 });
    assert_eq!(scene.says(2, FromWorker::Holds { step: 6 }), rescue(1));
}

#[test]
fn if_the_chosen_one_falls_too_the_next_one_writes() {
    let mut scene = Scene::new();
    scene.ended(0, Ending::Signal(9));
    scene.says(1, FromWorker::Holds { step: 7 });
    assert_eq!(scene.says(2, FromWorker::Holds { step: 7 }), rescue(1));
    assert_eq!(scene.ended(1, Ending::Signal(9)), rescue(2));
    scene.says(2, saved(7));
    scene.ended(2, Ending::Code(4));
    assert!(matches!(scene.job.outcome(), Some(Outcome::Failed(_))));
}

#[test]
fn a_rank_in_a_long_step_is_waited_for_as_long_as_the_grace_period() {
    let mut scene = Scene::new();
    scene.ended(0, Ending::Signal(9));
    scene.says(1, FromWorker::Holds { step: 7 });
    let mut actions = Vec::new();
    for _ in 0..40 {
        scene.beat(1, Phase::Checkpoint, 1.0);
        scene.beat(2, Phase::Forward, 1.0);
        actions.extend(scene.tick_for(1.0));
        if !actions.is_empty() {
            break;
        }
    }
    assert_eq!(actions, [Action::Tell(1, ToWorker::Rescue), Action::Kill(2)]);
    let [Action::Say(text)] = &scene.words[..] else { panic!("{:?}", scene.words) };
    assert!(text.starts_with("rank 0 failed: killed by SIGKILL"), "{text}");
    assert!(text.contains("which rank 1, 2 may still save (30 s, --grace"), "{text}");
}

#[test]
fn a_rank_that_hangs_is_not_waited_for() {
    let mut scene = Scene::new();
    let mut actions = Vec::new();
    for second in 0..1000 {
        for index in [0, 1] {
            scene.beat(index, Phase::AllReduce, f64::from(second));
        }
        actions.extend(scene.tick_for(1.0));
        if !actions.is_empty() {
            break;
        }
    }
    assert!(actions.contains(&Action::Inspect(2)), "{actions:?}");
    scene.says(0, FromWorker::Holds { step: 6 });
    scene.beat(1, Phase::AllReduce, 1.0);
    assert_eq!(scene.tick_for(2.5), [Action::Kill(2)]);
    assert_eq!(scene.says(1, FromWorker::Holds { step: 6 }), rescue(0));
}

#[test]
fn a_disk_that_takes_nothing_does_not_hold_the_end_up_for_ever() {
    let mut scene = Scene::new();
    scene.ended(0, Ending::Signal(9));
    scene.ended(2, Ending::Signal(9));
    assert_eq!(scene.says(1, FromWorker::Holds { step: 7 }), rescue(1));
    let mut killed = false;
    for second in 0..2000 {
        scene.beat(1, Phase::Checkpoint, f64::from(second));
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
    scene.job.stop(StopReason::Terminated, scene.now);
    let told = [1, 2].map(|index| Action::Tell(index, ToWorker::PeerLost { rank: 0 }));
    assert_eq!(scene.ended(0, Ending::Signal(9)), told);
    scene.says(1, FromWorker::Holds { step: 7 });
    assert_eq!(scene.says(2, FromWorker::Holds { step: 7 }), rescue(1));
    assert_eq!(scene.says(1, saved(7)), [Action::Kill(2)]);
}

#[test]
fn a_loss_on_another_node_while_the_job_stops_is_told_here_once() {
    let mut scene = Scene::new();
    scene.job.stop(StopReason::Terminated, scene.now);
    let told = [0, 1, 2].map(|index| Action::Tell(index, ToWorker::PeerLost { rank: 9 }));
    assert_eq!(scene.job.peer_failed(9, scene.now), told);
    assert_eq!(scene.job.peer_failed(8, scene.now), []);
}

#[test]
fn a_rank_that_writes_the_last_checkpoint_of_the_job_is_not_ended_while_it_gets_on() {
    let mut scene = Scene::new();
    scene.ended(2, Ending::Signal(9));
    for _ in 0..100 {
        scene.beat(0, Phase::Checkpoint, 1.0);
        scene.beat(1, Phase::Checkpoint, 1.0);
        assert_eq!(scene.tick_for(1.0), []);
    }
    scene.says(1, FromWorker::Holds { step: 7 });
    assert_eq!(scene.says(0, FromWorker::Holds { step: 7 }), rescue(0));
}

#[test]
fn what_was_saved_before_the_job_broke_off_ends_nobody() {
    let mut scene = Scene::new();
    assert_eq!(scene.says(0, saved(5)), []);
    assert_eq!(scene.job.saved_step(), Some(5));
    assert_eq!(scene.job.outcome(), None);
}

use fnet_protocol::message::Activity;

use super::*;

pub const LIMITS: Limits = Limits {
    start: Duration::from_secs(900),
    step: Duration::from_secs(100),
    evaluation: Duration::from_secs(300),
    save: Duration::from_secs(200),
    silence: Duration::from_secs(60),
};

fn seen(rank: usize, phase: Phase, step: u64, idle_seconds: f64) -> Seen {
    let beat = Heartbeat { phase, epoch: 1, step, idle_seconds, ..Heartbeat::default() };
    let second = Duration::from_secs(1);
    Seen { rank, age: Duration::from_secs(5000), silent: Some(second), beat: Some((beat, second)) }
}

fn waiting(rank: usize, operation: Operation, collective: u64, idle_seconds: f64) -> Seen {
    let mut seen = seen(rank, Phase::Backward, 512, idle_seconds);
    if let Some((beat, _)) = &mut seen.beat {
        (beat.operation, beat.collective) = (operation, collective);
    }
    seen
}

#[test]
fn the_rank_that_does_not_arrive_is_named_with_its_file_not_those_that_wait_for_it() {
    let mut late = seen(3, Phase::Data, 512, 118.0);
    let activity = Activity { what: "reading train/7.jpg".into(), seconds: 117.0 };
    late.beat.as_mut().unwrap().0.activity = Some(activity);
    let [a, b, c] = [0, 1, 2].map(|rank| waiting(rank, Operation::Gradients, 1024, 119.0));
    let hang = verdict(&[a, b, c, late], &LIMITS).unwrap();
    assert_eq!((hang.rank, hang.is_bug), (3, false));
    assert_eq!(
        hang.text,
        "has been in waiting for data, epoch 1, step 512 for 119 s (--step-timeout), reading train/7.jpg for 118 s; \
         ranks 0-2 wait in all-reduce of the gradients (collective 1024)"
    );
}

#[test]
fn ranks_that_wait_are_no_culprits_while_another_is_still_in_time() {
    let slow = seen(1, Phase::Forward, 512, 90.0);
    assert_eq!(verdict(&[waiting(0, Operation::Gradients, 9, 120.0), slow], &LIMITS), None);
}

#[test]
fn a_stopped_process_is_told_from_a_thread_that_sleeps() {
    let mut stopped = seen(1, Phase::Forward, 5, 0.0);
    stopped.silent = Some(Duration::from_secs(61));
    let hang = verdict(&[waiting(0, Operation::Gradients, 9, 60.0), stopped], &LIMITS).unwrap();
    assert_eq!(hang.rank, 1);
    assert!(hang.text.contains("no sign of life for 61 s") && hang.text.contains("forward"), "{}", hang.text);
    assert!(hang.text.ends_with("; rank 0 waits in all-reduce of the gradients (collective 9)"), "{}", hang.text);
}

#[test]
fn a_worker_that_never_connects_has_the_time_of_a_start() {
    let absent = |age| Seen { rank: 3, age: Duration::from_secs(age), silent: None, beat: None };
    assert_eq!(verdict(&[absent(899)], &LIMITS), None);
    assert!(verdict(&[absent(901)], &LIMITS).unwrap().text.contains("never answered"));
}

#[test]
fn one_that_connects_but_never_meets_the_others_is_named_too() {
    let mut met = waiting(0, Operation::Meeting, 1, 950.0);
    met.beat.as_mut().unwrap().0.phase = Phase::Start;
    let alone = seen(1, Phase::Start, 0, 940.0);
    let hang = verdict(&[met, alone], &LIMITS).unwrap();
    assert_eq!(hang.rank, 1);
    assert!(hang.text.contains("start-up") && hang.text.contains("--start-timeout"), "{}", hang.text);
}

#[test]
fn while_one_rank_evaluates_or_saves_the_others_may_wait() {
    let waits = waiting(1, Operation::Barrier, 9, 5000.0);
    for (phase, limit, flag) in [(Phase::Evaluation, 300.0, "--eval"), (Phase::Checkpoint, 200.0, "--save")] {
        assert_eq!(verdict(&[seen(0, phase, 40, 2.0), waits.clone()], &LIMITS), None);
        let stuck = verdict(&[seen(0, phase, 40, limit), waits.clone()], &LIMITS).unwrap();
        assert_eq!(stuck.rank, 0);
        assert!(stuck.text.contains(flag), "{}", stuck.text);
    }
}

#[test]
fn all_in_the_same_collective_is_a_matter_of_the_network() {
    let hang =
        verdict(&[waiting(0, Operation::AllReduce, 8, 200.0), waiting(1, Operation::AllReduce, 7, 190.0)], &LIMITS);
    let hang = hang.unwrap();
    assert_eq!(hang.rank, 1, "the one furthest behind");
    assert!(hang.text.contains("network"), "{}", hang.text);
}

#[test]
fn a_rank_in_another_collective_is_found_without_waiting_for_a_deadline() {
    let ranks = [
        waiting(0, Operation::AllReduce, 8, 5.0),
        waiting(1, Operation::Barrier, 8, 6.0),
        waiting(2, Operation::AllReduce, 8, 5.0),
    ];
    let hang = verdict(&ranks, &LIMITS).unwrap();
    assert_eq!((hang.rank, hang.is_bug), (1, true));
    assert_eq!(
        hang.text,
        "is in another collective than the others: its number 8 is barrier, that of ranks 0,2 is all-reduce"
    );
    let moving = [waiting(0, Operation::AllReduce, 8, 1.0), waiting(1, Operation::Barrier, 9, 1.0)];
    assert_eq!(verdict(&moving, &LIMITS), None, "one is further on");
}

#[test]
fn a_slow_start_and_a_working_job_are_left_alone() {
    assert_eq!(verdict(&[seen(0, Phase::Start, 0, 600.0), seen(1, Phase::Index, 0, 600.0)], &LIMITS), None);
    assert_eq!(verdict(&[seen(0, Phase::Backward, 3, 30.0)], &LIMITS), None);
    assert_eq!(verdict(&[], &LIMITS), None);
}

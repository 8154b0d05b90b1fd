use fnet_protocol::message::{Activity, WorkerStatus};

use super::*;

pub const LIMITS: Limits = Limits {
    start: Duration::from_secs(900),
    step: Duration::from_secs(100),
    evaluation: Duration::from_secs(300),
    save: Duration::from_secs(200),
    silence: Duration::from_secs(60),
};

/// A rank whose status is a second old.
fn worker(rank: usize, phase: Phase, step: u64, idle_seconds: f64) -> RankStatus {
    let status = WorkerStatus { phase, epoch: 1, step, idle_seconds: idle_seconds + 1.0, ..WorkerStatus::default() };
    let (age, silent) = (Duration::from_secs(5000), Some(Duration::from_secs(1)));
    RankStatus { rank, age, silent, status: Some(status), ..RankStatus::default() }
}

fn waiting(rank: usize, operation: Operation, collective: u64, idle_seconds: f64) -> RankStatus {
    let mut worker = worker(rank, Phase::Backward, 512, idle_seconds);
    if let Some(status) = &mut worker.status {
        (status.operation, status.collective) = (operation, collective);
    }
    worker
}

#[test]
fn the_rank_that_does_not_arrive_is_named_with_its_file_and_not_those_that_wait_for_it() {
    let mut late = worker(3, Phase::Data, 512, 118.0);
    let activity = Activity { what: "reading train/7.jpg".into(), seconds: 118.0 };
    late.status.as_mut().unwrap().activity = Some(activity);
    let [a, b, c] = [0, 1, 2].map(|rank| waiting(rank, Operation::GradientAllReduce, 1024, 119.0));
    let hang = find(&[a, b, c, late], &LIMITS).unwrap();
    assert_eq!((hang.rank, hang.is_bug), (3, false));
    assert_eq!(
        hang.text,
        "has been in waiting for data, epoch 1, step 512 for 119 s (--step-timeout), reading train/7.jpg for 118 s; \
         ranks 0-2 wait in all-reduce of the gradients (collective 1024)"
    );
}

#[test]
fn ranks_that_wait_do_not_hang_while_another_is_within_its_limit() {
    let slow = worker(1, Phase::Forward, 512, 90.0);
    assert_eq!(find(&[waiting(0, Operation::GradientAllReduce, 9, 120.0), slow], &LIMITS), None);
}

#[test]
fn a_stopped_process_is_distinguished_from_a_thread_that_sleeps() {
    let mut stopped = worker(1, Phase::Forward, 5, 0.0);
    stopped.silent = Some(Duration::from_secs(61));
    let hang = find(&[waiting(0, Operation::GradientAllReduce, 9, 60.0), stopped], &LIMITS).unwrap();
    assert_eq!(hang.rank, 1);
    assert!(hang.text.contains("no heartbeat for 61 s") && hang.text.contains("forward"), "{}", hang.text);
    assert!(hang.text.ends_with("; rank 0 waits in all-reduce of the gradients (collective 9)"), "{}", hang.text);
}

#[test]
fn a_worker_that_never_connects_has_the_start_timeout() {
    let absent = |age| RankStatus {
        rank: 3,
        age: Duration::from_secs(age),
        silent: None,
        status: None,
        ..RankStatus::default()
    };
    assert_eq!(find(&[absent(899)], &LIMITS), None);
    assert!(find(&[absent(901)], &LIMITS).unwrap().text.contains("sent no message"));
}

#[test]
fn a_rank_that_connects_but_does_not_reach_the_rendezvous_is_named() {
    let mut met = waiting(0, Operation::Rendezvous, 1, 950.0);
    met.status.as_mut().unwrap().phase = Phase::Start;
    let alone = worker(1, Phase::Start, 0, 940.0);
    let hang = find(&[met, alone], &LIMITS).unwrap();
    assert_eq!(hang.rank, 1);
    assert!(hang.text.contains("start-up") && hang.text.contains("--start-timeout"), "{}", hang.text);
}

#[test]
fn while_one_rank_evaluates_or_saves_the_others_may_wait() {
    let waits = waiting(1, Operation::Barrier, 9, 5000.0);
    for (phase, limit, flag) in [(Phase::Evaluation, 300.0, "--eval"), (Phase::Checkpoint, 200.0, "--save")] {
        assert_eq!(find(&[worker(0, phase, 40, 2.0), waits.clone()], &LIMITS), None);
        let stuck = find(&[worker(0, phase, 40, limit), waits.clone()], &LIMITS).unwrap();
        assert_eq!(stuck.rank, 0);
        assert!(stuck.text.contains(flag), "{}", stuck.text);
    }
}

#[test]
fn a_hang_of_all_ranks_in_a_collective_points_to_the_network() {
    let hang = find(&[waiting(0, Operation::AllReduce, 8, 200.0), waiting(1, Operation::AllReduce, 7, 190.0)], &LIMITS);
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
    let hang = find(&ranks, &LIMITS).unwrap();
    assert_eq!((hang.rank, hang.is_bug), (1, true));
    assert_eq!(
        hang.text,
        "is in another collective than the others: its number 8 is barrier, that of ranks 0,2 is all-reduce"
    );
    let moving = [waiting(0, Operation::AllReduce, 8, 1.0), waiting(1, Operation::Barrier, 9, 1.0)];
    assert_eq!(find(&moving, &LIMITS), None, "one is further ahead");
}

#[test]
fn a_slow_start_and_a_working_job_do_not_hang() {
    assert_eq!(find(&[worker(0, Phase::Start, 0, 600.0), worker(1, Phase::Index, 0, 600.0)], &LIMITS), None);
    assert_eq!(find(&[worker(0, Phase::Backward, 3, 30.0)], &LIMITS), None);
    assert_eq!(find(&[], &LIMITS), None);
}

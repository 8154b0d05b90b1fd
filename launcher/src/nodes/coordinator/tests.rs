use fnet_protocol::message::{Phase, WorkerStatus};

use super::*;
use crate::attempt::cause::Cause;
use crate::attempt::result::AttemptEnd;
use crate::attempt::status::Usage;
use crate::nodes::message::{PROTOCOL, Received, StopRequest, Wanted};

const SECOND: Duration = Duration::from_secs(1);
const TIMEOUTS: Timeouts = Timeouts { join: Duration::from_secs(300), silence: Duration::from_secs(60) };

pub fn hello(node: usize, workers: usize) -> Hello {
    Hello {
        protocol: PROTOCOL,
        node,
        nodes: 3,
        min_nodes: None,
        workers,
        host: format!("host{node}"),
        job: "train cfg".into(),
        build: "a1".into(),
        settings: [("--device".to_owned(), "cpu".to_owned())].into(),
        failed: None,
    }
}

const READY: ToCoordinator = ToCoordinator::Ready { lead: None };

/// Node 0 is ready.
pub fn lead(resume: bool) -> ToCoordinator {
    let arguments = ["fnet-launch", "train", "cfg.toml"].into_iter().map(Into::into);
    let options = fnet_protocol::cli::Launch::from_arguments(arguments).unwrap().options;
    let budget = crate::attempt::restart::RestartBudget::new(&options);
    ToCoordinator::Ready { lead: Some(Lead { port: 4000, wanted: Wanted { resume, generation: Some(1), budget } }) }
}

/// Three nodes, each on the connection with its number.
struct Scene {
    coordinator: Coordinator,
    now: Instant,
}

impl Scene {
    fn new() -> Self {
        let now = Instant::now();
        Self { coordinator: Coordinator::new(hello(0, 2), TIMEOUTS, now), now }
    }

    fn hello(&mut self, connection: ConnectionId, hello: Hello) -> Vec<Action> {
        let address = format!("10.0.0.{}", connection + 1);
        self.coordinator.on_event(
            connection,
            Event::Hello { hello, address, local_address: "10.0.0.1".into() },
            self.now,
        )
    }

    fn say(&mut self, connection: ConnectionId, message: ToCoordinator) -> Vec<Action> {
        self.coordinator.on_event(connection, Event::Message(message), self.now)
    }

    fn close(&mut self, connection: ConnectionId) -> Vec<Action> {
        self.coordinator.on_event(connection, Event::Closed("its launcher ended unexpectedly".into()), self.now)
    }

    fn ready(&mut self, attempt: u32) -> Vec<Action> {
        self.say(0, lead(attempt > 0));
        self.say(1, READY);
        self.say(2, READY)
    }

    fn ended(&mut self, connection: ConnectionId, end: AttemptEnd) -> Vec<Action> {
        self.say(connection, ToCoordinator::Ended { attempt: self.coordinator.attempt, result: result(end) })
    }

    fn running() -> Self {
        let mut scene = Self::new();
        scene.hello(1, hello(1, 1));
        scene.hello(2, hello(2, 3));
        let started = scene.ready(0);
        assert_eq!(started.len(), 3, "{started:?}");
        scene
    }

    /// Time passes second by second, with heartbeats on these connections.
    fn pass(&mut self, seconds: u32, alive: &[ConnectionId]) -> Vec<Action> {
        let mut all = Vec::new();
        for _ in 0..seconds {
            self.now += SECOND;
            for &connection in alive {
                self.say(connection, ToCoordinator::Heartbeat { workers: Vec::new() });
            }
            all.extend(self.coordinator.on_tick(self.now));
        }
        all.retain(|action| !matches!(action, Action::Send(_, ToNode::Heartbeat { .. })));
        all
    }
}

fn result(end: AttemptEnd) -> AttemptResult {
    AttemptResult { end, was_ready: true, ran: SECOND * 9, ..AttemptResult::default() }
}

fn failed(rank: usize, is_echo: bool) -> AttemptEnd {
    AttemptEnd::Failed { cause: Box::new(Cause::of_node(rank, exit::WORKER_LOST, "killed".into())), is_echo }
}

fn sent(actions: &[Action]) -> Vec<(ConnectionId, &ToNode)> {
    let sent = actions.iter().filter_map(|action| match action {
        Action::Send(connection, message) => Some((*connection, message)),
        Action::Close(_) => None,
    });
    sent.collect()
}

fn news(actions: &[Action]) -> Vec<&str> {
    let texts = sent(actions).into_iter().filter_map(|(_, message)| match message {
        ToNode::News { text } | ToNode::Membership { text, .. } => Some(text.as_str()),
        _ => None,
    });
    texts.collect()
}

fn refusals(actions: &[Action]) -> Vec<(ConnectionId, i32, &str)> {
    let refusals = sent(actions).into_iter().filter_map(|(connection, message)| match message {
        ToNode::Refused { code, message } => Some((connection, *code, message.as_str())),
        _ => None,
    });
    refusals.collect()
}

#[test]
fn nodes_with_different_numbers_of_workers_start_together_with_ranks_in_a_row() {
    let mut scene = Scene::new();
    let waits = scene.say(0, lead(false));
    assert_eq!(news(&waits), ["waiting for nodes 1, 2 of 3"]);
    scene.hello(2, hello(2, 3));
    let here = scene.hello(1, Hello { build: "b2".into(), ..hello(1, 1) });
    assert_eq!(news(&here)[0], "node 1 (host1, 10.0.0.2) has joined; all nodes have");
    let other_build = "node 1 (host1, 10.0.0.2) runs another build of fnet than node 0, of the same version (digest b2 there, a1 on node 0); copy the same programs to all nodes";
    assert_eq!(news(&here)[3..], [other_build; 3]);
    assert!(scene.say(1, READY).is_empty());
    let started = scene.say(2, READY);
    let expected: Vec<(ConnectionId, usize, Option<&str>)> = vec![(0, 0, Some("10.0.0.1")), (1, 2, None), (2, 3, None)];
    let starts = sent(&started).into_iter().map(|(connection, message)| match message {
        ToNode::Start(start) => {
            assert_eq!(
                (start.world_size, start.lead.port, start.attempt, start.lead.wanted.resume),
                (6, 4000, 0, false)
            );
            (connection, start.first_rank, start.address.as_deref())
        }
        other => panic!("{other:?}"),
    });
    assert_eq!(starts.collect::<Vec<_>>(), expected);
}

#[test]
fn missing_nodes_are_named_every_30_seconds_and_end_the_job_after_the_timeout() {
    let mut scene = Scene::new();
    scene.hello(1, hello(1, 1));
    let said = scene.pass(31, &[1]);
    assert_eq!(news(&said), ["waiting for node 2 of 3"; 2], "both nodes that have joined");
    let late = scene.pass(270, &[1]);
    assert_eq!(
        refusals(&late),
        [0, 1].map(|id| (id, exit::ENVIRONMENT, "node 2 of 3 did not join within 300 s (--join-timeout)"))
    );
    let later = scene.hello(2, hello(2, 1));
    assert_eq!(refusals(&later).len(), 1, "the job is over");
}

#[test]
fn a_node_that_leaves_before_the_start_may_join_again() {
    let mut scene = Scene::new();
    scene.hello(1, hello(1, 1));
    let left = scene.close(1);
    assert!(news(&left)[0].contains("node 1 (host1, 10.0.0.2) has left"), "{left:?}");
    scene.hello(7, hello(1, 1));
    scene.hello(2, hello(2, 1));
    scene.say(0, lead(false));
    scene.say(7, READY);
    assert_eq!(scene.say(2, READY).len(), 3);
}

#[test]
fn a_node_that_does_not_match_ends_the_job_on_all_nodes_and_one_of_another_job_does_not() {
    let mut scene = Scene::new();
    scene.hello(1, hello(1, 1));
    let other = Hello { job: "train other".into(), ..hello(2, 1) };
    let actions = scene.hello(5, other);
    assert_eq!((refusals(&actions).len(), actions.contains(&Action::Close(5))), (1, true));
    let odd = Hello { settings: [("--device".to_owned(), "cuda".to_owned())].into(), ..hello(2, 1) };
    let actions = scene.hello(2, odd);
    let refusals = refusals(&actions);
    assert_eq!(
        refusals.iter().map(|(connection, code, _)| (*connection, *code)).collect::<Vec<_>>(),
        [(2, 2), (0, 2), (1, 2)]
    );
    assert!(
        refusals.iter().all(|(_, _, text)| text.contains("--device is `cuda` there and `cpu` on node 0")),
        "{refusals:?}"
    );
}

#[test]
fn a_running_job_refuses_other_nodes() {
    let mut scene = Scene::running();
    let actions = scene.hello(9, hello(1, 1));
    assert_eq!(refusals(&actions)[0].0, 9);
    assert_eq!(actions.len(), 2, "no other node is notified: {actions:?}");
    assert!(scene.say(9, ToCoordinator::Failing { attempt: 0, rank: 0 }).is_empty());
    assert!(scene.close(9).is_empty());
}

#[test]
fn a_failure_is_passed_on_and_all_nodes_receive_the_same_cause() {
    let mut scene = Scene::running();
    let actions = scene.say(1, ToCoordinator::Failing { attempt: 0, rank: 2 });
    assert_eq!(sent(&actions), [(0, &ToNode::PeerFailed { rank: 2 }), (2, &ToNode::PeerFailed { rank: 2 })]);
    scene.ended(0, failed(0, true));
    scene.ended(2, AttemptEnd::Done);
    let actions = scene.ended(1, failed(2, false));
    let ends: Vec<ConnectionId> = sent(&actions)
        .into_iter()
        .map(|(connection, message)| match message {
            ToNode::Ended {
                attempt: 0,
                result: AttemptResult { end: AttemptEnd::Failed { cause, .. }, lost_nodes, .. },
            } => {
                assert!(lost_nodes.is_empty());
                assert_eq!((cause.rank, cause.reason.as_str()), (2, "killed, on node 1 (host1, 10.0.0.2)"));
                connection
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(ends, [0, 1, 2]);
    let again = scene.ready(1);
    let resumed = |(_, message): &(ConnectionId, &ToNode)| matches!(message, ToNode::Start(start) if start.attempt == 1 && start.lead.wanted.resume);
    assert!(again.len() == 3 && sent(&again).iter().all(resumed), "{again:?}");
    assert!(
        scene.say(1, ToCoordinator::Failing { attempt: 0, rank: 2 }).is_empty(),
        "a late message of the last attempt"
    );
}

#[test]
fn a_silent_node_is_lost_after_the_timeout_and_named() {
    let mut scene = Scene::running();
    assert!(scene.pass(59, &[1]).is_empty());
    let actions = scene.pass(2, &[1]);
    assert_eq!(sent(&actions), [(0, &ToNode::PeerFailed { rank: 3 }), (1, &ToNode::PeerFailed { rank: 3 })]);
    assert!(actions.contains(&Action::Close(2)));
    scene.ended(0, AttemptEnd::Done);
    let actions = scene.ended(1, failed(2, true));
    let Some((0, ToNode::Ended { result, .. })) = sent(&actions).first().copied() else { panic!("{actions:?}") };
    assert_eq!(result.lost_nodes, ["node 2 (host2, 10.0.0.3)"]);
    let reason = &result.cause().unwrap().reason;
    assert!(reason.contains("sent no heartbeat for 60 s (--node-timeout)"), "{reason}");
}

#[test]
fn a_launcher_that_was_stopped_itself_blames_nobody() {
    let mut scene = Scene::running();
    scene.now += SECOND * 500;
    let actions = scene.coordinator.on_tick(scene.now);
    assert!(sent(&actions).iter().all(|(_, message)| matches!(message, ToNode::Heartbeat { .. })), "{actions:?}");
}

#[test]
fn a_node_that_is_lost_after_its_workers_finished_is_not_a_failure() {
    let mut scene = Scene::running();
    scene.ended(2, AttemptEnd::Done);
    assert!(scene.close(2).is_empty());
    scene.ended(1, AttemptEnd::Done);
    let actions = scene.ended(0, AttemptEnd::Done);
    let Some((0, ToNode::Ended { result, .. })) = sent(&actions).first().copied() else { panic!("{actions:?}") };
    assert_eq!(result.end, AttemptEnd::Done);
}

#[test]
fn a_stop_on_one_node_is_a_stop_on_all() {
    let mut scene = Scene::running();
    let stop = StopRequest { reason: StopReason::Interrupted, again: false };
    let actions = scene.say(2, ToCoordinator::Stop(stop));
    assert_eq!(sent(&actions), [(0, &ToNode::Stop(stop)), (1, &ToNode::Stop(stop))]);
}

#[test]
fn a_node_that_cannot_start_its_workers_ends_the_job_with_its_code() {
    let mut scene = Scene::running();
    let broken = ToCoordinator::Broken { code: exit::ENVIRONMENT, message: "starting rank 2: no such file".into() };
    scene.say(1, broken.clone());
    scene.ended(0, AttemptEnd::Done);
    let actions = scene.ended(2, AttemptEnd::Done);
    let Some((_, ToNode::Ended { result, .. })) = sent(&actions).first().copied() else { panic!("{actions:?}") };
    assert_eq!(result.cause().map(|cause| cause.exit_code), Some(exit::ENVIRONMENT));
    let mut early = Scene::new();
    early.hello(1, hello(1, 1));
    assert_eq!(refusals(&early.say(1, broken))[0].1, exit::ENVIRONMENT);
}

#[test]
fn a_node_that_is_gone_before_a_restart_ends_the_job() {
    let mut scene = Scene::running();
    for connection in 0..3 {
        scene.ended(connection, failed(0, connection != 0));
    }
    scene.say(0, lead(true));
    let actions = scene.close(1);
    let refusals = refusals(&actions);
    assert_eq!(refusals.iter().map(|(connection, code, _)| (*connection, *code)).collect::<Vec<_>>(), [(0, 4), (2, 4)]);
    assert!(refusals[0].2.contains("node 1 (host1, 10.0.0.2) is lost"), "{refusals:?}");
}

#[test]
fn each_node_receives_the_workers_of_all_others() {
    let mut scene = Scene::running();
    let worker = RankStatus { rank: 3, age: SECOND * 9, silent: Some(SECOND), status: None, ..RankStatus::default() };
    scene.say(2, ToCoordinator::Heartbeat { workers: vec![worker] });
    scene.now += SECOND;
    let actions = scene.coordinator.on_tick(scene.now);
    for (connection, message) in sent(&actions) {
        let ToNode::Heartbeat { workers } = message else { panic!("{message:?}") };
        let ages: Vec<Duration> = workers.iter().map(|worker| worker.age).collect();
        assert_eq!(ages, if connection == 2 { vec![] } else { vec![SECOND * 10] });
    }
}

#[test]
fn a_node_that_fails_before_it_joins_ends_the_job_for_all_also_for_those_that_come_later() {
    let mut scene = Scene::new();
    scene.hello(1, hello(1, 1));
    let failed = Some(crate::nodes::message::EarlyFailure { code: exit::DATA, message: "a.json: no such file".into() });
    let actions = scene.hello(2, Hello { failed: failed.clone(), settings: [].into(), ..hello(2, 1) });
    let refusals = refusals(&actions);
    assert_eq!(
        refusals.iter().map(|&(to, code, _)| (to, code)).collect::<Vec<_>>(),
        [2, 0, 1].map(|to| (to, exit::DATA))
    );
    assert_eq!(refusals[1].2, "node 2 (host2, 10.0.0.3) failed: a.json: no such file");
    assert!(!scene.coordinator.has_untold_nodes(scene.now), "all have come");

    let mut scene = Scene::new();
    scene.hello(1, Hello { failed: failed.clone(), ..hello(1, 1) });
    assert!(scene.coordinator.has_untold_nodes(scene.now));
    let actions = scene.hello(2, hello(2, 1));
    assert!(matches!(sent(&actions)[..], [(2, ToNode::Refused { code: exit::DATA, .. })]), "{actions:?}");
    assert!(!scene.coordinator.has_untold_nodes(scene.now));

    // One of another job ends nothing, and a job that runs goes on.
    let mut scene = Scene::new();
    scene.hello(1, Hello { failed: failed.clone(), job: "train other".into(), ..hello(1, 1) });
    assert!(scene.coordinator.refused.is_none());
    let mut scene = Scene::running();
    scene.hello(7, Hello { failed, ..hello(1, 1) });
    assert!(scene.coordinator.refused.is_none());
}

#[test]
fn a_node_0_that_fails_tells_all_the_others_for_a_while() {
    let (mut scene, error) = (Scene::new(), (exit::USAGE, "config cfg.toml: no such file".to_owned()));
    scene.coordinator = Coordinator::of_failed(hello(0, 1), error, TIMEOUTS, scene.now);
    let actions = scene.hello(1, hello(1, 1));
    assert_eq!(refusals(&actions), [(1, exit::USAGE, "config cfg.toml: no such file")]);
    assert!(scene.coordinator.has_untold_nodes(scene.now), "node 2 has not come");
    assert!(!scene.coordinator.has_untold_nodes(scene.now + EARLY_FAILURE_GRACE));
    scene.hello(2, hello(2, 1));
    assert!(!scene.coordinator.has_untold_nodes(scene.now));
}

#[test]
fn a_saved_state_is_passed_on_and_nodes_hear_for_which_others_they_wait() {
    let mut scene = Scene::running();
    let actions = scene.say(1, ToCoordinator::Saved { attempt: 0, step: 7 });
    assert_eq!(sent(&actions), [0, 2].map(|to| (to, &ToNode::PeerSaved { step: 7 })));
    assert_eq!(scene.say(1, ToCoordinator::Saved { attempt: 9, step: 7 }), []);
    scene.ended(1, failed(2, false));
    scene.ended(0, failed(0, true));
    assert_eq!(scene.pass(9, &[1, 2]), []);
    let actions = scene.pass(1, &[1, 2]);
    assert_eq!(news(&actions), ["waiting for the workers of node 2 (host2, 10.0.0.3) to exit"; 2]);
    assert!(sent(&actions).iter().all(|(to, _)| [0, 1].contains(to)), "{actions:?}");
    assert_eq!(scene.pass(9, &[1, 2]), []);
}

/// A job of 2 to 3 nodes that starts with what is there after 10 s, and stops for new nodes after 60 s.
fn elastic() -> Scene {
    let mut scene = Scene::new();
    let elastic = Elastic { settle: SECOND * 10, grow_after: Some(SECOND * 60) };
    let first = Hello { min_nodes: Some(2), ..hello(0, 2) };
    scene.coordinator = Coordinator::new(first, TIMEOUTS, scene.now).with_elastic(elastic);
    assert_eq!(news(&scene.say(0, lead(false))), ["1 node of 2 to 3; waiting for others"]);
    scene
}

/// A node comes on this connection and is ready. Returns what both lead to.
fn comes(scene: &mut Scene, connection: ConnectionId, wanted: usize) -> Vec<Action> {
    let mut actions = scene.hello(connection, Hello { min_nodes: Some(2), ..hello(wanted, 1) });
    actions.extend(scene.say(connection, READY));
    actions
}

/// Who starts with which ranks: connection, number of the node, first rank; and the sizes of the job.
fn starts(actions: &[Action]) -> (Vec<(ConnectionId, usize, usize)>, usize, usize) {
    let starts = sent(actions).into_iter().filter_map(|(connection, message)| match message {
        ToNode::Start(start) => Some((connection, start)),
        _ => None,
    });
    let starts: Vec<_> = starts.collect();
    let (world, full) = starts.first().map_or((0, 0), |(_, start)| (start.world_size, start.full_world_size));
    (starts.iter().map(|(to, start)| (*to, start.node, start.first_rank)).collect(), world, full)
}

/// The messages that ask the attempt to end, and whether at once.
fn regroups(actions: &[Action]) -> Vec<(ConnectionId, bool)> {
    let asked = sent(actions).into_iter().filter_map(|(connection, message)| match message {
        ToNode::Regroup { at_once } => Some((connection, *at_once)),
        _ => None,
    });
    asked.collect()
}

fn goes_on(actions: &[Action]) -> Vec<(ConnectionId, bool)> {
    let ends = sent(actions).into_iter().filter_map(|(connection, message)| match message {
        ToNode::Ended { result, .. } => Some((connection, result.goes_on)),
        _ => None,
    });
    ends.collect()
}

#[test]
fn an_elastic_job_starts_with_all_nodes_or_with_enough_when_no_more_come() {
    let mut scene = elastic();
    assert_eq!(starts(&comes(&mut scene, 1, 7)).0, [], "others may come");
    assert_eq!(starts(&scene.pass(9, &[1])).0, []);
    assert_eq!(starts(&scene.pass(1, &[1])), (vec![(0, 0, 0), (1, 1, 2)], 3, 5));
    let mut scene = elastic();
    comes(&mut scene, 1, 2);
    assert_eq!(starts(&comes(&mut scene, 2, 2)), (vec![(0, 0, 0), (2, 1, 2), (1, 2, 3)], 4, 4));
    let mut scene = elastic();
    let late = scene.pass(300, &[]);
    assert_eq!(
        refusals(&late),
        [(0, exit::ENVIRONMENT, "1 node of at least 2 (--nnodes) joined within 300 s (--join-timeout)")]
    );
}

#[test]
fn a_lost_node_is_left_out_and_a_spare_or_a_newcomer_is_taken_in() {
    let mut scene = elastic();
    comes(&mut scene, 1, 1);
    comes(&mut scene, 2, 2);
    // A spare waits without disturbing the attempt, and leaves without being missed; one that does not match is sent away.
    assert_eq!(regroups(&comes(&mut scene, 3, 2)), []);
    assert!(news(&scene.close(3))[0].starts_with("node 3 (host2, 10.0.0.4) has left"));
    let odd = Hello { min_nodes: Some(2), settings: [].into(), ..hello(1, 1) };
    assert_eq!(refusals(&scene.hello(4, odd)).len(), 1);
    comes(&mut scene, 5, 1);
    comes(&mut scene, 8, 1);
    scene.close(2);
    scene.ended(0, failed(0, true));
    let ended = scene.ended(1, failed(2, true));
    assert_eq!(goes_on(&ended), [(0, true), (1, true)]);
    // A spare that is stopped leaves alone, also between two attempts.
    let stop = ToCoordinator::Stop(StopRequest { reason: StopReason::Terminated, again: false });
    assert_eq!(scene.say(8, stop), []);
    scene.close(8);
    scene.say(0, lead(true));
    assert_eq!(starts(&scene.say(1, READY)), (vec![(0, 0, 0), (1, 1, 2), (5, 3, 3)], 4, 4), "the spare");
    // Two are left, and go on at once; the newcomer gets the free number and room at a checkpoint, or after its time.
    scene.close(5);
    scene.ended(0, failed(0, true));
    scene.ended(1, failed(2, true));
    scene.say(1, READY);
    assert_eq!(starts(&scene.say(0, lead(true))).0, [(0, 0, 0), (1, 1, 2)]);
    assert_eq!(regroups(&comes(&mut scene, 6, 1)), [(0, false), (1, false)]);
    assert_eq!(regroups(&scene.pass(59, &[1, 6])), []);
    assert_eq!(regroups(&scene.pass(1, &[1, 6])), [(0, true), (1, true)]);
    let stopped = || AttemptEnd::Stopped { reason: StopReason::Terminated, saved: true };
    scene.ended(0, stopped());
    assert_eq!(goes_on(&scene.ended(1, stopped())), [(0, true), (1, true)]);
    scene.say(1, READY);
    assert_eq!(starts(&scene.say(0, lead(true))).0, [(0, 0, 0), (1, 1, 2), (6, 2, 3)]);
    // A stop that the user requests ends the job, though a node is lost too.
    scene.say(1, ToCoordinator::Stop(StopRequest { reason: StopReason::Interrupted, again: false }));
    scene.close(6);
    scene.ended(0, stopped());
    assert_eq!(goes_on(&scene.ended(1, stopped())), [(0, false), (1, false)]);
}

#[test]
fn a_newcomer_that_cannot_take_part_is_refused_alone() {
    let by = |rank, exit_code, is_echo| AttemptEnd::Failed {
        cause: Box::new(Cause::of_node(rank, exit_code, "no such file".into())),
        is_echo,
    };
    let echo = || failed(0, true);
    // How the ranks of node 0 and of the newcomer fail, whether that one had begun to work, and whether it is refused.
    for (of_first, of_newcomer, was_ready, is_refused) in [
        (echo(), by(3, exit::DATA, false), false, true),
        (echo(), by(3, exit::ENVIRONMENT, false), false, true),
        (echo(), by(3, exit::WORKER_LOST, false), false, false),
        (echo(), by(3, exit::DATA, false), true, false),
        (by(0, exit::DATA, false), echo(), false, true),
        (by(0, exit::ENVIRONMENT, false), echo(), false, false),
    ] {
        let mut scene = elastic();
        comes(&mut scene, 1, 1);
        scene.pass(10, &[1]);
        comes(&mut scene, 5, 2);
        let stopped = || AttemptEnd::Stopped { reason: StopReason::Terminated, saved: true };
        scene.ended(0, stopped());
        scene.ended(1, stopped());
        scene.say(1, READY);
        assert_eq!(starts(&scene.say(0, lead(true))).0.len(), 3);
        let code = [&of_first, &of_newcomer].map(|end| match end {
            AttemptEnd::Failed { cause, is_echo: false } => cause.exit_code,
            _ => 0,
        });
        scene.ended(0, of_first);
        scene.ended(1, echo());
        let newcomer = AttemptResult { was_ready, ..result(of_newcomer) };
        let actions = scene.say(5, ToCoordinator::Ended { attempt: scene.coordinator.attempt, result: newcomer });
        let expected = [(5, false), (0, is_refused), (1, is_refused)];
        let mut ends = goes_on(&actions);
        ends.sort_by_key(|(to, _)| *to != 5);
        assert_eq!(ends, expected, "{code:?}");
        if !is_refused {
            continue;
        }
        assert!(news(&actions)[0].starts_with("node 2 (host2, 10.0.0.6) cannot take part: rank "), "{actions:?}");
        assert!(actions.contains(&Action::Close(5)));
        let of_job = sent(&actions).into_iter().find_map(|(to, message)| match message {
            ToNode::Ended { result, .. } if to == 5 => result.cause().map(|cause| cause.exit_code),
            _ => None,
        });
        assert_eq!(of_job, code.into_iter().max());
        scene.say(1, READY);
        assert_eq!(starts(&scene.say(0, lead(true))).0, [(0, 0, 0), (1, 1, 2)]);
    }
    // Of the first nodes of a job none has worked: its mistakes are told at once.
    let mut scene = elastic();
    comes(&mut scene, 1, 1);
    scene.pass(10, &[1]);
    let early = |end| AttemptResult { was_ready: false, ..result(end) };
    scene.say(0, ToCoordinator::Ended { attempt: 0, result: early(echo()) });
    let actions = scene.say(1, ToCoordinator::Ended { attempt: 0, result: early(by(2, exit::DATA, false)) });
    assert_eq!(goes_on(&actions), [(0, false), (1, false)]);
}

#[test]
fn too_few_nodes_wait_for_others_and_then_end() {
    for (is_node_0_lost, other_comes) in [(false, false), (false, true), (true, false)] {
        let mut scene = elastic();
        comes(&mut scene, 1, 1);
        scene.pass(10, &[1]);
        let lost = if is_node_0_lost { 0 } else { 1 };
        scene.close(lost);
        assert_eq!(goes_on(&scene.ended(1 - lost, failed(0, true))), [(1 - lost, !is_node_0_lost)]);
        if is_node_0_lost {
            continue;
        }
        scene.say(0, lead(true));
        if other_comes {
            comes(&mut scene, 2, 1);
            assert_eq!(starts(&scene.pass(10, &[2])).0, [(0, 0, 0), (2, 1, 2)]);
        } else {
            let text = "1 node of at least 2 (--nnodes) left, and no other joined within 300 s (--join-timeout)";
            assert_eq!(refusals(&scene.pass(300, &[])), [(0, exit::WORKER_LOST, text)]);
        }
    }
}

/// The probe with this number, of the nodes on these connections, finds this bandwidth between the last one and all others.
fn measure(scene: &mut Scene, probe: u64, members: &[ConnectionId], gbit: f64) -> Vec<Action> {
    let mut actions = Vec::new();
    for &member in members {
        actions = scene.say(member, ToCoordinator::ProbePrepared { probe, address: None });
    }
    let asked: Vec<ConnectionId> = sent(&actions).iter().map(|(connection, _)| *connection).collect();
    assert_eq!(asked, members, "{actions:?}");
    for (node, &member) in members.iter().enumerate() {
        let link = |from| {
            let gbit = if node + 1 == members.len() || from + 1 == members.len() { gbit } else { 9.0 };
            Received { from, latency_ms: Some(0.1), gbit_per_s: Some(gbit), clock_offset: None }
        };
        let received = (0..members.len()).filter(|from| *from != node).map(link).collect();
        actions = scene.say(member, ToCoordinator::Probed { probe, received });
    }
    actions
}

#[test]
fn a_job_starts_when_its_network_is_measured_unless_that_is_too_slow() {
    for (gbit, is_warned, is_refused) in [(8.0, false, false), (1.5, true, false), (0.9, true, true)] {
        let mut scene = Scene::new();
        scene.coordinator = scene.coordinator.with_probes(Some(10.0));
        scene.hello(1, hello(1, 1));
        scene.hello(2, hello(2, 1));
        let asked = scene.ready(0);
        assert!(sent(&asked).iter().all(|(_, message)| **message == ToNode::PrepareProbe { probe: 1 }), "{asked:?}");
        let actions = measure(&mut scene, 1, &[0, 1, 2], gbit);
        let warned = |text: &&str| text.starts_with("the network of node 2 (host2, 10.0.0.3) is slow");
        assert_eq!(news(&actions).iter().filter(|text| warned(text)).count(), if is_warned { 3 } else { 0 });
        assert_eq!(starts(&actions).0.len(), if is_refused { 0 } else { 3 });
        let codes: Vec<i32> = refusals(&actions).iter().map(|(_, code, _)| *code).collect();
        assert_eq!(codes, if is_refused { vec![exit::ENVIRONMENT; 3] } else { Vec::new() });
        if !is_refused {
            // The same nodes start again without a probe.
            (0..3).for_each(|node| drop(scene.ended(node, failed(0, false))));
            assert_eq!(starts(&scene.ready(1)).0.len(), 3);
        }
    }
}

#[test]
fn a_newcomer_with_a_slow_network_is_refused_alone() {
    let mut scene = elastic();
    scene.coordinator = scene.coordinator.with_probes(Some(10.0));
    comes(&mut scene, 1, 1);
    scene.pass(10, &[1]);
    assert_eq!(starts(&measure(&mut scene, 1, &[0, 1], 9.0)).0.len(), 2);
    comes(&mut scene, 5, 2);
    let stopped = AttemptEnd::Stopped { reason: StopReason::Terminated, saved: true };
    for node in [0, 1] {
        scene.ended(node, stopped.clone());
    }
    scene.say(1, READY);
    scene.say(0, lead(true));
    let actions = measure(&mut scene, 2, &[0, 1, 5], 0.9);
    assert_eq!(
        refusals(&actions).iter().map(|(id, code, _)| (*id, *code)).collect::<Vec<_>>(),
        [(5, exit::ENVIRONMENT)]
    );
    assert_eq!(starts(&actions).0.iter().map(|(id, ..)| *id).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn a_node_that_is_slow_for_long_is_named_to_all() {
    let mut scene = Scene::running();
    let mut said = Vec::new();
    for step in 0..60 {
        for (node, own) in [(0, 0.3), (1, 0.3), (2, 0.9)] {
            let status = WorkerStatus { phase: Phase::Forward, step, ..WorkerStatus::default() };
            let usage = Usage { own_seconds: Some(own), wait_seconds: Some(0.95 - own), ..Usage::default() };
            let worker = RankStatus { rank: node as usize, status: Some(status), usage, ..RankStatus::default() };
            scene.say(node, ToCoordinator::Heartbeat { workers: vec![worker] });
        }
        scene.now += SECOND;
        said.extend(scene.coordinator.on_tick(scene.now));
    }
    let news = news(&said);
    assert_eq!(news.len(), 3, "{news:?}");
    assert!(news[0].starts_with("node 2 (host2, 10.0.0.3) is slow by compute, not by the network: "), "{news:?}");
}

use fnet_protocol::message::StopReason;

use super::*;
use crate::cause::Cause;
use crate::nodes::message::{How, PROTOCOL, Stop};

const SECOND: Duration = Duration::from_secs(1);
const PATIENCE: Patience = Patience { join: Duration::from_secs(300), silence: Duration::from_secs(60) };

pub fn hello(node: usize, workers: usize) -> Hello {
    Hello {
        protocol: PROTOCOL,
        node,
        nodes: 3,
        workers,
        host: format!("host{node}"),
        job: "train cfg".into(),
        terms: [("--device".to_owned(), "cpu".to_owned())].into(),
    }
}

/// Three nodes, on lines of their own numbers.
struct Scene {
    hub: Hub,
    now: Instant,
}

impl Scene {
    fn new() -> Self {
        let now = Instant::now();
        Self { hub: Hub::new(hello(0, 2), PATIENCE, now), now }
    }

    fn hello(&mut self, line: Line, hello: Hello) -> Vec<Action> {
        let address = format!("10.0.0.{}", line + 1);
        self.hub.on(line, Event::Hello { hello, address, arrived_at: "10.0.0.1".into() }, self.now)
    }

    fn say(&mut self, line: Line, message: ToHub) -> Vec<Action> {
        self.hub.on(line, Event::Said(message), self.now)
    }

    fn close(&mut self, line: Line) -> Vec<Action> {
        self.hub.on(line, Event::Closed("its launcher ended without a word".into()), self.now)
    }

    fn ready(&mut self, attempt: u32) -> Vec<Action> {
        self.say(0, ToHub::Ready { attempt, port: Some(4000), resume: attempt > 0 });
        self.say(1, ToHub::Ready { attempt, port: None, resume: false });
        self.say(2, ToHub::Ready { attempt, port: None, resume: false })
    }

    fn ended(&mut self, line: Line, how: How) -> Vec<Action> {
        let end = End { how, was_ready: true, stop_requested: false, saved_step: None, seconds: 9.0, gone: None };
        self.say(line, ToHub::Ended { attempt: self.hub.attempt, end })
    }

    fn running() -> Self {
        let mut scene = Self::new();
        scene.hello(1, hello(1, 1));
        scene.hello(2, hello(2, 3));
        let started = scene.ready(0);
        assert_eq!(started.len(), 3, "{started:?}");
        scene
    }

    /// Time passes second by second, with signs of life of these lines.
    fn pass(&mut self, seconds: u32, alive: &[Line]) -> Vec<Action> {
        let mut all = Vec::new();
        for _ in 0..seconds {
            self.now += SECOND;
            for &line in alive {
                self.say(line, ToHub::Beats { seen: Vec::new() });
            }
            all.extend(self.hub.tick(self.now));
        }
        all.retain(|action| !matches!(action, Action::Tell(_, ToNode::Beats { .. })));
        all
    }
}

fn failed(rank: usize, is_echo: bool) -> How {
    let text = format!(
        r#"{{"rank":{rank},"exit_code":4,"reason":"killed","doing":null,"backtrace":null,"stderr":[],"others":[]}}"#
    );
    How::Failed { cause: Box::new(serde_json::from_str::<Cause>(&text).unwrap()), is_echo }
}

fn told(actions: &[Action]) -> Vec<(Line, &ToNode)> {
    let told = actions.iter().filter_map(|action| match action {
        Action::Tell(line, message) => Some((*line, message)),
        Action::Close(_) => None,
    });
    told.collect()
}

fn news(actions: &[Action]) -> Vec<&str> {
    let texts = told(actions).into_iter().filter_map(|(_, message)| match message {
        ToNode::News { text } => Some(text.as_str()),
        _ => None,
    });
    texts.collect()
}

fn refusals(actions: &[Action]) -> Vec<(Line, i32, &str)> {
    let refusals = told(actions).into_iter().filter_map(|(line, message)| match message {
        ToNode::Refused { code, message } => Some((line, *code, message.as_str())),
        _ => None,
    });
    refusals.collect()
}

#[test]
fn nodes_with_different_numbers_of_workers_start_together_with_ranks_in_a_row() {
    let mut scene = Scene::new();
    let waits = scene.say(0, ToHub::Ready { attempt: 0, port: Some(4000), resume: false });
    assert_eq!(news(&waits), ["waiting for nodes 1, 2 of 3"]);
    scene.hello(2, hello(2, 3));
    let here = scene.hello(1, hello(1, 1));
    assert_eq!(news(&here)[0], "node 1 (host1, 10.0.0.2) is here; all are");
    assert!(scene.say(1, ToHub::Ready { attempt: 0, port: None, resume: false }).is_empty());
    let started = scene.say(2, ToHub::Ready { attempt: 0, port: None, resume: false });
    let expected: Vec<(Line, usize, Option<&str>)> = vec![(0, 0, Some("10.0.0.1")), (1, 2, None), (2, 3, None)];
    let starts = told(&started).into_iter().map(|(line, message)| match message {
        ToNode::Start(start) => {
            assert_eq!((start.world, start.port, start.attempt, start.resume), (6, 4000, 0, false));
            (line, start.first_rank, start.address.as_deref())
        }
        other => panic!("{other:?}"),
    });
    assert_eq!(starts.collect::<Vec<_>>(), expected);
}

#[test]
fn who_is_missing_is_said_every_30_seconds_and_ends_the_job_in_the_end() {
    let mut scene = Scene::new();
    scene.hello(1, hello(1, 1));
    let said = scene.pass(31, &[1]);
    assert_eq!(news(&said), ["waiting for node 2 of 3"; 2], "both nodes that are there");
    let late = scene.pass(270, &[1]);
    assert_eq!(
        refusals(&late),
        [0, 1].map(|line| (line, exit::ENVIRONMENT, "no word from node 2 of 3 within 300 s (--join-timeout)"))
    );
    let later = scene.hello(2, hello(2, 1));
    assert_eq!(refusals(&later).len(), 1, "the job is over");
}

#[test]
fn a_node_that_leaves_before_the_start_may_come_again() {
    let mut scene = Scene::new();
    scene.hello(1, hello(1, 1));
    let left = scene.close(1);
    assert!(news(&left)[0].contains("node 1 (host1, 10.0.0.2) has left"), "{left:?}");
    scene.hello(7, hello(1, 1));
    scene.hello(2, hello(2, 1));
    scene.say(0, ToHub::Ready { attempt: 0, port: Some(4000), resume: false });
    scene.say(7, ToHub::Ready { attempt: 0, port: None, resume: false });
    assert_eq!(scene.say(2, ToHub::Ready { attempt: 0, port: None, resume: false }).len(), 3);
}

#[test]
fn a_node_that_does_not_fit_ends_the_job_on_all_and_one_of_another_job_does_not() {
    let mut scene = Scene::new();
    scene.hello(1, hello(1, 1));
    let stranger = Hello { job: "train other".into(), ..hello(2, 1) };
    let actions = scene.hello(5, stranger);
    assert_eq!((refusals(&actions).len(), actions.contains(&Action::Close(5))), (1, true));
    let odd = Hello { terms: [("--device".to_owned(), "cuda".to_owned())].into(), ..hello(2, 1) };
    let actions = scene.hello(2, odd);
    let refusals = refusals(&actions);
    assert_eq!(refusals.iter().map(|(line, code, _)| (*line, *code)).collect::<Vec<_>>(), [(2, 2), (0, 2), (1, 2)]);
    assert!(
        refusals.iter().all(|(_, _, text)| text.contains("--device is `cuda` there and `cpu` on node 0")),
        "{refusals:?}"
    );
}

#[test]
fn once_it_runs_nobody_else_gets_in() {
    let mut scene = Scene::running();
    let actions = scene.hello(9, hello(1, 1));
    assert_eq!(refusals(&actions)[0].0, 9);
    assert_eq!(actions.len(), 2, "nobody else hears of it: {actions:?}");
    assert!(scene.say(9, ToHub::Failing { attempt: 0, rank: 0 }).is_empty());
    assert!(scene.close(9).is_empty());
}

#[test]
fn a_failure_is_told_to_all_others_and_all_agree_on_the_cause() {
    let mut scene = Scene::running();
    let actions = scene.say(1, ToHub::Failing { attempt: 0, rank: 2 });
    assert_eq!(told(&actions), [(0, &ToNode::PeerFailed { rank: 2 }), (2, &ToNode::PeerFailed { rank: 2 })]);
    scene.ended(0, failed(0, true));
    scene.ended(2, How::Done);
    let actions = scene.ended(1, failed(2, false));
    let ends: Vec<Line> = told(&actions)
        .into_iter()
        .map(|(line, message)| match message {
            ToNode::Agreed { attempt: 0, end: End { how: How::Failed { cause, .. }, gone: None, .. } } => {
                assert_eq!((cause.rank, cause.reason.as_str()), (2, "killed, on node 1 (host1, 10.0.0.2)"));
                line
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(ends, [0, 1, 2]);
    let again = scene.ready(1);
    let resumed =
        |(_, message): &(Line, &ToNode)| matches!(message, ToNode::Start(Start { attempt: 1, resume: true, .. }));
    assert!(again.len() == 3 && told(&again).iter().all(resumed), "{again:?}");
    assert!(scene.say(1, ToHub::Failing { attempt: 0, rank: 2 }).is_empty(), "an echo of the last attempt");
}

#[test]
fn a_silent_node_is_lost_in_time_and_named() {
    let mut scene = Scene::running();
    assert!(scene.pass(59, &[1]).is_empty());
    let actions = scene.pass(2, &[1]);
    assert_eq!(told(&actions), [(0, &ToNode::PeerFailed { rank: 3 }), (1, &ToNode::PeerFailed { rank: 3 })]);
    assert!(actions.contains(&Action::Close(2)));
    scene.ended(0, How::Done);
    let actions = scene.ended(1, failed(2, true));
    let Some((0, ToNode::Agreed { end, .. })) = told(&actions).first().copied() else { panic!("{actions:?}") };
    assert_eq!(end.gone.as_deref(), Some("node 2 (host2, 10.0.0.3)"));
    let How::Failed { cause, .. } = &end.how else { panic!("{end:?}") };
    assert!(cause.reason.contains("gave no sign of life for 60 s (--node-timeout)"), "{}", cause.reason);
}

#[test]
fn a_launcher_that_was_stopped_itself_blames_nobody() {
    let mut scene = Scene::running();
    scene.now += SECOND * 500;
    let actions = scene.hub.tick(scene.now);
    assert!(told(&actions).iter().all(|(_, message)| matches!(message, ToNode::Beats { .. })), "{actions:?}");
}

#[test]
fn a_node_that_vanishes_after_its_workers_ended_well_is_no_failure() {
    let mut scene = Scene::running();
    scene.ended(2, How::Done);
    assert!(scene.close(2).is_empty());
    scene.ended(1, How::Done);
    let actions = scene.ended(0, How::Done);
    let Some((0, ToNode::Agreed { end, .. })) = told(&actions).first().copied() else { panic!("{actions:?}") };
    assert_eq!(end.how, How::Done);
}

#[test]
fn a_stop_on_one_node_is_a_stop_on_all() {
    let mut scene = Scene::running();
    let stop = Stop { reason: StopReason::Interrupted, again: false };
    let actions = scene.say(2, ToHub::Stop(stop));
    assert_eq!(told(&actions), [(0, &ToNode::Stop(stop)), (1, &ToNode::Stop(stop))]);
}

#[test]
fn a_node_that_cannot_start_its_workers_ends_the_job_with_its_code() {
    let mut scene = Scene::running();
    let broken = ToHub::Broken { code: exit::ENVIRONMENT, message: "starting rank 2: no such file".into() };
    scene.say(1, broken.clone());
    scene.ended(0, How::Done);
    let actions = scene.ended(2, How::Done);
    let Some((_, ToNode::Agreed { end, .. })) = told(&actions).first().copied() else { panic!("{actions:?}") };
    assert!(matches!(&end.how, How::Failed { cause, .. } if cause.exit_code == exit::ENVIRONMENT), "{end:?}");
    let mut early = Scene::new();
    early.hello(1, hello(1, 1));
    assert_eq!(refusals(&early.say(1, broken))[0].1, exit::ENVIRONMENT);
}

#[test]
fn a_node_that_is_gone_before_a_restart_ends_the_job() {
    let mut scene = Scene::running();
    for line in 0..3 {
        scene.ended(line, failed(0, line != 0));
    }
    scene.say(0, ToHub::Ready { attempt: 1, port: Some(4001), resume: true });
    let actions = scene.close(1);
    let refusals = refusals(&actions);
    assert_eq!(refusals.iter().map(|(line, code, _)| (*line, *code)).collect::<Vec<_>>(), [(0, 4), (2, 4)]);
    assert!(refusals[0].2.contains("node 1 (host1, 10.0.0.2) is lost"), "{refusals:?}");
}

#[test]
fn each_node_hears_of_the_workers_of_all_others() {
    let mut scene = Scene::running();
    let line = br#"{"type":"beats","seen":[{"rank":3,"age":9.0,"silent":1.0,"beat":null,"ago":0.0}]}"#;
    let beats: ToHub = fnet_protocol::message::from_line(line).unwrap();
    scene.say(2, beats);
    scene.now += SECOND;
    let actions = scene.hub.tick(scene.now);
    for (line, message) in told(&actions) {
        let ToNode::Beats { seen } = message else { panic!("{message:?}") };
        let ages: Vec<Duration> = seen.iter().map(|beat| beat.seen().age).collect();
        assert_eq!(ages, if line == 2 { vec![] } else { vec![SECOND * 10] });
    }
}

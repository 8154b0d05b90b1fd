use super::*;
use crate::message::StopReason;

fn pair() -> (Client, BufReader<UnixStream>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    (Client::over(ours, 3, Box::leak(Box::new(StatusPage::new()))).unwrap(), BufReader::new(theirs))
}

fn next(reader: &mut BufReader<UnixStream>) -> FromWorker {
    let mut line = Vec::new();
    reader.read_until(b'\n', &mut line).unwrap();
    message::from_line(&line).unwrap()
}

fn next_matching(reader: &mut BufReader<UnixStream>, wanted: impl Fn(&FromWorker) -> bool) -> FromWorker {
    loop {
        let message = next(reader);
        if wanted(&message) {
            return message;
        }
    }
}

#[test]
fn it_says_hello_then_sends_heartbeats_by_itself() {
    let (client, mut reader) = pair();
    assert_eq!(next(&mut reader), FromWorker::Hello { version: message::VERSION, rank: 3, pid: std::process::id() });
    client.at(Phase::Backward, 2, 17);
    let wanted = |message: &FromWorker| matches!(message, FromWorker::Heartbeat(status) if status.step == 17);
    let FromWorker::Heartbeat(status) = next_matching(&mut reader, wanted) else { panic!("another message") };
    assert_eq!((status.phase, status.epoch), (Phase::Backward, 2));
}

#[test]
fn a_launcher_that_does_not_read_never_stops_the_work() {
    let (client, reader) = pair();
    let start = Instant::now();
    for step in 0..200_000 {
        client.progress(Progress { step, ..Progress::default() });
    }
    let long = "x".repeat(1 << 20);
    for _ in 0..3 {
        client.note(long.clone());
    }
    assert!(start.elapsed() < Duration::from_secs(20));
    assert!(!client.flush(Duration::from_millis(50)), "nothing can be sent while nobody reads");
    drop(reader);
    client.done();
}

#[test]
fn a_failure_arrives_after_the_notes_before_it() {
    let (client, mut reader) = pair();
    client.note("first");
    let failure = Failure { kind: FailureKind::Data, message: "no such image".into(), backtrace: None, at: None };
    client.failed(failure.clone());
    let important = |message: &FromWorker| matches!(message, FromWorker::Note { .. } | FromWorker::Failed(_));
    assert_eq!(next_matching(&mut reader, important), FromWorker::Note { text: "first".into() });
    let FromWorker::Failed(told) = next_matching(&mut reader, important) else { panic!("no failure") };
    assert_eq!(told, Failure { at: told.at.clone(), ..failure });
    assert!(told.at.is_some(), "the status is included");
}

#[test]
fn a_request_to_stop_is_received() {
    let (_client, reader) = pair();
    let mut stream = reader.into_inner();
    stream.write_all(b"{\"type\":\"later\"}\nnot json\n").unwrap();
    stream.write_all(&message::to_line(&ToWorker::Stop { reason: StopReason::Interrupted }).unwrap()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while stop::requested() != Some(StopReason::Interrupted) {
        assert!(Instant::now() < deadline, "the request did not arrive");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_panics_stack_begins_where_the_panic_was() {
    let stack =
        "   0: hook\n   1: core::panicking::panic_fmt\n             at panicking.rs:80:14\n   2: work\n   3: main\n";
    assert_eq!(without_panic_frames(stack), "   2: work\n   3: main\n");
    assert_eq!(without_panic_frames("   0: work\n"), "   0: work\n");
}

#[test]
fn without_a_launcher_nothing_waits() {
    let client = Client::disconnected();
    assert!(!client.is_connected());
    client.progress(Progress::default());
    client.done();
    assert!(client.flush(Duration::ZERO));
}

#[test]
fn an_emergency_checkpoint_is_written_when_the_launcher_says_so() {
    let (client, mut reader) = pair();
    let mut launcher = reader.get_ref().try_clone().unwrap();
    let waiting = client.clone();
    let worker = thread::spawn(move || waiting.state_ready(17, Duration::from_secs(60)));
    assert_eq!(
        next_matching(&mut reader, |m| matches!(m, FromWorker::StateReady { .. })),
        FromWorker::StateReady { step: 17 }
    );
    launcher.write_all(&message::to_line(&ToWorker::EmergencyCheckpoint).unwrap()).unwrap();
    assert!(worker.join().unwrap());
    client.saved(Path::new("a/iter_17.ckpt"), 17);
    let saved = FromWorker::Saved { path: "a/iter_17.ckpt".into(), step: 17 };
    assert_eq!(next_matching(&mut reader, |m| matches!(m, FromWorker::Saved { .. })), saved);
    assert!(!Client::disconnected().state_ready(1, Duration::from_secs(60)), "there is no launcher");
}

#[test]
fn a_lost_peer_is_passed_on() {
    let (client, reader) = pair();
    let (sender, told) = std::sync::mpsc::channel();
    client.on_peer_lost(move || sender.send(()).unwrap());
    let mut launcher = reader.get_ref().try_clone().unwrap();
    launcher.write_all(&message::to_line(&ToWorker::PeerLost { rank: 1 }).unwrap()).unwrap();
    told.recv_timeout(Duration::from_secs(60)).unwrap();
}

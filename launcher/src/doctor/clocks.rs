//! Clocks: whether this one is set by others, and how far those of the nodes are apart.
//!
//! With several nodes the doctors talk to each other: that of node 0 listens on the master port and tells the time to every
//! other one. The offset is that of NTP's arithmetic: the answer against the middle between question and answer.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant, SystemTime};

use fnet_protocol::cli::Place;

use super::Finding;
use crate::error::Result;
use crate::rendezvous::{self, Nodes};
use crate::show::Show;

/// Time that the doctors have to find each other.
const MEETING: Duration = Duration::from_secs(60);
/// Time for one question and its answer.
const ANSWER: Duration = Duration::from_secs(5);
/// Clocks further apart make logs and the ages of files misleading.
const TOLERANCE: f64 = 1.0;
/// Questions; that with the shortest way counts.
const QUESTIONS: usize = 5;

/// Whether the clock is set by others, and with several nodes how far it is from node 0's.
///
/// # Errors
/// Flags of several nodes that make no sense (exit code 2).
pub fn findings(place: &Place, show: &Show) -> Result<Vec<Finding>> {
    let nodes = rendezvous::resolve(place, |name| std::env::var(name).ok())?;
    let mut findings = vec![own(nodes.count)];
    if nodes.count > 1 {
        let patience = MEETING.as_secs();
        show.say(&format!("run doctor with the same flags on all nodes now; waiting for them up to {patience} s"));
        findings.push(if nodes.rank == 0 { serve(&nodes) } else { compare(&nodes) });
    }
    Ok(findings)
}

/// The kernel knows whether a daemon keeps its clock right.
fn own(nodes: usize) -> Finding {
    // SAFETY: all zeroes is a valid `timex`; without modes the call only fills it.
    let mut facts: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: `facts` outlives the call.
    let state = unsafe { libc::adjtimex(&raw mut facts) };
    let is_set = state >= 0 && state != libc::TIME_ERROR && facts.status & libc::STA_UNSYNC == 0;
    let found = if is_set { "set by a time service" } else { "not set by a time service" };
    let remedy = "start one on every node: systemd-timesyncd, chrony or ntpd (timedatectl set-ntp true)";
    match nodes {
        1 if !is_set => Finding::good("clock", format!("{found}; that matters to several nodes only")),
        _ => Finding::good_if(is_set, "clock", found, remedy),
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Tells the time to the other nodes, until all have asked.
fn serve(nodes: &Nodes) -> Finding {
    let others = nodes.count - 1;
    let listener = match rendezvous::bind(nodes) {
        Ok(listener) => listener,
        Err(error) => return Finding::bad("nodes", error.message(), "free the port, or choose another --master-port"),
    };
    match answer(&listener, others, MEETING) {
        Ok(asked) if asked == others => Finding::good("nodes", format!("all {others} others reach this one")),
        Ok(asked) => Finding::doubtful(
            "nodes",
            format!("{asked} of {others} other nodes have asked within {} s", MEETING.as_secs()),
            "run doctor on all nodes at the same time, and see that no firewall closes the master port",
        ),
        Err(error) => Finding::doubtful("nodes", error.to_string(), "see that the master port is free and open"),
    }
}

/// Answers so many nodes; returns how many have asked.
fn answer(listener: &TcpListener, others: usize, patience: Duration) -> std::io::Result<usize> {
    let deadline = Instant::now() + patience;
    listener.set_nonblocking(true)?;
    let mut asked = 0;
    while asked < others && Instant::now() < deadline {
        match listener.accept() {
            Ok((stream, _)) => asked += usize::from(tell(stream).is_ok()),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(20))
            }
            Err(error) => return Err(error),
        }
    }
    Ok(asked)
}

/// One line with the time for each line that comes.
fn tell(stream: TcpStream) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER))?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    for _ in 0..QUESTIONS {
        line.clear();
        if reader.read_line(&mut line)? == 0 || line.trim() != "time" {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        writeln!(writer, "{:.6}", now())?;
    }
    Ok(())
}

/// How far this clock is from node 0's.
fn compare(nodes: &Nodes) -> Finding {
    let port = nodes.port.unwrap_or(0);
    match ask(&nodes.address, port, MEETING) {
        Ok((offset, error)) => judge(offset, error),
        Err(error) => Finding::doubtful(
            "nodes",
            format!("node 0 was not reached at {}:{port}: {error}", nodes.address),
            "run doctor on node 0 at the same time; see that --master-addr is right and no firewall closes the port",
        ),
    }
}

fn judge(offset: f64, error: f64) -> Finding {
    let found = format!("node 0 is reached; its clock is {offset:+.3} s from this one (give or take {error:.3} s)");
    let remedy = "set the clocks by a time service: systemd-timesyncd, chrony or ntpd";
    Finding::good_if(offset.abs() - error <= TOLERANCE, "nodes", found, remedy)
}

/// Node 0's clock less this one, and how sure that is, in seconds.
fn ask(host: &str, port: u16, patience: Duration) -> std::io::Result<(f64, f64)> {
    let deadline = Instant::now() + patience;
    let stream = loop {
        match connect(host, port) {
            Ok(stream) => break stream,
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    };
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER))?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    let mut best: Option<(f64, f64)> = None;
    let mut line = String::new();
    for _ in 0..QUESTIONS {
        let (before, asked) = (now(), Instant::now());
        writer.write_all(b"time\n")?;
        line.clear();
        reader.read_line(&mut line)?;
        let way = asked.elapsed().as_secs_f64();
        let theirs: f64 = line.trim().parse().map_err(|_| std::io::Error::other("no doctor answers there"))?;
        let measured = (theirs - (before + way / 2.0), way / 2.0);
        if best.is_none_or(|(_, error)| measured.1 < error) {
            best = Some(measured);
        }
    }
    best.ok_or_else(|| std::io::Error::other("no answer"))
}

fn connect(host: &str, port: u16) -> std::io::Result<TcpStream> {
    let mut last = std::io::Error::other("the name has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, ANSWER) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn two_doctors_compare_their_clocks() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || answer(&listener, 1, Duration::from_secs(30)).unwrap());
        let (offset, error) = ask("127.0.0.1", port, Duration::from_secs(30)).unwrap();
        assert_eq!(server.join().unwrap(), 1);
        assert!(offset.abs() <= error + 0.05, "{offset} give or take {error}: it is the same clock");
    }

    #[test]
    fn a_node_that_nobody_reaches_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(answer(&listener, 1, Duration::from_millis(50)).unwrap(), 0);
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        assert!(ask("127.0.0.1", port, Duration::from_millis(300)).is_err());
    }

    #[test]
    fn clocks_that_are_apart_are_doubtful() {
        assert_eq!(judge(0.4, 0.01).verdict, Verdict::Good);
        assert_eq!(judge(-7.0, 0.01).verdict, Verdict::Doubtful);
        assert_eq!(judge(1.5, 0.8).verdict, Verdict::Good, "a slow network cannot tell");
    }
}

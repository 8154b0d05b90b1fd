//! Clocks: whether this clock is synchronized, and the clock offsets between nodes.
//!
//! With several nodes, `doctor` on node 0 listens on the master port and sends its time to the others. They compute the offset
//! as NTP does: from the middle between request and response.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant, SystemTime};

use fnet_protocol::cli::LaunchOptions;
use fnet_protocol::listen::listen_as;

use super::Diagnosis;
use crate::console::Console;
use crate::error::Result;
use crate::plan::rendezvous::{self, Nodes};

/// Time for the nodes to find each other.
const RENDEZVOUS_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for one request and its response.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// A larger offset makes logs and file ages misleading.
const MAX_OFFSET: f64 = 1.0;
/// Number of requests; the fastest one counts.
const REQUESTS: usize = 5;

/// Whether the clock is synchronized, and with several nodes its offset from that of node 0.
/// Errors: invalid options of several nodes (exit code 2).
pub fn diagnose(options: &LaunchOptions, console: &Console) -> Result<Vec<Diagnosis>> {
    let nodes = rendezvous::resolve(options, |name| std::env::var(name).ok())?;
    let mut diagnoses = vec![own(nodes.count)];
    if nodes.count > 1 {
        let seconds = RENDEZVOUS_TIMEOUT.as_secs();
        console
            .say(&format!("run doctor with the same options on all nodes now; waiting for them at most {seconds} s"));
        diagnoses.push(Diagnosis::good("network", format!("node 0 at {}, {}", nodes.address, nodes.trust())));
        diagnoses.push(if nodes.rank == 0 { serve(&nodes) } else { compare(&nodes) });
    }
    Ok(diagnoses)
}

/// Whether a service synchronizes the clock, according to the kernel.
fn own(nodes: usize) -> Diagnosis {
    // SAFETY: all zeroes is a valid `timex`; without modes the call only fills it.
    let mut time: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: `time` outlives the call.
    let state = unsafe { libc::adjtimex(&raw mut time) };
    let is_set = state >= 0 && state != libc::TIME_ERROR && time.status & libc::STA_UNSYNC == 0;
    let found = if is_set { "synchronized by a time service" } else { "not synchronized by a time service" };
    let remedy = "start one on every node: systemd-timesyncd, chrony or ntpd (timedatectl set-ntp true)";
    match nodes {
        1 if !is_set => Diagnosis::good("clock", format!("{found}; this matters only with several nodes")),
        _ => Diagnosis::good_if(is_set, "clock", found, remedy),
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Sends the time to the other nodes until all have asked.
fn serve(nodes: &Nodes) -> Diagnosis {
    let others = nodes.count - 1;
    let (host, port) = (nodes.address.as_str(), nodes.port.unwrap_or(0));
    let found = (host, port).to_socket_addrs().into_iter().flatten();
    let listeners = match listen_as(host, found, port) {
        Ok(listeners) => listeners,
        Err(error) => {
            let error = rendezvous::cannot_listen(nodes, port, &error);
            return Diagnosis::bad("nodes", error.message(), "free the port, or choose another --master-port");
        }
    };
    match answer(&listeners, others, RENDEZVOUS_TIMEOUT) {
        Ok(asked) if asked == others => Diagnosis::good("nodes", format!("all {others} other nodes reach this one")),
        Ok(asked) => Diagnosis::doubtful(
            "nodes",
            format!("{asked} of {others} other nodes connected within {} s", RENDEZVOUS_TIMEOUT.as_secs()),
            "run doctor on all nodes at the same time, and check that no firewall blocks the master port",
        ),
        Err(error) => Diagnosis::doubtful("nodes", error.to_string(), "check that the master port is free and open"),
    }
}

/// Answers a number of nodes; returns how many have asked.
fn answer(listeners: &[TcpListener], others: usize, timeout: Duration) -> std::io::Result<usize> {
    let deadline = Instant::now() + timeout;
    listeners.iter().try_for_each(|listener| listener.set_nonblocking(true))?;
    let mut asked = 0;
    for listener in listeners.iter().cycle() {
        if asked >= others || Instant::now() >= deadline {
            break;
        }
        match listener.accept() {
            Ok((stream, _)) => asked += usize::from(send_times(stream).is_ok()),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(20))
            }
            Err(error) => return Err(error),
        }
    }
    Ok(asked)
}

/// Sends a line with the time for each received line.
fn send_times(stream: TcpStream) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(RESPONSE_TIMEOUT))?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    for _ in 0..REQUESTS {
        line.clear();
        if reader.read_line(&mut line)? == 0 || line.trim() != "time" {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        writeln!(writer, "{:.6}", now())?;
    }
    Ok(())
}

/// The offset of node 0's clock.
fn compare(nodes: &Nodes) -> Diagnosis {
    let port = nodes.port.unwrap_or(0);
    match ask(&nodes.address, port, RENDEZVOUS_TIMEOUT) {
        Ok((offset, error)) => judge(offset, error),
        Err(error) => Diagnosis::doubtful(
            "nodes",
            format!("cannot reach node 0 at {}:{port}: {error}", nodes.address),
            "run doctor on node 0 at the same time; check --master-addr, and that no firewall blocks the port",
        ),
    }
}

fn judge(offset: f64, error: f64) -> Diagnosis {
    let found = format!("node 0 is reachable; the offset of its clock is {offset:+.3} s (+/- {error:.3} s)");
    let remedy = "synchronize the clocks with a time service: systemd-timesyncd, chrony or ntpd";
    Diagnosis::good_if(offset.abs() - error <= MAX_OFFSET, "nodes", found, remedy)
}

/// The offset of node 0's clock and the error of that, in seconds.
fn ask(host: &str, port: u16, timeout: Duration) -> std::io::Result<(f64, f64)> {
    let deadline = Instant::now() + timeout;
    let stream = loop {
        match connect(host, port) {
            Ok(stream) => break stream,
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    };
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(RESPONSE_TIMEOUT))?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    let mut best: Option<(f64, f64)> = None;
    let mut line = String::new();
    for _ in 0..REQUESTS {
        let (before, asked) = (now(), Instant::now());
        writer.write_all(b"time\n")?;
        line.clear();
        reader.read_line(&mut line)?;
        let way = asked.elapsed().as_secs_f64();
        let theirs: f64 = line.trim().parse().map_err(|_| std::io::Error::other("another program answers there"))?;
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
        match TcpStream::connect_timeout(&address, RESPONSE_TIMEOUT) {
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
    fn two_nodes_compare_their_clocks() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || answer(&[listener], 1, Duration::from_secs(30)).unwrap());
        let (offset, error) = ask("127.0.0.1", port, Duration::from_secs(30)).unwrap();
        assert_eq!(server.join().unwrap(), 1);
        assert!(offset.abs() <= error + 0.05, "{offset} +/- {error}: it is the same clock");
    }

    #[test]
    fn a_node_that_no_other_reaches_is_reported() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let listeners = [listener];
        assert_eq!(answer(&listeners, 1, Duration::from_millis(50)).unwrap(), 0);
        let port = listeners[0].local_addr().unwrap().port();
        drop(listeners);
        assert!(ask("127.0.0.1", port, Duration::from_millis(300)).is_err());
    }

    #[test]
    fn clocks_that_are_apart_are_doubtful() {
        assert_eq!(judge(0.4, 0.01).verdict, Verdict::Good);
        assert_eq!(judge(-7.0, 0.01).verdict, Verdict::Doubtful);
        assert_eq!(judge(1.5, 0.8).verdict, Verdict::Good, "the error is too large to judge");
    }
}

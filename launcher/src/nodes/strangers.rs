//! Connections to node 0 that are not from a node of the job, or not yet: few at a time, and a number in the log.

use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use tokio::task::AbortHandle;

use super::message::ConnectionId;
use crate::plan::secret::SAME_REMEDY;

/// Maximum number of connections that have not introduced themselves.
const MAX_OPEN: usize = 64;
/// Minimum time between two lines about strangers.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Why a connection is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Its secret is another one than that of node 0.
    OtherSecret,
    /// A node without a secret, where node 0 has one.
    NoSecret,
    /// A node with a secret, where node 0 has none.
    HasSecret,
    /// Anything else.
    Stranger,
}

const REASONS: [Reason; 4] = [Reason::OtherSecret, Reason::NoSecret, Reason::HasSecret, Reason::Stranger];

/// The connections of one kind.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    count: u64,
    /// The count when it was last reported.
    reported: u64,
    last: Option<IpAddr>,
}

/// The connections that are not from a node of the job.
#[derive(Default)]
pub struct Strangers {
    /// Those that have not introduced themselves, the oldest first.
    open: Vec<(ConnectionId, IpAddr, AbortHandle)>,
    tallies: [Tally; REASONS.len()],
    last_line: Option<Instant>,
}

impl Strangers {
    /// A new connection. If there are too many, the oldest one of the machine that has the most is closed, so that nobody can
    /// keep the nodes of other machines out.
    pub fn open(&mut self, connection: ConnectionId, address: IpAddr, task: AbortHandle) {
        if self.open.len() >= MAX_OPEN {
            let count = |machine| self.open.iter().filter(|(_, address, _)| machine_of(*address) == machine).count();
            // Of equal ones, the last in reverse order, which is the oldest.
            let oldest =
                self.open.iter().enumerate().rev().max_by_key(|(_, (_, address, _))| count(machine_of(*address)));
            if let Some((position, _)) = oldest {
                let (_, address, task) = self.open.remove(position);
                task.abort();
                self.count(Reason::Stranger, address);
            }
        }
        self.open.push((connection, address, task));
    }

    /// The connection has introduced itself, or is not let in.
    pub fn close(&mut self, connection: ConnectionId, reason: Option<Reason>) {
        let Some(position) = self.open.iter().position(|(open, ..)| *open == connection) else { return };
        let (_, address, _) = self.open.remove(position);
        if let Some(reason) = reason {
            self.count(reason, address);
        }
    }

    fn count(&mut self, reason: Reason, address: IpAddr) {
        let tally = &mut self.tallies[reason as usize];
        (tally.count, tally.last) = (tally.count + 1, Some(address));
    }

    /// A line for the user, if there is something new: each time that the number of one kind has doubled, so a few dozen
    /// lines at most.
    pub fn line(&mut self, now: Instant) -> Option<String> {
        if self.last_line.is_some_and(|last| now.duration_since(last) < LINE_INTERVAL) {
            return None;
        }
        let (reason, tally) =
            REASONS.into_iter().zip(&mut self.tallies).find(|(_, tally)| tally.count >= (2 * tally.reported).max(1))?;
        (tally.reported, self.last_line) = (tally.count, Some(now));
        let what = match reason {
            Reason::OtherSecret => "it has another job secret than node 0",
            Reason::NoSecret => "it has no job secret, and node 0 has one",
            Reason::HasSecret => "it has a job secret, and node 0 has none",
            Reason::Stranger => "it is not a node of this job",
        };
        let remedy = match reason {
            Reason::Stranger => String::new(),
            _ => format!("; {SAME_REMEDY}"),
        };
        let so_far =
            if tally.count > 1 { format!(" ({} such connections so far)", tally.count) } else { String::new() };
        let from = tally.last?.to_canonical();
        Some(format!("a connection from {from} was refused: {what}{remedy}{so_far}"))
    }
}

/// The address without the part that a machine may choose for each connection.
fn machine_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_machine_with_many_connections_keeps_no_other_out() {
        let run = async {
            let mut strangers = Strangers::default();
            let task = || tokio::spawn(std::future::pending::<()>());
            let node = task();
            strangers.open(0, ip("10.0.0.2"), node.abort_handle());
            let flood: Vec<_> = (1..=1000)
                .map(|connection| {
                    let task = task();
                    // Of one network, as a machine with IPv6 chooses its addresses.
                    let address = ip(&format!("fd00::{connection:x}"));
                    strangers.open(connection, address, task.abort_handle());
                    task
                })
                .collect();
            // Tasks end one after the other.
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            assert!(!node.is_finished());
            let alive = flood.iter().rev().take_while(|task| !task.is_finished()).count();
            assert_eq!((alive, strangers.open.len()), (MAX_OPEN - 1, MAX_OPEN), "the newest ones");
            assert_eq!(flood.iter().filter(|task| !task.is_finished()).count(), MAX_OPEN - 1);
        };
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(run);
    }

    #[test]
    fn millions_of_strangers_are_a_few_lines_and_a_wrong_secret_among_them_is_named() {
        let (mut strangers, mut now) = (Strangers::default(), Instant::now());
        let mut lines = Vec::new();
        for second in 0..1000_u64 {
            for _ in 0..1000 {
                strangers.count(Reason::Stranger, ip("::ffff:10.0.0.9"));
            }
            if second == 500 {
                strangers.count(Reason::OtherSecret, ip("10.0.0.2"));
            }
            lines.extend(strangers.line(now).map(|line| (second, line)));
            now += Duration::from_secs(1);
        }
        assert!(lines.len() < 12, "{lines:?}");
        let expected =
            "a connection from 10.0.0.9 was refused: it is not a node of this job (1000 such connections so far)";
        assert_eq!(lines[0], (0, expected.to_owned()));
        let wrong = lines.iter().find(|(_, line)| line.contains("10.0.0.2")).unwrap();
        assert!(wrong.0 <= 510 && wrong.1.ends_with("(FNET_JOB_SECRET or --secret-file)"), "{wrong:?}");
    }
}

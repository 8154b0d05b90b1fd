//! The rank and size of a job, and its rendezvous, read from environment variables.

use fnet_common::{Error, Result};
use fnet_protocol::env;

/// A process's rank in the job and how it reaches its peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RankPlacement {
    /// Rank in the job, from 0.
    pub rank: usize,
    /// Number of ranks in the job.
    pub world_size: usize,
    /// Rank on this node, from 0.
    pub local_rank: usize,
    /// Number of ranks on this node; `None` if the environment does not say.
    pub local_world_size: Option<usize>,
    /// How to reach the peers; `None` for a job of one rank.
    pub rendezvous: Option<Rendezvous>,
}

/// The rendezvous of a job's ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendezvous {
    /// Host of the store.
    pub host: String,
    /// Port of the store.
    pub port: u16,
    /// Whether this rank serves the store.
    pub is_server: bool,
    /// An inherited socket that already listens on the port.
    pub listener: Option<i32>,
    /// The number of restarts so far; the store of torchrun's agent may still have keys of earlier attempts.
    pub attempt: u64,
}

/// torchrun's number of restarts.
const TORCHELASTIC_RESTART_COUNT: &str = "TORCHELASTIC_RESTART_COUNT";

impl RankPlacement {
    /// Reads PyTorch's variables (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT) and fnet's
    /// own. Without any of them, the job has one rank.
    /// Errors: a usage error that names the variable if one is missing, not a number, or out of range.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let rank = number::<usize>(&variable, env::RANK)?;
        let world_size = number::<usize>(&variable, env::WORLD_SIZE)?;
        let (rank, world_size) = match (rank, world_size) {
            (None, None) => (0, 1),
            (Some(rank), Some(world_size)) => (rank, world_size),
            (Some(_), None) => return Err(missing(env::WORLD_SIZE, env::RANK)),
            (None, Some(_)) => return Err(missing(env::RANK, env::WORLD_SIZE)),
        };
        if rank >= world_size {
            return Err(Error::usage(format!("RANK={rank} is not below WORLD_SIZE={world_size}")));
        }
        let local_rank = number(&variable, env::LOCAL_RANK)?;
        let local_world_size = number(&variable, env::LOCAL_WORLD_SIZE)?;
        let (local_rank, local_world_size) = match world_size {
            1 => (local_rank.unwrap_or(0), Some(1)),
            _ => (local_rank.unwrap_or(rank), local_world_size),
        };
        let rendezvous = match world_size {
            1 => None,
            _ => Some(Rendezvous::from_variables(&variable, rank)?),
        };
        Ok(Self { rank, world_size, local_rank, local_world_size, rendezvous })
    }
}

impl Rendezvous {
    pub(super) fn from_variables(variable: &impl Fn(&str) -> Option<String>, rank: usize) -> Result<Self> {
        let host = variable(env::MASTER_ADDR).ok_or_else(|| missing(env::MASTER_ADDR, env::WORLD_SIZE))?;
        let port = number(variable, env::MASTER_PORT)?.ok_or_else(|| missing(env::MASTER_PORT, env::WORLD_SIZE))?;
        let by_agent =
            variable(env::TORCHELASTIC_USE_AGENT_STORE).is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let is_server = rank == 0 && !by_agent;
        let attempt = match number(variable, TORCHELASTIC_RESTART_COUNT)? {
            Some(attempt) => attempt,
            None => number(variable, env::RESTART_COUNT)?.unwrap_or(0),
        };
        let listener = if is_server { number(variable, env::STORE_FD)? } else { None };
        Ok(Self { host, port, is_server, listener, attempt })
    }
}

pub(super) fn number<T: std::str::FromStr>(
    variable: &impl Fn(&str) -> Option<String>,
    name: &str,
) -> Result<Option<T>> {
    let Some(text) = variable(name) else { return Ok(None) };
    match text.trim().parse() {
        Ok(value) => Ok(Some(value)),
        Err(_) => Err(Error::usage(format!("the environment has {name}={text:?}, expected a whole number in range"))),
    }
}

pub(super) fn missing(name: &str, other: &str) -> Error {
    Error::usage(format!(
        "the environment has {other} but not {name}: start the ranks with fnet-launch or torchrun, or set both; \
         for one rank set neither"
    ))
}

#[cfg(test)]
mod tests {
    use fnet_common::ErrorKind;

    use super::*;

    fn place(variables: &[(&str, &str)]) -> Result<RankPlacement> {
        let find = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        RankPlacement::from_variables(find)
    }

    const TWO: [(&str, &str); 6] = [
        ("RANK", "0"),
        ("WORLD_SIZE", "2"),
        ("LOCAL_RANK", "0"),
        ("LOCAL_WORLD_SIZE", "2"),
        ("MASTER_ADDR", "10.0.0.1"),
        ("MASTER_PORT", "29500"),
    ];

    #[test]
    fn without_variables_the_job_has_one_rank_and_no_rendezvous() {
        let alone =
            RankPlacement { rank: 0, world_size: 1, local_rank: 0, local_world_size: Some(1), rendezvous: None };
        assert_eq!(place(&[]).unwrap(), alone);
        assert_eq!(place(&[("RANK", ""), ("MASTER_PORT", "1")]).unwrap(), alone);
        assert_eq!(place(&[("RANK", "0"), ("WORLD_SIZE", "1")]).unwrap(), alone);
    }

    #[test]
    fn rank_0_serves_the_store_on_the_inherited_socket() {
        let variables = [&TWO[..], &[("FNET_STORE_FD", "7"), ("FNET_RESTART_COUNT", "2")]].concat();
        let rendezvous = place(&variables).unwrap().rendezvous.unwrap();
        let expected =
            Rendezvous { host: "10.0.0.1".into(), port: 29500, is_server: true, listener: Some(7), attempt: 2 };
        assert_eq!(rendezvous, expected);
    }

    #[test]
    fn under_torchrun_rank_0_is_a_client_of_the_agents_store() {
        let torchrun = [("TORCHELASTIC_USE_AGENT_STORE", "True"), ("TORCHELASTIC_RESTART_COUNT", "1")];
        let rendezvous = place(&[&TWO[..], &torchrun].concat()).unwrap().rendezvous.unwrap();
        assert!(!rendezvous.is_server && rendezvous.attempt == 1);
    }

    #[test]
    fn the_local_rank_defaults_to_the_rank() {
        let variables = [("RANK", "1"), ("WORLD_SIZE", "2"), TWO[4], TWO[5]];
        let place = place(&variables).unwrap();
        assert_eq!((place.local_rank, place.local_world_size), (1, None));
    }

    #[test]
    fn a_wrong_variable_is_named() {
        let cases: [(&[(&str, &str)], &str); 6] = [
            (&[("RANK", "1")], "WORLD_SIZE"),
            (&[("WORLD_SIZE", "2")], "RANK"),
            (&[("RANK", "2"), ("WORLD_SIZE", "2")], "RANK=2 is not below"),
            (&[("RANK", "one"), ("WORLD_SIZE", "2")], "RANK=\"one\""),
            (&TWO[..5], "not MASTER_PORT"),
            (&[TWO[0], TWO[1], TWO[4], ("MASTER_PORT", "70000")], "MASTER_PORT=\"70000\""),
        ];
        for (variables, message) in cases {
            let error = place(variables).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage);
            assert!(error.to_string().contains(message), "{error}");
        }
    }
}

//! WHERE a job runs: the flags of the launcher alone.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::Bind;

/// WHERE to run, how to look after the workers, how much to print. These flags stand before or after the command.
#[derive(Debug, Clone, PartialEq, Args)]
#[command(next_help_heading = "Where to run")]
pub struct Place {
    /// GPUs of this node: a count (8), indices (0,2,3 or 3,), or all; within CUDA_VISIBLE_DEVICES if it is set
    #[arg(long, global = true, value_name = "GPUS")]
    pub gpus: Option<Gpus>,
    /// Device of the workers [default: cuda]
    #[arg(long, global = true, value_name = "DEVICE")]
    pub device: Option<Device>,
    /// Number of workers on this node with --device cpu [default: 1]
    #[arg(long, global = true, value_name = "N")]
    pub nproc: Option<usize>,
    /// Number of nodes [env: NNODES] [default: 1]
    #[arg(long, global = true, value_name = "N")]
    pub nnodes: Option<usize>,
    /// Rank of this node, from 0 [env: NODE_RANK] [default: 0]
    #[arg(long, global = true, value_name = "R")]
    pub node_rank: Option<usize>,
    /// Name or address of node 0 [env: MASTER_ADDR] [default: 127.0.0.1 with one node]
    #[arg(long, global = true, value_name = "A")]
    pub master_addr: Option<String>,
    /// Port on node 0 [env: MASTER_PORT, or PORT from 1024 on] [default: a free one; 29500 with several nodes]
    #[arg(long, global = true, value_name = "P")]
    pub master_port: Option<u16>,
    /// Network interface of the traffic between workers, as eth1; GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME win
    #[arg(long, global = true, value_name = "NAME")]
    pub iface: Option<String>,
    /// Seconds in which all nodes must have met
    #[arg(long, global = true, env = "FNET_JOIN_TIMEOUT", value_name = "SECONDS", default_value_t = 300.0, value_parser = parse_seconds)]
    pub join_timeout: f64,
    /// Seconds without a sign of life after which a node counts as lost
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 60.0, value_parser = parse_seconds)]
    pub node_timeout: f64,
    /// CPUs of the workers: auto (near their GPUs, else equal parts), none, or a list for each worker (0-7;8-15)
    #[arg(long, global = true, value_name = "CPUS", default_value = "auto")]
    pub bind: Bind,
    /// Say what `train` or `test` would do (devices, data, steps, memory, disk), and start nothing
    #[arg(long, global = true)]
    pub dry_run: bool,
    /// Restarts of `train` from its newest checkpoint after a failure; 0 for none
    #[arg(long, global = true, value_name = "N", default_value_t = 3, help_heading = "Supervision")]
    pub max_restarts: u32,
    /// Seconds that a job must run well to have all its restarts again
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 1800.0, value_parser = parse_seconds, help_heading = "Supervision")]
    pub refill_after: f64,
    /// Seconds that workers have to save and end after a request to stop
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 30.0, value_parser = parse_seconds, help_heading = "Supervision")]
    pub grace: f64,
    /// Time after which the job saves and stops by itself (code 75), as 3h50m or 2days; ask for less than the batch system gives
    #[arg(long, global = true, value_name = "TIME", value_parser = humantime::parse_duration, help_heading = "Supervision")]
    pub time_limit: Option<Duration>,
    /// Seconds until a worker must have started its work
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 900.0, value_parser = parse_seconds, help_heading = "Supervision")]
    pub start_timeout: f64,
    /// Seconds that a worker may be in one part of a training step
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 600.0, value_parser = parse_seconds, help_heading = "Supervision")]
    pub step_timeout: f64,
    /// Seconds that evaluation may go without a finished picture
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 900.0, value_parser = parse_seconds, help_heading = "Supervision")]
    pub eval_timeout: f64,
    /// Seconds that a checkpoint may go without anything written or read
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 900.0, value_parser = parse_seconds, help_heading = "Supervision")]
    pub save_timeout: f64,
    /// Seconds that a worker may be silent altogether (stopped, or its machine stalled)
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 60.0, value_parser = parse_seconds, help_heading = "Supervision")]
    pub silence_timeout: f64,
    /// Ranks whose output is shown too, each line with its rank; all of it is in logs/rank_N.log anyway
    #[arg(long, global = true, value_name = "RANKS", value_delimiter = ',', help_heading = "Output")]
    pub tee: Vec<usize>,
    /// Print more; twice for still more
    #[arg(short, long, global = true, action = clap::ArgAction::Count, conflicts_with = "quiet", help_heading = "Output")]
    pub verbose: u8,
    /// Print errors and results only
    #[arg(short, long, global = true, help_heading = "Output")]
    pub quiet: bool,
    /// When to use colours and a moving bar
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", help_heading = "Output")]
    pub color: ColorChoice,
}

impl Place {
    /// `-1` quiet, `0` normal, above 0 verbose (see [`crate::env::VERBOSITY`]).
    pub fn verbosity(&self) -> i8 {
        if self.quiet { -1 } else { i8::try_from(self.verbose).unwrap_or(i8::MAX) }
    }
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    text.parse::<f64>()
        .ok()
        .filter(|seconds| (0.0..=1e9).contains(seconds))
        .ok_or("expected seconds, 0 to 1e9".to_owned())
}

/// Which GPUs of the visible ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gpus {
    /// All of them.
    All,
    /// The first N.
    Count(usize),
    /// Those with these indices, in this order.
    Indices(Vec<usize>),
}

impl FromStr for Gpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || "expected a count (8), indices (0,2,3 or 3,) or all".to_owned();
        if text.eq_ignore_ascii_case("all") {
            return Ok(Gpus::All);
        }
        if !text.contains(',') {
            return text.parse().ok().filter(|&count| count > 0).map(Gpus::Count).ok_or_else(wrong);
        }
        let parts = text.strip_suffix(',').unwrap_or(text).split(',');
        let indices: Vec<usize> =
            parts.map(|part| part.trim().parse().map_err(|_| wrong())).collect::<Result<_, _>>()?;
        for (position, index) in indices.iter().enumerate() {
            if indices[..position].contains(index) {
                return Err(format!("GPU {index} is named twice"));
            }
        }
        Ok(Gpus::Indices(indices))
    }
}

impl fmt::Display for Gpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Gpus::All => f.write_str("all"),
            Gpus::Count(count) => write!(f, "{count}"),
            Gpus::Indices(indices) => {
                let list: Vec<String> = indices.iter().map(ToString::to_string).collect();
                // A comma marks a list even when it has one member.
                write!(f, "{}{}", list.join(","), if list.len() == 1 { "," } else { "" })
            }
        }
    }
}

/// Where workers compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Device {
    /// One GPU per worker, NCCL between them
    Cuda,
    /// The CPU, Gloo between the workers
    Cpu,
}

impl Device {
    /// As it is written on the command line and in [`crate::env::DEVICE`].
    pub fn name(self) -> &'static str {
        match self {
            Device::Cuda => "cuda",
            Device::Cpu => "cpu",
        }
    }
}

/// When to use colours and a moving bar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ColorChoice {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

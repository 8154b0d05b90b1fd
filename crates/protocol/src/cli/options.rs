//! The options of the launcher itself: where a job runs, how it is supervised, what is printed.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::Bind;

/// Heading of the options that say where a job runs.
pub(super) const WHERE: &str = "Where to run";
/// Heading of the options that start the nodes of a job.
const HOSTS: &str = "Several hosts over ssh";

/// Where to run, how to supervise the workers, how much to print. These options stand before or after the command.
#[derive(Debug, Clone, PartialEq, Args)]
#[command(next_help_heading = WHERE)]
pub struct LaunchOptions {
    /// GPUs of this node: a count (8), indices (0,2,3 or 3,), or all; relative to CUDA_VISIBLE_DEVICES if it is set
    #[arg(long, global = true, value_name = "GPUS")]
    pub gpus: Option<Gpus>,
    /// Device of the workers [default: cuda]
    #[arg(long, global = true, value_name = "DEVICE")]
    pub device: Option<Device>,
    /// Number of workers on this node with --device cpu [default: 1]
    #[arg(long, global = true, value_name = "N")]
    pub nproc: Option<usize>,
    /// Number of nodes, or MIN:MAX if nodes may come and go [env: NNODES] [default: 1]
    #[arg(long, global = true, value_name = "N")]
    pub nnodes: Option<NodeCount>,
    /// Rank of this node, from 0; with MIN:MAX only 0 matters, which listens at --master-addr [env: NODE_RANK] [default: 0]
    #[arg(long, global = true, value_name = "R")]
    pub node_rank: Option<usize>,
    /// Name or address of node 0; not used with one node [env: MASTER_ADDR]
    #[arg(long, global = true, value_name = "A")]
    pub master_addr: Option<String>,
    /// Port on node 0 [env: MASTER_PORT, or PORT from 1024 on] [default: a free one; 29500 with several nodes]
    #[arg(long, global = true, value_name = "P")]
    pub master_port: Option<u16>,
    /// File (mode 0600) with the secret that the launchers of all nodes must prove to know [env: FNET_JOB_SECRET has the secret itself]
    #[arg(long, global = true, value_name = "FILE")]
    pub secret_file: Option<PathBuf>,
    /// Network interface between workers, for example eth1; GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME take precedence
    #[arg(long, global = true, value_name = "NAME")]
    pub iface: Option<String>,
    /// Seconds until all nodes must have joined
    #[arg(long, global = true, env = "FNET_JOIN_TIMEOUT", value_name = "SECONDS", default_value_t = 300.0, value_parser = parse_seconds)]
    pub join_timeout: f64,
    /// Seconds without a heartbeat after which a node counts as lost
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 60.0, value_parser = parse_seconds)]
    pub node_timeout: f64,
    /// Gbit/s that links between nodes should have: a job with less than a tenth of it on one is refused (code 6); that of node 0 counts
    #[arg(long, global = true, env = "FNET_EXPECT_BANDWIDTH", value_name = "GBITS", value_parser = parse_gbits)]
    pub expect_bandwidth: Option<f64>,
    /// With --nnodes MIN:MAX: seconds to wait for more than MIN nodes, since the last one came
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 30.0, value_parser = parse_seconds)]
    pub elastic_settle: f64,
    /// With --nnodes MIN:MAX: take in a new node after this many seconds [default: at the next checkpoint or end of an epoch]
    #[arg(long, global = true, value_name = "SECONDS", value_parser = parse_seconds)]
    pub elastic_grow_after: Option<f64>,
    /// CPUs of the workers: auto (near their GPUs, else equal shares), none, or a list per worker (0-7;8-15)
    #[arg(long, global = true, value_name = "CPUS", default_value = "auto")]
    pub bind: Bind,
    /// Folder of libtorch, the folder `torch` of a Python's packages, for programs without it [env: FNET_LIBTORCH]
    #[arg(long, global = true, env = "FNET_LIBTORCH", hide_env = true, value_name = "DIR")]
    pub libtorch: Option<PathBuf>,
    /// Print what `train` or `test` would do (devices, data, steps, memory, disk) without starting anything
    #[arg(long, global = true)]
    pub dry_run: bool,
    /// Start the nodes on these hosts over ssh; the first is node 0, at --master-addr if that is given
    #[arg(long, global = true, value_name = "HOSTS", value_delimiter = ',', conflicts_with_all = ["nnodes", "node_rank", "hostfile"], help_heading = HOSTS)]
    pub hosts: Vec<String>,
    /// The same with the hosts in a file: `host` or `host slots=N` on each line, N workers there
    #[arg(long, global = true, value_name = "FILE", conflicts_with_all = ["nnodes", "node_rank"], help_heading = HOSTS)]
    pub hostfile: Option<PathBuf>,
    /// The ssh command for --hosts, with its options
    #[arg(long, global = true, env = "FNET_SSH", value_name = "COMMAND", default_value = "ssh", help_heading = HOSTS)]
    pub ssh: String,
    /// Path of fnet-launch on the hosts [default: as here]
    #[arg(long, global = true, value_name = "PATH", help_heading = HOSTS)]
    pub remote_program: Option<PathBuf>,
    /// Environment variables that the hosts get, by their beginnings
    #[arg(long, global = true, value_name = "PREFIXES", value_delimiter = ',', default_value = "FNET_,NCCL_,GLOO_,OMP_,PYTORCH_", help_heading = HOSTS)]
    pub pass_env: Vec<String>,
    /// Maximum number of restarts of `train` from its newest checkpoint after a failure
    #[arg(long, global = true, value_name = "N", default_value_t = 3, help_heading = "Supervision")]
    pub max_restarts: u32,
    /// Healthy runtime in seconds after which the restart budget resets
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 1800.0, value_parser = parse_seconds, help_heading = "Supervision")]
    pub refill_after: f64,
    /// Seconds that workers have to save and exit after a request to stop
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 30.0, value_parser = parse_seconds, help_heading = "Supervision")]
    pub grace: f64,
    /// Time after which the job saves and stops (code 75), for example 3h50m or 2days; set it below the limit of the batch system
    #[arg(long, global = true, value_name = "TIME", value_parser = humantime::parse_duration, help_heading = "Supervision")]
    pub time_limit: Option<Duration>,
    /// Seconds until a worker must have started its work
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 900.0, value_parser = parse_seconds, help_heading = "Supervision")]
    pub start_timeout: f64,
    /// Maximum seconds in one part of a training step
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 600.0, value_parser = parse_seconds, help_heading = "Supervision")]
    pub step_timeout: f64,
    /// Maximum seconds of evaluation without a finished image
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 900.0, value_parser = parse_seconds, help_heading = "Supervision")]
    pub eval_timeout: f64,
    /// Maximum seconds of a checkpoint without anything written or read
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 900.0, value_parser = parse_seconds, help_heading = "Supervision")]
    pub save_timeout: f64,
    /// Maximum seconds without any message from a worker (it is stopped, or its machine is stalled)
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 60.0, value_parser = parse_seconds, help_heading = "Supervision")]
    pub silence_timeout: f64,
    /// Further ranks whose output is shown, with the rank on each line; logs/rank_N.log always has all of it
    #[arg(long, global = true, value_name = "RANKS", value_delimiter = ',', help_heading = "Output")]
    pub tee: Vec<usize>,
    /// Print more; repeat for even more
    #[arg(short, long, global = true, action = clap::ArgAction::Count, conflicts_with = "quiet", help_heading = "Output")]
    pub verbose: u8,
    /// Print only errors and results
    #[arg(short, long, global = true, help_heading = "Output")]
    pub quiet: bool,
    /// When to use colors and a progress bar
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", help_heading = "Output")]
    pub color: ColorChoice,
}

impl LaunchOptions {
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

fn parse_gbits(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|gbits| *gbits > 0.0 && *gbits <= 1e6);
    number.ok_or("expected Gbit/s, such as 10 for 10-gigabit Ethernet".to_owned())
}

/// Number of nodes of a job: N, or MIN:MAX if nodes may come and go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeCount {
    /// N or MAX.
    pub max: usize,
    /// MIN.
    pub min: Option<usize>,
}

impl FromStr for NodeCount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong =
            || "expected a number of nodes (4), or the least and the most with a colon between them (2:4)".to_owned();
        let number = |text: &str| text.trim().parse().ok().filter(|&count: &usize| count > 0).ok_or_else(wrong);
        match text.split_once(':') {
            None => Ok(Self { max: number(text)?, min: None }),
            Some((min, max)) => {
                let (min, max) = (number(min)?, number(max)?);
                if min <= max { Ok(Self { max, min: Some(min) }) } else { Err(wrong()) }
            }
        }
    }
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
                return Err(format!("GPU {index} is listed twice"));
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

/// When to use colors and a progress bar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ColorChoice {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

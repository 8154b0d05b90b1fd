//! `benchmark comm`: measures all-reduce of the job's backend for several message sizes. With several nodes it also shows what
//! their launchers have measured between them.
//!
//! Bandwidths are defined as in nccl-tests (doc/PERFORMANCE.md there): the algorithm bandwidth is the message size divided by
//! the time; the bus bandwidth is that times 2 (n - 1) / n for n ranks, which does not depend on their number if the hardware
//! is the limit.

use std::fmt;
use std::time::Instant;

use serde::Serialize;
use tch::{Kind, Tensor};

use fnet_common::process;
use fnet_common::{Error, Result};
use fnet_distributed::Communicator;
use fnet_protocol::cli::BenchmarkComm;
use fnet_protocol::client::Client;
use fnet_protocol::links::Links;
use fnet_protocol::message::{Phase, Progress};
use fnet_protocol::spread::Spread;
use fnet_protocol::{env, exit, stop};

use crate::commands::stdout::publish;

/// Bytes of a value.
const VALUE: u64 = 4;
/// Ratio of successive sizes.
const GROWTH: u64 = 4;
/// Period of the values, which keeps their sums over the ranks exact.
const PATTERN: i64 = 97;

/// The results of `benchmark comm`.
#[derive(Debug, Serialize)]
struct CommReport {
    backend: &'static str,
    world_size: usize,
    iters: usize,
    warm_up: usize,
    sizes: Vec<Row>,
    /// The network between several nodes, measured over TCP.
    #[serde(skip_serializing_if = "Option::is_none")]
    links: Option<Links>,
}

/// The results for one size.
#[derive(Debug, Serialize)]
struct Row {
    /// Bytes of the message on each rank.
    bytes: u64,
    /// Microseconds of one all-reduce on the slowest rank.
    median_us: f64,
    min_us: f64,
    /// Gigabytes (1e9) per second at the median time.
    algorithm_gb_per_s: f64,
    bus_gb_per_s: f64,
}

impl Row {
    fn new(bytes: u64, median_us: f64, min_us: f64, ranks: usize) -> Self {
        let algorithm = bytes as f64 / median_us / 1e3;
        let bus = algorithm * 2.0 * (ranks as f64 - 1.0) / ranks as f64;
        Self { bytes, median_us, min_us, algorithm_gb_per_s: algorithm, bus_gb_per_s: bus }
    }
}

/// Runs `benchmark comm` on this rank.
/// Errors: a usage error for a job of one rank or sizes in the wrong order; a lost peer; lack of memory; a bug if a sum
/// is wrong.
pub fn benchmark_comm(arguments: &BenchmarkComm, control: &Client) -> Result<i32> {
    let sizes = sizes(arguments)?;
    let communicator = Communicator::from_environment()?;
    if communicator.world_size() < 2 {
        return Err(Error::usage(
            "benchmark comm needs at least 2 workers: give --gpus 2 (or --device cpu --nproc 2) or more",
        ));
    }
    let mut rows = Vec::with_capacity(sizes.len());
    for (index, &bytes) in sizes.iter().enumerate() {
        control.progress(Progress {
            phase: Phase::AllReduce,
            step: index as u64 + 1,
            total_steps: sizes.len() as u64,
            ..Progress::default()
        });
        rows.push(measure(bytes, arguments, &communicator, control)?);
        // All ranks stop after the same size.
        let reason = stop::requested();
        if communicator.any(reason.is_some())? {
            communicator.leave()?;
            return Ok(reason.map_or(exit::STOPPED, fnet_protocol::message::StopReason::exit_code));
        }
    }
    if communicator.is_first() {
        let (iters, warm_up) = (arguments.iters, arguments.warm_up);
        let report = CommReport {
            backend: communicator.backend(),
            world_size: communicator.world_size(),
            iters,
            warm_up,
            sizes: rows,
            links: std::env::var(env::LINKS).ok().and_then(|text| serde_json::from_str(&text).ok()),
        };
        publish(&report, &report.to_string(), arguments.json)?;
    }
    communicator.leave()?;
    Ok(exit::SUCCESS)
}

/// The sizes in bytes, rounded to whole values, ascending, including the largest.
fn sizes(arguments: &BenchmarkComm) -> Result<Vec<u64>> {
    let (least, most) = (arguments.min_bytes, arguments.max_bytes);
    if least > most {
        return Err(Error::usage(format!("--min-bytes {least} is larger than --max-bytes {most}")));
    }
    let whole = |bytes: u64| bytes / VALUE * VALUE;
    let next = |&bytes: &u64| (bytes < whole(most)).then(|| (bytes * GROWTH).min(whole(most)));
    Ok(std::iter::successors(Some(whole(least)), next).collect())
}

fn measure(bytes: u64, arguments: &BenchmarkComm, communicator: &Communicator, control: &Client) -> Result<Row> {
    let count = i64::try_from(bytes / VALUE).map_err(|_| Error::usage(format!("{bytes} bytes are too large")))?;
    check_sum(count, communicator)?;
    // Zeros stay zeros, however often they are summed.
    let message = Tensor::f_zeros([count], (Kind::Float, communicator.device()))?;
    let mut seconds = Vec::with_capacity(arguments.iters);
    for iter in 0..arguments.warm_up + arguments.iters {
        let started = Instant::now();
        communicator.all_reduce_sum(&message)?;
        process::synchronize(communicator.device())?;
        if iter >= arguments.warm_up {
            seconds.push(started.elapsed().as_secs_f64());
        }
        control.made_progress();
    }
    let own = Spread::of_seconds(seconds);
    let (median, min) = slowest(communicator, own.median * 1e3, own.min * 1e3)?;
    Ok(Row::new(bytes, median, min, communicator.world_size()))
}

/// The maximum of each number over the ranks.
fn slowest(communicator: &Communicator, median: f64, min: f64) -> Result<(f64, f64)> {
    let own = [median.to_le_bytes(), min.to_le_bytes()].concat();
    let gathered = communicator.all_gather_bytes(&own)?;
    let number = |bytes: &[u8]| bytes.try_into().map_or(0.0, f64::from_le_bytes);
    let maximum = |part: fn(&[u8]) -> &[u8]| gathered.iter().map(|all| number(part(all))).fold(0.0, f64::max);
    Ok((maximum(|all| &all[..8]), maximum(|all| &all[8..])))
}

/// Sums values that depend on position and rank, and checks every sum. They are small integers, so sums are exact.
fn check_sum(count: i64, communicator: &Communicator) -> Result<()> {
    let ranks = communicator.world_size() as i64;
    let pattern = Tensor::f_arange(count, (Kind::Int64, communicator.device()))?.f_remainder(PATTERN)?;
    let own = pattern.f_add_scalar(communicator.rank() as i64)?.f_to_kind(Kind::Float)?;
    communicator.all_reduce_sum(&own)?;
    let expected = pattern.f_mul_scalar(ranks)?.f_add_scalar(ranks * (ranks - 1) / 2)?.f_to_kind(Kind::Float)?;
    // All ranks must fail together, or the others would wait.
    let wrong = !own.f_equal(&expected)?;
    if communicator.any(wrong)? {
        let here = if wrong { "here" } else { "on another rank" };
        return Err(Error::bug(format!("the all-reduce of {count} values gave a wrong sum {here}")));
    }
    Ok(())
}

impl fmt::Display for CommReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "all-reduce of float32 over {} ranks by {}, {} measured after {}; GB are 1e9 bytes",
            self.world_size, self.backend, self.iters, self.warm_up
        )?;
        write!(f, "{:>12} {:>12} {:>12} {:>16} {:>10}", "bytes", "median us", "min us", "algorithm GB/s", "bus GB/s")?;
        for row in &self.sizes {
            write!(
                f,
                "\n{:>12} {:>12.1} {:>12.1} {:>16.3} {:>10.3}",
                row.bytes, row.median_us, row.min_us, row.algorithm_gb_per_s, row.bus_gb_per_s
            )?;
        }
        match &self.links {
            Some(links) => write!(f, "\nnetwork between the nodes, over TCP: {}", links.table()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(min_bytes: u64, max_bytes: u64) -> BenchmarkComm {
        BenchmarkComm { min_bytes, max_bytes, iters: 1, warm_up: 0, json: false }
    }

    #[test]
    fn sizes_grow_to_the_largest() {
        assert_eq!(sizes(&arguments(4, 64)).unwrap(), [4, 16, 64]);
        assert_eq!(sizes(&arguments(4, 30)).unwrap(), [4, 16, 28]);
        assert_eq!(sizes(&arguments(5, 5)).unwrap(), [4]);
        assert_eq!(sizes(&arguments(8, 4)).unwrap_err().kind(), fnet_common::ErrorKind::Usage);
    }

    #[test]
    fn bandwidths_are_defined_as_in_nccl_tests() {
        // 1 GB in a second on 4 ranks: each sends and receives 1.5 times the message.
        let row = Row::new(1_000_000_000, 1e6, 1e6, 4);
        assert_eq!((row.algorithm_gb_per_s, row.bus_gb_per_s), (1.0, 1.5));
    }

    #[test]
    fn a_sum_over_one_rank_is_correct() {
        check_sum(1000, &Communicator::alone(tch::Device::Cpu)).unwrap();
    }
}

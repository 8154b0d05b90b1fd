//! The workers' part of `benchmark launch`: one all-reduce, and the time at which every rank had finished it.

use serde::Serialize;
use tch::{Kind, Tensor};

use fnet_common::process;
use fnet_common::{Error, Result};
use fnet_distributed::Communicator;
use fnet_protocol::{clock, exit};

use crate::commands::stdout::publish;

/// The report of rank 0.
#[derive(Debug, Serialize)]
struct Done {
    /// When the last rank had finished: nanoseconds of the monotonic clock, which all processes of a machine share.
    done_ns: u64,
    world_size: usize,
}

/// Joins the job, sums one value over the ranks, and prints when that was finished.
/// Errors: if the rendezvous fails, or a rank is lost.
pub fn benchmark_launch() -> Result<i32> {
    let communicator = Communicator::from_environment()?;
    let value = Tensor::f_ones([1], (Kind::Float, communicator.device()))?;
    communicator.all_reduce_sum(&value)?;
    process::synchronize(communicator.device())?;
    let done = u64::try_from(clock::monotonic().as_nanos()).unwrap_or(u64::MAX);
    let sum = value.f_double_value(&[0])?;
    if sum != communicator.world_size() as f64 {
        return Err(Error::bug(format!("the sum of ones over {} ranks is {sum}", communicator.world_size())));
    }
    let times = communicator.all_gather_bytes(&done.to_le_bytes())?;
    if communicator.is_first() {
        let done_ns = times.iter().filter_map(|time| Some(u64::from_le_bytes(time.as_slice().try_into().ok()?))).max();
        let report = Done { done_ns: done_ns.unwrap_or(done), world_size: communicator.world_size() };
        publish(&report, "", true)?;
    }
    communicator.leave()?;
    Ok(exit::SUCCESS)
}

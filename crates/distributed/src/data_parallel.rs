//! Data-parallel training: every rank computes gradients of its own images, and all ranks update with their mean.

use std::cell::Cell;
use std::time::{Duration, Instant};

use tch::{Device, Tensor};
use torch_ext::cuda::Event;
use torch_ext::distributed::{BucketSizes, Reducer};

use fnet_common::{Context, Error, Result};
use fnet_protocol::message::Operation;
use fnet_protocol::status;

use super::communicator::{Communicator, in_collective};

/// Runs backward passes that produce the mean of the ranks' gradients.
pub struct DataParallel<'a> {
    communicator: &'a Communicator,
    /// None in a job of one rank.
    reducer: Option<Reducer>,
    /// When this rank finished the gradients of the last pass.
    computed: Computed,
}

impl<'a> DataParallel<'a> {
    /// Checks that all ranks have the same parameters, broadcasts rank 0's values of `parameters` and `buffers`, and hooks
    /// into the parameters' gradients. The order must be the same on every rank. With `as_bfloat16` gradients travel rounded.
    /// Errors: a bug if the ranks' parameters differ; if a peer is lost.
    pub fn new(
        communicator: &'a Communicator,
        parameters: &[Tensor],
        buffers: &[Tensor],
        as_bfloat16: bool,
    ) -> Result<Self> {
        if communicator.world_size() == 1 {
            return Ok(Self { communicator, reducer: None, computed: Computed::default() });
        }
        check_equal_layouts(communicator, parameters, buffers)?;
        communicator.broadcast_all(parameters, 0)?;
        communicator.broadcast_all(buffers, 0)?;
        let mut reducer = None;
        communicator.run(Operation::Rendezvous, "set-up of the reducer", |group, _| {
            reducer = Some(Reducer::new(group, parameters, BucketSizes::default(), as_bfloat16)?);
            Ok(())
        })?;
        Ok(Self { communicator, reducer, computed: Computed::default() })
    }

    /// Accumulates the gradients of `loss`. With `synchronize`, the accumulated gradients are then averaged over the ranks;
    /// all ranks must synchronize in the same passes. Returns how long this rank waited for the others on the CPU; for a
    /// GPU see [`DataParallel::wait_for_others`].
    /// Errors: if a peer is lost, the deadline passes, or memory runs out. The pass cannot be repeated then.
    pub fn backward(&self, loss: &Tensor, synchronize: bool) -> Result<Duration> {
        let what = || self.communicator.doing("backward pass");
        let Some(reducer) = self.reducer.as_ref().filter(|_| synchronize) else {
            torch_ext::autograd::backward(loss).with_context(what)?;
            return Ok(Duration::ZERO);
        };
        let _taking_part = status::page().overlapped_collective();
        reducer.backward(loss, || self.computed.mark(self.communicator.device())).with_context(what)?;
        Ok(self.computed.waited())
    }

    /// On a GPU: waits for this rank's own part of a synchronized pass, then for the other ranks and for all work queued
    /// since. Returns the duration of the second wait. On the CPU nothing is left to wait for.
    /// Errors: if the device has failed, or a peer is lost.
    pub fn wait_for_others(&self) -> Result<Duration> {
        if self.reducer.is_none() {
            return Ok(Duration::ZERO);
        }
        self.computed
            .wait_for_others(self.communicator.device())
            .with_context(|| self.communicator.doing("all-reduce of gradients"))
    }
}

/// Checks that all ranks have the same parameters; otherwise they would hang or mix up values.
fn check_equal_layouts(communicator: &Communicator, parameters: &[Tensor], buffers: &[Tensor]) -> Result<()> {
    let layout: Vec<String> = parameters
        .iter()
        .chain(buffers)
        .map(|tensor| format!("{:?} {:?} {:?}", tensor.kind(), tensor.size(), tensor.stride()))
        .collect();
    let layouts = communicator.all_gather_bytes(layout.join("\n").as_bytes())?;
    let Some(first) = layouts.first() else { return Ok(()) };
    let Some(rank) = layouts.iter().position(|layout| layout != first) else { return Ok(()) };
    let lines = |layout: &[u8]| String::from_utf8_lossy(layout).lines().map(str::to_owned).collect::<Vec<_>>();
    let (expected, found) = (lines(first), lines(&layouts[rank]));
    let index = expected.iter().zip(&found).position(|(a, b)| a != b).unwrap_or(expected.len().min(found.len()));
    let name = |list: &[String]| list.get(index).cloned().unwrap_or_else(|| "nothing".to_owned());
    Err(Error::bug(format!(
        "rank {rank} and rank 0 have different parameters: number {index} is {} on rank {rank} and {} on rank 0; all ranks \
         need the same config and program",
        name(&found),
        name(&expected)
    )))
}

/// The time at which this rank finished its own gradients, to tell how long it waits for the others.
#[derive(Default)]
struct Computed(Cell<Option<Mark>>);

enum Mark {
    At(Instant),
    /// On a GPU, which is behind the host.
    On(Event),
}

impl Computed {
    /// Call this when the gradients are computed, or their computation is queued on the device.
    fn mark(&self, device: Device) {
        let mark = match device {
            // The next wait for the device reports that it has failed.
            Device::Cuda(index) => Event::record(index).ok().map(Mark::On),
            _ => {
                status::page().wait(Operation::GradientAllReduce);
                Some(Mark::At(Instant::now()))
            }
        };
        self.0.set(mark);
    }

    /// After a pass on the CPU: how long this rank waited for the others.
    fn waited(&self) -> Duration {
        match self.0.take() {
            Some(Mark::At(at)) => at.elapsed(),
            // On a GPU, `wait_for_others` uses the mark.
            mark => {
                self.0.set(mark);
                Duration::ZERO
            }
        }
    }

    /// After a pass that was queued on a GPU: waits for this rank's own part, then for the other ranks and for all other
    /// queued work. Returns the duration of the second wait.
    /// Errors: if the device has failed or the job is aborted.
    fn wait_for_others(&self, device: Device) -> Result<Duration> {
        let Device::Cuda(index) = device else { return Ok(Duration::ZERO) };
        let mark = self.0.take();
        let all = Event::record(index)?;
        if let Some(Mark::On(own)) = mark {
            own.wait()?;
        }
        let since = Instant::now();
        in_collective(Operation::GradientAllReduce, || Ok(all.wait()?))?;
        Ok(since.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_the_cpu_waiting_counts_from_the_mark_of_the_same_pass() {
        let computed = Computed::default();
        assert_eq!(computed.waited(), Duration::ZERO, "a pass that is not reduced");
        computed.mark(Device::Cpu);
        std::thread::sleep(Duration::from_millis(5));
        assert!(computed.waited() >= Duration::from_millis(5));
        assert_eq!(computed.waited(), Duration::ZERO, "the mark of an earlier pass");
        assert_eq!(computed.wait_for_others(Device::Cpu).unwrap(), Duration::ZERO);
    }
}

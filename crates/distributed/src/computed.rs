//! Measures how long a rank waits for the others in a backward pass, apart from its own computation.

use std::cell::Cell;
use std::time::{Duration, Instant};

use tch::Device;
use torch_ext::cuda::Event;

use fnet_common::Result;
use fnet_protocol::message::Operation;
use fnet_protocol::status;

use super::communicator::in_collective;

/// The time at which this rank finished its own gradients.
#[derive(Default)]
pub(super) struct Computed(Cell<Option<Mark>>);

enum Mark {
    At(Instant),
    /// On a GPU, which is behind the host.
    On(Event),
}

impl Computed {
    /// Call this when the gradients are computed, or their computation is queued on the device.
    pub fn mark(&self, device: Device) {
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
    pub fn waited(&self) -> Duration {
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
    pub fn wait_for_others(&self, device: Device) -> Result<Duration> {
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

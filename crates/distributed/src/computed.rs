//! When a rank is done with its own part of a pass, so that waiting for the others is told from computing.

use std::cell::Cell;
use std::time::{Duration, Instant};

use tch::Device;
use torch_ext::cuda::Event;

use fnet_common::Result;
use fnet_protocol::message::Operation;
use fnet_protocol::status;

use super::communicator::in_collective;

/// The moment at which this rank's own gradients are computed.
#[derive(Default)]
pub(super) struct Computed(Cell<Option<Mark>>);

enum Mark {
    At(Instant),
    /// A GPU comes to it later than the host.
    On(Event),
}

impl Computed {
    /// To be called when all that computes the gradients is done, or given to the device.
    pub fn mark(&self, device: Device) {
        let mark = match device {
            // A device that has failed is told by whoever waits for it.
            Device::Cuda(index) => Event::record(index).ok().map(Mark::On),
            _ => {
                status::page().wait(Operation::GradientAllReduce);
                Some(Mark::At(Instant::now()))
            }
        };
        self.0.set(mark);
    }

    /// After a pass on the CPU: how long it has waited for the other ranks.
    pub fn waited(&self) -> Duration {
        match self.0.take() {
            Some(Mark::At(at)) => at.elapsed(),
            // It belongs to `wait_for_others`.
            mark => {
                self.0.set(mark);
                Duration::ZERO
            }
        }
    }

    /// After a pass that was given to a GPU: waits for this rank's own part of it, then for the other ranks and for all else
    /// that the GPU was given. Returns how long it waited for those.
    ///
    /// # Errors
    /// If the device has failed or the job is broken off.
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
    fn on_the_cpu_waiting_counts_from_the_mark_of_its_own_pass() {
        let computed = Computed::default();
        assert_eq!(computed.waited(), Duration::ZERO, "a pass that is not reduced");
        computed.mark(Device::Cpu);
        std::thread::sleep(Duration::from_millis(5));
        assert!(computed.waited() >= Duration::from_millis(5));
        assert_eq!(computed.waited(), Duration::ZERO, "the mark of an earlier pass");
        assert_eq!(computed.wait_for_others(Device::Cpu).unwrap(), Duration::ZERO);
    }
}

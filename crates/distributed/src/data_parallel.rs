//! Data-parallel training: every rank computes gradients of its own images, all step with their mean.

use std::time::Duration;

use tch::Tensor;
use torch_ext::distributed::{BucketSizes, Reducer};

use fnet_common::{Context, Error, Result};
use fnet_protocol::message::Operation;
use fnet_protocol::status;

use super::communicator::Communicator;
use super::computed::Computed;

/// Makes backward passes leave the mean of the ranks' gradients.
pub struct DataParallel<'a> {
    communicator: &'a Communicator,
    /// None in a job of one rank.
    reducer: Option<Reducer>,
    /// When this rank had computed the gradients of the last pass.
    computed: Computed,
}

impl<'a> DataParallel<'a> {
    /// Checks that all ranks have the same parameters, gives all of them rank 0's values of `parameters` and
    /// `buffers`, and hooks into the parameters' gradients. The order is the same on every rank.
    ///
    /// # Errors
    /// A bug if the ranks' parameters differ; if a peer is lost.
    pub fn new(communicator: &'a Communicator, parameters: &[Tensor], buffers: &[Tensor]) -> Result<Self> {
        if communicator.world_size() == 1 {
            return Ok(Self { communicator, reducer: None, computed: Computed::default() });
        }
        check_equal_layouts(communicator, parameters, buffers)?;
        communicator.broadcast_all(parameters, 0)?;
        communicator.broadcast_all(buffers, 0)?;
        let mut reducer = None;
        communicator.run(Operation::Rendezvous, "set-up of the reducer", |group, _| {
            reducer = Some(Reducer::new(group, parameters, BucketSizes::default())?);
            Ok(())
        })?;
        Ok(Self { communicator, reducer, computed: Computed::default() })
    }

    /// Computes the gradients of `loss` and adds them up; with `synchronize`, leaves the mean over the ranks of what
    /// has been added up since the gradients were cleared. All ranks synchronize in the same passes. Returns how long
    /// this rank waited for the others; on a GPU [`DataParallel::wait_for_others`] does.
    ///
    /// # Errors
    /// If a peer is lost in the pass, the deadline passes, or memory runs out. The pass cannot be repeated then.
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

    /// On a GPU: waits until it has done this rank's own part of a synchronized pass, then for the other ranks and for all
    /// that it was given since. Returns how long it waited for those. On the CPU that is done when the pass is.
    ///
    /// # Errors
    /// If the device has failed, or a peer is lost.
    pub fn wait_for_others(&self) -> Result<Duration> {
        if self.reducer.is_none() {
            return Ok(Duration::ZERO);
        }
        self.computed
            .wait_for_others(self.communicator.device())
            .with_context(|| self.communicator.doing("all-reduce of gradients"))
    }
}

/// Ranks with different parameters would wait for each other or mix up values.
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
        "rank {rank} has other parameters than rank 0: number {index} is {} there and {} here; all ranks need the same \
         config and program",
        name(&found),
        name(&expected)
    )))
}

//! Synchronizes the ranks after each step: averaged losses, whether they are finite, and whether to stop or save.

use tch::Tensor;

use fnet_common::Result;
use fnet_distributed::Communicator;
use fnet_protocol::message::StopReason;

/// The result of [`sync_step`]. It is the same on every rank, so every rank makes the same decision.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// Name and mean over the ranks of each logged value, in the order of the log.
    pub losses: Vec<(&'static str, f64)>,
    /// Names of the losses that were not finite on some rank.
    pub not_finite: Vec<&'static str>,
    /// Set if any rank was asked to stop.
    pub stop: Option<StopReason>,
    /// Set if rank 0's clock says that a checkpoint is due.
    pub save: bool,
}

/// What one rank asks all ranks to do after a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StepVote {
    /// The stop request that it received.
    pub stop: Option<StopReason>,
    /// Whether a checkpoint is due.
    pub save: bool,
}

impl StepReport {
    /// The mean total loss.
    pub fn total(&self) -> f64 {
        self.losses.iter().find(|(name, _)| *name == "loss").map_or(f64::NAN, |&(_, value)| value)
    }
}

/// One all-reduce of a few numbers on the host: losses, and this rank's vote.
///
/// It runs before the update of the same step, so a bad loss can still cancel the update. A GPU computes gradients in the
/// meantime.
pub(crate) fn sync_step(
    communicator: &Communicator,
    named: &[(&'static str, f64)],
    vote: StepVote,
) -> Result<StepReport> {
    let mut values: Vec<f64> = named.iter().map(|&(_, value)| value).collect();
    let flags = [vote.save, vote.stop == Some(StopReason::Interrupted), vote.stop == Some(StopReason::Terminated)];
    values.extend(flags.map(|flag| f64::from(u8::from(flag))));
    let sums = Tensor::f_from_slice(&values)?;
    communicator.all_reduce_sum(&sums)?;
    let values = Vec::<f64>::try_from(&sums)?;
    Ok(report(named.iter().map(|&(name, _)| name), &values, communicator.world_size()))
}

fn report(names: impl Iterator<Item = &'static str>, sums: &[f64], world_size: usize) -> StepReport {
    let losses: Vec<_> = names.zip(sums).map(|(name, sum)| (name, sum / world_size as f64)).collect();
    let not_finite = losses.iter().filter(|(_, value)| !value.is_finite()).map(|&(name, _)| name).collect();
    let requested = |from_end: usize| sums[sums.len() - from_end] > 0.0;
    // Ctrl-C has priority because a person pressed it.
    let stop = if requested(2) {
        Some(StopReason::Interrupted)
    } else if requested(1) {
        Some(StopReason::Terminated)
    } else {
        None
    };
    StepReport { losses, not_finite, stop, save: requested(3) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 2] = ["loss_cls", "loss"];

    #[test]
    fn losses_are_means_over_the_ranks() {
        let report = report(NAMES.into_iter(), &[1.0, 3.0, 0.0, 0.0, 0.0], 2);
        assert_eq!(report.losses, [("loss_cls", 0.5), ("loss", 1.5)]);
        assert_eq!(report.total(), 1.5);
        assert_eq!((report.not_finite.len(), report.stop, report.save), (0, None, false));
    }

    #[test]
    fn a_stop_request_on_one_rank_stops_all_and_ctrl_c_has_priority() {
        assert_eq!(report(NAMES.into_iter(), &[0.0, 0.0, 0.0, 0.0, 1.0], 4).stop, Some(StopReason::Terminated));
        assert_eq!(report(NAMES.into_iter(), &[0.0, 0.0, 0.0, 1.0, 3.0], 4).stop, Some(StopReason::Interrupted));
    }

    #[test]
    fn all_ranks_save_when_one_rank_asks_for_it() {
        let report = report(NAMES.into_iter(), &[0.0, 0.0, 1.0, 0.0, 0.0], 4);
        assert_eq!((report.stop, report.save), (None, true));
    }

    #[test]
    fn a_loss_that_is_not_finite_on_any_rank_is_named() {
        assert_eq!(report(NAMES.into_iter(), &[f64::NAN, 1.0, 0.0, 0.0, 0.0], 2).not_finite, ["loss_cls"]);
        assert_eq!(report(NAMES.into_iter(), &[1.0, f64::INFINITY, 0.0, 0.0, 0.0], 2).not_finite, ["loss"]);
    }
}

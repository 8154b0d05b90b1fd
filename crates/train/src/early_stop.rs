//! `train.early_stop`: when a job ends before its last epoch.

use indexmap::IndexMap;

use fnet_checkpoint::native::EarlyStopState;
use fnet_config::EarlyStop;

use super::saver::better;

/// The state after an evaluation with these `metrics`, at the end of `epoch` epochs. A state of another metric does not
/// count.
pub fn after_evaluation(
    config: &EarlyStop,
    metrics: &IndexMap<String, f64>,
    epoch: usize,
    before: Option<&EarlyStopState>,
) -> Option<EarlyStopState> {
    let before = before.filter(|state| state.best.metric == config.metric);
    match (better(&config.metric, metrics, epoch, before.map(|state| &state.best)), before) {
        (Some(best), _) => Some(EarlyStopState { best, since: 0 }),
        (None, Some(state)) => Some(EarlyStopState { since: state.since + 1, ..state.clone() }),
        (None, None) => None,
    }
}

/// Whether the job ends.
pub fn is_over(config: &EarlyStop, state: Option<&EarlyStopState>) -> bool {
    state.is_some_and(|state| state.best.metric == config.metric && state.since >= config.patience)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(patience: usize) -> EarlyStop {
        EarlyStop { metric: "bbox_mAP".into(), patience }
    }

    /// The epochs after which a job with these values ends.
    fn end(patience: usize, values: &[f64]) -> Option<usize> {
        let mut state = None;
        for (epoch, &value) in (1..).zip(values) {
            let metrics = [("bbox_mAP".to_owned(), value), ("segm_mAP".to_owned(), epoch as f64)].into_iter().collect();
            state = after_evaluation(&config(patience), &metrics, epoch, state.as_ref());
            if is_over(&config(patience), state.as_ref()) {
                return Some(epoch);
            }
        }
        None
    }

    #[test]
    fn a_job_ends_after_evaluations_in_a_row_without_a_new_best() {
        assert_eq!(end(2, &[0.1, 0.2, 0.2, 0.15]), Some(4), "equal is not better");
        assert_eq!(end(2, &[0.1, 0.0, 0.2, 0.1, 0.3, 0.2]), None);
        assert_eq!(end(1, &[0.0, 0.0]), Some(2));
        assert_eq!(end(1, &[-1.0, -1.0, -1.0]), None, "undefined values say nothing");
    }

    #[test]
    fn another_metric_starts_anew_and_a_longer_patience_goes_on() {
        let metrics: IndexMap<String, f64> = [("bbox_mAP".to_owned(), 0.1), ("segm_mAP".to_owned(), 0.3)].into();
        let first = after_evaluation(&config(1), &metrics, 1, None);
        let state = after_evaluation(&config(1), &metrics, 2, first.as_ref());
        assert!(is_over(&config(1), state.as_ref()) && !is_over(&config(2), state.as_ref()));
        let other = EarlyStop { metric: "segm_mAP".into(), patience: 1 };
        assert!(!is_over(&other, state.as_ref()));
        let anew = after_evaluation(&other, &metrics, 3, state.as_ref()).unwrap();
        assert_eq!((anew.best.value, anew.since), (0.3, 0));
        let off = EarlyStop::default();
        assert!(after_evaluation(&off, &metrics, 3, None).is_none() && !is_over(&off, state.as_ref()));
    }
}

//! The reference's losses and their reductions, in float32.

use tch::{Kind, Reduction, Tensor};
use torch_ext::cuda::Download;

use super::roi_head::{RoiLosses, RoiSample};
use crate::error::Result;

/// Added to the divisor of a loss: float32's machine epsilon.
const EPSILON: f64 = 1.1920929e-7;

/// The losses of one step, each a scalar.
#[derive(Debug)]
pub struct Losses {
    /// Objectness of the anchors.
    pub rpn_cls: Tensor,
    /// Boxes of the region proposal network.
    pub rpn_bbox: Tensor,
    /// Classes of the proposals.
    pub cls: Tensor,
    /// Share of rightly classified proposals in percent; no loss.
    pub acc: Tensor,
    /// Boxes of the box head.
    pub bbox: Tensor,
    /// Masks.
    pub mask: Tensor,
    /// Proposals (and objects) that entered the loss as positives.
    pub positives: usize,
    /// Proposals that entered the loss.
    pub proposals: usize,
}

impl Losses {
    /// The losses of the proposal head (objectness, boxes) and of the heads behind it, for the RoIs of `sample`.
    pub(crate) fn new((rpn_cls, rpn_bbox): (Tensor, Tensor), roi: RoiLosses, sample: &RoiSample) -> Self {
        Self {
            rpn_cls,
            rpn_bbox,
            cls: roi.bbox.cls,
            acc: roi.bbox.acc,
            bbox: roi.bbox.bbox,
            mask: roi.mask,
            positives: sample.positives.len(),
            proposals: sample.rois.len(),
        }
    }

    /// What is minimised: the sum of all losses.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn total(&self) -> Result<Tensor> {
        let rpn = self.rpn_cls.f_add(&self.rpn_bbox)?;
        Ok(rpn.f_add(&self.cls)?.f_add(&self.bbox)?.f_add(&self.mask)?)
    }

    /// All values and their total on the host, by name, in the order of the reference's log. Waits for the device once.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn to_host(&self) -> Result<Vec<(&'static str, f64)>> {
        self.send(&self.total()?)?.arrive()
    }

    /// Begins to copy all values and `total`, which [`Losses::total`] gave, to the host.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn send(&self, total: &Tensor) -> Result<SentLosses> {
        let named = self.named().into_iter().chain([("loss", total)]);
        let (names, values): (Vec<_>, Vec<_>) =
            named.map(|(name, tensor)| (name, tensor.detach().reshape([-1]))).unzip();
        let values = Download::start(&Tensor::f_cat(&values, 0)?.f_to_kind(Kind::Double)?)?;
        Ok(SentLosses { names, values })
    }

    /// Names, as the reference logs them, and values, in its order.
    pub fn named(&self) -> [(&'static str, &Tensor); 6] {
        [
            ("loss_rpn_cls", &self.rpn_cls),
            ("loss_rpn_bbox", &self.rpn_bbox),
            ("loss_cls", &self.cls),
            ("acc", &self.acc),
            ("loss_bbox", &self.bbox),
            ("loss_mask", &self.mask),
        ]
    }
}

/// Losses on their way to the host.
#[must_use]
pub struct SentLosses {
    names: Vec<&'static str>,
    values: Download,
}

impl SentLosses {
    /// Names and values, as [`Losses::to_host`] gives them. Waits for what the device was given before they were sent.
    ///
    /// # Errors
    /// If the device fails, or the job is broken off.
    pub fn arrive(self) -> Result<Vec<(&'static str, f64)>> {
        let values = Vec::<f64>::try_from(&self.values.finish()?)?;
        Ok(self.names.into_iter().zip(values).collect())
    }
}

/// Binary cross-entropy of logits summed and divided by `count`; 0 without values.
pub(crate) fn binary_cross_entropy(logits: &Tensor, targets: &Tensor, count: usize) -> Result<Tensor> {
    let none = None::<&Tensor>;
    let logits = logits.f_to_kind(Kind::Float)?;
    let sum = logits.f_binary_cross_entropy_with_logits(targets, none, none, Reduction::Sum)?;
    divide(&sum, count)
}

/// Absolute difference summed and divided by `count`; 0 without values.
pub(crate) fn l1(values: &Tensor, targets: &Tensor, count: usize) -> Result<Tensor> {
    divide(&values.f_to_kind(Kind::Float)?.f_l1_loss(targets, Reduction::Sum)?, count)
}

/// Cross-entropy of class scores `[n, classes]` summed and divided by n; 0 without values.
pub(crate) fn cross_entropy(scores: &Tensor, labels: &Tensor) -> Result<Tensor> {
    let count = scores.size2()?.0 as usize;
    let scores = scores.f_to_kind(Kind::Float)?;
    let sum = scores.f_cross_entropy_loss(labels, None::<&Tensor>, Reduction::Sum, -100, 0.0)?;
    divide(&sum, count.max(1))
}

/// Share in percent of rows of `scores` whose greatest value stands at the label; 0 without rows.
pub(crate) fn accuracy(scores: &Tensor, labels: &Tensor) -> Result<Tensor> {
    let _guard = tch::no_grad_guard();
    let (rows, _) = scores.size2()?;
    if rows == 0 {
        return Ok(Tensor::f_zeros([], (Kind::Float, scores.device()))?);
    }
    let right = scores.f_argmax(1, false)?.f_eq_tensor(labels)?;
    Ok(right.f_sum(Kind::Float)?.f_mul_scalar(100.0 / rows as f64)?)
}

fn divide(sum: &Tensor, count: usize) -> Result<Tensor> {
    Ok(sum.f_div_scalar(count as f64 + EPSILON)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(tensor: Result<Tensor>) -> f64 {
        f64::try_from(tensor.unwrap()).unwrap()
    }

    #[test]
    fn losses_are_sums_over_the_given_count() {
        let logits = Tensor::from_slice(&[0.0f32, 2.0]);
        let targets = Tensor::from_slice(&[1.0f32, 0.0]);
        let expected = (2.0f64.ln() + (1.0 + 2.0f64.exp()).ln()) / 4.0;
        assert!((value(binary_cross_entropy(&logits, &targets, 4)) - expected).abs() < 1e-6);
        assert!((value(l1(&logits, &targets, 2)) - 1.5).abs() < 1e-6);
        let scores = Tensor::from_slice(&[0.0f32, 0.0, 0.0, 3.0]).reshape([2, 2]);
        let labels = Tensor::from_slice(&[1i64, 1]);
        let expected = (2.0f64.ln() + (1.0 + (-3.0f64).exp()).ln()) / 2.0;
        assert!((value(cross_entropy(&scores, &labels)) - expected).abs() < 1e-6);
        assert_eq!(value(accuracy(&scores, &labels)), 50.0);
    }

    #[test]
    fn losses_of_nothing_are_zero_and_stay_in_the_graph() {
        let empty = Tensor::zeros([0, 4], (Kind::Float, tch::Device::Cpu)).set_requires_grad(true);
        let labels = Tensor::zeros([0], (Kind::Int64, tch::Device::Cpu));
        for loss in [l1(&empty, &empty.detach(), 0), cross_entropy(&empty, &labels)] {
            let loss = loss.unwrap();
            assert!(loss.requires_grad());
            assert_eq!(value(Ok(loss)), 0.0);
        }
        assert_eq!(value(accuracy(&empty, &labels)), 0.0);
    }
}

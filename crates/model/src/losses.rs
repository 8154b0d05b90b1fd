//! The reference's losses and their reductions, in float32.

use tch::{Device, Kind, Reduction, Tensor};
use torch_ext::cuda::Download;

use fnet_common::Result;

use super::pack::Pack;
use super::roi_head::{RoiLosses, RoiSample};

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
    /// Their sum, where it was made with them.
    joined: Option<Tensor>,
}

/// A loss, as long as it stands alone.
#[derive(Debug)]
pub struct Loss {
    /// A scalar in float32.
    pub value: Tensor,
    /// What the value has still to be divided by: on a GPU all losses are divided in one call.
    divisor: Option<f64>,
}

impl Losses {
    /// The losses of the proposal head (objectness, boxes) and of the heads behind it, for the RoIs of `sample`.
    pub fn new((rpn_cls, rpn_bbox): (Loss, Loss), roi: RoiLosses, sample: &RoiSample) -> Result<Self> {
        let device = rpn_cls.value.device();
        let all = [rpn_cls, rpn_bbox, roi.bbox.cls, roi.bbox.bbox, roi.mask];
        let (values, joined) = match device {
            Device::Cpu => (all.map(|loss| loss.value), None),
            device => join(&all, device).map(|(values, total)| (values, Some(total)))?,
        };
        let [rpn_cls, rpn_bbox, cls, bbox, mask] = values;
        let (acc, positives, proposals) = (roi.bbox.acc, sample.positives.len(), sample.rois.len());
        Ok(Self { rpn_cls, rpn_bbox, cls, acc, bbox, mask, positives, proposals, joined })
    }

    /// What is minimized: the sum of all losses.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn total(&self) -> Result<Tensor> {
        if let Some(total) = &self.joined {
            return Ok(total.shallow_clone());
        }
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

/// All losses divided in one call, and their sum.
fn join(losses: &[Loss; 5], device: Device) -> Result<([Tensor; 5], Tensor)> {
    let mut pack = Pack::default();
    let divisors = losses.each_ref().map(|loss| loss.divisor.unwrap_or(1.0) as f32);
    let divisors = pack.list(&divisors);
    let divisors = pack.send(device)?.table(&divisors)?;
    let sums = losses.iter().map(|loss| Ok(loss.value.f_reshape([1])?)).collect::<Result<Vec<_>>>()?;
    let values = Tensor::f_cat(&sums, 0)?.f_div(&divisors)?;
    let value = |place: i64| values.f_select(0, place);
    Ok(([value(0)?, value(1)?, value(2)?, value(3)?, value(4)?], values.f_sum(Kind::Float)?))
}

/// Binary cross-entropy of logits summed and divided by `count`; 0 without values.
pub fn binary_cross_entropy(logits: &Tensor, targets: &Tensor, count: usize) -> Result<Loss> {
    divide(cross_entropy_of_logits(logits, targets, Reduction::Sum)?, count as f64 + EPSILON)
}

/// The mean of the binary cross-entropy of logits; without any 0, still in the graph.
pub fn mean_binary_cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Loss> {
    if logits.numel() == 0 {
        return Ok(Loss { value: logits.f_sum(Kind::Float)?, divisor: None });
    }
    if logits.device() == Device::Cpu {
        return Ok(Loss { value: cross_entropy_of_logits(logits, targets, Reduction::Mean)?, divisor: None });
    }
    divide(cross_entropy_of_logits(logits, targets, Reduction::Sum)?, logits.numel() as f64)
}

fn cross_entropy_of_logits(logits: &Tensor, targets: &Tensor, reduction: Reduction) -> Result<Tensor> {
    let (logits, none) = (logits.f_to_kind(Kind::Float)?, None::<&Tensor>);
    Ok(logits.f_binary_cross_entropy_with_logits(targets, none, none, reduction)?)
}

/// Absolute difference summed and divided by `count`; 0 without values.
pub fn l1(values: &Tensor, targets: &Tensor, count: usize) -> Result<Loss> {
    divide(values.f_to_kind(Kind::Float)?.f_l1_loss(targets, Reduction::Sum)?, count as f64 + EPSILON)
}

/// Cross-entropy of class scores `[n, classes]` summed and divided by n; 0 without values.
pub fn cross_entropy(scores: &Tensor, labels: &Tensor) -> Result<Loss> {
    let count = scores.size2()?.0 as usize;
    let scores = scores.f_to_kind(Kind::Float)?;
    let sum = scores.f_cross_entropy_loss(labels, None::<&Tensor>, Reduction::Sum, -100, 0.0)?;
    divide(sum, count.max(1) as f64 + EPSILON)
}

/// Share in percent of rows of `scores` whose greatest value stands at the label; 0 without rows.
pub fn accuracy(scores: &Tensor, labels: &Tensor) -> Result<Tensor> {
    let _guard = tch::no_grad_guard();
    let (rows, _) = scores.size2()?;
    if rows == 0 {
        return Ok(Tensor::f_zeros([], (Kind::Float, scores.device()))?);
    }
    let right = scores.f_argmax(1, false)?.f_eq_tensor(labels)?;
    Ok(right.f_sum(Kind::Float)?.f_mul_scalar(100.0 / rows as f64)?)
}

fn divide(sum: Tensor, divisor: f64) -> Result<Loss> {
    match sum.device() {
        Device::Cpu => Ok(Loss { value: sum.f_div_scalar(divisor)?, divisor: None }),
        _ => Ok(Loss { value: sum, divisor: Some(divisor) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(loss: Result<Loss>) -> f64 {
        f64::try_from(loss.unwrap().value).unwrap()
    }

    fn number(tensor: Result<Tensor>) -> f64 {
        f64::try_from(tensor.unwrap()).unwrap()
    }

    #[test]
    fn losses_divided_together_are_those_divided_one_by_one() {
        let sums = [3.0f32, 0.0, -7.25, 1e-3, 511.0].map(|sum| Tensor::from(sum).set_requires_grad(true));
        let divisors = [Some(512.0 + EPSILON), Some(1.0 + EPSILON), Some(3.0), None, Some(7.0)];
        let mut place = 0..;
        let losses = sums.each_ref().map(|sum| {
            let divisor = divisors[place.next().unwrap()];
            Loss { value: sum.shallow_clone(), divisor }
        });
        let (values, total) = join(&losses, Device::Cpu).unwrap();
        let one_by_one: Vec<Tensor> =
            sums.iter().zip(divisors).map(|(sum, divisor)| sum.f_div_scalar(divisor.unwrap_or(1.0)).unwrap()).collect();
        assert!(values.iter().zip(&one_by_one).all(|(a, b)| a == b));
        let sum = one_by_one.iter().sum::<Tensor>();
        assert!((f64::try_from(&total).unwrap() - f64::try_from(&sum).unwrap()).abs() < 1e-5);
        let gradients = |total: &Tensor| Tensor::run_backward(&[total], &sums.each_ref(), false, false);
        assert_eq!(gradients(&total), gradients(&sum));
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
        assert_eq!(number(accuracy(&scores, &labels)), 50.0);
    }

    #[test]
    fn losses_of_nothing_are_zero_and_stay_in_the_graph() {
        let empty = Tensor::zeros([0, 4], (Kind::Float, tch::Device::Cpu)).set_requires_grad(true);
        let labels = Tensor::zeros([0], (Kind::Int64, tch::Device::Cpu));
        for loss in [l1(&empty, &empty.detach(), 0), cross_entropy(&empty, &labels)] {
            let loss = loss.unwrap();
            assert!(loss.value.requires_grad());
            assert_eq!(value(Ok(loss)), 0.0);
        }
        assert_eq!(number(accuracy(&empty, &labels)), 0.0);
    }
}

//! MMDetection's losses and their reductions, in float32.

use tch::{Device, Kind, Reduction, Tensor};
use torch_ext::cuda::Download;

use fnet_common::Result;

use super::pack::{Pack, Table};

/// Added to the divisor of a loss: float32's machine epsilon.
const EPSILON: f64 = 1.1920929e-7;

/// The name of the accuracy in MMDetection's log.
const ACCURACY: &str = "acc";

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
    /// Masks, if the model has them.
    pub mask: Option<Tensor>,
    /// Proposals (and objects) that entered the loss as positives.
    pub positives: usize,
    /// Proposals that entered the loss.
    pub proposals: usize,
    /// Their sum, where it was made with them, and all values: accuracy, losses, sum.
    joined: Option<(Tensor, Tensor)>,
}

/// A loss (or the accuracy), as long as it stands alone.
#[derive(Debug)]
pub struct Loss {
    /// A scalar in float32.
    pub value: Tensor,
    /// What the value has still to be divided by: on a GPU all losses are divided in one call.
    divisor: Option<f64>,
}

impl Losses {
    /// `losses` are those of the proposal head (objectness, boxes) and the box head (classes, boxes), and `mask` that of the
    /// mask head, for `proposals` RoIs, `positives` of them with an object.
    pub fn new(losses: [Loss; 4], mask: Option<Loss>, acc: Loss, positives: usize, proposals: usize) -> Result<Self> {
        let [rpn_cls, rpn_bbox, cls, bbox] = losses;
        let joined = match acc.value.device() {
            Device::Cpu => None,
            _ => Some(join([&acc, &rpn_cls, &rpn_bbox, &cls, &bbox].into_iter().chain(&mask))?),
        };
        let value = |place: i64, loss: Loss| -> Result<Tensor> {
            joined.as_ref().map_or(Ok(loss.value), |(_, values)| Ok(values.f_select(0, place)?))
        };
        Ok(Self {
            acc: value(0, acc)?,
            rpn_cls: value(1, rpn_cls)?,
            rpn_bbox: value(2, rpn_bbox)?,
            cls: value(3, cls)?,
            bbox: value(4, bbox)?,
            mask: mask.map(|mask| value(5, mask)).transpose()?,
            positives,
            proposals,
            joined,
        })
    }

    /// What is minimized: the sum of all losses.
    pub fn total(&self) -> Result<Tensor> {
        if let Some((total, _)) = &self.joined {
            return Ok(total.shallow_clone());
        }
        let rpn = self.rpn_cls.f_add(&self.rpn_bbox)?;
        let boxes = rpn.f_add(&self.cls)?.f_add(&self.bbox)?;
        Ok(self.mask.as_ref().map_or(Ok(boxes.shallow_clone()), |mask| boxes.f_add(mask))?)
    }

    /// All values and their total on the host, by name, in the order of MMDetection's log. Waits for the device once.
    pub fn to_host(&self) -> Result<Vec<(&'static str, f64)>> {
        self.send(&self.total()?)?.arrive()
    }

    /// Begins to copy all values and `total`, which [`Losses::total`] gave, to the host.
    pub fn send(&self, total: &Tensor) -> Result<SentLosses> {
        let (mut names, values): (Vec<_>, Vec<_>) = self.named().into_iter().chain([("loss", total)]).unzip();
        if let Some((_, values)) = &self.joined {
            // The accuracy is the first of the joined values.
            names[..4].rotate_right(1);
            return Ok(SentLosses { names, values: Download::start(values)? });
        }
        let values: Vec<Tensor> = values.into_iter().map(|tensor| tensor.detach().reshape([-1])).collect();
        Ok(SentLosses { names, values: Download::start(&Tensor::f_cat(&values, 0)?)? })
    }

    /// Names, as MMDetection logs them, and values, in its order.
    pub fn named(&self) -> Vec<(&'static str, &Tensor)> {
        let mut named = vec![
            ("loss_rpn_cls", &self.rpn_cls),
            ("loss_rpn_bbox", &self.rpn_bbox),
            ("loss_cls", &self.cls),
            (ACCURACY, &self.acc),
            ("loss_bbox", &self.bbox),
        ];
        named.extend(self.mask.as_ref().map(|mask| ("loss_mask", mask)));
        named
    }
}

/// Losses on their way to the host.
#[must_use]
pub struct SentLosses {
    /// The name of each value.
    names: Vec<&'static str>,
    values: Download,
}

impl SentLosses {
    /// Names and values, as [`Losses::to_host`] gives them. Waits for what the device was given before they were sent.
    /// Errors: if the device fails, or the job is broken off.
    pub fn arrive(self) -> Result<Vec<(&'static str, f64)>> {
        let values = Vec::<f32>::try_from(&self.values.finish()?)?;
        let mut named: Vec<_> = self.names.into_iter().zip(values.into_iter().map(f64::from)).collect();
        if named.first().is_some_and(|(name, _)| *name == ACCURACY) {
            named[..4].rotate_left(1);
        }
        Ok(named)
    }
}

/// The sum of the losses, which are behind the accuracy, and all values with it.
fn join<'l>(all: impl Iterator<Item = &'l Loss>) -> Result<(Tensor, Tensor)> {
    let (values, divisors): (Vec<&Tensor>, Vec<f64>) =
        all.map(|loss| (&loss.value, loss.divisor.unwrap_or(1.0))).unzip();
    Ok(torch_ext::losses::join(&values, &divisors, 1)?)
}

/// Adds to `pack` the targets of a binary cross-entropy on `device`, each 0 or 1: on a GPU as what a logit is multiplied by, -1
/// for 1 and 1 for 0.
pub(crate) fn binary_targets(targets: &[u8], shape: &[i64], device: Device, pack: &mut Pack) -> Table {
    if device == Device::Cpu {
        return pack.add(targets, shape);
    }
    let signs: Vec<i8> = targets.iter().map(|&target| if target == 0 { 1 } else { -1 }).collect();
    pack.add(&signs, shape)
}

/// Binary cross-entropy of logits summed and divided by `count`; 0 without values. Targets are [`binary_targets`].
pub(crate) fn binary_cross_entropy(logits: &Tensor, targets: &Tensor, count: usize) -> Result<Loss> {
    divide(cross_entropy_of_logits(logits, targets, Reduction::Sum)?, count as f64 + EPSILON)
}

/// The mean of the binary cross-entropy of logits; without any 0, still in the graph. Targets are [`binary_targets`].
pub(crate) fn mean_binary_cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Loss> {
    if logits.numel() == 0 {
        return Ok(Loss { value: logits.f_sum(Kind::Float)?, divisor: None });
    }
    if targets.kind() != Kind::Int8 {
        return Ok(Loss { value: cross_entropy_of_logits(logits, targets, Reduction::Mean)?, divisor: None });
    }
    divide(cross_entropy_of_logits(logits, targets, Reduction::Sum)?, logits.numel() as f64)
}

fn cross_entropy_of_logits(logits: &Tensor, targets: &Tensor, reduction: Reduction) -> Result<Tensor> {
    let (logits, none) = (logits.f_to_kind(Kind::Float)?, None::<&Tensor>);
    if targets.kind() == Kind::Int8 {
        // ln(1 + exp(-logit)) for a 1, ln(1 + exp(logit)) for a 0, in three calls and two of the backward pass.
        return Ok(logits.f_mul(targets)?.f_softplus()?.f_sum(Kind::Float)?);
    }
    let targets = targets.f_to_kind(Kind::Float)?;
    Ok(logits.f_binary_cross_entropy_with_logits(&targets, none, none, reduction)?)
}

/// Absolute difference summed and divided by `count`; 0 without values.
pub fn l1(values: &Tensor, targets: &Tensor, count: usize) -> Result<Loss> {
    let values = values.f_to_kind(Kind::Float)?;
    let sum = match values.device() {
        Device::Cpu => values.f_l1_loss(targets, Reduction::Sum)?,
        _ => l1_in_one_call(&values, targets)?,
    };
    divide(sum, count as f64 + EPSILON)
}

/// The smooth loss whose round part is narrower than any difference of boxes: the same values and gradients.
fn l1_in_one_call(values: &Tensor, targets: &Tensor) -> Result<Tensor> {
    const ROUND: f64 = 1e-30;
    Ok(values.f_smooth_l1_loss(targets, Reduction::Sum, ROUND)?)
}

/// Cross-entropy of class scores `[n, classes]` summed and divided by n; 0 without values.
pub(crate) fn cross_entropy(scores: &Tensor, labels: &Tensor) -> Result<Loss> {
    let count = scores.size2()?.0 as usize;
    let scores = scores.f_to_kind(Kind::Float)?;
    let sum = scores.f_cross_entropy_loss(labels, None::<&Tensor>, Reduction::Sum, -100, 0.0)?;
    divide(sum, count.max(1) as f64 + EPSILON)
}

/// Share in percent of rows of `scores` whose maximum is at the label; 0 without rows.
pub fn accuracy(scores: &Tensor, labels: &Tensor) -> Result<Loss> {
    let _guard = tch::no_grad_guard();
    let (rows, _) = scores.size2()?;
    if rows == 0 {
        return Ok(Loss { value: Tensor::f_zeros([0; 0], (Kind::Float, scores.device()))?, divisor: None });
    }
    let right = scores.f_argmax(1, false)?.f_eq_tensor(labels)?.f_sum(Kind::Float)?;
    match right.device() {
        Device::Cpu => Ok(Loss { value: right.f_mul_scalar(100.0 / rows as f64)?, divisor: None }),
        _ => Ok(Loss { value: right, divisor: Some(rows as f64 / 100.0) }),
    }
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

    #[test]
    fn values_that_were_joined_arrive_under_their_names() {
        for has_mask in [true, false] {
            let losses = [50.0f32, 1.0, 2.0, 3.0, 4.0, 5.0].map(|sum| Loss { value: Tensor::from(sum), divisor: None });
            let (total, all) = join(losses.iter().take(if has_mask { 6 } else { 5 })).unwrap();
            let value = |place: i64| all.select(0, place);
            let [acc, rpn_cls, rpn_bbox, cls, bbox] = [0, 1, 2, 3, 4].map(value);
            let mask = has_mask.then(|| value(5));
            let joined = Some((total.shallow_clone(), all.shallow_clone()));
            let joined = Losses { rpn_cls, rpn_bbox, cls, acc, bbox, mask, positives: 0, proposals: 0, joined };
            let names = joined.to_host().unwrap();
            let alone = Losses { joined: None, ..joined };
            assert_eq!(names, alone.to_host().unwrap());
            let sum = if has_mask { 15.0 } else { 10.0 };
            assert_eq!((names[3], names.last().unwrap()), (("acc", 50.0), &("loss", sum)));
        }
    }

    #[test]
    fn on_a_gpu_losses_and_gradients_are_the_same_in_fewer_calls() {
        let leaf = |values: &Tensor| values.copy().set_requires_grad(true);
        let gradient = |loss: &Tensor, leaf: &Tensor| Tensor::run_backward(&[loss], &[leaf], false, false).remove(0);
        // From where a rectifier is all that is left of the logarithm to there on the other side.
        let values = Tensor::linspace(-90.0, 90.0, 721, (Kind::Float, Device::Cpu));
        let targets: Vec<u8> = (0..721).map(|i| u8::from(i % 3 == 0)).collect();
        let (mut pack, shape) = (Pack::default(), [721]);
        let [cpu, gpu] =
            [Device::Cpu, Device::Cuda(0)].map(|device| binary_targets(&targets, &shape, device, &mut pack));
        let sent = pack.send(Device::Cpu).unwrap();
        let (a, b) = (leaf(&values), leaf(&values));
        let plain = mean_binary_cross_entropy(&a, &sent.table(&cpu).unwrap()).unwrap().value;
        let few = mean_binary_cross_entropy(&b, &sent.table(&gpu).unwrap()).unwrap().value;
        assert!(few.allclose(&plain, 1e-6, 0.0, false));
        assert!(gradient(&few, &b).allclose(&gradient(&plain, &a), 1e-6, 1e-9, false));

        let targets = &values * 0.99 + 1.0;
        let (plain, few) = (a.l1_loss(&targets, Reduction::Sum), l1_in_one_call(&b, &targets).unwrap());
        assert_eq!(plain, few);
        assert_eq!(gradient(&plain, &a), gradient(&few, &b));
        let same = l1_in_one_call(&b, &values).unwrap();
        assert_eq!(gradient(&same, &b), values.zeros_like());
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
            assert!(loss.value.requires_grad());
            assert_eq!(value(Ok(loss)), 0.0);
        }
        assert_eq!(value(accuracy(&empty, &labels)), 0.0);
    }
}

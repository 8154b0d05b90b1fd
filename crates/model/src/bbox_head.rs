//! The box head: class and refined box of every RoI.

use tch::Tensor;

use fnet_common::Result;
use fnet_config as config;

use super::Parameters;
use super::init::Init;
use super::layers::Linear;
use super::losses::{self, Loss};

/// Two shared fully connected layers and one for classes and boxes each.
#[derive(Debug)]
pub struct BboxHead {
    cls: Linear,
    reg: Linear,
    shared: [Linear; 2],
    classes: i64,
}

impl BboxHead {
    /// Adds its tensors to `parameters` below `prefix`; `inputs` are the channels of the features.
    pub fn new(parameters: &mut Parameters, prefix: &str, inputs: i64, model: &config::Model) -> Result<Self> {
        let (classes, width) = (model.num_classes as i64, model.roi_head.bbox_fc_channels as i64);
        let inputs = inputs * (model.roi_head.bbox_roi_size * model.roi_head.bbox_roi_size) as i64;
        let mut linear = |name: &str, inputs, outputs, init| {
            Linear::new(parameters, &format!("{prefix}.{name}"), inputs, outputs, init)
        };
        Ok(Self {
            cls: linear("fc_cls", width, classes + 1, Init::Normal(0.01))?,
            reg: linear("fc_reg", width, 4 * classes, Init::Normal(0.001))?,
            shared: [
                linear("shared_fcs.0", inputs, width, Init::xavier_uniform(inputs, width))?,
                linear("shared_fcs.1", width, width, Init::xavier_uniform(width, width))?,
            ],
            classes,
        })
    }

    /// Scores `[k, classes + 1]`, background last, and deltas `[k, 4 * classes]` of RoI features `[k, c, s, s]`.
    pub fn forward(&self, features: &Tensor) -> Result<(Tensor, Tensor)> {
        let mut hidden = features.f_flatten(1, 3)?;
        for layer in &self.shared {
            hidden = layer.forward_rectified(&hidden)?;
        }
        Ok((self.cls.forward(&hidden)?, self.reg.forward(&hidden)?))
    }

    /// For a positive RoI at `row`, of the class `label`, its own among all rows of deltas `[k * classes, 4]`.
    pub fn own_deltas(&self, row: i64, label: i64) -> i64 {
        row * self.classes + label
    }

    /// Class loss, accuracy and box loss. `labels` `[k]`; `own` `[p]` are the positive RoIs' [`BboxHead::own_deltas`] and
    /// `targets` `[p, 4]` what those should be: only the columns of a positive's own class enter the loss.
    pub fn loss(
        &self,
        scores: &Tensor,
        deltas: &Tensor,
        labels: &Tensor,
        own: &Tensor,
        targets: &Tensor,
    ) -> Result<BboxLosses> {
        let (rows, _) = scores.size2()?;
        let deltas = deltas.f_reshape([rows * self.classes, 4])?.f_index_select(0, own)?;
        Ok(BboxLosses {
            cls: losses::cross_entropy(scores, labels)?,
            acc: losses::accuracy(scores, labels)?,
            bbox: losses::l1(&deltas, targets, rows as usize)?,
        })
    }
}

/// What [`BboxHead::loss`] gives.
pub struct BboxLosses {
    /// Cross entropy of the classes.
    pub cls: Loss,
    /// Share of RoIs with the right class, in percent; not a loss.
    pub acc: Loss,
    /// L1 of the deltas of the positives.
    pub bbox: Loss,
}

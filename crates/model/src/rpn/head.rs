//! The head's layers: at every place of a level, a logit and deltas for each of its anchors.

use tch::{Device, Kind, Tensor};
use torch_ext::levels::rectify;

use fnet_common::Result;

use crate::Parameters;
use crate::anchors::Size;
use crate::init::Init;
use crate::layers::{Conv2d, ConvShape};

/// Normal with this deviation is where the head's convolutions start.
const INIT: Init = Init::Normal(0.01);

#[derive(Debug)]
pub(crate) struct Head {
    pub(super) conv: Conv2d,
    pub(super) cls: Conv2d,
    pub(super) reg: Conv2d,
    /// Anchors of a place.
    pub(super) per_place: usize,
}

/// Both answers of the head as one layer: a logit of each shape, then the four deltas of each.
pub(crate) struct JoinedHead {
    /// `[outputs, channels]`.
    pub(super) weight: Tensor,
    pub(super) bias: Option<Tensor>,
}

/// See [`super::RpnOutput`].
pub(super) struct HeadOutput {
    pub logits: Vec<Tensor>,
    pub deltas: Vec<Tensor>,
    /// Height and width of each level.
    pub sizes: Vec<Size>,
    pub joined: Option<Tensor>,
}

impl Head {
    /// Adds its tensors to `parameters` below `prefix`, for `inputs` channels of the levels, `width` hidden ones and
    /// `per_place` anchors of a place.
    pub fn new(
        parameters: &mut Parameters,
        prefix: &str,
        (inputs, width, per_place): (i64, i64, usize),
    ) -> Result<Self> {
        let mut conv = |name: &str, shape| Conv2d::new(parameters, &format!("{prefix}.{name}"), shape, INIT);
        let anchors = per_place as i64;
        Ok(Self {
            conv: conv("rpn_conv", ConvShape::same(inputs, width, 3, true))?,
            cls: conv("rpn_cls", ConvShape::same(width, anchors, 1, true))?,
            reg: conv("rpn_reg", ConvShape::same(width, 4 * anchors, 1, true))?,
            per_place,
        })
    }

    /// Level by level.
    pub(super) fn forward(&self, levels: &[Tensor]) -> Result<HeadOutput> {
        let (mut logits, mut deltas, mut sizes) = (Vec::new(), Vec::new(), Vec::new());
        for level in levels {
            let (images, _, height, width) = level.size4()?;
            let hidden = self.conv.forward(level)?.f_relu_()?;
            // Channels-last memory already has the order (row, column, anchor): no values move.
            let last = |x: Tensor| -> Result<Tensor> { Ok(x.f_permute([0, 2, 3, 1])?) };
            let anchors = height * width * self.per_place as i64;
            logits.push(last(self.cls.forward(&hidden)?)?.f_reshape([images, anchors])?);
            deltas.push(last(self.reg.forward(&hidden)?)?.f_reshape([images, anchors, 4])?);
            sizes.push((height as usize, width as usize));
        }
        Ok(HeadOutput { logits, deltas, sizes, joined: None })
    }

    /// Where time goes by calls, both answers in one layer; none on the CPU, whose sums would round in another way.
    pub fn joined(&self) -> Result<Option<JoinedHead>> {
        Ok(if self.cls.weight().device() == Device::Cpu { None } else { Some(self.join()?) })
    }

    pub(super) fn join(&self) -> Result<JoinedHead> {
        let weight = Tensor::f_cat(&[self.cls.window_weight()?, self.reg.window_weight()?], 0)?;
        let bias = match (self.cls.bias(), self.reg.bias()) {
            (Some(cls), Some(reg)) => Some(Tensor::f_cat(&[cls, reg], 0)?),
            _ => None,
        };
        Ok(JoinedHead { weight, bias })
    }

    /// All levels rectified in one call, both answers by one convolution a level, and the answers of all levels in one tensor
    /// each. Without gradient.
    pub(super) fn forward_joined(&self, levels: &[Tensor], head: &JoinedHead) -> Result<HeadOutput> {
        let _guard = tch::no_grad_guard();
        let hidden = levels.iter().map(|level| self.conv.forward(level)).collect::<Result<Vec<_>>>()?;
        rectify(&hidden)?;
        let (outputs, channels) = head.weight.size2()?;
        let per_place = self.per_place as i64;
        let (mut logits, mut deltas, mut sizes) = (Vec::new(), Vec::new(), Vec::new());
        let mut layer: Option<(Tensor, Option<Tensor>)> = None;
        for hidden in &hidden {
            // Cast once under autocast, which would do it for each level.
            let (weight, bias) = match &mut layer {
                Some(layer) => layer,
                none => {
                    let weight = head.weight.f_reshape([outputs, channels, 1, 1])?.f_to_kind(hidden.kind())?;
                    none.insert((weight, head.bias.as_ref().map(|bias| bias.f_to_kind(hidden.kind())).transpose()?))
                }
            };
            let (images, _, height, width) = hidden.size4()?;
            let answers = hidden.f_conv2d(weight, bias.as_ref(), [1, 1], [0, 0], [1, 1], 1)?;
            let rows = answers.f_permute([0, 2, 3, 1])?.f_reshape([images, height * width, outputs])?;
            logits.push(rows.f_narrow(2, 0, per_place)?);
            deltas.push(rows.f_narrow(2, per_place, 4 * per_place)?);
            sizes.push((height as usize, width as usize));
        }
        let (images, ..) = levels.first().map_or(Ok((0, 0, 0, 0)), Tensor::size4)?;
        let all = |parts: &[Tensor]| Tensor::f_cat(parts, 1)?.f_to_kind(Kind::Float);
        let logits = all(&logits)?.f_reshape([images, -1])?;
        let deltas = all(&deltas)?.f_reshape([images, -1, 4])?;
        let counts: Vec<i64> = sizes.iter().map(|&(height, width)| (height * width) as i64 * per_place).collect();
        Ok(HeadOutput {
            deltas: deltas.f_split_with_sizes(&counts[..], 1)?,
            logits: logits.f_split_with_sizes(&counts[..], 1)?,
            sizes,
            joined: Some(logits),
        })
    }
}

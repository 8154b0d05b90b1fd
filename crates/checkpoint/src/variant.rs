//! Recognizes the FasterNet variant of a set of weights.

use std::fmt;

use fnet_common::{Error, Result};
use fnet_model::Parameters;

/// Prefix of the backbone's tensors in a detector.
pub(super) const BACKBONE: &str = "backbone.";

/// Width and depths of a FasterNet backbone, as read from the names and shapes of its tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variant {
    /// Channels of the first stage.
    pub embed_dim: i64,
    /// Blocks in each of the four stages.
    pub depths: [usize; 4],
}

/// The published family.
const FAMILY: [(&str, i64, [usize; 4]); 6] = [
    ("FasterNet-T0", 40, [1, 2, 8, 2]),
    ("FasterNet-T1", 64, [1, 2, 8, 2]),
    ("FasterNet-T2", 96, [1, 2, 8, 2]),
    ("FasterNet-S", 128, [1, 2, 13, 2]),
    ("FasterNet-M", 144, [3, 4, 18, 3]),
    ("FasterNet-L", 192, [3, 4, 18, 3]),
];

impl Variant {
    /// Recognizes the backbone among `tensors`; its names start with `prefix` (such as `backbone.`).
    pub fn recognize<'a>(prefix: &str, tensors: impl IntoIterator<Item = (&'a str, &'a [i64])>) -> Option<Self> {
        let (mut embed_dim, mut depths) = (None, [0; 4]);
        for (name, size) in tensors {
            let Some(name) = name.strip_prefix(prefix) else { continue };
            if name == "patch_embed.proj.weight" {
                embed_dim = size.first().copied();
            } else if let Some((stage, block)) = place(name) {
                depths[stage] = depths[stage].max(block + 1);
            }
        }
        let embed_dim = embed_dim?;
        depths.iter().all(|&depth| depth > 0).then_some(Self { embed_dim, depths })
    }

    /// Refuses weights of this variant for a model of another one. Some names and shapes agree, so loading them would break
    /// the model silently.
    /// Errors: a data error that names both.
    pub fn check(&self, parameters: &Parameters) -> Result<()> {
        let tensors: Vec<_> = parameters.iter().map(|(name, _, tensor)| (name, tensor.size())).collect();
        match Self::recognize(BACKBONE, tensors.iter().map(|(name, size)| (*name, size.as_slice()))) {
            Some(wanted) if wanted != *self => Err(Error::data(format!(
                "the file has weights of {self}, but the config's backbone is {wanted}: give a file for that backbone, or \
                 change model.backbone"
            ))),
            _ => Ok(()),
        }
    }

    /// The published name, if it has one.
    pub fn name(&self) -> Option<&'static str> {
        FAMILY.iter().find(|(_, width, depths)| (*width, *depths) == (self.embed_dim, self.depths)).map(|known| known.0)
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name().unwrap_or("a custom FasterNet");
        write!(f, "{name} (embed_dim {}, depths {:?})", self.embed_dim, self.depths)
    }
}

/// Stage and block of a name such as `stages.4.blocks.7.mlp.0.weight`; stages have even numbers.
fn place(name: &str) -> Option<(usize, usize)> {
    let (stage, rest) = name.strip_prefix("stages.")?.split_once(".blocks.")?;
    let stage = ["0", "2", "4", "6"].iter().position(|&known| known == stage)?;
    let block: usize = rest.split('.').next()?.parse().ok()?;
    (block < 1024).then_some((stage, block))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_are_recognized_by_width_and_depths() {
        let names: Vec<String> = [(0, 1), (2, 2), (4, 13), (6, 2)]
            .iter()
            .flat_map(|&(stage, depth)| {
                (0..depth).map(move |block| format!("b.stages.{stage}.blocks.{block}.mlp.0.weight"))
            })
            .chain(["b.patch_embed.proj.weight".to_owned()])
            .collect();
        let tensors = names.iter().map(|name| (name.as_str(), &[128_i64, 3, 4, 4][..]));
        let variant = Variant::recognize("b.", tensors.clone()).unwrap();
        assert_eq!(variant.name(), Some("FasterNet-S"));
        assert_eq!(variant.to_string(), "FasterNet-S (embed_dim 128, depths [1, 2, 13, 2])");
        assert_eq!(Variant::recognize("", tensors), None);
    }
}

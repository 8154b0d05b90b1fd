//! Backbones: from images to feature maps of falling resolution.
//!
//! A backbone is a file of this folder with a [`BackboneKind`], which is listed in [`KINDS`]. `model.backbone.kind` chooses
//! one by its name; the other fields of `[model.backbone]` mean what the kind says.

pub mod fasternet;
mod kind;

use fnet_common::{Error, Result};

pub use kind::{Backbone, BackboneKind};

pub(crate) const KINDS: &[BackboneKind] = &[fasternet::KIND];

/// The kind of this name.
/// Errors: a usage error if there is none.
pub fn find(name: &str) -> Result<&'static BackboneKind> {
    KINDS.iter().find(|kind| kind.name == name).ok_or_else(|| {
        let names: Vec<String> = KINDS.iter().map(|kind| format!("{:?}", kind.name)).collect();
        Error::usage(format!("model.backbone.kind is {name:?}; expected {}", names.join(" or ")))
    })
}

#[cfg(test)]
mod tests {
    use fnet_common::ErrorKind;
    use fnet_config as config;
    use tch::{Device, Kind, Tensor};

    use super::*;
    use crate::Parameters;
    use crate::counted_layers::{Layers, Map};
    use crate::layers::Statistics;

    #[test]
    fn a_kind_that_nobody_wrote_is_refused_with_those_that_exist() {
        let error = find("no-such-kind").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().contains("\"no-such-kind\"; expected "), "{error}");
    }

    #[test]
    fn every_tensor_of_every_kind_belongs_to_a_stage() {
        for kind in KINDS {
            let config = config::Backbone { kind: kind.name.into(), ..config::Backbone::default() };
            let mut parameters = Parameters::new();
            (kind.build)(&mut parameters, "backbone", &config).unwrap();
            let mut seen = [0; 5];
            for (name, ..) in parameters.iter() {
                let stage = (kind.stage_of)(name.strip_prefix("backbone.").unwrap());
                seen[stage.unwrap_or_else(|| panic!("{}: {name}", kind.name))] += 1;
            }
            assert!(seen.iter().all(|&count| count > 0), "{}: {seen:?}", kind.name);
        }
    }

    #[test]
    fn outputs_and_layers_of_every_kind_agree() {
        for kind in KINDS {
            let config = config::Backbone { kind: kind.name.into(), ..config::Backbone::default() };
            let mut parameters = Parameters::new();
            let backbone = (kind.build)(&mut parameters, "backbone", &config).unwrap();
            // Images are padded to multiples of 32.
            for (height, width) in [(64, 96), (32, 32)] {
                let images = Tensor::zeros([1, 3, height, width], (Kind::Float, Device::Cpu));
                let outputs = tch::no_grad(|| backbone.forward(&images, Statistics::Running, None).unwrap());
                let made: Vec<_> = outputs.iter().map(|output| output.size4().unwrap()).collect();
                let image = Map { channels: 3, height: height as u64, width: width as u64 };
                let mut layers = Layers::default();
                let maps = (kind.layers)(&config, image, &mut layers);
                let counted: Vec<_> =
                    maps.iter().map(|map| (1, map.channels as i64, map.height as i64, map.width as i64)).collect();
                assert_eq!(counted, made, "{}: outputs of layers() and forward()", kind.name);
                let sizes: Vec<_> = backbone.output_sizes((height as usize, width as usize));
                let sizes: Vec<_> = sizes.into_iter().map(|(height, width)| (height as i64, width as i64)).collect();
                assert_eq!(sizes, made.iter().map(|size| (size.2, size.3)).collect::<Vec<_>>(), "{}", kind.name);
                assert_eq!((kind.channels)(&config).to_vec(), made.iter().map(|size| size.1).collect::<Vec<_>>());
                let mut counted: Vec<(String, u64)> =
                    layers.into_vec().into_iter().map(|layer| (layer.name, layer.params)).collect();
                counted.retain(|(_, params)| *params > 0);
                counted.sort();
                let mut built: std::collections::BTreeMap<String, u64> = std::collections::BTreeMap::new();
                for (name, tensor) in parameters.trainable() {
                    let layer = name.rsplit_once('.').unwrap().0;
                    *built.entry(layer.to_owned()).or_default() += tensor.numel() as u64;
                }
                assert_eq!(
                    counted,
                    built.into_iter().collect::<Vec<_>>(),
                    "{}: layers and their parameters",
                    kind.name
                );
            }
        }
    }
}

//! `flops`: the cost of a model per image, computed from shapes. No weights are allocated.
//!
//! MMDetection's `get_flops.py` counts a multiply-add as one operation, with these rules:
//!
//! - convolution: kernel area * inputs * outputs * positions of the result, and one more per value of the result for a
//!   bias;
//! - transposed convolution: the same with the positions of its input;
//! - fully connected layer: inputs * outputs, without the bias;
//! - BatchNorm: two per value; ReLU: one per value; GELU and everything outside a counted layer (resampling, sums,
//!   RoIAlign, suppression): nothing.
//!
//! The heads are counted on 1000 RoIs (boxes) and the first 100 of them (masks).

use std::fmt;

use serde::Serialize;

use fnet_common::{Error, Result};
use fnet_config as config;

use crate::backbones;

mod walk;

pub use crate::counted_layers::{Layer, LayerKind, Layers, Map};
pub use walk::{BBOX_ROIS, MASK_ROIS};

/// Sums of one module.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Cost {
    /// Operations by MMDetection's rule.
    pub flops: u64,
    /// Multiply-adds.
    pub macs: u64,
    /// Trainable values.
    pub params: u64,
    /// Output values of convolutions and fully connected layers.
    pub activations: u64,
}

impl Cost {
    fn add(&mut self, layer: &Layer) {
        self.flops += layer.flops;
        self.macs += layer.macs;
        self.params += layer.params;
        self.activations += layer.activations;
    }
}

/// The cost of a model for one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FlopsReport {
    /// Of all modules.
    #[serde(flatten)]
    pub total: Cost,
    /// Height and width of the image.
    pub shape: [usize; 2],
    /// The same by module.
    pub per_module: indexmap::IndexMap<String, Cost>,
    /// The same by layer, in MMDetection's order.
    pub layers: Vec<Layer>,
    /// Output values of the backbone's parts that are not counted, such as GELU.
    #[serde(skip)]
    pub uncounted: u64,
    #[serde(skip)]
    backbone: String,
}

/// The modules in the report, in order.
const MODULES: [&str; 5] = ["backbone", "neck", "rpn_head", "roi_head.bbox_head", MASK_HEAD];
/// The module that a model without masks does not have.
const MASK_HEAD: &str = "roi_head.mask_head";

/// Counts one image of `height` x `width` pixels. Sides need not be multiples of 32.
/// Errors: a usage error if the image is too small for the backbone's total stride of 32.
pub fn count(model: &config::Model, height: usize, width: usize) -> Result<FlopsReport> {
    if height < 32 || width < 32 {
        return Err(Error::usage(format!(
            "--shape {height} {width}: expected at least 32 x 32 pixels; --size-divisor 32 rounds the sides up"
        )));
    }
    let layers = walk::layers_of(model, height as u64, width as u64)?;
    let (uncounted, layers) = (layers.uncounted_values(), layers.into_vec());
    let mut total = Cost::default();
    let modules = MODULES.iter().filter(|module| model.mask || **module != MASK_HEAD);
    let mut per_module: indexmap::IndexMap<String, Cost> =
        modules.map(|module| ((*module).to_owned(), Cost::default())).collect();
    for layer in &layers {
        total.add(layer);
        for (_, cost) in per_module.iter_mut().filter(|(module, _)| is_below(&layer.name, module)) {
            cost.add(layer);
        }
    }
    let backbone = model.backbone.kind.clone();
    Ok(FlopsReport { total, shape: [height, width], per_module, layers, uncounted, backbone })
}

fn is_below(name: &str, module: &str) -> bool {
    name.strip_prefix(module).is_some_and(|rest| rest.starts_with('.'))
}

impl FlopsReport {
    /// Operations as apparently counted by the paper: its 258, 344 and 484 G for S, M and L match MMDetection's count
    /// without the last two layers of the mask head.
    pub fn paper_flops(&self) -> u64 {
        let left_out = ["roi_head.mask_head.upsample", "roi_head.mask_head.conv_logits"];
        self.layers.iter().filter(|layer| !left_out.contains(&layer.name.as_str())).map(|layer| layer.flops).sum()
    }
}

/// The table. The first lines are in MMDetection's format.
impl fmt::Display for FlopsReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = "=".repeat(30);
        let [height, width] = self.shape;
        writeln!(f, "{line}\nInput shape: (3, {height}, {width})")?;
        writeln!(f, "Flops: {:.2} GFLOPs\nParams: {:.2} M\n{line}", giga(self.total.flops), mega(self.total.params))?;
        writeln!(f, "{:<20} {:>10} {:>10} {:>9} {:>13}", "module", "GFLOPs", "GMACs", "M params", "M activations")?;
        for (module, cost) in
            self.per_module.iter().map(|(module, cost)| (module.as_str(), cost)).chain([("total", &self.total)])
        {
            writeln!(
                f,
                "{module:<20} {:>10.3} {:>10.3} {:>9.3} {:>13.3}",
                giga(cost.flops),
                giga(cost.macs),
                mega(cost.params),
                mega(cost.activations)
            )?;
        }
        let has_masks = self.per_module.contains_key(MASK_HEAD);
        let mask_head = if has_masks { format!(" and the mask head {MASK_ROIS}") } else { String::new() };
        write!(
            f,
            "FLOPs by MMDetection's rule: a multiply-add is one; biases, norms and ReLU count; GELU, resampling, sums,\n\
             RoIAlign, softmax and NMS do not. The box head processes {BBOX_ROIS} RoIs{mask_head}.\n\
             MACs: multiply-adds of convolutions and fully connected layers, without biases.\n\
             Activations: the output values of these layers."
        )?;
        if self.backbone != backbones::fasternet::KIND.name || !has_masks {
            return Ok(());
        }
        write!(
            f,
            "\nThe paper lists 258, 344 and 484 GFLOPs for S, M and L. They match this count without the mask head's\n\
             transposed convolution and class logits, which leaves {:.2} GFLOPs here.",
            giga(self.paper_flops())
        )
    }
}

fn giga(count: u64) -> f64 {
    count as f64 / 1e9
}

fn mega(count: u64) -> f64 {
    count as f64 / 1e6
}

#[cfg(test)]
mod tests;

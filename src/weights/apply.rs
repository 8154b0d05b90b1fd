//! Puts weights of a file into a model, and says what became of each.

use std::fmt;
use std::path::PathBuf;

use super::lazy::LazyTensor;
use super::load::Weights;
use super::variant::Variant;
use crate::error::{Context, Error, Result};
use crate::model::{LoadReport, Parameters, ShapeConflict};

/// Where the backbone's tensors lie in a detector.
const BACKBONE: &str = "backbone.";

/// What a load did; prints as one line.
#[derive(Debug)]
pub struct Summary {
    /// The file.
    pub path: PathBuf,
    /// What became of each name. A tensor of another shape is in `conflicts` and stays new in the model.
    pub report: LoadReport,
}

impl Weights {
    /// Loads a detector's weights into `parameters`. `allow_partial` permits that few or none of the model's tensors
    /// are in the file, and that some have other shapes, such as the class layers of a model for other classes; they
    /// keep their initial values.
    ///
    /// # Errors
    /// If the backbones are of different variants; without `allow_partial` also if a shape differs or less than half
    /// of the model's tensors are in the file; if the file cannot be read. Only the last leaves a changed model.
    pub fn load_detector(&self, parameters: &Parameters, allow_partial: bool) -> Result<Summary> {
        self.load("", self.iter().collect(), parameters, allow_partial)
    }

    /// Loads the weights of a backbone into that of `parameters`: of an ImageNet checkpoint, whose names are the
    /// backbone's own, or of a detector, of which the rest is left out. The BatchNorm layers of the four outputs,
    /// which classification lacks, keep their initial values.
    ///
    /// # Errors
    /// As [`Weights::load_detector`], for the backbone alone.
    pub fn load_backbone(&self, parameters: &Parameters, allow_partial: bool) -> Result<Summary> {
        let of_detector: Vec<_> =
            self.iter().filter_map(|(name, tensor)| name.strip_prefix(BACKBONE).map(|name| (name, tensor))).collect();
        let source = if of_detector.is_empty() { self.iter().collect() } else { of_detector };
        self.load(BACKBONE, source, parameters, allow_partial)
    }

    fn load(
        &self,
        prefix: &str,
        source: Vec<(&str, &LazyTensor)>,
        parameters: &Parameters,
        allow_partial: bool,
    ) -> Result<Summary> {
        let place = || format!("loading weights from {}", self.path().display());
        self.check_variant(parameters).with_context(place)?;
        let plan = Plan::new(prefix, source, parameters);
        if !allow_partial {
            plan.check(parameters).with_context(place)?;
        }
        let mut failure = None;
        let tensors = plan.fitting.iter().map_while(|(name, tensor)| match tensor.load() {
            Ok(tensor) => Some((*name, tensor)),
            Err(error) => {
                failure = Some(error.context(*name));
                None
            }
        });
        let mut report = parameters.load_below(prefix, tensors).with_context(place)?;
        if let Some(error) = failure {
            return Err(error).with_context(place);
        }
        report.unexpected = plan.unexpected;
        report.conflicts = plan.conflicts;
        Ok(Summary { path: self.path().to_owned(), report })
    }

    /// Weights of one variant fit no other; where names and some shapes agree, the model would be broken silently.
    fn check_variant(&self, parameters: &Parameters) -> Result<()> {
        let tensors: Vec<_> = parameters.iter().map(|(name, _, tensor)| (name, tensor.size())).collect();
        let wanted = Variant::recognise(BACKBONE, tensors.iter().map(|(name, size)| (*name, size.as_slice())));
        match (self.variant(), wanted) {
            (Some(found), Some(wanted)) if found != wanted => Err(Error::data(format!(
                "the file holds weights of {found}, but the config's backbone is {wanted}: give the file for that \
                 backbone, or change model.backbone"
            ))),
            _ => Ok(()),
        }
    }
}

/// What is to be done with each tensor of a file.
struct Plan<'a> {
    prefix: &'a str,
    fitting: Vec<(&'a str, &'a LazyTensor)>,
    unexpected: Vec<String>,
    conflicts: Vec<ShapeConflict>,
}

impl<'a> Plan<'a> {
    fn new(prefix: &'a str, source: Vec<(&'a str, &'a LazyTensor)>, parameters: &Parameters) -> Self {
        let (mut fitting, mut unexpected, mut conflicts) = (Vec::new(), Vec::new(), Vec::new());
        for (name, tensor) in source {
            let full = format!("{prefix}{name}");
            match parameters.get(&full).map(|own| own.size()) {
                None => unexpected.push(name.to_owned()),
                Some(expected) if expected != tensor.size() => {
                    conflicts.push(ShapeConflict { name: full, expected, found: tensor.size().to_vec() });
                }
                Some(_) => fitting.push((name, tensor)),
            }
        }
        Self { prefix, fitting, unexpected, conflicts }
    }

    fn check(&self, parameters: &Parameters) -> Result<()> {
        if let Some(first) = self.conflicts.first() {
            let remedy = match self.classes() {
                Some((found, expected)) => format!(
                    "the file is for {found} classes, the config's model.num_classes is {expected}; with \
                     --allow-partial the class layers start anew"
                ),
                None => "give the file that fits the config; with --allow-partial these tensors start anew".into(),
            };
            return Err(Error::data(format!(
                "{} of the file's tensors have other shapes than the model's (first: {} is {:?}, the model's {:?}): \
                 {remedy}",
                self.conflicts.len(),
                first.name,
                first.found,
                first.expected
            )));
        }
        let counted = |name: &str| name.starts_with(self.prefix) && !name.ends_with(".num_batches_tracked");
        let wanted = parameters.iter().filter(|(name, ..)| counted(name)).count();
        let found = self.fitting.iter().filter(|(name, _)| !name.ends_with(".num_batches_tracked")).count();
        if 2 * found >= wanted {
            return Ok(());
        }
        let is_backbone = self.prefix.is_empty() && self.unexpected.iter().any(|name| name.starts_with("patch_embed."));
        let remedy = if is_backbone {
            "they are weights of a backbone: set model.backbone.pretrained to the file".to_owned()
        } else {
            let examples = self.unexpected.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
            format!("the file's other names are such as {examples:?}. With --allow-partial the rest starts anew")
        };
        Err(Error::data(format!("only {found} of the model's {wanted} tensors are in the file: {remedy}")))
    }

    /// Number of classes of the file and of the model, if that is where they differ.
    fn classes(&self) -> Option<(i64, i64)> {
        let layer = self.conflicts.iter().find(|conflict| conflict.name.ends_with("bbox_head.fc_cls.weight"))?;
        Some((layer.found.first()? - 1, layer.expected.first()? - 1))
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = &self.report;
        let loaded = report.loaded.len();
        write!(f, "loaded {loaded} tensors from {}", self.path.display())?;
        for (what, names) in [("new", &report.missing), ("unused", &report.unexpected)] {
            write!(f, "; {what}: {}", names.len())?;
            if !names.is_empty() {
                write!(f, " ({})", abridge(names))?;
            }
        }
        if let Some(first) = report.conflicts.first() {
            let count = report.conflicts.len();
            write!(f, "; of another shape: {count} (first: {} is {:?})", first.name, first.found)?;
        }
        Ok(())
    }
}

/// The layers that `names` belong to, the first few of them.
fn abridge(names: &[String]) -> String {
    const SHOWN: usize = 6;
    let mut layers: Vec<&str> = Vec::new();
    for name in names {
        let layer = name.rsplit_once('.').map_or(name.as_str(), |(layer, _)| layer);
        if !layers.contains(&layer) {
            if layers.len() == SHOWN {
                return format!("{}, ...", layers.join(", "));
            }
            layers.push(layer);
        }
    }
    layers.join(", ")
}

#[cfg(test)]
mod tests;

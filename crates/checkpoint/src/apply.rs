//! Puts weights of a file into a model, and says what became of each.

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;

use fnet_common::{Context, Error, Result};
use fnet_model::{LoadReport, Parameters, ShapeConflict};

use super::lazy::LazyTensor;
use super::load::Weights;
use super::variant::BACKBONE;

/// How much of what is loaded must be in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Every tensor, in its shape: to evaluate, or to go on training.
    All,
    /// At least half of the tensors, and none in another shape: to start a training from.
    Most,
    /// Whatever fits, such as all but the class layers of a detector of other classes; the rest keeps its initial values.
    Any,
}

impl Need {
    /// What a command needs whose `--allow-partial` is `given`, and that needs `otherwise` without it.
    pub fn unless_partial(given: bool, otherwise: Self) -> Self {
        if given { Self::Any } else { otherwise }
    }
}

/// What a load did; prints as one line.
#[derive(Debug)]
pub struct Summary {
    /// The file.
    pub path: PathBuf,
    /// What became of each name. A tensor of another shape is in `conflicts` and stays new in the model.
    pub report: LoadReport,
}

impl Weights {
    /// Loads a detector's weights into `parameters`.
    ///
    /// # Errors
    /// If the backbones are of different variants, or less than `need` asks for is in the file; if the file cannot be
    /// read. Only the last leaves a changed model.
    pub fn load_detector(&self, parameters: &Parameters, need: Need) -> Result<Summary> {
        self.load("", self.iter().collect(), parameters, need)
    }

    /// Loads the weights of a backbone into that of `parameters`: of an ImageNet checkpoint, whose names are the
    /// backbone's own, or of a detector, of which the rest is left out. The BatchNorm layers of the four outputs,
    /// which classification lacks, keep their initial values.
    ///
    /// # Errors
    /// As [`Weights::load_detector`], for the backbone alone.
    pub fn load_backbone(&self, parameters: &Parameters, need: Need) -> Result<Summary> {
        let of_detector: Vec<_> =
            self.iter().filter_map(|(name, tensor)| name.strip_prefix(BACKBONE).map(|name| (name, tensor))).collect();
        let source = if of_detector.is_empty() { self.iter().collect() } else { of_detector };
        self.load(BACKBONE, source, parameters, need)
    }

    fn load(
        &self,
        prefix: &str,
        source: Vec<(&str, &LazyTensor)>,
        parameters: &Parameters,
        need: Need,
    ) -> Result<Summary> {
        let place = || format!("loading weights from {}", self.path().display());
        self.variant().map_or(Ok(()), |found| found.check(parameters)).with_context(place)?;
        let plan = TrainSchedule::new(prefix, source, parameters);
        plan.check(parameters, need).with_context(place)?;
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
}

/// What is to be done with each tensor of a file.
struct TrainSchedule<'a> {
    prefix: &'a str,
    fitting: Vec<(&'a str, &'a LazyTensor)>,
    unexpected: Vec<String>,
    conflicts: Vec<ShapeConflict>,
}

impl<'a> TrainSchedule<'a> {
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

    fn check(&self, parameters: &Parameters, need: Need) -> Result<()> {
        if need == Need::Any {
            return Ok(());
        }
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
        let found: HashSet<&str> = self.fitting.iter().map(|(name, _)| *name).collect();
        // Older files lack the counters of batches.
        let wanted = parameters.iter().map(|(name, ..)| name).filter(|name| !name.ends_with(".num_batches_tracked"));
        let wanted: Vec<&str> = wanted.filter_map(|name| name.strip_prefix(self.prefix)).collect();
        let missing: Vec<&str> = wanted.iter().copied().filter(|name| !found.contains(name)).collect();
        let allowed = if need == Need::All { 0 } else { wanted.len() / 2 };
        if missing.len() <= allowed {
            return Ok(());
        }
        Err(Error::data(format!(
            "only {} of the model's {} tensors are in the file, {} is not: {}",
            wanted.len() - missing.len(),
            wanted.len(),
            missing[0],
            self.remedy()
        )))
    }

    /// What to do about a file that has too little of the model.
    fn remedy(&self) -> String {
        if self.prefix.is_empty() && self.unexpected.iter().any(|name| name.starts_with("patch_embed.")) {
            return "they are weights of a backbone: train with model.backbone.pretrained set to the file".into();
        }
        let others = self.unexpected.iter().take(3).map(|name| printable(name)).collect::<Vec<_>>().join(", ");
        let others =
            if others.is_empty() { String::new() } else { format!(" (the file's other names: {others}, ...)") };
        format!("give the config that the weights were trained with{others}, or go on without them by --allow-partial")
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
    let mut layers: Vec<String> = Vec::new();
    for name in names {
        let layer = printable(name.rsplit_once('.').map_or(name.as_str(), |(layer, _)| layer));
        if !layers.contains(&layer) {
            if layers.len() == SHOWN {
                return format!("{}, ...", layers.join(", "));
            }
            layers.push(layer);
        }
    }
    layers.join(", ")
}

/// A name out of a file for people's eyes: a hostile one must not control the terminal, or fill it.
fn printable(name: &str) -> String {
    const LONGEST: usize = 100;
    let mut shown: String = name.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if name.chars().nth(LONGEST).is_some() {
        shown.push_str("...");
    }
    shown
}

#[cfg(test)]
mod tests;

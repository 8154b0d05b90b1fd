//! Loads weights of a file into a model and reports the result.

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;

use fnet_common::{Context, Error, Result};
use fnet_model::{LoadReport, Parameters, ShapeConflict};
use tch::Tensor;

use super::classes::{ClassMatch, Classes, differs_by_classes, is_of_classes, unmatched};
use super::lazy::LazyTensor;
use super::load::Weights;
use super::variant::BACKBONE;

/// How many of the model's tensors must be in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// All tensors with their shapes: to evaluate, or to resume training.
    All,
    /// At least half of the tensors, and none with another shape (but see [`Weights::load_to_train`]): to start training.
    Most,
    /// Any matching tensors, such as all except the class layers; the rest keeps its initial values.
    Any,
}

impl Need {
    /// `Any` if `--allow-partial` is given, else `otherwise`.
    pub fn unless_partial(given: bool, otherwise: Self) -> Self {
        if given { Self::Any } else { otherwise }
    }
}

/// The result of loading weights; printed as one line.
#[derive(Debug)]
pub struct Summary {
    /// The file.
    pub path: PathBuf,
    /// The result for each name. A tensor with another shape is in `conflicts` and keeps its initial values.
    pub report: LoadReport,
    /// What else the line says.
    pub note: Option<String>,
}

impl Weights {
    /// Loads a detector's weights into `parameters`.
    /// Errors: if the backbones are of different variants, the file has less than `need` requires, or the file cannot
    /// be read. Only in the last case the model may be changed.
    pub fn load_detector(&self, parameters: &Parameters, need: Need) -> Result<Summary> {
        self.load("", self.iter().collect(), parameters, need, None)
    }

    /// Loads a detector's weights to start a training, perhaps of other classes: the layers with rows for each class are then
    /// re-initialized, except for rows that `classes` match. A mask head that only one of the two has is no error.
    /// Errors: as [`Weights::load_detector`]; a data error if classes should be matched and the file does not name
    /// them.
    pub fn load_to_train(&self, parameters: &Parameters, need: Need, classes: Classes<'_>) -> Result<Summary> {
        self.load("", self.iter().collect(), parameters, need, Some(classes))
    }

    /// Loads the weights of a backbone: of an ImageNet checkpoint, or of a detector, of which only the backbone is used. The
    /// BatchNorm layers of the four outputs, which a classifier does not have, keep their initial values.
    /// Errors: as [`Weights::load_detector`], for the backbone.
    pub fn load_backbone(&self, parameters: &Parameters, need: Need) -> Result<Summary> {
        let of_detector: Vec<_> =
            self.iter().filter_map(|(name, tensor)| name.strip_prefix(BACKBONE).map(|name| (name, tensor))).collect();
        let source = if of_detector.is_empty() { self.iter().collect() } else { of_detector };
        self.load(BACKBONE, source, parameters, need, None)
    }

    fn load(
        &self,
        prefix: &str,
        source: Vec<(&str, &LazyTensor)>,
        parameters: &Parameters,
        need: Need,
        classes: Option<Classes<'_>>,
    ) -> Result<Summary> {
        let place = || format!("loading weights from {}", self.path().display());
        self.variant().map_or(Ok(()), |found| found.check(parameters)).with_context(place)?;
        let mut plan = LoadPlan::new(prefix, source, parameters);
        let matching = match classes.filter(|classes| classes.match_names) {
            Some(classes) => Some(ClassMatch::new(classes, self.class_count()).with_context(place)?),
            None => None,
        };
        if matching.is_some() {
            plan.take_by_class(parameters);
        }
        plan.check(parameters, need, classes.is_some()).with_context(place)?;
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
        let mut note = match &classes {
            Some(classes) => unmatched(classes, plan.classes()).filter(|_| matching.is_none()),
            None => None,
        };
        if let Some(matching) = matching {
            for (name, tensor) in &plan.by_class {
                let tensor = tensor.load().with_context(|| (*name).to_owned()).with_context(place)?;
                let own = parameters.get(name).ok_or_else(|| Error::bug(format!("{name} is not in the model")))?;
                matching.copy(name, own, &tensor).with_context(place)?;
            }
            report.missing.retain(|missing| !plan.by_class.iter().any(|(name, _)| name == missing));
            report.loaded.extend(plan.by_class.iter().map(|(name, _)| (*name).to_owned()));
            note = Some(matching.to_string());
        }
        report.unexpected = plan.unexpected;
        report.conflicts = plan.conflicts;
        Ok(Summary { path: self.path().to_owned(), report, note })
    }

    /// The number of classes of a detector.
    fn class_count(&self) -> Option<usize> {
        let rows = self.get("roi_head.bbox_head.fc_cls.bias")?.size().first().copied()?;
        usize::try_from(rows - 1).ok()
    }
}

/// What to do with each tensor of a file.
struct LoadPlan<'a> {
    prefix: &'a str,
    source: Vec<(&'a str, &'a LazyTensor)>,
    fitting: Vec<(&'a str, &'a LazyTensor)>,
    /// Class layers of which some rows are taken.
    by_class: Vec<(&'a str, &'a LazyTensor)>,
    unexpected: Vec<String>,
    conflicts: Vec<ShapeConflict>,
}

impl<'a> LoadPlan<'a> {
    fn new(prefix: &'a str, source: Vec<(&'a str, &'a LazyTensor)>, parameters: &Parameters) -> Self {
        let (mut fitting, mut unexpected, mut conflicts) = (Vec::new(), Vec::new(), Vec::new());
        for &(name, tensor) in &source {
            let full = format!("{prefix}{name}");
            match parameters.get(&full).map(|own| own.size()) {
                None => unexpected.push(name.to_owned()),
                Some(expected) if expected != tensor.size() => {
                    conflicts.push(ShapeConflict { name: full, expected, found: tensor.size().to_vec() });
                }
                Some(_) => fitting.push((name, tensor)),
            }
        }
        Self { prefix, fitting, by_class: Vec::new(), unexpected, conflicts, source }
    }

    /// Takes the class layers row by row, whether their numbers of classes are the same or not.
    fn take_by_class(&mut self, parameters: &Parameters) {
        let is_row_wise = |name: &str, tensor: &LazyTensor| {
            let own = parameters.get(name).map(Tensor::size).unwrap_or_default();
            is_of_classes(name) && !own.is_empty() && own.get(1..) == tensor.size().get(1..)
        };
        self.by_class = self.source.iter().copied().filter(|(name, tensor)| is_row_wise(name, tensor)).collect();
        let taken: HashSet<&str> = self.by_class.iter().map(|(name, _)| *name).collect();
        self.fitting.retain(|(name, _)| !taken.contains(name));
        self.conflicts.retain(|conflict| !taken.contains(conflict.name.as_str()));
    }

    /// `other_classes`: whether the file may have other classes than the model.
    fn check(&self, parameters: &Parameters, need: Need, other_classes: bool) -> Result<()> {
        if need == Need::Any {
            return Ok(());
        }
        let is_wrong = |conflict: &&ShapeConflict| !(other_classes && differs_by_classes(conflict));
        if let Some(first) = self.conflicts.iter().find(is_wrong) {
            let remedy = match self.classes().filter(|_| is_of_classes(&first.name)) {
                Some((found, expected)) => format!(
                    "the file is for {found} classes, the config's model.num_classes is {expected}; --allow-partial \
                     re-initializes the class layers"
                ),
                None => "give a file that matches the config; --allow-partial re-initializes these tensors".into(),
            };
            return Err(Error::data(format!(
                "{} tensors have different shapes in the file and the model (first: {} is {:?} in the file, {:?} in the \
                 model): {remedy}",
                self.conflicts.iter().filter(is_wrong).count(),
                first.name,
                first.found,
                first.expected
            )));
        }
        let found: HashSet<&str> = self.fitting.iter().chain(&self.by_class).map(|(name, _)| *name).collect();
        // Older files lack the counters of batches.
        let wanted = parameters.iter().map(|(name, ..)| name).filter(|name| !name.ends_with(".num_batches_tracked"));
        let wanted: Vec<&str> = wanted.filter_map(|name| name.strip_prefix(self.prefix)).collect();
        let missing: Vec<&str> = wanted.iter().copied().filter(|name| !found.contains(name)).collect();
        let allowed = if need == Need::All { 0 } else { wanted.len() / 2 };
        if missing.len() <= allowed {
            return Ok(());
        }
        Err(Error::data(format!(
            "only {} of the model's {} tensors are in the file ({} is missing): {}",
            wanted.len() - missing.len(),
            wanted.len(),
            missing[0],
            self.remedy()
        )))
    }

    /// What to do if the file has too few of the model's tensors.
    fn remedy(&self) -> String {
        if self.prefix.is_empty() && self.unexpected.iter().any(|name| name.starts_with("patch_embed.")) {
            return "these are weights of a backbone: train with model.backbone.pretrained set to the file".into();
        }
        let others = self.unexpected.iter().take(3).map(|name| printable(name)).collect::<Vec<_>>().join(", ");
        let others =
            if others.is_empty() { String::new() } else { format!(" (the file's other names: {others}, ...)") };
        format!("give the config that the weights were trained with{others}, or use --allow-partial")
    }

    /// Numbers of classes of the file and of the model, if they differ.
    fn classes(&self) -> Option<(i64, i64)> {
        let layer = self.conflicts.iter().find(|conflict| conflict.name.ends_with("bbox_head.fc_cls.weight"))?;
        Some((layer.found.first()? - 1, layer.expected.first()? - 1)).filter(|(found, expected)| found != expected)
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
            write!(f, "; different shape: {count} (first: {} is {:?})", first.name, first.found)?;
        }
        const MASK_HEAD: &str = "roi_head.mask_head.conv_logits.weight";
        if report.missing.iter().any(|name| name == MASK_HEAD) {
            f.write_str("; the mask head is re-initialized")?;
        }
        if report.unexpected.iter().any(|name| name == MASK_HEAD) {
            f.write_str("; the file's mask head is left out, because model.mask is false")?;
        }
        self.note.as_ref().map_or(Ok(()), |note| write!(f, "; {note}"))
    }
}

/// The first few layers that `names` belong to.
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

/// Escapes and shortens a name of a file for display: a hostile one must not control or fill the terminal.
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

//! The class-dependent layers of a detector, and what of them a model for other classes takes over.

use tch::Tensor;

use fnet_common::text::{list, quoted};
use fnet_common::{Error, Result};
use fnet_model::ShapeConflict;

/// Names that messages list.
const LISTED: usize = 8;

/// The layers with rows for each class: prefix of their tensors, rows of a class, and whether the background follows as one
/// more class.
const LAYERS: [(&str, i64, bool); 3] = [
    ("roi_head.bbox_head.fc_cls.", 1, true),
    ("roi_head.bbox_head.fc_reg.", 4, false),
    ("roi_head.mask_head.conv_logits.", 1, false),
];

fn layer(name: &str) -> Option<(i64, bool)> {
    LAYERS.iter().find(|(prefix, ..)| name.starts_with(prefix)).map(|&(_, rows, background)| (rows, background))
}

/// Whether a tensor belongs to a layer with rows for each class.
pub(super) fn is_of_classes(name: &str) -> bool {
    layer(name).is_some()
}

/// Whether two shapes differ only in the number of classes.
pub(super) fn differs_by_classes(conflict: &ShapeConflict) -> bool {
    is_of_classes(&conflict.name) && conflict.found.get(1..) == conflict.expected.get(1..)
}

/// The names of the classes of a file and of the model whose training starts from it.
#[derive(Debug, Clone, Copy)]
pub struct Classes<'a> {
    /// In the order of the file's labels; empty if the file does not name them.
    pub file: &'a [String],
    /// In the order of the model's labels.
    pub model: &'a [String],
    /// Whether classes of the same name keep their rows; otherwise all rows stay where they are if their number is the same.
    pub match_names: bool,
}

/// Which class of a file each class of the model continues.
#[derive(Debug)]
pub(super) struct ClassMatch<'a> {
    classes: Classes<'a>,
    sources: Vec<Option<usize>>,
}

impl<'a> ClassMatch<'a> {
    /// Matches the names; of several classes with one name, the first with the first and so on. `in_file` is the number of
    /// classes of the file's detector, if it has one.
    /// Errors: a data error if the file does not name its classes, or another number.
    pub fn new(classes: Classes<'a>, in_file: Option<usize>) -> Result<Self> {
        let named = classes.file.len();
        if named == 0 {
            return Err(Error::data(
                "the file does not name its classes, so they cannot be matched: checkpoints of fnet do, and .pth files with \
                 meta.CLASSES, as MMDetection writes them; leave out --match-classes (train.match_classes) to \
                 re-initialize the class layers",
            ));
        }
        if let Some(count) = in_file.filter(|&count| count != named) {
            return Err(Error::data(format!(
                "the file names {named} classes, but its detector has {count}, so they cannot be matched: leave out \
                 --match-classes (train.match_classes) to re-initialize the class layers"
            )));
        }
        let mut free: Vec<Option<&String>> = classes.file.iter().map(Some).collect();
        let mut take = |name: &String| {
            let place = free.iter().position(|other| *other == Some(name))?;
            free[place] = None;
            Some(place)
        };
        Ok(Self { sources: classes.model.iter().map(&mut take).collect(), classes })
    }

    /// Copies the rows of matched classes and of the background from `file` to `own`, the tensor `name` of the model.
    /// Errors: a bug if a tensor has another number of rows than its classes say.
    pub fn copy(&self, name: &str, own: &Tensor, file: &Tensor) -> Result<()> {
        let Some((rows, has_background)) = layer(name) else { return Ok(()) };
        let of = |classes: usize| (classes as i64 + i64::from(has_background)) * rows;
        let sizes = [own, file].map(|tensor| tensor.size().first().copied().unwrap_or(0));
        let expected = [of(self.sources.len()), of(self.classes.file.len())];
        if sizes != expected {
            return Err(Error::bug(format!("{name} has {sizes:?} rows in the model and the file, not {expected:?}")));
        }
        let background = has_background.then_some((self.sources.len(), self.classes.file.len()));
        let pairs = self.sources.iter().enumerate().filter_map(|(to, from)| Some((to, (*from)?)));
        let _guard = tch::no_grad_guard();
        for (to, from) in pairs.chain(background) {
            let part = |tensor: &Tensor, class: usize| tensor.f_narrow(0, class as i64 * rows, rows);
            part(own, to)?.f_copy_(&part(file, from)?)?;
        }
        Ok(())
    }
}

impl std::fmt::Display for ClassMatch<'_> {
    /// Which classes were kept and which are new.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = |is_wanted: &dyn Fn(Option<usize>) -> bool| {
            let pairs = self.classes.model.iter().zip(&self.sources).filter(|(_, source)| is_wanted(**source));
            let names: Vec<String> = pairs.map(|(name, _)| quoted(name)).collect();
            let shown = if names.is_empty() { String::new() } else { format!(" ({})", list(names.clone(), LISTED)) };
            format!("{}{shown}", names.len())
        };
        write!(f, "classes kept: {}; new classes: {}", names(&|from| from.is_some()), names(&|from| from.is_none()))
    }
}

/// What became of the class layers without matching: a text if the classes of the file are others than the model's.
/// `counts` are the numbers of classes of file and model, if they differ.
pub(super) fn unmatched(classes: &Classes<'_>, counts: Option<(i64, i64)>) -> Option<String> {
    if let Some((file, model)) = counts {
        return Some(format!(
            "the class layers are re-initialized, for {model} classes in place of {file}; --match-classes keeps classes of the same name"
        ));
    }
    let mut pairs = classes.file.iter().zip(classes.model).enumerate();
    let (label, (file, model)) = pairs.find(|(_, (file, model))| file != model)?;
    Some(format!(
        "the file has other classes (number {label} is {}, here {}), whose weights are kept by their numbers; --match-classes \
         keeps only classes of the same name",
        quoted(file),
        quoted(model)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn rows_of_equal_names_and_the_background_are_kept() {
        let (file, model) = (names("a b c"), names("c x a"));
        let classes = Classes { file: &file, model: &model, match_names: true };
        let matching = ClassMatch::new(classes, Some(3)).unwrap();
        assert_eq!(matching.to_string(), "classes kept: 2 (\"c\", \"a\"); new classes: 1 (\"x\")");
        let copied = |name: &str, own: &[f32], file: &[f32], columns: i64| {
            let [own, file] = [own, file].map(|values| Tensor::from_slice(values).reshape([-1, columns]));
            matching.copy(name, &own, &file).unwrap();
            Vec::<f32>::try_from(own.reshape([-1])).unwrap()
        };
        // Two weights of each class, the background last.
        let weight = copied(
            "roi_head.bbox_head.fc_cls.weight",
            &[-1., -2., -3., -4., -5., -6., -7., -8.],
            &[1., 2., 3., 4., 5., 6., 7., 8.],
            2,
        );
        assert_eq!(weight, [5., 6., -3., -4., 1., 2., 7., 8.]);
        let own: Vec<f32> = (1..=12).map(|value| -(value as f32)).collect();
        let stored: Vec<f32> = (1..=12).map(|value| value as f32).collect();
        let deltas = copied("roi_head.bbox_head.fc_reg.bias", &own, &stored, 1);
        assert_eq!(deltas, [9., 10., 11., 12., -5., -6., -7., -8., 1., 2., 3., 4.]);
        assert_eq!(copied("roi_head.mask_head.conv_logits.bias", &[-1., -2., -3.], &[1., 2., 3.], 1), [3., -2., 1.]);
        assert_eq!(copied("neck.fpn_convs.0.conv.bias", &[-1.], &[1.], 1), [-1.], "no class layer");
    }

    #[test]
    fn equal_names_are_matched_in_their_order() {
        let (file, model) = (names("a b a"), names("a a a b"));
        let classes = Classes { file: &file, model: &model, match_names: true };
        assert_eq!(ClassMatch::new(classes, None).unwrap().sources, [Some(0), Some(2), None, Some(1)]);
    }

    #[test]
    fn without_the_names_of_the_file_there_is_a_reason() {
        let (none, two) = (Vec::new(), names("a b"));
        let error = |file: &[String], count| {
            ClassMatch::new(Classes { file, model: &two, match_names: true }, count).unwrap_err().to_string()
        };
        assert!(error(&none, Some(2)).contains("meta.CLASSES"));
        assert!(error(&two, Some(3)).contains("names 2 classes, but its detector has 3"));
    }
}

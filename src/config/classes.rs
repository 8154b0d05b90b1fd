//! `data.classes = "auto"`: the names and the number of the classes out of the training annotation file.

use std::path::Path;

use super::load::insert;
use super::tree::{Node, Origin, Table, Value};
use crate::data::category_names;
use crate::error::{Context, Error, Result};
use crate::text;

const CLASSES: &str = "data.classes";
const COUNT: &str = "model.num_classes";

/// Puts the names of the training set's categories in the place of "auto", and their number into `model.num_classes`
/// unless a config says it. What is stored with a checkpoint thus holds the names. Returns whether there was "auto". Unless
/// the classes are needed, they are empty where the annotation file does not say them.
///
/// # Errors
/// A data error if the annotation file cannot be read; a usage error if a config says another number.
pub(super) fn resolve(all: &mut Table, needs_classes: bool) -> Result<bool> {
    let Some((toml::Value::String(word), origin)) = find(all, CLASSES) else { return Ok(false) };
    if word != "auto" {
        return Ok(false);
    }
    let origin = origin.clone();
    let text = |path: &str| find(all, path).and_then(|(value, _)| value.as_str()).unwrap_or_default().to_owned();
    let file = Path::new(&text("data.root")).join(text("data.train.ann_file"));
    let names = category_names(&file);
    if names.is_err() && !needs_classes {
        insert(all, CLASSES, Value::Leaf(toml::Value::Array(Vec::new())), &origin);
        return Ok(true);
    }
    let names = names
        .with_context(|| format!("{}: {CLASSES} = \"auto\" reads the classes of the training set", origin.exact()))?;
    let count = names.len() as i64;
    match find(all, COUNT) {
        Some((toml::Value::Integer(said), from)) if *from != Origin::Default && *said != count => {
            return Err(Error::usage(format!(
                "{}: {COUNT} is {said}, but {CLASSES} = \"auto\" ({origin}) finds {} in {}: remove {COUNT} \
                 or set it to {count}; to train some of the classes only, name them in {CLASSES}",
                from.exact(),
                text::count(names.len(), "class"),
                file.display()
            )));
        }
        _ => insert(all, COUNT, Value::Leaf(toml::Value::Integer(count)), &origin),
    }
    let names = names.into_iter().map(toml::Value::String).collect();
    insert(all, CLASSES, Value::Leaf(toml::Value::Array(names)), &origin);
    Ok(true)
}

fn find<'t>(table: &'t Table, path: &str) -> Option<(&'t toml::Value, &'t Origin)> {
    let (head, rest) = path.split_once('.').map_or((path, None), |(head, rest)| (head, Some(rest)));
    let Node { value, origin } = table.get(head)?;
    match (value, rest) {
        (Value::Leaf(leaf), None) => Some((leaf, origin)),
        (Value::Table(inner), Some(rest)) => find(inner, rest),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::ErrorKind;
    use crate::config::{Config, Resolved, load};
    use crate::data::{Code, Dataset, Split, check_classes};
    use crate::error::Result;
    use crate::evaluate::testing::fixture;

    /// A folder with an annotation file of these categories, and a config of this text beside it.
    fn loaded(categories: &str, text: &str, sets: &[&str]) -> Result<Resolved> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(
            folder.path().join("train.json"),
            format!("{{\"images\": [], \"annotations\": [], \"categories\": {categories}}}"),
        )
        .unwrap();
        fs::write(folder.path().join("job.toml"), text).unwrap();
        let mut overrides =
            vec![format!("data.root={}", folder.path().display()), "data.train.ann_file=train.json".into()];
        overrides.extend(sets.iter().map(ToString::to_string));
        load(folder.path().join("job.toml"), &overrides)
    }

    const TWO: &str = "[{\"id\": 7, \"name\": \"bolt\"}, {\"id\": 3, \"name\": \"гайка\"}]";

    #[test]
    fn names_and_number_come_from_the_training_set_and_are_stored_resolved() {
        let resolved = loaded(TWO, "data.classes = \"auto\"", &[]).unwrap();
        let config = &resolved.config;
        assert_eq!(
            (config.data.classes.as_slice(), config.model.num_classes),
            (["bolt", "гайка"].map(String::from).as_slice(), 2)
        );
        assert!(resolved.origins["model.num_classes"].to_string().ends_with("job.toml:1"));
        let stored = Config::from_toml(&config.to_toml().unwrap(), "a.ckpt").unwrap();
        assert_eq!((&stored.data.classes, stored.model.num_classes), (&config.data.classes, 2));
    }

    #[test]
    fn a_number_that_agrees_is_fine_and_another_is_refused_with_both_places() {
        assert!(loaded(TWO, "model.num_classes = 2", &["data.classes=auto"]).is_ok());
        let error = loaded(TWO, "data.classes = \"auto\"\nmodel.num_classes = 80", &[]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        let text = error.to_string();
        for part in
            ["job.toml:2:7: model.num_classes is 80", "job.toml:1", "finds 2 classes", "train.json", "set it to 2"]
        {
            assert!(text.contains(part), "{text}\nlacks {part}");
        }
    }

    #[test]
    fn categories_of_equal_names_are_classes_of_their_own() {
        let resolved =
            loaded("[{\"id\": 0, \"name\": \"a\"}, {\"id\": 1, \"name\": \"a\"}]", "", &["data.classes=auto"]);
        assert_eq!(resolved.unwrap().config.model.num_classes, 2);
    }

    #[test]
    fn an_export_of_roboflow_keeps_its_unused_category_as_a_class() {
        let Some(root) = fixture("data/wild") else { return };
        for (set, expected) in [
            ("roboflow_tiny_buildings", &["building", "building"][..]),
            ("roboflow_size_off_by_one", &["flakes", "Less_Thick_BN", "Thick_BN", "Thin_BN"]),
        ] {
            let sets = [
                format!("data.root={}", root.join(set).display()),
                "data.classes=auto".into(),
                "data.train={ann_file = \"train/_annotations.coco.json\", img_prefix = \"train\"}".into(),
                "data.val={ann_file = \"valid/_annotations.coco.json\", img_prefix = \"valid\"}".into(),
            ];
            let config = Resolved::from_toml("", "test", &sets).unwrap().config;
            assert_eq!(config.data.classes, expected);
            for split in [Split::Train, Split::Val] {
                let dataset = Dataset::open(&config.data, split).unwrap();
                check_classes(&config, &[&dataset]).unwrap();
                assert!(dataset.findings().count(Code::CategoryUnused) > 0, "{set}");
                let labels = (0..dataset.len()).flat_map(|index| dataset.objects(index).labels.iter().copied());
                assert!(labels.into_iter().all(|label| label > 0), "{set}: a label is the place in the list");
            }
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_an_error_of_the_data_and_another_word_is_refused() {
        let error = loaded("3", "", &["data.classes=auto"]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data);
        assert!(
            error.to_string().contains("data.classes = \"auto\"") && error.to_string().contains("train.json"),
            "{error}"
        );
        let text = loaded(TWO, "data.classes = \"all\"", &[]).unwrap_err().to_string();
        assert!(text.contains("expected a list of strings, or \"auto\""), "{text}");
    }
}

//! Loads the config of a job with [`fnet_config`], with the classes of the training set in place of "auto".

use std::path::{Path, PathBuf};

use fnet_common::Result;
use fnet_config::Resolved;

use crate::coco::category_names;

/// Reads a config file, like [`fnet_config::load`].
/// Errors: those of [`fnet_config::load`] and [`category_names`].
pub fn load_config(path: impl AsRef<Path>, overrides: &[String]) -> Result<Resolved> {
    Ok(fnet_config::load(path, overrides, &read_classes)?)
}

/// Reads a config file for a check of its data, like [`fnet_config::load_for_check`].
pub fn load_config_for_check(path: impl AsRef<Path>, overrides: &[String]) -> Result<Resolved> {
    Ok(fnet_config::load_for_check(path, overrides, &read_classes)?)
}

/// Reads the config of a checkpoint, like [`Resolved::from_checkpoint`].
pub fn parse_config(text: &str, origin: &str, overrides: &[String], folders: &[PathBuf]) -> Result<Resolved> {
    Ok(Resolved::from_checkpoint(text, origin, overrides, folders, &read_classes)?)
}

fn read_classes(annotations: &Path) -> fnet_config::Result<Vec<String>> {
    category_names(annotations).map_err(|error| error.failure())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use fnet_common::{ErrorKind, Result};
    use fnet_config::{Config, Resolved};

    use super::{load_config as load, parse_config};
    use crate::{Code, Dataset, Split, check_classes};
    use fnet_test_support::fixture;

    /// Loads a config from a folder that also has an annotation file with these categories.
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
    fn class_names_and_number_come_from_the_training_set_and_are_stored() {
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
    fn a_matching_number_is_accepted_and_another_is_an_error_with_both_positions() {
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
    fn categories_with_equal_names_are_separate_classes() {
        let resolved =
            loaded("[{\"id\": 0, \"name\": \"a\"}, {\"id\": 1, \"name\": \"a\"}]", "", &["data.classes=auto"]);
        assert_eq!(resolved.unwrap().config.model.num_classes, 2);
    }

    #[test]
    fn a_roboflow_export_keeps_its_unused_category_as_a_class() {
        let Some(root) = fixture("") else {
            return;
        };
        let root = root.join("data/wild");
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
            let config = parse_config("", "test", &sets, &[]).unwrap().config;
            assert_eq!(config.data.classes, expected);
            for split in [Split::Train, Split::Val] {
                let dataset = Dataset::open(&config.data, split).unwrap();
                check_classes(&config, &[&dataset]).unwrap();
                assert!(dataset.diagnostics().count(Code::CategoryUnused) > 0, "{set}");
                let labels = (0..dataset.len()).flat_map(|index| dataset.objects(index).labels.iter().copied());
                assert!(labels.into_iter().all(|label| label > 0), "{set}: a label is the index in the list");
            }
        }
    }

    #[test]
    fn an_unreadable_file_is_a_data_error_and_another_word_is_a_usage_error() {
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

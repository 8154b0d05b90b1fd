//! Differences between two configs of one job.

use std::collections::BTreeMap;

use crate::Result;
use fnet_protocol::message::Failure;

use super::Config;
use super::tree::{self, Origin};

/// Fields that do not affect the trained weights. A trailing dot names a whole section.
const WITHOUT_EFFECT: [&str; 14] = [
    "log.",
    "checkpoint.",
    "evaluation.",
    "data.root",
    "data.workers_per_gpu",
    "data.val.ann_file",
    "data.val.img_prefix",
    "data.val.filter_empty",
    "data.test.",
    "model.backbone.pretrained",
    "train.elastic_batch",
    "train.epochs",
    "train.early_stop.",
    "train.match_classes",
];

impl Config {
    /// The fields that affect the weights and differ between `self`, the config that a job started with, and `now`:
    /// `optimizer.lr = 0.1 (was 0.2)`.
    /// Errors: a usage error if a number does not fit TOML.
    pub fn differences(&self, now: &Config) -> Result<Vec<String>> {
        let (before, now) = (leaves(self)?, leaves(now)?);
        let matters = |path: &str| {
            !WITHOUT_EFFECT.iter().any(|without| match without.strip_suffix('.') {
                Some(_) => path.starts_with(without),
                None => path == *without,
            })
        };
        let changed = now.iter().filter(|(path, value)| matters(path) && before.get(*path) != Some(value));
        let absent = "not set".to_owned();
        // Entries of tables with names that the user chooses may be gone.
        let gone = before.iter().filter(|(path, _)| matters(path) && !now.contains_key(*path));
        let lines = changed.map(|(path, value)| (path, value, before.get(path).unwrap_or(&absent)));
        let lines = lines.chain(gone.map(|(path, value)| (path, &absent, value)));
        Ok(lines.map(|(path, now, before)| format!("{path} = {now} (was {before})")).collect())
    }
}

/// Every value of a config as TOML, by its path.
fn leaves(config: &Config) -> Result<BTreeMap<String, String>> {
    let table = toml::Table::try_from(config)
        .map_err(|error| Failure::usage(format!("the config cannot be written as TOML: {error}")))?;
    Ok(leaves_of_table(table))
}

/// Every value of a config file without bases as TOML, by its path. The config may be of another version of fnet.
/// Errors: a usage error if the text is no TOML.
pub fn leaves_of(text: &str) -> Result<BTreeMap<String, String>> {
    let table = text.parse().map_err(|error| Failure::usage(format!("the config is no TOML: {error}")))?;
    Ok(leaves_of_table(table))
}

fn leaves_of_table(table: toml::Table) -> BTreeMap<String, String> {
    let mut leaves = BTreeMap::new();
    tree::each_leaf(&tree::from_value(table, &Origin::Default), "", &mut |path, value, _| {
        leaves.insert(path.to_owned(), value.to_string());
    });
    leaves
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Interval;

    #[test]
    fn fields_that_affect_the_weights_are_listed_with_both_values() {
        let before = Config::default();
        let mut now = before.clone();
        now.optimizer.lr = 0.5;
        now.schedule.steps = vec![3];
        now.log.interval = 7;
        now.checkpoint.interval = Interval::Steps(10);
        now.data.workers_per_gpu += 1;
        now.train.epochs += 1;
        let listed = before.differences(&now).unwrap();
        assert_eq!(listed, ["optimizer.lr = 0.5 (was 0.0002)", "schedule.steps = [3] (was [8, 11])"]);
        assert!(before.differences(&before).unwrap().is_empty());

        let mut keyed = before.clone();
        keyed.optimizer.paramwise.custom_keys.insert("neck".into(), crate::Multipliers::default());
        let path = "optimizer.paramwise.custom_keys.neck";
        let added = [("lr_mult", "1.0"), ("decay_mult", "1.0")];
        let mut expected = added.map(|(name, value)| format!("{path}.{name} = {value} (was not set)"));
        expected.sort();
        assert_eq!(before.differences(&keyed).unwrap(), expected);
        assert_eq!(keyed.differences(&before).unwrap()[0], format!("{path}.decay_mult = not set (was 1.0)"));
    }
}

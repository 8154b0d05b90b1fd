//! Configs with several training sets: `ConcatDataset`, lists of sets, and sets with a list of files.
//!
//! [`separate`] makes a config of each set, [`merge`] joins what became of them, and [`settle`] writes the list `data.train`.

use toml::Value as Toml;

use fnet_common::{Error, Result};

use crate::map::{Mapped, first};
use crate::value::{Dict, Item, Value};

/// Where the training sets are, in MMDetection 2 and 3.
const PLACES: [[&str; 2]; 2] = [["data", "train"], ["train_dataloader", "dataset"]];
/// Sets of one config.
const MOST: usize = 1000;

/// The config once for each of its training sets, with this set alone.
/// Errors: a usage error if there are more than [`MOST`].
pub fn separate(values: &Dict) -> Result<Vec<Dict>> {
    for [section, key] in PLACES {
        let Some(outer) = values.get(section) else { continue };
        let Some(train) = outer.value.get(key) else { continue };
        let sets = sets(&train);
        if sets.len() > MOST {
            return Err(Error::usage(format!("{}: more than {MOST} training sets", train.place)));
        }
        if sets.len() > 1 {
            let config = |set| {
                let mut config = values.clone();
                config.insert(section.to_owned(), with(outer, key, set));
                config
            };
            return Ok(sets.into_iter().map(config).collect());
        }
    }
    Ok(vec![values.clone()])
}

/// The sets in a value, each in what wraps it; the first ones beyond [`MOST`].
fn sets(item: &Item) -> Vec<Item> {
    if let Value::List(_) = item.value {
        return item.value.items().iter().flat_map(sets).take(MOST + 1).collect();
    }
    for key in ["dataset", "datasets"] {
        if let Some(inner) = item.value.get(key) {
            return sets(&inner).into_iter().map(|set| with(item, key, set)).collect();
        }
    }
    let Some(files) = item.value.get("ann_file").map(|files| files.value.items()).filter(|files| files.len() > 1)
    else {
        return vec![item.clone()];
    };
    let folders = item.value.get("img_prefix").map(|folders| folders.value.items()).unwrap_or_default();
    let one = |(index, file): (usize, Item)| {
        let set = with(item, "ann_file", file);
        folders.get(index).map_or(set.clone(), |folder| with(&set, "img_prefix", folder.clone()))
    };
    files.into_iter().enumerate().take(MOST + 1).map(one).collect()
}

/// A dict with another value of a key.
fn with(item: &Item, key: &str, value: Item) -> Item {
    let mut fields = match &item.value {
        Value::Dict(dict) => dict.borrow().clone(),
        _ => Dict::new(),
    };
    fields.insert(key.to_owned(), value);
    Item { value: Value::dict(fields), place: item.place.clone() }
}

/// Names the fields of a training set by its index: `data.train[1].ann_file`.
fn numbered(name: &str, index: usize) -> Option<String> {
    ["data.train.", "=train."]
        .into_iter()
        .find_map(|start| Some(format!("{}[{index}].{}", start.trim_end_matches('.'), name.strip_prefix(start)?)))
}

/// Joins what became of the configs of each set. All but the training set is that of the first.
pub fn merge(configs: &[Dict], map: impl Fn(&Dict) -> Mapped) -> Mapped {
    let mut merged = configs.first().map(&map).unwrap_or_default();
    if configs.len() < 2 {
        return merged;
    }
    merged.values.retain(|name, _| numbered(name, 0).is_none());
    merged.carried.retain(|carried| numbered(&carried.to, 0).is_none());
    let shared = ["$train.pipeline", "$train.classes", "$train.metainfo"];
    for (index, config) in configs.iter().enumerate() {
        let one = map(config);
        merged.values.extend(one.values.into_iter().filter_map(|(name, value)| Some((numbered(&name, index)?, value))));
        for mut carried in one.carried {
            if let Some(name) = numbered(&carried.to, index) {
                carried.to = name;
                merged.carried.push(carried);
            }
        }
        let lists = [
            (&mut merged.without, one.without),
            (&mut merged.assumed, one.assumed),
            (&mut merged.not_evaluated, one.not_evaluated),
        ];
        for (merged, lines) in lists {
            lines.into_iter().for_each(|line| {
                if !merged.contains(&line) {
                    merged.push(line)
                }
            });
        }
        for field in shared {
            let text = |config| first(config, field).map(|item| item.value.to_string());
            if text(config) != text(&configs[0]) {
                let name = field.replace("$train", &format!("data.train[{index}]"));
                merged.without.push(format!("{name} differs from that of the first set, which all have in fnet"));
            }
        }
    }
    merged
}

/// Writes the fields of several sets as the list `data.train`.
pub fn settle(mapped: &mut Mapped) {
    let mut sets: Vec<toml::Table> = Vec::new();
    mapped.values.retain(|name, value| {
        let Some((index, field)) = name.strip_prefix("data.train[").and_then(|rest| rest.split_once("].")) else {
            return true;
        };
        let index = index.parse().unwrap_or(0);
        if sets.len() <= index {
            sets.resize(index + 1, toml::Table::new());
        }
        sets[index].insert(field.to_owned(), value.clone());
        false
    });
    if sets.iter().any(|set| set.contains_key("class_balanced")) {
        mapped.assumed.push("class_balanced counts the classes of each set of data.train on its own".to_owned());
    }
    if !sets.is_empty() {
        let sets = sets.into_iter().map(Toml::Table).collect();
        mapped.values.insert("data.train".to_owned(), Toml::Array(sets));
    }
}

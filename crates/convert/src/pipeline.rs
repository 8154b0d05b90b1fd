//! Pipelines of training images with more than a resize and a horizontal flip: the list `data.pipeline.train`.

use toml::Value as Toml;

use crate::map::{Mapped, first};
use crate::path::type_of;
use crate::table::{Convert, array, flag, number, pairs, text, whole};
use crate::value::{Dict, Item, Value};

/// Fields that the list replaces.
const REPLACED: [&str; 3] = ["data.pipeline.scales", "data.pipeline.scale_mode", "data.pipeline.flip_probability"];

/// An augmentation, and whether the fields of [`REPLACED`] cannot say the same.
struct Step {
    fields: toml::Table,
    needs_list: bool,
}

/// Writes the list if the pipeline needs one.
pub fn settle(values: &Dict, mapped: &mut Mapped) {
    // In MMDetection 3 sizes are (width, height), in 2 (height, width).
    let (pipeline, width_first) = match first(values, "train_dataloader.dataset.pipeline") {
        Some(pipeline) => (pipeline, true),
        None => match first(values, "$train.pipeline") {
            Some(pipeline) => (pipeline, false),
            None => return,
        },
    };
    let mut steps = Vec::new();
    let mut is_normalized = false;
    for item in pipeline.value.items() {
        let Some(kind) = type_of(&item.value) else { continue };
        let kind = kind.rsplit('.').next().unwrap_or_default().to_owned();
        is_normalized |= kind == "Normalize";
        let converted = match kind.as_str() {
            "PhotoMetricDistortion" if is_normalized => Some(Err("it before Normalize")),
            _ => step(&kind, &item.value, width_first),
        };
        match converted {
            None => {}
            Some(Ok(step)) => steps.push(step),
            Some(Err(expected)) => {
                return mapped
                    .without
                    .push(format!("{kind} ({}): expected {expected}; data.pipeline.train is not written", item.place));
            }
        }
    }
    if steps.iter().any(|step| step.needs_list) {
        REPLACED.iter().for_each(|field| drop(mapped.values.shift_remove(*field)));
        mapped.carried.iter_mut().filter(|one| REPLACED.contains(&one.to.as_str())).for_each(|one| {
            one.to = "data.pipeline.train".to_owned();
        });
        mapped.assumed.retain(|text| !REPLACED.iter().any(|field| text.starts_with(field)));
        let list = steps.into_iter().map(|step| Toml::Table(step.fields)).collect();
        mapped.values.insert("data.pipeline.train".to_owned(), Toml::Array(list));
    }
}

/// `None` for a step that is no augmentation, or one that fnet does not have, which the table reports.
fn step(kind: &str, value: &Value, width_first: bool) -> Option<Result<Step, &'static str>> {
    Some(match kind {
        "Resize" | "RandomResize" | "RandomChoiceResize" => resize(kind, value),
        "RandomFlip" => flip(value),
        "RandomCrop" => crop(value, width_first),
        "Pad" => value.get("size").map(|size| pad(&size.value, width_first))?,
        "PhotoMetricDistortion" => colors(value),
        _ => return None,
    })
}

fn table(kind: &str) -> toml::Table {
    toml::Table::from_iter([("kind".to_owned(), Toml::String(kind.to_owned()))])
}

/// Copies the fields of `names` that are there.
fn copied(value: &Value, names: &[(&str, Convert)], fields: &mut toml::Table) -> Result<(), &'static str> {
    for (name, convert) in names {
        if let Some(item) = value.get(name).filter(|item| !matches!(item.value, Value::None)) {
            fields.insert((*name).to_owned(), convert(&item.value)?);
        }
    }
    Ok(())
}

fn resize(kind: &str, value: &Value) -> Result<Step, &'static str> {
    let size = ["img_scale", "scale", "scales"].iter().find_map(|name| value.get(name)).ok_or("a size")?;
    let mut fields = table("resize");
    let sizes = pairs(&size.value)?;
    let is_range = match value.get("multiscale_mode") {
        Some(mode) => mode.value.as_text() != Some("value"),
        None => kind != "RandomChoiceResize",
    };
    if sizes.len() > 1 && is_range {
        fields.insert("scale_mode".to_owned(), Toml::String("range".to_owned()));
    }
    fields.insert("scales".to_owned(), array(sizes));
    copied(value, &[("ratio_range", two_numbers)], &mut fields)?;
    Ok(Step { needs_list: fields.contains_key("ratio_range"), fields })
}

/// A probability of several directions is shared by them.
fn flip(value: &Value) -> Result<Step, &'static str> {
    let mut fields = table("flip");
    let directions = match value.get("direction").map(|item| item.value) {
        None => vec!["horizontal".to_owned()],
        Some(Value::Text(text)) => vec![text.to_string()],
        Some(list) => {
            let names = list.items().into_iter().map(|item| item.value.as_text().map(str::to_owned));
            names.collect::<Option<_>>().ok_or("directions")?
        }
    };
    let probability = ["flip_ratio", "prob"].iter().find_map(|name| value.get(name)).map(|item| item.value);
    let probabilities = match probability {
        None | Some(Value::None) => vec![0.0; directions.len()],
        Some(value) => match value.as_number() {
            Some(number) => vec![number / directions.len() as f64; directions.len()],
            None => {
                value.items().iter().map(|item| item.value.as_number()).collect::<Option<_>>().ok_or("probabilities")?
            }
        },
    };
    let needs_list = directions != ["horizontal"];
    fields.insert("probabilities".to_owned(), Toml::Array(probabilities.into_iter().map(Toml::Float).collect()));
    fields.insert("directions".to_owned(), Toml::Array(directions.into_iter().map(Toml::String).collect()));
    Ok(Step { fields, needs_list })
}

fn crop(value: &Value, width_first: bool) -> Result<Step, &'static str> {
    let mut fields = table("random_crop");
    let kinds: &[(&str, Convert)] = &[
        ("crop_type", text),
        ("crop_size", two_numbers),
        ("allow_negative_crop", flag),
        ("bbox_clip_border", flag),
        ("recompute_bbox", flag),
    ];
    copied(value, kinds, &mut fields)?;
    // The bounds of a range of sides have no order.
    let is_range = fields.get("crop_type").and_then(Toml::as_str) == Some("absolute_range");
    if let Some(Toml::Array(size)) = fields.get_mut("crop_size").filter(|_| width_first && !is_range) {
        size.reverse();
    }
    Ok(Step { fields, needs_list: true })
}

fn pad(size: &Value, width_first: bool) -> Result<Step, &'static str> {
    let mut sides = size.items().iter().map(|Item { value, .. }| whole(value)).collect::<Result<Vec<_>, _>>()?;
    if width_first {
        sides.reverse();
    }
    let mut fields = table("pad");
    fields.insert("size".to_owned(), Toml::Array(sides));
    Ok(Step { fields, needs_list: true })
}

fn colors(value: &Value) -> Result<Step, &'static str> {
    let mut fields = table("color_jitter");
    let kinds: &[(&str, Convert)] = &[
        ("brightness_delta", number),
        ("contrast_range", two_numbers),
        ("saturation_range", two_numbers),
        ("hue_delta", number),
    ];
    copied(value, kinds, &mut fields)?;
    Ok(Step { fields, needs_list: true })
}

fn two_numbers(value: &Value) -> Result<Toml, &'static str> {
    let items = value.items().iter().map(|item| number(&item.value)).collect::<Result<Vec<_>, _>>()?;
    if items.len() == 2 { Ok(Toml::Array(items)) } else { Err("two numbers") }
}

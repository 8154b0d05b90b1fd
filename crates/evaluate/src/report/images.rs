//! The images on the page: ground truth beside predictions.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rayon::prelude::*;
use serde_json::{Value, json};

use fnet_common::Result;
use fnet_data::load_image;

use super::{Evaluated, Run};
use crate::metrics::ImageCounts;
use crate::paint::{Object, Painter, jpeg, objects};

/// Images of each group: the best, the worst, the most confused, those in which two results differ most.
const GROUP: usize = 8;
/// The most bytes of all images; images that exceed them are left out.
const MOST_BYTES: usize = 9_000_000;

/// Chooses the images and draws them. The first run with results decides which images are the best and the worst. Returns the
/// list for the page and notes about images that could not be drawn.
/// Errors: the fonts are damaged, or an annotation file was changed.
pub fn choose_and_draw(runs: &[Run]) -> Result<(Value, Vec<String>)> {
    let numbered = runs.iter().zip(1_usize..).filter_map(|(run, number)| Some((number, run.results.as_ref()?)));
    let results: Vec<(usize, &Evaluated)> = numbered.collect();
    let Some((_, first)) = results.first().filter(|(_, first)| !first.analyses.is_empty()) else {
        return Ok((json!([]), Vec::new()));
    };
    let others: Vec<HashMap<String, usize>> = results.iter().map(|(_, evaluated)| indices_by_name(evaluated)).collect();
    let chosen = choose(&results, &others);
    let painter = Painter::small()?;
    let draw = |(index, group): &(usize, &str)| -> Result<Result<Value, String>> {
        match draw(&painter, &results, &others, *index, group) {
            // An image may be missing on this machine.
            Err(error) if error.kind() == fnet_common::ErrorKind::Data => Ok(Err(error.to_string())),
            drawn => drawn.map(Ok),
        }
    };
    let drawn = chosen.par_iter().map(draw).collect::<Result<Vec<_>>>()?;
    let (mut images, mut missing, mut bytes, mut large) = (Vec::new(), Vec::new(), 0, 0);
    for image in drawn {
        match image {
            Ok(image) => {
                let size = image["jpeg"].as_str().map_or(0, str::len);
                if bytes + size > MOST_BYTES {
                    large += 1;
                } else {
                    bytes += size;
                    images.push(image);
                }
            }
            Err(why) => missing.push(why),
        }
    }
    let mut notes = Vec::new();
    if let Some(why) = missing.first() {
        notes.push(format!(
            "{} of {} images of data.{} could not be drawn; the first: {why}. Name the folder of the images with --set \
             data.root=DIR",
            missing.len(),
            chosen.len(),
            first.dataset.split().name()
        ));
    }
    if large > 0 {
        notes.push(format!("{large} images are left out to keep the page small"));
    }
    Ok((Value::Array(images), notes))
}

/// The index of every image in its data set by name, which is unique even with several annotation files.
fn indices_by_name(evaluated: &Evaluated) -> HashMap<String, usize> {
    let dataset = &evaluated.dataset;
    (0..dataset.len()).map(|index| (dataset.image_name(index), index)).collect()
}

fn counts(evaluated: &Evaluated, index: usize) -> ImageCounts {
    let id = evaluated.dataset.image_id(index) as u64;
    let analysis = evaluated.analyses.first().map(|(_, analysis)| analysis);
    analysis.and_then(|analysis| analysis.images.get(&id)).copied().unwrap_or_default()
}

/// Indices of the chosen images, each with its group.
fn choose(results: &[(usize, &Evaluated)], others: &[HashMap<String, usize>]) -> Vec<(usize, &'static str)> {
    let first = results[0].1;
    let all: Vec<(usize, ImageCounts)> = (0..first.dataset.len()).map(|index| (index, counts(first, index))).collect();
    let change = |index: usize| {
        let second = others.get(1)?.get(&first.dataset.image_name(index))?;
        Some((counts(results[1].1, *second).f1() - counts(first, index).f1()).abs())
    };
    // The higher, the more it belongs to the group; nothing if it does not.
    type Rank<'r> = dyn Fn(usize, &ImageCounts) -> Option<(f64, u32)> + 'r;
    let groups: [(&str, &Rank<'_>); 4] = [
        ("different", &|index, _| change(index).filter(|change| *change > 0.0).map(|change| (change, 0))),
        ("confused", &|_, counts| (counts.confused > 0).then_some((f64::from(counts.confused), counts.wrong))),
        ("worst", &|_, counts| (counts.f1() < 1.0).then_some((-counts.f1(), counts.wrong + counts.missed))),
        ("best", &|_, counts| (counts.correct > 0).then_some((counts.f1(), counts.correct))),
    ];
    let mut chosen: Vec<(usize, &str)> = Vec::new();
    for (name, rank) in groups {
        let mut ranked: Vec<_> =
            all.iter().filter_map(|(index, counts)| Some((*index, rank(*index, counts)?))).collect();
        ranked.retain(|(index, _)| !chosen.iter().any(|(taken, _)| taken == index));
        ranked.sort_by(|(i, (a, m)), (j, (b, n))| b.total_cmp(a).then(n.cmp(m)).then(i.cmp(j)));
        chosen.extend(ranked.into_iter().take(GROUP).map(|(index, _)| (index, name)));
    }
    chosen
}

/// One image: its panels as JPEG, and its counts in each run.
fn draw(
    painter: &Painter,
    results: &[(usize, &Evaluated)],
    others: &[HashMap<String, usize>],
    index: usize,
    group: &str,
) -> Result<Value> {
    let dataset = &results[0].1.dataset;
    let name = dataset.image_name(index);
    let image = objects::into_image(load_image(dataset, index)?)?;
    let truth = objects::of_truth(dataset, index)?;
    let mut panels = vec![(truth, "ground truth".to_owned())];
    let mut numbers = Vec::new();
    for (place, &(number, evaluated)) in results.iter().enumerate() {
        let own = if place == 0 { Some(index) } else { others[place].get(&name).copied() };
        let Some(own) = own else {
            numbers.push(Value::Null);
            continue;
        };
        let threshold = evaluated.analyses.first().map_or(0.0, |(_, analysis)| analysis.threshold);
        let found = detected(evaluated, own, threshold);
        let run = if results.len() > 1 { format!("run {number}, ") } else { String::new() };
        panels.push((found, format!("{run}scores from {threshold:.2}")));
        let counts = counts(evaluated, own);
        numbers.push(json!([counts.correct, counts.wrong, counts.missed, counts.confused, counts.f1()]));
    }
    let shown: Vec<(&[Object], &str)> = panels.iter().map(|(objects, title)| (&objects[..], title.as_str())).collect();
    let painted = painter.panels(&image, &shown)?;
    Ok(json!({
        "name": dataset.image(index).file_name,
        "group": group,
        "size": [painted.width(), painted.height()],
        "runs": numbers,
        "jpeg": STANDARD.encode(jpeg(&painted)?),
    }))
}

/// The detections of an image from a score on.
fn detected(evaluated: &Evaluated, index: usize, threshold: f64) -> Vec<Object> {
    let (dataset, detections) = (&evaluated.dataset, &evaluated.file.detections);
    let image = dataset.image(index);
    let own = evaluated.by_image.get(&(dataset.image_id(index) as u64)).into_iter().flatten();
    let shown = own.filter_map(|&place| detections.get(place)).filter(|found| found.score >= Some(threshold));
    let categories = dataset.categories();
    shown
        .filter_map(|found| {
            let label = categories.iter().position(|category| category.id as u64 == found.category_id)?;
            let [x, y, width, height] = found.bbox?;
            let (rows, columns) = (image.height as u32, image.width as u32);
            let mask = found.segmentation.as_ref().and_then(|mask| mask.to_rle(rows, columns).ok());
            Some(Object {
                label,
                name: categories[label].name.clone(),
                score: found.score.map(|score| score as f32),
                bbox: [x, y, x + width, y + height].map(|value| value as f32),
                // A file may have masks of another size.
                mask: mask.filter(|mask| (mask.h, mask.w) == (rows, columns)),
                crowd: false,
            })
        })
        .collect()
}

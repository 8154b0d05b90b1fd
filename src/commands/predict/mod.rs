//! `predict`: draws detections on the user's images and writes the results.

mod inputs;
mod output;

use std::collections::HashMap;

use serde_json::Value;

use fnet_common::text::count;
use fnet_common::{Context, Error, ErrorKind, Result};
use fnet_config::OnError;
use fnet_data::{Dataset, DecodedImage, Split, evaluation_indices, single_image};
use fnet_evaluate::inference::{Found, RankResult, Share, detect, gather};
use fnet_evaluate::paint::{Painter, objects, save};
use fnet_evaluate::results::ImageResult;
use fnet_protocol::{cli, stop};

use super::detector::{Host, Trained, Wanted, load};
use super::stdout::print;
use inputs::{Input, find};
use output::Output;

/// Images that a line of the summary names.
const NAMED: usize = 5;

/// Draws detections on images and writes them to a file in the same folder. `image_id` counts the images from 1. An image that
/// cannot be read is named, and the others go on; the result is then an error, unless `data.on_error` is `skip`.
/// Errors: if the checkpoint, the config or an input is wrong, a file cannot be written, a rank is lost, or memory runs
/// out.
pub fn predict(arguments: &cli::Predict, host: &mut Host<'_>) -> Result<RankResult<Result<()>>> {
    let inputs = find(arguments)?;
    let wanted = Wanted {
        checkpoint: &arguments.checkpoint,
        config: arguments.config.as_deref(),
        overrides: &arguments.set,
        allow_partial: arguments.allow_partial,
        tta: arguments.tta,
    };
    let trained = load(&wanted, host)?;
    let painter = if arguments.no_images { None } else { Some(Painter::new()?) };
    let indices = evaluation_indices(inputs.len(), host.ranks.rank(), host.ranks.world_size());
    let mut share = Share::default();
    for (done, &index) in (1..).zip(&indices) {
        if stop::requested().is_some() {
            break;
        }
        let input = &inputs[index];
        match DecodedImage::read(&input.path) {
            Ok(decoded) => {
                let batch = single_image(decoded.clone(), index as i64 + 1, &input.name, &trained.config.data.pipeline);
                for result in detect(&trained.model, &batch, &trained.config)? {
                    if let Some(painter) = &painter {
                        let shown = objects::of_result(&result, &trained.classes, arguments.score_thr)?;
                        let painted = painter.paint(&objects::into_image(decoded.clone())?, &shown)?;
                        save(&painted, &input.painted).with_context(|| format!("drawing {}", input.path.display()))?;
                    }
                    share.results.push(result);
                }
            }
            Err(error) if error.kind() == ErrorKind::Data => {
                let place = input.listed.as_ref().map(|place| format!("{place}: ")).unwrap_or_default();
                share.skipped.push(format!("{place}{error}"));
            }
            Err(error) => return Err(error),
        }
        (host.progress)(done, inputs.len());
    }
    let places: HashMap<i64, usize> = (0..inputs.len()).map(|index| (index as i64 + 1, index)).collect();
    gather(share, &places, host.ranks)?.and_then(|found| finish(&found, &inputs, &trained, arguments, host))
}

/// Writes the results and prints a summary. The inner error names images that could not be read.
fn finish(
    found: &Found,
    inputs: &[Input],
    trained: &Trained,
    arguments: &cli::Predict,
    host: &mut Host<'_>,
) -> Result<Result<()>> {
    let (category_ids, meaning) = category_ids(trained);
    let output = Output {
        found,
        inputs,
        classes: &trained.classes,
        category_ids: &category_ids,
        painted: (!arguments.no_images).then_some(&arguments.out),
        score_threshold: arguments.score_thr,
    };
    let file = output.write(arguments.format, &arguments.out)?;
    for line in summary(found, inputs, arguments) {
        print(&line)?;
    }
    let written = if arguments.no_images { format!("{file} is") } else { format!("images and {file} are") };
    print(&format!("{written} in {}; category ids {meaning}", arguments.out.display()))?;
    for unreadable in &found.skipped {
        (host.say)(&format!("not read: {unreadable}"));
    }
    Ok(match found.skipped.first() {
        Some(first) if trained.config.data.on_error == OnError::Stop => Err(Error::data(format!(
            "{} of {} could not be read, the first: {first}\nThe results of the others are written. Correct or remove these \
             files, or accept that they are left out: --set data.on_error=skip",
            found.skipped.len(),
            count(inputs.len(), "image")
        ))),
        _ => Ok(()),
    })
}

/// How many objects were painted where, how many the threshold hid, and images without any.
fn summary(found: &Found, inputs: &[Input], arguments: &cli::Predict) -> Vec<String> {
    let threshold = arguments.score_thr;
    let above = |result: &ImageResult| {
        result.detections.iter().filter(|detection| f64::from(detection.score) >= threshold).count()
    };
    let shown: Vec<usize> = found.results.iter().map(above).collect();
    let (painted, all) =
        (shown.iter().sum::<usize>(), found.results.iter().map(|result| result.detections.len()).sum::<usize>());
    let with = shown.iter().filter(|number| **number > 0).count();
    let done = if arguments.no_images { "found" } else { "painted" };
    let mut lines = vec![format!(
        "{} {done} in {with} of {}; {} with a score below {threshold} (--score-thr) {} only in the file",
        count(painted, "object"),
        count(found.results.len(), "image"),
        count(all - painted, "object"),
        if all - painted == 1 { "is" } else { "are" },
    )];
    let empty = found.results.iter().zip(&shown).filter(|(_, number)| **number == 0);
    let empty: Vec<String> =
        empty.map(|(result, _)| inputs[result.image_id as usize - 1].path.display().to_string()).collect();
    if !empty.is_empty() {
        let more = empty.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let named = empty[..empty.len().min(NAMED)].join(", ");
        lines.push(format!("{} without an object from that score: {named}{more}", count(empty.len(), "image")));
    }
    lines
}

/// The category ids of the classes and what they are: those of the validation set, if it is there and has these classes, else
/// the classes counted from 1.
fn category_ids(trained: &Trained) -> (Vec<Value>, String) {
    let data = &trained.config.data;
    let file = fnet_data::data_root(data).join(&data.val.ann_file);
    let dataset = if file.is_file() { Dataset::open(data, Split::Val).ok() } else { None };
    let same = dataset.filter(|set| set.categories().iter().map(|category| &category.name).eq(&trained.classes));
    match same {
        Some(set) => {
            let ids = set.categories().iter().map(|category| set.written_category_id(category.id));
            (ids.collect(), format!("are those of {}", set.annotation_files()))
        }
        None => (
            (1..=trained.classes.len()).map(Value::from).collect(),
            format!("count the classes from 1, because {} is not there or has others", file.display()),
        ),
    }
}

//! A paired bootstrap: whether the difference of two results in average precision is more than chance.
//!
//! Images are drawn with replacement, as many as there are, and the average precision of both results is computed on the same
//! drawn images, each counted as often as it was drawn. The interval has 95% of the differences of all resamples in it.

use std::collections::{BTreeMap, HashMap};

use rayon::prelude::*;

use hotcoco::COCOeval;

use fnet_common::random::{Generator, Purpose};
use fnet_common::{Error, Result};
use fnet_config::{Evaluation, Metric};

use super::GroundTruth;
use super::scores::{limit_of_first, prepared, wrong};

/// The differences that the interval leaves out on each side.
const TAIL: f64 = 0.025;
/// `np.spacing(1)`, which pycocotools adds to the denominator of a precision.
const SPACING: f64 = f64::EPSILON;

/// How often images are drawn, and from which seed.
#[derive(Debug, Clone, Copy)]
pub struct Resampling {
    /// Number of resamples.
    pub count: usize,
    /// Seed.
    pub seed: u64,
}

/// The difference of two results in average precision over all IoU thresholds (`mAP`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Difference {
    /// The average precision of both.
    pub values: [f64; 2],
    /// Bounds of the middle 95% of the second's minus the first's.
    pub interval: [f64; 2],
    /// Share of the resamples in which the second is better.
    pub second_better: f64,
}

impl Difference {
    /// Whether the interval does not contain 0.
    pub fn is_significant(&self) -> bool {
        self.interval[0] > 0.0 || self.interval[1] < 0.0
    }
}

/// A detection of one class.
struct Hit {
    image: u32,
    /// A bit for each IoU threshold at which it is correct; at which it is wrong. Neither where it is ignored.
    correct: u64,
    wrong: u64,
}

/// One class: its objects as (image, count), and the detections of each file by falling score.
#[derive(Default)]
struct Class {
    objects: Vec<(u32, u32)>,
    hits: [Vec<(f64, Hit)>; 2],
}

/// Compares two results of one kind. `None` if there is no object to find.
/// Errors: a mask that cannot be rasterized, or more than 64 IoU thresholds.
pub fn difference(
    truth: &GroundTruth,
    detections: [Vec<hotcoco::Annotation>; 2],
    kind: Metric,
    settings: &Evaluation,
    resampling: Resampling,
) -> Result<Option<Difference>> {
    let matches = Matches::of(truth, detections, kind, settings)?;
    let Some(values) = matches.both(&vec![1; matches.images]) else { return Ok(None) };
    let drawn = |resample: usize| {
        let mut generator = Generator::derived(resampling.seed, Purpose::Bootstrap, &[resample as u64]);
        let mut weights = vec![0_u32; matches.images];
        (0..matches.images).for_each(|_| weights[generator.below(matches.images)] += 1);
        matches.both(&weights).map(|[first, second]| second - first)
    };
    let mut differences: Vec<f64> = (0..resampling.count).into_par_iter().filter_map(drawn).collect();
    differences.sort_by(f64::total_cmp);
    let better = differences.iter().filter(|&&difference| difference > 0.0).count();
    Ok(Some(Difference {
        values,
        interval: [TAIL, 1.0 - TAIL].map(|share| quantile(&differences, share)),
        second_better: better as f64 / differences.len().max(1) as f64,
    }))
}

/// The matches of two results.
struct Matches {
    images: usize,
    classes: Vec<Class>,
    thresholds: usize,
    recalls: Vec<f64>,
}

impl Matches {
    fn of(
        truth: &GroundTruth,
        detections: [Vec<hotcoco::Annotation>; 2],
        kind: Metric,
        settings: &Evaluation,
    ) -> Result<Self> {
        let mut ids = truth.image_ids.clone();
        ids.sort_unstable();
        let places: HashMap<u64, u32> = ids.iter().copied().zip(0..).collect();
        // The order of a sum must not depend on that of a hash map.
        let mut classes: BTreeMap<u64, Class> = BTreeMap::new();
        let mut matches = Self { images: ids.len(), classes: Vec::new(), thresholds: 0, recalls: Vec::new() };
        for (file, detections) in detections.into_iter().enumerate() {
            let mut evaluation = prepared(truth, detections, kind, settings)?;
            // The first one is that of all sizes.
            evaluation.params.area_ranges.truncate(1);
            evaluation.evaluate().map_err(wrong(kind))?;
            matches.thresholds = evaluation.params.iou_thrs.len();
            matches.recalls.clone_from(&evaluation.params.rec_thrs);
            if matches.thresholds > 64 {
                return Err(Error::usage("two results are compared with at most 64 evaluation.iou_thrs"));
            }
            collect(&evaluation, limit_of_first(settings), file, &places, &mut classes);
        }
        matches.classes = classes.into_values().collect();
        Ok(matches)
    }

    /// The average precision of both results, with each image counted as often as its weight says.
    fn both(&self, weights: &[u32]) -> Option<[f64; 2]> {
        let (mut sums, mut count) = ([0.0; 2], 0);
        for class in &self.classes {
            let objects: u32 = class.objects.iter().map(|&(image, count)| weights[image as usize] * count).sum();
            // As in COCO's mean, a class without objects does not count.
            if objects > 0 {
                count += 1;
                for (sum, hits) in sums.iter_mut().zip(&class.hits) {
                    *sum += average_precision(hits, f64::from(objects), weights, self.thresholds, &self.recalls);
                }
            }
        }
        (count > 0).then(|| sums.map(|sum| sum / f64::from(count)))
    }
}

/// Adds the matches of one file.
fn collect(
    evaluation: &COCOeval,
    limit: usize,
    file: usize,
    places: &HashMap<u64, u32>,
    classes: &mut BTreeMap<u64, Class>,
) {
    for cell in evaluation.eval_imgs().iter().flatten() {
        let Some(&image) = places.get(&cell.image_id) else { continue };
        let class = classes.entry(cell.category_id).or_default();
        let objects = cell.num_gt_in_denominator() as u32;
        if file == 0 && objects > 0 {
            class.objects.push((image, objects));
        }
        for (place, &score) in cell.dt_scores.iter().enumerate().take(limit) {
            let mut hit = Hit { image, correct: 0, wrong: 0 };
            for (bit, (matched, ignored)) in cell.dt_matched.iter_rows().zip(cell.dt_ignore.iter_rows()).enumerate() {
                match (ignored[place], matched[place]) {
                    (true, _) => {}
                    (false, true) => hit.correct |= 1 << bit,
                    (false, false) => hit.wrong |= 1 << bit,
                }
            }
            class.hits[file].push((score, hit));
        }
    }
    for class in classes.values_mut() {
        class.hits[file].sort_by(|(a, x), (b, y)| b.total_cmp(a).then(x.image.cmp(&y.image)));
    }
}

/// The average precision of one class, by pycocotools' rule: at each recall the best precision at that recall or above.
fn average_precision(hits: &[(f64, Hit)], objects: f64, weights: &[u32], thresholds: usize, recalls: &[f64]) -> f64 {
    let drawn: Vec<(u32, &Hit)> =
        hits.iter().map(|(_, hit)| (weights[hit.image as usize], hit)).filter(|(weight, _)| *weight > 0).collect();
    let mut sum = 0.0;
    let mut points: Vec<(f64, f64)> = Vec::new();
    for threshold in 0..thresholds {
        points.clear();
        let (mut correct, mut wrong) = (0_u32, 0_u32);
        for (weight, hit) in &drawn {
            wrong += weight * (hit.wrong >> threshold & 1) as u32;
            if hit.correct >> threshold & 1 == 1 {
                correct += weight;
                let correct = f64::from(correct);
                points.push((correct / objects, correct / (correct + f64::from(wrong) + SPACING)));
            }
        }
        let (mut best, mut left) = (0.0_f64, points.len());
        for &recall in recalls.iter().rev() {
            while left > 0 && points[left - 1].0 >= recall {
                best = best.max(points[left - 1].1);
                left -= 1;
            }
            sum += best;
        }
    }
    sum / (thresholds * recalls.len()) as f64
}

/// The quantile of sorted values, as NumPy interpolates it; 0 without values.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = share * sorted.len().saturating_sub(1) as f64;
    let value = |place: f64| sorted.get(place as usize).copied().unwrap_or(0.0);
    value(at.floor()) + (value(at.ceil()) - value(at.floor())) * at.fract()
}

#[cfg(test)]
mod tests {
    use hotcoco::{Annotation, Dataset, Image};

    use super::*;
    use crate::metrics::{Metrics, analyze};
    use fnet_data::Category;

    const CLASSES: u64 = 3;

    /// Objects in each image, and detections near most of them, which are better the larger `skill` is.
    fn set(images: u64, skill: f64) -> (Vec<Annotation>, Vec<Annotation>) {
        let (mut objects, mut found) = (Vec::new(), Vec::new());
        for image_id in 1..=images {
            let mut random = Generator::derived(7, Purpose::Synthetic, &[image_id]);
            for _ in 0..random.below(5) {
                let [x, y, w, h] = [60.0, 40.0, 40.0, 30.0].map(|most| 2.0 + random.uniform() * most);
                let category_id = 1 + random.below(CLASSES as usize) as u64;
                let bbox = Some([x, y, w, h]);
                objects.push(Annotation { image_id, category_id, bbox, area: Some(w * h), ..Annotation::default() });
                let shift = (1.0 - skill) * random.uniform() * w;
                let other = 1 + random.below(CLASSES as usize) as u64;
                let category_id = if random.uniform() < skill { category_id } else { other };
                let score = Some(random.uniform());
                found.push(Annotation {
                    image_id,
                    category_id,
                    score,
                    bbox: Some([x + shift, y, w, h]),
                    ..Annotation::default()
                });
            }
        }
        (objects, found)
    }

    /// The objects and detections of each image as often as its weight says.
    fn repeated(all: &[Annotation], weights: &[u32]) -> Vec<Annotation> {
        let copies = |object: &Annotation| {
            let object = object.clone();
            (0..weights[object.image_id as usize - 1])
                .map(move |copy| Annotation { image_id: object.image_id + 1000 * u64::from(copy), ..object.clone() })
        };
        all.iter().flat_map(copies).collect()
    }

    fn truth(objects: Vec<Annotation>, weights: &[u32]) -> GroundTruth {
        let ids = (1..).zip(weights).flat_map(|(id, &weight)| (0..u64::from(weight)).map(move |copy| id + 1000 * copy));
        let images: Vec<Image> = ids.map(|id| Image { id, width: 120, height: 90, ..Image::default() }).collect();
        let ids: Vec<i64> = images.iter().map(|image| image.id as i64).collect();
        let categories = (1..=CLASSES).map(|id| hotcoco::Category { id, name: format!("c{id}"), ..Default::default() });
        let named: Vec<Category> =
            categories.clone().map(|category| Category { id: category.id as i64, name: category.name }).collect();
        let dataset = Dataset { images, annotations: objects, categories: categories.collect(), ..Default::default() };
        GroundTruth::new(dataset, &ids, &named)
    }

    #[test]
    fn a_weight_is_as_many_copies_of_the_image_and_all_of_one_are_the_metrics() {
        let settings = Evaluation::default();
        let ((objects, good), (_, bad)) = (set(40, 0.9), set(40, 0.5));
        let mut random = Generator::from_seed(1);
        let drawn: Vec<u32> = (0..40).map(|_| random.below(4) as u32).collect();
        let matches =
            Matches::of(&truth(objects.clone(), &[1; 40]), [bad.clone(), good.clone()], Metric::Bbox, &settings)
                .unwrap();
        for weights in [drawn, vec![1; 40]] {
            let truth = truth(repeated(&objects, &weights), &weights);
            let expected = [&bad, &good].map(|found| {
                let found = repeated(found, &weights);
                let kinds = [Metric::Bbox];
                let detections = |_| Ok(found.clone());
                let metrics = Metrics::measure(&truth, 0, &kinds, &settings, &detections, &mut |kind, evaluation| {
                    // The page shows what the table shows.
                    let shown = analyze(&truth, evaluation, kind, &settings)?.json;
                    let by_iou: Vec<f64> =
                        shown["by_iou"].as_array().unwrap().iter().map(|point| point[1].as_f64().unwrap()).collect();
                    let mean = by_iou.iter().sum::<f64>() / by_iou.len() as f64;
                    let scores = crate::metrics::Means::of(evaluation)?.scores(&truth, &settings)?;
                    assert!((mean - scores.precision[0]).abs() < 1e-5, "{mean}, {scores:?}");
                    for (class, ap) in shown["classes"].as_array().unwrap().iter().zip(&scores.by_class) {
                        assert!((class["ap"][0].as_f64().unwrap() - ap).abs() < 1e-5, "{class}, {ap}");
                    }
                    Ok(())
                });
                metrics.unwrap().named()["bbox_mAP"]
            });
            let [a, b] = matches.both(&weights).unwrap();
            assert!((a - expected[0]).abs() < 1e-9 && (b - expected[1]).abs() < 1e-9, "{a} {b}, {expected:?}");
        }
    }

    #[test]
    fn a_clear_difference_is_significant_and_none_is_not() {
        let settings = Evaluation::default();
        let ((objects, good), (_, bad)) = (set(60, 0.9), set(60, 0.5));
        let truth = truth(objects, &[1; 60]);
        let compare = |pair: [&Vec<Annotation>; 2], seed| {
            let resampling = Resampling { count: 200, seed };
            difference(&truth, pair.map(Clone::clone), Metric::Bbox, &settings, resampling).unwrap().unwrap()
        };
        let found = compare([&bad, &good], 0);
        let change = found.values[1] - found.values[0];
        assert!(found.is_significant() && found.second_better == 1.0, "{found:?}");
        assert!(found.interval[0] < change && change < found.interval[1], "{found:?}");
        assert_eq!(found, compare([&bad, &good], 0), "the same seed");
        assert_ne!(found.interval, compare([&bad, &good], 1).interval);
        let swapped = compare([&good, &bad], 0);
        assert!((swapped.interval[0] + found.interval[1]).abs() < 1e-12, "{swapped:?}");
        let same = compare([&good, &good], 0);
        assert!(!same.is_significant() && same.interval == [0.0, 0.0], "{same:?}");
    }
}

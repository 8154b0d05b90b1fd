//! Assigns boxes to objects, like MMDetection's MaxIoUAssigner.

use fnet_config as config;

use super::boxes::BoxColumns;

/// The assignment of a box.
pub type Assigned = i32;

/// Neither object nor background: not part of the loss.
pub(crate) const IGNORED: Assigned = -1;
/// Background. Larger values are an object's index plus one.
pub const BACKGROUND: Assigned = 0;

/// Assigns each of `boxes` to one of `objects`, to the background, or to neither, by these rules in order:
///
/// 1. background if its maximum IoU is below `negative_iou`;
/// 2. the object with its maximum IoU (the first of equals) if that is at least `positive_iou`;
/// 3. with `match_low_quality`, every box that attains an object's maximum IoU exactly is assigned to that object, if
///    the IoU is at least `min_positive_iou`; later objects win.
///
/// Comparisons are in float32, as in MMDetection. Without objects everything is background.
pub fn assign(boxes: &BoxColumns, objects: &[[f32; 4]], rule: &config::Assigner) -> Vec<Assigned> {
    if objects.is_empty() {
        return vec![BACKGROUND; boxes.len()];
    }
    let (positive, negative) = (rule.positive_iou as f32, rule.negative_iou as f32);
    let mut best = vec![-1.0_f32; boxes.len()];
    let mut best_object = vec![BACKGROUND; boxes.len()];
    let mut attained: Vec<(usize, Assigned)> = Vec::new();
    let mut row = Vec::with_capacity(boxes.len());
    for (number, object) in (1..).zip(objects) {
        boxes.overlaps(object, &mut row);
        let mut most = [0.0_f32; 8];
        for ((&overlap, best), best_object) in row.iter().zip(&mut best).zip(&mut best_object) {
            let better = overlap > *best;
            *best = if better { overlap } else { *best };
            *best_object = if better { number } else { *best_object };
        }
        // Eight lanes, so that the compiler vectorizes the loop.
        let lanes = row.chunks_exact(8);
        let rest = lanes.remainder();
        for chunk in lanes {
            for (most, &overlap) in most.iter_mut().zip(chunk) {
                *most = if overlap > *most { overlap } else { *most };
            }
        }
        let most = most.iter().chain(rest).fold(0.0_f32, |most, &overlap| if overlap > most { overlap } else { most });
        if rule.match_low_quality && most >= rule.min_positive_iou as f32 {
            attained.extend(row.iter().enumerate().filter(|(_, overlap)| **overlap == most).map(|(i, _)| (i, number)));
        }
    }
    let mut assigned: Vec<Assigned> = best
        .iter()
        .zip(&best_object)
        .map(|(&best, &object)| match best {
            best if best >= positive => object,
            best if best < negative => BACKGROUND,
            _ => IGNORED,
        })
        .collect();
    for (index, object) in attained {
        assigned[index] = object;
    }
    assigned
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(match_low_quality: bool) -> config::Assigner {
        config::Assigner { positive_iou: 0.7, negative_iou: 0.3, min_positive_iou: 0.3, match_low_quality }
    }

    fn columns(boxes: &[[f32; 4]]) -> BoxColumns {
        boxes.iter().collect()
    }

    #[test]
    fn boxes_are_positive_ignored_or_background_by_their_maximum_overlap() {
        let boxes =
            columns(&[[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.0], [0.0, 0.0, 10.0, 2.0], [50.0, 0.0, 60.0, 9.0]]);
        let objects = [[0.0, 0.0, 10.0, 10.0]];
        assert_eq!(assign(&boxes, &objects, &rule(true)), [1, IGNORED, BACKGROUND, BACKGROUND]);
    }

    #[test]
    fn every_box_that_attains_an_objects_best_overlap_gets_it() {
        let boxes = columns(&[[0.0, 0.0, 10.0, 5.0], [0.0, 5.0, 10.0, 10.0], [0.0, 0.0, 10.0, 2.0]]);
        let objects = [[0.0, 0.0, 10.0, 10.0]];
        assert_eq!(assign(&boxes, &objects, &rule(true)), [1, 1, BACKGROUND]);
        assert_eq!(assign(&boxes, &objects, &rule(false)), [IGNORED, IGNORED, BACKGROUND]);
    }

    #[test]
    fn a_later_object_takes_its_best_box_from_an_earlier_one() {
        let boxes = columns(&[[0.0, 0.0, 10.0, 10.0]]);
        let objects = [[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.0]];
        assert_eq!(assign(&boxes, &objects, &rule(true)), [2]);
        assert_eq!(assign(&boxes, &objects, &rule(false)), [1]);
    }

    #[test]
    fn equal_overlaps_go_to_the_first_object_and_no_object_means_background() {
        let boxes = columns(&[[0.0, 0.0, 10.0, 10.0]; 9]);
        let objects = [[0.0, 0.0, 10.0, 8.0], [0.0, 2.0, 10.0, 10.0]];
        assert_eq!(assign(&boxes, &objects, &rule(false)), [1; 9]);
        assert_eq!(assign(&boxes, &[], &rule(true)), [BACKGROUND; 9]);
    }
}

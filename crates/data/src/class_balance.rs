//! How often images with rare classes are repeated: MMDetection's `ClassBalancedDataset`, the repeat factors of Gupta,
//! Dollár and Girshick, "LVIS: A Dataset for Large Vocabulary Instance Segmentation", CVPR 2019.

/// How often each image is used per epoch.
///
/// A class `c` that is in the fraction `f(c)` of the images has the factor `r(c) = max(1, sqrt(threshold / f(c)))`. An image
/// is used `ceil(max r(c))` times over its classes. Images without objects are used once; with `background` they are
/// images of a class of their own.
pub fn repeats(classes: &[Vec<u16>], threshold: f64, background: bool) -> Vec<usize> {
    let none = classes.iter().flatten().max().map_or(0, |&class| usize::from(class) + 1);
    let of = |own: &[u16]| -> Vec<usize> {
        match own {
            [] if background => vec![none],
            own => own.iter().map(|&class| usize::from(class)).collect(),
        }
    };
    let mut images = vec![0_usize; none + 1];
    classes.iter().flat_map(|own| of(own)).for_each(|class| images[class] += 1);
    let factor = |class: usize| (threshold / (images[class] as f64 / classes.len() as f64)).sqrt().max(1.0);
    classes.iter().map(|own| of(own).into_iter().map(factor).fold(1.0, f64::max).ceil() as usize).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    /// The definition, step by step.
    fn by_definition(classes: &[Vec<u16>], threshold: f64, background: bool) -> Vec<usize> {
        let sets: Vec<BTreeSet<i32>> = classes
            .iter()
            .map(|own| own.iter().map(|&class| i32::from(class)).collect::<BTreeSet<i32>>())
            .map(|own| if own.is_empty() && background { BTreeSet::from([-1]) } else { own })
            .collect();
        let mut frequency: BTreeMap<i32, f64> = BTreeMap::new();
        for class in sets.iter().flatten() {
            let having = sets.iter().filter(|own| own.contains(class)).count();
            frequency.insert(*class, having as f64 / sets.len() as f64);
        }
        let of_class = |class: &i32| f64::max(1.0, (threshold / frequency[class]).sqrt());
        sets.iter().map(|own| own.iter().map(of_class).fold(1.0, f64::max).ceil() as usize).collect()
    }

    #[test]
    fn rare_classes_are_repeated_by_the_square_root_of_their_rarity() {
        // f = 0.8, 0.1 and 0.2; with the threshold 0.5 the factors are 1, sqrt(5) = 2.2 and sqrt(2.5) = 1.6.
        let mut classes = vec![vec![0]; 8];
        classes[7].push(2);
        classes.extend([vec![1, 2], vec![]]);
        assert_eq!(repeats(&classes, 0.5, false), [1, 1, 1, 1, 1, 1, 1, 2, 3, 1]);
        // The image without objects is a class with f = 0.1.
        assert_eq!(repeats(&classes, 0.5, true), [1, 1, 1, 1, 1, 1, 1, 2, 3, 3]);
        assert_eq!(repeats(&classes, 0.0, true), [1; 10]);
        assert!(repeats(&[], 0.5, true).is_empty());
    }

    proptest! {
        #[test]
        fn repeats_are_those_of_the_definition(
            classes in prop::collection::vec(prop::collection::btree_set(0u16..6, 0..4), 1..40),
            threshold in 0.0..1.0, background: bool
        ) {
            let classes: Vec<Vec<u16>> = classes.into_iter().map(|own| own.into_iter().collect()).collect();
            prop_assert_eq!(repeats(&classes, threshold, background), by_definition(&classes, threshold, background));
        }
    }
}

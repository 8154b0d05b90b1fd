//! Divides images into a training and a validation part, so that both have objects of every class.
//!
//! Iterative stratification (Sechidis, Tsoumakas and Vlahavas, "On the Stratification of Multi-Label Data", ECML PKDD 2011)
//! with two parts: the class with the fewest images that are left comes first, because there is the least choice, and each of
//! its images goes to the part that lacks the most images of the class. In addition, each part is owed at least one image of
//! every class that has two, a class with one image has no say, and a last pass moves single images where a class is missing.

use fnet_common::random::Generator;

/// For each image, whether it is one of the `fraction` for validation. `classes` are the classes of its objects, sorted.
///
/// The result depends only on the arguments. Any fraction above 0 takes at least one of several images, and leaves one.
pub fn validation_part(classes: &[Vec<u16>], fraction: f64, seed: u64) -> Vec<bool> {
    let count = classes.iter().flatten().max().map_or(0, |&class| usize::from(class) + 1);
    let order = Generator::from_seed(seed).permutation(classes.len());
    let mut members: Vec<Vec<usize>> = vec![Vec::new(); count];
    for &image in &order {
        classes[image].iter().for_each(|&class| members[usize::from(class)].push(image));
    }
    let mut split = Split {
        classes,
        part: vec![None; classes.len()],
        owed: members.iter().map(|members| owed(members.len(), fraction)).collect(),
        owed_images: owed(classes.len(), fraction),
    };
    let mut left: Vec<usize> = members.iter().map(Vec::len).collect();
    while let Some(rarest) = (0..count).filter(|&class| left[class] > 0).min_by_key(|&class| left[class]) {
        for &image in &members[rarest] {
            if split.part[image].is_none() {
                split.assign(image, if members[rarest].len() > 1 { split.owed[rarest] } else { split.owed_images });
                classes[image].iter().for_each(|&class| left[usize::from(class)] -= 1);
            }
        }
    }
    // Images without objects fill up the parts.
    for &image in &order {
        if split.part[image].is_none() {
            split.assign(image, split.owed_images);
        }
    }
    let mut part: Vec<bool> = split.part.into_iter().map(|part| part == Some(VALIDATION)).collect();
    while complete(classes, &members, &mut part) {}
    part
}

const TRAINING: usize = 0;
const VALIDATION: usize = 1;

/// How many of `count` images each part gets: at least one each, if there are two.
fn owed(count: usize, fraction: f64) -> [f64; 2] {
    let taken = count as f64 * fraction;
    let taken = if count < 2 { taken } else { taken.clamp(1.0, count as f64 - 1.0) };
    [count as f64 - taken, taken]
}

/// A division in progress.
struct Split<'c> {
    classes: &'c [Vec<u16>],
    part: Vec<Option<usize>>,
    /// How many images of each class each part still lacks.
    owed: Vec<[f64; 2]>,
    /// How many images each part still lacks.
    owed_images: [f64; 2],
}

impl Split<'_> {
    /// Puts an image into the part with the larger of two needs; if they are equal, into the part that lacks more images.
    fn assign(&mut self, image: usize, [training, validation]: [f64; 2]) {
        let larger = |[a, b]: [f64; 2]| if b > a { VALIDATION } else { TRAINING };
        let part = if training == validation { larger(self.owed_images) } else { larger([training, validation]) };
        self.part[image] = Some(part);
        self.owed_images[part] -= 1.0;
        self.classes[image].iter().for_each(|&class| self.owed[usize::from(class)][part] -= 1.0);
    }
}

/// Moves an image of each class that only one part has, unless the move takes another class from that part. Returns whether
/// an image was moved.
fn complete(classes: &[Vec<u16>], members: &[Vec<usize>], part: &mut [bool]) -> bool {
    let mut moved = false;
    let mut taken: Vec<usize> =
        members.iter().map(|members| members.iter().filter(|&&image| part[image]).count()).collect();
    for (class, images) in members.iter().enumerate() {
        if images.len() < 2 || (1..images.len()).contains(&taken[class]) {
            continue;
        }
        let has = taken[class] > 0;
        let remains = |class: &u16| {
            let (all, taken) = (members[usize::from(*class)].len(), taken[usize::from(*class)]);
            all < 2 || if has { taken > 1 } else { all - taken > 1 }
        };
        if let Some(&image) = images.iter().find(|&&image| classes[image].iter().all(remains)) {
            (part[image], moved) = (!has, true);
            for &class in &classes[image] {
                let taken = &mut taken[usize::from(class)];
                *taken = if has { *taken - 1 } else { *taken + 1 };
            }
        }
    }
    moved
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// The number of images of each class, and how many of them are for validation.
    fn by_class(classes: &[Vec<u16>], part: &[bool]) -> Vec<(usize, usize)> {
        let has = |image: &usize, class: u16| classes[*image].contains(&class);
        (0..8)
            .map(|class| {
                let images: Vec<usize> = (0..classes.len()).filter(|image| has(image, class)).collect();
                (images.len(), images.iter().filter(|&&image| part[image]).count())
            })
            .collect()
    }

    proptest! {
        #[test]
        fn parts_of_images_with_one_class_have_the_fraction_of_every_class(
            classes in prop::collection::vec(0u16..8, 2..200), fraction in 0.01..0.99, seed in 0u64..9
        ) {
            let classes: Vec<Vec<u16>> = classes.into_iter().map(|class| vec![class]).collect();
            let part = validation_part(&classes, fraction, seed);
            for (all, taken) in by_class(&classes, &part) {
                let expected = (all as f64 * fraction).clamp(f64::from(all > 1), (all as f64 - 1.0).max(0.0));
                prop_assert!(all < 2 || (taken as f64 - expected).abs() <= 1.0, "{taken} of {all}");
                prop_assert!(all < 2 || (1..all).contains(&taken), "{taken} of {all}");
            }
        }

        #[test]
        fn parts_of_images_with_several_classes_miss_a_class_only_if_no_image_can_be_moved(
            classes in prop::collection::vec(prop::collection::btree_set(0u16..8, 0..4), 2..60),
            fraction in 0.01..0.99, seed in 0u64..9
        ) {
            let classes: Vec<Vec<u16>> = classes.into_iter().map(|own| own.into_iter().collect()).collect();
            let part = validation_part(&classes, fraction, seed);
            prop_assert_eq!(&part, &validation_part(&classes, fraction, seed));
            prop_assert_eq!(part.len(), classes.len());
            prop_assert!(part.iter().any(|&taken| taken) && part.iter().any(|&taken| !taken));
            let missing = |part: &[bool]| -> BTreeSet<usize> {
                let counts = by_class(&classes, part).into_iter().enumerate();
                counts.filter(|&(_, (all, taken))| all > 1 && (taken == 0 || taken == all)).map(|(class, _)| class).collect()
            };
            let now = missing(&part);
            for image in 0..part.len() {
                let mut moved = part.clone();
                moved[image] = !moved[image];
                let then = missing(&moved);
                prop_assert!(then == now || !then.is_subset(&now), "image {image} completes a class");
            }
        }
    }

    #[test]
    fn sizes_follow_the_fraction_and_seeds_differ() {
        let classes: Vec<Vec<u16>> =
            (0..1000u16).map(|image| (0..3).filter(|class| image % (class + 2) == 0).collect()).collect();
        let [a, b] = [0, 1].map(|seed| validation_part(&classes, 0.1, seed));
        for part in [&a, &b] {
            let taken = part.iter().filter(|&&taken| taken).count();
            assert!((95..=105).contains(&taken), "{taken}");
            for (all, taken) in by_class(&classes, part).into_iter().filter(|(all, _)| *all > 0) {
                assert!((taken as f64 - all as f64 / 10.0).abs() < 3.0, "{taken} of {all}");
            }
        }
        assert_ne!(a, b);
    }

    #[test]
    fn few_images_are_divided_so_that_no_part_is_empty() {
        assert_eq!(validation_part(&[vec![0]], 0.9, 0), [true]);
        assert_eq!(validation_part(&[vec![0]], 0.1, 0), [false]);
        let part = validation_part(&[vec![0], vec![0, 1], vec![1], vec![]], 0.01, 0);
        assert!(by_class(&[vec![0], vec![0, 1], vec![1], vec![]], &part)[..2].iter().all(|&(_, taken)| taken == 1));
    }
}

//! Samples assigned boxes for the loss, like MMDetection's RandomSampler.

use fnet_common::random::{Generator, Purpose};
use fnet_config as config;

use super::assign::{Assigned, BACKGROUND};

/// Chooses random indices.
pub trait Choice {
    /// Returns `count` different numbers below `of`. `count` is less than `of`.
    fn choose(&mut self, count: usize, of: usize) -> Vec<usize>;
}

/// Chooses the first `count`, for tests and benchmarks that need deterministic boxes.
#[derive(Debug, Clone, Copy, Default)]
pub struct First;

impl Choice for First {
    fn choose(&mut self, count: usize, _of: usize) -> Vec<usize> {
        (0..count).collect()
    }
}

/// A uniform choice without replacement.
#[derive(Debug, Clone)]
pub struct Uniform(pub Generator);

impl Choice for Uniform {
    fn choose(&mut self, count: usize, of: usize) -> Vec<usize> {
        // A partial Fisher-Yates shuffle.
        let mut list: Vec<u32> = (0..of as u32).collect();
        for place in 0..count {
            let other = place + self.0.below(of - place);
            list.swap(place, other);
        }
        list[..count].iter().map(|&index| index as usize).collect()
    }
}

/// The random numbers of one step of one rank.
pub struct StepRandom {
    /// Chooses anchors and proposals.
    pub choice: Box<dyn Choice + Send>,
    /// Draws the branches to drop.
    pub drop_path: Generator,
}

impl StepRandom {
    /// The random numbers of `step` on `rank`.
    pub fn new(seed: u64, rank: usize, step: u64) -> Self {
        let coordinates = [rank as u64, step];
        Self {
            choice: Box::new(Uniform(Generator::derived(seed, Purpose::Sampling, &coordinates))),
            drop_path: Generator::derived(seed, Purpose::DropPath, &coordinates),
        }
    }
}

/// Indices of chosen boxes, each list ascending.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sampled {
    /// Positive boxes.
    pub positive: Vec<usize>,
    /// Background boxes.
    pub negative: Vec<usize>,
}

/// Samples at most `count * positive_fraction` positives, and negatives up to a total of `count`.
pub fn sample(assigned: &[Assigned], rule: &config::Sampler, choice: &mut dyn Choice) -> Sampled {
    let gallery = |wanted: fn(Assigned) -> bool| -> Vec<usize> {
        assigned.iter().enumerate().filter(|(_, object)| wanted(**object)).map(|(index, _)| index).collect()
    };
    let most_positives = (rule.count as f64 * rule.positive_fraction) as usize;
    let positive = reduce(gallery(|object| object > BACKGROUND), most_positives, choice);
    let negatives = rule.count.saturating_sub(positive.len());
    let negative = reduce(gallery(|object| object == BACKGROUND), negatives, choice);
    Sampled { positive, negative }
}

/// At most `count` of `gallery`, ascending. Draws no random numbers if all fit.
fn reduce(gallery: Vec<usize>, count: usize, choice: &mut dyn Choice) -> Vec<usize> {
    if gallery.len() <= count {
        return gallery;
    }
    let mut chosen: Vec<usize> =
        choice.choose(count, gallery.len()).iter().filter_map(|&place| gallery.get(place).copied()).collect();
    chosen.sort_unstable();
    chosen.dedup();
    chosen
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule(count: usize, positive_fraction: f64) -> config::Sampler {
        config::Sampler { count, positive_fraction, add_ground_truth: false }
    }

    #[test]
    fn missing_positives_are_replaced_by_negatives() {
        let assigned = [0, 2, -1, 0, 0, 1, 0];
        let sampled = sample(&assigned, &rule(5, 0.5), &mut First);
        assert_eq!(sampled, Sampled { positive: vec![1, 5], negative: vec![0, 3, 4] });
        assert_eq!(sample(&assigned, &rule(2, 0.5), &mut First).positive, [1]);
        assert_eq!(sample(&[-1, -1], &rule(2, 0.5), &mut First), Sampled::default());
    }

    #[test]
    fn choices_depend_only_on_seed_rank_and_step() {
        let draw = |rank, step| StepRandom::new(5, rank, step).choice.choose(5, 1000);
        assert_eq!(draw(1, 2), draw(1, 2));
        assert_ne!(draw(1, 2), draw(2, 2));
        assert_ne!(draw(1, 2), draw(1, 3));
    }

    #[test]
    fn uniform_choices_reach_every_box_equally_often() {
        let mut choice = Uniform(Generator::from_seed(1));
        let mut hits = [0_u32; 10];
        for _ in 0..5000 {
            choice.choose(3, 10).into_iter().for_each(|index| hits[index] += 1);
        }
        assert!(hits.iter().all(|&hits| (1350..1650).contains(&hits)), "{hits:?}");
    }

    proptest! {
        #[test]
        fn samples_are_ascending_within_limits_and_correctly_labeled(
            assigned in prop::collection::vec(-1..3i32, 0..200),
            count in 0usize..64,
            fraction in 0.0..=1.0f64,
            seed in any::<u64>(),
        ) {
            let sampled = sample(&assigned, &rule(count, fraction), &mut Uniform(Generator::from_seed(seed)));
            prop_assert!(sampled.positive.len() <= (count as f64 * fraction) as usize);
            let negatives = assigned.iter().filter(|&&object| object == BACKGROUND).count();
            prop_assert_eq!(sampled.negative.len(), negatives.min(count - sampled.positive.len()));
            prop_assert!(sampled.positive.iter().all(|&index| assigned[index] > BACKGROUND));
            prop_assert!(sampled.negative.iter().all(|&index| assigned[index] == BACKGROUND));
            prop_assert!(sampled.positive.is_sorted_by(|a, b| a < b) && sampled.negative.is_sorted_by(|a, b| a < b));
        }
    }
}

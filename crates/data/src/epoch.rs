//! Distributes an epoch over the ranks when their number or batch size changes within the epoch.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::samplers::train_indices;

/// A part of an epoch with a constant number of ranks and batch size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardSegment {
    /// Number of ranks.
    pub world_size: usize,
    /// Images per rank and step.
    pub samples_per_gpu: usize,
    /// Micro-steps per update.
    pub accumulate: usize,
    /// Completed steps.
    pub steps: usize,
}

/// The images of every rank from the end of `segments` to the end of the epoch, in chunks of `samples_per_gpu` images
/// of one aspect group. All lists have the same length. Without segments, the result equals [`train_indices`].
///
/// Every image that the segments have not seen occurs once, in the order that the last segment would have used. Each
/// group is filled up by repeating its start, as at the start of an epoch.
///
/// # Panics
/// If `world_size` or `samples_per_gpu` is 0.
pub fn rest_of_epoch(
    flags: &[u8],
    epoch: u64,
    seed: u64,
    segments: &[ShardSegment],
    world_size: usize,
    samples_per_gpu: usize,
) -> Vec<Vec<usize>> {
    let Some((last, earlier)) = segments.split_last() else {
        return (0..world_size)
            .map(|rank| train_indices(flags, epoch, seed, rank, world_size, samples_per_gpu))
            .collect();
    };
    let planned = rest_of_epoch(flags, epoch, seed, earlier, last.world_size, last.samples_per_gpu);
    let order = by_step(&planned, last.samples_per_gpu);
    let (seen, rest) = order.split_at(order.len().min(last.steps * last.world_size * last.samples_per_gpu));
    let mut seen: HashSet<usize> = seen.iter().copied().collect();
    // Images that fill up a group were seen before, in this segment or an earlier one.
    let planned: HashSet<usize> = order.iter().copied().collect();
    seen.extend((0..flags.len()).filter(|index| !planned.contains(index)));
    let unseen: Vec<usize> = rest.iter().copied().filter(|&index| seen.insert(index)).collect();
    deal(&unseen, flags, world_size, samples_per_gpu)
}

/// All images, ordered by step, then by rank.
fn by_step(lists: &[Vec<usize>], samples_per_gpu: usize) -> Vec<usize> {
    let steps = lists.first().map_or(0, |list| list.len() / samples_per_gpu);
    let chunk = |step: usize, list: &'_ Vec<usize>| list[step * samples_per_gpu..(step + 1) * samples_per_gpu].to_vec();
    (0..steps).flat_map(|step| lists.iter().flat_map(move |list| chunk(step, list))).collect()
}

/// Distributes images in chunks of one group, in the order of their first images.
fn deal(images: &[usize], flags: &[u8], world_size: usize, samples_per_gpu: usize) -> Vec<Vec<usize>> {
    let mut chunks: Vec<(usize, Vec<usize>)> = Vec::new();
    for group in [0, 1] {
        let members: Vec<(usize, usize)> =
            images.iter().copied().enumerate().filter(|&(_, index)| flags[index] == group).collect();
        let filled = members.len().next_multiple_of(samples_per_gpu * world_size);
        // Repeated images come last.
        let placed = (0..filled).map(|at| match members.get(at) {
            Some(&(place, index)) => (place, index),
            None => (images.len() + at, members[at % members.len()].1),
        });
        let placed: Vec<(usize, usize)> = placed.collect();
        chunks
            .extend(placed.chunks(samples_per_gpu).map(|chunk| (chunk[0].0, chunk.iter().map(|&(_, i)| i).collect())));
    }
    chunks.sort();
    let mut lists = vec![Vec::new(); world_size];
    for (number, (_, chunk)) in chunks.into_iter().enumerate() {
        lists[number % world_size].extend(chunk);
    }
    lists
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Number of ranks, images per rank, and the fraction of the rest that is trained.
    type Change = (usize, usize, f64);

    /// The trained images through all changes. Checks each list.
    fn trained(flags: &[u8], changes: &[Change]) -> Vec<usize> {
        let (mut segments, mut seen) = (Vec::new(), Vec::new());
        for (number, &(world_size, samples_per_gpu, share)) in changes.iter().enumerate() {
            let lists = rest_of_epoch(flags, 3, 7, &segments, world_size, samples_per_gpu);
            assert_eq!(lists.len(), world_size);
            let all = lists[0].len() / samples_per_gpu;
            for list in &lists {
                assert_eq!(list.len(), all * samples_per_gpu);
                assert!(list.chunks(samples_per_gpu).all(|chunk| chunk.iter().all(|&i| flags[i] == flags[chunk[0]])));
            }
            let steps = if number + 1 == changes.len() { all } else { (all as f64 * share) as usize };
            seen.extend(lists.iter().flat_map(|list| &list[..steps * samples_per_gpu]));
            segments.push(ShardSegment { world_size, samples_per_gpu, accumulate: 1, steps });
        }
        seen
    }

    proptest! {
        #[test]
        fn every_image_of_the_epoch_is_seen_after_any_changes(
            flags in prop::collection::vec(0u8..2, 1..60),
            changes in prop::collection::vec((1usize..6, 1usize..4, 0.0..1.0), 1..4),
        ) {
            let seen = trained(&flags, &changes);
            let unique: HashSet<usize> = seen.iter().copied().collect();
            prop_assert_eq!(unique.len(), flags.len());
            // A segment repeats at most what fills up each of the two groups.
            let filling: usize = changes.iter().map(|&(world_size, samples, _)| 2 * (world_size * samples - 1)).sum();
            prop_assert!(seen.len() <= flags.len() + filling);
        }
    }

    #[test]
    fn a_change_and_back_sees_each_image_once() {
        let flags: Vec<u8> = vec![1; 48];
        let mut seen = trained(&flags, &[(4, 2, 0.5), (2, 2, 0.5), (4, 1, 1.0)]);
        assert_eq!(seen.len(), 48);
        seen.sort_unstable();
        assert_eq!(seen, (0..48).collect::<Vec<_>>());
    }

    #[test]
    fn half_the_ranks_continue_in_the_same_order() {
        let flags = vec![0; 16];
        let segment = ShardSegment { world_size: 4, samples_per_gpu: 1, accumulate: 1, steps: 2 };
        let whole = by_step(&rest_of_epoch(&flags, 0, 0, &[], 4, 1), 1);
        let rest = by_step(&rest_of_epoch(&flags, 0, 0, &[segment], 2, 1), 1);
        assert_eq!(rest, whole[8..]);
    }
}

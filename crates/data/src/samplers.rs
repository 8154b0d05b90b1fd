//! Selects the images of a rank and their order: pure functions, equal to MMDetection's samplers.

use fnet_common::random::Generator;

/// The images of `rank` in `epoch`, in chunks of `samples_per_gpu` images of one aspect group
/// (`DistributedGroupSampler`).
///
/// `flags` contains each image's group, 0 or 1. Every group is shuffled and filled up to a multiple of
/// `samples_per_gpu * world_size` by repeating its start. The chunks are shuffled, and each rank takes a contiguous part. All lists have
/// the same length.
///
/// # Panics
/// If `rank` is not below `world_size` or `samples_per_gpu` is 0.
pub fn train_indices(
    flags: &[u8],
    epoch: u64,
    seed: u64,
    rank: usize,
    world_size: usize,
    samples_per_gpu: usize,
) -> Vec<usize> {
    assert!(rank < world_size && samples_per_gpu > 0, "rank {rank} of {world_size}, {samples_per_gpu} samples");
    let mut random = Generator::from_seed(seed.wrapping_add(epoch));
    let mut all = Vec::new();
    for group in [0, 1] {
        let members: Vec<usize> = (0..flags.len()).filter(|&i| flags[i] == group).collect();
        if members.is_empty() {
            continue;
        }
        let shuffled: Vec<usize> = random.permutation(members.len()).into_iter().map(|i| members[i]).collect();
        let padded = shuffled.len().next_multiple_of(samples_per_gpu * world_size);
        all.extend(shuffled.iter().cycle().take(padded));
    }
    let per_rank = all.len() / world_size;
    let chunks = random.permutation(all.len() / samples_per_gpu);
    chunks
        .into_iter()
        .flat_map(|chunk| &all[chunk * samples_per_gpu..(chunk + 1) * samples_per_gpu])
        .skip(rank * per_rank)
        .take(per_rank)
        .copied()
        .collect()
}

/// Steps per epoch on every rank: the length of [`train_indices`] divided by `samples_per_gpu`.
///
/// # Panics
/// If `world_size` or `samples_per_gpu` is 0.
pub fn train_batches_per_epoch(flags: &[u8], world_size: usize, samples_per_gpu: usize) -> usize {
    let ones = flags.iter().filter(|&&flag| flag == 1).count();
    let zeros = flags.iter().filter(|&&flag| flag == 0).count();
    [zeros, ones].iter().map(|count| count.div_ceil(samples_per_gpu * world_size)).sum()
}

/// The images of `rank` for evaluation, each image on exactly one rank.
///
/// # Panics
/// If `world_size` is 0.
pub fn evaluation_indices(count: usize, rank: usize, world_size: usize) -> Vec<usize> {
    (rank..count).step_by(world_size).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_image_is_seen_and_every_step_has_one_group(
            flags in prop::collection::vec(0u8..2, 1..60), world_size in 1usize..6, samples in 1usize..4, epoch in 0u64..5
        ) {
            let lists: Vec<_> = (0..world_size).map(|r| train_indices(&flags, epoch, 7, r, world_size, samples)).collect();
            prop_assert!(lists.iter().all(|list| list.len() == lists[0].len() && list.len() % samples == 0));
            prop_assert_eq!(lists[0].len() / samples, train_batches_per_epoch(&flags, world_size, samples));
            for chunk in lists.iter().flat_map(|list| list.chunks(samples)) {
                prop_assert!(chunk.iter().all(|&i| flags[i] == flags[chunk[0]]));
            }
            let mut seen: Vec<usize> = lists.concat();
            // No image is repeated before every other image of its group was used.
            for group in [0, 1] {
                let counts: Vec<usize> = (0..flags.len()).filter(|&i| flags[i] == group)
                    .map(|i| seen.iter().filter(|&&s| s == i).count()).collect();
                if let (Some(min), Some(max)) = (counts.iter().min(), counts.iter().max()) {
                    prop_assert!(max - min <= 1 && *min >= 1);
                }
            }
            seen.sort_unstable();
            seen.dedup();
            prop_assert_eq!(seen.len(), flags.len());
        }

        #[test]
        fn evaluation_uses_every_image_once(count in 0usize..100, world_size in 1usize..9) {
            let mut seen: Vec<usize> = (0..world_size).flat_map(|r| evaluation_indices(count, r, world_size)).collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..count).collect::<Vec<_>>());
        }
    }
}

//! Random numbers that depend only on the seed and on their purpose.
//!
//! A [`Generator`] is created from the seed and the coordinates of its use (epoch, sample, rank, step), so resuming needs no
//! stored state. Its engine and its permutation equal `torch.Generator` on the CPU: `torch.manual_seed(s)` followed by
//! `torch.randperm(n)` gives the same list as `Generator::from_seed(s).permutation(n)`.

use rand_mt::Mt;

/// The purpose of a generator; it separates streams with equal coordinates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Purpose {
    /// Initial values of parameters.
    Initialization = 1,
    /// Augmentation of one sample in one epoch.
    Augmentation = 2,
    /// Sampling of anchors and proposals in one step of one rank.
    Sampling = 3,
    /// Stochastic depth in one step of one rank.
    DropPath = 4,
    /// Synthetic images and boxes for benchmarks.
    Synthetic = 5,
    /// Images of one bootstrap resample.
    Bootstrap = 6,
}

/// A Mersenne Twister (MT19937) with the distributions that training needs.
#[derive(Debug, Clone)]
pub struct Generator {
    engine: Mt,
}

impl Generator {
    /// The same generator as after `torch.manual_seed(seed)`: the low 32 bits seed the engine.
    pub fn from_seed(seed: u64) -> Self {
        Self { engine: Mt::new(seed as u32) }
    }

    /// The generator of one `purpose` at `coordinates`, for example `[rank, step]`.
    pub fn derived(seed: u64, purpose: Purpose, coordinates: &[u64]) -> Self {
        let mut state = split_mix(seed ^ split_mix(purpose as u64));
        for &coordinate in coordinates {
            state = split_mix(state ^ split_mix(coordinate.wrapping_add(0x9e37_79b9_7f4a_7c15)));
        }
        Self::from_seed(state >> 32)
    }

    /// 32 uniform bits.
    pub fn next_u32(&mut self) -> u32 {
        self.engine.next_u32()
    }

    /// A uniform number in [0, 1) with 53 bits.
    pub fn uniform(&mut self) -> f64 {
        let bits = (u64::from(self.next_u32()) << 32 | u64::from(self.next_u32())) >> 11;
        bits as f64 / (1u64 << 53) as f64
    }

    /// A uniform integer in `0..bound`, by remainder as in PyTorch; 0 if `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        if bound == 0 { 0 } else { self.next_u32() as usize % bound }
    }

    /// The same list as `torch.randperm(n)` from this state.
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut list: Vec<usize> = (0..n).collect();
        for i in 0..n.saturating_sub(1) {
            let other = i + self.next_u32() as usize % (n - i);
            list.swap(i, other);
        }
        list
    }
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood, 2014): spreads every input bit over the output.
fn split_mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permutation_is_torch_randperm() {
        let _guard = tch::no_grad_guard();
        for (seed, n) in [(0, 1), (0, 10), (42, 100), (7, 4097)] {
            tch::manual_seed(seed);
            let expected: Vec<i64> =
                Vec::try_from(tch::Tensor::randperm(n, (tch::Kind::Int64, tch::Device::Cpu))).unwrap();
            let actual = Generator::from_seed(seed as u64).permutation(n as usize);
            assert_eq!(actual.iter().map(|&i| i as i64).collect::<Vec<_>>(), expected, "seed {seed}, n {n}");
        }
    }

    #[test]
    fn streams_differ_by_purpose_and_by_every_coordinate() {
        let draw = |purpose, coordinates: &[u64]| Generator::derived(3, purpose, coordinates).next_u32();
        let base = draw(Purpose::Sampling, &[0, 5]);
        assert_eq!(base, draw(Purpose::Sampling, &[0, 5]));
        for other in
            [draw(Purpose::DropPath, &[0, 5]), draw(Purpose::Sampling, &[1, 5]), draw(Purpose::Sampling, &[0, 6])]
        {
            assert_ne!(base, other);
        }
        assert_ne!(draw(Purpose::Sampling, &[0, 1]), draw(Purpose::Sampling, &[1, 0]));
    }
}

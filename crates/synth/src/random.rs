//! Random numbers as a function of coordinates, so that images are independent of each other and of threads.

/// A stream of random numbers (SplitMix64: Steele, Lea and Flood, 2014).
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

/// The finalizer of SplitMix64: every bit of the result depends on every bit of `x`.
pub(crate) fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Random {
    /// The stream of `seed` at `coordinates`.
    pub(crate) fn new(seed: u64, coordinates: &[u64]) -> Self {
        let start = mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15));
        Self(coordinates.iter().fold(start, |state, &c| mix(state.rotate_left(17) ^ mix(c.wrapping_add(0x2545_f491)))))
    }

    /// 64 uniform bits.
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Uniform in [0, 1).
    pub(crate) fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// Uniform in [low, high).
    pub(crate) fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.unit()
    }

    /// Uniform in 0..count; `count` above 0.
    pub(crate) fn below(&mut self, count: usize) -> usize {
        ((u128::from(self.bits()) * count as u128) >> 64) as usize
    }

    /// Uniform in the closed range.
    pub(crate) fn within(&mut self, range: &std::ops::RangeInclusive<u32>) -> u32 {
        range.start() + self.below((range.end() - range.start()) as usize + 1) as u32
    }

    /// True with probability `share`.
    pub(crate) fn chance(&mut self, share: f64) -> bool {
        let uniform = (self.bits() >> 11) as f64 / (1u64 << 53) as f64;
        uniform < share
    }

    /// Approximately normal with mean 0 and standard deviation 1: the sum of four uniform 16-bit numbers.
    pub(crate) fn normal(&mut self) -> f32 {
        let bits = self.bits();
        let sum: u64 = (0..4).map(|i| (bits >> (16 * i)) & 0xffff).sum();
        (sum as f32 / 65_536.0 - 2.0) * 3f32.sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_of_neighboring_coordinates_differ() {
        let first: Vec<u64> = (0..1000).map(|i| Random::new(0, &[1, i]).bits()).collect();
        let mut sorted = first.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), 1000);
        assert_ne!(Random::new(0, &[1, 2]).bits(), Random::new(0, &[2, 1]).bits());
        assert_ne!(Random::new(0, &[1]).bits(), Random::new(1, &[1]).bits());
    }

    #[test]
    fn draws_have_the_documented_range_mean_and_deviation() {
        let mut random = Random::new(7, &[]);
        let n = 20_000;
        let units: Vec<f32> = (0..n).map(|_| random.unit()).collect();
        assert!(units.iter().all(|u| (0.0..1.0).contains(u)));
        assert!((units.iter().sum::<f32>() / n as f32 - 0.5).abs() < 0.01);
        let normals: Vec<f32> = (0..n).map(|_| random.normal()).collect();
        let variance = normals.iter().map(|x| x * x).sum::<f32>() / n as f32;
        assert!((variance - 1.0).abs() < 0.05, "{variance}");
        let mut seen = [0; 5];
        (0..n).for_each(|_| seen[random.below(5)] += 1);
        assert!(seen.iter().all(|&count| (3600..4400).contains(&count)), "{seen:?}");
        assert!(!(0..n).any(|_| random.chance(0.0)));
        assert!((0..n).all(|_| random.chance(1.0)));
    }
}

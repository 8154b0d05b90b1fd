//! Initial values of every kind of layer, like in MMDetection.

use fnet_common::random::{Generator, Purpose};

/// The initialization of one tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    Constant(f32),
    /// Normal with mean 0 and this standard deviation.
    Normal(f64),
    /// Uniform between minus and plus this bound.
    Uniform(f64),
}

impl Init {
    /// MMDetection's truncated normal with standard deviation 0.02, truncated at ±2 and thus never.
    pub const BACKBONE: Self = Self::Normal(0.02);

    /// Xavier's uniform rule (Glorot and Bengio, 2010) with gain 1.
    pub fn xavier_uniform(fan_in: i64, fan_out: i64) -> Self {
        Self::Uniform((6.0 / (fan_in + fan_out) as f64).sqrt())
    }

    /// Kaiming's normal rule (He et al., 2015) for layers before a ReLU, with fan-out mode.
    pub fn kaiming_normal(fan_out: i64) -> Self {
        Self::Normal((2.0 / fan_out as f64).sqrt())
    }

    /// Whether all values are zero.
    pub fn is_zero(self) -> bool {
        self == Self::Constant(0.0)
    }

    /// `count` values.
    pub fn values(self, count: usize, generator: &mut Generator) -> Vec<f32> {
        match self {
            Self::Constant(value) => vec![value; count],
            Self::Uniform(bound) => (0..count).map(|_| ((2.0 * generator.uniform() - 1.0) * bound) as f32).collect(),
            Self::Normal(deviation) => normal(count, deviation, generator),
        }
    }
}

/// Normal values in pairs, by the Box-Muller transform.
fn normal(count: usize, deviation: f64, generator: &mut Generator) -> Vec<f32> {
    let mut values = Vec::with_capacity(count + 1);
    while values.len() < count {
        let radius = deviation * (-2.0 * (1.0 - generator.uniform()).ln()).sqrt();
        let (sine, cosine) = (std::f64::consts::TAU * generator.uniform()).sin_cos();
        values.extend([(radius * cosine) as f32, (radius * sine) as f32]);
    }
    values.truncate(count);
    values
}

/// The generator of one tensor's initial values.
pub(crate) fn stream_of(seed: u64, name: &str) -> Generator {
    // FNV-1a: a hash that never changes, unlike the standard library's.
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    Generator::derived(seed, Purpose::Initialization, &[hash])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(init: Init) -> (f64, f64, f32) {
        let values = init.values(100_001, &mut stream_of(1, "some.weight"));
        assert_eq!(values.len(), 100_001);
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / values.len() as f64;
        (mean, variance.sqrt(), values.iter().fold(0.0_f32, |most, v| most.max(v.abs())))
    }

    #[test]
    fn drawn_values_have_the_moments_of_their_rule() {
        let (mean, deviation, _) = moments(Init::Normal(0.02));
        assert!(mean.abs() < 3e-4 && (deviation - 0.02).abs() < 2e-4, "{mean} {deviation}");
        let (mean, deviation, most) = moments(Init::xavier_uniform(100, 50));
        assert!(mean.abs() < 2e-3 && (deviation - 0.2 / 3.0_f64.sqrt()).abs() < 1e-3, "{mean} {deviation}");
        assert!(most <= 0.2 && most > 0.199, "{most}");
        assert_eq!(Init::kaiming_normal(8), Init::Normal(0.5));
    }
}

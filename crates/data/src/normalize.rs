//! `(value - mean) / std` of 8-bit pixels, in float32, computed as in MMDetection.

use fnet_config::Pipeline;

/// Values per loop iteration: as many pixels as fill whole registers.
const ROUND: usize = 24;

/// Mean and standard deviation of each value of an iteration: red, green, blue, red, ...
#[derive(Debug, Clone)]
pub(super) struct Normalization {
    mean: [f32; ROUND],
    std: [f32; ROUND],
}

impl Normalization {
    pub fn new(pipeline: &Pipeline) -> Self {
        let round = |values: [f64; 3]| std::array::from_fn(|i| values[i % 3] as f32);
        Self { mean: round(pipeline.mean), std: round(pipeline.std) }
    }

    /// Mean of each channel.
    pub fn mean(&self) -> [f32; 3] {
        std::array::from_fn(|channel| self.mean[channel])
    }

    /// Standard deviation of each channel.
    pub fn std(&self) -> [f32; 3] {
        std::array::from_fn(|channel| self.std[channel])
    }

    /// Writes a row of RGB pixels that are float32 already, as the first of `bytes`.
    pub fn row_of_floats(&self, bytes: &[u8], out: &mut [f32]) {
        let (values, _) = bytes.as_chunks::<{ size_of::<f32>() }>();
        for (pixel, out) in values.as_chunks::<3>().0.iter().zip(out.as_chunks_mut::<3>().0) {
            *out = std::array::from_fn(|c| (f32::from_ne_bytes(pixel[c]) - self.mean[c]) / self.std[c]);
        }
    }

    /// Writes a row of RGB pixels as floats.
    pub fn row(&self, rgb: &[u8], out: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the machine has AVX2.
            return unsafe { self.row_avx2(rgb, out) };
        }
        self.row_any(rgb, out);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn row_avx2(&self, rgb: &[u8], out: &mut [f32]) {
        self.row_any(rgb, out);
    }

    #[inline(always)]
    fn row_any(&self, rgb: &[u8], out: &mut [f32]) {
        let (rounds, rest) = rgb.as_chunks::<ROUND>();
        let (out_rounds, out_rest) = out.as_chunks_mut::<ROUND>();
        for (values, out) in rounds.iter().zip(out_rounds) {
            for i in 0..ROUND {
                out[i] = (f32::from(values[i]) - self.mean[i]) / self.std[i];
            }
        }
        for (i, (&value, out)) in rest.iter().zip(out_rest).enumerate() {
            *out = (f32::from(value) - self.mean[i]) / self.std[i];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_of_every_channel_is_normalized_by_its_own_mean() {
        let pipeline = Pipeline::default();
        let row: Vec<u8> = (0..256).flat_map(|v| [v as u8, (255 - v) as u8, (v / 2) as u8]).collect();
        for length in [3, 24, 27, 300, 768] {
            let mut out = vec![f32::NAN; length];
            Normalization::new(&pipeline).row(&row[..length], &mut out);
            for (i, (&value, &found)) in row.iter().zip(&out).enumerate() {
                let expected = (f32::from(value) - pipeline.mean[i % 3] as f32) / pipeline.std[i % 3] as f32;
                assert_eq!(found.to_bits(), expected.to_bits(), "value {i}");
            }
        }
    }
}

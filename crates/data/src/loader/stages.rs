//! Measures the stages of making a batch.

use std::ops::AddAssign;
use std::time::{Duration, Instant};

/// Total time of the loader's threads per stage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StageTimes {
    /// Reading the image file.
    pub read: Duration,
    /// Decoding and rotating it upright.
    pub decode: Duration,
    /// Boxes and masks of the objects, from the annotation file to windows of the resized image.
    pub masks: Duration,
    /// Resizing, flipping and all of data.pipeline.train, also of boxes and masks there.
    pub resize: Duration,
    /// Copying rows of pixels into the batch, with padding.
    pub assemble: Duration,
}

impl StageTimes {
    /// The sum of all stages.
    pub fn total(&self) -> Duration {
        self.read + self.decode + self.masks + self.resize + self.assemble
    }
}

impl AddAssign for StageTimes {
    fn add_assign(&mut self, other: Self) {
        self.read += other.read;
        self.decode += other.decode;
        self.masks += other.masks;
        self.resize += other.resize;
        self.assemble += other.assemble;
    }
}

/// Measures consecutive stages.
pub(super) struct Stopwatch(Instant);

impl Stopwatch {
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Adds the time since the last lap to `stage`.
    pub fn lap(&mut self, stage: &mut Duration) {
        let now = Instant::now();
        *stage += now - self.0;
        self.0 = now;
    }
}

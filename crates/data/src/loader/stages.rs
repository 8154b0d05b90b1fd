//! How long the parts of making a batch take.

use std::ops::AddAssign;
use std::time::{Duration, Instant};

/// Time of the loader's threads by what they did, added up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StageTimes {
    /// Reading the image's file.
    pub read: Duration,
    /// Decoding it, and turning it upright.
    pub decode: Duration,
    /// Objects: their boxes, and their masks from the annotation file to windows of the resized image.
    pub masks: Duration,
    /// Resizing, and mirroring.
    pub resize: Duration,
    /// Rows of pixels into the memory of the batch, with its padding.
    pub assemble: Duration,
}

impl StageTimes {
    /// All together.
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

/// Splits a run of work into stages.
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

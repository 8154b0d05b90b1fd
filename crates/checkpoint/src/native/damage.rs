//! Randomly damaged checkpoints: each is refused or loaded unchanged.

use std::cell::Cell;
use std::fs;
use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::{FileFailurePersistence, TestRunner};

use fnet_common::ErrorKind;

use super::tests::{same, sample};
use super::*;

/// What disks, networks and people may do to a file.
#[derive(Debug, Clone)]
enum Damage {
    /// Flipped bits at several positions.
    Flips(Vec<(usize, u8)>),
    /// A range of zeros: a block that was never written.
    Zeros { at: usize, length: usize },
    /// A range of other bytes.
    Noise { at: usize, bytes: Vec<u8> },
    /// Truncated.
    Cut { length: usize },
    /// Truncated and filled with zeros to the original length, as some file systems do after a power failure.
    CutAndFilled { length: usize },
    /// Extra bytes at the end.
    Longer { bytes: Vec<u8> },
    /// A range is overwritten with another one.
    Copied { from: usize, to: usize, length: usize },
    /// Two ranges are swapped.
    Swapped { one: usize, other: usize, length: usize },
    /// A range comes from the checkpoint of another step: partly overwritten.
    Mixed { at: usize, length: usize },
    /// A range is missing, and the rest has moved up.
    Missing { at: usize, length: usize },
}

/// Positions are modulo the length of the file.
fn damage() -> impl Strategy<Value = Damage> {
    let place = || any::<prop::sample::Index>().prop_map(|index| index.index(1 << 20));
    let length = || prop_oneof![1..16_usize, Just(64), Just(512), Just(4096)];
    let bytes = || prop::collection::vec(any::<u8>(), 1..600);
    prop_oneof![
        prop::collection::vec((place(), any::<u8>()), 1..9).prop_map(Damage::Flips),
        (place(), length()).prop_map(|(at, length)| Damage::Zeros { at, length }),
        (place(), bytes()).prop_map(|(at, bytes)| Damage::Noise { at, bytes }),
        place().prop_map(|length| Damage::Cut { length }),
        place().prop_map(|length| Damage::CutAndFilled { length }),
        bytes().prop_map(|bytes| Damage::Longer { bytes }),
        (place(), place(), length()).prop_map(|(from, to, length)| Damage::Copied { from, to, length }),
        (place(), place(), length()).prop_map(|(one, other, length)| Damage::Swapped { one, other, length }),
        (place(), length()).prop_map(|(at, length)| Damage::Mixed { at, length }),
        (place(), length()).prop_map(|(at, length)| Damage::Missing { at, length }),
    ]
}

impl Damage {
    fn apply(&self, file: &[u8], of_another_step: &[u8]) -> Vec<u8> {
        let size = file.len();
        let stretch = |at: usize, length: usize| at % size..(at % size + length).min(size);
        let mut damaged = file.to_vec();
        match self {
            Self::Flips(flips) => flips.iter().for_each(|&(at, bit)| damaged[at % size] ^= 1 << (bit % 8)),
            Self::Zeros { at, length } => damaged[stretch(*at, *length)].fill(0),
            Self::Noise { at, bytes } => {
                let place = stretch(*at, bytes.len());
                let length = place.len();
                damaged[place].copy_from_slice(&bytes[..length]);
            }
            Self::Cut { length } => damaged.truncate(length % size),
            Self::CutAndFilled { length } => damaged[length % size..].fill(0),
            Self::Longer { bytes } => damaged.extend(bytes),
            Self::Copied { from, to, length } => {
                let source = stretch(*from, (*length).min(size - to % size));
                damaged.copy_within(source, to % size);
            }
            Self::Swapped { one, other, length } => {
                for step in 0..*length {
                    damaged.swap((one + step) % size, (other + step) % size);
                }
            }
            Self::Mixed { at, length } => {
                let place = stretch(*at, *length);
                let end = place.end.min(of_another_step.len());
                let place = place.start.min(end)..end;
                damaged[place.clone()].copy_from_slice(&of_another_step[place]);
            }
            Self::Missing { at, length } => {
                damaged.drain(stretch(*at, *length));
            }
        }
        damaged
    }
}

fn bytes_of(checkpoint: &Checkpoint, folder: &Path) -> Vec<u8> {
    let path = folder.join("sound.ckpt");
    checkpoint.save(&path).unwrap();
    fs::read(&path).unwrap()
}

#[test]
fn a_checkpoint_damaged_in_500_random_ways_is_refused_or_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    let (checkpoint, later) = (sample(7), sample(8));
    let (sound, other) = (bytes_of(&checkpoint, folder.path()), bytes_of(&later, folder.path()));
    let path = folder.path().join("epoch_1.ckpt");
    let config = ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::Off)),
        ..ProptestConfig::with_cases(500)
    };
    let refused = Cell::new(0);
    let mut runner = TestRunner::new(config);
    let result = runner.run(&prop::collection::vec(damage(), 1..4), |damages| {
        let damaged = damages.iter().fold(sound.clone(), |file, damage| match file.len() {
            0 => file,
            _ => damage.apply(&file, &other),
        });
        fs::write(&path, &damaged).unwrap();
        match (Checkpoint::load(&path), verify(&path)) {
            (Ok(loaded), Ok(meta)) => {
                // A completely overwritten file is the other checkpoint.
                let is_sound = [&checkpoint, &later].into_iter().any(|one| same(one, &loaded) && meta == one.meta);
                prop_assert!(is_sound);
            }
            (Err(error), Err(_)) => {
                prop_assert_eq!(error.kind(), ErrorKind::Data);
                prop_assert!(error.to_string().contains("epoch_1.ckpt"), "{}", error);
                refused.set(refused.get() + 1);
            }
            (loaded, verified) => prop_assert!(false, "loads: {}, verified: {}", loaded.is_ok(), verified.is_ok()),
        }
        Ok(())
    });
    result.unwrap();
    assert!(refused.get() > 400, "{} of 500 were refused", refused.get());
}

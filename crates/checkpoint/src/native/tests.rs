use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::LazyLock;

use proptest::prelude::*;
use proptest::sample::Index;
use tch::{Device, Kind};

use fnet_common::ErrorKind;

use super::*;

/// A small checkpoint with every relevant kind of tensor.
pub(super) fn sample(step: usize) -> Checkpoint {
    let tensors = [
        ("model.b.weight", Tensor::arange(12, (Kind::Float, Device::Cpu)).reshape([3, 4]) + step as f64),
        ("model.a.num_batches_tracked", Tensor::from(step as i64)),
        ("optimizer.exp_avg.b.weight", Tensor::arange(12, (Kind::Double, Device::Cpu)).reshape([3, 4])),
        ("rank1.a.running_mean", Tensor::arange(3, (Kind::BFloat16, Device::Cpu))),
        ("empty", Tensor::zeros([0, 4], (Kind::Float, Device::Cpu))),
        ("flags", Tensor::from_slice(&[true, false, true])),
    ];
    let meta = CheckpointMeta {
        config: "[train]\nepochs = 3 # é\n".into(),
        classes: vec!["cat".into(), "dog \"x\"".into()],
        progress: TrainProgress { step, epoch: 1, step_in_epoch: 2 },
        world_size: 2,
        seed: u64::MAX,
        best: Some(Best { metric: "bbox_mAP".into(), value: 0.1 + 0.2, epoch: 1 }),
        state: State {
            loss_scale: Some(LossScaleState { scale: 65536.0, steps_since_change: 7, skipped: 1 }),
            ema_updates: Some(step as u64),
            ..State::default()
        },
        sharding: None,
    };
    Checkpoint { tensors: tensors.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect(), meta }
}

fn same(a: &Checkpoint, b: &Checkpoint) -> bool {
    let equal = |(x, y): (&Tensor, &Tensor)| x.kind() == y.kind() && x.size() == y.size() && x == y;
    a.meta == b.meta && a.tensors.keys().eq(b.tensors.keys()) && a.tensors.values().zip(b.tensors.values()).all(equal)
}

#[test]
fn a_checkpoint_is_loaded_as_it_was_saved_in_the_same_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("epoch_1.ckpt");
    let checkpoint = sample(7);
    checkpoint.save(&path).unwrap();
    let loaded = Checkpoint::load(&path).unwrap();
    assert!(same(&checkpoint, &loaded), "{loaded:?}");
    assert_eq!(loaded.meta.config(&path).unwrap().train.epochs, 3);
    assert_eq!(verify(&path).unwrap(), checkpoint.meta);
    assert_eq!(loaded.section(MODEL).map(|(name, _)| name).collect::<Vec<_>>(), ["b.weight", "a.num_batches_tracked"]);
}

#[test]
fn the_memory_layout_of_a_tensor_does_not_change_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("epoch_1.ckpt");
    let weight = Tensor::arange(24, (Kind::Float, Device::Cpu)).reshape([2, 3, 2, 2]);
    let strided = weight.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]);
    assert!(!strided.is_contiguous());
    let mut checkpoint = sample(0);
    checkpoint.tensors.insert("model.conv".into(), strided);
    checkpoint.save(&path).unwrap();
    assert_eq!(Checkpoint::load(&path).unwrap().tensors["model.conv"], weight);
}

#[test]
fn a_snapshot_does_not_change_with_its_source_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("epoch_1.ckpt");
    let mut checkpoint = sample(7);
    let snapshot = checkpoint.snapshot().unwrap();
    let _ = checkpoint.tensors["model.b.weight"].fill_(0.0);
    checkpoint.meta.progress.step = 8;
    std::thread::scope(|scope| {
        scope
            .spawn({
                let path = path.clone();
                move || snapshot.write(&path, &AtomicU64::default(), || Ok(())).unwrap()
            })
            .join()
            .unwrap()
    });
    assert!(same(&sample(7), &Checkpoint::load(&path).unwrap()));
}

#[test]
fn safetensors_tools_can_read_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("epoch_1.ckpt");
    sample(7).save(&path).unwrap();
    let data = fs::read(&path).unwrap();
    let public = safetensors::SafeTensors::deserialize(&data).unwrap();
    assert_eq!(public.tensor("model.b.weight").unwrap().shape(), [3, 4]);
    assert_eq!(public.tensor("flags").unwrap().data(), [1, 0, 1]);
}

#[test]
fn every_flipped_bit_is_detected_or_harmless() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("epoch_1.ckpt");
    let checkpoint = sample(7);
    checkpoint.save(&path).unwrap();
    let sound = fs::read(&path).unwrap();
    // Changed in place: rewriting the file for each bit takes a hundred times as long.
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    let mut detected = 0;
    for at in 0..sound.len() {
        for mask in [1, 2, 4, 8, 16, 32, 64, 128] {
            file.write_all_at(&[sound[at] ^ mask], at as u64).unwrap();
            let loaded = Checkpoint::load(&path);
            if mask == 1 {
                assert_eq!(loaded.is_ok(), verify(&path).is_ok(), "byte {at}");
            }
            match loaded {
                Ok(loaded) => assert!(same(&checkpoint, &loaded), "byte {at} ^ {mask} gave different content"),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Data, "{error}");
                    detected += 1;
                }
            }
        }
        file.write_all_at(&sound[at..=at], at as u64).unwrap();
    }
    assert!(detected > 7 * sound.len(), "{detected} of {}", 8 * sound.len());
}

#[test]
fn every_truncation_and_every_extension_is_detected() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("epoch_1.ckpt");
    sample(7).save(&path).unwrap();
    let sound = fs::read(&path).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    for length in (0..sound.len()).rev() {
        file.set_len(length as u64).unwrap();
        let error = Checkpoint::load(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data, "{error}");
        assert!(error.to_string().contains("epoch_1.ckpt"), "{error}");
    }
    fs::write(&path, [sound.as_slice(), &[0]].concat()).unwrap();
    assert!(Checkpoint::load(&path).unwrap_err().to_string().contains("truncated or damaged"));
}

/// What disks, networks and people may do to a range of a file. [`every_flipped_bit_is_detected_or_harmless`] and
/// [`every_truncation_and_every_extension_is_detected`] show the rest.
#[derive(Debug, Clone, Copy)]
enum Damage {
    /// A block that was never written.
    Zeros,
    /// Overwritten with another range.
    Copied,
    /// From the checkpoint of another step: partly overwritten.
    OfAnotherStep,
    /// The rest has moved up.
    Missing,
}

impl Damage {
    fn apply(self, file: &mut Vec<u8>, at: Index, from: Index, length: usize, other: &[u8]) {
        let at = at.index(file.len());
        let place = at..(at + length).min(file.len());
        match self {
            Self::Zeros => file[place].fill(0),
            Self::Copied => {
                let from = from.index(file.len() - place.len() + 1);
                file.copy_within(from..from + place.len(), at);
            }
            Self::OfAnotherStep => {
                let place = at.min(other.len())..place.end.min(other.len());
                file[place.clone()].copy_from_slice(&other[place]);
            }
            Self::Missing => drop(file.drain(place)),
        }
    }
}

/// The files of two steps.
static FILES: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| {
    let file = tempfile::NamedTempFile::new().unwrap();
    [7, 8].map(|step| {
        sample(step).save(&file).unwrap();
        fs::read(&file).unwrap()
    })
});

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    #[test]
    fn a_checkpoint_with_damaged_ranges_is_refused_or_unchanged(damages in prop::collection::vec((
        prop::sample::select(vec![Damage::Zeros, Damage::Copied, Damage::OfAnotherStep, Damage::Missing]),
        any::<Index>(), any::<Index>(), prop_oneof![1..16_usize, Just(64), Just(512), Just(4096)],
    ), 1..4)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("epoch_1.ckpt");
        let both = [sample(7), sample(8)];
        let [mut file, other] = FILES.clone();
        for (damage, at, from, length) in damages {
            if !file.is_empty() {
                damage.apply(&mut file, at, from, length, &other);
            }
        }
        fs::write(&path, &file).unwrap();
        match (Checkpoint::load(&path), verify(&path)) {
            // A completely overwritten file is the other checkpoint.
            (Ok(loaded), Ok(meta)) => prop_assert!(both.iter().any(|one| same(one, &loaded) && meta == one.meta)),
            (Err(error), Err(_)) => {
                prop_assert_eq!(error.kind(), ErrorKind::Data);
                prop_assert!(error.to_string().contains("epoch_1.ckpt"), "{}", error);
            }
            (loaded, verified) => prop_assert!(false, "loads: {}, verified: {}", loaded.is_ok(), verified.is_ok()),
        }
    }

    #[test]
    fn any_file_is_refused_without_a_panic(data in prop::collection::vec(any::<u8>(), 0..200), header in "\\PC{0,60}") {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("epoch_1.ckpt");
        fs::write(&path, &data).unwrap();
        prop_assert!(Checkpoint::load(&path).is_err());
        let framed = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat();
        fs::write(&path, framed).unwrap();
        prop_assert!(Checkpoint::load(&path).is_err());
    }
}

#[test]
fn third_party_files_are_distinguished_from_damaged_ones() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::U8, vec![2], &[1, 2]).unwrap();
    fs::write(&path, safetensors::serialize([("a", view)], None).unwrap()).unwrap();
    let text = Checkpoint::load(&path).unwrap_err().to_string();
    assert!(text.contains("not an fnet checkpoint"), "{text}");
    let missing = Checkpoint::load(PathBuf::from("/nowhere/epoch_1.ckpt")).unwrap_err();
    assert!(missing.to_string().contains("/nowhere/epoch_1.ckpt") && missing.kind() == ErrorKind::Data);
    let directory = Checkpoint::load(folder.path()).unwrap_err();
    assert!(directory.to_string().contains("this is a folder, not a checkpoint"), "{directory}");
}

#[test]
fn an_invalid_stored_loss_scale_is_refused() {
    for stored in ["{\"scale\": 0, \"steps_since_change\": 3}", "{\"scale\": 8}", "3"] {
        assert!(serde_json::from_str::<LossScaleState>(stored).is_err(), "{stored}");
    }
}

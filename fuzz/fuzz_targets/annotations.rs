//! Any bytes as an annotation file, through everything that training and evaluation ask of it.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::{Corpus, fuzz_target};

use fnet_config as config;
use fnet_data::{Dataset, Diagnostics, Severity, Split, category_names, rasterize};
use fnet_fuzz::Scratch;

/// Images above this many pixels are not drawn, for speed.
const DRAWN: usize = 1 << 20;

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fuzz_target!(|bytes: &[u8]| -> Corpus {
    // Names of images that lead out of the folder would make runs depend on the machine.
    if bytes.windows(2).any(|pair| pair == b"..") || bytes.contains(&b'/') || bytes.contains(&b'\\') {
        return Corpus::Reject;
    }
    let path = SCRATCH.write("a.json", bytes);
    let mut config = config::Data { root: SCRATCH.folder().display().to_string(), ..config::Data::default() };
    for set in [&mut config.train, &mut config.val] {
        set.ann_file = "a.json".into();
        set.img_prefix = ".".into();
    }
    let _ = category_names(&path);
    for split in [Split::Train, Split::Val] {
        let (dataset, mut diagnostics) = Dataset::inspect(&config, split, 3);
        let Some(dataset) = dataset else {
            assert!(diagnostics.number_of(Severity::Error) > 0, "no set, and no finding that says why");
            continue;
        };
        dataset.check_masks(&mut diagnostics);
        dataset.check_files(&mut diagnostics);
        if diagnostics.number_of(Severity::Error) > 0 {
            continue;
        }
        use_it(&dataset);
    }
    Corpus::Keep
});

/// What passed all checks can be used.
fn use_it(dataset: &Dataset) {
    let mut diagnostics = Diagnostics::default();
    dataset.check_files(&mut diagnostics);
    for index in 0..dataset.len() {
        let image = dataset.image(index);
        let objects = dataset.objects(index);
        let masks = dataset.record(index).segmentations().expect("masks of a sound set");
        assert_eq!(masks.len(), objects.boxes.len());
        if image.width * image.height > DRAWN {
            continue;
        }
        for mask in masks.iter().flatten() {
            let mask = rasterize(mask, (image.height, image.width)).expect("a mask of a sound set");
            assert!(mask.x + mask.width <= image.width && mask.y + mask.height <= image.height);
        }
    }
    for object in dataset.true_objects().expect("the ground truth of a sound set") {
        assert!(object.label < dataset.categories().len());
    }
}

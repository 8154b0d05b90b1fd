//! Any bytes as a checkpoint of this program. Built for fuzzing, the reader takes any checksum for right.

#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

use fnet_checkpoint::native::{Checkpoint, CheckpointMeta, is_third_party, verify};
use fnet_fuzz::Scratch;

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fuzz_target!(|bytes: &[u8]| {
    let path = SCRATCH.write("a.ckpt", bytes);
    let _ = is_third_party(&path);
    let loaded = Checkpoint::load(&path);
    let verified = verify(&path);
    assert!(loaded.is_err() || verified.is_ok(), "it can be loaded, but {:?}", verified.err());
    if let Ok(meta) = CheckpointMeta::read(&path) {
        let _ = meta.config(Path::new("a.ckpt"));
    }
});

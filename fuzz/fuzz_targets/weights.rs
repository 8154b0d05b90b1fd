//! Any bytes as weights from elsewhere: a PyTorch file, a safetensors file, or the pickle inside a PyTorch archive.

#![no_main]

use std::io::{Cursor, Write};
use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use zip::write::{SimpleFileOptions, ZipWriter};

use fnet_checkpoint::{MmdetCheckpoint, Weights, pth};
use fnet_fuzz::Scratch;

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fuzz_target!(|bytes: &[u8]| {
    open(&SCRATCH.write("a.pth", bytes));
    // A pickle of an archive of its own, whose checksums are right.
    if bytes.starts_with(&[0x80]) {
        open(&SCRATCH.write("b.pth", &archive(bytes)));
    }
});

fn open(path: &Path) {
    let _ = pth::open(path);
    if let Ok(weights) = Weights::open(path) {
        for (name, _) in weights.iter() {
            let _ = weights.tensor(name);
        }
    }
    let _ = MmdetCheckpoint::open(path);
}

/// A PyTorch archive with this pickle and one storage of 64 bytes.
fn archive(pickle: &[u8]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in [("archive/data.pkl", pickle), ("archive/version", b"3\n"), ("archive/data/0", &[1; 64])] {
        zip.start_file(name, options).expect("a file in memory");
        zip.write_all(bytes).expect("a file in memory");
    }
    zip.finish().expect("a file in memory").into_inner()
}

//! Malicious files of weights: each is refused with an error, without a crash, and without more memory than its size
//! justifies. Heap memory of the reader is counted, and the peak of the whole process is measured.

// clippy.toml lets functions marked as tests do these; their helpers are the same.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Cursor, Write};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tch::{Device, Kind, Tensor};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use fnet_checkpoint::{Meta, MmdetCheckpoint, Moments, OptimizerState, ParameterGroup, Weights, export};
use fnet_common::ErrorKind;

/// The system allocator, with a count of the bytes that the current thread holds.
struct Counting;

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

fn count(taken: usize, given: usize) {
    // The cells allocate nothing, and are valid except while the thread ends.
    let _ = HELD.try_with(|held| {
        held.set((held.get() + taken).saturating_sub(given));
        PEAK.with(|peak| peak.set(peak.get().max(held.get())));
    });
}

// SAFETY: every call is passed to the system allocator with the same arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller keeps the contract of this function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both blocks may exist while the contents are copied.
        count(size, 0);
        count(0, layout.size());
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static HEAP: Counting = Counting;

/// Maximum heap memory of a reader for a file of `len` bytes: its objects, and a few copies of the file.
fn allowed(len: usize) -> usize {
    (96 << 20) + 24 * len
}

/// Reads everything in a file as weights and as a training state; returns the first error.
fn read(path: &Path) -> fnet_common::Result<()> {
    let weights = Weights::open(path).and_then(|weights| {
        let names: Vec<String> = weights.iter().map(|(name, _)| name.to_owned()).collect();
        names.iter().try_for_each(|name| weights.tensor(name).map(drop))
    });
    let checkpoint = MmdetCheckpoint::open(path);
    weights.and(checkpoint.map(drop))
}

/// Reads a file and checks the limits of memory and time.
fn read_within_bounds(path: &Path) -> fnet_common::Result<()> {
    let len = std::fs::metadata(path).unwrap().len() as usize;
    let (before, started) = (HELD.get(), Instant::now());
    PEAK.set(before);
    let result = read(path);
    let taken = PEAK.get() - before;
    assert!(taken <= allowed(len), "{}: {taken} bytes for a file of {len}", path.display());
    assert!(started.elapsed() < Duration::from_secs(20), "{}: {:?}", path.display(), started.elapsed());
    result
}

/// Parts of pickles with protocol 2.
mod pickle {
    pub fn whole(body: &[u8]) -> Vec<u8> {
        [b"\x80\x02", body, b"."].concat()
    }

    pub fn text(text: &str) -> Vec<u8> {
        [b"X", (text.len() as u32).to_le_bytes().as_slice(), text.as_bytes()].concat()
    }

    pub fn int(value: i64) -> Vec<u8> {
        [b"\x8a\x08", value.to_le_bytes().as_slice()].concat()
    }

    pub fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
        [b"(", items.concat().as_slice(), b"t"].concat()
    }

    pub fn ints(values: &[i64]) -> Vec<u8> {
        tuple(&values.iter().map(|&value| int(value)).collect::<Vec<_>>())
    }

    /// A reference to a storage of `count` elements.
    pub fn storage(class: &str, count: i64) -> Vec<u8> {
        let class = format!("ctorch\n{class}\n").into_bytes();
        [tuple(&[text("storage"), class, text("0"), text("cpu"), int(count)]), b"Q".to_vec()].concat()
    }

    /// The arguments of `_rebuild_tensor_v2`.
    pub fn view(storage: Vec<u8>, offset: i64, size: &[i64], stride: &[i64]) -> Vec<u8> {
        tuple(&[storage, int(offset), ints(size), ints(stride), b"\x89".to_vec(), b"}".to_vec()])
    }

    pub fn tensor(arguments: &[u8]) -> Vec<u8> {
        [b"ctorch._utils\n_rebuild_tensor_v2\n", arguments, b"R"].concat()
    }

    /// A dictionary with one entry.
    pub fn state(value: &[u8]) -> Vec<u8> {
        whole(&[b"}".as_slice(), &text("w"), value, b"s"].concat())
    }
}

fn archive(entries: &[(&str, &[u8])], method: CompressionMethod) -> Vec<u8> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        archive.start_file(*name, SimpleFileOptions::default().compression_method(method)).unwrap();
        archive.write_all(bytes).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

/// An archive of a pickle and of one storage of 256 bytes.
fn pth(pickle: &[u8]) -> Vec<u8> {
    archive(&[("a/data.pkl", pickle), ("a/data/0", &[0; 256])], CompressionMethod::Stored)
}

/// Replaces the last occurrence of some bytes.
fn replaced(mut file: Vec<u8>, old: &[u8], new: &[u8]) -> Vec<u8> {
    let place = file.windows(old.len()).rposition(|part| part == old).unwrap();
    file[place..place + old.len()].copy_from_slice(new);
    file
}

/// The legacy format before PyTorch 1.6 with an object and a list of one storage, which claims `count` elements.
fn older(object: &[u8], count: u64) -> Vec<u8> {
    let mut file = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.".to_vec();
    file.extend(object);
    file.extend(pickle::whole(&[b"]".as_slice(), &pickle::text("0"), b"a"].concat()));
    file.extend(count.to_le_bytes());
    file.extend([0; 256]);
    file
}

fn safetensors(header: &str, data: usize) -> Vec<u8> {
    [(header.len() as u64).to_le_bytes().as_slice(), header.as_bytes(), &vec![0; data]].concat()
}

/// Pickles of tensors with invalid shapes, strides or storages.
fn impossible_tensors() -> Vec<(&'static str, Vec<u8>)> {
    let float = || pickle::storage("FloatStorage", 64);
    let of = |storage: Vec<u8>, offset: i64, size: &[i64], stride: &[i64]| {
        pickle::state(&pickle::tensor(&pickle::view(storage, offset, size, stride)))
    };
    let v3 = [
        b"ctorch._utils\n_rebuild_tensor_v3\n".as_slice(),
        &pickle::tuple(&[
            pickle::storage("ByteStorage", 256),
            pickle::int(0),
            pickle::ints(&[256]),
            pickle::ints(&[1]),
            b"\x89".to_vec(),
            b"}".to_vec(),
            b"ctorch\nfloat64\n".to_vec(),
        ]),
        b"R",
    ]
    .concat();
    vec![
        ("offset beyond the end", of(float(), 64, &[1], &[1])),
        ("negative offset", of(float(), -1, &[1], &[1])),
        ("offset that overflows", of(float(), i64::MAX, &[2], &[i64::MAX])),
        ("stride beyond the end", of(float(), 0, &[2, 2], &[63, 1])),
        ("negative stride", of(float(), 63, &[64], &[-1])),
        ("negative size", of(float(), 0, &[-64], &[1])),
        ("size that overflows", of(float(), 0, &[i64::MAX, 3], &[0, 0])),
        ("expanded to a terabyte", of(float(), 0, &[1 << 38], &[0])),
        ("empty beside an absurd size", of(float(), 0, &[0, i64::MAX, i64::MAX], &[1, 1, 1])),
        ("65 dimensions", of(float(), 0, &[1; 65], &[1; 65])),
        ("strides of another number", of(float(), 0, &[8, 8], &[1])),
        ("storage larger than its entry", of(pickle::storage("FloatStorage", 65), 0, &[65], &[1])),
        ("storage of elements too wide", of(pickle::storage("DoubleStorage", 64), 0, &[64], &[1])),
        ("storage whose size overflows", of(pickle::storage("DoubleStorage", i64::MAX), 0, &[1], &[1])),
        ("negative storage", of(pickle::storage("FloatStorage", -1), 0, &[1], &[1])),
        ("view of another type than its storage", pickle::state(&v3)),
    ]
}

/// Small pickles that would create huge objects.
fn multiplying_pickles() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let doubled: Vec<u8> = (0..40).flat_map(|_| *b"q\0]h\0ah\0a").collect();
    // A name of a thousand letters, created repeatedly from two strings.
    let names = [pickle::text(&"m".repeat(500)), b"q\0".to_vec(), pickle::text(&"n".repeat(500)), b"q\x01".to_vec()];
    let names = [names.concat(), b"h\0h\x01\x93".repeat(400_000)].concat();
    let view = pickle::view(pickle::storage("FloatStorage", 64), 0, &[1; 64], &[1; 64]);
    let views = [view, b"q\0ctorch._utils\n_rebuild_tensor_v2\nq\x01".to_vec(), b"h\x01h\0R".repeat(400_000)].concat();
    let bytes = [pickle::text(&"b".repeat(1 << 20)), pickle::text("latin1"), b"\x86q\0".to_vec()].concat();
    let bytes = [bytes, b"c_codecs\nencode\nh\0R".repeat(100_000)].concat();
    let copies = [b"](".to_vec(), vec![b'N'; 100_000], b"eq\0".to_vec(), b"cbuiltins\ntuple\nh\0\x85R".repeat(10_000)];
    const MANY: &str = "more than 500000 objects";
    vec![
        ("a list that doubles forty times", pickle::whole(&[b"N", doubled.as_slice()].concat()), MANY),
        ("long names out of few letters", pickle::whole(&names), MANY),
        ("tensors out of one view", pickle::whole(&views), MANY),
        ("bytes out of one text", pickle::whole(&bytes), MANY),
        ("copies of a list", pickle::whole(&copies.concat()), MANY),
        (
            "a million lists in each other",
            pickle::whole(&[vec![b']'; 1 << 20], vec![b'a'; (1 << 20) - 1]].concat()),
            MANY,
        ),
        ("ten million values", pickle::whole(&b"N0".repeat(10 << 20)), MANY),
        ("a million memos", pickle::whole(&[b"N".to_vec(), b"\x94".repeat(2 << 20)].concat()), MANY),
        ("a list in itself", pickle::whole(b"]q\0h\0a"), "in themselves"),
        ("a dictionary in itself", pickle::whole(b"}q\0X\x01\0\0\0wh\0s"), "in themselves"),
        ("text of eight exabytes", b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fx.".to_vec(), "too early"),
        ("an integer of two gigabytes", pickle::whole(b"\x8b\xff\xff\xff\x7f"), "too early"),
    ]
}

/// Archives with a false directory.
fn lying_archives() -> Vec<(&'static str, Vec<u8>)> {
    let sound = pickle::state(&pickle::tensor(&pickle::view(pickle::storage("FloatStorage", 64), 0, &[64], &[1])));
    let packed = |data: &[u8]| archive(&[("a/data.pkl", &sound), ("a/data/0", data)], CompressionMethod::Deflated);
    let zeros = vec![0; 256 << 20];
    let mib = (1_u32 << 20).to_le_bytes();
    let many: Vec<String> = (0..70_000).map(|index| format!("a/data/{index}")).collect();
    let many: Vec<(&str, &[u8])> = many.iter().map(|name| (name.as_str(), b"".as_slice())).collect();
    let whole = pth(&sound);
    let end = whole.len() - 22;
    let with_end = |place: usize, bytes: &[u8]| {
        let mut file = whole.clone();
        file[end + place..end + place + bytes.len()].copy_from_slice(bytes);
        file
    };
    // The second storage's record in the directory points at the first one's bytes.
    let pair =
        archive(&[("a/data.pkl", &sound), ("a/data/0", &[0; 256]), ("a/data/1", &[0; 256])], CompressionMethod::Stored);
    let header = |name: &[u8]| pair.windows(name.len()).position(|part| part == name).unwrap() - 30;
    let record = pair.windows(8).rposition(|part| part == b"a/data/1").unwrap() - 46;
    let mut overlapping = pair.clone();
    overlapping[record + 42..record + 46].copy_from_slice(&(header(b"a/data/0") as u32).to_le_bytes());
    let twice = replaced(pair, b"a/data/1", b"a/data/0");
    vec![
        ("a bomb", packed(&zeros)),
        ("a bomb that names a small size", replaced(packed(&zeros[..1 << 20]), &mib, &256_u32.to_le_bytes())),
        ("a small entry that names a large size", replaced(packed(&zeros[..1 << 20]), &mib, &u32::MAX.to_le_bytes())),
        ("seventy thousand entries", archive(&many, CompressionMethod::Stored)),
        ("a directory of 65534 entries in a small file", with_end(8, &[0xfe, 0xff, 0xfe, 0xff])),
        ("a directory beyond the end", with_end(16, &u32::MAX.wrapping_sub(9).to_le_bytes())),
        ("entries that share their bytes", overlapping),
        ("two entries of one name", twice),
        ("a truncated archive", whole[..whole.len() / 2].to_vec()),
        ("the start of an archive", b"PK\x03\x04".to_vec()),
    ]
}

fn others() -> Vec<(&'static str, Vec<u8>)> {
    let object = pickle::state(&pickle::tensor(&pickle::view(pickle::storage("FloatStorage", 64), 0, &[64], &[1])));
    let huge = pickle::storage("FloatStorage", i64::MAX);
    let huge = pickle::state(&pickle::tensor(&pickle::view(huge, 0, &[1], &[1])));
    let mut long = safetensors("{}", 0);
    long[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let one = |shape: &str, place: &str| {
        safetensors(&format!("{{\"a\":{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":{place}}}}}"), 16)
    };
    vec![
        ("an old storage of another size", older(&object, 1 << 60)),
        ("an old storage of eight exabytes", older(&huge, i64::MAX as u64)),
        ("a truncated old file", older(&object, 64)[..200].to_vec()),
        ("an old file without its storage", older(&pickle::whole(b"}"), 64)),
        ("a header of eighteen exabytes", long),
        ("a header in itself", safetensors(&"{\"a\":".repeat(1 << 20), 0)),
        ("a shape that overflows", one("[4294967296,4294967296,4294967296]", "[0,16]")),
        ("data outside of the file", one("[4]", "[0,99999999999]")),
        ("data that ends before it begins", one("[4]", "[16,0]")),
        ("a shape of another size", one("[5]", "[0,16]")),
        ("nothing", Vec::new()),
        ("a line of text", b"<html>Not found</html>".to_vec()),
    ]
}

/// All files, each with a word of its error.
fn hostile() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let any = |files: Vec<(&'static str, Vec<u8>)>| files.into_iter().map(|(name, bytes)| (name, bytes, ""));
    let mut files: Vec<_> = any(lying_archives()).chain(any(others())).collect();
    files.extend(impossible_tensors().into_iter().map(|(name, pickle)| (name, pth(&pickle), "")));
    for (name, pickle, word) in multiplying_pickles() {
        files.extend([(name, pth(&pickle), word), (name, older(&pickle, 64), word)]);
    }
    files
}

/// Reads a number of kB from the status of this process.
fn of_process(name: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

#[test]
fn hostile_files_are_refused_within_a_memory_limit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hostile.pth");
    // Creating the files takes memory, too.
    let files = hostile();
    assert!(files.len() > 60);
    let before = of_process("VmHWM");
    for (name, bytes, word) in &files {
        std::fs::write(&path, bytes).unwrap();
        let error = read_within_bounds(&path).expect_err(name);
        assert_eq!(error.kind(), ErrorKind::Data, "{name}: {error}");
        let text = error.to_string();
        assert!(text.contains("hostile.pth") && text.contains(word) && text.len() < 1000, "{name}: {text}");
    }
    let taken = of_process("VmHWM") - before;
    println!("{} files, the largest of {} bytes; {} MiB more at the peak", files.len(), 22 << 20, taken >> 20);
    assert!(taken < 512 << 20, "{taken} bytes");
}

#[test]
fn a_pipe_is_refused_without_blocking() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe.pth");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let error = read(&pipe).unwrap_err().to_string();
    assert!(error.contains("this is a pipe or device"), "{error}");
}

/// A small training state.
fn sound() -> MmdetCheckpoint {
    let tensor = |count: i64| Tensor::arange(count, (Kind::Float, Device::Cpu));
    let names = ["backbone.a.weight", "backbone.a.running_mean", "neck.b"];
    let state = names.iter().zip([6, 3, 4]).map(|(name, count)| ((*name).to_owned(), tensor(count))).collect();
    let moments = |count| Moments { step: 3, exp_avg: tensor(count), exp_avg_sq: tensor(count) };
    let group = ParameterGroup {
        lr: 0.1,
        initial_lr: Some(0.1),
        betas: (0.9, 0.999),
        eps: 1e-8,
        weight_decay: 1e-4,
        params: vec![0, 1],
    };
    MmdetCheckpoint {
        state,
        meta: Meta { classes: vec!["cat".into(), "dog".into()], epoch: Some(1), iter: Some(3) },
        optimizer: Some(OptimizerState {
            groups: vec![group],
            moments: [(0, moments(6)), (1, moments(4))].into_iter().collect(),
        }),
    }
}

/// The same state in every supported format.
fn samples() -> Vec<Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let written = ["a.pth", "a.safetensors"].map(|name| {
        let path = folder.path().join(name);
        export::write(&path, &sound()).unwrap();
        std::fs::read(path).unwrap()
    });
    let [zip, plain] = written;
    let mut entries = Vec::new();
    let mut reader = ZipArchive::new(Cursor::new(&zip)).unwrap();
    for index in 0..reader.len() {
        let mut entry = reader.by_index(index).unwrap();
        let mut bytes = Vec::new();
        std::io::copy(&mut entry, &mut bytes).unwrap();
        entries.push((entry.name().unwrap().into_owned(), bytes));
    }
    let named: Vec<(&str, &[u8])> = entries.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    let packed = archive(&named, CompressionMethod::Deflated);
    // The legacy format: the same pickle, then the keys and the storages, each with its number of elements.
    let data: Vec<_> =
        named.iter().filter_map(|(name, bytes)| Some((name.strip_prefix("archive/data/")?, bytes))).collect();
    let mut old = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.".to_vec();
    old.extend(named.iter().find(|(name, _)| name.ends_with("data.pkl")).unwrap().1);
    let keys: Vec<u8> = data.iter().flat_map(|(key, _)| pickle::text(key)).collect();
    old.extend(pickle::whole(&[b"](".as_slice(), &keys, b"e"].concat()));
    for (_, bytes) in data {
        old.extend((bytes.len() as u64 / 4).to_le_bytes());
        old.extend(*bytes);
    }
    vec![zip, plain, packed, old]
}

#[test]
fn the_samples_are_valid() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.pth");
    for (index, sample) in samples().into_iter().enumerate() {
        std::fs::write(&path, sample).unwrap();
        assert_eq!(Weights::open(&path).unwrap().len(), 3, "sample {index}");
        // Safetensors files have no training state.
        if index != 1 {
            let read = MmdetCheckpoint::open(&path).unwrap();
            assert!(read.state.iter().eq(sound().state.iter()));
            assert_eq!(read.optimizer.unwrap().moments.len(), 2);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1500) })]

    #[test]
    fn reading_a_damaged_file_stays_within_the_limits(
        sample in prop::sample::select(samples()),
        changes in prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![
            any::<u8>(), prop::sample::select(b"\x00\x01\x7f\x80\xff(]}.0RQbtsuehjqX\x85\x86\x8a\x94".to_vec())
        ]), 0..8),
        moved in prop::option::of((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 1_usize..64)),
        end in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let mut bytes = sample;
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if let Some((from, to, count)) = moved {
            let (from, to) = (from.index(bytes.len()), to.index(bytes.len()));
            let part: Vec<u8> = bytes[from..].iter().take(count).copied().collect();
            bytes.splice(to..to, part);
        }
        if let Some(end) = end {
            bytes.truncate(end.index(bytes.len()));
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.pth");
        std::fs::write(&path, bytes).unwrap();
        // A data error, or the file is still valid.
        if let Err(error) = read_within_bounds(&path) {
            prop_assert_eq!(error.kind(), ErrorKind::Data, "{}", error);
        }
    }
}

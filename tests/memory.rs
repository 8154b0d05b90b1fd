//! Tests of the peak memory of Rust code, measured with a counting allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use fnet_data::{DecodedImage, Segmentation, instance_mask, rasterize};
use fnet_evaluate::paste::{Probabilities, paste_all};

/// Counts the bytes that are held, and their maximum.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
/// The tests share the counters, so only one runs at a time.
static TURN: Mutex<()> = Mutex::new(());

// SAFETY: every call is passed to the system allocator with the same arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(held, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `GlobalAlloc::dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The maximum number of bytes held while `work` runs, beyond those held before. The few kilobytes of the test harness count,
/// too.
fn peak_bytes<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let before = HELD.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let result = work();
    (result, PEAK.load(Ordering::Relaxed) - before)
}

const SIDE: usize = 6000;
const MIB: usize = 1 << 20;

/// A polygon of `points` corners around a circle.
fn circle(x: f64, y: f64, radius: f64, points: usize) -> Vec<f64> {
    let angle = |i: usize| i as f64 * std::f64::consts::TAU / points as f64;
    (0..points).flat_map(|i| [x + radius * angle(i).cos(), y + radius * angle(i).sin()]).collect()
}

#[test]
fn the_masks_of_a_hundred_objects_in_a_large_image_take_only_the_memory_of_their_windows() {
    let objects: Vec<Segmentation> = (0..100)
        .map(|i| {
            let (x, y) = (300.0 + 600.0 * f64::from(i % 10), 300.0 + 600.0 * f64::from(i / 10));
            Segmentation::Polygons(vec![circle(x, y, 250.0, 60)])
        })
        .collect();
    // At full size each window has 501 x 501 pixels, 24 MiB in total; full bitmaps would take 3433 MiB.
    let size = (SIDE, SIDE);
    let (masks, most) =
        peak_bytes(|| objects.iter().map(|object| rasterize(object, size).unwrap()).collect::<Vec<_>>());
    assert!(masks.iter().all(|mask| (495..=505).contains(&mask.width) && (495..=505).contains(&mask.height)));
    assert!(most < 28 * MIB, "{most} bytes");
    drop(masks);
    // Resized to 800x800, as in training: 0.5 MiB.
    let resized = (800, 800);
    let (_, most) = peak_bytes(|| {
        let mask = |object: &Segmentation| instance_mask(&object.to_rle(size).unwrap(), resized, true, resized);
        objects.iter().map(mask).collect::<Vec<_>>()
    });
    assert!(most < 2 * MIB, "{most} bytes");
}

#[test]
fn a_hundred_detections_in_a_large_image_take_only_the_memory_of_their_runs() {
    // Every mask covers the image and is noisy: the maximum number of runs in practice.
    let boxes = vec![[0.0, 0.0, SIDE as f32, SIDE as f32]; 100];
    let noise: Vec<f32> = (0..100 * 28 * 28u64).map(|i| ((i * 2_654_435_761) % 1000) as f32 / 1000.0).collect();
    let paste = || paste_all(Probabilities { values: &noise, side: 28 }, &boxes, (SIDE, SIDE), 0.5).unwrap();
    let (masks, most) = peak_bytes(paste);
    let runs: usize = masks.iter().map(|mask| mask.counts.len()).sum();
    assert!(runs > 1_000_000, "{runs}");
    // A run takes 4 bytes, and vectors double when they grow; a single bitmap would take 34 MiB.
    assert!(most < runs * 4 * 3 + 2 * MIB, "{most} bytes for {runs} runs");
    // Typical masks: one blob each.
    let blob: Vec<f32> = (0..100 * 28 * 28).map(|i| if (7..21).contains(&(i % 28)) { 0.9 } else { 0.1 }).collect();
    let (_, most) =
        peak_bytes(|| paste_all(Probabilities { values: &blob, side: 28 }, &boxes, (SIDE, SIDE), 0.5).unwrap());
    assert!(most < 16 * MIB, "{most} bytes");
}

/// A PNG header that claims a size, and no pixels.
fn png_of(width: u32, height: u32) -> Vec<u8> {
    let mut header = b"IHDR".to_vec();
    header.extend(width.to_be_bytes());
    header.extend(height.to_be_bytes());
    header.extend([8, 2, 0, 0, 0]);
    let mut file = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
    file.extend(&header);
    file.extend(crc32fast::hash(&header).to_be_bytes());
    file.extend(b"\0\0\0\x10IDAT\x78\x9c\x63\x00\x00\x00\x01\x00\x01");
    file.resize(file.len() + 64, 0);
    file
}

/// A JPEG header that claims a size.
fn jpeg_of(width: u16, height: u16) -> Vec<u8> {
    let [[w0, w1], [h0, h1]] = [width.to_be_bytes(), height.to_be_bytes()];
    let mut file = vec![0xff, 0xd8, 0xff, 0xc0, 0, 11, 8, h0, h1, w0, w1, 1, 1, 0x11, 0];
    file.extend([0xff, 0xda, 0, 8, 1, 1, 0, 0, 63, 0, 0, 0, 0xff, 0xd9]);
    file
}

fn bmp_of(width: i32, height: i32) -> Vec<u8> {
    let mut file = b"BM".to_vec();
    file.extend([0u8; 8]);
    file.extend(54u32.to_le_bytes());
    file.extend(40u32.to_le_bytes());
    file.extend(width.to_le_bytes());
    file.extend(height.to_le_bytes());
    file.extend([1, 0, 24, 0]);
    file.extend([0u8; 24 + 64]);
    file
}

fn gif_of(width: u16, height: u16) -> Vec<u8> {
    let mut file = b"GIF89a".to_vec();
    file.extend(width.to_le_bytes());
    file.extend(height.to_le_bytes());
    file.extend([0x80, 0, 0, 0, 0, 0, 255, 255, 255, b',', 0, 0, 0, 0]);
    file.extend(width.to_le_bytes());
    file.extend(height.to_le_bytes());
    file.extend([0, 2, 2, 0x4c, 1, 0, 0x3b]);
    file
}

#[test]
fn a_small_file_that_claims_many_pixels_is_refused_before_memory_is_allocated() {
    let bombs = [
        ("PNG", png_of(60_000, 60_000)),
        ("PNG", png_of(1 << 30, 4)),
        ("JPEG", jpeg_of(65_000, 65_000)),
        ("BMP", bmp_of(60_000, 60_000)),
        ("GIF", gif_of(65_000, 65_000)),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (format, bytes) in bombs {
        let (message, most) = peak_bytes(|| DecodedImage::decode(&bytes).unwrap_err());
        assert!(message.contains("268435456") && message.contains("make the image smaller"), "{format}: {message}");
        assert!(most < MIB, "{format}: {most} bytes");
        let path = folder.path().join("bomb");
        std::fs::write(&path, &bytes).unwrap();
        let (error, most) = peak_bytes(|| DecodedImage::header(&path).unwrap_err().to_string());
        assert!(error.contains("bomb") && error.contains("make the image smaller"), "{format}: {error}");
        assert!(most < MIB, "{format}: {most} bytes");
    }
}

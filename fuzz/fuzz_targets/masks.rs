//! Any bytes as the mask of an annotation: read, drawn, resized, mirrored.

#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};

use fnet_data::{InstanceMask, Segmentation, instance_mask};

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let [height, width, text @ ..] = bytes else { return Corpus::Reject };
    let Ok(segmentation) = Segmentation::parse(text) else { return Corpus::Keep };
    let frame = match &segmentation {
        Segmentation::RunLengths(rle) if u64::from(rle.h) * u64::from(rle.w) > 1 << 20 => return Corpus::Keep,
        Segmentation::RunLengths(rle) => (rle.h as usize, rle.w as usize),
        Segmentation::Polygons(_) => (usize::from(*height), usize::from(*width)),
    };
    let rle = segmentation.to_rle(frame).expect("polygons fit any frame, and run lengths their own");
    let plain = instance_mask(&rle, frame, false, frame);
    assert_eq!(area(&plain), hotcoco::mask::area(&rle), "pixels of the mask and of its run lengths");
    let mirrored = instance_mask(&rle, frame, true, frame);
    assert_eq!(area(&mirrored), area(&plain), "pixels of the mirrored mask");
    let resized = (frame.0 * 3 / 2, frame.1 / 2);
    let padded = (resized.0 + 7, resized.1 + 5);
    let mask = instance_mask(&rle, resized, true, padded);
    assert!(mask.x + mask.width <= padded.1 && mask.y + mask.height <= padded.0);
    Corpus::Keep
});

fn area(mask: &InstanceMask) -> u64 {
    mask.pixels.iter().map(|&pixel| u64::from(pixel)).sum()
}

//! Any bytes as an image file: decoded, or refused with a message.

#![no_main]

use libfuzzer_sys::fuzz_target;

use fnet_data::DecodedImage;
use fnet_protocol::contain;

// A panic of a decoder becomes an error; the hook of the fuzzer would end the process before that.
fuzz_target!(init: contain::silence(), |bytes: &[u8]| {
    match DecodedImage::decode(bytes) {
        Ok(image) => assert_eq!(image.rgb.len(), image.width * image.height * 3, "bytes of the pixels"),
        Err(message) => assert!(!message.is_empty(), "a message"),
    }
});

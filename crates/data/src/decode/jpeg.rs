//! Decodes JPEG with libjpeg-turbo's decoder, like OpenCV: exact integer IDCT and smooth chroma upsampling.
//!
//! There are two builds of it. The one in the crate `mozjpeg-sys` has no vector instructions; it decides what a file is, and
//! decodes damaged ones. The one that comes with Pillow, which torchvision needs, has them and decodes all others.

use std::any::Any;
use std::ffi::{CStr, c_int, c_uint, c_ulong};
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use image::metadata::Orientation;
use libloading::os::unix::Library;
use mozjpeg_sys as sys;

use super::content::{Decoded, check_size};

type Info = sys::jpeg_decompress_struct;

macro_rules! functions {
    ($($field:ident = $name:ident: fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// The functions of a build of the library whose structs are those of `mozjpeg-sys`.
        #[derive(Clone, Copy)]
        struct Functions {
            $($field: unsafe extern "C-unwind" fn($($argument),*) $(-> $result)?,)*
        }

        static BUILT_IN: Functions = Functions { $($field: sys::$name,)* };

        fn load(path: &Path) -> Option<Functions> {
            // SAFETY: the library's initializers only register it. It is never unloaded, so its functions stay valid.
            let library = std::mem::ManuallyDrop::new(unsafe { Library::new(path) }.ok()?);
            // SAFETY: functions of these names have these signatures in every version 62 of the interface.
            unsafe { Some(Functions { $($field: *library.get(stringify!($name).as_bytes()).ok()?,)* }) }
        }
    };
}

functions! {
    std_error = jpeg_std_error: fn(&mut sys::jpeg_error_mgr) -> &mut sys::jpeg_error_mgr;
    create = jpeg_CreateDecompress: fn(*mut Info, c_int, usize);
    mem_src = jpeg_mem_src: fn(&mut Info, *const u8, c_ulong);
    save_markers = jpeg_save_markers: fn(&mut Info, c_int, c_uint);
    read_header = jpeg_read_header: fn(&mut Info, c_int) -> c_int;
    start = jpeg_start_decompress: fn(&mut Info) -> c_int;
    read_rows = jpeg_read_scanlines: fn(&mut Info, sys::JSAMPARRAY_MUT, c_uint) -> c_uint;
    destroy = jpeg_destroy_decompress: fn(&mut Info);
}

/// The build with vector instructions, if it is there.
static FAST: LazyLock<Option<Functions>> = LazyLock::new(|| {
    let functions = load(&beside_libtorch()?)?;
    // The library compares version and size of the structs with its own.
    let created = guarded(|| {
        drop(Decoder::new(b"\xff", &functions));
        Ok(())
    });
    created.is_ok().then_some(functions)
});

/// Pillow's libjpeg-turbo in the Python environment of libtorch, or beside libtorch in a package of fnet.
fn beside_libtorch() -> Option<PathBuf> {
    let libtorch = torch_ext::cuda::libtorch_folder().ok()?;
    let is_it = |path: &PathBuf| {
        path.file_name().is_some_and(|name| {
            let name = name.to_string_lossy();
            name.starts_with("libjpeg-") && name.contains(".so.62")
        })
    };
    let files = |folder: PathBuf| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    files(libtorch.join("../../pillow.libs")).chain(files(libtorch)).find(is_it)
}

/// Whether sound files are decoded with vector instructions. The pixels are the same.
pub(super) fn has_simd() -> bool {
    FAST.is_some()
}

const EXIF_MARKER: c_int = 0xe1;
const EXIF_HEADER: &[u8] = b"Exif\0\0";

/// Whether the content starts like a JPEG file.
pub(super) fn is_jpeg(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0xff, 0xd8, 0xff])
}

/// The markers before the pixels.
pub(super) struct Header {
    pub width: u32,
    pub height: u32,
    pub orientation: Orientation,
    /// Whether the decoder gave a warning, for example because the content is truncated.
    pub damaged: bool,
}

/// Reads the markers of a JPEG file, up to the first pixels.
pub(super) fn header(bytes: &[u8]) -> Result<Header, String> {
    guarded(|| {
        let mut decoder = Decoder::new(bytes, &BUILT_IN);
        decoder.read_header().map_err(broken)?;
        Ok(Header {
            width: decoder.info.image_width,
            height: decoder.info.image_height,
            orientation: decoder.orientation(),
            damaged: decoder.warning().is_some(),
        })
    })
}

/// Decodes a JPEG file.
/// Errors: a message with the problem and the remedy.
pub(super) fn decode(bytes: &[u8]) -> Result<Decoded, String> {
    let Header { width, height, .. } = header(bytes)?;
    check_size(width, height)?;
    // What is refused or warned of must not depend on the libraries of a machine.
    match FAST.as_ref().map(|functions| decode_with(functions, bytes)) {
        Some(Ok(jpeg)) if jpeg.warning.is_none() => Ok(jpeg),
        _ => decode_with(&BUILT_IN, bytes),
    }
}

fn decode_with(functions: &Functions, bytes: &[u8]) -> Result<Decoded, String> {
    guarded(|| {
        let mut decoder = Decoder::new(bytes, functions);
        decoder.read_header().map_err(broken)?;
        let orientation = decoder.orientation();
        let rgb = decoder.pixels().map_err(broken)?;
        let (width, height) = (decoder.info.output_width as usize, decoder.info.output_height as usize);
        Ok(Decoded { width, height, rgb, orientation, warning: decoder.warning() })
    })
}

fn broken(message: String) -> String {
    format!("cannot be decoded: {message}; replace the file")
}

/// Runs the library and converts a panic of [`fatal`] to an error.
fn guarded<T>(run: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|payload| match payload.downcast::<Fatal>() {
        Ok(fatal) => Err(broken(fatal.0)),
        Err(other) => resume_unwind(other),
    })
}

/// Panic payload with a fatal message of the library.
struct Fatal(String);

/// Results of the callbacks.
#[derive(Default)]
struct Notes {
    warning: Option<String>,
}

struct Decoder<'b> {
    functions: Functions,
    // Boxed because the library keeps pointers to all three.
    info: Box<sys::jpeg_decompress_struct>,
    notes: Box<Notes>,
    _errors: Box<sys::jpeg_error_mgr>,
    _bytes: PhantomData<&'b [u8]>,
}

impl<'b> Decoder<'b> {
    fn new(bytes: &'b [u8], functions: &Functions) -> Self {
        // SAFETY: both are C structs of numbers and nullable pointers, for which all zeros is a value.
        let (mut errors, mut info) = unsafe {
            (
                Box::new(std::mem::zeroed::<sys::jpeg_error_mgr>()),
                Box::new(std::mem::zeroed::<sys::jpeg_decompress_struct>()),
            )
        };
        let mut notes = Box::<Notes>::default();
        // SAFETY: the structs have the layout the library was built with, which it checks when the decoder is created; they
        // are boxed, so the pointers that it keeps stay valid until `drop` destroys the decoder. `bytes` outlives `Self` by
        // its lifetime, and the library only reads them.
        unsafe {
            (functions.std_error)(&mut errors);
            errors.error_exit = Some(fatal);
            errors.emit_message = Some(note);
            info.common.err = &raw mut *errors;
            (functions.create)(&raw mut *info, sys::JPEG_LIB_VERSION, size_of::<sys::jpeg_decompress_struct>());
            // Creating the decoder leaves `err` and `client_data` unchanged.
            info.common.client_data = (&raw mut *notes).cast();
            (functions.mem_src)(&mut info, bytes.as_ptr(), bytes.len() as _);
            (functions.save_markers)(&mut info, EXIF_MARKER, 0xffff);
        }
        Self { functions: *functions, info, notes, _errors: errors, _bytes: PhantomData }
    }

    fn read_header(&mut self) -> Result<(), String> {
        // SAFETY: the decoder was created and given its source in `new`.
        let state = unsafe { (self.functions.read_header)(&mut self.info, 1) };
        if state == 1 { Ok(()) } else { Err("there is no image in the file".into()) }
    }

    /// The rotation from the first EXIF block.
    fn orientation(&self) -> Orientation {
        let mut marker = self.info.marker_list;
        while !marker.is_null() {
            // SAFETY: the list and its data belong to the decoder, which lives as long as `self`.
            let (data, next) = unsafe {
                let entry = &*marker;
                (std::slice::from_raw_parts(entry.data, entry.data_length as usize), entry.next)
            };
            if let Some(chunk) = data.strip_prefix(EXIF_HEADER) {
                return Orientation::from_exif_chunk(chunk).unwrap_or(Orientation::NoTransforms);
            }
            marker = next;
        }
        Orientation::NoTransforms
    }

    fn pixels(&mut self) -> Result<Vec<u8>, String> {
        let channels = match self.info.num_components {
            1 | 3 => {
                self.info.out_color_space = sys::J_COLOR_SPACE::JCS_RGB;
                3
            }
            4 => {
                self.info.out_color_space = sys::J_COLOR_SPACE::JCS_CMYK;
                4
            }
            other => return Err(format!("{other} color channels, expected 1, 3 or 4")),
        };
        // SAFETY: the header was read, and the source never suspends.
        if unsafe { (self.functions.start)(&mut self.info) } == 0 {
            return Err("the decoder did not start".into());
        }
        let stride = self.info.output_width as usize * channels;
        let mut pixels = vec![0u8; stride * self.info.output_height as usize];
        for row in pixels.chunks_exact_mut(stride) {
            let mut rows = [row.as_mut_ptr()];
            // SAFETY: decompression was started; one row of `output_width * channels` bytes is written, which `row` has.
            if unsafe { (self.functions.read_rows)(&mut self.info, rows.as_mut_ptr(), 1) } != 1 {
                return Err("the decoder returned no row".into());
            }
        }
        Ok(if channels == 4 { cmyk_to_rgb(&pixels) } else { pixels })
    }

    fn warning(&mut self) -> Option<String> {
        self.notes.warning.take()
    }
}

impl Drop for Decoder<'_> {
    fn drop(&mut self) {
        // SAFETY: created in `new` and destroyed once; destroying does not fail or call back with an error.
        unsafe { (self.functions.destroy)(&mut self.info) };
    }
}

/// OpenCV's conversion of Adobe's inverted CMYK.
fn cmyk_to_rgb(cmyk: &[u8]) -> Vec<u8> {
    let mix = |ink: u8, key: u8| (i32::from(key) - (((255 - i32::from(ink)) * i32::from(key)) >> 8)) as u8;
    cmyk.chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]].map(|ink| mix(ink, p[3]))).collect()
}

/// The message of the library's current error code, without its parameters.
fn message(errors: &sys::jpeg_error_mgr) -> String {
    let code = errors.msg_code;
    if errors.jpeg_message_table.is_null() || !(0..=errors.last_jpeg_message).contains(&code) {
        return format!("JPEG decoder error code {code}");
    }
    // SAFETY: the table has an entry, a string constant of the library, for each code up to `last_jpeg_message`.
    let text = unsafe { CStr::from_ptr((*errors.jpeg_message_table.add(code as usize)).cast()) };
    let text = text.to_string_lossy();
    text.split('%').next().unwrap_or_default().trim_end_matches([' ', ':', '=', '(']).into()
}

/// Callback for fatal errors: unwinds to [`decode`] without calling the panic hook.
unsafe extern "C-unwind" fn fatal(info: &mut sys::jpeg_common_struct) {
    // SAFETY: `err` points to the error manager of the decoder that calls.
    let text = message(unsafe { &*info.err });
    let payload: Box<dyn Any + Send> = Box::new(Fatal(text));
    resume_unwind(payload);
}

/// Callback for warnings (level -1) and traces.
unsafe extern "C-unwind" fn note(info: &mut sys::jpeg_common_struct, level: c_int) {
    if level >= 0 || info.client_data.is_null() {
        return;
    }
    // SAFETY: `client_data` was set to the decoder's notes in `Decoder::new`, `err` to its error manager; neither is
    // borrowed while the library runs.
    let (notes, errors) = unsafe { (&mut *info.client_data.cast::<Notes>(), &*info.err) };
    notes.warning.get_or_insert_with(|| message(errors));
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use fnet_test_support::fixture;
    use image::{DynamicImage, ImageBuffer, Rgb};

    use super::*;

    fn built_in(bytes: &[u8]) -> Result<Decoded, String> {
        decode_with(&BUILT_IN, bytes)
    }

    /// What the fast build makes of a file in which it finds no fault.
    fn sound(bytes: &[u8]) -> Option<Decoded> {
        let fast = FAST.as_ref().expect("no libjpeg-turbo in pillow.libs beside torch");
        decode_with(fast, bytes).ok().filter(|jpeg| jpeg.warning.is_none())
    }

    fn collect(folder: &Path, found: &mut Vec<Vec<u8>>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, found);
            } else if path.metadata().is_ok_and(|file| file.len() < 4 << 20) {
                found.extend(Some(std::fs::read(path).unwrap()).filter(|bytes| is_jpeg(bytes)));
            }
        }
    }

    /// Small files of all sizes from 1x1 on, and the JPEG files of the test data.
    fn files() -> Vec<Vec<u8>> {
        let made = (1..40u32).map(|side| {
            let image =
                ImageBuffer::from_fn(side, 41 - side, |x, y| Rgb([(x * x * 7) as u8, (y * 90) as u8, (x * y) as u8]));
            let image = DynamicImage::from(image);
            let image = if side % 3 == 0 { DynamicImage::from(image.to_luma8()) } else { image };
            let mut bytes = std::io::Cursor::new(Vec::new());
            image.write_to(&mut bytes, image::ImageFormat::Jpeg).unwrap();
            bytes.into_inner()
        });
        let mut files: Vec<Vec<u8>> = made.collect();
        if let Some(root) = fixture("data") {
            collect(&root, &mut files);
        }
        files
    }

    #[test]
    fn both_builds_decode_sound_files_to_the_same_pixels() {
        for (index, bytes) in files().iter().enumerate() {
            let expected = built_in(bytes).ok().filter(|jpeg| jpeg.warning.is_none());
            let found = sound(bytes);
            assert_eq!(found.is_some(), expected.is_some(), "file {index}");
            let (Some(found), Some(expected)) = (found, expected) else { continue };
            assert_eq!((found.width, found.height), (expected.width, expected.height));
            assert!(found.rgb == expected.rgb && found.orientation == expected.orientation, "file {index}");
        }
    }

    /// The pixels of damage that neither build notices may differ: vector code computes with 16 bits, which hold all values
    /// of sound files.
    #[test]
    fn the_fast_build_changes_nothing_about_errors_and_warnings() {
        let facts = |decoded: Result<Decoded, String>| decoded.map(|jpeg| (jpeg.width, jpeg.height, jpeg.warning));
        let mut random = 1u64;
        for bytes in files().iter().filter(|bytes| bytes.len() < 40_000) {
            for _ in 0..12 {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let mut damaged = bytes.clone();
                let at = (random >> 33) as usize % damaged.len();
                match random >> 62 {
                    0 => damaged.truncate(at.max(4)),
                    1 => drop(damaged.splice(at..at, [0xff, (random >> 20) as u8])),
                    _ => damaged[at] ^= 1 << (random >> 20 & 7),
                }
                if header(&damaged).is_ok_and(|header| header.width.max(header.height) < 5000) {
                    assert_eq!(facts(decode(&damaged)), facts(built_in(&damaged)), "byte {at}");
                }
            }
        }
    }

    #[test]
    fn fatal_errors_of_both_builds_are_messages() {
        for functions in [Some(&BUILT_IN), FAST.as_ref()].into_iter().flatten() {
            let message = guarded(|| Decoder::new(b"not a JPEG", functions).read_header()).unwrap_err();
            assert!(message.contains("Not a JPEG file"), "{message}");
        }
    }
}

//! Decodes JPEG with libjpeg-turbo's decoder (from the `mozjpeg-sys` crate), like OpenCV: exact integer IDCT and smooth
//! chroma upsampling.

use std::any::Any;
use std::ffi::{CStr, c_int};
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use image::metadata::Orientation;
use mozjpeg_sys as sys;

unsafe extern "C" {
    /// From the library's SIMD layer, or its stub if the library was built without SIMD.
    safe fn jsimd_can_idct_islow() -> c_int;
}

/// Whether the library uses SIMD on this machine. The pixels are the same.
pub(super) fn has_simd() -> bool {
    jsimd_can_idct_islow() != 0
}

/// A decoded JPEG file, before its EXIF rotation.
pub(super) struct Jpeg {
    pub width: usize,
    pub height: usize,
    /// Red, green, blue.
    pub rgb: Vec<u8>,
    pub orientation: Orientation,
    /// The decoder's first warning about damaged data.
    pub warning: Option<String>,
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
///
/// # Errors
/// A message with the problem and the remedy.
pub(super) fn header(bytes: &[u8]) -> Result<Header, String> {
    guarded(|| {
        let mut decoder = Decoder::new(bytes);
        decoder.read_header().map_err(broken)?;
        Ok(Header {
            width: decoder.info.image_width,
            height: decoder.info.image_height,
            orientation: decoder.orientation(),
            damaged: decoder.warning().is_some(),
        })
    })
}

/// Decodes a JPEG file. Calls `check` with width and height before allocating memory.
///
/// # Errors
/// The error of `check`, or a message with the problem and the remedy.
pub(super) fn decode(bytes: &[u8], check: impl FnOnce(u32, u32) -> Result<(), String>) -> Result<Jpeg, String> {
    guarded(|| {
        let mut decoder = Decoder::new(bytes);
        decoder.read_header().map_err(broken)?;
        check(decoder.info.image_width, decoder.info.image_height)?;
        let orientation = decoder.orientation();
        let rgb = decoder.pixels().map_err(broken)?;
        let (width, height) = (decoder.info.output_width as usize, decoder.info.output_height as usize);
        Ok(Jpeg { width, height, rgb, orientation, warning: decoder.warning() })
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
    // Boxed because the library keeps pointers to all three.
    info: Box<sys::jpeg_decompress_struct>,
    notes: Box<Notes>,
    _errors: Box<sys::jpeg_error_mgr>,
    _bytes: PhantomData<&'b [u8]>,
}

impl<'b> Decoder<'b> {
    fn new(bytes: &'b [u8]) -> Self {
        // SAFETY: both are C structs of numbers and nullable pointers, for which all zeros is a value.
        let (mut errors, mut info) = unsafe {
            (
                Box::new(std::mem::zeroed::<sys::jpeg_error_mgr>()),
                Box::new(std::mem::zeroed::<sys::jpeg_decompress_struct>()),
            )
        };
        let mut notes = Box::<Notes>::default();
        // SAFETY: the structs have the layout the linked library was built with; they are boxed, so the pointers that
        // it keeps stay valid until `drop` destroys the decoder. `bytes` outlives `Self` by its lifetime, and the
        // library only reads them.
        unsafe {
            sys::jpeg_std_error(&mut errors);
            errors.error_exit = Some(fatal);
            errors.emit_message = Some(note);
            info.common.err = &raw mut *errors;
            sys::jpeg_create_decompress(&raw mut *info);
            // Creating the decoder leaves `err` and `client_data` unchanged.
            info.common.client_data = (&raw mut *notes).cast();
            sys::jpeg_mem_src(&mut info, bytes.as_ptr(), bytes.len() as _);
            sys::jpeg_save_markers(&mut info, EXIF_MARKER, 0xffff);
        }
        Self { info, notes, _errors: errors, _bytes: PhantomData }
    }

    fn read_header(&mut self) -> Result<(), String> {
        // SAFETY: the decoder was created and given its source in `new`.
        let state = unsafe { sys::jpeg_read_header(&mut self.info, 1) };
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
        if unsafe { sys::jpeg_start_decompress(&mut self.info) } == 0 {
            return Err("the decoder did not start".into());
        }
        let stride = self.info.output_width as usize * channels;
        let mut pixels = vec![0u8; stride * self.info.output_height as usize];
        for row in pixels.chunks_exact_mut(stride) {
            let mut rows = [row.as_mut_ptr()];
            // SAFETY: decompression was started; one row of `output_width * channels` bytes is written, which `row` has.
            if unsafe { sys::jpeg_read_scanlines(&mut self.info, rows.as_mut_ptr(), 1) } != 1 {
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
        unsafe { sys::jpeg_destroy_decompress(&mut self.info) };
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

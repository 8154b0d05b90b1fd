//! The kind of a file, by its first bytes: if a user passes the wrong file, the error names its kind and the right command.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use crate::text::shell_word;

/// Number of bytes to read.
const START: u64 = 4096;
/// The maximum header length that safetensors readers accept.
const MAX_HEADER: u64 = 100_000_000;

/// The kind of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A folder.
    Folder,
    /// A pipe, socket or device.
    Special,
    /// An empty file.
    Empty,
    /// Other text, such as TOML.
    Text,
    /// A JSON file.
    Json,
    /// A config of MMDetection, or another Python script.
    Python,
    /// A YAML file.
    Yaml,
    /// An image of this format.
    Image(&'static str),
    /// A checkpoint of fnet, or another safetensors file.
    Safetensors,
    /// A file from `torch.save`.
    PyTorch,
    /// An ONNX model.
    Onnx,
    /// A file of another format.
    Other(&'static str),
    /// Unknown bytes.
    Unknown,
}

impl FileKind {
    /// The kind of a file. Pipes are not opened, which would block.
    pub fn of(path: &Path) -> io::Result<Self> {
        Self::read(path, &path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase())
    }

    /// The same by its content alone, whatever its name.
    pub fn of_content(path: &Path) -> io::Result<Self> {
        Self::read(path, "")
    }

    fn read(path: &Path, ending: &str) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        if metadata.is_dir() {
            return Ok(Self::Folder);
        }
        if !metadata.is_file() {
            return Ok(Self::Special);
        }
        let mut start = Vec::new();
        File::open(path)?.take(START).read_to_end(&mut start)?;
        Ok(Self::from_start(&start, ending))
    }

    /// The kind by the first bytes and the extension.
    fn from_start(start: &[u8], ending: &str) -> Self {
        const MAGIC: [(&[u8], FileKind); 14] = [
            (b"\x89PNG\r\n\x1a\n", FileKind::Image("PNG")),
            (b"\xff\xd8\xff", FileKind::Image("JPEG")),
            (b"GIF8", FileKind::Image("GIF")),
            (b"II*\0", FileKind::Image("TIFF")),
            (b"MM\0*", FileKind::Image("TIFF")),
            (b"\x89HDF\r\n\x1a\n", FileKind::Other("an HDF5 file")),
            (b"\x93NUMPY", FileKind::Other("a NumPy array")),
            (b"\x1f\x8b", FileKind::Other("a gzip archive")),
            (b"\x28\xb5\x2f\xfd", FileKind::Other("a zstd archive")),
            (b"BZh", FileKind::Other("a bzip2 archive")),
            (b"\xfd7zXZ\0", FileKind::Other("an xz archive")),
            (b"7z\xbc\xaf\x27\x1c", FileKind::Other("a 7z archive")),
            (b"\x7fELF", FileKind::Other("a program")),
            (b"%PDF-", FileKind::Other("a PDF file")),
        ];
        if let Some((_, kind)) = MAGIC.iter().find(|(magic, _)| start.starts_with(magic)) {
            return *kind;
        }
        match start {
            [] => Self::Empty,
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Self::Image("WebP"),
            [b'B', b'M', ..] if start.contains(&0) => Self::Image("BMP"),
            // A PyTorch file is a zip archive too, whatever its name.
            [b'P', b'K', ..] if ["zip", "npz"].contains(&ending) => Self::Other("a zip archive"),
            [b'P', b'K', ..] | [0x80, 2..=5, ..] => Self::PyTorch,
            _ if is_safetensors(start) => Self::Safetensors,
            // The first field of its protobuf message (the version), then another.
            [8, 1..=20, 0x12 | 0x3a, ..] => Self::Onnx,
            _ if ending == "onnx" => Self::Onnx,
            _ => text_kind(start, ending),
        }
    }

    /// `a JSON file`.
    pub fn describe(self) -> String {
        match self {
            Self::Folder => "a folder".to_owned(),
            Self::Special => "a pipe or device".to_owned(),
            Self::Empty => "an empty file".to_owned(),
            Self::Text => "a text file".to_owned(),
            Self::Json => "a JSON file".to_owned(),
            Self::Python => "a Python file".to_owned(),
            Self::Yaml => "a YAML file".to_owned(),
            Self::Image(format) => format!("an image ({format})"),
            Self::Safetensors => "a checkpoint (safetensors)".to_owned(),
            Self::PyTorch => "a PyTorch file".to_owned(),
            Self::Onnx => "an ONNX model".to_owned(),
            Self::Other(what) => what.to_owned(),
            Self::Unknown => "a file of an unknown kind".to_owned(),
        }
    }
}

/// Eight bytes with the length of the JSON object that follows.
fn is_safetensors(start: &[u8]) -> bool {
    start.first_chunk().is_some_and(|length| u64::from_le_bytes(*length) <= MAX_HEADER) && start.get(8) == Some(&b'{')
}

fn text_kind(start: &[u8], ending: &str) -> FileKind {
    // The last character may be incomplete.
    let text = match str::from_utf8(start) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => str::from_utf8(&start[..error.valid_up_to()]).unwrap_or_default(),
        Err(_) => return FileKind::Unknown,
    };
    if text.contains('\0') {
        return FileKind::Unknown;
    }
    let mut words = text.trim_start_matches('\u{feff}').chars().filter(|letter| !letter.is_whitespace());
    let first = (words.next(), words.next());
    // `[name]` and `[[name]]` are TOML.
    let is_json = match first {
        (Some('{'), _) => true,
        (Some('['), Some(second)) => ending == "json" || (ending != "toml" && "{\"-0123456789".contains(second)),
        _ => ending == "json",
    };
    let is_python = |line: &str| {
        ["_base_", "import ", "from ", "model = dict(", "dict("].iter().any(|start| line.starts_with(start))
    };
    match ending {
        _ if is_json => FileKind::Json,
        "py" => FileKind::Python,
        "yaml" | "yml" => FileKind::Yaml,
        "toml" => FileKind::Text,
        _ if text.lines().any(is_python) => FileKind::Python,
        _ => FileKind::Text,
    }
}

/// Why a file is not a config, and what to do with it; `None` if it may be one, or does not exist.
pub fn not_a_config(path: &Path) -> Option<String> {
    use FileKind::{
        Empty, Folder, Image, Json, Onnx, Other, PyTorch, Python, Safetensors, Special, Text, Unknown, Yaml,
    };

    let kind = FileKind::of(path).ok()?;
    let shown = path.display();
    let remedy = match kind {
        Empty | Text => return None,
        Folder => format!("give one of the configs in it, for example {}", path.join("NAME.toml").display()),
        Python => convert_line(path),
        Json => {
            "a config names the annotation files (data.train.ann_file), and `fnet-launch check-data CONFIG` checks them"
                .to_owned()
        }
        Safetensors => format!("a checkpoint contains its config: fnet-launch test {shown}"),
        PyTorch => format!("to evaluate it: fnet-launch test {shown} --config CONFIG"),
        Image(_) => format!("to run a model on it: fnet-launch predict CHECKPOINT {shown} --out FOLDER"),
        Special => "every worker reads the config, so it must be a regular file".to_owned(),
        Yaml | Onnx | Other(_) | Unknown => "give a .toml file, such as those in configs/".to_owned(),
    };
    Some(format!("this is {}, not a config, which is a TOML file; {remedy}", kind.describe()))
}

/// Why a file is not a Python config, and what to do with it; `None` if it may be one.
pub fn not_a_python_config(path: &Path) -> Option<String> {
    let shown = path.display();
    Some(match FileKind::of(path) {
        Err(error) => format!("{error}; a Python config of MMDetection is expected"),
        Ok(FileKind::Python | FileKind::Text | FileKind::Unknown)
            if path.extension().is_none_or(|ending| ending != "toml") =>
        {
            return None;
        }
        Ok(FileKind::Text) => {
            format!("this is a TOML file; to print all of its values: fnet-launch print-config {shown}")
        }
        Ok(kind) => format!("this is {}; a Python config of MMDetection is expected", kind.describe()),
    })
}

/// The line that converts a Python config.
fn convert_line(path: &Path) -> String {
    let out = path.with_extension("toml");
    let (config, out) = (path.to_string_lossy(), out.file_name().unwrap_or_default().to_string_lossy());
    let (config, out) = (shell_word(&config), shell_word(&out));
    format!("convert it first: fnet-launch convert-config {config} --out {out}")
}

/// Why a file is not a checkpoint, and what to do with it; `None` if it may be one, or does not exist.
pub fn not_a_checkpoint(path: &Path) -> Option<String> {
    use FileKind::{
        Empty, Folder, Image, Json, Onnx, Other, PyTorch, Python, Safetensors, Special, Text, Unknown, Yaml,
    };

    let kind = FileKind::of(path).ok()?;
    let shown = path.display();
    let remedy = match kind {
        // A damaged checkpoint may begin with anything; its reader reports what is wrong.
        Safetensors | PyTorch | Unknown => return None,
        Empty => "copy it again".to_owned(),
        Folder => format!("give one of the files in it, for example {}", path.join("latest.ckpt").display()),
        Json => "`fnet-launch test CHECKPOINT` writes results, and `fnet-launch check-data CONFIG` checks annotations"
            .to_owned(),
        Text if path.extension().is_some_and(|ending| ending == "toml") => {
            format!("to train it: fnet-launch train {shown}")
        }
        Python => format!(
            "{}, then test the .pth of MMDetection: fnet-launch test FILE.pth --config CONFIG.toml",
            convert_line(path)
        ),
        Image(_) => format!("images come after the checkpoint: fnet-launch predict CHECKPOINT {shown} --out FOLDER"),
        Onnx => "fnet does not read ONNX; give the checkpoint from which it was exported".to_owned(),
        Other(what) if what.contains("archive") => "unpack it first".to_owned(),
        Special => "give a regular file".to_owned(),
        Text | Yaml | Other(_) => "give a .ckpt of fnet or a .pth of MMDetection".to_owned(),
    };
    Some(format!(
        "this is {}, not a checkpoint (a .ckpt of fnet, a .pth of PyTorch, or safetensors); {remedy}",
        kind.describe()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHECKPOINT: &[u8] = b"\x10\0\0\0\0\0\0\0{\"__metadata__\":";

    #[test]
    fn files_are_known_by_their_first_bytes() {
        use FileKind::{Empty, Image, Json, Onnx, Other, PyTorch, Python, Safetensors, Text, Unknown, Yaml};

        let cases: [(&[u8], &str, FileKind); 36] = [
            (b"", "ckpt", Empty),
            (CHECKPOINT, "ckpt", Safetensors),
            (b"PK\x03\x04\0\0\0\0archive/data.pkl", "pth", PyTorch),
            (b"\x80\x02\x8a\x0al\xfc\x9cF", "pth", PyTorch),
            (b"PK\x03\x04\0\0\0\0arr_0.npy", "npz", Other("a zip archive")),
            (b"{\"images\": []}", "json", Json),
            (b"\xef\xbb\xbf {\"images\": []}", "", Json),
            (b"[{\"image_id\": 1}]", "ckpt", Json),
            (b"[\n  [1, 2]]", "json", Json),
            (b"\"text\"", "json", Json),
            (b"[model]\nnum_classes = 8", "toml", Text),
            (b"[model]\nnum_classes = 8", "cfg", Text),
            (b"[[model]]\na = 1", "cfg", Text),
            (b"[\"quoted\"]\na = 1", "toml", Text),
            (b"model.num_classes = 8", "toml", Text),
            (b"# a comment\n", "toml", Text),
            (b"_base_ = ['../a.py']\n", "py", Python),
            (b"# copy\n_base_ = ['../a.py']\n", "cfg", Python),
            (b"model = dict(\n    type='MaskRCNN')\n", "", Python),
            (b"model:\n  depth: 50\n", "yaml", Yaml),
            (b"\x89PNG\r\n\x1a\n\0\0", "png", Image("PNG")),
            (b"\xff\xd8\xff\xe0\0\x10JFIF", "jpg", Image("JPEG")),
            (b"GIF89a", "gif", Image("GIF")),
            (b"BM\x36\0\0\0", "bmp", Image("BMP")),
            (b"BM is no image", "txt", Text),
            (b"RIFF\x10\0\0\0WEBPVP8 ", "webp", Image("WebP")),
            (b"II*\0\x08\0\0\0", "tif", Image("TIFF")),
            (b"\x08\x07\x12\x07pytorch", "onnx", Onnx),
            (b"\x08\x07\x12\x07pytorch", "bin", Onnx),
            (b"\x89HDF\r\n\x1a\n\0", "h5", Other("an HDF5 file")),
            (b"\x1f\x8b\x08\0", "gz", Other("a gzip archive")),
            (b"\x7fELF\x02\x01", "", Other("a program")),
            (b"no checkpoint", "ckpt", Text),
            (b"\xff\xfe\0\x01", "ckpt", Unknown),
            (b"a\0b", "ckpt", Unknown),
            ("image of a caf\u{e9}".as_bytes().split_last().map_or(b"", |(_, rest)| rest), "txt", Text),
        ];
        for (start, ending, expected) in cases {
            let shown = String::from_utf8_lossy(start);
            assert_eq!(FileKind::from_start(start, ending), expected, "{shown} .{ending}");
        }
    }

    #[test]
    fn a_file_in_the_wrong_place_is_named_with_the_command_that_takes_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            fs::write(&path, bytes).unwrap();
            path
        };
        let config = file("cfg.toml", b"[model]\n");
        let checkpoint = file("epoch_1.ckpt", CHECKPOINT);
        let json = file("results.json", b"{}");
        let image = file("a.png", b"\x89PNG\r\n\x1a\n");
        let python = file("cfg.py", b"model = dict()");
        let onnx = file("a.onnx", b"\x08\x07\x12\x07");
        let empty = file("empty.ckpt", b"");
        let archive = file("a.zip", b"PK\x03\x04");
        assert_eq!(FileKind::of_content(&archive).unwrap(), FileKind::PyTorch);
        for (path, words) in [
            (&checkpoint, "fnet-launch test"),
            (&json, "this is a JSON file"),
            (&image, "fnet-launch predict CHECKPOINT"),
            (&python, "/cfg.py --out cfg.toml"),
            (&onnx, "this is an ONNX model"),
            (&archive, "this is a zip archive"),
            (&folder.path().to_path_buf(), "this is a folder"),
            (&"/dev/null".into(), "this is a pipe or device"),
        ] {
            let text = not_a_config(path).unwrap();
            assert!(text.starts_with("this is a") && text.contains(words), "{text}");
        }
        for (path, words) in [
            (&config, "fnet-launch train"),
            (&json, "fnet-launch test CHECKPOINT"),
            (&image, "fnet-launch predict CHECKPOINT"),
            (&python, "fnet-launch test FILE.pth --config CONFIG.toml"),
            (&onnx, "does not read ONNX"),
            (&empty, "this is an empty file"),
            (&archive, "unpack it first"),
            (&folder.path().to_path_buf(), "latest.ckpt"),
            (&"/dev/null".into(), "this is a pipe or device"),
        ] {
            let text = not_a_checkpoint(path).unwrap();
            assert!(text.starts_with("this is a") && text.contains(words), "{text}");
        }
        assert_eq!((not_a_config(&config), not_a_config(&empty)), (None, None));
        let spaced = file("my cfg's.py", b"model = dict()");
        assert!(not_a_config(&spaced).unwrap().contains("/my cfg'\\''s.py' --out 'my cfg'\\''s.toml'"));
        for (path, words) in [
            (&config, "fnet-launch print-config"),
            (&checkpoint, "this is a checkpoint"),
            (&folder.path().to_path_buf(), "this is a folder"),
            (&folder.path().join("none.py"), "No such file"),
        ] {
            let text = not_a_python_config(path).unwrap();
            assert!(text.contains(words), "{text}");
        }
        assert_eq!(not_a_python_config(&python), None);
        assert_eq!(not_a_checkpoint(&checkpoint), None);
        assert_eq!(not_a_checkpoint(&folder.path().join("none")), None, "its reader reports that");
    }
}

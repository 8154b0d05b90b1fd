//! The images that `predict` is given: files, folders, patterns and lists.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use glob::MatchOptions;

use fnet_common::text::count;
use fnet_common::{Error, Result};
use fnet_evaluate::paint::{painted_path, unused};
use fnet_protocol::cli;

/// Extensions of images in a folder or pattern; a file that is given by name may have any extension.
const EXTENSIONS: [&str; 14] =
    ["jpg", "jpeg", "png", "bmp", "webp", "tif", "tiff", "gif", "jp2", "j2k", "pbm", "pgm", "ppm", "pnm"];

/// An input image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    pub path: PathBuf,
    /// Its name in the results, relative to the given folder or the fixed part of the pattern.
    pub name: String,
    /// The output image.
    pub painted: PathBuf,
    /// Its line in a list, as FILE:LINE.
    pub listed: Option<String>,
}

/// The images in a fixed order: arguments, then the list; folders and patterns sorted by path.
/// Errors: a file, folder or list that does not exist, or that has no image; a pattern without match. A file of a list
/// is not looked for here: it may be unreadable like any other.
pub fn find(arguments: &cli::Predict) -> Result<Vec<Input>> {
    let mut finder = Finder { out: &arguments.out, inputs: Vec::new(), taken: HashSet::new() };
    for argument in &arguments.images {
        match argument.to_str().filter(|_| cli::Predict::is_pattern(argument)) {
            Some(pattern) => finder.pattern(pattern)?,
            None => finder.path(argument)?,
        }
    }
    if let Some(list) = &arguments.list {
        finder.list(list)?;
    }
    Ok(finder.inputs)
}

struct Finder<'a> {
    out: &'a Path,
    inputs: Vec<Input>,
    taken: HashSet<PathBuf>,
}

impl Finder<'_> {
    /// Adds an image with its name relative to `base`.
    fn add(&mut self, path: PathBuf, base: &Path, listed: Option<String>) {
        let name = path.strip_prefix(base).unwrap_or(&path).to_string_lossy().into_owned();
        let painted = unused(painted_path(self.out, &name), &mut self.taken);
        self.inputs.push(Input { path, name, painted, listed });
    }

    fn path(&mut self, path: &Path) -> Result<()> {
        if !std::fs::metadata(path).map_err(|error| unreadable(path, &error))?.is_dir() {
            self.add(path.to_path_buf(), path.parent().unwrap_or(Path::new("")), None);
            return Ok(());
        }
        let mut images = Vec::new();
        collect(path, self.out, &mut images)?;
        images.sort();
        if images.is_empty() {
            return Err(without_images(&format!("the folder {} has no images", path.display())));
        }
        images.into_iter().for_each(|image| self.add(image, path, None));
        Ok(())
    }

    fn pattern(&mut self, pattern: &str) -> Result<()> {
        let options = MatchOptions { require_literal_leading_dot: true, ..MatchOptions::new() };
        let matches = glob::glob_with(pattern, options)
            .map_err(|error| Error::usage(format!("{pattern} is neither a file nor a pattern: {}", error.msg)))?;
        let fixed: PathBuf =
            Path::new(pattern).components().take_while(|part| !cli::Predict::has_wildcard(part.as_ref())).collect();
        let before = self.inputs.len();
        for path in matches {
            let path = path.map_err(|error| unreadable(error.path(), error.error()))?;
            if is_image(&path) && !path.starts_with(self.out) && path.is_file() {
                self.add(path, &fixed, None);
            }
        }
        if self.inputs.len() == before {
            return Err(without_images(&format!("no image matches the pattern {pattern}")));
        }
        Ok(())
    }

    fn list(&mut self, list: &Path) -> Result<()> {
        let text = std::fs::read_to_string(list).map_err(|error| unreadable(list, &error))?;
        let before = self.inputs.len();
        for (line, entry) in (1..).zip(text.trim_start_matches('\u{feff}').lines()) {
            let path = Path::new(entry.trim());
            if !entry.trim().is_empty() {
                let listed = format!("{}:{line}", list.display());
                self.add(path.to_path_buf(), path.parent().unwrap_or(Path::new("")), Some(listed));
            }
        }
        if self.inputs.len() == before {
            let lines = count(text.lines().count(), "line");
            return Err(Error::data(format!(
                "the list {} names no image in {lines}: expected the path of an image on each line, relative to the current \
                 folder",
                list.display()
            )));
        }
        Ok(())
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    Error::data(format!("{}: {error}", path.display()))
}

fn without_images(what: &str) -> Error {
    Error::data(format!("{what}: expected files with the extension .{}", EXTENSIONS.join(", .")))
}

fn is_image(path: &Path) -> bool {
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase());
    ending.is_some_and(|ending| EXTENSIONS.contains(&ending.as_str()))
}

/// All images below a folder, except hidden files and the output of this command.
fn collect(folder: &Path, out: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let at = |error: std::io::Error| unreadable(folder, &error);
    for entry in std::fs::read_dir(folder).map_err(at)? {
        let entry = entry.map_err(at)?;
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with('.') || path == out {
            continue;
        }
        if entry.file_type().map_err(at)?.is_dir() {
            collect(&path, out, found)?;
        } else if is_image(&path) {
            found.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use fnet_common::ErrorKind;

    use super::*;

    struct Scene(tempfile::TempDir);

    impl Scene {
        fn new(files: &[&str]) -> Self {
            let folder = tempfile::tempdir().unwrap();
            for file in files {
                let path = folder.path().join(file);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, "x").unwrap();
            }
            Self(folder)
        }

        fn at(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn find(&self, images: &[&str], list: Option<&str>) -> Result<Vec<Input>> {
            let images = images.iter().map(|name| self.at(name)).collect();
            find(&cli::Predict {
                images,
                list: list.map(|name| self.at(name)),
                out: self.at("out"),
                ..Default::default()
            })
        }

        fn names(&self, images: &[&str]) -> Vec<(String, String)> {
            let painted = |input: &Input| input.painted.strip_prefix(self.at("out")).unwrap().display().to_string();
            self.find(images, None).unwrap().iter().map(|input| (input.name.clone(), painted(input))).collect()
        }
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    #[test]
    fn folders_and_patterns_are_searched_in_order_and_equal_names_get_unique_outputs() {
        let scene = Scene::new(&[
            "in/b.JPG",
            "in/a.png",
            "in/deep/c.webp",
            "in/._b.jpg",
            "in/notes.txt",
            "b.JPG",
            "out/x.jpg",
            "in/[1].png",
        ]);
        let found = scene.names(&["in", "b.JPG"]);
        let expected = [
            ("[1].png", "[1].png"),
            ("a.png", "a.png"),
            ("b.JPG", "b.JPG"),
            ("deep/c.webp", "deep/c.webp.jpg"),
            ("b.JPG", "b_2.JPG"),
        ];
        assert_eq!(found, pairs(&expected));
        assert_eq!(scene.names(&["in/*.png"]), pairs(&[("[1].png", "[1].png"), ("a.png", "a.png")]));
        assert_eq!(scene.names(&["in/[1].png"]), pairs(&[("[1].png", "[1].png")]), "a file, not a pattern");
        assert_eq!(scene.names(&["i?/d*/*"]), pairs(&[("in/deep/c.webp", "in/deep/c.webp.jpg")]));
        let all = scene.names(&["**/*.[jJ]*"]);
        assert_eq!(all, pairs(&[("b.JPG", "b.JPG"), ("in/b.JPG", "in/b.JPG")]), "neither hidden nor of an earlier run");
    }

    #[test]
    fn a_list_names_one_image_a_line() {
        let scene = Scene::new(&["a.txt"]);
        std::fs::write(scene.at("list"), "\u{feff}x/a.jpg\r\n\n  y/a.jpg \n").unwrap();
        let inputs = scene.find(&[], Some("list")).unwrap();
        let painted = [scene.at("out/a.jpg"), scene.at("out/a_2.jpg")];
        for ((input, path), painted) in inputs.iter().zip(["x/a.jpg", "y/a.jpg"]).zip(painted) {
            assert_eq!((input.path.as_path(), &input.painted), (Path::new(path), &painted));
        }
        assert_eq!(inputs[1].listed, Some(format!("{}:3", scene.at("list").display())));
        std::fs::write(scene.at("list"), "\n").unwrap();
        assert!(scene.find(&[], Some("list")).unwrap_err().to_string().contains("names no image in 1 line"));
    }

    #[test]
    fn inputs_without_images_are_data_errors_that_name_them() {
        let scene = Scene::new(&["in/notes.txt", "in/list.bin"]);
        std::fs::write(scene.at("in/list.bin"), [0xff]).unwrap();
        for (images, list, words) in [
            (vec!["in"], None, "in has no images"),
            (vec!["none.jpg"], None, "none.jpg: No such file"),
            (vec!["in/*.jpg"], None, "in/*.jpg: expected files with"),
            (vec![], Some("none.txt"), "none.txt: No such file"),
            (vec![], Some("in/list.bin"), "list.bin: "),
        ] {
            let error = scene.find(&images, list).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Data);
            assert!(error.to_string().contains(words), "{error}");
        }
        assert_eq!(scene.find(&["in/***"], None).unwrap_err().kind(), ErrorKind::Usage);
    }
}

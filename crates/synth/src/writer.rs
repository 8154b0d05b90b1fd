//! Writes a COCO annotation file entry by entry.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::json;

use crate::error::{Error, Result};
use crate::options::Options;

/// An annotation file being written: first all images, then all annotations. It gets its final name when it is
/// complete.
pub(crate) struct AnnotationFile {
    path: PathBuf,
    temporary: PathBuf,
    out: BufWriter<File>,
    first: bool,
}

impl AnnotationFile {
    /// Creates the file and writes its header.
    pub(crate) fn create(path: &Path, options: &Options) -> Result<Self> {
        let temporary = path.with_extension("json.part");
        let file = File::create(&temporary).map_err(Error::io("create", &temporary))?;
        let mut started =
            Self { path: path.to_path_buf(), temporary, out: BufWriter::with_capacity(1 << 20, file), first: true };
        let info = json!({
            "description": "fnet synthetic scenes",
            "version": crate::FORMAT_VERSION.to_string(),
            "options": options,
        });
        let licenses = json!([{ "id": 1, "name": "made by a program; no rights reserved", "url": "" }]);
        let categories = options.layout.categories();
        started.raw(b"{\"info\":")?;
        started.json(&info)?;
        started.raw(b",\"licenses\":")?;
        started.json(&licenses)?;
        started.raw(b",\"categories\":")?;
        started.json(&categories)?;
        started.raw(b",\n\"images\":[")?;
        Ok(started)
    }

    /// Adds an entry to the open list.
    pub(crate) fn entry(&mut self, record: &impl Serialize) -> Result<()> {
        self.raw(if self.first { b"\n" } else { b",\n" })?;
        self.first = false;
        self.json(record)
    }

    /// Closes the list of images and opens the list of annotations.
    pub(crate) fn annotations(&mut self) -> Result<()> {
        self.first = true;
        self.raw(b"],\n\"annotations\":[")
    }

    /// Completes the file and renames it to its final name.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.raw(b"]}\n")?;
        let Self { path, temporary, out, .. } = self;
        let file = out.into_inner().map_err(|e| Error::io("write", &temporary)(e.into_error()))?;
        file.sync_all().map_err(Error::io("write", &temporary))?;
        fs::rename(&temporary, &path).map_err(Error::io("rename", &temporary))
    }

    fn raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(Error::io("write", &self.temporary))
    }

    fn json(&mut self, value: &impl Serialize) -> Result<()> {
        serde_json::to_writer(&mut self.out, value).map_err(|e| Error::io("write", &self.temporary)(e.into()))
    }
}

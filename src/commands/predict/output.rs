//! The objects that `predict` writes, in one of three formats.

use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};

use fnet_common::{Error, Result, atomic};
use fnet_evaluate::inference::Found;
use fnet_evaluate::paint::objects::name_of;
use fnet_evaluate::results::{Detection, ImageResult, xywh};
use fnet_protocol::cli::PredictFormat;

use super::inputs::Input;

/// What is written of the detections.
pub struct Output<'a> {
    pub found: &'a Found,
    pub inputs: &'a [Input],
    /// Class names in the order of the labels.
    pub classes: &'a [String],
    /// Category ids in the order of the labels.
    pub category_ids: &'a [Value],
    /// The folder of the painted images; `None` if there are none.
    pub painted: Option<&'a Path>,
    pub score_threshold: f64,
}

impl Output<'_> {
    /// Writes `results.json` or `results.csv` into `folder` and returns its name.
    pub fn write(&self, format: PredictFormat, folder: &Path) -> Result<&'static str> {
        let name = match format {
            PredictFormat::Coco | PredictFormat::Json => "results.json",
            PredictFormat::Csv => "results.csv",
        };
        let path = folder.join(name);
        atomic::create(&path, |out| {
            let written = match format {
                PredictFormat::Coco => self.coco(out),
                PredictFormat::Json => writeln!(out, "{}", self.json()),
                PredictFormat::Csv => self.csv(out),
            };
            written.map_err(|error| Error::environment(format!("cannot write {}: {error}", path.display())))
        })?;
        Ok(name)
    }

    fn each(&self) -> impl Iterator<Item = (&ImageResult, &Input)> {
        self.found.results.iter().map(|result| (result, &self.inputs[result.image_id as usize - 1]))
    }

    fn category_id(&self, detection: &Detection) -> Value {
        let label = detection.label as usize;
        self.category_ids.get(label).cloned().unwrap_or_else(|| Value::from(label + 1))
    }

    /// The keys of COCO results, and more that its readers ignore.
    fn object(&self, result: &ImageResult, detection: &Detection) -> Value {
        let mut object = json!({
            "category_id": self.category_id(detection),
            "category_name": name_of(detection, self.classes),
            "bbox": xywh(detection.bbox),
            "score": f64::from(detection.score),
        });
        if let Some(segmentation) = result.segmentation(detection) {
            object["segmentation"] = segmentation;
        }
        object
    }

    fn coco(&self, out: &mut dyn Write) -> std::io::Result<()> {
        let mut separator = "[";
        for (result, input) in self.each() {
            for detection in &result.detections {
                let mut entry = json!({
                    "image_id": result.image_id,
                    "file_name": input.name,
                    "path": input.path.to_string_lossy(),
                });
                if let (Value::Object(entry), Value::Object(object)) = (&mut entry, self.object(result, detection)) {
                    entry.extend(object);
                }
                write!(out, "{separator}{entry}")?;
                separator = ",\n";
            }
        }
        out.write_all(if separator == "[" { b"[]\n" } else { b"]\n" })
    }

    fn json(&self) -> Value {
        let images = self.each().map(|(result, input)| {
            let objects = result.detections.iter().map(|detection| self.object(result, detection));
            let painted = self.painted.map(|folder| input.painted.strip_prefix(folder).unwrap_or(&input.painted));
            json!({
                "image_id": result.image_id,
                "file_name": input.name,
                "path": input.path.to_string_lossy(),
                "painted": painted.map(Path::to_string_lossy),
                "width": result.width,
                "height": result.height,
                "objects": objects.collect::<Vec<_>>(),
            })
        });
        let categories = self.classes.iter().zip(self.category_ids);
        json!({
            "score_threshold": self.score_threshold,
            "categories": categories.map(|(name, id)| json!({ "id": id, "name": name })).collect::<Vec<_>>(),
            "images": images.collect::<Vec<_>>(),
            "unreadable": self.found.skipped,
        })
    }

    fn csv(&self, out: &mut dyn Write) -> std::io::Result<()> {
        writeln!(out, "image_id,file_name,path,category_id,category_name,score,x,y,width,height")?;
        for (result, input) in self.each() {
            for detection in &result.detections {
                let [x, y, width, height] = xywh(detection.bbox);
                let id = self.category_id(detection);
                writeln!(
                    out,
                    "{},{},{},{},{},{},{x:.3},{y:.3},{width:.3},{height:.3}",
                    result.image_id,
                    quoted(&input.name),
                    quoted(&input.path.to_string_lossy()),
                    id.as_str().map_or_else(|| id.to_string(), quoted),
                    quoted(&name_of(detection, self.classes)),
                    detection.score,
                )?;
            }
        }
        Ok(())
    }
}

/// A field of a CSV file (RFC 4180).
fn quoted(text: &str) -> String {
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_csv_are_quoted_where_they_must_be() {
        assert_eq!(quoted("a b.jpg"), "a b.jpg");
        assert_eq!(quoted("a,\"b\"\n.jpg"), "\"a,\"\"b\"\"\n.jpg\"");
    }
}

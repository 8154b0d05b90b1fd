//! `report`: a page about runs, made from their work folders.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fnet_common::{Error, ErrorKind, Result};
use fnet_data::{Dataset, Split};
use fnet_evaluate::report::{Evaluated, Logs, Run};
use fnet_evaluate::results_file::ResultsFile;
use fnet_protocol::cli;

use super::evaluate::write_page;

/// Writes the page and returns where it is. `say` gets messages.
/// Errors: a folder is no work folder, or the page cannot be written. What a page lacks because results or images are
/// missing stands on it.
pub fn report(arguments: &cli::Report, say: &dyn Fn(&str)) -> Result<String> {
    let mut runs = arguments.folders.iter().map(|folder| run(folder, &arguments.set)).collect::<Result<Vec<_>>>()?;
    write_page(&arguments.page(), &mut runs, &[], say)
}

/// What is in a work folder.
fn run(folder: &Path, overrides: &[String]) -> Result<Run> {
    let config_path = folder.join("config.toml");
    let logs = Logs::read(folder)?;
    if logs.files.is_empty() && !config_path.is_file() {
        return Err(Error::usage(format!(
            "{} is not a work folder of `train`: it has neither config.toml nor a log (*.log.json)",
            folder.display()
        )));
    }
    let mut run = Run { name: folder.display().to_string(), logs: Some(logs), ..Run::default() };
    let read = std::fs::read_to_string(&config_path);
    match read {
        Ok(text) => match fnet_config::leaves_of(&text) {
            Ok(_) => run.config = text,
            Err(error) => run.notes.push(format!("{}: {error}", config_path.display())),
        },
        Err(error) => run.notes.push(format!("{}: {error}", config_path.display())),
    }
    match results(folder, &config_path, overrides) {
        Ok(results) => run.results = Some(results),
        Err(error) if error.kind() == ErrorKind::Bug => return Err(error),
        Err(error) => run.notes.push(format!("Metrics, errors and images are missing: {error}")),
    }
    Ok(run)
}

/// The kept results of the best evaluation, or of the last one.
fn results(folder: &Path, config_path: &Path, overrides: &[String]) -> Result<Evaluated> {
    let path = find(folder).ok_or_else(|| {
        let (checkpoint, out) = (folder.join("latest.ckpt"), folder.join("results/latest.json"));
        Error::usage(format!(
            "{0} has no detections of an evaluation; add them with `fnet-launch test {1} --out {2}`, then run `report` again",
            folder.join("results").display(),
            checkpoint.display(),
            out.display()
        ))
    })?;
    let config = fnet_data::load_config(config_path, overrides)?.config;
    let dataset = Arc::new(Dataset::open(&config.data, Split::Val)?);
    let file = ResultsFile::read(&path, &dataset)?;
    let kinds = file.kinds(&[])?;
    Evaluated::new(dataset, file, &kinds, &config.evaluation, true)
}

/// The results of `best_*.ckpt` if it is there, else of `latest`. Of files with and without masks, the newer one.
fn find(work_dir: &Path) -> Option<PathBuf> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(work_dir.join("results")).ok()?.flatten().map(|entry| entry.path()).collect();
    files.sort();
    let wanted = [("best_", ".segm.json"), ("best_", ".bbox.json"), ("latest", ".segm.json"), ("latest", ".bbox.json")];
    let found = wanted.iter().find_map(|(start, end)| {
        let matches = |path: &&PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let is_current = |stem: &str| *start == "latest" || work_dir.join(format!("{stem}.ckpt")).exists();
            name.starts_with(start) && name.strip_suffix(end).is_some_and(is_current)
        };
        files.iter().find(matches).cloned()
    })?;
    let name = found.file_name()?.to_string_lossy().into_owned();
    let Some(stem) = name.strip_suffix(".segm.json") else { return Some(found) };
    let boxes = found.with_file_name(format!("{stem}.bbox.json"));
    let modified = |path: &Path| path.metadata().and_then(|metadata| metadata.modified()).ok();
    // `test` writes the boxes first.
    if modified(&boxes) > modified(&found) { Some(boxes) } else { Some(found) }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn the_newer_of_two_files_is_shown_and_that_with_masks_if_they_are_as_old() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join("results").join(name);
        std::fs::create_dir(folder.path().join("results")).unwrap();
        assert_eq!(find(folder.path()), None);
        let now = SystemTime::now();
        let write = |name: &str, age: u64| {
            let file = File::create(at(name)).unwrap();
            file.set_modified(now - Duration::from_secs(age)).unwrap();
        };
        write("latest.bbox.json", 20);
        assert_eq!(find(folder.path()), Some(at("latest.bbox.json")));
        write("latest.segm.json", 20);
        assert_eq!(find(folder.path()), Some(at("latest.segm.json")));
        write("latest.bbox.json", 10);
        assert_eq!(find(folder.path()), Some(at("latest.bbox.json")));
        write("best_bbox_mAP.segm.json", 30);
        assert_eq!(find(folder.path()), Some(at("latest.bbox.json")), "there is no checkpoint");
        File::create(folder.path().join("best_bbox_mAP.ckpt")).unwrap();
        assert_eq!(find(folder.path()), Some(at("best_bbox_mAP.segm.json")));
    }
}

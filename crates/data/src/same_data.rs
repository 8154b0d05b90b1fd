//! Whether all ranks have the same data sets. Each rank reads its own files, which on several nodes may be different copies.

use std::hash::{DefaultHasher, Hash, Hasher};

use fnet_common::text::count;
use fnet_common::{Error, Result};

use crate::Dataset;

/// Refuses sets that differ between ranks. `gather` exchanges bytes between them; a rank alone needs no digest of its data.
/// Errors: a data error with the first rank and set that differ, or an error of `gather`.
pub fn check_same_data(
    sets: &[&Dataset],
    world_size: usize,
    gather: impl FnOnce(&[u8]) -> Result<Vec<Vec<u8>>>,
) -> Result<()> {
    if world_size == 1 { Ok(()) } else { check_equal(&gather(summary(sets).as_bytes())?) }
}

/// What must be equal on all ranks: one line for each set, with a digest of its images, boxes and classes. Masks are not in it.
fn summary(sets: &[&Dataset]) -> String {
    let line = |set: &&Dataset| {
        let mut hasher = DefaultHasher::new();
        for category in set.categories() {
            (category.id, &category.name).hash(&mut hasher);
        }
        for sample in 0..set.len() {
            let record = set.record(sample);
            (record.image.id, record.image.file_name, record.image.width, record.image.height).hash(&mut hasher);
            record.objects.labels.hash(&mut hasher);
            record.objects.boxes.iter().flatten().for_each(|side| hasher.write_u32(side.to_bits()));
        }
        let (images, objects) = (count(set.len(), "image"), count(set.object_count(), "object"));
        format!("data.{} of {images} and {objects} (digest {:016x})\n", set.split().name(), hasher.finish())
    };
    sets.iter().map(line).collect()
}

/// Compares the [`summary`] of every rank with that of rank 0.
/// Errors: a data error with the first rank and set that differ.
fn check_equal(summaries: &[Vec<u8>]) -> Result<()> {
    let lines = |bytes: &[u8]| -> Vec<String> { String::from_utf8_lossy(bytes).lines().map(str::to_owned).collect() };
    let Some(first) = summaries.first().map(|bytes| lines(bytes)) else { return Ok(()) };
    let differs = |bytes: &Vec<u8>| {
        let nothing = || std::iter::repeat("nothing".to_owned());
        let others = lines(bytes).into_iter().chain(nothing());
        first.iter().cloned().zip(others).find(|(first, other)| first != other)
    };
    match summaries.iter().enumerate().find_map(|(rank, bytes)| Some((rank, differs(bytes)?))) {
        None => Ok(()),
        Some((rank, (expected, found))) => Err(Error::data(format!(
            "rank {rank} has other data than rank 0: it has {found}, and rank 0 {expected}; copy the annotation files of rank 0 to \
             all nodes, or use a shared folder"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rank_and_set_that_differ_are_named() {
        let summaries = |texts: &[&str]| texts.iter().map(|text| text.as_bytes().to_vec()).collect::<Vec<_>>();
        assert!(check_equal(&[]).is_ok());
        assert!(check_equal(&summaries(&["a\nb\n", "a\n"])).is_err());
        assert!(check_equal(&summaries(&["a\nb\n", "a\nb\n"])).is_ok());
        let error = check_equal(&summaries(&["a\nb\n", "a\nb\n", "a\nc\n", "x\nb\n"])).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        assert!(error.to_string().contains("rank 2 has other data than rank 0: it has c, and rank 0 b;"), "{error}");
    }
}

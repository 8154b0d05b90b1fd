//! README.md and docs/*.md: their links lead somewhere, and the command lines in them are ones that `fnet-launch` takes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;

use fnet_protocol::cli::Launch;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All documents for people, with their text.
fn documents() -> Vec<(PathBuf, String)> {
    let mut files = vec![root().join("README.md"), root().join("CONTRIBUTING.md"), root().join("CHANGELOG.md")];
    for folder in ["docs", "docs/clusters", "docs/decisions", "docs/tables"] {
        files.extend(fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path()));
    }
    files.retain(|file| file.extension().is_some_and(|kind| kind == "md"));
    files.into_iter().map(|file| (file.clone(), fs::read_to_string(file).unwrap())).collect()
}

/// Anchors of a document's headings, as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let slug = |heading: &str| -> String {
        let kept = heading.trim_start_matches('#').trim().chars().filter_map(|letter| match letter {
            ' ' => Some('-'),
            '-' | '_' => Some(letter),
            _ => letter.is_alphanumeric().then(|| letter.to_lowercase().next().unwrap()),
        });
        kept.collect()
    };
    text.lines().filter(|line| line.starts_with('#')).map(slug).collect()
}

#[test]
fn every_link_within_the_documents_leads_somewhere() {
    let mut checked = 0;
    for (file, text) in documents() {
        for target in text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target) {
            if target.starts_with("http") || target.contains(' ') {
                continue;
            }
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = if path.is_empty() { file.clone() } else { file.parent().unwrap().join(path) };
            assert!(path.exists(), "{}: there is no {target}", file.display());
            if !anchor.is_empty() {
                let found = anchors(&fs::read_to_string(&path).unwrap());
                assert!(found.contains(anchor), "{}: {target}: no such heading among {found:?}", file.display());
            }
            checked += 1;
        }
    }
    assert!(checked > 50, "{checked}");
}

/// The command lines of a document, in code blocks and in the text. Words after three spaces are a description.
fn commands(text: &str) -> Vec<String> {
    // Lines that a backslash joins.
    let mut parts = text.split("\\\n");
    let first = parts.next().unwrap_or_default().to_owned();
    let text = parts.fold(first, |text, part| text + part.trim_start());
    let in_blocks = text.lines().filter_map(|line| {
        let start = line.starts_with("    ") || line.starts_with("fnet-launch");
        let command = line.get(line.find("fnet-launch ")?..).filter(|_| start)?;
        let end = ["   ", " #", " ||"].iter().filter_map(|end| command.find(end)).min();
        Some(command[..end.unwrap_or(command.len())].to_owned())
    });
    let in_text = text.split('`').skip(1).step_by(2).filter(|code| code.starts_with("fnet-launch ")).map(str::to_owned);
    in_blocks.chain(in_text).filter(|line| !line.contains("...") && !line.contains("[WHERE]")).collect()
}

#[test]
fn every_command_line_in_the_documents_is_accepted() {
    let mut checked = 0;
    for (file, text) in documents().into_iter().filter(|(file, _)| !file.ends_with("CONTRIBUTING.md")) {
        for line in commands(&text) {
            // Placeholders of numbers and variables of a shell.
            let words = shlex::split(&line).unwrap_or_else(|| panic!("{}: {line}", file.display()));
            let value = |word: String| match word.as_str() {
                "N" | "H" | "W" => "32".to_owned(),
                "COMMAND" => "train".to_owned(),
                _ if word.starts_with('$') => "1".to_owned(),
                _ => word,
            };
            let words = words.into_iter().map(value).map(Into::into);
            if let Err(error) = Launch::from_arguments(words) {
                // The text names commands without what they need.
                let is_name = matches!(error.kind(), ErrorKind::MissingRequiredArgument | ErrorKind::MissingSubcommand);
                assert!(is_name || !error.use_stderr(), "{}: `{line}`: {error}", file.display());
            }
            checked += 1;
        }
    }
    assert!(checked > 40, "{checked}");
}

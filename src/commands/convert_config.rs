//! `convert-config`: converts a Python config of MMDetection to TOML.

use std::path::Path;

use fnet_common::{Error, Result, atomic};
use fnet_protocol::cli::ConvertConfig;
use fnet_protocol::exit;

/// Runs `convert-config`: reports through `say` what became of each field, and writes the config to a file, or without one prints it.
///
/// # Errors
/// If the config cannot be converted, or the file exists or cannot be written.
pub fn convert_config(
    arguments: &ConvertConfig,
    say: impl FnOnce(String),
    print: impl FnOnce(&str) -> Result<()>,
) -> Result<i32> {
    if let Some(out) = &arguments.out {
        check_out(out)?;
    }
    let converted = fnet_convert::convert(&arguments.config)?;
    let report = converted.report.to_string();
    match &arguments.out {
        None => {
            say(report.trim_end().to_owned());
            print(converted.toml.trim_end())?;
        }
        Some(out) => {
            atomic::create(out, |file| {
                file.write_all(converted.toml.as_bytes()).map_err(|error| Error::environment(error.to_string()))
            })?;
            say(format!("{report}wrote {}; its data: fnet-launch check-data {0}", out.display()));
        }
    }
    Ok(exit::SUCCESS)
}

fn check_out(out: &Path) -> Result<()> {
    if out.extension().is_none_or(|ending| ending != "toml") {
        return Err(Error::usage(format!("--out {}: expected the name of a .toml file", out.display())));
    }
    if out.exists() {
        return Err(Error::usage(format!(
            "--out {}: the file exists and may have changes; expected a new name, or remove it first",
            out.display()
        )));
    }
    Ok(())
}

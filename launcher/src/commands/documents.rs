//! `completions` and `man`: what shells and `man` know of the command line.

use std::fs;

use clap::CommandFactory;
use fnet_protocol::cli::{Completions, Launch, Man};

use crate::error::{Doing, Result};
use crate::output::{self, Stream};

/// Prints the completion script of a shell.
pub fn completions(command: &Completions) {
    let mut script = Vec::new();
    clap_complete::generate(command.shell, &mut Launch::command(), "fnet-launch", &mut script);
    // In bash, clap_complete up to 4.6 writes the hyphen of the program's name in one way where it sets the command, and in
    // another where it compares it (github.com/clap-rs/clap/issues/6421).
    let script = String::from_utf8_lossy(&script).replace("fnet__subcmd__launch", "fnet__launch");
    output::write(Stream::Out, script.as_bytes());
}

/// Writes a page for the program and one for each command.
/// Errors: the folder cannot be made or written.
pub fn manual(command: &Man) -> Result<()> {
    let folder = &command.folder;
    let doing = || format!("writing manual pages to {} (choose another folder)", folder.display());
    fs::create_dir_all(folder).doing(doing)?;
    clap_mangen::generate_to(Launch::command_with_short_help(), folder).doing(doing)?;
    let page = clap_mangen::Man::new(Launch::command());
    page.generate_to(folder).map(drop).doing(doing)
}

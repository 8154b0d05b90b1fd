//! Typed configuration of a job: TOML files that inherit from each other, overrides, checks, and where each value
//! came from.

mod check;
mod classes;
mod difference;
mod fields;
mod load;
mod locate;
mod reference;
mod render;
mod schema;
mod tree;

use std::collections::BTreeMap;

pub use check::Problem;
pub use classes::ReadClasses;
pub use difference::leaves_of;
pub use load::{load, load_for_check};
pub use locate::folders_above;
pub use reference::markdown_reference;
pub use schema::*;
pub use tree::Origin;

/// The result of reading a config. Its error has the kind that decides the exit code.
pub type Result<T, E = fnet_protocol::message::Failure> = std::result::Result<T, E>;

/// A config with the origin of each value.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The values.
    pub config: Config,
    /// Name of the config: its file name without `.toml`. The default work folder has this name.
    pub name: String,
    /// Where each field's value came from, by dotted path.
    pub origins: BTreeMap<String, Origin>,
}

//! A config as it was read.

use std::collections::BTreeMap;

use super::Config;
use super::tree::Origin;

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

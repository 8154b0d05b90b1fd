//! Typed configuration of a job: TOML files that inherit from each other, overrides, checks, and where each value
//! came from.

mod check;
mod classes;
mod difference;
mod fields;
mod load;
mod problem;
mod reference;
mod render;
mod resolved;
mod schema;
mod tree;

pub use classes::ReadClasses;
pub use difference::leaves_of;
pub use load::{folders_above, load, load_for_check};
pub use problem::Problem;
pub use reference::markdown_reference;
pub use resolved::Resolved;
pub use schema::*;
pub use tree::Origin;

/// The result of reading a config. Its error has the kind that decides the exit code.
pub type Result<T, E = fnet_protocol::message::Failure> = std::result::Result<T, E>;

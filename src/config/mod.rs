//! Typed configuration of a job.

mod schema;

pub use schema::*;

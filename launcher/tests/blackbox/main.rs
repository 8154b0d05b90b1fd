//! Black-box tests of the real launcher with a worker that fails as it is told.

mod starting;
mod supervision;
mod support;

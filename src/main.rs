//! The worker: one rank.
fn main() {}

//! Builds the C++ bridge.
fn main() {}

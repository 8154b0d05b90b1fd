//! Commands beside training and testing.

pub mod flops;

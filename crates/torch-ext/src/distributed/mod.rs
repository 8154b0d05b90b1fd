//! c10d, the distributed runtime of libtorch: the store through which ranks meet, process groups with their
//! collectives, and the reducer that averages gradients during the backward pass.
//!
//! Every failure of a peer, of the store or of a collective is an error of kind [`crate::ErrorKind::Collective`].

mod byte_transport;
mod connections;
mod group;
mod nccl;
mod reducer;
mod store;

pub use byte_transport::ByteTransport;
pub use group::{Aborter, GlooOptions, ProcessGroup, Reduction, Work};
pub use reducer::{BucketSizes, Reducer};
pub use store::{StoreOptions, TcpStore};

use std::ffi::CString;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};

/// A duration as the bridge takes it; at least a millisecond, because zero would mean "forever" to c10d.
fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX).max(1)
}

fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::new(ErrorKind::Invalid, format!("{text:?} holds a NUL character")))
}

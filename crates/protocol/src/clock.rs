//! The monotonic clock, which all processes of a machine share.

use std::time::Duration;

/// Time since a point in the past that is the same for all processes until the next reboot.
pub fn monotonic() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

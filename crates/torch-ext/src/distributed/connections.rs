//! The TCP connections of a Gloo group, so that they can be cut.
//!
//! Gloo has no way to break a collective off: a rank that waits for one that lives but does not come waits until the
//! deadline. A cut connection is what Gloo sees when a peer dies, and ends the wait with an error; in the middle of a tensor
//! it does not, and cpp/gloo.cpp ends the wait.

use std::collections::HashMap;
use std::fs;
use std::os::fd::RawFd;
use std::os::unix::fs::MetadataExt;

/// Descriptors and inodes of sockets. Those of a group are recognized by the time they were made, so a peer's connection to a store
/// of this process that came in meanwhile counts as one of them.
#[derive(Debug, Default)]
pub(super) struct Connections(HashMap<RawFd, u64>);

impl Connections {
    /// The TCP sockets of this process.
    pub fn now() -> Self {
        let entries = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
        let descriptors = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<RawFd>().ok());
        Self(descriptors.filter(|&fd| is_tcp(fd)).filter_map(|fd| Some((fd, inode(fd)?))).collect())
    }

    /// Those that were not there `before`.
    pub fn since(mut self, before: &Self) -> Self {
        self.0.retain(|fd, inode| before.0.get(fd) != Some(inode));
        self
    }

    /// Cuts them; those that were closed since are left alone.
    pub fn cut(&self) {
        for (&fd, &known) in &self.0 {
            if inode(fd) == Some(known) {
                // SAFETY: shutdown takes a number; on a descriptor that is no connected socket it fails without effect.
                unsafe { libc::shutdown(fd, libc::SHUT_RDWR) };
            }
        }
    }
}

fn inode(fd: RawFd) -> Option<u64> {
    fs::metadata(format!("/proc/self/fd/{fd}")).ok().map(|facts| facts.ino())
}

fn is_tcp(fd: RawFd) -> bool {
    let option = |name: libc::c_int| {
        let (mut value, mut length) = (0_i32, size_of::<i32>() as libc::socklen_t);
        // SAFETY: both out-pointers live through the call, and the length is that of the value.
        let failed = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, name, (&raw mut value).cast(), &raw mut length) };
        (failed == 0).then_some(value)
    };
    option(libc::SO_PROTOCOL) == Some(libc::IPPROTO_TCP) && option(libc::SO_ACCEPTCONN) == Some(0)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn only_the_connections_made_meanwhile_are_cut() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connect = || {
            let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (near, listener.accept().unwrap().0)
        };
        let old = connect();
        let before = Connections::now();
        let mut new = connect();
        let made = Connections::now().since(&before);
        made.cut();
        assert_eq!(new.1.read(&mut [0]).unwrap(), 0, "the other end sees the end");
        old.0.set_nonblocking(true).unwrap();
        assert_eq!((&old.0).read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }
}

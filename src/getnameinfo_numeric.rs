//! Keeps c10d from resolving host names.
//!
//! c10d looks up the names of both ends of every connection for its messages, even for messages that are not printed. If the
//! name service is slow or unreachable, each connection would wait for it, 5 seconds or more at a time. This function takes
//! precedence over that of the C library, also in libtorch.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;

type GetNameInfo = unsafe extern "C" fn(
    *const libc::sockaddr,
    libc::socklen_t,
    *mut c_char,
    libc::socklen_t,
    *mut c_char,
    libc::socklen_t,
    c_int,
) -> c_int;

/// The C library's `getnameinfo` without name lookups.
///
/// # Safety
/// As for the C library's function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getnameinfo(
    address: *const libc::sockaddr,
    length: libc::socklen_t,
    host: *mut c_char,
    host_length: libc::socklen_t,
    service: *mut c_char,
    service_length: libc::socklen_t,
    flags: c_int,
) -> c_int {
    static NEXT: OnceLock<Option<GetNameInfo>> = OnceLock::new();
    const NAME: &CStr = c"getnameinfo";
    let next = NEXT.get_or_init(|| {
        // SAFETY: NAME is a valid C string; the result is null or the C library's function, which has this signature.
        unsafe {
            let found: *mut c_void = libc::dlsym(libc::RTLD_NEXT, NAME.as_ptr());
            std::mem::transmute::<*mut c_void, Option<GetNameInfo>>(found)
        }
    });
    match next {
        // SAFETY: the caller keeps the contract of the C library's function.
        Some(next) => unsafe {
            let numeric = (flags & !libc::NI_NAMEREQD) | libc::NI_NUMERICHOST;
            next(address, length, host, host_length, service, service_length, numeric)
        },
        None => libc::EAI_SYSTEM,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_always_numeric() {
        // SAFETY: all zeroes is a valid `sockaddr_in`.
        let mut address: libc::sockaddr_in = unsafe { std::mem::zeroed() };
        address.sin_family = libc::AF_INET as libc::sa_family_t;
        address.sin_addr.s_addr = u32::from(std::net::Ipv4Addr::LOCALHOST).to_be();
        for flags in [0, libc::NI_NAMEREQD] {
            let mut host = [0 as c_char; 64];
            let none = std::ptr::null_mut();
            let length = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            // SAFETY: the address and the buffer have these lengths and outlive the call.
            let code =
                unsafe { getnameinfo((&raw const address).cast(), length, host.as_mut_ptr(), 64, none, 0, flags) };
            assert_eq!(code, 0);
            // SAFETY: on success the buffer contains a C string.
            let host = unsafe { CStr::from_ptr(host.as_ptr()) };
            assert_eq!(host.to_str().unwrap(), "127.0.0.1", "not localhost");
        }
    }
}

//! The stack of the main thread, captured by another thread while the main thread is busy or blocked.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Maximum number of frames.
const DEPTH: usize = 48;
/// Time for the main thread to handle the signal; a thread that is blocked in the kernel does not.
const SIGNAL_TIMEOUT: Duration = Duration::from_secs(1);

// A signal handler can access only statics.
static FRAMES: [AtomicUsize; DEPTH] = [const { AtomicUsize::new(0) }; DEPTH];
static COUNT: AtomicUsize = AtomicUsize::new(0);
/// Where the main thread was interrupted.
static INTERRUPTED: AtomicUsize = AtomicUsize::new(0);
static DONE: AtomicBool = AtomicBool::new(false);

/// Runs on the main thread. It stores addresses only; the requesting thread looks up the names.
extern "C" fn on_signal(_signal: libc::c_int, _facts: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let mut count = 0;
    // SAFETY: with SA_SIGINFO the third argument is the context of the interrupted thread.
    let context = unsafe { &*context.cast::<libc::ucontext_t>() };
    #[cfg(target_arch = "x86_64")]
    let address = context.uc_mcontext.gregs[libc::REG_RIP as usize] as usize;
    #[cfg(target_arch = "aarch64")]
    let address = context.uc_mcontext.pc as usize;
    INTERRUPTED.store(address, Ordering::Relaxed);
    // SAFETY: no other thread unwinds with this crate meanwhile, for `of_main_thread` waits. Unwinding reads the stack and
    // the tables of the loaded libraries; it does not allocate.
    unsafe {
        backtrace::trace_unsynchronized(|frame| {
            FRAMES[count].store(frame.ip() as usize, Ordering::Relaxed);
            count += 1;
            count < DEPTH
        });
    }
    COUNT.store(count, Ordering::Relaxed);
    DONE.store(true, Ordering::Release);
}

/// The stack of the main thread, innermost frame first, or why there is none. Meant for a process that is about to be
/// killed: if the main thread is inside the dynamic loader, it may deadlock.
pub(crate) fn of_main_thread() -> String {
    let number = libc::SIGRTMIN() + 5;
    // SAFETY: all zeroes is a valid `sigaction` (no flags, empty mask).
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_signal as *const () as libc::sighandler_t;
    action.sa_flags = libc::SA_RESTART | libc::SA_SIGINFO;
    DONE.store(false, Ordering::Release);
    // SAFETY: `action` is initialized, and its handler is async-signal-safe.
    if unsafe { libc::sigaction(number, &raw const action, std::ptr::null_mut()) } != 0 {
        return format!("no stack: {}", std::io::Error::last_os_error());
    }
    // SAFETY: the id of the main thread is that of the process, and a handler for the signal is installed.
    let sent = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), libc::getpid(), number) };
    if sent != 0 {
        return format!("no stack: {}", std::io::Error::last_os_error());
    }
    let deadline = Instant::now() + SIGNAL_TIMEOUT;
    while !DONE.load(Ordering::Acquire) {
        if Instant::now() >= deadline {
            return "no stack: the main thread does not handle signals; it is stopped or blocked in the kernel"
                .to_owned();
        }
        thread::sleep(Duration::from_millis(2));
    }
    let frames: Vec<usize> =
        FRAMES.iter().take(COUNT.load(Ordering::Relaxed)).map(|frame| frame.load(Ordering::Relaxed)).collect();
    // Skip the frames of the handler.
    let first = frames.iter().position(|&frame| frame == INTERRUPTED.load(Ordering::Relaxed)).unwrap_or(0);
    let lines =
        frames[first..].iter().enumerate().map(|(number, &address)| format!("{number}: {}\n", describe(address)));
    lines.collect()
}

/// Name and location of the function that contains an address.
fn describe(address: usize) -> String {
    let mut text = format!("{address:#x}");
    // A return address may belong to the next function.
    backtrace::resolve(address.saturating_sub(1) as *mut std::ffi::c_void, |symbol| {
        if let Some(name) = symbol.name() {
            text = format!("{name:#}");
        }
        if let (Some(file), Some(line)) = (symbol.filename(), symbol.lineno()) {
            text += &format!(" at {}:{line}", file.display());
        }
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_harness_waits_for_its_tests_on_the_main_thread() {
        let text = of_main_thread();
        assert!(text.contains("test") || text.contains("wait") || text.contains("recv"), "{text}");
        assert!(text.starts_with("0: "), "{text}");
    }
}

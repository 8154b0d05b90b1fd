//! Information from the operating system about this process and its device: age, memory, CPUs, pending work.

use std::fs;
use std::io::Write;
use std::sync::OnceLock;
use std::time::Duration;

use rustix::thread::CpuSet;
use tch::Device;

use fnet_protocol::cli::CpuList;
use fnet_protocol::outlet;

use crate::error::Result;

/// Peak memory in bytes: libtorch's memory on a GPU, or this process's resident memory on the CPU.
pub fn peak_memory(device: Device) -> u64 {
    match device {
        Device::Cuda(index) => {
            let statistics = torch_ext::cuda::memory(index).unwrap_or_default();
            u64::try_from(statistics.allocated_peak).unwrap_or(0)
        }
        _ => peak_resident_memory(),
    }
}

static RETURN_MEMORY: OnceLock<fn()> = OnceLock::new();

/// Sets what [`return_memory`] does in a program with an allocator of its own.
pub fn set_return_memory(how: fn()) {
    RETURN_MEMORY.get_or_init(|| how);
}

/// Returns freed memory to the system, after work on a large file whose memory nothing else needs.
pub fn return_memory() {
    match RETURN_MEMORY.get() {
        Some(how) => how(),
        #[cfg(target_env = "gnu")]
        // SAFETY: the call has no preconditions.
        None => _ = unsafe { libc::malloc_trim(0) },
        #[cfg(not(target_env = "gnu"))]
        None => {}
    }
}

static CPUS: OnceLock<CpuSet> = OnceLock::new();

/// Keeps threads from being pinned to a single CPU. Call this before any computation: with OMP_PROC_BIND or
/// GOMP_CPU_AFFINITY, OpenMP pins the thread that starts its first team to one CPU, and all threads that this thread starts
/// later inherit that.
pub fn keep_cpus_from_openmp() {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    if is_set("OMP_PROC_BIND") || is_set("GOMP_CPU_AFFINITY") {
        remember_cpus();
        // It fails only if the pool exists already.
        let _ = rayon::ThreadPoolBuilder::new().start_handler(|_| use_all_cpus()).build_global();
    }
}

fn remember_cpus() {
    if let Ok(cpus) = rustix::thread::sched_getaffinity(None) {
        CPUS.get_or_init(|| cpus);
    }
}

/// Lets this thread use all CPUs of the process, if OpenMP may have pinned its parent thread.
pub fn use_all_cpus() {
    if let Some(cpus) = CPUS.get() {
        // A failure only costs speed.
        let _ = rustix::thread::sched_setaffinity(None, cpus);
    }
}

/// The CPUs that this thread may use, such as `0-7,16-23`; empty if unknown.
pub fn cpus() -> String {
    let Ok(set) = rustix::thread::sched_getaffinity(None) else { return String::new() };
    CpuList::from_iter((0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu))).to_string()
}

/// Waits until a GPU has finished all work of this thread. Returns immediately on the CPU.
/// Errors: an error of the device since the last wait.
pub fn synchronize(device: Device) -> Result<()> {
    Ok(torch_ext::cuda::wait(device)?)
}

/// Flushes output and ends the process with an exit code, without running destructors of libraries: those of libtorch, CUDA
/// and NCCL may wait for a lost peer or crash because of running threads, and would then hide the exit code.
pub fn end(code: i32) -> ! {
    // Has a timeout, in case nothing reads the output.
    outlet::flush_all();
    // A closed pipe must not hide the exit code.
    let _ = std::io::stdout().flush();
    // SAFETY: a null pointer means all C output streams; _exit takes a number and does not return.
    unsafe {
        libc::fflush(std::ptr::null_mut());
        libc::_exit(code)
    }
}

fn peak_resident_memory() -> u64 {
    // SAFETY: all zeroes is a valid `rusage`.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` outlives the call, which only writes to it.
    if unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) } != 0 {
        return 0;
    }
    // Linux counts kilobytes.
    u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024
}

/// Time since this process was started, to a hundredth of a second; `None` if unknown.
pub fn age() -> Option<Duration> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    // The program name is in parentheses and may contain spaces; the start time is the twentieth field after it.
    let started: f64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    let now: f64 = uptime.split_whitespace().next()?.parse().ok()?;
    // SAFETY: sysconf takes a number and returns one.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    (ticks > 0).then(|| Duration::try_from_secs_f64(now - started / ticks as f64).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_started_by_a_pinned_one_can_use_all_cpus_again() {
        remember_cpus();
        let all = cpus();
        let of_child = std::thread::spawn(move || {
            let mut one = CpuSet::new();
            let set = rustix::thread::sched_getaffinity(None).unwrap();
            one.set((0..CpuSet::MAX_CPU).find(|&cpu| set.is_set(cpu)).unwrap());
            rustix::thread::sched_setaffinity(None, &one).unwrap();
            // Like a loader thread, which the pinned thread starts.
            std::thread::spawn(|| (cpus(), [use_all_cpus()], cpus())).join().unwrap()
        });
        let (before, _, after) = of_child.join().unwrap();
        assert!(before.parse::<usize>().is_ok(), "one CPU: {before}");
        assert_eq!(after, all);
    }

    #[test]
    fn the_age_and_memory_of_this_process_are_plausible() {
        assert!(peak_memory(Device::Cpu) > 1 << 20);
        assert!(age().unwrap() < Duration::from_secs(3600));
    }
}

//! Describes the machine, for the head of a log.

use torch_ext::cuda;

use fnet_common::process;

/// Lines of `name: value`: fnet, host, system, processors, memory, then the caller's entries.
pub fn describe(more: &[(String, String)]) -> String {
    let system = rustix::system::uname();
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = rustix::system::sysinfo();
    let bytes = memory.totalram as f64 * f64::from(memory.mem_unit.max(1));
    let own = [
        ("fnet", env!("CARGO_PKG_VERSION").to_owned()),
        ("Host", system.nodename().to_string_lossy().into_owned()),
        ("System", format!("{} {}", system.sysname().to_string_lossy(), system.release().to_string_lossy())),
        ("Processors", processors.to_string()),
        ("CPUs of this worker", process::cpus()),
        ("Memory", format!("{:.1} GB", bytes / 1e9)),
        ("CUDA", cuda()),
    ];
    let own = own.into_iter().map(|(name, value)| (name.to_owned(), value));
    own.chain(more.iter().cloned()).map(|(name, value)| format!("{name}: {value}")).collect::<Vec<_>>().join("\n")
}

/// The CUDA version of libtorch and the number of visible GPUs. A process on the CPU does not load CUDA for this.
fn cuda() -> String {
    if !cuda::is_loaded() {
        return "not used".to_owned();
    }
    let devices = cuda::device_count().map_or_else(|error| error.to_string(), |count| format!("{count} visible"));
    format!("{} ({devices})", cuda::TORCH_CUDA_VERSION)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_names_fnet_the_host_and_the_callers_entries() {
        let text = describe(&[("World size".into(), "2".into())]);
        assert!(text.starts_with("fnet: ") && text.contains("\nHost: ") && text.ends_with("\nWorld size: 2"), "{text}");
        assert!(text.contains("\nCUDA: not used\n"), "{text}");
        assert!(!text.contains("Processors: 0") && !text.contains("Memory: 0.0"), "{text}");
    }
}

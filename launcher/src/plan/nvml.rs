//! The driver's view of the GPUs, queried by a separate process, because a broken driver may crash or block its caller.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::{EccCounter, MemoryError};
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use serde::{Deserialize, Serialize};

use super::gpu;

/// First argument with which this program queries the driver.
pub const ARGUMENT: &str = "__gpus";
/// The driver's library; the name without a version belongs to development packages.
const LIBRARY: &str = "libnvidia-ml.so.1";

/// Children that were killed and may still be stuck in the driver.
static KILLED: Mutex<Vec<Child>> = Mutex::new(Vec::new());

/// The driver's report.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriverReport {
    /// Version of the driver, for example `580.82.07`.
    pub driver: Option<String>,
    /// The newest supported CUDA version, for example `13.0`.
    pub cuda: Option<String>,
    /// The GPUs, in the order of nvidia-smi.
    pub gpus: Vec<GpuState>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuState {
    /// Model.
    pub name: String,
    pub uuid: Option<String>,
    /// Its compute capability, (major, minor).
    pub capability: Option<(i32, i32)>,
    /// Total memory in bytes.
    pub memory_total: u64,
    /// Free memory in bytes.
    pub memory_free: u64,
    /// Percent of the time in which kernels ran.
    #[serde(default)]
    pub busy_percent: Option<u32>,
    /// Whether persistence mode is on.
    pub persistent: Option<bool>,
    /// Whether several processes may use it at a time.
    pub shared: Option<bool>,
    /// Uncorrectable memory errors since the last reboot.
    pub ecc_errors: Option<u64>,
    /// Whether it needs a reset to retire damaged memory.
    pub needs_reset: Option<bool>,
    /// Processes that use it.
    pub processes: Vec<GpuProcess>,
}

impl GpuState {
    /// The GPU of each entry of CUDA_VISIBLE_DEVICES, see [`gpu::locate`].
    pub fn locate<'a>(entries: &[String], found: &'a [Self], by_bus: bool) -> Vec<Option<&'a Self>> {
        let is_named = |gpu: &Self, entry: &str| gpu.uuid.as_ref().is_some_and(|uuid| uuid.starts_with(entry));
        gpu::locate(entries, found, by_bus, |gpu| &gpu.name, is_named)
    }
}

/// A process that uses a GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuProcess {
    /// Its id; in a container it may be that of a process outside.
    pub pid: u32,
    /// Its program, if known.
    pub program: Option<String>,
    /// Memory in bytes, if known.
    pub memory: Option<u64>,
}

/// The child process: queries the driver and prints the report or an error as one line of JSON.
pub fn run() {
    let answer: Result<DriverReport, String> = ask().map_err(|error| error.to_string());
    if let Ok(line) = serde_json::to_string(&answer) {
        println!("{line}");
    }
}

fn ask() -> Result<DriverReport, NvmlError> {
    let nvml = Nvml::builder().lib_path(LIBRARY.as_ref()).init()?;
    let count = nvml.device_count()?;
    Ok(DriverReport {
        driver: nvml.sys_driver_version().ok(),
        cuda: nvml.sys_cuda_driver_version().ok().map(|version| format!("{}.{}", version / 1000, version % 1000 / 10)),
        gpus: (0..count).map(|index| state(&nvml, index)).collect::<Result<_, _>>()?,
    })
}

/// The state of a GPU; only its memory is always known.
fn state(nvml: &Nvml, index: u32) -> Result<GpuState, NvmlError> {
    use nvml_wrapper::enum_wrappers::device::ComputeMode;

    let device = nvml.device_by_index(index)?;
    let memory = device.memory_info()?;
    let process = |process: nvml_wrapper::struct_wrappers::device::ProcessInfo| GpuProcess {
        pid: process.pid,
        program: nvml.sys_process_name(process.pid, 128).ok().filter(|name| !name.is_empty()),
        memory: match process.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(bytes),
            UsedGpuMemory::Unavailable => None,
        },
    };
    Ok(GpuState {
        name: device.name().unwrap_or_default(),
        uuid: device.uuid().ok(),
        capability: device.cuda_compute_capability().ok().map(|found| (found.major, found.minor)),
        memory_total: memory.total,
        memory_free: memory.free,
        busy_percent: device.utilization_rates().ok().map(|rates| rates.gpu),
        persistent: device.is_in_persistent_mode().ok(),
        shared: device.compute_mode().ok().map(|mode| mode == ComputeMode::Default),
        ecc_errors: device.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile).ok(),
        needs_reset: device.are_pages_pending_retired().ok(),
        processes: device.running_compute_processes().unwrap_or_default().into_iter().map(process).collect(),
    })
}

/// A query in progress.
pub struct Query {
    child: Child,
    answer: mpsc::Receiver<String>,
}

impl Query {
    /// Starts the child process, unless an earlier one is still stuck.
    pub fn start() -> Result<Self, String> {
        if !collect_killed() {
            return Err("the driver blocks an earlier query, which was killed".to_owned());
        }
        Self::of(Command::new(std::env::current_exe().map_err(|error| error.to_string())?).arg(ARGUMENT))
    }

    fn of(command: &mut Command) -> Result<Self, String> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|error| error.to_string())?;
        let (sender, answer) = mpsc::sync_channel(1);
        if let Some(mut stdout) = child.stdout.take() {
            // The thread ends with the child, or with this process if the child cannot be killed.
            thread::spawn(move || {
                let mut text = String::new();
                if stdout.read_to_string(&mut text).is_ok() {
                    let _ = sender.send(text);
                }
            });
        }
        Ok(Self { child, answer })
    }

    /// The answer, if it arrives before `deadline`.
    pub fn wait(mut self, deadline: Instant) -> Result<DriverReport, String> {
        let timeout = deadline.saturating_duration_since(Instant::now());
        match self.answer.recv_timeout(timeout) {
            Ok(text) => {
                let _ = self.child.wait();
                serde_json::from_str(&text).unwrap_or_else(|_| Err("the driver's library crashed".to_owned()))
            }
            Err(error) => {
                kill(self.child);
                Err(match error {
                    mpsc::RecvTimeoutError::Disconnected => "the driver's library crashed".to_owned(),
                    mpsc::RecvTimeoutError::Timeout => {
                        format!("the driver did not answer within {:.1} s", timeout.as_secs_f64())
                    }
                })
            }
        }
    }
}

/// Kills a child. It may be stuck in the driver, so its exit is not awaited.
fn kill(mut child: Child) {
    let _ = child.kill();
    KILLED.lock().unwrap_or_else(PoisonError::into_inner).push(child);
    collect_killed();
}

/// Reaps the killed children that have exited; whether none is left.
fn collect_killed() -> bool {
    let mut killed = KILLED.lock().unwrap_or_else(PoisonError::into_inner);
    killed.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    killed.is_empty()
}

pub fn query(timeout: Duration) -> Result<DriverReport, String> {
    let deadline = Instant::now() + timeout;
    Query::start()?.wait(deadline)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, timeout: Duration) -> (Result<DriverReport, String>, Duration) {
        let started = Instant::now();
        let query = Query::of(Command::new("/bin/sh").args(["-c", script])).unwrap();
        (query.wait(started + timeout), started.elapsed())
    }

    #[test]
    fn a_driver_that_hangs_or_crashes_is_reported_without_waiting() {
        let (answer, took) = shell("sleep 60", Duration::from_millis(100));
        assert!(answer.unwrap_err().contains("did not answer within 0.1 s"));
        assert!(took < Duration::from_secs(20), "{took:?}");
        let deadline = Instant::now() + Duration::from_secs(30);
        while !collect_killed() {
            assert!(Instant::now() < deadline, "the killed child is not reaped");
            thread::sleep(Duration::from_millis(1));
        }
        for script in ["kill -SEGV $$", "echo nonsense"] {
            let (answer, _) = shell(script, Duration::from_secs(30));
            assert_eq!(answer.unwrap_err(), "the driver's library crashed");
        }
    }

    #[test]
    fn what_the_child_prints_is_what_the_parent_reads() {
        let process = GpuProcess { pid: 7, program: Some("python".into()), memory: None };
        let gpu =
            GpuState { name: "Card".into(), memory_free: 1 << 30, processes: vec![process], ..GpuState::default() };
        let report = DriverReport { driver: Some("580.1".into()), cuda: Some("13.0".into()), gpus: vec![gpu] };
        for answer in [Ok(report), Err("no library".to_owned())] {
            let line = serde_json::to_string(&answer).unwrap();
            let (read, _) = shell(&format!("echo '{line}'"), Duration::from_secs(30));
            assert_eq!(read, answer);
        }
    }
}

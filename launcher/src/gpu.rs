//! Which GPUs this machine has, without any CUDA library.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// What was found, and where it was looked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Detection {
    /// Name of each GPU, in the driver's order.
    pub gpus: Vec<String>,
    /// Version line of the kernel driver.
    pub driver: Option<String>,
    /// One line for each place that was looked at.
    pub looked: Vec<String>,
}

/// nvidia-smi hangs on some broken drivers.
const SMI_PATIENCE: Duration = Duration::from_secs(5);

/// Looks at the device files and the driver's entries below `root` (`/`), and asks nvidia-smi if those show nothing.
pub fn detect(root: &Path) -> Detection {
    let version = fs::read_to_string(root.join("proc/driver/nvidia/version")).unwrap_or_default();
    let driver = version.lines().next().map(|line| line.trim_start_matches("NVRM version:").trim().to_owned());
    let mut found = Detection { driver, ..Detection::default() };
    let devices = device_files(root);
    let names = driver_names(root);
    found.looked.push(format!("/dev/nvidia0, /dev/nvidia1, ...: {}", or_none(devices.len())));
    found.looked.push(format!("/proc/driver/nvidia/gpus: {}", or_none(names.len())));
    // A container may be given fewer device files than the driver lists; only those can be used.
    found.gpus = if devices.len() == names.len() { names } else { vec!["NVIDIA GPU".to_owned(); devices.len()] };
    if found.gpus.is_empty() {
        match nvidia_smi() {
            Ok(gpus) => {
                found.looked.push(format!("nvidia-smi -L: {}", or_none(gpus.len())));
                found.gpus = gpus;
            }
            Err(why) => found.looked.push(format!("nvidia-smi -L: {why}")),
        }
    }
    found
}

fn or_none(count: usize) -> String {
    if count == 0 { "none".to_owned() } else { format!("{count} found") }
}

/// `/dev/nvidiaN`, by number.
fn device_files(root: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(root.join("dev")) else { return Vec::new() };
    let mut numbered: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let number = entry.file_name().to_str()?.strip_prefix("nvidia")?.parse().ok()?;
            Some((number, entry.path()))
        })
        .collect();
    numbered.sort();
    numbered.into_iter().map(|(_, path)| path).collect()
}

/// Names from `/proc/driver/nvidia/gpus/<PCI address>/information`, by address.
fn driver_names(root: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(root.join("proc/driver/nvidia/gpus")) else { return Vec::new() };
    let mut folders: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    folders.sort();
    let name = |folder: PathBuf| {
        let text = fs::read_to_string(folder.join("information")).unwrap_or_default();
        let model = text.lines().find_map(|line| line.strip_prefix("Model:")).map(str::trim);
        model.unwrap_or("NVIDIA GPU").to_owned()
    };
    folders.into_iter().map(name).collect()
}

fn nvidia_smi() -> Result<Vec<String>, String> {
    let mut child = Command::new("nvidia-smi")
        .arg("-L")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(
            |error| if error.kind() == std::io::ErrorKind::NotFound { "not on PATH".into() } else { error.to_string() },
        )?;
    let deadline = Instant::now() + SMI_PATIENCE;
    while child.try_wait().map_err(|error| error.to_string())?.is_none() {
        if Instant::now() > deadline {
            // It may be stuck in the driver and not die; it is not waited for.
            let _ = child.kill();
            return Err(format!("no answer in {} s: the driver hangs", SMI_PATIENCE.as_secs()));
        }
        thread::sleep(Duration::from_millis(10));
    }
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(format!("failed ({})", output.status));
    }
    Ok(parse_smi(&String::from_utf8_lossy(&output.stdout)))
}

/// Lines such as `GPU 0: NVIDIA H100 (UUID: GPU-...)`.
fn parse_smi(text: &str) -> Vec<String> {
    let name = |line: &str| {
        let (_, name) = line.strip_prefix("GPU ")?.split_once(": ")?;
        Some(name.split(" (UUID").next().unwrap_or(name).to_owned())
    };
    text.lines().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drivers_entries_name_the_gpus() {
        let root = tempfile::tempdir().unwrap();
        for (number, address) in ["0000:1b:00.0", "0000:05:00.0"].iter().enumerate() {
            let folder = root.path().join("proc/driver/nvidia/gpus").join(address);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("information"), format!("Model: \t\t Card {address}\nIRQ: 1\n")).unwrap();
            fs::create_dir_all(root.path().join("dev")).unwrap();
            fs::write(root.path().join(format!("dev/nvidia{number}")), "").unwrap();
        }
        fs::write(root.path().join("dev/nvidiactl"), "").unwrap();
        let found = detect(root.path());
        assert_eq!(found.gpus, ["Card 0000:05:00.0", "Card 0000:1b:00.0"]);
        assert_eq!(found.driver, None);
        fs::remove_file(root.path().join("dev/nvidia1")).unwrap();
        assert_eq!(detect(root.path()).gpus, ["NVIDIA GPU"], "a container with one of two");
    }

    #[test]
    fn the_answer_of_nvidia_smi_is_understood() {
        let text = "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)\n  MIG 1g Device 0: (UUID: MIG-2)\n";
        assert_eq!(parse_smi(text), ["NVIDIA H100 80GB HBM3"]);
    }
}

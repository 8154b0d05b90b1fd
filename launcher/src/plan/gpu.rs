//! The GPUs of this machine, detected without CUDA libraries.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::bind::Near;
use super::topology;
use crate::child::{self, Failure};

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gpu {
    /// Its model.
    pub name: String,
    /// Its PCI address in the kernel's notation, `0000:1b:00.0`, if known.
    pub address: Option<String>,
    /// Its UUID, if known.
    pub uuid: Option<String>,
    /// UUIDs of its MIG slices; such a GPU is used by slices only, and CUDA numbers none but the first.
    pub slices: Vec<String>,
}

impl Gpu {
    /// Whether an entry of CUDA_VISIBLE_DEVICES, other than a number, means this GPU or a slice of it.
    pub fn is_named(&self, entry: &str) -> bool {
        self.uuid.iter().chain(&self.slices).any(|uuid| uuid.starts_with(entry))
    }

    /// The GPU of each entry of CUDA_VISIBLE_DEVICES, see [`locate`].
    pub fn locate<'a>(entries: &[String], found: &'a [Self], by_bus: bool) -> Vec<Option<&'a Self>> {
        locate(entries, found, by_bus, |gpu| &gpu.name, Self::is_named)
    }

    fn unknown() -> Self {
        Self { name: "NVIDIA GPU".to_owned(), ..Self::default() }
    }
}

/// The GPUs found, and where they were looked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Detection {
    /// The usable GPUs, in the order of their PCI addresses, as in nvidia-smi.
    pub gpus: Vec<Gpu>,
    /// Version line of the kernel driver.
    pub driver: Option<String>,
    /// One line per place that was searched.
    pub looked: Vec<String>,
}

/// Time limit of nvidia-smi, which hangs on some broken drivers.
const SMI_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads the device files and the driver's entries below `root` (`/`), and asks nvidia-smi if there are none.
pub fn detect(root: &Path) -> Detection {
    let version = fs::read_to_string(root.join("proc/driver/nvidia/version")).unwrap_or_default();
    let driver = version.lines().next().map(|line| line.trim_start_matches("NVRM version:").trim().to_owned());
    let mut found = Detection { driver, ..Detection::default() };
    let devices = device_files(root);
    let listed = driver_entries(root);
    found.looked.push(format!("/dev/nvidia0, /dev/nvidia1, ...: {}", or_none(devices.len())));
    found.looked.push(format!("/proc/driver/nvidia/gpus: {}", or_none(listed.len())));
    found.gpus = usable(&devices, listed);
    let sliced = has_slices(root);
    if found.gpus.is_empty() || sliced {
        match nvidia_smi() {
            Ok(gpus) => {
                found.looked.push(format!("nvidia-smi -L: {}", or_none(gpus.len())));
                take_slices(&mut found.gpus, gpus);
            }
            Err(why) => found.looked.push(format!("nvidia-smi -L: {why}")),
        }
    }
    found
}

/// Whether a GPU is cut into MIG slices. Only the driver's library knows their names.
fn has_slices(root: &Path) -> bool {
    let entries = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let is = |path: &Path, start: &str| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(start));
    entries(&root.join("proc/driver/nvidia/capabilities"))
        .filter(|gpu| is(gpu, "gpu"))
        .any(|gpu| entries(&gpu.join("mig")).any(|slice| is(&slice, "gi")))
}

/// Adds to the GPUs that were found what nvidia-smi tells of them, or takes its GPUs if none were found.
fn take_slices(gpus: &mut Vec<Gpu>, told: Vec<Gpu>) {
    if gpus.len() != told.len() {
        *gpus = told;
        return;
    }
    for (gpu, told) in gpus.iter_mut().zip(told) {
        gpu.uuid = gpu.uuid.take().or(told.uuid);
        gpu.slices = told.slices;
    }
}

fn or_none(count: usize) -> String {
    if count == 0 { "none".to_owned() } else { format!("{count} found") }
}

/// A container may have fewer device files than the driver lists; only those GPUs are usable.
fn usable(devices: &[u32], listed: Vec<(Option<u32>, Gpu)>) -> Vec<Gpu> {
    let same_count = listed.len() == devices.len();
    let given: Vec<Gpu> = listed
        .into_iter()
        .filter(|(minor, _)| same_count || minor.is_some_and(|minor| devices.contains(&minor)))
        .map(|(_, gpu)| gpu)
        .collect();
    if given.len() == devices.len() { given } else { vec![Gpu::unknown(); devices.len()] }
}

/// Numbers of `/dev/nvidiaN`, ascending.
fn device_files(root: &Path) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(root.join("dev")) else { return Vec::new() };
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_prefix("nvidia")?.parse().ok();
    let mut numbers: Vec<u32> = entries.filter_map(|entry| number(entry.ok()?)).collect();
    numbers.sort_unstable();
    numbers
}

/// The GPUs in `/proc/driver/nvidia/gpus/<PCI address>/information` in the order of their addresses, with the numbers of
/// their device files.
fn driver_entries(root: &Path) -> Vec<(Option<u32>, Gpu)> {
    let Ok(entries) = fs::read_dir(root.join("proc/driver/nvidia/gpus")) else { return Vec::new() };
    let mut folders: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    folders.sort();
    let entry = |folder: PathBuf| {
        let text = fs::read_to_string(folder.join("information")).unwrap_or_default();
        let field =
            |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(|text| text.trim().to_owned());
        let gpu = Gpu {
            name: field("Model:").unwrap_or_else(|| Gpu::unknown().name),
            address: folder.file_name().map(|name| name.to_string_lossy().to_ascii_lowercase()),
            uuid: field("GPU UUID:").filter(|uuid| uuid.starts_with("GPU-") && !uuid.contains('?')),
            slices: Vec::new(),
        };
        (field("Device Minor:").and_then(|minor| minor.parse().ok()), gpu)
    };
    folders.into_iter().map(entry).collect()
}

/// The GPU of each entry of CUDA_VISIBLE_DEVICES. `by_bus` tells whether CUDA orders GPUs by PCI address; otherwise it puts
/// the fastest first, which is the same order only for equal models.
pub fn locate<'a, G>(
    entries: &[String],
    found: &'a [G],
    by_bus: bool,
    model: impl Fn(&G) -> &String,
    is_named: impl Fn(&G, &str) -> bool,
) -> Vec<Option<&'a G>> {
    let alike = found.windows(2).all(|pair| model(&pair[0]) == model(&pair[1]));
    let of = |entry: &String| match entry.parse::<usize>() {
        Ok(index) => found.get(index).filter(|_| by_bus || alike),
        Err(_) => found.iter().find(|gpu| is_named(gpu, entry)),
    };
    entries.iter().map(of).collect()
}

/// What is near a GPU, from the kernel's entry of its PCI device below `root`.
pub fn near(root: &Path, gpu: Option<&Gpu>) -> Near {
    let Some(address) = gpu.and_then(|gpu| gpu.address.as_deref()) else { return Near::default() };
    let folder = root.join("sys/bus/pci/devices").join(address);
    let node = fs::read_to_string(folder.join("numa_node")).ok().and_then(|text| text.trim().parse().ok());
    Near { node, cpus: topology::list(&folder.join("local_cpulist")).unwrap_or_default() }
}

fn nvidia_smi() -> Result<Vec<Gpu>, String> {
    let mut command = Command::new("nvidia-smi");
    command.arg("-L");
    match child::ask_blocking(command, SMI_TIMEOUT) {
        Ok(answer) => Ok(parse_smi(&String::from_utf8_lossy(&answer.stdout))),
        Err(Failure::NotStarted(error)) if error.kind() == std::io::ErrorKind::NotFound => Err("not on PATH".into()),
        Err(Failure::TimedOut(time)) => Err(format!("no answer within {} s: the driver hangs", time.as_secs())),
        Err(Failure::Failed(status, _)) => Err(format!("failed ({status})")),
        Err(failure) => Err(failure.text()),
    }
}

/// Lines such as `GPU 0: NVIDIA H100 (UUID: GPU-...)`, each with the lines of its slices after it.
fn parse_smi(text: &str) -> Vec<Gpu> {
    let mut gpus: Vec<Gpu> = Vec::new();
    for line in text.lines() {
        let (name, rest) = line.split_once(" (UUID: ").unwrap_or((line, ""));
        let uuid = rest.trim_end().strip_suffix(')').map(str::to_owned);
        if let Some((_, name)) = name.strip_prefix("GPU ").and_then(|name| name.split_once(": ")) {
            gpus.push(Gpu { name: name.to_owned(), uuid, ..Gpu::default() });
        } else if let (Some(gpu), true) = (gpus.last_mut(), name.trim_start().starts_with("MIG ")) {
            gpu.slices.extend(uuid);
        }
    }
    gpus
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(root: &Path, address: &str, minor: u32) {
        let folder = root.join("proc/driver/nvidia/gpus").join(address);
        fs::create_dir_all(&folder).unwrap();
        let text = format!(
            "Model: \t\t Card {address}\nIRQ:   \t\t 1\nGPU UUID: \t GPU-{minor}-x\nDevice Minor: \t {minor}\n"
        );
        fs::write(folder.join("information"), text).unwrap();
    }

    fn device(root: &Path, number: u32) {
        fs::create_dir_all(root.join("dev")).unwrap();
        fs::write(root.join(format!("dev/nvidia{number}")), "").unwrap();
    }

    fn names(found: &Detection) -> Vec<&str> {
        found.gpus.iter().map(|gpu| gpu.name.as_str()).collect()
    }

    #[test]
    fn the_drivers_entries_are_in_the_order_of_their_addresses() {
        let root = tempfile::tempdir().unwrap();
        // The driver may number device files in another order.
        entry(root.path(), "0000:1b:00.0", 0);
        entry(root.path(), "0000:05:00.0", 1);
        fs::create_dir_all(root.path().join("dev")).unwrap();
        fs::write(root.path().join("dev/nvidiactl"), "").unwrap();
        device(root.path(), 0);
        device(root.path(), 1);
        let found = detect(root.path());
        assert_eq!(names(&found), ["Card 0000:05:00.0", "Card 0000:1b:00.0"]);
        assert_eq!(found.gpus[0].uuid.as_deref(), Some("GPU-1-x"));
        assert_eq!(found.driver, None);
    }

    #[test]
    fn a_container_has_the_gpus_of_its_device_files() {
        let root = tempfile::tempdir().unwrap();
        for (minor, address) in ["0000:05:00.0", "0000:1b:00.0", "0000:2c:00.0"].iter().enumerate() {
            entry(root.path(), address, u32::try_from(minor).unwrap());
        }
        device(root.path(), 2);
        assert_eq!(names(&detect(root.path())), ["Card 0000:2c:00.0"]);
        device(root.path(), 7);
        assert_eq!(names(&detect(root.path())), ["NVIDIA GPU"; 2], "one that the driver does not list");
    }

    #[test]
    fn an_entry_identifies_a_gpu_only_if_the_order_is_known() {
        let gpu = |name: &str, uuid: &str| Gpu {
            name: name.into(),
            address: Some(uuid.into()),
            uuid: Some(uuid.into()),
            slices: vec![],
        };
        let unlike = [gpu("A", "GPU-aa"), gpu("B", "GPU-bb")];
        let alike = [gpu("A", "GPU-aa"), gpu("A", "GPU-bb")];
        let of = |entry: &str, found: &[Gpu], by_bus| {
            Gpu::locate(&[entry.to_owned()], found, by_bus)[0].and_then(|gpu| gpu.address.clone())
        };
        assert_eq!(of("1", &unlike, true).as_deref(), Some("GPU-bb"));
        assert_eq!(of("1", &unlike, false), None, "the fastest comes first");
        assert_eq!(of("1", &alike, false).as_deref(), Some("GPU-bb"));
        assert_eq!(of("GPU-b", &unlike, false).as_deref(), Some("GPU-bb"), "a prefix is enough");
        assert_eq!(of("MIG-1", &unlike, true), None);
    }

    #[test]
    fn what_is_near_a_gpu_is_read_from_its_pci_device() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("sys/bus/pci/devices/0000:1b:00.0");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("numa_node"), "1\n").unwrap();
        fs::write(folder.join("local_cpulist"), "8-15\n").unwrap();
        let gpu = Gpu { address: Some("0000:1b:00.0".into()), ..Gpu::default() };
        assert_eq!(near(root.path(), Some(&gpu)), Near { node: Some(1), cpus: "8-15".parse().unwrap() });
        fs::write(folder.join("numa_node"), "-1\n").unwrap();
        assert_eq!(near(root.path(), Some(&gpu)).node, None);
        assert_eq!(near(root.path(), Some(&Gpu::default())), Near::default());
        assert_eq!(near(root.path(), None), Near::default());
    }

    #[test]
    fn the_answer_of_nvidia_smi_is_understood_slices_included() {
        let text = "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)\n  MIG 1g.10gb     Device  0: (UUID: MIG-2)\n  MIG 2g.20gb     \
                    Device  1: (UUID: MIG-3)\nGPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-4)\n";
        let gpu = |uuid: &str, slices: &[&str]| Gpu {
            name: "NVIDIA H100 80GB HBM3".into(),
            address: None,
            uuid: Some(uuid.into()),
            slices: slices.iter().map(ToString::to_string).collect(),
        };
        assert_eq!(parse_smi(text), [gpu("GPU-1", &["MIG-2", "MIG-3"]), gpu("GPU-4", &[])]);
    }

    #[test]
    fn a_gpu_in_slices_is_known_by_the_drivers_capabilities_and_keeps_its_address() {
        let root = tempfile::tempdir().unwrap();
        assert!(!has_slices(root.path()));
        let mig = root.path().join("proc/driver/nvidia/capabilities/gpu0/mig");
        fs::create_dir_all(&mig).unwrap();
        fs::write(mig.join("config"), "").unwrap();
        assert!(!has_slices(root.path()), "it may be cut, but is not");
        fs::create_dir_all(mig.join("gi7/ci0")).unwrap();
        assert!(has_slices(root.path()));

        let mut gpus = vec![Gpu { address: Some("0000:1b:00.0".into()), ..Gpu::default() }];
        let told = Gpu { uuid: Some("GPU-1".into()), slices: vec!["MIG-2".into()], ..Gpu::default() };
        take_slices(&mut gpus, vec![told]);
        assert_eq!(gpus[0].address.as_deref(), Some("0000:1b:00.0"));
        assert_eq!(
            Gpu::locate(&["MIG-2".into(), "GPU-1".into(), "MIG-3".into()], &gpus, true),
            [Some(&gpus[0]), Some(&gpus[0]), None]
        );
    }
}

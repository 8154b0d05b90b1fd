//! The device of each worker: a pure function of the options, CUDA_VISIBLE_DEVICES and the GPUs found.

use std::ffi::OsString;
use std::thread::available_parallelism;

use fnet_protocol::cli::{Device, Gpus, LaunchOptions};
use fnet_protocol::env;

use super::gpu::{Detection, Gpu};
use crate::error::{Error, Result};
use crate::text;

/// The devices of this node's workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Devices {
    /// A number of workers on the CPU.
    Cpu(usize),
    /// One worker per entry, which is its CUDA_VISIBLE_DEVICES.
    Cuda(Vec<String>),
}

impl Devices {
    /// Number of workers.
    pub fn workers(&self) -> usize {
        match self {
            Devices::Cpu(count) => *count,
            Devices::Cuda(entries) => entries.len(),
        }
    }

    pub fn kind(&self) -> Device {
        match self {
            Devices::Cpu(_) => Device::Cpu,
            Devices::Cuda(_) => Device::Cuda,
        }
    }

    /// The device of the first worker alone.
    #[must_use]
    pub fn first_only(self) -> Self {
        match self {
            Devices::Cpu(_) => Devices::Cpu(1),
            Devices::Cuda(entries) => Devices::Cuda(entries.into_iter().take(1).collect()),
        }
    }
}

/// Maximum number of workers of a node; more is certainly a typo.
const MAX_WORKERS: usize = 1024;

/// The options with the number of workers that Kubernetes' training operators give in PET_NPROC_PER_NODE, unless the command line
/// has one. `auto` and `gpu` change nothing: every PyTorchJob has `auto`, also where it was not asked for.
/// Errors: neither a number nor a word of torchrun (exit code 2).
pub fn with_variable(options: &LaunchOptions, variable: Option<&str>) -> Result<LaunchOptions> {
    let mut options = options.clone();
    let text = variable.map_or("", str::trim);
    let is_default = matches!((text, options.device), ("" | "auto" | "gpu", _) | ("cpu", Some(Device::Cuda)));
    if is_default || options.gpus.is_some() || options.nproc.is_some() {
        return Ok(options);
    }
    let count = match text {
        // As torchrun does.
        "cpu" => available_parallelism().map_or(1, usize::from),
        _ => text.parse().ok().filter(|count| (1..=MAX_WORKERS).contains(count)).ok_or_else(|| {
            let name = env::PET_NPROC_PER_NODE;
            Error::usage(format!("{name}={text}: expected 1 to {MAX_WORKERS} workers, auto, cpu or gpu"))
        })?,
    };
    if text == "cpu" {
        options.device.get_or_insert(Device::Cpu);
    }
    match options.device {
        Some(Device::Cpu) => options.nproc = Some(count),
        _ => options.gpus = Some(Gpus::Count(count)),
    }
    Ok(options)
}

/// Chooses the devices. `found` is called only if GPUs are wanted; `command` is the command in words, for lines to run
/// instead.
/// Errors: options that contradict each other (exit code 2); GPUs that do not exist (exit code 6).
pub fn choose<'a>(
    options: &LaunchOptions,
    visible: Option<&str>,
    found: impl FnOnce() -> &'a Detection,
    command: &[OsString],
) -> Result<Devices> {
    if options.device == Some(Device::Cpu) {
        if let Some(gpus) = &options.gpus {
            return Err(Error::usage(format!("--gpus {gpus} and --device cpu exclude each other; remove one")));
        }
        return match options.nproc.unwrap_or(1) {
            count if (1..=MAX_WORKERS).contains(&count) => Ok(Devices::Cpu(count)),
            count => Err(Error::usage(format!("--nproc {count}: expected 1 to {MAX_WORKERS} workers"))),
        };
    }
    if let Some(count) = options.nproc {
        return Err(Error::usage(format!(
            "--nproc {count} requires --device cpu; for GPUs use --gpus {count}. To run on the CPU:\n  {}",
            cpu_line(Some(count), command)
        )));
    }
    let found = found();
    let usable = usable(visible, &found.gpus)?;
    if usable.is_empty() {
        return Err(none_found(options, visible, found, command));
    }
    pick(options.gpus.as_ref(), usable, visible, command).map(Devices::Cuda)
}

/// Entries of CUDA_VISIBLE_DEVICES that exist; as in CUDA, the first one that does not hides all after it. Slices of a GPU
/// are named by their UUIDs.
/// Errors: the number of a GPU in several slices, which may mean each of them.
fn usable(visible: Option<&str>, found: &[Gpu]) -> Result<Vec<String>> {
    let Some(visible) = visible else {
        let sliced = found.iter().any(|gpu| !gpu.slices.is_empty());
        // Slices shift CUDA's numbers of the GPUs beside them.
        let whole =
            |(index, gpu): (usize, &Gpu)| gpu.uuid.clone().filter(|_| sliced).unwrap_or_else(|| index.to_string());
        let entries = |(index, gpu): (usize, &Gpu)| match gpu.slices.is_empty() {
            true => vec![whole((index, gpu))],
            false => gpu.slices.clone(),
        };
        return Ok(found.iter().enumerate().flat_map(entries).collect());
    };
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let exists = |entry: &&str| match entry.parse::<usize>() {
        Ok(index) => index < found.len(),
        // A UUID; only the driver can tell.
        Err(_) => entry.starts_with("GPU-") || entry.starts_with("MIG-"),
    };
    let entry = |entry: &str| match entry.parse::<usize>().ok().map(|index| &found[index].slices[..]) {
        None | Some([]) => Ok(entry.to_owned()),
        Some([slice]) => Ok(slice.clone()),
        Some(slices) => Err(Error::usage(format!(
            "CUDA_VISIBLE_DEVICES={visible}: GPU {entry} is cut into {} MIG slices, which have no numbers; name those to be \
             used: CUDA_VISIBLE_DEVICES={}",
            slices.len(),
            slices.join(",")
        ))),
    };
    visible.split(',').map(str::trim).take_while(exists).map(entry).collect()
}

/// Refuses workers on two slices of one GPU: NCCL connects GPUs, and refuses the same one twice.
/// Errors: the workers would share a GPU; the message has the line to run on one slice (exit code 6).
pub fn refuse_slices_of_one_gpu(devices: &Devices, found: &[Gpu], command: &[OsString]) -> Result<()> {
    let Devices::Cuda(entries) = devices else { return Ok(()) };
    for (index, gpu) in found.iter().enumerate().filter(|(_, gpu)| gpu.slices.len() > 1) {
        let chosen: Vec<&str> = entries.iter().map(String::as_str).filter(|entry| gpu.is_named(entry)).collect();
        if chosen.len() > 1 {
            let mut line: Vec<OsString> = ["fnet-launch", "--gpus", "1"].map(OsString::from).into();
            line.extend_from_slice(command);
            return Err(Error::environment(format!(
                "{} are MIG slices of one GPU ({index}, {}), and NCCL connects no two slices of a GPU: choose one slice of each \
                 GPU with CUDA_VISIBLE_DEVICES, or end the division (sudo nvidia-smi -mig 0). To run on one slice:\n  {}",
                chosen.join(" and "),
                gpu.name,
                text::shell_line(&line)
            )));
        }
    }
    Ok(())
}

fn pick(gpus: Option<&Gpus>, usable: Vec<String>, visible: Option<&str>, command: &[OsString]) -> Result<Vec<String>> {
    let within = visible.map_or_else(String::new, |visible| format!(" within CUDA_VISIBLE_DEVICES={visible}"));
    let few = |wanted: &Gpus| {
        let mut line: Vec<OsString> = ["fnet-launch", "--gpus", &usable.len().to_string()].map(OsString::from).into();
        line.extend_from_slice(command);
        Error::environment(format!(
            "--gpus {wanted}: only {} found{within}. To run on {}:\n  {}",
            text::count(usable.len(), "GPU"),
            if usable.len() == 1 { "it" } else { "them" },
            text::shell_line(&line)
        ))
    };
    match gpus {
        None | Some(Gpus::All) => Ok(usable),
        Some(wanted @ Gpus::Count(count)) if *count > usable.len() => Err(few(wanted)),
        Some(Gpus::Count(count)) => Ok(usable.into_iter().take(*count).collect()),
        Some(wanted @ Gpus::Indices(indices)) => {
            indices.iter().map(|&index| usable.get(index).cloned().ok_or_else(|| few(wanted))).collect()
        }
    }
}

fn none_found(options: &LaunchOptions, visible: Option<&str>, found: &Detection, command: &[OsString]) -> Error {
    let mut looked = found.looked.clone();
    if let Some(visible) = visible {
        looked.push(format!("CUDA_VISIBLE_DEVICES={visible}: {} of them usable", text::count(found.gpus.len(), "GPU")));
    }
    let asked = options.gpus.as_ref().map_or_else(String::new, |gpus| format!(" for --gpus {gpus}"));
    Error::environment(format!(
        "no GPU found{asked}. Looked for:\n  {}\nTo run on the CPU:\n  {}",
        looked.join("\n  "),
        cpu_line(Some(2), command)
    ))
}

fn cpu_line(workers: Option<usize>, command: &[OsString]) -> String {
    let workers = workers.unwrap_or(1).to_string();
    let mut line: Vec<OsString> = ["fnet-launch", "--device", "cpu", "--nproc", &workers].map(OsString::from).into();
    line.extend_from_slice(command);
    text::shell_line(&line)
}

#[cfg(test)]
mod tests {
    use fnet_protocol::cli::Launch;
    use fnet_protocol::exit;

    use super::*;
    use crate::plan::gpu::Gpu;

    fn on(flags: &str, visible: Option<&str>, gpus: usize) -> Result<Devices> {
        of(flags, None, visible, gpus)
    }

    fn of(flags: &str, variable: Option<&str>, visible: Option<&str>, gpus: usize) -> Result<Devices> {
        let line = format!("fnet-launch {flags} train cfg.toml");
        let options = Launch::from_arguments(line.split_whitespace().map(OsString::from)).unwrap().options;
        let found =
            Detection { gpus: vec![Gpu::default(); gpus], driver: None, looked: vec!["/dev/nvidia0: none".into()] };
        choose(&with_variable(&options, variable)?, visible, || &found, &["train".into(), "cfg.toml".into()])
    }

    fn entries(list: &[&str]) -> Result<Devices> {
        Ok(Devices::Cuda(list.iter().map(ToString::to_string).collect()))
    }

    #[test]
    fn a_count_takes_the_first_gpus_and_a_list_its_own() {
        assert_eq!(on("--gpus 2", None, 4), entries(&["0", "1"]));
        assert_eq!(on("--gpus 3,0", None, 4), entries(&["3", "0"]));
        assert_eq!(on("--gpus 1,", None, 4), entries(&["1"]));
        assert_eq!(on("--gpus all", None, 2), entries(&["0", "1"]));
        assert_eq!(on("", None, 2), entries(&["0", "1"]));
    }

    #[test]
    fn the_number_of_workers_of_an_operator_counts_where_the_command_line_has_none() {
        let cpus = available_parallelism().map_or(1, usize::from);
        for (flags, variable, expected) in [
            ("", "2", entries(&["0", "1"])),
            ("", " auto", entries(&["0", "1", "2"])),
            ("", "gpu", entries(&["0", "1", "2"])),
            ("", "", entries(&["0", "1", "2"])),
            ("", "cpu", Ok(Devices::Cpu(cpus))),
            ("--device cuda", "cpu", entries(&["0", "1", "2"])),
            ("--gpus 1", "2", entries(&["0"])),
            ("--device cpu", "3", Ok(Devices::Cpu(3))),
            ("--device cpu", "auto", Ok(Devices::Cpu(1))),
            ("--device cpu --nproc 2", "3", Ok(Devices::Cpu(2))),
        ] {
            assert_eq!(of(flags, Some(variable), None, 3), expected, "{flags} {variable}");
        }
        for wrong in ["0", "-1", "x"] {
            let error = of("", Some(wrong), None, 3).unwrap_err();
            assert!(error.code == exit::USAGE && error.message().starts_with("PET_NPROC_PER_NODE="), "{error}");
        }
    }

    #[test]
    fn counts_and_lists_are_relative_to_cuda_visible_devices() {
        assert_eq!(on("--gpus 2", Some("5,3,1"), 8), entries(&["5", "3"]));
        assert_eq!(on("--gpus 2,", Some("5,3,1"), 8), entries(&["1"]));
        assert_eq!(on("--gpus all", Some("1,9,2"), 8), entries(&["1"]), "an entry that does not exist hides the rest");
        assert_eq!(on("--gpus all", Some("MIG-a,GPU-b"), 2), entries(&["MIG-a", "GPU-b"]));
        assert_eq!(on("--gpus 3", Some("0,1"), 8).unwrap_err().code, exit::ENVIRONMENT);
        assert_eq!(on("--gpus 1", Some(""), 8).unwrap_err().code, exit::ENVIRONMENT);
    }

    #[test]
    fn slices_are_named_by_uuid_and_two_of_one_gpu_are_refused() {
        let gpu = |uuid: &str, slices: &[&str]| Gpu {
            uuid: Some(uuid.into()),
            slices: slices.iter().map(ToString::to_string).collect(),
            ..Gpu::default()
        };
        let found = [gpu("GPU-a", &["MIG-a1", "MIG-a2"]), gpu("GPU-b", &[]), gpu("GPU-c", &["MIG-c1"])];
        let of = |visible| usable(visible, &found);
        assert_eq!(of(None).unwrap(), ["MIG-a1", "MIG-a2", "GPU-b", "MIG-c1"]);
        assert_eq!(of(Some("2,1,MIG-a2")).unwrap(), ["MIG-c1", "1", "MIG-a2"]);
        let error = of(Some("1,0")).unwrap_err();
        assert_eq!(error.code, exit::USAGE);
        assert!(error.message().contains("CUDA_VISIBLE_DEVICES=MIG-a1,MIG-a2"), "{error}");

        let check = |entries: &[&str]| {
            let devices = Devices::Cuda(entries.iter().map(ToString::to_string).collect());
            refuse_slices_of_one_gpu(&devices, &found, &["train".into(), "cfg.toml".into()])
        };
        assert_eq!(check(&["MIG-a1", "MIG-c1", "GPU-b"]), Ok(()));
        assert_eq!(check(&["MIG-a1"]), Ok(()));
        let error = check(&["MIG-c1", "MIG-a1", "MIG-a2"]).unwrap_err();
        assert_eq!(error.code, exit::ENVIRONMENT);
        assert!(error.message().starts_with("MIG-a1 and MIG-a2 are MIG slices of one GPU"), "{error}");
        assert!(error.message().ends_with("fnet-launch --gpus 1 train cfg.toml"), "{error}");
    }

    #[test]
    fn without_a_gpu_the_line_to_run_instead_is_printed() {
        let error = on("--gpus 8", None, 0).unwrap_err();
        assert_eq!(error.code, exit::ENVIRONMENT);
        assert!(error.message().contains("/dev/nvidia0: none"), "{error}");
        assert!(error.message().contains("\n  fnet-launch --device cpu --nproc 2 train cfg.toml"), "{error}");
    }

    #[test]
    fn too_many_gpus_name_the_available_ones() {
        let error = on("--gpus 8", None, 1).unwrap_err();
        assert_eq!(error.code, exit::ENVIRONMENT);
        assert!(error.message().contains("only 1 GPU found"), "{error}");
        assert!(error.message().contains("fnet-launch --gpus 1 train cfg.toml"), "{error}");
    }

    #[test]
    fn the_cpu_does_not_look_for_gpus() {
        assert_eq!(on("--device cpu --nproc 3", None, 8), Ok(Devices::Cpu(3)));
        assert_eq!(on("--device cpu", Some(""), 0), Ok(Devices::Cpu(1)));
        assert_eq!(on("--device cpu --gpus 2", None, 8).unwrap_err().code, exit::USAGE);
        assert_eq!(on("--nproc 2", None, 8).unwrap_err().code, exit::USAGE);
        assert_eq!(on("--device cpu --nproc 0", None, 8).unwrap_err().code, exit::USAGE);
    }
}

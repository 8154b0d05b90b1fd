//! GPUs, their driver, and the processes that use them.

use fnet_protocol::capability;

use super::diagnosis::Diagnosis;
use crate::plan::gpu::Detection;
use crate::plan::nvml::{DriverReport, GpuState};
use crate::text;

/// Oldest driver with CUDA 13.
const MIN_DRIVER: u32 = 580;

/// The GPUs according to the kernel and the driver.
pub fn diagnose(detection: &Detection, report: Result<&DriverReport, &String>) -> Vec<Diagnosis> {
    if detection.gpus.is_empty() && report.is_err() {
        let remedy =
            "jobs run with --device cpu; for a GPU install NVIDIA's driver, and start containers with --gpus all";
        return vec![Diagnosis::doubtful("GPUs", detection.looked.join("; "), remedy)];
    }
    let names: Vec<&str> = detection.gpus.iter().map(|gpu| gpu.name.as_str()).collect();
    let mut diagnoses = vec![Diagnosis::good("GPUs", names.join(", "))];
    let version = report.ok().and_then(|report| report.driver.clone()).or_else(|| detection.driver.clone());
    if let Some(version) = version {
        let major = driver_major(&version);
        let found = match report.ok().and_then(|report| report.cuda.as_deref()) {
            Some(cuda) => format!("{version}, supports CUDA up to {cuda}"),
            None => version,
        };
        let remedy = format!("CUDA 13 needs driver {MIN_DRIVER} or newer");
        diagnoses.push(Diagnosis::good_if(major.is_none_or(|major| major >= MIN_DRIVER), "driver", found, remedy));
    }
    match report {
        Ok(report) => {
            report.gpus.iter().enumerate().for_each(|(index, gpu)| diagnoses.extend(state(index, gpu)));
        }
        Err(why) => diagnoses.push(Diagnosis::doubtful(
            "driver",
            format!("cannot be queried: {why}"),
            "check whether nvidia-smi answers; if it hangs, reboot, and look for Xid messages in dmesg",
        )),
    }
    diagnoses
}

/// `580` of `580.82.07`, or of `NVIDIA UNIX x86_64 Kernel Module  580.82.07  Wed ...`.
fn driver_major(line: &str) -> Option<u32> {
    line.split_whitespace().find_map(|word| {
        let (major, rest) = word.split_once('.')?;
        rest.starts_with(|first: char| first.is_ascii_digit()).then(|| major.parse().ok())?
    })
}

/// The memory of a GPU, then its problems.
fn state(index: usize, gpu: &GpuState) -> Vec<Diagnosis> {
    let what = "GPU";
    let name = format!("{index} ({})", gpu.name);
    let (free, total) = (text::bytes(gpu.memory_free), text::bytes(gpu.memory_total));
    let mut diagnoses = vec![Diagnosis::good(what, format!("{name}: {free} of {total} free"))];
    if let Some(found) = gpu.capability.filter(|&found| !capability::is_supported(found)) {
        let text = format!("{name} cannot be used: {}", capability::not_supported(found));
        diagnoses.push(Diagnosis::doubtful(what, text, "take other GPUs with --gpus, or run with --device cpu"));
    }
    for process in &gpu.processes {
        let program = process.program.as_deref().unwrap_or("unknown program");
        let memory = process.memory.map_or_else(String::new, |bytes| format!(", {}", text::bytes(bytes)));
        diagnoses.push(Diagnosis::doubtful(
            what,
            format!("{name} is used by process {} ({program}{memory})", process.pid),
            "stop it if it is not needed, or choose other GPUs with --gpus",
        ));
    }
    if gpu.persistent == Some(false) {
        let remedy =
            "sudo nvidia-smi -pm 1, or run nvidia-persistenced; otherwise every job initializes the driver again";
        diagnoses.push(Diagnosis::doubtful(what, format!("{name} is not in persistence mode"), remedy));
    }
    if gpu.shared == Some(false) {
        let remedy = "sudo nvidia-smi -c 0, unless this is intended";
        diagnoses.push(Diagnosis::doubtful(what, format!("{name} allows at most one process at a time"), remedy));
    }
    if let Some(errors) = gpu.ecc_errors.filter(|&errors| errors > 0) {
        diagnoses.push(Diagnosis::doubtful(
            what,
            format!("{name} has had {errors} uncorrectable memory errors since the last reboot"),
            "results may be wrong and jobs may fail: reset it (sudo nvidia-smi -r) or reboot; if errors recur, replace it",
        ));
    }
    if gpu.needs_reset == Some(true) {
        let remedy = "sudo nvidia-smi -r while it is unused, or reboot";
        diagnoses.push(Diagnosis::doubtful(what, format!("{name} needs a reset to retire damaged memory"), remedy));
    }
    diagnoses
}

#[cfg(test)]
mod tests {
    use super::super::diagnosis::Rating;
    use super::*;
    use crate::plan::gpu::Gpu;
    use crate::plan::nvml::GpuProcess;

    fn found(driver: &str) -> Detection {
        Detection {
            gpus: vec![Gpu { name: "Card".into(), ..Gpu::default() }],
            driver: Some(driver.into()),
            looked: vec![],
        }
    }

    fn ratings(diagnoses: &[Diagnosis]) -> Vec<Rating> {
        diagnoses.iter().map(|diagnosis| diagnosis.rating).collect()
    }

    #[test]
    fn the_drivers_version_is_found_in_its_line() {
        let line = "NVIDIA UNIX x86_64 Kernel Module  580.82.07  Wed Aug 27 17:43:23 UTC 2025";
        assert_eq!(driver_major(line), Some(580));
        let open = "NVIDIA UNIX Open Kernel Module for x86_64  575.51.03  Release Build";
        assert_eq!(driver_major(open), Some(575));
        assert_eq!(driver_major("580.65.06"), Some(580));
        assert_eq!(driver_major("unknown"), None);
    }

    #[test]
    fn an_old_driver_is_reported_with_the_remedy() {
        let report = DriverReport { driver: Some("470.1.2".into()), cuda: Some("11.4".into()), gpus: vec![] };
        let diagnoses = diagnose(&found("x"), Ok(&report));
        assert_eq!(ratings(&diagnoses), [Rating::Good, Rating::Doubtful]);
        assert_eq!(diagnoses[1].found, "470.1.2, supports CUDA up to 11.4");
    }

    #[test]
    fn a_missing_gpu_and_a_silent_driver_are_distinguished() {
        let none = Detection { looked: vec!["/dev/nvidia0: none".into()], ..Detection::default() };
        let why = "no library".to_owned();
        assert_eq!(ratings(&diagnose(&none, Err(&why))), [Rating::Doubtful]);
        let silent = diagnose(&found("580.1"), Err(&why));
        assert_eq!(ratings(&silent), [Rating::Good, Rating::Good, Rating::Doubtful]);
        assert!(silent[2].found.contains("no library"));
    }

    #[test]
    fn each_problem_of_a_gpu_has_a_line() {
        let good = GpuState {
            name: "Card".into(),
            persistent: Some(true),
            shared: Some(true),
            capability: Some((9, 0)),
            ..GpuState::default()
        };
        assert_eq!(ratings(&state(0, &good)), [Rating::Good]);
        let process = GpuProcess { pid: 7, program: Some("python".into()), memory: Some(1 << 30) };
        let ill = GpuState {
            persistent: Some(false),
            shared: Some(false),
            ecc_errors: Some(3),
            needs_reset: Some(true),
            capability: Some((7, 0)),
            processes: vec![process],
            ..good
        };
        let diagnoses = state(1, &ill);
        assert_eq!(diagnoses.len(), 7);
        for text in [
            "process 7 (python, 1.0 GiB)",
            "persistence",
            "one process",
            "3 uncorrectable memory errors",
            "needs a reset",
            "capability is 7.0",
        ] {
            assert!(diagnoses.iter().any(|diagnosis| diagnosis.found.contains(text)), "{text}");
        }
        assert!(diagnoses[1..].iter().all(|diagnosis| diagnosis.remedy.is_some()));
    }
}

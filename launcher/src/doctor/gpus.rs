//! GPUs, driver, and who uses them.

use fnet_protocol::capability;

use super::Finding;
use crate::gpu::Detection;
use crate::nvml::{GpuState, Report};
use crate::text;

/// Oldest driver that runs CUDA 13.
const LEAST_DRIVER: u32 = 580;

/// What the kernel and the driver tell.
pub fn findings(detection: &Detection, report: Result<&Report, &String>) -> Vec<Finding> {
    if detection.gpus.is_empty() && report.is_err() {
        let remedy =
            "jobs run with --device cpu; for a GPU install NVIDIA's driver, and start containers with --gpus all";
        return vec![Finding::doubtful("GPUs", detection.looked.join("; "), remedy)];
    }
    let names: Vec<&str> = detection.gpus.iter().map(|gpu| gpu.name.as_str()).collect();
    let mut findings = vec![Finding::good("GPUs", names.join(", "))];
    let version = report.ok().and_then(|report| report.driver.clone()).or_else(|| detection.driver.clone());
    if let Some(version) = version {
        let major = driver_major(&version);
        let found = match report.ok().and_then(|report| report.cuda.as_deref()) {
            Some(cuda) => format!("{version}, runs CUDA up to {cuda}"),
            None => version,
        };
        let remedy = format!("CUDA 13 needs driver {LEAST_DRIVER} or newer");
        findings.push(Finding::good_if(major.is_none_or(|major| major >= LEAST_DRIVER), "driver", found, remedy));
    }
    match report {
        Ok(report) => {
            report.gpus.iter().enumerate().for_each(|(index, gpu)| findings.extend(state(index, gpu)));
        }
        Err(why) => findings.push(Finding::doubtful(
            "driver",
            format!("cannot be asked about the GPUs: {why}"),
            "see whether nvidia-smi answers; if it hangs, reboot, and look for Xid messages in dmesg",
        )),
    }
    findings
}

/// `580` of `580.82.07`, or of `NVIDIA UNIX x86_64 Kernel Module  580.82.07  Wed ...`.
fn driver_major(line: &str) -> Option<u32> {
    line.split_whitespace().find_map(|word| {
        let (major, rest) = word.split_once('.')?;
        rest.starts_with(|first: char| first.is_ascii_digit()).then(|| major.parse().ok())?
    })
}

/// What there is to say of one GPU: its memory, then what is wrong with it.
fn state(index: usize, gpu: &GpuState) -> Vec<Finding> {
    let what = "GPU";
    let name = format!("{index} ({})", gpu.name);
    let (free, total) = (text::bytes(gpu.memory_free), text::bytes(gpu.memory_total));
    let mut findings = vec![Finding::good(what, format!("{name}: {free} of {total} free"))];
    if let Some(found) = gpu.capability.filter(|&found| !capability::is_supported(found)) {
        let text = format!("{name} cannot be used: {}", capability::not_supported(found));
        findings.push(Finding::doubtful(what, text, "take other GPUs with --gpus, or run with --device cpu"));
    }
    for process in &gpu.processes {
        let program = process.program.as_deref().unwrap_or("unknown program");
        let memory = process.memory.map_or_else(String::new, |bytes| format!(", {}", text::bytes(bytes)));
        findings.push(Finding::doubtful(
            what,
            format!("{name} is used by process {} ({program}{memory})", process.pid),
            "end it if nobody needs it, or take other GPUs with --gpus",
        ));
    }
    if gpu.persistent == Some(false) {
        let remedy = "sudo nvidia-smi -pm 1, or run nvidia-persistenced; else the driver wakes up anew for every job";
        findings.push(Finding::doubtful(what, format!("{name} is not in persistence mode"), remedy));
    }
    if gpu.shared == Some(false) {
        let remedy = "sudo nvidia-smi -c 0, unless that is wanted";
        findings.push(Finding::doubtful(what, format!("{name} is for one process at a time, or for none"), remedy));
    }
    if let Some(errors) = gpu.ecc_errors.filter(|&errors| errors > 0) {
        findings.push(Finding::doubtful(
            what,
            format!("{name} had {errors} memory errors that could not be corrected since it was started"),
            "results may be wrong and jobs may end: reset it (sudo nvidia-smi -r) or reboot; if they come again, have it \
             replaced",
        ));
    }
    if gpu.needs_reset == Some(true) {
        let remedy = "sudo nvidia-smi -r when nobody uses it, or reboot";
        findings.push(Finding::doubtful(what, format!("{name} waits for a reset to leave out damaged memory"), remedy));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use crate::gpu::Gpu;
    use crate::nvml::GpuProcess;

    fn found(driver: &str) -> Detection {
        Detection {
            gpus: vec![Gpu { name: "Card".into(), ..Gpu::default() }],
            driver: Some(driver.into()),
            looked: vec![],
        }
    }

    fn verdicts(findings: &[Finding]) -> Vec<Verdict> {
        findings.iter().map(|finding| finding.verdict).collect()
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
        let report = Report { driver: Some("470.1.2".into()), cuda: Some("11.4".into()), gpus: vec![] };
        let findings = findings(&found("x"), Ok(&report));
        assert_eq!(verdicts(&findings), [Verdict::Good, Verdict::Doubtful]);
        assert_eq!(findings[1].found, "470.1.2, runs CUDA up to 11.4");
    }

    #[test]
    fn without_a_gpu_there_is_one_line_and_a_silent_driver_is_another_thing() {
        let none = Detection { looked: vec!["/dev/nvidia0: none".into()], ..Detection::default() };
        let why = "no library".to_owned();
        assert_eq!(verdicts(&findings(&none, Err(&why))), [Verdict::Doubtful]);
        let silent = findings(&found("580.1"), Err(&why));
        assert_eq!(verdicts(&silent), [Verdict::Good, Verdict::Good, Verdict::Doubtful]);
        assert!(silent[2].found.contains("no library"));
    }

    #[test]
    fn what_is_wrong_with_a_gpu_has_a_line_each() {
        let good = GpuState {
            name: "Card".into(),
            persistent: Some(true),
            shared: Some(true),
            capability: Some((9, 0)),
            ..GpuState::default()
        };
        assert_eq!(verdicts(&state(0, &good)), [Verdict::Good]);
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
        let findings = state(1, &ill);
        assert_eq!(findings.len(), 7);
        for text in [
            "process 7 (python, 1.0 GiB)",
            "persistence",
            "one process",
            "3 memory errors",
            "waits for a reset",
            "capability is 7.0",
        ] {
            assert!(findings.iter().any(|finding| finding.found.contains(text)), "{text}");
        }
        assert!(findings[1..].iter().all(|finding| finding.remedy.is_some()));
    }
}

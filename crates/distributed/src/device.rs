//! The device of a rank.

use tch::Device;
use torch_ext::cuda;

use fnet_common::{Context, Error, Result};
use fnet_protocol::{capability, env};

/// Chooses the device of a rank. `wanted` is the value of FNET_DEVICE: "cpu" or "cuda"; if unset, CUDA if a GPU is visible,
/// otherwise the CPU. For CUDA it loads libtorch's CUDA libraries and makes the device current.
/// Errors: a usage error for another value; an environment error if CUDA is wanted and the driver, a library or the GPU
/// is missing.
pub fn choose_device(wanted: Option<&str>, local_rank: usize) -> Result<Device> {
    let driver = match wanted {
        Some("cpu") => return Ok(Device::Cpu),
        Some("cuda") => cuda::probe_driver().context("the device of this rank is cuda")?,
        None | Some("") => match cuda::probe_driver() {
            Ok(driver) => driver,
            Err(_) => return Ok(Device::Cpu),
        },
        Some(other) => {
            return Err(Error::usage(format!("the environment has FNET_DEVICE={other:?}, expected cpu or cuda")));
        }
    };
    let index = gpu_index(local_rank, driver.devices.len())?;
    refuse_unsupported(index, driver.devices[index])?;
    cuda::load_libraries()?;
    cuda::set_device(index)?;
    Ok(Device::Cuda(index))
}

/// The index of a rank's GPU among the visible ones: its local rank, or the only one.
fn gpu_index(local_rank: usize, visible: usize) -> Result<usize> {
    match visible {
        1 => Ok(0),
        _ if local_rank < visible => Ok(local_rank),
        _ => Err(Error::environment(format!(
            "local rank {local_rank} sees {visible} GPUs, expected exactly one or at least {}: start fewer workers per node \
             or make more GPUs visible (CUDA_VISIBLE_DEVICES)",
            local_rank + 1
        ))),
    }
}

/// Refuses a GPU that libtorch has no kernels for: they would fail in the first step with an unclear message.
fn refuse_unsupported(index: usize, capability: Option<(i32, i32)>) -> Result<()> {
    match capability {
        Some(found) if !capability::is_supported(found) => {
            let visible = std::env::var(env::CUDA_VISIBLE_DEVICES);
            let visible = visible.map_or(String::new(), |visible| format!(" (CUDA_VISIBLE_DEVICES={visible})"));
            Err(Error::environment(format!(
                "GPU {index} of this worker{visible} cannot be used: {}; choose other GPUs with --gpus, or run with \
                 --device cpu",
                capability::not_supported(found)
            )))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use fnet_common::ErrorKind;

    use super::*;

    #[test]
    fn a_rank_uses_the_gpu_of_its_local_rank_or_the_only_one() {
        assert_eq!(gpu_index(3, 8).unwrap(), 3);
        assert_eq!(gpu_index(3, 1).unwrap(), 0);
        assert_eq!(gpu_index(2, 2).unwrap_err().kind(), ErrorKind::Environment);
    }

    #[test]
    fn a_gpu_without_kernels_is_refused() {
        let error = refuse_unsupported(1, Some((7, 0))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Environment);
        let text = error.to_string();
        assert!(text.contains("GPU 1") && text.contains("7.0") && text.contains("--gpus"), "{text}");
        refuse_unsupported(0, Some((8, 9))).unwrap();
        refuse_unsupported(0, None).unwrap();
    }

    /// The library contains the flags of its build.
    #[test]
    fn the_supported_capabilities_are_those_of_the_wheel() {
        use std::io::Read;

        let path = cuda::libtorch_folder().unwrap().join("libtorch_cuda.so");
        let Ok(mut file) = std::fs::File::open(&path) else {
            eprintln!("SKIPPED the_supported_capabilities_are_those_of_the_wheel: no {}", path.display());
            return;
        };
        let (before, mut text) = (memchr::memmem::Finder::new("-gencode;arch=compute_"), Vec::new());
        let mut rest = vec![0u8; 1 << 24];
        let flags = loop {
            let count = file.read(&mut rest).unwrap();
            assert!(count > 0, "{} does not say what it was built for", path.display());
            text.drain(..text.len().saturating_sub(1 << 10));
            text.extend_from_slice(&rest[..count]);
            match before.find(&text) {
                Some(at) if at + 512 < text.len() => {
                    break String::from_utf8_lossy(&text[at..at + 512]).into_owned();
                }
                _ => {}
            }
        };
        let mut found: Vec<i32> = flags
            .split("code=sm_")
            .skip(1)
            .map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap())
            .collect();
        found.sort_unstable();
        found.dedup();
        let expected: Vec<i32> = capability::SUPPORTED.iter().map(|(major, minor)| major * 10 + minor).collect();
        assert_eq!(found, expected, "{flags}");
        assert!(!flags.contains("code=compute_"), "the driver can compile kernels for later GPUs: {flags}");
    }

    #[test]
    fn choosing_the_cpu_does_not_probe_the_driver() {
        assert_eq!(choose_device(Some("cpu"), 5).unwrap(), Device::Cpu);
        assert_eq!(choose_device(Some("tpu"), 0).unwrap_err().kind(), ErrorKind::Usage);
    }

    #[test]
    fn without_a_gpu_cuda_is_refused_and_the_default_is_the_cpu() {
        if cuda::probe_driver().is_ok() {
            eprintln!("SKIPPED without_a_gpu_cuda_is_refused_and_the_default_is_the_cpu: this machine has a GPU");
            return;
        }
        assert_eq!(choose_device(None, 0).unwrap(), Device::Cpu);
        let error = choose_device(Some("cuda"), 0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Environment);
        assert!(error.to_string().contains("--device cpu"), "{error}");
    }
}

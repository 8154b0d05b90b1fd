//! What the errors of CUDA and its libraries mean for a job, and the remedy.

use crate::error_kind::ErrorKind;

/// An error with a meaning of its own. Those that are absent are faults of the program.
struct Fault {
    /// CUDA's number; 0 for an error of a library.
    code: i32,
    /// As libtorch writes it.
    name: &'static str,
    /// As CUDA's runtime, its driver and NCCL write it.
    text: &'static str,
    remedy: &'static str,
}

const DAMAGED: &str = "The GPU's memory is damaged, and a restart on it would most likely fail again: train on other GPUs \
    (--gpus), reset this one (sudo nvidia-smi -r) or reboot, and have it replaced if the error comes back; nvidia-smi -q \
    -d ECC and the Xid lines of dmesg name it";
const NO_KERNEL: &str = "This libtorch has no kernels for the GPU's compute capability: take another GPU (--gpus), or run \
    with --device cpu; fnet-launch doctor names the GPUs that are not supported";
const DRIVER: &str = "The NVIDIA driver does not fit: install driver 580 or newer, and reboot after every update of the \
    driver";
const TAKEN: &str = "The GPU is used by another process or is in exclusive mode: nvidia-smi names the process; sudo \
    nvidia-smi -c 0 ends the exclusive mode; --gpus takes other GPUs";
const NOT_READY: &str = "The GPU cannot be used as the machine is set up: see nvidia-smi, and on machines with NVSwitch \
    whether nvidia-fabricmanager runs; reboot after an update of the driver";
const MPS: &str = "The CUDA Multi-Process Service failed: restart nvidia-cuda-mps-control, or unset \
    CUDA_MPS_PIPE_DIRECTORY to do without it";
const LINK: &str = "A connection between GPUs failed: see nvidia-smi nvlink -e and the Xid lines of dmesg; reset the GPUs \
    (sudo nvidia-smi -r) or reboot, or do without the connection (NCCL_P2P_DISABLE=1)";
const LOST: &str = "The driver does not say what happened; most likely the GPU fell off the bus: see whether nvidia-smi \
    still lists it and the Xid lines of dmesg, reboot, and train on other GPUs (--gpus) until then";
const TWICE: &str = "Two ranks of the job are on one GPU, or on two MIG slices of one, which NCCL does not connect: give each \
    rank a GPU of its own (CUDA_VISIBLE_DEVICES names each GPU once); --gpus 1 trains on one";
const WATCHDOG: &str = "The GPU also drives a display, whose watchdog ends long kernels: train on another GPU (--gpus), or \
    stop the graphical session";
const KERNEL: &str = "A kernel failed, and this process cannot use the GPU any more; a new process can. If it fails again \
    only on this GPU, the GPU is at fault (see the Xid lines of dmesg; --gpus takes other ones). If it fails on several, \
    libtorch or fnet is: run with CUDA_LAUNCH_BLOCKING=1 to learn which operator, and report it";

/// Every error of CUDA that is not a fault of the program.
#[rustfmt::skip] // One line for each.
const FAULTS: &[Fault] = &[
    cuda(3, "cudaErrorInitializationError", "initialization error", NOT_READY),
    cuda(35, "cudaErrorInsufficientDriver", "CUDA driver version is insufficient for CUDA runtime version", DRIVER),
    cuda(36, "cudaErrorCallRequiresNewerDriver", "API call is not supported in the installed CUDA driver", DRIVER),
    cuda(46, "cudaErrorDevicesUnavailable", "CUDA-capable device(s) is/are busy or unavailable", TAKEN),
    cuda(98, "cudaErrorInvalidDeviceFunction", "invalid device function", NO_KERNEL),
    cuda(100, "cudaErrorNoDevice", "no CUDA-capable device is detected", NOT_READY),
    cuda(101, "cudaErrorInvalidDevice", "invalid device ordinal", NOT_READY),
    cuda(102, "cudaErrorDeviceNotLicensed", "device doesn't have valid Grid license", NOT_READY),
    cuda(200, "cudaErrorInvalidKernelImage", "device kernel image is invalid", NO_KERNEL),
    cuda(209, "cudaErrorNoKernelImageForDevice", "no kernel image is available for execution on the device", NO_KERNEL),
    cuda(214, "cudaErrorECCUncorrectable", "uncorrectable ECC error encountered", DAMAGED),
    cuda(216, "cudaErrorDeviceAlreadyInUse", "exclusive-thread device already in use by a different thread", TAKEN),
    cuda(220, "cudaErrorNvlinkUncorrectable", "uncorrectable NVLink error detected during the execution", LINK),
    cuda(222, "cudaErrorUnsupportedPtxVersion", "the provided PTX was compiled with an unsupported toolchain.", DRIVER),
    cuda(226, "cudaErrorContained", "Invalid access of peer GPU memory over nvlink or a hardware error", KERNEL),
    cuda(304, "cudaErrorOperatingSystem", "OS call failed or operation not supported on this OS", NOT_READY),
    cuda(700, "cudaErrorIllegalAddress", "an illegal memory access was encountered", KERNEL),
    cuda(702, "cudaErrorLaunchTimeout", "the launch timed out and was terminated", WATCHDOG),
    cuda(714, "cudaErrorHardwareStackError", "hardware stack error", KERNEL),
    cuda(715, "cudaErrorIllegalInstruction", "an illegal instruction was encountered", KERNEL),
    cuda(716, "cudaErrorMisalignedAddress", "misaligned address", KERNEL),
    cuda(717, "cudaErrorInvalidAddressSpace", "operation not supported on global/shared address space", KERNEL),
    cuda(718, "cudaErrorInvalidPc", "invalid program counter", KERNEL),
    cuda(719, "cudaErrorLaunchFailure", "unspecified launch failure", KERNEL),
    cuda(802, "cudaErrorSystemNotReady", "system not yet initialized", NOT_READY),
    cuda(803, "cudaErrorSystemDriverMismatch", "system has unsupported display driver / cuda driver combination", DRIVER),
    cuda(804, "cudaErrorCompatNotSupportedOnDevice", "forward compatibility was attempted on non supported HW", DRIVER),
    cuda(805, "cudaErrorMpsConnectionFailed", "MPS client failed to connect to the MPS control daemon or the MPS server", MPS),
    cuda(806, "cudaErrorMpsRpcFailure", "the remote procedural call between the MPS server and the MPS client failed", MPS),
    cuda(807, "cudaErrorMpsServerNotReady", "MPS server is not ready to accept new MPS client requests", MPS),
    cuda(808, "cudaErrorMpsMaxClientsReached", "the hardware resources required to create MPS client have been exhausted", MPS),
    cuda(809, "cudaErrorMpsMaxConnectionsReached", "the hardware resources required to support device connections have been exhausted", MPS),
    cuda(810, "cudaErrorMpsClientTerminated", "the MPS client has been terminated by the server", MPS),
    cuda(999, "cudaErrorUnknown", "unknown error", LOST),
    library("Duplicate GPU detected", TWICE),
    library("CUBLAS_STATUS_ARCH_MISMATCH", NO_KERNEL),
    library("CUDNN_STATUS_ARCH_MISMATCH", NO_KERNEL),
    library("CUBLAS_STATUS_EXECUTION_FAILED", KERNEL),
    library("CUDNN_STATUS_EXECUTION_FAILED", KERNEL),
];

const fn cuda(code: i32, name: &'static str, text: &'static str, remedy: &'static str) -> Fault {
    Fault { code, name, text, remedy }
}

const fn library(name: &'static str, remedy: &'static str) -> Fault {
    Fault { code: 0, name, text: "", remedy }
}

impl Fault {
    /// A new process can use the GPU again after a kernel that failed; everything else is for the user to mend.
    fn kind(&self) -> ErrorKind {
        if self.remedy == KERNEL { ErrorKind::Device } else { ErrorKind::Environment }
    }
}

/// What libraries say when an allocation of theirs fails. cuDNN says of a convolution without room for its workspace that
/// it finds no engine; a cuBLAS without room for its handle is not initialized.
const OUT_OF_MEMORY: &[&str] = &[
    "out of memory",
    "can't allocate memory",
    "STATUS_ALLOC_FAILED",
    "was unable to find an engine to execute this computation",
    "CUBLAS_STATUS_NOT_INITIALIZED",
];

/// Kind and text of an error: `code` is CUDA's number, or 0 where it is known only by its message. Nothing is returned for
/// errors that the device and the machine have no part in.
pub(crate) fn classify(code: i32, message: &str) -> Option<(ErrorKind, String)> {
    if code == 2 || OUT_OF_MEMORY.iter().any(|words| message.contains(words)) {
        return Some((ErrorKind::OutOfMemory, message.to_owned()));
    }
    let names = |fault: &&Fault| match code {
        0 => is_named(fault, message),
        _ => fault.code == code,
    };
    let fault = FAULTS.iter().find(names)?;
    let number = if fault.code == 0 { String::new() } else { format!(" (CUDA error {}, {})", fault.code, fault.name) };
    Some((fault.kind(), format!("{}{number}\n{}", without_advice(message), fault.remedy)))
}

fn is_named(fault: &Fault, message: &str) -> bool {
    let Fault { name, text, .. } = fault;
    let as_written = || ["error: ", "failure '"].iter().any(|before| message.contains(&format!("{before}{text}")));
    // One name may begin another.
    let follows = |(at, _): (usize, &str)| message[at + name.len()..].chars().next();
    let is_whole = |next: Option<char>| next.is_none_or(|next| !next.is_alphanumeric());
    message.match_indices(name).map(follows).any(is_whole) || (!text.is_empty() && as_written())
}

/// The message without what libtorch says about debugging, and without the frames of C++; of NCCL's its own words.
fn without_advice(message: &str) -> &str {
    let advice = ["\nSearch for `", "\nCUDA kernel errors might be", "\nException raised from", "\nframe #"];
    let end = advice.iter().filter_map(|words| message.find(words)).min();
    let text = message[..end.unwrap_or(message.len())].trim_end();
    match text.split_once("\nLast error:\n") {
        Some((_, of_nccl)) if !of_nccl.is_empty() => of_nccl,
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::{CStr, c_char};

    use super::*;
    use crate::dl::Library;
    use crate::error::Error;

    /// As libtorch writes it when a call of CUDA fails.
    fn message(fault: &Fault) -> String {
        format!(
            "CUDA error: {}\nSearch for `{}' in https://docs.nvidia.com/cuda for more information.\nCUDA kernel errors might \
             be asynchronously reported at some other API call, so the stacktrace below might be incorrect.\n\nException \
             raised from x at y.cpp:1 (most recent call first):\nframe #0: main",
            fault.text, fault.name
        )
    }

    #[test]
    fn every_fault_is_known_by_its_number_by_its_name_and_by_its_text() {
        for fault in FAULTS.iter().filter(|fault| fault.code != 0) {
            let classified = [
                classify(fault.code, &message(fault)),
                classify(0, &message(fault)),
                classify(0, &format!("NCCL error: unhandled cuda error\nLast error:\nCuda failure '{}'", fault.text)),
            ];
            for found in classified {
                let (kind, text) = found.unwrap_or_else(|| panic!("{}", fault.name));
                assert_eq!(kind, fault.kind(), "{text}");
                assert!(text.contains(&format!("(CUDA error {}, {})\n", fault.code, fault.name)), "{text}");
                assert!(text.contains("gpus") || fault.remedy != DAMAGED, "{text}");
                assert!(
                    text.ends_with(fault.remedy) && !text.contains("frame #") && !text.contains("Search"),
                    "{text}"
                );
            }
        }
        for fault in FAULTS.iter().filter(|fault| fault.code == 0) {
            assert_eq!(classify(0, &format!("CUDA error: {}", fault.name)).unwrap().0, fault.kind());
        }
    }

    #[test]
    fn a_gpu_that_is_taken_twice_is_reported_in_nccls_own_words_with_the_remedy() {
        let message = "NCCL error in: ProcessGroupNCCL.cpp:3690, invalid usage (run with NCCL_DEBUG=WARN for details), NCCL \
            version 2.28.9\nncclInvalidUsage: This usually reflects invalid usage of NCCL library.\nLast error:\nDuplicate GPU \
            detected : rank 1 and rank 0 both on CUDA device 1b000\nException raised from x at y.cpp:1";
        let text = "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1b000";
        assert_eq!(classify(0, message), Some((ErrorKind::Environment, format!("{text}\n{TWICE}"))));
    }

    #[test]
    fn a_restart_helps_after_a_kernel_that_failed_and_not_with_a_broken_machine() {
        let kind = |code| classify(code, "CUDA error: x").map(|(kind, _)| kind);
        for code in [700, 714, 715, 716, 717, 718, 719, 226] {
            assert_eq!(kind(code), Some(ErrorKind::Device), "{code}");
        }
        for code in [35, 46, 209, 214, 220, 802, 803, 999] {
            assert_eq!(kind(code), Some(ErrorKind::Environment), "{code}");
        }
        assert_eq!(kind(2), Some(ErrorKind::OutOfMemory));
        // An argument that CUDA refuses and an assertion of a kernel are faults of the program.
        for code in [1, 9, 400, 710] {
            assert_eq!(kind(code), None, "{code}");
        }
    }

    #[test]
    fn exhausted_memory_is_known_by_the_words_of_every_library() {
        for text in [
            "CUDA out of memory. Tried to allocate 2 GiB",
            "CUDA driver error: out of memory",
            "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory",
            "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
            "GET was unable to find an engine to execute this computation",
            "FIND was unable to find an engine to execute this computation after trying 14 plans",
        ] {
            assert_eq!(Error::from_text(text).kind(), ErrorKind::OutOfMemory, "{text}");
        }
        for text in ["expected a Tensor", "an unknown error in the program", "a misaligned address of a street"] {
            assert_eq!(Error::from_text(text).kind(), ErrorKind::Torch, "{text}");
        }
    }

    #[test]
    fn names_and_texts_are_those_of_cudas_runtime() {
        let folder = crate::cuda::libtorch_folder().unwrap();
        let path = folder.join("../../nvidia/cu13/lib/libcudart.so.13");
        if !path.is_file() {
            eprintln!("SKIPPED names_and_texts_are_those_of_cudas_runtime: no {}", path.display());
            return;
        }
        let runtime = Library::open(&path, false).unwrap();
        let ask = |function: &CStr, code: i32| {
            let address = runtime.symbol(function).unwrap();
            // SAFETY: both functions take an error number and return a string that is never freed.
            unsafe {
                let function: unsafe extern "C" fn(i32) -> *const c_char = std::mem::transmute(address);
                CStr::from_ptr(function(code)).to_str().unwrap()
            }
        };
        for fault in FAULTS.iter().filter(|fault| fault.code != 0) {
            let found = (ask(c"cudaGetErrorName", fault.code), ask(c"cudaGetErrorString", fault.code));
            assert_eq!(found, (fault.name, fault.text));
        }
    }
}

//! The error type of the worker: message, context and kind, which decides the exit code.

use std::fmt;

use fnet_protocol::message::Failure;
/// Who can fix an error; decides the exit code.
pub use fnet_protocol::message::FailureKind as ErrorKind;

/// An error with its kind and the chain of its context.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    context: Vec<String>,
}

/// What to do when a GPU is out of memory.
const DEVICE_MEMORY_REMEDY: &str = "The GPU is out of memory: lower data.samples_per_gpu, make the images smaller \
    (data.pipeline.scales, or test_scale for evaluation), set train.amp = \"bf16\", or stop other programs on the \
    GPU (nvidia-smi lists them)";
/// What to do when the host is out of memory.
const HOST_MEMORY_REMEDY: &str = "The machine is out of memory: lower data.samples_per_gpu or data.workers_per_gpu, \
    make the images smaller (data.pipeline.scales, or test_scale for evaluation), or start fewer workers";

/// Result of fallible functions of the worker.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind`; `message` says what was found, what was expected, and what to do.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), context: Vec::new() }
    }

    /// A bug in fnet.
    pub fn bug(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Bug, message)
    }

    /// The command line or the config is wrong.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Usage, message)
    }

    /// The data or a checkpoint is wrong or missing.
    pub fn data(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Data, message)
    }

    /// A peer or a collective failed.
    pub fn distributed(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::PeerLost, message)
    }

    /// A problem of the machine.
    pub fn environment(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Environment, message)
    }

    /// This rank ran out of memory, according to libtorch's `message`. Removes C++ stack frames and adds what to do.
    pub fn out_of_memory(message: &str) -> Self {
        let end = ["\nException raised from", "\nframe #"].iter().filter_map(|words| message.find(words)).min();
        let reason = message[..end.unwrap_or(message.len())].trim_end();
        let on_device =
            ["CUDA", "CUBLAS", "CUDNN", "NCCL", "Cuda", "find an engine"].iter().any(|word| reason.contains(word));
        let remedy = if on_device { DEVICE_MEMORY_REMEDY } else { HOST_MEMORY_REMEDY };
        Self::new(ErrorKind::OutOfMemory, format!("{reason}\n{remedy}"))
    }

    /// Converts a panic: to an out-of-memory or device error if libtorch's message says so, otherwise to a bug.
    pub fn from_panic(payload: &(dyn std::any::Any + Send)) -> Self {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("a value that is not text");
        match torch_ext::Error::from_text(text) {
            error if error.kind() == torch_ext::ErrorKind::Torch => Self::bug(format!("panic: {text}")),
            error => error.into(),
        }
    }

    /// Adds what was being done when the error occurred; the outermost context is printed first.
    #[must_use]
    pub fn context(mut self, what: impl Into<String>) -> Self {
        self.context.push(what.into());
        self
    }

    /// Who can fix it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The report of the error for the launcher.
    pub fn failure(&self) -> Failure {
        Failure::new(self.kind, self.to_string())
    }

    /// The exit code that this error ends the process with.
    pub fn exit_code(&self) -> i32 {
        self.kind.exit_code()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for what in self.context.iter().rev() {
            write!(f, "{what}: ")?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// Adds context to the error of a result.
pub trait Context<T> {
    /// Adds what was being done.
    fn context(self, what: impl Into<String>) -> Result<T>;
    /// Adds what was being done, computed only on failure.
    fn with_context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl Into<String>) -> Result<T> {
        self.map_err(|error| error.into().context(what))
    }

    fn with_context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|error| error.into().context(what()))
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::new(failure.kind, failure.message)
    }
}

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        torch_ext::Error::from(error).into()
    }
}

impl From<torch_ext::Error> for Error {
    fn from(error: torch_ext::Error) -> Self {
        let kind = match error.kind() {
            torch_ext::ErrorKind::OutOfMemory => return Self::out_of_memory(error.message()),
            torch_ext::ErrorKind::Collective => ErrorKind::PeerLost,
            torch_ext::ErrorKind::Environment => ErrorKind::Environment,
            torch_ext::ErrorKind::Device => ErrorKind::Device,
            torch_ext::ErrorKind::Torch | torch_ext::ErrorKind::Invalid => ErrorKind::Bug,
        };
        Self::new(kind, error.message())
    }
}

#[cfg(test)]
mod tests {
    use fnet_protocol::exit;

    use super::*;

    #[test]
    fn the_outermost_context_comes_first() {
        let error = Error::data("not JSON").context("reading a.json").context("opening the training set");
        assert_eq!(error.to_string(), "opening the training set: reading a.json: not JSON");
        assert_eq!(error.exit_code(), exit::DATA);
    }

    #[test]
    fn memory_and_device_errors_of_any_source_are_not_bugs() {
        let cases = [
            (
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED",
                ErrorKind::OutOfMemory,
                exit::WORKER_LOST,
                "data.samples_per_gpu",
            ),
            ("FIND was unable to find an engine to execute this computation", ErrorKind::OutOfMemory, 4, "train.amp"),
            ("CUDA error: an illegal memory access was encountered", ErrorKind::Device, exit::WORKER_LOST, "Xid"),
            ("CUDA error: uncorrectable ECC error encountered", ErrorKind::Environment, exit::ENVIRONMENT, "--gpus"),
            ("no kernel image is available", ErrorKind::Bug, exit::BUG, ""),
        ];
        for (text, kind, code, remedy) in cases {
            for error in [
                Error::from(tch::TchError::Torch(text.into())),
                Error::from(torch_ext::Error::from_text(text)),
                Error::from_panic(&text.to_owned()),
            ] {
                assert_eq!((error.kind(), error.exit_code()), (kind, code));
                assert!(error.to_string().contains(text) && error.to_string().contains(remedy), "{error}");
            }
        }
    }

    #[test]
    fn an_out_of_memory_error_has_a_remedy_and_no_stack_frames() {
        let message = "CUDA out of memory. Tried to allocate 2 GiB.\nException raised from malloc at x.cpp:1\nframe #0";
        for error in [
            Error::from(tch::TchError::Torch(message.into())),
            Error::from(torch_ext::Error::new(torch_ext::ErrorKind::OutOfMemory, message)),
            Error::from_panic(&message.to_owned()),
        ] {
            assert_eq!((error.kind(), error.exit_code()), (ErrorKind::OutOfMemory, exit::WORKER_LOST));
            let text = error.to_string();
            assert!(!text.contains("frame #0"), "{text}");
            for field in ["data.samples_per_gpu", "data.pipeline.scales", "train.amp = \"bf16\""] {
                assert!(text.contains(field), "{text}");
            }
        }
        let host = Error::out_of_memory("DefaultCPUAllocator: can't allocate memory: 9 bytes\nframe #0: main");
        let host = host.to_string();
        assert!(host.contains("data.workers_per_gpu") && !host.contains("frame #0"), "{host}");
    }
}

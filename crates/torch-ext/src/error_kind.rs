//! Kinds of errors.

/// What an [`Error`](crate::Error) is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// Any other error of libtorch.
    Torch,
    /// An argument that the function does not accept.
    Invalid,
    /// Host or device memory is exhausted.
    OutOfMemory,
    /// A peer was lost, or the store or a collective failed or timed out.
    Collective,
    /// A library, a device or a driver is missing, broken or too old.
    Environment,
    /// A kernel failed in a way that ends this process's use of the GPU; another process can use it.
    Device,
}

//! The format and metadata of a file of weights.

/// The format of a file of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A PyTorch file: a dictionary with the tensors under `state_dict`, as MMDetection writes.
    StateDict,
    /// A PyTorch file with the tensors under `model`.
    Model,
    /// A PyTorch file that is only a dictionary of tensors.
    Bare,
    /// A safetensors file; fnet's checkpoints are safetensors files with the weights below `model.`.
    Safetensors,
}

/// What the file says about its training.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Meta {
    /// Names of the object classes in the order of their labels; empty if unknown.
    pub classes: Vec<String>,
    /// Number of finished epochs.
    pub epoch: Option<u64>,
    /// Number of finished iterations.
    pub iter: Option<u64>,
}
